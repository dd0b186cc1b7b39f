"""The training loop of global distillation: the same for one process and for many. Knows no files of models.

Legend: B rows of this process in a step, T tokens of each.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from puzzlebench.distillation.data import Batch, StageRows
from puzzlebench.distillation.ranks import Ranks
from puzzlebench.distillation.recipe import DistilRecipe
from puzzlebench.distillation.states import States
from puzzlebench.distillation.student import Student
from puzzlebench.distillation.teacher import Teacher
from puzzlebench.training.optimisers import Optimisers, warm_then_cosine

_LOGGED = 100  # lines of losses at most
_ALSO_HELD_OUT = ("forward_kl", "lm")
NOT_MATRICES = ("embed_tokens", "lm_head")


@dataclass(kw_only=True)
class History:
    """What a training went through; JSON-ready lists of one object per line."""

    step: int = 0
    tokens: int = 0
    losses: list[dict[str, float]] = field(default_factory=list)
    held_out: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What is trained, by whom and on what.

    Attributes:
        module: the student, prepared.
        teachers: for every stage.
        open_rows: the rows of a stage by its number.
        micro_batch: rows of one forward, of one process; None: all that a process has of a step.
    """

    module: nn.Module
    teachers: Sequence[Teacher]
    open_rows: Callable[[int], StageRows]
    recipe: DistilRecipe
    ranks: Ranks
    states: States
    micro_batch: int | None = None


def make_optimisers(named: Mapping[str, nn.Parameter], recipe: DistilRecipe) -> Optimisers:
    """The recipe's, whose rates are numbers."""
    assert recipe.lr is not None
    assert recipe.other_lr is not None
    return Optimisers(
        named,
        name=recipe.optimiser,
        lr=recipe.lr,
        other_lr=recipe.other_lr,
        not_matrices=NOT_MATRICES,
        weight_decay=recipe.weight_decay,
    )


def named_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """The child's parameters by the names they have in the child, however it was wrapped."""
    return {name.removeprefix("module.").removeprefix("child."): one for name, one in module.named_parameters()}


