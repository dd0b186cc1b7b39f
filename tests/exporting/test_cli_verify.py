"""The command `verify`: options, what it prints, and exit codes."""

from __future__ import annotations

import argparse
import json

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

from puzzlebench.cli_verify import DIFFERS, add_verify, verify_command

from .engines_here import run_script_here, state_cache
from .samples import make_samples

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


@pytest.mark.parametrize(
    ("last", "code", "line"),
    [
        (1024, 0, "  KV agrees: 5,632 bytes per token, as predicted"),
        (2048, DIFFERS, "  KV DIFFERS: 6,656 bytes per token, 5,632 predicted"),
    ],
)
def test_a_cache_decides_too(samples, monkeypatch, capsys, last, code, line):
    """4, 2, 1 and 4 heads of 64 in fp32."""
    state_cache(monkeypatch, {0: 2048, 1: 1024, 2: 512, 3: 1024 + last})
    assert run(samples["llama-sized"], *SMALL) == code
    out = capsys.readouterr().out.splitlines()
    assert line in out
    assert ("    layer 3 (gqa_4): 3,072 in the engine, 2,048 predicted" in out) == (code == DIFFERS)
