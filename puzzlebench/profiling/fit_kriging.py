"""Fit the kriging hyperparameters of the kernel model: `python -m puzzlebench.profiling.fit_kriging` (needs torch).

Fits on ONE GPU's tables (H200, TensorRT-LLM), over the splits of `holdout`; every other GPU, H100 included, stays
unseen, so that docs/accuracy.md reports on tables that no hyperparameter was fitted to. Loss: Laplace likelihood of
held-out log latencies.

Reads nothing but the kernel tables that ship with the package and writes kriging.json, which the kernel model reads;
run `calibrate_intervals` afterwards. A kernel kind takes 2 to 6 minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found, unused-ignore]

from puzzlebench.profiling.arrays import FloatArray, IntArray
from puzzlebench.profiling.holdout import random_split, whole_value_splits
from puzzlebench.profiling.kernel_features import KINDS, SLICES, KernelKind
from puzzlebench.profiling.kriging import KrigingParameters, LocalKriging
from puzzlebench.profiling.measured_kernels import MeasuredKernels
from puzzlebench.profiling.parameters import PARAMETERS_FILE, SCHEMA_VERSION
from puzzlebench_profiles.kernel_tables import find_kernel_table, manifest

FIT_GPU, FIT_ENGINE = "h200_sxm", "trtllm"
_NEIGHBOURS = {"gemm": 80, "prefill_attention": 64, "decode_attention": 64}
_COMPONENTS = {"gemm": 5, "prefill_attention": 4, "decode_attention": 4}
_BATCH = 192
_KEYS = ("schema_version", "about", "fitted_on", "surfaces")
_RANDOM_ROWS, _WHOLE_ROWS = 4000, 400  # held-out rows per split that the fit draws from


def main() -> None:
    """Command line: fit every kernel kind, or those named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kinds", nargs="*", help=f"default: {' '.join(KINDS)}")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=PARAMETERS_FILE)
    arguments = parser.parse_args()
    if unknown := set(arguments.kinds) - KINDS.keys():
        parser.error(f"unknown kernel kind {min(unknown)!r}; known: {', '.join(KINDS)}")
    for name in arguments.kinds or KINDS:
        write_fit(arguments.out, name, fit_kind(KINDS[name], steps=arguments.steps))


def write_fit(path: Path, kind: str, fitted: dict[str, Any]) -> None:
    """Put one fit into the file of hyperparameters, beside those of the other kinds."""
    table, facts = find_kernel_table(FIT_GPU, FIT_ENGINE), manifest()
    written = json.loads(path.read_text()) if path.exists() else {"surfaces": {}}
    written |= {
        "schema_version": SCHEMA_VERSION,
        "about": "written by `python -m puzzlebench.profiling.fit_kriging`",
        "fitted_on": (
            f"{FIT_GPU}, {FIT_ENGINE} {table.engine_version} kernels of {facts['source']} {facts['source_version']}"
        ),
    }
    written["surfaces"][kind] = fitted
    text = json.dumps({key: written[key] for key in _KEYS}, indent=1)
    path.write_text(re.sub(r"\[\s+([-\d.e,\s]+?)\s+\]", _one_line, text) + "\n")


def fit_kind(kind: KernelKind, *, steps: int, seed: int = 0) -> dict[str, Any]:
    """Hyperparameters of one kernel kind as plain numbers."""
    slices = _slices(kind, FIT_GPU)
    metric = np.zeros(slices[0][1].shape[1])
    metric[: kind.sizes] = 1.0
    tasks = [task for piece in slices for task in _tasks(kind, *piece, metric, seed)]
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
            print(f"{kind.name} {step}: loss {loss.item():.3f}, median error {error.median().item():.4f}", flush=True)
    return model.export(metric, _NEIGHBOURS[kind.name]) | {"steps": steps}


def _slices(kind: KernelKind, gpu: str) -> list[tuple[dict[str, FloatArray], FloatArray, FloatArray]]:
    """(table, features, log of latency over ideal latency) of every slice of a GPU."""
    kernels = MeasuredKernels(find_kernel_table(gpu, FIT_ENGINE))
    slices = []
    for name, dtypes in SLICES:
        if name == kind.name:
            table = kernels.rows(name, *dtypes)
            u = np.log(table["latency_us"] / kind.ideal_us(table, kernels.datasheet, dtypes[0]))
            slices.append((table, kind.features(table, kernels.datasheet), u))
    return slices


def _tasks(
    kind: KernelKind, table: dict[str, FloatArray], x: FloatArray, u: FloatArray, metric: FloatArray, seed: int
) -> list[tuple[FloatArray, FloatArray, IntArray]]:
    """Per kind of split (x, u, rows), rows (R, 1 + neighbours): a held-out point and its known neighbours."""
    look_up = KrigingParameters(
        lengthscales=np.ones((1, len(metric))),
        amplitudes=np.ones(1),
        noise=1.0,
        metric=metric,
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
