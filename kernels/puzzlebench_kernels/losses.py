"""Losses of distillation, with gradients: normalised mean squared error, and KL divergence of logits.

T: tokens. V: vocabulary. H: hidden size. Teachers and parents are constants: no gradient flows to them. This module
knows nothing of models; logits come as matrices, or as hidden states and an output matrix.
"""

from __future__ import annotations

import os
from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from puzzlebench_kernels._launch import FLOATS, accumulator, check, multiprocessors, on_device_of

BLOCK = 2048  # elements per program and step: two 16-byte bf16 vectors per lane and tensor at 4 warps
PROGRAMS_PER_MULTIPROCESSOR = 8  # all resident at once, so the sums are of equal length
GRADIENT_BLOCK = 4096

# The interpreter cannot time, so it gets the first.
KL_CONFIGS = [
    triton.Config({"block_v": block_v, "stages": stages}, num_warps=num_warps)
    for block_v, num_warps, stages in (
        (4096, 8, 3),
        (4096, 8, 1),
        (2048, 4, 4),
        (2048, 4, 1),
        (8192, 16, 2),
        (8192, 8, 1),
    )
]
if os.environ.get("TRITON_INTERPRET") == "1":
    KL_CONFIGS = KL_CONFIGS[:1]


@triton.jit  # type: ignore[untyped-decorator]
def _square_sums_kernel(
    child: tl.tensor, parent: tl.tensor, error_sums: tl.tensor, parent_sums: tl.tensor, count: int, block: tl.constexpr
) -> None:
    program = tl.program_id(0)
    stride = tl.num_programs(0) * block
    offsets = program.to(tl.int64) * block + tl.arange(0, block)
    # One sum per lane: at 1e8 elements each adds about 50 terms, and a tree adds the lanes.
    errors = tl.zeros([block], tl.float32)
    squares = tl.zeros([block], tl.float32)
    for _ in range(tl.cdiv(count, stride)):
        c = tl.load(child + offsets, mask=offsets < count, other=0.0).to(tl.float32)
        p = tl.load(parent + offsets, mask=offsets < count, other=0.0).to(tl.float32)
        errors += (c - p) * (c - p)
        squares += p * p
        offsets += stride
    tl.store(error_sums + program, tl.sum(errors, axis=0))
    tl.store(parent_sums + program, tl.sum(squares, axis=0))


