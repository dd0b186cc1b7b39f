"""Rotary embedding of queries and keys in place, and keys and values appended to a paged cache, in one pass.

T: tokens. D: head size. This module knows nothing of how rotary tables are scaled, nor of who owns which page.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from puzzlebench_kernels._launch import FLOATS, FP8, accumulator, check, multiprocessors, on_device_of

FP8_MAX = 448.0
TILE = 1024  # element pairs per program: one 16-byte bf16 vector per lane and half at 4 warps


@triton.jit  # type: ignore[untyped-decorator]
def _to_cache(values: tl.tensor, scale: float, cache: tl.tensor, quantised: tl.constexpr) -> tl.tensor:
    if quantised:
        values = tl.clamp(tl.div_rn(values, scale), -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    return values.to(cache.dtype.element_ty)


@triton.jit  # type: ignore[untyped-decorator]
def _rope_append_kernel(
    qkv: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    positions: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    slots: tl.tensor,
    key_scale: float,
    value_scale: float,
    num_heads: int,
    num_kv_heads: int,
    head_blocks: int,
    half: tl.constexpr,
    quantised: tl.constexpr,
    block_heads: tl.constexpr,
    block_half: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    token = (program // head_blocks).to(tl.int64)
    # The heads of a row: queries, then keys, then values.
    head = ((program % head_blocks) * block_heads + tl.arange(0, block_heads))[:, None]
    lane = tl.arange(0, block_half)[None, :]
    first_value = num_heads + num_kv_heads
    heads = first_value + num_kv_heads
    mask = (head < heads) & (lane < half)
    rotates = head < first_value

    angle = tl.load(positions + token).to(tl.int64) * half + lane
    c = tl.load(cos + angle, mask=lane < half, other=0.0)
    s = tl.load(sin + angle, mask=lane < half, other=0.0)
    row = qkv + (token * heads + head) * (2 * half) + lane
    low = tl.load(row, mask=mask, other=0.0)
    high = tl.load(row + half, mask=mask, other=0.0)
    low_32 = low.to(tl.float32)
    high_32 = high.to(tl.float32)
    # What the cache holds is what the row holds: keys are rounded to the dtype of qkv first.
    low = tl.where(rotates, (low_32 * c - high_32 * s).to(low.dtype), low)
    high = tl.where(rotates, (high_32 * c + low_32 * s).to(high.dtype), high)
    tl.store(row, low, mask=mask & rotates)
    tl.store(row + half, high, mask=mask & rotates)

    slot = tl.load(slots + token)
    if slot >= 0:
        low_32 = low.to(tl.float32)
        high_32 = high.to(tl.float32)
        is_key = mask & rotates & (head >= num_heads)
        key = key_cache + (slot * num_kv_heads + head - num_heads) * (2 * half) + lane
        tl.store(key, _to_cache(low_32, key_scale, key_cache, quantised), mask=is_key)
        tl.store(key + half, _to_cache(high_32, key_scale, key_cache, quantised), mask=is_key)
        is_value = mask & (head >= first_value)
        value = value_cache + (slot * num_kv_heads + head - first_value) * (2 * half) + lane
        tl.store(value, _to_cache(low_32, value_scale, value_cache, quantised), mask=is_value)
        tl.store(value + half, _to_cache(high_32, value_scale, value_cache, quantised), mask=is_value)


def rope_append_(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slots: torch.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> None:
    """Rotate the queries and keys of `qkv` in place and append its keys and values to the paged caches.

    The rotation pairs element i with i + head_dim / 2, as in Hugging Face's Llama (Su et al. 2021, arXiv 2104.09864).
    Cached keys are the rotated keys as `qkv` holds them afterwards; float8 caches hold them divided by the scale and
    clamped to ±448. Not autotuned: a trial run would rotate twice.

    Positions and slots are read on the device and not checked; two tokens must not share a slot.

    Args:
        qkv: [T, (num_heads + 2 * num_kv_heads) * head_dim], contiguous, bf16, fp16 or fp32; changed in place.
        cos: [max_positions, head_dim / 2], fp32.
        sin: like `cos`.
        positions: [T], int32: row of `cos` and `sin` for each token.
        key_cache: [num_pages, page_size, num_kv_heads, head_dim], bf16, fp16, fp32 or float8_e4m3fn; changed in place.
        value_cache: like `key_cache`.
        slots: [T], int64: page * page_size + offset in the page; a negative slot is not appended.
        num_heads: query heads.
        num_kv_heads: key heads, and value heads.
        head_dim: elements per head; even, 2 to 512.
        key_scale: divisor of keys in a float8 cache; must be 1 for other dtypes.
        value_scale: divisor of values, likewise.

    Raises:
        ValueError: a shape, dtype, device or stride is wrong, or a scale is not positive or not applicable.
    """
    if num_heads < 1 or num_kv_heads < 1:
        raise ValueError(f"num_heads is {num_heads} and num_kv_heads {num_kv_heads}; both must be at least 1")
    if head_dim % 2 or not 2 <= head_dim <= 512:
        raise ValueError(f"head_dim is {head_dim}; it must be even, 2 to 512")
    heads = num_heads + 2 * num_kv_heads
    half = head_dim // 2
    check("qkv", qkv, dtypes=FLOATS, shape=(None, heads * head_dim))
    tokens = qkv.shape[0]
    check("cos", cos, dtypes=(torch.float32,), shape=(None, half), device=qkv.device)
    check("sin", sin, dtypes=(torch.float32,), shape=(cos.shape[0], half), device=qkv.device)
    check("positions", positions, dtypes=(torch.int32,), shape=(tokens,), device=qkv.device)
    cache_shape = (None, None, num_kv_heads, head_dim)
    check("key_cache", key_cache, dtypes=(*FLOATS, FP8), shape=cache_shape, device=qkv.device)
    check("value_cache", value_cache, dtypes=(key_cache.dtype,), shape=tuple(key_cache.shape), device=qkv.device)
    check("slots", slots, dtypes=(torch.int64,), shape=(tokens,), device=qkv.device)
    quantised = key_cache.dtype == FP8
    for name, scale in (("key_scale", key_scale), ("value_scale", value_scale)):
        if not 0 < scale < float("inf"):
            raise ValueError(f"{name} is {scale}; it must be positive and finite")
        if not quantised and scale != 1:
            raise ValueError(f"{name} is {scale}; only a float8_e4m3fn cache is scaled, not {key_cache.dtype}")
    if tokens == 0:
        return
    block_half = triton.next_power_of_2(half)
    block_heads = min(max(1, TILE // block_half), triton.next_power_of_2(heads))
    while block_heads > 1 and tokens * triton.cdiv(heads, block_heads) < 2 * multiprocessors(qkv.device):
        block_heads //= 2
    head_blocks = triton.cdiv(heads, block_heads)
    with on_device_of(qkv):
        _rope_append_kernel[(tokens * head_blocks,)](
            qkv,
            cos,
            sin,
            positions,
            key_cache,
            value_cache,
            slots,
            float(key_scale),
            float(value_scale),
            num_heads,
            num_kv_heads,
            head_blocks,
            half=half,
            quantised=quantised,
            block_heads=block_heads,
            block_half=block_half,
            num_warps=min(4, max(1, block_heads * block_half // 256)),
        )


def rope_append_reference(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slots: torch.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same in torch, out of place: returns (qkv, key_cache, value_cache). Float64 when given a float64 `qkv`."""
    tokens = qkv.shape[0]
    heads = qkv.view(tokens, -1, head_dim)
    rotating, values = heads[:, : num_heads + num_kv_heads], heads[:, num_heads + num_kv_heads :]
    low, high = rotating.to(accumulator(qkv.dtype)).chunk(2, dim=-1)
    c, s = cos[positions][:, None].to(low.dtype), sin[positions][:, None].to(low.dtype)
    rotated = torch.cat((low * c - high * s, high * c + low * s), dim=-1).to(qkv.dtype)
    kept = slots >= 0
    caches = []
    for cache, rows, scale in ((key_cache, rotated[:, num_heads:], key_scale), (value_cache, values, value_scale)):
        appended = rows[kept].to(accumulator(qkv.dtype))
        if cache.dtype == FP8:
            appended = (appended / scale).clamp(-FP8_MAX, FP8_MAX)
        new = cache.clone()
        flat = new.view(-1, num_kv_heads, head_dim)
        # As bytes: torch has no index_put for float8.
        flat.view(torch.uint8)[slots[kept]] = appended.to(cache.dtype).contiguous().view(torch.uint8)
        caches.append(new)
    return torch.cat((rotated, values), dim=1).reshape(qkv.shape), caches[0], caches[1]
