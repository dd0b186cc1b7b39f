"""Which differences between two machines forbid to compare, and which are only said beside the numbers.

Another processor, precision, engine or set of sizes makes a cell mean another thing: refused, unless the reader asks
for it. A driver, a library, a clock or a power cap may be the very cause that is looked for: labelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from puzzlebench.digest import short_digest

REFUSED: Final = (
    "device",
    "gpu.name",
    "gpu.mig_mode",
    "cpu.model",
    "cpu.usable_cores",
    "cpu.flags",
    "cpu.cache_bytes",
    "threads",
    "engine",
    "model",
    "precision",
    "weight_dtype",
    "kv_dtype",
    "tensor_parallel",
    "grid",
    "suite",
    "settings.max_num_tokens",
    "settings.composition",
    "settings.caches",
)
"""Keys, and all below them, that two results must share; a key that either side lacks is labelled."""
_PASSED_OVER: Final = ("date", "created", "git_commit", "revision", "puzzlebench", "display_name")
"""What differs between any two results, or says again what another key says."""

_CLOCK_REACH: Final = 0.02  # clocks step by 15 MHz; what is more than the default band can be the cause of a finding
_THROTTLED: Final = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A key and what both sides say of it; None where one says nothing."""

    key: str
    base: Any
    new: Any

    @property
    def text(self) -> str:
        """For people: "torch 2.12.0 in BASE, 2.13.0 in NEW"."""
        base, new = ("unknown" if side is None else side for side in (self.base, self.new))
        return f"{self.key} {base} in BASE, {new} in NEW"


@dataclass(frozen=True, kw_only=True, slots=True)
class Differences:
    """Those that refuse a comparison and those that label it."""

    refused: tuple[Difference, ...]
    labelled: tuple[Difference, ...]


def find_differences(base: Mapping[str, Any], new: Mapping[str, Any]) -> Differences:
    """Every key, nested ones with dots, in which two fingerprints differ."""
    mine, its = _flat(base), _flat(new)
    refused: list[Difference] = []
    labelled: list[Difference] = []
    for key in dict.fromkeys([*mine, *its]):
        one = Difference(key=key, base=mine.get(key), new=its.get(key))
        if one.base == one.new or _under(key, _PASSED_OVER):
            continue
        known = one.base is not None and one.new is not None
        (refused if known and _under(key, REFUSED) else labelled).append(one)
    return Differences(refused=tuple(refused), labelled=tuple(labelled))


def check_comparable(base: Mapping[str, Any], new: Mapping[str, Any], *, across: bool = False) -> tuple[str, ...]:
    """The labels of a comparison.

    Args:
        across: compare although the machines or settings differ; those differences become labels.

    Raises:
        ValueError: a difference refuses the comparison.
    """
    found = find_differences(base, new)
    if found.refused and not across:
        first, more = found.refused[0], len(found.refused) - 1
        also = f" (and {more} more: {', '.join(one.key for one in found.refused[1:])})" if more else ""
        raise ValueError(
            f"these results cannot be compared: {first.text}{also}; measure both alike, or label it with --across"
        )
    return tuple(one.text for one in (*found.refused, *found.labelled))


def condition_labels(base: Mapping[str, float], new: Mapping[str, float]) -> tuple[str, ...]:
    """What the GPU did differently while both were measured: its typical clock, and how often it was throttled."""
    labels = []
    clocks = [side.get("sm_clock_mhz", 0.0) for side in (base, new)]
    if min(clocks) > 0 and abs(clocks[1] / clocks[0] - 1) > _CLOCK_REACH:
        labels.append(f"typical SM clock {clocks[0]:.0f} MHz in BASE, {clocks[1]:.0f} MHz in NEW")
    shares = [side.get("throttled_share", 0.0) for side in (base, new)]
    if max(shares) > _THROTTLED:
        labels.append(f"throttled {shares[0]:.0%} of the time in BASE, {shares[1]:.0%} in NEW")
    return tuple(labels)


def comparable_digest(fingerprint: Mapping[str, Any]) -> str:
    """A short name for all results that may be compared with this one without --across."""
    flat = _flat(fingerprint)
    return short_digest({key: value for key, value in flat.items() if _under(key, REFUSED)})


def facts(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """A fingerprint with one value to a key, nested ones with dots; what is unknown is left out."""
    return _flat(fingerprint)


def _flat(stated: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in stated.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= _flat(value, f"{name}.")
        elif isinstance(value, list | tuple):
            found[name] = ", ".join(map(str, value))
        elif value is not None:
            found[name] = value
    return found


def _under(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)
