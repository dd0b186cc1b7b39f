"""The commands that make and judge blocks: what they write and print, and that bad input is one line and exit 2."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoModelForCausalLM

from puzzlebench.cli import main
from puzzlebench.model.blocks import Architecture, Block, Linear, NoOp, architecture_to_json, parse_block
from puzzlebench.model.catalog import load_model
from puzzlebench.scores import read_score_table

from .launching.conftest import TEXT, save_parent

MAKE = ("library", "--parent", "parent", "--data", "text.txt", "--out", "blocks", "--sequences", "10", "--length", "16")
TRAIN = (*MAKE, "--steps", "3", "--batch-size", "2", "--ffn-multiple", "8")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny parent, its text, a library and scores of it, made by the commands."""
    folder = tmp_path_factory.mktemp("made")
    save_parent(folder / "parent")
    (folder / "text.txt").write_text(TEXT)
    (folder / "other.txt").write_text(TEXT.replace("times", "by"))
    here = os.getcwd()
    os.chdir(folder)
    try:
        assert main(TRAIN) == 0
        score = ("score", "--parent", "parent", "--library", "blocks", "--data", "other.txt", "--out", "scores")
        assert main([*score, "--sequences", "4", "--length", "16"]) == 0
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def folder(made, monkeypatch):
    monkeypatch.chdir(made)
    monkeypatch.delenv("PUZZLEBENCH_DEBUG", raising=False)
    return made


