"""What the child keeps of the parent on tasks: retention.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from puzzlebench.estimate import Interval
from puzzlebench.reporting.documents import number


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRetention:
    """One task: 1 keeps all.

    Attributes:
        retained: child over parent, or the other way round where low values are good.
        difference: child less parent, in the metric.
        above_chance: the same less what guessing gets in both; not a number where guessing gets nothing.
        mcnemar_p, lost, gained: of tasks with right and wrong answers; lost were right before.
    """

    task: str
    metric: str
    higher_is_better: bool
    parent: float
    child: float
    retained: Interval
    above_chance: Interval
    difference: Interval
    documents: int
    mcnemar_p: float | None
    lost: int | None
    gained: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """All tasks of one child, and the mean of them."""

    overall: Interval
    tasks: tuple[TaskRetention, ...]
    stated: Mapping[str, Any]


def parse_retention(stated: Mapping[str, Any]) -> Retention:
    """The document as values."""
    overall = stated["overall"]
    return Retention(
        overall=Interval(value=number(overall["retention"]), low=number(overall["low"]), high=number(overall["high"])),
        tasks=tuple(_task(row) for row in stated["tasks"]),
        stated=stated,
    )


def _task(row: Mapping[str, Any]) -> TaskRetention:
    def ends(name: str) -> Interval:
        return Interval(
            value=number(row.get(name)), low=number(row.get(f"{name}_low")), high=number(row.get(f"{name}_high"))
        )

    return TaskRetention(
        task=str(row["task"]),
        metric=str(row["metric"]),
        higher_is_better=bool(row["higher_is_better"]),
        parent=number(row["parent"]),
        child=number(row["child"]),
        retained=ends("retention"),
        above_chance=ends("retention_above_chance"),
        difference=ends("difference"),
        documents=int(row["documents"]),
        mcnemar_p=_optional(row["mcnemar_p"]),
        lost=None if row["lost"] is None else int(row["lost"]),
        gained=None if row["gained"] is None else int(row["gained"]),
    )


def _optional(value: object) -> float | None:
    return None if value is None else number(value)
