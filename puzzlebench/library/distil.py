"""Blockwise local distillation of the variants of one layer (Puzzle, arXiv 2411.19146, section 3).

Every variant of a layer learns from one run of the parent's layer: the parent's input goes in, the parent's output is
the target, the loss is MSE(parent, child) / MSE(parent, 0), and no gradient leaves the layer. Variants share nothing
but that run: each has its own early stop, and the result it would have had alone.
Legend: B sequences, T tokens, H hidden size.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from puzzlebench.child.blockwise import Blockwise
from puzzlebench.library.activations import LayerInputs
from puzzlebench.library.recipe import Recipe, Training
from puzzlebench.model.blocks import Part
from puzzlebench.training.checkpoints import restore_training, save_training
from puzzlebench.training.optimisers import Optimisers, warm_then_cosine
from puzzlebench.training.precision import Precision, autocast

HELD_OUT_SHARE = 0.1
"""Of the sequences: never trained on; early stop and the losses of a block are taken there."""


@dataclass(kw_only=True)
class Variant:
    """One block in training: halves by part, of which only those in `trained` learn.

    Decoupled variants hold one trained half, and the parent's other half stays frozen beside it.
    """

    name: str
    halves: dict[Part, nn.Module]
    trained: tuple[Part, ...]
    losses: list[float] = field(default_factory=list)
    steps: int = 0
    stopped: bool = False

    def parameters(self) -> dict[str, nn.Parameter]:
        """What learns, by part and name in the layer."""
        return {
            f"{part}/{name}": parameter
            for part in self.trained
            for name, parameter in self.halves[part].named_parameters()
            if parameter.requires_grad
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRun:
    """What a variant sees of its layer.

    Attributes:
        attention, ffn: the parent's halves, frozen.
    """

    blockwise: Blockwise
    layer: int
    attention: nn.Module
    ffn: nn.Module
    inputs: LayerInputs
    precision: Precision

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision on the parent's device."""
        return autocast(next(self.blockwise.model.parameters()).device, self.precision)

    def teacher(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Input, middle and output of the parent's layer, each [B, T, H]."""
        with torch.no_grad():
            inputs = self.inputs.read(rows)
            middle = self.blockwise.run(self.layer, self.attention, inputs)
            return inputs, middle, self.blockwise.run(self.layer, self.ffn, middle)

    def student(self, variant: Variant, inputs: torch.Tensor, middle: torch.Tensor) -> torch.Tensor:
        """Output of the variant. Where its attention is the parent's, `middle` is what that gave."""
        if "attention" in variant.halves:
            middle = self.blockwise.run(self.layer, variant.halves["attention"], inputs)
        return self.blockwise.run(self.layer, variant.halves["ffn"], middle)


def normalised_mse(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """MSE(target, output) / MSE(target, 0)."""
    target = target.float()
    return (output.float() - target).square().mean() / target.square().mean()


def distil_layer(
    run: LayerRun,
    variants: Sequence[Variant],
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    save_now: Callable[[], bool] = lambda: False,
    progress: Callable[[float], None] = lambda _share: None,
) -> None:
    """Train the variants of a layer in place; their `losses` begin with the one before training.

    A variant whose held-out loss is not lower in the end keeps its initial weights. With a `checkpoint` file training
    goes on from it, and gives what it would have given without the interruption.

    Args:
        save_now: asked after every step whether to write the checkpoint now.
    """
    config: Any = run.blockwise.model.config
    settings = recipe.training
    lr, other_lr = settings.rates(config.hidden_size)
    train_rows, held_out = split_rows(len(run.inputs))
    initial = [_copy(variant) for variant in variants]
    # One for all, which orthogonalises matrices of one shape together; without a gradient a variant is left alone.
    named = dict(_named(variants))
    optimisers = Optimisers(named, name=settings.optimiser, lr=lr, other_lr=other_lr)
    step = 0
    if checkpoint is not None and checkpoint.exists():
        step = _take_over(restore_training(checkpoint, named, optimisers), variants)
    else:
        _evaluate(run, variants, held_out, settings.batch_size)
    marks = {round(settings.steps * (n + 1) / settings.evaluations) for n in range(settings.evaluations)}
    order = _Order(train_rows, settings)
    while step < settings.steps:
        active = [variant for variant in variants if not variant.stopped]
        if not active:
            break
        inputs, middle, target = run.teacher(order.rows(step))
        for variant in active:
            with run.autocast():
                loss = normalised_mse(run.student(variant, inputs, middle), target)
            loss.backward()  # type: ignore[no-untyped-call]
            variant.steps = step + 1
        optimisers.step(warm_then_cosine(step, settings.steps, settings.warmup))
        step += 1
        if step in marks:
            _evaluate(run, active, held_out, settings.batch_size)
            for variant in active:
                variant.stopped = step < settings.steps and _plateau(variant.losses, settings)
        if checkpoint is not None and save_now():
            save_training(checkpoint, named, optimisers, _facts(step, variants))
        progress(step / settings.steps)
    for variant, state in zip(variants, initial, strict=True):
        if not variant.losses[-1] < variant.losses[0]:
            variant.losses.append(variant.losses[0])
            with torch.no_grad():
                for name, parameter in variant.parameters().items():
                    parameter.copy_(state[name])


def split_rows(sequences: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of the sequences to train on and of those held out, the last tenth.

    Raises:
        ValueError: there are fewer than two.
    """
    if sequences < 2:
        raise ValueError(f"{sequences} sequence(s) cannot be split into training and held-out ones; give at least 2")
    held_out = max(1, round(sequences * HELD_OUT_SHARE))
    rows = torch.arange(sequences)
    return rows[:-held_out], rows[-held_out:]


class _Order:
    """Which sequences a step trains on: every one once per pass, shuffled by seed and pass, so that any step can be
    told without the ones before it."""

    def __init__(self, rows: torch.Tensor, settings: Training) -> None:
        self._rows, self._settings = rows, settings

    def rows(self, step: int) -> torch.Tensor:
        size, count = self._settings.batch_size, len(self._rows)
        places = range(step * size, (step + 1) * size)
        return torch.stack([self._shuffled(place // count)[place % count] for place in places])

    def _shuffled(self, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self._settings.seed * 1_000_003 + epoch)
        return self._rows[torch.randperm(len(self._rows), generator=generator)]


@torch.no_grad()
def _evaluate(run: LayerRun, variants: Sequence[Variant], rows: torch.Tensor, batch_size: int) -> None:
    """Append the held-out loss to each variant's losses."""
    sums = torch.zeros(len(variants), dtype=torch.float64)
    for batch in rows.split(batch_size):  # type: ignore[no-untyped-call]
        inputs, middle, target = run.teacher(batch)
        for number, variant in enumerate(variants):
            with run.autocast():
                sums[number] += normalised_mse(run.student(variant, inputs, middle), target).item() * len(batch)
    for variant, total in zip(variants, sums.tolist(), strict=True):
        variant.losses.append(total / len(rows))


def _plateau(losses: Sequence[float], settings: Training) -> bool:
    """Whether the last `patience` evaluations each gained less than `least_gain`."""
    if not settings.patience or len(losses) <= settings.patience:
        return False
    recent = losses[-settings.patience - 1 :]
    return all(after > before * (1 - settings.least_gain) for before, after in itertools.pairwise(recent))


def _copy(variant: Variant) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in variant.parameters().items()}


def _named(variants: Sequence[Variant]) -> Iterator[tuple[str, nn.Parameter]]:
    for variant in variants:
        for name, parameter in variant.parameters().items():
            yield f"{variant.name}//{name}", parameter


def _facts(step: int, variants: Sequence[Variant]) -> dict[str, Any]:
    kept = {
        variant.name: {"losses": variant.losses, "steps": variant.steps, "stopped": variant.stopped}
        for variant in variants
    }
    return {"step": step, "variants": kept}


def _take_over(facts: dict[str, Any], variants: Sequence[Variant]) -> int:
    for variant in variants:
        kept = facts["variants"][variant.name]
        variant.losses, variant.steps, variant.stopped = kept["losses"], kept["steps"], kept["stopped"]
    return int(facts["step"])
