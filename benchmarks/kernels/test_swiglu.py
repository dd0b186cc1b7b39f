"""`swiglu` next to torch on a GPU: rows of times, bytes per second and share of a copy's in the extra info."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from puzzlebench_kernels.benchmark import format_table, run


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="times on a CPU would say nothing of the kernels")
def test_swiglu(benchmark) -> None:
    rows = benchmark.pedantic(lambda: run(["swiglu"]), rounds=1)
    benchmark.extra_info["gpu"] = torch.cuda.get_device_name()
    benchmark.extra_info["rows"] = rows
    print("\n" + format_table(rows))
