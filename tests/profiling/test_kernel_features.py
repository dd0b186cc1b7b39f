"""Work, ideal latencies and features against numbers worked out by hand (H100: 3.35 TB/s, 989 TFLOP/s, 132 SMs)."""

import numpy as np
import pytest

from puzzlebench.profiling.kernel_features import _GEMM_TILES, DECODE_ATTENTION, GEMM, KINDS, PREFILL_ATTENTION


def shapes(**sizes):
    arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(size, dtype=float)) for size in sizes.values()))
    return dict(zip(sizes, arrays, strict=True))


@pytest.mark.parametrize(
    ("dtype", "bytes_"), [("bf16", 2 * (2 * 4 + 3 * 4) + 2 * 2 * 3), ("fp8", 2 * 4 + 3 * 4 + 2 * 2 * 3)]
)
def test_gemm_reads_both_operands_and_writes_bf16(dtype, bytes_):
    work = GEMM.work(shapes(m=2, n=3, k=4), dtype)
    assert (work.flops[0], work.bytes_[0]) == (48, bytes_)


def test_prefill_counts_each_query_key_pair_once():
    for length in (1, 2, 7, 100):
        pairs = sum(1 for query in range(length) for key in range(length) if key <= query)
        work = PREFILL_ATTENTION.work(shapes(batch=3, seq_len=length, heads=4, kv_heads=2, head_dim=8), "bf16")
        assert work.flops[0] == 4 * 3 * 4 * 8 * pairs  # two products, a multiplication and an addition each


def test_prefill_bytes():
    # Per token and head_dim element, in bf16: query in, output out (4 heads each), key and value in and into the cache.
    work = PREFILL_ATTENTION.work(shapes(batch=1, seq_len=2, heads=4, kv_heads=2, head_dim=8), "fp8")
    assert work.bytes_[0] == 2 * (2 * 8) * (4 + 4 + 2 * 2 + 2 * 2)


@pytest.mark.parametrize(("dtype", "element"), [("bf16", 2), ("fp8", 1)])
def test_decode_reads_the_whole_cache(dtype, element):
    work = DECODE_ATTENTION.work(shapes(batch=3, context=5, heads=4, kv_heads=2, head_dim=8), dtype)
    assert work.flops[0] == 2 * 2 * 3 * 4 * 8 * 5
    assert work.bytes_[0] == 3 * (2 * 5 * 2 * 8 * element + 2 * 2 * 4 * 8)


def test_ideal_latency_of_a_compute_bound_gemm(h100):
    # 2 x 8192^3 operations at 0.8 x 989 TFLOP/s are 1389.7 us, and 2.2 us to start.
    assert GEMM.ideal_us(shapes(m=8192, n=8192, k=8192), h100, "bf16")[0] == pytest.approx(1391.9, rel=1e-4)
    assert GEMM.ideal_us(shapes(m=8192, n=8192, k=8192), h100, "fp8")[0] == pytest.approx(696.7, rel=1e-3)


def test_ideal_latency_of_a_memory_bound_gemm(h100):
    # 134.25 MB at 0.83 x 3.35 TB/s are 48.28 us, and 2.2 us to start.
    assert GEMM.ideal_us(shapes(m=1, n=8192, k=8192), h100, "bf16")[0] == pytest.approx(50.48, rel=1e-3)


def test_an_fp8_cache_is_multiplied_in_bf16(h100):
    sizes = shapes(batch=64, context=4096, heads=64, kv_heads=8, head_dim=128)
    of = {dtype: DECODE_ATTENTION.work(sizes, dtype) for dtype in ("bf16", "fp8")}
    bf16, fp8 = (DECODE_ATTENTION.compute_us(of[dtype], h100, dtype)[0] for dtype in ("bf16", "fp8"))
    assert bf16 == fp8
    assert (
        PREFILL_ATTENTION.compute_us(of["fp8"], h100, "fp8")[0]
        < PREFILL_ATTENTION.compute_us(of["fp8"], h100, "bf16")[0]
    )


@pytest.mark.parametrize(("columns", "waste"), [(132, 0.0), (133, np.log2(264 / 133)), (264, 0.0), (66, 1.0)])
def test_wave_waste_of_a_gemm(h100, columns, waste):
    features = GEMM.features(shapes(m=128, n=128 * columns, k=512), h100)[0]
    assert features[3 + _GEMM_TILES.index((128, 128))] == pytest.approx(waste, abs=1e-12)


def test_row_tile_waste_and_odd_rows(h100):
    after_waves = slice(3 + len(_GEMM_TILES), 7 + len(_GEMM_TILES))  # rows in 64s, in 128s, columns in 256s, odd rows
    odd, even = GEMM.features(shapes(m=[65, 192], n=[1024, 200], k=512), h100)[:, after_waves]
    assert odd == pytest.approx((np.log2(128 / 65), np.log2(128 / 65), 0.0, 1.0))
    assert even == pytest.approx((0.0, np.log2(256 / 192), np.log2(256 / 200), 0.0))


def test_wave_waste_of_attention(h100):
    prefill = PREFILL_ATTENTION.features(shapes(batch=1, seq_len=129, heads=64, kv_heads=8, head_dim=128), h100)[0]
    assert prefill[6:] == pytest.approx((np.log2(132 / 128), 7.0, np.log2(256 / 129)))  # 2 row tiles x 64 heads
    decode = DECODE_ATTENTION.features(shapes(batch=2, context=1024, heads=64, kv_heads=8, head_dim=128), h100)[0]
    assert decode[6:] == pytest.approx((np.log2(132 / 16), 4.0, 14.0))


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_the_leading_features_are_the_log_sizes(kind, h100):
    sizes = shapes(**{axis: 2.0 ** (place + 3) for place, axis in enumerate(kind.axes)})
    features = kind.features(sizes, h100)[0]
    assert features[: len(kind.axes)] == pytest.approx([place + 3 for place in range(len(kind.axes))])
    assert np.isfinite(features).all()
    assert len(features) > kind.sizes >= len(kind.axes)
