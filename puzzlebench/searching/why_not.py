"""Why no architecture keeps the limits, in the words of the limits that were asked for."""

from __future__ import annotations

from dataclasses import dataclass

from puzzlebench.searching.case import WORKSPACE, Case
from puzzlebench.searching.costs import SearchCosts
from puzzlebench.searching.quantities import format_value
from puzzlebench.searching.search import Cases, SearchSettings
from puzzlebench_search.explain import End, Explanation, cheapest_relaxation, explain
from puzzlebench_search.problem import Problem


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitFacts:
    """One end of a limit.

    Attributes:
        text: as asked for: "ttft at most 800 ms".
        clashes: it is part of the smallest set that cannot hold together.
        with_others: the nearest value while all the others hold; None if they cannot.
        alone: the nearest value whatever the others.
        relaxed: what it becomes in the cheapest relaxation; None where it stays.
    """

    text: str
    clashes: bool
    with_others: str | None
    alone: str
    relaxed: str | None


@dataclass(frozen=True, kw_only=True)
class WhyNot:
    """Why there is no solution, at the batch size that comes nearest.

    Attributes:
        change: the sum of the relative changes of the cheapest relaxation.
        objective: the best objective under the relaxed limits.
        batches: what each batch size would need at the least: limits with the value that can be had.
    """

    batch_size: int
    limits: tuple[LimitFacts, ...]
    change: float
    objective: float
    batches: dict[int, str]


def why_not(costs: SearchCosts, settings: SearchSettings) -> WhyNot:
    """Explain a search that found nothing.

    Independent errors are taken as correlated here.

    Raises:
        ValueError: something does keep the limits.
    """
    confidence = settings.confidence
    cases = Cases.of(costs, settings.batch_sizes, confidence)
    if confidence is not None and confidence.errors_are != "correlated":
        raise ValueError("explanations are of limits with correlated errors or none")
    nearest: dict[int, tuple[float, int]] = {}
    needs: dict[int, str] = {}
    for place, (case, problem) in enumerate(zip(cases.cases, cases.problems, strict=True)):
        relaxed, change = cheapest_relaxation(problem)
        if case.batch_size not in nearest or change < nearest[case.batch_size][0]:
            nearest[case.batch_size] = (change, place)
            before = {limit.resource: limit for limit in problem.limits}
            moved = [
                _text(case, limit.resource, sign, end)
                for limit in relaxed
                for sign, end, was in (
                    (1, limit.high, before[limit.resource].high),
                    (-1, limit.low, before[limit.resource].low),
                )
                if end != was
            ]
            needs[case.batch_size] = ", ".join(moved)
    _, place = min(nearest.values())
    case, problem = cases.cases[place], cases.problems[place]
    return _facts(case, problem, explain(problem, method=settings.method), needs)


def _facts(case: Case, problem: Problem, found: Explanation, needs: dict[int, str]) -> WhyNot:
    before = {limit.resource: limit for limit in problem.limits}
    after = {limit.resource: limit for limit in found.relaxed}
    rows = []
    for one in found.nearest:
        end = one.end
        if _resource(end.resource) == WORKSPACE:
            continue
        moved = after[end.resource].high if end.sign > 0 else after[end.resource].low
        stays = moved == (before[end.resource].high if end.sign > 0 else before[end.resource].low)
        rows.append(
            LimitFacts(
                text=_text(case, end.resource, end.sign, end.value),
                clashes=_among(end, found.clash),
                with_others=None if one.with_others is None else _value(case, end.resource, one.with_others),
                alone=_value(case, end.resource, one.alone),
                relaxed=None if stays else _text(case, end.resource, end.sign, moved),
            )
        )
    assert found.result.solution is not None
    return WhyNot(
        batch_size=case.batch_size,
        limits=tuple(rows),
        change=found.change,
        objective=found.result.solution.objective,
        batches=needs,
    )


def _among(end: End, ends: tuple[End, ...]) -> bool:
    return any((one.resource, one.sign) == (end.resource, end.sign) for one in ends)


def _resource(column: str) -> str:
    """A column without the mark of a margin."""
    return column.removesuffix(" +").removesuffix(" -")


def _value(case: Case, column: str, value: float) -> str:
    plain = _resource(column)
    return format_value(plain, case.to_user(plain, value))


def _text(case: Case, column: str, sign: int, value: float) -> str:
    plain = _resource(column)
    upper = (sign > 0) != plain.startswith("throughput")
    with_margin = ", margin included" if plain != column else ""
    return f"{plain} {'at most' if upper else 'at least'} {_value(case, column, value)}{with_margin}"
