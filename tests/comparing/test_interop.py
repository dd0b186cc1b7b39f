"""Results in other tools' formats: read back, against the schemas that the tools document, or by the tool itself."""

import json

import numpy as np
import pytest

from puzzlebench.comparing.interop import (
    bencher_metric_format,
    github_action_benchmark,
    pytest_benchmark,
    typical,
    write_asv,
)
from puzzlebench.comparing.measured import read_measurements

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def measured(result, pairs):
    return result(pairs(np.random.default_rng(1), 6, 8)[0], revision=REVISION)


def test_github_action_benchmark(measured):
    stated = json.loads(json.dumps(github_action_benchmark(measured), allow_nan=False))
    assert [one["name"] for one in stated] == list(measured.cells)
    for one, value in zip(stated, typical(measured).value, strict=True):
        assert set(one) == {"name", "unit", "value", "range", "extra"}
        assert one["unit"] == "us"
        assert one["value"] == pytest.approx(value)
        assert 0 < float(one["range"].removeprefix("± ")) < 10


def test_bencher_metric_format(measured, result):
    stated = json.loads(json.dumps(bencher_metric_format(measured), allow_nan=False))
    assert list(stated) == list(measured.cells)
    latency = stated["block/cell_0"]["latency"]
    assert latency["value"] == pytest.approx(1e3 * typical(measured).value[0])  # nanoseconds
    assert latency["lower_value"] < latency["value"] < latency["upper_value"]
    counted = bencher_metric_format(result(np.zeros((3, 1)), unit="nodes"))
    assert counted["block/cell_0"]["nodes"]["value"] == pytest.approx(100)


def test_an_unknown_interval_is_left_out(result):
    """One session of too few samples; with several, their scatter makes the interval."""
    unknown = np.full((1, 2), np.nan)
    one = result(np.zeros((1, 2)), errors=unknown, revision=REVISION)
    stated = json.loads(json.dumps(github_action_benchmark(one), allow_nan=False))
    assert "range" not in stated[0]
    assert "interval unknown" in stated[0]["extra"]
    assert set(bencher_metric_format(one)["block/cell_0"]["latency"]) == {"value"}
    two = result(np.array([[0.0, 0.0], [0.01, 0.02]]), errors=np.full((2, 2), np.nan))
    assert np.isfinite(typical(two).low).all()


def test_pytest_benchmark_comes_back(measured, tmp_path):
    path = tmp_path / "pytest.json"
    path.write_text(json.dumps(pytest_benchmark(measured), allow_nan=False))
    found = read_measurements(path)
    assert found.cells == measured.cells
    assert found.revision == REVISION
    np.testing.assert_allclose(found.medians[0], np.median(measured.medians, axis=0))
    assert found.fingerprint == measured.fingerprint


def test_pytest_benchmark_reads_what_we_write(measured, tmp_path, capsys, monkeypatch):
    cli = pytest.importorskip("pytest_benchmark.cli")
    path = tmp_path / "pytest.json"
    path.write_text(json.dumps(pytest_benchmark(measured)))
    monkeypatch.setattr("sys.argv", ["pytest-benchmark", "compare", str(path)])
    cli.main()
    assert "cell_0" in capsys.readouterr().out


def test_asv_files(measured, result, tmp_path):
    write_asv(measured, tmp_path, machine="here")
    other = result(measured.medians * 0, names=["extra/cell"] + [f"g/{place}" for place in range(7)],
                   revision="f" * 40)  # fmt: skip
    written = write_asv(other, tmp_path, machine="here")
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        "here/ffffffff-existing-py3.json",
        "here/machine.json",
        "benchmarks.json",
    ]
    described = json.loads((tmp_path / "benchmarks.json").read_text())
    assert {"version", "block.cell_0", "extra.cell"} <= set(described)
    stated = json.loads((tmp_path / "here/01234567-existing-py3.json").read_text())
    assert (stated["version"], stated["commit_hash"]) == (2, REVISION)
    row = dict(zip(stated["result_columns"], stated["results"]["block.cell_0"], strict=True))
    assert row["result"][0] == pytest.approx(typical(measured).value[0] / 1e6)
    assert row["stats_ci_99_a"][0] < row["result"][0] < row["stats_ci_99_b"][0]
    assert row["version"] == described["block.cell_0"]["version"]
    assert len(row["samples"][0]) == 6


def test_asv_reads_what_we_write(measured, tmp_path):
    results = pytest.importorskip("asv.results")
    path, *_ = write_asv(measured, tmp_path, machine="here")
    found = results.Results.load(str(path), machine_name="here")
    assert found.commit_hash == REVISION
    value = found.get_result_value("block.cell_0", [])
    assert value[0] == pytest.approx(typical(measured).value[0] / 1e6)
    stats = found.get_result_stats("block.cell_0", [])
    assert stats[0]["repeat"] == 6


def test_what_asv_cannot_hold(result, tmp_path):
    logs = np.zeros((3, 2))
    for one, options, message in (
        (result(logs), {}, "by commit"),
        (result(logs, revision="0123abc-dirty"), {}, "by commit"),
        (result(logs, revision=REVISION, unit="nodes"), {}, "holds times"),
        (result(logs, revision=REVISION), {"machine": "../x/"}, "machine's name"),
    ):
        with pytest.raises(ValueError, match=message):
            write_asv(one, tmp_path, **options)
    (tmp_path / "benchmarks.json").write_text("[]")
    with pytest.raises(ValueError, match="no list of asv"):
        write_asv(result(logs, revision=REVISION), tmp_path)
