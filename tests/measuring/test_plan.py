"""Plans: a way through JSON and back, copies that cover the caches, and what is refused."""

import json
import math

import pytest

from puzzlebench.measuring.plan import (
    CACHE_FACTOR,
    Effort,
    bytes_of_run,
    model_workload,
    plan_from_json,
    plan_to_json,
    plan_workloads,
    read_plan,
)
from puzzlebench.measuring.workload import distinct_workloads, plan_cell, plan_cells
from puzzlebench.model.blocks import GQA, Architecture, Block, GatedMLP, Linear, NoOp
from puzzlebench.model.space import default_space
from puzzlebench.model.spec import parent_architecture
from puzzlebench.profiling.profile import Grid
from puzzlebench.scenario import Precision

FP32 = Precision(weight_dtype="fp32", kv_dtype="fp32")
GRID = Grid(batch_sizes=(1, 4), prefill_lens=(8,), context_lens=(8, 32))


@pytest.fixture
def child():
    return Architecture(
        blocks=(
            Block(attention=GQA(num_key_value_heads=1, sliding_window=8), ffn=Linear()),
            Block(attention=NoOp(), ffn=GatedMLP(intermediate_size=16)),
        )
    )


def test_there_and_back(make_plan, make_spec, work, child):
    spec = make_spec(sliding_windows=(None, 8), torch_dtype="bfloat16")
    plan = make_plan(
        [work("attention", "gqa_2_w8", "prefill", 2, 8), work("head", "head"), work("model", "child", "decode", 1, 4)],
        spec=spec,
        models={"parent": parent_architecture(spec), "child": child},
        effort=Effort(sessions=2, seconds=0.5, lock_clocks_mhz=1200),
        precision=Precision(weight_dtype="fp8", kv_dtype="bf16", tensor_parallel=2),
    )
    text = json.dumps(plan_to_json(plan), allow_nan=False)
    back = plan_from_json(json.loads(text))
    assert back == plan
    assert isinstance(back.spec.sliding_windows, tuple)
    assert isinstance(back.workloads, tuple)


def test_from_a_file(make_plan, work, tmp_path):
    plan = make_plan([work("head", "head")])
    (tmp_path / "plan.json").write_text(json.dumps(plan_to_json(plan)))
    assert read_plan(tmp_path / "plan.json") == plan


def test_bytes_of_one_run_by_hand(make_spec, work):
    spec = make_spec()  # H 32, 4 heads, 2 kv heads of 8, width 64, vocabulary 96
    qkv, out, norm = 32 * (32 + 16 + 16), 32 * 32, 32
    by_hand = {
        work("ffn", "mlp_64", "decode", 9, 1): 4 * (3 * 32 * 64 + norm),
        work("ffn", "linear", "decode", 9, 1): 4 * (32 * 32 + norm),
        work("attention", "gqa_2", "decode", 3, 10): 4 * (qkv + out + norm) + 3 * 10 * 2 * 16 * 4,
        work("attention", "gqa_2_w8", "decode", 3, 10): 4 * (qkv + out + norm) + 3 * 8 * 2 * 16 * 4,
        work("attention", "gqa_2_w8", "prefill", 3, 5): 4 * (qkv + out + norm) + 3 * 5 * 2 * 16 * 4,
        work("embedding", "embedding", "decode", 9, 1): 9 * 32 * 4,
        work("head", "head", "decode", 9, 1): 96 * 32 * 4,
    }
    for one, expected in by_hand.items():
        assert bytes_of_run(spec, FP32, one) == expected, one


