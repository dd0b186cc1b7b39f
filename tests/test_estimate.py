"""Whole models in a scenario: sums, integration over decode, identities, memory."""

from dataclasses import replace

import numpy as np
import pytest

from puzzlebench.estimate import Interval, check_fits, estimate
from puzzlebench.model.blocks import Architecture, Block, NoOp, sub_block_name
from puzzlebench.model.catalog import load_model
from puzzlebench.model.memory import model_memory
from puzzlebench.model.space import space_of
from puzzlebench.profiling.profile import Grid, build_cost_table
from puzzlebench.profiling.sources import open_kernels
from puzzlebench.scenario import Precision, Scenario

COLUMNS = ["latency_us", "latency_low_us", "latency_high_us"]


def scenario(batch=4, prefill=512, decode=5, **precision):
    return Scenario(batch_size=batch, prefill_len=prefill, decode_len=decode, precision=Precision(**precision))


def values(interval):
    return [interval.value, interval.low, interval.high]


@pytest.fixture(scope="session")
def mixed(llama_8b):
    """Llama 8B without attention in every fourth layer and without FFN in the last two."""
    spec, parent = llama_8b
    blocks = [
        replace(block, attention=NoOp()) if layer % 4 == 0 else block for layer, block in enumerate(parent.blocks)
    ]
    blocks[-2:] = [replace(block, ffn=NoOp()) for block in blocks[-2:]]
    return spec, Architecture(blocks=tuple(blocks))


def model_ms(h100_kernels, h100, spec, architecture, case, phase, length):
    """One pass over the model by hand: block by block, from a table with this one length."""
    grid = Grid(batch_sizes=(case.batch_size,), prefill_lens=(length,), context_lens=(length,))
    frame = build_cost_table(h100_kernels, h100, spec, space_of(architecture), case.precision, grid).frame
    cells = frame[frame["phase"] == phase].set_index(["part", "sub_block"])[COLUMNS]
    total = cells.loc["embedding", "embedding"].to_numpy() + cells.loc["head", "head"].to_numpy()
    for block in architecture.blocks:
        total = total + cells.loc["attention", sub_block_name(block.attention)].to_numpy()
        total = total + cells.loc["ffn", sub_block_name(block.ffn)].to_numpy()
    return total / 1e3


@pytest.mark.parametrize("which", ["llama_8b", "mixed"])
def test_sums_over_every_layer_and_step(h100_kernels, h100, which, request):
    spec, architecture = request.getfixturevalue(which)
    case = scenario(decode=5)
    result = estimate(h100_kernels, h100, spec, architecture, case)
    prefill = model_ms(h100_kernels, h100, spec, architecture, case, "prefill", 512)
    # The first token comes from the prompt; the others attend to 513, 514, 515 and 516 tokens.
    steps = [model_ms(h100_kernels, h100, spec, architecture, case, "decode", 512 + step) for step in (1, 2, 3, 4)]
    assert values(result.ttft_ms) == pytest.approx(prefill.tolist())
    assert values(result.tpot_ms) == pytest.approx((sum(steps) / 4).tolist())
    assert values(result.total_ms) == pytest.approx((prefill + sum(steps)).tolist())


def test_long_decode_is_integrated_over_the_growing_cache(h100_kernels, h100, llama_8b):
    case = scenario(batch=32, prefill=100, decode=1500)
    result = estimate(h100_kernels, h100, *llama_8b, case)
    context_lens = tuple(range(101, 1600, 7))
    grid = Grid(batch_sizes=(32,), prefill_lens=(100,), context_lens=context_lens)
    frame = build_cost_table(h100_kernels, h100, llama_8b[0], space_of(llama_8b[1]), case.precision, grid).frame
    decode = frame[frame["phase"] == "decode"].pivot(index="context_len", columns="sub_block", values="latency_us")
    each = 32 * (decode["gqa_8"] + decode["mlp_14336"]) + decode["embedding"] + decode["head"]
    assert result.tpot_ms.value == pytest.approx(each.mean() / 1e3, rel=0.02)
    assert each.iloc[0] / 1e3 < result.tpot_ms.value < each.iloc[-1] / 1e3


