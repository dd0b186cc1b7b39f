"""The suite of `puzzlebench bench` under pytest-benchmark: `pytest benchmarks/test_suite.py --benchmark-json FILE`.

One process, so its numbers say less than `bench`; several such files in a folder are what `puzzlebench compare` takes
for sessions. `extra_info` has the cell's name. On a GPU a run is timed with its launch and to its end.
"""

from __future__ import annotations

import itertools

import pytest

pytest.importorskip("torch")

import torch

from puzzlebench.benching.suite import BENCHMARKS, Benchmark, missing
from puzzlebench.measuring.device import local_device

DEVICE = local_device("local")
HERE = [one for one in BENCHMARKS if missing(one, DEVICE) is None]


@pytest.mark.parametrize("one", HERE, ids=lambda one: one.name)
def test_suite(benchmark, one: Benchmark) -> None:
    work = one.prepare(DEVICE)
    copies = itertools.cycle(range(work.copies)) if one.cache == "cold" else itertools.repeat(0)
    benchmark.extra_info["cell"] = one.name
    benchmark.group = one.group

    def run() -> None:
        work.run(next(copies))
        if DEVICE.kind == "cuda":
            torch.cuda.synchronize()

    benchmark(run)
