"""A problem as arrays of layers x choices x rows, normalised, without what can never be chosen.

Every finite end of a limit becomes one row "sum of uses <= 1": uses are counted from the least of each layer, and
divided by the room that leaves. Only for problems whose choices all span one layer.

Legend for shapes: L layers, J the most choices of a layer, M rows; padding has infinite loss.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from puzzlebench_search.problem import BoolArray, FloatArray, IntArray, Problem


@dataclass(frozen=True, kw_only=True)
class Layered:
    """Arrays of what is left of a problem.

    Attributes:
        losses: (L, J), infinite where there is no choice.
        uses: (L, J, M), at least 0.
        choices: (L, J), places in the problem's choices, -1 where there is none.
        room: (M,), all 1; kept because parts of the layers leave other room.
        ends: which end of which resource's limit each row is: (resource, 1) for the high, (resource, -1) for the low.
        units: (M,), what 1 is in the resource's own unit.
    """

    losses: FloatArray
    uses: FloatArray
    choices: IntArray
    room: FloatArray
    ends: tuple[tuple[str, int], ...]
    units: FloatArray

    @property
    def there(self) -> BoolArray:
        """(L, J), where there is a choice."""
        return self.choices >= 0

    @property
    def places(self) -> IntArray:
        """The choices left, as places in the problem's, ascending."""
        return np.sort(self.choices[self.there])

    @property
    def count(self) -> int:
        """Choices left."""
        return int(self.there.sum())

    @property
    def spread(self) -> float:
        """Mean over the layers of how far the upper quartile of the losses is from the best: the objective's scale.

        Not the worst, which may be any number that says "never this".
        """
        ordered = np.sort(self.losses, axis=1)  # what is not there is infinite and comes last
        quartile = (0.75 * (self.there.sum(axis=1) - 1)).astype(np.int64)
        upper = ordered[np.arange(len(ordered)), quartile]
        widest = np.where(self.there, self.losses, -np.inf).max(axis=1) - ordered[:, 0]
        return float((upper - ordered[:, 0]).mean()) or float(widest.mean()) or 1.0

    @property
    def worst(self) -> float:
        """No solution has a higher loss."""
        return float(np.where(self.there, self.losses, -np.inf).max(axis=1).sum())

    def only(self, keep: BoolArray) -> Layered:
        """Without the choices that `keep` (L, J) marks False, packed to the left; every layer must keep one."""
        keep = keep & self.there
        order = np.argsort(~keep, axis=1, kind="stable")[:, : int(keep.sum(axis=1).max())]
        kept = np.take_along_axis(keep, order, axis=1)
        return replace(
            self,
            losses=np.where(kept, np.take_along_axis(self.losses, order, axis=1), np.inf),
            uses=np.take_along_axis(self.uses, order[:, :, None], axis=1) * kept[:, :, None],
            choices=np.where(kept, np.take_along_axis(self.choices, order, axis=1), -1),
        )

    def without_dominated(self) -> Layered:
        """Without choices that another of their layer beats or equals in loss and every row."""
        measures = np.concatenate([self.losses[:, :, None], self.uses], axis=2)
        as_good: BoolArray = np.all(measures[:, :, None, :] <= measures[:, None, :, :], axis=3)  # (L, by, of)
        places = np.arange(measures.shape[1])
        earlier = places[:, None] < places[None, :]
        beats = as_good & (~as_good.transpose(0, 2, 1) | earlier) & self.there[:, :, None]
        return self.only(self.there & ~beats.any(axis=1))


def choice_grid(problem: Problem) -> IntArray:
    """The choices of each layer, as places in the problem's; (L, J), -1 where there is none."""
    counts = np.bincount(problem.layers, minlength=problem.num_layers)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    column = np.arange(len(problem.layers)) - first[problem.layers]
    choices = np.full((problem.num_layers, int(counts.max())), -1, dtype=np.int64)
    choices[problem.layers, column] = np.arange(len(problem.layers))
    return choices


def layer_problem(problem: Problem) -> Layered | None:
    """Normalise; None where a limit leaves a layer nothing to choose.

    Choices that break a limit whatever the other layers choose are taken out, and rows that every choice keeps.
    """
    assert (problem.spans == 1).all()
    choices = choice_grid(problem)
    there = choices >= 0
    rows, rooms, ends = [], [], []
    for limit in problem.limits:
        place = problem.column(limit.resource)
        use, base = problem.uses[:, place], float(problem.base[place])
        rounding = _rounding(problem, place)
        for sign, end in limit.ends():
            slack = limit.slack(sign) / 2 + rounding  # half, so that sums rounded otherwise still hold
            rows.append(sign * use)
            rooms.append(sign * (end - base) + slack)
            ends.append((limit.resource, sign))
    uses = np.zeros((*choices.shape, len(rows)))
    for place, row in enumerate(rows):
        uses[there, place] = row[choices[there]]
    packed = np.where(there, problem.losses[choices], np.inf)
    return _settle(packed, uses, choices, np.array(rooms), ends)


def _rounding(problem: Problem, place: int) -> float:
    """What adding up the uses of one resource may be wrong by: it matters where they cancel down to a small limit."""
    most = np.maximum.reduceat(np.abs(problem.uses[:, place]), problem.layer_starts).sum() + abs(problem.base[place])
    return float(2 * problem.num_layers * np.finfo(np.float64).eps * most)


def _settle(
    losses: FloatArray, uses: FloatArray, choices: IntArray, room: FloatArray, ends: list[tuple[str, int]]
) -> Layered | None:
    there = choices >= 0
    while True:
        least = np.where(there[:, :, None], uses, np.inf).min(axis=1)  # (L, M)
        spare = room - least.sum(axis=0)
        if (spare < 0).any():
            return None
        fits = there & (uses - least[:, None, :] <= spare).all(axis=2)
        if (fits == there).all():
            break
        there = fits
    most = np.where(there[:, :, None], uses, -np.inf).max(axis=1)
    binding = most.sum(axis=0) > room
    scaled = (uses - least[:, None, :])[:, :, binding] / spare[binding]
    whole = Layered(
        losses=losses,
        uses=np.where(there[:, :, None], np.maximum(scaled, 0.0), 0.0),
        choices=np.where(there, choices, -1),
        room=np.ones(int(binding.sum())),
        ends=tuple(end for end, kept in zip(ends, binding, strict=True) if kept),
        units=spare[binding],
    )
    return whole.only(there)
