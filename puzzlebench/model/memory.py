"""Bytes per GPU: weights, key-value cache and workspace of sub-blocks and of whole models.

Knows shapes, number formats and tensor parallelism; knows nothing about time, engines' allocators or CUDA contexts (an
engine's fixed overhead is the caller's to subtract from the capacity). Parameter counts live in `parameters` and are
offered here too.

Norms are on every GPU, and so are the biases of row-split matrices; how the rest is split is in `sharding`.
"""

import math
from dataclasses import dataclass

from puzzlebench.model.blocks import GQA, Architecture, GatedMLP, Linear, NoOp, SubBlock
from puzzlebench.model.checks import require_positive_int
from puzzlebench.model.dtypes import (
    KVDtype,
    WeightDtype,
    kv_dtype_bytes,
    unquantised_dtype_bytes,
    weight_dtype_bytes,
)
from puzzlebench.model.parameters import (
    count_sub_blocks,
    embedding_parameters,
    head_parameters,
    model_parameters,
    sub_block_matrices,
    sub_block_norm_parameters,
    sub_block_parameters,
)
from puzzlebench.model.sharding import heads_per_gpu, padded_vocab_size, split_evenly, split_features
from puzzlebench.model.spec import ModelSpec, check_architecture

__all__ = [
    "MemoryBreakdown",
    "embedding_parameters",
    "embedding_weight_bytes",
    "head_parameters",
    "head_weight_bytes",
    "kv_cache_bytes",
    "largest_batch",
    "model_memory",
    "model_parameters",
    "model_weight_bytes",
    "sub_block_kv_bytes_per_token",
    "sub_block_parameters",
    "sub_block_weight_bytes",
    "sub_block_workspace_bytes",
]

FP8_SCALE_BYTES_PER_MATRIX = 8
"""A static fp8 checkpoint stores one float32 weight scale and one float32 input scale per quantised matrix."""

ACTIVATION_BYTES = 2
"""Activations are bf16 whatever the weights are."""

