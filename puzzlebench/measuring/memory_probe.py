"""How much memory one launch takes on top of what is held already. Knows workloads only as `Prepared`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from puzzlebench.measuring.engines import Prepared


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Bytes at the worst moment of one launch.

    Attributes:
        peak_bytes: allocated by the launch on top of weights, caches and inputs.
        reserved_bytes: what the allocator holds from the device for the whole process; None on a CPU.
    """

    peak_bytes: int
    reserved_bytes: int | None


def probe_memory(prepared: Prepared, device: torch.device) -> Probe:
    """Launch once and watch the allocator: CUDA's own counters, or the profiler's record of allocations on the CPU."""
    if device.type == "cuda":
        prepared.run(0)  # libraries take their workspaces at the first launch
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        prepared.run(0)
        torch.cuda.synchronize(device)
        return Probe(
            peak_bytes=torch.cuda.max_memory_allocated(device) - before,
            reserved_bytes=torch.cuda.max_memory_reserved(device),
        )
    prepared.run(0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        prepared.run(0)
    assert profile.profiler is not None
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    held = peak = 0
    for _, bytes_ in changes:
        held += bytes_
        peak = max(peak, held)
    return Probe(peak_bytes=peak, reserved_bytes=None)
