"""Static quantisation of activations to float8_e4m3fn, in one pass.

T: tokens. H: features. This module knows nothing of the matrix product that follows.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from puzzlebench_kernels._launch import FLOATS, FP8, accumulator, check, on_device_of

LARGEST = 448.0  # of float8_e4m3fn
BLOCK = 2048  # elements per program: two 16-byte bf16 vectors per lane at 4 warps


@triton.jit  # type: ignore[untyped-decorator]
def _quantise_kernel(x: tl.tensor, out: tl.tensor, count: int, inverse: float, block: tl.constexpr) -> None:
    places = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    mask = places < count
    scaled = tl.load(x + places, mask=mask, other=0.0).to(tl.float32) * inverse
    saturated = tl.minimum(tl.maximum(scaled, -448.0), 448.0)
    tl.store(out + places, saturated.to(out.dtype.element_ty), mask=mask)


def quantise_fp8(x: torch.Tensor, scale: float) -> torch.Tensor:
    """x / scale in float8_e4m3fn, saturated at +-448: [T, H] to [T, H].

    Launch shapes are chosen on the host, not autotuned: one pass over memory is insensitive to them.

    Args:
        x: [T, H], contiguous, bf16, fp16 or fp32.
        scale: what one unit of the result stands for; above 0.

    Raises:
        ValueError: the shape, dtype or stride is wrong, or the scale is not a positive number.
    """
    check("x", x, dtypes=FLOATS, shape=(None, None))
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be a positive number, not {scale}")
    out = torch.empty(x.shape, dtype=FP8, device=x.device)
    if x.numel():
        with on_device_of(x):
            _quantise_kernel[(triton.cdiv(x.numel(), BLOCK),)](x, out, x.numel(), 1.0 / scale, block=BLOCK)
    return out


def quantise_fp8_reference(x: torch.Tensor, scale: float) -> torch.Tensor:
    """The same in torch: float64 inside when given float64, float32 otherwise."""
    return (x.to(accumulator(x.dtype)) * (1.0 / scale)).clamp(-LARGEST, LARGEST).to(FP8)
