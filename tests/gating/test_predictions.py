import copy
import json

import pytest

from puzzlebench.gating.predictions import (
    GOLDENS,
    compare_predictions,
    predict_cases,
    read_cases,
    read_goldens,
    write_goldens,
)

NAME = "llama-3.1-8b/h100_sxm/trtllm/bf16-bf16.tp1/b1.p128.d128"


@pytest.fixture
def goldens():
    return read_goldens()


def outcomes(goldens, found, **options):
    gate = compare_predictions(goldens, found, **options)
    return gate.passed, [(one.outcome, one.cell) for one in gate.findings]


def test_todays_predictions_are_the_goldens(goldens):
    gate = compare_predictions(goldens, predict_cases(read_cases()))
    assert gate.findings == ()
    assert gate.passed
    assert gate.cells == len(goldens)


def test_the_goldens_hold_predictions_of_every_kind(goldens):
    kinds = {kind for cell in goldens.values() for kind in cell.get("provenance", {})}
    assert kinds == {"measured", "interpolated", "extrapolated", "modelled"}
    assert sum("miss" in cell for cell in goldens.values()) == 2


def test_drift_within_the_tolerance_is_told_and_beyond_it_fails(goldens):
    found = copy.deepcopy(goldens)
    found[NAME]["decode_ms"] *= 1.01
    assert outcomes(goldens, found) == (True, [("drifts", NAME)])
    assert outcomes(goldens, found, tolerance=0.005) == (False, [("fails", NAME)])
    found[NAME]["decode_ms"] *= 0.9
    assert outcomes(goldens, found) == (False, [("fails", NAME)])
    assert compare_predictions(goldens, found).largest_drift == pytest.approx(0.091)


def test_last_digits_are_no_drift(goldens):
    found = copy.deepcopy(goldens)
    found[NAME]["decode_ms"] *= 1 + 5e-5
    assert outcomes(goldens, found) == (True, [])


def test_a_prediction_that_becomes_a_miss_fails_and_the_reverse_does_not(goldens):
    lost = goldens | {NAME: {"miss": "nobody measured it"}}
    assert outcomes(goldens, lost) == (False, [("fails", NAME)])
    assert outcomes(lost, goldens) == (True, [("improves", NAME)])
    assert outcomes(lost, goldens | {NAME: {"miss": "in other words"}}) == (True, [])


@pytest.mark.parametrize(("moved", "passed"), [(0.01, True), (0.1, False)])
def test_worse_sources_fail_where_they_carry_the_time(goldens, moved, passed):
    found = copy.deepcopy(goldens)
    found[NAME]["provenance"]["interpolated"] -= moved
    found[NAME]["provenance"]["modelled"] += moved
    assert outcomes(goldens, found) == (passed, [("drifts" if passed else "fails", NAME)])
    assert outcomes(found, goldens) == (True, [])


def test_cases_and_goldens_must_be_of_the_same_list(goldens):
    fewer = {name: cell for name, cell in goldens.items() if name != NAME}
    assert outcomes(goldens, fewer) == (False, [("fails", NAME)])
    assert outcomes(fewer, goldens) == (False, [("fails", NAME)])


def test_goldens_are_written_and_read_again(goldens, tmp_path):
    write_goldens(tmp_path / "goldens.json", goldens)
    assert read_goldens(tmp_path / "goldens.json") == goldens == json.loads(GOLDENS.read_text())["cells"]


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "no goldens that can be read"), ("[]", "not of schema 1"), ('{"schema_version": 9}', "not of")],
)
def test_files_that_are_no_goldens(tmp_path, text, words):
    file = tmp_path / "goldens.json"
    with pytest.raises(ValueError, match="--update writes them"):
        read_goldens(file)
    file.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_goldens(file)


def test_lists_that_are_none_and_repeated_cases(tmp_path):
    file = tmp_path / "cases.yaml"
    file.write_text("- models: [a]\n")
    with pytest.raises(ValueError, match="is no list of predictions"):
        read_cases(file)
    entry = "- {models: [a, a], gpus: [b], engines: [c], precisions: [{weight_dtype: bf16}], scenarios: [[1, 2, 3]]}\n"
    file.write_text(entry)
    with pytest.raises(ValueError, match=r"has a/b/c/bf16-bf16.tp1/b1.p2.d3 twice"):
        read_cases(file)


def test_a_tolerance_below_rounding_is_refused(goldens):
    with pytest.raises(ValueError, match="tolerance must be at least"):
        compare_predictions(goldens, goldens, tolerance=0)
