"""From run times of N and of 2N copies to the time of one. Arithmetic only: no engine, no clock.

A run of a stack costs c + copies x b: c is everything that is there once (embedding, head, sampling, the host's work),
b one block. Two sizes give both: b = (T(2N) - T(N)) / N and c = 2 T(N) - T(2N). Each repeat gives one pair, and the
repeats give the interval: a 95 % t-interval of their mean. It covers what changes from run to run in this process on
this machine, not what a fresh process or another day would add, and it takes repeats as independent, so drift between
the two sizes must be kept out by the order of the runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from puzzlebench.model.checks import require_positive_int

_CONFIDENCE = 0.95


class StackRefused(ValueError):  # noqa: N818 - said as what happened to the measurement
    """The runs do not show a positive time per block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slope:
    """Microseconds per block and, as intercept, of everything else: mean over repeats and 95 % t-interval.

    Attributes:
        samples: latency of each repeat, in the order of the runs.
    """

    latency_us: float
    low_us: float
    high_us: float
    intercept_us: float
    intercept_low_us: float
    intercept_high_us: float
    samples: tuple[float, ...]

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not a measurement."""
        numbers = (self.intercept_us, self.intercept_low_us, self.intercept_high_us, self.high_us, *self.samples)
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"a slope has finite numbers only, not {self!r}")
        if not 0 < self.low_us <= self.latency_us <= self.high_us:
            raise ValueError(f"a slope lies in an interval above zero, not {self!r}")
        if not self.intercept_low_us <= self.intercept_us <= self.intercept_high_us:
            raise ValueError(f"an intercept lies in its interval, not {self!r}")


def slope_from_runs(
    small_seconds: Sequence[float], large_seconds: Sequence[float], *, copies: int, what: str = "block"
) -> Slope:
    """The time of one block from paired runs.

    Args:
        small_seconds: runs with N copies, seconds.
        large_seconds: runs with 2N copies, paired with them by position.
        copies: N.
        what: named in the messages.

    Raises:
        StackRefused: the slope is not positive, or its interval includes zero.
        ValueError: fewer than two pairs, unpaired runs, or a run that is not finite.
    """
    require_positive_int("copies", copies)
    small, large = np.asarray(small_seconds, dtype=np.float64), np.asarray(large_seconds, dtype=np.float64)
    if small.ndim != 1 or small.shape != large.shape or len(small) < 2:
        raise ValueError(f"{what}: at least two pairs of runs are needed, not {small.size} and {large.size} runs")
    if not (np.isfinite(small).all() and np.isfinite(large).all()):
        raise ValueError(f"{what}: runs must take finite times, not {small.tolist()} and {large.tolist()} seconds")
    slopes = (large - small) / copies * 1e6
    latency, half = _mean_and_half_width(slopes)
    intercept, intercept_half = _mean_and_half_width((2 * small - large) * 1e6)
    if latency - half <= 0:
        raise StackRefused(
            f"{what}: {latency:.3g} us per block, 95 % interval {latency - half:.3g} to {latency + half:.3g} us over "
            f"{len(slopes)} repeats, which does not exclude zero; use more than {copies} copies, longer runs or more "
            "repeats"
        )
    return Slope(
        latency_us=latency,
        low_us=latency - half,
        high_us=latency + half,
        intercept_us=intercept,
        intercept_low_us=intercept - intercept_half,
        intercept_high_us=intercept + intercept_half,
        samples=tuple(slopes.tolist()),
    )


def _mean_and_half_width(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, float]:
    from scipy.stats import t as student

    count = len(values)
    quantile = float(student.ppf((1 + _CONFIDENCE) / 2, count - 1))
    return float(values.mean()), quantile * float(values.std(ddof=1)) / math.sqrt(count)
