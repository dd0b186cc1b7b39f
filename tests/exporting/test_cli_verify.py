"""The command `verify`: options, what it prints, and exit codes."""

from __future__ import annotations

import argparse
import json

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

from puzzlebench.cli_verify import DIFFERS, add_verify, verify_command
from puzzlebench.exporting.samples import make_samples

from .engines_here import run_script_here

SMALL = ["--prompts", "1", "--prompt-len", "6", "--new-tokens", "3", "--trust-remote-code"]


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    made = make_samples(tmp_path_factory.mktemp("samples"), ("llama-parent", "llama-sized"))
    return {sample.name: sample.folder for sample in made}


@pytest.fixture(autouse=True)
def _in_this_process(tmp_path, monkeypatch):
    run_script_here(tmp_path, monkeypatch)


def run(*arguments):
    parser = argparse.ArgumentParser()
    add_verify(parser)
    parser.add_argument("--json", action="store_true")
    return verify_command(parser.parse_args([str(argument) for argument in arguments]))


def test_agreement(samples, capsys):
    assert run(samples["llama-sized"], *SMALL) == 0
    out = capsys.readouterr().out
    assert "1 prompts of 6 tokens (validation files of Python's standard library), 3 generated after each" in out
    assert "  prompt log-probabilities: 5, off by " in out
    assert out.splitlines()[-1].startswith("agrees: 3 of 3 greedy tokens equal; ")


def test_difference(samples, capsys):
    assert run(samples["llama-sized"], "--reference", samples["llama-parent"], *SMALL) == DIFFERS == 1
    out = capsys.readouterr().out
    assert "  first other token: prompt 0, position " in out
    assert out.splitlines()[-1].startswith("DIFFERS: ")


def test_json(samples, capsys):
    assert run(samples["llama-sized"], *SMALL, "--json", "--tolerance", "1e-9") in (0, 1)
    stated = json.loads(capsys.readouterr().out)
    assert stated["tolerance"] == 1e-9
    assert stated["engine"] == "transformers"


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        run(tmp_path / "nothing")
