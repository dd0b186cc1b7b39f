"""Kernels that are asked once answer as the source does, whatever was asked before."""

import numpy as np
import pytest

from puzzlebench.profiling.remembered import RememberedKernels
from puzzlebench.profiling.timings import INTERPOLATED, Timings

HEADS = {"heads": 32, "kv_heads": 8, "head_dim": 128, "kv_dtype": "bf16"}


class Counted:
    """A source that writes down the sizes it was asked for."""

    engine, engine_version, source, fuses_rope = "made up", "1", "here", True

    def __init__(self):
        self.asked = []

    def gemm(self, m, n, k, dtype):
        if dtype == "fp4":
            raise ValueError("not measured")
        return self._answer(m, n * k)

    def decode_attention(self, batch, context, **_):
        return self._answer(batch, np.asarray(context))

    def elementwise(self, bytes_):
        return self._answer(bytes_, 1.0)

    def _answer(self, first, second):
        self.asked += list(np.atleast_1d(first))
        value = np.atleast_1d(np.asarray(first) * second).astype(np.float64)
        provenance = np.full(len(value), INTERPOLATED)
        return Timings(
            latency_us=value, low_us=value / 2, high_us=2 * value, provenance=provenance, modelled_us=0 * value
        )


def test_a_size_is_asked_once():
    source = Counted()
    kernels = RememberedKernels(source)
    assert kernels.gemm([3.0, 1.0, 3.0], 2, 5, "bf16").latency_us.tolist() == [30, 10, 30]
    found = kernels.gemm([2.0, 1.0, 3.0], 2, 5, "bf16")
    assert found.latency_us.tolist() == [20, 10, 30]
    assert found.high_us.tolist() == [40, 20, 60]
    assert source.asked == [3, 1, 2]
    assert kernels.gemm([1.0], 2, 6, "bf16").latency_us.tolist() == [12]
    assert kernels.gemm([1.0], 2, 5, "fp8").latency_us.tolist() == [10]
    assert source.asked == [3, 1, 2, 1, 1]


def test_pairs_and_numbers_that_stand_for_many():
    source = Counted()
    kernels = RememberedKernels(source)
    assert kernels.decode_attention([1.0, 2.0], 7.0, **HEADS).latency_us.tolist() == [7, 14]
    assert kernels.decode_attention(2.0, [7.0, 8.0], **HEADS).latency_us.tolist() == [14, 16]
    assert source.asked == [1, 2, 2]
    kernels.elementwise(4.0)
    kernels.elementwise(4.0)
    assert source.asked == [1, 2, 2, 4, 4]


def test_what_is_refused_is_refused_again():
    kernels = RememberedKernels(Counted())
    for _ in range(2):
        with pytest.raises(ValueError, match="not measured"):
            kernels.gemm([1.0], 2, 5, "fp4")


def test_measured_kernels(h100_kernels):
    kernels = RememberedKernels(h100_kernels)
    assert (kernels.engine, kernels.source) == (h100_kernels.engine, h100_kernels.source)
    kernels.gemm([100.0, 7.0], 4096, 4096, "bf16")
    asked = np.array([7.0, 100.0, 333.0])
    found, plain = (source.gemm(asked, 4096, 4096, "bf16") for source in (kernels, h100_kernels))
    assert found.latency_us == pytest.approx(plain.latency_us, rel=1e-9)
    assert found.provenance.tolist() == plain.provenance.tolist()
    lengths = {"dtype": "bf16", **HEADS}
    found, plain = (source.prefill_attention(2.0, [100.0, 900.0], **lengths) for source in (kernels, h100_kernels))
    assert found.latency_us == pytest.approx(plain.latency_us, rel=1e-9)
