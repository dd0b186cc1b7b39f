"""The front of two aims: for every budget on one, the best architecture and batch size by the other. Draws nothing.

Each point is exact. First the best y within a budget on x is found, then the best x at that y, so nothing beats a point
in one aim without losing in the other. A search over one batch size leaves prices behind, and they bound every other
batch size, workspace and budget by a sum over layers: most of a sweep is proven without a search.

Inside, both aims are minimised in units that batch sizes share: throughput is seconds per token there, and a score that
should be high is negated. Outside, all values are in the units of `Resource`.

Legend for shapes: N choices of a case, E cases, C columns, K price vectors.
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
from puzzlebench.profiling.arrays import FloatArray, IntArray
from puzzlebench.searching.case import WORKSPACE, Case, tokens_per_second
from puzzlebench.searching.costs import SearchCosts
from puzzlebench.searching.scenarios import ResourceLimit, column_name, limits_in
from puzzlebench_search.cases import Memory
from puzzlebench_search.problem import TOLERANCE, Limit, Problem, make_solution
from puzzlebench_search.solve import Method, Prices, solve

SCORE: Final = "score"
Better: TypeAlias = Literal["low", "high"]

_NO_LIMIT: Final = 1e30  # bytes; makes `SearchCosts.cases` count workspace apart where nobody limits memory
_STARTS: Final = 4
_ROUNDING: Final = 1e-13  # of sums over layers, relative; bounds are put down by it


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One aim.

    Attributes:
        name: score, or a resource with its scenario in brackets where there are several.
        better: which values are.
    """

    name: str
    better: Better


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontPoint:
    """The best by y within a budget on x, and of those the best by x.

    Attributes:
        values: of every resource and the score; memory with the workspace that the architecture needs.
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
        points: at least one, by ascending x; none is dominated by another.
        skipped: from loose to tight.
    """

    x: Axis
    y: Axis
    points: tuple[FrontPoint, ...]
    skipped: tuple[SkippedBudget, ...]
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
    points: int = 20,
    method: Method = "auto",
    time_limit: float | None = None,
    margin: Callable[[Case], Problem] | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Front:
    """The front of two aims under the limits of `costs`, with the batch size free for every point.

    Args:
        batch_sizes: to choose from.
        x: one of `axis_names`; budgets on it are equally spaced from its best value to the one at the best y.
        y: another.
        points: how many budgets; the front has fewer points where several budgets have the same best.
        time_limit: seconds for all.
        margin: makes the problem to solve out of a case, for limits that hold with a confidence. Budgets, aims and
            values are those of the case without a margin.
        report: called with the number of budgets done and of all.

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
    clock = _Clock(time_limit, 2 * points + 2)
    pool = _Pool(_cases(costs, batch_sizes, {x, y}), margin, method)
    sweep = _sweep(pool, x_axis, y_axis, points, clock, report)
    found, skipped = _settle(costs, pool, sweep, x_axis, y_axis)
    return Front(x=x_axis, y=y_axis, points=found, skipped=skipped, seconds=time.perf_counter() - started)


def front_json(front: Front) -> dict[str, Any]:
    """The front as plain values."""
    return {
        "x": {"name": front.x.name, "better": front.x.better},
        "y": {"name": front.y.name, "better": front.y.better},
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


def _axis(costs: SearchCosts, name: str) -> Axis:
    known = axis_names(costs)
    if name not in known:
        near = [one for one in known if one.partition("[")[0] == name] or difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise ValueError(f"a front has no axis {name!r}; {hint}")
    high = costs.candidates.direction == "maximise" if name == SCORE else name.partition("[")[0] == "throughput"
    return Axis(name=name, better="high" if high else "low")


def _flip(axis: Axis, value: float) -> float:
    """From inside units to outside ones, and back."""
    if axis.better == "low":
        return value
    return -value if axis.name == SCORE else (1 / value if value else math.inf)


def _cases(costs: SearchCosts, batch_sizes: Sequence[int], aims: set[str] | None) -> list[Case]:
    """Every case of the batch sizes, with workspace counted apart where memory is an aim; None: everywhere."""
    scenarios = tuple(
        replace(scenario, limits=(*scenario.limits, ResourceLimit(resource="memory", high=_NO_LIMIT)))
        if (aims is None or column_name("memory", scenario, costs.scenarios) in aims)
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
class _Entry:
    """A case as a sweep holds it: (N, C) uses in the pool's columns, what is used whatever is chosen, (C,)."""

    batch_size: int
    problem: Problem
    uses: FloatArray
    base: FloatArray
    first: IntArray
    units: FloatArray


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A solution: its case's place, its choices, its sums (C,)."""

    place: int
    choices: tuple[int, ...]
    sums: FloatArray


