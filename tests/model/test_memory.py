"""Bytes per GPU, against hand counts and against themselves over GPUs, pages and batches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzlebench.model.blocks import GQA, Architecture, Block, GatedMLP, Linear, NoOp
from puzzlebench.model.catalog import load_model
from puzzlebench.model.memory import (
    embedding_weight_bytes,
    head_weight_bytes,
    kv_cache_bytes,
    largest_batch,
    model_memory,
    model_weight_bytes,
    sub_block_kv_bytes_per_token,
    sub_block_parameters,
    sub_block_weight_bytes,
    sub_block_workspace_bytes,
)
from puzzlebench.model.parameters import model_parameters, sub_block_norm_parameters
from puzzlebench.model.spec import parent_architecture

ATTENTION = GQA(num_key_value_heads=4)
MLP = GatedMLP(intermediate_size=512)


def test_parameters_by_hand(make_spec):
    spec = make_spec()
    assert sub_block_parameters(spec, ATTENTION) == 128 * (128 + 64 + 64 + 128) + 128
    assert sub_block_parameters(spec, MLP) == 3 * 128 * 512 + 128
    assert sub_block_parameters(spec, Linear()) == 128 * 128 + 128
    assert sub_block_parameters(spec, NoOp()) == 0
    biased = make_spec(qkv_bias=True, attention_output_bias=True, mlp_bias=True)
    assert sub_block_parameters(biased, ATTENTION) - sub_block_parameters(spec, ATTENTION) == 128 + 64 + 64 + 128
    assert sub_block_parameters(biased, MLP) - sub_block_parameters(spec, MLP) == 512 + 512 + 128
    assert sub_block_norm_parameters(make_spec(qk_norm="per_head"), ATTENTION) == 128 + 2 * 16
    assert sub_block_norm_parameters(make_spec(qk_norm="full"), ATTENTION) == 128 + 128 + 64
    assert sub_block_norm_parameters(make_spec(norm_placement="both"), Linear()) == 2 * 128


@pytest.mark.parametrize(("dtype", "bytes_"), [("fp32", 4), ("bf16", 2), ("fp16", 2)])
def test_one_gpu_holds_every_parameter_once(make_spec, dtype, bytes_):
    for spec in (make_spec(qkv_bias=True, mlp_bias=True, qk_norm="full"), make_spec(tie_word_embeddings=True)):
        architecture = parent_architecture(spec)
        expected = bytes_ * model_parameters(spec, architecture)
        assert model_weight_bytes(spec, architecture, weight_dtype=dtype) == expected


def test_fp8_quantises_only_the_matrices_of_blocks(make_spec):
    spec = make_spec(qkv_bias=True)
    matrices = 128 * (128 + 64 + 64 + 128)
    rest = (128 + 64 + 64) + 128  # biases and the norm
    assert sub_block_weight_bytes(spec, ATTENTION, weight_dtype="fp8") == matrices + 2 * rest + 4 * 8
    assert sub_block_weight_bytes(spec, MLP, weight_dtype="fp8") == 3 * 128 * 512 + 2 * 128 + 3 * 8
    assert sub_block_weight_bytes(spec, Linear(), weight_dtype="fp8") == 128 * 128 + 2 * 128 + 8
    assert sub_block_weight_bytes(spec, NoOp(), weight_dtype="fp8") == 0
    for part in (embedding_weight_bytes, head_weight_bytes):
        assert part(spec, weight_dtype="fp8") == part(spec, weight_dtype="bf16")


@pytest.mark.parametrize("tensor_parallel", [1, 2, 4])
def test_matrices_add_up_over_gpus(make_spec, tensor_parallel):
    spec = make_spec(norm_placement="both", qk_norm="per_head")
    for sub in (ATTENTION, MLP, Linear()):
        norms = 2 * sub_block_norm_parameters(spec, sub)
        whole = sub_block_weight_bytes(spec, sub, weight_dtype="bf16")
        share = sub_block_weight_bytes(spec, sub, weight_dtype="bf16", tensor_parallel=tensor_parallel)
        assert tensor_parallel * (share - norms) == whole - norms


def test_biases_follow_their_matrix(make_spec):
    plain, biased = make_spec(), make_spec(qkv_bias=True, attention_output_bias=True, mlp_bias=True)

    def bias_bytes(sub):
        return sub_block_weight_bytes(biased, sub, weight_dtype="bf16", tensor_parallel=2) - sub_block_weight_bytes(
            plain, sub, weight_dtype="bf16", tensor_parallel=2
        )

    assert bias_bytes(ATTENTION) == 2 * ((128 + 64 + 64) // 2 + 128)
    assert bias_bytes(MLP) == 2 * ((512 + 512) // 2 + 128)


def test_key_value_heads_repeat_beyond_their_number(make_spec):
    spec = make_spec()
    sub = GQA(num_key_value_heads=2)
    per_token = {
        gpus: sub_block_kv_bytes_per_token(spec, sub, kv_dtype="bf16", tensor_parallel=gpus) for gpus in (1, 2, 4, 8)
    }
    assert per_token == {1: 2 * 2 * 16 * 2, 2: 2 * 16 * 2, 4: 2 * 16 * 2, 8: 2 * 16 * 2}
    share = sub_block_weight_bytes(spec, sub, weight_dtype="bf16", tensor_parallel=8)
    assert share == 2 * (128 * (16 + 16 + 16 + 16) + 128)


def test_the_vocabulary_is_padded(make_spec):
    spec = make_spec()
    assert embedding_weight_bytes(spec, weight_dtype="bf16", tensor_parallel=8) == 1008 // 8 * 128 * 2
    assert head_weight_bytes(spec, weight_dtype="bf16", tensor_parallel=8) == 1008 // 8 * 128 * 2 + 128 * 2
    assert head_weight_bytes(make_spec(tie_word_embeddings=True), weight_dtype="bf16", tensor_parallel=8) == 128 * 2


def test_what_cannot_be_split_is_named(make_spec):
    spec = make_spec(num_attention_heads=6, num_key_value_heads=3)
    with pytest.raises(ValueError, match="tensor_parallel 4 does not divide num_attention_heads 6 of small"):
        sub_block_weight_bytes(spec, GQA(num_key_value_heads=3), weight_dtype="bf16", tensor_parallel=4)
    with pytest.raises(ValueError, match="neither divides nor is a multiple of the 3 key-value heads"):
        sub_block_kv_bytes_per_token(spec, GQA(num_key_value_heads=3), kv_dtype="bf16", tensor_parallel=2)
    with pytest.raises(ValueError, match="does not divide intermediate_size 500"):
        sub_block_workspace_bytes(spec, GatedMLP(intermediate_size=500), tokens=1, tensor_parallel=8)
    with pytest.raises(ValueError, match="does not divide hidden_size 128"):
        sub_block_weight_bytes(spec, Linear(), weight_dtype="bf16", tensor_parallel=3)
    with pytest.raises(ValueError, match="tensor_parallel must be a whole number of at least 1, not 0"):
        sub_block_weight_bytes(spec, MLP, weight_dtype="bf16", tensor_parallel=0)
    with pytest.raises(ValueError, match="weight_dtype 'int4' is not known; use fp32, bf16, fp16, fp8"):
        sub_block_weight_bytes(spec, NoOp(), weight_dtype="int4")
    with pytest.raises(ValueError, match="kv_dtype 'int8' is not known"):
        sub_block_kv_bytes_per_token(spec, NoOp(), kv_dtype="int8")


def test_llama_70b_cache_per_token():
    spec, architecture = load_model("llama-3.1-70b")
    tokens = kv_cache_bytes(
        spec, architecture, batch_size=1, context_len=1, kv_dtype="fp8", tensor_parallel=1, tokens_per_block=1
    )
    assert tokens == 80 * 2 * 8 * 128


def kv(spec, architecture, **changes):
    arguments = {"batch_size": 1, "context_len": 100, "kv_dtype": "bf16", "tokens_per_block": 1}
    return kv_cache_bytes(spec, architecture, **{**arguments, **changes})


def test_windows_cap_the_cache_and_pages_round_it(make_spec):
    spec = make_spec(sliding_windows=(40, None, 40, 4096))
    architecture = parent_architecture(spec)
    per_token = sub_block_kv_bytes_per_token(spec, ATTENTION, kv_dtype="bf16")
    assert kv(spec, architecture) == per_token * (40 + 100 + 40 + 100)
    assert kv(spec, architecture, tokens_per_block=32) == per_token * (64 + 128 + 64 + 128)
    assert kv(spec, architecture, context_len=20, tokens_per_block=32) == per_token * 4 * 32
    assert kv(spec, architecture, batch_size=3, tokens_per_block=64) == 3 * kv(spec, architecture, tokens_per_block=64)


def test_layers_without_attention_cache_nothing(make_spec):
    spec = make_spec()
    blocks = parent_architecture(spec).blocks
    pruned = Architecture(
        blocks=(blocks[0], blocks[1], Block(attention=NoOp(), ffn=MLP), Block(attention=Linear(), ffn=MLP))
    )
    assert 2 * kv(spec, pruned) == kv(spec, parent_architecture(spec))


def test_workspace_by_hand(make_spec):
    spec = make_spec()
    assert sub_block_workspace_bytes(spec, ATTENTION, tokens=10) == 10 * 2 * (2 * 128 + 128 + 64 + 64 + 128)
    assert sub_block_workspace_bytes(spec, MLP, tokens=10) == 10 * 2 * (2 * 128 + 3 * 512)
    assert sub_block_workspace_bytes(spec, MLP, tokens=10, tensor_parallel=4) == 10 * 2 * (2 * 128 + 3 * 128)
    assert sub_block_workspace_bytes(spec, Linear(), tokens=10) == 10 * 2 * 2 * 128
    assert sub_block_workspace_bytes(spec, NoOp(), tokens=10) == 0


SERVING = {"prefill_len": 64, "context_len": 128, "weight_dtype": "fp8", "kv_dtype": "fp8"}


def test_model_memory_is_the_sum_of_its_parts(make_spec):
    spec = make_spec()
    architecture = parent_architecture(spec)
    memory = model_memory(spec, architecture, batch_size=4, max_num_tokens=100, **SERVING)
    assert memory.weights_bytes == model_weight_bytes(spec, architecture, weight_dtype="fp8")
    assert memory.kv_cache_bytes == kv_cache_bytes(spec, architecture, batch_size=4, context_len=128, kv_dtype="fp8")
    assert memory.workspace_bytes == 100 * 2 * (2 * 128 + 3 * 512) + 100 * 128 * 2 + 4 * 1001 * 4
    assert memory.total_bytes == memory.weights_bytes + memory.kv_cache_bytes + memory.workspace_bytes


def test_a_context_shorter_than_the_prompt_is_refused(make_spec):
    spec = make_spec()
    with pytest.raises(ValueError, match="context_len 63 is shorter than prefill_len 64"):
        model_memory(spec, parent_architecture(spec), batch_size=1, **{**SERVING, "context_len": 63})


@given(st.integers(0, 10**8))
def test_largest_batch_is_the_last_that_fits(capacity_bytes):
    spec, architecture = load_model("qwen2.5-0.5b")
    capacity_bytes += 900_000_000
    batch_size = largest_batch(spec, architecture, capacity_bytes=capacity_bytes, **{**SERVING, "weight_dtype": "bf16"})

    def total(size):
        return model_memory(spec, architecture, batch_size=size, **{**SERVING, "weight_dtype": "bf16"}).total_bytes

    assert batch_size == 0 or total(batch_size) <= capacity_bytes
    assert total(batch_size + 1) > capacity_bytes


def test_no_batch_fits_a_gpu_that_is_too_small():
    spec, architecture = load_model("llama-3.1-70b")
    assert largest_batch(spec, architecture, capacity_bytes=80 * 10**9, **{**SERVING, "weight_dtype": "bf16"}) == 0
    assert largest_batch(spec, architecture, capacity_bytes=80 * 10**9, **SERVING) > 0
    with pytest.raises(ValueError, match="capacity_bytes must not be negative"):
        largest_batch(spec, architecture, capacity_bytes=-1, **SERVING)
