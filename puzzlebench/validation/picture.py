"""Predicted against measured time per output token: the report half, by engine and GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from puzzlebench.validation.serving import PredictedRun, engine_label

_COLOURS: Final = {"h100_sxm": "#4269d0", "h200_sxm": "#d97706", "b200_sxm": "#3ca951"}
_OTHER: Final = "#6b7280"
_MARKERS: Final = "os^Dv"
_SPREAD: Final = 1.1  # the grey band: 10 % either way


def require_matplotlib() -> None:
    """Before long work that ends in a picture.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ValueError("the picture needs matplotlib: pip install 'puzzlebench[plots]'") from None


def draw_serving(predicted: Sequence[PredictedRun], path: Path, *, split: str = "report") -> None:
    """Write an SVG file, the same one for the same runs.

    Raises:
        ValueError: matplotlib is not installed, there is no such run, or the file cannot be written.
    """
    require_matplotlib()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    shown = [one for one in predicted if one.run.split == split]
    if not shown:
        raise ValueError(f"no run of the {split} half was predicted")
    engines = sorted({engine_label(one.run) for one in shown})
    times = [one.run.tpot_ms for one in shown] + [one.steady.tpot_ms for one in shown]
    ends = [min(times) / 1.15, max(times) * 1.15]
    with mpl.rc_context({"svg.hashsalt": "puzzlebench", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(6.4, 5.6), layout="constrained")
        axes = figure.subplots()
        axes.fill_between(
            ends, [end / _SPREAD for end in ends], [end * _SPREAD for end in ends], color="#e5e7eb", linewidth=0
        )
        axes.plot(ends, ends, color="#9ca3af", linewidth=0.8)
        for place, engine in enumerate(engines):
            for gpu in sorted({one.run.gpu for one in shown if engine_label(one.run) == engine}):
                mine = [one for one in shown if (engine_label(one.run), one.run.gpu) == (engine, gpu)]
                axes.scatter(
                    [one.run.tpot_ms for one in mine],
                    [one.steady.tpot_ms for one in mine],
                    s=16,
                    marker=_MARKERS[place % len(_MARKERS)],
                    facecolors="none",
                    edgecolors=_COLOURS.get(gpu, _OTHER),
                    linewidths=0.9,
                    label=f"{engine}, {gpu} ({len(mine)})",
                )
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        axes.set_xlabel("measured time per output token, ms")
        axes.set_ylabel("predicted, ms")
        axes.set_title(f"{split} half, {len(shown)} runs; band: 10 % either way", loc="left", fontsize=9)
        ticks = [tick for tick in (2, 3, 5, 10, 20, 30, 50, 100, 200) if ends[0] <= tick <= ends[1]]
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(ticks, labels=[str(tick) for tick in ticks])
            axis.set_ticks([], minor=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left")
        try:
            figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
        except OSError as error:
            raise ValueError(f"cannot write {path}: {error.strerror}") from None
