"""The second opinion: agrees with the estimate, tells kept limits from broken ones, refuses what it cannot count."""

import numpy as np
import pytest

from puzzlebench.estimate import estimate
from puzzlebench.model.blocks import Architecture, NoOp
from puzzlebench.profiling.profile import Grid
from puzzlebench.scenario import Scenario
from puzzlebench.searching.recheck import recheck
from puzzlebench.searching.scenarios import ResourceLimit, parse_limit, parse_scenario

from .conftest import edited, make_world, random_architectures, shortened


@pytest.mark.parametrize("text", ["512+300", "512+5", "128+1"])
@pytest.mark.parametrize("which", ["llama", "gemma"])
def test_agrees_with_the_estimate(which, text, request, h100_kernels, h100):
    """On a table whose lengths are those that the estimate costs decode at."""
    world, scenario = request.getfixturevalue(which), parse_scenario(text)
    first, last = scenario.prefill_len + 1, max(scenario.prefill_len + 1, scenario.context_len - 1)
    nodes = sorted({round(node) for node in np.linspace(first, last, 9)})
    grid = Grid(batch_sizes=(4,), prefill_lens=(scenario.prefill_len,), context_lens=tuple(nodes))
    table = make_world(h100_kernels, h100, world.spec, world.precision, grid=grid, max_num_tokens=8192).table
    case = Scenario(
        batch_size=4, prefill_len=scenario.prefill_len, decode_len=scenario.decode_len, precision=world.precision
    )
    for architecture in random_architectures(world, 4):
        expected = estimate(h100_kernels, h100, world.spec, architecture, case)
        values = recheck(table, world.spec, architecture, [scenario], 4).values
        assert values["ttft"] == pytest.approx(expected.ttft_ms.value / 1e3, rel=1e-9)
        assert values["latency"] == pytest.approx(expected.total_ms.value / 1e3, rel=1e-9)
        assert values["throughput"] == pytest.approx(expected.generated_tokens_per_s.value, rel=1e-9)
        assert values["memory"] == expected.memory.total_bytes
        assert ("tpot" in values) == (scenario.decode_len > 1)
        if scenario.decode_len > 1:
            assert values["tpot"] == pytest.approx(expected.tpot_ms.value / 1e3, rel=1e-9)


def test_limits_hold_to_the_tolerance(llama):
    scenario = parse_scenario("512+100")
    values = recheck(llama.table, llama.spec, llama.parent, [scenario], 4).values
    assert set(values) == {"params", "memory", "ttft", "tpot", "latency", "throughput"}
    for resource, value in values.items():
        for factor, low, high in ((1.0, True, True), (1 + 1e-10, True, True), (1.01, False, True), (0.99, True, False)):
            for side, holds in (("low", low), ("high", high)):
                limit = ResourceLimit(resource=resource, **{side: value * factor})
                again = recheck(llama.table, llama.spec, llama.parent, [scenario], 4, [limit])
                (checked,) = again.limits
                assert (checked.column, checked.value, checked.limit) == (resource, value, limit)
                assert checked.holds == again.holds == holds


def test_each_scenario_has_its_limits(llama):
    scenarios = [parse_scenario("a:512+100,max-ttft=60min"), parse_scenario("b:128+100")]
    limits = [parse_limit("max-ttft", "1us"), parse_limit("min-params", "1K"), parse_limit("max-memory", "80GiB")]
    again = recheck(llama.table, llama.spec, llama.parent, scenarios, 4, limits)
    assert {limit.column: limit.holds for limit in again.limits} == {
        "params": True,
        "ttft[a]": True,
        "memory[a]": True,
        "ttft[b]": False,
        "memory[b]": True,
    }
    assert not again.holds
    assert again.batch_size == 4
    assert again.values["memory[a]"] > again.values["memory[b]"]


def test_nothing_but_no_ops(llama):
    nothing = Architecture(blocks=tuple(type(block)(attention=NoOp(), ffn=NoOp()) for block in llama.parent.blocks))
    scenario = parse_scenario("700+100")
    values = recheck(llama.table, llama.spec, nothing, [scenario], 4).values
    assert 0 < values["ttft"] < 0.1 * recheck(llama.table, llama.spec, llama.parent, [scenario], 4).values["ttft"]


def test_a_table_of_another_model_is_noticed(llama):
    scenario = parse_scenario("512+100")
    for column, what in (("weight_bytes", "weight"), ("kv_bytes_per_token", "cache")):
        table = edited(llama.table, lambda frame, column=column: frame.assign(**{column: 2 * frame[column]}))
        with pytest.raises(
            ValueError, match=f"the cost table's {what} bytes add up to .* the table is not of this model"
        ):
            recheck(table, llama.spec, llama.parent, [scenario], 4)
    with pytest.raises(ValueError, match=r"the architecture has 4 layers but llama-3\.1-8b has 3"):
        recheck(llama.table, shortened("llama-3.1-8b", 3), llama.parent, [scenario], 4)


@pytest.mark.parametrize(
    ("text", "batch", "message"),
    [
        ("100+100", 4, "no prefill lengths on both sides of 100 at batch 4"),
        ("2048+4000", 4, "no decode lengths on both sides of 4097 at batch 4"),
        ("512+100", 8, "no prefill lengths on both sides of 512 at batch 8"),
    ],
)
def test_lengths_must_be_there(llama, text, batch, message):
    with pytest.raises(ValueError, match=message):
        recheck(llama.table, llama.spec, llama.parent, [parse_scenario(text)], batch)


def test_missing_cells_are_named(llama):
    scenario = parse_scenario("512+100")
    for match, message in (
        (
            "sub_block == 'gqa_8' and phase == 'decode' and context_len == 1024",
            "attention gqa_8, decode, batch 4, length 1024",
        ),
        ("sub_block == 'gqa_8'", "attention gqa_8, prefill, batch 4, length 512"),
    ):
        table = edited(llama.table, lambda frame, match=match: frame.query(f"not ({match})"))
        with pytest.raises(ValueError, match=f"the cost table has no cell for {message}"):
            recheck(table, llama.spec, llama.parent, [scenario], 4)
