"""What each baseline promises: limits are kept, restrictions hold, and the exact search is never worse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puzzlebench_search.baselines import BASELINES, ChoiceFacts, Settings, run_baseline
from puzzlebench_search.brute_force import brute_force, every_solution
from puzzlebench_search.instances import served_instance
from puzzlebench_search.problem import Limit, Problem, broken_limits, make_solution

NAMES = ("greedy", "random", "max-params", "homogeneous", "no-op only", "layer drop")


def facts(problem, **changes):
    """Facts by which anything goes: the first choice of each layer is the parent's, the last one drops it."""
    count = len(problem.names)
    first = np.r_[True, np.diff(problem.layers) > 0]
    fields = {
        "parent": first,
        "no_op_or_parent": np.ones(count, dtype=bool),
        "dropped": ~first,
        "kind": problem.names,
        "params": problem.uses[:, 0] if problem.uses.shape[1] else np.zeros(count),
    }
    return ChoiceFacts(**(fields | changes))


def run(name, problem, some=None, **settings):
    return run_baseline(name, problem, some or facts(problem), Settings(**settings))


def test_all_are_there():
    assert tuple(BASELINES) == NAMES


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_keeps_the_limits_and_is_no_better_than_the_best(problems, name, data):
    problem = data.draw(problems(spans=data.draw(st.booleans())))
    found, best = run(name, problem, samples=5), brute_force(problem)
    assert found.name == name
    assert found.note
    assert found.seconds >= 0
    if best is None:
        assert found.solution is None
    if found.solution is not None:
        assert found.solution == make_solution(problem, found.solution.choices)
        assert not broken_limits(problem, found.solution)
        sign = 1 if problem.direction == "minimise" else -1
        slack = 1e-9 * np.abs(problem.scores).max()
        assert sign * found.solution.objective >= sign * best.objective - slack


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_exact_ones_find_the_best_of_what_they_may_choose_from(problems, data):
    problem = data.draw(problems())
    some = facts(problem)
    keep = np.array([data.draw(st.booleans()) for _ in problem.names]) | some.parent
    some = facts(problem, no_op_or_parent=keep, dropped=keep & ~some.parent)
    best = brute_force(problem.only(keep))
    for name in ("no-op only", "layer drop"):
        found = run(name, problem, some)
        assert (found.solution is None) == (best is None)
        if best is not None:
            assert found.solution.objective == pytest.approx(best.objective, abs=1e-9 * np.abs(problem.scores).max())
            assert keep[list(found.solution.choices)].all()
    most = brute_force(problem.with_scores(some.params, "maximise"))
    found = run("max-params", problem, some)
    assert (found.solution is None) == (most is None)
    if most is not None:
        size = some.params[list(found.solution.choices)].sum()
        assert size == pytest.approx(most.objective, abs=1e-6 * max(1e-3, np.abs(some.params).max()))


def test_greedy_by_hand(tiny):
    """The second layer is less replaceable (mean 3.5 against 2) and comes first: its share of 13 is 6.5, so half fits
    and leaves 7 for the first layer, where half fits again."""
    found = run("greedy", tiny)
    assert found.solution.choices == (1, 4)
    assert found.solution.objective == 3


def test_greedy_shares_what_is_left_over(tiny):
    """At 17 the second layer takes half of its share of 8.5, and the 11 left are enough for the whole first layer."""
    found = run("greedy", tiny.with_limits([Limit(resource="memory", high=17)]))
    assert found.solution.choices == (0, 4)


def test_greedy_goes_over_its_share_where_nothing_fits_and_can_make_up_for_it():
    problem = Problem(
        scores=np.array([0.0, 9.0, 0.0, 1.0, 2.0]),
        uses=np.array([[9.0], [8.0], [6.0], [4.0], [2.0]]),
        layers=np.array([0, 0, 1, 1, 1]),
        names=("full", "most", "full", "half", "less"),
        resources=("memory",),
        limits=(Limit(resource="memory", high=10),),
    )
    assert run("greedy", problem).solution.choices == (1, 4)
    found = run("greedy", problem.with_limits([Limit(resource="memory", high=9)]))
    assert found.solution is None
    assert "is 11.1% above the limit of memory" in found.note


