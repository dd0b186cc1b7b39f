"""How good a child is on test text, beside its parent. Knows no library and no search.

Legend: N sequences, T tokens of each, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch

from puzzlebench.ablation.experiments import MEASURES
from puzzlebench.scoring.metrics import METRICS, Reference, metrics, reference
from puzzlebench.text.tokens import Tokens

_KEPT_BYTES: Final = 1 << 30
"""The parent's answers are kept up to this size, and computed anew at every use beyond it."""


class TestText:
    """Test sequences and the parent's answers to them."""

    def __init__(self, parent: Any, tokens: Tokens, batch_size: int) -> None:
        self._parent, self._batch = parent, batch_size
        self._device = next(parent.parameters()).device
        self._ids = torch.from_numpy(tokens).long()
        size = 2 * 4 * self._ids.numel() * int(parent.config.vocab_size)
        self._kept: list[Reference] | None = [] if size <= _KEPT_BYTES else None

    @torch.inference_mode()
    def measure(self, model: Any) -> dict[str, float]:
        """The measures of a model, means over sequences."""
        found = [metrics(model(ids, use_cache=False).logits, answer) for ids, answer in self._batches()]
        means = dict(zip(METRICS, torch.cat(found).mean(dim=0).tolist(), strict=True))
        return {name: float(means[name]) for name in MEASURES}

    def _batches(self) -> Iterator[tuple[torch.Tensor, Reference]]:
        for place, start in enumerate(range(0, len(self._ids), self._batch)):
            ids = self._ids[start : start + self._batch].to(self._device)
            if self._kept is not None and place < len(self._kept):
                yield ids, self._kept[place]
                continue
            answer = reference(self._parent(ids, use_cache=False).logits, ids)
            if self._kept is not None:
                self._kept.append(answer)
            yield ids, answer
