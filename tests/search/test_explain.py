"""Explanations against trying everything."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from puzzlebench_search.brute_force import every_solution
from puzzlebench_search.explain import cheapest_relaxation, explain
from puzzlebench_search.problem import Limit, Problem, broken_limits, make_solution


def ends_of(problem):
    return [
        (limit.resource, sign, end)
        for limit in problem.limits
        for sign, end in ((1, limit.high), (-1, limit.low))
        if math.isfinite(end)
    ]


def all_uses(problem):
    return [make_solution(problem, choices).uses for choices in every_solution(problem)]


def keeps(uses, ends):
    return all(sign * (uses[resource] - end) <= 1e-9 * max(abs(end), 1e-12) for resource, sign, end in ends)


def size_of(problem, resource, end):
    largest = float(np.abs(problem.uses[:, problem.column(resource)]).max())
    return abs(end) if abs(end) > 1e-9 * largest else largest or 1.0


def least_change(problem):
    return min(
        sum(
            max(0.0, sign * (uses[resource] - end)) / size_of(problem, resource, end)
            for resource, sign, end in ends_of(problem)
        )
        for uses in all_uses(problem)
    )


@st.composite
def infeasible(draw, problems, **options):
    """Limits drawn closer until nothing keeps them."""
    problem = draw(problems(**options))
    everything = all_uses(problem)
    assume(everything and problem.resources)
    for part in (0.3, 0.7, 1.5):
        if not any(keeps(uses, ends_of(problem)) for uses in everything):
            return problem
        limits = []
        for column, resource in enumerate(problem.resources):
            values = [uses[resource] for uses in everything]
            unit = float(np.abs(problem.uses[:, column]).max()) or 1.0
            if draw(st.booleans()):
                limits.append(Limit(resource=resource, high=min(values) + unit * (1 - part)))
            else:
                limits.append(Limit(resource=resource, low=max(values) - unit * (1 - part)))
        problem = problem.with_limits(limits)
    return problem


def check(problem, found):
    everything, ends = all_uses(problem), ends_of(problem)
    clash = [(end.resource, end.sign, end.value) for end in found.clash]
    assert set(clash) <= set(ends)
    assert clash
    assert not any(keeps(uses, clash) for uses in everything)
    for end in clash:
        rest = [other for other in clash if other != end]
        assert any(keeps(uses, rest) for uses in everything)

    assert [(one.end.resource, one.end.sign, one.end.value) for one in found.nearest] == ends
    for one, end in zip(found.nearest, ends, strict=True):
        resource, sign, _ = end
        unit = float(np.abs(problem.uses[:, problem.column(resource)]).max())
        alone = min(sign * uses[resource] for uses in everything)
        assert sign * one.alone == pytest.approx(alone, abs=1e-7 * unit)
        others = [other for other in ends if other != end]
        values = [sign * uses[resource] for uses in everything if keeps(uses, others)]
        assert (one.with_others is None) == (not values)
        if values:
            assert sign * one.with_others == pytest.approx(min(values), abs=1e-7 * unit)

    assert found.change > 0
    assert found.change == pytest.approx(least_change(problem), rel=1e-6)
    moved = 0.0
    for before, after in zip(problem.limits, found.relaxed, strict=True):
        assert before.resource == after.resource
        assert after.low <= before.low
        assert after.high >= before.high
        for old, new in ((before.low, after.low), (before.high, after.high)):
            if old != new:
                moved += abs(new - old) / size_of(problem, before.resource, old)
    assert moved == pytest.approx(found.change, rel=1e-9)
    relaxed = problem.with_limits(found.relaxed)
    assert found.result.outcome == "optimal"
    assert not broken_limits(relaxed, found.result.solution)


@pytest.mark.parametrize(("spans", "examples"), [(False, 30), (True, 8)])
def test_agrees_with_trying_everything(problems, spans, examples):
    @settings(deadline=None, max_examples=examples)
    @given(data=st.data())
    def agrees(data):
        problem = data.draw(infeasible(problems, spans=spans))
        assume(not any(not broken_limits(problem, make_solution(problem, one)) for one in every_solution(problem)))
        assume(not any(keeps(uses, ends_of(problem)) for uses in all_uses(problem)))
        check(problem, explain(problem))

    agrees()


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_the_cheapest_relaxation(problems, data):
    """Of problems with a solution too: they need none."""
    problem = data.draw(problems())
    relaxed, change = cheapest_relaxation(problem)
    assert change == pytest.approx(least_change(problem), rel=1e-6, abs=1e-9)
    loose = problem.with_limits(relaxed)
    assert any(not broken_limits(loose, make_solution(loose, choices)) for choices in every_solution(loose))
    if change == 0:
        assert relaxed == problem.limits


def test_what_clashes_is_told_from_what_does_not():
    problem = Problem(
        scores=np.array([0.0, 1.0, 0.0, 1.0]),
        uses=np.array([[4.0, 1.0, 7.0], [1.0, 3.0, 7.0], [4.0, 1.0, 7.0], [1.0, 3.0, 7.0]]),
        layers=np.array([0, 0, 1, 1]),
        names=("big", "slow", "big", "slow"),
        resources=("memory", "time", "other"),
        limits=(
            Limit(resource="memory", high=4.0),
            Limit(resource="other", high=20.0),
            Limit(resource="time", high=4.0),
        ),
    )
    found = explain(problem)
    assert {(end.resource, end.sign) for end in found.clash} == {("memory", 1), ("time", 1)}
    values = {one.end.resource: (one.with_others, one.alone) for one in found.nearest}
    assert values == {"memory": (5.0, 2.0), "time": (6.0, 2.0), "other": (None, 14.0)}
    assert found.change == pytest.approx(0.25)
    assert {limit.resource: limit.high for limit in found.relaxed} == {"memory": 5.0, "time": 4.0, "other": 20.0}
    assert found.result.solution.objective == 1.0


def test_both_ends_of_one_limit_clash(tiny):
    found = explain(tiny.with_limits((Limit(resource="memory", low=17, high=19),)))
    assert [(end.sign, end.value) for end in found.clash] == [(1, 19.0), (-1, 17.0)]
    assert [one.with_others for one in found.nearest] == [20.0, 16.0]
    assert found.change == pytest.approx(1 / 19)  # to 20; down to 16 would be 1 / 17
    assert found.relaxed == (Limit(resource="memory", low=17, high=20),)


def test_a_limit_that_clashes_with_itself(tiny):
    found = explain(tiny.with_limits((Limit(resource="memory", high=1.0),)))
    assert [(end.resource, end.value) for end in found.clash] == [("memory", 1.0)]
    assert found.nearest[0].alone == found.nearest[0].with_others == 2.0
    assert found.change == pytest.approx(1.0)


def test_a_limit_at_zero_is_counted_in_uses(tiny):
    found = explain(tiny.with_limits((Limit(resource="memory", high=0.0),)))
    assert found.change == pytest.approx(0.2)
    assert found.relaxed[0].high == 2.0


def test_nothing_to_explain(tiny):
    with pytest.raises(ValueError, match="the problem has a solution"):
        explain(tiny)


def test_choices_that_cannot_be_laid_side_by_side():
    problem = Problem(
        scores=np.zeros(2),
        uses=np.ones((2, 1)),
        layers=np.array([0, 1]),
        spans=np.array([2, 2]),
        names=("a", "b"),
        resources=("r",),
        limits=(Limit(resource="r", high=1.0),),
    )
    with pytest.raises(ValueError, match="no choices cover every layer"):
        explain(problem)
