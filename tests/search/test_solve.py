"""Exact search against trying everything, and against HiGHS where that is too much."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puzzlebench_search import solve as solving
from puzzlebench_search import states
from puzzlebench_search.brute_force import brute_force, every_solution
from puzzlebench_search.instances import hard_instance, served_instance
from puzzlebench_search.milp import solve_milp
from puzzlebench_search.problem import Limit, Problem, broken_limits, make_solution
from puzzlebench_search.solve import METHODS, price_bound, solve


def sign_of(problem):
    return 1.0 if problem.direction == "minimise" else -1.0


def tolerance(problem):
    """The search may miss what is better by 1e-9 of the bound or of the scale of scores."""
    return 2e-9 * problem.num_layers * float(np.abs(problem.scores).max())


def check(problem, result, best):
    """A result that was not stopped, against the best solution."""
    if best is None:
        assert result.outcome == "infeasible"
        assert result.solution is None
        assert result.gap is None
        assert sign_of(problem) * result.bound == math.inf
        return
    assert result.outcome == "optimal"
    assert result.solution == make_solution(problem, result.solution.choices)
    assert not broken_limits(problem, result.solution)
    assert result.solution.objective == pytest.approx(best.objective, abs=tolerance(problem))
    assert result.bound == result.solution.objective
    assert result.gap == 0
    assert sign_of(problem) * result.root_bound <= sign_of(problem) * best.objective + tolerance(problem)
    assert all(price > 0 for price in result.prices.values())
    assert 0 <= result.choices_left <= result.choices == len(problem.names)


@st.composite
def wild_problems(draw):
    """Scores and uses of very different sizes, layers that are alike, rows that are alike, limits hit exactly."""
    layers = draw(st.integers(1, 5))
    counts = [draw(st.integers(1, 4)) for _ in range(layers)]
    rows = draw(st.integers(0, 4))
    whole = draw(st.booleans())
    numbers = st.integers(-3, 9) if whole else st.floats(-1, 3, allow_subnormal=False).map(lambda x: round(x, 6))
    score_unit = draw(st.sampled_from([0.0, 1e-9, 1e-3, 1.0, 1e9]))
    units = np.array([draw(st.sampled_from([1e-4, 1.0, 1e11])) for _ in range(rows)])
    scores, uses = [], []
    for layer, count in enumerate(counts):
        if layer and draw(st.booleans()):  # like the layer before
            counts[layer] = counts[layer - 1]
            scores.append(scores[-1])
            uses.append(uses[-1])
            continue
        scores.append(score_unit * np.array([draw(numbers) for _ in range(count)], dtype=float))
        uses.append(np.array([[draw(numbers) for _ in range(rows)] for _ in range(count)]).reshape(count, rows) * units)
    scores, uses = np.concatenate(scores), np.concatenate(uses)
    if rows > 1 and draw(st.booleans()):
        near = draw(st.sampled_from([0.0, 1e-7, 1e-4]))  # above the tolerance of limits
        uses[:, 1:] = uses[:, :1] * (1 + near * np.arange(1, rows))
        units[:] = units[0]
    place = np.repeat(np.arange(layers), counts)
    base = np.array([draw(st.integers(-4, 4)) for _ in range(rows)], dtype=float) * units
    some = [int(draw(st.sampled_from(np.flatnonzero(place == layer).tolist()))) for layer in range(layers)]
    problem = Problem(
        scores=scores,
        uses=uses,
        layers=place,
        names=tuple(f"c{at}" for at in range(len(place))),
        resources=tuple(f"r{row}" for row in range(rows)),
        base=base,
        direction=draw(st.sampled_from(["minimise", "maximise"])),
    )
    hit = make_solution(problem, some).uses
    limits = []
    for row, unit in enumerate(units):
        value = hit[f"r{row}"] + unit * draw(st.sampled_from([0, 0, 0, 1, -1]))
        kind = draw(st.sampled_from(["equal", "high", "low", "wide", "none"]))
        if kind != "none":
            low = {"equal": value, "low": value, "high": -math.inf, "wide": value - 2 * unit}[kind]
            high = {"equal": value, "low": math.inf, "high": value, "wide": value + unit}[kind]
            limits.append(Limit(resource=f"r{row}", low=low, high=high))
    return problem.with_limits(limits)


@pytest.fixture
def small_steps(monkeypatch):
    """New prices and merging from the first states on."""
    monkeypatch.setattr(states, "_REFIT_AT", 2)
    monkeypatch.setattr(states, "_REFIT_GROWTH", 1.1)
    monkeypatch.setattr(states, "_MERGE_AT", 1)


@pytest.mark.parametrize("both_ends", [False, True])
def test_agrees_with_brute_force(problems, both_ends):
    @settings(deadline=None, max_examples=100)
    @given(problem=problems(both_ends=both_ends, most_layers=5))
    def agrees(problem):
        check(problem, solve(problem), brute_force(problem))

    agrees()


@settings(deadline=None, max_examples=120)
@given(problem=wild_problems())
def test_agrees_with_brute_force_on_wild_numbers(problem):
    check(problem, solve(problem), brute_force(problem))


BEAMS = [(1,), (2, 3), (1, 2, 4, 1_000_000)]


@pytest.mark.parametrize("beams", BEAMS)
def test_agrees_with_brute_force_with_narrow_beams(small_steps, monkeypatch, beams):
    """Truncated passes, new prices, merges, and HiGHS on what is left."""
    monkeypatch.setattr(solving, "_BEAMS", beams)
    monkeypatch.setattr(solving, "_FIRST_CHOICES", 1)

    @settings(deadline=None, max_examples=50)
    @given(problem=wild_problems())
    def agrees(problem):
        check(problem, solve(problem), brute_force(problem))

    agrees()


def random_problem(rng):
    """Where prices do not settle everything: hypothesis likes simpler ones."""
    layers, choices, rows = rng.integers(3, 6), rng.integers(2, 6), rng.integers(1, 5)
    kinds = rng.integers(layers, size=layers) if rng.uniform() < 0.3 else np.arange(layers)  # some layers alike
    uses = rng.uniform(-1, 5, (layers, choices, rows))[kinds].reshape(-1, rows) * 10.0 ** rng.integers(-4, 11, rows)
    scores = rng.normal(size=(layers, choices))[kinds].ravel() * 10.0 ** rng.integers(-9, 9)
    problem = Problem(
        scores=scores,
        uses=uses,
        layers=np.repeat(np.arange(layers), choices),
        names=tuple(f"c{at}" for at in range(len(scores))),
        resources=tuple(f"r{row}" for row in range(rows)),
        direction="minimise" if rng.uniform() < 0.5 else "maximise",
    )
    some = make_solution(problem, np.arange(layers) * choices + rng.integers(choices, size=layers)).uses
    limits = []
    for row in range(rows):
        name, size = f"r{row}", float(np.abs(uses[:, row]).max())
        high = some[name] + size * rng.choice([0, 0.05, -0.05])
        limits.append(Limit(resource=name, high=high, low=high - 0.5 * size if rng.uniform() < 0.4 else -math.inf))
    return problem.with_limits(limits)


@pytest.mark.parametrize("beams", BEAMS)
def test_agrees_with_brute_force_where_prices_leave_a_gap(small_steps, monkeypatch, beams):
    monkeypatch.setattr(solving, "_BEAMS", beams)
    solvers = []
    for seed in range(40):
        problem = random_problem(np.random.default_rng(seed))
        result = solve(problem)
        solvers.append(result.solver.split()[0])
        check(problem, result, brute_force(problem))
    assert solvers.count("HiGHS") > 5 or beams[-1] > 3
    assert solvers.count("exhaustive") > 5 or beams == (1,)


@pytest.mark.parametrize(("method", "examples"), [("highs", 80), ("cbc", 20)])
def test_every_method_agrees_with_brute_force(problems, monkeypatch, method, examples):
    monkeypatch.setattr(solving, "_BEAMS", (1,))

    @settings(deadline=None, max_examples=examples)
    @given(problem=problems())
    def agrees(problem):
        check(problem, solve(problem, method=method), brute_force(problem))

    agrees()


def test_the_solver_asked_for_proves(monkeypatch):
    monkeypatch.setattr(solving, "_BEAMS", (1,))
    problem = hard_instance(10, seed=4)
    results = {method: solve(problem, method=method) for method in METHODS}
    assert results["cbc"].solver.startswith("CBC")
    assert results["highs"].solver.startswith("HiGHS")
    assert len({result.solution and result.solution.choices for result in results.values()}) == 1


def test_spans_are_left_to_the_mip(problems):
    @settings(deadline=None, max_examples=50)
    @given(problem=problems(spans=True))
    def agrees(problem):
        result = solve(problem)
        check(problem, result, brute_force(problem))

    agrees()


@settings(deadline=None, max_examples=100)
@given(problem=wild_problems(), data=st.data())
def test_starts_change_nothing_but_the_way(problem, data):
    places = st.integers(-1, len(problem.names))
    starts = data.draw(st.lists(st.lists(places, max_size=problem.num_layers + 1), max_size=3))
    best = brute_force(problem)
    ways = list(every_solution(problem))
    starts += data.draw(st.lists(st.sampled_from(ways), max_size=2))
    if best is not None and data.draw(st.booleans()):
        starts.append(best.choices)
    check(problem, solve(problem, starts=starts), best)


def test_starts_with_layers_of_several_spans(problems):
    @settings(deadline=None, max_examples=30)
    @given(problem=problems(spans=True), data=st.data())
    def agrees(problem, data):
        ways = list(every_solution(problem))
        starts = data.draw(st.lists(st.sampled_from(ways), max_size=2)) if ways else []
        check(problem, solve(problem, starts=starts), brute_force(problem))

    agrees()


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_only_what_is_below(problems, data):
    problem = data.draw(problems())
    best = brute_force(problem)
    if best is None:
        return
    loss = sign_of(problem) * best.objective
    step = 0.5 * min((abs(score) for score in problem.scores.tolist() if score), default=1.0)
    check(problem, solve(problem, below=loss + step), best)
    for below in (loss, loss - step):
        nothing = solve(problem, below=below, starts=[best.choices])
        assert nothing.outcome == "infeasible"
        assert nothing.solution is None


@pytest.mark.parametrize("beams", [(1,), (2, 1_000_000)])
def test_only_what_is_below_with_narrow_beams(small_steps, monkeypatch, problems, beams):
    monkeypatch.setattr(solving, "_BEAMS", beams)

    @settings(deadline=None, max_examples=50)
    @given(problem=problems())
    def agrees(problem):
        best = brute_force(problem)
        if best is None:
            return
        loss = sign_of(problem) * best.objective
        step = 0.5 * min((abs(score) for score in problem.scores.tolist() if score), default=1.0)
        check(problem, solve(problem, below=loss + step), best)
        assert solve(problem, below=loss).outcome == "infeasible"

    agrees()


@settings(deadline=None, max_examples=120)
@given(problem=wild_problems(), data=st.data())
def test_any_prices_bound_from_below(problem, data):
    best = brute_force(problem)
    if best is None:
        return
    prices = {}
    for limit in problem.limits:
        for sign in (1, -1):
            power = data.draw(st.one_of(st.none(), st.integers(-12, 15)))
            if power is not None:
                prices[limit.resource, sign] = 10.0**power
    prices["another", 1] = 1.0
    loss = sign_of(problem) * best.objective
    assert price_bound(problem, prices) <= loss + 1e-13 * max(abs(loss), tolerance(problem))


def test_own_prices_give_the_root_bound():
    for seed in range(3):
        problem = served_instance(20, seed=seed)
        result = solve(problem)
        assert result.prices
        assert price_bound(problem, result.prices) == pytest.approx(result.root_bound, rel=1e-6)
        assert price_bound(problem, {end: -price for end, price in result.prices.items()}) <= result.root_bound


def test_prices_say_what_more_room_gains():
    problem = served_instance(40, seed=2)
    result = solve(problem)
    (resource, _), price = max(result.prices.items(), key=lambda one: one[1] * problem.limits[0].high)
    wider = [
        Limit(resource=limit.resource, high=limit.high * (1.02 if limit.resource == resource else 1))
        for limit in problem.limits
    ]
    gained = result.solution.objective - solve(problem.with_limits(wider)).solution.objective
    room = 0.02 * next(limit.high for limit in problem.limits if limit.resource == resource)
    assert 0 < gained < 1.2 * price * room


def test_prices_bound_nothing_where_choices_span_layers():
    problem = Problem(
        scores=np.zeros(1), uses=np.zeros((1, 0)), layers=np.array([0]), spans=np.array([2]), names=("a",), resources=()
    )
    assert price_bound(problem, {}) == -math.inf


@settings(deadline=None, max_examples=40)
@given(problem=wild_problems())
def test_the_same_again(problem):
    first, second = solve(problem), solve(problem)
    assert first.solution == second.solution
    assert (first.outcome, first.bound, first.root_bound) == (second.outcome, second.bound, second.root_bound)
    assert (first.prices, first.states, first.choices_left) == (second.prices, second.states, second.choices_left)


@pytest.mark.parametrize("instance", [served_instance, hard_instance])
@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_highs_on_twenty_layers(instance, seed):
    whole = instance(20, seed=seed)
    keep = np.random.default_rng(seed).uniform(size=len(whole.names)) < 12 / 54
    keep |= np.isin(np.arange(len(whole.names)) % 54, (0, 53))
    problem = whole.only(keep)
    referee = solve_milp(problem, time_limit=20)
    assert referee.outcome != "stopped"
    check(problem, solve(problem), referee.solution)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_highs_on_eighty_layers(seed):
    problem = served_instance(seed=seed)
    problem = problem.with_limits(problem.limits[: 1 + seed % 2])
    referee = solve_milp(problem, time_limit=20)
    assert referee.outcome == "optimal"
    check(problem, solve(problem), referee.solution)


@pytest.mark.parametrize("seed", range(3))
def test_both_directions_and_shifted_scores_are_the_same_search(seed):
    problem = served_instance(seed=seed)
    best = solve(problem).solution
    turned = solve(problem.with_scores(-problem.scores, "maximise"))
    assert turned.solution.choices == best.choices
    assert turned.bound == -best.objective
    assert turned.root_bound >= turned.bound
    shifted = solve(problem.with_scores(problem.scores + 1.0, "minimise"))
    assert shifted.solution.objective == pytest.approx(best.objective + problem.num_layers, rel=1e-9)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_units_do_not_matter(seed, unit):
    problem = served_instance(40, seed=seed)
    scaled = Problem(
        scores=problem.scores * unit,
        uses=problem.uses * np.array([unit, 1.0, 1 / unit, 1.0]),
        layers=problem.layers,
        names=problem.names,
        resources=problem.resources,
        limits=tuple(
            Limit(resource=limit.resource, high=limit.high * by)
            for limit, by in zip(problem.limits, [unit, 1.0, 1 / unit, 1.0], strict=True)
        ),
    )
    assert solve(scaled).solution.choices == solve(problem).solution.choices


@pytest.mark.parametrize("seconds", [0.0, 1e-6, 0.05])
@pytest.mark.parametrize("method", METHODS)
def test_stopped_by_the_time_limit(method, seconds):
    problem = hard_instance(seed=0)
    started = time.perf_counter()
    result = solve(problem, method=method, time_limit=seconds)
    assert time.perf_counter() - started < 20  # hours without the limit; this is only not to hang
    assert result.outcome == "stopped" or seconds == 0.05  # which may do for a fast machine
    assert math.isfinite(result.bound)
    if result.solution is not None:
        assert not broken_limits(problem, result.solution)
        assert result.bound <= result.solution.objective
        assert result.gap > 0 or result.outcome == "optimal"


@settings(deadline=None, max_examples=60)
@given(problem=wild_problems(), seconds=st.sampled_from([0.0, 1e-9, 1e-3]))
def test_a_time_limit_never_makes_false_claims(problem, seconds):
    best = brute_force(problem)
    result = solve(problem, time_limit=seconds)
    if result.outcome != "stopped":
        check(problem, result, best)
        return
    sign = sign_of(problem)
    if best is not None:
        assert sign * result.bound <= sign * best.objective + tolerance(problem)
    if result.solution is not None:
        assert not broken_limits(problem, result.solution)


def test_stopped_with_a_start():
    hard = hard_instance(seed=0)
    least = np.argmin(hard.uses[:54] @ (1 / np.array([one.high for one in hard.limits])))
    start = np.arange(80) * 54 + least
    result = solve(hard, time_limit=0.0, starts=[start])
    assert result.outcome == "stopped"
    assert result.bound < result.solution.objective <= make_solution(hard, start).objective


def one_row(scores, uses, layers, low=-math.inf, high=math.inf, base=0.0):
    return Problem(
        scores=np.array(scores, dtype=float),
        uses=np.array(uses, dtype=float)[:, None],
        layers=np.array(layers),
        names=tuple(f"c{place}" for place in range(len(layers))),
        resources=("r",),
        limits=(Limit(resource="r", low=low, high=high),),
        base=np.array([base]),
    )


def test_fractions_would_keep_the_limit_but_choices_cannot():
    problem = one_row([0, 1] * 8, [0, 2] * 8, np.repeat(np.arange(8), 2), low=7, high=7)
    assert solve(problem).outcome == "infeasible"
    assert solve(problem.with_limits((Limit(resource="r", low=8, high=8),))).solution.objective == 4


def test_broken_by_bounds():
    problem = one_row([0, 1, 0, 1], [1, 2, 1, 2], [0, 0, 1, 1], high=1.5)
    result = solve(problem)
    assert result.outcome == "infeasible"
    assert result.solver == "bounds"
    assert result.bound == math.inf


def test_sums_that_are_rounded_on_the_way():
    """Uses that cancel exactly; adding them one by one does not."""
    for uses in ([0.1, 0.2, -0.1, -0.2], [1e11, 0.1, -1e11, -0.1]):
        for ends in ({"high": 0.0}, {"low": 0.0}, {"low": 0.0, "high": 0.0}):
            assert solve(one_row(np.zeros(4), uses, np.arange(4), **ends)).outcome == "optimal"
        assert solve(one_row(np.zeros(4), uses, np.arange(4), high=-1e-3)).outcome == "infeasible"


@pytest.mark.parametrize("direction", ["minimise", "maximise"])
def test_what_is_used_whatever_is_chosen_dwarfs_the_limit(direction):
    """All but a ten billionth of the uses cancels; what is left decides."""
    problem = one_row([0, 1, 3, 5], [2e-3, 1e-3, 0, -1e-3], [0] * 4, high=0.5e-3, base=0.0)
    huge = problem.with_resource("s", problem.uses[:, 0] + 1e7, Limit(resource="s", high=0.5e-3), -1e7)
    huge = huge.with_scores(problem.scores, direction)
    check(huge, solve(huge), brute_force(huge))


def test_a_single_solution_between_many_equalities():
    """Prices go through the roof where fractions have hardly more room than the choices."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        layers, choices, rows = 6, 4, 4
        uses = np.round(rng.uniform(0, 9, (layers * choices, rows)), 3)
        some = np.arange(layers) * choices + rng.integers(choices, size=layers)
        total = make_solution(
            Problem(
                scores=np.zeros(len(uses)),
                uses=uses,
                layers=np.repeat(np.arange(layers), choices),
                names=tuple(map(str, range(len(uses)))),
                resources=tuple("abcd"),
            ),
            some,
        ).uses
        problem = Problem(
            scores=rng.normal(size=len(uses)),
            uses=uses,
            layers=np.repeat(np.arange(layers), choices),
            names=tuple(map(str, range(len(uses)))),
            resources=tuple("abcd"),
            limits=tuple(Limit(resource=name, low=value, high=value) for name, value in total.items()),
        )
        result = solve(problem)
        assert result.outcome == "optimal"
        assert result.solution.choices == tuple(some)
        again = solve(problem, starts=[some])
        assert again.solution.choices == tuple(some)