def test_rates_are_counts_over_the_total_time(h100_kernels, h100, llama_8b):
    result = estimate(h100_kernels, h100, *llama_8b, scenario(batch=8, prefill=300, decode=40))
    seconds = result.total_ms.value / 1e3
    assert result.total_ms.value == pytest.approx(result.ttft_ms.value + 39 * result.tpot_ms.value)
    assert result.generated_tokens_per_s.value == pytest.approx(8 * 40 / seconds)
    assert result.total_tokens_per_s.value == pytest.approx(8 * (40 + 300) / seconds)
    for interval in (result.ttft_ms, result.tpot_ms, result.total_ms, result.generated_tokens_per_s):
        assert interval.low < interval.value < interval.high
    assert result.generated_tokens_per_s.low == pytest.approx(8 * 40 / (result.total_ms.high / 1e3))


def test_one_generated_token_is_prefill_alone(h100_kernels, h100, llama_8b):
    result = estimate(h100_kernels, h100, *llama_8b, scenario(decode=1))
    assert values(result.tpot_ms) == [0, 0, 0]
    assert values(result.total_ms) == values(result.ttft_ms)
    assert sum(result.provenance.values()) == pytest.approx(1)


def test_intervals_scale_and_turn_into_rates():
    interval = Interval(value=2.0, low=1.0, high=4.0)
    assert values(interval.scaled(3)) == [6, 3, 12]
    assert values(interval.rate(8)) == [4, 2, 8]


def test_shares_cover_the_whole_time(h100_kernels, h100, mixed):
    result = estimate(h100_kernels, h100, *mixed, scenario(decode=50))
    assert sum(share.prefill_ms for share in result.shares) == pytest.approx(result.ttft_ms.value)
    assert sum(share.decode_ms for share in result.shares) == pytest.approx(49 * result.tpot_ms.value)
    counts = {(share.part, share.sub_block): share.count for share in result.shares}
    assert counts == {
        ("attention", "gqa_8"): 24,
        ("attention", "no_op"): 8,
        ("ffn", "mlp_14336"): 30,
        ("ffn", "no_op"): 2,
        ("embedding", "embedding"): 1,
        ("head", "head"): 1,
    }
    spent = {(share.part, share.sub_block): share.prefill_ms + share.decode_ms for share in result.shares}
    assert spent["attention", "no_op"] == spent["ffn", "no_op"] == 0


def test_provenance_shares_sum_to_one(h100_kernels, h100, llama_8b):
    result = estimate(h100_kernels, h100, *llama_8b, scenario(batch=64, prefill=1000, decode=100))
    assert sum(result.provenance.values()) == pytest.approx(1)
    assert set(result.provenance) <= {"measured", "interpolated", "extrapolated", "modelled"}
    assert result.provenance["interpolated"] > 0.2


def test_a_smaller_architecture_is_faster_and_lighter(h100_kernels, h100, llama_8b, mixed):
    case = scenario(batch=16, prefill=1024, decode=64)
    parent, child = (estimate(h100_kernels, h100, *model, case) for model in (llama_8b, mixed))
    # A quarter of the attention is gone and a sixteenth of the FFN.
    assert 1.05 < parent.total_ms.value / child.total_ms.value < 1.4
    assert child.memory.kv_cache_bytes == pytest.approx(0.75 * parent.memory.kv_cache_bytes, rel=1e-9)
    assert child.memory.weights_bytes < parent.memory.weights_bytes
    assert child.largest_batch > parent.largest_batch


def test_nothing_but_no_ops_leaves_embedding_and_head(h100_kernels, h100, llama_8b):
    spec, parent = llama_8b
    empty = Architecture(blocks=(Block(attention=NoOp(), ffn=NoOp()),) * len(parent.blocks))
    result = estimate(h100_kernels, h100, spec, empty, scenario(decode=10))
    whole = estimate(h100_kernels, h100, spec, parent, scenario(decode=10))
    assert 0 < result.total_ms.value < 0.1 * whole.total_ms.value