class _Clock:
    """Time for a number of searches."""

    def __init__(self, seconds: float | None, searches: int) -> None:
        self._end = math.inf if seconds is None else time.perf_counter() + seconds
        self._searches = searches

    def deadline(self) -> float:
        """Of the next search: an equal share of what is left."""
        now = time.perf_counter()
        share = (self._end - now) / max(self._searches, 1)
        self._searches -= 1
        return now + max(share, 0.0)

    def pass_over(self, searches: int) -> None:
        """Leave their time to the others."""
        self._searches -= searches


class _Pool:
    """All cases of a sweep and what is known of them: their limits, prices and the bounds that these give, solutions.

    Attributes:
        columns: C names; the last is the score.
    """

    def __init__(self, cases: Sequence[Case], margin: Callable[[Case], Problem] | None, method: Method) -> None:
        problems = [case.problem if margin is None else margin(case) for case in cases]
        names = [name for problem in problems for name in problem.resources]
        self.columns = (*dict.fromkeys(names), SCORE)
        self.entries = [self._entry(case, problem) for case, problem in zip(cases, problems, strict=True)]
        shape = (len(cases), len(self.columns))
        self.high, self.low = np.full(shape, np.inf), np.full(shape, -np.inf)  # (E, C)
        for place, entry in enumerate(self.entries):
            for limit in entry.problem.limits:
                column = self.columns.index(limit.resource)
                self.high[place, column] = limit.high * entry.units[column]
                self.low[place, column] = limit.low * entry.units[column]
        self.least = np.stack([np.minimum.reduceat(e.uses, e.first).sum(axis=0) + e.base for e in self.entries])
        self.most = np.stack([np.maximum.reduceat(e.uses, e.first).sum(axis=0) + e.base for e in self.entries])
        nothing = np.zeros((0, len(self.columns)))
        self.upper, self.lower = nothing, nothing  # (K, C), prices of high and low ends; an aim's own price is 1
        self.priced = np.zeros((len(cases), 0))  # (E, K), least sum of price x use
        self.known: list[_Found] = []
        self._method, self._memory = method, Memory()

    def _entry(self, case: Case, problem: Problem) -> _Entry:
        places = [self.columns.index(name) for name in problem.resources]
        units = np.ones(len(self.columns))
        for name in case.problem.resources:
            if name.partition("[")[0] == "throughput":
                scenario = case.parse_column(name)[1]
                assert scenario is not None
                units[self.columns.index(name)] /= tokens_per_second(case.batch_size, scenario, 1.0)
        uses, base = np.zeros((len(problem.names), len(units))), np.zeros(len(units))
        uses[:, places], base[places] = problem.uses, problem.base
        uses[:, -1] = problem.losses
        return _Entry(
            batch_size=case.batch_size,
            problem=problem,
            uses=uses * units,
            base=base * units,
            first=np.flatnonzero(np.diff(problem.layers, prepend=-1)),
            units=units,
        )

    def best(self, aim: str, budgets: dict[str, float], deadline: float) -> tuple[_Found | None, bool]:
        """The best of all cases by one aim within budgets on others, and whether that is proven."""
        goal = self.columns.index(aim)
        high = self.high.copy()
        for name, budget in budgets.items():
            column = self.columns.index(name)
            high[:, column] = np.maximum(np.minimum(high[:, column], budget), self.low[:, column])
        slack = _slack(high, self.low)
        most, least = high + slack, self.low - slack
        best = min(
            (one for one in self.known if _inside(one.sums, least[one.place], most[one.place])),
            key=lambda one: float(one.sums[goal]),
            default=None,
        )
        waiting = ((self.least <= most) & (self.most >= least)).all(axis=1)
        if not self.upper[:, goal].any():
            self._learn(goal, {})
        while True:
            bounds = self._bounds(goal, most, least)
            loss = math.inf if best is None else float(best.sums[goal])
            enough = loss if best is None else loss - TOLERANCE * abs(loss)
            left = np.flatnonzero(waiting & (bounds < enough))
            if not len(left):
                return best, True
            place = int(left[np.argmin(bounds[left])])
            waiting[place] = False
            seconds = None if math.isinf(deadline) else deadline - time.perf_counter()
            if seconds is not None and seconds <= 0:
                return best, False
            problem = self._problem(place, goal, high[place])
            starts = self._memory.starts(problem)[:_STARTS]
            result = solve(problem, method=self._method, time_limit=seconds, starts=starts, below=loss)
            self._memory.keep(problem, result)
            self._learn(goal, result.prices)
            if result.solution is not None:
                sums = np.array([result.solution.uses[name] for name in self.columns])
                best = _Found(place=place, choices=result.solution.choices, sums=sums)
                self.known.append(best)
            if result.outcome == "stopped":
                return best, False

    def _problem(self, place: int, goal: int, high: FloatArray) -> Problem:
        """To minimise one column; what it has whatever is chosen counts with the first layer."""
        entry = self.entries[place]
        limited = np.flatnonzero(np.isfinite(high) | np.isfinite(self.low[place])).tolist()
        return Problem(
            scores=entry.uses[:, goal] + entry.base[goal] * (entry.problem.layers == 0),
            uses=entry.uses,
            layers=entry.problem.layers,
            names=entry.problem.names,
            resources=self.columns,
            limits=tuple(
                Limit(resource=self.columns[column], low=float(self.low[place, column]), high=float(high[column]))
                for column in limited
            ),
            base=entry.base,
        )

    def _learn(self, goal: int, prices: Prices) -> None:
        """Take up prices of a search for one aim: what every case costs under them at the least."""
        upper, lower = np.zeros(len(self.columns)), np.zeros(len(self.columns))
        for (name, sign), price in prices.items():
            (upper if sign > 0 else lower)[self.columns.index(name)] = price
        upper[goal], lower[goal] = 1.0, 0.0
        weights = upper - lower
        priced = [
            float(np.minimum.reduceat(entry.uses @ weights, entry.first).sum() + entry.base @ weights)
            for entry in self.entries
        ]
        self.upper, self.lower = np.vstack([self.upper, upper]), np.vstack([self.lower, lower])
        self.priced = np.column_stack([self.priced, priced])

    def _bounds(self, goal: int, most: FloatArray, least: FloatArray) -> FloatArray:
        """(E,), below which no solution's aim can be: for any prices, aim >= (priced - price of all room) / its price.

        Prices of a search for one aim serve the other too, which had a price there.
        """
        usable = (self.upper[:, goal] > 0) & (self.lower[:, goal] == 0)
        upper, lower, priced = self.upper[usable].copy(), self.lower[usable], self.priced[:, usable]
        own = upper[:, goal].copy()
        upper[:, goal] = 0.0
        paid, scale = np.zeros(priced.shape), np.abs(priced)
        for ends, prices in ((most, upper), (-least, lower)):
            there = np.isfinite(ends)
            paid += np.where(there, ends, 0.0) @ prices.T
            scale += np.abs(np.where(there, ends, 0.0)) @ prices.T
            paid[(~there).astype(np.float64) @ prices.T > 0] = np.inf
        return np.asarray(((priced - paid - _ROUNDING * scale) / own).max(axis=1))


