"""Every stage for real, on a tiny parent: what a run leaves, a second one that does nothing, and kill -9."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from puzzlebench.cli import main
from puzzlebench.cli_run import _print_summary
from puzzlebench.pipeline.stages import STAGES

from ..launching.conftest import TEXT, save_parent

RECIPE = """
parent: parent
data: text.txt
validation_data: other.txt
scenario: {batch_size: 2, prefill_len: 8, decode_len: 8}
profile: {seconds: 0.4, sessions: 1}
library: {ffn_multiple: 8, sequences: 10, length: 16, training: {steps: 2, batch_size: 2}}
score: {sequences: 4, length: 16, batch_size: 2}
search: {speed_up: 1.2, margin: 0.0, front_points: 3}
distil: {stages: [{length: 16, sequences: 8, batch_size: 2}], evaluations: 2}
evaluate: {tasks: [tiny_choice], include_path: tasks}
speed: {sessions: 2, seconds: 0.4}
"""
TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/docs.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc}]
"""


def prepare(folder):
    save_parent(folder / "parent")
    (folder / "text.txt").write_text(TEXT)
    (folder / "other.txt").write_text(TEXT.replace("times", "by"))
    (folder / "tasks").mkdir()
    (folder / "tasks" / "tiny.yaml").write_text(TASK.replace("FOLDER", str(folder / "tasks")))
    rows = [{"question": f"{n} times", "choices": [" one", " two"], "label": n % 2} for n in range(6)]
    (folder / "tasks" / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    prepare(folder)
    here = os.getcwd()
    os.chdir(folder)
    try:
        assert main(["run", "recipe.yaml", "--out", "run"]) == 0
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def folder(whole, monkeypatch):
    monkeypatch.chdir(whole)
    return whole


def records(folder):
    return {row["name"]: row for row in json.loads((folder / "run" / "run.json").read_text())["stages"]}


def test_every_stage_leaves_its_output(folder):
    assert list(records(folder)) == [stage.name for stage in STAGES]
    for name in ("costs.parquet", "scores/kl.parquet", "search/architecture.json", "search/front.json"):
        assert (folder / "run" / name).is_file()
    for name in ("child", "distilled"):
        assert (folder / "run" / name / "model.safetensors").is_file()
    for name in ("realised", "distilled"):
        kept = json.loads((folder / "run" / "evaluation" / name / "retention.json").read_text())
        assert [one["task"] for one in kept["tasks"]] == ["tiny_choice"]
    assert "<svg" in (folder / "run" / "report" / "report.html").read_text()


def test_the_child_has_the_architecture_that_was_found(folder):
    from puzzlebench.model.blocks import architecture_from_json
    from puzzlebench.model.catalog import load_model

    found = architecture_from_json(json.loads((folder / "run" / "search" / "architecture.json").read_text()))
    for name in ("child", "distilled"):
        assert load_model(str(folder / "run" / name))[1] == found


def test_the_predicted_speed_is_the_target_at_least(folder):
    speed = json.loads((folder / "run" / "speed" / "speed.json").read_text())
    assert speed["predicted_speed_ups"][0]["generate"] >= 1.2 * 0.999


def test_a_second_run_does_nothing(folder, capsys):
    before = records(folder)
    assert main(["run", "recipe.yaml", "--out", "run"]) == 0
    assert records(folder) == before
    assert "distilled: " in capsys.readouterr().out
    assert main(["run", "recipe.yaml", "--out", "run", "--dry-run", "--json"]) == 0
    assert {one["status"] for one in json.loads(capsys.readouterr().out)} == {"done"}


def test_another_target_keeps_blocks_and_scores(folder, capsys):
    assert main(["run", "recipe.yaml", "--out", "run", "--dry-run", "--json", "--set", "search.speed_up=1.1"]) == 0
    planned = {one["name"]: one["status"] for one in json.loads(capsys.readouterr().out)}
    assert [name for name, status in planned.items() if status == "done"] == ["parent", "profile", "library", "score"]


def test_a_target_out_of_reach_is_one_line_and_exit_3(folder, capsys):
    out = folder / "far"
    assert main(["run", "recipe.yaml", "--out", str(out), "--set", "search.speed_up=1000"]) == 3
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("puzzlebench: no architecture keeps these limits: throughput at least")
    assert "times the parent's" in line


DIES = """
import os, signal, sys
from puzzlebench.cli import main
from puzzlebench.pipeline import driver

stage, arguments = sys.argv[1], sys.argv[2:]
part, seen = driver._part, []

def counted(report, begin, share, name):
    inner = part(report, begin, share, name)

    def tell(done, what):
        inner(done, what)
        seen.append(name)
        if name == stage and seen.count(name) == 2 - (name in ("realise", "report", "parent")):
            os.kill(os.getpid(), signal.SIGKILL)

    return tell

driver._part = counted
sys.exit(main(arguments))
"""


def test_a_run_killed_in_every_stage_ends_as_one_that_was_not(folder, tmp_path):
    """The costs are the first run's, since times that are measured are not the same twice."""
    costs = f"profile.costs={folder / 'run' / 'costs.parquet'}"
    command = ["run", "recipe.yaml", "--out", str(tmp_path / "run"), "--set", costs]
    killed = [stage.name for stage in STAGES if stage.name not in ("parent", "profile")]  # which only look and copy
    for stage in killed:
        done = subprocess.run([sys.executable, "-c", DIES, stage, *command], capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, stage
    assert main(command) == 0
    ended = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [row["name"] for row in ended["stages"] if row["resumed"]] == killed
    assert ended["begun"] == []
    for name in ("child", "distilled"):
        file = f"{name}/model.safetensors"
        assert (tmp_path / "run" / file).read_bytes() == (folder / "run" / file).read_bytes()
    first, second = (
        json.loads((run / "run" / "evaluation" / "distilled" / "retention.json").read_text())["tasks"]
        for run in (folder, tmp_path)
    )
    assert first == second
    assert not [entry for entry in (tmp_path / "run").iterdir() if entry.name.startswith(".") and entry.name != ".lock"]


def test_a_target_reached_by_another_child_does_not_show_the_first_ones_figures(folder, tmp_path, capsys):
    """With no speed-up asked for, the parent itself is the best."""
    shutil.copytree(folder / "run", tmp_path / "run")
    command = ["run", "recipe.yaml", "--out", str(tmp_path / "run"), "--set", "search.speed_up=1.0"]
    assert main([*command, "--until", "search", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [facts[name] for name in ("speed", "before", "after", "report")] == [None] * 4


def test_another_parent_starts_over(folder, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "run")
    save_parent(tmp_path / "parent", "qwen2")
    command = ["run", "recipe.yaml", "--out", str(tmp_path / "run"), "--set", f"parent={tmp_path / 'parent'}"]
    assert main([*command, "--until", "library"]) == 0


def test_figures_that_are_not_known_are_said_so(capsys):
    unknown = {"retention": None, "low": None, "high": None}
    kept = {"overall": unknown, "tasks": [{"task": "gsm8k", **unknown}]}
    facts = {"solution": None, "speed": None, "before": None, "after": kept, "report": None}
    _print_summary(facts, Path("run"))
    assert (
        capsys.readouterr().out == "retention after global distillation unknown (unknown to unknown): gsm8k unknown\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.yaml"], "none.yaml: no such file"),
        (["recipe.yaml", "--set", "search.speedup=2"], "no key is named search.speedup; did you mean search.speed_up?"),
        (["recipe.yaml", "--set", "device=cuda:9"], "torch sees"),
        (["recipe.yaml", "--until", "bake"], "no stage is named 'bake'"),
        (["recipe.yaml", "--set", "parent=./nowhere"], "nowhere"),
        (["recipe.yaml", "--set", "profile.costs=none.parquet"], "none.parquet"),
        (["recipe.yaml", "--set", "evaluate.tasks=[no_such_task]"], "no_such_task"),
        (["recipe.yaml", "--set", "scenario.decode_len=1"], "decode_len must be at least 2"),
        (["recipe.yaml", "--set", "scenario.prefill_len=100000"], "positions"),
        (["recipe.yaml", "--set", "speed.sessions=0", "--dry-run"], "speed: sessions must be"),
        (["recipe.yaml", "--set", "parent=./nowhere", "--dry-run"], "parent: "),
    ],
)
def test_bad_input_is_one_line_and_exit_2(folder, tmp_path, capsys, arguments, message):
    assert main(["run", *arguments, "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err.strip().splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
