"""HiGHS and CBC against trying everything."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puzzlebench_search.brute_force import brute_force
from puzzlebench_search.instances import hard_instance
from puzzlebench_search.milp import solve_milp
from puzzlebench_search.problem import Limit, Problem, broken_limits, make_solution

SOLVERS = ("highs", "cbc")


def check(problem, found, best):
    if best is None:
        assert found.outcome == "infeasible"
        assert found.solution is None
        assert found.bound == math.inf
        return
    unit = np.abs(problem.scores).max()
    assert found.outcome == "optimal"
    assert found.solution == make_solution(problem, found.solution.choices)
    assert not broken_limits(problem, found.solution)
    assert found.solution.objective == pytest.approx(best.objective, abs=1e-9 * unit)
    sign = 1 if problem.direction == "minimise" else -1
    assert found.bound == pytest.approx(sign * best.objective, abs=1e-7 * unit)


@pytest.mark.parametrize(("solver", "examples"), [("highs", 150), ("cbc", 25)])
@pytest.mark.parametrize("spans", [False, True])
def test_agrees_with_brute_force(problems, solver, examples, spans):
    @settings(deadline=None, max_examples=examples)
    @given(problem=problems(spans=spans))
    def agrees(problem):
        check(problem, solve_milp(problem, solver=solver), brute_force(problem))

    agrees()


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_only_what_is_below(problems, data):
    problem = data.draw(problems())
    best = brute_force(problem.with_limits(()))
    least = best.objective if problem.direction == "minimise" else -best.objective
    step = 0.5 * min(abs(score) for score in problem.scores if score) if problem.scores.any() else 1.0
    free = problem.with_limits(())
    check(free, solve_milp(free, below=least + step), best)
    assert solve_milp(free, below=least - step).outcome == "infeasible"


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("unit", [1e-7, 1e-3, 1.0, 1e7])
def test_scores_of_any_size_are_told_apart(solver, unit):
    """Both solvers have absolute tolerances on the objective."""
    rng = np.random.default_rng(1)
    for _ in range(5):
        problem = Problem(
            scores=unit * rng.uniform(size=25),
            uses=rng.uniform(size=(25, 1)),
            layers=np.repeat(np.arange(5), 5),
            names=tuple("abcde") * 5,
            resources=("r",),
            limits=(Limit(resource="r", high=1.7),),
        )
        check(problem, solve_milp(problem, solver=solver), brute_force(problem))


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_limit_that_is_broken_by_less_than_a_solver_sees(solver):
    """CBC takes rows as kept to 1e-6; the best choice breaks its limit by 1e-7."""
    problem = Problem(
        scores=np.array([0.0, 1.0]),
        uses=np.array([[1 + 1e-7], [0.5]]),
        layers=np.array([0, 0]),
        names=("over", "under"),
        resources=("r",),
        limits=(Limit(resource="r", high=1.0),),
    )
    found = solve_milp(problem, solver=solver)
    assert found.outcome == "optimal"
    assert found.solution.choices == (1,)


@pytest.mark.parametrize("solver", SOLVERS)
def test_spans_that_cannot_be_laid_side_by_side(solver):
    problem = Problem(
        scores=np.zeros(2),
        uses=np.zeros((2, 0)),
        layers=np.array([0, 1]),
        spans=np.array([2, 2]),
        names=("a", "b"),
        resources=(),
    )
    assert solve_milp(problem, solver=solver).outcome == "infeasible"


@pytest.mark.parametrize("solver", SOLVERS)
def test_stopped_by_the_time_limit(solver):
    found = solve_milp(hard_instance(seed=0), solver=solver, time_limit=0.2)
    assert found.outcome == "stopped"
    if found.solution is not None:
        assert found.bound <= found.solution.objective
        assert not broken_limits(hard_instance(seed=0), found.solution)


def test_nothing_is_printed(tiny, capfd):
    solve_milp(tiny)
    solve_milp(tiny, solver="cbc")
    assert capfd.readouterr().out == ""


def test_unknown_solver(tiny):
    with pytest.raises(ValueError, match="no solver is named 'gurobi'"):
        solve_milp(tiny, solver="gurobi")
