"""Which rounds of a measurement on a CPU were disturbed by something else on the machine. Reads samples only.

A GPU says when its clocks are held down; a CPU does not say when a neighbour takes its memory bus, its caches or its
power. But a slowdown that all workloads of a round share, well above what the calmest tenth of the rounds shows, is not
of their making. Latencies are therefore those of the calm machine, and how well its calm level is known from these
sessions is part of every interval.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from puzzlebench.measuring.run_directory import WORKLOAD_COLUMNS

TOLERANCE = 0.04
"""A round counts as disturbed when it is this much slower (in logarithms) than the calm ones."""
BUSY_SHARE = 0.1
"""Share of the processors that others took, above which a measurement is called disturbed."""
_CALM_SHARE = 0.1
_LEAST_WORKLOADS = 8
_LEAST_ROUNDS = 8
_RESAMPLES = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class Disturbance:
    """For every sample, whether its round was disturbed, and the standard error of the calm level in logarithms.

    Where too little was measured to tell, no sample is disturbed and the error is 0.
    """

    disturbed: pd.Series[bool]
    level_error: float


def find_disturbance(samples: pd.DataFrame, *, least_workloads: int = _LEAST_WORKLOADS) -> Disturbance:
    """Compare rounds by the median, over their workloads, of latency against the workload's own median.

    The calm level is a quantile of the rounds; its standard error comes from drawing whole sessions with replacement,
    since rounds next to each other are alike.

    Args:
        least_workloads: a round with fewer says nothing; a few long ones (whole models) say as much as many short ones.
    """
    unknown = Disturbance(disturbed=pd.Series(False, index=samples.index), level_error=0.0)
    cold = samples[samples["cache"] == "cold"]
    if cold.empty:
        return unknown
    logs = np.log(cold["latency_us"])
    slower = logs - logs.groupby([cold[column] for column in WORKLOAD_COLUMNS]).transform("median")
    rounds = slower.groupby([cold["session"], cold["round"]]).agg(["median", "size"])
    levels = rounds.loc[rounds["size"] >= least_workloads, "median"]
    if len(levels) < _LEAST_ROUNDS:
        return unknown
    marked = levels.index[levels > levels.quantile(_CALM_SHARE) + TOLERANCE]
    of_sample = pd.MultiIndex.from_frame(samples[["session", "round"]])
    by_session = [group.to_numpy() for _, group in levels.groupby(level="session")]
    drawn = np.random.default_rng(0).integers(len(by_session), size=(_RESAMPLES, len(by_session)))
    resampled = [np.quantile(np.concatenate([by_session[place] for place in row]), _CALM_SHARE) for row in drawn]
    return Disturbance(
        disturbed=pd.Series(of_sample.isin(marked), index=samples.index), level_error=float(np.std(resampled))
    )
