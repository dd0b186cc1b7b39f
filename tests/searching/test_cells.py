"""What a cost table answers: interpolation, ends of intervals, missing cells, lengths outside, mixed tables."""

import re

import numpy as np
import pytest

from puzzlebench.model.blocks import block_name
from puzzlebench.searching.costs import NORMAL_95
from puzzlebench.searching.layer_rules import parse_layer_rule
from puzzlebench.searching.scenarios import parse_scenario
from puzzlebench_search.problem import make_solution

from .conftest import edited, load, places


def cell(frame, sub, phase, length, batch=4):
    key = dict(
        zip(("part", "sub_block", "phase", "context_len", "batch_size"), (*sub, phase, length, batch), strict=True)
    )
    rows = frame[np.logical_and.reduce([frame[column] == value for column, value in key.items()])]
    return rows[["latency_us", "latency_low_us", "latency_high_us"]].to_numpy()[0] / 1e6


def parts(architecture):
    found = [("embedding", "embedding"), ("head", "head")]
    for block in architecture.blocks:
        attention, ffn = block_name(block).split("+")
        found += [("attention", attention), ("ffn", ffn)]
    return found


def test_errors_are_the_ends_of_the_interval_in_standard_errors(llama):
    """By hand from rows: decode attends to 512, 513 and 514 tokens, between the lengths 128 and 512 or 512 and 1024."""
    frame = llama.table.frame
    prefill = cell_sums(llama, lambda sub: np.sqrt(cell(frame, sub, "prefill", 128) * cell(frame, sub, "prefill", 512)))
    steps = cell_sums(
        llama,
        lambda sub: sum(
            ((1024 - length) * cell(frame, sub, "decode", 512) + (length - 512) * cell(frame, sub, "decode", 1024))
            / 512
            for length in (513, 514)
        ),
    )
    middle = parse_scenario("256+2")  # the geometric mean of 128 and 512
    costs = load(llama, "256+2", "b:512+3")
    case = costs.cases(4)[0]
    chosen = places(case.problem, llama.parent)
    uses = make_solution(case.problem, chosen).uses
    exact = cell_sums(llama, lambda sub: cell(frame, sub, "prefill", 512))
    for name, (value, low, high) in {
        f"ttft[{middle.name}]": prefill,
        "ttft[b]": exact,
        "tpot[b]": steps / 2,
        "latency[b]": exact + steps,
        "throughput[b]": exact + steps,
    }.items():
        column = case.problem.column(name)
        upper = case.base_upper_sd[column] + case.upper_sd[chosen, column].sum()
        lower = case.base_lower_sd[column] + case.lower_sd[chosen, column].sum()
        assert uses[name] == pytest.approx(value, rel=1e-12)
        assert upper == pytest.approx((high - value) / NORMAL_95, rel=1e-9)
        assert lower == pytest.approx((value - low) / NORMAL_95, rel=1e-9)
    for name in ("memory[b]", "params"):
        column = case.problem.column(name)
        assert not case.upper_sd[:, column].any()
        assert not case.base_lower_sd[column].any()


def cell_sums(world, count):
    return sum(count(sub) for sub in parts(world.parent))


def test_decode_is_exact_where_latency_is_straight(llama):
    def edit(frame):
        slope = np.where(frame["part"] == "attention", 0.25, 0.0)
        busy = frame["sub_block"] != "no_op"
        for column in ("latency_low_us", "latency_us", "latency_high_us"):
            frame[column] = np.where(busy, 10 + slope * frame["context_len"], 0.0)

    costs = load(llama, "300+2000", table=edited(llama.table, edit))
    case = costs.cases(4)[0]
    uses = make_solution(case.problem, places(case.problem, llama.parent)).uses
    by_hand = sum(10 * 10 + 4 * 0.25 * length for length in range(301, 2300)) / 1e6
    assert uses["tpot"] * 1999 == pytest.approx(by_hand, rel=1e-12)
    assert not case.upper_sd.any()


def test_a_lower_end_of_zero_stays_zero(llama):
    table = edited(llama.table, lambda frame: frame.assign(latency_low_us=0.0))
    case = load(llama, "300+20", table=table).cases(4)[0]
    assert case.lower_sd[:, 2] * NORMAL_95 == pytest.approx(case.problem.uses[:, 2])


def test_no_ops_need_no_cells(llama):
    table = edited(llama.table, lambda frame: frame[frame["sub_block"] != "no_op"])
    for batch in (1, 16):
        one, other = load(llama).cases(batch)[0].problem, load(llama, table=table).cases(batch)[0].problem
        assert (one.uses == other.uses).all()


def without(**match):
    def edit(frame):
        return frame[~np.logical_and.reduce([frame[column] == value for column, value in match.items()])]

    return edit


FIRST = "layer 0, gqa_8+mlp_14336: the cost table has no"