@triton.jit  # type: ignore[untyped-decorator]
def _scaled_difference_kernel(
    child: tl.tensor, parent: tl.tensor, factor: tl.tensor, grad: tl.tensor, count: int, block: tl.constexpr
) -> None:
    offsets = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    mask = offsets < count
    c = tl.load(child + offsets, mask=mask, other=0.0).to(tl.float32)
    p = tl.load(parent + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(grad + offsets, (tl.load(factor) * (c - p)).to(grad.dtype.element_ty), mask=mask)


@triton.autotune(configs=KL_CONFIGS, key=["vocabulary"])  # type: ignore[untyped-decorator]
@triton.jit  # type: ignore[untyped-decorator]
def _kl_kernel(
    p_logits: tl.tensor,
    q_logits: tl.tensor,
    divergence: tl.tensor,
    p_normaliser: tl.tensor,
    q_normaliser: tl.tensor,
    p_stride: int,
    q_stride: int,
    vocabulary: int,
    inverse_temperature: float,
    block_v: tl.constexpr,
    stages: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    p_max = float("-inf")
    q_max = float("-inf")
    p_sum = 0.0
    q_sum = 0.0
    gap = 0.0  # sum of exp(p logit - p_max) * (p logit - q logit)
    for first in tl.range(0, vocabulary, block_v, num_stages=stages):
        columns = first + tl.arange(0, block_v)
        mask = columns < vocabulary
        p = tl.load(p_logits + row * p_stride + columns, mask=mask, other=float("-inf")).to(tl.float32)
        q = tl.load(q_logits + row * q_stride + columns, mask=mask, other=float("-inf")).to(tl.float32)
        p *= inverse_temperature
        q *= inverse_temperature
        p_new = tl.maximum(p_max, tl.max(p, axis=0))
        q_new = tl.maximum(q_max, tl.max(q, axis=0))
        # Where all logits so far are -inf, any finite number stands in for the maximum.
        p_top = tl.where(p_new == float("-inf"), 0.0, p_new)
        q_top = tl.where(q_new == float("-inf"), 0.0, q_new)
        weights = tl.exp(p - p_top)
        shrink = tl.exp(p_max - p_top)
        p_sum = p_sum * shrink + tl.sum(weights, axis=0)
        gap = gap * shrink + tl.sum(tl.where(weights > 0, weights * (p - q), 0.0), axis=0)
        q_sum = q_sum * tl.exp(q_max - q_top) + tl.sum(tl.exp(q - q_top), axis=0)
        p_max = p_new
        q_max = q_new
    # The maxima are subtracted before the logarithms are added: they are the large terms.
    result = gap / p_sum - (p_max - q_max) + (tl.log(q_sum) - tl.log(p_sum))
    tl.store(divergence + row, result)
    tl.store(p_normaliser + row, p_max + tl.log(p_sum))
    tl.store(q_normaliser + row, q_max + tl.log(q_sum))


@triton.jit  # type: ignore[untyped-decorator]
def _kl_gradient_kernel(
    p_logits: tl.tensor,
    q_logits: tl.tensor,
    divergence: tl.tensor,
    p_normaliser: tl.tensor,
    q_normaliser: tl.tensor,
    grad_rows: tl.tensor,
    grad: tl.tensor,
    p_stride: int,
    q_stride: int,
    grad_stride: int,
    vocabulary: int,
    inverse_temperature: float,
    blocks: int,
    of_p: tl.constexpr,
    block_v: tl.constexpr,
) -> None:
    row = (tl.program_id(0) // blocks).to(tl.int64)
    columns = (tl.program_id(0) % blocks) * block_v + tl.arange(0, block_v)
    mask = columns < vocabulary
    p = tl.load(p_logits + row * p_stride + columns, mask=mask, other=0.0).to(tl.float32)
    q = tl.load(q_logits + row * q_stride + columns, mask=mask, other=0.0).to(tl.float32)
    log_p = p * inverse_temperature - tl.load(p_normaliser + row)
    log_q = q * inverse_temperature - tl.load(q_normaliser + row)
    probability = tl.exp(log_p)
    if of_p:
        slope = probability * (log_p - log_q - tl.load(divergence + row))
        slope = tl.where(probability > 0, slope, 0.0)
    else:
        slope = tl.exp(log_q) - probability
    slope *= tl.load(grad_rows + row) * inverse_temperature
    tl.store(grad + row * grad_stride + columns, slope.to(grad.dtype.element_ty), mask=mask)


def normalised_mse(child: torch.Tensor, parent: torch.Tensor) -> torch.Tensor:
    """sum((child - parent)^2) / sum(parent^2), a float32 scalar, differentiable with respect to `child`.

    The loss of blockwise local distillation, MSE(o_p, o_c) / MSE(o_p, 0) (Puzzle, arXiv 2411.19146, section 3). Sums
    run in float32 per lane, then as a tree, and in float64 over programs: two stages and no atomics, so the result is
    the same in each run. A parent of zeros gives inf or nan.

    Args:
        child: any shape, contiguous, bf16, fp16 or fp32; at least one element.
        parent: the same shape, contiguous, any of those dtypes.

    Raises:
        ValueError: a shape, dtype, device or stride is wrong.
    """
    check("child", child, dtypes=FLOATS, shape=(None,) * child.dim())
    check("parent", parent, dtypes=FLOATS, shape=tuple(child.shape), device=child.device)
    if child.numel() == 0:
        raise ValueError(f"child has shape {list(child.shape)}; it must hold at least one element")
    loss: torch.Tensor = _NormalisedMSE.apply(child, parent.detach())  # type: ignore[no-untyped-call]
    return loss


def kl_divergence(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    *,
    temperature: float = 1.0,
    reduction: Literal["mean", "none"] = "mean",
    reverse: bool = False,
) -> torch.Tensor:
    """KL(teacher || student) of the softmaxes of logits / temperature, float32, in nats per token.

    The forward pass reads both matrices once, with an online softmax per row (Milakov and Gimelshein 2018, arXiv
    1805.02867); the backward pass reads them once more and writes the gradient of the student's logits. No float32 copy
    of the logits is made. There is no factor temperature^2. The kernel is autotuned at its first call per vocabulary
    size: call it once before a CUDA graph is captured.

    Args:
        student_logits: [T, V], bf16, fp16 or fp32; rows contiguous.
        teacher_logits: likewise, any of those dtypes; a constant.
        temperature: above 0.
        reduction: "mean" over tokens (a scalar; T at least 1) or "none" ([T]).
        reverse: KL(student || teacher) instead.

    Raises:
        ValueError: a shape, dtype, device, stride, temperature or reduction is wrong.
    """
    check("student_logits", student_logits, dtypes=FLOATS, shape=(None, None), contiguous=False)
    shape = tuple(student_logits.shape)
    device = student_logits.device
    check("teacher_logits", teacher_logits, dtypes=FLOATS, shape=shape, device=device, contiguous=False)
    for name, logits in (("student_logits", student_logits), ("teacher_logits", teacher_logits)):
        if logits.stride(1) != 1:
            raise ValueError(f"{name} has strides {logits.stride()}; the last must be 1")
    if shape[1] == 0:
        raise ValueError("student_logits has 0 columns; the vocabulary must hold at least one token")
    _check_temperature(temperature)
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction is {reduction!r}; it must be 'mean' or 'none'")
    if reduction == "mean" and shape[0] == 0:
        raise ValueError("student_logits has 0 rows, which have no mean; use reduction='none'")
    rows: torch.Tensor = _KLDivergence.apply(  # type: ignore[no-untyped-call]
        student_logits, teacher_logits.detach(), temperature, reverse
    )
    return rows.mean() if reduction == "mean" else rows


def linear_kl_divergence(
    student_hidden: torch.Tensor,
    student_weight: torch.Tensor,
    teacher_hidden: torch.Tensor,
    teacher_weight: torch.Tensor,
    *,
    chunk_tokens: int = 1024,
    temperature: float = 1.0,
    reverse: bool = False,
) -> torch.Tensor:
    """`kl_divergence(student_hidden @ student_weight.T, teacher_hidden @ teacher_weight.T)`, averaged over tokens.

    Works on `chunk_tokens` tokens at a time, so that no [T, V] matrix exists, and computes the gradients on the way:
    the backward pass only scales them. A weight gradient of several chunks is summed in float32.
    Autocast is off inside: products are in the dtypes given.

    Args:
        student_hidden: [T, H], contiguous, bf16, fp16 or fp32; T at least 1.
        student_weight: [V, H], contiguous, the dtype of `student_hidden`.
        teacher_hidden: [T, Ht], contiguous, any of those dtypes; a constant.
        teacher_weight: [V, Ht], contiguous, the dtype of `teacher_hidden`; a constant.
        chunk_tokens: at least 1. Workspace: two chunk_tokens x V matrices of logits.
        temperature: above 0.
        reverse: KL(student || teacher) instead.

    Raises:
        ValueError: a shape, dtype, device, stride or number is wrong.
    """
    check("student_hidden", student_hidden, dtypes=FLOATS, shape=(None, None))
    tokens, hidden = student_hidden.shape
    device = student_hidden.device
    check("student_weight", student_weight, dtypes=(student_hidden.dtype,), shape=(None, hidden), device=device)
    vocabulary = student_weight.shape[0]
    check("teacher_hidden", teacher_hidden, dtypes=FLOATS, shape=(tokens, None), device=device)
    shape = (vocabulary, teacher_hidden.shape[1])
    check("teacher_weight", teacher_weight, dtypes=(teacher_hidden.dtype,), shape=shape, device=device)
    if tokens == 0 or vocabulary == 0:
        raise ValueError(f"there are {tokens} tokens and a vocabulary of {vocabulary}; both must be at least 1")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}; it must be at least 1")
    _check_temperature(temperature)
    with_gradients = torch.is_grad_enabled()
    with torch.autocast(device.type, enabled=False):
        loss: torch.Tensor = _LinearKLDivergence.apply(  # type: ignore[no-untyped-call]
            student_hidden,
            student_weight,
            teacher_hidden.detach(),
            teacher_weight.detach(),
            chunk_tokens,
            temperature,
            reverse,
            with_gradients,
        )
    return loss


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; it must be positive and finite")


def _kl_rows(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float, reverse: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Divergence and log normalisers of p and q per row; p is the distribution the mean is taken under."""
    p, q = (student, teacher) if reverse else (teacher, student)
    rows, vocabulary = student.shape
    divergence, p_normaliser, q_normaliser = torch.empty(3, rows, dtype=torch.float32, device=student.device)
    if rows:
        with on_device_of(student):
            _kl_kernel[(rows,)](
                p,
                q,
                divergence,
                p_normaliser,
                q_normaliser,
                p.stride(0),
                q.stride(0),
                vocabulary,
                1.0 / temperature,
            )
    return divergence, p_normaliser, q_normaliser


def _kl_gradient(
    student: torch.Tensor,
    teacher: torch.Tensor,
    statistics: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    grad_rows: torch.Tensor,
    grad: torch.Tensor,
    temperature: float,
    reverse: bool,
) -> None:
    """Write the gradient of the student's logits into `grad`, which may be `student` itself."""
    p, q = (student, teacher) if reverse else (teacher, student)
    rows, vocabulary = student.shape
    blocks = triton.cdiv(vocabulary, GRADIENT_BLOCK)
    if rows:
        with on_device_of(student):
            _kl_gradient_kernel[(rows * blocks,)](
                p,
                q,
                *statistics,
                grad_rows,
                grad,
                p.stride(0),
                q.stride(0),
                grad.stride(0),
                vocabulary,
                1.0 / temperature,
                blocks,
                of_p=reverse,
                block_v=GRADIENT_BLOCK,
                num_warps=8,
            )


class _NormalisedMSE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, child: torch.Tensor, parent: torch.Tensor) -> torch.Tensor:
        count = child.numel()
        programs = min(triton.cdiv(count, BLOCK), PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(child.device))
        sums = torch.empty(2, programs, dtype=torch.float32, device=child.device)
        with on_device_of(child):
            _square_sums_kernel[(programs,)](child, parent, sums[0], sums[1], count, block=BLOCK)
        error, total = sums.sum(dim=1, dtype=torch.float64)
        ctx.save_for_backward(child, parent, total)
        loss: torch.Tensor = (error / total).to(torch.float32)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor, None]:
        child, parent, total = ctx.saved_tensors
        grad = torch.empty_like(child)
        factor = (2.0 * grad_loss / total).to(torch.float32)
        with on_device_of(child):
            _scaled_difference_kernel[(triton.cdiv(child.numel(), BLOCK),)](
                child, parent, factor, grad, child.numel(), block=BLOCK
            )
        return grad, None


class _KLDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: torch.Tensor, teacher: torch.Tensor, temperature: float, reverse: bool
    ) -> torch.Tensor:
        statistics = _kl_rows(student, teacher, temperature, reverse)
        ctx.save_for_backward(student, teacher, *statistics)
        ctx.temperature, ctx.reverse = temperature, reverse
        return statistics[0].clone()  # the caller may change the result in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        student, teacher, *statistics = ctx.saved_tensors
        grad = torch.empty(student.shape, dtype=student.dtype, device=student.device)
        divergence, p_normaliser, q_normaliser = statistics
        _kl_gradient(
            student,
            teacher,
            (divergence, p_normaliser, q_normaliser),
            grad_rows.contiguous(),
            grad,
            ctx.temperature,
            ctx.reverse,
        )
        return grad, None, None, None


