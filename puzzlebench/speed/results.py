"""From the samples of a measurement of speed to medians, speed-ups and their intervals. Reads files only.

Rounds that something else on a CPU disturbed, and samples taken while a GPU's clocks were held down, are left out where
there are others. A speed-up is a median of ratios within rounds: what slows the machine for a minute slows both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from puzzlebench.estimate import Interval
from puzzlebench.measuring.disturbance import find_disturbance
from puzzlebench.measuring.results import set_aside
from puzzlebench.measuring.run_directory import RunDirectory
from puzzlebench.measuring.statistics import Combined, combine_sessions, median_and_error
from puzzlebench.profiling.arrays import FloatArray
from puzzlebench.speed.predict import Speed, SpeedScenario

MODEL_PART: Final = "model"
PHASES: Final = ("prefill", "decode", "generate")
_LEAST_MODELS_AND_PHASES: Final = 3  # long ones: a round of one model says how calm the machine was


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What was measured, in the order of the labels.

    Attributes:
        speed_ups: of every model but the first over the first, by phase.
        tokens_agree: by label, the share of tokens that transformers' own greedy search gives too.
        disturbed_share: of the rounds.
        others_share: the largest share of the processors that other processes took in a session.
    """

    speeds: tuple[Speed, ...]
    speed_ups: tuple[dict[str, Interval], ...]
    tokens_agree: dict[str, float]
    rounds: int
    disturbed_share: float
    others_share: float


def read_measured(
    run: RunDirectory, labels: Sequence[str], scenario: SpeedScenario, *, sessions: int, on_cpu: bool
) -> Measured:
    """Summarise a finished measurement.

    Args:
        labels: the parent's first.
    """
    samples = run.samples()
    disturbance = find_disturbance(samples, least_workloads=_LEAST_MODELS_AND_PHASES) if on_cpu else None
    slowed = samples["throttle_reasons"].map(lambda reasons: set_aside(reasons.split(","))).astype(bool)
    samples["clear"] = ~slowed if disturbance is None else ~disturbance.disturbed
    level_error = 0.0 if disturbance is None else disturbance.level_error
    pairs = [(label, phase) for label in labels for phase in PHASES]
    columns = {pair: _column(samples, *pair) for pair in pairs}
    times = _combine([columns[pair] for pair in pairs], level_error)
    found = dict(zip(pairs, _intervals(times), strict=True))
    ratios = [(child, phase) for child in labels[1:] for phase in PHASES]
    speed_ups: dict[tuple[str, str], Interval] = {}
    if ratios:
        paired = [_ratio(columns[labels[0], phase], columns[child, phase]) for child, phase in ratios]
        speed_ups = dict(zip(ratios, _intervals(_combine(paired, 0.0)), strict=True))
    events = [event for session in range(sessions) for event in run.events(session)]
    by_round = samples.groupby(["session", "round"])["clear"].all()
    return Measured(
        speeds=tuple(_speed({phase: found[label, phase] for phase in PHASES}, scenario) for label in labels),
        speed_ups=tuple({phase: speed_ups[child, phase] for phase in PHASES} for child in labels[1:]),
        tokens_agree={event["model"]: event["agree"] for event in events if event["event"] == "tokens"},
        rounds=len(by_round),
        disturbed_share=float(1 - by_round.mean()),
        others_share=max((event.get("others_share", 0.0) for event in events), default=0.0),
    )


def _column(samples: pd.DataFrame, label: str, phase: str) -> pd.DataFrame:
    """Values and whether they are clear, by (session, round)."""
    rows = samples[(samples["sub_block"] == label) & (samples["phase"] == phase)]
    return rows.set_index(["session", "round"])[["latency_us", "clear"]].rename(columns={"latency_us": "value"})


def _ratio(parent: pd.DataFrame, child: pd.DataFrame) -> pd.DataFrame:
    both = parent.index.intersection(child.index)
    one, other = parent.loc[both], child.loc[both]
    return pd.DataFrame({"value": one["value"] / other["value"], "clear": one["clear"] & other["clear"]})


def _combine(columns: Sequence[pd.DataFrame], level_error: float) -> Combined:
    """Medians of the sessions of every column, put together."""
    sessions = sorted({int(session) for column in columns for session in column.index.get_level_values("session")})
    medians, within = (np.full((len(sessions), len(columns)), np.nan) for _ in range(2))
    for place, column in enumerate(columns):
        kept = column[column["clear"]] if column["clear"].any() else column
        for row, session in enumerate(sessions):
            values: FloatArray = kept.loc[kept.index.get_level_values("session") == session, "value"].to_numpy()
            if len(values):
                medians[row, place], within[row, place] = median_and_error(values)
    return combine_sessions(medians, within, level_error=level_error)


def _intervals(combined: Combined) -> list[Interval]:
    ends = zip(combined.latency_us, combined.low_us, combined.high_us, strict=True)
    return [Interval(value=float(value), low=float(low), high=float(high)) for value, low, high in ends]


def _speed(us: dict[str, Interval], scenario: SpeedScenario) -> Speed:
    return Speed(
        prefill_ms=us["prefill"].scaled(1e-3),
        tpot_ms=us["decode"].scaled(1e-3 / (scenario.decode_len - 1)),
        generate_ms=us["generate"].scaled(1e-3),
        generated_tokens_per_s=us["generate"].scaled(1e-6).rate(scenario.batch_size * scenario.decode_len),
    )
