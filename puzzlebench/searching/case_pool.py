"""Many cases of which one has to be chosen, again and again under other budgets: what one search learns serves all.

A search leaves prices behind, and they bound every other case and budget by a sum over layers. So the case with the
best bound is searched next, and most are proven to be no better without a search. Where one case has all choices of
another with less workspace, only what is too heavy for the first is left to the second.

Every column is to be low here, in units that batch sizes share: throughput is seconds per token, and a score that
should be high is negated.

Legend for shapes: N choices of a case, E cases, C columns, K price vectors.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from puzzlebench.profiling.arrays import BoolArray, FloatArray, IntArray
from puzzlebench.searching.case import Case, tokens_per_second
from puzzlebench_search.cases import Memory
from puzzlebench_search.problem import TOLERANCE, Limit, Problem
from puzzlebench_search.solve import Method, Prices, solve

SCORE: Final = "score"
"""The column of losses."""

_STARTS: Final = 4
_ROUNDING: Final = 1e-13  # of sums over layers, relative; bounds are put down by it


@dataclass(frozen=True, kw_only=True)
class PoolEntry:
    """A case as a sweep holds it: (N, C) uses in the pool's columns, what is used whatever is chosen, (C,)."""

    batch_size: int
    problem: Problem
    uses: FloatArray
    base: FloatArray
    first: IntArray
    units: FloatArray


@dataclass(frozen=True, kw_only=True)
class PoolSolution:
    """A solution: its case's place, its choices, its sums (C,)."""

    place: int
    choices: tuple[int, ...]
    sums: FloatArray


