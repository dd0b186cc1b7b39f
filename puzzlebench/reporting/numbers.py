"""Numbers as the report writes them: few digits, a unit, a true minus, intervals as "1.49 to 1.58"."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from typing import Final

from puzzlebench.estimate import Interval
from puzzlebench.searching.case_pool import SCORE
from puzzlebench.searching.quantities import format_value

NBSP: Final = "\u00a0"
MINUS: Final = "\u2212"
NOTHING: Final = "\u2013"


def digits(value: float, places: int = 3) -> str:
    """That many significant digits, thousands apart, never as 1e+06 below a billion."""
    if not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    plain = f"{value:,.{max(places - 1 - size, 0)}f}"
    return (plain if -4 <= size < 9 else f"{value:.{places - 1}e}").replace("-", MINUS)


def tick(value: float) -> str:
    """A round value on an axis: "0.25", "2,000"."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}".replace("-", MINUS)


def times(value: float) -> str:
    """A ratio: "1.53×"."""
    return f"{digits(value)}×"


def percent(share: float, places: int = 1) -> str:
    """A share: "95.1 %"."""
    return f"{100 * share:.{places}f}{NBSP}%".replace("-", MINUS) if math.isfinite(share) else NOTHING


def signed_percent(share: float, places: int = 1) -> str:
    """A change with its sign: "+4.2 %"."""
    return f"{100 * share:+.{places}f}{NBSP}%".replace("-", MINUS) if math.isfinite(share) else NOTHING


def milliseconds(value: float) -> str:
    """A duration given in milliseconds, in the unit that fits."""
    return quantity("latency", value / 1e3)


def time_unit(milliseconds: float) -> tuple[float, str]:
    """What to divide milliseconds up to this many by, and the unit they then are in."""
    return next((pair for pair in ((1e3, "s"), (1.0, "ms")) if milliseconds >= 2 * pair[0]), (1e-3, "µs"))


def quantity(column: str, value: float) -> str:
    """A score or a resource with its unit; a scenario in the column's brackets is passed over."""
    if column.partition("[")[0] == SCORE:
        return digits(value, 4)
    text = format_value(column, value)
    if text.endswith(" us"):
        text = text[:-2] + "µs"
    return text.replace(" parameters", "").replace(" ", NBSP)


def parameters(value: float) -> str:
    """A count of parameters: "7.34 M"."""
    return quantity("params", value)


def spread(value: Interval, write: Callable[[float], str]) -> str:
    """The ends of an interval: "1.49× to 1.58×"; nothing where they are unknown."""
    if not (math.isfinite(value.low) and math.isfinite(value.high)):
        return NOTHING
    return f"{write(value.low)} to {write(value.high)}"


def duration(seconds: float) -> str:
    """For people: "2.4 s", "5 min 12 s", "1 h 03 min"."""
    if seconds < 60:
        return f"{digits(seconds, 2 if seconds < 10 else 3)}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{NBSP}min {rest:02d}{NBSP}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{NBSP}h {minutes:02d}{NBSP}min"


def day(text: str) -> str:
    """The date of an ISO time for people, or the text itself where it is none."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment.day} {moment:%B %Y}"


def moment(text: object) -> str:
    """An ISO time for people, to the minute: "28 November 2026, 09:30 UTC"; the text itself where it is none."""
    try:
        found = datetime.datetime.fromisoformat(str(text))
    except ValueError:
        return str(text)
    if found.tzinfo is None:
        return f"{day(str(text))}, {found:%H:%M}"
    found = found.astimezone(datetime.UTC)
    return f"{day(found.isoformat())}, {found:%H:%M} UTC"


def probability(value: float) -> str:
    """A p-value: "0.0031", "below 0.0001"."""
    return "below 0.0001" if value < 1e-4 else digits(value, 2)
