"""Tasks of the harness by name, and its silence."""

import sys

import pytest

from puzzlebench.harness import find_tasks, without_bars

tasks_module = pytest.importorskip("lm_eval.tasks")

TASK = "task: {name}\noutput_type: loglikelihood_rolling\n"


@pytest.fixture
def managers(monkeypatch):
    """Stands in for the harness's task manager, which takes 12 s and more to read its own tasks: how each was made."""
    made = []

    class Manager:
        def __init__(self, include_path=None, include_defaults=True):
            made.append((include_path, include_defaults))
            self.all_tasks = ["own"] * bool(include_path) + ["arc_easy", "arc_challenge"] * include_defaults

    monkeypatch.setattr(tasks_module, "TaskManager", Manager)
    return made


def test_a_folder_of_ones_own_is_looked_through_first(managers, tmp_path):
    find_tasks(["own"], [tmp_path])
    assert managers == [([str(tmp_path)], False)]
    managers.clear()
    assert find_tasks(["own", "arc_easy"], [tmp_path]).all_tasks == ["own", "arc_easy", "arc_challenge"]
    assert managers == [([str(tmp_path)], False), ([str(tmp_path)], True)]
    managers.clear()
    find_tasks(["arc_easy"])
    assert managers == [(None, True)]


def test_the_real_one_reads_a_folder(tmp_path):
    (tmp_path / "mine.yaml").write_text(TASK.format(name="mine"))
    assert find_tasks(["mine"], [tmp_path]).all_tasks == ["mine"]


def test_what_is_wrong_is_one_line(managers, tmp_path):
    with pytest.raises(ValueError, match="no task 'arc_eesy'; did you mean arc_easy"):
        find_tasks(["arc_eesy"])
    with pytest.raises(ValueError, match="lm-eval ls tasks"):
        find_tasks(["zzz"], [tmp_path])
    with pytest.raises(ValueError, match="no such folder"):
        find_tasks(["own"], [tmp_path / "missing"])


def test_bars_are_reported_and_not_drawn(capsys):
    tqdm = pytest.importorskip("tqdm")
    shares = []

    def report(share):
        shares.append(share)
        print("reported", file=sys.stderr)

    with without_bars(report):
        for _ in tqdm.tqdm(range(5), desc="Building contexts", mininterval=0):
            pass
        assert not shares
        for _ in tqdm.tqdm(range(4), desc="Running loglikelihood requests", mininterval=0):
            pass
    with without_bars():
        print("a warning", file=sys.stderr)
    assert shares == sorted(shares)
    assert {0.25, 0.5, 0.75, 1.0} <= set(shares)
    assert set(capsys.readouterr().err.split()) == {"reported"}
