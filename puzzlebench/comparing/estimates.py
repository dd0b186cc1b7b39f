"""What sessions say of the ratio of two results: estimates, their errors, and how much is common to all cells.

Legend: S sessions (fresh processes), C cells, all values logarithms. A session shifts all its cells alike (the machine
was slower that minute) and each cell a little on its own. The common part is the median over cells, so a few cells
that changed do not move it. What is left is a cell's ratio relative to the suite. Its scatter is its own variance
moderated by that of all cells (Smyth 2004), with the weight of the others estimated from how alike they are, and never
taken to be smaller than its own. A session that stands more than 3.5 robust standard deviations from a cell's others is
moved to that distance, so that one disturbed process neither makes nor hides a finding; how often is counted, as two
of them may be what the code does now and then.
`measuring.statistics` combines the sessions of one result, where a fixed weight serves; verdicts over many cells hang
on the tails, so here the weight is estimated. Knows numbers only.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from puzzlebench.profiling.arrays import BoolArray, FloatArray

LEAST_CELLS: Final = 6
"""Below this many cells there is no telling what is common to them: no shift of the suite, no pooled scatter."""
_MOST_PRIOR: Final = 20.0  # degrees of freedom; more would trust that cells scatter alike beyond what C cells can say
_REACH: Final = 3.5  # robust standard deviations
_MAD: Final = 1.4826  # from a median absolute deviation to a standard deviation, normal
_MEDIAN_COST: Final = np.pi / 2  # variance of a median over that of a mean, normal
_MAD_EFFICIENCY: Final = 0.37  # degrees of freedom that a median absolute deviation has of those of a variance
_TINY: Final = 1e-12  # variance of what is exact


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratios:
    """Logs of new over base.

    Attributes:
        own: (C,), of each cell.
        relative: (C,), the same less the suite's; equal to `own` where there is no suite.
        variance: (C,), of `relative`.
        degrees: (C,), its degrees of freedom.
        counts: (C,), sessions behind a cell (the fewer of both sides); 0 where intervals stand for them.
        fixed: (C,), the part of `variance` that no further session takes away.
        moved: (S, C) of base and of new, how far sessions that stood far out were moved nearer; 0 for the others. Of a
            pair, the slower side is meant.
        suite: whether there are cells enough for a common shift.
        level: the suite's log ratio; 0 without a suite.
        level_variance, level_degrees: of `level`, session by session.
    """

    own: FloatArray
    relative: FloatArray
    variance: FloatArray
    degrees: FloatArray
    counts: FloatArray
    fixed: FloatArray
    moved: tuple[FloatArray, FloatArray]
    suite: bool
    level: float
    level_variance: float
    level_degrees: float


def paired_ratios(base: FloatArray, new: FloatArray, floor: FloatArray) -> Ratios:
    """Of medians, (S, C) each, whose sessions ran next to each other; NaN where one side lacks a cell.

    Args:
        floor: (C,), variance of a pair's log ratio that the samples inside the sessions explain: no scatter is below.

    Raises:
        ValueError: the shapes differ.
    """
    if base.shape != new.shape:
        raise ValueError(f"paired sessions must be as many on both sides, not {len(base)} and {len(new)}")
    logs = np.log(new / base)
    counts = np.isfinite(logs).sum(axis=0)
    suite = _is_suite(counts)
    shift = common_shift(logs) if suite else np.zeros(len(logs))
    middle, scatter, degrees, moved = _cells(logs - shift[:, None], counts, floor, suite=suite)
    usable = counts >= 2
    level = float(np.median(middle[usable])) if suite else 0.0
    relative = middle - level
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = scatter / counts
    fixed = np.zeros(len(counts))
    if suite:
        variance = variance + _MEDIAN_COST * float(np.median(variance[usable])) / usable.sum()
    return Ratios(
        own=middle,
        relative=relative,
        variance=variance,
        degrees=degrees,
        counts=counts.astype(np.float64),
        fixed=fixed,
        moved=(np.maximum(moved, 0), np.maximum(-moved, 0)),
        suite=suite,
        level=level,
        level_variance=float(np.var(shift, ddof=1)) / len(shift) if suite and len(shift) > 1 else np.inf,
        level_degrees=max(len(shift) - 1.0, 1.0),
    )


def unpaired_ratios(base: FloatArray, new: FloatArray, base_floor: FloatArray, new_floor: FloatArray) -> Ratios:
    """Of medians, (S, C) and (T, C), measured at different times (Welch's test, each side with its own scatter).

    Cells also wander between two times by more than sessions of one time show. How much is read off the cells
    themselves: what their relative ratios spread beyond what sessions explain is added to every variance, on the
    assumption that most cells did not change. A cell that wanders more than the others may still look changed.
    """
    sides = (np.log(base), np.log(new))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a cell may have no value on a side; its counts say so
        reference = np.mean([np.nanmedian(logs, axis=0) for logs in sides], axis=0)
    counts = np.array([np.isfinite(logs).sum(axis=0) for logs in sides])
    least = counts.min(axis=0)
    suite = _is_suite(least)
    shifts = [_row_medians(logs - reference) if suite else np.zeros(len(logs)) for logs in sides]
    middles, scatters, degrees, moved = zip(
        *(
            _cells(logs - shift[:, None], count, floor, suite=suite)
            for logs, shift, count, floor in zip(sides, shifts, counts, (base_floor, new_floor), strict=True)
        ),
        strict=True,
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [scatter / count for scatter, count in zip(scatters, counts, strict=True)]
    between = middles[1] - middles[0]
    usable = least >= 2
    middle = float(np.median(between[usable])) if suite else 0.0
    relative = between - middle
    fixed = _wander(relative[usable], parts[0][usable] + parts[1][usable]) if suite else 0.0
    variance, constant = parts[0] + parts[1] + fixed, np.ones(len(least))
    shift_parts = [float(np.var(shift, ddof=1)) / len(shift) if len(shift) > 1 else np.inf for shift in shifts]
    shift_degrees = np.array([[len(shift) - 1.0] for shift in shifts])
    level = middle + float(np.mean(shifts[1]) - np.mean(shifts[0]))
    return Ratios(
        own=relative + level,
        relative=relative,
        variance=variance,
        degrees=welch([*parts, constant * fixed], [*degrees, constant * _MAD_EFFICIENCY * len(least)]),
        counts=least.astype(np.float64),
        fixed=constant * fixed,
        moved=(np.abs(moved[0]), np.abs(moved[1])),
        suite=suite,
        level=level if suite else 0.0,
        level_variance=sum(shift_parts) if suite else np.inf,
        level_degrees=float(welch(np.array(shift_parts)[:, None], shift_degrees)[0]) if suite else 1.0,
    )


def interval_ratios(base: FloatArray, new: FloatArray, base_errors: FloatArray, new_errors: FloatArray) -> Ratios:
    """Of values, (C,) each, whose own intervals stand for sessions.

    A table's interval holds the machine's common shift as well as the cell's own error and does not say which is which.
    So it is used whole for both: of a cell relative to the suite (too wide) and of the suite (the typical cell's).
    """
    own = np.log(new / base)
    variance = base_errors**2 + new_errors**2
    suite = len(own) >= LEAST_CELLS
    level = float(np.median(own)) if suite else 0.0
    fixed = _wander(own - level, variance) if suite else 0.0
    many = np.full(len(own), np.inf)
    return Ratios(
        own=own,
        relative=own - level,
        variance=variance + fixed,
        degrees=many,
        counts=np.zeros(len(own)),
        fixed=variance + fixed,
        moved=(np.zeros((1, len(own))), np.zeros((1, len(own)))),
        suite=suite,
        level=level,
        level_variance=float(np.median(variance)) if suite else np.inf,
        level_degrees=np.inf,
    )


def _is_suite(counts: FloatArray) -> bool:
    return int((counts >= 2).sum()) >= LEAST_CELLS


def common_shift(logs: FloatArray) -> FloatArray:
    """(S,), what each session has in common over the cells, around 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # cells without a value give NaN, which the medians pass over
        middles = np.nanmedian(logs, axis=0)
        for _ in range(3):  # missing cells couple both; a few alternations settle them
            shift = _row_medians(logs - middles)
            shift -= shift.mean()
            middles = np.nanmedian(logs - shift[:, None], axis=0)
    return shift


def _row_medians(logs: FloatArray) -> FloatArray:
    return np.array([np.nanmedian(row) if np.isfinite(row).any() else 0.0 for row in logs])


def _cells(
    logs: FloatArray, counts: FloatArray, floor: FloatArray, *, suite: bool
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """(mean, variance of one session, degrees of freedom) of each cell, (C,), from logs without the common shift.

    And how far each session was moved, (S, C), up or down; 0 for most.
    """
    kept = _without_outliers(logs, counts) if suite else logs
    moved: FloatArray = np.nan_to_num(kept - logs)
    measured = np.isfinite(kept)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.where(measured, kept, 0).sum(axis=0) / counts
        squares = np.square(np.where(measured, kept - means, 0)).sum(axis=0)
        variances = squares / (counts - 1)
    own = np.maximum(counts - 1.0, 0.0)
    if not suite:
        return means, np.maximum(variances, floor), own, moved
    cells = int((counts >= 2).sum())
    variances = variances * cells / (cells - 1)  # the median that was taken off follows the cells a little
    prior, typical = _prior(variances[counts >= 2], own[counts >= 2])
    filled = np.where(counts >= 2, variances, typical)
    moderated = (prior * typical + own * filled) / (prior + own)
    return means, np.maximum.reduce([moderated, filled, floor]), own + prior, moved


def _without_outliers(logs: FloatArray, counts: FloatArray) -> FloatArray:
    """The same with what stands far from its cell's other sessions moved nearer; as it is where fewer than 4 are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        middle = np.nanmedian(logs, axis=0)
        away = np.nanmedian(np.abs(logs - middle), axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = _MAD * away * counts / (counts - 0.8)  # about unbiased for few sessions (Croux and Rousseeuw 1992)
    several: BoolArray = counts >= 4
    if not (several & (scale > 0)).any():
        return logs
    typical = float(np.median(scale[several & (scale > 0)]))
    # Four degrees for the typical cell: the deviations of five sessions alone say too little of a cell's own.
    reach = _REACH * np.sqrt((4 * typical**2 + (counts - 1) * scale**2) / (counts + 3))
    return np.where(several, np.clip(logs, middle - reach, middle + reach), logs)


def _prior(variances: FloatArray, degrees: FloatArray) -> tuple[float, float]:
    """(degrees of freedom, variance) of the scatter that cells have in common (Smyth 2004, section 6.2)."""
    from scipy.optimize import brentq
    from scipy.special import digamma, polygamma

    positive = variances[variances > 0]
    if not len(positive):
        return _MOST_PRIOR, _TINY
    logs = np.log(np.maximum(variances, 1e-4 * np.median(positive))) - digamma(degrees / 2) + np.log(degrees / 2)
    spread = float(np.var(logs, ddof=1)) - float(polygamma(1, degrees / 2).mean())
    prior = _MOST_PRIOR
    if spread > polygamma(1, _MOST_PRIOR / 2):
        prior = float(brentq(lambda degree: polygamma(1, degree / 2) - spread, 1e-3, _MOST_PRIOR))
    return prior, float(np.exp(logs.mean() + digamma(prior / 2) - np.log(prior / 2)))


def _wander(relative: FloatArray, variances: FloatArray) -> float:
    """Variance of relative ratios over cells beyond what sessions explain; robust, so changed cells do not count."""
    spread = _MAD * float(np.median(np.abs(relative - np.median(relative))))
    return max(spread**2 - float(np.median(variances)), 0.0)


def welch(parts: Iterable[FloatArray], degrees: Iterable[FloatArray]) -> FloatArray:
    """Satterthwaite's degrees of freedom of a sum of variances."""
    with np.errstate(divide="ignore", invalid="ignore"):
        all_parts, all_degrees = np.array(list(parts)), np.maximum(list(degrees), 1e-9)
        found = np.square(all_parts.sum(axis=0)) / (np.square(all_parts) / all_degrees).sum(axis=0)
    return np.where(np.isfinite(found), np.maximum(found, 1.0), 1.0)


def session_floor(errors: FloatArray) -> FloatArray:
    """(C,), variance that the samples inside a session explain, from (S, C); where unknown, the typical cell's."""
    known = np.isfinite(errors)
    counts = known.sum(axis=0)
    means: FloatArray = np.where(known, errors, 0.0) ** 2
    means = means.sum(axis=0) / np.maximum(counts, 1)
    typical = float(np.median(means[counts > 0])) if counts.any() else 0.0
    return np.where(counts > 0, means, typical)


def benjamini_hochberg(tests: FloatArray) -> FloatArray:
    """Adjusted p-values (Benjamini and Hochberg 1995)."""
    from scipy.stats import false_discovery_control

    adjusted: FloatArray = false_discovery_control(tests) if len(tests) else tests
    return adjusted


def quotient(distance: Any, error: Any) -> Any:
    """Their quotient; infinite where there is a distance without any error, 0 where there is neither."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(np.divide(distance, error), nan=0.0, posinf=np.inf)
