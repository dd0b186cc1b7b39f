"""What a device says of itself while it is measured: clocks, temperature, power, energy, memory.

Measurement goes on without any of it: a value that cannot be read is NaN, and `open_sensor` says so in one line. Reads
take up to milliseconds, so they belong between timed stretches. Knows nothing of what is measured.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Final, Protocol

import psutil

from puzzlebench.measuring.nvml import Gpu, NvmlUnavailableError
from puzzlebench.measuring.rapl import POWERCAP, PackageEnergy

_CPU_CHIPS: Final = ("coretemp", "k10temp", "zenpower", "cpu_thermal")
"""Kernel drivers that report the temperature of a CPU (Intel, AMD twice, ARM boards)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """One look at the sensors; NaN where there is no such value.

    Attributes:
        sm_clock_mhz: clock of the GPU's multiprocessors; on a CPU, of the fastest core this process may use.
        power_w: of the whole card; NaN on a CPU, where the energy counter says more.
        energy_mj: a counter that only grows, millijoules; only differences mean anything.
        throttle_reasons: what holds the clocks down, by the names in `nvml.THROTTLE_BITS`; always empty on a CPU.
    """

    sm_clock_mhz: float = nan
    memory_clock_mhz: float = nan
    temperature_c: float = nan
    power_w: float = nan
    energy_mj: float = nan
    throttle_reasons: tuple[str, ...] = ()


class Sensor(Protocol):
    """A device's sensors, open for reading."""

    name: str

    def read(self) -> Reading:
        """All values now; never raises for a value that is missing."""
        ...

    def process_memory_bytes(self) -> int | None:
        """Memory of this process: on the device (GPU), or resident (CPU); None where it cannot be known."""
        ...

    def close(self) -> None:
        """Let go of the device; a second call does nothing."""
        ...


class NullSensor:
    """Stands in where nothing can be read."""

    name = "none"

    def read(self) -> Reading:
        """NaN everywhere."""
        return Reading()

    def process_memory_bytes(self) -> int | None:
        """None."""
        return None

    def close(self) -> None:
        """Nothing to do."""


class GpuSensor:
    """An NVIDIA GPU through NVML."""

    name = "nvml"

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def read(self) -> Reading:
        """Clocks, temperature, power, energy and throttling of the whole card."""
        gpu = self._gpu
        return Reading(
            sm_clock_mhz=gpu.sm_clock_mhz(),
            memory_clock_mhz=gpu.memory_clock_mhz(),
            temperature_c=gpu.temperature_c(),
            power_w=gpu.power_w(),
            energy_mj=gpu.energy_mj(),
            throttle_reasons=gpu.throttle_reasons(),
        )

    def process_memory_bytes(self) -> int | None:
        """Device memory of this process as the driver counts it, CUDA context included; None where it is not listed."""
        return self._gpu.process_memory_bytes()

    def close(self) -> None:
        """Let go of NVML."""
        self._gpu.close()


class CpuSensor:
    """The CPU: clock and temperature by psutil, package energy by RAPL."""

    name = "cpu"

    def __init__(self, energy: PackageEnergy | None) -> None:
        self._energy = energy
        self._process = psutil.Process()

    def read(self) -> Reading:
        """Clock, temperature and package energy; the energy is of the whole socket, other processes included."""
        return Reading(
            sm_clock_mhz=_cpu_clock_mhz(),
            temperature_c=_cpu_temperature_c(),
            energy_mj=self._energy.read_mj() if self._energy else nan,
        )

    def process_memory_bytes(self) -> int | None:
        """Resident memory of this process."""
        return int(self._process.memory_info().rss)

    def close(self) -> None:
        """Nothing is held open."""


def _cpu_clock_mhz() -> float:
    """The highest clock among the cores this process may use: idle cores rest at low clocks and say nothing."""
    try:
        clocks = [core.current for core in psutil.cpu_freq(percpu=True) or []]
    except (OSError, NotImplementedError, AttributeError):
        return nan
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(len(clocks)))
    used = [clock for core, clock in enumerate(clocks) if core in allowed] or clocks
    return float(max(used, default=0.0)) or nan


def _cpu_temperature_c() -> float:
    try:
        chips = psutil.sensors_temperatures()
    except (OSError, AttributeError):  # AttributeError: psutil has it on Linux and FreeBSD only
        return nan
    values = [entry.current for chip in _CPU_CHIPS for entry in chips.get(chip, ())]
    return float(max(values, default=nan))


def open_sensor(device_type: str, index: int = 0, *, powercap: Path = POWERCAP) -> tuple[Sensor, str | None]:
    """Open the sensors of a device, and say in one line what of it cannot be read (None: nothing).

    Args:
        device_type: "cuda" or "cpu".
        index: CUDA's index of the GPU, so CUDA_VISIBLE_DEVICES holds; not looked at for "cpu".
        powercap: where Linux shows the CPU's energy counters.

    Raises:
        ValueError: another device type.
    """
    if device_type == "cpu":
        try:
            return CpuSensor(PackageEnergy(powercap)), None
        except ValueError as error:
            return CpuSensor(None), f"CPU sensors: {error}"
    if device_type != "cuda":
        raise ValueError(f"no sensors are known for {device_type!r}; they are for 'cuda' and 'cpu'")
    try:
        gpu = Gpu(index)
    except NvmlUnavailableError as error:
        return NullSensor(), f"GPU sensors: {error}, so clocks and energy are not recorded"
    sensor = GpuSensor(gpu)
    sensor.read()
    sensor.process_memory_bytes()
    if not gpu.missing:
        return sensor, None
    missing = ", ".join(f"{what} ({why})" for what, why in gpu.missing.items())
    return sensor, f"GPU sensors: this card or driver does not say its {missing}"
