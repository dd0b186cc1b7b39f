"""Local search on the score of whole models: for where the sum of single scores is only an approximation.

A search adds up what each replacement costs alone. Here whole architectures are scored, by a function of the caller's
that is slow (a forward pass over some data), and the best ones are changed in one or two places at a time, within the
limits. Neighbours come in the order of their predicted score: the sum of single scores plus a correction for each
choice, learnt by ridge regression from what the models scored so far differ from their sums. Choices are only ever
exchanged for those that cover the same layers.

What the correction is worth, on 80 layers (three of `instances.served_instance`) where each choice adds a random error
vector and the score is the squared length of their sum, after 100 evaluations from the best sum: real scores fall to
0.39-0.51 of the start's with it and 0.85-0.91 without in 64 dimensions, 0.81-0.90 and 0.95-0.96 in 512.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from puzzlebench_search.problem import FloatArray, IntArray, Problem, Solution, broken_limits, make_solution

Choices: TypeAlias = tuple[int, ...]
Scorer: TypeAlias = Callable[[Choices], float]

_PATIENCE = 25
"""Neighbours of one architecture that are scored without finding a better one, before the next best gets its turn."""
_RIDGE = 1.0
_NAMED = 4
"""Choices that an error message names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """One architecture that was scored as a whole.

    Attributes:
        additive: the sum of its single scores.
        real: what the scorer said.
    """

    choices: Choices
    additive: float
    real: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Refined:
    """What a refinement found.

    Attributes:
        best: never worse than the best start.
        real: its score as a whole.
        evaluated: everything that was scored, in order, the starts first.
        stopped: why.
    """

    best: Solution
    real: float
    evaluated: tuple[Evaluated, ...]
    stopped: str


def refine(
    problem: Problem,
    starts: Sequence[Solution],
    scorer: Scorer,
    *,
    evaluations: int,
    neighbours: int = 400,
    report: Callable[[Evaluated], None] | None = None,
) -> Refined:
    """Score the starts as wholes, then search around the best.

    Args:
        starts: solutions that keep the limits, best first: the best few or diverse ones of a search.
        scorer: the score of a whole architecture, from the places of its choices; in the problem's direction.
        evaluations: how often the scorer may be called; no architecture is scored twice.
        neighbours: how many single changes are combined into pairs.
        report: called after each evaluation.

    Raises:
        ValueError: there are no starts or one breaks a limit; evaluations is below 1; or the scorer raised, or returned
            what is not a finite number: the message names the architecture's choices.
    """
    if evaluations < 1 or not starts:
        raise ValueError(f"at least one start and one evaluation are needed, not {len(starts)} and {evaluations}")
    for start in starts:
        broken = broken_limits(problem, make_solution(problem, start.choices))
        if broken:
            raise ValueError(f"a start breaks the limit of {broken[0].resource}; start from solutions that keep all")
    run = _Run(problem, scorer, neighbours, report)
    for start in starts:
        if len(run.evaluated) < evaluations:
            run.score(start.choices)
    stopped = run.search(evaluations)
    best = run.evaluated[run.order()[0]]
    return Refined(
        best=make_solution(problem, best.choices), real=best.real, evaluated=tuple(run.evaluated), stopped=stopped
    )


