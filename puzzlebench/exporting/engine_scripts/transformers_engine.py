"""Greedy tokens and log-probabilities of a checkpoint in transformers: `python THIS REQUEST ANSWER`.

Stands alone: it is run by any interpreter that has transformers, and puzzlebench is kept out of it, so that what loads
here loads from the checkpoint's own files. Request and answer are JSON files, described in
puzzlebench/exporting/verify.py. Prompts run one by one; tokens come from transformers' own `generate`, with its cache.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCHEMA = 1
SETTINGS = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def main(arguments: Sequence[str]) -> int:
    """Answer one request; an answer whose `error` is a line says what went wrong."""
    request_file, answer_file = map(Path, arguments)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    sys.modules["puzzlebench"] = None  # type: ignore[assignment] # an import of it fails
    request = json.loads(request_file.read_text(encoding="utf-8"))
    try:
        answer = answer_request(request)
    except Exception as error:
        answer = empty_answer() | {"error": _one_line(error)}
    answer_file.write_text(json.dumps(answer) + "\n", encoding="utf-8")
    return 0 if answer["error"] is None else 1


def answer_request(request: dict[str, Any]) -> dict[str, Any]:
    """Load the checkpoint and run the prompts."""
    if request.get("schema") != SCHEMA:
        raise ValueError(f"request schema {request.get('schema')!r} is not known; this script reads {SCHEMA}")
    import torch
    import transformers

    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        request["checkpoint"],
        trust_remote_code=request["trust_remote_code"],
        dtype=getattr(torch, request["dtype"]),
        output_loading_info=True,
    )
    model, report = loaded
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, report.get(what) or ())):
            raise ValueError(f"{len(names)} {what.replace('_', ' ')}, the first is {names[0]}")
    model.eval()
    # Nothing of the checkpoint's own settings: no sampling, and no stop at its end token.
    settings: Any = transformers.GenerationConfig
    model.generation_config = settings(do_sample=False, max_new_tokens=request["new_tokens"], pad_token_id=0)
    answer = empty_answer() | {"version": transformers.__version__}
    for prompt in request["prompts"]:
        tokens, logprobs = _generate(model, prompt)
        answer["tokens"].append(tokens)
        answer["logprobs"].append(logprobs)
        answer["prompt_logprobs"].append(_prompt_logprobs(model, prompt))
    return answer


def empty_answer() -> dict[str, Any]:
    """An answer to a request that nothing came of."""
    return {
        "schema": SCHEMA,
        "engine": "transformers",
        "version": None,
        "tokens": [],
        "logprobs": [],
        "prompt_logprobs": [],
        "kv_cache": None,
        "error": None,
    }


def _generate(model: Any, prompt: list[int]) -> tuple[list[int], list[float]]:
    """The continuation, and the natural logarithms of its tokens' probabilities."""
    import torch

    ids = torch.tensor([prompt])
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, output_logits=True
        )
    tokens = output.sequences[0, len(prompt) :].tolist()
    steps = [logits[0].float().log_softmax(-1) for logits in output.logits]
    return tokens, [float(step[token]) for step, token in zip(steps, tokens, strict=True)]


def _prompt_logprobs(model: Any, prompt: list[int]) -> list[float]:
    import torch

    ids = torch.tensor([prompt])
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    found: list[float] = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].tolist()
    return found


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
