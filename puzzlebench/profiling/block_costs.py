"""Latency of a sub-block, the embeddings or the head, composed from kernels as a serving engine launches them.

Knows the kernels of a decoder layer; asks a `KernelTimings` for each and adds them up. Composition is for CUDA-graph
serving: kernels follow each other without launch gaps. Norms are fused with the residual addition, gate with up,
query with key and value; under tensor parallelism the output and down projections are followed by an all-reduce.

Prompts run in steps of at most `max_num_tokens` tokens, as engines schedule them: whole prompts are packed into a step,
a longer prompt is cut for the GEMMs. A step may hold prompts and decoding sequences at once (in-flight batching): GEMMs
and norms see all tokens together, either kind of attention its own. Legend: T tokens of one step, H hidden size; bytes
are of bf16 activations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from puzzlebench.model.blocks import GQA, GatedMLP, Linear, NoOp, SubBlock
from puzzlebench.model.sharding import heads_per_gpu, padded_vocab_size, split_evenly
from puzzlebench.model.spec import ModelSpec
from puzzlebench.profiling.arrays import FloatArray, IntArray
from puzzlebench.profiling.timings import MEASURED, MODELLED, KernelTimings, Timings
from puzzlebench.scenario import Precision

Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "decode")
_BF16 = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """What runs, one entry per question, (Q,).

    Attributes:
        tokens: of all sequences together.
        sequences: of either kind; each gets its next token.
        decodes, contexts: sequences that decode, and the tokens that each has in the cache.
        prompts, lengths: whole prompts, and the tokens of each.
        times: how often the step runs.
    """

    tokens: FloatArray
    sequences: FloatArray
    decodes: FloatArray
    contexts: FloatArray
    prompts: FloatArray
    lengths: FloatArray
    times: FloatArray

    @classmethod
    def of(
        cls,
        *,
        decodes: ArrayLike = 0.0,
        contexts: ArrayLike = 1.0,
        prompts: ArrayLike = 0.0,
        lengths: ArrayLike = 1.0,
        times: ArrayLike = 1.0,
    ) -> Steps:
        """Steps of whole prompts and decoding sequences; a prompt yields one token, as a decoding sequence does."""
        given = (np.atleast_1d(np.asarray(x, dtype=np.float64)) for x in (decodes, contexts, prompts, lengths, times))
        d, c, p, n, t = np.broadcast_arrays(*given)
        return cls(tokens=d + p * n, sequences=d + p, decodes=d, contexts=c, prompts=p, lengths=n, times=t)


class BlockCosts:
    """Latencies of one model's parts on one GPU.

    Raises (all methods):
        ValueError: the model cannot be split over `precision.tensor_parallel` GPUs, or a kernel was not measured.
    """

    def __init__(self, kernels: KernelTimings, spec: ModelSpec, precision: Precision, *, max_num_tokens: int) -> None:
        self._kernels, self._spec, self._precision = kernels, spec, precision
        self._max_num_tokens = max_num_tokens
        self._tp = precision.tensor_parallel

    def sub_block(self, sub: SubBlock, phase: Phase, batch_sizes: IntArray, lengths: IntArray) -> Timings:
        """Latency of one attention or FFN sub-block, (Q,) over (batch, length) pairs."""
        if isinstance(sub, NoOp):
            return Timings.zero(len(batch_sizes))
        return self._over_steps(phase, batch_sizes, lengths, lambda steps: self._sub_block_step(sub, steps))

    def embedding(self, phase: Phase, batch_sizes: IntArray, lengths: IntArray) -> Timings:
        """Look up one row per token; under tensor parallelism the shards are summed."""
        return self._over_steps(phase, batch_sizes, lengths, self._embedding_step)

    def head(self, phase: Phase, batch_sizes: IntArray, lengths: IntArray) -> Timings:
        """Final norm, logits of the last token of every sequence, and a pass over them to pick the next token."""
        return self._over_steps(phase, batch_sizes, lengths, self._head_step)

    def _over_steps(
        self, phase: Phase, batch_sizes: IntArray, lengths: IntArray, cost: Callable[[Steps], Timings]
    ) -> Timings:
        total = Timings.zero(len(batch_sizes))
        for steps in schedule(phase, batch_sizes, lengths, max_num_tokens=self._max_num_tokens):
            if (steps.times > 0).any():
                total = total + cost(steps).repeated(steps.times)
        return total

    def sub_block_step(self, sub: SubBlock, steps: Steps) -> Timings:
        """Latency of one sub-block in each of some steps, (Q,); how often they run is not counted."""
        return Timings.zero(len(steps.tokens)) if isinstance(sub, NoOp) else self._sub_block_step(sub, steps)

    def ends_step(self, steps: Steps) -> Timings:
        """Latency of the embeddings and the head in each of some steps, (Q,)."""
        return self._embedding_step(steps) + self._head_step(steps)

    def _sub_block_step(self, sub: GQA | GatedMLP | Linear, steps: Steps) -> Timings:
        hidden, spec = self._spec.hidden_size, self._spec
        # Norm and residual: read both, write both. Each further norm of the sub-block reads and writes once.
        norms = self._kernels.elementwise(_BF16 * 4 * steps.tokens * hidden)
        if spec.norms_per_sub_block == 2:
            norms = norms + self._kernels.elementwise(_BF16 * 2 * steps.tokens * hidden)
        match sub:
            case GQA():
                return norms + self._attention(sub, steps) + self._sum_shards(steps.tokens)
            case GatedMLP(intermediate_size=width):
                return norms + self._mlp(width, steps.tokens) + self._sum_shards(steps.tokens)
            case Linear():
                out = split_evenly(spec, "hidden_size", hidden, self._tp)
                return norms + self._gemm(steps.tokens, out, hidden) + self._sum_shards(steps.tokens)

    def _attention(self, sub: GQA, steps: Steps) -> Timings:
        spec, kernels = self._spec, self._kernels
        heads = heads_per_gpu(spec, spec.num_attention_heads, self._tp)
        kv_heads = heads_per_gpu(spec, sub.num_key_value_heads, self._tp)
        queries, keys = heads * spec.head_dim, kv_heads * spec.head_dim
        total = self._gemm(steps.tokens, queries + 2 * keys, spec.hidden_size)
        if spec.qk_norm != "none":
            total = total + kernels.elementwise(_BF16 * 2 * steps.tokens * (queries + keys))
        if not kernels.fuses_rope:  # rotate queries and keys, append keys and values
            total = total + kernels.elementwise(_BF16 * steps.tokens * (2 * queries + 2 * keys + 2 * keys))
        total = total + self._attend(sub, steps, heads, kv_heads)
        return total + self._gemm(steps.tokens, spec.hidden_size, queries)

    def _attend(self, sub: GQA, steps: Steps, heads: int, kv_heads: int) -> Timings:
        head_dim, precision = self._spec.head_dim, self._precision
        window = sub.sliding_window or np.inf
        total = Timings.zero(len(steps.tokens))
        if (steps.decodes > 0).any():
            timings = self._kernels.decode_attention(
                np.maximum(steps.decodes, 1.0),
                np.minimum(steps.contexts, window),
                heads=heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                kv_dtype=precision.kv_dtype,
            ).marked(np.where(steps.contexts > window, MODELLED, MEASURED))
            total = total + timings.repeated(steps.decodes > 0)
        if (steps.prompts > 0).any():
            timings = self._kernels.prefill_attention(
                np.maximum(steps.prompts, 1.0),
                steps.lengths,
                heads=heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                dtype=precision.weight_dtype,
                kv_dtype=precision.kv_dtype,
            )
            # A windowed prefill is not measured: the full one, times the share of query-key pairs the window keeps.
            length, inside = steps.lengths, np.minimum(steps.lengths, window)
            kept = (inside * (inside + 1) / 2 + (length - inside) * inside) / (length * (length + 1) / 2)
            timings = timings.repeated(kept).marked(np.where(length > window, MODELLED, MEASURED))
            total = total + timings.repeated(steps.prompts > 0)
        return total

    def _mlp(self, width: int, tokens: FloatArray) -> Timings:
        width = split_evenly(self._spec, "intermediate_size", width, self._tp)
        gate_and_up = self._gemm(tokens, 2 * width, self._spec.hidden_size)
        product = self._kernels.elementwise(_BF16 * 3 * tokens * width)
        return gate_and_up + product + self._gemm(tokens, self._spec.hidden_size, width)

    def _embedding_step(self, steps: Steps) -> Timings:
        looked_up = self._kernels.elementwise(_BF16 * 2 * steps.tokens * self._spec.hidden_size)
        return looked_up + self._sum_shards(steps.tokens)

    def _head_step(self, steps: Steps) -> Timings:
        spec, rows = self._spec, steps.sequences
        vocabulary = padded_vocab_size(spec, self._tp) // self._tp
        norm = self._kernels.elementwise(_BF16 * 2 * rows * spec.hidden_size)
        logits = self._kernels.gemm(rows, vocabulary, spec.hidden_size, "bf16")  # the head is never quantised
        return norm + logits + self._kernels.elementwise(_BF16 * 2 * rows * vocabulary)

    def _gemm(self, tokens: FloatArray, outputs: int, inputs: int) -> Timings:
        return self._kernels.gemm(tokens, outputs, inputs, self._precision.weight_dtype)

    def _sum_shards(self, tokens: FloatArray) -> Timings:
        if self._tp == 1:
            return Timings.zero(len(tokens))
        return self._kernels.all_reduce(tokens * self._spec.hidden_size, self._tp)


def schedule(phase: Phase, batch_sizes: IntArray, lengths: IntArray, *, max_num_tokens: int) -> list[Steps]:
    """The steps a batch takes, as a list of (Q,) steps to run one after the other.

    Decode is one step. Prefill packs floor(max_num_tokens / length) whole prompts into a step, and what is left over
    into a last one. A prompt longer than max_num_tokens runs alone: its attention is that of the whole prompt (its
    parts attend to all that precedes them), and its other work is counted at the prompt's full length.
    """
    batch, length = batch_sizes.astype(np.float64), lengths.astype(np.float64)
    if phase == "decode":
        return [Steps.of(decodes=batch, contexts=length)]
    packed = np.minimum(np.maximum(np.floor(max_num_tokens / length), 1.0), batch)
    full, left = np.floor(batch / packed), batch % packed
    last = np.where(left > 0, left, packed)  # where nothing is left over the step runs no times
    return [
        Steps.of(prompts=packed, lengths=length, times=full),
        Steps.of(prompts=last, lengths=length, times=(left > 0).astype(np.float64)),
    ]
