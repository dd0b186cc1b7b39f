"""Values with intervals as dots on a common scale: speeds, and what a child keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from puzzlebench.estimate import Interval
from puzzlebench.reporting.charts.frame import line, mark, point, svg, text, whisker, x_axis
from puzzlebench.reporting.markup import Html
from puzzlebench.reporting.scales import Scale, padded

_LINE: Final = 19


@dataclass(frozen=True, kw_only=True, slots=True)
class Dot:
    """One value of a row.

    Attributes:
        colour: a class of the style sheet.
        tip: what to say when it is pointed at.
        note: beside it, for what needs no pointing.
    """

    value: Interval
    shape: Literal["dot", "ring", "diamond"]
    colour: str
    tip: str
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A name and its values, one under the other."""

    name: str
    dots: tuple[Dot, ...]


def draw_dots(
    rows: Sequence[Row],
    width: int,
    *,
    label: str,
    title: str,
    write: Callable[[float], str],
    from_zero: bool,
    reference: float | None = None,
    left: int = 62,
    names_above: bool = False,
) -> Html:
    """The picture.

    Args:
        title: of the axis.
        from_zero: the axis begins at 0.
        reference: where a line stands.
        left: pixels for the rows' names.
        names_above: names stand over their rows, for narrow windows.
    """
    if names_above:
        left = 8
    known = [end for row in rows for dot in row.dots for end in (dot.value.value, dot.value.low, dot.value.high)]
    known += [] if reference is None else [reference]
    low, high = padded([end for end in known if math.isfinite(end)], zero=from_zero, share=0.08)
    notes = max((len(dot.note) for row in rows for dot in row.dots), default=0) * 6.8
    scale = Scale(low=low, high=high, start=left, end=width - 12 - notes)
    above = 18 if names_above else 0
    heights = [above + len(row.dots) * _LINE + 12 for row in rows]
    bottom = 8 + sum(heights)
    parts: list[Html | None] = [x_axis(scale, 6, bottom, write, title, 5 if width > 400 else 4)]
    if reference is not None:
        parts.append(line(scale(reference), 6, scale(reference), bottom, "reference"))
    top = 8.0
    for place, (row, height) in enumerate(zip(rows, heights, strict=True)):
        middle = top + 14 if names_above else top + (height - 12) / 2 + 10
        parts.append(text(0, middle, row.name, class_="tick strong"))
        for column, dot in enumerate(row.dots):
            y = top + above + column * _LINE + 15
            if not math.isfinite(dot.value.value):
                continue
            x = scale(dot.value.value)
            parts.append(
                mark(
                    whisker(scale, dot.value, y, dot.colour),
                    point(x, y, dot.shape, dot.colour),
                    text(max(x, scale(min(dot.value.high, high)) if math.isfinite(dot.value.high) else x) + 10, y + 4,
                         dot.note, class_="tick") if dot.note else None,
                    tip=dot.tip,
                    row=place * 8 + column,
                )
            )  # fmt: skip
        top += height
    return svg(width, bottom + 42, *parts, label=label, marks=True)
