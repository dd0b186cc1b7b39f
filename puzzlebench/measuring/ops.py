"""The operations a decoder layer is made of, in plain torch; `triton_ops` replaces the memory-bound ones.

Tensors in, tensors out; knows no sub-blocks. Every method can be captured in a CUDA graph: shapes are fixed by the
`AttentionStep`, and nothing waits for the device. Legend: T tokens of a step, H hidden size, B sequences, C tokens in a
cache, D head size.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from puzzlebench.measuring.weights import Dense, Fp8
from puzzlebench.profiling.block_costs import Phase

NORM_EPSILON = 1e-5
"""Of random weights; a checkpoint states its own."""
ROPE_BASE = 500_000.0
"""Of random weights; a checkpoint states its own."""
CACHE_ROOM = 64
"""Tokens to come that a dense cache has room for, as one has in the midst of generation. Without it the keys of all
heads lie side by side, and decode attention on a CPU reads them 10 to 20 % faster than it ever does while generating.
"""
_FP8_LARGEST = 448.0


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionStep:
    """The fixed sizes of one attention call.

    Attributes:
        length: prompt length in prefill; tokens in the cache in decode, the current one included.
        window: sliding window in tokens, or None.
        rotation: RoPE angles (cos, sin), each [length, D / 2] float32, for positions 0 to length - 1.
    """

    phase: Phase
    batch_size: int
    length: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None
    rotation: tuple[torch.Tensor, torch.Tensor]

    @property
    def tokens(self) -> int:
        """Tokens that run through the layer."""
        return self.batch_size * (self.length if self.phase == "prefill" else 1)

    @property
    def cached(self) -> int:
        """Tokens a sequence holds in the cache after the step."""
        return self.length if self.window is None else min(self.length, self.window)


class Cache(Protocol):
    """Keys and values of one layer, in whatever layout the operations use."""


class Ops(Protocol):
    """What an implementation provides."""

    name: str

    def cache_bytes(self, step: AttentionStep) -> int:
        """Bytes of one cache for this step."""

    def new_cache(self, step: AttentionStep, storage: torch.Tensor) -> Cache:
        """A cache over `cache_bytes` bytes of storage (uint8), whose contents it keeps."""

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """RMSNorm over the last dimension."""

    def add_norm(
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm(x + residual), x + residual), both [T, H]."""

    def matmul(self, x: torch.Tensor, matrix: Dense | Fp8) -> torch.Tensor:
        """[T, inputs] to [T, outputs]."""

    def swiglu(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up, [T, 2 x width] to [T, width]."""

    def attend(self, qkv: torch.Tensor, cache: Cache, step: AttentionStep) -> torch.Tensor:
        """Rotate queries and keys, append to the cache and attend: [T, (heads + 2 kv heads) D] to [T, heads D]."""


@functools.cache
def rotation(
    length: int, head_dim: int, device: torch.device, base: float = ROPE_BASE
) -> tuple[torch.Tensor, torch.Tensor]:
    """RoPE angles for positions 0 to length - 1: (cos, sin), each [length, head_dim / 2] float32."""
    return rotation_of(base ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim), length)


def rotation_of(
    frequencies: torch.Tensor, length: int, *, attention_scale: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from a model's own frequencies [head_dim / 2], scaled ones too.

    Args:
        attention_scale: factor of cos and sin (YaRN, arXiv 2309.00071).
    """
    positions = torch.arange(length, device=frequencies.device, dtype=torch.float32)
    angles = positions[:, None] * frequencies.float()
    return angles.cos() * attention_scale, angles.sin() * attention_scale


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseCache:
    """Keys and values, each [B, kv heads, C, D] of a storage with room for more, and the RoPE angles of the step in the
    activations' dtype.
    """

    keys: torch.Tensor
    values: torch.Tensor
    cosine: torch.Tensor
    sine: torch.Tensor


class TorchOps:
    """cuBLAS or oneDNN through F.linear, torch._scaled_mm for fp8, and scaled_dot_product_attention."""

    name = "torch"

    def __init__(self, cache_dtype: torch.dtype, norm_epsilon: float = NORM_EPSILON) -> None:
        self._cache_dtype, self._norm_epsilon = cache_dtype, norm_epsilon

    def cache_bytes(self, step: AttentionStep) -> int:
        """Bytes of one cache for this step."""
        elements = 2 * step.batch_size * step.num_kv_heads * (step.cached + CACHE_ROOM) * step.head_dim
        return elements * self._cache_dtype.itemsize

    def new_cache(self, step: AttentionStep, storage: torch.Tensor) -> Cache:
        """A `DenseCache` over the storage."""
        shape = (2, step.batch_size, step.num_kv_heads, step.cached + CACHE_ROOM, step.head_dim)
        keys, values = storage.view(self._cache_dtype).view(shape)[:, :, :, : step.cached]
        cosine, sine = (angles[:, None].to(self._cache_dtype) for angles in step.rotation)
        if step.phase == "decode":
            cosine, sine = cosine[-1:], sine[-1:]
        return DenseCache(keys=keys, values=values, cosine=cosine, sine=sine)

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """RMSNorm over the last dimension."""
        return F.rms_norm(x, weight.shape, weight, self._norm_epsilon)

    def add_norm(
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm(x + residual), x + residual)."""
        total = x if residual is None else x + residual
        return self.norm(total, weight), total

    def matmul(self, x: torch.Tensor, matrix: Dense | Fp8) -> torch.Tensor:
        """[T, inputs] to [T, outputs]; fp8 quantises the input with its static scale first."""
        if isinstance(matrix, Dense):
            return F.linear(x, matrix.weight, matrix.bias)
        product: torch.Tensor = torch._scaled_mm(
            self.quantise(x, matrix.input_scale_value),
            matrix.weight.t(),
            scale_a=matrix.input_scale,
            scale_b=matrix.scale,
            bias=matrix.bias,
            out_dtype=x.dtype,
            use_fast_accum=True,
        )
        return product

    def quantise(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        """x / scale in float8_e4m3fn, saturated; three kernels here."""
        return (x * (1.0 / scale)).clamp_(-_FP8_LARGEST, _FP8_LARGEST).to(torch.float8_e4m3fn)

    def swiglu(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def attend(self, qkv: torch.Tensor, cache: Cache, step: AttentionStep) -> torch.Tensor:
        """Rotate, append, attend."""
        assert isinstance(cache, DenseCache)
        rows = step.length if step.phase == "prefill" else 1
        heads, kv_heads = step.num_heads, step.num_kv_heads
        shaped = qkv.view(step.batch_size, rows, heads + 2 * kv_heads, step.head_dim)
        rotated = _rotate(shaped[:, :, : heads + kv_heads], cache).transpose(1, 2)
        queries, keys = rotated[:, :heads], rotated[:, heads:]
        values = shaped[:, :, heads + kv_heads :].transpose(1, 2)
        if step.phase == "decode":
            cache.keys[:, :, -1:] = keys
            cache.values[:, :, -1:] = values
            # The queries of a group read the same keys: one attention of `group` rows, nothing expanded.
            grouped = queries.reshape(step.batch_size, kv_heads, heads // kv_heads, step.head_dim)
            with _decode_backends(qkv.device):
                out = F.scaled_dot_product_attention(grouped, cache.keys, cache.values)
            return out.reshape(step.batch_size, heads * step.head_dim)
        cache.keys.copy_(keys[:, :, -step.cached :])
        cache.values.copy_(values[:, :, -step.cached :])
        return self._attend_prompt(queries, keys, values, step)

    def _attend_prompt(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: AttentionStep
    ) -> torch.Tensor:
        windowed = step.window is not None and step.window < step.length
        mask = _window_mask(step.length, step.window or 0, queries.device) if windowed else None
        grouped = step.num_heads != step.num_kv_heads
        out = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped
        )
        return out.transpose(1, 2).reshape(step.tokens, step.num_heads * step.head_dim)


def _rotate(x: torch.Tensor, cache: DenseCache) -> torch.Tensor:
    """Rotate [B, rows, heads, D] by its positions, halves against each other as Llama does."""
    first, second = x.chunk(2, dim=-1)
    cosine, sine = cache.cosine, cache.sine
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def _decode_backends(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """On a GPU, flash attention first: it splits long caches over the multiprocessors, which cuDNN's may not."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(order, set_priority=True)


@functools.cache
def _window_mask(length: int, window: int, device: torch.device) -> torch.Tensor:
    """[length, length], true where a query may see a key."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position
    return (distance >= 0) & (distance < window)
