"""What the child keeps of the parent, before and after global distillation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from puzzlebench.reporting.charts.dots import Dot, Row, draw_dots
from puzzlebench.reporting.charts.frame import point
from puzzlebench.reporting.data import ReportData
from puzzlebench.reporting.markup import Html, responsive, tag
from puzzlebench.reporting.numbers import NOTHING, digits, percent, probability, spread, tick
from puzzlebench.reporting.retention import Retention, TaskRetention
from puzzlebench.reporting.sections.parts import absent, figure, legend, section, swatch, table

_OVERALL = "mean over tasks"


def quality_section(data: ReportData) -> Html:
    """A chart and a table of tasks."""
    title = "What it kept"
    states: list[tuple[str, Retention, Literal["dot", "ring"]]] = []
    if data.realised is not None:
        states.append(("before distillation", data.realised, "ring"))
    if data.distilled is not None:
        states.append(("after distillation", data.distilled, "dot"))
    if not states:
        return section("quality", title, absent("evaluation/distilled/retention.json", "evaluation", data.passed_over))
    names = list(dict.fromkeys(task.task for _, found, _ in states for task in found.tasks))
    rows = []
    for name in (_OVERALL, *names):
        dots = []
        for when, found, shape in states:
            task = next((one for one in found.tasks if one.task == name), None)
            value = found.overall if name == _OVERALL else None if task is None else task.retained
            if value is not None:
                tip = f"{_short(name)}, {when}\n{percent(value.value)} kept\n95 % interval {spread(value, percent)}"
                dots.append(Dot(value=value.scaled(100), shape=shape, colour="accent", tip=tip))
        rows.append(Row(name=_short(name), dots=tuple(dots)))
    left = max(len(row.name) for row in rows) * 7 + 12

    def draw(width: int) -> Html:
        return draw_dots(
            rows,
            width,
            label="Kept by task, before and after distillation",
            title="percent of the parent kept",
            write=tick,
            from_zero=False,
            reference=100.0,
            left=left,
            names_above=width < 500,
        )

    samples = [(swatch(point(11, 7, shape, "accent", 4.5)), f"{when}, 95 % interval") for when, _, shape in states]
    return section(
        "quality",
        title,
        figure(responsive(draw)),
        legend([*samples, (swatch(tag("line", x1=11, y1=0, x2=11, y2=14, class_="reference")), "the parent")]),
        _table([(when, found) for when, found, _ in states]),
        tag(
            "p",
            "↑ high values are good, ↓ low ones. Kept: child over parent, or parent over child for ↓. Above "
            "chance: kept of what is better than guessing. Lost: answers that the parent has right and the child "
            "wrong; gained: the other way round; p: McNemar's test of the two.",
            class_="note",
        ),
        lede=_lede(data, states[-1][1]),
        kinds=("measured",),
    )


def _lede(data: ReportData, last: Retention) -> str:
    documents = sum(task.documents for task in last.tasks)
    harness = last.stated.get("lm_eval_version")
    words = f"{len(last.tasks)} tasks, {documents:,} documents, scored by lm-eval {harness} for parent and child alike."
    if data.distilled is None:
        words += " The child was not distilled as a whole, or not evaluated after it."
    elif data.realised is None:
        words += " It was not evaluated before distillation."
    return words


def _table(states: Sequence[tuple[str, Retention]]) -> Html:
    rows: list[list[object]] = []
    for when, found in states:
        rows.append([when.capitalize()])
        rows += [[_short(task.task), *_cells(task)] for task in found.tasks]
        overall = [percent(found.overall.value), spread(found.overall, percent)]
        rows.append([_OVERALL, *[""] * 3, *overall, *[""] * 5])
    heads = ["task", "metric", "parent", "child", "kept", "95 % interval", "above chance", "documents"]
    heads += ["lost", "gained", "p"]
    return table(heads, rows, label="Tasks before and after distillation", text_columns=2)


def _cells(task: TaskRetention) -> list[object]:
    return [
        f"{task.metric} {'↑' if task.higher_is_better else '↓'}",
        digits(task.parent),
        digits(task.child),
        percent(task.retained.value),
        spread(task.retained, percent),
        percent(task.above_chance.value),
        f"{task.documents:,}",
        NOTHING if task.lost is None else task.lost,
        NOTHING if task.gained is None else task.gained,
        NOTHING if task.mcnemar_p is None or math.isnan(task.mcnemar_p) else probability(task.mcnemar_p),
    ]


def _short(task: str) -> str:
    return task.removeprefix("puzzlebench_").replace("_", " ")
