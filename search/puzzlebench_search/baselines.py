"""The searches that Puzzle is compared with, behind one call (arXiv 2411.19146, the ablations on the search algorithm).

Numbers only: what a choice is to the model comes from the caller as `ChoiceFacts`. The paper compares with a greedy
search at equal throughput (MMLU 70.74 against 78.39 before uptraining), with maximising parameters (23.12) and with
no-ops as the only alternatives (75.40): tables 10 to 12 of its first version. Of the greedy search only its name and
result could be checked there, so `greedy` says what is ours.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from puzzlebench_search.problem import FloatArray, Problem, Solution, broken_limits, make_solution
from puzzlebench_search.solve import solve

BoolArray: TypeAlias = NDArray[np.bool_]

_TRIES_PER_SAMPLE = 20


@dataclass(frozen=True, kw_only=True)
class ChoiceFacts:
    """What the choices of a problem are, N of each.

    Attributes:
        parent: it is the parent's own block.
        no_op_or_parent: each half is the parent's own or a no-op.
        dropped: both halves are no-ops.
        kind: equal where the same block stands in different layers.
        params: its parameters.
    """

    parent: BoolArray
    no_op_or_parent: BoolArray
    dropped: BoolArray
    kind: tuple[str, ...]
    params: FloatArray

    def __post_init__(self) -> None:
        """Raise ValueError where the fields do not describe the same number of choices."""
        counts = {len(self.parent), len(self.no_op_or_parent), len(self.dropped), len(self.kind), len(self.params)}
        if len(counts) > 1:
            raise ValueError(f"the facts are of different numbers of choices: {sorted(counts)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How the baselines are run.

    Attributes:
        samples: how many random architectures.
        seed: of the random ones.
        time_limit: seconds for each exact solve.
    """

    samples: int = 100
    seed: int = 0
    time_limit: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for no samples."""
        if self.samples < 1:
            raise ValueError(f"at least one sample is needed, not {self.samples}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """What one baseline found.

    Attributes:
        solution: None where it found none that keeps the limits; its objective is always the sum of the real scores.
        note: what the solution is, or why there is none.
        objectives: of every sample, where a baseline draws several.
    """

    name: str
    solution: Solution | None
    note: str
    seconds: float = 0.0
    objectives: tuple[float, ...] = ()


Run: TypeAlias = Callable[[Problem, ChoiceFacts, Settings], Baseline]


def run_baseline(name: str, problem: Problem, facts: ChoiceFacts, settings: Settings | None = None) -> Baseline:
    """Run one of `BASELINES`.

    Raises:
        ValueError: there is none of that name, or the facts do not fit the problem.
    """
    if name not in BASELINES:
        raise ValueError(f"no baseline is named {name!r}; there are {', '.join(BASELINES)}")
    if len(facts.kind) != len(problem.names):
        raise ValueError(f"the facts are of {len(facts.kind)} choices, the problem has {len(problem.names)}")
    started = time.perf_counter()
    found = BASELINES[name](problem, facts, settings or Settings())
    return replace(found, name=name, seconds=time.perf_counter() - started)


def greedy(problem: Problem, facts: ChoiceFacts, _settings: Settings) -> Baseline:
    """Layer by layer, each within an equal share of what is left of every limit.

    The paper's greedy search, as far as its name ("budget-constrained") and its results tell; its text could not be
    checked, so the details are ours.

    Layers come from the least replaceable to the most: by the mean score of their alternatives to the parent, worst
    first, and before all those without any. Each takes the best-scoring block within its share; what it leaves unused
    is shared by the layers after it.

    The parent does not count in the mean. Where no block fits the one is taken that exceeds its share by the smallest
    part of the limit, so that later layers may still make up for it. Low ends of limits are ignored until the end.
    Choices that span several layers are never taken.
    """
    losses, singles = problem.losses, problem.spans == 1
    ends = np.array([limit.high for limit in problem.limits])
    columns = [problem.column(limit.resource) for limit in problem.limits]
    uses = problem.uses[:, columns][:, np.isfinite(ends)]
    left = (ends - problem.base[columns])[np.isfinite(ends)]
    size = np.where(left != 0, np.abs(left), 1.0)

    choices = [np.flatnonzero((problem.layers == layer) & singles) for layer in range(problem.num_layers)]
    hardness = []
    for layer, places in enumerate(choices):
        if not len(places):
            return _none(f"it takes one block for each layer, and layer {layer} has only choices that span more")
        others = places[~facts.parent[places]]
        hardness.append(float(losses[others].mean()) if len(others) else math.inf)

    chosen = []
    for done, layer in enumerate(sorted(range(len(choices)), key=lambda layer: -hardness[layer])):
        places = choices[layer]
        share = left / (len(choices) - done)
        excess = ((uses[places] - share) / size).max(axis=1, initial=0.0)
        fitting = places[excess <= 0]
        taken = fitting[np.argmin(losses[fitting])] if len(fitting) else places[np.argmin(excess)]
        left = left - uses[taken]
        chosen.append(int(taken))
    return _judged(problem, chosen, "layers in order of replaceability, an equal share of the limits for each")


def random(problem: Problem, _facts: ChoiceFacts, settings: Settings) -> Baseline:
    """Architectures drawn at random within the limits; the solution is the one with the median score.

    Blocks are drawn uniformly for each layer. Where a limit is broken, layers in random order get random blocks that
    break the limits by less, until all hold; what cannot be repaired so is drawn again. How the paper's random
    architectures keep their limits could not be checked; this way is ours.
    """
    rng = np.random.default_rng(settings.seed)
    draw = _Draw(problem)
    found: list[Solution] = []
    for tries in range(1, settings.samples * _TRIES_PER_SAMPLE + 1):
        choices = draw(rng)
        if choices is not None:
            found.append(make_solution(problem, choices))
        if len(found) == settings.samples or (not found and tries >= 5 * _TRIES_PER_SAMPLE):
            break
    if not found:
        return _none(f"none of {tries} random architectures could be repaired to keep the limits")
    found.sort(key=lambda solution: solution.objective)
    objectives = np.array([solution.objective for solution in found])
    note = (
        f"median of {len(found)} random architectures; their mean is {objectives.mean():.6g} ± {objectives.std():.3g}"
    )
    solution = found[(len(found) - 1) // 2]
    return Baseline(name="", solution=solution, note=note, objectives=tuple(objectives.tolist()))


def max_params(problem: Problem, facts: ChoiceFacts, settings: Settings) -> Baseline:
    """As many parameters as the limits allow, whatever the scores."""
    by_size = problem.with_scores(facts.params, "maximise")
    return _exact(problem, by_size, np.arange(len(facts.kind)), settings, "the most parameters")


def no_op_only(problem: Problem, facts: ChoiceFacts, settings: Settings) -> Baseline:
    """The best where a sub-block is the parent's own or nothing."""
    return _restricted(problem, facts.no_op_or_parent, settings, "only the parent's sub-blocks and no-ops")


