"""Which kernels a sub-block launches, asked of a source that writes them down; how prompts are packed into steps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzlebench.model.blocks import GQA, GatedMLP, Linear, NoOp
from puzzlebench.model.catalog import load_model
from puzzlebench.profiling.block_costs import BlockCosts, Steps, schedule
from puzzlebench.profiling.sources import open_kernels
from puzzlebench.profiling.timings import MEASURED, MODELLED
from puzzlebench.scenario import Precision

H, T = 8192, 1024  # hidden size of Llama 70B, tokens in the step
NORM = ("elementwise", 2.0 * 4 * T * H)  # bf16, residual and input read and written
FP8 = {"weight_dtype": "fp8", "kv_dtype": "fp8"}


def ask(kernels, sub, *, phase="prefill", model="llama-3.1-70b", batch=1, length=T, limit=8192, part=None, **precision):
    spec, _ = load_model(model)
    costs = BlockCosts(kernels, spec, Precision(**precision), max_num_tokens=limit)
    at = phase, np.array([batch]), np.array([length])
    return getattr(costs, part)(*at) if part else costs.sub_block(sub, *at)


def assert_sum(kernels, timings):
    each = {"gemm": 1, "prefill_attention": 10, "decode_attention": 100, "elementwise": 1000, "all_reduce": 10000}
    assert timings.latency_us[0] == sum(each[name] for name, *_ in kernels.calls)
    assert timings.modelled_us[0] == sum(1000 for name, *_ in kernels.calls if name == "elementwise")
    assert timings.low_us[0] < timings.latency_us[0] < timings.high_us[0]


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_no_op_costs_exactly_nothing(recorder, phase):
    timings = ask(recorder, NoOp(), phase=phase)
    assert (timings.latency_us[0], timings.low_us[0], timings.high_us[0], timings.modelled_us[0]) == (0, 0, 0, 0)
    assert timings.provenance[0] == MEASURED
    assert recorder.calls == []


def test_a_linear_layer_is_one_square_gemm_and_its_norm(recorder):
    timings = ask(recorder, Linear())
    assert recorder.calls == [NORM, ("gemm", T, H, H, "bf16")]
    assert_sum(recorder, timings)


def test_a_linear_layer_over_eight_gpus(recorder):
    timings = ask(recorder, Linear(), tensor_parallel=8)
    assert recorder.calls == [NORM, ("gemm", T, H // 8, H, "bf16"), ("all_reduce", T * H, 8)]
    assert_sum(recorder, timings)


@pytest.mark.parametrize(("kv_heads", "qkv"), [(8, 10240), (4, 9216), (1, 8448)])
def test_attention_of_llama_70b(recorder, kv_heads, qkv):
    timings = ask(recorder, GQA(num_key_value_heads=kv_heads))
    assert recorder.calls == [
        NORM,
        ("gemm", T, qkv, H, "bf16"),  # query, key and value in one
        ("prefill_attention", 1, T, 64, kv_heads, 128, "bf16", "bf16"),
        ("gemm", T, H, 8192, "bf16"),
    ]
    assert_sum(recorder, timings)


@pytest.mark.parametrize(("kv_heads", "held"), [(8, 1), (4, 1), (1, 1)])
def test_attention_of_llama_70b_over_eight_gpus(recorder, kv_heads, held):
    timings = ask(recorder, GQA(num_key_value_heads=kv_heads), tensor_parallel=8, **FP8)
    assert recorder.calls == [
        NORM,
        ("gemm", T, (8 + 2 * held) * 128, H, "fp8"),
        ("prefill_attention", 1, T, 8, held, 128, "fp8", "fp8"),
        ("gemm", T, H, 1024, "fp8"),
        ("all_reduce", T * H, 8),
    ]
    assert_sum(recorder, timings)


def test_decode_runs_one_token_per_sequence(recorder):
    timings = ask(recorder, GQA(num_key_value_heads=8), phase="decode", batch=16, length=3000, kv_dtype="fp8")
    assert recorder.calls == [
        ("elementwise", 2.0 * 4 * 16 * H),
        ("gemm", 16, 10240, H, "bf16"),
        ("decode_attention", 16, 3000, 64, 8, 128, "fp8"),
        ("gemm", 16, H, 8192, "bf16"),
    ]
    assert_sum(recorder, timings)


def test_an_engine_that_does_not_fuse_rope_runs_it(recorder_without_rope):
    timings = ask(recorder_without_rope, GQA(num_key_value_heads=8))
    # Queries and keys read and written, keys and values appended to the cache.
    assert recorder_without_rope.calls[2] == ("elementwise", 2.0 * T * (2 * 8192 + 2 * 1024 + 2 * 1024))
    assert [name for name, *_ in recorder_without_rope.calls] == [
        "elementwise",
        "gemm",
        "elementwise",
        "prefill_attention",
        "gemm",
    ]
    assert_sum(recorder_without_rope, timings)


@pytest.mark.parametrize(("tp", "width", "reduced"), [(1, 28672, 0), (8, 3584, 1)])
def test_the_mlp_of_llama_70b(recorder, tp, width, reduced):
    timings = ask(recorder, GatedMLP(intermediate_size=28672), tensor_parallel=tp)
    assert recorder.calls == [
        NORM,
        ("gemm", T, 2 * width, H, "bf16"),  # gate and up in one
        ("elementwise", 2.0 * 3 * T * width),
        ("gemm", T, H, width, "bf16"),
        *[("all_reduce", T * H, 8)] * reduced,
    ]
    assert_sum(recorder, timings)


def test_query_and_key_norms(recorder):
    spec, _ = load_model("qwen3-8b")
    queries, keys = spec.num_attention_heads * spec.head_dim, spec.num_key_value_heads * spec.head_dim
    ask(recorder, GQA(num_key_value_heads=spec.num_key_value_heads), model="qwen3-8b")
    assert [name for name, *_ in recorder.calls] == ["elementwise", "gemm", "elementwise", "prefill_attention", "gemm"]
    assert recorder.calls[2] == ("elementwise", 2.0 * 2 * T * (queries + keys))


@pytest.mark.parametrize("sub", [GatedMLP(intermediate_size=14336), Linear()])
def test_the_second_norms_of_gemma(recorder, sub):
    spec, _ = load_model("gemma-2-9b")
    ask(recorder, sub, model="gemma-2-9b")
    assert recorder.calls[:2] == [
        ("elementwise", 2.0 * 4 * T * spec.hidden_size),
        ("elementwise", 2.0 * 2 * T * spec.hidden_size),
    ]


def test_a_window_caps_the_cache_in_decode(recorder):
    windowed = GQA(num_key_value_heads=8, sliding_window=4096)
    for length, seen, provenance in ((4096, 4096, MEASURED), (5000, 4096, MODELLED)):
        recorder.calls.clear()
        timings = ask(recorder, windowed, phase="decode", length=length)
        assert recorder.calls[2] == ("decode_attention", 1, seen, 64, 8, 128, "bf16")
        assert timings.provenance[0] == provenance


@pytest.mark.parametrize(("length", "window"), [(7, 3), (100, 100), (50, 64), (9, 1)])
def test_a_window_keeps_its_share_of_the_pairs_in_prefill(recorder, length, window):
    pairs = sum(min(query + 1, window) for query in range(length))
    windowed = GQA(num_key_value_heads=8, sliding_window=window)
    timings = ask(recorder, windowed, length=length)
    attention = timings.latency_us[0] - 1000 - 2
    assert attention == pytest.approx(10 * pairs / (length * (length + 1) / 2))
    assert timings.provenance[0] == (MODELLED if length > window else MEASURED)


@pytest.mark.parametrize(("tp", "reduced"), [(1, 0), (8, 1)])
def test_the_embedding_is_a_look_up(recorder, tp, reduced):
    timings = ask(recorder, None, part="embedding", tensor_parallel=tp)
    assert recorder.calls == [("elementwise", 2.0 * 2 * T * H), *[("all_reduce", T * H, 8)] * reduced]
    assert_sum(recorder, timings)


@pytest.mark.parametrize(("phase", "tp", "vocabulary"), [("prefill", 1, 128256), ("decode", 8, 16032)])
def test_the_head_takes_one_row_per_sequence_and_is_never_quantised(recorder, phase, tp, vocabulary):
    timings = ask(recorder, None, part="head", phase=phase, batch=4, tensor_parallel=tp, **FP8)
    assert recorder.calls == [
        ("elementwise", 2.0 * 2 * 4 * H),
        ("gemm", 4, vocabulary, H, "bf16"),
        ("elementwise", 2.0 * 2 * 4 * vocabulary),
    ]
    assert_sum(recorder, timings)


def test_a_model_that_cannot_be_split(recorder):
    with pytest.raises(ValueError, match="tensor_parallel 3 does not divide"):
        ask(recorder, GatedMLP(intermediate_size=28672), tensor_parallel=3)


def test_a_batch_in_two_steps_costs_the_sum_of_both(recorder):
    timings = ask(recorder, Linear(), batch=5, length=2048, limit=8192)  # four prompts, then one
    assert [call[1] for call in recorder.calls if call[0] == "gemm"] == [8192, 2048]
    assert_sum(recorder, timings)


def test_steps_that_repeat_are_asked_once_and_counted(recorder):
    timings = ask(recorder, Linear(), batch=12, length=2048, limit=8192)
    assert [call[1] for call in recorder.calls if call[0] == "gemm"] == [8192]
    assert timings.latency_us[0] == 3 * (1000 + 1)


def test_a_step_of_prompts_and_decoding_sequences_shares_the_gemms(recorder):
    spec, _ = load_model("llama-3.1-70b")
    costs = BlockCosts(recorder, spec, Precision(), max_num_tokens=8192)
    mixed = costs.sub_block_step(
        GQA(num_key_value_heads=8), Steps.of(decodes=16, contexts=3000, prompts=2, lengths=1024)
    )
    tokens = 16 + 2 * 1024
    assert recorder.calls == [
        ("elementwise", 2.0 * 4 * tokens * H),
        ("gemm", tokens, 10240, H, "bf16"),
        ("decode_attention", 16, 3000, 64, 8, 128, "bf16"),
        ("prefill_attention", 2, 1024, 64, 8, 128, "bf16", "bf16"),
        ("gemm", tokens, H, 8192, "bf16"),
    ]
    assert_sum(recorder, mixed)


def test_steps_of_different_kinds_asked_at_once_cost_what_each_costs_alone():
    spec, _ = load_model("llama-3.1-8b")
    costs = BlockCosts(open_kernels("h100_sxm")[1], spec, Precision(), max_num_tokens=8192)
    kinds = {"decodes": [0, 8, 8], "contexts": [1, 900, 900], "prompts": [2, 0, 2], "lengths": [512, 1, 512]}
    together = costs.sub_block_step(GQA(num_key_value_heads=8), Steps.of(**kinds)).latency_us
    for place, latency in enumerate(together):
        alone = Steps.of(**{name: values[place] for name, values in kinds.items()})
        assert costs.sub_block_step(GQA(num_key_value_heads=8), alone).latency_us[0] == pytest.approx(latency)
    assert together[2] < together[0] + together[1]  # the weights are read once


def steps_of(batch, length, limit, phase="prefill"):
    steps = schedule(phase, np.array([batch]), np.array([length]), max_num_tokens=limit)
    lengths = [s.lengths[0] if phase == "prefill" else s.contexts[0] for s in steps]
    return [(s.sequences[0], s.tokens[0], n, s.times[0]) for s, n in zip(steps, lengths, strict=True) if s.times[0] > 0]


@pytest.mark.parametrize(
    ("batch", "length", "limit", "expected"),
    [
        (4, 1024, 8192, [(4, 4096, 1024, 1)]),
        (8, 1024, 8192, [(8, 8192, 1024, 1)]),
        (20, 1024, 8192, [(8, 8192, 1024, 2), (4, 4096, 1024, 1)]),
        (3, 5000, 8192, [(1, 5000, 5000, 3)]),
        (2, 20000, 8192, [(1, 20000, 20000, 2)]),  # longer than a step: alone, counted at its full length
        (1, 1, 1, [(1, 1, 1, 1)]),
    ],
)
def test_packing_of_prompts(batch, length, limit, expected):
    assert steps_of(batch, length, limit) == expected


def test_decode_is_one_step_of_a_token_each():
    assert steps_of(64, 9000, 16, phase="decode") == [(64, 64, 9000, 1)]


@given(batch=st.integers(1, 4096), length=st.integers(1, 200_000), limit=st.integers(1, 65536))
def test_every_prompt_token_runs_once_and_steps_keep_the_limit(batch, length, limit):
    steps = steps_of(batch, length, limit)
    assert sum(tokens * times for _, tokens, _, times in steps) == batch * length
    assert sum(sequences * times for sequences, _, _, times in steps) == batch
    for sequences, tokens, _, _ in steps:
        assert tokens == sequences * length
        assert tokens <= limit or sequences == 1
