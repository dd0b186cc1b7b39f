"""Kernels carried over to a GPU that nobody measured."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml

from puzzlebench.profiling.kernel_features import DECODE_ATTENTION, GEMM, KINDS, PREFILL_ATTENTION
from puzzlebench.profiling.measured_kernels import as_shapes
from puzzlebench.profiling.modelled_kernels import ERROR_FILE, ModelledKernels, carry_over, nearest_table
from puzzlebench.profiling.sources import open_kernels
from puzzlebench.profiling.timings import MODELLED
from puzzlebench_profiles.datasheets import GPU_DIR, bundled_datasheets

HEADS = {"heads": 64, "kv_heads": 8, "head_dim": 128}
BIG_DECODE = as_shapes(batch=64, context=4096, **HEADS)


@pytest.fixture
def faster(h100):
    """An H100 with a tenth more memory bandwidth, still nearer to it than to H200."""
    return replace(h100, name="faster", memory_bandwidth=1.1 * h100.memory_bandwidth)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_to_the_same_gpu_nothing_changes(kind, dtype, h100):
    rng = np.random.default_rng(0)
    shapes = {axis: rng.integers(1, 5000, 200).astype(float) for axis in kind.axes}
    latency = kind.ideal_us(shapes, h100, dtype) * rng.uniform(0.3, 5, 200)
    np.testing.assert_allclose(carry_over(kind, latency, shapes, dtype, h100, h100), latency, rtol=1e-12)


def test_a_latency_at_the_memory_roof_moves_by_the_ratio(h100, faster):
    roof = DECODE_ATTENTION.work(BIG_DECODE, "bf16").bytes_ / (0.85 * h100.memory_bandwidth) * 1e6
    carried = carry_over(DECODE_ATTENTION, roof, BIG_DECODE, "bf16", h100, faster)
    np.testing.assert_allclose(carried, roof / 1.1, rtol=1e-9)


def test_a_latency_at_the_compute_roof_does_not_move_with_bandwidth(h100, faster):
    shapes = as_shapes(m=8192, n=8192, k=8192)
    latency = 1.1 * GEMM.ideal_us(shapes, h100, "bf16")
    np.testing.assert_allclose(carry_over(GEMM, latency, shapes, "bf16", h100, faster), latency, rtol=1e-9)


def test_twice_the_compute_halves_a_compute_bound_gemm(h100):
    shapes = as_shapes(m=8192, n=8192, k=8192)
    twice = replace(h100, peak_bf16_flops=2 * h100.peak_bf16_flops)
    latency = 1.2 * GEMM.ideal_us(shapes, h100, "bf16")
    assert carry_over(GEMM, latency, shapes, "bf16", h100, twice) / latency == pytest.approx(0.5, rel=0.02)


def test_a_memory_bound_decode_on_the_faster_memory(faster, h100_kernels):
    modelled = ModelledKernels(faster, "trtllm")
    assert modelled.donor.name == "h100_sxm"
    ours = modelled.decode_attention(64, 4096, **HEADS, kv_dtype="bf16")
    donor = h100_kernels.decode_attention(64, 4096, **HEADS, kv_dtype="bf16")
    assert donor.latency_us[0] / ours.latency_us[0] == pytest.approx(1.1, rel=0.02)


def kernels_of(source):
    return {
        "gemm": source.gemm([1, 100, 4096], 8192, 8192, "fp8"),
        "wide gemm": source.gemm([1, 100], 128256, 8192, "bf16"),
        "prefill": source.prefill_attention([1, 4], 1000, **HEADS, dtype="fp8", kv_dtype="fp8"),
        "decode": source.decode_attention([1, 64], 3000, **HEADS, kv_dtype="fp8"),
    }


def test_everything_is_modelled_and_no_more_certain_than_the_donor(h100, h100_kernels):
    twin = ModelledKernels(replace(h100, name="twin"), "trtllm")
    donor = kernels_of(h100_kernels)
    for name, ours in kernels_of(twin).items():
        assert (ours.provenance == MODELLED).all(), name
        np.testing.assert_allclose(ours.latency_us, donor[name].latency_us, rtol=1e-9)
        assert (ours.high_us > donor[name].high_us).all(), name
        assert (ours.low_us < donor[name].low_us).all(), name
    assert (twin.elementwise([1e3, 1e9]).provenance == MODELLED).all()
    assert (twin.all_reduce([1e3, 1e9], 8).provenance == MODELLED).all()
    assert "modelled: datasheet twin, carried over from aiconfigurator-core" in twin.source


def test_another_architecture_is_less_certain(h100):
    other = replace(h100, name="other", compute_capability="9.9")
    same, apart = (ModelledKernels(sheet, "trtllm") for sheet in (replace(h100, name="same"), other))
    assert same.same_architecture
    assert not apart.same_architecture
    for name, ours in kernels_of(apart).items():
        assert (ours.high_us > kernels_of(same)[name].high_us).all(), name


def test_prefill_attention_is_carried_over_in_the_dtype_it_was_measured_in(h100):
    # fp8 weights with a bf16 cache attend in bf16, so the fp8 peak must not matter.
    more_fp8 = replace(h100, name="more", peak_fp8_flops=3 * h100.peak_fp8_flops)
    ask = {"dtype": "fp8", "kv_dtype": "bf16", **HEADS}
    with_more, without = (ModelledKernels(s, "trtllm").prefill_attention(4, 4096, **ask) for s in (more_fp8, h100))
    np.testing.assert_array_equal(with_more.latency_us, without.latency_us)


def test_a_ring_all_reduce_from_the_link(h100):
    modelled = ModelledKernels(replace(h100, name="twin", link_bandwidth=1e11), "trtllm")
    # 2 x 7/8 of 2 bytes x 1e9 elements at 0.8 x 100 GB/s are 43750 us, and 5 us to start.
    assert modelled.all_reduce([1e9], 8).latency_us[0] == pytest.approx(43755, rel=1e-6)


@pytest.mark.parametrize("gpu", bundled_datasheets())
def test_the_nearest_table_of_a_measured_gpu_is_its_own(gpu):
    assert nearest_table(bundled_datasheets()[gpu], "trtllm").gpu == gpu


def test_left_out_h200_is_modelled_on_h100():
    assert nearest_table(bundled_datasheets()["h200_sxm"], "trtllm", exclude="h200_sxm").gpu == "h100_sxm"


def test_a_gpu_with_fp8_is_not_modelled_on_one_without(h100):
    like_a100 = replace(bundled_datasheets()["a100_sxm"], name="like_a100", peak_fp8_flops=6e14)
    assert nearest_table(like_a100, "trtllm").gpu != "a100_sxm"


def test_an_unknown_engine_lists_those_there_are(h100):
    with pytest.raises(ValueError, match="'tgi' was not measured on any GPU; engines: sglang, trtllm, vllm"):
        ModelledKernels(h100, "tgi")


def test_the_error_file_has_every_kind():
    deviation = json.loads(ERROR_FILE.read_text())["log_deviation"]
    for group in ("same_architecture", "other_architecture"):
        assert deviation[group].keys() == KINDS.keys()
        assert all(0.01 < value < 1 for value in deviation[group].values())
    assert PREFILL_ATTENTION.name in deviation["same_architecture"]


def test_a_copy_of_a_bundled_datasheet_is_still_modelled(tmp_path):
    facts = yaml.safe_load((GPU_DIR / "h100_sxm.yaml").read_text()) | {"aliases": []}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(facts))
    datasheet, kernels = open_kernels(str(path))
    assert isinstance(kernels, ModelledKernels)
    assert (datasheet.name, kernels.donor.name) == ("h100_sxm", "h100_sxm")


def test_a_version_that_the_donor_lacks(tmp_path):
    facts = yaml.safe_load((GPU_DIR / "h100_sxm.yaml").read_text()) | {"name": "mine"}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(facts))
    with pytest.raises(ValueError, match=r"trtllm 9.9 was not measured on h100_sxm, which mine is modelled on"):
        open_kernels(str(path), "trtllm", "9.9")
