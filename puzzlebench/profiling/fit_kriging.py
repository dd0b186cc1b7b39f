"""Fit the kriging hyperparameters of the kernel model: `python -m puzzlebench.profiling.fit_kriging` (needs torch).

Fits on ONE GPU's tables (H200), over the splits of `holdout`; every other GPU, H100 included, stays unseen, so that
docs/accuracy.md reports on tables that no hyperparameter was fitted to. TensorRT-LLM's kernels are fitted by kind, the
other engines' by kind and dtype, and a fit of theirs is kept only where it predicts held-out rows of the H200 better
than TensorRT-LLM's does. Loss: Laplace likelihood of held-out log latencies.

Reads nothing but the kernel tables that ship with the package and writes kriging.json, which the kernel model reads;
run `calibrate_intervals` afterwards. A fit takes 2 to 6 minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found, unused-ignore]

from puzzlebench.profiling.arrays import FloatArray, IntArray
from puzzlebench.profiling.holdout import random_split, whole_value_splits
from puzzlebench.profiling.kernel_features import KINDS, SLICES, KernelKind
from puzzlebench.profiling.kriging import KrigingParameters, LocalKriging, krige
from puzzlebench.profiling.measured_kernels import MeasuredKernels
from puzzlebench.profiling.parameters import (
    BASE_ENGINE,
    PARAMETERS_FILE,
    SCHEMA_VERSION,
    own_name,
    read_parameters,
)
from puzzlebench.profiling.sources import ENGINES
from puzzlebench_profiles.kernel_tables import find_kernel_table, manifest

FIT_GPU = "h200_sxm"
_NEIGHBOURS = {"gemm": 80, "prefill_attention": 64, "decode_attention": 64}
_COMPONENTS = {"gemm": 5, "prefill_attention": 4, "decode_attention": 4}
_BATCH = 192
_KEYS = ("schema_version", "about", "fitted_on", "surfaces", "engines")
_RANDOM_ROWS, _WHOLE_ROWS = 4000, 400  # held-out rows per split that the fit draws from
_COMPARED_ROWS = 1500  # held-out rows per kind of split by which two fits are compared

Task = tuple[FloatArray, FloatArray, IntArray]
"""Features (N, F), logarithms of latency over ideal latency (N,), and rows (R, 1 + neighbours): a held-out point, then
its known neighbours."""


def main() -> None:
    """Command line: fit every kernel kind, or those named, of every engine or of those named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kinds", nargs="*", help=f"default: {' '.join(KINDS)}")
    parser.add_argument("--engine", choices=ENGINES, action="append", help="repeat; default: each of them")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=PARAMETERS_FILE)
    arguments = parser.parse_args()
    if unknown := set(arguments.kinds) - KINDS.keys():
        parser.error(f"unknown kernel kind {min(unknown)!r}; known: {', '.join(KINDS)}")
    for engine in arguments.engine or ENGINES:
        for name in arguments.kinds or KINDS:
            slices = [dtypes for kind, dtypes in SLICES if kind == name]
            for some in [slices] if engine == BASE_ENGINE else [[dtypes] for dtypes in slices]:
                tasks = held_out_tasks(KINDS[name], engine, some)
                if tasks:  # the engine was measured in these dtypes
                    fitted = fit_kind(KINDS[name], tasks, steps=arguments.steps, label=f"{engine} {name} {some}")
                    write_fit(arguments.out, engine, name, some[0][0], fitted, tasks)


