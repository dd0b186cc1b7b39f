"""The campaign: steps once each, errors and time limits that leave a folder to go on in, an archive without traces."""

import json
import sys
import tarfile
import time
from dataclasses import replace

import pytest

from puzzlebench.measuring import campaign as module
from puzzlebench.measuring.campaign import Campaign, Step, TimeUpError, pack, run_campaign, targets
from puzzlebench.measuring.device import cpu_device


@pytest.fixture
def campaign(tmp_path):
    return Campaign(
        folder=tmp_path / "c", device=cpu_device(), pace=0.1, deadline=None, report=lambda _share, _what: None
    )


class Recorder:
    """Steps that write down that they ran; `fails` raise, `slow` find the time is up."""

    def __init__(self, monkeypatch, *names, fails=(), slow=(), gpu=()):
        self.ran, self.fails, self.slow = [], set(fails), set(slow)
        steps = tuple(
            Step(name=name, about=f"about {name}", run=lambda _c, name=name: self.run(name), needs_gpu=name in gpu)
            for name in names
        )
        monkeypatch.setattr(module, "STEPS", steps)
        monkeypatch.setattr(module, "_line", lambda step, found: str(found.get("failed", found.get("value", step))))

    def run(self, name):
        self.ran.append(name)
        if name in self.slow:
            raise TimeUpError
        if name in self.fails:
            raise RuntimeError(f"{name} broke")
        return {"value": name.upper()}


def result(campaign, step):
    return json.loads((campaign.folder / f"{step}.json").read_text())


def test_every_step_runs_once_and_is_kept(campaign, monkeypatch):
    steps = Recorder(monkeypatch, "a", "b")
    assert run_campaign(campaign)
    assert run_campaign(campaign)
    assert steps.ran == ["a", "b"]
    assert result(campaign, "b")["value"] == "B"
    assert "| a | 0 | A |" in (campaign.folder / "summary.md").read_text()


def test_a_failed_step_is_written_down_the_rest_goes_on_and_it_is_tried_again(campaign, monkeypatch):
    steps = Recorder(monkeypatch, "a", "b", fails=["a"])
    assert run_campaign(campaign)
    assert steps.ran == ["a", "b"]
    assert result(campaign, "a")["failed"] == "RuntimeError: a broke"
    steps.fails.clear()
    assert run_campaign(campaign)
    assert steps.ran == ["a", "b", "a"]
    assert result(campaign, "a")["value"] == "A"


def test_when_the_time_is_up_the_rest_is_left_for_the_next_call(campaign, monkeypatch):
    steps = Recorder(monkeypatch, "a", "b", "c", slow=["b"])
    assert not run_campaign(campaign)
    assert steps.ran == ["a", "b"]
    assert "| c | | not done: about c |" in (campaign.folder / "summary.md").read_text()
    steps.slow.clear()
    assert run_campaign(campaign)
    assert steps.ran == ["a", "b", "b", "c"]


def test_a_deadline_that_has_passed_runs_nothing(campaign, monkeypatch):
    steps = Recorder(monkeypatch, "a")
    late = Campaign(
        folder=campaign.folder, device=campaign.device, pace=1.0, deadline=time.monotonic() - 1, report=campaign.report
    )
    assert not run_campaign(late)
    assert steps.ran == []
    with pytest.raises(TimeUpError):
        late.watched("stage")(0.5, "timing")


def test_steps_that_need_a_gpu_are_skipped_on_a_cpu(campaign, monkeypatch):
    steps = Recorder(monkeypatch, "a", "b", gpu=["a"])
    assert run_campaign(campaign)
    assert steps.ran == ["b"]
    assert result(campaign, "a")["skipped"] == "it needs a GPU"


def test_chosen_steps_only_and_unknown_ones_are_refused(campaign, monkeypatch):
    steps = Recorder(monkeypatch, "a", "b")
    assert run_campaign(campaign, ["b"])
    assert steps.ran == ["b"]
    with pytest.raises(ValueError, match="no step is named 'z'; steps: a, b"):
        run_campaign(campaign, ["z"])


def test_another_devices_folder_is_refused(campaign, monkeypatch):
    Recorder(monkeypatch, "a")
    run_campaign(campaign)
    file = campaign.folder / "provenance.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"device": "h100_sxm"}))
    with pytest.raises(ValueError, match="holds results of h100_sxm"):
        run_campaign(campaign)


def test_the_archive_holds_results_and_logs_but_no_names_or_locks(campaign, monkeypatch, tmp_path):
    Recorder(monkeypatch, "a")
    run_campaign(campaign)
    for left in ("lock", "session.0.log", ".x.part"):
        (campaign.folder / left).write_text("x")
    pack(campaign.folder, tmp_path / "c.tar.gz")
    with tarfile.open(tmp_path / "c.tar.gz") as packed:
        members = packed.getmembers()
    names = {member.name for member in members}
    assert {"campaign/a.json", "campaign/summary.md", "campaign/provenance.json", "campaign/session.0.log"} <= names
    assert not [name for name in names if name.endswith(("lock", ".part"))]
    assert {member.uname for member in members} == {""}


def test_every_finished_step_is_in_the_archive_at_once(campaign, monkeypatch, tmp_path):
    packed = replace(campaign, archive=tmp_path / "c.tar.gz")
    found = []

    def look():
        with tarfile.open(packed.archive) as file:
            found.extend(file.getnames())

    steps = Recorder(monkeypatch, "a", "b", slow=["b"])
    run = steps.run
    monkeypatch.setattr(steps, "run", lambda name: (look() if name == "b" else None, run(name))[1])
    assert not run_campaign(packed)
    assert "campaign/a.json" in found


def test_a_table_that_is_there_is_not_measured_again(campaign, monkeypatch):
    asked = []

    def profile(_campaign, target, _run):
        asked.append(target.name)
        if target.engine == "broken":
            raise ValueError("no such engine")
        return "a table", {"cells": 3}

    monkeypatch.setattr(module, "_profile", profile)
    monkeypatch.setattr(module, "write_cost_table", lambda table, file: file.write_text(table))
    (campaign.folder / "tables").mkdir(parents=True)
    (campaign.folder / "provenance.json").write_text('{"display_name": "x"}')
    good = targets(campaign)[0]
    bad = replace(good, engine="broken")
    first = module._tables(campaign, [good, bad])
    second = module._tables(campaign, [good, bad])
    assert asked == [good.name, bad.name, bad.name]
    assert first == second
    assert first["failed"] == bad.name
    assert first["tables"][0] == {"table": good.name, "cells": 3}


def test_a_command_that_outlasts_the_campaign_is_stopped(campaign):
    soon = replace(campaign, deadline=time.monotonic() + 0.5)
    with pytest.raises(TimeUpError):
        module._bounded(soon, [sys.executable, "-c", "import time; time.sleep(60)"])


def test_the_targets_of_this_machine_are_tables_of_models_that_load(campaign):
    from puzzlebench.model.catalog import load_model

    for target in targets(campaign):
        load_model(target.model)
        assert target.name.endswith(".parquet")


def test_the_real_steps_have_distinct_names():
    names = [step.name for step in module.STEPS]
    assert len(set(names)) == len(names)


def test_the_real_ceilings_step_runs(campaign):
    assert run_campaign(campaign, ["ceilings", "kernel-tests"])
    assert result(campaign, "ceilings")["ceilings"]["copy_bytes_per_s"]["median"] > 0
    assert "copy " in (campaign.folder / "summary.md").read_text()
    assert result(campaign, "kernel-tests")["skipped"]
