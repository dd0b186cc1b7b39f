"""The best of several problems, with and without what earlier searches left."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puzzlebench_search import solve as solving
from puzzlebench_search.brute_force import brute_force
from puzzlebench_search.cases import Memory, solve_cases
from puzzlebench_search.instances import hard_instance, served_instance
from puzzlebench_search.problem import Limit, Problem, broken_limits
from puzzlebench_search.solve import solve


def losses_of(problems):
    """The best loss of each, infinite without a solution."""
    found = [(problem, brute_force(problem)) for problem in problems]
    return [
        math.inf if best is None else (best.objective if problem.direction == "minimise" else -best.objective)
        for problem, best in found
    ]


def check(problems, result, losses, direction):
    sign = 1.0 if direction == "minimise" else -1.0
    unit = max((float(np.abs(problem.scores).max()) for problem in problems), default=1.0) or 1.0
    least = min(losses, default=math.inf)
    assert len(result.outcomes) == len(problems)
    assert result.proven
    assert result.infeasible == math.isinf(least)
    if math.isinf(least):
        assert result.best is None
        assert result.result is None
        return
    assert sign * result.result.solution.objective == pytest.approx(least, abs=1e-8 * unit)
    assert losses[result.best] == pytest.approx(least, abs=1e-8 * unit)
    assert not broken_limits(problems[result.best], result.result.solution)
    for place, (outcome, loss) in enumerate(zip(result.outcomes, losses, strict=True)):
        assert (outcome.status == "best") == (place == result.best)
        assert sign * outcome.bound <= loss + 1e-8 * unit
        if outcome.status == "infeasible":
            assert math.isinf(loss)
        if outcome.status in ("skipped", "no better"):
            assert sign * outcome.bound >= least - 1e-8 * unit
        if outcome.status == "solved":
            assert math.isfinite(loss)


@st.composite
def like_problems(draw, problems, most=4):
    """The same choices, with other scores and limits."""
    problem = draw(problems())
    made = [problem]
    for _ in range(draw(st.integers(0, most - 1))):
        moved = problem
        if draw(st.booleans()):
            moved = moved.with_scores(np.roll(problem.scores, draw(st.integers(0, 3))), problem.direction)
        made.append(moved.with_limits([moved_limit(draw, problem, limit) for limit in problem.limits]))
    return made


def moved_limit(draw, problem, limit):
    unit = float(np.abs(problem.uses[:, problem.column(limit.resource)]).max()) or 1.0
    by = unit * draw(st.sampled_from([-0.5, -0.25, 0.0, 0.25, 1.0]))
    return Limit(resource=limit.resource, low=limit.low + by, high=limit.high + by)


def test_the_best_of_all(problems):
    @settings(deadline=None, max_examples=100)
    @given(made=like_problems(problems))
    def agrees(made):
        check(made, solve_cases(made), losses_of(made), made[0].direction)

    agrees()


def test_the_best_of_all_where_choices_span_layers(problems):
    @settings(deadline=None, max_examples=40)
    @given(data=st.data())
    def agrees(data):
        made = data.draw(like_problems(lambda: problems(spans=True)))
        check(made, solve_cases(made), losses_of(made), made[0].direction)

    agrees()


def test_a_sweep_with_one_memory(problems):
    @settings(deadline=None, max_examples=60)
    @given(data=st.data())
    def agrees(data):
        memory = Memory()
        for made in [data.draw(like_problems(problems, most=3))] * 2 + [data.draw(like_problems(problems, most=3))]:
            check(made, solve_cases(made, memory=memory), losses_of(made), made[0].direction)

    agrees()


def test_moving_limits_with_one_memory(problems):
    """As a Pareto sweep does, up and down; against searches that know nothing of one another."""

    @settings(deadline=None, max_examples=60)
    @given(data=st.data())
    def agrees(data):
        problem, memory = data.draw(problems()), Memory()
        for _ in range(data.draw(st.integers(1, 5))):
            moved = problem.with_limits([moved_limit(data.draw, problem, limit) for limit in problem.limits])
            found, fresh = solve_cases([moved], memory=memory), solve(moved)
            check([moved], found, losses_of([moved]), moved.direction)
            assert found.infeasible == (fresh.solution is None)
            if fresh.solution is not None:
                unit = float(np.abs(problem.scores).max())
                assert found.result.solution.objective == pytest.approx(fresh.solution.objective, abs=1e-8 * unit)

    agrees()


def test_a_sweep_of_real_shape():
    """Names like those of a real search: a choice has its layer in it."""
    whole = served_instance(30, seed=5)
    names = tuple(f"{layer}:{name}" for layer, name in zip(whole.layers, whole.names, strict=True))
    memory = Memory()
    for part in (1.0, 0.98, 0.99, 0.995):
        made = []
        for cost in (1.0, 1.003, 0.999):
            problem = Problem(
                scores=whole.scores,
                uses=whole.uses * cost,
                layers=whole.layers,
                names=names,
                resources=whole.resources,
                limits=tuple(Limit(resource=one.resource, high=one.high * part) for one in whole.limits),
            )
            made.append(problem)
        found = solve_cases(made, memory=memory)
        alone = [solve(problem).solution.objective for problem in made]
        assert found.result.solution.objective == pytest.approx(min(alone), rel=1e-9)
        assert alone[found.best] == pytest.approx(min(alone), rel=1e-9)
        assert found.proven
    assert len(memory.solutions) > 1
    assert memory.prices
    assert all(sorted(start) == start for start in memory.starts(made[0]))


def test_prices_of_one_spare_the_search_of_another():
    problem = served_instance(20, seed=1)
    tighter = problem.with_limits([Limit(resource=one.resource, high=0.9 * one.high) for one in problem.limits])
    searched = []

    def search(place, below, left):
        searched.append(place)
        return solve([problem, tighter][place], below=below, time_limit=left)

    result = solve_cases([problem, tighter], search=search)
    assert searched == [0]
    assert result.best == 0
    assert [one.status for one in result.outcomes] == ["best", "skipped"]
    assert result.outcomes[1].bound > result.result.solution.objective


def test_what_the_search_is_given(tiny):
    calls, told = [], []
    second = tiny.with_scores(tiny.scores - 1, "minimise")

    def search(place, below, left):
        calls.append((place, below))
        assert 0 < left <= 100
        return solve([tiny, second][place], below=below)

    result = solve_cases([tiny, second], search=search, time_limit=100, report=lambda *one: told.append(one))
    assert calls[0] == (0, math.inf)
    assert calls[1] == (1, brute_force(tiny).objective)
    assert told == [(1, 2), (2, 2)]
    assert result.best == 1
    assert [one.status for one in result.outcomes] == ["solved", "best"]


def test_stopped_is_not_forgotten():
    """A case that the time limit stopped stays so although another is better than what it had."""
    hard = hard_instance(seed=0)
    loose = hard.with_limits([Limit(resource=one.resource, high=1.3 * one.high) for one in hard.limits])
    stopped = solve(hard.with_limits(hard.limits[:1]))

    def search(place, below, left):
        if place == 0:  # as if stopped, with a solution
            return solving.Result(
                **{name: getattr(stopped, name) for name in stopped.__dataclass_fields__}
                | {"outcome": "stopped", "bound": -1.0, "prices": {}}
            )
        return solve(loose.with_scores(loose.scores * 0.5, "minimise"), below=below)

    result = solve_cases([hard, loose], search=search)
    assert result.best == 1
    assert not result.proven
    assert result.outcomes[0].status == "stopped"
    assert result.outcomes[0].bound == -1.0


def test_a_time_limit_for_all():
    hard = hard_instance(seed=0)
    result = solve_cases([hard, hard], time_limit=0.0)
    assert not result.proven
    assert not result.infeasible
    assert {one.status for one in result.outcomes} == {"stopped"}
    for one in result.outcomes:
        assert math.isfinite(one.bound)


def test_no_better_is_not_infeasible(tiny):
    worse = tiny.with_scores(tiny.scores + 5, "minimise")
    result = solve_cases([tiny, worse])
    assert result.outcomes[1].status in ("skipped", "no better")
    spanning = Problem(
        scores=np.array([50.0]),
        uses=np.array([[1.0]]),
        layers=np.array([0]),
        spans=np.array([2]),
        names=("both",),
        resources=("memory",),
    )
    broken = tiny.with_limits((Limit(resource="memory", high=1.0),))
    result = solve_cases([tiny, spanning, broken])
    assert result.best == 0
    assert result.outcomes[1].status in ("solved", "no better")
    assert result.outcomes[2].status in ("skipped", "infeasible")
    result = solve_cases([broken, broken])
    assert result.infeasible
    assert {(one.status, one.bound) for one in result.outcomes} == {("infeasible", math.inf)}


def test_no_problems():
    result = solve_cases([])
    assert result.best is None
    assert result.outcomes == ()


def test_memory_of_other_choices_is_of_no_use(tiny):
    memory = Memory()
    memory.keep(tiny, solve(tiny))
    assert memory.solutions == [tuple(tiny.names[choice] for choice in solve(tiny).solution.choices)]
    assert memory.starts(hard_instance(2, seed=0)) == []
    assert Memory().starts(tiny) == []
    assert Memory().bound(tiny) == -math.inf
    assert memory.bound(tiny) <= brute_force(tiny).objective
    memory.keep(tiny, solve(tiny))
    assert len(memory.solutions) == 1
