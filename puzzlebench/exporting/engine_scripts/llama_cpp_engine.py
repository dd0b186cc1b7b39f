"""Greedy tokens and log-probabilities of one GGUF file in llama.cpp: `python THIS REQUEST ANSWER`.

Stands alone: it is run by the interpreter that has llama-cpp-python, whose environment need not have puzzlebench, and
imports that package and the numpy it brings. Request and answer are JSON files, described in
puzzlebench/exporting/verify.py. Keys and values are cached in fp32 (bf16 where bf16 is asked for): the default of
llama.cpp is fp16, which would be its rounding and not the model's. Weights are of the file's dtype.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCHEMA = 1
CACHE_TYPES = {"float32": 0, "bfloat16": 30}  # ggml's numbers for them
THREADS = int(os.environ.get("OMP_NUM_THREADS") or 1)


def main(arguments: Sequence[str]) -> int:
    """Answer one request; an answer whose `error` is a line says what went wrong."""
    request_file, answer_file = map(Path, arguments)
    request = json.loads(request_file.read_text(encoding="utf-8"))
    try:
        answer = answer_request(request)
    except Exception as error:
        answer = empty_answer() | {"error": _one_line(error)}
    answer_file.write_text(json.dumps(answer) + "\n", encoding="utf-8")
    return 0 if answer["error"] is None else 1


def answer_request(request: dict[str, Any]) -> dict[str, Any]:
    """Load the file and run the prompts one by one."""
    if request.get("schema") != SCHEMA:
        raise ValueError(f"request schema {request.get('schema')!r} is not known; this script reads {SCHEMA}")
    import llama_cpp

    prompts, new_tokens = request["prompts"], request["new_tokens"]
    if not prompts or not all(prompts):
        raise ValueError("there must be prompts, each with a token")
    longest = max(map(len, prompts)) + new_tokens
    cache = CACHE_TYPES[request["dtype"]]
    model = llama_cpp.Llama(
        model_path=str(find_file(Path(request["checkpoint"]))),
        n_ctx=longest,
        n_batch=longest,
        n_ubatch=longest,
        n_gpu_layers=0,
        n_threads=THREADS,
        n_threads_batch=THREADS,
        use_mmap=False,
        logits_all=True,
        flash_attn=False,
        type_k=cache,
        type_v=cache,
        verbose=False,
    )
    answer = empty_answer()
    for prompt in prompts:
        _run_prompt(model, prompt, new_tokens, answer)
    return answer


def _run_prompt(model: Any, prompt: list[int], new_tokens: int, answer: dict[str, Any]) -> None:
    model.reset()
    model.eval(prompt)
    answer["prompt_logprobs"].append(
        [log_probability(model.scores[place], token) for place, token in enumerate(prompt[1:])]
    )
    tokens, chosen = [], []
    for _ in range(new_tokens):
        scores = model.scores[model.n_tokens - 1]
        token = int(scores.argmax())
        tokens.append(token)
        chosen.append(log_probability(scores, token))
        model.eval([token])
    answer["tokens"].append(tokens)
    answer["logprobs"].append(chosen)


def log_probability(scores: Any, token: int) -> float:
    """The natural logarithm of a token's probability under one row of logits, in double precision."""
    import numpy as np

    wide = scores.astype(np.float64)
    top = wide.max()
    return float(wide[token] - top - np.log(np.exp(wide - top).sum()))


def find_file(checkpoint: Path) -> Path:
    """The GGUF file that a path names, or the only one in the folder that it names."""
    if not checkpoint.is_dir():
        return checkpoint
    files = sorted(checkpoint.glob("*.gguf"))
    if len(files) != 1:
        raise ValueError(f"{checkpoint} has {len(files)} .gguf files; one is needed")
    return files[0]


def empty_answer() -> dict[str, Any]:
    """An answer without results."""
    return {
        "schema": SCHEMA,
        "engine": "llama_cpp",
        "version": _version(),
        "tokens": [],
        "logprobs": [],
        "prompt_logprobs": [],
        "kv_cache": None,
        "error": None,
    }


def _version() -> str | None:
    from importlib import metadata

    try:
        return f"llama-cpp-python {metadata.version('llama-cpp-python')}"
    except metadata.PackageNotFoundError:
        return None


def _one_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {Path(sys.argv[0]).name} REQUEST.json ANSWER.json")
    sys.exit(main(sys.argv[1:]))
