"""The whole problem as one mixed-integer program in PuLP, solved by HiGHS or CBC: Puzzle's formulation as it stands
(arXiv 2411.19146, section 4), with nothing taken out beforehand. Also the referee of the faster method in `solve`.

Rows are divided by the size of their limit and the objective by that of the largest loss, so that a solver's absolute
tolerances mean the same for bytes and seconds. CBC ignores what is better by less than 1e-5, HiGHS by less than 1e-6.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import pulp

from puzzlebench_search.problem import Problem, Solution, broken_limits, make_solution

SolverName: TypeAlias = Literal["highs", "cbc"]
Outcome: TypeAlias = Literal["optimal", "infeasible", "stopped"]

_SOLVER_TOLERANCE = 1e-9
_LARGEST_LOSS = 1e4
_REPEATS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class MilpResult:
    """What a solver said.

    Attributes:
        outcome: stopped: by the time limit, with or without a solution.
        bound: no solution has a loss below this.
        solver: its name and version.
    """

    outcome: Outcome
    solution: Solution | None
    bound: float
    solver: str


def solve_milp(
    problem: Problem,
    *,
    solver: SolverName = "highs",
    time_limit: float | None = None,
    below: float | None = None,
) -> MilpResult:
    """Solve to proven optimality, on one thread.

    A solver's answer may break a limit by its tolerance; such an answer is forbidden and the program solved again.

    Args:
        time_limit: seconds.
        below: only losses below this are wanted; none is infeasible.

    Raises:
        ValueError: the solver is not installed or unknown.
    """
    started = time.perf_counter()
    program, variables = _program(problem, below)
    name = _solver_name(solver)
    for _ in range(_REPEATS):
        left = None if time_limit is None else max(0.01, time_limit - (time.perf_counter() - started))
        status = run_program(program, solver, left)
        proven = program.sol_status == pulp.LpSolutionOptimal
        if status == pulp.LpStatusInfeasible:
            return MilpResult(outcome="infeasible", solution=None, bound=math.inf, solver=name)
        chosen = chosen_places(variables)
        bound = _bound(program, problem, proven)
        try:
            solution = make_solution(problem, chosen)
        except ValueError:  # stopped before it had one
            assert not proven
            return MilpResult(outcome="stopped", solution=None, bound=bound, solver=name)
        if not broken_limits(problem, solution):
            return MilpResult(outcome="optimal" if proven else "stopped", solution=solution, bound=bound, solver=name)
        if not proven:
            return MilpResult(outcome="stopped", solution=None, bound=bound, solver=name)
        _forbid(program, variables)
    raise ValueError(f"{name} kept breaking a limit by its tolerance; try the other solver")


def run_program(program: pulp.LpProblem, solver: SolverName = "highs", time_limit: float | None = None) -> int:
    """Solve any PuLP program quietly, without a gap, on one thread; returns PuLP's status."""
    engine = _engine(solver, time_limit)
    with _no_banner():
        try:
            status = int(program.solve(engine))
        except pulp.PulpSolverError:  # CBC dies of some small infeasible programs without its preprocessing
            if not getattr(engine, "options", None):
                raise
            engine.options = []
            status = int(program.solve(engine))
    model = getattr(program, "solverModel", None)
    if model is not None and hasattr(model, "getModelStatus") and "Interrupt" in str(model.getModelStatus()):
        raise KeyboardInterrupt
    return status


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """How often one choice is taken in layers that are alike: once or not at all where a layer has no like."""

    variable: pulp.LpVariable
    places: tuple[int, ...]
    group: int


def choose_layers(program: pulp.LpProblem, problem: Problem) -> list[Counted]:
    """Add to a program that every layer is covered exactly once; layers that are alike are counted together."""
    counted = []
    groups = _alike(problem, [problem.column(limit.resource) for limit in problem.limits])
    for number, group in enumerate(groups):
        for places in zip(*group, strict=True):
            name = f"x{places[0]}"
            variable = pulp.LpVariable(name, lowBound=0, upBound=len(places), cat=pulp.LpInteger)
            counted.append(Counted(variable=variable, places=places, group=number))
    covering: list[list[tuple[pulp.LpVariable, int]]] = [[] for _ in range(problem.num_layers)]
    sizes = dict.fromkeys(range(problem.num_layers), 1)
    for one in counted:
        layer, span = int(problem.layers[one.places[0]]), int(problem.spans[one.places[0]])
        sizes[layer] = len(one.places)
        for covered in range(layer, layer + span):
            covering[covered].append((one.variable, 1))
    for layer, terms in enumerate(covering):
        if terms:  # a layer that is like an earlier one is counted there
            program += pulp.LpAffineExpression(terms) == sizes[layer]
    return counted


def chosen_places(counted: list[Counted]) -> list[int]:
    """The choices of a solved program: of layers that are alike the first take the first choice, and so on."""
    chosen: list[int] = []
    taken: dict[int, int] = {}
    for one in counted:
        first = taken.get(one.group, 0)
        taken[one.group] = first + round(one.variable.varValue or 0.0)
        chosen += one.places[first : taken[one.group]]
    return chosen


