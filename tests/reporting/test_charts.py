"""What charts draw: the right number of marks at the right places, and what they say."""

import re
import xml.etree.ElementTree as ET

import pytest

from puzzlebench.estimate import Interval
from puzzlebench.model.blocks import block_name
from puzzlebench.reporting.charts.bars import draw_bars
from puzzlebench.reporting.charts.curves import draw_curves, thinned
from puzzlebench.reporting.charts.dots import Dot, Row, draw_dots
from puzzlebench.reporting.charts.front import draw_front, kind_of
from puzzlebench.reporting.charts.heat import STEPS, draw_heat, heat_of
from puzzlebench.reporting.charts.layers import draw_layers
from puzzlebench.reporting.losses import Curve
from puzzlebench.scores import ScoreTable

NAMES = {"score_name": "KL divergence", "memory_name": "memory"}


def parsed(svg):
    """The element; its own attributes without a value get one, as XML wants."""
    return ET.fromstring(re.sub(r" data-marks(?==\W|[ >])", ' data-marks="1"', svg))


def tips(svg):
    return [one.text for one in parsed(svg).iter("title")]


def classed(svg, name):
    return [one for one in parsed(svg).iter() if name in (one.get("class") or "").split()]


def test_layers_are_as_high_as_what_they_keep(data):
    child, parent = data.search.architecture, data.parent
    svg = draw_layers(child, parent, 960, label="layers", height=100)
    own = parent.blocks[0]
    kept = sorted(
        [100 * getattr(block.attention, "num_key_value_heads", 0) / own.attention.num_key_value_heads
         for block in child.blocks]
    )  # fmt: skip
    drawn = sorted(float(one.get("height")) for one in classed(svg, "fill-attention"))
    assert drawn == pytest.approx([one for one in kept if one])
    widths = sorted(100 * getattr(block.ffn, "intermediate_size", 0) / 768 for block in child.blocks)
    drawn = sorted(float(one.get("height")) for one in classed(svg, "fill-ffn"))
    assert drawn == pytest.approx([one for one in widths if one], abs=0.01)
    names = [block_name(block) for block in child.blocks]
    linear = sum(name.split("+").count("linear") for name in names)
    nothing = sum(name.split("+").count("no_op") for name in names)
    assert len(classed(svg, "hatch-attention")) + len(classed(svg, "hatch-ffn")) == linear
    assert sum(one.tag == "path" for one in classed(svg, "gone")) == nothing
    assert len(tips(svg)) == len(child.blocks)
    assert tips(svg)[3].startswith("layer 3: attention ")


def test_front_has_a_mark_per_point_and_the_two_that_matter(data):
    front, search = data.front, data.search
    words = {name: f"tip {name}" for name in ("parent", "chosen", *map(str, range(len(front.points))))}
    svg = draw_front(front, 600, parent=search.parent_values, chosen=search.values, tips=words, **NAMES)
    assert sorted(tips(svg)) == sorted(words.values())
    points = [one for one in classed(svg, "front-point") if one.tag == "circle"]
    assert len(points) == len(front.points)
    # SVG's y goes down, scores go up with throughput.
    xs, ys = ([float(one.get(key)) for one in points] for key in ("cx", "cy"))
    assert xs == sorted(xs)
    assert ys == sorted(ys, reverse=True)
    assert "KL divergence, sum over layers (lower is better)" in svg
    assert "tokens/s (higher is better)" in svg


def test_front_without_a_search_has_points_alone(data):
    words = {str(number): "tip" for number in range(len(data.front.points))}
    svg = draw_front(data.front, 340, parent={}, chosen={}, tips=words, **NAMES)
    assert len(tips(svg)) == len(data.front.points)
    assert not classed(svg, "chosen")


def test_heat_outlines_the_chosen_block_of_every_layer(data):
    heat = heat_of(data.scores)
    svg = draw_heat(heat, 960, chosen=data.search.architecture, metric="KL divergence")
    assert len(classed(svg, "pick")) == heat.layers
    said = tips(svg)
    assert len(said) == len(data.scores.frame)
    chosen = [tip.splitlines()[0] for tip in said if tip.endswith("chosen")]
    assert sorted(chosen) == sorted(
        f"layer {place}, {block_name(block).replace('+', ' + ')}"
        for place, block in enumerate(data.search.architecture.blocks)
    )


