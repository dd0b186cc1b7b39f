"""Choose: the best architecture over all batch sizes, others that differ from it, and why there is none if so.

Each batch size is one or more linear problems (`case`); `puzzlebench_search` solves them. What is found is counted
again from the cost table (`recheck`) before it is returned.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from puzzlebench.model.blocks import Architecture, block_name
from puzzlebench.profiling.cost_table import CostTable
from puzzlebench.scores import ScoreTable
from puzzlebench.searching.case import WORKSPACE, Case
from puzzlebench.searching.costs import SearchCosts
from puzzlebench.searching.recheck import Recheck, recheck
from puzzlebench_search.cases import CaseOutcome, CasesResult, Memory, solve_cases
from puzzlebench_search.diverse import apart_from
from puzzlebench_search.problem import Problem, Solution, broken_limits, make_solution
from puzzlebench_search.robust import ErrorModel, Errors, margin_of, solve_with_confidence, with_margin
from puzzlebench_search.solve import Method, Result


@dataclass(frozen=True, kw_only=True, slots=True)
class Confidence:
    """With what probability each limit is to hold, given the cost table's intervals.

    Attributes:
        level: above 0.5 and below 1.
        errors_are: correlated: those of all layers have one cause and add up (the same kernel measured once serves them
            all); independent: each layer has its own, and they add up in quadrature. The truth lies between.
    """

    level: float
    errors_are: ErrorModel = "correlated"


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSettings:
    """How to search.

    Attributes:
        batch_sizes: to choose among.
        diverse: how many solutions.
        alpha: the part of the layers that two of them may share.
        time_limit: seconds for each solution.
    """

    batch_sizes: tuple[int, ...]
    diverse: int = 1
    alpha: float = 0.8
    method: Method = "auto"
    time_limit: float | None = None
    confidence: Confidence | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        if not self.batch_sizes:
            raise ValueError("give at least one batch size")
        if self.diverse < 1:
            raise ValueError(f"the number of solutions must be at least 1, not {self.diverse}")
        if not 0 <= self.alpha < 1:
            raise ValueError(f"alpha must be at least 0 and below 1, not {self.alpha}")
        if self.time_limit is not None and not 0 < self.time_limit < math.inf:
            raise ValueError(f"the time limit must be a number of seconds above 0, not {self.time_limit}")


@dataclass(frozen=True, kw_only=True)
class Found:
    """One architecture.

    Attributes:
        choices: names of its choices, "LAYER:BLOCK".
        check: its costs, counted again from the table.
        at_confidence: the values that keep the limits at the confidence asked for, margin included, by column and end
            ("low" or "high"), in the units of `Resource`.
        gains: what 1 % more room of a binding limit would change the objective by, to first order; by column.
        shared: layers that each earlier solution has in common with it.
    """

    batch_size: int
    architecture: Architecture
    choices: tuple[str, ...]
    objective: float
    result: Result
    check: Recheck
    at_confidence: dict[tuple[str, str], float]
    gains: dict[str, float]
    shared: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchOutcome:
    """How one batch size fared: what none of its solutions is better than, and its status as in `CaseOutcome`."""

    batch_size: int
    status: str
    bound: float


@dataclass(frozen=True, kw_only=True)
class SearchOutcome:
    """What was found: at least one architecture, or `found` is empty and nothing keeps the limits.

    Attributes:
        wanted: how many were asked for.
        parent_score: of the parent in the same sum.
        batches: of the search for the first solution.
        bound: no architecture within the limits, of any batch size, has a better objective.
        price: how much worse the objective is than without confidence, 0 or more; None where none was asked for.
        proven: nothing was stopped by the time limit; `best_proven` says so of the first solution alone.
    """

    found: tuple[Found, ...]
    wanted: int
    parent_score: float
    batches: tuple[BatchOutcome, ...]
    bound: float
    price: float | None
    proven: bool
    best_proven: bool
    seconds: float

    @property
    def gap(self) -> float | None:
        """Relative distance from the best objective to the bound; 0 when proven, None without a solution."""
        if not self.found:
            return None
        best = self.found[0].objective
        return 0.0 if self.best_proven else abs(best - self.bound) / max(abs(best), 1e-12)


@dataclass(frozen=True, kw_only=True)
class Cases:
    """All cases of a search, and the problems made from them."""

    cases: tuple[Case, ...]
    problems: tuple[Problem, ...]

    @classmethod
    def of(cls, costs: SearchCosts, batch_sizes: Sequence[int], confidence: Confidence | None) -> Cases:
        """The cases of these batch sizes, with the margin of correlated errors where it is asked for."""
        cases: tuple[Case, ...] = ()
        for batch_size in batch_sizes:
            try:
                cases += costs.cases(batch_size)
            except ValueError as error:
                if len(batch_sizes) == 1:
                    raise
                raise ValueError(f"{error}; or leave batch size {batch_size} out with --batch-size") from None
        if confidence is None or confidence.errors_are != "correlated":
            return cls(cases=cases, problems=tuple(case.problem for case in cases))
        problems = (with_margin(case.problem, errors_of(case), confidence.level) for case in cases)
        return cls(cases=cases, problems=tuple(problems))

    def solve(
        self,
        settings: SearchSettings,
        memory: Memory,
        others: Sequence[Sequence[str]] = (),
        report: Callable[[int, int], None] | None = None,
    ) -> CasesResult:
        """The best solution that differs from the others."""
        problems = [apart_from(problem, others, settings.alpha) for problem in self.problems]
        confidence = settings.confidence
        search = None
        if confidence is not None and confidence.errors_are == "independent":

            def search(place: int, below: float, left: float | None) -> Result:
                return solve_with_confidence(
                    problems[place],
                    errors_of(self.cases[place]),
                    confidence.level,
                    errors_are=confidence.errors_are,
                    method=settings.method,
                    time_limit=left,
                    below=below,
                )

        return solve_cases(
            problems,
            method=settings.method,
            time_limit=settings.time_limit,
            memory=memory,
            search=search,
            report=report,
        )


def errors_of(case: Case) -> Errors:
    """A case's standard errors as the solver takes them."""
    return Errors(
        upper=case.upper_sd, lower=case.lower_sd, base_upper=case.base_upper_sd, base_lower=case.base_lower_sd
    )


