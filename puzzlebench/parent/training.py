"""Train a small causal LM from scratch on packed tokens. Knows nothing of where they are from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

import torch
import torch.nn.functional as F

from puzzlebench.text.tokens import Tokens
from puzzlebench.training.checkpoints import SaveClock, restore_training, save_training
from puzzlebench.training.optimisers import Optimisers, warm_then_cosine
from puzzlebench.training.precision import Precision, autocast

_LARGEST_NORM: Final = 1.0


class TrainingSettings(Protocol):
    """What `train` reads of a recipe."""

    @property
    def batch_size(self) -> int: ...  # noqa: D102
    @property
    def lr(self) -> float: ...  # noqa: D102
    @property
    def other_lr(self) -> float: ...  # noqa: D102
    @property
    def warmup(self) -> int: ...  # noqa: D102
    @property
    def steps(self) -> int: ...  # noqa: D102


def train(
    model: Any,
    rows: Tokens,
    settings: TrainingSettings,
    precision: Precision,
    *,
    checkpoint: Path,
    report: Callable[[float, str], None],
) -> None:
    """Train on rows [N, T] in their order, `batch_size` of them per step, each once.

    With a checkpoint file training goes on from it; one is written every 30 seconds.
    """
    named = dict(model.named_parameters())
    optimisers = Optimisers(
        named, name="muon", lr=settings.lr, other_lr=settings.other_lr, not_matrices=("embed_tokens", "lm_head")
    )
    step = int(restore_training(checkpoint, named, optimisers)["step"]) if checkpoint.exists() else 0
    device = next(model.parameters()).device
    model.train()
    save_now = SaveClock()
    while step < settings.steps:
        batch = rows[step * settings.batch_size : (step + 1) * settings.batch_size]
        with autocast(device, precision):
            loss, _ = _loss(model, torch.from_numpy(batch).to(device, torch.long))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), _LARGEST_NORM)
        optimisers.step(warm_then_cosine(step, settings.steps, settings.warmup))
        step += 1
        report(step / settings.steps, "training")
        if save_now():
            save_training(checkpoint, named, optimisers, {"step": step})
    model.eval()


@torch.no_grad()
def evaluate(model: Any, rows: Tokens, batch_size: int) -> tuple[float, float]:
    """Cross-entropy in nats per token and the share of next tokens put first, over rows [N, T]."""
    device = next(model.parameters()).device
    losses, hits = [], []
    for start in range(0, len(rows), batch_size):
        ids = torch.from_numpy(rows[start : start + batch_size]).to(device, torch.long)
        loss, hit = _loss(model, ids)
        losses += [loss.item()] * len(ids)
        hits += [hit] * len(ids)
    return sum(losses) / len(losses), sum(hits) / len(hits)


def _loss(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, float]:
    logits = model(ids, use_cache=False).logits[:, :-1].float().flatten(0, 1)
    labels = ids[:, 1:].flatten()
    return F.cross_entropy(logits, labels), float((logits.argmax(dim=-1) == labels).double().mean())
