"""Pictures of the choice: front, layers, scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from puzzlebench.model.blocks import GQA, GatedMLP, Linear, SubBlock, block_name
from puzzlebench.reporting.charts.front import ROOTED, axis_of, kind_of
from puzzlebench.reporting.charts.heat import heat_of
from puzzlebench.reporting.charts.layers import size
from puzzlebench.reporting.data import ReportData
from puzzlebench.reporting.describe import memory_name, metric_name, model_name, summary
from puzzlebench.reporting.palette import HEAT_LIGHT, LIGHT
from puzzlebench.reporting.pictures.canvas import canvas
from puzzlebench.reporting.scales import Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_front(data: ReportData) -> Figure | None:
    """Points, parent and chosen."""
    front, search = data.front, data.search
    if front is None:
        return None
    special = {} if search is None else {"parent": search.parent_values, "chosen": search.values}
    special = {name: values for name, values in special.items() if front.x in values and front.y in values}
    metric = "score" if data.scores is None else metric_name(data.scores.metric)
    xs = [point.x for point in front.points] + [values[front.x] for values in special.values()]
    ys = [point.y for point in front.points] + [values[front.y] for values in special.values()]
    x_unit, x_title = axis_of(front.x, front.x_better, xs, score_name=metric, memory_name=memory_name(data))
    y_unit, y_title = axis_of(front.y, front.y_better, ys, score_name=metric, memory_name=memory_name(data))
    foot = f"predicted; {front.provenance}. {ROOTED if kind_of(ys) == 'root' else ''}"
    figure, [axes] = canvas(f"{model_name(data)}: what could be had", foot, 7.2, 4.8)
    at = [(point.x / x_unit, point.y / y_unit) for point in front.points]
    axes.plot(*zip(*at, strict=True), color=LIGHT["line"], zorder=1)
    for point, (x, y) in zip(front.points, at, strict=True):
        face = LIGHT["attention"] if point.proven else "white"
        axes.scatter([x], [y], s=34, c=[face], edgecolors=[LIGHT["attention"]], zorder=2)
    looks = {"parent": ("s", LIGHT["parent"], LIGHT["parent"]), "chosen": ("o", "none", LIGHT["accent"])}
    for name, values in special.items():
        marker, face, edge = looks[name]
        x, y = values[front.x] / x_unit, values[front.y] / y_unit
        axes.scatter(
            [x],
            [y],
            marker=marker,
            s=110,
            c=[face],
            edgecolors=[edge],
            linewidths=2,
            zorder=3,
            label=name,
            clip_on=False,
        )
    axes.set_xlabel(x_title, fontsize=9)
    axes.set_ylabel(y_title, fontsize=9)
    if special:
        axes.legend(frameon=False, fontsize=9)
    if kind_of(xs) == "log":
        axes.set_xscale("log")
    if kind_of(ys) == "root":
        top = max(ys) / y_unit
        axes.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
        axes.set_yticks(Scale(low=0, high=top, start=0, end=1, kind="root").ticks(6))
        axes.set_ylim(0, 1.05 * top)
    return figure


def draw_layers(data: ReportData) -> Figure | None:
    """Attention up, FFN down, as on the page."""
    if data.search is None or data.parent is None:
        return None
    from matplotlib.ticker import MaxNLocator

    child, parent = data.search.architecture, data.parent
    width = min(max(5.0, 0.32 * len(child.blocks)), 14.0)
    figure, [axes] = canvas(f"{model_name(data)}: the chosen child", summary(child, parent), width, 3.4)
    for layer, (block, own) in enumerate(zip(child.blocks, parent.blocks, strict=True)):
        _bar(axes, layer, block.attention, own.attention, 1, LIGHT["attention"])
        _bar(axes, layer, block.ffn, own.ffn, -1, LIGHT["ffn"])
    axes.axhline(0, color="white", linewidth=3)
    axes.set_yticks([-0.5, 0.5], ["FFN", "attention"])
    axes.set_xlabel("layer (outline: the parent's; hatched: linear; cross: nothing)", fontsize=9)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _bar(axes: Axes, layer: int, sub: SubBlock, own: SubBlock, sign: int, colour: str) -> None:
    axes.bar(layer, sign, 0.78, facecolor=LIGHT["raised"], edgecolor=LIGHT["ghost"], linewidth=0.5)
    if isinstance(sub, Linear):
        axes.bar(layer, sign * 0.14, 0.78, facecolor="white", edgecolor=colour, hatch="/////", linewidth=0.8)
    elif isinstance(sub, GQA | GatedMLP):
        axes.bar(layer, sign * size(sub) / size(own), 0.78, color=colour)
    else:
        axes.plot([layer], [sign / 2], marker="x", color=LIGHT["muted"])


def draw_heat(data: ReportData) -> Figure | None:
    """A panel per kind of attention; chosen cells outlined."""
    if data.scores is None:
        return None
    from matplotlib.colors import BoundaryNorm, ListedColormap

    heat, metric = heat_of(data.scores), metric_name(data.scores.metric)
    if heat.ends is None:
        return None
    foot = f"{data.scores.metadata['source']}; white: no harm; outlined: chosen"
    tall = min(max(2.6, 0.2 * heat.layers + 1.6), 11.0)
    width = min(max(6.0, 0.22 * len(heat.attention) * len(heat.ffn)), 14.0)
    figure, panels = canvas(f"{metric} of the parent with one block replaced", foot, width, tall, len(heat.attention))
    colours, norm = ListedColormap(list(HEAT_LIGHT[1:])), BoundaryNorm(heat.bounds(), len(HEAT_LIGHT) - 1)
    for axes, attention in zip(panels, heat.attention, strict=True):
        values = np.full((heat.layers, len(heat.ffn)), np.nan)
        for (layer, name, ffn), harm in heat.harm.items():
            if name == attention and harm > 0:
                values[layer, heat.ffn.index(ffn)] = harm
        image = axes.imshow(values, cmap=colours, norm=norm, aspect="auto", interpolation="nearest")
        axes.set_title(attention, fontsize=9)
        axes.set_xticks(range(len(heat.ffn)), [name.removeprefix("mlp_") for name in heat.ffn], rotation=90)
        axes.tick_params(labelsize=6.5)
        axes.grid(visible=False)
        for layer, block in enumerate(() if data.search is None else data.search.architecture.blocks):
            name, _, ffn = block_name(block).partition("+")
            if name == attention and ffn in heat.ffn:
                from matplotlib.patches import Rectangle

                corner = (heat.ffn.index(ffn) - 0.5, layer - 0.5)
                axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=LIGHT["accent"], linewidth=1.6))
    panels[0].set_ylabel("layer", fontsize=9)
    bar = figure.colorbar(image, ax=panels, fraction=0.03, format="%.2g")
    bar.ax.tick_params(labelsize=7)
    return figure
