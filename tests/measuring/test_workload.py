"""Cells and the work behind them: nothing forgotten, nothing twice, and steps as engines schedule them."""

import itertools

import numpy as np
import pytest

from puzzlebench.measuring.workload import (
    Workload,
    distinct_workloads,
    is_attention,
    is_no_op,
    plan_cell,
    plan_cells,
)
from puzzlebench.model.space import default_space, distinct_sub_blocks
from puzzlebench.profiling.block_costs import schedule
from puzzlebench.profiling.profile import Grid

GRID = Grid(batch_sizes=(1, 3, 8), prefill_lens=(4, 16), context_lens=(4, 10, 40))


@pytest.fixture(scope="module")
def space(make_spec):
    return default_space(make_spec(sliding_windows=(None, 8)))


@pytest.fixture(scope="module")
def cells(space):
    return plan_cells(space, GRID, max_num_tokens=32)


def test_every_cell_of_the_table_stands_once(cells, space):
    attention = ["gqa_2", "gqa_1", "linear", "no_op", "gqa_2_w8", "gqa_1_w8"]
    ffn = ["mlp_64", "mlp_56", "mlp_48", "mlp_32", "mlp_16", "mlp_8", "linear", "no_op"]
    assert len(attention) == len(distinct_sub_blocks(space)[0])
    assert len(ffn) == len(distinct_sub_blocks(space)[1])
    names = [("attention", name) for name in attention] + [("ffn", name) for name in ffn]
    names += [("embedding", "embedding"), ("head", "head")]
    wanted = {
        Workload(part=part, sub_block=name, phase=phase, batch_size=batch, context_len=length)
        for phase, lengths in (("prefill", GRID.prefill_lens), ("decode", GRID.context_lens))
        for (part, name), batch, length in itertools.product(names, GRID.batch_sizes, lengths)
    }
    keys = [cell.key for cell in cells]
    assert len(keys) == len(set(keys)) == len(wanted)
    assert set(keys) == wanted


def test_the_order_is_that_of_a_table(cells):
    order = list(dict.fromkeys((cell.key.phase, cell.key.part) for cell in cells))
    parts = ("attention", "ffn", "embedding", "head")
    assert order == [(phase, part) for phase in ("prefill", "decode") for part in parts]


def test_only_no_ops_have_no_steps(cells):
    for cell in cells:
        assert bool(cell.steps) != (cell.key.sub_block == "no_op")
        assert is_no_op(cell.key) == (cell.key.sub_block == "no_op")
        assert all(step.times >= 1 for step in cell.steps)


def test_each_distinct_piece_of_work_stands_once(cells):
    works = distinct_workloads(cells)
    assert len(works) == len(set(works))
    assert set(works) == {step.workload for cell in cells for step in cell.steps}
    assert len(works) < sum(len(cell.steps) for cell in cells)


@pytest.mark.parametrize(
    ("part", "name"), [("ffn", "mlp_64"), ("ffn", "linear"), ("attention", "linear"), ("embedding", "embedding")]
)
def test_token_wise_work_of_as_many_tokens_is_one_workload(work, part, name):
    sizes = [("prefill", 2, 12), ("prefill", 12, 2), ("prefill", 24, 1), ("decode", 24, 1), ("decode", 24, 77)]
    found = {plan_cell(work(part, name, *size), max_num_tokens=64).steps for size in sizes}
    assert len(found) == 1
    (steps,) = found
    assert [(step.times, step.workload.tokens) for step in steps] == [(1, 24)]


def test_attention_keeps_its_sequences_and_lengths(work):
    sizes = [("prefill", 2, 12), ("prefill", 12, 2), ("decode", 24, 1), ("decode", 24, 77)]
    keys = [work("attention", "gqa_2", *size) for size in sizes]
    assert [plan_cell(key, max_num_tokens=64).steps[0].workload for key in keys] == keys


def test_what_counts_as_attention(work):
    assert is_attention(work("attention", "gqa_2"))
    assert is_attention(work("attention", "gqa_2_w8"))
    for part, name in (("attention", "linear"), ("ffn", "linear"), ("ffn", "mlp_64"), ("head", "head")):
        assert not is_attention(work(part, name))


def test_five_prompts_of_ten_tokens_at_most_25_a_step(work):
    attention = plan_cell(work("attention", "gqa_2", "prefill", 5, 10), max_num_tokens=25)
    assert [(step.times, step.workload.batch_size, step.workload.context_len) for step in attention.steps] == [
        (2, 2, 10),
        (1, 1, 10),
    ]
    ffn = plan_cell(work("ffn", "mlp_64", "prefill", 5, 10), max_num_tokens=25)
    assert [(step.times, step.workload.tokens) for step in ffn.steps] == [(2, 20), (1, 10)]


def test_steps_are_those_of_the_kernel_model_and_miss_nothing(work):
    for batch, length, most in itertools.product((1, 2, 5, 7, 64), (1, 3, 16, 100), (1, 8, 50, 8192)):
        planned = schedule("prefill", np.array([batch]), np.array([length]), max_num_tokens=most)
        theirs = [(int(s.times[0]), int(s.sequences[0]), int(s.tokens[0])) for s in planned if s.times[0] > 0]
        attention = plan_cell(work("attention", "gqa_2", "prefill", batch, length), max_num_tokens=most).steps
        ffn = plan_cell(work("ffn", "mlp_64", "prefill", batch, length), max_num_tokens=most).steps
        ours = [(a.times, a.workload.batch_size, f.workload.tokens) for a, f in zip(attention, ffn, strict=True)]
        assert ours == theirs
        assert [a.times for a in attention] == [f.times for f in ffn]
        assert sum(a.times * a.workload.batch_size for a in attention) == batch
        assert sum(f.times * f.workload.tokens for f in ffn) == batch * length
        assert all(f.workload.tokens <= max(most, length) for f in ffn)


@pytest.mark.parametrize("size", [("prefill", 6, 10), ("decode", 6, 10), ("decode", 6, 1)])
def test_the_head_runs_one_row_per_sequence(work, size):
    (step,) = plan_cell(work("head", "head", *size), max_num_tokens=16).steps
    assert (step.times, step.workload.tokens) == (1, 6)


@pytest.mark.parametrize("most", [0, -1])
def test_a_step_of_no_tokens_is_refused(space, most):
    with pytest.raises(ValueError, match=f"max_num_tokens must be a whole number of at least 1, not {most}"):
        plan_cells(space, GRID, max_num_tokens=most)


def test_a_workload_says_what_it_is(work):
    assert str(work("ffn", "mlp_64", "prefill", 2, 8)) == "ffn mlp_64, prefill, batch 2, length 8"
    assert work("ffn", "mlp_64", "prefill", 2, 8).tokens == 16
    assert work("ffn", "mlp_64", "decode", 2, 8).tokens == 2
