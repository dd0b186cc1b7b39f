"""Ceilings: one short run on the CPU, and what is done with the numbers. Nothing here asks how fast the machine is."""

import json
import math
import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import pytest

from puzzlebench.measuring.ceilings import (
    Ceiling,
    Ceilings,
    ceilings_from_json,
    ceilings_to_json,
    measure_ceilings,
    with_ceilings,
)
from puzzlebench.measuring.device import Device, cpu_device
from puzzlebench.measuring.sensors import NullSensor, Reading
from puzzlebench_profiles.datasheets import bundled_datasheets

MIB = 1 << 20


def ceiling(value):
    return Ceiling(median=value, low=0.9 * value, high=1.1 * value, samples=(0.9 * value, value, 1.1 * value))


@pytest.fixture
def cpu():
    return replace(cpu_device(), last_level_cache_bytes=MIB)  # a small one keeps the buffers small


@pytest.fixture
def ceilings(cpu):
    return Ceilings(
        device=cpu.name,
        date="2026-01-02T03:04:05+00:00",
        copy_bytes_per_s=ceiling(2e10),
        bf16_flops=ceiling(1e9),
        fp8_flops=None,
        fp32_flops=ceiling(1e11),
        launch_us=ceiling(3.0),
        graph_gap_us=None,
        matrix_sizes={"bf16": 256, "fp32": 1024},
        copy_buffer_bytes=64 * MIB,
        before=Reading(sm_clock_mhz=3000.0),
        after=Reading(sm_clock_mhz=2900.0, throttle_reasons=("sw_power_cap",)),
        note="CPU sensors: none",
    )


@pytest.fixture
def small_copies(monkeypatch):
    monkeypatch.setattr("puzzlebench.measuring.ceilings._SMALLEST_COPY_BYTES", {"cuda": MIB, "cpu": MIB})


def test_a_short_run_on_the_cpu(cpu):
    pytest.importorskip("torch")
    found = measure_ceilings(cpu, seconds=0.2)
    for quantity in (found.copy_bytes_per_s, found.bf16_flops, found.fp32_flops, found.launch_us):
        assert 0 < quantity.low <= quantity.median <= quantity.high < math.inf
        assert len(quantity.samples) >= 7
        assert min(quantity.samples) <= quantity.low
        assert quantity.high <= max(quantity.samples)
    assert found.fp8_flops is None
    assert found.graph_gap_us is None
    assert found.device == cpu.name
    assert found.matrix_sizes.keys() == {"bf16", "fp32"}
    assert all(128 <= side <= 8192 and side & (side - 1) == 0 for side in found.matrix_sizes.values())
    assert 5 * cpu.last_level_cache_bytes < found.copy_buffer_bytes <= cpu.available_bytes() / 4
    text = json.dumps(ceilings_to_json(found), allow_nan=False)
    assert ceilings_to_json(ceilings_from_json(json.loads(text))) == ceilings_to_json(found)


def test_the_copy_leaves_every_cache_behind(small_copies):
    torch = pytest.importorskip("torch")
    from puzzlebench.measuring.ceilings import _Bench

    device = replace(cpu_device(), last_level_cache_bytes=8 * MIB)
    copy, size = _Bench(device, torch).copy()
    assert 40 * MIB < size <= 48 * MIB
    target = copy()
    assert target.numel() * target.element_size() == size
    assert target.count_nonzero() > 0.99 * target.numel()


