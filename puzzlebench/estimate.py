"""What a whole model costs in a scenario: latency, throughput and memory, summed from a cost table.

Static batching: all prompts are prefilled, then all sequences decode together to the end. Reads cost tables only; knows
nothing of where their numbers come from. The errors of blocks are added as if they were one (the same kernels repeat in
every layer), so the interval of a sum is the sum of the intervals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from puzzlebench.model.blocks import Architecture, sub_block_name
from puzzlebench.model.memory import MemoryBreakdown, largest_batch, model_memory
from puzzlebench.model.space import space_of
from puzzlebench.model.spec import ModelSpec
from puzzlebench.profiling.arrays import FloatArray, IntArray
from puzzlebench.profiling.cost_table import CostTable
from puzzlebench.profiling.profile import Grid, build_cost_table
from puzzlebench.profiling.timings import PROVENANCE, KernelTimings
from puzzlebench.scenario import Scenario
from puzzlebench_profiles.datasheets import Datasheet

DEFAULT_MEMORY_FRACTION = 0.9
_CONTEXT_NODES = 9  # context lengths at which decode is costed; the steps between are interpolated


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> Interval:
        """All three times a factor."""
        return Interval(value=self.value * factor, low=self.low * factor, high=self.high * factor)

    def rate(self, count: float) -> Interval:
        """`count` over this duration; the ends swap."""
        return Interval(value=count / self.value, low=count / self.high, high=count / self.low)


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What all copies of one part cost: (part, sub-block), how many, and milliseconds in prefill and all of decode."""

    part: str
    sub_block: str
    count: int
    prefill_ms: float
    decode_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A scenario on one GPU (or one tensor-parallel group; throughput is then of the whole group).

    Attributes:
        ttft_ms: time to first token, all prompts of the batch prefilled together.
        tpot_ms: mean time per output token after the first.
        generated_tokens_per_s: batch x generated tokens / (prefill + decode).
        total_tokens_per_s: the same with prompt tokens counted too.
        provenance: share of the time by provenance of the cells it comes from.
        largest_batch: largest that fits at these lengths.
    """

    ttft_ms: Interval
    tpot_ms: Interval
    total_ms: Interval
    generated_tokens_per_s: Interval
    total_tokens_per_s: Interval
    memory: MemoryBreakdown
    usable_bytes: int
    largest_batch: int
    shares: tuple[Share, ...]
    provenance: dict[str, float]


def estimate(
    kernels: KernelTimings,
    gpu: Datasheet,
    spec: ModelSpec,
    architecture: Architecture,
    scenario: Scenario,
    *,
    memory_fraction: float = DEFAULT_MEMORY_FRACTION,
    tokens_per_block: int = 32,
    must_fit: bool = True,
) -> Estimate:
    """Estimate a scenario.

    Args:
        memory_fraction: of the GPU's memory that may be used.
        tokens_per_block: page size of the KV cache.
        must_fit: refuse a batch that does not fit.

    Raises:
        ValueError: the batch does not fit in `memory_fraction` of the GPU's memory (the message names the largest that
            does), or the model cannot be split over the GPUs.
    """
    memory, usable, largest = check_fits(
        gpu,
        spec,
        architecture,
        scenario,
        memory_fraction=memory_fraction,
        tokens_per_block=tokens_per_block,
        must_fit=must_fit,
    )
    # The first token comes out of prefill; the other decode_len - 1 attend to 1, 2, ... more tokens than the prompt.
    first, last = scenario.prefill_len + 1, scenario.prefill_len + scenario.decode_len - 1
    nodes = sorted({round(node) for node in np.linspace(first, max(first, last), _CONTEXT_NODES)})
    grid = Grid(batch_sizes=(scenario.batch_size,), prefill_lens=(scenario.prefill_len,), context_lens=tuple(nodes))
    table = build_cost_table(kernels, gpu, spec, space_of(architecture), scenario.precision, grid)
    return _sum(table, architecture, scenario, memory, usable, largest, nodes)


def check_fits(
    gpu: Datasheet,
    spec: ModelSpec,
    architecture: Architecture,
    scenario: Scenario,
    *,
    memory_fraction: float = DEFAULT_MEMORY_FRACTION,
    tokens_per_block: int = 32,
    must_fit: bool = True,
) -> tuple[MemoryBreakdown, int, int]:
    """(memory, usable bytes per GPU, largest batch) of a scenario.

    Raises:
        ValueError: it does not fit, or the fraction is not in (0, 1].
    """
    if not 0 < memory_fraction <= 1:
        raise ValueError(f"the memory fraction must be above 0 and at most 1, not {memory_fraction}")
    usable = int(gpu.memory_bytes * memory_fraction)
    precision = scenario.precision
    memory = model_memory(
        spec,
        architecture,
        batch_size=scenario.batch_size,
        prefill_len=scenario.prefill_len,
        context_len=scenario.context_len,
        weight_dtype=precision.weight_dtype,
        kv_dtype=precision.kv_dtype,
        tensor_parallel=precision.tensor_parallel,
        tokens_per_block=tokens_per_block,
    )
    largest = largest_batch(
        spec,
        architecture,
        capacity_bytes=usable,
        prefill_len=scenario.prefill_len,
        context_len=scenario.context_len,
        weight_dtype=precision.weight_dtype,
        kv_dtype=precision.kv_dtype,
        tensor_parallel=precision.tensor_parallel,
        tokens_per_block=tokens_per_block,
    )
    if must_fit and memory.total_bytes > usable:
        gib = 2**30
        advice = (
            f"the largest batch that fits is {largest}" if largest else "use fewer bytes per weight or more GPUs (--tp)"
        )
        raise ValueError(
            f"batch {scenario.batch_size} does not fit on {gpu.name}: it needs {memory.total_bytes / gib:.1f} GiB "
            f"(weights {memory.weights_bytes / gib:.1f}, KV cache {memory.kv_cache_bytes / gib:.1f}, workspace "
            f"{memory.workspace_bytes / gib:.1f}) of {usable / gib:.1f} usable; {advice}"
        )
    return memory, usable, largest


def _sum(
    table: CostTable,
    architecture: Architecture,
    scenario: Scenario,
    memory: MemoryBreakdown,
    usable: int,
    largest: int,
    nodes: list[int],
) -> Estimate:
    counts: Counter[tuple[str, str]] = Counter({("embedding", "embedding"): 1, ("head", "head"): 1})
    for block in architecture.blocks:
        counts["attention", sub_block_name(block.attention)] += 1
        counts["ffn", sub_block_name(block.ffn)] += 1
    steps = scenario.decode_len - 1
    contexts = scenario.prefill_len + 1 + np.arange(steps)
    prefill, decode = np.zeros(3), np.zeros(3)
    by_provenance = dict.fromkeys(PROVENANCE, 0.0)
    shares = []
    columns = ["latency_us", "latency_low_us", "latency_high_us"]
    for key, cells in table.frame.groupby(["part", "sub_block", "phase"], sort=False):
        part, name, phase = map(str, key)
        count = counts[part, name]
        cells = cells.sort_values("context_len")
        values = cells[columns].to_numpy() * count / 1e3
        if phase == "decode":
            per_node = decode_node_weights(contexts, nodes)
            values = values * per_node[:, None]
            decode += values.sum(axis=0)
        else:
            prefill += values.sum(axis=0)
        for provenance, cost in zip(cells["provenance"], values[:, 0], strict=True):
            by_provenance[provenance] += cost
        shares.append((part, name, count, phase, float(values[:, 0].sum())))
    total = prefill + decode
    tokens = scenario.batch_size * scenario.decode_len
    span = _interval(total)
    return Estimate(
        ttft_ms=_interval(prefill),
        tpot_ms=_interval(decode / max(steps, 1)),
        total_ms=span,
        generated_tokens_per_s=span.scaled(1e-3).rate(tokens),
        total_tokens_per_s=span.scaled(1e-3).rate(tokens + scenario.batch_size * scenario.prefill_len),
        memory=memory,
        usable_bytes=usable,
        largest_batch=largest,
        shares=_merge(shares),
        provenance={name: float(cost / total[0]) for name, cost in by_provenance.items() if cost > 0},
    )


def decode_node_weights(contexts: IntArray, nodes: Sequence[int]) -> FloatArray:
    """How many decode steps each costed context length stands for, (nodes,): linear between neighbours.

    Args:
        contexts: tokens in the cache at each step.
        nodes: costed lengths, ascending; a step outside them counts as one at the nearest.
    """
    weights = np.zeros(len(nodes))
    for place in range(len(nodes)):
        unit = np.zeros(len(nodes))
        unit[place] = 1.0
        weights[place] = np.interp(contexts, nodes, unit).sum() if len(contexts) else 0.0
    return weights


def _interval(values: FloatArray) -> Interval:
    return Interval(value=float(values[0]), low=float(values[1]), high=float(values[2]))


def _merge(shares: list[tuple[str, str, int, str, float]]) -> tuple[Share, ...]:
    spent: dict[tuple[str, str, int], dict[str, float]] = {}
    for part, name, count, phase, milliseconds in shares:
        spent.setdefault((part, name, count), {})[phase] = milliseconds
    return tuple(
        Share(
            part=part, sub_block=name, count=count, prefill_ms=ms.get("prefill", 0.0), decode_ms=ms.get("decode", 0.0)
        )
        for (part, name, count), ms in spent.items()
    )
