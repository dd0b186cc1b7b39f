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


def test_an_engine_is_found_by_version_then_at_all():
    versioned = next(one for one in calibrations() if one.engine_version)
    assert find_calibration(versioned.engine, versioned.engine_version) is versioned
    assert find_calibration("trtllm", "99") is calibrations()[0]
    assert find_calibration("sglang") is None


def test_another_schema_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "overheads.json"
    file.write_text(json.dumps({"schema_version": 99}))
    monkeypatch.setattr(calibration, "OVERHEADS_FILE", file)
    with pytest.raises(ValueError, match="schema 99"):
        calibrations.__wrapped__()
