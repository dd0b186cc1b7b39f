"""Served models predicted beside measured runs: by the steady state, and replayed as the benchmark ran them.

A run is predicted as the command predicts it: overheads chosen by engine, GPU and model, and intervals as wide as
`serving.estimating` states them. Both come from `develop` runs alone (`serving.calibration`). What a GPU or model is
worth whose runs nothing was fitted on is measured by fitting again without them. Errors are relative; throughput is
that of users who ask again at once, from the two measured times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from puzzlebench.profiling.arrays import BoolArray
from puzzlebench.serving.calibration import (
    COVERAGE,
    METRICS,
    Calibration,
    Predicted,
    calibrations,
    closed_loop_rate,
    find_calibration,
    fit,
    interval_widths,
    log_errors,
    predict,
    served,
)
from puzzlebench.serving.estimating import widths_of
from puzzlebench.serving.iterations import Overheads
from puzzlebench.serving.published import PublishedRun, predict_published
from puzzlebench.serving.runs import SPLITS, ServingRun, benchmarks
from puzzlebench.serving.served_model import NO_OVERHEADS
from puzzlebench.validation.held_out import ErrorSummary

METHODS: Final = ("steady", "replay")
UNQUEUED: Final = "ttft, all in flight"
SETTLED: Final = "ttft, settled"
TARGETS: Final = {"median": 5.0, "p90": 15.0, "ttft": 10.0}
"""Percent: median and 90th percentile of time per token and throughput, median of time to the first token."""
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

    Metrics are METRICS; UNQUEUED, the time to the first token of the runs whose users were all in flight; and SETTLED,
    that of all runs in the steady state, without the benchmark's first wave: what `estimate --serving` states.
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
        found.append(predict_run(run))
    return found


def predict_run(run: ServingRun) -> PredictedRun:
    """Both predictions of a run, with the overheads and intervals that a user gets for its engine, GPU and model."""
    calibration = find_calibration(run.engine, gpu=run.gpu, model=run.model)
    model = served(run, NO_OVERHEADS if calibration is None else calibration.overheads)
    state = model.steady(run.workload)
    one_by_one = model.simulate(run.workload, requests=run.requests)
    first = float(one_by_one.ttft_ms.mean())

    def predicted(tpot: float) -> Predicted:
        return Predicted(tpot_ms=tpot, ttft_ms=first, tokens_per_s=closed_loop_rate(run, ttft_ms=first, tpot_ms=tpot))

    return PredictedRun(
        run=run,
        steady=predicted(state.tpot_ms),
        replay=predicted(float(np.nanmean(one_by_one.tpot_ms))),
        settled_ttft_ms=state.ttft_ms,
        widths=widths_of(model, state),
        in_flight=state.limit == "users",
    )


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
                own = find_calibration(held[0].engine, gpu=gpu, model=held[0].model)
                used = ", ".join(sorted({run.gpu for run in others}))
                found.append(_unused(held, gpu, used, len(others), *_fitted_again(others, own)))
    for mine in groups.values():
        held, models = [run for run in mine if run.split == "report"], {run.model for run in mine}
        for one in calibrations():
            same = (one.name, one.engine, one.engine_version) == mine[0].group
            if held and not same and one.engine == mine[0].engine and not models & set(one.models):
                used = f"{', '.join(one.models)} on {', '.join(one.gpus)}"
                found.append(_unused(held, ", ".join(sorted(models)), used, one.runs, one.overheads, one.elsewhere))
    return found


def _fitted_again(runs: Sequence[ServingRun], own: Calibration | None) -> tuple[Overheads, Mapping[str, float]]:
    """Overheads of these runs alone (`launch_us` as it was chosen on all), and the widths for GPUs without runs."""
    if own is None:
        return fit(runs), interval_widths(None, gpu="", model="")
    return fit(runs, launches=(own.overheads.launch_us,)), own.elsewhere


def _unused(
    held: Sequence[ServingRun],
    left_out: str,
    used: str,
    fitted: int,
    overheads: Overheads,
    widths: Mapping[str, float],
) -> UnusedGroup:
    logs = log_errors(held, [predict(run, overheads) for run in held])
    return UnusedGroup(
        engine=engine_label(held[0]),
        left_out=left_out,
        used=used,
        fitted=fitted,
        errors={
            metric: ErrorSummary.of(np.expm1(logs[metric]), (np.abs(logs[metric]) <= widths[metric]).astype(np.float64))
            for metric in METRICS
        },
    )


def published_errors(runs: Sequence[PublishedRun], *, progress: Callable[[str], None] = _QUIET) -> list[PublishedError]:
    """Published throughputs beside predictions with the overheads that a user gets."""
    found = []
    for place, run in enumerate(runs):
        if place % 10 == 0:
            progress(f"published throughputs: {place} of {len(runs)}")
        calibration = find_calibration(run.engine, gpu=run.gpu, model=run.model)
        predicted = predict_published(run, NO_OVERHEADS if calibration is None else calibration.overheads)
        width = interval_widths(calibration, gpu=run.gpu, model=run.model)["throughput"]
        found.append(PublishedError(run=run, predicted=predicted, width=width))
    return found


def target_cells(
    predicted: Sequence[PredictedRun], split: str = "report"
) -> list[tuple[tuple[str, str, str], Mapping[str, ErrorSummary | None]]]:
    """Errors of one half in the steady state by (GPU, engine, TP): all together, GPU and engine, then each TP."""
    groups: dict[tuple[str, str, str], list[PredictedRun]] = {}
    for one in predicted:
        if one.run.split == split:
            whole = (one.run.gpu, engine_label(one.run))
            for key in (("all", "all", "all"), (*whole, "all"), (*whole, str(one.run.tensor_parallel))):
                groups.setdefault(key, []).append(one)
    order = sorted(groups, key=lambda key: (key[0] != "all", key[:2], key[2] != "all", _by_number(key[2])))
    return [(key, _errors(groups[key], "steady")) for key in order]


def missed(errors: Mapping[str, ErrorSummary | None]) -> list[str]:
    """Which TARGETS such errors miss, and whose intervals hold less than they state."""
    found = []
    for metric, name in (("tpot", "TPOT"), ("throughput", "throughput")):
        error = errors[metric]
        if error is not None:
            found += [f"{name} {key}" for key in ("median", "p90") if getattr(error, key) > TARGETS[key]]
            if error.coverage is not None and error.coverage < COVERAGE:
                found.append(f"{name} inside")
    first = errors[UNQUEUED]
    if first is not None and first.median > TARGETS["ttft"]:
        found.append("TTFT")
    return found


def _errors(group: Sequence[PredictedRun], method: str) -> dict[str, ErrorSummary | None]:
    runs = [one.run for one in group]
    logs = log_errors(runs, [getattr(one, method) for one in group])
    logs[SETTLED] = np.log([one.settled_ttft_ms / one.run.ttft_ms for one in group])
    widths = {metric: np.array([one.widths[metric] for one in group]) for metric in METRICS}

    def summary(name: str, metric: str, wanted: BoolArray) -> ErrorSummary | None:
        if not wanted.any():
            return None
        inside = (np.abs(logs[name]) <= widths[metric]).astype(np.float64)
        return ErrorSummary.of(np.expm1(logs[name][wanted]), inside[wanted])

    every, in_flight = np.ones(len(group), dtype=bool), np.array([one.in_flight for one in group])
    found = {metric: summary(metric, metric, every) for metric in METRICS}
    found[UNQUEUED] = summary("ttft", "ttft", in_flight)
    found[SETTLED] = summary(SETTLED, "ttft", every) if method == "steady" else None
    return found


def _by_number(value: str) -> tuple[tuple[int, str], ...]:
    """Sorts 8 before 16."""
    return tuple((int(part), "") if part.isdigit() else (0, part) for part in value.split("/"))
