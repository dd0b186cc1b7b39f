"""What engines add to their kernels, fitted to measured serving runs, and how far predictions then lie from them.

Four numbers for iterations and one for requests, per engine and version, whatever the model or the GPU. They are fitted
on the `develop` runs alone (`python -m puzzlebench.serving.calibration`) and written to data/overheads.json, with the
90 % quantiles of their errors: of runs that a fit left out in turn, and of whole GPUs and models that it left out. Time
per token and throughput are those of the steady state; the time to the first token, which benchmarks report with the
first wave in it, is that of a replay.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from puzzlebench.files import write_text
from puzzlebench.model.catalog import load_model
from puzzlebench.profiling.arrays import FloatArray
from puzzlebench.profiling.sources import open_kernels
from puzzlebench.scenario import Precision
from puzzlebench.serving.iterations import Overheads
from puzzlebench.serving.runs import ServingRun, benchmarks, serving_runs
from puzzlebench.serving.served_model import NO_OVERHEADS, ServedModel
from puzzlebench.serving.workload import Scheduler

OVERHEADS_FILE: Final = Path(__file__).parent / "data" / "overheads.json"
SCHEMA_VERSION: Final = 1
COVERAGE: Final = 0.9
METRICS: Final = ("tpot", "ttft", "throughput")
_LONGEST: Final = (8192, 8192)  # tokens of prompts and answers in the runs
_LINEAR: Final = ("sub_block_us", "all_reduce_us", "sequence_us")
LAUNCHES: Final = (0.0, 100.0, 200.0, 400.0, 800.0)  # microseconds; tried one by one, since its effect has a kink
_ROUNDS: Final = 2
_FOLDS: Final = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """The overheads of one engine and version.

    Attributes:
        name: of the benchmark that its runs come from.
        runs: that it was fitted on, `gpus` and `models` those of them.
        widths: 90 % of develop runs lie within these errors (METRICS -> logarithm of the ratio) when they are left out
            of the fit, a fifth at a time.
        elsewhere: the same when the GPU is left out, or of another version's runs of another model.
    """

    name: str
    engine: str
    engine_version: str
    runs: int
    gpus: tuple[str, ...]
    models: tuple[str, ...]
    overheads: Overheads
    widths: Mapping[str, float]
    elsewhere: Mapping[str, float]

    @property
    def label(self) -> str:
        """For people."""
        version = self.engine_version or benchmarks()[self.name].engine_version
        return f"{self.engine} {version}, {self.runs} runs of {', '.join(self.models)} on {', '.join(self.gpus)}"

    def covers(self, gpu: str, model: str) -> bool:
        """Whether runs of this GPU and of this model are in it."""
        return gpu in self.gpus and model in self.models


@dataclass(frozen=True, kw_only=True, slots=True)
class Predicted:
    """A run as predicted: means over its requests, `ttft_ms` with the benchmark's first wave."""

    tpot_ms: float
    ttft_ms: float
    tokens_per_s: float


@cache
def calibrations() -> tuple[Calibration, ...]:
    """Those that ship, the preferred one of each engine first."""
    return tuple(
        Calibration(
            **{**entry, "gpus": tuple(entry["gpus"]), "models": tuple(entry["models"])}
            | {"overheads": Overheads(**entry["overheads"])}
        )
        for entry in _stated(OVERHEADS_FILE)["calibrations"]
    )


@cache
def _stated(path: Path) -> Mapping[str, Any]:
    """What the file of overheads holds."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if found["schema_version"] != SCHEMA_VERSION:
        schema = found["schema_version"]
        raise ValueError(f"{path.name} has schema {schema}; this version reads {SCHEMA_VERSION}")
    return found


def find_calibration(engine: str, *, gpu: str, model: str) -> Calibration | None:
    """The one with runs of this GPU and model, else the engine's preferred one; None where the engine has none."""
    mine = [one for one in calibrations() if one.engine == engine]
    return next(iter([one for one in mine if one.covers(gpu, model)] + mine), None)


def interval_widths(calibration: Calibration | None, *, gpu: str, model: str) -> Mapping[str, float]:
    """Half widths of 90 % intervals, METRICS -> logarithm of the ratio."""
    if calibration is None:
        return unfitted_widths()
    return calibration.widths if calibration.covers(gpu, model) else calibration.elsewhere


