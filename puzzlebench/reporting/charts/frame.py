"""What charts share: the SVG element, axes with grid, points and intervals, and marks that can be pointed at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from puzzlebench.estimate import Interval
from puzzlebench.reporting.markup import Html, join, tag
from puzzlebench.reporting.scales import Scale


def svg(width: float, height: float, *children: object, label: str, marks: bool = False) -> Html:
    """The element. Charts with marks are groups for screen readers, others one picture."""
    return tag(
        "svg",
        *children,
        viewbox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="group" if marks else "img",
        aria_label=label,
        data_marks=marks or None,
    )


def text(x: float, y: float, words: object, *, anchor: str = "start", class_: str | None = None) -> Html:
    """Words at a point."""
    return tag("text", words, x=x, y=y, text_anchor=None if anchor == "start" else anchor, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def mark(*children: object, tip: str, row: int = 0, column: int = 0, **attributes: object) -> Html:
    """A group that has a tip when pointed at or focused; arrow keys go by row and column.

    Without script the tip is the title that browsers show.
    """
    name = attributes.pop("class_", "")
    return tag(
        "g", tag("title", tip), *children, class_=f"mark {name}".strip(), data_row=row, data_column=column, **attributes
    )


def x_axis(scale: Scale, top: float, bottom: float, write: Callable[[float], str], title: str, about: int = 6) -> Html:
    """Grid lines up, numbers and a title under the axis."""
    parts = []
    for value in scale.ticks(about):
        parts.append(line(scale(value), top, scale(value), bottom, "grid"))
        parts.append(text(scale(value), bottom + 16, write(value), anchor="middle", class_="tick"))
    return join([*parts, text(scale.end, bottom + 35, title, anchor="end", class_="axis")])


def y_axis(scale: Scale, left: float, right: float, write: Callable[[float], str], title: str, about: int = 5) -> Html:
    """Grid lines across, numbers left of the axis, the title above it."""
    parts = [text(0, scale.end - 12, title, class_="axis")]
    for value in scale.ticks(about):
        parts.append(line(left, scale(value), right, scale(value), "grid"))
        parts.append(text(left - 8, scale(value) + 4, write(value), anchor="end", class_="tick"))
    return join(parts)


def whisker(scale: Scale, value: Interval, y: float, class_: str, size: float = 4) -> Html | None:
    """An interval with ends, lying; None where it is not known."""
    if not (math.isfinite(value.low) and math.isfinite(value.high)):
        return None
    low, high = (scale(min(max(end, scale.low), scale.high)) for end in (value.low, value.high))
    path = f"M{low:.2f} {y:.2f}H{high:.2f}M{low:.2f} {y - size:.2f}v{2 * size:g}M{high:.2f} {y - size:.2f}v{2 * size:g}"
    return tag("path", d=path, class_=f"whisker {class_}")


def point(x: float, y: float, kind: Literal["dot", "ring", "diamond"], class_: str, size: float = 5) -> Html:
    """A filled dot, a ring, or an open diamond (what is predicted)."""
    if kind == "diamond":
        side = size * 1.25
        return tag(
            "path",
            d=f"M{x:.2f} {y - side:.2f}l{side:g} {side:g}l{-side:g} {side:g}l{-side:g} {-side:g}z",
            class_=f"open {class_}",
        )
    return tag("circle", cx=x, cy=y, r=size, class_=f"{'solid' if kind == 'dot' else 'open'} {class_}")


def polyline(points: Sequence[tuple[float, float]], class_: str) -> Html:
    """A line through points."""
    return tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)