def test_heat_goes_by_the_logarithm_of_harm(data):
    heat = heat_of(data.scores)
    low, high = heat.ends
    assert (heat.step(0), heat.step(-1), heat.step(low), heat.step(high)) == (0, 0, 1, STEPS - 1)
    middle = (low * high) ** 0.5
    assert heat.step(middle * 1.001) == STEPS // 2 + 1
    steps = [heat.step(value) for value in sorted(heat.harm.values())]
    assert steps == sorted(steps)
    assert heat.bounds()[0] == pytest.approx(low)
    assert heat.bounds()[-1] == pytest.approx(high)


def test_scores_to_be_maximised_harm_the_other_way_round(data):
    frame = data.scores.frame.assign(score=0.5 - data.scores.frame["score"])
    table = ScoreTable(frame=frame, metadata=data.scores.metadata | {"direction": "maximise", "metric": "accuracy"})
    turned, heat = heat_of(table), heat_of(data.scores)
    assert turned.harm == pytest.approx(heat.harm, abs=1e-12)
    assert turned.scores != heat.scores


def test_bars_are_as_long_as_their_time(data):
    times = {"parent": data.costs.parent_times["decode"], "child": data.costs.child_times["decode"]}
    svg = draw_bars(times, 470, title="Decode")
    for name in ("attention", "ffn"):
        parent, child = (float(one.get("width")) + 1.5 for one in classed(svg, f"fill-{name}"))
        assert child / parent == pytest.approx(times["child"][name].value / times["parent"][name].value, abs=0.01)
    assert len(tips(svg)) == 6


def test_dots_stay_inside_and_unknown_ends_draw_no_whisker():
    nan = float("nan")
    rows = [
        Row(
            name=f"row {place}",
            dots=(
                Dot(value=Interval(value=value, low=nan, high=nan), shape="dot", colour="accent", tip="a"),
                Dot(value=Interval(value=value, low=value / 2, high=value * 2), shape="ring", colour="accent", tip="b"),
            ),
        )
        for place, value in enumerate((1.0, 50.0))
    ]
    svg = draw_dots(rows, 340, label="l", title="t", write=str, from_zero=True)
    assert len(classed(svg, "whisker")) == 2
    assert all(0 < float(one.get("cx")) < 340 for one in parsed(svg).iter("circle"))


def test_single_row_without_spread_can_be_drawn():
    dot = Dot(value=Interval(value=0.0, low=0.0, high=0.0), shape="diamond", colour="accent", tip="a")
    assert "nan" not in draw_dots([Row(name="r", dots=(dot,))], 340, label="l", title="t", write=str, from_zero=True)


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [2.0, -1.0, 0.5]])
def test_curves_of_few_or_odd_values(values):
    points = tuple(enumerate(values))
    svg = draw_curves([Curve(name="loss", training=points, held_out=points[:1], lengths=(256,))], 340)
    assert "nan" not in svg
    assert len(tips(svg)) == 1
    assert ("logarithmic" in svg) == (min(values) > 0)


def test_long_curves_are_means_of_neighbours():
    points = [(step, float(step % 2)) for step in range(1000)]
    few = thinned(points, most=100)
    assert len(few) == 100
    assert few[0] == (4.5, 0.5)
    assert thinned(points[:5], most=100) == points[:5]
    assert thinned([], most=100) == []


def test_heat_orders_blocks_by_size_whatever_the_table(data):
    mixed = ScoreTable(frame=data.scores.frame.sample(frac=1, random_state=3), metadata=data.scores.metadata)
    heat = heat_of(mixed)
    assert heat.attention == ("gqa_4", "gqa_2", "gqa_1", "linear", "no_op")
    assert heat.ffn == ("mlp_768", "mlp_576", "mlp_384", "linear", "no_op")
    assert heat.harm == heat_of(data.scores).harm


@pytest.mark.parametrize(
    ("values", "kind"),
    [([1, 2, 3], "straight"), ([1, 5, 100], "log"), ([0, 0.1, 0.2, 5], "root"), ([0, 2, 3, 5], "straight"),
     ([-1, 0, 0.1, 5], "straight"), ([0, 0], "straight")],
)  # fmt: skip
def test_scale_of_a_front_goes_by_its_values(values, kind):
    assert kind_of(values) == kind
