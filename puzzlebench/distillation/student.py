"""The child with its losses inside: one module whose forward ends in a loss, as DDP and FSDP2 want it.

Legend: B sequences, T tokens, H hidden size, N = B x T.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from puzzlebench.distillation.head import output_head
from puzzlebench.distillation.losses import NO_LABEL, Target, cosine_distance, token_losses
from puzzlebench.distillation.recipe import LossWeights
from puzzlebench.training.precision import Precision, autocast


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """What the parent says of a batch.

    Attributes:
        layers: the output of each of its layers, [B, T, H]; empty where no loss asks for them.
        target: of its final norm's output or logits, over N tokens; None where no loss asks for it.
    """

    layers: tuple[torch.Tensor, ...] = ()
    target: Target | None = None


class Student(nn.Module):
    """A child in training.

    Args:
        child: a causal LM; it is set to evaluation mode, so that nothing is dropped out.
        precision: bf16 computes matrix products in it, over the child's weights as they are.
        checkpointing: keep only the inputs of layers for the backward pass and compute the rest anew.
    """

    def __init__(self, child: Any, weights: LossWeights, precision: Precision, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.child = child.eval()
        self.weights, self.precision = weights, precision
        if checkpointing:
            enable = getattr(child, "activation_checkpointing_enable", None) or child.gradient_checkpointing_enable
            enable({"use_reentrant": False})  # the first is the newer name
            for layer in child.model.layers:
                layer.training = True  # transformers looks at it; the modules inside stay in evaluation mode
        if weights.weighted == ("cosine",):  # nothing reaches them, and DDP waits for every gradient
            child.model.norm.requires_grad_(requires_grad=False)
            if child.get_output_embeddings().weight is not child.get_input_embeddings().weight:
                child.get_output_embeddings().requires_grad_(requires_grad=False)
        self._no_split_modules = child._no_split_modules  # accelerate shards these one by one

    def tie_weights(self) -> None:
        """Let tied embeddings be one tensor again, after tensors were exchanged."""
        self.child.tie_weights()

    def forward(
        self, ids: torch.Tensor, lesson: Lesson, also: tuple[str, ...] = ()
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of token ids [B, T], and the terms it is made of (and those of `also`) without gradient."""
        with autocast(ids.device, self.precision):
            with layer_outputs(self.child) as layers:
                final = self.child.model(input_ids=ids, use_cache=False).last_hidden_state
            loss, terms = token_losses(
                final.flatten(0, 1),
                output_head(self.child),
                lesson.target,
                next_tokens(ids).flatten(),
                self.weights,
                also=also,
            )
        if lesson.layers:
            distances = torch.stack(
                [cosine_distance(own, parents) for own, parents in zip(layers, lesson.layers, strict=True)]
            )
            terms = {"cosine": distances.detach().double().sum(), **terms}
            loss = loss + self.weights.cosine * distances.sum()
        return loss, terms


@contextmanager
def layer_outputs(model: Any) -> Iterator[list[torch.Tensor]]:
    """What the decoder layers of a causal LM give in the forward within, in their order."""
    outputs: list[torch.Tensor] = []

    def keep(_layer: nn.Module, _args: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    # Taken off before the backward pass, in which checkpointed layers run once more.
    hooks = [layer.register_forward_hook(keep) for layer in cast("nn.ModuleList", model.model.layers)]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def next_tokens(ids: torch.Tensor) -> torch.Tensor:
    """[B, T]: the token after each, and `NO_LABEL` after the last."""
    return torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], NO_LABEL)], dim=1)
