"""Attention of one new token per sequence over a paged cache, split along the cache (flash-decoding).

B: sequences. D: head size. A group is the query heads that share a kv head: one program handles a group (padded to the
16 rows a matrix instruction needs), so each cached element is read once. This module knows nothing of who owns which
page.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from puzzlebench_kernels._launch import FLOATS, FP8, accumulator, check, multiprocessors, on_device_of

LOG2_E = 1.4426950408889634
MIN_ROWS = 16  # rows of the smallest matrix instruction
MAX_ROWS = 64  # larger groups take several programs
MAX_ROWS_FP32 = 16  # float32 products use no matrix instruction: 64 rows do not fit the registers
TILE_BYTES = 16384  # of keys per step: with as many of values in flight, and 4 programs resident, 128 KiB
MAX_SPLITS = 256
SPLITS_PER_STEP = 16  # of the reduction


@triton.jit  # type: ignore[untyped-decorator]
def _decode_kernel(
    query: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    page_table: tl.tensor,
    lengths: tl.tensor,
    out: tl.tensor,
    partial: tl.tensor,
    partial_max: tl.tensor,
    partial_sum: tl.tensor,
    score_scale: float,
    value_scale: float,
    query_stride: int,
    num_kv_heads: int,
    max_pages: int,
    window: int,
    num_splits: int,
    group: tl.constexpr,
    head_dim: tl.constexpr,
    page_size: tl.constexpr,
    split: tl.constexpr,
    block_g: tl.constexpr,
    block_d: tl.constexpr,
    block_n: tl.constexpr,
) -> None:
    part = tl.program_id(0) % num_splits
    program = tl.program_id(0) // num_splits
    tiles: tl.constexpr = (group + block_g - 1) // block_g
    rows = (program % tiles) * block_g + tl.arange(0, block_g)
    kv_head = (program // tiles) % num_kv_heads
    sequence = (program // tiles // num_kv_heads).to(tl.int64)
    heads = kv_head * group + rows
    lanes = tl.arange(0, block_d)
    row_mask = rows < group
    lane_mask = lanes < head_dim
    mask = row_mask[:, None] & lane_mask[None, :]
    q = tl.load(
        query + sequence * query_stride + heads[:, None] * head_dim + lanes[None, :],
        mask=mask,
        other=0.0,
    )

    # Each sequence is cut by its own length, so that ragged batches are balanced too.
    length = tl.minimum(tl.load(lengths + sequence), max_pages * page_size)
    start = tl.maximum(length - window, 0)
    share = tl.cdiv(tl.cdiv(length - start, num_splits), block_n) * block_n
    begin = start + part * share
    end = tl.minimum(begin + share, length)

    row_max = tl.full([block_g], float("-inf"), tl.float32)
    row_sum = tl.zeros([block_g], tl.float32)
    acc = tl.zeros([block_g, block_d], tl.float32)
    for first in range(begin, end, block_n):
        tokens = first + tl.arange(0, block_n)
        valid = tokens < end
        page = tl.load(page_table + sequence * max_pages + tokens // page_size, mask=valid, other=0).to(tl.int64)
        offsets = ((page * page_size + tokens % page_size) * num_kv_heads + kv_head) * head_dim
        k = tl.load(key_cache + offsets[None, :] + lanes[:, None], mask=valid[None, :] & lane_mask[:, None], other=0.0)
        scores = tl.dot(q, k.to(q.dtype), input_precision="ieee") * score_scale
        scores = tl.where(valid[None, :], scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, axis=1))
        shrink = tl.exp2(row_max - new_max)
        weights = tl.exp2(scores - new_max[:, None])
        row_sum = row_sum * shrink + tl.sum(weights, axis=1)
        v = tl.load(
            value_cache + offsets[:, None] + lanes[None, :], mask=valid[:, None] & lane_mask[None, :], other=0.0
        )
        acc = tl.dot(weights.to(q.dtype), v.to(q.dtype), acc * shrink[:, None], input_precision="ieee")
        row_max = new_max

    head_rows = sequence * (num_kv_heads * group) + heads
    if split:
        parts = head_rows * num_splits + part
        tl.store(partial + parts[:, None] * head_dim + lanes[None, :], acc, mask=mask)
        tl.store(partial_max + parts, row_max, mask=row_mask)
        tl.store(partial_sum + parts, row_sum, mask=row_mask)
    else:
        result = acc * (value_scale / tl.where(row_sum > 0, row_sum, 1.0))[:, None]
        tl.store(out + head_rows[:, None] * head_dim + lanes[None, :], result.to(out.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _reduce_kernel(
    partial: tl.tensor,
    partial_max: tl.tensor,
    partial_sum: tl.tensor,
    out: tl.tensor,
    value_scale: float,
    num_splits: int,
    head_dim: tl.constexpr,
    block_s: tl.constexpr,
    block_d: tl.constexpr,
    step: tl.constexpr,
) -> None:
    head_row = tl.program_id(0).to(tl.int64)
    parts = tl.arange(0, block_s)
    maxima = tl.load(partial_max + head_row * num_splits + parts, mask=parts < num_splits, other=float("-inf"))
    sums = tl.load(partial_sum + head_row * num_splits + parts, mask=parts < num_splits, other=0.0)
    top = tl.max(maxima, axis=0)
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp2(maxima - top) * sums, axis=0)

    lanes = tl.arange(0, block_d)
    lane_mask = lanes < head_dim
    acc = tl.zeros([block_d], tl.float32)
    for first in range(0, num_splits, step):
        some = first + tl.arange(0, step)
        rows = head_row * num_splits + some
        weights = tl.exp2(tl.load(partial_max + rows, mask=some < num_splits, other=float("-inf")) - top)
        tile = tl.load(
            partial + rows[:, None] * head_dim + lanes[None, :],
            mask=(some < num_splits)[:, None] & lane_mask[None, :],
            other=0.0,
        )
        acc += tl.sum(tile * weights[:, None], axis=0)
    result = acc * (value_scale / tl.where(total > 0, total, 1.0))
    tl.store(out + head_row * head_dim + lanes, result.to(out.dtype.element_ty), mask=lane_mask)


def choose_splits(programs: int, tokens: int, block_n: int, places: int) -> int:
    """Into how many parts to cut each sequence: the fewest that fill the device nearly as well as any.

    Programs run in rounds of `places`, and the last round may be part empty. A part is at least two steps of `block_n`
    tokens long. All host numbers: no device value is read.
    """
    limit = max(1, min(MAX_SPLITS, tokens // (2 * block_n), triton.cdiv(4 * places, programs)))

    def filled(splits: int) -> float:
        rounds = programs * splits / places
        return rounds / math.ceil(rounds)

    best = max(filled(splits) for splits in range(1, limit + 1))
    return next(splits for splits in range(1, limit + 1) if filled(splits) >= 0.9 * best)


def paged_decode_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    page_table: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scale: float | None = None,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
    window: int | None = None,
    max_length: int,
    num_splits: int | None = None,
) -> torch.Tensor:
    """Attention of one query token per sequence: [B, num_heads, head_dim] in the dtype of `query`.

    Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245) by flash-decoding (Dao et al. 2023): parts of a
    sequence are attended to in parallel with an online softmax in float32 and merged by a second kernel; one kernel
    where one part suffices. A sequence of length 0 gives zeros. Cached tokens outside the length or the window are
    never read, so their page table entries may hold anything.

    The launch depends on host numbers only and waits for nothing, so it can be captured in a CUDA graph (call once
    before, to compile). Tile sizes come from the bytes of a row and the number of parts from `choose_splits`, not from
    autotuning: a decode step meets many (batch, length) pairs, and a trial run in one of them would stall or break a
    capture.

    Lengths and pages are read on the device and not checked.

    Args:
        query: [B, num_heads, head_dim], bf16, fp16 or fp32; rows of a wider matrix are fine (any stride over B).
        key_cache: [num_pages, page_size, num_kv_heads, head_dim], contiguous, the dtype of `query` or float8_e4m3fn;
            page_size a power of two, 16 to 64; head_dim 16 to 256, a multiple of 16.
        value_cache: like `key_cache`.
        page_table: [B, max_pages], int32: page of every page_size tokens of a sequence.
        lengths: [B], int32: tokens of each sequence, the current one included.
        scale: factor of the scores; 1 / sqrt(head_dim) when None.
        key_scale: what cached keys are multiplied by.
        value_scale: what cached values are multiplied by.
        window: only the last `window` tokens, the current one included, are attended to; None for all.
        max_length: upper bound of `lengths`, in tokens. Longer sequences are still attended to in full, in fewer parts
            than they deserve.
        num_splits: parts to cut each sequence into; chosen by `choose_splits` when None.

    Raises:
        ValueError: a shape, dtype, device or stride is wrong, or a number is out of its range.
    """
    check("query", query, dtypes=FLOATS, shape=(None, None, None), contiguous=False)
    batch, num_heads, head_dim = query.shape
    if query.stride()[1:] != (head_dim, 1):
        raise ValueError(f"query has strides {query.stride()}; the last two must be ({head_dim}, 1)")
    check("key_cache", key_cache, dtypes=(query.dtype, FP8), shape=(None, None, None, head_dim), device=query.device)
    check("value_cache", value_cache, dtypes=(key_cache.dtype,), shape=tuple(key_cache.shape), device=query.device)
    check("page_table", page_table, dtypes=(torch.int32,), shape=(batch, None), device=query.device)
    check("lengths", lengths, dtypes=(torch.int32,), shape=(batch,), device=query.device)
    _, page_size, num_kv_heads, _ = key_cache.shape
    if page_size not in (16, 32, 64):
        raise ValueError(f"page_size is {page_size}; it must be 16, 32 or 64")
    if head_dim % 16 or not 16 <= head_dim <= 256:
        raise ValueError(f"head_dim is {head_dim}; it must be a multiple of 16, at most 256")
    if num_kv_heads < 1 or num_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(f"{num_heads} query heads cannot share {num_kv_heads} kv heads evenly")
    if window is not None and window < 1:
        raise ValueError(f"window is {window}; it must be at least 1, or None")
    if max_length < 0:
        raise ValueError(f"max_length is {max_length}; it must be at least 0")
    if num_splits is not None and not 1 <= num_splits <= MAX_SPLITS:
        raise ValueError(f"num_splits is {num_splits}; it must be 1 to {MAX_SPLITS}, or None")

    out = torch.empty(batch, num_heads, head_dim, dtype=query.dtype, device=query.device)
    max_pages = page_table.shape[1]
    if batch == 0:
        return out
    group = num_heads // num_kv_heads
    max_rows = MAX_ROWS_FP32 if query.dtype == torch.float32 else MAX_ROWS
    block_g = min(max_rows, max(MIN_ROWS, triton.next_power_of_2(group)))
    block_d = triton.next_power_of_2(head_dim)
    block_n = max(16, TILE_BYTES // (block_d * key_cache.element_size()))
    block_n = min(block_n, 128 if block_g == MIN_ROWS and block_d <= 128 else 64 if block_d <= 128 else 32)
    resident = 4 if block_g * block_d <= 2048 else 2  # by their registers, as ptxas counts them
    programs = batch * num_kv_heads * triton.cdiv(group, block_g)
    tokens = min(max_length, max_pages * page_size)
    if window is None:
        window = max_pages * page_size
    if num_splits is None:
        num_splits = choose_splits(programs, min(tokens, window), block_n, resident * multiprocessors(query.device))
    split = num_splits > 1
    parts = batch * num_heads * num_splits if split else 0
    partial = torch.empty(parts * head_dim, dtype=torch.float32, device=query.device)
    partial_max = torch.empty(parts, dtype=torch.float32, device=query.device)
    partial_sum = torch.empty(parts, dtype=torch.float32, device=query.device)
    score_scale = (head_dim**-0.5 if scale is None else scale) * key_scale * LOG2_E
    with on_device_of(query):
        _decode_kernel[(programs * num_splits,)](
            query,
            key_cache,
            value_cache,
            page_table,
            lengths,
            out,
            partial,
            partial_max,
            partial_sum,
            float(score_scale),
            float(value_scale),
            query.stride(0),
            num_kv_heads,
            max_pages,
            window,
            num_splits,
            group=group,
            head_dim=head_dim,
            page_size=page_size,
            split=split,
            block_g=block_g,
            block_d=block_d,
            block_n=block_n,
            num_warps=8 if block_g * block_d > 8192 else 4,
            num_stages=3,
        )
        if split:
            _reduce_kernel[(batch * num_heads,)](
                partial,
                partial_max,
                partial_sum,
                out,
                float(value_scale),
                num_splits,
                head_dim=head_dim,
                block_s=triton.next_power_of_2(num_splits),
                block_d=block_d,
                step=SPLITS_PER_STEP,
                num_warps=4,
            )
    return out


def paged_decode_attention_reference(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    page_table: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scale: float | None = None,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
    window: int | None = None,
) -> torch.Tensor:
    """The same in torch, gathering every page: float64 when given a float64 `query`, float32 inside otherwise.

    Page table entries outside a sequence must name some page, and what that page holds must be finite.
    """
    batch, num_heads, head_dim = query.shape
    num_kv_heads = key_cache.shape[2]
    compute = accumulator(query.dtype)

    def gather(cache: torch.Tensor, factor: float) -> torch.Tensor:
        pages = cache.view(torch.uint8)[page_table].view(cache.dtype)  # as bytes: torch has no index for float8
        return pages.view(batch, -1, num_kv_heads, head_dim).to(compute) * factor

    keys, values = gather(key_cache, key_scale), gather(value_cache, value_scale)
    grouped = query.to(compute).reshape(batch, num_kv_heads, num_heads // num_kv_heads, head_dim)
    scores = torch.einsum("bhgd,bnhd->bhgn", grouped, keys) * (head_dim**-0.5 if scale is None else scale)
    tokens = torch.arange(keys.shape[1], device=query.device)
    outside = tokens >= lengths[:, None]
    if window is not None:
        outside |= tokens < lengths[:, None] - window
    scores = scores.masked_fill(outside[:, None, None], -math.inf)
    weights = scores.softmax(dim=-1).nan_to_num(0.0)  # a sequence of length 0 has no softmax
    out = torch.einsum("bhgn,bnhd->bhgd", weights, values)
    return out.reshape(batch, num_heads, head_dim).to(query.dtype)
