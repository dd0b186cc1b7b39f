"""Errors of served models: by hand where they can be, and a few measured develop runs."""

import dataclasses
import re
import sys

import numpy as np
import pytest

from puzzlebench.model.catalog import load_model
from puzzlebench.profiling.sources import open_kernels
from puzzlebench.serving.calibration import find_calibration, interval_widths
from puzzlebench.serving.estimating import estimate_workload, open_served
from puzzlebench.serving.iterations import Overheads
from puzzlebench.serving.runs import serving_runs
from puzzlebench.validation import serving, tables
from puzzlebench.validation.picture import draw_serving
from puzzlebench.validation.serving import (
    SETTLED,
    UNQUEUED,
    engine_label,
    errors_by_engine,
    missed,
    predict_run,
    predict_runs,
    published_errors,
    serving_errors,
    target_cells,
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
    assert errors_of(found, method="replay", split="develop", value="8")[UNQUEUED].coverage == 0.0  # ln 0.9 is -0.105
    assert errors_of(found, method="replay", split="develop", value="8")[SETTLED] is None


def test_the_settled_time_is_judged_by_the_interval_that_is_stated_around_it():
    near, far = (
        dataclasses.replace(made_prediction(made_run(id=str(share))), settled_ttft_ms=share * 100.0)
        for share in (0.95, 0.5)
    )
    settled = errors_of(serving_errors([near, far, far, far]), method="steady", by="all")[SETTLED]
    assert (settled.count, settled.coverage) == (4, 0.25)
    assert settled.bias == pytest.approx(-50.0)


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
    own = dataclasses.replace(
        serving.calibrations()[0],
        overheads=Overheads(launch_us=123.0),
        elsewhere={"tpot": 0.06, "ttft": 0.01, "throughput": 0.06},
    )

    def fit(mine, *, launches):
        fitted.append(({(run.gpu, run.split) for run in mine}, launches))
        return Overheads(sub_block_us=float(len(fitted)))

    def predict(run, overheads):
        judged.append((run.gpu, run.split, overheads.sub_block_us))
        return made_prediction(run, tpot=1.05 if run.concurrency == 8 else 1.07, ttft=1.02).steady

    monkeypatch.setattr(serving, "calibrations", tuple)
    monkeypatch.setattr(serving, "find_calibration", lambda _engine, *, gpu, model: own)
    monkeypatch.setattr(serving, "fit", fit)
    monkeypatch.setattr(serving, "predict", predict)
    found = unused_groups(runs)
    assert [(one.left_out, one.used, one.fitted, one.errors["tpot"].count) for one in found] == [
        ("h100_sxm", "h200_sxm", 2, 2),
        ("h200_sxm", "h100_sxm", 2, 2),
    ]
    assert fitted == [({("h200_sxm", "develop")}, (123.0,)), ({("h100_sxm", "develop")}, (123.0,))]
    assert set(judged) == {("h100_sxm", "report", 1.0), ("h200_sxm", "report", 2.0)}
    assert found[0].errors["tpot"].bias == pytest.approx(6.0)
    assert found[0].errors["tpot"].coverage == 0.5  # 5 % too long is inside e^0.06, 7 % is not
    assert found[0].errors["ttft"].coverage == 0.0
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


@pytest.mark.parametrize("engine", ["trtllm", "vllm"])
def test_a_run_is_predicted_as_a_user_s_workload_is(engine):
    """The same overheads, times and intervals as `estimate --serving` with the benchmark's settings."""
    run = min(
        (run for run in serving_runs() if run.split == "develop" and run.engine == engine and run.tensor_parallel == 2),
        key=lambda run: (run.benchmark == "aic_gap", run.concurrency, run.id),
    )
    found = predict_run(run)
    spec, architecture = load_model(run.model)
    gpu, kernels = open_kernels(run.gpu, run.engine)
    lengths, scheduler = (run.workload.prefill, run.workload.decode), run.scheduler
    opened = open_served(kernels, gpu, spec, architecture, run.precision, *lengths, scheduler=scheduler)
    stated = estimate_workload(opened, run.workload)
    assert stated.measured_here
    # Kernels are interpolated on a grid up to the longest sequence, which is that of all runs in one of them.
    assert found.steady.tpot_ms == pytest.approx(stated.tpot_ms.value, rel=0.01)
    assert found.settled_ttft_ms == pytest.approx(stated.ttft_ms.value, rel=0.02)
    for metric, interval in (("tpot", stated.tpot_ms), ("ttft", stated.ttft_ms)):
        assert found.widths[metric] == pytest.approx(np.log(interval.high / interval.value), rel=0.02)


def test_an_engine_without_overheads_is_predicted_without_them(monkeypatch):
    run = next(run for run in serving_runs() if run.split == "develop" and run.concurrency == 8)
    fitted = predict_run(run)
    monkeypatch.setattr(serving, "find_calibration", lambda _engine, *, gpu, model: None)
    assert predict_run(run).steady.tpot_ms != fitted.steady.tpot_ms


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


def test_published_throughputs_are_predicted_with_what_a_user_of_that_gpu_and_model_gets(monkeypatch):
    from puzzlebench.serving.published import published_runs

    runs = {(run.model, run.gpu): run for run in published_runs()}
    assert {model for model, _ in runs} == {"llama-3.1-8b", "llama-3.3-70b"}
    asked = []
    monkeypatch.setattr(serving, "predict_published", lambda run, overheads: asked.append(overheads) or 1000.0)
    found = published_errors(list(runs.values()))
    assert [one.predicted for one in found] == [1000.0] * len(runs)
    for one, overheads in zip(found, asked, strict=True):
        own = find_calibration("trtllm", gpu=one.run.gpu, model=one.run.model)
        assert overheads == own.overheads
        assert one.width == interval_widths(own, gpu=one.run.gpu, model=one.run.model)["throughput"]
    measured = find_calibration("trtllm", gpu="h100_sxm", model="llama-3.1-8b")
    assert measured.covers("h100_sxm", "llama-3.1-8b")
    assert asked[list(runs).index(("llama-3.1-8b", "h100_sxm"))] == measured.overheads


def test_tables_hold_every_group(predictions):
    errors = serving_errors(predictions)
    overview = tables.serving_overview(errors)
    assert len(overview.rows) == 2 * 2 * 2 + 3 * 2
    assert len({row[:3] for row in overview.rows}) == len(overview.rows)
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


def test_the_report_half_stands_beside_the_targets(predictions):
    keys = [key for key, _ in target_cells(predictions)]
    assert keys[0] == ("all", "all", "all")
    engine = engine_label(predictions[0].run)
    assert keys[1:] == [(gpu, engine, tp) for gpu in ("h100_sxm", "h200_sxm") for tp in ("all", "1", "2")]
    found = dict(target_cells(predictions))
    assert found["all", "all", "all"]["tpot"].count == 4  # of 8 runs, the report half
    cell = found["h200_sxm", engine, "2"]
    assert cell["tpot"].bias == pytest.approx(100 * (1.1 * 1.16 - 1))
    table = tables.targets_table(predictions)
    assert all(len(row) == len(table.header) for row in table.rows)
    misses = {row[:3]: row[3] for row in table.rows}
    each = ("median", "p90", "inside")  # and not the first token: its users wait in a queue
    wanted = ", ".join(f"{metric} {name}" for metric in ("TPOT", "throughput") for name in each)
    assert misses["h200_sxm", engine, "2"] == wanted


def test_what_misses_a_target_is_named():
    near = [made_prediction(made_run(id=str(place), split="report"), tpot=1.04, ttft=1.08) for place in range(4)]
    assert missed(target_cells(near)[0][1]) == []
    slow = [*near, made_prediction(made_run(id="slow", split="report"), tpot=1.5, ttft=1.08)]
    assert missed(target_cells(slow)[0][1]) == ["TPOT p90", "TPOT inside", "throughput p90", "throughput inside"]
    late = [made_prediction(made_run(id=str(place), split="report"), ttft=1.12) for place in range(2)]
    assert "TTFT" in missed(target_cells(late)[0][1])


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
