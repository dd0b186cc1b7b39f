"""Fronts against every architecture at every batch size, counted by `recheck`."""

import csv
import functools
import io
import itertools
import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

from puzzlebench.model.blocks import Architecture, architecture_from_json, block_name, parse_block
from puzzlebench.scores import ScoreTable
from puzzlebench.searching.costs import load_costs
from puzzlebench.searching.pareto import axis_names, front_csv, front_json, pareto
from puzzlebench.searching.recheck import recheck
from puzzlebench.searching.scenarios import parse_scenario
from puzzlebench_search.robust import Errors, with_margin

from .conftest import limits, scores_of

BLOCKS = (
    ("gqa_8+mlp_14336", "gqa_2+mlp_14336", "no_op+mlp_7168", "linear+no_op"),
    ("gqa_8+mlp_14336", "gqa_8+no_op", "gqa_1+mlp_7168", "no_op+no_op"),
    ("gqa_8+mlp_14336", "linear+mlp_7168", "no_op+mlp_14336", "no_op+linear"),
    ("gqa_8+mlp_14336", "gqa_4+mlp_7168", "no_op+linear"),
)
ONE = ("512+64",)
TWO = ("long:512+64", "short:128+32")
REL = 1e-9


@dataclass(frozen=True)
class Everything:
    """All architectures at all batch sizes, and what each is worth."""

    costs: object
    table: object
    scores: object
    columns: dict  # by name, one value for each (batch size, architecture)

    def column(self, name):
        return self.columns[name]


def made_up_scores(world, direction, *, steps=None):
    """Random, 0 for the parent's blocks; on a grid of `steps` where ties are wanted."""
    table = scores_of(world, BLOCKS)
    frame = table.frame.copy()
    rng = np.random.default_rng(5)
    score = rng.lognormal(0, 1, len(frame))
    if steps:
        score = np.round(score * steps) / steps
    score[frame["block"] == "gqa_8+mlp_14336"] = 0
    frame["score"] = score if direction == "minimise" else -score
    return ScoreTable(frame=frame, metadata=table.metadata | {"metric": "made up", "direction": direction})


@pytest.fixture(scope="module")
def make(llama):
    """A function that makes the search and counts everything in it; costs are counted once."""

    @functools.cache
    def counted(texts):
        scenarios, rows = [parse_scenario(text) for text in texts], []
        for batch_size, names in itertools.product((1, 4, 16), itertools.product(*BLOCKS)):
            architecture = Architecture(blocks=tuple(parse_block(name) for name in names))
            rows.append(
                (batch_size, names, recheck(llama.table, llama.spec, architecture, scenarios, batch_size).values)
            )
        return rows

    def make(texts=ONE, direction="minimise", steps=None, asked=(), batch_sizes=(1, 4, 16)):
        scores = made_up_scores(llama, direction, steps=steps)
        costs = load_costs(llama.table, scores, [parse_scenario(text) for text in texts], limits=limits(*asked))
        single = {(row.layer, row.block): row.score for row in scores.frame.itertuples()}
        rows = [row for row in counted(texts) if row[0] in batch_sizes]
        columns = {name: np.array([values[name] for _, _, values in rows]) for name in rows[0][2]}
        columns["score"] = np.array([math.fsum(single[at] for at in enumerate(names)) for _, names, _ in rows])
        return Everything(costs=costs, table=llama.table, scores=scores, columns=columns)

    return make


def expected(world, keeps, x, y, points):
    """The (x, y) of every budget, by looking at all there is."""
    signs = [-1.0 if is_high(world, name) else 1.0 for name in (x, y)]
    xs, ys = (sign * world.column(name)[keeps] for sign, name in zip(signs, (x, y), strict=True))

    def best(most):
        inside = xs <= most + REL * abs(most)
        lowest = ys[inside].min()
        return xs[inside & (ys <= lowest + REL * abs(lowest))].min(), lowest

    start, end = best(np.inf)[0], xs.min()
    spaced = np.linspace if x == "score" else np.geomspace
    found = [best(budget) for budget in spaced(start, end, points)]
    front = {(float(f"{signs[0] * a:.9g}"), float(f"{signs[1] * b:.9g}")) for a, b in found}
    return sorted(front)


def is_high(world, name):
    return world.scores.direction == "maximise" if name == "score" else name.startswith("throughput")


def traced(world, x, y, points=20, batch_sizes=(1, 4, 16), **options):
    return pareto(world.costs, batch_sizes, x, y, table=world.table, points=points, **options)


def pairs_of(front):
    return [(float(f"{point.x:.9g}"), float(f"{point.y:.9g}")) for point in front.points]


