"""The operations of `ops` with our Triton kernels for the memory-bound ones, and a paged key-value cache.

Matrices and the attention of prompts stay with torch. Pages of a sequence are scattered, as a server's are after a
while. An fp8 cache holds keys and values with a scale of one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import metadata
from typing import Final

import torch

from puzzlebench.measuring.ops import NORM_EPSILON, AttentionStep, Cache, TorchOps
from puzzlebench.measuring.weights import ACTIVATION_DTYPES
from puzzlebench.scenario import Precision

PAGE_SIZE: Final = 32


def triton_version() -> str:
    """Version of the installed Triton.

    Raises:
        ValueError: there is none.
    """
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        raise ValueError("the triton engine needs Triton: pip install triton") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class PagedCache:
    """Pages of keys and values, [pages, PAGE_SIZE, kv heads, D], and where the step's tokens go.

    Attributes:
        page_table: [B, pages of a sequence] int32.
        lengths: [B] int32, tokens in the cache after the step.
        positions: [T] int32, of the step's tokens.
        slots: [T] int64, page x PAGE_SIZE + offset of each token; -1 for one that the window has passed.
    """

    keys: torch.Tensor
    values: torch.Tensor
    page_table: torch.Tensor
    lengths: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor


class TritonOps(TorchOps):
    """Fused residual and norm, SwiGLU, RoPE with append, and split-KV decode attention from `puzzlebench_kernels`."""

    name = "triton"

    def __init__(self, precision: Precision) -> None:
        activations = ACTIVATION_DTYPES[precision.weight_dtype]
        cache = torch.float8_e4m3fn if precision.kv_dtype == "fp8" else ACTIVATION_DTYPES[precision.kv_dtype]
        if cache not in (activations, torch.float8_e4m3fn):
            raise ValueError(
                f"the triton engine keeps the cache in fp8 or the activations' dtype, not {precision.kv_dtype} under "
                f"{precision.weight_dtype} weights"
            )
        super().__init__(cache)

    def cache_bytes(self, step: AttentionStep) -> int:
        """Bytes of one cache for this step, whole pages."""
        elements = 2 * step.batch_size * _pages(step) * PAGE_SIZE * step.num_kv_heads * step.head_dim
        return elements * self._cache_dtype.itemsize

    def new_cache(self, step: AttentionStep, storage: torch.Tensor) -> Cache:
        """A `PagedCache` over the storage, its pages in random order."""
        device, pages = storage.device, _pages(step)
        shape = (2, step.batch_size * pages, PAGE_SIZE, step.num_kv_heads, step.head_dim)
        keys, values = storage.view(self._cache_dtype).view(shape)
        order = torch.randperm(step.batch_size * pages, generator=torch.Generator().manual_seed(pages))
        table = order.view(step.batch_size, pages)
        rows = torch.arange(step.length) if step.phase == "prefill" else torch.tensor([step.length - 1])
        kept = rows - (step.length - step.cached)  # place in the cache; negative once the window has passed
        page = table[:, kept.clamp(min=0) // PAGE_SIZE]
        slots = torch.where(kept >= 0, page * PAGE_SIZE + kept.clamp(min=0) % PAGE_SIZE, -1)
        return PagedCache(
            keys=keys,
            values=values,
            page_table=table.to(device, torch.int32),
            lengths=torch.full((step.batch_size,), step.cached, dtype=torch.int32, device=device),
            positions=rows.repeat(step.batch_size).to(device, torch.int32),
            slots=slots.reshape(-1).to(device, torch.int64),
        )

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """RMSNorm over the last dimension."""
        return self.add_norm(x, None, weight)[0]

    def add_norm(
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm(x + residual), x + residual) in one kernel."""
        from puzzlebench_kernels.rms_norm import add_rms_norm

        return add_rms_norm(x, residual, weight, NORM_EPSILON)

    def quantise(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        """x / scale in float8_e4m3fn, saturated, in one kernel."""
        from puzzlebench_kernels.quantise import quantise_fp8

        return quantise_fp8(x, scale)

    def swiglu(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up in one kernel."""
        from puzzlebench_kernels.swiglu import swiglu

        return swiglu(gate_up)

    def attend(self, qkv: torch.Tensor, cache: Cache, step: AttentionStep) -> torch.Tensor:
        """Rotate and append in one kernel; decode attends to the pages, prefill to the prompt's own keys."""
        from puzzlebench_kernels.decode_attention import paged_decode_attention
        from puzzlebench_kernels.rope_append import rope_append_

        assert isinstance(cache, PagedCache)
        cosine, sine = step.rotation
        rope_append_(
            qkv,
            cosine,
            sine,
            cache.positions,
            cache.keys,
            cache.values,
            cache.slots,
            num_heads=step.num_heads,
            num_kv_heads=step.num_kv_heads,
            head_dim=step.head_dim,
        )
        heads, kv_heads = step.num_heads, step.num_kv_heads
        if step.phase == "decode":
            queries = qkv.view(step.batch_size, heads + 2 * kv_heads, step.head_dim)[:, :heads]
            out = paged_decode_attention(
                queries, cache.keys, cache.values, cache.page_table, cache.lengths, max_length=step.cached
            )
            return out.view(step.batch_size, heads * step.head_dim)
        shaped = qkv.view(step.batch_size, step.length, heads + 2 * kv_heads, step.head_dim).transpose(1, 2)
        return self._attend_prompt(
            shaped[:, :heads], shaped[:, heads : heads + kv_heads], shaped[:, heads + kv_heads :], step
        )


def _pages(step: AttentionStep) -> int:
    return math.ceil(step.cached / PAGE_SIZE)
