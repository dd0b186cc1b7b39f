"""Errors of served models: by hand where they can be, and a few measured develop runs."""

import dataclasses
import re
import sys

import numpy as np
import pytest

from puzzlebench.serving.iterations import Overheads
from puzzlebench.serving.runs import serving_runs
from puzzlebench.validation import serving, tables
from puzzlebench.validation.picture import draw_serving
from puzzlebench.validation.serving import (
    SETTLED,
    UNQUEUED,
    calibration_of,
    engine_label,
    errors_by_engine,
    predict_runs,
    published_errors,
    serving_errors,
    unused_groups,
)

from .conftest import made_prediction, made_run


def errors_of(found, **wanted):
    (row,) = [row for row in found if all(getattr(row, name) == value for name, value in wanted.items())]
    return row.errors


def test_errors_are_those_of_the_runs_that_share_a_value(predictions):
    found = serving_errors(predictions)
    whole = errors_of(found, method="replay", split="develop", by="all")
    assert whole["tpot"].count == 4
    assert whole["tpot"].median == pytest.approx(5.0)  # 2, 4, 6 and 8 % too long
    assert whole["tpot"].bias == pytest.approx(5.0)
    assert whole["tpot"].coverage == 1.0
    assert whole["ttft"].bias == pytest.approx(-10.0)
    one = errors_of(found, method="replay", split="develop", by="GPU", value="h200_sxm")
    assert one["tpot"].median == pytest.approx(7.0)
    steady = errors_of(found, method="steady", split="report", by="TP", value="2")
    assert steady["tpot"].median == pytest.approx(100 * (1.1 * 1.14 - 1))
    assert steady["tpot"].coverage == 0.0  # beyond e^0.1
    throughput = errors_of(found, method="replay", split="report", by="users", value="8")["throughput"]
    assert throughput.bias < 0


def test_time_to_first_token_is_also_told_for_runs_without_a_queue(predictions):
    found = serving_errors(predictions, by=("users",))
    assert {row.by for row in found} == {"users"}
    assert errors_of(found, method="replay", split="develop", value="8")[UNQUEUED].count == 2
    assert errors_of(found, method="replay", split="develop", value="16")[UNQUEUED] is None
    assert errors_of(found, method="steady", split="develop", value="8")[SETTLED].bias == pytest.approx(-50.0)
    assert errors_of(found, method="replay", split="develop", value="8")[SETTLED] is None


