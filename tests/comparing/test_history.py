"""Results in a folder, and where in them cells changed. Change points need apache-otava."""

import builtins
import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from puzzlebench.comparing.history import SUITE, append, find_changes, read_history
from puzzlebench.comparing.terminal import print_changes, print_history

from .conftest import FINGERPRINT, make_result

START = datetime(2026, 11, 1, tzinfo=UTC)


def write_series(folder, logs, **changed):
    """A result a day of (R, C) logs; `changed` gives a fingerprint from a day on."""
    for day, row in enumerate(logs):
        fingerprint = FINGERPRINT | {key: new for key, (since, new) in changed.items() if day >= since}
        names = [f"g/{place}" for place in range(len(row)) if np.isfinite(row[place])]
        append(
            make_result(
                row[np.isfinite(row)][None, :],
                names=names,
                revision=f"{day:07x}",
                created=(START + timedelta(days=day)).isoformat(),
                fingerprint=fingerprint,
            ),
            folder,
        )
    return read_history(folder)


def noise(seed, results, cells, common=0.01, own=0.01):
    generator = np.random.default_rng(seed)
    return common * generator.standard_normal((results, 1)) + own * generator.standard_normal((results, cells))


def test_results_come_back_in_order(tmp_path, capsys):
    entries = write_series(tmp_path / "history", noise(1, 12, 3))
    assert [entry.revision for entry in entries] == [f"{day:07x}" for day in range(12)]
    assert entries[0].cells["g/0"][0] == "us"
    assert entries[0].fingerprint["cpu.model"] == "AMD EPYC"
    assert len({entry.digest for entry in entries}) == 1
    print_history(entries)
    assert "000000b" in capsys.readouterr().out


def test_the_same_result_twice_is_one_file_and_another_of_the_same_second_is_two(tmp_path):
    one = make_result(np.zeros((3, 2)), revision="abc")
    assert append(one, tmp_path) == append(one, tmp_path)
    append(make_result(np.ones((3, 2)), revision="abc"), tmp_path)
    assert len(read_history(tmp_path)) == 2


def test_bad_histories(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        read_history(tmp_path / "none")
    with pytest.raises(ValueError, match="when it was measured"):
        append(make_result(np.zeros((3, 2)), created=""), tmp_path)
    path = append(make_result(np.zeros((3, 2))), tmp_path)
    good = json.loads(path.read_text())
    for change in (
        {"schema_version": 7},
        {"cells": {"a": {"unit": "us", "value": -1}}},
        {"created": "x"},
        {"cells": 3},
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises(ValueError, match="is not a result of a history") as caught:
            read_history(tmp_path)
        assert "\n" not in str(caught.value)


def test_without_otava_the_extra_is_named(tmp_path, monkeypatch):
    entries = write_series(tmp_path, noise(1, 8, 2))
    found = builtins.__import__

    def fail(name, *rest):
        if name.startswith("otava"):
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(ValueError, match=r"puzzlebench\[regression\]"):
        find_changes(entries)


class TestChanges:
    @pytest.fixture(autouse=True)
    def _needs_otava(self):
        pytest.importorskip("otava.analysis")

    def test_a_cell_that_changed_and_what_else_changed_with_it(self, tmp_path, capsys):
        logs = noise(2, 24, 10)
        logs[14:, 3] += np.log(1.08)
        changes = find_changes(write_series(tmp_path, logs, torch=(14, "2.14.0")))
        assert [change.cell for change in changes] == ["g/3"]
        change = changes[0]
        assert (change.previous, change.revision) == (f"{13:07x}", f"{14:07x}")
        assert change.ratio == pytest.approx(1.08, abs=0.02)
        assert change.labels == ("torch 2.13.0 to 2.14.0",)
        print_changes(changes, results=24)
        assert "+" in capsys.readouterr().out

    def test_a_machine_that_moved_is_one_change(self, tmp_path):
        logs = noise(3, 24, 10)
        logs[10:] += 0.1
        logs[18:, 4] -= 0.1
        changes = find_changes(write_series(tmp_path, logs))
        assert {change.cell for change in changes} == {SUITE, "g/4"}
        assert {change.cell: change.revision for change in changes} == {SUITE: f"{10:07x}", "g/4": f"{18:07x}"}

    def test_a_spike_is_no_change_and_noise_is_none(self, tmp_path):
        logs = noise(4, 30, 12)
        logs[11, 2] += 0.5
        logs[-1, 5] += 0.5
        assert find_changes(write_series(tmp_path, logs)) == ()

    def test_another_machine_is_another_series(self, tmp_path):
        logs = noise(5, 24, 8)
        logs[12:, 3] += 0.3
        assert find_changes(write_series(tmp_path, logs, device=(12, "amd_epyc_4c"))) == ()

    def test_cells_that_come_and_go(self, tmp_path):
        logs = noise(6, 24, 9)
        logs[15:, 3] += 0.1
        logs[:8, 3] = logs[5:9, 4] = logs[4:, 5] = np.nan
        changes = find_changes(write_series(tmp_path, logs))
        assert [(change.cell, change.revision) for change in changes] == [("g/3", f"{15:07x}")]

    def test_equal_series_rarely_have_changes(self, tmp_path):
        found = [
            bool(find_changes(write_series(tmp_path / str(seed), noise(100 + seed, 30, 12)))) for seed in range(12)
        ]
        assert sum(found) <= 1