def _slack(high: FloatArray, low: FloatArray) -> FloatArray:
    """As `Limit.slack`, of many."""
    ends = [np.where(np.isfinite(end), np.abs(end), 1e-12) for end in (high, low)]
    return np.asarray(TOLERANCE * np.maximum(np.maximum(*ends), 1e-12))


def _inside(sums: FloatArray, least: FloatArray, most: FloatArray) -> bool:
    return bool((sums <= most).all() and (sums >= least).all())


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What a budget (outside units) led to; None where nothing was found in time."""

    budget: float
    found: _Found | None
    proven: bool
    seconds: float
    repeated: bool = False


def _sweep(
    pool: _Pool, x: Axis, y: Axis, points: int, clock: _Clock, report: Callable[[int, int], None] | None
) -> list[_Answer]:
    """Every budget, loose ones first: a tighter one that the last solution keeps too has the same best."""
    column = pool.columns.index(x.name)
    lightest, end_proven = pool.best(x.name, {}, clock.deadline())
    if lightest is None:
        raise ValueError(
            "no architecture keeps the limits; `puzzlebench search` with the same limits says which clash"
            if end_proven
            else "no architecture that keeps the limits was found in time; give more, or looser limits"
        )
    tightest = float(lightest.sums[column])
    answers: list[_Answer] = []
    budgets = [math.inf]
    for place in range(points):
        if place < len(budgets):
            answer = _answer(pool, x, y, budgets[place], tightest, answers, clock)
            answers.append(answer)
        if place == 0:
            assert answer.found is not None
            start, end = _flip(x, float(answer.found.sums[column])), _flip(x, tightest)
            answers[0] = replace(answer, budget=start)
            budgets = np.linspace(start, end, points).tolist() if start != end else [start]
        if report is not None:
            report(place + 1, points)
    if not end_proven:
        answers[-1] = replace(answers[-1], proven=False)
    return answers


def _answer(
    pool: _Pool, x: Axis, y: Axis, budget: float, tightest: float, before: list[_Answer], clock: _Clock
) -> _Answer:
    started = time.perf_counter()
    most = math.inf if math.isinf(budget) else max(_flip(x, budget), tightest)
    limit = {} if math.isinf(most) else {x.name: most}
    last = before[-1] if before else None
    if last is not None and last.found is not None and last.proven:
        reached = float(last.found.sums[pool.columns.index(x.name)])
        if reached <= most + TOLERANCE * abs(most):
            clock.pass_over(2)
            return _Answer(budget=budget, found=last.found, proven=True, seconds=0.0, repeated=True)
    best, proven = pool.best(y.name, limit, clock.deadline())
    if best is not None:
        goal = pool.columns.index(y.name)
        loss = float(best.sums[goal])
        best, tie_proven = pool.best(x.name, limit | {y.name: loss}, clock.deadline())
        proven &= tie_proven
    return _Answer(budget=budget, found=best, proven=proven, seconds=time.perf_counter() - started)


def _settle(
    costs: SearchCosts, pool: _Pool, answers: Sequence[_Answer], x: Axis, y: Axis
) -> tuple[tuple[FrontPoint, ...], tuple[SkippedBudget, ...]]:
    """The points that none of the others beats or equals, by ascending x, and the budgets without one."""
    tight: dict[int, list[Case]] = {}
    points: list[FrontPoint] = []
    skipped: list[SkippedBudget] = []
    for answer in answers:
        if answer.found is None:
            skipped.append(SkippedBudget(budget=answer.budget, reason="stopped"))
            continue
        if answer.repeated:
            skipped.append(SkippedBudget(budget=answer.budget, reason="same point"))
            continue
        entry = pool.entries[answer.found.place]
        if entry.batch_size not in tight:
            tight[entry.batch_size] = _cases(costs, [entry.batch_size], None)
        names = [entry.problem.names[choice] for choice in answer.found.choices]
        values = _values(tight[entry.batch_size], names)
        points.append(
            FrontPoint(
                batch_size=entry.batch_size,
                architecture=costs.architecture(entry.problem, answer.found.choices),
                values=values,
                x=values[x.name],
                y=values[y.name],
                budget=answer.budget,
                proven=answer.proven,
                seconds=answer.seconds,
            )
        )
    kept: list[FrontPoint] = []
    for place, point in enumerate(points):
        others = kept + points[place + 1 :]
        if any(_beats(one, point, x, y) for one in others) or any((one.x, one.y) == (point.x, point.y) for one in kept):
            skipped.append(SkippedBudget(budget=point.budget, reason="same point" if point.proven else "stopped"))
        else:
            kept.append(point)
    loose_first = sorted(skipped, key=lambda one: one.budget, reverse=x.better == "low")
    return tuple(sorted(kept, key=lambda point: point.x)), tuple(loose_first)


def _beats(one: FrontPoint, other: FrontPoint, x: Axis, y: Axis) -> bool:
    pairs = [(_flip(x, one.x), _flip(x, other.x)), (_flip(y, one.y), _flip(y, other.y))]
    return all(mine <= its for mine, its in pairs) and any(mine < its for mine, its in pairs)


def _values(cases: Sequence[Case], names: Sequence[str]) -> dict[str, float]:
    """The score and all resources of named choices, in the case of their batch size with the least workspace."""
    for case in reversed(cases):
        places = {name: place for place, name in enumerate(case.problem.names)}
        if all(name in places for name in names):
            solution = make_solution(case.problem, [places[name] for name in names])
            resources = [name for name in solution.uses if name.partition("[")[0] != WORKSPACE]
            values = {name: case.to_user(name, solution.uses[name]) for name in resources}
            return {SCORE: solution.objective, **values}
    raise AssertionError("no case has these choices")
