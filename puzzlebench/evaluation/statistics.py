"""Paired statistics of two models on the same documents. Knows numbers only.

Legend: N documents, B resamples. A metric of a task is the sum of one number per document over the sum of its sizes:
accuracies have sizes of one, bits per byte have bits over bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

Numbers: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

RESAMPLES: Final = 10_000
_Z: Final = 1.959963984540054
_CELLS: Final = 2_000_000  # numbers drawn at a time
_KINDS: Final = 64  # distinct documents up to which their counts are drawn instead


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A value and its 95 % interval; None where it is not known."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """What both models got on each document.

    Attributes:
        parent, child: [N], the numerators of the metric.
        size: [N], its denominators, the same for both.
        binary: every document is right or wrong, and the metric is the share of those right.
    """

    parent: Numbers
    child: Numbers
    size: Numbers
    binary: bool

    def __post_init__(self) -> None:
        """Raise ValueError for what is no pairs."""
        if not self.parent.shape == self.child.shape == self.size.shape or self.parent.ndim != 1:
            raise ValueError(f"pairs of different shapes: {self.parent.shape}, {self.child.shape}, {self.size.shape}")
        if not len(self.parent):
            raise ValueError("there are no documents that both sides have")

    @property
    def values(self) -> tuple[float, float]:
        """The metric of the parent and of the child."""
        total = self.size.sum()
        return float(self.parent.sum() / total), float(self.child.sum() / total)

    @property
    def flips(self) -> tuple[int, int]:
        """Documents of a binary metric that went from right to wrong, and from wrong to right."""
        return int(((self.parent == 1) & (self.child == 0)).sum()), int(((self.parent == 0) & (self.child == 1)).sum())


def difference(pairs: Pairs) -> Estimate:
    """Child minus parent, with the interval that the documents' differences give.

    Binary metrics: the adjusted Wald interval of Bonett and Price (2012), which counts one more document lost and one
    more gained, so that it has a width even where no document changed. Others: Student's t on the differences,
    linearised where documents have sizes (the delta method). No interval of fewer than two documents.
    """
    parent, child = pairs.values
    value, n = child - parent, len(pairs.parent)
    if n < 2:
        return Estimate(value=value)
    if pairs.binary:
        lost, gained = ((flips + 1) / (n + 2) for flips in pairs.flips)
        middle = gained - lost
        half = _Z * math.sqrt((lost + gained - middle**2) / (n + 2))
        return Estimate(value=value, low=max(middle - half, -1.0), high=min(middle + half, 1.0))
    from scipy.stats import t

    each = (pairs.child - pairs.parent - value * pairs.size) / pairs.size.mean()
    half = float(t.ppf(0.975, n - 1)) * float(each.std(ddof=1)) / math.sqrt(n)
    return Estimate(value=value, low=value - half, high=value + half)


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided p of as many or more one-sided flips, if documents were lost and gained alike."""
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0


def resample(pairs: Pairs, generator: np.random.Generator, resamples: int = RESAMPLES) -> tuple[Numbers, Numbers]:
    """The metric of both, [B] each, on documents drawn with replacement; a document's two answers stay together.

    Of binary metrics one document more lost and one more gained are among those drawn, as in `difference`. Else a
    child that changed no answer on a few documents would be known to change none at all.
    """
    rows = np.column_stack((pairs.parent, pairs.child, pairs.size))
    if pairs.binary:
        rows = np.vstack((rows, ((1.0, 0.0, 1.0), (0.0, 1.0, 1.0))))
    n = len(pairs.parent)
    kinds, counts = np.unique(rows, axis=0, return_counts=True)
    if len(kinds) <= _KINDS:  # as good as drawing documents, and faster
        drawn = generator.multinomial(n, counts / counts.sum(), size=resamples)
        sums = drawn @ kinds
    else:
        step = max(1, _CELLS // n)
        parts = []
        for begin in range(0, resamples, step):
            which = generator.integers(len(rows), size=(min(step, resamples - begin), n))
            parts.append(np.stack([rows[:, column][which].sum(axis=1) for column in range(3)], axis=1))
        sums = np.concatenate(parts)
    return sums[:, 0] / sums[:, 2], sums[:, 1] / sums[:, 2]


def ratio(parent: float, child: float, *, higher_is_better: bool) -> float | None:
    """Child over parent, or parent over child where less is better; None where that has no meaning."""
    above, below = (child, parent) if higher_is_better else (parent, child)
    return above / below if below > 0 else None


def ratios(parent: Numbers, child: Numbers, *, higher_is_better: bool) -> Numbers:
    """The ratio of every resample, [B]; infinite where it has no meaning, as nothing bounds it there."""
    above, below = (child, parent) if higher_is_better else (parent, child)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Numbers = np.where(below > 0, above / below, np.inf)
    return found


def interval(value: float | None, drawn: Numbers) -> Estimate:
    """The middle 95 % of the resamples; no interval where that has no bound."""
    if value is None:
        return Estimate(value=None)
    low, high = (float(end) for end in np.quantile(drawn, (0.025, 0.975), method="nearest"))
    if not (math.isfinite(low) and math.isfinite(high)):
        return Estimate(value=value)
    return Estimate(value=value, low=low, high=high)
