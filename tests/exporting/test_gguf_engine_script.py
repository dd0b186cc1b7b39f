"""The script that runs llama.cpp: which numbers it asks for and answers, with a model of ours in llama.cpp's place."""

from __future__ import annotations

import json
import math
import sys
import types

import numpy as np
import pytest

from puzzlebench.exporting.engine_scripts import llama_cpp_engine as script

VOCABULARY = 7


class Counting:
    """As llama_cpp.Llama: a row of logits per token, here made of the tokens so far."""

    made: list[dict] = []  # noqa: RUF012

    def __init__(self, **options):
        self.made.append(options)
        self.scores = np.zeros((options["n_ctx"], VOCABULARY), dtype=np.float32)
        self.tokens: list[int] = []

    @property
    def n_tokens(self):
        return len(self.tokens)

    def reset(self):
        self.tokens = []
        self.scores[:] = np.nan

    def eval(self, tokens):
        for token in tokens:
            self.tokens.append(token)
            self.scores[self.n_tokens - 1] = logits(self.tokens)


def logits(tokens):
    return np.cos(np.arange(VOCABULARY) * (1 + sum(n * token for n, token in enumerate(tokens, 1)))).astype(np.float32)


def expected(tokens, token):
    row = logits(tokens).astype(np.float64)
    return float(row[token] - math.log(np.exp(row).sum()))


@pytest.fixture
def ask(monkeypatch, tmp_path):
    module = types.ModuleType("llama_cpp")
    module.Llama = Counting
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    Counting.made.clear()
    (tmp_path / "m.gguf").write_text("")

    def answer(**changes):
        request = {
            "schema": 1,
            "checkpoint": str(tmp_path),
            "prompts": [[1, 2, 3], [4]],
            "new_tokens": 3,
            "dtype": "float32",
            "trust_remote_code": False,
        } | changes
        (tmp_path / "request.json").write_text(json.dumps(request))
        code = script.main([str(tmp_path / "request.json"), str(tmp_path / "answer.json")])
        return code, json.loads((tmp_path / "answer.json").read_text())

    return answer


def test_greedy_tokens_and_log_probabilities_stand_at_their_places(ask, tmp_path):
    code, answer = ask()
    assert (code, answer["error"], answer["engine"], answer["schema"]) == (0, None, "llama_cpp", 1)
    for prompt, tokens, chosen, given in zip(
        [[1, 2, 3], [4]], answer["tokens"], answer["logprobs"], answer["prompt_logprobs"], strict=True
    ):
        assert len(tokens) == 3
        sofar = list(prompt)
        for token, value in zip(tokens, chosen, strict=True):
            assert token == int(logits(sofar).argmax())
            assert value == pytest.approx(expected(sofar, token), abs=1e-9)
            sofar.append(token)
        assert given == pytest.approx([expected(prompt[:n], prompt[n]) for n in range(1, len(prompt))], abs=1e-9)
    options = Counting.made[0]
    assert (options["model_path"], options["n_ctx"]) == (str(tmp_path / "m.gguf"), 6)
    assert (options["type_k"], options["type_v"], options["use_mmap"], options["logits_all"]) == (0, 0, False, True)


def test_bf16_is_a_cache_of_bf16(ask):
    assert ask(dtype="bfloat16")[0] == 0
    assert (Counting.made[0]["type_k"], Counting.made[0]["type_v"]) == (30, 30)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "ValueError: request schema 2 is not known; this script reads 1"),
        ({"prompts": [[]]}, "ValueError: there must be prompts, each with a token"),
        ({"dtype": "int8"}, "KeyError: 'int8'"),
    ],
)
def test_what_goes_wrong_is_the_answer(ask, changes, message):
    code, answer = ask(**changes)
    assert (code, answer["error"], answer["tokens"]) == (1, message, [])


def test_a_folder_has_one_file(ask, tmp_path):
    (tmp_path / "other.gguf").write_text("")
    code, answer = ask()
    assert code == 1
    assert answer["error"].endswith("has 2 .gguf files; one is needed")


def test_without_the_package_the_answer_says_so(ask, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    code, answer = ask()
    assert code == 1
    assert "llama_cpp" in answer["error"]