def test_greedy_does_not_see_low_ends(tiny):
    found = run("greedy", tiny.with_limits([Limit(resource="memory", low=13, high=13)]))
    assert found.solution is None
    assert "is 7.7% below the limit of memory" in found.note


def test_greedy_needs_a_choice_for_each_layer():
    problem = Problem(
        scores=np.zeros(2),
        uses=np.zeros((2, 0)),
        layers=np.array([0, 0]),
        spans=np.array([1, 2]),
        names=("a", "b"),
        resources=(),
    )
    assert "layer 1" in run("greedy", problem).note


def test_homogeneous(tiny):
    found = run("homogeneous", tiny)
    assert found.solution.choices == (1, 4)
    assert found.note == "half in every layer"
    tight = tiny.with_limits([Limit(resource="memory", high=1)])
    assert "none comes nearest but is 100.0% above the limit of memory" in run("homogeneous", tight).note
    different = facts(tiny, kind=tuple("abcdef"))
    assert "no kind" in run("homogeneous", tiny, different).note


def test_homogeneous_maximises_too(tiny):
    better = tiny.with_scores(-tiny.scores, "maximise")
    assert run("homogeneous", better).solution.choices == (1, 4)


def test_random_is_reproducible_and_reports_every_sample(facts_of):
    problem = served_instance(12, seed=0)
    one, again = (run("random", problem, facts_of(problem), samples=11, seed=3) for _ in range(2))
    assert one.objectives == again.objectives
    assert one.solution == again.solution
    assert len(one.objectives) == 11
    assert one.solution.objective == one.objectives[5] == np.median(one.objectives)
    assert f"{np.mean(one.objectives):.6g}" in one.note
    assert run("random", problem, facts_of(problem), samples=11, seed=4).objectives != one.objectives


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_random_draws_any_solution_where_there_are_no_limits(problems, data):
    problem = data.draw(problems(spans=True, most_layers=3, most_choices=2)).with_limits(())
    found = run("random", problem, samples=20)
    assert (found.solution is None) == (next(every_solution(problem), None) is None)


def test_baselines_of_a_real_size(facts_of):
    """The exact ones on fewer layers: with costs alike in every layer their many ties are slow to prove."""
    problem = served_instance(80, seed=0)
    greedy, random, same = (run(name, problem, facts_of(problem)) for name in ("greedy", "random", "homogeneous"))
    assert greedy.solution.objective < same.solution.objective < random.solution.objective
    assert len({problem.names[place] for place in same.solution.choices}) == 1


def test_the_exact_ones_are_ordered_by_what_they_may_choose(facts_of):
    problem = served_instance(8, seed=0)
    best, some, whole = (run(name, problem, facts_of(problem)) for name in ("greedy", "no-op only", "layer drop"))
    assert best.solution.objective < some.solution.objective <= whole.solution.objective
    assert {problem.names[place] for place in whole.solution.choices} <= {"kv8+28672", "none+none"}


def test_refuses(tiny):
    with pytest.raises(ValueError, match="no baseline is named 'mip'; there are greedy, random"):
        run("mip", tiny)
    with pytest.raises(ValueError, match="facts are of 3 choices, the problem has 6"):
        run(
            "greedy",
            tiny,
            ChoiceFacts(parent=[1] * 3, no_op_or_parent=[1] * 3, dropped=[1] * 3, kind="abc", params=[1] * 3),
        )
    with pytest.raises(ValueError, match="different numbers"):
        facts(tiny, params=np.zeros(2))
    with pytest.raises(ValueError, match="at least one sample"):
        Settings(samples=0)
