"""The GPU or CPU in hand: which one it is, what is known of it, and what a measurement on it must be filed with.

Nothing is timed here. Hardware without a bundled datasheet gets an estimated one, whose `source` says so;
`ceilings.with_ceilings` puts measured rates in its place.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import psutil

import puzzlebench
from puzzlebench.measuring.nvml import device_facts, list_gpu_names
from puzzlebench_profiles.datasheets import Datasheet, bundled_datasheets

NEEDS_TORCH: Final = "measuring needs torch: pip install 'puzzlebench[models]'"
_ROOT: Final = Path("/")

_GPU_NAMES: Final = {
    "h100_sxm": r"H100 80GB HBM3",
    "h200_sxm": r"H200",
    "a100_sxm": r"A100-SXM4?-80GB",
    "l40s": r"L40S",
    "b200_sxm": r"B200",
    "gb200": r"GB200",
    "rtx_pro_6000": r"RTX PRO 6000 Blackwell Server Edition",
}
"""Datasheet to the whole of the vendor's name after "NVIDIA". Cards that share a chip but not its clocks, power limit
or memory (PCIe, NVL, 40 GB, Max-Q, MIG slices) match none."""

_BF16_FLOP_PER_CLOCK_AND_SM: Final = {"7.0": 1024, "8.0": 2048, "8.6": 512, "8.9": 1024, "9.0": 4096, "10.0": 8192}
"""Dense tensor-core rates per multiprocessor, for estimates: datasheet peaks over clock and multiprocessors."""

_CPU_FLAGS: Final = (
    *("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "asimdhp", "bf16", "i8mm", "sve", "sve2", "hypervisor"),
)
_UNKNOWN_CACHE_BYTES: Final = 32 << 20
_UNKNOWN_CLOCK_HZ: Final = 2e9
_PCIE_4_BYTES_PER_S: Final = 3.2e10
_BYTES_PER_S_AND_CORE: Final = 8e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """One device to measure on.

    Attributes:
        index: CUDA's index; 0 for the CPU.
        name: for tables: the datasheet's name where one is bundled, else made of the vendor's (amd_epyc_2c).
        display_name: the vendor's name.
        datasheet: the bundled one, or an estimate whose `source` says so.
        last_level_cache_bytes: L2 of a GPU; all last-level caches of a CPU that this process can use.
    """

    kind: Literal["cuda", "cpu"]
    index: int
    name: str
    display_name: str
    datasheet: Datasheet
    last_level_cache_bytes: int

    @property
    def torch_name(self) -> str:
        """Its name in torch: cpu, cuda:0."""
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"

    def available_bytes(self) -> int:
        """Memory free on the device now; on the CPU also what the process's control group still allows."""
        if self.kind == "cpu":
            return available_memory_bytes()
        import torch

        return int(torch.cuda.mem_get_info(self.index)[0])


def match_gpu(vendor_name: str) -> Datasheet | None:
    """The bundled datasheet of a GPU by the name NVML or torch gives it ("NVIDIA H100 80GB HBM3"), else None."""
    short = vendor_name.strip().removeprefix("NVIDIA ")
    for name, pattern in _GPU_NAMES.items():
        if re.fullmatch(pattern, short, re.IGNORECASE):
            return bundled_datasheets()[name]
    return None


def holds_gpu(datasheet_name: str) -> int | None:
    """CUDA's index of the first GPU here that has this name (or alias) in tables; None where there is none.

    Asks NVML, not torch, so it costs little. On a machine with unlike GPUs torch may order them otherwise
    (see `nvml`): `local_device` says for certain what an index is.
    """
    for index, vendor_name in enumerate(list_gpu_names()):
        sheet = match_gpu(vendor_name)
        names = (sheet.name, *sheet.aliases) if sheet else (_slug(vendor_name),)
        if datasheet_name in names:
            return index
    return None


def local_device(name: str) -> Device:
    """The device called "local" (the first GPU if torch sees one, else the CPU), "cpu", "cuda" or "cuda:1".

    Raises:
        ValueError: another name, no such GPU, or torch is not installed.
    """
    wanted = re.fullmatch(r"local|cpu|cuda(?::(\d+))?", name)
    if wanted is None:
        raise ValueError(f"unknown device {name!r}; devices are local, cpu, cuda and cuda:N")
    try:
        import torch
    except ImportError:
        raise ValueError(NEEDS_TORCH) from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "local" and count == 0):
        return cpu_device()
    index = int(wanted.group(1) or 0)
    if index >= count:
        built = "" if torch.version.cuda or torch.version.hip else "; this torch is a CPU build"
        raise ValueError(f"no device {name!r}: torch sees {count} GPU(s){built}")
    return gpu_device(index, torch.cuda.get_device_properties(index))