def unfitted_widths() -> dict[str, float]:
    """How wide intervals are where an engine has no calibration: as without one for engines that have."""
    without = _stated(OVERHEADS_FILE)["without"]
    return {metric: float(without[metric]) for metric in METRICS}


def served(run: ServingRun, overheads: Overheads) -> ServedModel:
    """The model of a run."""
    without_wait = replace(run.scheduler, wait_iterations=0, wait_share=0.0)
    opened = _opened(run.gpu, run.engine, run.model, run.precision, without_wait)
    return opened.changed(overheads=overheads, scheduler=run.scheduler)


@cache
def _opened(gpu: str, engine: str, model: str, precision: Precision, scheduler: Scheduler) -> ServedModel:
    spec, architecture = load_model(model)
    sheet, kernels = open_kernels(gpu, engine)
    return ServedModel(
        kernels=kernels,
        gpu=sheet,
        spec=spec,
        architecture=architecture,
        precision=precision,
        scheduler=scheduler,
        longest=_LONGEST,
    )


def predict(run: ServingRun, overheads: Overheads = NO_OVERHEADS) -> Predicted:
    """A run: its steady state, and the replay of its benchmark for the time to the first token."""
    model = served(run, overheads)
    state = model.steady(run.workload)
    ttft = float(model.simulate(run.workload, requests=run.requests).ttft_ms.mean())
    rate = closed_loop_rate(run, ttft_ms=ttft, tpot_ms=state.tpot_ms)
    return Predicted(tpot_ms=state.tpot_ms, ttft_ms=ttft, tokens_per_s=rate)


def closed_loop_rate(run: ServingRun, *, ttft_ms: float, tpot_ms: float) -> float:
    """Generated tokens per second of users who ask again at once (the runs state times only)."""
    tokens = run.workload.decode.mean
    return 1e3 * run.concurrency * tokens / (ttft_ms + (tokens - 1) * tpot_ms)


def log_errors(runs: Sequence[ServingRun], predicted: Sequence[Predicted]) -> dict[str, FloatArray]:
    """Logarithms of predicted over measured, (runs,), by metric."""
    pairs = {"tpot": [], "ttft": [], "throughput": []}  # type: dict[str, list[float]]
    for run, found in zip(runs, predicted, strict=True):
        measured = closed_loop_rate(run, ttft_ms=run.ttft_ms, tpot_ms=run.tpot_ms)
        pairs["tpot"].append(np.log(found.tpot_ms / run.tpot_ms))
        pairs["ttft"].append(np.log(found.ttft_ms / run.ttft_ms))
        pairs["throughput"].append(np.log(found.tokens_per_s / measured))
    return {metric: np.array(values) for metric, values in pairs.items()}


def fit(runs: Sequence[ServingRun], *, launches: Sequence[float] = LAUNCHES) -> Overheads:
    """The overheads with the least sum of absolute relative errors of time per token, then of the first one."""
    fitted = [_fit_iterations(runs, Overheads(launch_us=launch)) for launch in launches]
    found = min(fitted, key=lambda one: float(np.abs(_missing(runs, one)).sum()))
    first = np.array([run.ttft_ms for run in runs])
    for _ in range(2):  # who waits longer for the first token decodes less of the time
        late = first - np.array([predict(run, found).ttft_ms for run in runs]) + found.request_ms
        request = float(_least_absolute(1 / first[:, None], late / first)[0])
        found = _fit_iterations(runs, replace(found, request_ms=max(0.0, request)))
    return found


def _fit_iterations(runs: Sequence[ServingRun], found: Overheads) -> Overheads:
    """All but `launch_us` and `request_ms`: least absolute errors, made linear where they stand."""
    for _ in range(_ROUNDS):
        missing = _missing(runs, found)
        changed = [replace(found, **{name: getattr(found, name) + 1.0}) for name in _LINEAR]
        effect = np.stack([missing - _missing(runs, one) for one in changed], axis=1)
        more = _least_absolute(effect, missing)
        steps = zip(_LINEAR, more.tolist(), strict=True)
        found = replace(found, **{name: getattr(found, name) + step for name, step in steps})
    return found


def _missing(runs: Sequence[ServingRun], overheads: Overheads) -> FloatArray:
    """What is missing of the time per token, relative to the measured one, (runs,)."""
    predicted = [served(run, overheads).steady(run.workload).tpot_ms for run in runs]
    return np.array([1 - time / run.tpot_ms for time, run in zip(predicted, runs, strict=True)])


