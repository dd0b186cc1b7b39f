"""The normalised arrays against the problem they come from."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puzzlebench_search.brute_force import brute_force, every_solution
from puzzlebench_search.layered import choice_grid, layer_problem
from puzzlebench_search.problem import Limit, Problem, broken_limits, make_solution


def kept_solutions(problem):
    """Those that keep every limit."""
    return {
        choices for choices in every_solution(problem) if not broken_limits(problem, make_solution(problem, choices))
    }


def ways_in(layered, slack=1e-7):
    """Those that keep every row, as places in the problem's choices."""
    columns = [np.flatnonzero(there) for there in layered.there]
    rows = np.arange(len(columns))
    return {
        tuple(layered.choices[rows, way].tolist())
        for way in itertools.product(*columns)
        if (layered.uses[rows, way].sum(axis=0) <= layered.room + slack).all()
    }


@settings(deadline=None, max_examples=120)
@given(data=st.data())
def test_the_same_solutions_keep_the_limits(problems, data):
    problem = data.draw(problems())
    layered = layer_problem(problem)
    if layered is None:
        assert not kept_solutions(problem)
    else:
        assert ways_in(layered) == kept_solutions(problem)


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_what_is_normalised(problems, data):
    problem = data.draw(problems())
    layered = layer_problem(problem)
    if layered is None:
        return
    there = layered.there
    assert layered.count == there.sum() <= len(problem.names)
    assert there.any(axis=1).all()
    assert (np.isinf(layered.losses) == ~there).all()
    assert (layered.losses[there] == problem.losses[layered.choices[there]]).all()
    assert (layered.uses >= 0).all()
    assert (layered.uses <= 1 + 1e-9).all()
    assert (layered.uses[~there] == 0).all()
    assert (layered.room == 1).all()
    assert layered.worst == pytest.approx(np.where(there, layered.losses, -np.inf).max(axis=1).sum())
    for row, (resource, sign) in enumerate(layered.ends):
        use = sign * problem.uses[layered.choices, problem.column(resource)] / layered.units[row]
        least = np.where(there, use, np.inf).min(axis=1, keepdims=True)
        assert np.allclose(layered.uses[there, row], (use - least)[there], atol=1e-6)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_best_solution_outlives_the_dominated(problems, data):
    problem = data.draw(problems(most_choices=6))
    layered = layer_problem(problem)
    best = brute_force(problem)
    if best is None or layered is None:
        assert best is None
        return
    rest = layered.without_dominated()
    assert rest.count <= layered.count
    assert set(rest.choices[rest.there]) <= set(layered.choices[layered.there])
    keep = np.zeros(len(problem.names), dtype=bool)
    keep[rest.choices[rest.there]] = True
    assert brute_force(problem.only(keep)).objective == pytest.approx(best.objective, rel=1e-12)
    again = rest.without_dominated()
    assert (again.choices == rest.choices).all()


def test_dominated_choices_go_and_of_equals_the_first_stays():
    problem = Problem(
        scores=np.array([1.0, 1.0, 2.0, 0.0, 1.0]),
        uses=np.array([[2.0], [2.0], [2.0], [3.0], [0.0]]),
        layers=np.array([0, 0, 0, 0, 1]),
        names=tuple("abcde"),
        resources=("r",),
        limits=(Limit(resource="r", high=2.9),),
    )
    layered = layer_problem(problem.with_limits((Limit(resource="r", high=3.0),)))
    assert layered.ends == ()  # every choice keeps it
    assert layered.without_dominated().choices.tolist() == [[3], [4]]
    layered = layer_problem(problem)
    assert layered.choices.tolist() == [[0, 1, 2], [4, -1, -1]]  # the fourth breaks the limit by itself
    assert layered.without_dominated().choices.tolist() == [[0], [4]]


def test_only_packs_to_the_left(tiny):
    layered = layer_problem(tiny)
    rest = layered.only(np.array([[False, True, True], [False, False, True]]) & layered.there)
    assert rest.choices.tolist() == [[1, 2], [5, -1]]
    assert np.isinf(rest.losses[1, 1])
    assert rest.count == 3


def test_a_layer_without_anything_left(tiny):
    assert layer_problem(tiny.with_limits((Limit(resource="memory", high=1.9),))) is None
    assert layer_problem(tiny.with_limits((Limit(resource="memory", low=20.1),))) is None
    assert layer_problem(tiny.with_limits((Limit(resource="memory", low=20, high=20),))).count == 2


def test_taking_out_is_repeated_until_nothing_changes():
    """Without the choice that breaks the high end of one limit, the other layer cannot keep the low end of another."""
    problem = Problem(
        scores=np.zeros(4),
        uses=np.array([[5.0, 5.0], [0.0, 0.0], [0.0, 1.0], [3.0, 9.0]]),
        layers=np.array([0, 0, 1, 1]),
        names=tuple("abcd"),
        resources=("r", "s"),
        limits=(Limit(resource="r", high=4.0), Limit(resource="s", low=5.0)),
    )
    assert layer_problem(problem).choices.tolist() == [[1], [3]]


def test_a_limit_at_zero_that_only_rounding_breaks():
    """0.1 + 0.2 - 0.1 - 0.2 is 0, but not when it is added up from the left."""
    problem = Problem(
        scores=np.zeros(4),
        uses=np.array([[0.1], [0.2], [-0.1], [-0.2]]),
        layers=np.arange(4),
        names=tuple("abcd"),
        resources=("r",),
        limits=(Limit(resource="r", high=0.0),),
    )
    assert layer_problem(problem) is not None


def test_ends_without_limits_make_no_rows(tiny):
    assert layer_problem(tiny.with_limits(())).ends == ()
    assert layer_problem(tiny.with_limits((Limit(resource="memory"),))).ends == ()
    both = layer_problem(tiny.with_limits((Limit(resource="memory", low=8, high=13),)))
    assert both.ends == (("memory", 1), ("memory", -1))


def test_no_spread_is_a_scale_of_one(tiny):
    assert layer_problem(tiny.with_scores(np.full(6, 7.0), "minimise")).spread == 1.0
    assert layer_problem(tiny.with_limits(())).spread == 1.5, "the upper quartile of three is the middle one"


def test_choice_grid():
    problem = Problem(
        scores=np.zeros(4),
        uses=np.zeros((4, 0)),
        layers=np.array([0, 1, 1, 2]),
        names=tuple("abcd"),
        resources=(),
    )
    assert choice_grid(problem).tolist() == [[0, -1], [1, 2], [3, -1]]
    assert not math.isnan(layer_problem(problem).worst)
