"""Hardware datasheets: what the vendor says of a GPU. Reads YAML files; holds no measurement.

A user's own file has the same keys as those in `gpus/`, so new hardware needs a datasheet and nothing else.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

GPU_DIR = Path(__file__).parent / "gpus"
_NUMBERS = (
    "memory_bytes",
    "memory_bandwidth",
    "peak_bf16_flops",
    "peak_fp8_flops",
    "sm_count",
    "l2_bytes",
    "link_bandwidth",
    "power_watts",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Datasheet:
    """One GPU. Bandwidths in bytes/s, peaks in dense FLOP/s, sizes in bytes, power in watts."""

    name: str
    display_name: str
    aliases: tuple[str, ...]
    memory_bytes: int
    memory_bandwidth: float
    peak_bf16_flops: float
    peak_fp8_flops: float | None
    sm_count: int
    l2_bytes: int
    link_bandwidth: float
    power_watts: float
    compute_capability: str
    source: str

    def __post_init__(self) -> None:
        for field in _NUMBERS:
            value = getattr(self, field)
            if field == "peak_fp8_flops" and value is None:
                continue
            least = "at least 0" if field == "power_watts" else "above 0"
            number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
            if not number or (value == 0 and field != "power_watts"):
                raise ValueError(f"datasheet {self.name!r}: {field} must be a number {least}, not {value!r}")
        for field in ("name", "display_name", "compute_capability", "source"):
            if not isinstance(getattr(self, field), str):
                raise ValueError(f"datasheet {self.name!r}: {field} must be text, not {getattr(self, field)!r}")
        if not all(isinstance(alias, str) for alias in self.aliases):
            raise ValueError(f"datasheet {self.name!r}: aliases must be texts, not {list(self.aliases)!r}")

    def peak_flops(self, dtype: str) -> float:
        """Dense peak rate for a dtype; a GPU with no fp8 units computes in bf16."""
        return self.peak_fp8_flops if dtype == "fp8" and self.peak_fp8_flops else self.peak_bf16_flops


def read_datasheet(path: Path) -> Datasheet:
    """Read one YAML datasheet.

    Raises:
        ValueError: the file is missing, is not a mapping, or a key is unknown, missing or not a number.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"cannot read datasheet {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"datasheet {path} is not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"datasheet {path} must be a mapping of keys to values")
    return _datasheet(raw, path)


def _datasheet(raw: dict[str, Any], path: Path) -> Datasheet:
    defaults: dict[str, Any] = {
        "name": path.stem,
        "display_name": raw.get("name", path.stem),
        "aliases": (),
        "peak_fp8_flops": None,
        "power_watts": 0.0,
        "compute_capability": "",
        "source": str(path.name),
    }
    known = {field.name for field in fields(Datasheet)}
    for key in raw:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(sorted(known))}"
            raise ValueError(f"datasheet {path}: unknown key {key!r}{hint}")
    values = defaults | raw
    missing = sorted(known - values.keys())
    if missing:
        raise ValueError(f"datasheet {path}: missing {', '.join(missing)}")
    for key, value in values.items():
        if key in _NUMBERS and isinstance(value, str):
            values[key] = _number(value, key, path)  # YAML reads 3.35e12 (no sign in the exponent) as text
    if isinstance(values["compute_capability"], float):
        values["compute_capability"] = str(values["compute_capability"])  # 9.0 without quotes
    if not isinstance(values["aliases"], list | tuple):
        raise ValueError(f"datasheet {path}: aliases must be a list, not {values['aliases']!r}")
    values["aliases"] = tuple(values["aliases"])
    return Datasheet(**values)


def _number(text: str, key: str, path: Path) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"datasheet {path}: {key} must be a number, not {text!r}") from None


@cache
def bundled_datasheets() -> dict[str, Datasheet]:
    """All datasheets that ship with the package, by name."""
    return {path.stem: read_datasheet(path) for path in sorted(GPU_DIR.glob("*.yaml"))}


def find_datasheet(name: str) -> Datasheet:
    """A bundled datasheet by name or alias, or a user's YAML file by path.

    Raises:
        ValueError: nothing matches; the message suggests near names.
    """
    if name.endswith((".yaml", ".yml")):
        return read_datasheet(Path(name))
    wanted = name.lower().replace("-", "_").replace(" ", "_")
    by_alias = {alias: sheet for sheet in bundled_datasheets().values() for alias in (sheet.name, *sheet.aliases)}
    if wanted in by_alias:
        return by_alias[wanted]
    near = difflib.get_close_matches(wanted, by_alias, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(f"unknown GPU {name!r}: {hint}`puzzlebench gpus` lists them; a datasheet file ends in .yaml")
