"""How one sample is taken: a stretch of back-to-back launches between two clock readings.

A sample is long enough for its clock; launches rotate over the copies of weights and cache (cold) or stay on one (hot).
On a GPU the stretch is one CUDA graph, replayed between two events, so that no launch gap is timed that serving would
not have; on the CPU it is a loop. Knows workloads only as `Prepared`.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch

from puzzlebench.measuring.engines import Prepared

CacheState = Literal["cold", "hot"]
_LEAST_SAMPLE_US = 300.0
_MOST_LAUNCHES = 512
_CALIBRATE_BELOW_US = 5_000.0
_LEAD_CYCLES = 100_000  # about 55 us at 1.8 GHz; a replay takes the host 5 to 15 us


class Stopwatch(Protocol):
    """Samples one prepared workload."""

    def sample(self, state: CacheState) -> float:
        """Microseconds of one launch, the mean of one stretch."""


def start_stopwatch(prepared: Prepared, device: torch.device) -> Stopwatch:
    """Warm the workload up and choose its stretch: at least 300 us, at most 512 launches."""
    return CudaStopwatch(prepared, device) if device.type == "cuda" else CpuStopwatch(prepared)


class CpuStopwatch:
    """A loop timed by the monotonic clock."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._cold = itertools.cycle(range(prepared.copies))
        prepared.run(next(self._cold))  # the first launch of anything is slow
        once = self._time(self._cold, 1)
        if once < _CALIBRATE_BELOW_US:
            once = min(once, *(self._time(self._cold, 1) for _ in range(2)))
        self._launches = min(max(1, math.ceil(_LEAST_SAMPLE_US / once)), _MOST_LAUNCHES)

    def sample(self, state: CacheState) -> float:
        """Microseconds of one launch."""
        copies = self._cold if state == "cold" else itertools.repeat(0)
        return self._time(copies, self._launches)

    def _time(self, copies: itertools.cycle[int] | itertools.repeat[int], launches: int) -> float:
        run = self._prepared.run
        started = time.perf_counter_ns()
        for _ in range(launches):
            run(next(copies))
        return (time.perf_counter_ns() - started) / 1e3 / launches


class CudaStopwatch:
    """A CUDA graph of whole rotations timed by events. All graphs share one memory pool: they never overlap.

    The device is kept busy for a moment before the first event, so that the host's launch is over when it is recorded.
    """

    def __init__(self, prepared: Prepared, device: torch.device) -> None:
        self._prepared, self._device = prepared, device
        make_event: Any = torch.cuda.Event  # untyped in torch
        self._start, self._end = make_event(enable_timing=True), make_event(enable_timing=True)
        every_copy = range(prepared.copies)
        self._warm_up(every_copy)
        once = self._graph(every_copy)
        self._time(once, 1)
        rotation_us = max(min(self._time(once, 1) for _ in range(3)), 1.0)
        rotations = min(max(1, math.ceil(_LEAST_SAMPLE_US / rotation_us)), max(1, _MOST_LAUNCHES // prepared.copies))
        self._launches = rotations * prepared.copies
        self._graphs: dict[CacheState, torch.cuda.CUDAGraph] = {
            "cold": once if rotations == 1 else self._graph(list(every_copy) * rotations),
            "hot": self._graph([0] * self._launches),
        }

    def sample(self, state: CacheState) -> float:
        """Microseconds of one launch."""
        return self._time(self._graphs[state], self._launches)

    def _warm_up(self, copies: range) -> None:
        """Compile and tune on a side stream, as capture requires."""
        stream = _warm_up_stream()
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                for copy in copies:
                    self._prepared.run(copy)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        torch.cuda.synchronize(self._device)

    def _graph(self, copies: range | list[int]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=_anchor().pool()):
            for copy in copies:
                self._prepared.run(copy)
        return graph

    def _time(self, graph: torch.cuda.CUDAGraph, launches: int) -> float:
        _spin(_LEAD_CYCLES)
        self._start.record()
        graph.replay()
        self._end.record()
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end)) * 1e3 / launches


@functools.cache
def _anchor() -> torch.cuda.CUDAGraph:
    """A graph that is never let go: while it lives its memory pool does, whatever becomes of the others."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.zeros(1, device="cuda").add_(1)
    return graph


@functools.cache
def _warm_up_stream() -> Any:
    make_stream: Any = torch.cuda.Stream  # untyped in torch
    return make_stream()


def _spin(cycles: int) -> None:
    sleep: Any = torch.cuda._sleep
    sleep(cycles)


def energy_per_launch(stopwatch: Stopwatch, read_mj: Callable[[], float], *, seconds: float) -> float:
    """Millijoules of one launch: the counter's growth over at least `seconds` of back-to-back cold samples.

    NaN where the counter cannot be read or did not move. The counters of GPUs tick every 20 to 100 ms, so shorter
    stretches measure the tick.
    """
    before, started, launches_us = read_mj(), time.perf_counter(), []
    if math.isnan(before):
        return math.nan
    while time.perf_counter() - started < seconds:
        launches_us.append(stopwatch.sample("cold"))
    elapsed_us = (time.perf_counter() - started) * 1e6
    spent = read_mj() - before
    if not spent > 0:
        return math.nan
    return spent / elapsed_us * (sum(launches_us) / len(launches_us))
