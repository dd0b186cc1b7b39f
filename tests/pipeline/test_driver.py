"""The order of stages, what is skipped and what is done again, and what an interruption leaves."""

import json

import pytest

from puzzlebench.files import locked
from puzzlebench.pipeline import driver
from puzzlebench.pipeline.driver import plan_run, run_stages
from puzzlebench.pipeline.recipe import RunRecipe
from puzzlebench.pipeline.run_folder import file_digest
from puzzlebench.pipeline.stages import STAGES, Stage


class Killed(BaseException):
    """Stands for a process that ends here: nothing catches it."""


class Stages:
    """Three stages in a row, each writing a file; the last reads the two others. Counts what is run."""

    def __init__(self, monkeypatch):
        self.ran = []
        self.dies = None
        self.trusts = False
        self.setting = {"first": 1, "second": 1, "third": 1}
        self.stages = (self.stage("first"), self.stage("second", "first"), self.stage("third", "first", "second"))
        monkeypatch.setattr(driver, "STAGES", self.stages)

    def stage(self, name, *needs, resumes=False, left_out=None):
        def run(run, report):
            self.ran.append(name)
            if self.trusts and (run.folder.path / name).exists():  # as stages do whose outputs appear whole
                return
            report(0.5, "half")
            text = "".join((run.folder.path / need).read_text() for need in needs)
            if self.dies == (name, "before"):
                raise Killed
            (run.folder.path / name).write_text(f"{name}{self.setting[name]}({text})")
            if self.dies == (name, "after"):
                raise Killed

        return Stage(
            name=name,
            needs=needs,
            outputs=(name,),
            seconds=1,
            settings=lambda _run: self.setting[name],
            run=run,
            output=lambda folder: file_digest(folder.path / name),
            resumes=resumes,
            left_out=lambda _recipe: left_out,
        )

    def rerun(self, folder):
        self.ran.clear()
        run_stages(RunRecipe(), folder)
        return self.ran


@pytest.fixture
def stages(monkeypatch):
    return Stages(monkeypatch)


def test_all_run_once_and_then_none(stages, tmp_path):
    assert stages.rerun(tmp_path / "run") == ["first", "second", "third"]
    assert stages.rerun(tmp_path / "run") == []
    assert (tmp_path / "run" / "third").read_text() == "third1(first1()second1(first1()))"


def test_a_changed_setting_runs_its_stage_and_what_reads_it(stages, tmp_path):
    stages.rerun(tmp_path)
    stages.setting["second"] = 2
    assert stages.rerun(tmp_path) == ["second", "third"]
    assert (tmp_path / "third").read_text() == "third1(first1()second2(first1()))"


def test_the_same_output_of_a_stage_run_again_does_not_run_the_next(stages, tmp_path):
    stages.rerun(tmp_path)
    (tmp_path / "second").unlink()
    assert stages.rerun(tmp_path) == ["second"]


def test_an_output_changed_by_hand_is_made_again(stages, tmp_path):
    stages.rerun(tmp_path)
    (tmp_path / "first").write_text("mine")
    assert stages.rerun(tmp_path) == ["first"]
    assert (tmp_path / "first").read_text() == "first1()"


def test_an_output_changed_by_hand_is_not_taken_for_one_that_was_interrupted(stages, tmp_path):
    stages.rerun(tmp_path)
    stages.trusts = True
    (tmp_path / "second").write_text("mine")
    assert stages.rerun(tmp_path) == ["second"]
    assert (tmp_path / "second").read_text() == "second1(first1())"