def within(world, resource, low=None, high=None):
    values = world.column(resource)
    keeps = np.ones(len(values), dtype=bool)
    if high is not None:
        keeps &= values <= high * (1 + REL)
    if low is not None:
        keeps &= values >= low * (1 - REL)
    return keeps


AIMS = ("score", "memory", "params", "ttft", "tpot", "latency", "throughput")


@pytest.mark.parametrize(("x", "y"), list(itertools.permutations(AIMS, 2)))
def test_every_pair_of_aims(make, x, y):
    world = make()
    front = traced(world, x, y)
    assert pairs_of(front) == expected(world, slice(None), x, y, 20)
    assert front.proven
    assert (front.x_better == "high", front.y_better == "high") == (x == "throughput", y == "throughput")


@pytest.mark.parametrize("direction", ["minimise", "maximise"])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(("x", "y"), [("throughput", "score"), ("score", "memory"), ("params", "score")])
def test_ties_and_directions(make, x, y, steps, direction):
    """Many architectures have the same score here: the best x of them is wanted."""
    world = make(direction=direction, steps=steps)
    assert pairs_of(traced(world, x, y)) == expected(world, slice(None), x, y, 20)


@pytest.mark.parametrize(("x", "y"), [("throughput", "score"), ("memory", "score"), ("latency", "throughput")])
@pytest.mark.parametrize(
    ("resource", "side", "share"),
    [
        ("memory", "high", 0.3),
        ("memory", "low", 0.6),
        ("throughput", "low", 0.7),
        ("throughput", "high", 0.6),
        ("latency", "high", 0.4),
        ("params", "low", 0.5),
        ("ttft", "low", 0.3),
    ],
)
def test_limits_hold_for_every_point(make, x, y, resource, side, share):
    free = make()
    end = float(np.quantile(free.column(resource), share))
    name = f"{'max' if side == 'high' else 'min'}-{resource}"
    unit = {"latency": "s", "ttft": "s"}.get(resource, "")
    world = make(asked=(f"{name}={end:.6g}{unit}",))
    (limit,) = world.costs.limits
    keeps = within(world, resource, limit.low, limit.high)
    front = traced(world, x, y)
    assert pairs_of(front) == expected(world, keeps, x, y, 20)
    for point in front.points:
        assert (limit.low or 0) * (1 - REL) <= point.values[resource] <= (limit.high or np.inf) * (1 + REL)


def test_two_limits_on_the_memory_of_two_scenarios(make):
    free = make(TWO)
    high = int(np.quantile(free.column("memory[long]"), 0.35))
    rate = float(np.quantile(free.column("throughput[short]"), 0.3))
    world = make(TWO, asked=(f"max-memory={high}", f"min-throughput={rate:.6g}"))
    rate = world.costs.limits[1].low
    keeps = np.logical_and.reduce(
        [within(world, f"memory[{name}]", high=high) for name in ("long", "short")]
        + [within(world, f"throughput[{name}]", low=rate) for name in ("long", "short")]
    )
    for x, y in (("throughput[short]", "score"), ("memory[short]", "ttft[long]"), ("score", "memory[long]")):
        assert pairs_of(traced(world, x, y)) == expected(world, keeps, x, y, 20)


@pytest.mark.parametrize("points", [2, 3, 50])
def test_points_and_batch_sizes_are_as_asked(make, points):
    world = make(batch_sizes=(4,))
    front = traced(world, "throughput", "score", points, batch_sizes=(4,))
    assert pairs_of(front) == expected(world, slice(None), "throughput", "score", points)
    assert {point.batch_size for point in front.points} == {4}
    assert len(front.points) + len(front.skipped) == points
    assert all(one.reason == "same point" for one in front.skipped)


def test_every_point_says_what_it_takes(llama, make):
    world = make()
    front = traced(world, "memory", "score")
    assert [point.x for point in front.points] == sorted(point.x for point in front.points)
    for point in front.points:
        scenario = world.costs.scenarios
        values = recheck(llama.table, llama.spec, point.architecture, scenario, point.batch_size).values
        assert {name: value for name, value in point.values.items() if name != "score"} == values
        names = [block_name(block) for block in point.architecture.blocks]
        assert point.values["score"] == pytest.approx(
            sum(world.scores.score_of(layer, name) for layer, name in enumerate(names)), abs=1e-12
        )
        assert (point.x, point.y) == (point.values["memory"], point.values["score"])
        assert point.x <= point.budget * (1 + REL)
        assert point.proven


def test_no_point_beats_another(make):
    world = make(steps=2)
    front = traced(world, "throughput", "score", points=40)
    for one, other in itertools.permutations(front.points, 2):
        assert not (one.x >= other.x and one.y <= other.y)


