"""From a measurement's folder to one row per workload: latency with its interval, hot latency, energy and memory.

Reads files only. Samples taken while the GPU held its clocks down (but for its power cap), or in a round that something
else on a CPU disturbed, are left out of a median unless there are no others; the shares count all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from puzzlebench.measuring.disturbance import find_disturbance
from puzzlebench.measuring.run_directory import WORKLOAD_COLUMNS, RunDirectory, workload_from_key
from puzzlebench.measuring.statistics import combine_sessions, median_and_error
from puzzlebench.measuring.workload import Workload


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One workload.

    Attributes:
        latency_us, low_us, high_us: median over sessions with its 95 % interval, caches cold.
        hot_us: median with weights and cache left where the last launch put them.
        samples: cold samples behind the median.
        sessions: fresh processes that measured it.
        throttled_share: of all cold samples, taken while clocks were held down; NaN on a CPU or without a sensor.
        disturbed_share: of all cold samples, taken in a disturbed round (see `disturbance`); 0 on a GPU.
        energy_mj: of one launch; NaN where it was not counted.
        static_bytes: weights and cache of all rotated copies.
        peak_bytes: allocated by one launch on top of them.
        reserved_bytes, process_bytes: the allocator's and the process's total when it was prepared.
        stopped_by: interval, time limit, or both where sessions differ.
    """

    workload: Workload
    latency_us: float
    low_us: float
    high_us: float
    hot_us: float
    samples: int
    sessions: int
    throttled_share: float
    disturbed_share: float
    energy_mj: float
    copies: int
    static_bytes: int
    peak_bytes: int
    reserved_bytes: int | None
    process_bytes: int | None
    stopped_by: str

    @property
    def relative_interval(self) -> float:
        """Half the interval's width over the latency."""
        return (self.high_us - self.low_us) / 2 / self.latency_us


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """Every workload of a measurement: those measured, and why the others are missing.

    `session_shift` is the common factor less one of each session that counts, in order; `others_share` the largest
    share of the processors that other processes took in any of them.
    """

    measured: Mapping[Workload, Measured]
    misses: Mapping[Workload, str]
    session_shift: tuple[float, ...]
    engine_version: str = ""
    others_share: float = 0.0


def set_aside(reasons: Iterable[str]) -> bool:
    """Whether a sample with these throttle reasons is left out of medians.

    The power cap is not among them: large matrices run into it all the time, in serving too, and samples that happened
    to escape it would be faster than any server.
    """
    return any(reason not in ("", "sw_power_cap") for reason in reasons)


def read_results(run: RunDirectory) -> Results:
    """Summarise what is on disk; finished or not."""
    plan = run.plan
    on_cpu = plan.device == "cpu"
    samples = run.samples()
    disturbance = find_disturbance(samples) if on_cpu else None
    samples["disturbed"] = False if disturbance is None else disturbance.disturbed
    samples["throttled"] = samples["throttle_reasons"] != ""
    slowed = samples["throttle_reasons"].map(lambda reasons: set_aside(reasons.split(",")))
    samples["clear"] = ~samples["disturbed"] & ~slowed.astype(bool)
    events = [event for session in range(plan.effort.sessions) for event in run.events(session)]
    facts = _facts(events)
    by_work = {workload_from_key(key): rows for key, rows in samples.groupby(list(WORKLOAD_COLUMNS), sort=False)}
    works = [planned.workload for planned in plan.workloads if planned.workload in by_work]
    misses = _misses(events)
    if not works:
        return Results(measured={}, misses=misses, session_shift=())
    sessions = sorted(samples["session"].unique().tolist())
    medians = np.full((len(sessions), len(works)), np.nan)
    within = np.full_like(medians, np.nan)
    for column, work in enumerate(works):
        kept = _clear(_of(by_work[work], "cold"))
        for row, session in enumerate(sessions):
            cold = _of(kept, "cold", session)
            if len(cold):
                medians[row, column], within[row, column] = median_and_error(cold["latency_us"].to_numpy())
    level_error = 0.0 if disturbance is None else disturbance.level_error
    combined = combine_sessions(medians, within, level_error=level_error)
    measured = {}
    for column, work in enumerate(works):
        rows = by_work[work]
        cold, hot = _of(rows, "cold"), _of(rows, "hot")
        measured[work] = Measured(
            workload=work,
            latency_us=float(combined.latency_us[column]),
            low_us=float(combined.low_us[column]),
            high_us=float(combined.high_us[column]),
            hot_us=float(np.median(_clear(hot)["latency_us"])) if len(hot) else math.nan,
            samples=len(_clear(cold)),
            sessions=int(np.isfinite(medians[:, column]).sum()),
            throttled_share=math.nan
            if on_cpu or cold["sm_clock_mhz"].isna().all()
            else float(cold["throttled"].mean()),
            disturbed_share=float(cold["disturbed"].mean()),
            **facts[work],
        )
    counted = np.isfinite(medians).any(axis=1)  # a session may have had no calm round at all
    shift = tuple(float(np.expm1(value)) for value in combined.shift[counted])
    return Results(
        measured=measured,
        misses={work: reason for work, reason in misses.items() if work not in measured},
        session_shift=shift,
        engine_version=next((event["engine_version"] for event in events if "engine_version" in event), ""),
        others_share=max((event.get("others_share", 0.0) for event in events), default=0.0),
    )


def _of(rows: pd.DataFrame, cache: str, session: int | None = None) -> pd.DataFrame:
    chosen = rows[rows["cache"] == cache]
    return chosen if session is None else chosen[chosen["session"] == session]


def _clear(rows: pd.DataFrame) -> pd.DataFrame:
    """The samples that nothing held back, or all of them where there are none."""
    clear = rows[rows["clear"]]
    return clear if len(clear) else rows


def _misses(events: list[dict[str, Any]]) -> dict[Workload, str]:
    return {Workload(**event["workload"]): event["reason"] for event in events if event["event"] == "miss"}


def _facts(events: list[dict[str, Any]]) -> dict[Workload, dict[str, Any]]:
    """Copies, memory, energy and stop reason of each workload, over its sessions."""
    facts: dict[Workload, dict[str, Any]] = {}
    stops: dict[Workload, set[str]] = {}
    for event in events:
        if "workload" not in event:
            continue
        work = Workload(**event["workload"])
        if event["event"] == "prepared":
            kept = {key: value for key, value in event.items() if key not in ("event", "workload")}
            unknown = {"energy_mj": math.nan, "peak_bytes": 0, "reserved_bytes": None, "process_bytes": None}
            facts.setdefault(work, {**unknown, **kept})
        elif event["event"] == "energy" and work in facts:
            facts[work]["energy_mj"] = event["energy_mj"]
        elif event["event"] == "stopped":
            stops.setdefault(work, set()).add(event["by"])
    for work, fact in facts.items():
        fact["stopped_by"] = " or ".join(sorted(stops.get(work, {"time limit"})))
    return facts