@pytest.mark.parametrize("trusts", [False, True])
@pytest.mark.parametrize("stage", ["first", "second", "third"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_that_is_killed_ends_as_one_that_was_not(stages, tmp_path, stage, when, trusts):
    stages.trusts = trusts
    stages.dies = (stage, when)
    with pytest.raises(Killed):
        stages.rerun(tmp_path)
    stages.dies = None
    order = ["first", "second", "third"]
    assert stages.rerun(tmp_path) == order[order.index(stage) :]
    assert (tmp_path / "third").read_text() == "third1(first1()second1(first1()))"
    resumed = {row["name"]: row["resumed"] for row in json.loads((tmp_path / "run.json").read_text())["stages"]}
    assert [name for name, was in resumed.items() if was] == [stage]


def test_what_the_recipe_leaves_out_goes(stages, tmp_path, monkeypatch):
    stages.rerun(tmp_path)
    last = stages.stage("third", "first", "second", left_out="not wanted")
    monkeypatch.setattr(driver, "STAGES", (*stages.stages[:2], last))
    assert stages.rerun(tmp_path) == []
    assert not (tmp_path / "third").exists()
    assert plan_run(RunRecipe(), tmp_path)[-1].why == "not wanted"
    assert [row["name"] for row in json.loads((tmp_path / "run.json").read_text())["stages"]] == ["first", "second"]


def test_stages_of_another_output_are_no_longer_done(stages, tmp_path):
    stages.rerun(tmp_path)
    stages.setting["first"] = 2
    run_stages(RunRecipe(), tmp_path, until="first")
    assert [row["name"] for row in json.loads((tmp_path / "run.json").read_text())["stages"]] == ["first"]


def test_a_kill_while_the_first_file_is_written_leaves_a_folder_to_run_in(stages, tmp_path):
    (tmp_path / ".recipe.yaml.1-abcd.part").write_text("")
    assert stages.rerun(tmp_path) == ["first", "second", "third"]


def test_stale_outputs_are_gone_before_their_stage_runs_again(stages, tmp_path):
    stages.rerun(tmp_path)
    stages.setting["second"] = 2
    stages.dies = ("second", "before")
    with pytest.raises(Killed):
        stages.rerun(tmp_path)
    assert not (tmp_path / "second").exists()


def test_a_stage_that_resumes_keeps_what_is_there(stages, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "STAGES", (stages.stage("first", resumes=True),))
    stages.rerun(tmp_path)
    stages.setting["first"], stages.dies = 2, ("first", "before")
    with pytest.raises(Killed):
        stages.rerun(tmp_path)
    assert (tmp_path / "first").exists()


def test_the_plan_says_what_a_run_does(stages, tmp_path):
    assert [one.status for one in plan_run(RunRecipe(), tmp_path)] == ["to do"] * 3
    stages.dies = ("second", "before")
    with pytest.raises(Killed):
        stages.rerun(tmp_path)
    planned = {one.name: (one.status, one.why) for one in plan_run(RunRecipe(), tmp_path)}
    assert planned["first"] == ("done", "")
    assert planned["second"] == ("to finish", "it was interrupted")
    assert planned["third"] == ("to do", "after second")
    stages.dies = None
    stages.rerun(tmp_path)
    assert {one.status for one in plan_run(RunRecipe(), tmp_path)} == {"done"}
    stages.setting["third"] = 2
    assert plan_run(RunRecipe(), tmp_path)[-1].why == "its settings or inputs have changed"


def test_a_plan_writes_nothing(stages, tmp_path):
    plan_run(RunRecipe(), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_until_stops_after_a_stage(stages, tmp_path):
    run_stages(RunRecipe(), tmp_path, until="second")
    assert stages.ran == ["first", "second"]
    with pytest.raises(ValueError, match="no stage is named 'fourth'"):
        run_stages(RunRecipe(), tmp_path, until="fourth")


def test_progress_never_falls_and_ends_at_one(stages, tmp_path):
    seen = []
    run_stages(RunRecipe(), tmp_path, report=lambda share, _stage: seen.append(share))
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1.0)


def test_two_runs_in_one_folder_are_refused(stages, tmp_path):
    with locked(tmp_path / ".lock", "x"), pytest.raises(ValueError, match="in use: another process runs in it"):
        run_stages(RunRecipe(), tmp_path)


def test_a_folder_of_something_else_is_left_alone(stages, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds thesis\.txt and is no run"):
        run_stages(RunRecipe(), tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="is no run that can be read"):
        run_stages(RunRecipe(), tmp_path)


def test_what_killed_writers_left_goes(stages, tmp_path):
    stages.rerun(tmp_path)
    leftover = tmp_path / ".child-abc"
    leftover.mkdir()
    (tmp_path / ".x.1-2.part").write_text("")
    stages.rerun(tmp_path)
    assert not leftover.exists()
    assert not (tmp_path / ".x.1-2.part").exists()


def test_every_stage_needs_earlier_ones_only():
    names = [stage.name for stage in STAGES]
    for place, stage in enumerate(STAGES):
        assert set(stage.needs) <= set(names[:place])
