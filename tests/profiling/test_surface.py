"""Surfaces over every measured table: rows verbatim, provenance, and how they behave between measured shapes."""

from dataclasses import replace

import numpy as np
import pytest

from puzzlebench.profiling.kernel_features import GEMM, KINDS, SLICES
from puzzlebench.profiling.measured_kernels import MeasuredKernels
from puzzlebench.profiling.parameters import kriging_parameters
from puzzlebench.profiling.surface import Surface
from puzzlebench.profiling.timings import EXTRAPOLATED, INTERPOLATED, MEASURED
from puzzlebench_profiles.kernel_tables import list_kernel_tables

ATTENTION = {"heads": 64, "kv_heads": 8, "head_dim": 128}


def shapes(**sizes):
    arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(size, dtype=float)) for size in sizes.values()))
    return dict(zip(sizes, arrays, strict=True))


@pytest.fixture(scope="module")
def gemm(h100_kernels):
    return h100_kernels.surface("gemm", "bf16")


@pytest.fixture(scope="module")
def gemm_rows(h100_kernels):
    return h100_kernels.rows("gemm", "bf16")


@pytest.fixture
def small(h100):
    """GEMM rows at two k, and m and n of an L: (1024, 4096) was not measured."""
    pairs = [(64, 256), (64, 1024), (64, 4096), (512, 256), (512, 1024), (1024, 256)]
    table = shapes(
        m=[m for m, _ in pairs for _ in (0, 1)], n=[n for _, n in pairs for _ in (0, 1)], k=[512, 2048] * len(pairs)
    )
    table["latency_us"] = 3.0 + table["m"] * table["n"] * table["k"] * 2e-9
    return Surface(GEMM, table, "bf16", h100, kriging_parameters("gemm"))


@pytest.mark.parametrize("table", list_kernel_tables(), ids=lambda table: f"{table.gpu}-{table.engine}")
def test_measured_rows_come_back_verbatim(table):
    kernels, found = MeasuredKernels(table), 0
    for kind, dtypes in SLICES:
        try:
            rows = kernels.rows(kind, *dtypes)
        except ValueError:
            continue
        found += 1
        assert (rows["latency_us"] > 0).all()
        some = np.random.default_rng(found).permutation(len(rows["latency_us"]))[:50]
        timings = kernels.surface(kind, *dtypes).timings({axis: rows[axis][some] for axis in KINDS[kind].axes})
        np.testing.assert_allclose(timings.latency_us, rows["latency_us"][some], rtol=1e-12)
        assert (timings.provenance == MEASURED).all()
        assert ((timings.low_us < timings.latency_us) & (timings.latency_us < timings.high_us)).all()
    assert found >= 3


@pytest.mark.parametrize(
    ("m", "n", "k", "provenance"),
    [
        (64, 256, 512, MEASURED),
        (512, 1024, 2048, MEASURED),
        (100, 1000, 1000, INTERPOLATED),
        (512, 256, 1024, INTERPOLATED),  # on a measured m and n
        (1024, 4096, 2048, EXTRAPOLATED),  # every size was measured, but nothing this large in all of them
        (600, 600, 1000, EXTRAPOLATED),  # inside the box, outside the L
        (32, 256, 512, EXTRAPOLATED),
        (2048, 256, 512, EXTRAPOLATED),
        (64, 256, 4096, EXTRAPOLATED),
    ],
)
def test_provenance_by_dominance(small, m, n, k, provenance):
    assert small.timings(shapes(m=m, n=n, k=k)).provenance.tolist() == [provenance]


def test_provenance_agrees_with_a_loop_over_the_rows(h100_kernels):
    rows = h100_kernels.rows("decode_attention", "bf16")
    surface = h100_kernels.surface("decode_attention", "bf16")
    measured = np.stack([rows[axis] for axis in surface.kind.axes], axis=1)
    rng = np.random.default_rng(3)
    asked = np.exp2(rng.uniform(0, 1, (150, 5)) * np.array([11, 19, 6, 4, 2]) + np.array([0, 1, 1, 0, 6])).round()
    timings = surface.timings(dict(zip(surface.kind.axes, asked.T, strict=True)))
    seen = set()
    for point, provenance in zip(asked, timings.provenance, strict=True):
        if (measured == point).all(axis=1).any():
            expected = MEASURED
        else:
            inside = (measured <= point).all(axis=1).any() and (measured >= point).all(axis=1).any()
            expected = INTERPOLATED if inside else EXTRAPOLATED
        assert provenance == expected, point
        seen.add(expected)
    assert {INTERPOLATED, EXTRAPOLATED} <= seen


