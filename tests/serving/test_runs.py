"""The measured runs that ship, and what is known of how they were made."""

import dataclasses
import json

import pytest

from puzzlebench.model.catalog import load_model
from puzzlebench.profiling.import_serving import split_of
from puzzlebench.scenario import Precision
from puzzlebench.serving import runs as module
from puzzlebench.serving.runs import ServingRun, benchmarks, serving_runs
from puzzlebench.serving.workload import Lengths
from puzzlebench_profiles import SERVING_BENCHMARKS
from puzzlebench_profiles.kernel_tables import find_kernel_table

RUN = ServingRun(
    id="one",
    benchmark="inferencemax_trtllm",
    gpu="h200_sxm",
    engine="trtllm",
    engine_version="",
    model="llama-3.1-70b",
    precision=Precision(weight_dtype="fp8", kv_dtype="fp8", tensor_parallel=4),
    prefill_len=1024,
    decode_len=1024,
    concurrency=16,
    ttft_ms=100.0,
    tpot_ms=10.0,
    split="develop",
)


def test_every_run_can_be_predicted_and_is_where_its_id_puts_it():
    runs = serving_runs()
    assert len({run.id for run in runs}) == len(runs)
    assert all(run.split == split_of(run.id) for run in runs)
    assert {run.benchmark for run in runs} == set(benchmarks())
    for gpu, engine, model in {(run.gpu, run.engine, run.model) for run in runs}:
        assert find_kernel_table(gpu, engine) is not None
        assert load_model(model)


def test_both_halves_hold_every_gpu_engine_and_model():
    halves = {
        split: {(run.group[:2], run.gpu, run.model) for run in serving_runs() if run.split == split}
        for split in ("develop", "report")
    }
    assert halves["develop"] == halves["report"]
    assert len(halves["report"]) == 6


def test_the_runs_that_were_there_before_others_came_are_still_those():
    before = [run for run in serving_runs() if run.model == "llama-3.1-70b" and run.gpu in ("h100_sxm", "h200_sxm")]
    assert len(before) == 177
    assert sum(run.split == "develop" for run in before) == 77


def test_inferencemax_draws_lengths_from_four_fifths_up_and_sends_ten_requests_a_user():
    assert RUN.workload.prefill == Lengths(819, 1024)
    assert RUN.workload.decode.mean == pytest.approx(0.9 * 1024, rel=1e-3)
    assert RUN.workload.concurrency == 16
    assert RUN.requests == 160


def test_prompts_are_held_back_for_one_pair_of_lengths_on_fewer_than_eight_gpus():
    held = RUN.scheduler
    assert (held.wait_share, held.wait_iterations, held.max_num_tokens, held.chunked) == (0.9, 20, 16384, False)
    eight = dataclasses.replace(RUN, precision=dataclasses.replace(RUN.precision, tensor_parallel=8))
    longer = dataclasses.replace(RUN, prefill_len=8192)
    assert eight.scheduler.wait_iterations == longer.scheduler.wait_iterations == 0
    vllm = dataclasses.replace(RUN, benchmark="inferencemax_vllm", engine="vllm")
    assert (vllm.scheduler.wait_iterations, vllm.scheduler.max_num_tokens, vllm.scheduler.chunked) == (0, 8192, True)


def test_other_benchmarks_have_fixed_lengths():
    plain = dataclasses.replace(RUN, benchmark="aic_gap")
    assert plain.workload.prefill == Lengths(1024, 1024)
    assert plain.group == ("aic_gap", "trtllm", "")


def test_each_benchmark_says_what_is_known_from_where_and_what_is_assumed():
    stated = json.loads(SERVING_BENCHMARKS.read_text())
    for name, entry in stated["benchmarks"].items():
        assert entry["known"], name
        assert all(facts for facts in entry["known"].values()), name
        assert benchmarks()[name].assumed, name
    assert stated["left_out"]


def test_a_newer_file_is_refused(tmp_path, monkeypatch):
    other = tmp_path / "benchmarks.json"
    other.write_text(json.dumps({"schema_version": 2}))
    monkeypatch.setattr(module, "SERVING_BENCHMARKS", other)
    benchmarks.cache_clear()
    with pytest.raises(ValueError, match=r"has schema 2; this version reads 1"):
        benchmarks()
    benchmarks.cache_clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"concurrency": 0}, "concurrency"),
        ({"tpot_ms": 0.0}, "one: times must be above 0"),
        ({"split": "both"}, "one: the split is 'both'; it must be develop or report"),
    ],
)
def test_impossible_runs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RUN, **change)