def test_the_worst_of_every_layer_is_the_only_solution():
    """The bound is then as high as any solution's loss."""
    for unit in (1e-9, 1.0, 1e9):
        problem = one_row(unit * np.tile([0, 1, 2], 30), np.tile([2, 1, 0], 30), np.repeat(np.arange(30), 3), high=0)
        assert solve(problem).solution.objective == pytest.approx(60 * unit)
        problem = problem.with_limits((Limit(resource="r", high=1),))
        assert solve(problem).solution.objective == pytest.approx(59 * unit)


@pytest.mark.parametrize("method", METHODS)
def test_layers_that_are_alike(monkeypatch, method):
    """Counted together by the MIP, whose counts have to be dealt out to the layers again."""
    problem = one_row(np.tile([0, 1, 3], 6), np.tile([3, 2, 0], 6), np.repeat(np.arange(6), 3), high=9.5)
    for beams in ((1,), (1_000_000,)):
        monkeypatch.setattr(solving, "_BEAMS", beams)
        check(problem, solve(problem, method=method), brute_force(problem))
        check(problem, solve(problem, method=method), solve_milp(problem).solution)


@pytest.mark.parametrize("method", METHODS)
def test_a_limit_hit_exactly_below_a_bound(monkeypatch, method):
    """CBC's preprocessing takes this away."""
    monkeypatch.setattr(solving, "_BEAMS", (1,))
    uses = [0, 0.002, 0, 0, 0.003, 0.004, 0.004, 0]
    problem = one_row([0, 0, 6, 6, 4, 0, 0, 2], uses, [0, 1, 1, 1, 2, 2, 2, 3], high=0.005)
    problem = problem.with_resource("s", np.zeros(8), Limit(resource="s", high=0))
    assert solve(problem, method=method).solution.objective == 6
    assert solve_milp(problem, solver="cbc", below=8.1).solution.objective == 6


def test_a_mip_with_next_to_nothing_between_what_is_used_anyway_and_the_limit():
    problem = Problem(
        scores=np.zeros(3),
        uses=np.array([[0.007], [0.0], [-0.001]]),
        layers=np.array([0, 0, 1]),
        spans=np.array([1, 2, 1]),
        names=tuple("abc"),
        resources=("r",),
        limits=(Limit(resource="r", low=0.0010000000000000009),),
        base=np.array([0.001]),
    )
    for solver in ("highs", "cbc"):
        assert solve_milp(problem, solver=solver).solution.objective == brute_force(problem).objective


def test_one_layer_one_choice_no_limits(tiny):
    free = solve(tiny.with_limits(()))
    assert free.solution.choices == (0, 3)
    assert free.prices == {}
    single = Problem(scores=np.array([2.0]), uses=np.zeros((1, 0)), layers=np.array([0]), names=("only",), resources=())
    assert solve(single).solution.objective == 2


def test_unknown_method(tiny):
    with pytest.raises(ValueError, match="no solver is named 'gurobi'; there are auto, highs, cbc"):
        solve(tiny, method="gurobi")
