"""Served models predicted beside measured runs: by the steady state, and replayed as the benchmark ran them.

A run is predicted with the overheads of its own engine version, which were fitted on `develop` runs alone
(`serving.calibration`). What a GPU or model is worth whose runs nothing was fitted on is measured by fitting again
without them. Errors are relative; throughput is that of users who ask again at once, from the two measured times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from puzzlebench.profiling.arrays import FloatArray
from puzzlebench.serving.calibration import (
    METRICS,
    Calibration,
    Predicted,
    calibrations,
    find_calibration,
    fit,
    log_errors,
    predict,
    replay,
    served,
    unfitted_widths,
)
from puzzlebench.serving.iterations import Overheads
from puzzlebench.serving.published import PublishedRun, predict_published
from puzzlebench.serving.runs import SPLITS, ServingRun, benchmarks
from puzzlebench.serving.served_model import NO_OVERHEADS, ServedModel
from puzzlebench.serving.steady import SteadyState
from puzzlebench.validation.held_out import ErrorSummary

METHODS: Final = ("steady", "replay")
UNQUEUED: Final = "ttft, all in flight"
SETTLED: Final = "ttft, settled"
_NORMAL_90_TO_95: Final = 1.645 / 1.96
_QUIET: Final[Callable[[str], None]] = lambda _text: None  # noqa: E731


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictedRun:
    """A measured run as predicted.

    Attributes:
        steady: time per token of the steady state; time to the first one, with the benchmark's first wave, of a replay.
        replay: all of it from a replay.
        settled_ttft_ms: time to the first token in the steady state, without a first wave.
        widths: half of the stated 90 % interval, as the logarithm of a ratio, by metric.
        in_flight: batch and cache have place for all users, so that none waits for another's answer to end.
    """

    run: ServingRun
    steady: Predicted
    replay: Predicted
    settled_ttft_ms: float
    widths: Mapping[str, float]
    in_flight: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingError:
    """Errors of one method over the runs that share a value, by metric; None of no runs.

    Metrics are METRICS; UNQUEUED, of the runs whose users were all in flight; and SETTLED, of these in the steady state
    without the benchmark's first wave.
    """

    method: str
    split: str
    by: str
    value: str
    errors: Mapping[str, ErrorSummary | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class UnusedGroup:
    """Errors (steady state, report half) of runs whose GPU or model the overheads were not fitted on.

    Attributes:
        used: what they were fitted on instead; `fitted`: how many runs of it.
    """

    engine: str
    left_out: str
    used: str
    fitted: int
    errors: Mapping[str, ErrorSummary | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedError:
    """A published throughput beside the predicted one, tokens generated per second of the whole group.

    `width` is half of the stated 90 % interval, as the logarithm of a ratio.
    """

    run: PublishedRun
    predicted: float
    width: float


def predict_runs(runs: Sequence[ServingRun], *, progress: Callable[[str], None] = _QUIET) -> list[PredictedRun]:
    """Both predictions of every run."""
    found = []
    for place, run in enumerate(runs):
        if place % 50 == 0:
            progress(f"serving runs: {place} of {len(runs)}")
        calibration = calibration_of(run)
        model = served(run, calibration.overheads)
        state = model.steady(run.workload)
        found.append(
            PredictedRun(
                run=run,
                steady=predict(run, calibration.overheads),
                replay=replay(run, calibration.overheads),
                settled_ttft_ms=state.ttft_ms,
                widths=_widths(model, state, calibration),
                in_flight=state.limit == "users",
            )
        )
    return found


def calibration_of(run: ServingRun) -> Calibration:
    """Of the benchmark and engine version that a run belongs to, else of its engine.

    Raises:
        ValueError: its engine has none.
    """
    for one in calibrations():
        if (one.name, one.engine, one.engine_version) == run.group:
            return one
    found = find_calibration(run.engine, run.engine_version)
    if found is None:
        raise ValueError(f"no overheads were fitted for {run.engine}")
    return found


def serving_errors(predicted: Sequence[PredictedRun], by: Sequence[str] | None = None) -> list[ServingError]:
    """Errors by method, split and every value of every property of a run (those of `by`: see `properties`)."""
    groups: dict[tuple[str, str, str], list[PredictedRun]] = {}
    for one in predicted:
        for name, value in properties(one.run).items():
            if by is None or name in by:
                groups.setdefault((name, value, one.run.split), []).append(one)
    order = {name: place for place, name in enumerate(properties(predicted[0].run))} if predicted else {}
    keys = sorted(groups, key=lambda key: (order[key[0]], _by_number(key[1]), SPLITS.index(key[2])))
    return [
        ServingError(
            method=method, split=split, by=name, value=value, errors=_errors(groups[name, value, split], method)
        )
        for method in METHODS
        for name, value, split in keys
    ]


def errors_by_engine(predicted: Sequence[PredictedRun], by: Sequence[str]) -> dict[str, list[ServingError]]:
    """`serving_errors` of each engine's runs, by `engine_label`."""
    engines = sorted({engine_label(one.run) for one in predicted})
    return {
        engine: serving_errors([one for one in predicted if engine_label(one.run) == engine], by) for engine in engines
    }


