"""From values to pixels and to the marks of an axis. Knows no chart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Kind: TypeAlias = Literal["straight", "log", "root"]
"""How values go to pixels: as they are, by their logarithm, or by their square root."""

_STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """`low` is at pixel `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float
    kind: Kind = "straight"

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        least = {"straight": -math.inf, "log": 5e-324, "root": 0.0}[self.kind]
        if not least <= self.low < self.high or not math.isfinite(self.high - self.low):
            raise ValueError(f"a scale cannot go from {self.low} to {self.high}")

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, at = self.low, self.high, value
        if self.kind == "log":
            low, high, at = math.log(low), math.log(high), math.log(max(value, self.low * 1e-6))
        elif self.kind == "root":
            low, high, at = math.sqrt(low), math.sqrt(high), math.sqrt(max(value, 0.0))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, about: int = 5) -> tuple[float, ...]:
        """Round values on the scale, some `about` of them."""
        if self.kind == "log":
            return _log_ticks(self.low, self.high, about)
        if self.kind == "root":
            return self._root_ticks(about)
        return _straight_ticks(self.low, self.high, about)

    def _root_ticks(self, about: int) -> tuple[float, ...]:
        """1, 2 and 5 of each decade from the highest down, as far apart as `about` of them would be, and the lowest."""
        apart = abs(self.end - self.start) / (about + 1)
        highest = math.floor(math.log10(self.high))
        rounds = (digit * 10.0**power for power in range(highest, highest - 6, -1) for digit in (5, 2, 1))
        found: list[float] = []
        for value in rounds:
            known = [self.low, *found] if self.low == 0 else found
            if self.low <= value <= self.high and all(abs(self(value) - self(one)) >= apart for one in known):
                found.append(value)
        return tuple(sorted([*found, *([0.0] if self.low == 0 else [])]))


def padded(
    values: list[float], *, share: float = 0.06, zero: bool = False, kind: Kind = "straight"
) -> tuple[float, float]:
    """Ends of a scale that holds the values with some room; from 0 if `zero`."""
    least = {"straight": -math.inf, "log": 5e-324, "root": 0.0}[kind]
    finite = [value for value in values if math.isfinite(value) and value >= least]
    low, high = (min(finite), max(finite)) if finite else (1.0, 1.0) if kind == "log" else (0.0, 1.0)
    if kind == "log":
        room = max(math.log(high / low) * share, 0.02)
        return low * math.exp(-room), high * math.exp(room)
    if zero:
        low = min(low, 0.0)
    room = (high - low) * share or abs(high) * share or 1.0
    return (low if (zero or kind == "root") and low == 0 else max(low - room, least)), high + room


def _straight_ticks(low: float, high: float, about: int) -> tuple[float, ...]:
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in _STEPS if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return tuple(round(place * step, 12) for place in range(first, math.floor(high / step + 1e-9) + 1))


def _log_ticks(low: float, high: float, about: int) -> tuple[float, ...]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: tuple[float, ...] = ()
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = tuple(
            digit * 10.0**power for power in decades for digit in digits if low <= digit * 10.0**power <= high
        )
        if len(ticks) > about + 2 and len(found) >= 2:
            break
        found = ticks[:: max(1, math.ceil(len(ticks) / (about + 2)))] if digits == (1,) else ticks
    return found if len(found) >= 2 else _straight_ticks(low, high, about)