def write_fit(path: Path, engine: str, kind: str, dtype: str, fitted: dict[str, Any], tasks: list[Task]) -> None:
    """Put one fit into the file of hyperparameters; one of another engine than the first only if it is the better."""
    facts = manifest()
    written = json.loads(path.read_text()) if path.exists() else {"surfaces": {}, "engines": {}}
    written |= {
        "schema_version": SCHEMA_VERSION,
        "about": "written by `python -m puzzlebench.profiling.fit_kriging`",
        "fitted_on": f"{FIT_GPU}, kernel tables of {facts['source']} {facts['source_version']}",
    }
    entry = {"engine_version": find_kernel_table(FIT_GPU, engine).engine_version, **fitted}
    if engine == BASE_ENGINE:
        written["surfaces"][kind] = entry
    else:
        if kind not in written["surfaces"]:
            raise ValueError(f"{path} has no fit of {BASE_ENGINE}'s {kind} to compare with; fit that engine first")
        mine, shared = (
            round(100 * mean_error(tasks, read_parameters(one)), 3) for one in (fitted, written["surfaces"][kind])
        )
        own = written["engines"].setdefault(engine, {})
        own.pop(own_name(kind, dtype), None)
        if mine < shared:
            own[own_name(kind, dtype)] = {"held_out_percent": {"own": mine, BASE_ENGINE: shared}, **entry}
        print(f"{engine} {kind} {dtype}: mean error {mine} % held out, {shared} % with {BASE_ENGINE}'s", flush=True)
    text = json.dumps({key: written[key] for key in _KEYS}, indent=1)
    path.write_text(re.sub(r"\[\s+([-\d.e,\s]+?)\s+\]", _one_line, text) + "\n")


def mean_error(tasks: list[Task], parameters: KrigingParameters) -> float:
    """Mean absolute error of the logarithm of held-out latencies; every kind of split weighs the same."""
    rng = np.random.default_rng(0)
    means = []
    for x, u, known in tasks:
        rows = rng.permutation(known)[:_COMPARED_ROWS]
        predicted, _ = krige(parameters, x[rows[:, 1:]], u[rows[:, 1:]], x[rows[:, 0]])
        means.append(np.abs(predicted - u[rows[:, 0]]).mean())
    return float(np.mean(means))


def fit_kind(kind: KernelKind, tasks: list[Task], *, steps: int, seed: int = 0, label: str = "") -> dict[str, Any]:
    """Hyperparameters of one kernel kind as plain numbers."""
    metric = _metric(kind, tasks[0][0].shape[1])
    torch.manual_seed(seed)
    model = _Surface(kind.sizes, len(metric), _COMPONENTS[kind.name])
    optimiser = torch.optim.Adam(model.parameters(), lr=0.08)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.08, total_steps=steps)
    rng = np.random.default_rng(seed)
    for step in range(steps):
        x, u, known = tasks[rng.integers(len(tasks))]
        rows = known[rng.integers(0, len(known), _BATCH)]
        mean, variance = model(_tensor(x[rows[:, 1:]]), _tensor(u[rows[:, 1:]]), _tensor(x[rows[:, 0]]))
        error = (mean - _tensor(u[rows[:, 0]])).abs()
        loss = (error / variance.sqrt() + 0.5 * variance.log()).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            print(
                f"{label} {step}: loss {loss.item():.3f}, median error {error.median().item():.4f}",
                flush=True,
            )
    return model.export(metric, _NEIGHBOURS[kind.name]) | {"steps": steps}


def held_out_tasks(kind: KernelKind, engine: str, slices: Sequence[tuple[str, ...]], *, seed: int = 0) -> list[Task]:
    """What to predict, by kind of split, in those of the dtypes that the engine was measured in on the fitting GPU."""
    kernels = MeasuredKernels(find_kernel_table(FIT_GPU, engine))
    found = []
    for dtypes in slices:
        try:
            table = kernels.rows(kind.name, *dtypes)
        except ValueError:
            continue  # this engine was not measured in these dtypes
        u = np.log(table["latency_us"] / kind.ideal_us(table, kernels.datasheet, dtypes[0]))
        found += _tasks(kind, table, kind.features(table, kernels.datasheet), u, seed)
    return found