class CasePool:
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
        self.known: list[PoolSolution] = []
        self.covers = _find_covers(self.entries, self.high, self.low)
        self._method, self._memory = method, Memory()

    def _entry(self, case: Case, problem: Problem) -> PoolEntry:
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
        return PoolEntry(
            batch_size=case.batch_size,
            problem=problem,
            uses=uses * units,
            base=base * units,
            first=problem.layer_starts,
            units=units,
        )

    def best(
        self, aim: str, budgets: dict[str, float], deadline: float, below: float = math.inf
    ) -> tuple[PoolSolution | None, bool]:
        """The best of all cases by one aim, below a value and within budgets, and whether that is proven."""
        goal = self.columns.index(aim)
        high, low = self.high.copy(), self.low.copy()
        for name, budget in budgets.items():
            column = self.columns.index(name)
            high[:, column] = np.maximum(np.minimum(high[:, column], budget), low[:, column])
        if not self.upper[:, goal].any():
            self._learn(goal, {})
        best = self._known(goal, high, low, below)
        most, least = high + _slack(high), low - _slack(low)
        bounds = self._bounds(goal, most, least)
        while True:
            loss = below if best is None else float(best.sums[goal])
            left = bounds < (loss if best is None else loss - TOLERANCE * abs(loss))
            if not left.any():
                return best, True
            place = int(np.argmin(bounds))
            if self._narrow(place, goal, left, high, low):
                most, least = high + _slack(high), low - _slack(low)
                bounds[place] = self._bounds(goal, most, least, only=place)[0]
                continue
            bounds[place] = math.inf  # done with
            seconds = None if math.isinf(deadline) else deadline - time.perf_counter()
            if seconds is not None and seconds <= 0:
                return best, False
            problem = self._problem(place, goal, high[place], low[place])
            starts = self._memory.starts(problem)[:_STARTS]
            result = solve(problem, method=self._method, time_limit=seconds, starts=starts, below=loss)
            self._memory.keep(problem, result)
            self._learn(goal, result.prices)
            bounds = np.maximum(bounds, self._bounds(goal, most, least, newest=True))
            if result.solution is not None:
                sums = np.array([result.solution.uses[name] for name in self.columns])
                best = PoolSolution(place=place, choices=result.solution.choices, sums=sums)
                self.known.append(best)
            if result.outcome == "stopped":
                return best, False

    def _known(self, goal: int, high: FloatArray, low: FloatArray, below: float) -> PoolSolution | None:
        most, least = high + _slack(high), low - _slack(low)
        inside = [
            one for one in self.known if (one.sums <= most[one.place]).all() and (one.sums >= least[one.place]).all()
        ]
        best = min(inside, key=lambda one: float(one.sums[goal]), default=None)
        return best if best is not None and best.sums[goal] < below else None

    def _narrow(self, place: int, goal: int, left: BoolArray, high: FloatArray, low: FloatArray) -> bool:
        """Leave to a case only what others that are done with could not have; whether that changed anything."""
        entry, changed = self.entries[place], False
        for other in np.flatnonzero(self.covers[place] & ~left).tolist():
            heavier = self.entries[other].base - entry.base
            if heavier[goal] > 0:
                continue
            columns = np.flatnonzero((heavier > 0) & np.isfinite(high[place]))
            if not len(columns):
                low[place] = np.inf  # nothing is left
                return True
            lowest = high[place, columns] - heavier[columns]
            column = int(columns[np.argmin(lowest)])
            # What is too heavy for the other must be so in this column: here nothing weighs less than in the others.
            most = (entry.uses[:, columns] <= entry.uses[:, [column]]).all() and (
                entry.base[columns] <= entry.base[column]
            ).all()
            if most and lowest.min() > low[place, column]:
                low[place, column], changed = lowest.min(), True
        return changed

    def _problem(self, place: int, goal: int, high: FloatArray, low: FloatArray) -> Problem:
        """To minimise one column; what it has whatever is chosen counts with the first layer."""
        entry = self.entries[place]
        limited = np.flatnonzero(np.isfinite(high) | np.isfinite(low)).tolist()
        return Problem(
            scores=entry.uses[:, goal] + entry.base[goal] * (entry.problem.layers == 0),
            uses=entry.uses,
            layers=entry.problem.layers,
            names=entry.problem.names,
            resources=self.columns,
            limits=tuple(
                Limit(resource=self.columns[column], low=float(low[column]), high=float(high[column]))
                for column in limited
            ),
            base=entry.base,
        )

    def spread(self, column: int) -> float:
        """Mean over layers of the difference between most and least, in the case where that is most."""
        layers = np.array([entry.problem.num_layers for entry in self.entries])
        return float(((self.most - self.least)[:, column] / layers).max())

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

    def _bounds(
        self, goal: int, most: FloatArray, least: FloatArray, *, only: int | None = None, newest: bool = False
    ) -> FloatArray:
        """(E,), below which no solution's aim can be: for any prices, aim >= (priced - price of all room) / its price.

        Prices of a search for one aim serve the other too, which had a price there. Infinite where a limit cannot be
        kept.

        Args:
            only: of this case alone.
            newest: by the last prices alone.
        """
        cases = slice(None) if only is None else slice(only, only + 1)
        known = slice(-1, None) if newest else slice(None)
        most, least, upper, lower = most[cases], least[cases], self.upper[known], self.lower[known]
        usable = (upper[:, goal] > 0) & (lower[:, goal] == 0)
        upper, lower, priced = upper[usable], lower[usable], self.priced[cases, known][:, usable]
        own = upper[:, goal].copy()
        upper[:, goal] = 0.0
        paid, scale = np.zeros(priced.shape), np.abs(priced)
        for ends, prices in ((most, upper), (-least, lower)):
            there = np.isfinite(ends)
            paid += np.where(there, ends, 0.0) @ prices.T
            scale += np.abs(np.where(there, ends, 0.0)) @ prices.T
            paid[(~there).astype(np.float64) @ prices.T > 0] = np.inf
        bounds = ((priced - paid - _ROUNDING * scale) / own).max(axis=1, initial=-np.inf)
        possible = ((self.least[cases] <= most) & (self.most[cases] >= least) & (least <= most)).all(axis=1)
        return np.asarray(np.where(possible, bounds, np.inf))


def _slack(ends: FloatArray) -> FloatArray:
    """As `Limit.slack`, of many high or many low ends."""
    return np.asarray(TOLERANCE * np.maximum(np.where(np.isfinite(ends), np.abs(ends), 0.0), 1e-12))


def _find_covers(entries: Sequence[PoolEntry], high: FloatArray, low: FloatArray) -> BoolArray:
    """(E, E), which cases (columns) have all choices of which (rows) at the same uses and limits and no less a base.

    So have the cases of a batch size those with less workspace. What such a case lacks of the smaller one is only what
    its larger base makes too heavy.
    """
    found = np.zeros((len(entries), len(entries)), dtype=bool)
    known: dict[str, int] = {}
    names = [np.array([known.setdefault(name, len(known)) for name in one.problem.names]) for one in entries]
    for row, small in enumerate(entries):
        for column, large in enumerate(entries):
            if row == column or small.batch_size != large.batch_size or len(large.uses) < len(small.uses):
                continue
            same = np.isin(names[column], names[row])
            found[row, column] = (
                np.array_equal(names[column][same], names[row])
                and np.array_equal(large.uses[same], small.uses)
                and np.array_equal(high[row], high[column])
                and np.array_equal(low[row], low[column])
                and bool((large.base >= small.base).all())
                and (len(large.uses) > len(small.uses) or row > column)
            )
    return found
