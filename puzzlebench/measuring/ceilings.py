"""What a device reaches on the simplest work there is: copying, multiplying matrices, launching kernels.

The rates bound what a block can do there and stand in for the datasheet of hardware that has none. Each is the median
of repeated runs with its 95 % interval inside this one process; the samples are kept. Knows nothing of models.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final

import numpy as np

import puzzlebench
from puzzlebench.measuring.device import NEEDS_TORCH, Device
from puzzlebench.measuring.sensors import Reading, open_sensor
from puzzlebench.measuring.statistics import median_interval
from puzzlebench_profiles.datasheets import bundled_datasheets

_LOG = logging.getLogger(__name__)

_LEAST_SAMPLES: Final = 7  # six is the fewest whose range covers the median with 95 %
_MOST_SAMPLES: Final = 200
_GPU_BATCH: Final = 10  # runs queued between two waits, so that the GPU never waits for Python
_CALLS_PER_SAMPLE: Final = 100
_GRAPH_KERNELS: Final = 200
_SMALLEST_MATRIX: Final = {"cuda": 1024, "cpu": 128}
_LARGEST_MATRIX: Final = 8192
_SMALLEST_COPY_BYTES: Final = {"cuda": 1 << 30, "cpu": 64 << 20}
_CACHES_IN_A_COPY: Final = 5

_Run = Callable[[], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceiling:
    """One quantity: median, 95 % interval of the median, and all samples in the order they were taken."""

    median: float
    low: float
    high: float
    samples: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceilings:
    """What one device reached.

    Attributes:
        device: `Device.name`.
        date: UTC, ISO 8601.
        copy_bytes_per_s: device memory to device memory, bytes read plus bytes written. A CPU that fetches a line
            before it overwrites it moves up to half as much again.
        bf16_flops: dense FLOP/s of a square product of scaled random matrices; fp8 and fp32 likewise.
        fp8_flops: e4m3 with one scale per matrix; None where torch has no fp8 product for the device.
        fp32_flops: with TF32 only if the caller has switched it on in torch.
        launch_us: time per call of a one-element operation, many called one after another without waiting: what each
            kernel of a chain costs at least when Python launches it.
        graph_gap_us: what each one-element kernel adds to a CUDA graph; None on a CPU.
        matrix_sizes: side of the matrices by number format, chosen to fit the time.
        copy_buffer_bytes: size of the buffer read, and of the one written.
        before: sensors after warming up and before the first timed run.
        after: sensors after the last matrix product.
        note: what the sensors could not read.
    """

    device: str
    date: str
    copy_bytes_per_s: Ceiling
    bf16_flops: Ceiling
    fp8_flops: Ceiling | None
    fp32_flops: Ceiling
    launch_us: Ceiling
    graph_gap_us: Ceiling | None
    matrix_sizes: dict[str, int]
    copy_buffer_bytes: int
    before: Reading
    after: Reading
    note: str | None


def measure_ceilings(device: Device, *, seconds: float = 2.0) -> Ceilings:
    """Measure all ceilings in about `seconds`; the first use of a GPU and filling the buffers come on top.

    Each quantity gets a fixed share of the time but at least seven samples, so a very small budget is exceeded.

    Raises:
        ValueError: `seconds` is not positive, torch is missing, or memory is too short for an honest copy.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"ceilings need a positive number of seconds, not {seconds!r}")
    try:
        import torch
    except ImportError:
        raise ValueError(NEEDS_TORCH) from None
    sensor, note = open_sensor(device.kind, device.index)
    on_device: AbstractContextManager[Any] = torch.cuda.device(device.index) if device.kind == "cuda" else nullcontext()
    try:
        with on_device, torch.inference_mode():
            bench = _Bench(device, torch)
            copy, buffer_bytes = bench.copy()
            bench.samples(copy, 0.1 * seconds)  # clocks rise, pages are touched
            before = sensor.read()
            copied = bench.samples(copy, 0.2 * seconds)
            del copy
            sizes: dict[str, int] = {}
            fp8: Ceiling | None = None
            bf16, sizes["bf16"] = bench.matrix_rate(bench.product("bfloat16"), 0.2 * seconds)
            if bench.has_fp8():
                fp8, sizes["fp8"] = bench.matrix_rate(bench.fp8, 0.2 * seconds)
            fp32, sizes["fp32"] = bench.matrix_rate(bench.product("float32"), 0.2 * seconds)
            after = sensor.read()
            return Ceilings(
                device=device.name,
                date=datetime.now(UTC).isoformat(timespec="seconds"),
                copy_bytes_per_s=_ceiling(2 * buffer_bytes / copied),
                bf16_flops=bf16,
                fp8_flops=fp8,
                fp32_flops=fp32,
                launch_us=_ceiling(1e6 * bench.launches(0.05 * seconds)),
                graph_gap_us=_ceiling(1e6 * bench.graph_gaps(0.05 * seconds)) if device.kind == "cuda" else None,
                matrix_sizes=sizes,
                copy_buffer_bytes=buffer_bytes,
                before=before,
                after=after,
                note=note,
            )
    finally:
        sensor.close()
        if device.kind == "cuda":
            torch.cuda.empty_cache()  # else the buffers would count as taken in the next look at free memory


