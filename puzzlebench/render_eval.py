"""Print what a child keeps, for people. Computes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from puzzlebench.render import console

_SUBTASKS = 12


def print_retention(stated: Mapping[str, Any], path: Path) -> None:
    """The tasks of a retention.json, their mean, and what to know about them.

    Args:
        stated: what the file holds.
        path: where it is.
    """
    out = console()
    parent, child = (stated[side]["name"] for side in ("parent", "child"))
    table = Table(title=f"{child} against {parent}, lm-eval {stated['lm_eval_version']}", title_justify="left")
    table.add_column("task", overflow="fold")
    for name in ("docs", "parent", "child", "retention, %", "difference", "lost/gained", "p"):
        table.add_column(name, justify="right")
    for row in stated["tasks"]:
        table.add_row(*_cells(row, row["task"]))
        for inner in row["subtasks"][:_SUBTASKS]:
            table.add_row(*_cells(inner, f"  {inner['task']}"))
        if len(row["subtasks"]) > _SUBTASKS:
            table.add_row(f"  ... and {len(row['subtasks']) - _SUBTASKS} more")
    table.add_section()
    overall = stated["overall"]
    table.add_row("overall", "", "", "", _percent(overall["retention"], overall["low"], overall["high"]))
    out.print(table)
    for line in (*_notes(stated), f"wrote {path}; lm-eval's results and samples lie beside it"):
        out.print(line, highlight=False, soft_wrap=True)


def _cells(row: Mapping[str, Any], name: str) -> list[str]:
    metric = row["metric"] + ("" if row["higher_is_better"] else ", less is better")
    lost = "-" if row["lost"] is None else f"{row['lost']}/{row['gained']}"
    return [
        f"{name}\n  {metric}",
        f"{row['documents']:,}",
        f"{row['parent']:.4f}",
        f"{row['child']:.4f}",
        _percent(row["retention"], row["retention_low"], row["retention_high"]),
        _interval(row["difference"], row["difference_low"], row["difference_high"], "{:+.3g}"),
        lost,
        "-" if row["mcnemar_p"] is None else f"{row['mcnemar_p']:.2g}",
    ]


def _notes(stated: Mapping[str, Any]) -> list[str]:
    notes = ["intervals are of 95 % over documents, paired; overall: mean of the tasks' retention"]
    if any(row["mcnemar_p"] is not None for row in stated["tasks"]):
        notes.append("lost: right to wrong, gained: wrong to right; p: exact McNemar test that both are as likely")
    for row in stated["tasks"]:
        if row["chance"] is not None:
            above = [row[f"retention_above_chance{end}"] for end in ("", "_low", "_high")]
            told = "the parent is not above it"
            if above[0] is not None:
                told = f"{_percent(*above)} % of what is above is kept".replace("\n", ", ")
            notes.append(f"{row['task']}: guessing reaches {row['chance']:.3g}; {told}")
    return [*notes, *stated["notes"]]


def _percent(value: float | None, low: float | None, high: float | None) -> str:
    value, low, high = (None if one is None else 100 * one for one in (value, low, high))
    return _interval(value, low, high, "{:.1f}")


def _interval(value: float | None, low: float | None, high: float | None, form: str) -> str:
    if value is None:
        return "-"
    if low is None or high is None:
        return form.format(value)
    return f"{form.format(value)}\n{form.format(low)} to {form.format(high)}"
