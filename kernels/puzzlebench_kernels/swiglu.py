"""SwiGLU's activation: silu(gate) * up, with gradients.

T: tokens. I: intermediate size. This module knows nothing of the projections around it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from puzzlebench_kernels._launch import FLOATS, accumulator, check, multiprocessors, on_device_of

MAX_BLOCK = 2048  # columns per program: two 16-byte bf16 vectors per lane and tensor at 4 warps
MIN_BLOCK = 256


@triton.jit  # type: ignore[untyped-decorator]
def _swiglu_kernel(gate_up: tl.tensor, out: tl.tensor, intermediate: int, blocks: int, block: tl.constexpr) -> None:
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    columns = (program % blocks) * block + tl.arange(0, block)
    mask = columns < intermediate
    gate = tl.load(gate_up + row * 2 * intermediate + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + (row * 2 + 1) * intermediate + columns, mask=mask, other=0.0).to(tl.float32)
    result = gate * tl.sigmoid(gate) * up
    tl.store(out + row * intermediate + columns, result.to(out.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _swiglu_backward_kernel(
    grad_out: tl.tensor, gate_up: tl.tensor, grad: tl.tensor, intermediate: int, blocks: int, block: tl.constexpr
) -> None:
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    columns = (program % blocks) * block + tl.arange(0, block)
    mask = columns < intermediate
    gates = row * 2 * intermediate + columns
    ups = (row * 2 + 1) * intermediate + columns
    gate = tl.load(gate_up + gates, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + ups, mask=mask, other=0.0).to(tl.float32)
    outer = tl.load(grad_out + row * intermediate + columns, mask=mask, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    grad_gate = outer * up * (sigmoid + silu * (1.0 - sigmoid))
    tl.store(grad + gates, grad_gate.to(grad.dtype.element_ty), mask=mask)
    tl.store(grad + ups, (outer * silu).to(grad.dtype.element_ty), mask=mask)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up (Shazeer 2020, arXiv 2002.05202): [T, 2 * I] to [T, I] in the same dtype, differentiable.

    The gate is the first half of each row. Computed in float32, rounded once. Launch shapes are chosen on the host, not
    autotuned: the kernel runs inside captured decode steps, and its one pass over memory is insensitive to them.

    Args:
        gate_up: [T, 2 * I], contiguous, bf16, fp16 or fp32.

    Raises:
        ValueError: the shape, dtype or stride is wrong, or the row length is odd or 0.
    """
    check("gate_up", gate_up, dtypes=FLOATS, shape=(None, None))
    width = gate_up.shape[1]
    if width == 0 or width % 2:
        raise ValueError(f"gate_up has {width} columns; it must be an even number above 0: gate, then up")
    out: torch.Tensor = _SwiGLU.apply(gate_up)  # type: ignore[no-untyped-call]
    return out


def _grid(gate_up: torch.Tensor) -> tuple[int, int, int]:
    """Programs, blocks per row and block size: large blocks, unless that leaves multiprocessors idle."""
    tokens, width = gate_up.shape
    block = min(MAX_BLOCK, triton.next_power_of_2(width // 2))
    while block > MIN_BLOCK and tokens * triton.cdiv(width // 2, block) < 2 * multiprocessors(gate_up.device):
        block //= 2
    blocks = triton.cdiv(width // 2, block)
    return tokens * blocks, blocks, block


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate_up)
        tokens, intermediate = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(tokens, intermediate)
        programs, blocks, block = _grid(gate_up)
        if programs:
            with on_device_of(gate_up):
                _swiglu_kernel[(programs,)](gate_up, out, intermediate, blocks, block=block)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: torch.Tensor) -> torch.Tensor:
        (gate_up,) = ctx.saved_tensors
        grad = torch.empty_like(gate_up)
        programs, blocks, block = _grid(gate_up)
        if programs:
            with on_device_of(gate_up):
                _swiglu_backward_kernel[(programs,)](
                    grad_out.contiguous(), gate_up, grad, gate_up.shape[1] // 2, blocks, block=block
                )
        return grad


def swiglu_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """The same in torch: float64 when given float64, float32 inside otherwise."""
    gate, up = gate_up.to(accumulator(gate_up.dtype)).chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)
