"""What the parent says of a batch, computed beside the student. A teacher from files is in `top_k`."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from puzzlebench.distillation.data import Numbers
from puzzlebench.distillation.head import output_head
from puzzlebench.distillation.losses import FullTarget
from puzzlebench.distillation.recipe import LossWeights
from puzzlebench.distillation.student import Lesson, layer_outputs
from puzzlebench.training.precision import Precision, autocast


class Teacher(Protocol):
    """Whoever knows the parent's answers."""

    def lesson(self, ids: torch.Tensor, rows: Numbers | None) -> Lesson:
        """For token ids [B, T], which are these rows of the data where those are numbered."""
        ...


class LiveTeacher:
    """The parent itself, run for every batch.

    Args:
        parent: a causal LM, frozen.
        weights: say what is needed of it.
    """

    def __init__(self, parent: Any, weights: LossWeights, precision: Precision) -> None:
        self._parent, self._precision = parent, precision
        self._with_layers = weights.cosine > 0

    @torch.no_grad()
    def lesson(self, ids: torch.Tensor, rows: Numbers | None = None) -> Lesson:  # noqa: ARG002, it needs no numbers
        """The parent's layers (where cosine counts) and its final hidden states."""
        with autocast(ids.device, self._precision), layer_outputs(self._parent) as layers:
            final = self._parent.model(input_ids=ids, use_cache=False).last_hidden_state
        target = FullTarget(hidden=final.flatten(0, 1), head=output_head(self._parent))
        return Lesson(layers=tuple(layers) if self._with_layers else (), target=target)
