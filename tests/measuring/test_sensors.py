"""Opening sensors: what is read, and what is said when something cannot be."""

import math
import os
from types import SimpleNamespace

import psutil
import pytest

from puzzlebench.measuring import sensors
from puzzlebench.measuring.nvml import NvmlUnavailableError
from puzzlebench.measuring.sensors import Reading, open_sensor


class FakeGpu:
    missing: dict[str, str]

    def __init__(self, index, missing=()):
        self.index, self.missing, self.closed = index, dict(missing), False

    sm_clock_mhz = staticmethod(lambda: 1755.0)
    memory_clock_mhz = staticmethod(lambda: 2619.0)
    temperature_c = staticmethod(lambda: 41.0)
    power_w = staticmethod(lambda: 312.5)
    throttle_reasons = staticmethod(lambda: ("sw_power_cap",))
    process_memory_bytes = staticmethod(lambda: 123)

    def energy_mj(self):
        if self.missing:
            return math.nan
        return 1e9

    def close(self):
        self.closed = True


@pytest.fixture
def powercap(tmp_path):
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    for name, text in {"name": "package-0", "max_energy_range_uj": "1000000", "energy_uj": "1000"}.items():
        (zone / name).write_text(text)
    return tmp_path


def test_a_gpu_in_order(monkeypatch):
    monkeypatch.setattr(sensors, "Gpu", FakeGpu)
    sensor, note = open_sensor("cuda", 1)
    assert (sensor.name, note, sensor._gpu.index) == ("nvml", None, 1)
    assert sensor.read() == Reading(
        sm_clock_mhz=1755.0,
        memory_clock_mhz=2619.0,
        temperature_c=41.0,
        power_w=312.5,
        energy_mj=1e9,
        throttle_reasons=("sw_power_cap",),
    )
    assert sensor.process_memory_bytes() == 123
    sensor.close()
    assert sensor._gpu.closed


def test_a_gpu_without_an_energy_counter_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(sensors, "Gpu", lambda index: FakeGpu(index, {"energy counter": "not supported"}))
    sensor, note = open_sensor("cuda")
    assert note == "GPU sensors: this card or driver does not say its energy counter (not supported)"
    assert math.isnan(sensor.read().energy_mj)
    assert sensor.read().power_w == 312.5


def test_a_gpu_out_of_reach_stops_nothing(monkeypatch):
    def refuse(index):
        raise NvmlUnavailableError("no NVIDIA driver answers (driver not loaded)")

    monkeypatch.setattr(sensors, "Gpu", refuse)
    sensor, note = open_sensor("cuda")
    assert note == ("GPU sensors: no NVIDIA driver answers (driver not loaded), so clocks and energy are not recorded")
    reading = sensor.read()
    assert all(math.isnan(getattr(reading, name)) for name in ("sm_clock_mhz", "power_w", "energy_mj", "temperature_c"))
    assert reading.throttle_reasons == ()
    assert sensor.process_memory_bytes() is None
    sensor.close()


def test_the_cpu_with_counters(powercap):
    sensor, note = open_sensor("cpu", powercap=powercap)
    assert (sensor.name, note) == ("cpu", None)
    assert sensor.read().energy_mj == 0
    (powercap / "intel-rapl:0" / "energy_uj").write_text("4000")
    assert sensor.read().energy_mj == pytest.approx(3)
    sensor.close()


def test_the_cpu_without_counters(tmp_path):
    sensor, note = open_sensor("cpu", powercap=tmp_path)
    assert note is not None
    assert note.startswith("CPU sensors: ")
    assert "\n" not in note
    assert math.isnan(sensor.read().energy_mj)


def test_memory_of_the_process_follows_it(tmp_path):
    sensor, _ = open_sensor("cpu", powercap=tmp_path)
    before = sensor.process_memory_bytes()
    block = bytearray(os.urandom(1)) * (64 << 20)
    after = sensor.process_memory_bytes()
    assert after - before > 48 << 20
    assert len(block) == 64 << 20


def test_clock_of_the_cores_in_use_and_the_hottest_package(tmp_path, monkeypatch):
    clocks = [SimpleNamespace(current=value) for value in (800.0, 3100.0, 2900.0, 4000.0)]
    monkeypatch.setattr(psutil, "cpu_freq", lambda percpu: clocks)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    chips = {
        "k10temp": [SimpleNamespace(current=55.0), SimpleNamespace(current=61.0)],
        "nvme": [SimpleNamespace(current=80.0)],
    }
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: chips, raising=False)
    sensor, _ = open_sensor("cpu", powercap=tmp_path)
    assert (sensor.read().sm_clock_mhz, sensor.read().temperature_c) == (3100.0, 61.0)
    monkeypatch.setattr(psutil, "cpu_freq", lambda percpu: [])
    monkeypatch.delattr(psutil, "sensors_temperatures")
    assert math.isnan(sensor.read().sm_clock_mhz)
    assert math.isnan(sensor.read().temperature_c)


def test_other_devices_have_no_sensors():
    with pytest.raises(ValueError, match=r"'mps'.*'cuda' and 'cpu'"):
        open_sensor("mps")
