"""What a child keeps: per task and overall, with intervals, from the stored results of both. Runs no model.

Retention is child over parent, and parent over child where less is better; overall it is the mean over the tasks asked
for, as the paper has it (arXiv 2411.19146). A group with an aggregate of its own, such as mmlu, is one task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from puzzlebench.evaluation.metrics import is_better_higher, main_metric, metric_label
from puzzlebench.evaluation.pairing import differing_settings
from puzzlebench.evaluation.records import Retention, TaskRetention
from puzzlebench.evaluation.statistics import RESAMPLES, Estimate, Numbers, interval, mcnemar, ratios
from puzzlebench.evaluation.stored import Side, StoredTask
from puzzlebench.evaluation.task_rows import DrawnRow, kept, task_row


def compare(
    parent: Side,
    child: Side,
    tasks: Sequence[str],
    *,
    metrics: Mapping[str, str] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Retention:
    """What the child keeps of the parent.

    Args:
        tasks: names of tasks and groups in both results; none of them: all that both have.
        metrics: instead of the main one, by task.
        seed: of the resamples.

    Raises:
        ValueError: a side lacks a task, or the sides did not get the same documents or shots.
    """
    names = list(tasks) or _all_tasks(parent, child)
    wanted = dict(metrics or {})
    found: list[DrawnRow] = []
    for name in names:
        found += _task_or_group(parent, child, name, wanted, seed, resamples)
    rows = [one.row.task for one in found]
    if unknown := sorted(set(wanted) - set(rows)):
        raise ValueError(f"a metric is given for {unknown[0]}, which is none of the tasks: {', '.join(rows)}")
    notes = [note for one in found for note in one.notes]
    shown = _leaves(parent, names)
    notes = differing_settings(parent, child, shown) + notes
    overall, left_out = _overall(found)
    if left_out:
        notes.append(f"not in the overall retention, which needs a ratio: {', '.join(left_out)}")
    versions = {str(side.tasks[shown[0]].header.get("lm_eval_version")) for side in (parent, child)}
    return Retention(
        parent=parent,
        child=child,
        overall=overall,
        tasks=tuple(one.row for one in found),
        lm_eval_version=" and ".join(sorted(versions)),
        notes=tuple(dict.fromkeys(notes)),
    )


def _all_tasks(parent: Side, child: Side) -> list[str]:
    """Tasks and groups that both have, and that are in no group with an aggregate."""
    both = [name for name in parent.tasks if name in child.tasks]
    inner = {name for group in both if parent.tasks[group].metrics for name in _descendants(parent, group)}
    names = [name for name in both if name not in inner and parent.tasks[name].metrics]
    if not names:
        raise ValueError(f"{parent.source} and {child.source} have no task in common")
    return names


def _descendants(side: Side, name: str) -> list[str]:
    """All names below a group."""
    inner = [one for one in side.tasks[name].children if one in side.tasks]
    return inner + [deeper for one in inner for deeper in _descendants(side, one)]


def _leaves(side: Side, names: Sequence[str]) -> list[str]:
    """The tasks themselves, of tasks and groups."""
    found = []
    for name in names:
        below = [one for one in _descendants(side, name) if not side.tasks[one].children]
        found += below if side.tasks[name].children else [name]
    return list(dict.fromkeys(found))


def _task_or_group(
    parent: Side, child: Side, name: str, wanted: dict[str, str], seed: int, resamples: int
) -> list[DrawnRow]:
    group, other = parent.task(name), child.task(name)
    if not group.children:
        return [task_row(group, other, wanted.get(name), seed, resamples)]
    if group.metrics:
        return [_one_group(parent, child, name, wanted, seed, resamples)]
    return [row for one in group.children for row in _task_or_group(parent, child, one, wanted, seed, resamples)]


def _one_group(parent: Side, child: Side, name: str, wanted: dict[str, str], seed: int, resamples: int) -> DrawnRow:
    """A group by its own aggregate, where that is a mean of its tasks."""
    own, other = parent.task(name), child.task(name)
    metric = main_metric(own, wanted.get(name))
    better = is_better_higher(own, metric)
    leaves = _leaves(parent, [name])
    inner = [task_row(parent.task(leaf), child.task(leaf), metric, seed, resamples) for leaf in leaves]
    rows = [one.row for one in inner]
    notes = [note for one in inner for note in one.notes]
    weights = _weights(own, [parent.task(leaf) for leaf in leaves], inner, metric)
    drawn = None
    if weights is None:
        values = float(own.aggregates[metric]), float(other.aggregates[metric])
        notes.append(f"{name}: its aggregate is no mean of its tasks that is known here, so it has no interval")
    else:
        values = float(weights @ [row.parent for row in rows]), float(weights @ [row.child for row in rows])
        tasks = [one.drawn for one in inner if one.drawn is not None]
        if len(tasks) == len(inner):
            drawn = weights @ np.stack([one[0] for one in tasks]), weights @ np.stack([one[1] for one in tasks])
    gap = values[1] - values[0]
    lost, gained = (sum(flips) for flips in zip(*((row.lost or 0, row.gained or 0) for row in rows), strict=True))
    binary = all(row.binary for row in rows)
    row = TaskRetention(
        task=name,
        metric=metric_label(metric),
        higher_is_better=better,
        parent=values[0],
        child=values[1],
        retention=kept(values, drawn, better),
        difference=Estimate(value=gap) if drawn is None else interval(gap, drawn[1] - drawn[0]),
        documents=sum(row.documents for row in rows),
        binary=binary,
        mcnemar_p=mcnemar(lost, gained) if binary else None,
        lost=lost if binary else None,
        gained=gained if binary else None,
        subtasks=tuple(rows),
    )
    counts = sum(one.documents[0] for one in inner), sum(one.documents[1] for one in inner)
    return DrawnRow(row=row, drawn=drawn, documents=counts, notes=tuple(notes))


def _weights(group: StoredTask, leaves: Sequence[StoredTask], inner: Sequence[DrawnRow], metric: str) -> Numbers | None:
    """What each task counts in a group's aggregate: by its documents, or all alike, whichever gives the stored one."""
    if any(one.row.metric != metric_label(metric) for one in inner):  # the logarithm of a perplexity
        return None
    stored = [float(leaf.aggregates[metric]) for leaf in leaves]
    own = np.array([one.documents[0] for one in inner], dtype=np.float64)
    both = np.array([one.row.documents for one in inner], dtype=np.float64)
    for found, used in ((own, both), (np.ones(len(inner)), np.ones(len(inner)))):
        if np.isclose(found @ stored / found.sum(), float(group.aggregates[metric]), rtol=1e-6):
            weights: Numbers = used / used.sum()
            return weights
    return None


def _overall(found: Sequence[DrawnRow]) -> tuple[Estimate, list[str]]:
    """The mean over the tasks whose retention has a meaning, and the names of the others."""
    used = [one for one in found if one.row.retention.value is not None]
    left_out = [one.row.task for one in found if one.row.retention.value is None]
    if not used:
        return Estimate(value=None), left_out
    mean = float(np.mean([one.row.retention.value for one in used]))
    if any(one.drawn is None for one in used):
        return Estimate(value=mean), left_out
    drawn = [ratios(*one.drawn, higher_is_better=one.row.higher_is_better) for one in used if one.drawn is not None]
    return interval(mean, np.mean(drawn, axis=0)), left_out
