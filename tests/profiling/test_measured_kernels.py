"""Which table answers which question."""

import numpy as np
import pytest

from puzzlebench.profiling.measured_kernels import MeasuredKernels
from puzzlebench.profiling.sources import open_kernels
from puzzlebench.profiling.timings import EXTRAPOLATED, INTERPOLATED, MEASURED
from puzzlebench_profiles.kernel_tables import find_kernel_table, list_kernel_tables, read_kernel_table

HEADS = {"heads": 64, "kv_heads": 8, "head_dim": 128}


@pytest.fixture(scope="module")
def h100_vllm():
    return MeasuredKernels(find_kernel_table("h100_sxm", "vllm"))


@pytest.fixture(scope="module")
def a100():
    return MeasuredKernels(find_kernel_table("a100_sxm", "trtllm"))


def row(rows, **sizes):
    return np.flatnonzero(np.all([rows[axis] == size for axis, size in sizes.items()], axis=0)).item()


@pytest.mark.parametrize("m", [1, 64, 4096, 32768])
def test_an_fp8_gemm_is_the_row_without_finding_the_scale(h100_kernels, m):
    raw = read_kernel_table(h100_kernels.table, "gemm", dtype="fp8")
    scale = read_kernel_table(h100_kernels.table, "compute_scale")
    both = raw["latency_us"][row(raw, m=m, n=8192, k=8192)]
    finding = scale["latency_us"][row(scale, m=m, k=8192)]
    timings = h100_kernels.gemm([m], 8192, 8192, "fp8")
    assert finding > 5
    assert timings.latency_us[0] == pytest.approx(both - finding, rel=1e-9)
    assert timings.provenance[0] == MEASURED


def test_a_bf16_gemm_is_the_row_and_fp16_the_same(h100_kernels):
    raw = read_kernel_table(h100_kernels.table, "gemm", dtype="bf16")
    expected = raw["latency_us"][row(raw, m=64, n=8192, k=8192)]
    for dtype in ("bf16", "fp16"):
        assert h100_kernels.gemm(64, 8192, 8192, dtype).latency_us[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("table", list_kernel_tables(), ids=lambda table: f"{table.gpu}-{table.engine}")
def test_finding_the_scale_never_takes_more_than_the_row(table):
    raw = read_kernel_table(table, "gemm", dtype="fp8")
    if raw is None:
        pytest.skip("fp8 was not measured")
    rows = MeasuredKernels(table).rows("gemm", "fp8")
    assert 0.999 * len(raw["m"]) < len(rows["m"]) <= len(raw["m"])  # a few at odds with their scale are left out
    with_scale = dict(zip(zip(raw["m"], raw["n"], raw["k"], strict=True), raw["latency_us"], strict=True))
    whole = np.array([with_scale[shape] for shape in zip(rows["m"], rows["n"], rows["k"], strict=True)])
    assert ((rows["latency_us"] > 0.05 * whole) & (rows["latency_us"] <= whole)).all()


def test_odd_and_missing_scale_rows_follow_their_neighbours():
    # L40S under vLLM: 17.8 us for (192, 64), its neighbours 0.6; nothing for (16384, 4096).
    kernels = MeasuredKernels(find_kernel_table("l40s", "vllm"))
    raw, rows = read_kernel_table(kernels.table, "gemm", dtype="fp8"), kernels.rows("gemm", "fp8")
    odd, missing = row(raw, m=192, n=4096, k=64), row(raw, m=16384, n=4096, k=4096)
    assert 0.4 < raw["latency_us"][odd] - rows["latency_us"][odd] < 1
    assert 0.3 < raw["latency_us"][missing] - rows["latency_us"][missing] < 20


def test_an_engine_with_a_handful_of_scale_rows_has_nothing_taken_off():
    kernels = MeasuredKernels(find_kernel_table("l40s", "sglang"))
    raw = read_kernel_table(kernels.table, "gemm", dtype="fp8")
    np.testing.assert_array_equal(kernels.rows("gemm", "fp8")["latency_us"], raw["latency_us"])


def test_an_output_wider_than_measured_is_split_and_says_so(h100_kernels):
    whole = h100_kernels.gemm([1, 64], 131072, 8192, "bf16")
    half = h100_kernels.gemm([1, 64], 65536, 8192, "bf16")
    np.testing.assert_allclose(whole.latency_us, 2 * half.latency_us, rtol=1e-12)
    assert whole.provenance.tolist() == [EXTRAPOLATED] * 2
    assert half.provenance.tolist() == [MEASURED] * 2
    odd = h100_kernels.gemm([64], 151936, 8192, "bf16").latency_us[0]
    assert odd / whole.latency_us[1] == pytest.approx(151936 / 131072, rel=0.05)


@pytest.mark.parametrize(
    ("weights", "cache", "expected"),
    [
        ("bf16", "bf16", ("bf16", "bf16")),
        ("fp8", "bf16", ("bf16", "bf16")),
        ("fp8", "fp8", ("fp8", "fp8")),
        ("bf16", "fp8", ("bf16", "bf16")),
    ],
)
def test_prefill_dtypes_of_tensorrt_llm(h100_kernels, weights, cache, expected):
    assert h100_kernels.prefill_dtypes(weights, cache) == expected


def test_prefill_dtypes_of_vllm(h100_vllm):
    assert h100_vllm.prefill_dtypes("bf16", "fp8") == ("bf16", "fp8")
    assert h100_vllm.prefill_dtypes("fp8", "bf16") == ("bf16", "bf16")


def test_prefill_reads_the_chosen_table(h100_kernels):
    def ask(dtype, kv_dtype):
        return h100_kernels.prefill_attention(1, 4096, **HEADS, dtype=dtype, kv_dtype=kv_dtype).latency_us[0]

    for weights, cache in (("bf16", "bf16"), ("fp8", "fp8")):
        raw = read_kernel_table(h100_kernels.table, "prefill_attention", dtype=weights, kv_dtype=cache)
        expected = raw["latency_us"][row(raw, batch=1, seq_len=4096, **HEADS)]
        assert ask(weights, cache) == pytest.approx(expected, rel=1e-9)
    assert ask("bf16", "fp8") == ask("fp16", "fp16") == ask("bf16", "bf16")
    assert ask("fp8", "fp8") < ask("bf16", "bf16")


def test_decode_reads_the_table_of_the_cache(h100_kernels):
    for dtype in ("bf16", "fp8"):
        raw = read_kernel_table(h100_kernels.table, "decode_attention", kv_dtype=dtype)
        expected = raw["latency_us"][row(raw, batch=8, context=4096, **HEADS)]
        answer = h100_kernels.decode_attention(8, 4096, **HEADS, kv_dtype=dtype).latency_us[0]
        assert answer == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("ask", "names"),
    [
        (lambda k: k.gemm(1, 4096, 4096, "fp8"), "gemm with fp8"),
        (lambda k: k.decode_attention(1, 64, **HEADS, kv_dtype="fp8"), "decode_attention with fp8"),
    ],
)
def test_a_missing_dtype_is_named(a100, ask, names):
    with pytest.raises(ValueError, match=f"trtllm 1.0.0 has no measured {names} on a100_sxm; try --weight-dtype bf16"):
        ask(a100)


