"""The kernel model on rows it has not seen, H100 under TensorRT-LLM. Bounds are twice what docs/accuracy.md reports."""

import numpy as np
import pytest

from puzzlebench.profiling.holdout import random_split
from puzzlebench.profiling.kernel_features import KINDS
from puzzlebench.profiling.parameters import calibrated_parameters
from puzzlebench.profiling.surface import Surface

SLICES = [("gemm", ("bf16",)), ("prefill_attention", ("bf16", "bf16")), ("decode_attention", ("bf16",))]


@pytest.mark.parametrize(("name", "dtypes"), SLICES, ids=[name for name, _ in SLICES])
def test_random_rows_held_out(h100_kernels, name, dtypes):
    kind, rows = KINDS[name], h100_kernels.rows(name, *dtypes)
    split = random_split(len(rows["latency_us"]), share=0.2, seed=42)
    known = {column: values[split.known] for column, values in rows.items()}
    parameters = calibrated_parameters(h100_kernels.table, name, dtypes)
    surface = Surface(kind, known, dtypes[0], h100_kernels.datasheet, parameters)
    held = np.random.default_rng(0).permutation(split.held_out)[:400]
    timings = surface.timings({axis: rows[axis][held] for axis in kind.axes})
    truth = rows["latency_us"][held]
    error = np.abs(timings.latency_us / truth - 1)
    assert np.median(error) < 0.04
    assert np.quantile(error, 0.9) < 0.15
    assert abs(np.median(timings.latency_us / truth - 1)) < 0.01
    covered = np.mean((timings.low_us <= truth) & (truth <= timings.high_us))
    assert 0.88 < covered < 0.995
