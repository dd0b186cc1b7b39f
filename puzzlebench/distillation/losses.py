"""The losses of distillation: cosine of hidden states, KL both ways, total variation, cross-entropy.

The output matrix is applied to some tokens at a time and the gradients are made on the way, so that no [N, V] matrix
of all tokens exists, in whatever dtype. Teachers are constants. Knows no models.
Legend: N tokens, H hidden size, V vocabulary, K kept logits of a token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.autograd.function import once_differentiable

from puzzlebench.distillation.head import Head
from puzzlebench.distillation.recipe import LossWeights

NO_LABEL: Final = -100
_CHUNK_BYTES: Final = {"cpu": 32 << 20, "cuda": 512 << 20}  # of one float32 copy of a chunk's logits


@dataclass(frozen=True, kw_only=True, slots=True)
class FullTarget:
    """The teacher's final hidden states [N, H'] and its head; H' need not be the student's."""

    hidden: torch.Tensor
    head: Head


@dataclass(frozen=True, kw_only=True, slots=True)
class TopKTarget:
    """The teacher's most likely tokens [N, K], their log-probabilities at the loss's temperature [N, K], and the
    logarithm of the probability of all others together [N].
    """

    ids: torch.Tensor
    log_probs: torch.Tensor
    rest: torch.Tensor


Target = FullTarget | TopKTarget


def cosine_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """1 - cos of the last dimension, mean over all others: a float32 scalar (float64 of float64).

    Differentiable with respect to `student`; beside the two tensors it keeps three numbers per token for that. A
    vector of zeros counts as cos 0 and has no gradient.

    Args:
        student, teacher: the same shape [..., H].
    """
    distance: torch.Tensor = _CosineDistance.apply(student, teacher.detach())  # type: ignore[no-untyped-call]
    return distance


def token_losses(
    hidden: torch.Tensor,
    head: Head,
    target: Target | None,
    labels: torch.Tensor,
    weights: LossWeights,
    *,
    also: tuple[str, ...] = (),
    chunk_tokens: int | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The weighted sum of the terms that logits decide, and every such term by itself, without gradient.

    Under autocast the products are in its dtype. With gradients switched off none are made.

    With a `TopKTarget` the tokens that are not kept count as one token: what comes out is the divergence of the two
    distributions after that, which is never above the full one (data processing inequality).

    Args:
        hidden: [N, H], the student's; N at least 1.
        target: may be None where only the cross-entropy is asked for.
        labels: [N] int64, the token that follows; `NO_LABEL` where none does.
        also: terms to report beside those that have a weight.
        chunk_tokens: tokens at a time; default: as many as make 32 MiB of float32 logits (512 MiB on a GPU).
    """
    terms = tuple(name for name in ("forward_kl", "reverse_kl", "tvd", "lm") if name in {*weights.weighted, *also})
    assert target is not None or set(terms) <= {"lm"}
    size = chunk_tokens or max(1, _CHUNK_BYTES.get(hidden.device.type, 32 << 20) // (4 * head.weight.shape[0]))
    counts = {name: max(1, int((labels != NO_LABEL).sum())) if name == "lm" else len(labels) for name in terms}
    factors = [getattr(weights, name) / counts[name] for name in terms]

    def chunk_loss(hidden: torch.Tensor, weight: torch.Tensor, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        logits = head.with_weight(weight).logits(hidden)
        found = _sums(logits, _part_of(target, part, logits.dtype), labels[part], terms, weights.temperature)
        loss = sum((factor * found[name] for factor, name in zip(factors, terms, strict=True)), found[terms[0]] * 0)
        return loss, torch.stack([found[name].detach().double() for name in terms])

    if not terms:
        return hidden.new_zeros(()), {}
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with_gradients = torch.is_grad_enabled()
    with torch.autocast(device, enabled=False):
        loss, sums = _OnTheWay.apply(  # type: ignore[no-untyped-call]
            chunk_loss, size, with_gradients, hidden.to(dtype), head.weight.to(dtype)
        )
    return loss, {name: total / counts[name] for name, total in zip(terms, sums, strict=True)}


def top_k_target(logits: torch.Tensor, k: int, temperature: float) -> TopKTarget:
    """What is kept of a teacher's logits [N, V].

    Raises:
        ValueError: `k` is not from 1 to V - 1.
    """
    if not 1 <= k < logits.shape[-1]:
        raise ValueError(f"top-k must be from 1 to {logits.shape[-1] - 1} for this vocabulary, not {k}")
    scaled = _wide(logits) / temperature
    normaliser = scaled.logsumexp(dim=-1)
    kept, ids = scaled.topk(k, dim=-1)
    others = scaled.scatter(-1, ids, -torch.inf).logsumexp(dim=-1)
    return TopKTarget(ids=ids, log_probs=kept - normaliser[:, None], rest=others - normaliser)


def _part_of(target: Target | None, part: slice, dtype: torch.dtype) -> torch.Tensor | TopKTarget | None:
    """The teacher's logits of these tokens, or what is kept of them."""
    if target is None:
        return None
    if isinstance(target, TopKTarget):
        return TopKTarget(ids=target.ids[part], log_probs=target.log_probs[part], rest=target.rest[part])
    with torch.no_grad():
        weight = target.head.weight
        wide = dtype if weight.dtype == torch.float32 else weight.dtype  # as autocast would have it
        return target.head.with_weight(weight.to(wide)).logits(target.hidden[part].to(wide))


def _sums(
    logits: torch.Tensor,
    target: torch.Tensor | TopKTarget | None,
    labels: torch.Tensor,
    terms: tuple[str, ...],
    temperature: float,
) -> dict[str, torch.Tensor]:
    """Every term, summed over tokens."""
    if isinstance(target, torch.Tensor) and _for_kernel(logits, terms):
        return _fused_sums(logits, target, terms, temperature)
    sums: dict[str, torch.Tensor] = {}
    wide = _wide(logits)
    if "lm" in terms:
        known = labels != NO_LABEL
        chosen = wide.gather(-1, labels.clamp(min=0)[:, None])[:, 0]
        sums["lm"] = ((wide.logsumexp(dim=-1) - chosen) * known).sum()
    if target is None or not set(terms) - {"lm"}:
        return sums
    if isinstance(target, TopKTarget):
        scaled = wide / temperature
        normaliser = scaled.logsumexp(dim=-1)
        others = scaled.scatter(-1, target.ids, -torch.inf).logsumexp(dim=-1) - normaliser
        log_q = torch.cat([scaled.gather(-1, target.ids) - normaliser[:, None], others[:, None]], dim=-1)
        log_p = torch.cat([target.log_probs, target.rest[:, None]], dim=-1).to(log_q.dtype)
    else:
        log_q, log_p = _log_probs(wide, temperature), _log_probs(_wide(target).to(wide.dtype), temperature)
    p = log_p.exp()
    if "forward_kl" in terms:
        sums["forward_kl"] = (p * (log_p - log_q)).sum()
    if "reverse_kl" in terms:
        sums["reverse_kl"] = (log_q.exp() * (log_q - log_p)).sum()
    if "tvd" in terms:
        sums["tvd"] = 0.5 * (p - log_q.exp()).abs().sum()
    return sums


def _for_kernel(logits: torch.Tensor, terms: tuple[str, ...]) -> bool:
    return logits.is_cuda and set(terms) <= {"forward_kl", "reverse_kl"}


def _fused_sums(
    logits: torch.Tensor, target: torch.Tensor, terms: tuple[str, ...], temperature: float
) -> dict[str, torch.Tensor]:
    """By the Triton kernel, which makes no float32 copy of the logits."""
    from puzzlebench_kernels.losses import kl_divergence

    return {
        name: kl_divergence(
            logits, target, temperature=temperature, reduction="none", reverse=name == "reverse_kl"
        ).sum()
        for name in terms
    }


def _log_probs(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    # torch's own log_softmax is 5e-5 off on CPUs at 128k tokens; both sides are taken like this and subtracted first.
    scaled = logits if temperature == 1.0 else logits / temperature
    return scaled - scaled.logsumexp(dim=-1, keepdim=True)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


ChunkLoss = Callable[[torch.Tensor, torch.Tensor, slice], tuple[torch.Tensor, torch.Tensor]]


class _OnTheWay(torch.autograd.Function):
    """A loss that is a sum over chunks of tokens; the gradients are made with the loss, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        chunk_loss: ChunkLoss,
        size: int,
        with_gradients: bool,
        hidden: torch.Tensor,
        weight: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wants = [with_gradients and needed for needed in ctx.needs_input_grad[3:]]
        tokens = len(hidden)
        grad_hidden = torch.empty_like(hidden) if wants[0] else None
        grad_weight: torch.Tensor | None = None
        total: Any = 0.0
        sums: Any = 0.0
        leaf = weight.detach().requires_grad_(wants[1])
        for first in range(0, tokens, size):
            part = slice(first, min(first + size, tokens))
            chunk = hidden[part].detach().requires_grad_(wants[0])
            with torch.set_grad_enabled(any(wants)):
                loss, found = chunk_loss(chunk, leaf, part)
            if any(wants):
                inputs = [tensor for tensor, wanted in zip((chunk, leaf), wants, strict=True) if wanted]
                grads = dict(zip([n for n in (0, 1) if wants[n]], torch.autograd.grad(loss, inputs), strict=True))
                if grad_hidden is not None:
                    grad_hidden[part] = grads[0]
                if wants[1]:
                    grad_weight = _add(grad_weight, grads[1], several=tokens > size)
            total = total + loss.detach()
            sums = sums + found
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(sums)
        return total, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor, _sums: Any) -> tuple[torch.Tensor | None, ...]:
        grads = (None if grad is None else grad * grad_loss.to(grad.dtype) for grad in ctx.saved_tensors)
        return (None, None, None, *grads)


def _add(total: torch.Tensor | None, part: torch.Tensor, *, several: bool) -> torch.Tensor:
    """A sum of several parts is kept in float32 at least."""
    if total is None:
        return _wide(part) if several else part
    return total.add_(part)


class _CosineDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        own, other = _wide(student), _wide(teacher)
        square = own.square().sum(dim=-1, keepdim=True)
        both = (square * other.square().sum(dim=-1, keepdim=True)).sqrt()
        inverse = torch.where(both > 0, 1 / both, 0)
        cosine = (own * other).sum(dim=-1, keepdim=True) * inverse
        ctx.save_for_backward(student, teacher, cosine, inverse, torch.where(square > 0, 1 / square, 0))
        return 1 - cosine.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_distance: torch.Tensor) -> tuple[torch.Tensor, None]:
        student, teacher, cosine, inverse, inverse_square = ctx.saved_tensors
        factor = -grad_distance / cosine.numel()
        slope = _wide(teacher) * inverse - _wide(student) * (cosine * inverse_square)
        return (slope * factor).to(student.dtype), None
