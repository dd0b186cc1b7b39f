"""Estimates with intervals, the sweep over users, and the best of them within limits."""

import pytest

from puzzlebench.model.catalog import load_model
from puzzlebench.profiling.sources import open_kernels
from puzzlebench.scenario import Precision
from puzzlebench.serving.estimating import best_concurrency, estimate_workload, open_served, sweep
from puzzlebench.serving.workload import Lengths, Workload

PREFILL, DECODE = Lengths(1024, 1024), Lengths(256, 256)


def opened(engine="trtllm", tp=1, **options):
    spec, architecture = load_model("llama-3.1-8b")
    gpu, kernels = open_kernels("h100_sxm", engine)
    precision = Precision(weight_dtype="fp8", kv_dtype="fp8", tensor_parallel=tp)
    return open_served(kernels, gpu, spec, architecture, precision, PREFILL, DECODE, **options)


@pytest.fixture(scope="module")
def served():
    return opened()


def test_an_estimate_adds_up(served):
    found = estimate_workload(served, Workload(prefill=PREFILL, decode=DECODE, concurrency=16))
    seconds = (found.ttft_ms.value + 255 * found.tpot_ms.value) / 1e3
    assert found.generated_tokens_per_s.value == pytest.approx(16 * 256 / seconds, rel=1e-3)
    assert found.total_tokens_per_s.value == pytest.approx(5 * found.generated_tokens_per_s.value)
    for interval in (found.ttft_ms, found.tpot_ms, found.generated_tokens_per_s):
        assert interval.low < interval.value < interval.high
    assert found.concurrency == 16
    assert found.calibrated.startswith("trtllm")


def test_a_rate_gives_the_users_that_it_keeps_busy(served):
    closed = estimate_workload(served, Workload(prefill=PREFILL, decode=DECODE, concurrency=16))
    rate = closed.state.requests_per_s
    found = estimate_workload(served, Workload(prefill=PREFILL, decode=DECODE, request_rate=rate))
    assert found.concurrency == pytest.approx(16, rel=0.05)
    assert found.tpot_ms.value == pytest.approx(closed.tpot_ms.value, rel=0.02)


def test_throughput_is_of_the_group_and_of_each_gpu():
    spec, architecture = load_model("llama-3.1-8b")
    gpu, kernels = open_kernels("h100_sxm")
    precision = Precision(weight_dtype="fp8", kv_dtype="fp8", tensor_parallel=4)
    workload = Workload(prefill=PREFILL, decode=DECODE, concurrency=8)
    found = estimate_workload(open_served(kernels, gpu, spec, architecture, precision, PREFILL, DECODE), workload)
    assert found.per_gpu(found.generated_tokens_per_s).value == found.generated_tokens_per_s.value / 4


def test_an_engine_without_a_calibration_says_so_and_is_less_sure(served):
    workload = Workload(prefill=PREFILL, decode=DECODE, concurrency=16)
    known, unknown = (estimate_workload(one, workload) for one in (served, opened("sglang")))
    assert unknown.calibrated == ""
    assert unknown.tpot_ms.high / unknown.tpot_ms.value > known.tpot_ms.high / known.tpot_ms.value


def test_the_sweep_goes_to_what_there_is_place_for(served):
    points = sweep(served, PREFILL, DECODE, most=50)
    users = [one.concurrency for one in points]
    assert users[0] == 1
    assert users[-1] == 50
    assert users == sorted(set(users))


def test_the_best_number_of_users_is_the_last_within_a_limit(served):
    free = best_concurrency(served, PREFILL, DECODE)
    limit = 12.0
    best = best_concurrency(served, PREFILL, DECODE, max_tpot_ms=limit)
    assert best.tpot_ms.value <= limit
    one_more = Workload(prefill=PREFILL, decode=DECODE, concurrency=int(best.concurrency) + 1)
    assert estimate_workload(served, one_more).tpot_ms.value > limit
    assert best.generated_tokens_per_s.value < free.generated_tokens_per_s.value


def test_limits_that_nobody_keeps_are_refused_with_what_one_user_sees(served):
    with pytest.raises(ValueError, match="no number of users keeps the limits: one alone waits"):
        best_concurrency(served, PREFILL, DECODE, max_ttft_ms=0.1)


def test_prompts_that_an_engine_cannot_run_whole_are_refused():
    spec, architecture = load_model("llama-3.1-8b")
    gpu, kernels = open_kernels("h100_sxm")
    long = Lengths(100, 20_000)
    with pytest.raises(ValueError, match="prompts run whole"):
        open_served(kernels, gpu, spec, architecture, Precision(), long, DECODE)


def test_a_memory_fraction_out_of_range_is_refused():
    with pytest.raises(ValueError, match="memory fraction"):
        opened(memory_fraction=1.5)