def _ceiling(values: np.ndarray[Any, np.dtype[np.float64]]) -> Ceiling:
    median, low, high = median_interval(values)
    return Ceiling(median=median, low=low, high=high, samples=tuple(values.tolist()))


class _Bench:
    """Timed work on one device, which is torch's current one if it is a GPU."""

    def __init__(self, device: Device, torch: Any) -> None:
        self._device, self._torch = device, torch
        self._gpu = device.kind == "cuda"
        self._where = torch.device("cuda", device.index) if self._gpu else torch.device("cpu")
        self._generator = torch.Generator(device=self._where).manual_seed(0)

    def samples(self, run: _Run, budget_s: float) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Seconds of single runs: by events in a full queue on a GPU, by the clock on a CPU."""
        run()
        taken: list[float] = []
        end = time.perf_counter() + budget_s
        while len(taken) < _LEAST_SAMPLES or (time.perf_counter() < end and len(taken) < _MOST_SAMPLES):
            if self._gpu:
                taken += self._event_times([run] * _GPU_BATCH)
            else:
                start = time.perf_counter_ns()
                run()
                taken.append((time.perf_counter_ns() - start) / 1e9)
        return np.array(taken)

    def _event_times(self, runs: list[_Run]) -> list[float]:
        """Seconds of each run but the first, which may have waited for Python to launch it."""
        events = [self._torch.cuda.Event(enable_timing=True) for _ in range(len(runs) + 1)]
        events[0].record()
        for run, event in zip(runs, events[1:], strict=True):
            run()
            event.record()
        self._torch.cuda.synchronize()
        return [start.elapsed_time(stop) / 1e3 for start, stop in pairwise(events[1:])]

    def copy(self) -> tuple[_Run, int]:
        """A copy between two buffers that no cache holds, and the size of each in bytes."""
        cache = self._device.last_level_cache_bytes
        available = self._device.available_bytes()
        wanted = max((_CACHES_IN_A_COPY + 1) * cache, _SMALLEST_COPY_BYTES[self._device.kind])
        size = min(wanted, available // 8)  # two buffers: a quarter of what is free
        if size <= _CACHES_IN_A_COPY * cache:
            raise ValueError(
                f"too little memory to measure bandwidth past a cache of {cache >> 20} MiB: "
                f"{available >> 20} MiB are free, {8 * _CACHES_IN_A_COPY * cache >> 20} MiB are needed"
            )
        # Random words repeated: zeros could stay unmapped on a CPU and draw less power on a GPU.
        words = self._torch.rand(1 << 18, device=self._where, generator=self._generator)
        source = words.repeat(size // (words.numel() * words.element_size()) or 1)
        target = self._torch.empty_like(source)
        return lambda: target.copy_(source), source.numel() * source.element_size()

    def product(self, dtype_name: str) -> Callable[[int], _Run]:
        """Square products of a dtype, by side; the result has unit variance."""
        dtype = getattr(self._torch, dtype_name)

        def prepare(side: int) -> _Run:
            left, right = self._random(side), self._random(side) / math.sqrt(side)
            left, right = left.to(dtype), right.to(dtype)
            out = self._torch.empty_like(left)
            return lambda: self._torch.mm(left, right, out=out)

        return prepare

    def fp8(self, side: int) -> _Run:
        """A square e4m3 product; the scale goes into the product's own factor, as e4m3 has few small numbers."""
        dtype = self._torch.float8_e4m3fn
        left, right = self._random(side).to(dtype), self._random(side).to(dtype).t()  # the right one by columns
        one = self._torch.ones((), device=self._where)
        small = one / math.sqrt(side)
        return lambda: self._torch._scaled_mm(
            left, right, scale_a=one, scale_b=small, out_dtype=self._torch.bfloat16, use_fast_accum=True
        )

    def has_fp8(self) -> bool:
        """Whether torch multiplies fp8 on this device; CPUs do it by converting, so they count as without."""
        if not self._gpu:
            return False
        try:
            self.fp8(_SMALLEST_MATRIX["cuda"])()
        except (RuntimeError, ValueError, AttributeError) as error:
            _LOG.info("no fp8 ceiling: %s", str(error).splitlines()[0])
            return False
        return True

    def _random(self, side: int) -> Any:
        return self._torch.randn(side, side, device=self._where, generator=self._generator)

    def matrix_rate(self, prepare: Callable[[int], _Run], budget_s: float) -> tuple[Ceiling, int]:
        """FLOP/s at the largest side of which the least number of samples fits the time, and that side."""
        side = _SMALLEST_MATRIX[self._device.kind]
        run = prepare(side)
        while side < _LARGEST_MATRIX and 8 * self._once(run) * _LEAST_SAMPLES <= budget_s and self._fits(2 * side):
            side *= 2
            run = prepare(side)
        return _ceiling(2.0 * side**3 / self.samples(run, budget_s)), side

    def _fits(self, side: int) -> bool:
        return 5 * 4 * side**2 <= self._device.available_bytes() // 4  # five fp32 matrices while preparing

    def _once(self, run: _Run) -> float:
        """Seconds of a second run; the first one chooses kernels."""
        run()
        if self._gpu:
            return self._event_times([run, run])[0]
        start = time.perf_counter_ns()
        run()
        return (time.perf_counter_ns() - start) / 1e9

    def launches(self, budget_s: float) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Seconds per call of a one-element addition."""
        cell = self._torch.zeros(1, device=self._where)

        def calls() -> None:
            for _ in range(_CALLS_PER_SAMPLE):
                cell.add_(1)
            self._wait()

        calls()
        taken: list[float] = []
        end = time.perf_counter() + budget_s
        while len(taken) < _LEAST_SAMPLES or (time.perf_counter() < end and len(taken) < _MOST_SAMPLES):
            start = time.perf_counter_ns()
            calls()
            taken.append((time.perf_counter_ns() - start) / 1e9 / _CALLS_PER_SAMPLE)
        return np.array(taken)

    def graph_gaps(self, budget_s: float) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Seconds that one more small kernel adds to a CUDA graph: a graph of 2n against one of n."""
        short, long = self._graph(_GRAPH_KERNELS), self._graph(2 * _GRAPH_KERNELS)
        taken: list[float] = []
        end = time.perf_counter() + budget_s
        while len(taken) < _LEAST_SAMPLES or (time.perf_counter() < end and len(taken) < _MOST_SAMPLES):
            short_s, long_s = self._event_times([short, short, long])
            taken.append((long_s - short_s) / _GRAPH_KERNELS)
        return np.array(taken)

    def _graph(self, kernels: int) -> _Run:
        torch = self._torch
        cell = torch.zeros(1, device=self._where)
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            cell.add_(1)  # capture wants the kernel loaded
        torch.cuda.current_stream().wait_stream(side_stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(kernels):
                cell.add_(1)

        def replay() -> Any:
            graph.replay()
            return cell  # holds the memory the graph writes to

        return replay

    def _wait(self) -> None:
        if self._gpu:
            self._torch.cuda.synchronize()


def with_ceilings(device: Device, ceilings: Ceilings) -> Device:
    """The device with measured rates in its estimated datasheet; a bundled datasheet stays as the vendor wrote it.

    The datasheet's one 16-bit peak becomes the faster of bf16 and fp32: CPUs without bf16 units do bf16 by conversion,
    up to a hundred times slower, and a peak must not be below what a block reaches.

    Raises:
        ValueError: the ceilings are another device's.
    """
    if ceilings.device != device.name:
        raise ValueError(f"these ceilings were measured on {ceilings.device!r}, not on {device.name!r}")
    if device.name in bundled_datasheets():
        return device
    bandwidth = ceilings.copy_bytes_per_s.median
    rates = {"bf16": ceilings.bf16_flops.median, "fp32": ceilings.fp32_flops.median}
    fastest = max(rates, key=lambda name: rates[name])
    sheet = replace(
        device.datasheet,
        memory_bandwidth=bandwidth,
        link_bandwidth=bandwidth if device.kind == "cpu" else device.datasheet.link_bandwidth,
        peak_bf16_flops=rates[fastest],
        peak_fp8_flops=ceilings.fp8_flops.median if ceilings.fp8_flops else None,
        source=f"measured by puzzlebench {puzzlebench.__version__} on {ceilings.date[:10]}: copy bandwidth, {fastest} "
        f"product of side {ceilings.matrix_sizes[fastest]}; the rest as the system reports it",
    )
    return replace(device, datasheet=sheet)


def ceilings_to_json(ceilings: Ceilings) -> dict[str, Any]:
    """A dictionary for strict JSON: NaN of the sensors becomes None."""
    raw = asdict(ceilings)
    for key in ("before", "after"):
        raw[key] = {
            name: None if isinstance(value, float) and math.isnan(value) else value for name, value in raw[key].items()
        }
    return raw


def ceilings_from_json(raw: dict[str, Any]) -> Ceilings:
    """Ceilings from what `ceilings_to_json` made, also after a way through a file.

    Raises:
        ValueError: a key is missing or unknown.
    """
    names = {field.name for field in fields(Ceilings)}
    wrong = sorted(names ^ set(raw))
    if wrong:
        problem = "missing" if wrong[0] in names else "unknown"
        raise ValueError(f"ceilings: {problem} key {wrong[0]!r}")
    values = dict(raw)
    try:
        for key in ("copy_bytes_per_s", "bf16_flops", "fp8_flops", "fp32_flops", "launch_us", "graph_gap_us"):
            if raw[key] is not None:
                values[key] = Ceiling(**{**raw[key], "samples": tuple(raw[key]["samples"])})
        for key in ("before", "after"):
            reading: dict[str, Any] = {name: math.nan if value is None else value for name, value in raw[key].items()}
            reading["throttle_reasons"] = tuple(raw[key]["throttle_reasons"])
            values[key] = Reading(**reading)
    except (TypeError, KeyError) as error:
        raise ValueError(f"ceilings: {key!r} has a missing or unknown key ({error})") from None
    return Ceilings(**values)
