"""What is taken from the logits of a candidate, sequence by sequence. Knows no model and no blocks.

Legend: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from puzzlebench.scores import Direction

METRICS: Final[dict[str, Direction]] = {"kl": "minimise", "lm_loss": "minimise", "top1_agreement": "maximise"}
"""kl: KL(parent, child) in nats per token; lm_loss: cross-entropy of the next token of the text, in nats per token;
top1_agreement: share of the tokens for which both models put the same token first."""

_POSITIONS = 1024  # at a time, so that copies of the logits stay small beside the logits


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """The parent's answer to some sequences.

    Attributes:
        log_probs: [B, T, V] float32.
        probs: [B, T, V] float32.
        top: [B, T], the most likely token.
        labels: [B, T - 1], the tokens that do follow.
    """

    log_probs: torch.Tensor
    probs: torch.Tensor
    top: torch.Tensor
    labels: torch.Tensor


def reference(logits: torch.Tensor, ids: torch.Tensor) -> Reference:
    """From the parent's logits [B, T, V] and the tokens [B, T]."""
    log_probs = _log_probs(logits)
    return Reference(
        log_probs=log_probs,
        probs=log_probs.exp(),
        top=logits.argmax(dim=-1),
        labels=ids[:, 1:],
    )


def metrics(logits: torch.Tensor, parent: Reference) -> torch.Tensor:
    """The metrics of `METRICS`, in their order, of each sequence: [B, 3] float64 from logits [B, T, V]."""
    batch, length, _ = logits.shape
    kl = torch.empty(batch, length, dtype=torch.float64)
    losses = torch.empty(batch, length - 1, dtype=torch.float64)
    same = torch.empty(batch, length, dtype=torch.float64)
    step = max(1, _POSITIONS // batch)
    for start in range(0, length, step):
        part = slice(start, min(start + step, length))
        own = _log_probs(logits[:, part])
        kl[:, part] = torch.einsum("btv,btv->bt", parent.probs[:, part], parent.log_probs[:, part] - own).cpu()
        same[:, part] = (logits[:, part].argmax(dim=-1) == parent.top[:, part]).cpu().double()
        labels = parent.labels[:, part]  # the last position has none
        followed = own[:, : labels.shape[1]].gather(-1, labels[..., None])[..., 0]
        losses[:, start : start + labels.shape[1]] = -followed.cpu()
    return torch.stack([kl.mean(dim=1).clamp(min=0), losses.mean(dim=1), same.mean(dim=1)], dim=1)


def _log_probs(logits: torch.Tensor) -> torch.Tensor:
    """In float32, to 1e-6 nats: torch's own log_softmax is 5e-5 off on CPUs with 128k tokens, as much as a good block
    loses. Both sides of a KL are taken so, and subtracted before the sum, where what is left cancels.
    """
    logits = logits.float()
    return logits - logits.logsumexp(dim=-1, keepdim=True)