LOGIT_BYTES = 4
"""Logits are fp32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryBreakdown:
    """What one GPU holds while serving."""

    weights_bytes: int
    kv_cache_bytes: int
    workspace_bytes: int

    @property
    def total_bytes(self) -> int:
        """The sum of the three."""
        return self.weights_bytes + self.kv_cache_bytes + self.workspace_bytes


def sub_block_weight_bytes(
    spec: ModelSpec, sub: SubBlock, *, weight_dtype: WeightDtype, tensor_parallel: int = 1
) -> int:
    """Weight bytes of a sub-block on one GPU.

    Under fp8 the matrices take one byte per weight and `FP8_SCALE_BYTES_PER_MATRIX` each (q, k and v are three
    matrices, gate and up two); norms and biases stay at two bytes.

    Raises:
        ValueError: the sub-block cannot be split over `tensor_parallel` GPUs.
    """
    matrix_bytes = weight_dtype_bytes(weight_dtype)
    rest_bytes = unquantised_dtype_bytes(weight_dtype)
    total = sub_block_norm_parameters(spec, sub) * rest_bytes
    for matrix in sub_block_matrices(spec, sub):
        split = split_features(spec, matrix, tensor_parallel)
        other = matrix.input_features if matrix.shard == "column" else matrix.output_features
        total += split * other * matrix_bytes
        if weight_dtype == "fp8":
            total += FP8_SCALE_BYTES_PER_MATRIX
        if matrix.bias:
            total += (split if matrix.shard == "column" else matrix.output_features) * rest_bytes
    return total


def embedding_weight_bytes(spec: ModelSpec, *, weight_dtype: WeightDtype, tensor_parallel: int = 1) -> int:
    """Bytes of the token embeddings on one GPU: rows of the padded vocabulary, never quantised."""
    rows = padded_vocab_size(spec, tensor_parallel) // tensor_parallel
    return rows * spec.hidden_size * unquantised_dtype_bytes(weight_dtype)


def head_weight_bytes(spec: ModelSpec, *, weight_dtype: WeightDtype, tensor_parallel: int = 1) -> int:
    """Bytes of the final norm and, unless tied, of the output matrix on one GPU; never quantised."""
    norm = spec.hidden_size * unquantised_dtype_bytes(weight_dtype)
    if spec.tie_word_embeddings:
        return norm
    return norm + embedding_weight_bytes(spec, weight_dtype=weight_dtype, tensor_parallel=tensor_parallel)


def model_weight_bytes(
    spec: ModelSpec, architecture: Architecture, *, weight_dtype: WeightDtype, tensor_parallel: int = 1
) -> int:
    """Weight bytes of the whole model on one GPU."""
    check_architecture(spec, architecture)
    blocks = sum(
        count * sub_block_weight_bytes(spec, sub, weight_dtype=weight_dtype, tensor_parallel=tensor_parallel)
        for sub, count in count_sub_blocks(architecture).items()
    )
    embedding = embedding_weight_bytes(spec, weight_dtype=weight_dtype, tensor_parallel=tensor_parallel)
    head = head_weight_bytes(spec, weight_dtype=weight_dtype, tensor_parallel=tensor_parallel)
    return embedding + blocks + head


def sub_block_kv_bytes_per_token(spec: ModelSpec, sub: SubBlock, *, kv_dtype: KVDtype, tensor_parallel: int = 1) -> int:
    """Key and value bytes one cached token takes on one GPU; 0 for anything but GQA."""
    element_bytes = kv_dtype_bytes(kv_dtype)
    if not isinstance(sub, GQA):
        return 0
    return 2 * heads_per_gpu(spec, sub.num_key_value_heads, tensor_parallel) * spec.head_dim * element_bytes


def kv_cache_bytes(
    spec: ModelSpec,
    architecture: Architecture,
    *,
    batch_size: int,
    context_len: int,
    kv_dtype: KVDtype,
    tensor_parallel: int = 1,
    tokens_per_block: int = 32,
) -> int:
    """Bytes of the paged cache on one GPU when every sequence holds `context_len` tokens.

    Each sequence takes whole pages of `tokens_per_block` tokens in each layer; a layer with a sliding window caches at
    most the window.
    """
    check_architecture(spec, architecture)
    require_positive_int("batch_size", batch_size)
    require_positive_int("context_len", context_len)
    require_positive_int("tokens_per_block", tokens_per_block)
    total = 0
    for sub, count in count_sub_blocks(architecture).items():
        if isinstance(sub, GQA):
            tokens = context_len if sub.sliding_window is None else min(context_len, sub.sliding_window)
            paged_tokens = math.ceil(tokens / tokens_per_block) * tokens_per_block
            per_token = sub_block_kv_bytes_per_token(spec, sub, kv_dtype=kv_dtype, tensor_parallel=tensor_parallel)
            total += count * batch_size * paged_tokens * per_token
    return total


def sub_block_workspace_bytes(spec: ModelSpec, sub: SubBlock, *, tokens: int, tensor_parallel: int = 1) -> int:
    """Activation bytes alive inside a sub-block on one GPU, in bf16, nothing freed or fused before its end.

    Per token, with H the hidden size and the rest per GPU:
        GQA: input H + q, k, v (heads + 2 x kv heads) x head_dim + attention output heads x head_dim + output H
        MLP: input H + gate and up 2 x width + their product width + output H
        Linear: input H + output H
    Flash attention keeps no score matrix, so nothing grows with the square of the length.
    """
    require_positive_int("tokens", tokens)
    require_positive_int("tensor_parallel", tensor_parallel)
    per_token = 2 * spec.hidden_size
    match sub:
        case GQA(num_key_value_heads=kv_heads):
            heads = heads_per_gpu(spec, spec.num_attention_heads, tensor_parallel)
            kv_heads = heads_per_gpu(spec, kv_heads, tensor_parallel)
            per_token += (2 * heads + 2 * kv_heads) * spec.head_dim
        case GatedMLP(intermediate_size=width):
            per_token += 3 * split_evenly(spec, "intermediate_size", width, tensor_parallel)
        case Linear():
            pass
        case NoOp():
            per_token = 0
    return tokens * per_token * ACTIVATION_BYTES


def model_memory(
    spec: ModelSpec,
    architecture: Architecture,
    *,
    batch_size: int,
    prefill_len: int,
    context_len: int,
    weight_dtype: WeightDtype,
    kv_dtype: KVDtype,
    tensor_parallel: int = 1,
    max_num_tokens: int = 8192,
    tokens_per_block: int = 32,
) -> MemoryBreakdown:
    """What one GPU holds when `batch_size` sequences have grown to `context_len` tokens.

    Workspace is the largest sub-block's at min(batch_size x prefill_len, max_num_tokens) tokens (longer prefills run
    in chunks), the residual stream of those tokens, and one row of fp32 logits over the padded vocabulary per sequence.
    """
    require_positive_int("prefill_len", prefill_len)
    require_positive_int("max_num_tokens", max_num_tokens)
    if context_len < prefill_len:
        raise ValueError(
            f"context_len {context_len} is shorter than prefill_len {prefill_len}; it must hold the prompt"
        )
    kv_bytes = kv_cache_bytes(
        spec,
        architecture,
        batch_size=batch_size,
        context_len=context_len,
        kv_dtype=kv_dtype,
        tensor_parallel=tensor_parallel,
        tokens_per_block=tokens_per_block,
    )
    tokens = min(batch_size * prefill_len, max_num_tokens)
    largest = max(
        sub_block_workspace_bytes(spec, sub, tokens=tokens, tensor_parallel=tensor_parallel)
        for sub in count_sub_blocks(architecture)
    )
    residual = tokens * spec.hidden_size * ACTIVATION_BYTES
    logits = batch_size * padded_vocab_size(spec, tensor_parallel) * LOGIT_BYTES
    return MemoryBreakdown(
        weights_bytes=model_weight_bytes(
            spec, architecture, weight_dtype=weight_dtype, tensor_parallel=tensor_parallel
        ),
        kv_cache_bytes=kv_bytes,
        workspace_bytes=largest + residual + logits,
    )


def largest_batch(
    spec: ModelSpec,
    architecture: Architecture,
    *,
    capacity_bytes: int,
    prefill_len: int,
    context_len: int,
    weight_dtype: WeightDtype,
    kv_dtype: KVDtype,
    tensor_parallel: int = 1,
    max_num_tokens: int = 8192,
    tokens_per_block: int = 32,
) -> int:
    """The largest batch whose `model_memory` is at most `capacity_bytes` per GPU; 0 when not even one sequence fits."""
    if capacity_bytes < 0:
        raise ValueError(f"capacity_bytes must not be negative, but is {capacity_bytes}")

    def fits(batch_size: int) -> bool:
        memory = model_memory(
            spec,
            architecture,
            batch_size=batch_size,
            prefill_len=prefill_len,
            context_len=context_len,
            weight_dtype=weight_dtype,
            kv_dtype=kv_dtype,
            tensor_parallel=tensor_parallel,
            max_num_tokens=max_num_tokens,
            tokens_per_block=tokens_per_block,
        )
        return memory.total_bytes <= capacity_bytes

    if not fits(1):
        return 0
    # Memory grows with the batch (the logits alone do), so bisect between a batch that fits and one that cannot.
    low, high = 1, int(capacity_bytes) // (spec.vocab_size * LOGIT_BYTES) + 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
