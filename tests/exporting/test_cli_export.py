"""The commands `export` and `import` from their arguments to what they print."""

import argparse
import json

import pytest

pytest.importorskip("transformers")

from puzzlebench.cli_export import add_export, add_import, export_command, import_command

from .children import MIXED, read_json, save_model

LOADS = ("gqa_2+mlp_256", "no_op+mlp_512", "gqa_1+mlp_512", "gqa_2+no_op")


def run(add, command, *arguments):
    parser = argparse.ArgumentParser()
    add(parser)
    parser.add_argument("--json", action="store_true")
    command(parser.parse_args([str(one) for one in arguments]))


def export(*arguments):
    run(add_export, export_command, *arguments)


def import_(*arguments):
    run(add_import, import_command, *arguments)


def test_export_says_where_what_and_for_whom(tmp_path, capsys):
    save_model(tmp_path / "child", LOADS)
    export(tmp_path / "child", tmp_path / "out", "--format", "decilm", "--dtype", "bf16")
    printed = capsys.readouterr().out
    parameters = read_json(tmp_path / "out" / "puzzle_solution.json")["parameters"]
    assert f"out: decilm, {parameters:,} parameters in bfloat16" in printed
    assert "  vllm: nothing is known against it" in printed
    assert "  sglang: layer 2: sglang" in printed
    assert "no licence is known" in printed


def test_export_prints_json(tmp_path, capsys):
    save_model(tmp_path / "child", MIXED)
    export(tmp_path / "child", tmp_path / "out", "--format", "hf", "--licence", "mit", "--shard-size", "60KB", "--json")
    printed = json.loads(capsys.readouterr().out)
    assert (printed["format"], printed["licence"], printed["engines"]) == (
        "hf",
        "mit",
        {"transformers": [], "vllm_puzzlebench": []},
    )
    assert len([name for name in printed["files"] if name.endswith(".safetensors")]) > 1


def test_the_default_engine_refuses_and_none_does_not(tmp_path):
    save_model(tmp_path / "child", MIXED)
    with pytest.raises(ValueError, match=r"layer 2: vllm .*--engine none"):
        export(tmp_path / "child", tmp_path / "out", "--format", "decilm")
    with pytest.raises(ValueError, match="--engine none goes with no other engine"):
        export(tmp_path / "child", tmp_path / "out", "--format", "decilm", "--engine", "none", "--engine", "vllm")
    export(tmp_path / "child", tmp_path / "out", "--format", "decilm", "--engine", "none")
    export(tmp_path / "child", tmp_path / "trtllm", "--format", "decilm", "--engine", "trtllm")


def test_sizes_are_read_as_everywhere(tmp_path):
    with pytest.raises(ValueError, match="5 apples"):
        export(tmp_path / "child", tmp_path / "out", "--format", "hf", "--shard-size", "5 apples")


def test_import_says_what_it_read(tmp_path, capsys):
    save_model(tmp_path / "child", MIXED, tokenizer=False)
    export(tmp_path / "child", tmp_path / "out", "--format", "decilm", "--engine", "none")
    capsys.readouterr()
    import_(tmp_path / "out", tmp_path / "back")
    printed = capsys.readouterr().out
    assert "back: from decilm, llama, " in printed
    assert "there was no tokenizer" in printed
    import_(tmp_path / "out", tmp_path / "second", "--json")
    assert json.loads(capsys.readouterr().out)["model_type"] == "llama"