def test_values_are_sorted_as_numbers(predictions):
    more = [made_prediction(made_run(id=str(users), concurrency=users)) for users in (128, 4)]
    values = [row.value for row in serving_errors([*predictions, *more], by=("users",)) if row.split == "develop"]
    assert values[: len(values) // 2] == ["4", "8", "16", "128"]


def test_overheads_for_an_unused_gpu_are_fitted_without_it_and_judged_on_its_report_runs(monkeypatch):
    runs = [
        made_run(id=f"{gpu} {split} {users}", gpu=gpu, split=split, concurrency=users)
        for gpu in ("h100_sxm", "h200_sxm")
        for split in ("develop", "report")
        for users in (8, 16)
    ]
    fitted, judged = [], []

    def fit(mine):
        fitted.append({(run.gpu, run.split) for run in mine})
        return Overheads(sub_block_us=float(len(fitted)))

    def predict(run, overheads):
        judged.append((run.gpu, run.split, overheads.sub_block_us))
        return made_prediction(run, tpot=1.05).steady

    monkeypatch.setattr(serving, "calibrations", tuple)
    monkeypatch.setattr(serving, "fit", fit)
    monkeypatch.setattr(serving, "predict", predict)
    found = unused_groups(runs)
    assert [(one.left_out, one.used, one.fitted, one.errors["tpot"].count) for one in found] == [
        ("h100_sxm", "h200_sxm", 2, 2),
        ("h200_sxm", "h100_sxm", 2, 2),
    ]
    assert fitted == [{("h200_sxm", "develop")}, {("h100_sxm", "develop")}]
    assert set(judged) == {("h100_sxm", "report", 1.0), ("h200_sxm", "report", 2.0)}
    assert found[0].errors["tpot"].bias == pytest.approx(5.0)
    assert all(len(row) == len(tables.unused_table(found).header) for row in tables.unused_table(found).rows)


def test_a_model_is_also_judged_with_overheads_of_another_version_s_other_models(monkeypatch):
    judged = []

    def predict(run, overheads):
        judged.append((run.id, overheads))
        return made_prediction(run).steady

    other = dataclasses.replace(serving.calibrations()[0], name="other", engine_version="9", models=("llama-3.1-8b",))
    same = dataclasses.replace(other, name="same", models=("qwen3-32b", "llama-3.1-8b"))
    monkeypatch.setattr(serving, "calibrations", lambda: (other, same, dataclasses.replace(other, engine="vllm")))
    monkeypatch.setattr(serving, "predict", predict)
    (found,) = unused_groups([made_run(id="one"), made_run(id="two", split="report")])
    assert (found.left_out, found.fitted, found.errors["tpot"].count) == ("qwen3-32b", other.runs, 1)
    assert judged == [("two", other.overheads)]


def test_runs_have_the_overheads_of_their_own_engine_version():
    runs = [run for run in serving_runs() if run.split == "develop"]
    for run in {run.group: run for run in runs}.values():
        found = calibration_of(run)
        assert found.engine == run.engine
    known = {(one.name, one.engine, one.engine_version) for one in serving.calibrations()}
    assert {run.group for run in runs if run.benchmark.startswith("inferencemax")} <= known
    with pytest.raises(ValueError, match="no overheads were fitted for sglang"):
        calibration_of(dataclasses.replace(runs[0], engine="sglang", benchmark="other"))


def test_measured_develop_runs_are_predicted_by_both_methods():
    runs = [
        run
        for run in serving_runs()
        if run.split == "develop" and run.benchmark == "aic_gap" and run.tensor_parallel == 1 and run.concurrency <= 32
    ][:4]
    said = []
    found = predict_runs(runs, progress=said.append)
    assert said == [f"serving runs: 0 of {len(runs)}"]
    for method in serving.METHODS:
        tpot = [getattr(one, method).tpot_ms / one.run.tpot_ms - 1 for one in found]
        assert np.median(np.abs(tpot)) < 0.15
    for one in found:
        assert one.in_flight
        assert set(one.widths) == {"tpot", "ttft", "throughput"}
        assert one.steady.tokens_per_s == pytest.approx(one.replay.tokens_per_s, rel=0.3)


def test_published_throughputs_are_predicted_with_the_engine_s_overheads(monkeypatch):
    from puzzlebench.serving.published import published_runs

    asked = []
    monkeypatch.setattr(serving, "predict_published", lambda run, overheads: asked.append(overheads) or 1000.0)
    found = published_errors(published_runs()[:2])
    assert [one.predicted for one in found] == [1000.0, 1000.0]
    assert all(one.width > 0 for one in found)
    assert asked[0] == serving.find_calibration("trtllm", "1.0").overheads


def test_tables_hold_every_group(predictions):
    errors = serving_errors(predictions)
    overview = tables.serving_overview(errors)
    assert len(overview.rows) == 4 * 2 * 2 + 2
    name = "time per output token"
    assert overview.rows[2] == (name, "benchmark replayed", "develop", "4", "5.00", "7.40", "+5.00", "100 %")
    groups = tables.serving_groups(errors, "replay")
    assert {row[:3] for row in groups.rows} >= {("GPU", "h100_sxm", "report"), ("lengths", "1024/128", "develop")}
    assert all(len(row) == len(groups.header) for row in groups.rows)
    residuals = tables.residuals_table(errors_by_engine(predictions, tables.RESIDUALS))
    users = next(row for row in residuals.rows if row[1] == "users")
    assert users[:6] == ("trtllm 1.0.0rc3", "users", "8", "2", "+14.4", "-1.0")
    assert all(len(row) == len(residuals.header) for row in residuals.rows)
    lines = groups.markdown().splitlines()
    assert lines[1].count("---:") == groups.numbers
    assert len(lines) == len(groups.rows) + 2


def test_a_value_of_one_half_only_leaves_the_other_s_cells_empty():
    errors = errors_by_engine([made_prediction(made_run(split="report"))], ("users",))
    (row,) = tables.residuals_table(errors).rows
    assert row[:7] == ("trtllm 1.0.0rc3", "users", "16", "0", "", "", "")
    assert row[7] == "1"


def test_fitted_numbers_are_shown_with_what_they_were_fitted_on():
    table = tables.calibrations_table(serving.calibrations())
    assert len(table.rows) == len(serving.calibrations())
    assert all(len(row) == len(table.header) for row in table.rows)


def test_the_picture_is_of_one_half_and_the_same_each_time(tmp_path, predictions):
    one, two = tmp_path / "one.svg", tmp_path / "two.svg"
    draw_serving(predictions, one)
    draw_serving(predictions, two)
    assert one.read_bytes() == two.read_bytes()
    text = one.read_text()
    assert "report half, 4 runs" in text
    label = f"{engine_label(predictions[0].run)}, h200_sxm (2)"
    assert label in re.sub(r"<[^>]+>", "", text)


def test_what_stops_the_picture_is_one_line(tmp_path, predictions, monkeypatch):
    with pytest.raises(ValueError, match="cannot write"):
        draw_serving(predictions, tmp_path / "missing" / "one.svg")
    with pytest.raises(ValueError, match="no run of the report half"):
        draw_serving(predictions[:1], tmp_path / "one.svg")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"puzzlebench\[plots\]"):
        draw_serving(predictions, tmp_path / "one.svg")