def layer_drop(problem: Problem, facts: ChoiceFacts, settings: Settings) -> Baseline:
    """The best where a whole layer is the parent's own or nothing."""
    return _restricted(problem, facts.parent | facts.dropped, settings, "only whole layers are dropped")


def homogeneous(problem: Problem, facts: ChoiceFacts, _settings: Settings) -> Baseline:
    """The best with the same block in every layer, of the kinds that every layer offers; spans are left out."""
    places: dict[str, dict[int, int]] = defaultdict(dict)
    losses = problem.losses
    for place in np.flatnonzero(problem.spans == 1).tolist():
        at, layer = places[facts.kind[place]], int(problem.layers[place])
        if layer not in at or losses[place] < losses[at[layer]]:
            at[layer] = place
    everywhere = {kind: list(at.values()) for kind, at in places.items() if len(at) == problem.num_layers}
    if not everywhere:
        return _none("no kind of block is offered in every layer")
    solutions = {kind: make_solution(problem, chosen) for kind, chosen in everywhere.items()}
    keeping = [kind for kind, solution in solutions.items() if not broken_limits(problem, solution)]
    if not keeping:
        nearest = min(solutions, key=lambda kind: _excess(problem, solutions[kind])[0])
        worst = _excess(problem, solutions[nearest])[1]
        return _none(f"none of {len(solutions)} kinds keeps the limits; {nearest} comes nearest but {worst}")
    best = min(keeping, key=lambda kind: problem.sign * solutions[kind].objective)
    return Baseline(name="", solution=solutions[best], note=f"{best} in every layer")


