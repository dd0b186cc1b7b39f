"""What is timed, and which cells of a cost table it fills.

A cell is a row of the table. Many cells are the same work: a feed-forward network sees tokens, not contexts, and the
head one row per sequence. Each distinct piece of work is timed once. Knows no tensors and no clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from puzzlebench.model.blocks import GQA, NoOp, parse_sub_block, sub_block_name
from puzzlebench.model.checks import require_positive_int
from puzzlebench.model.space import SearchSpace, distinct_sub_blocks
from puzzlebench.profiling.block_costs import PHASES, Phase, schedule
from puzzlebench.profiling.profile import Grid

MODEL_PART = "model"


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Workload:
    """One sub-block (or the embedding, the head, a whole model) at one size.

    Attributes:
        part: attention, ffn, embedding, head, or model.
        sub_block: its name as in `blocks.sub_block_name`; of a model, the name of its architecture.
        phase: prefill or decode.
        batch_size: sequences; of token-wise work, tokens.
        context_len: prompt length in prefill; tokens in the cache in decode, the current one included.
    """

    part: str
    sub_block: str
    phase: Phase
    batch_size: int
    context_len: int

    @property
    def tokens(self) -> int:
        """Tokens that run through it."""
        return self.batch_size * (self.context_len if self.phase == "prefill" else 1)

    def __str__(self) -> str:
        """For people: part, name, phase and size."""
        return f"{self.part} {self.sub_block}, {self.phase}, batch {self.batch_size}, length {self.context_len}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A workload that a cell runs `times` times."""

    workload: Workload
    times: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One row of the table and the work behind it; no steps for a no-op."""

    key: Workload
    steps: tuple[Step, ...]


def plan_cells(space: SearchSpace, grid: Grid, *, max_num_tokens: int) -> tuple[Cell, ...]:
    """Every cell of a space's table in the table's order: phase by phase, attention, FFN, embedding, head.

    Raises:
        ValueError: `max_num_tokens` is not a whole number of at least 1.
    """
    require_positive_int("max_num_tokens", max_num_tokens)
    attention, ffn = distinct_sub_blocks(space)
    names = [("attention", sub_block_name(sub)) for sub in attention]
    names += [("ffn", sub_block_name(sub)) for sub in ffn]
    names += [("embedding", "embedding"), ("head", "head")]
    cells = []
    for phase in PHASES:
        batches, lengths = grid.pairs(phase)
        for part, name in names:
            for batch, length in zip(batches.tolist(), lengths.tolist(), strict=True):
                key = Workload(part=part, sub_block=name, phase=phase, batch_size=batch, context_len=length)
                cells.append(plan_cell(key, max_num_tokens=max_num_tokens))
    return tuple(cells)


def plan_cell(key: Workload, *, max_num_tokens: int) -> Cell:
    """The work behind one cell: its engine steps, each in its canonical form."""
    if is_no_op(key):
        return Cell(key=key, steps=())
    if key.part == "head":  # one row per sequence, whatever came before
        return Cell(key=key, steps=(Step(workload=_token_wise(key, key.batch_size), times=1),))
    steps = []
    for step in schedule(
        key.phase, np.array([key.batch_size]), np.array([key.context_len]), max_num_tokens=max_num_tokens
    ):
        times, sequences, tokens = int(step.times[0]), int(step.sequences[0]), int(step.tokens[0])
        if times == 0:
            continue
        if is_attention(key):
            work = Workload(
                part=key.part,
                sub_block=key.sub_block,
                phase=key.phase,
                batch_size=sequences,
                context_len=key.context_len,
            )
        else:
            work = _token_wise(key, tokens)
        steps.append(Step(workload=work, times=times))
    return Cell(key=key, steps=tuple(steps))


def distinct_workloads(cells: Iterable[Cell]) -> tuple[Workload, ...]:
    """Every workload behind the cells, each once."""
    return tuple(dict.fromkeys(step.workload for cell in cells for step in cell.steps))


def is_no_op(work: Workload) -> bool:
    """Whether there is nothing to run."""
    return work.sub_block == sub_block_name(NoOp())


def is_attention(work: Workload) -> bool:
    """Whether the work depends on the context: attention with a key-value cache."""
    return work.part == "attention" and isinstance(parse_sub_block("attention", work.sub_block), GQA)


def _token_wise(key: Workload, tokens: int) -> Workload:
    return Workload(part=key.part, sub_block=key.sub_block, phase="decode", batch_size=tokens, context_len=1)