def test_only_tensorrt_llm_fuses_rope(h100_kernels, h100_vllm):
    assert h100_kernels.fuses_rope
    assert not h100_vllm.fuses_rope


def test_the_source_names_package_engine_and_gpu(h100_kernels):
    assert h100_kernels.source == "aiconfigurator-core 0.12.0: trtllm 1.3.0rc20 kernels, h100_sxm"


def test_elementwise_work_is_all_modelled_and_grows_with_bytes(h100_kernels):
    bytes_ = np.exp2(np.arange(6, 36))
    timings = h100_kernels.elementwise(bytes_)
    assert (np.diff(timings.latency_us) >= 0).all()
    np.testing.assert_array_equal(timings.modelled_us, timings.latency_us)
    assert 0.5 < timings.latency_us[0] < 3
    large = bytes_ > 2**30
    achieved = bytes_[large] / timings.latency_us[large] * 1e6 / h100_kernels.datasheet.memory_bandwidth
    assert ((achieved > 0.5) & (achieved < 1)).all()


def test_elementwise_without_a_quantisation_table(a100):
    timings = a100.elementwise([2.0**10, 2.0**33])
    assert 1 < timings.latency_us[0] < 3
    assert timings.latency_us[1] == pytest.approx(2**33 / (0.85 * 2.039e12) * 1e6, rel=0.01)
    assert timings.high_us[0] > 1.3 * timings.latency_us[0]


def test_all_reduce_rows_and_between(h100_kernels):
    raw = read_kernel_table(h100_kernels.table, "all_reduce")
    mine = raw["num_gpus"] == 8
    sizes, latency = raw["elements"][mine], raw["latency_us"][mine]
    at = int(np.flatnonzero(sizes == 2**20).item())
    asked = [2**20, 1.5 * 2**20, 2**20, 4 * sizes.max()]
    timings = h100_kernels.all_reduce(asked, 8)
    assert timings.latency_us[0] == timings.latency_us[2] == pytest.approx(latency[at], rel=1e-9)
    assert latency[at] < timings.latency_us[1] < latency[sizes == 2**21].item()
    assert timings.latency_us[3] == pytest.approx(4 * latency[sizes == sizes.max()].item(), rel=1e-6)
    assert timings.provenance.tolist() == [MEASURED, INTERPOLATED, MEASURED, EXTRAPOLATED]


def test_all_reduce_over_gpus_that_were_not_measured(h100_kernels):
    with pytest.raises(ValueError, match=r"over 3 GPUs was not measured for trtllm .* on h100_sxm; measured: 2, 4, 8"):
        h100_kernels.all_reduce([1024], 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("h1000",), "unknown GPU 'h1000': did you mean h100"),
        (("h100", "tgi"), "engine 'tgi' was not measured on h100_sxm; engines: sglang, trtllm, vllm"),
        (("h100", "trtllm", "9.9"), r"trtllm 9.9 was not measured on h100_sxm; measured versions: 1.3.0rc20"),
    ],
)
def test_unknown_targets_list_what_exists(arguments, message):
    with pytest.raises(ValueError, match=message):
        open_kernels(*arguments)


def test_engine_names_are_forgiving():
    datasheet, kernels = open_kernels("H100", "TensorRT-LLM", "1.3.0rc20")
    assert (datasheet.name, kernels.engine, kernels.engine_version) == ("h100_sxm", "trtllm", "1.3.0rc20")
