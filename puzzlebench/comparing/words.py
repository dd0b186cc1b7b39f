"""How a comparison is put into words and JSON; the same in the terminal, in Markdown and on the page."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, Final

from puzzlebench.comparing.comparison import MOST_SESSIONS, VERDICTS, CellVerdict, Comparison
from puzzlebench.estimate import Interval

NOTHING: Final = "–"
HOW_TO_READ: Final = (
    "A change is NEW's time over BASE's, less one: above 0 is slower. Brackets hold the 95 % interval over sessions "
    "(fresh processes).",
    "SLOWER and FASTER, in paired sessions: that there is a difference is certain (Student's t over sessions, "
    "Benjamini-Hochberg over cells), and the measured change is larger than the band; its interval may reach into the "
    "band. In sessions of two times it is certain that the difference is larger than the band.",
    "SAME: the whole interval lies inside the band, at most one session of each side stood far out, and the shares of "
    "calm samples are alike. AMBIGUOUS: neither; its row says what would settle it, or why nothing does.",
    "What all cells share is judged once, as the suite. Unless it is known to stand still, cells are judged relative "
    "to it. In paired sessions a cell that kept its own time is SAME as well, and while the suite is AMBIGUOUS a cell "
    "is SAME only if its own change is inside the band too.",
)


def change(ratio: float) -> str:
    """A ratio as a change: "+4.2 %"."""
    return f"{100 * (ratio - 1):+.1f} %" if math.isfinite(ratio) else NOTHING


def change_with_interval(ratio: Interval) -> str:
    """The same with its 95 % interval: "+4.2 % [+3.1, +5.3]"; without where that is not known."""
    if not (math.isfinite(ratio.low) and math.isfinite(ratio.high)):
        return change(ratio.value)
    return f"{change(ratio.value)} [{100 * (ratio.low - 1):+.1f}, {100 * (ratio.high - 1):+.1f}]"


def amount(value: float, unit: str) -> str:
    """A time: "12.3 us"."""
    if not math.isfinite(value):
        return NOTHING
    return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.4g} {unit}"


def probability(p: float) -> str:
    """An adjusted p-value: "0.0031"."""
    return "<0.0001" if p < 1e-4 else f"{p:.2g}"


def headline(comparison: Comparison) -> str:
    """One line: what became of the cells."""
    counts = {verdict: len(comparison.of(verdict)) for verdict in VERDICTS}
    parts = [f"{count} {verdict}" for verdict, count in counts.items() if count]
    if comparison.missing:
        parts.append(f"{len(comparison.missing)} missing")
    return f"{len(comparison.cells)} cells: {', '.join(parts)}"


def suite_line(comparison: Comparison) -> str:
    """One line: what all cells share."""
    suite = comparison.suite
    if suite is None:
        return "Suite: too few cells to say what they share"
    text = f"Suite: {suite.verdict}, {change_with_interval(suite.ratio)}, p {probability(suite.p)}"
    if suite.verdict in ("SLOWER", "FASTER"):
        text += "; by the code, as sessions ran next to each other" if comparison.paired else ""
        text += "; by the machine or the code, which two times cannot tell apart" if not comparison.paired else ""
    return text


def basis_line(comparison: Comparison) -> str:
    """One line: how it was measured and what the verdicts are about."""
    sessions = comparison.sessions
    if sessions[0] is None or sessions[1] is None:
        how = "intervals of the files, no sessions"
    elif comparison.paired:
        how = f"{sessions[0]} pairs of sessions that ran next to each other"
    else:
        how = f"{sessions[0]} and {sessions[1]} sessions of different times"
    about = "relative to the suite" if comparison.relative else "by their own ratio"
    return f"{how}; cells judged {about}; band ±{100 * comparison.band:g} %, false findings {100 * comparison.rate:g} %"


def more_sessions(cell: CellVerdict) -> str:
    """What would settle an open cell, or why nothing does."""
    if cell.verdict != "AMBIGUOUS":
        return ""
    if cell.doubt:
        return cell.doubt
    if cell.more_sessions is None:
        return f"not by {MOST_SESSIONS} more sessions"
    return f"{cell.more_sessions} more session{'s' if cell.more_sessions > 1 else ''}"


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """All of it, ready for JSON; what is not finite becomes null."""
    stated = asdict(comparison)
    stated["counts"] = {verdict: len(comparison.of(verdict)) for verdict in VERDICTS}
    found: dict[str, Any] = _finite(stated)
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
