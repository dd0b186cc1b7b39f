"""NVIDIA GPUs through NVML (the package nvidia-ml-py): clocks, power, energy, memory and facts about the card.

An index here is CUDA's, as in "cuda:1", so CUDA_VISIBLE_DEVICES holds. When torch is loaded and sees a GPU, torch says
which card an index is (by UUID, or by PCI address where the build has no UUID). Otherwise the variable is parsed as
the CUDA C++ Programming Guide describes it (numbers, "GPU-" and "MIG-" UUIDs or their beginnings; the first entry that
names no GPU ends the list) and numbers count in PCI order. CUDA itself counts so under CUDA_DEVICE_ORDER=PCI_BUS_ID;
without that it puts the fastest card first, which differs on machines with unlike cards. Knows nothing of what runs on
the GPU. No UUID or serial number leaves this module.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

_LOG = logging.getLogger(__name__)

THROTTLE_BITS: Final[dict[int, str]] = {
    0x04: "sw_power_cap",
    0x08: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake",
}
"""Clocks event reasons (nvml.h) that hold clocks below what was asked for.

Left out are 0x01 (idle), 0x02 (application or locked clocks) and 0x100 (display clocks), which are somebody's wish, and
0x200 and 0x400 (board limit, reliability voltage), which cards report at their normal highest boost.
"""


class NvmlUnavailableError(RuntimeError):
    """NVML, or the GPU asked for, cannot be reached; the text is one line for the user."""


def _start() -> Any:
    try:
        import pynvml
    except ImportError:
        raise NvmlUnavailableError("GPU sensors need `pip install nvidia-ml-py`") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NvmlUnavailableError(f"no NVIDIA driver answers ({_reason(error)})") from None
    return pynvml


def _stop(nvml: Any) -> None:
    with suppress(nvml.NVMLError):
        nvml.nvmlShutdown()  # NVML counts starts and stops, so other users of the library are not cut off


@contextmanager
def _started() -> Iterator[Any]:
    nvml = _start()
    try:
        yield nvml
    except nvml.NVMLError as error:
        raise NvmlUnavailableError(f"the GPU does not answer ({_reason(error)})") from None
    finally:
        _stop(nvml)


def _reason(error: Exception) -> str:
    return str(error).strip().rstrip(".").splitlines()[0].lower()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)  # bytes from nvidia-ml-py before 11.5


def _visible(nvml: Any) -> list[Any]:
    """Handles of the GPUs that CUDA_VISIBLE_DEVICES leaves, in its order."""
    boards = []
    for index in range(nvml.nvmlDeviceGetCount()):
        with suppress(nvml.NVMLError):  # a container may list cards that it must not open; CUDA passes over them too
            boards.append(nvml.nvmlDeviceGetHandleByIndex(index))
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return boards
    handles = []
    for entry in listed.split(","):
        handle = _entry(nvml, boards, entry.strip())
        if handle is None:
            break
        handles.append(handle)
    return handles


def _entry(nvml: Any, boards: list[Any], entry: str) -> Any | None:
    if entry.isdecimal():
        return boards[int(entry)] if int(entry) < len(boards) else None
    if entry.startswith("MIG-"):
        with suppress(nvml.NVMLError):
            return nvml.nvmlDeviceGetHandleByUUID(entry)
    if entry.startswith("GPU-"):
        matches = [board for board in boards if _text(nvml.nvmlDeviceGetUUID(board)).startswith(entry)]
        return matches[0] if len(matches) == 1 else None
    return None


def _by_torch(nvml: Any, index: int) -> Any | None:
    """The handle of torch's GPU `index`, if torch is loaded and says which card that is."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or index >= torch.cuda.device_count():
        return None
    properties = torch.cuda.get_device_properties(index)
    uuid = str(getattr(properties, "uuid", "")).removeprefix("GPU-").removeprefix("MIG-")
    for prefix in ("GPU-", "MIG-") if uuid else ():
        with suppress(nvml.NVMLError):
            return nvml.nvmlDeviceGetHandleByUUID(prefix + uuid)
    bus, slot = getattr(properties, "pci_bus_id", None), getattr(properties, "pci_device_id", None)
    if bus is not None and slot is not None:
        domain = getattr(properties, "pci_domain_id", 0)
        with suppress(nvml.NVMLError):
            return nvml.nvmlDeviceGetHandleByPciBusId(f"{domain:08x}:{bus:02x}:{slot:02x}.0")
    return None


def _handle(nvml: Any, index: int) -> Any:
    handle = _by_torch(nvml, index)
    if handle is not None:
        return handle
    visible = _visible(nvml)
    if not 0 <= index < len(visible):
        raise NvmlUnavailableError(f"NVML sees {len(visible)} GPU(s) here, so none with index {index}")
    return visible[index]


