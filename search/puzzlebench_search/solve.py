"""Exact search: the best solution of a problem, proven.

1. Choices that break a limit by themselves go (`layered`).
2. Lagrangian prices of the limits give a lower bound, and each choice a reduced loss: what choosing it adds to that
   bound at the least (`dual`).
3. A beam search finds a good solution; choices whose reduced loss reaches from the bound to it, or that another choice
   dominates, go.
4. What is left is walked through exhaustively (`states`), or, where that grows too large, handed to a MIP solver
   (`milp`). Either proves the optimum.

Choices that span several layers are left to the MIP solver as they are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from puzzlebench_search.dual import lower_bound, maximise_bound, reduced_losses
from puzzlebench_search.layered import Layered, layer_problem
from puzzlebench_search.milp import Outcome, SolverName, solve_milp
from puzzlebench_search.problem import TOLERANCE, FloatArray, IntArray, Problem, Solution, broken_limits, make_solution
from puzzlebench_search.states import walk

Method: TypeAlias = Literal["auto", "highs", "cbc"]
Prices: TypeAlias = dict[tuple[str, int], float]
"""Loss per unit of (resource, 1), the high end of its limit, and (resource, -1), the low end."""
METHODS: tuple[Method, ...] = ("auto", "highs", "cbc")

_BEAMS = (500, 5_000, 50_000, 400_000)
_FIRST_CHOICES = 4
"""Without a solution yet, the walk is through this many choices per layer, on average; then all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What a search found, and how well that is proven.

    Attributes:
        outcome: optimal and infeasible are proven (to `problem.TOLERANCE`); stopped: by the time limit.
        solution: None when infeasible, or stopped before one was found.
        bound: no solution has a better objective; in the problem's direction.
        root_bound: the Lagrangian bound before anything was searched.
        prices: of the ends of limits that bind, in loss per unit: what a little more room would gain.
        solver: what proved it.
        choices, choices_left: of the problem, and after those that cannot be in a better solution were taken out.
        states: the most partial solutions held at once.
    """

    outcome: Outcome
    solution: Solution | None
    bound: float
    root_bound: float
    prices: Prices
    solver: str
    seconds: float
    choices: int
    choices_left: int
    states: int

    @property
    def gap(self) -> float | None:
        """Relative distance from the objective to the bound; 0 when optimal, None without a solution."""
        if self.solution is None:
            return None
        return abs(self.solution.objective - self.bound) / max(abs(self.solution.objective), 1e-12)


def solve(
    problem: Problem,
    *,
    method: Method = "auto",
    time_limit: float | None = None,
    starts: Sequence[Sequence[int]] = (),
    below: float = math.inf,
) -> Result:
    """Find the best solution and prove it.

    Args:
        method: auto; or highs or cbc, which get the reduced problem in any case.
        time_limit: seconds; the best so far is returned then.
        starts: solutions of a similar problem; those that keep the limits speed the search up.
        below: only solutions whose loss (score, or less the score when maximising) is below this are wanted.

    Raises:
        ValueError: the method is unknown, or its solver is not installed.
    """
    if method not in METHODS:
        raise ValueError(f"no solver is named {method!r}; there are {', '.join(METHODS)}")
    search = _Search(problem, method, time_limit, below)
    if not (problem.spans == 1).all():
        search.root = -math.inf
        search.by_milp(np.arange(len(problem.names)), -math.inf)
        return search.result()
    layered = layer_problem(problem)
    if layered is not None:
        for start in starts:
            search.offer(start)
        search.run(layered)
    return search.result()


def price_bound(problem: Problem, prices: Prices) -> float:
    """A lower bound on the loss of any solution from prices of another problem: loose, but in microseconds."""
    if not (problem.spans == 1).all():
        return -math.inf
    priced, paid = problem.losses.copy(), 0.0
    for limit in problem.limits:
        place = problem.column(limit.resource)
        for sign, end in limit.ends():
            price = prices.get((limit.resource, sign), 0.0)
            if price > 0:
                priced += sign * price * problem.uses[:, place]
                size = problem.num_layers * np.abs(problem.uses[:, place]).max() + abs(end) + abs(problem.base[place])
                paid += price * (sign * (end - problem.base[place]) + limit.slack(sign) + 1e-15 * size)
    return float(np.minimum.reduceat(priced, problem.layer_starts).sum() - paid)


def _priced(layered: Layered) -> tuple[FloatArray, float]:
    """Prices (M,) and the bound they give; infinite when it is above anything a solution can have."""
    losses, uses, room = layered.losses, layered.uses, layered.room
    prices = maximise_bound(losses, uses, room[None], start=np.zeros(len(room)), scale=layered.spread)[0]
    bound = lower_bound(losses, uses, room, prices)
    margin = TOLERANCE * max(1.0, abs(layered.worst), layered.spread)
    return prices, math.inf if bound > layered.worst + margin else bound


class _Search:
    """One solve: the best solution so far and what is proven."""

    def __init__(self, problem: Problem, method: Method, time_limit: float | None, below: float) -> None:
        self.problem, self.method = problem, method
        self.started = time.perf_counter()
        self.deadline = math.inf if time_limit is None else self.started + time_limit
        self.sign = problem.sign
        self.solution: Solution | None = None
        self.loss = below
        self.outcome: Outcome = "infeasible"
        self.bound = self.root = math.inf
        self.prices: Prices = {}
        self.solver = "bounds"
        self.left = self.states = 0

    def offer(self, choices: Sequence[int]) -> bool:
        """Take a solution if it is one, and better; whether it was taken."""
        try:
            solution = make_solution(self.problem, choices)
        except ValueError:
            return False
        if self.sign * solution.objective >= self.loss or broken_limits(self.problem, solution):
            return False
        self.solution, self.loss = solution, self.sign * solution.objective
        return True

    def run(self, layered: Layered) -> None:
        """Search and prove."""
        prices, bound = _priced(layered)
        self.root = self.bound = bound
        in_units = prices / layered.units
        self.prices = {end: float(price) for end, price in zip(layered.ends, in_units, strict=True) if price > 0}
        if bound >= self.loss or math.isinf(bound):
            self._finish(complete=True)
            return
        scale = layered.spread
        reduced = reduced_losses(layered.losses, layered.uses, prices)
        many = min(_FIRST_CHOICES * len(reduced), layered.count) - 1
        first = float(np.partition(reduced[layered.there], many)[many])
        beams = _BEAMS if self.method == "auto" else _BEAMS[:1]
        for beam in beams:
            while True:
                window = min(first, self.loss - bound)
                core = self._core(layered, reduced, window)
                exact = self._exact(bound)
                found = walk(core, prices, target=self.loss - exact, beam=beam, scale=scale, deadline=self.deadline)
                self.states = max(self.states, found.states)
                self.left = core.count
                rows = np.arange(len(core.choices))
                if found.choices is not None and not self.offer(core.choices[rows, found.choices].tolist()):
                    # it keeps its limits to rounding only, and may hide others: the MIP solver can be told to pass it
                    self.by_milp(self._core(layered, reduced, self.loss - bound).places, bound)
                    return
                if self.loss - bound <= self._exact(bound):
                    self._finish(complete=True)
                    return
                wide = (
                    window >= self.loss - bound or core.count == layered.count or window >= reduced[layered.there].max()
                )
                if found.complete and wide:
                    self.solver = "exhaustive walk"
                    self._finish(complete=True)
                    return
                if time.perf_counter() > self.deadline:
                    self._finish(complete=False)
                    return
                if not found.complete:
                    break
                first = 4 * first + scale * 1e-3  # complete, but the window hid choices: widen it
            first = max(first, self.loss - bound) if math.isfinite(self.loss) else 4 * first
        self.by_milp(self._core(layered, reduced, self.loss - bound).places, bound)

    def _exact(self, bound: float) -> float:
        """Losses closer than this are equal."""
        return TOLERANCE * max(abs(bound), abs(self.loss)) if math.isfinite(self.loss) else 0.0

    def _core(self, layered: Layered, reduced: FloatArray, window: float) -> Layered:
        return layered.only(reduced <= window).without_dominated()

    def by_milp(self, places: IntArray, bound: float) -> None:
        """Leave the choices at these places, ascending, to a MIP solver."""
        keep = np.zeros(len(self.problem.names), dtype=bool)
        keep[places] = True
        left = None if math.isinf(self.deadline) else max(0.1, self.deadline - time.perf_counter())
        below = None if math.isinf(self.loss) else self.loss
        name: SolverName = "cbc" if self.method == "cbc" else "highs"
        found = solve_milp(self.problem.only(keep), solver=name, time_limit=left, below=below)
        self.left, self.solver = len(places), found.solver
        if found.solution is not None:
            self.offer(places[list(found.solution.choices)].tolist())
        if found.outcome == "stopped":
            self.bound = max(bound, min(found.bound, self.loss))
        self._finish(complete=found.outcome != "stopped")

    def _finish(self, *, complete: bool) -> None:
        if not complete:
            self.outcome = "stopped"
        elif self.solution is not None:
            self.outcome, self.bound = "optimal", self.loss
        else:
            self.outcome, self.bound = "infeasible", math.inf

    def result(self) -> Result:
        """What there is to say."""
        return Result(
            outcome=self.outcome,
            solution=self.solution,
            bound=self.sign * self.bound,
            root_bound=self.sign * self.root,
            prices=self.prices,
            solver=self.solver,
            seconds=time.perf_counter() - self.started,
            choices=len(self.problem.names),
            choices_left=self.left,
            states=self.states,
        )
