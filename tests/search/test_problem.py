"""The search as numbers: what is refused, what limits mean, and that derived problems are what they say."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puzzlebench_search.brute_force import brute_force, count_solutions, every_solution
from puzzlebench_search.problem import Limit, Problem, broken_limits, make_solution


def make(**changes):
    fields = {
        "scores": np.array([1.0, 2.0]),
        "uses": np.array([[1.0], [2.0]]),
        "layers": np.array([0, 1]),
        "names": ("a", "b"),
        "resources": ("r",),
    }
    return Problem(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": np.zeros(3)}, "scores must have shape"),
        ({"uses": np.zeros((2, 2))}, "uses must have shape"),
        ({"base": np.zeros(2)}, "base must have shape"),
        ({"spans": np.ones(3)}, "spans must have shape"),
        ({"direction": "up"}, "minimise or maximise"),
        ({"layers": np.array([1, 0])}, "ascend"),
        ({"layers": np.array([-1, 0])}, "ascend"),
        ({"spans": np.array([1, 0])}, "spans be at least 1"),
        ({"layers": np.array([0, 2])}, "layer 1 has no choices"),
        ({"layers": np.array([1, 2])}, "layer 0 has no choices"),
        ({"scores": np.array([1.0, math.nan])}, "layer 1, b: its score"),
        ({"uses": np.array([[1.0], [math.inf]])}, "layer 1, b: its use"),
        ({"resources": ("r", "r"), "uses": np.zeros((2, 2))}, "repeat"),
        ({"limits": (Limit(resource="q", high=1),)}, "no resource is named 'q'"),
        ({"limits": (Limit(resource="r", high=1), Limit(resource="r", low=0))}, "more than one limit"),
        ({"names": (), "scores": [], "uses": np.zeros((0, 1)), "layers": []}, "no choices"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    "ends", [{"low": math.nan}, {"high": math.nan}, {"low": math.inf}, {"high": -math.inf}, {"low": 2, "high": 1}]
)
def test_limits_that_are_not_possible(ends):
    with pytest.raises(ValueError, match=r"r must be numbers|r cannot be at least"):
        Limit(resource="r", **ends)


@pytest.mark.parametrize(
    ("limit", "value", "excess"),
    [
        (Limit(resource="r", high=10), 10, 0),
        (Limit(resource="r", high=10), 12, 2),
        (Limit(resource="r", low=10), 9, 1),
        (Limit(resource="r", low=1, high=2), 1.5, 0),
        (Limit(resource="r", low=0, high=0), 0, 0),
        (Limit(resource="r", high=10), math.nan, math.inf),
    ],
)
def test_excess(limit, value, excess):
    assert limit.excess(value) == excess
    assert limit.holds(value) == (excess == 0)


def test_limits_forgive_rounding_only():
    limit = Limit(resource="r", high=0.3)
    assert limit.holds(0.1 + 0.2)
    assert not limit.holds(0.3 + 1e-8)
    assert not Limit(resource="r", high=0.0).holds(1e-12)


def test_arrays_are_copies_and_read_only():
    scores = np.array([1.0, 2.0])
    problem = make(scores=scores)
    scores[0] = 9
    assert problem.scores[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        problem.scores[0] = 9


@pytest.mark.parametrize("choices", [(0,), (1,), (0, 0), (0, 1, 1), (), (0, 2), (-1, 0)])
def test_what_does_not_cover_every_layer_once_is_no_solution(choices):
    with pytest.raises(ValueError, match="exactly once"):
        make_solution(make(), choices)


def test_a_span_covers_its_layers():
    problem = make(layers=np.array([0, 0]), spans=np.array([1, 2]))
    assert problem.num_layers == 2
    assert make_solution(problem, [1]).choices == (1,)
    with pytest.raises(ValueError, match="layer 1"):
        make_solution(problem, [0])


def test_sums_count_the_base_and_are_exactly_rounded():
    problem = make(scores=np.array([1e16, 1.0]), uses=np.array([[0.1], [0.2]]), base=np.array([0.3]))
    solution = make_solution(problem, [1, 0])
    assert solution.choices == (0, 1)
    assert solution.uses == {"r": math.fsum([0.3, 0.1, 0.2])}


def test_only_says_which_layer_is_left_without_choices():
    problem = make(layers=np.array([0, 0]), spans=np.array([2, 1]))
    assert problem.only(np.array([True, False])).names == ("a",)
    for keep, layer in (([False, True], 1), ([True, False], 1)):
        with pytest.raises(ValueError, match=f"layer {layer} has no choices"):
            (make() if keep[0] else problem).only(np.array(keep))
    with pytest.raises(ValueError, match="no choices"):
        make().only(np.array([False, False]))


def test_derived_problems():
    problem = make(limits=(Limit(resource="r", high=5),), base=np.array([1.0]))
    more = problem.with_resource("q", np.array([3.0, 4.0]), Limit(resource="q", low=2), base=0.5)
    assert make_solution(more, [0, 1]).uses == {"r": 4.0, "q": 7.5}
    assert [limit.resource for limit in more.limits] == ["r", "q"]
    assert problem.with_resource("q", np.zeros(2)).limits == problem.limits
    assert problem.with_limits(()).limits == ()
    other = problem.with_scores(np.array([5.0, 6.0]), "maximise")
    assert other.losses.tolist() == [-5, -6]
    assert other.limits == problem.limits


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_brute_force_finds_the_best_that_keeps_the_limits(problems, data):
    problem = data.draw(problems(spans=True, most_layers=3))
    sign = 1 if problem.direction == "minimise" else -1
    everything = list(every_solution(problem))
    assert len(everything) == len(set(everything)) == count_solutions(problem)
    solutions = [make_solution(problem, choices) for choices in everything]
    keeping = [solution for solution in solutions if not broken_limits(problem, solution)]
    best = brute_force(problem)
    if not keeping:
        assert best is None
    else:
        assert not broken_limits(problem, best)
        assert sign * best.objective == min(sign * solution.objective for solution in keeping)


def test_brute_force_refuses_what_takes_too_long():
    with pytest.raises(ValueError, match="4 combinations, more than 3: use solve"):
        brute_force(make(layers=[0, 0, 1, 1], scores=np.zeros(4), uses=np.zeros((4, 1)), names=tuple("abcd")), limit=3)