def test_repeated_and_permuted_questions_answer_the_same(gemm):
    rng = np.random.default_rng(5)
    asked = shapes(m=rng.integers(1, 30000, 40), n=rng.integers(64, 60000, 40), k=rng.integers(64, 60000, 40))
    answers = gemm.timings(asked)
    order = rng.integers(0, 40, 200)
    again = gemm.timings({axis: values[order] for axis, values in asked.items()})
    for field in ("latency_us", "low_us", "high_us", "provenance"):
        np.testing.assert_array_equal(getattr(again, field), getattr(answers, field)[order])
    alone = gemm.timings({axis: values[7:8] for axis, values in asked.items()})
    assert alone.latency_us[0] == pytest.approx(answers.latency_us[7], rel=1e-9)


@pytest.mark.parametrize("bad", [0, -1, np.nan, np.inf])
def test_sizes_must_be_positive(gemm, bad):
    with pytest.raises(ValueError, match=r"gemm needs sizes above 0, not m 8, n .*, k 512"):
        gemm.timings(shapes(m=[8, 8], n=[512, bad], k=512))


def test_what_is_not_measured_is_less_certain(small):
    timings = small.timings(shapes(m=[64, 100, 4096], n=[256, 1000, 16384], k=[512, 1000, 8192]))
    relative = timings.high_us / timings.latency_us
    assert relative[0] < relative[1] < relative[2]


def test_largest(gemm):
    assert (gemm.largest("m"), gemm.largest("n")) == (32768, 65536)


@pytest.mark.parametrize(("n", "k"), [(8192, 8192), (4096, 12288), (1024, 8192), (65536, 2048)])
def test_between_measured_rows_a_gemm_stays_between_them(gemm, gemm_rows, n, k):
    mine = (gemm_rows["n"] == n) & (gemm_rows["k"] == k)
    order = np.argsort(gemm_rows["m"][mine])
    m, latency = gemm_rows["m"][mine][order], gemm_rows["latency_us"][mine][order]
    asked = np.unique(np.concatenate([np.arange(1, 700), np.geomspace(700, m.max(), 200).round()]))
    timings = gemm.timings(shapes(m=asked, n=n, k=k))
    after = np.searchsorted(m, asked)
    low = np.minimum(latency[after], latency[np.maximum(after - 1, 0)])
    high = np.maximum(latency[after], latency[np.maximum(after - 1, 0)])
    assert (timings.provenance != EXTRAPOLATED).all()
    assert (timings.latency_us > 0.8 * low).all()
    assert (timings.latency_us < 1.2 * high).all()


def test_a_tile_step_is_followed_not_smoothed_away(gemm, gemm_rows):
    # One row more than a whole wave of tiles costs a wave more; rows held out on both sides must not hide that.
    mine = (gemm_rows["n"] == 8192) & (gemm_rows["k"] == 8192)
    rows = dict(zip(gemm_rows["m"][mine], gemm_rows["latency_us"][mine], strict=True))
    for m in (128, 256, 512, 1024, 2048):
        at, past = gemm.timings(shapes(m=[m, m + 1], n=8192, k=8192)).latency_us
        assert at == pytest.approx(rows[m], rel=1e-12)
        assert 0.9 * at < past < 2.1 * at


def test_smoothing_stays_near_the_measured_rows(gemm, gemm_rows):
    some = np.random.default_rng(1).permutation(len(gemm_rows["m"]))[:300]
    smooth = gemm.smoothed_us({axis: gemm_rows[axis][some] for axis in GEMM.axes})
    error = np.abs(smooth / gemm_rows["latency_us"][some] - 1)
    assert 0 < np.median(error) < 0.02
    assert np.quantile(error, 0.95) < 0.15


def test_decode_attention_beyond_the_measured_batches_scales_with_the_cache(h100_kernels):
    # The largest measured batch at 8192 tokens is 32; memory-bound, so twice the batch is about twice the latency.
    surface = h100_kernels.surface("decode_attention", "bf16")
    timings = surface.timings(shapes(batch=[32, 64, 128], context=8192, **ATTENTION))
    assert timings.provenance.tolist() == [MEASURED, EXTRAPOLATED, EXTRAPOLATED]
    assert np.diff(np.log2(timings.latency_us)) == pytest.approx([1, 1], abs=0.15)


