"""Figures and axes in the page's colours, on white."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final

from puzzlebench.estimate import Interval
from puzzlebench.reporting.palette import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_CHARACTERS: Final = 18  # of the small print in an inch


def canvas(title: str, foot: str, width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of inches with a title, small print under it, and plain axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=12, x=0.01, ha="left", color=LIGHT["ink"], fontweight="bold")
    figure.supxlabel(
        textwrap.fill(foot, round(_CHARACTERS * width)), fontsize=7, x=0.01, ha="left", color=LIGHT["muted"]
    )
    found = list(figure.subplots(1, columns, squeeze=False)[0])
    for axes in found:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(LIGHT["line"])
        axes.tick_params(color=LIGHT["line"], labelcolor=LIGHT["muted"], labelsize=8)
        axes.grid(color=LIGHT["line"], linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, found


def interval_bars(value: Interval) -> list[list[float]]:
    """What matplotlib's error bars take, never negative."""
    return [[max(value.value - value.low, 0.0)], [max(value.high - value.value, 0.0)]]