@pytest.mark.parametrize(
    ("match", "message"),
    [
        (
            {"sub_block": "mlp_14336", "phase": "prefill", "context_len": 512, "batch_size": 4},
            f"{FIRST} cell for ffn mlp_14336, prefill, batch 4, length 512",
        ),
        (
            {"sub_block": "gqa_8", "phase": "decode", "context_len": 1024, "batch_size": 4},
            f"{FIRST} cell for attention gqa_8, decode, batch 4, length 1024 (out of memory)",
        ),
        (
            {"part": "ffn", "sub_block": "linear", "phase": "decode"},
            "layer 0, gqa_8+linear: the cost table has no cell for ffn linear, decode, batch 4, length 512",
        ),
        (
            {"sub_block": "gqa_1"},
            "layer 0, gqa_1+mlp_14336: the cost table has no cells for attention gqa_1; it has gqa_8, ",
        ),
        ({"sub_block": "gqa_2"}, "layer 0, gqa_2+mlp_14336: the cost table has no cells for attention gqa_2; too big"),
        ({"part": "head", "phase": "decode"}, "the cost table has no cell for head, decode, batch 4, length 512"),
        ({"part": "embedding"}, "the cost table has no cells for embedding"),
    ],
)
def test_missing_cells_are_named(llama, match, message):
    keys = ("part", "sub_block", "phase", "batch_size", "context_len", "reason")
    misses = [
        ("attention", "gqa_8", "decode", 4, 1024, "out of memory"),
        ("attention", "gqa_2", "decode", 1, 1, "too big"),
    ]
    table = edited(llama.table, without(**match), misses=[dict(zip(keys, miss, strict=True)) for miss in misses])
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as caught:
        load(llama, "512+400", table=table).cases(4)
    assert "\n" not in str(caught.value)


def test_only_what_is_needed_must_be_there(llama):
    """Another batch, other lengths, and what a rule takes out."""
    table = edited(llama.table, without(sub_block="gqa_8", batch_size=16))
    table = edited(table, without(sub_block="mlp_14336", context_len=4096))
    table = edited(table, without(part="attention", sub_block="linear"))
    costs = load(llama, "512+400", table=table, exclusions=[parse_layer_rule("*=linear+*")])
    assert costs.cases(4)
    with pytest.raises(ValueError, match="gqa_8, prefill, batch 16, length 512"):
        costs.cases(16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "100+100",
            "scenario 100+100: prompts of 100 tokens lie outside the cost table's prefill lengths (128, 512, 2048)",
        ),
        (
            "a:4000+9",
            "scenario a: prompts of 4000 tokens lie outside the cost table's prefill lengths (128, 512, 2048)",
        ),
        (
            "2048+2050",
            "scenario 2048+2050: steps that attend to 2049 to 4097 tokens lie outside the cost table's decode lengths "
            "(128, 512, 1024, 4096); profile with --context-lens that reach them",
        ),
    ],
)
def test_lengths_are_never_extrapolated(llama, text, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        load(llama, text)


def test_lengths_are_those_of_the_batch(llama):
    table = edited(llama.table, without(batch_size=16, context_len=2048))
    costs = load(llama, "1024+100", table=table)
    assert costs.cases(4)
    with pytest.raises(
        ValueError, match=r"prompts of 1024 tokens lie outside .* \(128, 512\); profile with --prefill-lens"
    ):
        costs.cases(16)
    with pytest.raises(ValueError, match="the cost table has no batch size 8; it has 1, 4, 16"):
        costs.cases(8)


def relabelled(column, value):
    def edit(frame):
        frame.loc[frame.index[-1], column] = value

    return edit


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("gpu", "a100", "the cost table mixes gpu h100_sxm and a100; give a table with one gpu"),
        ("engine", "vllm", "the cost table mixes engine trtllm and vllm"),
        ("engine_version", "0", "mixes engine_version .* and 0"),
        ("weight_dtype", "fp8", "mixes weight_dtype bf16 and fp8"),
        ("kv_dtype", "fp8", "mixes kv_dtype bf16 and fp8"),
        ("tensor_parallel", 2, "mixes tensor_parallel 1 and 2"),
        ("weight_bytes", 7, "cells of head differ in weight_bytes; it must be the same in all"),
        ("kv_bytes_per_token", 7, "cells of head differ in kv_bytes_per_token"),
    ],
)
def test_mixed_tables_are_refused(llama, column, value, message):
    with pytest.raises(ValueError, match=message):
        load(llama, table=edited(llama.table, relabelled(column, value)))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"model": None}, "metadata does not say of which model it is"),
        ({"model": {"name": "x"}}, "metadata has no usable model: 'sliding_windows'"),
        ({"settings": {}}, "metadata does not say max_num_tokens, which memory depends on"),
    ],
)
def test_tables_must_say_what_they_are_of(llama, metadata, message):
    with pytest.raises(ValueError, match=message):
        load(llama, table=edited(llama.table, lambda frame: frame, **metadata))
