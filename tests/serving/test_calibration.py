"""Overheads found again where they were planted, and what the shipped ones claim."""

import json
from dataclasses import replace

import numpy as np
import pytest

from puzzlebench.serving import calibration
from puzzlebench.serving.calibration import (
    METRICS,
    calibrate,
    calibrations,
    find_calibration,
    fit,
    interval_widths,
    left_out_errors,
    log_errors,
    predict,
    quantile,
)
from puzzlebench.serving.iterations import Overheads
from puzzlebench.serving.runs import serving_runs

PLANTED = Overheads(sub_block_us=-4.0, all_reduce_us=3.0, sequence_us=6.0, request_ms=25.0)


@pytest.fixture(scope="module")
def planted():
    """Short runs of one model, measured by our own prediction with known overheads."""
    chosen = [run for run in serving_runs() if run.split == "develop" and run.model == "llama-3.1-8b"]
    chosen = [run for run in chosen if run.concurrency <= 32 and run.decode_len <= 256 and run.tensor_parallel <= 2][:9]
    assert {run.tensor_parallel for run in chosen} > {1}
    runs = []
    for run in chosen:
        seen = predict(run, PLANTED)
        runs.append(replace(run, tpot_ms=seen.tpot_ms, ttft_ms=seen.ttft_ms))
    return runs


def test_planted_overheads_are_found_again(planted):
    found = fit(planted)
    assert found.sub_block_us == pytest.approx(PLANTED.sub_block_us, abs=0.4)
    assert found.all_reduce_us == pytest.approx(PLANTED.all_reduce_us, abs=0.4)
    assert found.sequence_us == pytest.approx(PLANTED.sequence_us, rel=0.15)
    assert found.request_ms == pytest.approx(PLANTED.request_ms, rel=0.25)


def test_a_calibration_leaves_less_error_than_none(planted):
    found = calibrate(planted)
    (entry,) = found["calibrations"]
    assert entry["runs"] == len(planted)
    assert all(entry["widths"][metric] < found["without"][metric] for metric in METRICS)
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(found))


def test_errors_are_logarithms_of_predicted_over_measured(planted):
    predicted = [predict(run, PLANTED) for run in planted]
    slower = [replace(run, tpot_ms=2 * run.tpot_ms) for run in planted]
    assert log_errors(planted, predicted)["tpot"] == pytest.approx(np.zeros(len(planted)), abs=1e-9)
    assert log_errors(slower, predicted)["tpot"] == pytest.approx(-np.log(2) * np.ones(len(planted)))


@pytest.mark.parametrize(("count", "expected"), [(9, 9), (19, 18), (99, 90), (5, 5)])
def test_the_quantile_is_that_of_split_conformal(count, expected):
    errors = np.random.default_rng(0).permutation(np.arange(1.0, count + 1)) * np.where(np.arange(count) % 2, 1, -1)
    assert quantile(errors) == expected


def test_the_shipped_overheads_are_of_develop_runs_only():
    develop = {}
    for run in serving_runs():
        if run.split == "develop":
            develop[run.group] = develop.get(run.group, 0) + 1
    assert {(one.name, one.engine, one.engine_version): one.runs for one in calibrations()} == develop
    for one in calibrations():
        assert set(one.widths) == set(METRICS)
        assert all(0 < one.widths[metric] < 0.3 for metric in ("tpot", "throughput"))
        assert str(one.runs) in one.label


def test_the_calibration_of_a_gpu_and_model_is_found_then_the_engine_s_preferred_one():
    mine = find_calibration("trtllm", gpu="h100_sxm", model="llama-3.1-8b")
    assert mine is not None
    assert mine.covers("h100_sxm", "llama-3.1-8b")
    other = find_calibration("trtllm", gpu="h100_sxm", model="qwen3-8b")
    assert other is calibrations()[0]
    assert not other.covers("h100_sxm", "qwen3-8b")
    assert find_calibration("sglang", gpu="h100_sxm", model="llama-3.1-8b") is None


def test_intervals_are_wider_where_nothing_was_measured():
    one = calibrations()[0]
    here = interval_widths(one, gpu=one.gpus[0], model=one.models[0])
    away = interval_widths(one, gpu="l40s", model=one.models[0])
    none = interval_widths(None, gpu=one.gpus[0], model=one.models[0])
    for metric in METRICS:
        assert here[metric] <= away[metric]
        assert none[metric] > 0
    assert here["tpot"] < away["tpot"]


def test_runs_that_are_left_out_are_predicted_by_the_others(planted):
    parts = [place % 3 for place in range(len(planted))]
    slow = [
        replace(run, tpot_ms=1.5 * run.tpot_ms) if part == 0 else run for run, part in zip(planted, parts, strict=True)
    ]
    errors = left_out_errors(slow, parts, Overheads(launch_us=0.0))["tpot"]
    assert [len(part) for part in errors] == [3, 3, 3]
    assert np.median(errors[0]) == pytest.approx(-np.log(1.5), abs=0.1)  # no one told the fit that they are so slow


def test_another_schema_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "overheads.json"
    file.write_text(json.dumps({"schema_version": 99}))
    monkeypatch.setattr(calibration, "OVERHEADS_FILE", file)
    with pytest.raises(ValueError, match="schema 99"):
        calibrations.__wrapped__()
