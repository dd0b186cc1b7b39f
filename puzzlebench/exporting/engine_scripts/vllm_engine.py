"""Greedy tokens, log-probabilities and the key-value cache of a checkpoint in vLLM: `python THIS REQUEST ANSWER`.

Stands alone: it is run by the interpreter that has vLLM, whose environment need not have puzzlebench, and imports
vLLM's package only. Request and answer are JSON files, described in puzzlebench/exporting/verify.py. vLLM runs in this
process, without compiling, sampling or telling anybody; on its CPU build in float32, so that answers can be compared.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCHEMA = 1
CACHE_BYTES = 64 << 20
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the cache is looked at in this process
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
}
_LONGEST_ERROR = 400
_LAYER = re.compile(r"(?:^|\.)layers\.([0-9]+)\.")


def main(arguments: Sequence[str]) -> int:
    """Answer one request; an answer whose `error` is a line says what went wrong."""
    request_file, answer_file = map(Path, arguments)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    request = json.loads(request_file.read_text(encoding="utf-8"))
    try:
        answer = answer_request(request)
    except Exception as error:
        answer = empty_answer() | {"error": _one_line(error)}
    answer_file.write_text(json.dumps(answer) + "\n", encoding="utf-8")
    return 0 if answer["error"] is None else 1


def answer_request(request: dict[str, Any]) -> dict[str, Any]:
    """Load the checkpoint, run the prompts, look at the cache."""
    if request.get("schema") != SCHEMA:
        raise ValueError(f"request schema {request.get('schema')!r} is not known; this script reads {SCHEMA}")
    import vllm

    prompts, new_tokens = request["prompts"], request["new_tokens"]
    llm = vllm.LLM(
        model=request["checkpoint"],
        skip_tokenizer_init=True,
        trust_remote_code=request["trust_remote_code"],
        dtype=request["dtype"],
        enforce_eager=True,
        enable_prefix_caching=False,  # prompt tokens that are not computed have no log-probabilities
        max_model_len=max(map(len, prompts)) + new_tokens,
        max_num_seqs=len(prompts),
        kv_cache_memory_bytes=CACHE_BYTES,
        generation_config="vllm",
        seed=0,
    )
    sampling = vllm.SamplingParams(
        temperature=0.0,
        max_tokens=new_tokens,
        ignore_eos=True,
        logprobs=0,  # of the chosen token alone
        prompt_logprobs=0,
        detokenize=False,
    )
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)
    (cache,) = llm.collective_rpc(describe_cache)
    return empty_answer() | {
        "version": vllm.__version__,
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "logprobs": [chosen_logprobs(output.outputs[0].token_ids, output.outputs[0].logprobs) for output in outputs],
        "prompt_logprobs": [
            chosen_logprobs(prompt[1:], output.prompt_logprobs[1:])
            for prompt, output in zip(prompts, outputs, strict=True)
        ],
        "kv_cache": cache,
    }


def empty_answer() -> dict[str, Any]:
    """An answer to a request that nothing came of."""
    return {
        "schema": SCHEMA,
        "engine": "vllm",
        "version": None,
        "tokens": [],
        "logprobs": [],
        "prompt_logprobs": [],
        "kv_cache": None,
        "error": None,
    }


def chosen_logprobs(tokens: Sequence[int], logprobs: Sequence[Any]) -> list[float]:
    """Of every token the natural logarithm of its probability, out of vLLM's dicts of the likeliest ones."""
    return [float(stated[token].logprob) for token, stated in zip(tokens, logprobs, strict=True)]


def describe_cache(worker: Any) -> dict[str, Any]:
    """What this worker of vLLM allocated for keys and values, from the tensors that its layers hold.

    A block holds `block_size` tokens of a group of layers. Groups take blocks of the same size in turns, so that a
    group that needs less than the largest leaves a rest: padding, which `bytes_per_token` counts and no layer does.
    """
    config = worker.model_runner.kv_cache_config
    modules = worker.vllm_config.compilation_config.static_forward_context
    held = {name: modules[name].kv_cache for group in config.kv_cache_groups for name in group.layer_names}
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in held.values()}
    total = sum(storage.nbytes() for storage in storages.values())
    block = total // config.num_blocks
    layers, per_token, per_sequence = [], 0.0, 0
    for group in config.kv_cache_groups:
        specs = getattr(group.kv_cache_spec, "kv_cache_specs", None)
        block_size = group.kv_cache_spec.block_size
        per_token += block / block_size
        needed = []
        for name in group.layer_names:
            spec = group.kv_cache_spec if specs is None else specs[name]
            needed.append(-(-spec.max_memory_usage_bytes(worker.vllm_config) // spec.page_size_bytes))
            own = held[name].numel() * held[name].element_size() / config.num_blocks
            layers.append({"layer": _layer_number(name), "bytes_per_token": _plain(own / block_size)})
        per_sequence += max(needed) * block
    return {
        "block_size": min((group.kv_cache_spec.block_size for group in config.kv_cache_groups), default=1),
        "num_blocks": config.num_blocks,
        "layers": sorted(layers, key=lambda entry: entry["layer"]),
        "bytes_per_token": _plain(per_token),
        "total_bytes": total,
        "max_model_len": worker.vllm_config.model_config.max_model_len,
        "bytes_per_sequence": per_sequence,
    }


def _layer_number(name: str) -> int:
    found = _LAYER.search(name)
    if found is None:
        raise ValueError(f"the layer {name!r} of the cache has no number")
    return int(found[1])


def _plain(value: float) -> float:
    return int(value) if value == int(value) else value


def _one_line(error: BaseException) -> str:
    said = " ".join(str(error).split())[:_LONGEST_ERROR]  # of a validation, the second line says what is wrong
    return f"{type(error).__name__}: {said or 'no message'}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
