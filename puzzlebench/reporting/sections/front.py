"""The front of what can be had, with the architecture of each point."""

from __future__ import annotations

from collections.abc import Mapping

from puzzlebench.model.blocks import Architecture
from puzzlebench.reporting.charts.frame import point
from puzzlebench.reporting.charts.front import ROOTED, draw_front, kind_of
from puzzlebench.reporting.charts.layers import draw_layers
from puzzlebench.reporting.data import ReportData
from puzzlebench.reporting.describe import broken_by_parent, limits_words, memory_name, metric_name, summary
from puzzlebench.reporting.markup import NARROW, Html, responsive, tag
from puzzlebench.reporting.numbers import quantity
from puzzlebench.reporting.sections.parts import absent, details, figure, legend, section, swatch, table
from puzzlebench.searching.pareto import Front

_CHART = 610
_TITLES = {
    "score": "score",
    "params": "parameters",
    "memory": "memory",
    "ttft": "to first token",
    "tpot": "per token",
    "latency": "latency",
    "throughput": "throughput",
}


def front_section(data: ReportData) -> Html:
    """The chart, the pictures beside it and the table of all points."""
    title = "Choosing the architecture"
    if data.front is None:
        return section("front", title, absent("search/front.json", "the search", data.passed_over))
    front, search = data.front, data.search
    points = sorted(front.points, key=lambda one: one.x)
    parent = {} if search is None else search.parent_values
    chosen = {} if search is None else search.values
    batches = {str(number): one.batch_size for number, one in enumerate(points)}
    architectures: dict[str, Architecture] = {str(number): one.architecture for number, one in enumerate(points)}
    values: dict[str, Mapping[str, float]] = {str(number): one.values for number, one in enumerate(points)}
    if search is not None:
        batches |= {"parent": search.batch_size, "chosen": search.batch_size}
        architectures |= {"chosen": search.architecture} | ({} if data.parent is None else {"parent": data.parent})
        values |= {"parent": parent, "chosen": chosen}
    tips = {
        name: _tip(front, name, values[name], batches[name], architectures.get(name), data.parent) for name in values
    }
    metric = "score" if data.scores is None else metric_name(data.scores.metric)
    picture = responsive(
        lambda width: draw_front(
            front, width, parent=parent, chosen=chosen, tips=tips, score_name=metric, memory_name=memory_name(data)
        ),
        _CHART,
    )
    ys = [one.y for one in points] + [found[front.y] for found in (parent, chosen) if front.y in found]
    note = ROOTED if kind_of(ys) == "root" else None
    pane = None
    if data.parent is not None:
        first = "chosen" if "chosen" in architectures else "0"
        order = [first, *(name for name in architectures if name != first)]
        pane = tag(
            "div",
            *(
                _shown(front, name, values[name], batches[name], architectures[name], data.parent, hidden=name != first)
                for name in order
            ),
            class_="pane",
            aria_live="polite",
        )
    return section(
        "front",
        title,
        tag("div", figure(picture, note), pane, class_="beside"),
        legend(
            (
                (swatch(point(11, 7, "dot", "front-point", 5)), "the best for its budget, proven"),
                (swatch(point(11, 7, "ring", "front-point", 5)), "the best found, not proven"),
                (
                    swatch(
                        tag("circle", cx=11, cy=7, r=6, class_="open chosen-ring"), point(11, 7, "dot", "accent", 3)
                    ),
                    "chosen",
                ),
                (swatch(tag("rect", x=5, y=1, width=12, height=12, class_="solid parent")), "parent"),
            )
        ),
        details("All points as a table", _table(front)),
        lede=(
            f"Each point is an architecture and a batch size: nothing that was scored is better in one aim without "
            f"being worse in the other. {_asked(data)}"
        ),
        kinds=("predicted",),
    )


def _asked(data: ReportData) -> str:
    if data.search is None:
        return ""
    proof = "proven best" if data.search.proven else "the best that was found in time"
    words = f"Chosen under: {limits_words(data.search)}; {proof} at batch {data.search.batch_size}."
    broken = broken_by_parent(data.search)
    return f"{words} The parent itself does not keep the limit on {' and '.join(broken)}." if broken else words


def _name(name: str) -> str:
    return {"parent": "The parent", "chosen": "The chosen child"}.get(name) or f"Point {int(name) + 1}"


def _lines(front: Front, values: Mapping[str, float], batch_size: int) -> list[tuple[str, str]]:
    columns = dict.fromkeys((front.x, front.y, *values))
    shown = [column for column in columns if column in values][:6]
    return [("batch size", str(batch_size)), *((_title(column), quantity(column, values[column])) for column in shown)]


def _tip(
    front: Front,
    name: str,
    values: Mapping[str, float],
    batch_size: int,
    architecture: Architecture | None,
    parent: Architecture | None,
) -> str:
    lines = [f"{title}: {value}" for title, value in _lines(front, values, batch_size)[:5]]
    if architecture is not None and parent is not None:
        lines.append(summary(architecture, parent))
    return "\n".join([_name(name), *lines])


def _shown(
    front: Front,
    name: str,
    values: Mapping[str, float],
    batch_size: int,
    architecture: Architecture,
    parent: Architecture,
    *,
    hidden: bool,
) -> Html:
    label = f"Layers of {_name(name).lower()}"
    pairs = _lines(front, values, batch_size)
    return tag(
        "figure",
        tag("h3", _name(name)),
        tag("p", summary(architecture, parent), class_="note"),
        draw_layers(architecture, parent, NARROW, height=48, label=label, tips=False),
        tag("dl", *(tag("div", tag("dt", title), tag("dd", value)) for title, value in pairs), class_="pairs"),
        data_for=name if name in ("parent", "chosen") else f"point-{name}",
        hidden=hidden or None,
    )


def _title(column: str) -> str:
    resource, _, scenario = column.partition("[")
    return _TITLES.get(resource, resource) + (f", {scenario.rstrip(']')}" if scenario else "")


def _table(front: Front) -> Html:
    points = sorted(front.points, key=lambda one: one.x)
    columns = list(dict.fromkeys((front.x, front.y, *points[0].values)))
    rows = [
        [number + 1, one.batch_size, *(quantity(column, one.values[column]) for column in columns),
         "yes" if one.proven else "no"]
        for number, one in enumerate(points)
    ]  # fmt: skip
    return table(["point", "batch", *map(_title, columns), "proven"], rows, label="Points of the front")