def problem_around(costs: SearchCosts, found: Found, confidence: Confidence | None) -> Problem:
    """The linear problem at a solution's batch size in which it keeps all limits, of several the one with most choices.

    What keeps its limits keeps those of the search, margins included. Independent errors add up to a square root of
    variances, which lies nowhere above its tangent: that of the solution takes its place.
    """
    for case in costs.cases(found.batch_size):
        places = {name: place for place, name in enumerate(case.problem.names)}
        if not all(name in places for name in found.choices):
            continue
        solution = make_solution(case.problem, [places[name] for name in found.choices])
        problem = case.problem
        if confidence is not None:
            errors = errors_of(case)
            if confidence.errors_are == "independent":
                errors = _tangent(errors, solution)
            problem = with_margin(problem, errors, confidence.level)
        if not broken_limits(problem, make_solution(problem, solution.choices)):
            return problem
    raise AssertionError("the solution is in none of the cases it was found in")


def _tangent(errors: Errors, at: Solution) -> Errors:
    """Errors whose plain sum is sqrt(sum of squares) for a solution, and no less than that for any other."""
    chosen = list(at.choices)
    found = []
    for each, base in ((errors.upper, errors.base_upper), (errors.lower, errors.base_lower)):
        root = np.sqrt(base**2 + (each[chosen] ** 2).sum(axis=0))  # (R,)
        flat = root == 0  # no tangent there: the plain sum will do
        twice = np.where(flat, 1.0, 2 * root)
        found.append((np.where(flat, each, each**2 / twice), np.where(flat, base, root / 2 + base**2 / twice)))
    (upper, base_upper), (lower, base_lower) = found
    return Errors(upper=upper, lower=lower, base_upper=base_upper, base_lower=base_lower)


def search_architectures(
    costs: SearchCosts,
    table: CostTable,
    scores: ScoreTable,
    settings: SearchSettings,
    *,
    report: Callable[[float, str], None] | None = None,
) -> SearchOutcome:
    """The best architectures.

    Args:
        table: the cost table that `costs` was made from, for the second count.
        report: called with the share done and what is going on.

    Raises:
        ValueError: a batch size or a cell is missing, or an argument is out of range.
    """
    started = time.perf_counter()
    cases = Cases.of(costs, settings.batch_sizes, settings.confidence)
    memory = Memory()
    found: list[Found] = []
    batches: tuple[BatchOutcome, ...] = ()
    proven = best_proven = True
    bound = math.nan
    sign = 1.0 if scores.direction == "minimise" else -1.0
    for number in range(settings.diverse):
        stage = "searching" if settings.diverse == 1 else f"solution {number + 1} of {settings.diverse}"

        def tell(done: int, of: int, number: int = number, stage: str = stage) -> None:
            if report is not None:
                report((number + done / of) / settings.diverse, stage)

        result = cases.solve(settings, memory, [one.choices for one in found], tell)
        proven &= result.proven
        if number == 0:
            best_proven = result.proven
            batches = _by_batch(cases.cases, result.outcomes, sign, _worst_loss(costs, sign))
            bound = sign * min(sign * batch.bound for batch in batches)
        if result.best is None:
            break
        found.append(make_found(costs, table, cases.cases[result.best], result, settings.confidence, found))
    price = None
    if settings.confidence is not None and found:
        known = Memory(solutions=[found[0].choices])  # it keeps the limits without margins too
        free = Cases.of(costs, settings.batch_sizes, None).solve(replace(settings, confidence=None), known)
        assert free.result is not None
        assert free.result.solution is not None
        price = max(0.0, sign * (found[0].objective - free.result.solution.objective))
    return SearchOutcome(
        found=tuple(found),
        wanted=settings.diverse,
        parent_score=parent_score(scores),
        batches=batches,
        bound=bound,
        price=price,
        proven=proven,
        best_proven=best_proven,
        seconds=time.perf_counter() - started,
    )


