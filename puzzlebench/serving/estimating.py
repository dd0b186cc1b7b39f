"""What a served workload sees, with intervals: the steady state, and how wrong such predictions were.

The intervals are those of measured runs that the engine's overheads were not fitted on (`serving.calibration`), or the
kernels' own where those are wider; on another GPU or model those of whole GPUs and models left out; for an engine
without runs those of predictions without overheads. That of the time to the first token is of replayed benchmarks: no
measurement has it without their first wave.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from puzzlebench.estimate import DEFAULT_MEMORY_FRACTION, Interval
from puzzlebench.model.blocks import Architecture
from puzzlebench.model.spec import ModelSpec
from puzzlebench.profiling.timings import KernelTimings
from puzzlebench.scenario import Precision
from puzzlebench.serving.calibration import Calibration, find_calibration, interval_widths
from puzzlebench.serving.served_model import NO_OVERHEADS, ServedModel, default_scheduler
from puzzlebench.serving.steady import SteadyState
from puzzlebench.serving.workload import Lengths, Scheduler, Workload
from puzzlebench_profiles.datasheets import Datasheet

TO_95: Final = 1.96 / 1.645
"""From half of a 90 % interval to half of a 95 % one (of a normal); kernels and cost tables have the latter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingEstimate:
    """A workload in its steady state. Intervals are of 90 %.

    Attributes:
        workload: what was asked.
        state: the operating point.
        concurrency: mean requests in the system.
        generated_tokens_per_s, total_tokens_per_s: of the whole tensor-parallel group; total counts prompts, too.
        tensor_parallel: GPUs of the group.
        provenance: share of a decode iteration's kernels by where their times come from.
        calibrated: whose overheads are in it; empty where the engine has none.
        measured_here: runs of this GPU and this model are among them.
    """

    workload: Workload
    state: SteadyState
    concurrency: float
    ttft_ms: Interval
    tpot_ms: Interval
    generated_tokens_per_s: Interval
    total_tokens_per_s: Interval
    tensor_parallel: int
    provenance: dict[str, float]
    calibrated: str
    measured_here: bool

    def per_gpu(self, interval: Interval) -> Interval:
        """A throughput's share of each GPU."""
        return interval.scaled(1 / self.tensor_parallel)


def open_served(
    kernels: KernelTimings,
    gpu: Datasheet,
    spec: ModelSpec,
    architecture: Architecture,
    precision: Precision,
    prefill: Lengths,
    decode: Lengths,
    *,
    scheduler: Scheduler | None = None,
    memory_fraction: float = DEFAULT_MEMORY_FRACTION,
) -> ServedModel:
    """A model with its engine's scheduler and overheads.

    Raises:
        ValueError: the scheduler is not known or cannot run such prompts.
    """
    calibration = find_calibration(kernels.engine, gpu=gpu.name, model=spec.name)
    return ServedModel(
        kernels=kernels,
        gpu=gpu,
        spec=spec,
        architecture=architecture,
        precision=precision,
        scheduler=scheduler or default_scheduler(kernels.engine, prefill),
        longest=(prefill.high, decode.high),
        overheads=NO_OVERHEADS if calibration is None else calibration.overheads,
        memory_fraction=memory_fraction,
    )


def estimate_workload(served: ServedModel, workload: Workload) -> ServingEstimate:
    """The steady state of a workload with its intervals.

    Raises:
        ValueError: see `serving.steady.solve`.
    """
    state = served.steady(workload)
    calibration, kernels = _calibration(served), served.decode_kernels(state)
    widths = _widths(served, kernels.spread)
    decode, prefill = workload.decode.mean, workload.prefill.mean
    tokens = state.requests_per_s * decode
    in_system = state.requests_per_s * (state.ttft_ms + state.tpot_ms * (decode - 1)) / 1e3
    return ServingEstimate(
        workload=workload,
        state=state,
        concurrency=in_system if workload.concurrency is None else float(workload.concurrency),
        ttft_ms=_around(state.ttft_ms, widths["ttft"]),
        tpot_ms=_around(state.tpot_ms, widths["tpot"]),
        generated_tokens_per_s=_around(tokens, widths["throughput"]),
        total_tokens_per_s=_around(tokens * (1 + prefill / decode), widths["throughput"]),
        tensor_parallel=served.precision.tensor_parallel,
        provenance=kernels.provenance,
        calibrated="" if calibration is None else calibration.label,
        measured_here=calibration is not None and calibration.covers(served.gpu.name, served.spec.name),
    )


def widths_of(served: ServedModel, state: SteadyState) -> dict[str, float]:
    """Half widths of the 90 % intervals at an operating point, METRICS -> logarithm of the ratio."""
    return _widths(served, served.decode_kernels(state).spread)


def _widths(served: ServedModel, spread: float) -> dict[str, float]:
    widths = interval_widths(_calibration(served), gpu=served.gpu.name, model=served.spec.name)
    least = math.log1p(spread) / TO_95
    return {metric: max(width, least) for metric, width in widths.items()}


def _calibration(served: ServedModel) -> Calibration | None:
    return find_calibration(served.kernels.engine, gpu=served.gpu.name, model=served.spec.name)


def sweep(served: ServedModel, prefill: Lengths, decode: Lengths, *, most: int | None = None) -> list[ServingEstimate]:
    """Numbers of users from 1 to what batch and cache have place for (at most `most`), in steps of about a quarter."""
    workload = Workload(prefill=prefill, decode=decode, concurrency=1)
    slots = int(served.steady(workload).slots)
    highest = max(1, slots if most is None else min(slots, most))
    users, found = 1, []
    while True:
        found.append(estimate_workload(served, replace(workload, concurrency=users)))
        if users >= highest:
            return found
        users = min(highest, max(users + 1, users * 5 // 4))


def best_concurrency(
    served: ServedModel,
    prefill: Lengths,
    decode: Lengths,
    *,
    max_ttft_ms: float | None = None,
    max_tpot_ms: float | None = None,
    points: Sequence[ServingEstimate] = (),
) -> ServingEstimate:
    """The number of users with the most tokens per second within limits on the predicted times.

    Args:
        points: of `sweep`, where it is known.

    Raises:
        ValueError: no number of users keeps the limits.
    """

    def keeps(one: ServingEstimate) -> bool:
        return (max_ttft_ms is None or one.ttft_ms.value <= max_ttft_ms) and (
            max_tpot_ms is None or one.tpot_ms.value <= max_tpot_ms
        )

    points = points or sweep(served, prefill, decode)
    kept = [one for one in points if keeps(one)]
    if not kept:
        alone = points[0]
        raise ValueError(
            f"no number of users keeps the limits: one alone waits {alone.ttft_ms.value:.0f} ms for the first token "
            f"and {alone.tpot_ms.value:.1f} ms for each further one"
        )
    best = max(kept, key=lambda one: one.generated_tokens_per_s.value)
    place = points.index(best)
    if place + 1 == len(points) or keeps(points[place + 1]):
        return best
    low, high = int(best.concurrency), int(points[place + 1].concurrency)
    while high - low > 1:  # the last number of users before a limit
        middle = (low + high) // 2
        found = estimate_workload(served, replace(best.workload, concurrency=middle))
        if keeps(found) and found.generated_tokens_per_s.value >= best.generated_tokens_per_s.value:
            low, best = middle, found
        else:
            high = middle
    return best


def _around(value: float, width: float) -> Interval:
    return Interval(value=value, low=value * math.exp(-width), high=value * math.exp(width))
