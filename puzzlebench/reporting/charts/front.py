"""The front of two aims with the chosen architecture and the parent. Points name their number for the page's script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from puzzlebench.reporting.charts.frame import mark, point, polyline, svg, text, x_axis, y_axis
from puzzlebench.reporting.markup import Html, tag
from puzzlebench.reporting.numbers import tick
from puzzlebench.reporting.scales import Kind, Scale, padded
from puzzlebench.searching.case_pool import SCORE
from puzzlebench.searching.pareto import Better, Front

_CHARACTER: Final = 7.4
ROOTED: Final = "The vertical axis goes by the square root."
_DECADES: Final = 12  # more than this between the ends, and the axis is logarithmic
_UNITS: Final[Mapping[str, tuple[tuple[float, str], ...]]] = {
    "memory": ((2.0**30, "GiB"), (2.0**20, "MiB")),
    "params": ((1e9, "billion parameters"), (1e6, "million parameters")),
    "throughput": ((1e3, "thousand tokens/s"), (1.0, "tokens/s")),
    "latency": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "ttft": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "tpot": ((1e-3, "ms"), (1e-6, "µs")),
}
_TITLES: Final = {
    "params": "size",
    "throughput": "throughput",
    "latency": "latency",
    "ttft": "time to first token",
    "tpot": "time per output token",
}


def axis_of(
    column: str, better: Better, values: list[float], *, score_name: str, memory_name: str
) -> tuple[float, str]:
    """What to divide a column's values by, and what its axis is called."""
    resource, _, scenario = column.partition("[")
    best = f"{'lower' if better == 'low' else 'higher'} is better"
    if resource == SCORE:
        return 1.0, f"{score_name}, sum over layers ({best})"
    units = _UNITS[resource]
    scale, unit = next((pair for pair in units if max(values) >= 2 * pair[0]), units[-1])
    where = f", {scenario.rstrip(']')}" if scenario else ""
    title = memory_name if resource == "memory" else _TITLES[resource]
    return scale, f"{title}{where}, {unit} ({best})"


def draw_front(
    front: Front,
    width: int,
    *,
    parent: Mapping[str, float],
    chosen: Mapping[str, float],
    tips: Mapping[str, str],
    score_name: str,
    memory_name: str,
) -> Html:
    """The picture.

    Args:
        parent: its values by column, empty where they are not known.
        chosen: the same of the chosen architecture.
        tips: what to say of "parent", "chosen" and each point by its number.
    """
    height = round(width * (0.66 if width > 500 else 0.95))
    left, right, top, bottom = 58, width - 16, 34, height - 46
    extra = [values for values in (parent, chosen) if front.x in values and front.y in values]
    xs = [one.x for one in front.points] + [values[front.x] for values in extra]
    ys = [one.y for one in front.points] + [values[front.y] for values in extra]
    x_unit, x_title = axis_of(front.x, front.x_better, xs, score_name=score_name, memory_name=memory_name)
    y_unit, y_title = axis_of(front.y, front.y_better, ys, score_name=score_name, memory_name=memory_name)
    x, y = _scale(xs, x_unit, left + 8, right), _scale(ys, y_unit, bottom, top)
    inside = [*sorted(front.points, key=lambda one: one.x)]
    places = [(x(one.x / x_unit), y(one.y / y_unit)) for one in inside]
    parts: list[Html] = [
        x_axis(x, top, bottom, tick, x_title, 5 if width > 500 else 4),
        y_axis(y, left, right, tick, y_title),
        polyline(places, "front-line"),
    ]
    for number, (one, (at, up)) in enumerate(zip(inside, places, strict=True)):
        parts.append(
            mark(
                tag("circle", cx=at, cy=up, r=_reach((at, up), places), class_="reach"),
                point(at, up, "dot" if one.proven else "ring", "front-point", 5.5),
                tip=tips[str(number)],
                column=number,
                data_shows=f"point-{number}",
            )
        )
    known = {
        name: (x(values[front.x] / x_unit), y(values[front.y] / y_unit))
        for name, values in (("parent", parent), ("chosen", chosen))
        if front.x in values and front.y in values
    }
    taken = list(places)
    for column, (name, mine) in enumerate(known.items(), start=len(inside)):
        others = [*taken, *(other for key, other in known.items() if key != name)]
        corner = _label_corner(name, mine, others, (62, width, bottom))
        taken += [(corner[0] + share * _CHARACTER * len(name), corner[1] - 4) for share in (0, 0.5, 1)]
        parts.append(_special(name, mine, tips[name], column, corner))
    return svg(width, height, *parts, label=f"Front: {y_title} over {x_title}", marks=True)


def _reach(at: tuple[float, float], places: Sequence[tuple[float, float]]) -> float:
    """How far from a point's middle a finger still means it: half way to the next, within reason."""
    nearest = min((math.dist(at, other) for other in places if other != at), default=math.inf)
    return min(max(nearest / 2, 7.0), 14.0)


def _special(name: str, at: tuple[float, float], tip: str, column: int, corner: tuple[float, float]) -> Html:
    x, y = at
    if name == "chosen":
        shape = tag("circle", cx=x, cy=y, r=9.5, class_="open chosen-ring")
        inner: Html | None = point(x, y, "dot", "accent", 4.5)
    else:
        shape = tag("rect", x=x - 6, y=y - 6, width=12, height=12, class_="solid parent")
        inner = None
    return mark(
        tag("circle", cx=x, cy=y, r=14, class_="reach"),
        shape,
        inner,
        text(*corner, name, class_=f"label {name}"),
        tip=tip,
        column=column,
        data_shows=name,
        class_=name,
    )


def _label_corner(
    name: str,
    at: tuple[float, float],
    others: Sequence[tuple[float, float]],
    ends: tuple[float, float, float],
) -> tuple[float, float]:
    """Where a name begins: of the places beside its mark the first that is far from all else.

    Args:
        others: what is not to be covered.
        ends: of the plot: left, right and bottom.
    """
    x, y = at
    left, right, bottom = ends
    wide = _CHARACTER * len(name)

    def room(corner: tuple[float, float]) -> float:
        start, base = corner
        if not left < start < start + wide < right or not 10 < base < bottom - 4:
            return -1.0
        places = (start, start + wide / 2, start + wide)
        return min(math.hypot(place - other, base - 4 - high) for other, high in others for place in places)

    ups = (16, -8, 4, 30, -24, -40)
    beside = [(x + 16, y + up) for up in ups] + [(x - 16 - wide, y + up) for up in ups]
    return max([*beside, (x - wide / 2, y - 20), (x - wide / 2, y + 28)], key=lambda corner: min(room(corner), 26.0))


def kind_of(values: Sequence[float]) -> Kind:
    """Logarithmic where values lie far apart, or by the root where some of them are 0 (the parent's score often is)."""
    highest = max(values)
    if min(values) > 0:
        return "log" if highest > _DECADES * min(values) else "straight"
    ordered = sorted(values)
    return "root" if ordered[0] == 0 and highest > _DECADES * ordered[len(ordered) // 2] else "straight"


def _scale(values: Sequence[float], unit: float, start: float, end: float) -> Scale:
    kind, scaled = kind_of(values), [value / unit for value in values]
    low, high = padded(scaled, kind=kind)
    return Scale(low=low, high=high, start=start, end=end, kind=kind)
