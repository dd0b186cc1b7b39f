from __future__ import annotations

import argparse
import json

import pytest

from puzzlebench.cli_distil import _job, _summary, add_distil, distil_command
from puzzlebench.distillation.recipe import Stage
from puzzlebench.distillation.streams import HubText


@pytest.fixture
def parse(job):
    """Options of the tiny job, and more."""

    def parse(*options):
        parser = argparse.ArgumentParser()
        add_distil(parser)
        parser.add_argument("--json", action="store_true")
        fixed = ["--parent", job.parent, "--child", str(job.child), "--out", str(job.out), "--device", "cpu"]
        return parser.parse_args([*fixed, *options])

    return parse


def small(job):
    return ("--data", str(job.data), "--length", "16", "--sequences", "12", "--batch-size", "4", "--lr", "0.003")


def test_options_reach_the_job(parse, job):
    made = _job(
        parse(
            *("--data", str(job.data), "--stream", "--stage", "16x20x4", "--stage", "32X8x2", "--cosine", "0"),
            *("--forward-kl", "2", "--reverse-kl", "0.5", "--tvd", "0.25", "--lm", "0.125", "--temperature", "2"),
            *("--optimiser", "muon", "--lr", "0.5", "--warmup", "3", "--evaluations", "7", "--seed", "9"),
            *("--precision", "bf16", "--gradient-checkpointing", "--micro-batch-size", "2", "--work-dir", "w"),
        )
    )
    losses, recipe = made.recipe.losses, made.recipe
    assert (losses.cosine, losses.forward_kl, losses.reverse_kl, losses.tvd, losses.lm) == (0, 2, 0.5, 0.25, 0.125)
    assert losses.temperature == 2
    assert recipe.stages == (
        Stage(length=16, sequences=20, batch_size=4),
        Stage(length=32, sequences=8, batch_size=2),
    )
    assert (recipe.optimiser, recipe.lr, recipe.warmup, recipe.evaluations, recipe.seed) == ("muon", 0.5, 3, 7, 9)
    assert (made.stream, made.precision, made.checkpointing, made.micro_batch) == (True, "bf16", True, 2)
    assert made.work_folder.name == "w"
    hub = _job(parse("--dataset", "x/y", "--dataset-config", "c", "--dataset-split", "s", "--dataset-column", "t"))
    assert hub.dataset == HubText(name="x/y", config="c", split="s", column="t")
    cached = _job(parse("--cosine", "0", "--teacher-cache", "t", "--top-k", "9"))
    assert (str(cached.teacher_cache), cached.top_k) == ("t", 9)


def test_defaults_are_the_recipes(parse):
    from puzzlebench.distillation.recipe import DistilRecipe

    assert _job(parse()).recipe == DistilRecipe()


def test_prints_what_came_out(parse, job, capsys):
    distil_command(parse(*small(job)))
    printed = capsys.readouterr().out
    assert printed.startswith(f"{job.out}: 192 tokens in 3 steps, ")
    assert "forward_kl" in printed


def test_only_rows_of_one_length_are_compared():
    lines = [(16, 5.0), (16, 4.0), (32, 9.0)]
    facts = {"tokens": 1000, "steps": 10, "seconds": 1.0}
    facts["held_out"] = [{"step": n, "length": length, "loss": loss} for n, (length, loss) in enumerate(lines)]
    assert _summary(facts) == (
        "1,000 tokens in 10 steps, 1 s; on held-out rows of 16 tokens loss 5.0000 to 4.0000; of 32 tokens loss 9.0000"
    )


def test_prints_json(parse, job, capsys):
    distil_command(parse(*small(job), "--json"))
    printed = json.loads(capsys.readouterr().out)
    assert printed["steps"] == 3
    assert printed["path"] == str(job.out)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_only_the_first_process_says_what_is_wrong(parse, job, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(ValueError if rank == "0" else SystemExit) as caught:
        distil_command(parse("--stage", "16x20x4", "--length", "16"))
    if rank == "1":
        assert caught.value.code == 2
    else:
        assert "--stage stands in place of --length" in str(caught.value)


@pytest.mark.parametrize("text", ["16x20", "axbxc", "16,20,4", ""])
def test_stages_that_are_none(parse, text, capsys):
    with pytest.raises(SystemExit):
        parse("--stage", text)
    assert "is not LENGTHxSEQUENCESxBATCH" in capsys.readouterr().err


def test_zero_is_no_size(parse):
    with pytest.raises(ValueError, match="sequences must be a whole number of at least 1, not 0"):
        _job(parse("--sequences", "0"))
