"""How long a cost table takes: Llama-3.1-70B, 54 variants x 8 batches x 6 lengths x 2 phases.

`cold` is a whole new process that imports everything and reads the kernel tables; `warm` is a second table in the same
process. Peak memory of the cold process is in the benchmark's extra info.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from puzzlebench.model.catalog import load_model
from puzzlebench.model.space import default_space
from puzzlebench.profiling.profile import Grid, build_cost_table
from puzzlebench.profiling.sources import open_kernels
from puzzlebench.scenario import Precision


@pytest.mark.parametrize("weight_dtype", ["bf16", "fp8"])
def test_cold(benchmark, tmp_path: Path, weight_dtype: str) -> None:
    out = tmp_path / "table.parquet"
    command = [sys.executable, "-m", "puzzlebench.cli", "profile", "--gpu", "h100", "--model", "llama-3.1-70b"]
    command += ["--weight-dtype", weight_dtype, "--out", str(out)]
    peaks = []

    def run() -> None:
        silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
        child = os.posix_spawn(command[0], command, os.environ, file_actions=silent)
        _, status, usage = os.wait4(child, 0)
        assert status == 0
        peaks.append(usage.ru_maxrss / 1024)

    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    benchmark.extra_info["peak_memory_mib"] = max(peaks)


@pytest.mark.parametrize("weight_dtype", ["bf16", "fp8"])
def test_warm(benchmark, weight_dtype: str) -> None:
    spec, architecture = load_model("llama-3.1-70b")
    gpu, kernels = open_kernels("h100")
    space = default_space(spec, architecture)
    precision = Precision(weight_dtype=weight_dtype, kv_dtype=weight_dtype)
    build_cost_table(kernels, gpu, spec, space, precision, Grid())
    benchmark.pedantic(
        lambda: build_cost_table(kernels, gpu, spec, space, precision, Grid()), rounds=5, warmup_rounds=1
    )
