"""Parts of an architecture's time: together they are what the search and its second opinion count."""

import pytest

from puzzlebench.model.blocks import Architecture, Block, GatedMLP, NoOp
from puzzlebench.reporting.time_by_part import time_by_part, whole
from puzzlebench.searching.recheck import recheck
from puzzlebench.searching.scenarios import ServingScenario


@pytest.mark.parametrize("who", ["parent", "child"])
@pytest.mark.parametrize(("prefill", "decode"), [(128, 64), (100, 30), (128, 1)])
def test_parts_add_up_to_what_recheck_counts(data, who, prefill, decode):
    architecture = data.search.architecture if who == "child" else data.parent
    scenario = ServingScenario(name="one", prefill_len=prefill, decode_len=decode)
    times = time_by_part(data.costs.table, architecture, scenario, data.search.batch_size)
    counted = recheck(data.costs.table, data.costs.spec, architecture, [scenario], data.search.batch_size).values
    assert whole(times["prefill"]).value == pytest.approx(counted["ttft"], rel=1e-9)
    both = whole(times["prefill"]).value + whole(times["decode"]).value
    assert both == pytest.approx(counted["latency"], rel=1e-9)
    for parts in times.values():
        for part in parts.values():
            assert part.low <= part.value <= part.high


def test_what_is_gone_takes_no_time(data):
    blocks = tuple(
        Block(attention=NoOp(), ffn=GatedMLP(intermediate_size=data.costs.spec.intermediate_size))
        for _ in data.parent.blocks
    )
    scenario = data.search.scenarios[0]
    bare = time_by_part(data.costs.table, Architecture(blocks=blocks), scenario, data.search.batch_size)
    own = data.costs.parent_times
    for phase in ("prefill", "decode"):
        assert bare[phase]["attention"].value == 0
        assert bare[phase]["ffn"] == own[phase]["ffn"]
        assert bare[phase]["ends"] == own[phase]["ends"]


def test_block_without_a_cell_is_named(data):
    blocks = (Block(attention=NoOp(), ffn=GatedMLP(intermediate_size=77)),) * len(data.parent.blocks)
    with pytest.raises(ValueError, match="no cell for ffn mlp_77"):
        time_by_part(data.costs.table, Architecture(blocks=blocks), data.search.scenarios[0], data.search.batch_size)
