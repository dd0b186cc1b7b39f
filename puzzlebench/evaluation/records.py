"""What an evaluation ends with: a row per task, and the mean. Computes nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from puzzlebench.evaluation.statistics import Estimate
from puzzlebench.evaluation.stored import Side


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRetention:
    """One task, or a group with its own aggregate.

    Attributes:
        parent, child: the metric; on the documents that both have.
        difference: child minus parent.
        documents: that both have.
        mcnemar_p, lost, gained: of binary metrics; lost went from right to wrong.
        chance: what guessing reaches, of multiple choice.
        above_chance: retention of what is above chance; None where the parent is not.
        subtasks: of a group.
    """

    task: str
    metric: str
    higher_is_better: bool
    parent: float
    child: float
    retention: Estimate
    difference: Estimate
    documents: int
    binary: bool = False
    mcnemar_p: float | None = None
    lost: int | None = None
    gained: int | None = None
    chance: float | None = None
    above_chance: Estimate | None = None
    subtasks: tuple[TaskRetention, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """All tasks, and their mean.

    Attributes:
        overall: the mean of the tasks' retention.
        notes: what the reader should know, a line each.
    """

    parent: Side
    child: Side
    overall: Estimate
    tasks: tuple[TaskRetention, ...]
    lm_eval_version: str | None
    notes: tuple[str, ...] = ()


def retention_json(found: Retention) -> dict[str, Any]:
    """As JSON, without version and date."""
    return {
        "lm_eval_version": found.lm_eval_version,
        "parent": _side_json(found.parent),
        "child": _side_json(found.child),
        "overall": {"retention": found.overall.value, "low": found.overall.low, "high": found.overall.high},
        "tasks": [_row_json(row) for row in found.tasks],
        "notes": list(found.notes),
    }


def _side_json(side: Side) -> dict[str, Any]:
    return {"name": side.name, "source": side.source, "fingerprint": side.fingerprint}


def _row_json(row: TaskRetention) -> dict[str, Any]:
    stated = {name: value for name, value in asdict(row).items() if name not in ("subtasks", "above_chance")}
    for name in ("retention", "difference"):
        estimate: Estimate = getattr(row, name)
        stated |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    above = row.above_chance or Estimate(value=None)
    stated["retention_above_chance"] = above.value
    stated |= {"retention_above_chance_low": above.low, "retention_above_chance_high": above.high}
    return stated | {"subtasks": [_row_json(one) for one in row.subtasks]}
