"""From a model's final hidden states to its logits: the output matrix and what the family does to its products.

Written out here, rather than called in the model, so that a loss can take some tokens at a time and still give the
matrix its gradient. Legend: N tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """An output matrix [V, H] and the family's scale and soft cap of logits."""

    weight: torch.Tensor
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, H] to [N, V], in the dtype of the two."""
        logits = F.linear(hidden, self.weight)
        if self.scale != 1.0:
            logits = logits / self.scale
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits

    def with_weight(self, weight: torch.Tensor) -> Head:
        """The same with another matrix."""
        return replace(self, weight=weight)


def output_head(model: Any) -> Head:
    """The head of a causal LM of a supported family; a test holds it against each family's own logits.

    Raises:
        ValueError: the head has a bias, which none of the families has.
    """
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise ValueError(f"the output layer of {type(model).__name__} has a bias, which distillation does not know")
    return Head(
        weight=head.weight,
        scale=float(getattr(model.config, "logits_scaling", None) or 1.0),
        cap=getattr(model.config, "final_logit_softcapping", None),
    )
