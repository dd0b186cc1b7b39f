"""Made-up search problems with the shape of the real ones, for tests and benchmarks. Deterministic for a seed.

The parent has the sizes of Llama-3.1-70B; each layer offers Puzzle's 6 attentions times 9 FFNs (arXiv 2411.19146,
section 2). Costs come from a roofline and noise, scores from a guess of how layers differ; nothing is measured.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from puzzlebench_search.problem import FloatArray, Limit, Problem

HIDDEN, QUERY_WIDTH, HEAD_DIM = 8192, 8192, 128
ATTENTIONS = ("kv8", "kv4", "kv2", "kv1", "linear", "none")
FFNS = ("28672", "25088", "21504", "14336", "7168", "5632", "2816", "linear", "none")
RESOURCES = ("memory_bytes", "params", "latency_s", "ttft_s")

BATCH, PROMPT, ANSWER = 32, 2048, 512
OPERATIONS_PER_S, BYTES_PER_S, LAUNCH_S = 6e14, 2.7e12, 1e-5
"""What a large GPU reaches in bf16, and what a sub-block costs at least."""

ATTENTION_HARM = np.array([0, 0.02, 0.05, 0.1, 0.3, 0.45])
FFN_HARM = np.array([0, 0.01, 0.03, 0.1, 0.35, 0.45, 0.7, 1, 1.2])
MEAN_HARM = 0.05
PRICE = 0.7
"""The score that a whole limit is worth where the limits are put; more shrinks more."""


def served_instance(layers: int = 80, *, seed: int) -> Problem:
    """Every layer costs the same, as in a cost table; all four limits bind or nearly do, half way down from the parent.

    Memory is the weights and the KV cache at a batch of 32, latency the time to a whole answer.
    """
    rng = np.random.default_rng(seed)
    uses = _block_uses(rng)
    scores = _scores(rng, layers)
    start = _cheapest(scores, uses / (0.6 * layers * uses[0]), np.full(len(RESOURCES), PRICE))
    reached = uses[start].sum(axis=0)
    return _problem(scores, np.tile(uses, (layers, 1)), reached * rng.uniform(0.999, 1.002, len(RESOURCES)))


def hard_instance(layers: int = 80, *, seed: int) -> Problem:
    """Costs that agree less with each other, and limits that all bind: what takes solvers longest.

    The limits are what the best architecture at random prices uses, less up to 0.4 %. With few layers there may be no
    solution.
    """
    rng = np.random.default_rng(seed)
    uses = _block_uses(rng)
    uses *= rng.lognormal(0, 0.15, uses.shape)
    scores = _scores(rng, layers)
    start = _cheapest(scores, uses / (0.6 * layers * uses[0]), PRICE * rng.uniform(0.4, 1.6, len(RESOURCES)))
    reached = uses[start].sum(axis=0)
    return _problem(scores, np.tile(uses, (layers, 1)), reached * (1 - rng.uniform(0, 0.004, len(RESOURCES))))


def block_names() -> tuple[str, ...]:
    """The choices of a layer, in order; the first is the parent's."""
    return tuple(f"{attention}+{ffn}" for attention in ATTENTIONS for ffn in FFNS)


def _block_uses(rng: np.random.Generator) -> FloatArray:
    """(54, 4) what each block uses of `RESOURCES`."""
    heads = np.array([8.0, 4, 2, 1, 0, 0])
    widths = np.array([28672.0, 25088, 21504, 14336, 7168, 5632, 2816, 0, 0])
    attention_params = (2.0 * HIDDEN * QUERY_WIDTH + 2.0 * HIDDEN * HEAD_DIM * heads) * (heads > 0)
    ffn_params = 3.0 * HIDDEN * widths
    attention_params[-2] = ffn_params[-2] = HIDDEN * HIDDEN
    kv_bytes = 2 * HEAD_DIM * 2 * heads
    pairs: FloatArray = np.sign(heads) * (BATCH * PROMPT * PROMPT / 2 * 4 * QUERY_WIDTH)
    attention = _times(attention_params, pairs, BATCH * (PROMPT + ANSWER / 2) * kv_bytes)
    ffn = _times(ffn_params, np.zeros(9), np.zeros(9))
    times = _composed(attention * rng.uniform(0.95, 1.05, (6, 2)), ffn * rng.uniform(0.95, 1.05, (9, 2)))
    params = _composed(attention_params[:, None], ffn_params[:, None])[:, 0]
    cache = _composed(kv_bytes[:, None], np.zeros((9, 1)))[:, 0] * BATCH * (PROMPT + ANSWER)
    prefill, step = times[:, 0], times[:, 1]
    return np.column_stack([2 * params + cache, params, prefill + ANSWER * step, prefill])


def _times(params: FloatArray, operations: FloatArray, cache: FloatArray) -> FloatArray:
    """(N, 2) seconds of prefill and of one decoding step of sub-blocks."""
    launch = LAUNCH_S * (params > 0)
    prefill = (2 * params * BATCH * PROMPT + operations) / OPERATIONS_PER_S
    return np.column_stack([prefill + launch, (2 * params + cache) / BYTES_PER_S + launch])


def _composed(attention: FloatArray, ffn: FloatArray) -> FloatArray:
    """(54, R) from (6, R) and (9, R)."""
    pairs: FloatArray = attention[:, None] + ffn[None]
    return pairs.reshape(-1, attention.shape[1])


def _scores(rng: np.random.Generator, layers: int) -> FloatArray:
    """(L, 54): what is taken away harms as much as the layer is sensitive; 0 for the parent's block."""
    attention, ffn = rng.lognormal(0, 0.8, layers), rng.lognormal(0.5, 0.6, layers)
    harm = attention[:, None, None] * ATTENTION_HARM[:, None] + ffn[:, None, None] * FFN_HARM
    noisy: FloatArray = MEAN_HARM * harm * rng.lognormal(0, 0.15, harm.shape)
    return noisy.reshape(layers, -1)


def _cheapest(scores: FloatArray, uses: FloatArray, prices: FloatArray) -> NDArray[np.intp]:
    """(L,) the choice of each layer with the least score plus price times use."""
    return np.asarray(np.argmin(scores + uses @ prices, axis=1))


def _problem(scores: FloatArray, uses: FloatArray, ends: Sequence[float] | FloatArray) -> Problem:
    layers, choices = scores.shape
    return Problem(
        scores=scores.ravel(),
        uses=uses,
        layers=np.repeat(np.arange(layers), choices),
        names=block_names() * layers,
        resources=RESOURCES,
        limits=tuple(Limit(resource=name, high=float(end)) for name, end in zip(RESOURCES, ends, strict=True)),
    )