def test_memory_is_that_of_the_full_context(h100_kernels, h100, llama_8b):
    result = estimate(h100_kernels, h100, *llama_8b, scenario(batch=8, prefill=1000, decode=24, kv_dtype="fp8"))
    expected = model_memory(
        *llama_8b, batch_size=8, prefill_len=1000, context_len=1024, weight_dtype="bf16", kv_dtype="fp8"
    )
    assert result.memory == expected
    assert result.usable_bytes == int(0.9 * 80 * 2**30)


def test_a_batch_that_does_not_fit_names_the_largest(h100_kernels, h100, llama_8b):
    with pytest.raises(ValueError, match=r"batch 5000 does not fit on h100_sxm: it needs .* GiB") as caught:
        estimate(h100_kernels, h100, *llama_8b, scenario(batch=5000, prefill=4000, decode=96))
    largest = int(str(caught.value).rsplit(" ", 1)[1])
    fits = estimate(h100_kernels, h100, *llama_8b, scenario(batch=largest, prefill=4000, decode=96))
    assert fits.largest_batch == largest
    assert fits.memory.total_bytes <= fits.usable_bytes
    with pytest.raises(ValueError, match=f"the largest batch that fits is {largest}$"):
        estimate(h100_kernels, h100, *llama_8b, scenario(batch=largest + 1, prefill=4000, decode=96))


def test_a_model_that_does_not_fit_at_all(h100_kernels, h100, llama_70b):
    with pytest.raises(ValueError, match="use fewer bytes per weight or more GPUs"):
        estimate(h100_kernels, h100, *llama_70b, scenario(batch=1))
    result = estimate(h100_kernels, h100, *llama_70b, scenario(batch=1), must_fit=False)
    assert result.largest_batch == 0
    assert result.memory.total_bytes > result.usable_bytes


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01, float("nan")])
def test_the_memory_fraction_must_be_one(h100, llama_8b, fraction):
    with pytest.raises(ValueError, match="memory fraction must be above 0 and at most 1"):
        check_fits(h100, *llama_8b, scenario(), memory_fraction=fraction)


def test_llama_70b_in_fp8_on_one_h100_is_where_it_should_be(h100_kernels, h100, llama_70b):
    # 70.6 GB of weights, all but the 2.1 GB of embeddings read once per token at 3.35 TB/s: at least 20.8 ms.
    result = estimate(
        h100_kernels, h100, *llama_70b, scenario(batch=1, prefill=256, decode=64, weight_dtype="fp8", kv_dtype="fp8")
    )
    assert 20.8 < result.tpot_ms.value < 32


def test_more_gpus_are_faster_but_not_by_their_number(h100_kernels, h100, llama_70b):
    times = [
        estimate(
            h100_kernels, h100, *llama_70b, scenario(decode=32, weight_dtype="fp8", kv_dtype="fp8", tensor_parallel=tp)
        ).tpot_ms.value
        for tp in (1, 2, 4, 8)
    ]
    assert (np.diff(times) < 0).all()
    assert 2.5 < times[0] / times[3] < 8


def test_a_heterogeneous_model_is_faster_than_its_parent(h100_kernels, h100, llama_70b):
    child = load_model("nvidia/Llama-3_3-Nemotron-Super-49B-v1")
    case = scenario(batch=8, prefill=512, decode=32, weight_dtype="fp8", kv_dtype="fp8", tensor_parallel=2)
    parent_result, child_result = (estimate(h100_kernels, h100, *model, case) for model in (llama_70b, child))
    assert 1.2 < parent_result.total_ms.value / child_result.total_ms.value < 2.2


def test_windows_make_long_contexts_cheaper():
    datasheet, kernels = open_kernels("h100")
    spec, windowed = load_model("mistral-7b-v0.1")
    full = Architecture(
        blocks=tuple(replace(b, attention=replace(b.attention, sliding_window=None)) for b in windowed.blocks)
    )
    case = scenario(batch=4, prefill=16000, decode=16)
    capped, whole = (estimate(kernels, datasheet, spec, a, case) for a in (windowed, full))
    assert capped.memory.kv_cache_bytes < 0.3 * whole.memory.kv_cache_bytes
    assert capped.tpot_ms.value < whole.tpot_ms.value
    assert capped.ttft_ms.value < whole.ttft_ms.value
    assert capped.provenance["modelled"] > 0.1
