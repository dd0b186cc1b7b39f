"""Plain interpolation on the rows that the kernel model is held to, and where latency falls as a size grows."""

import numpy as np
import pytest

from puzzlebench.profiling.kernel_features import GEMM
from puzzlebench.profiling.measured_kernels import MeasuredKernels
from puzzlebench.profiling.parameters import kriging_parameters
from puzzlebench.profiling.surface import Surface
from puzzlebench.validation import held_out, monotone
from puzzlebench.validation.held_out import held_out_errors, interpolation_errors


@pytest.fixture(scope="module")
def both():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_out, "SLICES", (("decode_attention", ("fp8",)), ("prefill_attention", ("bf16", "bf16"))))
        return [ask("h100_sxm", "trtllm", share=0.1) for ask in (held_out_errors, interpolation_errors)]


def test_interpolation_is_asked_for_the_same_rows(both):
    kriged, interpolated = both
    assert len(kriged) == 6
    for mine, other in zip(kriged, interpolated, strict=True):
        assert (mine.kind, mine.dtypes, mine.split) == (other.kind, other.dtypes, other.split)
        assert mine.error.count == other.error.count
        assert other.error.coverage is None


def test_attention_is_learned_better_than_it_is_interpolated(both):
    kriged, interpolated = both
    for mine, other in zip(kriged, interpolated, strict=True):
        if mine.split != "beyond the range":
            assert mine.error.median < other.error.median
            assert mine.error.p90 < other.error.p90
        assert 0.01 < other.error.median < 20


def test_interpolation_keeps_the_utilisation_beyond_the_range(h100_kernels):
    # A GEMM table whose latency is the ideal one times 1.5 is interpolated without error, inside and beyond.
    size = np.array([64.0, 256.0, 1024.0, 4096.0])
    m, n, k = (column.reshape(-1) for column in np.meshgrid(size, size, size))
    table = {"m": m, "n": n, "k": k}
    table["latency_us"] = 1.5 * GEMM.ideal_us(table, h100_kernels.datasheet, "bf16")

    class OneSlice:
        datasheet = h100_kernels.datasheet
        slices = MeasuredKernels.slices

        def rows(self, kind, *dtypes):
            if kind != "gemm" or dtypes != ("bf16",):
                raise ValueError("not measured")
            return table

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_out, "MeasuredKernels", lambda _: OneSlice())
        found = interpolation_errors("h100_sxm", "trtllm")
    assert {row.split for row in found} == {"random 20%", "beyond the range", "whole n", "whole k"}
    assert max(row.error.p90 for row in found) < 1e-9


def small_gemm(h100, latency_of_n):
    """A table over m, n and k whose latency follows n as given, at every m and k."""
    n_of = dict(latency_of_n)
    m, n, k = (
        column.reshape(-1).astype(float)
        for column in np.meshgrid([64, 128, 256], list(n_of), [1024, 2048, 4096], indexing="ij")
    )
    table = {"m": m, "n": n, "k": k, "latency_us": np.array([n_of[width] for width in n]) * (m * k) ** 0.1}
    return table, Surface(GEMM, table, "bf16", h100, kriging_parameters("gemm"))


def test_falls_of_known_rows(h100):
    table, surface = small_gemm(
        h100, {512: 10.0, 1024: 12.0, 2048: 9.0, 4096: 20.0}
    )  # one of three steps falls by 25 %
    rng = np.random.default_rng(0)
    row = monotone._falls(GEMM, ("bf16",), "n", table, surface, rng, 1.0)
    assert row.steps == 3 * 9
    assert row.measured == row.measured_large == pytest.approx(1 / 3)
    assert row.asked == 2 * 9
    assert row.model == 0, "between rows that rise the model is held between them"
    assert monotone._falls(GEMM, ("bf16",), "k", table, surface, rng, 1.0).measured == 0


def test_neighbours_differ_in_one_size_only(h100_kernels):
    table = h100_kernels.rows("decode_attention", "bf16")
    kind = h100_kernels.surface("decode_attention", "bf16").kind
    low, high = monotone.neighbours(kind, table, "context")
    assert len(low) > 10_000
    assert (table["context"][low] < table["context"][high]).all()
    for axis in ("batch", "heads", "kv_heads", "head_dim"):
        np.testing.assert_array_equal(table[axis][low], table[axis][high])


def test_what_is_found_on_a_measured_gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monotone, "SLICES", (("gemm", ("bf16",)), ("decode_attention", ("fp8",))))
        found = {(row.kind, row.size): row for row in monotone.falls("h100_sxm", "trtllm", share=0.1)}
    assert set(found) == {
        ("gemm", "n"),
        ("gemm", "k"),
        *(("decode_attention", s) for s in ("batch", "context", "kv_heads")),
    }
    # One query head group in, the engine changes to a kernel that is several times slower: rows, not noise.
    assert found["decode_attention", "kv_heads"].measured_large > 0.05
    for size in ("n", "k"):
        assert found["gemm", size].model < 0.08
        assert found["gemm", size].measured < 0.1
