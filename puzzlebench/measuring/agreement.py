"""Do two measurements of the same thing agree within their intervals? The test of the intervals themselves (A/A)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from puzzlebench.profiling.arrays import FloatArray
from puzzlebench.profiling.cost_table import KEY_COLUMNS, CostTable


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Two tables compared cell by cell.

    Attributes:
        cells: cells that both have, no-ops aside.
        agree: share of them whose difference is within its own 95 % interval (the two intervals in quadrature).
        shift: median of log(second / first): what all cells moved by, as a machine does from hour to hour.
        agree_without_shift: the same share once that is taken off: whether the tables rank and compare cells alike.
        median_difference, p90_difference: of |log(second / first)|.
        median_interval: median half-width of the first table's intervals, relative.
    """

    cells: int
    agree: float
    shift: float
    agree_without_shift: float
    median_difference: float
    p90_difference: float
    median_interval: float


def agreement(first: CostTable, second: CostTable) -> Agreement:
    """Compare two tables of the same cells.

    Raises:
        ValueError: they have no cell in common.
    """
    columns = ["latency_us", "latency_low_us", "latency_high_us"]
    a, b = (table.frame[[*KEY_COLUMNS, *columns]] for table in (first, second))
    both = pd.merge(a, b, on=list(KEY_COLUMNS), suffixes=("_a", "_b"))
    both = both[both["latency_us_a"] > 0]
    if both.empty:
        raise ValueError("the two tables have no cell in common (GPU, engine, version, precision and sizes must match)")
    logs = {name: np.log(both[name].to_numpy()) for name in both.columns if name.startswith("latency")}
    moved = logs["latency_us_b"] - logs["latency_us_a"]
    # The ends that face each other: where b is above a, a's upper and b's lower.
    upper_a = logs["latency_high_us_a"] - logs["latency_us_a"]
    lower_a = logs["latency_us_a"] - logs["latency_low_us_a"]
    upper_b = logs["latency_high_us_b"] - logs["latency_us_b"]
    lower_b = logs["latency_us_b"] - logs["latency_low_us_b"]

    def agree(moved: FloatArray) -> float:
        allowed = np.where(moved > 0, np.hypot(upper_a, lower_b), np.hypot(lower_a, upper_b))
        return float((np.abs(moved) <= allowed).mean())

    half = (both["latency_high_us_a"] - both["latency_low_us_a"]) / 2 / both["latency_us_a"]
    return Agreement(
        cells=len(both),
        agree=agree(moved),
        agree_without_shift=agree(moved - np.median(moved)),
        shift=float(np.median(moved)),
        median_difference=float(np.median(np.abs(moved))),
        p90_difference=float(np.percentile(np.abs(moved), 90)),
        median_interval=float(np.median(half)),
    )
