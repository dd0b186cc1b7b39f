"""A proof as Markdown, and its place in a document. Computes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from puzzlebench.files import write_text

BEGIN: Final = "<!-- proof: written by `puzzlebench gate --prove --document FILE`; do not edit -->"
END: Final = "<!-- end of proof -->"


def proof_markdown(result: Mapping[str, Any]) -> str:
    """What was measured, false alarms, and what was found of what was planted."""
    scatter, inside = result["session_scatter"], result["within_session"]
    machine = result["fingerprint"]
    lines = [
        f"{result['sessions']} fresh sessions of {result['timing_seconds']:.1f} s of timing, {result['cells']} cells, "
        f"{machine['threads']} thread(s), {machine['display_name']}, {result['began'][:10]} from "
        f"{result['began'][11:16]} to {result['created'][11:16]} UTC, puzzlebench {result['puzzlebench_version']} "
        f"({result['revision']}), torch {machine['torch']}; others took {result['others_share']:.0%} of the processors "
        f"(median). Band {result['band']:.0%}, rate {result['rate']:.0%}.",
        "",
        f"Sessions of the same code differ by {scatter['all_cells']:.1%} in all cells together (standard deviation), a "
        f"cell on its own by {scatter['typical_cell']:.1%} (median) to {scatter['worst_cell']:.1%} (worst). Intervals "
        f"of samples inside one process would call {inside['cells_wrong']:.0%} of the cells of two equal sessions "
        f"different, {inside['cells_wrong_beyond_band']:.0%} by more than the band, and fail "
        f"{inside['pairs_with_any_beyond_band']:.0%} of {inside['pairs']:.0f} pairs of sessions.",
        "",
        "Equal code, suites with a false alarm (a cell or the suite slower). Disjoint suites have the upper end of the "
        "95 % interval (Clopper and Pearson) beside them; windows that overlap share sessions and bound nothing. Less "
        "than 1 % is shown by about 370 disjoint suites without an alarm, and by no fewer.",
        "",
        "| pairs | suites | first look | after the second look | disjoint suites, first look | after the second look |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for suite in result["suites"]:
        equal = suite["equal"]
        shares = (equal[key] for key in ("alarms", "confirmed", "alarms_disjoint", "confirmed_disjoint"))
        lines.append(f"| {suite['pairs']} | {equal['suites']} | " + " | ".join(map(_share, shares)) + " |")
    lines += [
        "",
        "Slow-downs really planted, one cell by each factor at once, found at a first look / failed by the gate after "
        "its second, with 95 % intervals; a suite called slower there counts as a false alarm:",
        "",
    ]
    factors = list(result["suites"][0]["slowed"]["factors"])
    names = [f"{float(factor) - 1:.0%}" for factor in factors]
    lines += [
        "| pairs | half-width of a cell's interval | " + " | ".join(names) + " | false alarms beside them |",
        "| ---: | ---: |" + " ---: |" * (len(factors) + 1),
    ]
    for suite in result["suites"]:
        slowed = suite["slowed"]
        cells = [_found(slowed["factors"][factor]) for factor in factors]
        alarms = f"{_share(slowed['untouched_alarms'])} / {_share(slowed['untouched_confirmed'])}"
        row = [str(suite["pairs"]), f"{suite['equal']['half_width']:.1%}", *cells, alarms]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _share(one: Mapping[str, Any]) -> str:
    if not one["of"]:
        return "-"
    bound = "" if one["upper"] is None else f" (< {one['upper']:.1%})"
    return f"{one['suites']} of {one['of']}{bound}"


def _found(one: Mapping[str, Mapping[str, Any]]) -> str:
    return " / ".join(_power(one[which]) for which in one)


def _power(one: Mapping[str, Any]) -> str:
    if not one["of"]:
        return "-"
    low, high = one["interval"]
    return f"{one['found']} of {one['of']} ({low:.0%} to {high:.0%})"


def write_into(document: Path, text: str) -> None:
    """Put a text between the document's two marks.

    Raises:
        ValueError: the document cannot be read or has no marks.
    """
    try:
        before, rest = document.read_text(encoding="utf-8").split(BEGIN)
        after = rest.split(END)[1]
    except OSError as error:
        raise ValueError(f"cannot read {document}: {error.strerror}") from None
    except (ValueError, IndexError):
        raise ValueError(f"{document} does not have the lines {BEGIN!r} and {END!r} once each") from None
    write_text(document, f"{before}{BEGIN}\n\n{text}\n{END}{after}")