def gpu_device(index: int, properties: Any) -> Device:
    """A GPU from `torch.cuda.get_device_properties(index)`."""
    sheet = match_gpu(properties.name)
    cache = int(getattr(properties, "L2_cache_size", 0)) or (sheet.l2_bytes if sheet else _UNKNOWN_CACHE_BYTES)
    sheet = sheet or _estimated_gpu(index, properties, cache)
    return Device(
        kind="cuda",
        index=index,
        name=sheet.name,
        display_name=properties.name,
        datasheet=sheet,
        last_level_cache_bytes=cache,
    )


def cpu_device(root: Path = _ROOT) -> Device:
    """The CPU, as far as this process may use it; `root` is where /proc and /sys are (tests give a made tree)."""
    model, cores = cpu_model(root), usable_cores(root)
    cache = last_level_cache_bytes(root)
    sheet = _estimated_cpu(f"{_slug(model)}_{cores}c", f"{model}, {cores} core(s)", cores, cache, root)
    return Device(
        kind="cpu",
        index=0,
        name=sheet.name,
        display_name=sheet.display_name,
        datasheet=sheet,
        last_level_cache_bytes=sheet.l2_bytes,
    )


def _slug(vendor_name: str) -> str:
    """`Intel(R) Xeon(R) Gold 6430 CPU @ 2.1GHz` to `intel_xeon_gold_6430`, `NVIDIA H100 PCIe` to `h100_pcie`."""
    text = vendor_name.lower().removeprefix("nvidia ")
    text = re.sub(r"\(r\)|\(tm\)|@.*|\b\d+-core\b|\bcpu\b|\bprocessor\b|\bwith .*", " ", text)
    return re.sub(r"[^a-z0-9]+", "_", text).strip("_") or "unknown"


def _estimated_gpu(index: int, properties: Any, cache: int) -> Datasheet:
    capability = f"{properties.major}.{properties.minor}"
    facts = device_facts(index)
    clock = float(getattr(properties, "clock_rate", 0)) * 1e3 or facts.get("max_sm_clock_mhz", 0) * 1e6
    memory_clock = float(getattr(properties, "memory_clock_rate", 0)) * 1e3
    bus_bytes = float(getattr(properties, "memory_bus_width", 0)) / 8
    per_clock = _BF16_FLOP_PER_CLOCK_AND_SM.get(capability, 1024)
    peak = properties.multi_processor_count * per_clock * (clock or _UNKNOWN_CLOCK_HZ)
    return Datasheet(
        name=_slug(properties.name),
        display_name=properties.name,
        aliases=(),
        memory_bytes=int(properties.total_memory),
        memory_bandwidth=2 * memory_clock * bus_bytes or 5e11,  # two transfers a clock
        peak_bf16_flops=peak,
        peak_fp8_flops=2 * peak if (properties.major, properties.minor) >= (8, 9) else None,
        sm_count=int(properties.multi_processor_count),
        l2_bytes=cache,
        link_bandwidth=_PCIE_4_BYTES_PER_S,
        power_watts=float(facts.get("power_limit_w", 0.0)),
        compute_capability=capability,
        source=f"estimated by puzzlebench {puzzlebench.__version__} on {_today()} from clocks and unit counts that the "
        "driver reports, link taken as PCIe 4.0 x16; nothing measured",
    )


def _estimated_cpu(name: str, display_name: str, cores: int, cache: int | None, root: Path) -> Datasheet:
    flags = _cpu_flags(root)
    # Two fused multiply-adds of a vector each clock.
    per_clock = 64 if "avx512f" in flags else 32 if "avx2" in flags else 16
    bandwidth = _BYTES_PER_S_AND_CORE * min(cores, 32)
    assumed = "" if cache else f", cache size unknown and taken as {_UNKNOWN_CACHE_BYTES >> 20} MiB"
    return Datasheet(
        name=name,
        display_name=display_name,
        aliases=(),
        memory_bytes=memory_bytes(root),
        memory_bandwidth=bandwidth,
        peak_bf16_flops=cores * per_clock * _UNKNOWN_CLOCK_HZ,
        peak_fp8_flops=None,
        sm_count=cores,
        l2_bytes=cache or _UNKNOWN_CACHE_BYTES,
        link_bandwidth=bandwidth,
        power_watts=0.0,
        compute_capability="",
        source=f"estimated by puzzlebench {puzzlebench.__version__} on {_today()} from core count and vector width at "
        f"2 GHz and {_BYTES_PER_S_AND_CORE / 1e9:.0f} GB/s a core{assumed}; nothing measured",
    )