def train(training: Training, report: Callable[[float, str], None]) -> History:
    """Train to the end of the last stage, from where the states on disk are.

    Raises:
        ValueError: the loss is not finite any more, or the data ends.
    """
    recipe, ranks = training.recipe, training.ranks
    named = named_weights(training.module)
    optimisers = make_optimisers(named, recipe)
    facts = training.states.restore(named, optimisers)
    history = History(**facts["history"]) if facts else History()
    sums: list[float] = facts["sums"] if facts else []
    positions: list[dict[str, Any]] | None = facts["positions"] if facts else None
    logged = max(1, recipe.steps // _LOGGED)
    evaluated = {round(recipe.steps * (n + 1) / recipe.evaluations) for n in range(recipe.evaluations)}
    begun, before = time.monotonic(), history.seconds
    first = 0
    for number, stage in enumerate(recipe.stages):
        end = first + stage.steps
        if history.step > end:
            first = end
            continue
        rows = training.open_rows(number)
        if positions is not None and history.step > first:  # at the end of a stage too: a stream's next goes on there
            rows.go_to(positions)
        if history.step == 0:
            history.held_out.append(_held_out(training, number, rows, history))
        while history.step < end:
            batch = rows.batch(history.step - first)
            found = _step(training, training.teachers[number], batch, named, optimisers, history.step)
            sums = [own + new for own, new in zip(sums or [0.0] * len(found), found, strict=True)]
            history.step += 1
            history.tokens += stage.batch_size * stage.length
            if history.step % logged == 0 or history.step == recipe.steps:
                history.losses.append(_line(training, history, sums))
                sums = []
            if history.step in evaluated:
                history.held_out.append(_held_out(training, number, rows, history))
            history.seconds = before + time.monotonic() - begun
            report(history.step / recipe.steps, _stage_name(history, recipe))
            if history.step < recipe.steps and training.states.due():
                facts = {
                    "step": history.step,
                    "history": vars(history),
                    "sums": ranks.mean(sums),
                    "positions": ranks.gather(rows.position()),
                }
                training.states.save(named, optimisers, facts)
        first = end
    return history


def _step(
    training: Training,
    teacher: Teacher,
    batch: Batch,
    named: Mapping[str, nn.Parameter],
    optimisers: Optimisers,
    step: int,
) -> list[float]:
    """One optimiser step; the loss, the weighted terms and the gradient's norm come back."""
    recipe, ranks = training.recipe, training.ranks
    count = len(batch.ids)
    size = training.micro_batch or count
    totals = [0.0] * (1 + len(recipe.losses.weighted))
    for first in range(0, count, size):
        part = slice(first, min(first + size, count))
        share = (part.stop - first) / count
        ids = torch.from_numpy(batch.ids[part]).to(ranks.device, torch.long)
        last = part.stop == count
        with contextlib.nullcontext() if last else ranks.without_sync(training.module):
            lesson = teacher.lesson(ids, None if batch.rows is None else batch.rows[part])
            loss, terms = training.module(ids, lesson)
            ranks.backward(loss * share)
        found = [float(loss.detach()), *(float(terms[name]) for name in recipe.losses.weighted)]
        totals = [total + share * one for total, one in zip(totals, found, strict=True)]
    norm = ranks.clip(named.values(), recipe.clip)
    if not math.isfinite(totals[0]) or not math.isfinite(norm):
        what = "loss" if not math.isfinite(totals[0]) else "norm of the gradient"
        raise ValueError(f"the {what} is not finite at step {step + 1}; lower the learning rate (it is {recipe.lr:g})")
    optimisers.step(warm_then_cosine(step, recipe.steps, recipe.warmup))
    return [*totals, norm]


def _line(training: Training, history: History, sums: list[float]) -> dict[str, float]:
    """The means since the line before, over all processes."""
    since = history.step - (int(history.losses[-1]["step"]) if history.losses else 0)
    loss, *terms, norm = (total / since for total in training.ranks.mean(sums))
    names = training.recipe.losses.weighted
    return {
        "step": history.step,
        "tokens": history.tokens,
        "loss": loss,
        **dict(zip(names, terms, strict=True)),
        "gradient_norm": norm,
    }


@torch.no_grad()
def _held_out(training: Training, number: int, rows: StageRows, history: History) -> dict[str, float]:
    """Means over the held-out rows, which the processes share."""
    ranks, held_out, stage = training.ranks, rows.held_out, training.recipe.stages[number]
    names = training.recipe.losses.weighted
    also = tuple(name for name in _ALSO_HELD_OUT if name not in names)
    size = training.micro_batch or max(1, stage.batch_size // ranks.count)
    sums = [0.0] * (2 + len(names) + len(also))
    for first in range(0, len(held_out), size * ranks.count):
        start = first + ranks.index * size
        own = slice(start, start + size)
        count = len(held_out[own])
        used = own if count else slice(1)  # a sharded forward needs everyone
        ids = torch.from_numpy(held_out[used]).to(ranks.device, torch.long)
        numbers = None if rows.held_out_rows is None else rows.held_out_rows[used]
        loss, terms = training.module(ids, training.teachers[number].lesson(ids, numbers), also)
        found = [1.0, float(loss), *(float(terms[name]) for name in (*names, *also))]
        sums = [total + count * one for total, one in zip(sums, found, strict=True)]
    rows_seen, *totals = ranks.mean(sums)
    values = dict(zip(("loss", *names, *also), (total / rows_seen for total in totals), strict=True))
    return {"step": history.step, "tokens": history.tokens, "length": stage.length, **values}


def _stage_name(history: History, recipe: DistilRecipe) -> str:
    value = f"held-out loss {history.held_out[-1]['loss']:.4f}" if history.held_out else "distilling"
    return f"{recipe.steps} steps, {value}"


def student_of(module: nn.Module) -> Student:
    """The student in what `Ranks.prepare` gave."""
    inner = module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module
    assert isinstance(inner, Student)
    return inner
