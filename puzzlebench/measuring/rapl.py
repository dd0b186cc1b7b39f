"""Energy of CPU packages from Linux powercap (RAPL of Intel and AMD). Knows nothing of what runs on the CPU.

A package counter covers all cores of a socket and its caches, whoever uses them, and not the memory. Source:
Documentation/power/powercap/powercap.rst and Documentation/ABI/testing/sysfs-class-powercap of the Linux kernel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

POWERCAP: Final = Path("/sys/class/powercap")


class PackageEnergy:
    """The summed counters of all packages, made to run on where a counter wraps.

    A counter wraps at `max_energy_range_uj`, about 262 kJ on many CPUs (a quarter of an hour at 300 W), and only one
    wrap between two reads can be seen: read more often than that.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        """Read every package once.

        Args:
            root: the powercap folder; tests give a made one.

        Raises:
            ValueError: there is no package, or a counter may not be read; one line for the user.
        """
        self._packages = _package_zones(root)
        if not self._packages:
            raise ValueError("this machine shows no RAPL counters, so energy is not recorded")
        self._total_uj = 0
        try:
            self._ranges = [_read_number(zone / "max_energy_range_uj") for zone in self._packages]
            self._last = [_read_number(zone / "energy_uj") for zone in self._packages]
        except PermissionError:
            raise ValueError(
                "CPU energy counters may be read by root only, so energy is not recorded "
                "(`sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj` allows it)"
            ) from None
        except (OSError, ValueError):
            raise ValueError("CPU energy counters cannot be read, so energy is not recorded") from None

    def read_mj(self) -> float:
        """Energy of all packages since this object was made, millijoules; NaN when a counter cannot be read."""
        try:
            values = [_read_number(zone / "energy_uj") for zone in self._packages]
        except (OSError, ValueError):
            return float("nan")
        for value, last, span in zip(values, self._last, self._ranges, strict=True):
            self._total_uj += value - last if value >= last else value - last + span
        self._last = values
        return self._total_uj / 1e3


def _package_zones(root: Path) -> list[Path]:
    """Zones named "package-0" and the like: not their cores, not psys, not the MMIO copy of the same counters."""
    zones = []
    for zone in sorted(root.glob("intel-rapl:*")):
        try:
            if zone.name.count(":") == 1 and (zone / "name").read_text().startswith("package"):
                zones.append(zone)
        except OSError:
            continue
    return zones


def _read_number(path: Path) -> int:
    return int(path.read_text())