@dataclass
class _Run:
    problem: Problem
    scorer: Scorer
    neighbours: int
    report: Callable[[Evaluated], None] | None
    evaluated: list[Evaluated] = field(default_factory=list)
    known: set[Choices] = field(default_factory=set)

    def order(self) -> list[int]:
        """The evaluated, best first."""
        return sorted(range(len(self.evaluated)), key=lambda place: self.problem.sign * self.evaluated[place].real)

    def score(self, choices: Choices) -> None:
        """Score an architecture unless it was before."""
        if choices in self.known:
            return
        names = ", ".join(self.problem.names[choice] for choice in choices[:_NAMED])
        names += f" and {len(choices) - _NAMED} more" if len(choices) > _NAMED else ""
        try:
            real = float(self.scorer(choices))
        except Exception as error:
            raise ValueError(f"the scorer failed on {names}: {error}") from error
        if not math.isfinite(real):
            raise ValueError(f"the scorer returned {real} for {names}")
        self.known.add(choices)
        solution = make_solution(self.problem, choices)
        self.evaluated.append(Evaluated(choices=choices, additive=solution.objective, real=real))
        if self.report is not None:
            self.report(self.evaluated[-1])

    def search(self, evaluations: int) -> str:
        """Score neighbours until the evaluations are used up or there are none left; say which."""
        failures: Counter[Choices] = Counter()
        exhausted: set[Choices] = set()
        while len(self.evaluated) < evaluations:
            ranked = [self.evaluated[place].choices for place in self.order()]
            waiting = [choices for choices in ranked if choices not in exhausted]
            if not waiting:
                return "every neighbour was scored"
            around = next((choices for choices in waiting if failures[choices] < _PATIENCE), waiting[0])
            candidate = self._next_neighbour(around)
            if candidate is None:
                exhausted.add(around)
                continue
            self.score(candidate)
            failures[around] += 1
        return f"all {evaluations} evaluations were used"

    def _next_neighbour(self, choices: Choices) -> Choices | None:
        """The neighbour with the best prediction among those that keep the limits and were not scored before."""
        problem = self.problem
        moves = _moves(problem, choices)
        predicted = problem.losses + self._correction()
        change = predicted[moves.new] - predicted[moves.old]
        few = np.argsort(np.abs(change), kind="stable")[: self.neighbours]
        one, other = (few[index] for index in np.triu_indices(len(few), 1))
        apart = moves.position[one] != moves.position[other]
        alone = np.arange(len(change))
        one, other = np.concatenate([alone, one[apart]]), np.concatenate([alone, other[apart]])
        both = (one != other)[:, None]
        keep = moves.keeping(moves.uses[one] + both * moves.uses[other])
        one, other = one[keep], other[keep]
        total = change[one] + (one != other) * change[other]
        for place in np.argsort(total, kind="stable"):
            changed = list(choices)
            for move in (one[place], other[place]):
                changed[moves.position[move]] = int(moves.new[move])
            found = tuple(changed)
            if found not in self.known and not broken_limits(problem, make_solution(problem, found)):
                return found
        return None

    def _correction(self) -> FloatArray:
        """(N,) ridge regression of real less additive loss on which choices an architecture has.

        In its dual form, whose unknowns are as many as the architectures, not the choices.
        """
        residual = self.problem.sign * np.array([one.real - one.additive for one in self.evaluated])
        row = np.repeat(np.arange(len(residual)), [len(one.choices) for one in self.evaluated])
        seen, column = np.unique(np.concatenate([one.choices for one in self.evaluated]), return_inverse=True)
        has = np.zeros((len(residual), len(seen)))
        has[row, column] = 1.0
        has -= has.mean(axis=0)
        weights = np.linalg.solve(has @ has.T + _RIDGE * np.eye(len(has)), residual - residual.mean())
        correction = np.zeros(len(self.problem.names))
        correction[seen] = weights @ has
        return correction


@dataclass(frozen=True, kw_only=True, slots=True)
class _Moves:
    """Every change of one choice of an architecture for another that covers the same layers, M of them.

    Attributes:
        position: (M,) of the changed choice in the architecture.
        uses: (M, R) what a change uses more, of the resources with a limit.
        low, high: (R,) by how much more must and may be used.
    """

    position: IntArray
    old: IntArray
    new: IntArray
    uses: FloatArray
    low: FloatArray
    high: FloatArray

    def keeping(self, uses: FloatArray) -> NDArray[np.bool_]:
        """Which rows of changes in use (K, R) keep all limits, to rounding."""
        return np.asarray(((uses >= self.low) & (uses <= self.high)).all(axis=1))


def _moves(problem: Problem, choices: Choices) -> _Moves:
    chosen = np.array(choices)
    position_of = np.full(problem.num_layers, -1)
    position_of[problem.layers[chosen]] = np.arange(len(chosen))
    position = position_of[problem.layers]
    old = chosen[position]
    new = np.flatnonzero((position >= 0) & (problem.spans[old] == problem.spans) & (old != np.arange(len(old))))
    position, old = position[new], old[new]
    columns = np.array([problem.column(limit.resource) for limit in problem.limits], dtype=np.int64)
    used = problem.base[columns] + problem.uses[np.ix_(chosen, columns)].sum(axis=0)
    return _Moves(
        position=position,
        old=old,
        new=new,
        uses=problem.uses[np.ix_(new, columns)] - problem.uses[np.ix_(old, columns)],
        low=np.array([limit.low - limit.slack(-1) for limit in problem.limits]) - used,
        high=np.array([limit.high + limit.slack(1) for limit in problem.limits]) - used,
    )
