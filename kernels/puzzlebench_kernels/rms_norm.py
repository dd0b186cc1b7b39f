"""Residual addition and RMSNorm in one pass: each row is read once and written once.

T: tokens. H: hidden size. This module knows nothing of layers; it takes one weight and one epsilon.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from puzzlebench_kernels._launch import FLOATS, accumulator, check, on_device_of

MAX_HIDDEN = 16384  # a row stays in the registers of one program
TILE = 2048  # elements: short rows share a program until it has this many
ELEMENTS_PER_WARP = 512  # two 16-byte bf16 vectors per lane and tensor: loads in flight without a second wave of warps


@triton.jit  # type: ignore[untyped-decorator]
def _add_rms_norm_kernel(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    normed: tl.tensor,
    residual_out: tl.tensor,
    tokens: int,
    hidden: int,
    eps: float,
    has_residual: tl.constexpr,
    block_t: tl.constexpr,
    block_h: tl.constexpr,
) -> None:
    rows = tl.program_id(0) * block_t + tl.arange(0, block_t)
    columns = tl.arange(0, block_h)
    offsets = rows[:, None].to(tl.int64) * hidden + columns[None, :]
    mask = (rows[:, None] < tokens) & (columns[None, :] < hidden)
    scale = tl.load(weight + columns, mask=columns < hidden, other=0.0).to(tl.float32)
    total = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    if has_residual:
        total += tl.load(residual + offsets, mask=mask, other=0.0).to(tl.float32)
        rounded = total.to(residual_out.dtype.element_ty)
        tl.store(residual_out + offsets, rounded, mask=mask)
        total = rounded.to(tl.float32)
    mean_square = tl.sum(total * total, axis=1) / hidden
    inverse = tl.rsqrt(mean_square + eps)
    result = total * inverse[:, None] * scale[None, :]
    tl.store(normed + offsets, result.to(normed.dtype.element_ty), mask=mask)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the residual, then normalise: returns (normed, residual_out), both [T, H] in the dtype of `x`.

    `residual_out` is x + residual rounded to the dtype of `x`, and the norm is taken of that rounded sum, accumulated
    in float32 (Zhang and Sennrich 2019, arXiv 1910.07467). Without a residual it is plain RMSNorm and `residual_out` is
    `x` itself.

    Launch shapes are chosen on the host, not autotuned: the kernel runs inside captured decode steps, and a program per
    row leaves nothing to tune but its warps.

    Args:
        x: [T, H], contiguous, bf16, fp16 or fp32; H at most 16384.
        residual: like `x`, or None.
        weight: [H], any of those dtypes.
        eps: added to the mean square; at least 0.

    Raises:
        ValueError: a shape, dtype, device or stride is wrong, H is over 16384, or `eps` is negative.
    """
    check("x", x, dtypes=FLOATS, shape=(None, None))
    tokens, hidden = x.shape
    if not 1 <= hidden <= MAX_HIDDEN:
        raise ValueError(f"x has {hidden} columns; 1 to {MAX_HIDDEN} are supported")
    if residual is not None:
        check("residual", residual, dtypes=(x.dtype,), shape=(tokens, hidden), device=x.device)
    check("weight", weight, dtypes=FLOATS, shape=(hidden,), device=x.device)
    if not eps >= 0:
        raise ValueError(f"eps is {eps}; it must be at least 0")
    normed = torch.empty_like(x)
    residual_out = x if residual is None else torch.empty_like(x)
    if tokens == 0:
        return normed, residual_out
    block_h = triton.next_power_of_2(hidden)
    block_t = min(max(1, TILE // block_h), triton.next_power_of_2(tokens))
    with on_device_of(x):
        _add_rms_norm_kernel[(triton.cdiv(tokens, block_t),)](
            x,
            x if residual is None else residual,
            weight,
            normed,
            residual_out,
            tokens,
            hidden,
            eps,
            has_residual=residual is not None,
            block_t=block_t,
            block_h=block_h,
            num_warps=min(32, max(1, block_t * block_h // ELEMENTS_PER_WARP)),
        )
    return normed, residual_out


def add_rms_norm_reference(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in torch: float64 when given float64, float32 inside otherwise."""
    residual_out = x if residual is None else x + residual
    total = residual_out.to(accumulator(x.dtype))
    normed = total * torch.rsqrt(total.square().mean(dim=-1, keepdim=True) + eps) * weight.to(total.dtype)
    return normed.to(x.dtype), residual_out
