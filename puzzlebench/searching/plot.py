"""A picture of a front, as PNG or SVG. Needs matplotlib; searches nothing and counts nothing."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from puzzlebench.files import check_file, replacing
from puzzlebench.searching.case_pool import SCORE
from puzzlebench.searching.pareto import Better, Front
from puzzlebench.searching.quantities import format_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES: Final = (".png", ".svg")
_INCHES: Final = (7.5, 5.2)
_DECADES = 20  # more than this between the ends of x, and its axis is logarithmic
_DPI: Final = 160
_FOOT_WIDTH: Final = 150  # characters of the small print in a line
_UNITS: Final[dict[str, tuple[tuple[float, str], ...]]] = {
    "memory": ((2.0**30, "GiB"), (2.0**20, "MiB")),
    "params": ((1e9, "B parameters"), (1e6, "M parameters")),
    "throughput": ((1.0, "tokens/s"),),
    "latency": ((1.0, "s"), (1e-3, "ms")),
    "ttft": ((1.0, "s"), (1e-3, "ms")),
    "tpot": ((1e-3, "ms"),),
}
"""By resource, large units first."""
_TITLES: Final = {
    "memory": "memory per GPU",
    "params": "size",
    "latency": "latency",
    "ttft": "time to first token",
    "tpot": "time per output token",
}


def check_plot(path: Path) -> None:
    """Whether a picture can be written, before the work that it is to show.

    Raises:
        ValueError: the file's suffix is neither .png nor .svg, its folder does not exist, or matplotlib is missing.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"cannot draw {path}: a plot's file ends in {' or '.join(SUFFIXES)}")
    check_file(path)
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ValueError("plots need matplotlib: pip install 'puzzlebench[plots]'") from None


def plot_front(front: Front, path: Path, *, title: str, parent: Mapping[str, float] | None = None) -> None:
    """Draw the front; the file appears whole or not at all.

    Args:
        path: ends in .png or .svg.
        title: above the picture.
        parent: values by column, as `FrontPoint.values`, where known also "batch_size"; marked by a star if both aims
            are among them, by a line if one is.

    Raises:
        ValueError: as `check_plot`, or the file cannot be written.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    x_scale, x_label = _scale(front.x, front.x_better, [point.x for point in front.points])
    y_scale, y_label = _scale(front.y, front.y_better, [point.y for point in front.points])
    _draw_points(axes, front, x_scale, y_scale)
    if parent is not None:
        _mark_parent(axes, front, parent, x_scale, y_scale)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        title="batch size", fontsize=8, title_fontsize=8, alignment="left", frameon=False, loc="outside right center"
    )
    xs = [point.x for point in front.points]
    if front.x != SCORE and max(xs) > _DECADES * min(xs):
        axes.set_xscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        if max(abs(end) for end in axis.get_view_interval()) >= 1000:
            axis.set_major_formatter("{x:,.0f}")
    figure.supxlabel(_foot(front), fontsize=6.5, color="0.35", x=0.01, ha="left")
    with replacing(path) as part:
        figure.savefig(part, format=path.suffix.lower().lstrip("."))


def _scale(column: str, better: Better, values: list[float]) -> tuple[float, str]:
    """What to divide values by, and the axis label."""
    resource, bracket, scenario = column.partition("[")
    where = f", {scenario.rstrip(']')}" if bracket else ""
    direction = f"{'lower' if better == 'low' else 'higher'} is better"
    if resource == SCORE:
        return 1.0, f"score ({direction})"
    units = _UNITS[resource]
    scale, unit = next((pair for pair in units if max(values) >= pair[0]), units[-1])
    return scale, f"{_TITLES.get(resource, resource)}{where} [{unit}] ({direction})"


def _draw_points(axes: Axes, front: Front, x_scale: float, y_scale: float) -> None:
    """A marker for each point in its batch size's colour, hollow where it is not proven, on a thin line."""
    from matplotlib import colormaps

    xs, ys = [point.x / x_scale for point in front.points], [point.y / y_scale for point in front.points]
    axes.plot(xs, ys, color="0.75", linewidth=1, zorder=1)
    sizes = sorted({point.batch_size for point in front.points})
    for place, size in enumerate(sizes):
        colour = colormaps["viridis"](0.9 * place / max(len(sizes) - 1, 1))
        mine = [at for at, point in enumerate(front.points) if point.batch_size == size]
        faces = [colour if front.points[at].proven else "white" for at in mine]
        axes.scatter(
            [xs[at] for at in mine],
            [ys[at] for at in mine],
            s=34,
            c=faces,
            edgecolors=[colour],
            linewidths=1.2,
            zorder=2,
        )
        axes.scatter([], [], s=34, color=[colour], label=str(size))
    if not front.proven:
        axes.scatter([], [], s=34, c="white", edgecolors="0.3", label="not proven")


def _mark_parent(axes: Axes, front: Front, parent: Mapping[str, float], x_scale: float, y_scale: float) -> None:
    name = f"parent, batch {parent['batch_size']:.0f}" if "batch_size" in parent else "parent"
    at = {
        "x": parent[front.x] / x_scale if front.x in parent else None,
        "y": parent[front.y] / y_scale if front.y in parent else None,
    }
    if at["x"] is not None and at["y"] is not None:
        axes.scatter([at["x"]], [at["y"]], marker="*", s=190, c="none", edgecolors="crimson", zorder=3, label=name)
    elif at["x"] is not None:
        label = f"{name}:\n{format_value(front.x, parent[front.x])}"
        axes.axvline(at["x"], color="crimson", linestyle="--", linewidth=1, label=label)
    elif at["y"] is not None:
        label = f"{name}:\n{format_value(front.y, parent[front.y])}"
        axes.axhline(at["y"], color="crimson", linestyle="--", linewidth=1, label=label)


def _foot(front: Front) -> str:
    proven = sum(point.proven for point in front.points)
    said = "each proven" if front.proven else f"{proven} of them proven"
    text = f"{front.provenance}. {len(front.points)} points, {said}."
    return "\n".join(textwrap.wrap(text, _FOOT_WIDTH))
