"""Calibrate intervals: `python -m puzzlebench.profiling.calibrate_intervals` writes interval_scales.json.

One number for each measured table, kernel kind and dtype: the factor on the kriging standard deviation that makes the
95 % interval cover 95 % of held-out rows, at random and whole sizes alike. How erratic a vendor's kernel choice is
differs between GPUs, so one factor for all would be too narrow here and too wide there. docs/accuracy.md reports the
coverage on other splits than those used here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from puzzlebench.profiling.arrays import FloatArray
from puzzlebench.profiling.holdout import random_split, whole_value_splits
from puzzlebench.profiling.kernel_features import KINDS, SLICES
from puzzlebench.profiling.kriging import LocalKriging
from puzzlebench.profiling.measured_kernels import MeasuredKernels
from puzzlebench.profiling.parameters import SCALES_FILE, SCHEMA_VERSION, kriging_parameters, slice_name
from puzzlebench_profiles.kernel_tables import list_kernel_tables

_EXTRA_SLICES = (("prefill_attention", ("bf16", "fp8")),)  # used for engines that attend in bf16 over an fp8 cache
_COVERAGE = 0.95
_RANDOM_ROWS, _WHOLE_SPLITS, _WHOLE_ROWS = 1500, 8, 200
_SEED = 20_411


def main() -> None:
    """Command line: rewrite the file of interval scales."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=SCALES_FILE)
    out: Path = parser.parse_args().out
    scales: dict[str, dict[str, float]] = {}
    for table in list_kernel_tables():
        kernels = MeasuredKernels(table)
        found = scales[table.folder.as_posix()] = {}
        for kind, dtypes, rows in kernels.slices((*SLICES, *_EXTRA_SLICES)):
            found[slice_name(kind, dtypes)] = interval_scale(kernels, kind, dtypes, rows)
        print(table.folder, found, flush=True)
    written = {
        "schema_version": SCHEMA_VERSION,
        "about": "written by `python -m puzzlebench.profiling.calibrate_intervals`",
        "coverage": _COVERAGE,
        "scales": scales,
    }
    out.write_text(json.dumps(written, indent=1) + "\n")


def interval_scale(kernels: MeasuredKernels, kind: str, dtypes: tuple[str, ...], table: dict[str, FloatArray]) -> float:
    """The factor of one slice, whose measured rows are given."""
    family = KINDS[kind]
    x = family.features(table, kernels.datasheet)
    u = np.log(table["latency_us"] / family.ideal_us(table, kernels.datasheet, dtypes[0]))
    parameters = kriging_parameters(kind)
    whole = list(whole_value_splits(family, table))
    rng = np.random.default_rng(_SEED)
    chosen = [whole[place] for place in rng.permutation(len(whole))[:_WHOLE_SPLITS]]
    ratios: list[FloatArray] = []
    for split in (random_split(len(u), share=0.2, seed=_SEED), *chosen):
        rows = _RANDOM_ROWS if split.name.startswith("random") else _WHOLE_ROWS
        held = rng.permutation(split.held_out)[:rows]
        mean, deviation = LocalKriging(parameters, x[split.known], u[split.known]).predict(x[held])
        ratios.append(np.abs(mean - u[held]) / deviation)
    scale = float(np.quantile(np.concatenate(ratios), _COVERAGE)) / 1.96
    assert np.isfinite(scale), f"{kernels.table} {kind} {dtypes} has rows that are not numbers"
    return round(scale, 3)


if __name__ == "__main__":
    main()