def _tasks(kind: KernelKind, table: dict[str, FloatArray], x: FloatArray, u: FloatArray, seed: int) -> list[Task]:
    look_up = KrigingParameters(
        lengthscales=np.ones((1, x.shape[1])),
        amplitudes=np.ones(1),
        noise=1.0,
        metric=_metric(kind, x.shape[1]),
        neighbours=_NEIGHBOURS[kind.name],
    )
    by_name: dict[str, list[IntArray]] = {}
    rng = np.random.default_rng(seed)
    for split in [random_split(len(u), share=0.2, seed=seed), *whole_value_splits(kind, table)]:
        count = _RANDOM_ROWS if split.name.startswith("random") else _WHOLE_ROWS
        held = rng.permutation(split.held_out)[:count]
        _, near = LocalKriging(look_up, x[split.known], u[split.known]).nearest(x[held], look_up.neighbours)
        by_name.setdefault(split.name, []).append(np.concatenate([held[:, None], split.known[near]], axis=1))
    return [(x, u, np.concatenate(rows)) for rows in by_name.values()]


def _metric(kind: KernelKind, features: int) -> FloatArray:
    """Neighbours are looked up in the plain sizes, which come first."""
    return (np.arange(features) < kind.sizes).astype(np.float64)


def _one_line(found: re.Match[str]) -> str:
    return "[" + re.sub(r"\s+", " ", found[1]) + "]"


def _tensor(values: FloatArray) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64)  # distances are differences of large squares


class _Surface(torch.nn.Module):  # type: ignore[misc, unused-ignore]
    """The same covariance as `kriging`, differentiable."""

    def __init__(self, sizes: int, features: int, components: int) -> None:
        super().__init__()
        scales = torch.full((components, features), 1.0)
        scales[0] = 2.0
        scales[0, :sizes] = 1.5
        scales[2, 0], scales[2, 1:sizes] = -1.5, 2.0
        scales[3, sizes:] = -0.5
        if components > 4:  # steps along the second size, shared by the others
            scales[4, 0], scales[4, 1], scales[4, 2] = 2.0, -1.0, 2.0
        self.log_scales = torch.nn.Parameter(scales)
        self.log_amplitudes = torch.nn.Parameter(torch.tensor([0.0, -1.5, -2.0, -2.0, -2.0][:components]))
        self.log_noise = torch.nn.Parameter(torch.tensor(-4.0))
        self.double()

    def covariance(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(())
        for scale, amplitude in zip(self.log_scales.exp(), self.log_amplitudes.exp(), strict=True):
            a_s, b_s = a / scale, b / scale
            squared = a_s.pow(2).sum(-1).unsqueeze(-1) + b_s.pow(2).sum(-1).unsqueeze(-2) - 2.0 * a_s @ b_s.mT
            distance = (3.0 * squared.clamp_min(0.0) + 1e-12).sqrt()
            total = total + amplitude**2 * (1 + distance) * torch.exp(-distance)
        return total

    def forward(self, x: torch.Tensor, u: torch.Tensor, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        noise = (2 * self.log_noise).exp()
        covariance = self.covariance(x, x) + noise * torch.eye(x.shape[1], dtype=x.dtype)
        to_query = self.covariance(x, query.unsqueeze(1)).squeeze(-1)
        factor = torch.linalg.cholesky(covariance)
        solved = torch.cholesky_solve(torch.stack([u, torch.ones_like(u), to_query], -1), factor)
        mean = solved[..., 0].sum(-1, keepdim=True) / solved[..., 1].sum(-1, keepdim=True)
        prediction = mean.squeeze(-1) + (to_query * (solved[..., 0] - mean * solved[..., 1])).sum(-1)
        variance = (2 * self.log_amplitudes).exp().sum() + noise - (to_query * solved[..., 2]).sum(-1)
        return prediction, torch.maximum(variance, noise)

    def export(self, metric: FloatArray, neighbours: int) -> dict[str, Any]:
        return {
            "lengthscales": [[float(f"{v:.4g}") for v in row] for row in self.log_scales.exp().tolist()],
            "amplitudes": [float(f"{v:.4g}") for v in self.log_amplitudes.exp().tolist()],
            "noise": float(f"{self.log_noise.exp().item():.4g}"),
            "metric": metric.tolist(),
            "neighbours": neighbours,
        }


if __name__ == "__main__":
    main()