BASELINES: dict[str, Run] = {
    "greedy": greedy,
    "random": random,
    "max-params": max_params,
    "homogeneous": homogeneous,
    "no-op only": no_op_only,
    "layer drop": layer_drop,
}


class _Draw:
    """Draws one architecture at random and repairs it; None where that does not succeed."""

    def __init__(self, problem: Problem) -> None:
        columns = [problem.column(limit.resource) for limit in problem.limits]
        finite = [[abs(end) for end in (limit.low, limit.high) if math.isfinite(end)] for limit in problem.limits]
        size = np.array([max(ends, default=1.0) or 1.0 for ends in finite])
        self.uses = problem.uses[:, columns] / size
        self.base = problem.base[columns] / size
        self.low = np.array([limit.low for limit in problem.limits]) / size
        self.high = np.array([limit.high for limit in problem.limits]) / size
        self.problem = problem
        self.layers = problem.num_layers
        ending = [False] * self.layers + [True]  # whether the layers from here on can be covered
        self.starting: list[NDArray[np.intp]] = []
        for layer in reversed(range(self.layers)):
            places = np.flatnonzero(problem.layers == layer)
            places = places[[ending[layer + int(span)] for span in problem.spans[places]]]
            ending[layer] = bool(len(places))
            self.starting.insert(0, places)

    def __call__(self, rng: np.random.Generator) -> list[int] | None:
        if not len(self.starting[0]):
            return None
        chosen, layer = [], 0
        while layer < self.layers:
            chosen.append(int(rng.choice(self.starting[layer])))
            layer += int(self.problem.spans[chosen[-1]])
        used = self.base + self.uses[chosen].sum(axis=0)
        improved = True
        while improved and self._broken(used) > 0:
            improved = False
            for position in rng.permutation(len(chosen)):
                old = chosen[position]
                places = self.starting[int(self.problem.layers[old])]
                places = places[self.problem.spans[places] == self.problem.spans[old]]
                would_use = used - self.uses[old] + self.uses[places]
                better = np.flatnonzero(self._broken(would_use) < self._broken(used) - 1e-12)
                if len(better):
                    pick = int(rng.choice(better))
                    chosen[position], used, improved = int(places[pick]), would_use[pick], True
                    if self._broken(used) == 0:
                        break
        return None if broken_limits(self.problem, make_solution(self.problem, chosen)) else chosen

    def _broken(self, used: FloatArray) -> FloatArray:
        return np.asarray((np.maximum(used - self.high, 0) + np.maximum(self.low - used, 0)).sum(axis=-1))


def _restricted(problem: Problem, keep: BoolArray, settings: Settings, what: str) -> Baseline:
    try:
        smaller = problem.only(keep)
    except ValueError as error:
        return _none(f"{what}: {error}")
    return _exact(problem, smaller, np.flatnonzero(keep), settings, what)


def _exact(problem: Problem, solved: Problem, places: NDArray[np.intp], settings: Settings, what: str) -> Baseline:
    """Solve a problem whose choices are these `places` of the original one."""
    result = solve(solved, time_limit=settings.time_limit)
    if result.solution is None:
        why = "no such architecture keeps the limits" if result.outcome == "infeasible" else "out of time"
        return _none(f"{what}: {why}")
    solution = make_solution(problem, [int(places[choice]) for choice in result.solution.choices])
    proof = "" if result.outcome == "optimal" else "; not proven best in the time"
    return Baseline(name="", solution=solution, note=what + proof)


def _judged(problem: Problem, chosen: Sequence[int], what: str) -> Baseline:
    solution = make_solution(problem, chosen)
    if broken_limits(problem, solution):
        return _none(f"{what}: {_excess(problem, solution)[1]}")
    return Baseline(name="", solution=solution, note=what)


def _excess(problem: Problem, solution: Solution) -> tuple[float, str]:
    """By what part of itself the worst broken limit is exceeded, in numbers and words."""
    parts = []
    for limit in broken_limits(problem, solution):
        value = solution.uses[limit.resource]
        end, side = (limit.high, "above") if value > limit.high else (limit.low, "below")
        part = limit.excess(value) / (abs(end) or 1.0)
        parts.append((part, f"is {part:.1%} {side} the limit of {limit.resource}"))
    return max(parts)


def _none(why: str) -> Baseline:
    return Baseline(name="", solution=None, note=why)
