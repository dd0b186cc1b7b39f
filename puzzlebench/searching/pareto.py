"""The front of two aims: for every budget on one, the best architecture and batch size by the other. Draws nothing.

Each point is exact. First the best y within a budget on x is found, then the best x at that y, so nothing beats a point
in one aim without losing in the other. Values are in the units of `Resource`; what `case_pool` gives is not.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from puzzlebench.model.blocks import Architecture, architecture_to_json, block_name
from puzzlebench.profiling.cost_table import CostTable
from puzzlebench.searching.case import Case
from puzzlebench.searching.case_pool import SCORE, CasePool, PoolSolution
from puzzlebench.searching.costs import SearchCosts
from puzzlebench.searching.scenarios import ResourceLimit, column_name, limits_in
from puzzlebench.searching.search import count_found
from puzzlebench_search.problem import TOLERANCE, Problem
from puzzlebench_search.solve import Method

Better: TypeAlias = Literal["low", "high"]

_NO_LIMIT: Final = 1e30  # bytes; makes `SearchCosts.cases` count workspace apart where nobody limits memory


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontPoint:
    """The best by y within a budget on x, and of those the best by x.

    Attributes:
        values: the score, and every resource as `recheck` counts it.
        budget: the loosest one on x that it is the best for.
        proven: False where the time limit came first: something better may exist.
        seconds: of search.
    """

    batch_size: int
    architecture: Architecture
    values: dict[str, float]
    x: float
    y: float
    budget: float
    proven: bool
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SkippedBudget:
    """A budget without a point of its own.

    Attributes:
        reason: same point: the best is one that a looser budget gave; stopped: the time limit came first.
    """

    budget: float
    reason: Literal["same point", "stopped"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Front:
    """What can be had of both aims.

    Attributes:
        x, y: score, or a resource with its scenario in brackets where there are several.
        x_better, y_better: which values are.
        points: at least one, by ascending x; none is dominated by another.
        skipped: from loose to tight.
        provenance: GPU, engine, source and date of the costs, in one line.
    """

    x: str
    y: str
    x_better: Better
    y_better: Better
    points: tuple[FrontPoint, ...]
    skipped: tuple[SkippedBudget, ...]
    provenance: str
    seconds: float

    @property
    def proven(self) -> bool:
        """Whether every budget was searched to the end."""
        return all(point.proven for point in self.points) and all(one.reason != "stopped" for one in self.skipped)


def axis_names(costs: SearchCosts) -> tuple[str, ...]:
    """What a front may have as x and y."""
    names = [SCORE, "params"]
    for scenario in costs.scenarios:
        resources = ("memory", "ttft", *(("tpot",) if scenario.steps else ()), "latency", "throughput")
        names += [column_name(resource, scenario, costs.scenarios) for resource in resources]
    return tuple(names)


def pareto(
    costs: SearchCosts,
    batch_sizes: Sequence[int],
    x: str,
    y: str,
    *,
    table: CostTable,
    points: int = 20,
    method: Method = "auto",
    time_limit: float | None = None,
    margin: Callable[[Case], Problem] | None = None,
    report: Callable[[float, str], None] | None = None,
) -> Front:
    """The front of two aims under the limits of `costs`, with the batch size free for every point.

    Args:
        batch_sizes: to choose from.
        x: one of `axis_names`; budgets on it go in equal ratios (a score's in equal steps) from its best value to the
            one at the best y.
        y: another.
        table: that the costs are of; points are counted again from it.
        points: how many budgets; the front has fewer points where several budgets have the same best.
        time_limit: seconds for each budget.
        margin: makes the problem to solve out of a case, for limits that hold with a confidence. Budgets, aims and
            values are without a margin.
        report: called with the share done and what is going on.

    Raises:
        ValueError: an aim or a batch size is not there, no architecture keeps the limits, or none was found in time.
    """
    started = time.perf_counter()
    x_axis, y_axis = _axis(costs, x), _axis(costs, y)
    if x == y:
        raise ValueError(f"x and y are both {x}; name two different ones")
    if points < 2:
        raise ValueError(f"a front needs at least 2 points, not {points}")
    if not batch_sizes or len(set(batch_sizes)) != len(batch_sizes):
        raise ValueError(f"give batch sizes, each once, not {list(batch_sizes)}")
    pool = CasePool(_cases(costs, batch_sizes, (x, y)), margin, method)
    answers = _sweep(pool, x_axis, y_axis, points, time_limit, report)
    found, skipped = _settle(costs, table, pool, answers, x_axis, y_axis)
    return Front(
        x=x,
        y=y,
        x_better=x_axis.better,
        y_better=y_axis.better,
        points=found,
        skipped=skipped,
        provenance=_provenance(table),
        seconds=time.perf_counter() - started,
    )


def front_json(front: Front) -> dict[str, Any]:
    """The front as plain values."""
    return {
        "x": front.x,
        "y": front.y,
        "x_better": front.x_better,
        "y_better": front.y_better,
        "provenance": front.provenance,
        "proven": front.proven,
        "seconds": front.seconds,
        "points": [
            {
                "batch_size": point.batch_size,
                "x": point.x,
                "y": point.y,
                "budget": point.budget,
                "proven": point.proven,
                "seconds": point.seconds,
                "values": dict(point.values),
                "architecture": architecture_to_json(point.architecture),
            }
            for point in front.points
        ],
        "skipped": [{"budget": one.budget, "reason": one.reason} for one in front.skipped],
    }


def front_csv(front: Front) -> str:
    """The front with a row per point; its last column is a JSON list of block names, first layer first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = list(front.points[0].values)
    writer.writerow(["batch_size", "x", "y", "budget", "proven", *names, "blocks"])
    for point in front.points:
        blocks = json.dumps([block_name(block) for block in point.architecture.blocks], separators=(",", ":"))
        values = [point.values[name] for name in names]
        proven = "true" if point.proven else "false"
        writer.writerow([point.batch_size, point.x, point.y, point.budget, proven, *values, blocks])
    return text.getvalue()


def _provenance(table: CostTable) -> str:
    first = table.frame.iloc[0]
    engine = f"{first['engine']} {first['engine_version']}"
    return f"{first['gpu']}, {engine}; costs: {table.metadata['source']}, {table.metadata['created'][:10]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Axis:
    """One aim."""

    name: str
    better: Better

    def flip(self, value: float) -> float:
        """From inside units to outside ones, and back."""
        if self.better == "low":
            return value
        return -value if self.name == SCORE else (1 / value if value else math.inf)


def _axis(costs: SearchCosts, name: str) -> _Axis:
    known = axis_names(costs)
    if name not in known:
        near = [one for one in known if one.partition("[")[0] == name] or difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise ValueError(f"a front has no axis {name!r}; {hint}")
    high = costs.candidates.direction == "maximise" if name == SCORE else name.partition("[")[0] == "throughput"
    return _Axis(name=name, better="high" if high else "low")


def _cases(costs: SearchCosts, batch_sizes: Sequence[int], aims: Sequence[str]) -> list[Case]:
    """Every case of the batch sizes, with workspace counted apart where memory is an aim."""
    scenarios = tuple(
        replace(scenario, limits=(*scenario.limits, ResourceLimit(resource="memory", high=_NO_LIMIT)))
        if column_name("memory", scenario, costs.scenarios) in aims
        and not any(limit.resource == "memory" for limit in limits_in(scenario, costs.limits))
        else scenario
        for scenario in costs.scenarios
    )
    cases = [case for batch in batch_sizes for case in replace(costs, scenarios=scenarios).cases(batch)]
    if scenarios == costs.scenarios:
        return cases
    asked = [[limit for limit in case.problem.limits if limit.high != _NO_LIMIT] for case in cases]
    return [
        replace(case, scenarios=costs.scenarios, problem=case.problem.with_limits(limits))
        for case, limits in zip(cases, asked, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What a budget (outside units) led to; None where nothing was found in time."""

    budget: float
    found: PoolSolution | None
    proven: bool
    seconds: float
    repeated: bool = False


def _sweep(
    pool: CasePool,
    x: _Axis,
    y: _Axis,
    points: int,
    time_limit: float | None,
    report: Callable[[float, str], None] | None,
) -> list[_Answer]:
    """Every budget, loose ones first: a tighter one that the last solution keeps too has the same best."""

    def deadline() -> float:
        return math.inf if time_limit is None else time.perf_counter() + time_limit

    def tell(place: int) -> None:
        if report is not None:
            report(place / points, f"budget {min(place + 1, points)} of {points}")

    tell(0)
    column = pool.columns.index(x.name)
    extreme, extreme_proven = pool.best(x.name, {}, deadline())
    if extreme is None:
        raise ValueError(
            "no architecture keeps the limits; `puzzlebench search` with the same limits says which clash"
            if extreme_proven
            else "no architecture that keeps the limits was found in time; give more, or looser limits"
        )
    tightest = float(extreme.sums[column])
    answers = [_answer(pool, x, y, math.inf, None, deadline())]
    assert answers[0].found is not None  # the extreme is known, and nothing less than it was asked for
    start, end = x.flip(float(answers[0].found.sums[column])), x.flip(tightest)
    answers[0] = replace(answers[0], budget=start)
    tell(1)
    same = abs(start - end) <= TOLERANCE * abs(end)
    spaced = np.linspace if x.name == SCORE or start * end <= 0 else np.geomspace
    for place, budget in enumerate([] if same else spaced(start, end, points)[1:].tolist(), start=2):
        most = max(x.flip(budget), tightest)
        answers.append(replace(_answer(pool, x, y, most, answers[-1], deadline()), budget=budget))
        tell(place)
    answers[-1] = replace(answers[-1], proven=answers[-1].proven and extreme_proven)
    return answers


def _answer(pool: CasePool, x: _Axis, y: _Axis, most: float, last: _Answer | None, deadline: float) -> _Answer:
    """The best y with at most this of x, inside units, and then the best x."""
    started = time.perf_counter()
    if last is not None and last.found is not None and last.proven:
        reached = float(last.found.sums[pool.columns.index(x.name)])
        if reached <= most + TOLERANCE * abs(most):
            return replace(last, repeated=True, seconds=0.0)
    limit = {} if math.isinf(most) else {x.name: most}
    best, proven = pool.best(y.name, limit, deadline)
    if best is not None:
        best, tie_proven = _break_tie(pool, x, y, best, limit, deadline)
        proven &= tie_proven
    seconds = time.perf_counter() - started
    return _Answer(budget=x.flip(most), found=best, proven=proven, seconds=seconds)


def _break_tie(
    pool: CasePool, x: _Axis, y: _Axis, found: PoolSolution, limit: dict[str, float], deadline: float
) -> tuple[PoolSolution, bool]:
    """The best x at the y found, and whether that is proven.

    Mostly there is no other solution as good, and the prices of the search for y show that soonest.
    """
    x_place, y_place = pool.columns.index(x.name), pool.columns.index(y.name)
    at, loss = float(found.sums[x_place]), float(found.sums[y_place])
    less = at - 3 * TOLERANCE * abs(at)
    equal = loss + 2 * TOLERANCE * max(abs(loss), pool.spread(y_place))
    other, proven = pool.best(y.name, {x.name: less}, deadline, below=equal)
    if other is None:
        return found, proven
    best, proven = pool.best(x.name, limit | {y.name: max(loss, float(other.sums[y_place]))}, deadline)
    return best or other, proven and best is not None


def _settle(
    costs: SearchCosts, table: CostTable, pool: CasePool, answers: Sequence[_Answer], x: _Axis, y: _Axis
) -> tuple[tuple[FrontPoint, ...], tuple[SkippedBudget, ...]]:
    """The points that none of the others beats or equals, by ascending x, and the budgets without one."""
    skipped = [
        SkippedBudget(budget=one.budget, reason="stopped" if one.found is None else "same point")
        for one in answers
        if one.found is None or one.repeated
    ]
    kept: list[FrontPoint] = []
    for answer in answers:
        if answer.found is None or answer.repeated:
            continue
        point = _point(costs, table, pool, answer, answer.found, x, y)
        if any(_as_good(one, point, x, y) for one in kept):
            skipped.append(SkippedBudget(budget=point.budget, reason="same point" if point.proven else "stopped"))
            continue
        beaten = [one for one in kept if _as_good(point, one, x, y)]  # only what was not proven can be
        skipped += [SkippedBudget(budget=one.budget, reason="stopped") for one in beaten]
        kept = [one for one in kept if one not in beaten] + [point]
    loose_first = sorted(skipped, key=lambda one: one.budget, reverse=x.better == "low")
    return tuple(sorted(kept, key=lambda point: point.x)), tuple(loose_first)


def _as_good(one: FrontPoint, other: FrontPoint, x: _Axis, y: _Axis) -> bool:
    """Whether the first is at least as good in both aims."""
    for mine, its in ((x.flip(one.x), x.flip(other.x)), (y.flip(one.y), y.flip(other.y))):
        if mine > its + TOLERANCE * abs(its):
            return False
    return True


def _point(
    costs: SearchCosts, table: CostTable, pool: CasePool, answer: _Answer, found: PoolSolution, x: _Axis, y: _Axis
) -> FrontPoint:
    entry = pool.entries[found.place]
    architecture = costs.architecture(entry.problem, found.choices)
    check = count_found(costs, table, architecture, entry.batch_size)
    values = {SCORE: math.fsum(entry.problem.scores[list(found.choices)])} | check.values
    return FrontPoint(
        batch_size=entry.batch_size,
        architecture=architecture,
        values=values,
        x=values[x.name],
        y=values[y.name],
        budget=answer.budget,
        proven=answer.proven,
        seconds=answer.seconds,
    )
