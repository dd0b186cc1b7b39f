"""How a model card says to use the model: commands and code that can be copied and run. Knows formats, runs nothing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Final

from puzzlebench.exporting.card_text import code
from puzzlebench.exporting.job import GGUF_FILE, Format
from puzzlebench.model.engine_rules import Refusal

_NO_TOKENIZER: Final = "There is no tokenizer here, so the model is given ids of tokens."


def use_lines(
    title: str,
    compatibility: Mapping[str, tuple[Refusal, ...]],
    *,
    format: Format,  # noqa: A002, the word of the command line
    repo: str | None,
    runs_code: bool,
    tokenizer: bool,
) -> list[str]:
    """The section on use.

    Args:
        compatibility: engines of the format, and what each refuses.
        repo: where the folder is pushed to; None where it is a folder only.
        runs_code: whether the model's class is in the folder.
        tokenizer: whether a tokenizer is.
    """
    name = repo or " ".join(title.split())
    if format == "gguf":
        return _gguf(repo, tokenizer=tokenizer)
    lines = []
    if repo is None:
        lines.append(f"{code(name)} is the folder of this file; put the id of its repository in its place.")
    if runs_code:
        lines.append("The model's class is code in this repository: read it, then allow it.")
    if not tokenizer:
        lines.append(_NO_TOKENIZER)
    allowed = ", trust_remote_code=True" if runs_code else ""
    load = f"model = AutoModelForCausalLM.from_pretrained(name{allowed})"
    if tokenizer:
        # AutoTokenizer reads the config too, and of the two formats that with code only decilm has a class of its own
        own = allowed if format == "decilm" else ""
        python = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f"name = {_quoted(name)}",
            load,
            f"tokenizer = AutoTokenizer.from_pretrained(name{own})",
            'inputs = tokenizer("import os", return_tensors="pt")',
            "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0]))",
        ]
    else:
        python = [
            "import torch",
            "from transformers import AutoModelForCausalLM",
            "",
            f"name = {_quoted(name)}",
            load,
            "print(model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=8))",
        ]
    lines += [*([""] if lines else []), *_block("python", python)]
    served = _served(shlex.quote(name), compatibility) if runs_code and tokenizer else []
    return [*lines, *(["", *_block("bash", served)] if served else [])]


def _served(name: str, compatibility: Mapping[str, tuple[Refusal, ...]]) -> list[str]:
    """A command for every engine that loads the model; the plugin's only where vLLM alone does not."""

    def loads(engine: str) -> bool:
        return compatibility.get(engine) == ()

    commands = []
    if loads("vllm"):
        commands.append(f"vllm serve {name} --trust-remote-code")
    elif loads("vllm_puzzlebench"):  # which runs no code of the checkpoint
        commands.append(f"vllm serve {name}    # with puzzlebench installed beside vLLM")
    if loads("tensorrt_llm"):
        commands.append(f"trtllm-serve {name} --trust_remote_code")
    return commands


def _gguf(repo: str | None, *, tokenizer: bool) -> list[str]:
    load = [f"model = Llama({_quoted(GGUF_FILE)})"]
    if repo is not None:
        load += [
            "# or, with huggingface-hub installed:",
            f"# model = Llama.from_pretrained({_quoted(repo)}, filename={_quoted(GGUF_FILE)})",
        ]
    if not tokenizer:
        python = [
            "from itertools import islice",
            "",
            "from llama_cpp import Llama",
            "",
            *load,
            "print(list(islice(model.generate([1, 2, 3]), 8)))",
        ]
        return [_NO_TOKENIZER, "", *_block("python", python)]
    shell = [f"llama-cli -m {GGUF_FILE} -p 'import os'"]
    if repo is not None:
        shell.append(f"llama-cli -hf {shlex.quote(repo)} -p 'import os'    # from the Hub")
    ask = 'print(model("import os", max_tokens=32)["choices"][0]["text"])'
    python = ["from llama_cpp import Llama", "", *load, ask]
    return [*_block("bash", shell), "", *_block("python", python)]


def _block(language: str, lines: list[str]) -> list[str]:
    return [f"```{language}", *lines, "```"]


def _quoted(text: str) -> str:
    """As a string of Python."""
    return json.dumps(text, ensure_ascii=False)