def properties(run: ServingRun) -> dict[str, str]:
    """What errors are told apart by."""
    return {
        "all": "all",
        "GPU": run.gpu,
        "engine": engine_label(run),
        "model": f"{run.model} {run.precision.weight_dtype}",
        "TP": str(run.tensor_parallel),
        "lengths": f"{run.prefill_len}/{run.decode_len}",
        "users": str(run.concurrency),
    }


def engine_label(run: ServingRun) -> str:
    """Engine and version."""
    return f"{run.engine} {run.engine_version or benchmarks()[run.benchmark].engine_version}".rstrip()


def unused_groups(runs: Sequence[ServingRun], *, progress: Callable[[str], None] = _QUIET) -> list[UnusedGroup]:
    """Errors for runs that nothing was fitted on.

    First each GPU in turn, its engine version's overheads fitted on develop runs of the other GPUs; then each engine
    version with the overheads of the engine's other versions, where these were fitted on other models.
    """
    groups: dict[tuple[str, str, str], list[ServingRun]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    found = []
    for mine in groups.values():
        for gpu in sorted({run.gpu for run in mine}):
            others = [run for run in mine if run.gpu != gpu and run.split == "develop"]
            held = [run for run in mine if run.gpu == gpu and run.split == "report"]
            if others and held:
                progress(f"{engine_label(held[0])} without {gpu}: fitted on {len(others)} runs")
                used = ", ".join(sorted({run.gpu for run in others}))
                found.append(_unused(held, gpu, used, len(others), fit(others)))
    for mine in groups.values():
        held, models = [run for run in mine if run.split == "report"], {run.model for run in mine}
        for one in calibrations():
            own = (one.name, one.engine, one.engine_version) == mine[0].group
            if held and not own and one.engine == mine[0].engine and not models & set(one.models):
                used = f"{', '.join(one.models)} on {', '.join(one.gpus)}"
                found.append(_unused(held, ", ".join(sorted(models)), used, one.runs, one.overheads))
    return found


def _unused(held: Sequence[ServingRun], left_out: str, used: str, fitted: int, overheads: Overheads) -> UnusedGroup:
    errors = log_errors(held, [predict(run, overheads) for run in held])
    return UnusedGroup(
        engine=engine_label(held[0]),
        left_out=left_out,
        used=used,
        fitted=fitted,
        errors={metric: ErrorSummary.of(np.expm1(errors[metric])) for metric in METRICS},
    )


def published_errors(runs: Sequence[PublishedRun], *, progress: Callable[[str], None] = _QUIET) -> list[PublishedError]:
    """Published throughputs beside predictions with the overheads of their engine."""
    found = []
    for place, run in enumerate(runs):
        if place % 10 == 0:
            progress(f"published throughputs: {place} of {len(runs)}")
        calibration = find_calibration(run.engine, run.engine_version)
        overheads, widths = (
            (NO_OVERHEADS, unfitted_widths()) if calibration is None else (calibration.overheads, calibration.widths)
        )
        predicted = predict_published(run, overheads)
        found.append(PublishedError(run=run, predicted=predicted, width=widths["throughput"]))
    return found


def _errors(group: Sequence[PredictedRun], method: str) -> dict[str, ErrorSummary | None]:
    runs = [one.run for one in group]
    logs = log_errors(runs, [getattr(one, method) for one in group])
    found: dict[str, ErrorSummary | None] = {}
    for metric in METRICS:
        inside = (np.abs(logs[metric]) <= np.array([one.widths[metric] for one in group])).astype(np.float64)
        found[metric] = ErrorSummary.of(np.expm1(logs[metric]), inside)
    in_flight = np.array([one.in_flight for one in group])
    found[UNQUEUED] = _of_those(logs["ttft"], in_flight)
    settled = np.log([one.settled_ttft_ms / one.run.ttft_ms for one in group])
    found[SETTLED] = _of_those(settled, in_flight) if method == "steady" else None
    return found


def _of_those(logs: FloatArray, wanted: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> ErrorSummary | None:
    return ErrorSummary.of(np.expm1(logs[wanted])) if wanted.any() else None


def _by_number(value: str) -> tuple[tuple[int, str], ...]:
    """Sorts 8 before 16."""
    return tuple((int(part), "") if part.isdigit() else (0, part) for part in value.split("/"))


def _widths(model: ServedModel, state: SteadyState, calibration: Calibration) -> dict[str, float]:
    """As `serving.estimating` states them."""
    least = _NORMAL_90_TO_95 * math.log1p(model.kernel_spread(state))
    return {metric: max(calibration.widths[metric], least) for metric in METRICS}