def refused(capsys, *arguments):
    """The one line of an error; nothing else is printed on standard output."""
    assert main([*map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    line = err.strip().splitlines()[-1]
    assert line.startswith("puzzlebench: error: ")
    assert "Traceback" not in err
    return line.removeprefix("puzzlebench: error: ")


def test_a_library_is_made_once_and_said_in_json(folder, capsys):
    assert main([*TRAIN, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    blocks = json.loads((folder / "blocks" / "manifest.json").read_text())["blocks"]
    assert said["blocks"] == blocks
    assert [shard["made"] for shard in said["shards"]] == [0]
    assert said["shards"][0]["there_before"] == len(blocks)
    assert said["peak_host_bytes"] > 2**20
    assert {block["block"] for block in blocks} >= {"attention.gqa_1", "attention.linear", "ffn.linear", "ffn.mlp_24"}


def test_scores_are_tables_that_a_search_reads(folder):
    _, parent = load_model("parent")
    for metric, direction in (("kl", "minimise"), ("lm_loss", "minimise"), ("top1_agreement", "maximise")):
        table = read_score_table(folder / "scores" / f"{metric}.parquet", parent=parent)
        assert (table.metric, table.direction, table.num_layers) == (metric, direction, 3)
        assert (table.frame["samples"] == 4).all()
        assert len(table.candidates(0)) == len(table.candidates(2)) > 12
    kl = read_score_table(folder / "scores" / "kl.parquet")
    assert kl.score_of(1, "gqa_2+mlp_48") == pytest.approx(0, abs=1e-6)
    assert kl.score_of(1, "no_op+no_op") > kl.score_of(1, "gqa_2+mlp_40") > 0


def test_an_architecture_becomes_a_checkpoint(folder, capsys):
    _, parent = load_model("parent")
    own = parent.blocks[0]
    blocks = (
        Block(attention=NoOp(), ffn=own.ffn),
        parse_block("gqa_1+mlp_24"),
        Block(attention=Linear(), ffn=Linear()),
    )
    (folder / "wanted.json").write_text(json.dumps(architecture_to_json(Architecture(blocks=blocks))))
    command = (
        "realise",
        "--parent",
        "parent",
        "--library",
        "blocks",
        "--architecture",
        "wanted.json",
        "--out",
        "child",
    )
    assert main(command) == 0
    assert "of parent's" in capsys.readouterr().out
    spec, architecture = load_model("child")
    assert architecture.blocks == blocks
    solution = json.loads((folder / "child" / "puzzle_solution.json").read_text())
    assert solution["architecture"] == architecture_to_json(architecture)
    child = AutoModelForCausalLM.from_pretrained(folder / "child", trust_remote_code=True)
    assert sum(weight.numel() for weight in child.parameters()) == solution["parameters"]
    assert spec.num_hidden_layers == 3
    ids = torch.arange(12)[None]
    assert torch.isfinite(child(ids).logits).all()
    assert "child exists" in refused(capsys, *command)


def test_only_pairs_of_given_architectures_are_coupled(folder, tmp_path, capsys):
    _, parent = load_model("parent")
    pair = parse_block("gqa_1+linear")
    (tmp_path / "architecture.json").write_text(
        json.dumps(architecture_to_json(Architecture(blocks=(pair, *parent.blocks[1:]))))
    )
    command = (*MAKE, "--mode", "coupled", "--from", tmp_path, "--steps", "2", "--out", tmp_path / "small", "--json")
    assert main([*map(str, command)]) == 0
    names = [(block["layer"], block["block"]) for block in json.loads(capsys.readouterr().out)["blocks"]]
    assert names == [(0, "attention.gqa_1"), (0, "ffn.linear"), (0, "gqa_1+linear")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*MAKE, "--parent", "nowhere/at-all/x"), "no model is named"),
        ((*MAKE, "--data", "nothing.txt"), "nothing.txt: no such file or folder"),
        ((*MAKE, "--sequences", "100000"), "it has 12,379 tokens and 1,600,000 are needed"),
        ((*MAKE, "--length", "128"), "positions"),
        ((*MAKE, "--init-attention", "men_pool"), "did you mean mean_pool"),
        ((*MAKE, "--lr", "3"), "lr must be above 0 and below 1"),
        ((*MAKE, "--layers", "7"), "there is no layer 7"),
        ((*MAKE, "--device", "tpu9"), "tpu9"),
        ((*MAKE, "--memory-limit", "plenty"), "plenty"),
        ((*MAKE, "--from", "text.txt"), "text.txt is not a JSON file"),
        ((*MAKE, "--shards", "2"), "--shards belongs to --launcher ray or slurm"),
        ((*MAKE, "--launcher", "slurm"), "--shards N"),
        ((*MAKE, "--launcher", "torchrun"), "torchrun"),
        (("score", "--parent", "parent", "--library", "text.txt", "--out", "s"), "not a block library"),
        (("score", "--parent", "parent", "--library", "blocks", "--out", "s", "--recipe", "f00"), "--recipe"),
        (("score", "--parent", "parent", "--library", "blocks", "--out", "s", "--limit", "3"), "--lm-eval TASK"),
        (
            ("realise", "--parent", "parent", "--library", "blocks", "--architecture", "no.json", "--out", "c"),
            "no.json: no such file",
        ),
    ],
)
def test_bad_input_is_one_line(folder, capsys, arguments, message):
    before = sorted(file.name for file in (folder / "blocks" / "blocks").iterdir())
    assert message in refused(capsys, *arguments)
    assert sorted(file.name for file in (folder / "blocks" / "blocks").iterdir()) == before


def test_text_that_blocks_were_trained_on_is_not_for_scores(folder, capsys):
    command = ("score", "--parent", "parent", "--library", "blocks", "--data", "text.txt", "--out", "scores")
    line = refused(capsys, *command, "--sequences", 4, "--length", 16)
    assert "the blocks were trained on text.txt" in line


def test_half_a_library_is_not_scored(folder, tmp_path, capsys):
    assert main([*TRAIN, "--out", str(tmp_path / "half"), "--steps", "0"]) == 0
    next((tmp_path / "half" / "blocks").glob("002.ffn.linear.*")).unlink()
    capsys.readouterr()
    command = ("score", "--parent", "parent", "--library", tmp_path / "half", "--data", "other.txt", "--out", tmp_path)
    line = refused(capsys, *command, "--sequences", 4, "--length", 16)
    assert "lacks 1 blocks" in line
    assert "ffn.linear of layer 2" in line


def test_one_library_is_made_by_one_process_at_a_time(folder, tmp_path, capsys):
    import fcntl

    assert main([*TRAIN, "--out", str(tmp_path / "blocks"), "--steps", "0"]) == 0
    capsys.readouterr()
    (lock,) = (tmp_path / "blocks" / "work").glob("*.lock")
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        line = refused(capsys, *TRAIN, "--out", tmp_path / "blocks", "--steps", "0")
    assert "another process makes these blocks" in line


def test_tasks_elsewhere_need_no_gpu_here(folder, tmp_path, capsys):
    command = (*TRAIN, "--out", tmp_path / "blocks", "--launcher", "slurm", "--shards", "2")
    assert "say what the tasks of slurm run on" in refused(capsys, *command)
    assert main([*map(str, command), "--device", "cuda"]) == 0
    assert capsys.readouterr().out.startswith("sbatch ")
    job = json.loads((tmp_path / "blocks" / "slurm" / "job.json").read_text())
    assert (job["device"], job["precision"]) == ("cuda", "bf16")


def test_a_library_of_another_parent_is_refused(folder, tmp_path, capsys):
    save_parent(tmp_path / "other", rms_norm_eps=1e-4)
    line = refused(capsys, *TRAIN, "--parent", tmp_path / "other")
    assert "is a library of" in line
    assert "give another folder" in line


def test_a_family_that_is_not_supported(folder, tmp_path, capsys):
    save_parent(tmp_path / "gpt")
    config = json.loads((tmp_path / "gpt" / "config.json").read_text())
    (tmp_path / "gpt" / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    assert "'gpt2' is not supported" in refused(capsys, *TRAIN, "--parent", tmp_path / "gpt")


def test_interrupted_it_leaves_whole_blocks_and_goes_on(folder, tmp_path):
    """Ctrl-C while it trains; then the same command makes what an undisturbed one makes."""
    command = [sys.executable, "-m", "puzzlebench.cli", *TRAIN, "--steps", "400", "--patience", "0"]
    command += ["--out", str(tmp_path / "blocks")]
    script = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import runpy, sys; sys.argv = "
    script += f"{command[2:]!r}; runpy.run_module('puzzlebench.cli', run_name='__main__')"
    paths = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths},
        stderr=subprocess.PIPE,
        text=True,
    )
    blocks = tmp_path / "blocks" / "blocks"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (blocks.is_dir() and any(blocks.glob("*.safetensors"))):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert errors.strip().splitlines()[-1] == "puzzlebench: interrupted"
    found = list(blocks.iterdir())
    assert found
    assert all(file.suffix == ".safetensors" and not file.name.startswith(".") for file in found)
