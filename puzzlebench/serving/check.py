"""The steady state beside a simulation of the same workload: means over the requests of its warm middle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from puzzlebench.serving.estimating import ServingEstimate
from puzzlebench.serving.served_model import ServedModel

_ROUNDS: Final = 10  # times that every user asks
_LEAST: Final = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulated:
    """Means over requests; rates are of the whole tensor-parallel group.

    Attributes:
        requests: that were counted: the first and the last, as many as are in the system at a time, are left out.
        evictions: of all that were simulated.
    """

    ttft_ms: float
    tpot_ms: float
    requests_per_s: float
    generated_tokens_per_s: float
    total_tokens_per_s: float
    requests: int
    evictions: int


def simulate_warm(
    served: ServedModel, estimate: ServingEstimate, *, requests: int | None = None, seed: int = 0
) -> Simulated:
    """Simulate the workload of an estimate.

    Args:
        requests: how many; by default ten of each user, or of each request that is in the system at a time.

    Raises:
        ValueError: too few requests to leave the first and the last ones out, or as `serving.simulate.simulate`.
    """
    workload, at_a_time = estimate.workload, math.ceil(estimate.concurrency)
    count = max(_LEAST, _ROUNDS * at_a_time) if requests is None else requests
    if count <= 2 * at_a_time + 1:
        raise ValueError(f"{count} requests are too few with {at_a_time} at a time; simulate {3 * at_a_time} or more")
    found = served.simulate(workload, requests=count, seed=seed)
    middle = slice(at_a_time, count - at_a_time)
    ttft, tpot, answers = found.ttft_ms[middle], found.tpot_ms[middle], found.decode_len[middle]
    if workload.concurrency is None:
        arrivals = found.arrivals_ms[middle]
        rate = 1e3 * (len(arrivals) - 1) / float(arrivals[-1] - arrivals[0])
    else:  # users ask again at once
        rate = 1e3 * workload.concurrency / float((ttft + np.nan_to_num(tpot) * (answers - 1)).mean())
    generated, prompts = float(answers.mean()), float(found.prefill_len[middle].mean())
    return Simulated(
        ttft_ms=float(ttft.mean()),
        tpot_ms=float(np.nanmean(tpot)),
        requests_per_s=rate,
        generated_tokens_per_s=rate * generated,
        total_tokens_per_s=rate * (generated + prompts),
        requests=len(ttft),
        evictions=found.evictions,
    )
