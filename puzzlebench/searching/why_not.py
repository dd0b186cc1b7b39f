"""Why no architecture keeps the limits, in the words of the limits that were asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from puzzlebench.searching.case import WORKSPACE, Case
from puzzlebench.searching.costs import SearchCosts
from puzzlebench.searching.quantities import format_value
from puzzlebench.searching.search import Cases, SearchSettings
from puzzlebench_search.explain import Nearest, cheapest_relaxation, clashing, nearest_values
from puzzlebench_search.problem import Limit, Problem
from puzzlebench_search.solve import Method, solve

_SECONDS = 5.0
"""For each of the searches behind an explanation."""
_ROUNDING = 5e-4
"""What is lost at the most when a value is printed with four digits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitEnd:
    """One end of a limit, in the units of `Resource`.

    Attributes:
        column: the resource, with its scenario in brackets where there are several.
        with_margin: it is of the value with the margin of the confidence asked for.
    """

    column: str
    side: Literal["min", "max"]
    value: float
    with_margin: bool

    @property
    def text(self) -> str:
        """For people: "ttft at most 800 ms", "params at least 5 M"."""
        value = format_value(self.column, self.value).removesuffix(" parameters")
        side = "at most" if self.side == "max" else "at least"
        return f"{self.column} {side} {value}" + (" with its margin" if self.with_margin else "")

    @property
    def roomy_text(self) -> str:
        """The same, rounded to the side that gives room: the printed limit can be kept if this one can."""
        roomy = self.value * (1 + _ROUNDING if self.side == "max" else 1 - _ROUNDING)
        return replace(self, value=roomy).text


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitFacts:
    """One end of a limit, and how it stands in the way.

    Attributes:
        asked: as asked for.
        clashes: it is part of a set that cannot hold together, of which none can be left out.
        with_others: the nearest value while all the others hold; None if they cannot.
        alone: the nearest value whatever the others. Both are the best over all batch sizes.
        relaxed: what it becomes in the cheapest relaxation; None where it stays.
    """

    asked: LimitEnd
    clashes: bool
    with_others: float | None
    alone: float
    relaxed: LimitEnd | None


@dataclass(frozen=True, kw_only=True)
class WhyNot:
    """Why there is no solution at any batch size.

    Attributes:
        batch_size: that comes nearest, to which the relaxation belongs.
        change: the sum of the relative changes of the cheapest relaxation.
        objective: the best objective under the relaxed limits.
        batches: what each batch size would need at the least: its limits that move, as they would have to be.
        errors_taken_as: "correlated" where a confidence was asked for, also with independent errors: their margins are
            wider, so what is said to do does; None without.
    """

    batch_size: int
    limits: tuple[LimitFacts, ...]
    change: float
    objective: float
    batches: dict[int, tuple[LimitEnd, ...]]
    errors_taken_as: Literal["correlated"] | None


def why_not(
    costs: SearchCosts, settings: SearchSettings, *, report: Callable[[float, str], None] | None = None
) -> WhyNot:
    """Explain a search that found nothing.

    Args:
        report: called with the share done and what is going on.

    Raises:
        ValueError: something does keep the limits.
    """
    confidence = settings.confidence
    if confidence is not None:
        confidence = replace(confidence, errors_are="correlated")
    cases = Cases.of(costs, settings.batch_sizes, confidence)
    nearest: dict[int, tuple[float, int]] = {}
    needs: dict[int, tuple[LimitEnd, ...]] = {}
    for place, (case, problem) in enumerate(zip(cases.cases, cases.problems, strict=True)):
        if report is not None:
            report(place / (len(cases.cases) + 1), "explaining why nothing was found")
        relaxed, change = cheapest_relaxation(problem)
        if case.batch_size not in nearest or change < nearest[case.batch_size][0]:
            nearest[case.batch_size] = (change, place)
            ends = [_moved(case, problem, limit, sign) for limit in relaxed for sign in (1, -1)]
            needs[case.batch_size] = tuple(end for end in ends if end is not None)
    _, place = min(nearest.values())
    case, problem = cases.cases[place], cases.problems[place]
    relaxed, change = cheapest_relaxation(problem)
    if change == 0:
        raise ValueError("these limits can be kept; there is nothing to explain")
    result = solve(problem.with_limits(relaxed), method=settings.method, time_limit=_SECONDS)
    assert result.solution is not None
    return WhyNot(
        batch_size=case.batch_size,
        limits=_limit_facts(cases, place, relaxed, settings.method),
        change=change,
        objective=result.solution.objective,
        batches=needs,
        errors_taken_as=None if confidence is None else "correlated",
    )


def _limit_facts(cases: Cases, place: int, relaxed: tuple[Limit, ...], method: Method) -> tuple[LimitFacts, ...]:
    """Facts of every end, over all cases; `place` is the one that was relaxed."""
    case, problem = cases.cases[place], cases.problems[place]
    after = {limit.resource: limit for limit in relaxed}
    clash = {(end.resource, end.sign) for end in clashing(cases.problems, method=method, time_limit=_SECONDS)}
    near: dict[tuple[str, int], list[tuple[Case, Nearest]]] = {}
    for one_case, one_problem in zip(cases.cases, cases.problems, strict=True):
        for one in nearest_values(one_problem, method=method, time_limit=_SECONDS):
            near.setdefault((one.end.resource, one.end.sign), []).append((one_case, one))
    facts = []
    for (column, sign), found in near.items():
        if column.startswith(WORKSPACE):
            continue
        asked = _end(found[0][0], column, sign, found[0][1].end.value)
        best = min if asked.side == "max" else max
        kept = [_value(at, column, one.with_others) for at, one in found if one.with_others is not None]
        facts.append(
            LimitFacts(
                asked=asked,
                clashes=(column, sign) in clash,
                with_others=best(kept) if kept else None,
                alone=best(_value(at, column, one.alone) for at, one in found),
                relaxed=_moved(case, problem, after[column], sign),
            )
        )
    return tuple(facts)


def _moved(case: Case, problem: Problem, limit: Limit, sign: int) -> LimitEnd | None:
    """An end of a relaxed limit; None where it is as it was."""
    before = next(one for one in problem.limits if one.resource == limit.resource)
    value, was = (limit.high, before.high) if sign > 0 else (limit.low, before.low)
    if value == was or limit.resource.startswith(WORKSPACE):
        return None
    return _end(case, limit.resource, sign, value)


def _end(case: Case, column: str, sign: int, value: float) -> LimitEnd:
    plain = _plain(column)
    upper = (sign > 0) != plain.startswith("throughput")  # its column holds seconds
    return LimitEnd(
        column=plain,
        side="max" if upper else "min",
        value=_value(case, column, value),
        with_margin=plain != column,
    )


def _value(case: Case, column: str, value: float) -> float:
    return case.to_user(_plain(column), value)


def _plain(column: str) -> str:
    """A column without the mark of a margin."""
    return column.removesuffix(" +").removesuffix(" -")
