"""Quantities as people write them: bytes, seconds, counts and rates; parsed exactly, printed with a unit.

Knows units only, not what is limited or why.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Final

_QUANTITY: Final = re.compile(
    r"\s*([0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-zµμ]*)\s*"
)
_LARGEST: Final = 1e30  # above what anything here can be; exponents beyond it only cost time
_SMALLEST: Final = 1e-30

_BYTES: Final = {
    "b": Decimal(1),
    **{f"{prefix}ib": Decimal(1024) ** power for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}b": Decimal(1000) ** power for power, prefix in enumerate("kmgt", start=1)},
}
_SECONDS: Final = {
    "us": Decimal("1e-6"),
    "µs": Decimal("1e-6"),  # the micro sign
    "μs": Decimal("1e-6"),  # the Greek letter
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "min": Decimal(60),
}
_COUNTS: Final = {"k": Decimal("1e3"), "m": Decimal("1e6"), "b": Decimal("1e9"), "t": Decimal("1e12")}


def parse_bytes(text: str) -> int:
    """Bytes: "80GiB", "80GB" or a bare number of them; the case of the unit does not matter.

    Raises:
        ValueError: it is no amount of at least one byte.
    """
    size = round(_parse(text, {"": Decimal(1), **_BYTES}, what="a number of bytes", example="80GiB or 80GB"))
    if size < 1:
        raise ValueError(f"{text!r} is less than one byte")
    return size


def parse_seconds(text: str) -> float:
    """Seconds: "900ms", "1.5s", "250us" or "2min".

    Raises:
        ValueError: it is no duration above 0, or has no unit.
    """
    return float(_parse(text, _SECONDS, what="a duration", example="900ms or 0.9s"))


def parse_count(text: str) -> float:
    """A count: "40B" (billions), "500M", "39.5e9".

    Raises:
        ValueError: it is no number above 0.
    """
    return float(_parse(text, {"": Decimal(1), **_COUNTS}, what="a count", example="40B or 39.5e9"))


def parse_rate(text: str) -> float:
    """Tokens per second: "6000".

    Raises:
        ValueError: it is no number above 0.
    """
    return float(_parse(text, {"": Decimal(1)}, what="a number of tokens per second", example="6000"))


def _parse(text: str, units: Mapping[str, Decimal], *, what: str, example: str) -> Decimal:
    found = _QUANTITY.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not {what}; give one such as {example}")
    number, unit = found[1], found[2].lower()
    if unit not in units:
        if not unit:
            raise ValueError(f"{text!r} has no unit; give a unit: {example}")
        known = ", ".join(name for name in units if name) or "none but the number itself"
        raise ValueError(f"{text!r} is not {what}: unknown unit {found[2]!r}; known are {known}")
    if float(number) == 0:
        raise ValueError(f"{text!r} must be above 0")
    if not _SMALLEST < float(number) < _LARGEST:
        raise ValueError(f"{text!r} is out of range")
    return Decimal(number) * units[unit]


def format_value(resource: str, value: float) -> str:
    """A value with its unit for people: "74.21 GiB", "812 ms", "49.9 B parameters", "6,012 tokens/s".

    Args:
        resource: memory (bytes), params (a count), throughput (tokens per second), or latency, ttft or tpot (seconds);
            a scenario in brackets is passed over.
        value: in that unit.

    Raises:
        ValueError: no such resource.
    """
    name = resource.partition("[")[0]
    if name == "memory":
        return _scaled(value, ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")))
    if name == "params":
        return _scaled(
            value, ((1e9, "B parameters"), (1e6, "M parameters"), (1e3, "K parameters"), (1.0, "parameters"))
        )
    if name == "throughput":
        return f"{value:,.0f} tokens/s" if abs(value) >= 1000 else f"{value:.4g} tokens/s"
    if name in ("latency", "ttft", "tpot"):
        return _scaled(value, ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")))
    raise ValueError(f"no resource is named {resource!r}")


def _scaled(value: float, units: tuple[tuple[float, str], ...]) -> str:
    """Four digits in the first unit of which there is at least one, else in the last."""
    scale, unit = next((pair for pair in units if abs(value) >= pair[0]), units[-1])
    number = value / scale
    digits = f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"
    return f"{digits} {unit}"