def _program(problem: Problem, below: float | None) -> tuple[pulp.LpProblem, list[Counted]]:
    program = pulp.LpProblem("search", pulp.LpMinimize)
    counted = choose_layers(program, problem)
    variables = [one.variable for one in counted]
    place = np.array([one.places[0] for one in counted])
    unit = _loss_unit(problem)
    losses = (problem.losses[place] / unit).tolist()
    program += pulp.LpAffineExpression(zip(variables, losses, strict=True))
    columns = [problem.column(limit.resource) for limit in problem.limits]
    for limit, column in zip(problem.limits, columns, strict=True):
        use, base = problem.uses[place, column], float(problem.base[column])
        size = max((abs(end - base) for end in (limit.low, limit.high) if math.isfinite(end)), default=1.0)
        size = max(size, 1e-6 * float(np.abs(use).max())) or 1.0  # solvers refuse coefficients beyond 1e15
        total = pulp.LpAffineExpression(zip(variables, (use / size).tolist(), strict=True))
        if math.isfinite(limit.high):
            program += total <= (limit.high - base) / size
        if math.isfinite(limit.low):
            program += total >= (limit.low - base) / size
    if below is not None:
        program += pulp.LpAffineExpression(zip(variables, losses, strict=True)) <= below / unit
    return program, counted


def _alike(problem: Problem, columns: list[int]) -> list[list[list[int]]]:
    """Layers in groups whose choices score and use the same, each as the places of its choices.

    Without this, architectures that only differ in which of two such layers has which block are searched one by one.
    """
    layers: dict[int, list[int]] = {}
    for place, layer in enumerate(problem.layers.tolist()):
        layers.setdefault(layer, []).append(place)
    if not (problem.spans == 1).all():
        return [[places] for places in layers.values()]
    groups: dict[bytes, list[list[int]]] = {}
    for places in layers.values():
        facts = np.column_stack([problem.losses[places], problem.uses[np.ix_(places, columns)]])
        groups.setdefault(facts.tobytes(), []).append(places)
    return list(groups.values())


def _forbid(program: pulp.LpProblem, counted: list[Counted]) -> None:
    """Forbid the counts of the last answer: some choice must be taken less often."""
    taken = [one for one in counted if round(one.variable.varValue or 0.0)]
    if all(len(one.places) == 1 for one in taken):
        program += pulp.lpSum(one.variable for one in taken) <= len(taken) - 1
        return
    fewer = []
    for one in taken:
        times = round(one.variable.varValue or 0.0)
        less = pulp.LpVariable(f"less{len(program.variables())}_{one.variable.name}", cat=pulp.LpBinary)
        program += one.variable <= len(one.places) - (len(one.places) - times + 1) * less
        fewer.append(less)
    program += pulp.lpSum(fewer) >= 1


def _loss_unit(problem: Problem) -> float:
    """What the losses are divided by for a solver."""
    return float(np.abs(problem.losses).max()) / _LARGEST_LOSS or 1.0


def _engine(solver: SolverName, time_limit: float | None) -> pulp.LpSolver:
    if solver == "highs":
        engine = pulp.HiGHS(
            msg=False,
            gapRel=0.0,
            gapAbs=0.0,
            threads=1,
            timeLimit=time_limit,
            primal_feasibility_tolerance=_SOLVER_TOLERANCE,
            mip_feasibility_tolerance=_SOLVER_TOLERANCE,
        )
    elif solver == "cbc":
        # Asked for one thread, CBC starts one, and now and then waits 10 s for it; left alone it uses none. Its
        # preprocessing loses solutions that hit a limit exactly, when there is a bound on the loss.
        engine = pulp.PULP_CBC_CMD(msg=False, gapRel=0.0, gapAbs=0.0, timeLimit=time_limit, options=["preprocess off"])
    else:
        raise ValueError(f"no solver is named {solver!r}; there are highs and cbc")
    if not engine.available():
        raise ValueError(f"the solver {solver} is not installed; try the other one")
    return engine


@contextlib.contextmanager
def _no_banner() -> Iterator[None]:
    """HiGHS prints its name on the standard output of the process whenever one is made, whatever it is told."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _solver_name(solver: SolverName) -> str:
    if solver == "highs":
        return f"HiGHS {importlib.metadata.version('highspy')}"
    return f"CBC of PuLP {pulp.__version__}"


def _bound(program: pulp.LpProblem, problem: Problem, proven: bool) -> float:
    model: Any = getattr(program, "solverModel", None)
    if proven:
        return float(pulp.value(program.objective)) * _loss_unit(problem)
    if model is not None and hasattr(model, "getInfo"):
        return float(model.getInfo().mip_dual_bound) * _loss_unit(problem)
    best: dict[int, float] = {}
    for layer, loss in zip(problem.layers.tolist(), problem.losses.tolist(), strict=True):
        best[layer] = min(loss, best.get(layer, math.inf))
    return sum(best.values()) if (problem.spans == 1).all() else -math.inf
