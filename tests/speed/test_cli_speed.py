"""The command: what it makes of its options, what it prints, and its errors."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from puzzlebench import cli_speed
from puzzlebench.cli_speed import add_speed, speed_command
from puzzlebench.render_speed import changed_machine, print_speed
from puzzlebench.speed import job as jobs


def parse(*options):
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    add_speed(parser)
    return parser.parse_args(list(map(str, options)))


def interval(value, width=0.1):
    return {"value": value, "low": value * (1 - width), "high": value * (1 + width)}


RESULT = {
    "device": "some CPU",
    "engine": "torch",
    "engine_version": "2",
    "precision": "fp32",
    "threads": 2,
    "scenario": {"batch_size": 4, "prefill_len": 128, "decode_len": 64},
    "sessions": 5,
    "rounds": 40,
    "disturbed_share": 0.25,
    "others_share": 0.5,
    "last_level_cache_bytes": 32 * 2**20,
    "models": [
        {
            "model": name,
            "bytes_per_step": (100 // k - 10) * 2**20,
            "prefill_ms": interval(100.0 / k),
            "tpot_ms": interval(5.0 / k),
            "generate_ms": interval(800.0 / k),
            "generated_tokens_per_s": interval(2000.0 * k),
        }
        for name, k in (("parent", 1), ("small", 2))
    ],
    "speed_ups": [{"model": "small", "prefill": interval(2.0), "decode": interval(2.1), "generate": interval(2.05)}],
    "predictions": None,
    "predicted_speed_ups": None,
    "costs": None,
    "tokens_agree": {"parent": 1.0, "small": 0.875},
}


@pytest.fixture
def measured(monkeypatch):
    """Jobs that were asked for."""
    asked = []

    def measure(job, progress):
        asked.append(job)
        return RESULT

    monkeypatch.setattr(jobs, "measure_speed", measure)
    return asked


def test_options_become_a_job(pair, measured, tmp_path, capsys):
    options = ("--parent", pair.parent, "--child", pair.child, "--device", "cpu", "--out", tmp_path / "out")
    speed_command(parse(*options, "--batch-size", 2, "--prefill", 8, "--decode", 4, "--seconds", 3))
    (job,) = measured
    assert job.models == ((str(pair.parent), pair.parent), ("child", pair.child))
    assert (job.batch_size, job.prefill_len, job.decode_len, job.sessions, job.seconds) == (2, 8, 4, 5, 3.0)
    assert (job.engine, job.device, job.precision, job.folder) == ("torch", "cpu", "fp32", tmp_path / "out")
    assert "wrote" in capsys.readouterr().out
    speed_command(parse(*options, "--json", "--engine", "transformers", "--sessions", 1, "--precision", "bf16"))
    assert json.loads(capsys.readouterr().out) == RESULT
    assert (measured[1].engine, measured[1].sessions, measured[1].precision) == ("transformers", 1, "bf16")


def test_no_sessions_are_not_the_default(pair, measured, tmp_path):
    options = ("--parent", pair.parent, "--device", "cpu", "--out", tmp_path / "out", "--sessions", 0)
    with pytest.raises(ValueError, match="sessions must be a whole number"):
        speed_command(parse(*options))


def test_children_of_one_name_are_told_apart():
    folders = [Path("/runs/a/distilled"), Path("/runs/b/distilled")]
    assert cli_speed._labels("embedded", folders) == ["a/distilled", "b/distilled"]
    assert cli_speed._labels("distilled", folders[:1]) == ["a/distilled"]
    with pytest.raises(ValueError, match="given twice"):
        cli_speed._labels("embedded", [folders[0], folders[0]])


def test_what_is_printed(capsys):
    print_speed(RESULT)
    text = capsys.readouterr().out
    for words in (
        "4 prompts of 128 tokens, 64 generated; some CPU, torch, fp32",
        "100 (90 to 110)",
        "2.1 (1.89 to 2.31)",
        "parent 100.0%, small 87.5%",
        "25% of the rounds were disturbed",
        "others took up to 50%",
        "no CUDA graphs",
    ):
        assert words in text, words
    assert "predicted" not in text


def test_predictions_and_their_errors_are_printed(capsys):
    predicted = [
        {key: interval(1.1 * value["value"]) if isinstance(value, dict) else value for key, value in one.items()}
        for one in RESULT["models"]
    ]
    ratios = {"model": "small", "prefill": 1.9, "decode": 2.2, "generate": 2.0}
    errors = {"prefill": -0.05, "decode": 0.0476, "generate": -0.0244}
    print_speed(
        RESULT
        | {
            "predictions": predicted,
            "predicted_speed_ups": [ratios | {"error": errors}],
            "costs": {
                "from": "t.parquet",
                "source": "somewhere",
                "gpu": "h100_sxm",
                "engine": "trtllm",
                "weight_dtype": "bf16",
                "same_device": False,
                "same_precision": False,
            },
        }
    )
    text = capsys.readouterr().out
    for words in (
        "+10.0 %",
        "110 (99 to 121)",
        "-5.0 %",
        "+4.8 %",
        "the cost table is of h100_sxm",
        "of bf16 weights, measured was fp32",
        "of the engine trtllm",
        "small goes through 40 MiB a decode step and the last-level cache holds 32 MiB",
    ):
        assert words in text, words
    assert "parent goes through" not in text
    assert "itself takes" not in text  # of another device, no wonder


@pytest.mark.parametrize(
    ("factor", "words"),
    [(0.9, "parent itself takes 11% longer than its table says"), (1.2, "takes 17% less than"), (1.04, None)],
)
def test_a_parent_that_is_not_as_fast_as_its_table_is_said(factor, words):
    predicted = [
        {key: interval(factor * value["value"]) if isinstance(value, dict) else value for key, value in one.items()}
        for one in RESULT["models"]
    ]
    costs = {"engine": "torch", "same_device": True, "same_precision": True}
    found = changed_machine(RESULT | {"predictions": predicted, "costs": costs})
    assert found is None if words is None else words in found
    assert changed_machine(RESULT | {"predictions": predicted, "costs": costs | {"same_device": False}}) is None
    assert changed_machine(RESULT) is None


def test_a_child_that_is_not_there(pair, tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        speed_command(
            parse(
                "--parent", pair.parent, "--child", tmp_path / "nowhere", "--device", "cpu", "--out", tmp_path / "out"
            )
        )
