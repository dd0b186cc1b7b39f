"""Pictures of results: time by part, speed, what was kept, losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from puzzlebench.profiling.block_costs import PHASES
from puzzlebench.reporting.charts.curves import COLOURS, thinned
from puzzlebench.reporting.data import ReportData
from puzzlebench.reporting.describe import gpu_name, model_name, scenario_words
from puzzlebench.reporting.numbers import quantity, signed_percent, time_unit
from puzzlebench.reporting.palette import LIGHT
from puzzlebench.reporting.pictures.canvas import canvas, interval_bars
from puzzlebench.reporting.speeds import MEASURES, TITLES
from puzzlebench.reporting.time_by_part import PARTS, whole
from puzzlebench.reporting.time_by_part import TITLES as PART_TITLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_bars(data: ReportData) -> Figure | None:
    """Prefill and decode by part."""
    costs, search = data.costs, data.search
    if costs is None or search is None or costs.parent_times is None or costs.child_times is None:
        return None
    foot = (
        f"predicted from the cost table of {gpu_name(data)}; {scenario_words(search.scenarios[0], search.batch_size)}"
    )
    figure, panels = canvas(f"{model_name(data)}: where the time goes", foot, 9, 2.4, 2)
    for axes, phase in zip(panels, PHASES, strict=True):
        both = {"child": costs.child_times[phase], "parent": costs.parent_times[phase]}
        scale, unit = time_unit(1e3 * max(whole(parts).value for parts in both.values()))
        for name, parts in both.items():
            left = 0.0
            for part in PARTS:
                spent = parts[part].value * 1e3 / scale
                axes.barh(name, spent, left=left, color=LIGHT[part], edgecolor="white", label=PART_TITLES[part])
                left += spent
            axes.annotate(
                f" {quantity('latency', whole(parts).value)}", (left, name), va="center", fontsize=8, color=LIGHT["ink"]
            )
        axes.set_xlabel(f"{phase}, {unit}", fontsize=9)
        axes.margins(x=0.18)
        axes.set_xlim(left=0)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles[: len(PARTS)], labels[: len(PARTS)], ncols=3, fontsize=8, frameon=False, loc="upper right")
    return figure


def draw_speed(data: ReportData) -> Figure | None:
    """Measured and predicted times of all models."""
    speed = data.speed
    if speed is None:
        return None
    foot = f"{speed.stated['device']}, {speed.stated['engine']} {speed.stated['engine_version']}; {speed.scenario_text}"
    if speed.other_setup:
        foot += "; the cost table is of another device, engine or number format"
    figure, panels = canvas("Predicted and measured", foot, 9, 1.6 + 0.6 * len(speed.models), len(MEASURES))
    for axes, measure in zip(panels, MEASURES, strict=True):
        scale, unit = time_unit(max(one.milliseconds[measure].value for one in speed.models))
        for place, taken in enumerate(speed.models):
            colour = LIGHT["accent"] if place else LIGHT["parent"]
            found = taken.milliseconds[measure].scaled(1 / scale)
            axes.errorbar(found.value, -place, xerr=interval_bars(found), fmt="o", color=colour, capsize=3)
            error = speed.error(taken.model, measure)
            if error is not None:
                said = speed.predicted[taken.model].milliseconds[measure].scaled(1 / scale)
                axes.errorbar(
                    said.value, -place - 0.25, xerr=interval_bars(said), fmt="D", color=colour, mfc="white", capsize=3
                )
                axes.annotate(
                    signed_percent(error), (said.value, -place - 0.25), (8, -12), textcoords="offset points", fontsize=7
                )
        axes.set_yticks([-place - 0.12 for place in range(len(speed.models))], [one.model for one in speed.models])
        axes.set_ylim(-len(speed.models) + 0.35, 0.4)
        axes.set_xlim(left=0)
        axes.set_title(TITLES[measure], fontsize=9)
        axes.set_xlabel(f"{unit} (dot: measured, diamond: predicted)", fontsize=8)
    return figure


def draw_retention(data: ReportData) -> Figure | None:
    """Percent of the parent kept, before and after distillation."""
    states = [
        (when, found, face)
        for when, found, face in (
            ("before distillation", data.realised, "white"),
            ("after distillation", data.distilled, LIGHT["accent"]),
        )
        if found is not None
    ]
    if not states:
        return None
    tasks = list(dict.fromkeys(task.task for _, found, _ in states for task in found.tasks))
    names = ["mean over tasks", *tasks]
    foot = f"measured, lm-eval {states[-1][1].stated['lm_eval_version']}; 95 % intervals"
    figure, [axes] = canvas("What the child kept", foot, 7.2, 1.6 + 0.45 * len(names))
    for place, (when, found, face) in enumerate(states):
        values = [(0, found.overall), *((names.index(task.task), task.retained) for task in found.tasks)]
        for row, value in values:
            axes.errorbar(
                100 * value.value,
                -row - 0.22 * place,
                xerr=interval_bars(value.scaled(100)),
                fmt="o",
                color=LIGHT["accent"],
                mfc=face,
                capsize=3,
                label=when if row == 0 else None,
            )
    axes.axvline(100, color=LIGHT["parent"], linestyle="--", linewidth=1.2)
    axes.set_yticks([-row - 0.11 for row in range(len(names))], names)
    axes.set_xlabel("percent of the parent kept", fontsize=9)
    figure.legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
    return figure


def draw_losses(data: ReportData) -> Figure | None:
    """Losses over steps."""
    found = data.distillation
    if found is None or not found.curves:
        return None
    figure, [axes] = canvas(
        "Global distillation", f"{found.tokens:,} tokens; lines: training batches, dots: held-out text", 7.2, 4.2
    )
    lines = ("-", "--", ":", "-.", (0, (8, 3)))
    for place, curve in enumerate(found.curves):
        look = min(place, len(COLOURS) - 1)
        colour, line = LIGHT[COLOURS[look]], thinned(curve.training)
        axes.plot(
            *([step for step, _ in line], [value for _, value in line]),
            color=colour,
            linestyle=lines[look],
            label=curve.name.replace("_", " "),
        )
        axes.plot(
            *([step for step, _ in curve.held_out], [value for _, value in curve.held_out]), "o", color=colour, ms=4
        )
    if all(value > 0 for curve in found.curves for _, value in (*curve.training, *curve.held_out)):
        axes.set_yscale("log")
    axes.set_xlabel("optimiser step", fontsize=9)
    axes.set_ylabel("loss", fontsize=9)
    axes.legend(frameon=False, fontsize=9)
    return figure