def _least_absolute(features: FloatArray, wanted: FloatArray) -> FloatArray:
    """Coefficients with the least sum of absolute errors, (features,); those of a column without content are 0."""
    from scipy.optimize import linprog

    rows, columns = features.shape
    used = np.flatnonzero(np.abs(features).max(axis=0) > 0)
    chosen = features[:, used]
    errors = np.eye(rows)
    answer = linprog(
        np.concatenate([np.zeros(len(used)), np.ones(rows)]),
        A_ub=np.block([[chosen, -errors], [-chosen, -errors]]),
        b_ub=np.concatenate([wanted, -wanted]),
        bounds=[(None, None)] * len(used) + [(0, None)] * rows,
    )
    found = np.zeros(columns)
    found[used] = answer.x[: len(used)]
    return found


def quantile(errors: FloatArray, coverage: float = COVERAGE) -> float:
    """The absolute error that a further run keeps with this probability, if it is like these."""
    ranked = np.sort(np.abs(errors))
    place = min(len(ranked) - 1, int(np.ceil((len(ranked) + 1) * coverage)) - 1)
    return float(ranked[place])


def left_out_errors(
    runs: Sequence[ServingRun], parts: Sequence[object], overheads: Overheads
) -> dict[str, list[FloatArray]]:
    """Errors of each part of the runs under overheads fitted on the others, by metric; `launch_us` is kept."""
    found: dict[str, list[FloatArray]] = {metric: [] for metric in METRICS}
    for part in sorted(set(parts), key=str):
        inside = [run for run, mine in zip(runs, parts, strict=True) if mine == part]
        others = [run for run, mine in zip(runs, parts, strict=True) if mine != part]
        if not others:
            continue
        other = fit(others, launches=(overheads.launch_us,))
        for metric, errors in log_errors(inside, [predict(run, other) for run in inside]).items():
            found[metric].append(errors)
    return found


def calibrate(runs: Sequence[ServingRun], *, progress: Callable[[str], None] = lambda _text: None) -> dict[str, Any]:
    """What data/overheads.json holds, from `develop` runs."""
    groups: dict[tuple[str, str, str], list[ServingRun]] = {}
    for run in sorted(runs, key=lambda one: (list(benchmarks()).index(one.benchmark), one.id)):
        groups.setdefault(run.group, []).append(run)
    fitted = {group: fit(mine) for group, mine in groups.items()}
    without: dict[str, list[FloatArray]] = {metric: [] for metric in METRICS}
    entries = []
    for group, mine in groups.items():
        name, engine, version = group
        folds = left_out_errors(mine, [place % _FOLDS for place in range(len(mine))], fitted[group])
        away = left_out_errors(mine, [run.gpu for run in mine], fitted[group])
        foreign = [run for other, theirs in groups.items() if other != group and other[1] == engine for run in theirs]
        for metric, errors in log_errors(foreign, [predict(run, fitted[group]) for run in foreign]).items():
            away[metric].append(errors)
        for metric, errors in log_errors(mine, [predict(run) for run in mine]).items():
            without[metric].append(errors)
        entry = Calibration(
            name=name,
            engine=engine,
            engine_version=version,
            runs=len(mine),
            gpus=tuple(sorted({run.gpu for run in mine})),
            models=tuple(sorted({run.model for run in mine})),
            overheads=fitted[group],
            widths=_widths(folds),
            elsewhere=_widths(away, at_least=_widths(folds)),
        )
        entries.append(asdict(entry))
        progress(f"{name}: {entry.label}: {entry.overheads}, {entry.widths}, elsewhere {entry.elsewhere}")
    return {
        "schema_version": SCHEMA_VERSION,
        "method": "least absolute relative errors of the develop runs",
        "calibrations": entries,
        "without": _widths(without),
    }


def _widths(errors: Mapping[str, list[FloatArray]], at_least: Mapping[str, float] | None = None) -> dict[str, float]:
    """Quantiles of all parts together; of none, what is asked at least."""
    found = dict(at_least or {})
    for metric, parts in errors.items():
        together = np.concatenate([*parts, np.zeros(0)])
        if len(together):
            found[metric] = max(found.get(metric, 0.0), quantile(together))
    return found


def main() -> None:
    """Command line: fit again and rewrite the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OVERHEADS_FILE)
    arguments = parser.parse_args()
    runs = [run for run in serving_runs() if run.split == "develop"]
    found = calibrate(runs, progress=print)
    write_text(arguments.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
