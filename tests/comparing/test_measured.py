"""Results are read from every kind of file, and a broken one is refused in one line."""

import json

import numpy as np
import pytest

from puzzlebench.comparing.measured import Measurements, read_measurements
from puzzlebench.comparing.verdicts import compare
from puzzlebench.profiling.cost_table import read_cost_table, write_cost_table
from puzzlebench_profiles.measured_tables import list_measured_tables

TABLE = next(iter(list_measured_tables().values()))


def write_pytest_benchmark(path, medians, *, commit="abc", data=None, cell=None):
    benchmarks = [
        {
            "fullname": f"test_it.py::test [{place}]",
            "group": None,
            "extra_info": {"cell": cell} if cell else {},
            "stats": {"median": median, "iqr": 0.02 * median, "rounds": 100, "data": data},
        }
        for place, median in enumerate(medians)
    ]
    machine = {"python_version": "3.11.7", "system": "Linux", "cpu": {"brand_raw": "AMD EPYC", "count": 2}}
    stated = {"machine_info": machine, "commit_info": {"id": commit}, "datetime": "2026-11-28T10:00:00+00:00"}
    path.write_text(json.dumps({**stated, "benchmarks": benchmarks, "version": "5.3.1"}))
    return path


def test_bench(bench_file):
    found = read_measurements(bench_file([[10.0, 20.0], [11.0, np.nan]]))
    assert (found.kind, found.sessions, found.revision) == ("bench", 2, "0123abc")
    assert found.cells == ("block/cell_0", "block/cell_1")
    np.testing.assert_equal(found.medians, [[10, 20], [11, np.nan]])
    assert found.errors[0, 0] == pytest.approx(0.02 / 3.92, rel=1e-3)
    assert found.fingerprint["cpu"]["model"] == "AMD EPYC"
    np.testing.assert_equal(found.calm, [[0.8, 0.8], [0.8, np.nan]])
    np.testing.assert_equal(found.taken, [[25, 25], [25, np.nan]])
    assert found.only([1, 1]).medians[:, 0].tolist() == [11, 11]
    assert found.only([1]).calm.shape == (1, 2)


@pytest.mark.parametrize("changes", [{"samples": 2}, {"low": None, "high": None}])
def test_an_interval_of_too_few_samples_is_unknown(bench_file, changes):
    stated = json.loads(bench_file([[10.0, 20.0], [11.0, 21.0]]).read_text())
    change_cell(stated, **changes)
    errors = read_measurements(bench_file([[1.0]], name="few.json", sessions=stated["sessions"])).errors
    assert np.isnan(errors).tolist() == [[True, False], [False, False]]


def test_what_was_skipped_and_what_the_gpu_did(bench_file):
    stated = json.loads(bench_file([[10.0], [11.0], [12.0]]).read_text())
    for session, clock in zip(stated["sessions"], (1980.0, 1980.0, 1755.0), strict=True):
        session |= {"sm_clock_mhz": clock, "throttled_share": 0.1}
    skipped = {"kernel/x": "needs triton"}
    base = read_measurements(bench_file([[1.0]], name="gpu.json", sessions=stated["sessions"], skipped=skipped))
    assert base.skipped == skipped
    assert base.conditions == pytest.approx({"sm_clock_mhz": 1980.0, "throttled_share": 0.1})
    for session in stated["sessions"]:
        session |= {"sm_clock_mhz": 1700.0, "throttled_share": 0.0}
    new = read_measurements(bench_file([[1.0]], name="slow.json", sessions=stated["sessions"]))
    assert compare(base, new, paired=True).labels == (
        "typical SM clock 1980 MHz in BASE, 1700 MHz in NEW",
        "throttled 10% of the time in BASE, 0% in NEW",
    )
    assert compare(new, new, paired=True).labels == ()


def test_a_disturbed_session_is_said(bench_file):
    stated = json.loads(bench_file([[10.0], [11.0]]).read_text())
    stated["sessions"][1]["others_share"] = 0.4
    found = read_measurements(bench_file([[1.0]], name="busy.json", sessions=stated["sessions"]))
    assert "40%" in found.notes[0]
    assert "1 of 2 sessions" in found.notes[0]


def test_cost_table_intervals_stand_for_sessions():
    table, found = read_cost_table(TABLE), read_measurements(TABLE)
    timed = table.frame[table.frame["latency_us"] > 0]
    assert found.sessions is None
    assert len(found.cells) == len(timed)
    assert found.medians[0].tolist() == timed["latency_us"].tolist()
    width = np.log(timed["latency_high_us"] / timed["latency_low_us"]) / 3.92
    np.testing.assert_allclose(found.errors[0], width)
    assert found.fingerprint["device"] == "amd_epyc_2c"
    assert "no sessions" in found.notes[0]


