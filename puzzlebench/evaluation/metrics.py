"""Which metric of a task counts, and what each document adds to it.

How lm-eval puts documents together to a metric is not in its files, so the ways it knows are tried, and the one that
gives the aggregate in the file is it. No other is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from puzzlebench.evaluation.statistics import Numbers
from puzzlebench.evaluation.stored import StoredTask

_FIRST: Final = ("acc_norm", "acc", "exact_match", "bits_per_byte")
_TOLERANCE: Final = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A metric as a sum over a sum.

    Attributes:
        label: of the metric; that of a perplexity says that its logarithm is taken.
        numerator, size: [N] each, a document's share of the metric and what it is divided by.
        binary: numerators are 0 and 1, sizes 1.
    """

    label: str
    numerator: Numbers
    size: Numbers
    binary: bool


def main_metric(task: StoredTask, wanted: str | None = None) -> str:
    """The metric that counts, as "metric,filter": the wanted one, else acc_norm, acc, exact_match or bits_per_byte,
    else the task's first.

    Raises:
        ValueError: the task has no metric, or not the wanted one.
    """
    names = task.metrics
    if not names:
        raise ValueError(f"{task.file}: {task.name} has no metric")
    if wanted is not None:
        found = [name for name in names if wanted in (name, name.partition(",")[0])]
        if not found:
            known = ", ".join(metric_label(name) for name in names)
            raise ValueError(f"{task.name} has no metric {wanted!r}; it has {known}")
        return found[0]
    for first in (*_FIRST, *task.better):
        for name in names:
            if name.partition(",")[0] == first:
                return name
    return names[0]


def metric_label(metric: str) -> str:
    """A "metric,filter" without the filter that is none."""
    return metric.removesuffix(",none")


def is_better_higher(task: StoredTask, metric: str) -> bool:
    """Whether higher is better.

    Raises:
        ValueError: the result does not say.
    """
    found = task.better.get(metric.partition(",")[0])
    if found is None:
        raise ValueError(f"{task.file} does not say whether higher {metric_label(metric)} of {task.name} is better")
    return bool(found)


def column_of(task: StoredTask, metric: str, values: Sequence[Any]) -> Column | None:
    """What each of all documents of a result adds to its metric; None if no known way gives the stored aggregate.

    Perplexities are taken as their logarithm: bits per word, byte or document.
    """
    stored, label = task.aggregates[metric], metric_label(metric)
    numbers = [_numbers(value) for value in values]
    if not values or any(row is None for row in numbers) or len({len(row or ()) for row in numbers}) != 1:
        return None
    try:
        target = float(stored)
    except (TypeError, ValueError):
        return None
    table = np.asarray(numbers, dtype=np.float64)
    if table.shape[1] == 1:
        value, one = table[:, 0], np.ones(len(table))
        mean = float(value.mean())
        if _close(mean, target):
            return Column(label=label, numerator=value, size=one, binary=bool(np.isin(value, (0.0, 1.0)).all()))
        if _close(_exp(-mean), target):
            return Column(label=f"log2 {label}", numerator=-value / math.log(2), size=one, binary=False)
        return None
    if table.shape[1] == 2 and (table[:, 1] > 0).all():
        value, size = table[:, 0], table[:, 1]
        bits, mean = -value / math.log(2), float(value.sum() / size.sum())
        for name, numerator, aggregate in (
            (label, bits, -mean / math.log(2)),
            (f"log2 {label}", bits, _exp(-mean)),
            (label, value, mean),
        ):
            if _close(aggregate, target):
                return Column(label=name, numerator=numerator, size=size, binary=False)
    return None


def _numbers(value: Any) -> tuple[float, ...] | None:
    """One number or a pair of numbers; lm-eval writes what JSON does not know as text."""
    if isinstance(value, (list, tuple)):
        parts = [_numbers(part) for part in value]
        if len(parts) != 2 or any(part is None or len(part) != 1 for part in parts):
            return None
        return tuple(part[0] for part in parts if part is not None)
    if isinstance(value, str) and value in ("True", "False"):
        return (float(value == "True"),)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return (number,) if math.isfinite(number) else None


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=1e-12)
