"""One task of both sides: its metric, what differs, what is kept, and the resamples that others need. Runs no model."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from puzzlebench.evaluation.metrics import Column, column_of, is_better_higher, main_metric, metric_label
from puzzlebench.evaluation.pairing import Joined, check_same_task, join
from puzzlebench.evaluation.records import TaskRetention
from puzzlebench.evaluation.statistics import (
    Estimate,
    Numbers,
    Pairs,
    difference,
    interval,
    mcnemar,
    ratio,
    ratios,
    resample,
)
from puzzlebench.evaluation.stored import StoredTask


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnRow:
    """A task and what groups and the mean over tasks need of it.

    Attributes:
        drawn: the metric of both on the resamples, [B] each; None where its documents do not give it.
        documents: that each side has.
        notes: what the reader should know, a line each.
    """

    row: TaskRetention
    drawn: tuple[Numbers, Numbers] | None
    documents: tuple[int, int]
    notes: tuple[str, ...] = ()


def task_row(own: StoredTask, other: StoredTask, wanted: str | None, seed: int, resamples: int) -> DrawnRow:
    """One task of the parent and the child.

    Raises:
        ValueError: the two cannot be compared, or lack the wanted metric.
    """
    check_same_task(own, other)
    metric = main_metric(own, wanted)
    main_metric(other, metric)  # it has that too
    better = is_better_higher(own, metric)
    joined = join(own, other, metric)
    columns = [
        column_of(task, metric, [sample.values.get(metric.partition(",")[0]) for sample in samples.values()])
        for task, samples in ((own, joined.parent), (other, joined.child))
    ]
    if columns[0] is None or columns[1] is None or columns[0].label != columns[1].label:
        return _without_documents(own, other, metric, better, joined)
    return _from_columns(own.name, better, joined, columns[0], columns[1], seed, resamples)


def _from_columns(
    name: str, better: bool, joined: Joined, parent: Column, child: Column, seed: int, resamples: int
) -> DrawnRow:
    first, second = joined.places
    if not np.array_equal(parent.size[first], child.size[second]):
        raise ValueError(f"{name}: the sides count the same documents as of different lengths")
    pairs = Pairs(
        parent=parent.numerator[first],
        child=child.numerator[second],
        size=parent.size[first],
        binary=parent.binary and child.binary,
    )
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])  # the same whatever the other tasks are
    drawn = resample(pairs, generator, resamples) if len(pairs.parent) > 1 else None
    values = pairs.values
    flips = pairs.flips if pairs.binary else None
    chance = joined.chance if pairs.binary and better else None
    above = None
    if chance is not None and drawn is not None and values[0] > chance:
        excess = ratios(drawn[0] - chance, drawn[1] - chance, higher_is_better=True)
        above = interval((values[1] - chance) / (values[0] - chance), excess)
    row = TaskRetention(
        task=name,
        metric=parent.label,
        higher_is_better=better,
        parent=values[0],
        child=values[1],
        retention=kept(values, drawn, better),
        difference=difference(pairs),
        documents=len(pairs.parent),
        binary=pairs.binary,
        mcnemar_p=None if flips is None else mcnemar(*flips),
        lost=None if flips is None else flips[0],
        gained=None if flips is None else flips[1],
        chance=chance,
        above_chance=above,
    )
    return DrawnRow(row=row, drawn=drawn, documents=(len(joined.parent), len(joined.child)), notes=joined.notes)


def kept(values: tuple[float, float], drawn: tuple[Numbers, Numbers] | None, higher_is_better: bool) -> Estimate:
    """The retention of a metric of parent and child, with the interval of its resamples where there are some."""
    value = ratio(*values, higher_is_better=higher_is_better)
    return (
        Estimate(value=value) if drawn is None else interval(value, ratios(*drawn, higher_is_better=higher_is_better))
    )


def _without_documents(own: StoredTask, other: StoredTask, metric: str, better: bool, joined: Joined) -> DrawnRow:
    """A metric that is no sum over documents, such as F1: the aggregates as they are stored, without intervals."""
    if not joined.complete:
        raise ValueError(f"{own.name}: {metric} cannot be taken on the documents that both sides have")
    try:
        values = float(own.aggregates[metric]), float(other.aggregates[metric])
    except (TypeError, ValueError):
        raise ValueError(f"{own.file}: {metric} of {own.name} is no number") from None
    row = TaskRetention(
        task=own.name,
        metric=metric_label(metric),
        higher_is_better=better,
        parent=values[0],
        child=values[1],
        retention=kept(values, None, better),
        difference=Estimate(value=values[1] - values[0]),
        documents=len(joined.places[0]),
    )
    note = f"{own.name}: {row.metric} is no mean over documents that is known here, so it has no interval"
    counts = len(joined.parent), len(joined.child)
    return DrawnRow(row=row, drawn=None, documents=counts, notes=(*joined.notes, note))
