"""One page of a comparison that opens anywhere and asks nobody: a plot of every ratio, and the numbers under it.

Style, script and palette are the report's. What a colour says, a shape says too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from importlib import resources
from typing import Final, Literal

from puzzlebench.comparing.comparison import CellVerdict, Comparison, Verdict
from puzzlebench.comparing.words import (
    HOW_TO_READ,
    amount,
    basis_line,
    change,
    change_with_interval,
    headline,
    more_sessions,
    probability,
    suite_line,
)
from puzzlebench.reporting.charts.frame import line, mark, point, svg, text, whisker, x_axis
from puzzlebench.reporting.markup import Html, join, responsive, tag
from puzzlebench.reporting.palette import style_variables
from puzzlebench.reporting.scales import Scale
from puzzlebench.reporting.sections.parts import details, facts, figure, legend, section, swatch, table

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
_STYLE: Final = (
    ".warn{color:var(--warn)}.ghost-mark{color:var(--ghost)}.band{fill:var(--raised)}"
    ".slower{color:var(--warn);font-weight:620}td code,th code{font-size:.94em}"
    ".note{overflow-wrap:anywhere}#reading dl{margin-top:24px}"
)
_MARKS: Final[dict[Verdict, tuple[Literal["dot", "ring", "diamond"], str, float]]] = {
    "SLOWER": ("dot", "warn", 5),
    "FASTER": ("diamond", "accent", 4),
    "AMBIGUOUS": ("ring", "ends", 4),
    "SAME": ("dot", "ghost-mark", 2.5),
}
"""Form, colour and size."""
_ROW: Final = 19
_REACH: Final = (0.5, 2.0)
"""Ratios further away would leave no room for the others: their marks stand at the edge, their tips say the number."""


def render_comparison(
    comparison: Comparison, *, title: str = "Benchmarks", base: str = "BASE", new: str = "NEW"
) -> str:
    """The page; nothing in it is fetched from anywhere, and its policy forbids it.

    Args:
        base, new: what the two results are called: revisions, or files.
    """
    files = resources.files("puzzlebench.reporting")
    style = style_variables() + (files / "style.css").read_text(encoding="utf-8") + _STYLE
    top = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width,initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{title}: {new} against {base}"),
        tag("style", Html(style)),
    )
    sections = {"ratios": ("Ratios", _ratios), "cells": ("Cells", _cells), "reading": ("Reading", _reading)}
    links = [tag("li", tag("a", words, href=f"#{anchor}")) for anchor, (words, _) in sections.items()]
    menu = tag(
        "nav",
        tag("a", "puzzlebench", href="#top", class_="brand"),
        tag("ul", *links),
        tag("button", "Dark", type="button", id="theme", hidden=True, aria_label="Switch between light and dark"),
        aria_label="Sections",
    )
    head = tag(
        "header",
        tag("p", title, class_="eyebrow"),
        tag("h1", new, " against ", base),
        tag("p", f"{headline(comparison)}. {suite_line(comparison)}.", class_="story"),
        id="top",
        style="padding:56px 0 0",
    )
    body = tag(
        "body",
        menu,
        tag("main", head, *(draw(comparison, anchor) for anchor, (_, draw) in sections.items())),
        tag("div", id="tip", role="tooltip", hidden=True),
        tag("script", Html((files / "script.js").read_text(encoding="utf-8"))),
    )
    return f'<!doctype html>\n<html lang="en">{top}{body}</html>\n'


def _ratios(comparison: Comparison, anchor: str) -> Html:
    known = [(swatch(point(11, 7, *how)), str(verdict)) for verdict, how in _MARKS.items()]
    known.append((swatch(tag("rect", width=22, height=14, class_="band")), "the band"))
    if comparison.suite is not None and not comparison.relative:
        known.append((swatch(line(11, 0, 11, 14, "whisker ends")), "the suite"))
    about = " relative to the suite" if comparison.relative else ""
    return section(
        anchor,
        "Ratios",
        figure(responsive(partial(draw_ratios, comparison))),
        legend(known),
        lede=f"Each cell's change{about} with its 95 % interval over sessions; right of the line is slower.",
    )


def draw_ratios(comparison: Comparison, width: int) -> Html:
    """The picture: one line for every cell under its group, the suite first."""
    narrow = width < 500
    left = 8 if narrow else 350
    ends = [end for cell in comparison.cells for end in _ends(comparison, cell)]
    edge = max([abs(math.log(end)) for end in ends] + [1.6 * math.log1p(comparison.band)]) * 1.06
    scale = Scale(low=math.exp(-edge), high=math.exp(edge), start=left, end=width - 16, kind="straight")
    parts: list[Html | None] = []
    top = 8.0
    for group, cells in _groups(comparison):
        parts.append(text(0, top + 14, group, class_="strong"))
        top += _ROW + 2
        for cell in cells:
            name = cell.name.partition("/")[2] or cell.name
            room = 48
            shown = name if len(name) <= room else f"{name[: room - 1]}…"
            y = top + 10 + (14 if narrow else 0)
            parts.append(text(10, top + 14, shown, class_="tick"))
            parts.append(_mark(comparison, cell, scale, y, row=len(parts)))
            top += _ROW + (14 if narrow else 0)
        top += 8
    band = [scale(side) for side in (1 / (1 + comparison.band), 1 + comparison.band)]
    below = [
        tag("rect", x=band[0], y=4, width=band[1] - band[0], height=top - 4, class_="band"),
        x_axis(scale, 4, top, _tick, "change", 4 if narrow else 6),
        line(scale(1.0), 4, scale(1.0), top, "reference"),
    ]
    if comparison.relative or comparison.suite is None:
        moved = None
    else:
        at = scale(min(max(comparison.suite.ratio.value, scale.low), scale.high))
        moved = mark(line(at, 4, at, top, "whisker ends"), tip=suite_line(comparison), row=0)
    return svg(width, top + 44, *below, moved, *parts, label="Change of every cell with its interval", marks=True)


def _groups(comparison: Comparison) -> list[tuple[str, list[CellVerdict]]]:
    """Groups with the cells in them, those with the largest ratio first; the group with the largest first."""
    found: dict[str, list[CellVerdict]] = {}
    for cell in sorted(comparison.cells, key=lambda cell: _size(comparison, cell), reverse=True):
        found.setdefault(cell.name.partition("/")[0], []).append(cell)
    return list(found.items())


def _size(comparison: Comparison, cell: CellVerdict) -> float:
    value = comparison.judged(cell).value
    return value if math.isfinite(value) else 0.0


def _ends(comparison: Comparison, cell: CellVerdict) -> list[float]:
    judged = comparison.judged(cell)
    known = [end for end in (judged.value, judged.low, judged.high) if math.isfinite(end) and end > 0]
    return [min(max(end, _REACH[0]), _REACH[1]) for end in known]


def _mark(comparison: Comparison, cell: CellVerdict, scale: Scale, y: float, *, row: int) -> Html | None:
    judged = comparison.judged(cell)
    if not math.isfinite(judged.value):
        return None
    shape, colour, size = _MARKS[cell.verdict]
    at = scale(min(max(judged.value, scale.low), scale.high))
    tip = [cell.name, f"{cell.verdict}, {change_with_interval(judged)}, p {probability(cell.p)}"]
    tip += [f"{amount(cell.base, cell.unit)} to {amount(cell.new, cell.unit)}"]
    tip += [f"its own ratio {change_with_interval(cell.ratio)}"] if comparison.relative else []
    return mark(whisker(scale, judged, y, colour), point(at, y, shape, colour, size), tip="\n".join(tip), row=row)


def _tick(ratio: float) -> str:
    return "0" if abs(ratio - 1) < 1e-9 else f"{100 * (ratio - 1):+g} %"


def _cells(comparison: Comparison, anchor: str) -> Html:
    relative = ["relative to the suite"] if comparison.relative else []
    heads = ["cell", "verdict", "", "base", "new", "change", *relative, "p"]
    parts: list[Html] = []
    groups: tuple[tuple[Verdict, ...], ...] = (("SLOWER", "FASTER"), ("AMBIGUOUS",), ("SAME",))
    for verdicts in groups:
        rows = [_row(comparison, cell) for verdict in verdicts for cell in comparison.of(verdict)]
        if rows:
            shown = table(heads, rows, label=f"Cells that are {' or '.join(verdicts)}", text_columns=3)
            parts.append(shown if len(verdicts) > 1 else details(f"{len(rows)} {verdicts[0]}", shown))
    names = [(comparison.missing, "Missing in NEW"), (comparison.appeared, "Only in NEW")]
    parts += [tag("p", f"{what}: {', '.join(found)}", class_="note") for found, what in names if found]
    return section(anchor, "Cells", *parts, lede=f"{basis_line(comparison)}.")


def _row(comparison: Comparison, cell: CellVerdict) -> Sequence[object]:
    verdict = tag("span", cell.verdict, class_="slower") if cell.verdict == "SLOWER" else cell.verdict
    times = amount(cell.base, cell.unit), amount(cell.new, cell.unit)
    relative = [change_with_interval(cell.relative)] if comparison.relative else []
    changed = change_with_interval(cell.ratio)
    return [tag("code", cell.name), verdict, more_sessions(cell), *times, changed, *relative, probability(cell.p)]


def _reading(comparison: Comparison, anchor: str) -> Html:
    pairs = [(f"revision of {side}", revision or "unknown") for side, revision in _sides(comparison)]
    if comparison.suite is not None:
        pairs.append(("suite", f"{change(comparison.suite.ratio.value)}, {comparison.suite.verdict}"))
    pairs += [("differs", label) for label in comparison.labels] or [
        ("machine and versions", "the same, as far as known")
    ]
    pairs += [("note", note) for note in comparison.notes]
    words = join(tag("p", sentence, class_="note") for sentence in HOW_TO_READ)
    return section(anchor, "How to read this", words, facts(pairs))


def _sides(comparison: Comparison) -> Sequence[tuple[str, str | None]]:
    return list(zip(("BASE", "NEW"), comparison.revisions, strict=True))
