"""What one iteration of an engine costs: prompts and decoding sequences together, and the engine's own time.

Kernels are costed once on a grid and interpolated, so that a simulation can ask for many thousand iterations. An
iteration is the sum of what depends on its tokens (GEMMs, norms, all-reduces), on the decoding sequences and their
contexts (attention to the cache), on its prompts (attention within them), on the sequences that get a token (the head),
and of the engine's overheads. A part of a prompt attends to what precedes it: it costs what the longer prompt costs
more than the shorter, which no table measures.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from puzzlebench.model.blocks import GQA, Architecture, NoOp
from puzzlebench.model.parameters import count_sub_blocks
from puzzlebench.profiling.arrays import FloatArray
from puzzlebench.profiling.block_costs import BlockCosts, Steps
from puzzlebench.profiling.timings import Timings


@dataclass(frozen=True, kw_only=True, slots=True)
class Overheads:
    """What an engine adds to its kernels; fitted to served models (`serving.calibration`).

    Attributes:
        sub_block_us: per sub-block and iteration, beyond its kernels one after the other; below 0 where they overlap.
        all_reduce_us: per all-reduce, beyond the measured one: GPUs wait for each other.
        sequence_us: per sequence and iteration: scheduling, sampling, detokenising.
        launch_us: per sub-block, the least that an iteration with prompts takes: without CUDA graphs the host launches
            every kernel, and short ones wait for it.
        request_ms: per request, before its first iteration: the server, the tokenizer, the way there and back.
    """

    sub_block_us: float = 0.0
    all_reduce_us: float = 0.0
    sequence_us: float = 0.0
    launch_us: float = 0.0
    request_ms: float = 0.0


class IterationCosts:
    """Durations of a model's iterations in milliseconds.

    Args:
        max_tokens: most tokens that an iteration can have.
        max_sequences: most sequences.
        max_context: longest sequence.
    """

    def __init__(
        self,
        costs: BlockCosts,
        architecture: Architecture,
        overheads: Overheads,
        *,
        tensor_parallel: int,
        max_tokens: int,
        max_sequences: int,
        max_context: int,
    ) -> None:
        self.blocks, self._architecture, self.overheads = costs, architecture, overheads
        counts = count_sub_blocks(architecture)
        self._present = sum(count for sub, count in counts.items() if not isinstance(sub, NoOp))
        self._reduces = self._present + 1 if tensor_parallel > 1 else 0  # one more for the embeddings
        self._attention = any(isinstance(sub, GQA) for sub in counts)
        self._tokens = _token_grid(max_tokens)
        bare = _only_tokens(self._tokens)
        self._tokens_ms = sum((one.latency_us for one in self.kernels(bare)), np.zeros(len(self._tokens))) / 1e3
        self._rows = _grid(max_sequences, every=16, ratio=1.1)
        rows = self.blocks.ends_step(_only_tokens(np.ones(len(self._rows)), self._rows)).latency_us / 1e3
        self._rows_ms = rows - rows[0]  # the first row is in the table of tokens
        self._batches, self._contexts = _grid(max_sequences, every=4, ratio=1.4), _grid(max_context, every=0, ratio=1.5)
        self._decode_ms = self._core(self._batches, self._contexts, decode=True)
        most = max(1, min(16, max_tokens))
        self._prompts, self._lengths = _grid(most, every=2, ratio=2.0), _grid(max_context, every=0, ratio=1.35)
        # Per token: attention within a prompt is linear and square in its length, so this is straight between nodes.
        self._prefill_ms = self._core(self._prompts, self._lengths, decode=False) / self._lengths

    def with_overheads(self, overheads: Overheads) -> IterationCosts:
        """The same kernels with other overheads."""
        found = copy.copy(self)
        found.overheads = overheads
        return found

    def iteration_ms(self, decodes: float, context: float, parts: Sequence[tuple[float, float]] = ()) -> float:
        """One iteration; means may be fractions.

        Args:
            decodes: decoding sequences.
            context: tokens that each has in the cache, on average.
            parts: (tokens before, tokens now) of each prompt or part of one.
        """
        whole = [now for before, now in parts if not before]
        total = self._shared_ms(decodes, context, sum(now for _, now in parts), len(parts))
        if not parts:
            return total
        if whole:
            total += self._prompts_ms(len(whole), sum(whole) / len(whole))
        return self._launched(total + sum(self._part_ms(before, now) for before, now in parts if before))

    def mixed_ms(self, decodes: float, context: float, prompts: float, length: float) -> float:
        """One iteration with so many whole prompts of this length."""
        kernels = self._shared_ms(decodes, context, prompts * length, prompts) + self._prompts_ms(prompts, length)
        return self._launched(kernels)

    def prompt_ms(self, decodes: float, context: float, prompts: float, length: float, chunks: int) -> list[float]:
        """Each of the iterations that so many prompts of this length take together; alone and in parts if `chunks`."""
        if chunks == 1:
            return [self.mixed_ms(decodes, context, prompts, length)]
        part = length / chunks
        return [self.iteration_ms(decodes, context, [(place * part, part)]) for place in range(chunks)]

    def kernels(self, steps: Steps) -> list[Timings]:
        """The kernels of iterations asked of the source itself, (Q,), with intervals: the ends, then each sub-block."""
        counts = count_sub_blocks(self._architecture)
        return [
            self.blocks.ends_step(steps),
            *(self.blocks.sub_block_step(sub, steps).repeated(count) for sub, count in counts.items()),
        ]

    def _shared_ms(self, decodes: float, context: float, prompt_tokens: float, prompts: float) -> float:
        """All but attention within prompts."""
        sequences = decodes + prompts
        total = float(np.interp(decodes + prompt_tokens, self._tokens, self._tokens_ms))
        total += float(np.interp(sequences, self._rows, self._rows_ms))
        if decodes:
            total += _bilinear(self._batches, self._contexts, self._decode_ms, max(decodes, 1.0), context)
        return total + self._overheads_ms(sequences)

    def _overheads_ms(self, sequences: float) -> float:
        of = self.overheads
        return (self._present * of.sub_block_us + self._reduces * of.all_reduce_us + sequences * of.sequence_us) / 1e3

    def _launched(self, milliseconds: float) -> float:
        """An iteration with prompts: no shorter than its launches take."""
        return max(milliseconds, self._present * self.overheads.launch_us / 1e3)

    def _prompts_ms(self, prompts: float, length: float) -> float:
        """Attention within so many prompts."""
        most = float(self._prompts[-1])
        each = _bilinear(self._prompts, self._lengths, self._prefill_ms, min(max(prompts, 1.0), most), length)
        return length * each * max(1.0, prompts / most)

    def _part_ms(self, before: float, now: float) -> float:
        return self._prompts_ms(1.0, before + now) - self._prompts_ms(1.0, before)

    def _core(self, counts: FloatArray, lengths: FloatArray, *, decode: bool) -> FloatArray:
        """Attention alone, (counts, lengths): a step less the same step without it."""
        if not self._attention:
            return np.zeros((len(counts), len(lengths)))
        n, length = (values.ravel() for values in np.meshgrid(counts, lengths, indexing="ij"))
        steps = Steps.of(decodes=n, contexts=length) if decode else Steps.of(prompts=n, lengths=length)
        bare = _only_tokens(steps.tokens)
        attention = [
            (sub, count) for sub, count in count_sub_blocks(self._architecture).items() if isinstance(sub, GQA)
        ]
        total = np.zeros(len(n))
        for sub, count in attention:
            with_it, without = (self.blocks.sub_block_step(sub, each).latency_us for each in (steps, bare))
            total += count * (with_it - without)
        return total.reshape(len(counts), len(lengths)) / 1e3


def _only_tokens(tokens: FloatArray, sequences: FloatArray | None = None) -> Steps:
    """Steps of so many tokens without attention; one sequence where it is not said."""
    none, one = np.zeros(len(tokens)), np.ones(len(tokens))
    rows = one if sequences is None else sequences
    return Steps(tokens=tokens, sequences=rows, decodes=none, contexts=one, prompts=none, lengths=one, times=one)


def _grid(most: int, *, every: int, ratio: float) -> FloatArray:
    """All whole numbers up to `every`, then steps of `ratio`, up to `most`."""
    values = list(range(1, min(every, most) + 1)) or [1]
    while values[-1] < most:
        values.append(min(most, max(values[-1] + 1, round(values[-1] * ratio))))
    return np.array(values, dtype=np.float64)


def _token_grid(most: int) -> FloatArray:
    """Token counts to cost: small ones one by one, then both sides of each step of a row tile of a GEMM."""
    steps = [*range(256, 2048, 128), *range(2048, 8192, 512), *range(8192, most, 2048)]
    values = {*range(1, 33), *range(40, 257, 8), *(near for step in steps for near in (step, step + 1)), most}
    return np.array(sorted(value for value in values if value <= most), dtype=np.float64)


def _bilinear(rows: FloatArray, columns: FloatArray, values: FloatArray, row: float, column: float) -> float:
    """Linear between the four neighbours; nothing beyond the grid is asked."""
    i = min(max(int(np.searchsorted(rows, row, side="right")) - 1, 0), max(len(rows) - 2, 0))
    j = min(max(int(np.searchsorted(columns, column, side="right")) - 1, 0), max(len(columns) - 2, 0))
    i2, j2 = min(i + 1, len(rows) - 1), min(j + 1, len(columns) - 1)
    u = 0.0 if i2 == i else (row - rows[i]) / (rows[i2] - rows[i])
    v = 0.0 if j2 == j else (column - columns[j]) / (columns[j2] - columns[j])
    top = values[i, j] * (1 - v) + values[i, j2] * v
    bottom = values[i2, j] * (1 - v) + values[i2, j2] * v
    return float(top * (1 - u) + bottom * u)