def parent_score(scores: ScoreTable) -> float:
    """The sum of the scores of the parent's own blocks."""
    blocks = scores.parent.blocks
    return math.fsum(scores.layer_scores(layer)[block_name(block)] for layer, block in enumerate(blocks))


def count_again(costs: SearchCosts, table: CostTable, architecture: Architecture, batch_size: int) -> Recheck:
    """What an architecture takes in the scenarios of a search, counted again from its table, beside its limits.

    Raises:
        ValueError: as `recheck`.
    """
    return recheck(
        table,
        costs.spec,
        architecture,
        costs.scenarios,
        batch_size,
        costs.limits,
        tokens_per_block=costs.tokens_per_block,
    )


def count_found(costs: SearchCosts, table: CostTable, architecture: Architecture, batch_size: int) -> Recheck:
    """The same of an architecture that was found: both counts must agree that it keeps the limits."""
    check = count_again(costs, table, architecture, batch_size)
    broken = [limit.column for limit in check.limits if not limit.holds]
    assert not broken, f"the second count of {', '.join(broken)} is beyond its limit"
    return check


def make_found(
    costs: SearchCosts,
    table: CostTable,
    case: Case,
    result: CasesResult,
    confidence: Confidence | None,
    earlier: Sequence[Found] = (),
) -> Found:
    """The architecture of a result, with its costs counted again."""
    assert result.result is not None
    assert result.result.solution is not None
    solution = result.result.solution
    architecture = costs.architecture(case.problem, solution.choices)
    check = count_found(costs, table, architecture, case.batch_size)
    names = tuple(case.problem.names[choice] for choice in solution.choices)
    return Found(
        batch_size=case.batch_size,
        architecture=architecture,
        choices=names,
        objective=solution.objective,
        result=result.result,
        check=check,
        at_confidence={} if confidence is None else _at_confidence(case, solution, confidence),
        gains=_gains(case, result.result),
        shared=tuple(len(set(names) & set(other.choices)) for other in earlier),
    )


def _at_confidence(case: Case, solution: Solution, confidence: Confidence) -> dict[tuple[str, str], float]:
    """Limited values with their margins, by column and end."""
    margins = margin_of(case.problem, errors_of(case), solution, confidence.level, confidence.errors_are)
    found = {}
    for name, margin in margins.items():
        column, _, end = name.rpartition(" ")
        sign = 1 if end == "+" else -1
        high = (sign > 0) != column.startswith("throughput")  # its seconds have the other end
        found[column, "high" if high else "low"] = case.to_user(column, solution.uses[column] + sign * margin)
    return found


def _gains(case: Case, result: Result) -> dict[str, float]:
    """First-order change of the objective for 1 % more room, of limits that have a price."""
    found = {}
    for limit in case.problem.limits:
        for sign, end in limit.ends():
            names = (limit.resource, f"{limit.resource} {'+' if sign > 0 else '-'}")
            price = max(result.prices.get((name, sign), 0.0) for name in names)
            if price > 0 and limit.resource != WORKSPACE:
                found[limit.resource] = -case.problem.sign * 0.01 * abs(end) * price
    return found


def _worst_loss(costs: SearchCosts, sign: float) -> float:
    """What no architecture scores worse than."""
    worst = np.full(costs.spec.num_hidden_layers, -math.inf)
    np.maximum.at(worst, costs.candidates.layers, sign * costs.candidates.scores)
    return float(worst.sum())


def _by_batch(
    cases: Sequence[Case], outcomes: Sequence[CaseOutcome], sign: float, worst: float
) -> tuple[BatchOutcome, ...]:
    """One outcome for each batch size: the best and what was stopped come first, else the case with the best bound.

    A bound that is worse than `worst`, the loss of the worst architecture, says that nothing keeps the limits.
    """
    grouped: dict[int, list[CaseOutcome]] = {}
    for case, outcome in zip(cases, outcomes, strict=True):
        grouped.setdefault(case.batch_size, []).append(outcome)
    first = {"best": 0, "stopped": 1}
    order = ("best", "stopped", "solved", "no better", "skipped", "infeasible")

    def loss(one: CaseOutcome) -> float:
        beyond = sign * one.bound > worst + 1e-6 * max(1.0, abs(worst))
        return math.inf if one.status == "infeasible" or beyond else sign * one.bound

    found = []
    for batch_size, group in grouped.items():
        shown = min(group, key=lambda one: (first.get(one.status, 2), loss(one), order.index(one.status)))
        least = min(loss(one) for one in group)
        status = "infeasible" if math.isinf(least) and shown.status != "best" else shown.status
        found.append(BatchOutcome(batch_size=batch_size, status=status, bound=sign * least))
    return tuple(found)