def _board(nvml: Any, handle: Any) -> tuple[Any, bool]:
    """The physical card of a handle, and whether the handle is only a slice of it (MIG)."""
    with suppress(nvml.NVMLError, AttributeError):
        if nvml.nvmlDeviceIsMigDeviceHandle(handle):
            return nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle), True
    with suppress(nvml.NVMLError, AttributeError):
        return handle, nvml.nvmlDeviceGetMigMode(handle)[0] == 1
    return handle, False


class Gpu:
    """One GPU, open for reading. A value the card does not have is NaN (None for memory) and stands in `missing`.

    One round of all values takes a few hundred microseconds to a few milliseconds: read between measurements.
    """

    def __init__(self, index: int) -> None:
        """Open the card of CUDA's `index`.

        Raises:
            NvmlUnavailableError: nvidia-ml-py or the driver is missing, or there is no such GPU.
        """
        self._nvml = _start()
        self.missing: dict[str, str] = {}  # what could not be read, and why
        try:
            self._device = _handle(self._nvml, index)
            self._card, self._sliced = _board(self._nvml, self._device)
            self.name = _gpu_name(self._nvml, self._device)
        except self._nvml.NVMLError as error:
            _stop(self._nvml)
            raise NvmlUnavailableError(f"GPU {index} does not answer ({_reason(error)})") from None
        except NvmlUnavailableError:
            _stop(self._nvml)
            raise
        self._closed = False

    def _ask(self, what: str, function: str, *arguments: Any) -> Any | None:
        try:
            return getattr(self._nvml, function)(*arguments)
        except (self._nvml.NVMLError, AttributeError) as error:  # AttributeError: an older nvidia-ml-py
            self.missing.setdefault(
                what, "not in this nvidia-ml-py" if isinstance(error, AttributeError) else _reason(error)
            )
            return None

    def _number(self, what: str, function: str, *arguments: Any, scale: float = 1.0) -> float:
        value = self._ask(what, function, self._card, *arguments)
        return float("nan") if value is None else float(value) * scale

    def _unshared(self, what: str) -> bool:
        if self._sliced:
            self.missing.setdefault(what, "a MIG slice has none of its own")
        return not self._sliced

    def sm_clock_mhz(self) -> float:
        """Clock of the streaming multiprocessors now, MHz."""
        return self._number("SM clock", "nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM)

    def memory_clock_mhz(self) -> float:
        """Clock of the device memory now, MHz."""
        return self._number("memory clock", "nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_MEM)

    def temperature_c(self) -> float:
        """Temperature of the GPU, degrees Celsius."""
        return self._number("temperature", "nvmlDeviceGetTemperature", self._nvml.NVML_TEMPERATURE_GPU)

    def power_w(self) -> float:
        """Power of the whole card, watts: a mean over the last second on Ampere (except GA100) and newer (nvml.h)."""
        return self._number("power", "nvmlDeviceGetPowerUsage", scale=1e-3) if self._unshared("power") else float("nan")

    def energy_mj(self) -> float:
        """Energy of the whole card since the driver was loaded, millijoules (Volta and newer).

        The counter moves in steps, tens of milliseconds apart: take differences over a second or more.
        """
        if not self._unshared("energy counter"):
            return float("nan")
        return self._number("energy counter", "nvmlDeviceGetTotalEnergyConsumption")

    def throttle_reasons(self) -> tuple[str, ...]:
        """Names of the reasons in `THROTTLE_BITS` that hold; empty too where the card cannot say."""
        name = "nvmlDeviceGetCurrentClocksEventReasons"
        try:
            mask = getattr(self._nvml, name)(self._card)
        except (self._nvml.NVMLError, AttributeError):  # the name of drivers before 535
            mask = self._ask("throttle reasons", "nvmlDeviceGetCurrentClocksThrottleReasons", self._card)
        return tuple(reason for bit, reason in THROTTLE_BITS.items() if mask is not None and mask & bit)

    def process_memory_bytes(self) -> int | None:
        """Device memory this process holds, bytes; None where the driver does not list it.

        It does not before the process has a CUDA context, nor inside most containers, whose process ids differ from
        the driver's.
        """
        processes = self._ask("process memory", "nvmlDeviceGetComputeRunningProcesses", self._device)
        used = [process.usedGpuMemory for process in processes or () if process.pid == os.getpid()]
        known = [int(value) for value in used if value is not None]
        return sum(known) if known else None

    def close(self) -> None:
        """Let go of NVML; a second call does nothing."""
        if not self._closed:
            self._closed = True
            _stop(self._nvml)


def _gpu_name(nvml: Any, handle: Any) -> str:
    name = _text(nvml.nvmlDeviceGetName(handle))
    _, sliced = _board(nvml, handle)
    return f"{name} MIG" if sliced and "MIG" not in name else name


def list_gpu_names() -> tuple[str, ...]:
    """The vendor's names of the GPUs CUDA would show, in the module's order; () where NVML or a driver is missing.

    Needs no torch. Names of MIG slices, and of cards in MIG mode, contain "MIG".
    """
    try:
        with _started() as nvml:
            return tuple(_gpu_name(nvml, handle) for handle in _visible(nvml))
    except NvmlUnavailableError as error:
        _LOG.debug("no GPUs are listed: %s", error)
        return ()


def device_facts(index: int) -> dict[str, Any]:
    """What provenance should say of a GPU; {} without NVML, and keys are left out where the card cannot say.

    Keys: name, driver_version, cuda_driver_version, power_limit_w (enforced now), default_power_limit_w,
    max_sm_clock_mhz, max_memory_clock_mhz, persistence_mode, ecc_mode, mig_mode (all bool), vbios_version.
    """
    try:
        with _started() as nvml:
            card, _ = _board(nvml, _handle(nvml, index))
            return _facts(nvml, card)
    except NvmlUnavailableError:
        return {}


def _facts(nvml: Any, card: Any) -> dict[str, Any]:
    def cuda() -> str:
        version = int(nvml.nvmlSystemGetCudaDriverVersion())
        return f"{version // 1000}.{version % 1000 // 10}"

    questions: dict[str, Callable[[], Any]] = {
        "name": lambda: _text(nvml.nvmlDeviceGetName(card)),
        "driver_version": lambda: _text(nvml.nvmlSystemGetDriverVersion()),
        "cuda_driver_version": cuda,
        "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(card) / 1e3,
        "default_power_limit_w": lambda: nvml.nvmlDeviceGetPowerManagementDefaultLimit(card) / 1e3,
        "max_sm_clock_mhz": lambda: int(nvml.nvmlDeviceGetMaxClockInfo(card, nvml.NVML_CLOCK_SM)),
        "max_memory_clock_mhz": lambda: int(nvml.nvmlDeviceGetMaxClockInfo(card, nvml.NVML_CLOCK_MEM)),
        "persistence_mode": lambda: bool(nvml.nvmlDeviceGetPersistenceMode(card)),
        "ecc_mode": lambda: bool(nvml.nvmlDeviceGetEccMode(card)[0]),
        "mig_mode": lambda: bool(nvml.nvmlDeviceGetMigMode(card)[0]),
        "vbios_version": lambda: _text(nvml.nvmlDeviceGetVbiosVersion(card)),
    }
    facts: dict[str, Any] = {}
    for key, ask in questions.items():
        with suppress(nvml.NVMLError, AttributeError):
            facts[key] = ask()
    return facts


@contextmanager
def locked_clocks(index: int, mhz: int) -> Iterator[None]:
    """Hold the GPU's SM clock at `mhz` inside the block; needs the administrator's rights.

    The lock is taken off on every way out except a killed process (then: `nvidia-smi -rgc`). NVML cannot say whether
    clocks were locked before, so an earlier lock is not put back. The driver rounds to a clock the card supports.

    Raises:
        ValueError: not allowed, not supported, no such GPU, or a clock above the card's highest.
    """
    try:
        nvml = _start()
    except NvmlUnavailableError as error:
        raise ValueError(f"cannot lock clocks: {error}") from None
    try:
        card = _lock(nvml, index, mhz)
        try:
            yield
        finally:
            try:
                nvml.nvmlDeviceResetGpuLockedClocks(card)
            except nvml.NVMLError as error:  # raising here would hide the block's own error
                _LOG.warning("GPU %d keeps its locked clocks (%s): run `nvidia-smi -rgc`", index, _reason(error))
    finally:
        _stop(nvml)


def _lock(nvml: Any, index: int, mhz: int) -> Any:
    try:
        card, sliced = _board(nvml, _handle(nvml, index))
        if sliced:
            raise ValueError("cannot lock clocks: the GPU is shared (MIG)")
        highest = int(nvml.nvmlDeviceGetMaxClockInfo(card, nvml.NVML_CLOCK_SM))
        if not 0 < mhz <= highest:
            raise ValueError(f"cannot lock clocks at {mhz} MHz: this GPU's SM clock goes up to {highest} MHz")
        nvml.nvmlDeviceSetGpuLockedClocks(card, mhz, mhz)
    except NvmlUnavailableError as error:
        raise ValueError(f"cannot lock clocks: {error}") from None
    except nvml.NVMLError as error:
        raise ValueError(
            f"cannot lock clocks at {mhz} MHz: {_reason(error)}; it needs root and a card that supports it"
        ) from None
    return card
