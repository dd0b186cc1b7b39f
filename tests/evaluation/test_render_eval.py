"""What `eval` prints, and what it takes."""

import argparse
import json

import pytest

from puzzlebench.cli_eval import add_eval, eval_command
from puzzlebench.evaluation.records import retention_json
from puzzlebench.evaluation.retention import compare
from puzzlebench.evaluation.stored import read_side
from puzzlebench.render_eval import print_retention


@pytest.fixture
def sides(tmp_path, write):
    groups = {"ab": (["a", "b"], 0.5)}
    parent = {"a": {"values": [1.0, 0.0]}, "b": {"values": [1.0, 0.0]}, "c": {"values": [0.0, 0.0]}}
    child = parent | {"a": {"values": [0.0, 0.0]}, "b": {"values": [1.0, 1.0]}}
    return [
        write(tmp_path / name, tasks, groups=groups, name=name)
        for name, tasks in (("parent", parent), ("child", child))
    ]


def parse(*arguments):
    parser = argparse.ArgumentParser()
    add_eval(parser)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args([str(one) for one in arguments])


def test_the_table_says_it_all(sides, capsys):
    stated = retention_json(compare(*(read_side(file) for file in sides), ()))
    print_retention(stated, sides[0].parent / "retention.json")
    shown = capsys.readouterr().out
    for text in ("child against parent, lm-eval 0.4.13", "ab", "overall", "100.0", "1/1", "+0", "retention.json"):
        assert text in shown
    assert "c: guessing reaches 0.25; the parent is not above it" in shown
    assert "which needs a ratio: c" in shown


def test_two_results_need_no_model(sides, tmp_path, capsys):
    pytest.importorskip("torch")
    out = ("--out", tmp_path / "out")
    eval_command(parse("--parent", sides[0], "--child", sides[1].parent, *out, "--metric", "c=acc"))
    shown = capsys.readouterr().out
    assert "overall" in shown
    eval_command(parse("--parent", sides[0], "--child", sides[1], *out, "--tasks", "ab", "--json"))
    stated = json.loads(capsys.readouterr().out)
    assert [row["task"] for row in stated["tasks"]] == ["ab"]
    assert [row["task"] for row in stated["tasks"][0]["subtasks"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model-args", "a=1"), "--model-args belongs to"),
        (("--model-backend", "vllm", "--precision", "bf16"), "--precision belongs to puzzlebench's own loader"),
        (("--model-backend", "vllm", "--device", "cpu"), "--device belongs to puzzlebench's own loader"),
        (("--batch-size", "many"), "--batch-size is a number"),
        (("--batch-size", "0"), "--batch-size is a number"),
    ],
)
def test_what_is_wrong_is_one_line(sides, tmp_path, arguments, message):
    pytest.importorskip("torch")
    with pytest.raises(ValueError, match=message):
        eval_command(parse("--parent", sides[0], "--child", sides[1], "--out", tmp_path / "out", *arguments))


@pytest.mark.parametrize("arguments", [("--metric", "acc"), ("--tasks", ",")])
def test_what_is_no_list(arguments, capsys):
    with pytest.raises(SystemExit):
        parse("--child", "x", "--out", "y", *arguments)
    assert "such as" in capsys.readouterr().err
