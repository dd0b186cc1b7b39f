"""The engines that can run a stack: the one list of them."""

from __future__ import annotations

import importlib
from typing import Final

from puzzlebench.measuring.stack.engine import StackEngine

STACK_ENGINES: Final[dict[str, str]] = {
    "transformers": "puzzlebench.measuring.stack.transformers_engine:TransformersEngine",
    "trtllm": "puzzlebench.measuring.stack.trtllm_llm:TrtllmLLMEngine",
    "vllm": "puzzlebench.measuring.stack.vllm_llm:VllmLLMEngine",
}


def open_stack_engine(name: str) -> StackEngine:
    """The engine of that name with its defaults.

    Raises:
        ValueError: it is unknown or not installed.
    """
    if name not in STACK_ENGINES:
        raise ValueError(f"no engine {name!r} runs stacks; use {', '.join(STACK_ENGINES)}")
    module, _, made = STACK_ENGINES[name].partition(":")
    engine: StackEngine = getattr(importlib.import_module(module), made)()
    return engine
