"""The benchmark's own code, at tiny sizes: what it returns, not how fast anything is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from puzzlebench_kernels import benchmark

COLUMNS = ["kernel", "shape", "dtype", "implementation", "median_us", "low_us", "high_us"]
COLUMNS += ["bytes", "bytes_per_s", "share_of_copy"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="real sizes take minutes: see benchmarks/kernels")
def test_rows_of_every_kernel() -> None:
    rows = benchmark.run(seconds=0.001)
    assert {row["implementation"] for row in rows} == {"torch", "torch_sdpa_dense"}
    assert len({(row["shape"], row["dtype"], row["implementation"]) for row in rows}) == len(rows)
    for row in rows:
        assert list(row) == COLUMNS
        assert 0 < row["low_us"] <= row["median_us"] <= row["high_us"]
        assert row["bytes_per_s"] == pytest.approx(row["bytes"] / row["median_us"] * 1e6)
        assert row["share_of_copy"] > 0
    table = benchmark.format_table(rows).splitlines()
    assert len(table) == len(rows) + 1
    assert table[0].split()[:4] == COLUMNS[:4]


def caches_of(arguments: dict) -> list[torch.Tensor]:
    """Both caches, flat; none where float8 and the interpreter meet, for that conversion is wrong."""
    caches = [arguments[name] for name in ("key_cache", "value_cache")]
    if caches[0].dtype == torch.float8_e4m3fn and caches[0].device.type == "cpu":
        return []
    return [cache.to(torch.bfloat16).flatten() for cache in caches]


def test_implementations_agree() -> None:
    # A benchmark of two functions that compute different things means nothing.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for cases in benchmark.KERNELS.values():
        for case in cases(False):
            results = []
            for prepare in case.implementations.values():
                torch.manual_seed(0)
                arguments = case.make(device)
                result = prepare(arguments)()
                if result is None:  # changed its arguments
                    result = torch.cat([arguments["qkv"].flatten(), *caches_of(arguments)])
                result = result[0] if isinstance(result, tuple) else result
                if result.dtype == torch.float8_e4m3fn:  # whose rounding the interpreter gets wrong
                    result = result.to(torch.bfloat16) if device.type == "cuda" else torch.ones(result.shape)
                results.append(result)
            for result in results[1:]:
                # Two bf16 computations: a few roundings of the largest value apart.
                limit = 2**-4 * results[0].abs().max().item()
                torch.testing.assert_close(result.reshape(results[0].shape), results[0], rtol=0, atol=limit)


def test_some_kernels() -> None:
    cases = [case for name in ("rms_norm", "swiglu") for case in benchmark.KERNELS[name](False)]
    assert {case.kernel for case in cases} == {"add_rms_norm", "swiglu"}
    assert cases[0].bytes == 2 * (4 * 4 * 64 + 64)
    with pytest.raises(ValueError, match="no kernel 'swiglo'; did you mean 'swiglu'"):
        benchmark.run(["swiglo"])
    with pytest.raises(ValueError, match="there are rms_norm, quantise, swiglu"):
        benchmark.run(["?"])
    with pytest.raises(ValueError, match="seconds is 0"):
        benchmark.run(["swiglu"], seconds=0)


def test_the_package_imports_neither_triton_nor_torch() -> None:
    code = "import sys, puzzlebench_kernels; sys.exit('triton' in sys.modules or 'torch' in sys.modules)"
    path = str(Path(__file__).parents[2] / "kernels")
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": path})