def cpu_model(root: Path = _ROOT) -> str:
    """The CPU's name in /proc/cpuinfo, else the platform's word for its architecture."""
    found = re.search(r"^model name\s*:\s*(.+)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    return " ".join(found.group(1).split()) if found else platform.machine() or "cpu"


def _cpu_flags(root: Path) -> list[str]:
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    present = set(found.group(1).split()) if found else set()
    return [flag for flag in _CPU_FLAGS if flag in present]


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def usable_cores(root: Path = _ROOT) -> int:
    """Logical cores this process may keep busy: its affinity, and its control group's share of time rounded up."""
    cores = float(len(_affinity()))
    for folder in _cgroups(root, "cpu"):
        quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
        quota = quota or _read(folder / "cpu.cfs_quota_us").strip()
        period = period or _read(folder / "cpu.cfs_period_us").strip()
        if quota.isdecimal() and period.isdecimal() and int(period):  # "max" and -1 are no limit
            cores = min(cores, int(quota) / int(period))
    return max(math.ceil(cores), 1)


def memory_bytes(root: Path = _ROOT) -> int:
    """Memory of the machine, or of the process's control group where that is less."""
    limits = [limit for _, limit in _memory_limits(root)]
    return min([int(psutil.virtual_memory().total), *limits])


def available_memory_bytes(root: Path = _ROOT) -> int:
    """Memory that can still be taken: what the system calls available, and what each control group has left.

    Inactive file cache counts as free: the kernel gives it back before it refuses memory.
    """
    free = [int(psutil.virtual_memory().available)]
    for folder, limit in _memory_limits(root):
        used = _read(folder / "memory.current").strip() or _read(folder / "memory.usage_in_bytes").strip()
        # Version 1 has two lines; the one with "total_" counts the groups below too, as the usage does.
        cached = re.findall(r"^(?:total_)?inactive_file (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
        free.append(limit - int(used or 0) + max(map(int, cached), default=0))
    return max(min(free), 0)


def _memory_limits(root: Path) -> list[tuple[Path, int]]:
    limits = []
    for folder in _cgroups(root, "memory"):
        limit = _read(folder / "memory.max").strip() or _read(folder / "memory.limit_in_bytes").strip()
        if limit.isdecimal():
            limits.append((folder, int(limit)))
    return limits


def _cgroups(root: Path, controller: str) -> list[Path]:
    """Folders of the control groups the process is in, its own first: version 2, and the controller's of version 1.

    Inside a container the path may be the host's, which is not mounted; the folder at the top is the container's then.
    """
    folders = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if controllers else "")
        own = top / path.strip("/")
        folders += [own, *own.parents[: len(own.relative_to(top).parts)]]
    return folders


def last_level_cache_bytes(root: Path = _ROOT) -> int | None:
    """All last-level caches that the cores of this process reach, each counted once; None where /sys has none."""
    caches: dict[str, int] = {}
    for core in sorted(_affinity()):
        levels = _cache_levels(root / f"sys/devices/system/cpu/cpu{core}/cache")
        if levels:
            level = max(levels)
            size, shared = levels[level]
            caches[shared or str(core)] = size
    return sum(caches.values()) or None


def _cache_levels(folder: Path) -> dict[int, tuple[int, str]]:
    """Level to (bytes, the cores that share it) of one core's data caches."""
    units = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    levels = {}
    for index in folder.glob("index*"):
        size = re.fullmatch(r"(\d+)([KMG]?)", _read(index / "size").strip())
        level = _read(index / "level").strip()
        if size and level.isdecimal() and _read(index / "type").strip() != "Instruction":
            levels[int(level)] = int(size.group(1)) * units[size.group(2)], _read(index / "shared_cpu_list").strip()
    return levels


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def fingerprint(device: Device) -> dict[str, Any]:
    """What a measurement on this device must be filed with, ready for JSON; unknown values are None.

    It holds no host or user name, no path, and no UUID or serial number.
    """
    caches = _cache_levels(_ROOT / f"sys/devices/system/cpu/cpu{min(_affinity())}/cache")
    facts: dict[str, Any] = {
        "puzzlebench": puzzlebench.__version__,
        "git_commit": git_commit(Path(puzzlebench.__file__).parent.parent),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device.name,
        "display_name": device.display_name,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{package: _version(package) for package in ("triton", "transformers", "numpy")},
        **_torch_facts(),
        "cpu": {
            "model": cpu_model(),
            "usable_cores": usable_cores(),
            "memory_bytes": memory_bytes(),
            "cache_bytes": {f"L{level}": size for level, (size, _) in sorted(caches.items())},
            "flags": _cpu_flags(_ROOT),
        },
    }
    if device.kind == "cuda":
        facts["gpu"] = device_facts(device.index)
    return facts


def _torch_facts() -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        return {"torch": None, "cuda": None, "cudnn": None, "threads": None}
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": _cudnn(torch),
        "threads": torch.get_num_threads(),
    }


def _cudnn(torch: Any) -> int | None:
    version: int | None = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return version


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit(folder: Path) -> str | None:
    """Short commit of the checkout at `folder`, with "-dirty" if tracked files differ; None if it is no checkout."""
    if not (folder / ".git").exists():  # an installed package inside somebody else's repository is not that commit
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