def grid_of(h100, latency, *, kind=GEMM, **sizes):
    """A surface over the product of the sizes, with the latencies that a function of them gives."""
    columns = np.meshgrid(*(np.asarray(size, dtype=float) for size in sizes.values()), indexing="ij")
    table = {axis: column.reshape(-1) for axis, column in zip(sizes, columns, strict=True)}
    table["latency_us"] = latency(**table)
    return Surface(kind, table, "bf16", h100, kriging_parameters(kind.name))


def bumpy(m, n, k):
    """Grows with n and k, but one row is out of line: what is next to it must not be drawn past its neighbours."""
    return (3.0 + m * n * k * 2e-9) * np.where((n == 1024) & (k == 2048), 1.12, 1.0)


WIDTHS = {"m": [64, 128, 256], "n": [512, 1024, 2048, 4096], "k": [1024, 2048, 4096]}


def test_between_two_rows_an_answer_stays_between_them(h100):
    surface = grid_of(h100, bumpy, **WIDTHS)
    free = replace(GEMM, monotone=())
    unheld = grid_of(h100, bumpy, kind=free, **WIDTHS)
    asked = shapes(m=128, n=np.arange(1024, 2049, 64), k=2048)
    held, loose = surface.timings(asked).latency_us, unheld.timings(asked).latency_us
    low, high = held[0], held[-1]
    assert low < high
    assert ((held >= low) & (held <= high)).all()
    assert loose[1:-1].min() < low, "the case must be one that kriging alone gets wrong"
    np.testing.assert_array_equal(held, np.clip(loose, low, high))


def test_where_rows_fall_an_answer_is_left_alone(h100):
    asked = shapes(m=128, n=[640, 768, 896], k=2048)  # n 512 to 1024 at a k where 512 costs most

    def falling(m, n, k):
        return (3.0 + m * n * k * 2e-9) * np.where(n == 512, 6.0, 1.0)

    held = grid_of(h100, falling, **WIDTHS).timings(asked).latency_us
    loose = grid_of(h100, falling, kind=replace(GEMM, monotone=()), **WIDTHS).timings(asked).latency_us
    np.testing.assert_array_equal(held, loose)


def test_beyond_the_largest_row_an_answer_is_at_least_that_row(h100):
    def last_too_high(m, n, k):
        return (3.0 + m * n * k * 2e-9) * np.where(n == 4096, 3.0, 1.0)

    asked = shapes(m=128, n=[4096, 4160, 4352], k=2048)
    held = grid_of(h100, last_too_high, **WIDTHS).timings(asked).latency_us
    loose = grid_of(h100, last_too_high, kind=replace(GEMM, monotone=()), **WIDTHS).timings(asked).latency_us
    assert loose[1] < held[0], "the case must be one that kriging alone gets wrong"
    assert (held >= held[0]).all()


def test_along_m_a_gemm_may_fall(gemm, gemm_rows):
    # Tile effects: some measured rows cost less than the row before; the model must not hide that.
    mine = (gemm_rows["n"] == 8192) & (gemm_rows["k"] == 8192)
    order = np.argsort(gemm_rows["m"][mine])
    latency = gemm.timings(shapes(m=gemm_rows["m"][mine][order], n=8192, k=8192)).latency_us
    assert (np.diff(latency) < 0).any()


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
@pytest.mark.parametrize("tensor_parallel", [1, 2, 4, 8])
def test_a_wider_ffn_rarely_costs_less(h100_kernels, dtype, tensor_parallel):
    # Llama-3.1-70B's widths; falls that are left are measured rows' own.
    width = np.arange(256 * tensor_parallel, 28673, 256 * tensor_parallel) / tensor_parallel
    rows = np.repeat([1.0, 16.0, 64.0, 256.0, 2048.0, 8192.0], len(width))
    asked = np.tile(width, 6)
    surface = h100_kernels.surface("gemm", dtype)
    up = surface.timings(shapes(m=rows, n=2 * asked, k=8192)).latency_us.reshape(6, -1)
    down = surface.timings(shapes(m=rows, n=8192, k=asked)).latency_us.reshape(6, -1)
    for latency in (up, down):
        falls = 1 - latency[:, 1:] / latency[:, :-1]
        assert np.mean(falls > 0.02) < 0.05
        assert falls.max() < 0.3
