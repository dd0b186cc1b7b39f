"""A model on a GPU under one engine's scheduler: everything that a workload can then be asked of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any, Final

import numpy as np

from puzzlebench.estimate import DEFAULT_MEMORY_FRACTION
from puzzlebench.model.blocks import Architecture
from puzzlebench.model.memory import model_weight_bytes
from puzzlebench.model.spec import ModelSpec
from puzzlebench.profiling.block_costs import BlockCosts, Steps
from puzzlebench.profiling.timings import PROVENANCE, KernelTimings, Timings
from puzzlebench.scenario import Precision
from puzzlebench.serving.cache import PagedCache, paged_cache
from puzzlebench.serving.iterations import IterationCosts, Overheads
from puzzlebench.serving.simulate import Served, simulate
from puzzlebench.serving.steady import SteadyState, solve
from puzzlebench.serving.workload import SCHEDULERS, Lengths, Scheduler, Workload
from puzzlebench_profiles.datasheets import Datasheet

NO_OVERHEADS: Final = Overheads()


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeKernels:
    """What is known of the kernels of an iteration without prompts.

    Attributes:
        spread: relative half width of their own 95 % interval.
        provenance: share of their time by where it comes from.
    """

    spread: float
    provenance: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What is served, where and how.

    Attributes:
        longest: longest prompt and longest answer that will be asked for, in tokens.
        memory_fraction: of the GPU's memory for weights, workspace and cache, or of what weights leave for the latter
            two where the engine takes it so (`Scheduler.free_memory`).
    """

    kernels: KernelTimings
    gpu: Datasheet
    spec: ModelSpec
    architecture: Architecture
    precision: Precision
    scheduler: Scheduler
    longest: tuple[int, int]
    overheads: Overheads = NO_OVERHEADS
    memory_fraction: float = DEFAULT_MEMORY_FRACTION

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        if not 0 < self.memory_fraction <= 1:
            raise ValueError(f"the memory fraction must be above 0 and at most 1, not {self.memory_fraction}")

    @cached_property
    def cache(self) -> PagedCache:
        """Its paged cache on each GPU."""
        weights = 0
        if self.scheduler.free_memory:
            weights = model_weight_bytes(
                self.spec,
                self.architecture,
                weight_dtype=self.precision.weight_dtype,
                tensor_parallel=self.precision.tensor_parallel,
            )
        return paged_cache(
            self.spec,
            self.architecture,
            self.precision,
            usable_bytes=int(weights + (self.gpu.memory_bytes - weights) * self.memory_fraction),
            max_num_tokens=self.scheduler.max_num_tokens,
            tokens_per_block=self.scheduler.tokens_per_block,
        )

    @cached_property
    def costs(self) -> IterationCosts:
        """Its iterations."""
        blocks = BlockCosts(self.kernels, self.spec, self.precision, max_num_tokens=self.scheduler.max_num_tokens)
        return IterationCosts(
            blocks,
            self.architecture,
            self.overheads,
            tensor_parallel=self.precision.tensor_parallel,
            max_tokens=max(self.scheduler.max_num_tokens, self.longest[0]) + self.scheduler.max_batch_size,
            max_sequences=self.scheduler.max_batch_size,
            max_context=sum(self.longest),
        )

    def changed(self, *, overheads: Overheads, scheduler: Scheduler) -> ServedModel:
        """The same with other overheads and a scheduler with the same limits; nothing is costed again."""
        found = replace(self, overheads=overheads, scheduler=scheduler)
        found.__dict__.update(cache=self.cache, costs=self.costs.with_overheads(overheads))
        return found

    def steady(self, workload: Workload) -> SteadyState:
        """See `serving.steady.solve`."""
        return solve(self.costs, self.cache, self.scheduler, workload)

    def simulate(self, workload: Workload, *, requests: int, seed: int = 0) -> Served:
        """See `serving.simulate.simulate`."""
        return simulate(self.costs, self.cache, self.scheduler, workload, requests=requests, seed=seed)

    def decode_kernels(self, state: SteadyState) -> DecodeKernels:
        """How well the kernels of an iteration without prompts are known at a steady state."""
        parts = self.costs.kernels(Steps.of(decodes=max(1.0, state.decoding), contexts=state.context))
        total = reduce(Timings.__add__, parts)
        shares = np.zeros(len(PROVENANCE))
        for part in parts:
            shares[part.provenance[0]] += part.latency_us[0] / total.latency_us[0]
        return DecodeKernels(
            spread=float((total.high_us[0] - total.low_us[0]) / (2 * total.latency_us[0])),
            provenance={name: float(share) for name, share in zip(PROVENANCE, shares, strict=True) if share > 0},
        )


def default_scheduler(engine: str, prefill: Lengths, **changes: Any) -> Scheduler:
    """What an engine does by itself, but for `changes` of the scheduler's attributes.

    Raises:
        ValueError: its scheduler is not known, or it cannot run such prompts whole.
    """
    if engine not in SCHEDULERS:
        raise ValueError(f"how {engine} fills its iterations is not known; known: {', '.join(SCHEDULERS)}")
    scheduler = replace(SCHEDULERS[engine], **changes)
    if not scheduler.chunked and prefill.high > scheduler.max_num_tokens:
        raise ValueError(
            f"without chunked prefill prompts run whole, and {prefill.high} tokens are more than an iteration's "
            f"{scheduler.max_num_tokens}; use --chunked-prefill or a larger --max-num-tokens"
        )
    return scheduler