class _LinearKLDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_hidden: torch.Tensor,
        student_weight: torch.Tensor,
        teacher_hidden: torch.Tensor,
        teacher_weight: torch.Tensor,
        chunk_tokens: int,
        temperature: float,
        reverse: bool,
        with_gradients: bool,
    ) -> torch.Tensor:
        tokens = student_hidden.shape[0]
        wants_hidden, wants_weight = (with_gradients and needed for needed in ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(student_hidden) if wants_hidden else None
        grad_weight: torch.Tensor | None = None
        rows = torch.empty(tokens, dtype=torch.float32, device=student_hidden.device)
        grad_rows = torch.full((min(tokens, chunk_tokens),), 1.0 / tokens, device=rows.device)
        for first in range(0, tokens, chunk_tokens):
            chunk = slice(first, min(first + chunk_tokens, tokens))
            student = student_hidden[chunk] @ student_weight.T
            teacher = teacher_hidden[chunk] @ teacher_weight.T
            statistics = _kl_rows(student, teacher, temperature, reverse)
            rows[chunk] = statistics[0]
            if not (wants_hidden or wants_weight):
                continue
            _kl_gradient(student, teacher, statistics, grad_rows, student, temperature, reverse)
            if grad_hidden is not None:
                torch.mm(student, student_weight, out=grad_hidden[chunk])
            if wants_weight:
                part = student.T @ student_hidden[chunk]
                if grad_weight is not None:
                    grad_weight += part
                else:
                    grad_weight = part.to(torch.float32) if tokens > chunk_tokens else part
        if grad_weight is not None:
            grad_weight = grad_weight.to(student_weight.dtype)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return rows.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grads = (None if grad is None else (grad * grad_loss).to(grad.dtype) for grad in ctx.saved_tensors)
        return (*grads, None, None, None, None, None, None)


def normalised_mse_reference(child: torch.Tensor, parent: torch.Tensor) -> torch.Tensor:
    """The same in torch: float64 when given float64, float32 inside otherwise."""
    compute = accumulator(child.dtype)
    return (child.to(compute) - parent.to(compute)).square().sum() / parent.to(compute).square().sum()


def kl_divergence_reference(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    *,
    temperature: float = 1.0,
    reduction: Literal["mean", "none"] = "mean",
    reverse: bool = False,
) -> torch.Tensor:
    """The same in torch: float64 when given float64, float32 inside otherwise."""
    compute = accumulator(student_logits.dtype)
    log_p = (teacher_logits.to(compute) / temperature).log_softmax(dim=-1)
    log_q = (student_logits.to(compute) / temperature).log_softmax(dim=-1)
    if reverse:
        log_p, log_q = log_q, log_p
    rows = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1)
    return rows.mean() if reduction == "mean" else rows


def linear_kl_divergence_reference(
    student_hidden: torch.Tensor,
    student_weight: torch.Tensor,
    teacher_hidden: torch.Tensor,
    teacher_weight: torch.Tensor,
    *,
    temperature: float = 1.0,
    reverse: bool = False,
) -> torch.Tensor:
    """The same in torch, with whole logits: float64 when given float64."""
    return kl_divergence_reference(
        student_hidden @ student_weight.T, teacher_hidden @ teacher_weight.T, temperature=temperature, reverse=reverse
    )
