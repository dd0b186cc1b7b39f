"""From results that are known to the cells of a table; nothing is timed."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest

pytest.importorskip("torch", reason="needs torch")

from puzzlebench.measuring import live as module
from puzzlebench.measuring.device import cpu_device
from puzzlebench.measuring.live import cell_interval, live_table, profile_live, with_measured_rates
from puzzlebench.measuring.plan import Effort
from puzzlebench.measuring.results import Results
from puzzlebench.measuring.workload import distinct_workloads, plan_cell, plan_cells
from puzzlebench.model import memory
from puzzlebench.model.blocks import GQA
from puzzlebench.model.space import default_space
from puzzlebench.model.spec import parent_architecture
from puzzlebench.profiling.cost_table import read_cost_table, write_cost_table
from puzzlebench.profiling.profile import Grid
from puzzlebench.render import cost_table_json, print_cost_table, print_measurement
from puzzlebench.scenario import Precision
from puzzlebench_profiles.datasheets import find_datasheet

FP32 = Precision(weight_dtype="fp32", kv_dtype="fp32")
GRID = Grid(batch_sizes=(1, 5), prefill_lens=(8, 10), context_lens=(8, 16))
MOST = 25  # five prompts of ten: two steps of two and one of one


@pytest.fixture(scope="module")
def cells(make_spec):
    return plan_cells(default_space(make_spec()), GRID, max_num_tokens=MOST)


@pytest.fixture
def results(cells, make_measured):
    works = distinct_workloads(cells)
    measured = {one: make_measured(one, 100.0 + place) for place, one in enumerate(works)}
    return Results(measured=measured, misses={}, session_shift=(0.01, -0.01), engine_version="2.0")


@pytest.fixture
def plan(make_plan, cells):
    return make_plan(distinct_workloads(cells))


@pytest.fixture(scope="module")
def cpu():
    return cpu_device()


@pytest.fixture
def make_table(plan, cells, cpu):
    return lambda results, cells=cells: live_table(plan, cells, results, cpu, max_num_tokens=MOST)


def row(table, part, sub_block, phase, batch, length):
    frame = table.frame
    chosen = frame[
        (frame["part"] == part)
        & (frame["sub_block"] == sub_block)
        & (frame["phase"] == phase)
        & (frame["batch_size"] == batch)
        & (frame["context_len"] == length)
    ]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_every_cell_has_a_row(make_table, results, cells, cpu):
    table = make_table(results)
    frame = table.frame
    assert len(frame) == len(cells)
    assert set(frame["provenance"]) == {"measured"}
    assert set(frame["gpu"]) == {cpu.name}
    assert set(frame["engine"]) == {"torch"}
    assert (frame["modelled_share"] == 0).all()
    assert table.metadata["misses"] == []
    assert table.metadata["session_shift"] == [0.01, -0.01]
    assert table.metadata["fingerprint"]["torch"] == "2.0"
    assert table.metadata["settings"]["max_num_tokens"] == MOST
    assert table.metadata["settings"]["effort"]["sessions"] == 1


def test_a_cell_of_one_step_is_that_step(make_table, results, work):
    key = work("attention", "gqa_2", "decode", 5, 16)
    one = results.measured[key]
    found = row(make_table(results), "attention", "gqa_2", "decode", 5, 16)
    assert (found["latency_us"], found["latency_hot_us"]) == (one.latency_us, one.hot_us)
    assert found["latency_low_us"] == pytest.approx(one.low_us)
    assert found["latency_high_us"] == pytest.approx(one.high_us)
    assert (found["samples"], found["workspace_bytes"]) == (30, 70)
    assert math.isnan(found["energy_mj"])


def test_repeated_steps_add_up(results, make_table, work):
    two, one = (work("attention", "gqa_2", "prefill", batch, 10) for batch in (2, 1))
    measured = dict(results.measured)
    measured[two] = replace(measured[two], energy_mj=3.0, samples=12, peak_bytes=900, throttled_share=0.25)
    measured[one] = replace(measured[one], energy_mj=1.0)
    found = row(make_table(replace(results, measured=measured)), "attention", "gqa_2", "prefill", 5, 10)
    a, b = measured[two], measured[one]
    assert found["latency_us"] == pytest.approx(2 * a.latency_us + b.latency_us)
    assert found["latency_hot_us"] == pytest.approx(2 * a.hot_us + b.hot_us)
    assert found["energy_mj"] == pytest.approx(7.0)
    assert found["latency_us"] - found["latency_low_us"] == pytest.approx(
        math.hypot(2 * 0.1 * a.latency_us, 0.1 * b.latency_us)
    )
    assert found["latency_high_us"] - found["latency_us"] == pytest.approx(
        math.hypot(2 * 0.2 * a.latency_us, 0.2 * b.latency_us)
    )
    assert (found["samples"], found["workspace_bytes"], found["throttled_share"]) == (12, 900, 0.25)


def test_energy_is_empty_unless_every_step_has_it(results, make_table, work):
    two = work("attention", "gqa_2", "prefill", 2, 10)
    measured = {**results.measured, two: replace(results.measured[two], energy_mj=3.0)}
    table = make_table(replace(results, measured=measured))
    assert math.isnan(row(table, "attention", "gqa_2", "prefill", 5, 10)["energy_mj"])


def test_an_interval_does_not_go_below_nothing(work, make_measured):
    cell = plan_cell(work("ffn", "mlp_64", "decode", 4, 1), max_num_tokens=8)
    one = make_measured(cell.steps[0].workload, 10.0, low_us=-5.0)
    found = cell_interval(
        cell, Results(measured={one.workload: one}, misses={}, session_shift=(), engine_version="2.0")
    )
    assert found == pytest.approx((10.0, 0.0, 12.0))


def test_a_no_op_costs_nothing(make_table, results):
    found = row(make_table(results), "ffn", "no_op", "prefill", 5, 10)
    names = ["latency_us", "latency_low_us", "latency_high_us", "latency_hot_us", "samples", "weight_bytes"]
    assert found[[*names, "kv_bytes_per_token", "workspace_bytes"]].tolist() == [0] * 8


def test_bytes_are_those_of_the_memory_model(make_table, results, make_spec):
    spec = make_spec()
    table = make_table(results)
    found = row(table, "attention", "gqa_1", "decode", 5, 16)
    sub = GQA(num_key_value_heads=1)
    assert found["weight_bytes"] == memory.sub_block_weight_bytes(spec, sub, weight_dtype="fp32")
    assert found["kv_bytes_per_token"] == memory.sub_block_kv_bytes_per_token(spec, sub, kv_dtype="fp32")
    head = row(table, "head", "head", "decode", 5, 16)
    assert head["weight_bytes"] == memory.head_weight_bytes(spec, weight_dtype="fp32")
    assert head["workspace_bytes"] == 70


@pytest.fixture
def incomplete(results, work):
    """Without one step of a cell, one cell, and one sub-block in decode."""
    gone = {
        work("attention", "gqa_2", "prefill", 2, 10): "out of memory: 9 GiB",
        work("attention", "gqa_1", "decode", 5, 16): "no kernel image",
    }
    wholly = {one: "no luck" for one in results.measured if one.sub_block == "mlp_32"}
    misses = {**gone, **wholly}
    measured = {one: value for one, value in results.measured.items() if one not in misses}
    return replace(results, measured=measured, misses=misses)


def test_misses_have_no_row_but_a_reason(make_table, incomplete, cells):
    table = make_table(incomplete)
    misses = pd.DataFrame(table.metadata["misses"])
    assert len(table.frame) + len(misses) == len(cells)
    assert not (table.frame["sub_block"] == "mlp_32").any()
    reasons = misses.set_index(["sub_block", "phase", "batch_size", "context_len"])["reason"]
    assert reasons["gqa_2", "prefill", 5, 10] == "out of memory: 9 GiB"
    assert reasons["gqa_1", "decode", 5, 16] == "no kernel image"
    assert (misses["sub_block"] == "mlp_32").sum() == 8


def test_a_miss_without_a_reason_says_so(make_table, results, work):
    gone = work("attention", "gqa_1", "decode", 5, 16)
    measured = {one: value for one, value in results.measured.items() if one != gone}
    (miss,) = make_table(replace(results, measured=measured)).metadata["misses"]
    assert miss["reason"] == "not measured"


def test_misses_are_printed_where_they_are(make_table, incomplete, capsys):
    print_cost_table(make_table(incomplete), phases=("prefill", "decode"), batch_size=5)
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if "│" in line]
    assert [line.count("miss") for line in lines if "gqa_2" in line] == [1, 0]
    assert [line.count("miss") for line in lines if "gqa_1" in line] == [0, 1]
    assert "miss: attention gqa_2, prefill, batch 5, length 10: out of memory: 9 GiB" in out
    assert "and 5 more misses; --json has them" in out


def test_misses_are_in_the_json(make_table, incomplete):
    data = cost_table_json(make_table(incomplete))
    assert len(data["misses"]) == 10


def test_a_phase_in_which_a_batch_is_all_missing_is_printed(make_table, results, capsys):
    def kept(one):
        return not (one.phase == "prefill" and one.batch_size in (1, 2, 5)) and one.tokens < 10

    measured = {one: value for one, value in results.measured.items() if kept(one)}
    misses = {one: "too large" for one in results.measured if one not in measured}
    table = make_table(replace(results, measured=measured, misses=misses))
    print_cost_table(table, phases=("prefill", "decode"), batch_size=None)
    assert "too large" in capsys.readouterr().out


def test_nothing_measured_is_no_table(make_table, cells):
    real = tuple(cell for cell in cells if cell.steps)
    with pytest.raises(ValueError, match="cost table"):
        make_table(Results(measured={}, misses={}, session_shift=(), engine_version="2.0"), real)


def test_a_written_file_reads_back(make_table, incomplete, tmp_path):
    table = make_table(incomplete)
    write_cost_table(table, tmp_path / "t.parquet")
    back = read_cost_table(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(back.frame, table.frame)
    assert back.metadata == json.loads(json.dumps(table.metadata))


def test_how_the_measurement_went(results, capsys):
    some = list(results.measured)
    measured = dict(results.measured)
    measured[some[0]] = replace(measured[some[0]], throttled_share=1.0, stopped_by="time limit")
    measured[some[1]] = replace(measured[some[1]], throttled_share=0.5)
    print_measurement(replace(results, measured=measured))
    out = capsys.readouterr().out
    assert f"{len(measured)} timed pieces of work, {30 * len(measured):,} samples" in out
    assert (
        f"stopped: {len(measured) - 1} by interval, 1 by time limit; sessions against their mean: +1.0 %, -1.0 %" in out
    )
    assert "clocks were held down in samples of 2 of them (1 in every sample, which are kept)" in out


@pytest.fixture
def ceilings(monkeypatch):
    """Ceilings without measuring: counts how often they were asked for."""
    asked = []

    def measure_ceilings(device):
        asked.append(device.name)
        return {"rates": 1}

    monkeypatch.setattr(module, "measure_ceilings", measure_ceilings)
    monkeypatch.setattr(module, "ceilings_to_json", lambda ceilings: ceilings)
    monkeypatch.setattr(module, "ceilings_from_json", lambda data: data)
    rated = SimpleNamespace()
    monkeypatch.setattr(
        module,
        "with_ceilings",
        lambda device, data: replace(device, datasheet=replace(device.datasheet, source=f"measured {data}")),
    )
    rated.asked = asked
    return rated


def test_ceilings_are_measured_once_and_kept(ceilings, cpu, tmp_path):
    for _ in range(2):
        assert with_measured_rates(cpu, tmp_path).datasheet.source == "measured {'rates': 1}"
    assert ceilings.asked == [cpu.name]
    assert [path.name for path in tmp_path.iterdir()] == ["ceilings.json"]


def test_a_bundled_datasheet_needs_no_ceilings(ceilings, cpu, tmp_path):
    sheet = find_datasheet("h100")
    device = replace(cpu, name=sheet.name, datasheet=sheet)
    assert with_measured_rates(device, tmp_path) is device
    assert ceilings.asked == []


def test_a_profile_plans_measures_and_fills(ceilings, cpu, make_spec, make_measured, tmp_path, monkeypatch):
    spec = make_spec()
    plans = []

    def measure(folder, plan, report):
        folder.mkdir(exist_ok=True)
        plans.append(plan)
        measured = {planned.workload: make_measured(planned.workload, 10.0) for planned in plan.workloads}
        return Results(measured=measured, misses={}, session_shift=(0.0,), engine_version="2.0")

    monkeypatch.setattr(module, "measure", measure)
    effort = Effort(sessions=1, seconds=1.0)
    asked = (spec, parent_architecture(spec), default_space(spec), FP32, GRID, cpu, "torch", effort, tmp_path / "run")
    profile = profile_live(*asked, lambda share, stage: None, max_num_tokens=MOST)
    cells = plan_cells(default_space(spec), GRID, max_num_tokens=MOST)
    assert [planned.workload for planned in plans[0].workloads] == list(distinct_workloads(cells))
    assert (plans[0].device, plans[0].engine, plans[0].effort) == ("cpu", "torch", effort)
    assert plans[0].fingerprint["device"] == cpu.name
    assert len(profile.table.frame) == len(cells)
    assert profile.table.metadata["gpu"]["source"] == "measured {'rates': 1}"


def test_an_unknown_engine_is_refused_before_anything_is_done(cpu, make_spec, tmp_path):
    spec = make_spec()
    asked = (spec, parent_architecture(spec), default_space(spec), FP32, GRID, cpu, "vllm", Effort(), tmp_path / "run")
    with pytest.raises(ValueError, match="engine 'vllm' cannot be measured live; use torch, triton, trtllm"):
        profile_live(*asked, lambda share, stage: None)
    assert list(tmp_path.iterdir()) == []
