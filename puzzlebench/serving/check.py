"""The steady state beside a simulation of the same workload: means over the requests of its warm middle.

`why_apart` says what is known of a difference: users of equal lengths who begin together stay in step, which the steady
state does not have. It is what the same users with lengths that differ make of it, and no guess.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from puzzlebench.profiling.arrays import FloatArray
from puzzlebench.serving.estimating import ServingEstimate, estimate_workload
from puzzlebench.serving.served_model import ServedModel
from puzzlebench.serving.workload import Lengths

_ROUNDS: Final = 10  # times that every user asks
_LEAST: Final = 200
_LEAST_AT_A_RATE: Final = 2000  # times differ more where arrivals are random
_SPREAD: Final = 0.8  # the shortest of lengths that differ, over the longest
_QUEUES: Final = 0.1  # of the time to first token, what waiting for a place has where it matters
_ALIKE: Final = {"tpot_ms": 0.05, "ttft_ms": 0.2}  # a larger difference wants an explanation


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
        requests: how many; by default ten of each user, or of each request that is in the system at a time, and at
            least 200, at a rate 2,000.

    Raises:
        ValueError: too few requests to leave the first and the last ones out, or as `serving.simulate.simulate`.
    """
    workload, at_a_time = estimate.workload, math.ceil(estimate.concurrency)
    least = _LEAST if workload.request_rate is None else _LEAST_AT_A_RATE
    count = max(least, _ROUNDS * at_a_time) if requests is None else requests
    if count <= 2 * at_a_time + 1:
        raise ValueError(f"{count} requests are too few with {at_a_time} at a time; simulate {3 * at_a_time} or more")
    found = served.simulate(workload, requests=count, seed=seed)
    middle = slice(at_a_time, count - at_a_time)
    if workload.request_rate is not None:  # what is drawn has another rate, by chance: the same gaps, scaled to ours
        asked = workload.request_rate**2 / _rate(found.arrivals_ms[middle])
        found = served.simulate(replace(workload, request_rate=asked), requests=count, seed=seed)
    ttft, tpot, answers = found.ttft_ms[middle], found.tpot_ms[middle], found.decode_len[middle]
    if workload.concurrency is None:
        rate = _rate(found.arrivals_ms[middle])
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


def _rate(arrivals_ms: FloatArray) -> float:
    """Requests per second."""
    return 1e3 * (len(arrivals_ms) - 1) / float(arrivals_ms[-1] - arrivals_ms[0])


def why_apart(served: ServedModel, estimate: ServingEstimate, simulated: Simulated) -> str:
    """A sentence about what the two disagree in; empty where they agree.

    Where lengths are alike the same users are simulated once more with lengths that differ, beside their own steady
    state: if these agree, it is users in step.
    """
    if _agree(estimate, simulated):
        return ""
    workload, state = estimate.workload, estimate.state
    if workload.request_rate is not None and state.queue_ms > _QUEUES * state.ttft_ms:
        return (
            "near the highest rate the wait for a place settles over many thousand requests, and those simulated are "
            "few for it: the two need not agree in the time to first token"
        )
    apart = replace(workload, prefill=_spread(workload.prefill), decode=_spread(workload.decode))
    if (workload.concurrency or 1) > 1 and apart != workload:
        other = estimate_workload(served, apart)
        if _agree(other, simulate_warm(served, other)):
            return (
                "lengths are alike: users who begin together stay in step, and their prompts wait for one another. The "
                f"steady state has them come one by one; with prompts of {apart.prefill} and answers of {apart.decode} "
                "the two agree"
            )
    return "the two differ, and users in step are not why: believe the simulation"


def _spread(lengths: Lengths) -> Lengths:
    """Down to `_SPREAD` of the longest."""
    return replace(lengths, low=max(1, min(lengths.low, round(_SPREAD * lengths.high))))


def _agree(estimate: ServingEstimate, simulated: Simulated) -> bool:
    stated = {name: getattr(estimate, name).value for name in _ALIKE}
    return all(abs(getattr(simulated, name) / stated[name] - 1) <= limit for name, limit in _ALIKE.items())
