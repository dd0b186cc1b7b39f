"""Limits that hold with a given confidence although uses are only known to some error.

Two cases, one at each end of what can be true. Errors that are one and the same in every layer add up: a limit then
holds if the sum of uses plus z standard errors each does. Errors that are independent from layer to layer add up in
quadrature: sum of uses + z sqrt(sum of variances) <= limit. That is not linear in the choices, but the square root is
concave: between two sums of variances it lies above its chord. So the chord gives a relaxed linear problem, and its
solution is the best if it keeps the limit; otherwise the range is cut in two. Exact, by branch and bound.

Legend for shapes: N choices, R resources.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from scipy.stats import norm

from puzzlebench_search.problem import FloatArray, Limit, Problem, Solution, make_solution
from puzzlebench_search.solve import Method, Result, solve

ErrorModel: TypeAlias = Literal["correlated", "independent"]
ERROR_MODELS: tuple[ErrorModel, ...] = ("correlated", "independent")
_NODES = 2_000


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Standard errors of uses; 0 where a use is exact. Columns that a problem has beyond these R are exact.

    Attributes:
        upper, lower: (N, R), above and below the value.
        base_upper, base_lower: (R,), of what is used whatever is chosen.
    """

    upper: FloatArray
    lower: FloatArray
    base_upper: FloatArray
    base_lower: FloatArray


def normal_quantile(confidence: float) -> float:
    """How many standard errors above its mean a normal value lies with this probability at the most.

    Raises:
        ValueError: the confidence is not above 0.5 and below 1.
    """
    if not 0.5 < confidence < 1:
        raise ValueError(f"the confidence must be above 0.5 and below 1, not {confidence}")
    return float(norm.ppf(confidence))


def with_margin(problem: Problem, errors: Errors, confidence: float) -> Problem:
    """The problem whose limits hold with a confidence if errors are correlated, each limit for itself.

    Every limit with errors becomes one on a column of its own, "NAME +" or "NAME -".
    """
    z = normal_quantile(confidence)
    safe = problem
    for end in _uncertain_ends(problem, errors):
        use = problem.uses[:, end.column] + end.sign * z * end.error
        base = float(problem.base[end.column]) + end.sign * z * end.base_error
        safe = _replace_end(safe, end, end.name, use, base, end.value)
    return safe


def solve_with_confidence(
    problem: Problem,
    errors: Errors,
    confidence: float,
    *,
    errors_are: ErrorModel = "correlated",
    method: Method = "auto",
    time_limit: float | None = None,
    below: float = math.inf,
) -> Result:
    """The best solution whose limits each hold with a confidence.

    Its `uses` are those of the problem as given, without margins.

    Args:
        below: only solutions whose loss is below this are wanted.

    Raises:
        ValueError: the confidence or the error model is not possible.
    """
    if errors_are == "correlated":
        safe = with_margin(problem, errors, confidence)
        return _as_given(problem, solve(safe, method=method, time_limit=time_limit, below=below))
    if errors_are != "independent":
        raise ValueError(f"errors are correlated or independent, not {errors_are!r}")
    return _branch_and_bound(problem, errors, normal_quantile(confidence), method, time_limit, below)


def margin_of(
    problem: Problem, errors: Errors, solution: Solution, confidence: float, errors_are: ErrorModel
) -> dict[str, float]:
    """By how much each limited resource of a solution may be exceeded (or fall short) at that confidence."""
    z = normal_quantile(confidence)
    chosen = list(solution.choices)
    found = {}
    for end in _uncertain_ends(problem, errors):
        each = [*end.error[chosen].tolist(), end.base_error]
        found[end.name] = z * (math.fsum(each) if errors_are == "correlated" else math.sqrt(sum(e * e for e in each)))
    return found


@dataclass(frozen=True, kw_only=True)
class _End:
    """One end of a limit on a resource with errors."""

    resource: str
    column: int
    sign: int
    value: float
    error: FloatArray
    base_error: float

    @property
    def name(self) -> str:
        return f"{self.resource} {'+' if self.sign > 0 else '-'}"


def _uncertain_ends(problem: Problem, errors: Errors) -> list[_End]:
    found = []
    for limit in problem.limits:
        column = problem.column(limit.resource)
        if column >= len(errors.base_upper):
            continue
        for sign, value, each, base in (
            (1, limit.high, errors.upper, errors.base_upper),
            (-1, limit.low, errors.lower, errors.base_lower),
        ):
            if math.isfinite(value) and (each[:, column].any() or base[column]):
                found.append(
                    _End(
                        resource=limit.resource,
                        column=column,
                        sign=sign,
                        value=value,
                        error=each[:, column],
                        base_error=float(base[column]),
                    )
                )
    return found