@pytest.mark.parametrize("cache_bytes", [1, 5_000, 20_000, 1 << 40])
def test_copies_cover_the_caches_or_what_the_parent_touches(make_spec, cache_bytes):
    spec = make_spec()
    parent = parent_architecture(spec)
    cells = plan_cells(default_space(spec), GRID, max_num_tokens=8192)
    planned = plan_workloads(spec, parent, FP32, cells, cache_bytes=cache_bytes)
    assert [one.workload for one in planned] == list(distinct_workloads(cells))
    layer = 4 * (32 * 64 + 32 * 32 + 32) + 4 * (3 * 32 * 64 + 32)
    weights = 2 * layer + 2 * 96 * 32 * 4 + 32 * 4
    capped = 0
    for one in planned:
        # pages of 32 tokens in both layers; a workload serves its largest cell
        served = [cell.key for cell in cells if any(step.workload == one.workload for step in cell.steps)]
        cached = max(2 * key.batch_size * math.ceil(key.context_len / 32) * 32 * 2 * 16 * 4 for key in served)
        wanted = min(CACHE_FACTOR * cache_bytes, weights + cached)
        one_run = bytes_of_run(spec, FP32, one.workload)
        if one.copies == 128:
            capped += 1
        else:
            assert one.copies * one_run >= wanted, one
        assert one.copies == 1 or (one.copies - 1) * one_run < wanted, one
    if cache_bytes == 1:
        assert {one.copies for one in planned} == {1}
    assert bool(capped) == (cache_bytes > 1_000), "the embedding of a few tokens meets the cap once a cache is real"


def test_a_model_has_one_copy(work):
    planned = model_workload("child", work("model", "x", "prefill", 2, 8))
    assert (planned.copies, planned.workload) == (1, work("model", "child", "prefill", 2, 8))


def test_a_workload_counts_its_largest_cell(make_spec, work):
    """Token-wise work of a decode batch serves every context: the longest one's cache is what goes by."""
    spec = make_spec()
    parent = parent_architecture(spec)

    def copies(*contexts):
        keys = [work("ffn", "mlp_64", "decode", 4, context) for context in contexts]
        cells = [plan_cell(key, max_num_tokens=64) for key in keys]
        (planned,) = plan_workloads(spec, parent, FP32, cells, cache_bytes=1 << 30)
        return planned.copies

    assert copies(32, 4096) == copies(4096, 32) == copies(4096) > copies(32)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sessions": 0}, "sessions must be a whole number of at least 1, not 0"),
        ({"seconds": 0.0}, "seconds must be above 0, not 0.0"),
        ({"seconds": -1.0}, "seconds must be above 0, not -1.0"),
        ({"seconds": math.nan}, "seconds must be above 0, not nan"),
        ({"target_width": 0.0}, "target_width must be above 0, not 0.0"),
        ({"energy_seconds": -1.0}, "energy_seconds must not be negative, but is -1.0"),
        ({"lock_clocks_mhz": 0}, "lock_clocks_mhz must be a whole number of at least 1, not 0"),
    ],
)
def test_efforts_that_cannot_be(changes, words):
    with pytest.raises(ValueError, match=words):
        Effort(**changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.update(schema=99), "plan schema 99 is not known; this version reads 1"),
        (lambda data: data.pop("schema"), "plan schema None is not known"),
        (lambda data: data.pop("effort"), "a plan is incomplete: 'effort'"),
        (lambda data: data["spec"].pop("hidden_size"), "a plan is incomplete: .*hidden_size"),
        (lambda data: data["workloads"][0].pop("copies"), "a plan is incomplete: 'copies'"),
        (lambda data: data["workloads"][0].update(colour="red"), "a plan is incomplete: .*colour"),
        (lambda data: data.update(workloads=None), "a plan is incomplete"),
    ],
)
def test_plans_that_are_not_whole(make_plan, work, change, words):
    data = plan_to_json(make_plan([work("head", "head")]))
    change(data)
    with pytest.raises(ValueError, match=words):
        plan_from_json(data)


@pytest.mark.parametrize(("content", "words"), [("{", "is not JSON"), ("[]", "plan"), ("", "is not JSON")])
def test_files_that_are_no_plan(tmp_path, content, words):
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=words):
        read_plan(path)


def test_a_plan_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read .*plan.json: No such file"):
        read_plan(tmp_path / "plan.json")
