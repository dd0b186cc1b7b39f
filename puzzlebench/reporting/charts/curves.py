"""Losses over the steps of distillation: lines on batches, dots on held-out text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from puzzlebench.reporting.charts.frame import mark, point, polyline, svg, text, x_axis, y_axis
from puzzlebench.reporting.losses import Curve
from puzzlebench.reporting.markup import Html
from puzzlebench.reporting.numbers import digits, tick
from puzzlebench.reporting.scales import Kind, Scale, padded

COLOURS: Final = ("accent", "attention", "ffn", "term3", "ends")
_MOST: Final = 300  # points of a line
_APART: Final = 15  # pixels between names at the lines' ends


def draw_curves(curves: Sequence[Curve], width: int) -> Html:
    """The picture; the losses' axis is logarithmic where all are above 0."""
    height = round(width * (0.42 if width > 500 else 0.8))
    names = max(len(curve.name) for curve in curves) * 7.6 + 16
    left, right, top, bottom = 52, width - names, 34, height - 46
    values = [value for curve in curves for _, value in (*curve.training, *curve.held_out)]
    steps = [step for curve in curves for step, _ in (*curve.training, *curve.held_out)]
    kind: Kind = "log" if min(values) > 0 else "straight"
    low, high = padded(values, kind=kind)
    x = Scale(low=min(steps), high=max(max(steps), min(steps) + 1), start=left + 6, end=right)
    y = Scale(low=low, high=high, start=bottom, end=top, kind=kind)
    parts: list[Html] = [
        x_axis(x, top, bottom, tick, "optimiser step", 6 if width > 500 else 4),
        y_axis(y, left, right, tick, "loss" + (", logarithmic" if kind == "log" else "")),
    ]
    ends = []
    for place, curve in enumerate(curves):
        colour = COLOURS[min(place, len(COLOURS) - 1)]
        if curve.training:
            line = [(x(step), y(value)) for step, value in thinned(curve.training)]
            parts.append(polyline(line, f"curve dash{place} {colour}"))
        for column, ((step, value), length) in enumerate(zip(curve.held_out, curve.lengths, strict=True)):
            rows = "" if length is None else f", rows of {length:,} tokens"
            tip = f"{curve.name}, held out{rows}\nstep {step:,}: {digits(value)}"
            parts.append(mark(point(x(step), y(value), "dot", colour, 4), tip=tip, row=place, column=column))
        last = (curve.held_out or curve.training)[-1:]
        ends += [(y(value), curve.name, colour) for _, value in last]
    at = 0.0
    for up, name, colour in sorted(ends):
        at = max(up, at + _APART)
        parts.append(text(right + 10, at + 4, _words(name), class_=f"label text-{colour}"))
    return svg(width, height, *parts, label="Losses of global distillation", marks=True)


def thinned(points: Sequence[tuple[int, float]], most: int = _MOST) -> list[tuple[float, float]]:
    """At most that many points: means of as many neighbours as it takes."""
    size = math.ceil(len(points) / most)
    groups = [points[first : first + size] for first in range(0, len(points), max(size, 1))]
    return [tuple(sum(parts) / len(group) for parts in zip(*group, strict=True)) for group in groups]


def _words(name: str) -> str:
    return name.replace("_", " ")