def test_a_cost_table_equals_itself_and_a_slow_cell_is_found(tmp_path):
    table = read_cost_table(TABLE)
    frame = table.frame.copy()
    slow = frame.index[frame["sub_block"] == "gqa_4"][3]
    frame.loc[slow, ["latency_us", "latency_low_us", "latency_high_us"]] *= 4
    write_cost_table(type(table)(frame=frame, metadata=table.metadata), tmp_path / "new.parquet")
    base, new = read_measurements(TABLE), read_measurements(tmp_path / "new.parquet")
    same = compare(base, base, paired=False)
    assert not same.of("SLOWER")
    assert not same.of("FASTER")
    found = compare(base, new, paired=False)
    assert [cell.sessions for cell in found.of("SLOWER")] == [None]
    assert found.of("SLOWER")[0].ratio.value == pytest.approx(4)


def test_pytest_benchmark(tmp_path):
    found = read_measurements(write_pytest_benchmark(tmp_path / "one.json", [1e-5, 2e-5]))
    assert (found.kind, found.sessions, found.units) == ("pytest_benchmark", 1, ("us", "us"))
    assert found.cells == ("test_it.py::test_[0]", "test_it.py::test_[1]")
    np.testing.assert_allclose(found.medians, [[10, 20]])
    assert found.errors[0, 0] == pytest.approx(1.2533 * 0.02 / 1.349 / 10)
    own_name = read_measurements(write_pytest_benchmark(tmp_path / "two.json", [1e-5], cell="block/mlp"))
    assert own_name.cells == ("block/mlp",)


def test_a_folder_of_pytest_benchmark_files_is_as_many_sessions(tmp_path):
    for place in range(3):
        write_pytest_benchmark(tmp_path / f"{place}.json", [1e-5 * (place + 1)], data=[1e-5 * (place + 1)] * 3)
    found = read_measurements(tmp_path)
    assert found.sessions == 3
    np.testing.assert_allclose(found.medians[:, 0], [10, 20, 30])
    last = write_pytest_benchmark(tmp_path / "3.json", [1e-5], commit="def")
    with pytest.raises(ValueError, match="not of one commit"):
        read_measurements(tmp_path)
    write_pytest_benchmark(last, [1e-5])
    stated = json.loads(last.read_text())
    stated["machine_info"]["python_version"] = "3.12.1"
    last.write_text(json.dumps(stated))
    with pytest.raises(ValueError, match=r"not of one machine and its libraries: python 3\.11\.7 and 3\.12\.1"):
        read_measurements(tmp_path)


def test_a_pytest_benchmark_file_with_the_projects_fingerprint(tmp_path):
    for place in range(2):
        path = write_pytest_benchmark(tmp_path / f"{place}.json", [1e-5])
        stated = json.loads(path.read_text())
        stated["machine_info"]["puzzlebench"] = {"device": "h100", "suite": "0a1b", "date": f"2026-11-2{place}"}
        path.write_text(json.dumps(stated))
    found = read_measurements(tmp_path)
    assert found.fingerprint == {"device": "h100", "suite": "0a1b", "date": "2026-11-20"}
    assert found.sessions == 2


def change_cell(stated, **changes):
    cell = stated["sessions"][0]["cells"]["block/cell_0"]
    cell |= changes
    return stated


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stated: stated | {"schema_version": 9}, "schema version 9"),
        (lambda stated: stated | {"sessions": []}, "no measured cells"),
        (lambda stated: change_cell(stated, median=0.0), "block/cell_0 must be finite and above 0, not 0.0"),
        (lambda stated: change_cell(stated, median=float("inf")), "must be finite"),
        (lambda stated: change_cell(stated, low=3.0, high=1.0), "interval"),
        (lambda stated: change_cell(stated, unit="ms"), "is in ms and in us"),
        (lambda stated: change_cell(stated, median=None), "lacks what its format needs"),
        (lambda _: [1, 2], "neither a result"),
        (lambda _: {"x": 1}, "neither a result"),
    ],
)
def test_broken_files_are_one_line(bench_file, change, message):
    path = bench_file([[10.0, 20.0], [11.0, 21.0]])
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message) as caught:
        read_measurements(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_results(tmp_path):
    (tmp_path / "text.json").write_text("{")
    for name, message in (("none.json", "no such result"), ("text.json", "not a JSON file"), ("no.parquet", "no such")):
        with pytest.raises(ValueError, match=message):
            read_measurements(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no \.json files"):
        read_measurements(tmp_path / "empty")


def test_a_name_stands_once():
    with pytest.raises(ValueError, match="'a' stands twice"):
        Measurements(
            cells=("a", "a"), units=("us", "us"), medians=np.ones((1, 2)), errors=np.zeros((1, 2)), fingerprint={},
            kind="bench",
        )  # fmt: skip
