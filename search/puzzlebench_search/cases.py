"""Several problems of which one has to be chosen, such as one per batch size: the best solution of them all.

Problems are known by their place; solutions go from one to the other by the names of their choices.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from puzzlebench_search.problem import Problem
from puzzlebench_search.solve import Method, Prices, Result, price_bound, solve

CaseStatus: TypeAlias = Literal["best", "solved", "skipped", "no better", "infeasible", "stopped"]
CaseSearch: TypeAlias = Callable[[int, float, float | None], Result]
_PRICES_KEPT = 24
_STARTS_KEPT = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseOutcome:
    """How one problem ended.

    Attributes:
        status: best; solved: it had the best solution for a while; skipped: prices of another problem showed that it
            cannot do better; no better: its search showed that; infeasible; stopped: by the time limit.
        bound: none of its solutions has a better objective, as far as that was looked into.
    """

    status: CaseStatus
    bound: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CasesResult:
    """The best of all problems.

    Attributes:
        best: its place, None when there is no solution at all.
        result: of the best.
        outcomes: of every problem, in their order.
    """

    best: int | None
    result: Result | None
    outcomes: tuple[CaseOutcome, ...]
    seconds: float

    @property
    def infeasible(self) -> bool:
        """Whether it is proven that no problem has a solution."""
        return all(outcome.status == "infeasible" for outcome in self.outcomes)

    @property
    def proven(self) -> bool:
        """Whether nothing was stopped by the time limit."""
        return all(outcome.status != "stopped" for outcome in self.outcomes)


@dataclass
class Memory:
    """What earlier searches of a sweep leave to later ones: prices, and solutions as names of choices."""

    prices: list[Prices] = field(default_factory=list)
    solutions: list[tuple[str, ...]] = field(default_factory=list)

    def keep(self, problem: Problem, result: Result) -> None:
        """Remember a search."""
        if result.prices:
            self.prices = [result.prices, *self.prices][:_PRICES_KEPT]
        if result.solution is not None:
            names = tuple(problem.names[choice] for choice in result.solution.choices)
            self.solutions = [names, *(known for known in self.solutions if known != names)][:_STARTS_KEPT]

    def starts(self, problem: Problem) -> list[list[int]]:
        """The solutions that the problem has all the choices of."""
        if not self.solutions:
            return []
        places = {name: place for place, name in enumerate(problem.names)}
        return [[places[name] for name in names] for names in self.solutions if all(name in places for name in names)]

    def bound(self, problem: Problem) -> float:
        """The best lower bound on the loss that the prices give."""
        return max((price_bound(problem, prices) for prices in self.prices), default=-math.inf)


def solve_cases(
    problems: Sequence[Problem],
    *,
    method: Method = "auto",
    time_limit: float | None = None,
    memory: Memory | None = None,
    search: CaseSearch | None = None,
    report: Callable[[int, int], None] | None = None,
) -> CasesResult:
    """The best solution of several problems of the same direction, and why the others are not better.

    The problem with the best bound, as far as prices of earlier ones tell, is searched next.

    Args:
        time_limit: seconds for all.
        memory: of earlier calls on like problems; it is added to.
        search: called in place of `solve` with a problem's place, the loss to stay below, and the seconds left.
        report: called with the number of problems done and of all.
    """
    started = time.perf_counter()
    memory = Memory() if memory is None else memory
    signs = [problem.sign for problem in problems]
    bounds = [memory.bound(problem) for problem in problems]
    outcomes: dict[int, CaseOutcome] = {}
    waiting = list(range(len(problems)))
    best: int | None = None
    found: Result | None = None
    loss = math.inf
    while waiting:
        place = min(waiting, key=lambda one: bounds[one])
        waiting.remove(place)
        problem, sign = problems[place], signs[place]
        if bounds[place] >= loss:
            outcomes[place] = CaseOutcome(status="skipped", bound=sign * bounds[place])
            continue
        left = None if time_limit is None else max(0.05, time_limit - (time.perf_counter() - started))
        if search is None:
            result = solve(problem, method=method, time_limit=left, starts=memory.starts(problem), below=loss)
        else:
            result = search(place, loss, left)
        memory.keep(problem, result)
        if result.solution is not None:
            if best is not None and outcomes[best].status == "best":
                outcomes[best] = CaseOutcome(status="solved", bound=outcomes[best].bound)
            best, found, loss = place, result, sign * result.solution.objective
        outcomes[place] = _outcome(result, sign * loss)
        for other in waiting:
            if bounds[other] < loss:
                bounds[other] = max(bounds[other], price_bound(problems[other], result.prices))
        if report is not None:
            report(len(outcomes), len(problems))
    return CasesResult(
        best=best,
        result=found,
        outcomes=tuple(outcomes[place] for place in range(len(problems))),
        seconds=time.perf_counter() - started,
    )


def _outcome(result: Result, best: float) -> CaseOutcome:
    if result.outcome == "stopped":
        return CaseOutcome(status="stopped", bound=result.bound)
    if result.solution is not None:
        return CaseOutcome(status="best", bound=result.bound)
    if math.isfinite(best) and result.root_bound != result.bound:  # not broken by bounds already
        return CaseOutcome(status="no better", bound=best)
    return CaseOutcome(status="infeasible", bound=result.bound)