def test_too_little_memory_for_an_honest_copy(cpu, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(Device, "available_bytes", lambda self: 39 * MIB)
    with pytest.raises(ValueError, match=r"cache of 1 MiB: 39 MiB are free, 40 MiB are needed"):
        measure_ceilings(cpu, seconds=0.1)


@pytest.mark.parametrize("seconds", [0, -1.0, math.nan, math.inf])
def test_seconds_must_be_positive(cpu, seconds):
    with pytest.raises(ValueError, match="positive number of seconds"):
        measure_ceilings(cpu, seconds=seconds)


def test_products_are_of_random_numbers_and_keep_their_scale():
    torch = pytest.importorskip("torch")
    from puzzlebench.measuring.ceilings import _Bench

    bench = _Bench(cpu_device(), torch)
    for dtype in ("float32", "bfloat16"):
        product = bench.product(dtype)(256)()
        assert product.dtype == getattr(torch, dtype)
        assert 0.9 < product.float().std() < 1.1


class FakeCuda:
    """CUDA's names over CPU work: events take the time, graphs keep nothing and replay by a fixed wait per kernel."""

    def __init__(self, torch):
        self.torch, self.log = torch, []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = time.perf_counter()

        def elapsed_time(self, later):
            return 1e3 * (later.at - self.at)

    class CUDAGraph:
        def replay(self):
            time.sleep(1e-4)

    class Stream:
        def wait_stream(self, other):
            pass

    def current_stream(self):
        return self.Stream()

    def stream(self, stream):
        return nullcontext()

    graph = device = stream

    def synchronize(self):
        self.log.append("wait")

    def empty_cache(self):
        self.log.append("empty")


class FakeTorch:
    def __init__(self, torch):
        self._real, self.cuda = torch, FakeCuda(torch)

    def __getattr__(self, name):
        return getattr(self._real, name)

    def device(self, *_):
        return self._real.device("cpu")

    def _scaled_mm(self, left, right, *, scale_a, scale_b, out_dtype, use_fast_accum):
        assert left.is_contiguous()
        assert right.t().is_contiguous()  # cuBLAS takes the right matrix by columns only
        product = (left.float() @ right.float()) * scale_a * scale_b
        assert 0.8 < product.std() < 1.2
        return product.to(out_dtype)


@pytest.fixture
def fake_gpu(cpu, small_copies, monkeypatch):
    """A GPU of CPU work: shows that the steps fit together, not that CUDA takes them."""
    fake = FakeTorch(pytest.importorskip("torch"))
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.setattr(Device, "available_bytes", lambda self: 1 << 30)
    monkeypatch.setattr("puzzlebench.measuring.ceilings._SMALLEST_MATRIX", {"cuda": 64, "cpu": 64})
    monkeypatch.setattr("puzzlebench.measuring.ceilings._LARGEST_MATRIX", 128)
    monkeypatch.setattr("puzzlebench.measuring.ceilings.open_sensor", lambda kind, index: (NullSensor(), kind))
    return replace(cpu, kind="cuda"), fake


def test_the_steps_of_a_gpu(fake_gpu):
    device, fake = fake_gpu
    found = measure_ceilings(device, seconds=0.1)
    assert found.fp8_flops is not None
    assert found.fp8_flops.low > 0
    assert found.matrix_sizes.keys() == {"bf16", "fp8", "fp32"}
    assert found.graph_gap_us is not None
    assert len(found.graph_gap_us.samples) >= 7
    assert found.note == "cuda"
    assert fake.cuda.log[-1] == "empty"


def test_a_gpu_without_fp8(fake_gpu, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("torch._scaled_mm is only supported on CUDA devices with compute capability >= 8.9")

    device, fake = fake_gpu
    monkeypatch.setattr(fake, "_scaled_mm", refuse, raising=False)
    found = measure_ceilings(device, seconds=0.1)
    assert found.fp8_flops is None
    assert found.matrix_sizes.keys() == {"bf16", "fp32"}


def test_the_first_run_of_a_queue_is_not_counted(fake_gpu, monkeypatch):
    from puzzlebench.measuring.ceilings import _Bench

    device, fake = fake_gpu
    now = [0.0]

    class Event(FakeCuda.Event):
        def record(self):
            self.at = now[0]

    def run(seconds):
        now[0] += seconds

    monkeypatch.setattr(fake.cuda, "Event", Event, raising=False)
    waits = iter([5.0, 0.25, 0.5])
    assert _Bench(device, fake)._event_times([lambda: run(next(waits))] * 3) == [0.25, 0.5]


def test_ceilings_take_the_place_of_estimates(cpu, ceilings):
    measured = with_ceilings(cpu, ceilings)
    sheet = measured.datasheet
    assert sheet.memory_bandwidth == sheet.link_bandwidth == 2e10
    assert sheet.peak_bf16_flops == 1e11  # fp32's: bf16 is slower than that here
    assert sheet.peak_fp8_flops is None
    assert sheet.source.startswith("measured by puzzlebench")
    assert "2026-01-02" in sheet.source
    assert "fp32 product of side 1024" in sheet.source
    assert replace(measured, datasheet=cpu.datasheet) == cpu
    assert with_ceilings(cpu, replace(ceilings, bf16_flops=ceiling(9e11))).datasheet.peak_bf16_flops == 9e11


def test_a_vendors_datasheet_stays(cpu, ceilings):
    sheet = bundled_datasheets()["l40s"]
    device = replace(cpu, kind="cuda", name=sheet.name, datasheet=sheet)
    assert with_ceilings(device, replace(ceilings, device=sheet.name)) is device


def test_ceilings_of_another_device(cpu, ceilings):
    with pytest.raises(ValueError, match="'other'"):
        with_ceilings(cpu, replace(ceilings, device="other"))


def test_json_and_back(ceilings):
    full = replace(ceilings, fp8_flops=ceiling(2e15), graph_gap_us=ceiling(1.2))
    for given in (ceilings, full):
        back = ceilings_from_json(json.loads(json.dumps(ceilings_to_json(given), allow_nan=False)))
        assert replace(back, before=given.before, after=given.after) == given
        assert (back.before.sm_clock_mhz, back.after.throttle_reasons) == (3000.0, ("sw_power_cap",))
        assert math.isnan(back.before.energy_mj)


def test_json_that_is_not_of_ceilings(ceilings):
    raw = ceilings_to_json(ceilings)
    with pytest.raises(ValueError, match="unknown key 'speed'"):
        ceilings_from_json(raw | {"speed": 1})
    with pytest.raises(ValueError, match="missing key 'note'"):
        ceilings_from_json({key: value for key, value in raw.items() if key != "note"})
    with pytest.raises(ValueError, match="'bf16_flops'"):
        ceilings_from_json(raw | {"bf16_flops": {"median": 1.0}})
