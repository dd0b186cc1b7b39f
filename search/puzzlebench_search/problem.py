"""The search as numbers: choices with a score and what they use, and limits on the sums. Knows no model and no GPU.

A choice covers one layer, or several neighbouring ones (`spans`); a solution covers every layer exactly once. Whatever
the direction, solvers minimise `Problem.losses`.

Legend for shapes: N choices, R resources, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
BoolArray: TypeAlias = NDArray[np.bool_]
Direction: TypeAlias = Literal["minimise", "maximise"]

TOLERANCE = 1e-9
"""A limit holds when it is exceeded by no more than this part of itself; objectives closer than this are equal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """The sum over the chosen of one resource, `Problem.base` included, must lie between `low` and `high`."""

    resource: str
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        if math.isnan(self.low) or math.isnan(self.high) or self.low == math.inf or self.high == -math.inf:
            raise ValueError(f"the limits of {self.resource} must be numbers, not {self.low} and {self.high}")
        if self.low > self.high:
            raise ValueError(f"{self.resource} cannot be at least {self.low:g} and at most {self.high:g}")

    def ends(self) -> Iterator[tuple[int, float]]:
        """Its finite ends, each with a sign: 1 for the high one, -1 for the low one."""
        for sign, end in ((1, self.high), (-1, self.low)):
            if math.isfinite(end):
                yield sign, end

    def excess(self, value: float) -> float:
        """How far a value lies outside, 0 inside, infinite if it is not a number."""
        if math.isnan(value):
            return math.inf
        return max(0.0, value - self.high, self.low - value)

    def slack(self, sign: int) -> float:
        """By how much its high (1) or low (-1) end may be exceeded and still holds, for rounding's sake."""
        end = self.high if sign > 0 else self.low
        return TOLERANCE * max(1e-12, abs(end)) if math.isfinite(end) else 0.0

    def holds(self, value: float) -> bool:
        """Whether a value lies inside, to `TOLERANCE`."""
        return self.low - self.slack(-1) <= value <= self.high + self.slack(1)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Choices and limits.

    Attributes:
        scores: (N,), added up over the chosen.
        uses: (N, R), added up over the chosen on top of `base`.
        layers: (N,), the first layer that a choice covers; from 0, ascending.
        spans: (N,), how many layers it covers; ones when left out.
        names: of the choices, N of them, for messages and results.
        limits: at most one per resource; a resource without one is only added up.
        resources: the names of the R columns.
        base: (R,), used whatever is chosen.
        direction: whether low or high scores are good.
    """

    scores: FloatArray
    uses: FloatArray
    layers: IntArray
    names: tuple[str, ...]
    resources: tuple[str, ...]
    limits: tuple[Limit, ...] = ()
    spans: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    base: FloatArray = field(default_factory=lambda: np.zeros(0))
    direction: Direction = "minimise"

    def __post_init__(self) -> None:
        """Raise ValueError for the first thing that is wrong; arrays are made of the right kind and read-only."""
        count = len(self.names)
        shapes = {
            "scores": (self.scores, np.float64, (count,)),
            "uses": (self.uses, np.float64, (count, len(self.resources))),
            "layers": (self.layers, np.int64, (count,)),
            "spans": (self.spans if len(self.spans) else np.ones(count), np.int64, (count,)),
            "base": (
                self.base if len(self.base) else np.zeros(len(self.resources)),
                np.float64,
                (len(self.resources),),
            ),
        }
        for name, (values, kind, shape) in shapes.items():
            array = np.array(values, dtype=kind)
            if array.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, not {array.shape}")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if self.direction not in ("minimise", "maximise"):
            raise ValueError(f"direction must be minimise or maximise, not {self.direction!r}")
        self._check_choices()
        self._check_resources()

    def _check_choices(self) -> None:
        if not self.names:
            raise ValueError("there are no choices")
        if (np.diff(self.layers) < 0).any() or self.layers[0] < 0 or (self.spans < 1).any():
            raise ValueError("layers must ascend from 0, and spans be at least 1")
        covered = np.zeros(self.num_layers, dtype=bool)
        covered[self.layers] = True
        for place in np.flatnonzero(self.spans > 1).tolist():
            covered[self.layers[place] : self.layers[place] + self.spans[place]] = True
        if not covered.all():
            raise ValueError(f"layer {int(np.argmin(covered))} has no choices")
        if not np.isfinite(self.base).all():
            raise ValueError("what is used whatever is chosen is not a finite number")
        for what, values in (("score", self.scores), ("use", self.uses.sum(axis=1))):
            bad = np.flatnonzero(~np.isfinite(values))
            if len(bad):
                place = int(bad[0])
                raise ValueError(f"layer {self.layers[place]}, {self.names[place]}: its {what} is not a finite number")

    def _check_resources(self) -> None:
        if len(set(self.resources)) != len(self.resources):
            raise ValueError(f"resources repeat: {', '.join(self.resources)}")
        limited = [limit.resource for limit in self.limits]
        for resource in limited:
            if resource not in self.resources:
                raise ValueError(f"no resource is named {resource!r}; there are {', '.join(self.resources)}")
            if limited.count(resource) > 1:
                raise ValueError(f"{resource} has more than one limit; give one with both ends")

    @property
    def num_layers(self) -> int:
        """L."""
        return int((self.layers + self.spans).max())

    @property
    def sign(self) -> float:
        """Times a score it is a loss: 1 where low scores are good, else -1."""
        return 1.0 if self.direction == "minimise" else -1.0

    @property
    def losses(self) -> FloatArray:
        """(N,) scores with a sign that makes low good."""
        return self.sign * self.scores

    @property
    def layer_starts(self) -> IntArray:
        """Where the choices of each layer that any begins at start, ascending: for `reduceat`."""
        return np.flatnonzero(np.diff(self.layers, prepend=-1))

    def column(self, resource: str) -> int:
        """Where a resource stands in `uses`."""
        return self.resources.index(resource)

    def with_limits(self, limits: Sequence[Limit]) -> Problem:
        """The same choices under other limits."""
        return self._changed(limits=tuple(limits))

    def only(self, keep: BoolArray) -> Problem:
        """The problem without the choices that `keep` (N,) marks False.

        Raises:
            ValueError: a layer would be left without any.
        """
        places = np.flatnonzero(keep)
        if len(places) and (self.layers[places] + self.spans[places]).max() < self.num_layers:
            raise ValueError(f"layer {self.num_layers - 1} has no choices")
        return self._changed(
            scores=self.scores[places],
            uses=self.uses[places],
            layers=self.layers[places],
            spans=self.spans[places],
            names=tuple(self.names[place] for place in places),
        )

    def with_scores(self, scores: FloatArray, direction: Direction) -> Problem:
        """The same choices judged by something else."""
        return self._changed(scores=scores, direction=direction)

    def with_resource(self, name: str, use: FloatArray, limit: Limit | None = None, base: float = 0.0) -> Problem:
        """The problem with one more resource, of which each choice uses `use` (N,)."""
        return self._changed(
            resources=(*self.resources, name),
            uses=np.column_stack([self.uses, use]),
            base=np.append(self.base, base),
            limits=self.limits if limit is None else (*self.limits, limit),
        )

    def _changed(self, **changes: object) -> Problem:
        fields = ("scores", "uses", "layers", "names", "resources", "limits", "spans", "base", "direction")
        return Problem(**{name: getattr(self, name) for name in fields} | changes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Solution:
    """A choice for every layer, as places in the problem's choices, with what they add up to.

    Attributes:
        choices: first layer first; fewer than L where some span several layers.
        objective: the sum of their scores.
        uses: of every resource, `base` included.
    """

    choices: tuple[int, ...]
    objective: float
    uses: dict[str, float]


def make_solution(problem: Problem, choices: Sequence[int]) -> Solution:
    """Add up what a set of choices scores and uses, exactly rounded.

    Raises:
        ValueError: they do not cover every layer exactly once.
    """
    chosen = tuple(sorted(int(choice) for choice in choices))
    reached = 0
    for choice in chosen:
        if not 0 <= choice < len(problem.names) or problem.layers[choice] != reached:
            raise ValueError(f"these choices do not cover layer {reached} exactly once")
        reached += int(problem.spans[choice])
    if reached != problem.num_layers:
        raise ValueError(f"these choices do not cover layer {reached} exactly once")
    uses = problem.uses[list(chosen)]
    return Solution(
        choices=chosen,
        objective=math.fsum(problem.scores[list(chosen)]),
        uses={name: math.fsum([problem.base[place], *uses[:, place]]) for place, name in enumerate(problem.resources)},
    )


def broken_limits(problem: Problem, solution: Solution) -> tuple[Limit, ...]:
    """The limits that a solution does not keep."""
    return tuple(limit for limit in problem.limits if not limit.holds(solution.uses[limit.resource]))
