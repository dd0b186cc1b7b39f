"""Refinement against scorers whose scores do not add up."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puzzlebench_search.brute_force import brute_force, every_solution
from puzzlebench_search.instances import served_instance
from puzzlebench_search.problem import broken_limits, make_solution
from puzzlebench_search.refine import refine


def squared_errors(problem, dimensions, seed):
    """A scorer: each choice moves the output by an error whose squared length is its score, alike within a layer."""
    rng = np.random.default_rng(seed)
    errors = rng.normal(size=(problem.num_layers, dimensions))[problem.layers]
    errors += rng.normal(size=errors.shape)
    errors *= np.sqrt(np.abs(problem.scores) / (errors**2).sum(axis=1))[:, None]
    return lambda choices: float((errors[list(choices)].sum(axis=0) ** 2).sum())


def neighbouring_layers(problem, seed):
    """A scorer: two damaged layers in a row are worse than both by themselves."""
    pull = np.random.default_rng(seed).lognormal(0, 1, problem.num_layers - 1) / 2
    damage = np.sqrt(problem.scores)

    def score(choices):
        taken = damage[list(choices)]
        return float((taken**2).sum() + (pull * taken[1:] * taken[:-1]).sum())

    return score


@pytest.fixture(scope="module")
def served():
    return served_instance(80, seed=0)


@pytest.fixture(scope="module")
def start(served):
    from puzzlebench_search.solve import solve

    return solve(served).solution


@pytest.mark.parametrize(("dimensions", "least_gain"), [(64, 0.3), (512, 0.05)])
def test_finds_better_models_than_the_best_sum(served, start, dimensions, least_gain):
    """For 64 dimensions the real score halves, for 512 it falls by a tenth (see the module for what is learnt)."""
    scorer = squared_errors(served, dimensions, seed=0)
    found = refine(served, [start], scorer, evaluations=100)
    assert len(found.evaluated) == 100
    assert found.real < (1 - least_gain) * scorer(start.choices)
    assert found.real == scorer(found.best.choices)
    assert not broken_limits(served, found.best)


def test_interactions_of_neighbouring_layers(served, start):
    scorer = neighbouring_layers(served, seed=0)
    assert refine(served, [start], scorer, evaluations=100).real < scorer(start.choices)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_is_never_worse_than_the_best_start_and_scores_nothing_twice(problems, data):
    problem = data.draw(problems(spans=True))
    keeping = [make_solution(problem, choices) for choices in every_solution(problem)]
    keeping = [solution for solution in keeping if not broken_limits(problem, solution)]
    if not keeping:
        return
    starts = data.draw(st.lists(st.sampled_from(keeping), min_size=1, max_size=4))
    evaluations = data.draw(st.integers(1, 20))
    unit, seed = np.abs(problem.scores).max() or 1.0, data.draw(st.integers(0, 99))
    calls = []

    def scorer(choices):
        calls.append(choices)
        return unit * np.random.default_rng([seed, *choices]).normal()

    reported = []
    found = refine(problem, starts, scorer, evaluations=evaluations, report=reported.append)
    assert len(calls) == len(set(calls)) <= evaluations
    assert [one.choices for one in found.evaluated] == calls
    assert found.evaluated == tuple(reported)
    sign = 1 if problem.direction == "minimise" else -1
    assert sign * found.real == min(sign * one.real for one in found.evaluated)
    assert found.best.choices in calls
    for one in found.evaluated:
        solution = make_solution(problem, one.choices)
        assert not broken_limits(problem, solution)
        assert one.additive == solution.objective
    distinct = list(dict.fromkeys(start.choices for start in starts))[:evaluations]
    assert calls[: len(distinct)] == distinct


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_scores_that_add_up_lead_to_the_best(problems, data):
    """Without limits every solution can be reached, and the prediction is right."""
    problem = data.draw(problems()).with_limits(())
    start = make_solution(problem, next(every_solution(problem)))
    scorer = lambda choices: make_solution(problem, choices).objective  # noqa: E731
    found = refine(problem, [start], scorer, evaluations=300)
    assert found.real == pytest.approx(brute_force(problem).objective, abs=1e-12 * np.abs(problem.scores).max())
    assert found.stopped == "every neighbour was scored" or len(found.evaluated) == 300


def test_stops_when_nothing_is_left(tiny):
    start = make_solution(tiny, [1, 4])
    found = refine(tiny, [start], lambda choices: float(sum(choices)), evaluations=100)
    assert found.stopped == "every neighbour was scored"
    assert {one.choices for one in found.evaluated} == {
        choices for choices in every_solution(tiny) if not broken_limits(tiny, make_solution(tiny, choices))
    }
    assert refine(tiny, [start], lambda choices: 1.0, evaluations=2).stopped == "all 2 evaluations were used"


def failing(choices):
    raise RuntimeError("out of memory")


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (failing, r"failed on half, half: out of memory"),
        (lambda choices: math.nan, r"returned nan for half, half"),
        (lambda choices: math.inf, "returned inf"),
    ],
)
def test_a_scorer_that_fails_is_named_with_the_architecture(tiny, scorer, message):
    with pytest.raises(ValueError, match=message):
        refine(tiny, [make_solution(tiny, [1, 4])], scorer, evaluations=5)


def test_refuses(tiny):
    start = make_solution(tiny, [1, 4])
    with pytest.raises(ValueError, match="at least one start and one evaluation are needed, not 0 and 5"):
        refine(tiny, [], len, evaluations=5)
    with pytest.raises(ValueError, match="not 1 and 0"):
        refine(tiny, [start], len, evaluations=0)
    with pytest.raises(ValueError, match="a start breaks the limit of memory"):
        refine(tiny, [make_solution(tiny, [0, 3])], len, evaluations=5)
