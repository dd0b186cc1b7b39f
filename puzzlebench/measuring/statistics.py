"""Medians and their intervals, within one process and over several. Knows numbers only.

Samples of one process share its memory layout, its clocks and its neighbours, so their interval says how well that
process was measured, not what the next one will see. The interval of a cell therefore comes from several fresh
processes: their common shift (the machine was slower that minute) and each cell's own scatter are estimated apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from puzzlebench.profiling.arrays import FloatArray

_PRIOR_DEGREES = 4.0
"""Weight of the pooled scatter in a cell's own, in degrees of freedom (moderated variance, Smyth 2004)."""
_NORMAL_WIDTH = 2 * 1.96


def median_interval(values: FloatArray, confidence: float = 0.95) -> tuple[float, float, float]:
    """(median, low, high): distribution-free interval of the median from the binomial order statistics.

    With fewer than six values the range of all of them is given, which covers less than 95 % (94 % for five, 88 % for
    four); one value has no width.

    Raises:
        ValueError: there are no values, or one is not finite.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64).ravel())
    count = len(ordered)
    if count == 0 or not np.isfinite(ordered).all():
        raise ValueError(f"a median needs at least one value, all finite, not {ordered.tolist()[:5]}")
    from scipy.stats import binom

    # The largest k with P(fewer than k values below the median) <= alpha / 2; the ends are the k-th from either side.
    k = max(int(binom.ppf((1 - confidence) / 2, count, 0.5)), 1)
    return float(np.median(ordered)), float(ordered[k - 1]), float(ordered[count - k])


def relative_width(values: FloatArray) -> float:
    """Width of the median's interval over the median; infinite below three values."""
    if len(values) < 3:
        return float("inf")
    median, low, high = median_interval(values)
    return (high - low) / median


def median_and_error(values: FloatArray) -> tuple[float, float]:
    """(median, standard error of its logarithm) of samples of one process."""
    median, low, high = median_interval(values)
    return median, float(log_error(low, high))


def log_error(low: Any, high: Any) -> Any:
    """The standard error of a logarithm from the ends of its 95 % interval, numbers or arrays."""
    return np.log(high / low) / _NORMAL_WIDTH


@dataclass(frozen=True, kw_only=True, slots=True)
class Combined:
    """Cells over sessions: medians with intervals, (C,), and what the sessions did.

    Attributes:
        shift: (S,), each session's common factor, as a difference of logarithms.
        scatter: (C,), standard deviation of one session around the cell's mean once the shift is taken off, in logs.
    """

    latency_us: FloatArray
    low_us: FloatArray
    high_us: FloatArray
    shift: FloatArray
    scatter: FloatArray


def combine_sessions(medians_us: FloatArray, within: FloatArray, *, level_error: float = 0.0) -> Combined:
    """Combine the medians of S sessions, (S, C), with NaN where a session did not measure a cell.

    log median = cell + shift of the session + scatter. A cell's scatter is its own variance moderated by that of all
    cells. The interval adds, in quadrature, the standard error from scatter (t with the moderated degrees of freedom)
    and from the shift (t with S - 1). One session has neither, so `within` serves.

    Args:
        within: (S, C), standard error of each session's log median from its own samples.
        level_error: standard error, in logs, of the machine's own level, common to all cells.

    Raises:
        ValueError: a cell was measured in no session.
    """
    from scipy.stats import t as student

    logs = np.log(medians_us)
    measured = np.isfinite(logs)
    counts = measured.sum(axis=0)
    if (counts == 0).any():
        raise ValueError(f"{int((counts == 0).sum())} cells were measured in no session")
    sessions = len(logs)
    shift = np.zeros(sessions)
    means = np.nanmean(logs, axis=0)
    for _ in range(3):  # missing cells couple means and shifts; a few alternations settle them
        shift = np.array([np.nanmedian(row) if np.isfinite(row).any() else 0.0 for row in logs - means])
        shift -= shift.mean()
        means = np.nanmean(logs - shift[:, None], axis=0)
    residuals = np.where(measured, logs - means - shift[:, None], 0.0)
    squares, degrees = (residuals**2).sum(axis=0), np.maximum(counts - 1, 0)
    # No scatter is below what the samples inside the sessions say of it.
    floor = np.nanmean(np.where(measured, within, np.nan) ** 2, axis=0)
    pooled = squares.sum() / degrees.sum() if degrees.sum() else 0.0
    moderated = (_PRIOR_DEGREES * pooled + squares) / (_PRIOR_DEGREES + degrees)
    variance = np.maximum(moderated, floor)
    error = student.ppf(0.975, _PRIOR_DEGREES + degrees) * np.sqrt(variance / counts)
    common = 0.0
    if sessions > 1:
        common = float(student.ppf(0.975, sessions - 1)) * float(np.std(shift, ddof=1)) / np.sqrt(sessions)
    half = np.sqrt(error**2 + common**2 + (1.96 * level_error) ** 2)
    return Combined(
        latency_us=np.exp(means),
        low_us=np.exp(means - half),
        high_us=np.exp(means + half),
        shift=shift,
        scatter=np.sqrt(variance),
    )
