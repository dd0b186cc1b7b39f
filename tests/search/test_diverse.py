"""Solutions that differ, against trying everything."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puzzlebench_search.brute_force import every_solution
from puzzlebench_search.diverse import apart_from, shared_layers
from puzzlebench_search.instances import served_instance
from puzzlebench_search.problem import Problem, broken_limits, make_solution
from puzzlebench_search.solve import solve


def names_of(problem, choices):
    return [problem.names[choice] for choice in choices]


def best_apart(problem, others, alpha):
    """The least loss of a solution that keeps the limits and shares no more than it may with each of the others."""
    sign = 1.0 if problem.direction == "minimise" else -1.0
    losses = [math.inf]
    for choices in every_solution(problem):
        solution = make_solution(problem, choices)
        shared = [sum(int(problem.spans[one]) for one in set(choices) & set(other)) for other in others]
        if max(shared, default=0) <= alpha * problem.num_layers + 1e-9 and not broken_limits(problem, solution):
            losses.append(sign * solution.objective)
    return min(losses)


@pytest.mark.parametrize(("spans", "examples"), [(False, 100), (True, 25)])
def test_the_best_of_those_that_differ(problems, spans, examples):
    @settings(deadline=None, max_examples=examples)
    @given(data=st.data())
    def agrees(data):
        problem = data.draw(problems(spans=spans))
        sign = 1.0 if problem.direction == "minimise" else -1.0
        alpha = data.draw(st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 2 / 3, 0.75, 0.99, 1.0]))
        found = []
        for _ in range(3):
            apart = apart_from(problem, [names_of(problem, other) for other in found], alpha)
            result = solve(apart)
            best = best_apart(problem, found, alpha)
            if math.isinf(best):
                assert result.outcome == "infeasible"
                return
            unit = float(np.abs(problem.scores).max())
            assert sign * result.solution.objective == pytest.approx(best, abs=1e-8 * unit)
            for other in found:
                shared = shared_layers(problem, *(names_of(problem, one) for one in (result.solution.choices, other)))
                assert shared <= alpha * problem.num_layers + 1e-9
            found.append(result.solution.choices)

    agrees()


def test_one_allows_the_same_again(tiny):
    best = solve(tiny).solution
    again = solve(apart_from(tiny_named(tiny), [names_of(tiny_named(tiny), best.choices)] * 2, 1.0)).solution
    assert again.choices == best.choices


def tiny_named(tiny):
    """With names that tell layers apart."""
    return Problem(
        scores=tiny.scores,
        uses=tiny.uses,
        layers=tiny.layers,
        names=tuple(f"{layer}:{name}" for layer, name in zip(tiny.layers, tiny.names, strict=True)),
        resources=tiny.resources,
        limits=tiny.limits,
    )


def test_nothing_in_common(tiny):
    problem = tiny_named(tiny)
    apart = apart_from(problem, [["0:full", "1:half"]], 0.0)
    choices = names_of(problem, solve(apart).solution.choices)
    assert choices[0] != "0:full"
    assert choices[1] != "1:half"
    everything = [[name, other] for name in problem.names[:3] for other in problem.names[3:]]
    assert solve(apart_from(problem, everything, 0.0)).outcome == "infeasible"
    assert solve(apart_from(problem, [], 0.0)).solution == solve(problem).solution


@pytest.mark.parametrize(("alpha", "most"), [(0.0, 0), (0.3, 2), (0.7, 6), (0.99, 8), (1.0, 9)])
def test_parts_of_the_layers_are_rounded_down(alpha, most):
    apart = apart_from(served_instance(9, seed=0), [["x"]], alpha)
    assert apart.limits[-1].high == most
    assert apart.base[-1] == 0


def test_one_tenth_and_two_tenths_are_three_layers_of_ten():
    whole = served_instance(10, seed=0)
    assert apart_from(whole, [["x"]], 0.1 + 0.2).limits[-1].high == 3
    assert apart_from(whole, [["x"]], 0.3).limits[-1].high == 3
    assert apart_from(whole, [["x"]], 1 - 0.9).limits[-1].high == 1


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_parts_that_are_not_possible(tiny, alpha):
    with pytest.raises(ValueError, match="alpha must be from 0 to 1"):
        apart_from(tiny, [], alpha)


def test_layers_of_a_span_count_all():
    problem = Problem(
        scores=np.array([0.0, 1.0, 1.0]),
        uses=np.zeros((3, 0)),
        layers=np.array([0, 0, 1]),
        spans=np.array([2, 1, 1]),
        names=("both", "first", "second"),
        resources=(),
    )
    assert shared_layers(problem, ["both"], ["both"]) == 2
    assert shared_layers(problem, ["first", "second"], ["first", "second"]) == 2
    assert solve(apart_from(problem, [["both"]], 0.5)).solution.objective == 2.0
