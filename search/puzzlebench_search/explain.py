"""Why there is no solution: which limits clash, how near each can be had, and the least that would have to give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pulp

from puzzlebench_search.layered import Layered, choice_grid
from puzzlebench_search.milp import choose_layers, chosen_places, run_program
from puzzlebench_search.problem import Limit, Problem, make_solution
from puzzlebench_search.solve import Method, Result, solve

_SECONDS = 10.0
"""For the cheapest relaxation; what is found until then is taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """One end of a limit: sign 1 for the high one, -1 for the low one."""

    resource: str
    sign: int
    value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Nearest:
    """How near one end can be had.

    Attributes:
        with_others: the best value while all other limits hold; None if they cannot even hold without it.
        alone: the best value without any other limit.
    """

    end: End
    with_others: float | None
    alone: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """Why a problem has no solution.

    Attributes:
        clash: limits that cannot hold together, none of which could be left out of that statement.
        nearest: of every end.
        relaxed: the limits, moved by the least sum of relative changes that gives a solution.
        change: that sum.
        result: the best solution under the relaxed limits.
    """

    clash: tuple[End, ...]
    nearest: tuple[Nearest, ...]
    relaxed: tuple[Limit, ...]
    change: float
    result: Result


def explain(problem: Problem, *, method: Method = "auto", time_limit: float | None = None) -> Explanation:
    """Explain a problem that has no solution.

    Args:
        time_limit: seconds for each of the searches; what is found until then is taken.

    Raises:
        ValueError: it has one, or would have none without any limit.
    """
    if solve(problem, method=method, time_limit=time_limit).solution is not None:
        raise ValueError("the problem has a solution; there is nothing to explain")
    if solve(problem.with_limits(()), method=method).solution is None:
        raise ValueError("no choices cover every layer exactly once, limits or not")
    clash = clashing([problem], method=method, time_limit=time_limit)
    nearest = nearest_values(problem, method=method, time_limit=time_limit)
    relaxed, change = cheapest_relaxation(problem)
    result = solve(problem.with_limits(relaxed), method=method, time_limit=time_limit)
    return Explanation(clash=clash, nearest=nearest, relaxed=relaxed, change=change, result=result)


def _ends(problem: Problem) -> list[End]:
    return [
        End(resource=limit.resource, sign=sign, value=value) for limit in problem.limits for sign, value in limit.ends()
    ]


def _limits(ends: Sequence[End]) -> list[Limit]:
    limits: dict[str, Limit] = {}
    for end in ends:
        known = limits.get(end.resource, Limit(resource=end.resource))
        limits[end.resource] = replace(known, high=end.value) if end.sign > 0 else replace(known, low=end.value)
    return list(limits.values())


def nearest_values(
    problem: Problem, *, method: Method = "auto", time_limit: float | None = None
) -> tuple[Nearest, ...]:
    """How near every end can be had."""
    ends = _ends(problem)
    found = []
    for end in ends:
        alone = _best(problem, end, [], method, time_limit)
        assert alone is not None
        others = [other for other in ends if other != end]
        found.append(Nearest(end=end, with_others=_best(problem, end, others, method, time_limit), alone=alone))
    return tuple(found)


def clashing(
    problems: Sequence[Problem], *, method: Method = "auto", time_limit: float | None = None
) -> tuple[End, ...]:
    """Ends that no one of the problems can keep together, none of which could be left out of that statement.

    Args:
        problems: with the same ends of the same resources limited; their values may differ.

    Returns:
        The ends of the first problem.
    """
    kept = _ends(problems[0])
    for end in _ends(problems[0]):
        rest = [other for other in kept if other != end]
        keys = {(other.resource, other.sign) for other in rest}
        if rest and not any(_can_hold(problem, keys, method, time_limit) for problem in problems):
            kept = rest
    return tuple(kept)


def _best(problem: Problem, end: End, others: Sequence[End], method: Method, time_limit: float | None) -> float | None:
    """The nearest value of an end while others hold."""
    use = problem.uses[:, problem.column(end.resource)]
    result = solve(
        problem.with_scores(use, "minimise" if end.sign > 0 else "maximise").with_limits(_limits(others)),
        method=method,
        time_limit=time_limit,
    )
    return None if result.solution is None else result.solution.uses[end.resource]


def _can_hold(problem: Problem, keys: set[tuple[str, int]], method: Method, time_limit: float | None) -> bool:
    """Whether some solution keeps all these ends: the last of them is brought as near as the others allow."""
    ends = [end for end in _ends(problem) if (end.resource, end.sign) in keys]
    value = _best(problem, ends[-1], ends[:-1], method, time_limit)
    return value is not None and _limits(ends[-1:])[0].holds(value)


def cheapest_relaxation(problem: Problem) -> tuple[tuple[Limit, ...], float]:
    """The limits moved by the least sum of relative changes that leaves a solution, and that sum.

    A limit at 0 or next to it is counted in units of the largest use of a choice. Scores play no part in it.
    """
    ends = _ends(problem)
    if not ends:
        return problem.limits, 0.0
    sizes = [_size(problem, end) for end in ends]
    free = problem.with_scores(np.zeros(len(problem.names)), "minimise")
    problem = _without_dominated(free)
    program = pulp.LpProblem("relaxation", pulp.LpMinimize)
    counted = choose_layers(program, problem)
    variables = [one.variable for one in counted]
    places = [one.places[0] for one in counted]
    give = [pulp.LpVariable(f"s{place}", lowBound=0) for place in range(len(ends))]
    program += pulp.lpSum(give)
    for end, slack, size in zip(ends, give, sizes, strict=True):
        column = problem.column(end.resource)
        use = problem.uses[places, column]
        total = pulp.LpAffineExpression(zip(variables, (end.sign * use / size).tolist(), strict=True))
        program += total - slack <= end.sign * (end.value - float(problem.base[column])) / size
    run_program(program, time_limit=_SECONDS)
    solution = make_solution(problem, chosen_places(counted))
    moved: dict[str, Limit] = {limit.resource: limit for limit in problem.limits}
    change = 0.0
    for end, size in zip(ends, sizes, strict=True):
        value, limit = solution.uses[end.resource], moved[end.resource]
        if end.sign * (value - end.value) > limit.slack(end.sign):
            moved[end.resource] = replace(limit, high=value) if end.sign > 0 else replace(limit, low=value)
            change += end.sign * (value - end.value) / size
    return tuple(moved.values()), change


def _without_dominated(problem: Problem) -> Problem:
    """Without choices that another of their layer beats or equals on every limited end."""
    if not (problem.spans == 1).all():
        return problem
    choices = choice_grid(problem)
    there = choices >= 0
    ends = _ends(problem)
    uses = np.stack([end.sign * problem.uses[:, problem.column(end.resource)][choices] for end in ends], axis=2)
    layered = Layered(
        losses=np.where(there, 0.0, np.inf),
        uses=uses,
        choices=choices,
        room=np.ones(len(ends)),
        ends=tuple((end.resource, end.sign) for end in ends),
        units=np.ones(len(ends)),
    ).without_dominated()
    keep = np.zeros(len(problem.names), dtype=bool)
    keep[layered.places] = True
    return problem.only(keep)


def _size(problem: Problem, end: End) -> float:
    largest = float(np.abs(problem.uses[:, problem.column(end.resource)]).max())
    return abs(end.value) if abs(end.value) > 1e-9 * largest else largest or 1.0