def _replace_end(problem: Problem, end: _End, name: str, use: FloatArray, base: float, value: float) -> Problem:
    """Take an end from its limit and put it on a column of its own."""
    limits = []
    for limit in problem.limits:
        if limit.resource == end.resource:
            limit = replace(limit, high=math.inf) if end.sign > 0 else replace(limit, low=-math.inf)
            if math.isinf(limit.high) and math.isinf(limit.low):
                continue
        limits.append(limit)
    new = Limit(resource=name, high=value) if end.sign > 0 else Limit(resource=name, low=value)
    return problem.with_limits(limits).with_resource(name, use, new, base)


def _as_given(problem: Problem, result: Result) -> Result:
    if result.solution is None:
        return result
    return replace(result, solution=make_solution(problem, result.solution.choices))


def _branch_and_bound(
    problem: Problem, errors: Errors, z: float, method: Method, time_limit: float | None, below: float
) -> Result:
    started = time.perf_counter()
    ends = _uncertain_ends(problem, errors)
    sign = problem.sign
    ranges = tuple(_variance_range(problem, end) for end in ends)
    counter = itertools.count()
    waiting: list[tuple[float, int, tuple[tuple[float, float], ...]]] = [(-math.inf, next(counter), ranges)]
    best: Result | None = None
    root: Result | None = None
    loss, open_loss, stopped = below, math.inf, False  # nothing that a time limit cut off is below open_loss
    for _ in range(_NODES):
        if not waiting or waiting[0][0] >= loss:
            break
        left = None if time_limit is None else time_limit - (time.perf_counter() - started)
        if left is not None and left <= 0 and root is not None:
            stopped = True
            break
        _, _, box = heapq.heappop(waiting)
        last = solve(_relaxed(problem, ends, box, z), method=method, time_limit=left, below=loss)
        root = root or last
        if last.outcome == "stopped":
            stopped, open_loss = True, min(open_loss, sign * last.bound)
        if last.solution is None:
            continue
        solution = make_solution(problem, last.solution.choices)
        over = [_excess(problem, end, solution, z) for end in ends]
        if max(over, default=0.0) <= 0:
            best, loss = replace(last, solution=solution), sign * solution.objective
            continue
        worst = int(np.argmax(over))
        for half in _halves(box[worst], _variance(ends[worst], solution)):
            heapq.heappush(
                waiting,
                (sign * last.bound, next(counter), (*box[:worst], half, *box[worst + 1 :])),
            )
    else:
        stopped |= bool(waiting) and waiting[0][0] < loss
    seconds = time.perf_counter() - started
    assert root is not None
    facts = replace(best or replace(root, solution=None), root_bound=root.root_bound, seconds=seconds)
    if stopped:
        return replace(facts, outcome="stopped", bound=sign * min([loss, open_loss, *(one[0] for one in waiting)]))
    if best is not None:
        return replace(facts, outcome="optimal", bound=sign * loss)
    return replace(facts, outcome="infeasible", bound=sign * math.inf)


def _variance_range(problem: Problem, end: _End) -> tuple[float, float]:
    first = problem.layer_starts
    each = end.error**2
    fixed = end.base_error**2
    least = np.minimum.reduceat(each, first) * (problem.spans == 1).all()  # where some span several, few may be chosen
    return (
        fixed + float(least.sum()),
        fixed + float(np.maximum.reduceat(each, first).sum()),
    )


def _variance(end: _End, solution: Solution) -> float:
    return end.base_error**2 + float((end.error[list(solution.choices)] ** 2).sum())


def _excess(problem: Problem, end: _End, solution: Solution, z: float) -> float:
    """How far a solution lies outside, margin included, in units of the limit; 0 or less inside."""
    used = end.sign * solution.uses[end.resource] + z * math.sqrt(_variance(end, solution))
    limit = next(one for one in problem.limits if one.resource == end.resource)
    return (used - end.sign * end.value - limit.slack(end.sign)) / (abs(end.value) or 1.0)


def _relaxed(problem: Problem, ends: list[_End], box: tuple[tuple[float, float], ...], z: float) -> Problem:
    """The problem with each root replaced by its chord over a range of variances, and variances kept in the range."""
    for end, (low, high) in zip(ends, box, strict=True):
        slope = 1.0 / (math.sqrt(low) + math.sqrt(high)) if high > 0 else 0.0
        offset = math.sqrt(low) - slope * low
        each, base = end.error**2, end.base_error**2
        use = problem.uses[:, end.column] + end.sign * z * slope * each
        fixed = float(problem.base[end.column]) + end.sign * z * (offset + slope * base)
        problem = _replace_end(problem, end, end.name, use, fixed, end.value)
        spare = 1e-9 * high
        within = Limit(resource=f"variance of {end.name}", low=low - spare, high=high + spare)
        problem = problem.with_resource(within.resource, each, within, base)
    return problem


def _halves(interval: tuple[float, float], at: float) -> tuple[tuple[float, float], tuple[float, float]]:
    low, high = interval
    middle = min(max(at, low + 0.1 * (high - low)), high - 0.1 * (high - low))
    return (low, middle), (middle, high)