def test_one_architecture_best_in_both(make):
    """Then the front is one point."""
    world = make()
    front = traced(world, "memory", "params")
    assert len(front.points) == 1
    assert front.points[0].budget == pytest.approx(front.points[0].x)


def test_margin_is_kept_by_limits_and_not_counted(make):
    middle = traced(make(), "throughput", "score").points[4]
    world = make(asked=(f"min-throughput={middle.x * (1 - 1e-6):.12g}",))

    def safe(case):
        errors = Errors(
            upper=case.upper_sd, lower=case.lower_sd, base_upper=case.base_upper_sd, base_lower=case.base_lower_sd
        )
        return with_margin(case.problem, errors, 0.95)

    plain, sure = traced(world, "throughput", "score"), traced(world, "throughput", "score", margin=safe)
    assert plain.points[0].x == pytest.approx(middle.x, rel=REL)
    assert sure.points[0].x > 1.005 * middle.x
    assert {point.architecture for point in sure.points} & {point.architecture for point in plain.points}
    for point in sure.points:
        values = recheck(
            world.table, world.costs.spec, point.architecture, world.costs.scenarios, point.batch_size
        ).values
        assert point.x == values["throughput"]


def test_refuses_what_cannot_be(make):
    world = make()
    with pytest.raises(ValueError, match="both score"):
        traced(world, "score", "score")
    with pytest.raises(ValueError, match="no axis 'memroy'; did you mean memory"):
        traced(world, "memroy", "score")
    with pytest.raises(ValueError, match="at least 2 points, not 1"):
        traced(world, "memory", "score", points=1)
    for sizes in ((), (4, 4)):
        with pytest.raises(ValueError, match="each once"):
            traced(world, "memory", "score", batch_sizes=sizes)
    with pytest.raises(ValueError, match="3"):
        traced(world, "memory", "score", batch_sizes=(3,))
    two = make(TWO)
    with pytest.raises(ValueError, match=r"did you mean ttft\[long\], ttft\[short\]\?"):
        traced(two, "ttft", "score")
    assert axis_names(world.costs) == ("score", "params", "memory", "ttft", "tpot", "latency", "throughput")


@pytest.mark.parametrize("asked", ["max-memory=1MiB", "min-throughput=1e9"])
def test_nothing_keeps_the_limits(make, asked):
    with pytest.raises(ValueError, match=r"^no architecture keeps the limits; `puzzlebench search`"):
        traced(make(asked=(asked,)), "throughput", "score")


def test_no_time(make):
    with pytest.raises(ValueError, match="in time"):
        traced(make(), "throughput", "score", time_limit=0.0)


def test_what_time_cuts_off_is_said(make, monkeypatch):
    """Every third search ends without a proof: what is called proven is so all the same."""
    from puzzlebench.searching import case_pool as module

    calls, solve = itertools.count(), module.solve

    def hurried(problem, **options):
        result = solve(problem, **options)
        return replace(result, outcome="stopped") if next(calls) % 3 == 2 else result

    monkeypatch.setattr(module, "solve", hurried)
    world = make()
    front = traced(world, "throughput", "score")
    assert not front.proven
    assert len(front.points) + len(front.skipped) == 20
    assert {point.proven for point in front.points} == {True, False}
    for point in front.points:
        inside = world.column("score")[within(world, "throughput", low=point.budget)]
        assert point.y >= inside.min() * (1 - REL)
        if point.proven:
            assert point.y == pytest.approx(inside.min(), rel=REL)


def test_progress(make):
    told = []
    traced(make(), "memory", "score", points=4, report=lambda share, stage: told.append((share, stage)))
    assert told[0] == (0, "budget 1 of 4")
    assert told[-1] == (1, "budget 4 of 4")
    assert [share for share, _ in told] == sorted(share for share, _ in told)


def test_json_and_csv(make):
    front = traced(make(), "throughput", "score", points=5)
    plain = json.loads(json.dumps(front_json(front)))
    assert (plain["x"], plain["y"], plain["x_better"], plain["y_better"]) == ("throughput", "score", "high", "low")
    assert plain["provenance"].startswith("h100_sxm, trtllm ")
    rows = list(csv.DictReader(io.StringIO(front_csv(front))))
    assert len(rows) == len(plain["points"]) == len(front.points)
    for row, written, point in zip(rows, plain["points"], front.points, strict=True):
        assert architecture_from_json(written["architecture"]) == point.architecture
        assert json.loads(row["blocks"]) == [block_name(block) for block in point.architecture.blocks]
        assert int(row["batch_size"]) == written["batch_size"] == point.batch_size
        assert float(row["x"]) == float(row["throughput"]) == written["x"] == point.x
        assert {name: float(row[name]) for name in point.values} == written["values"] == point.values
        assert row["proven"] == "true"
