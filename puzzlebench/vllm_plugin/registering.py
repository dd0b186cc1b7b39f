"""Registers our model and our reading of configs with vLLM. Imports vLLM, which is the caller, and nothing heavy."""

from __future__ import annotations

import importlib
import logging
from typing import Any

from puzzlebench.vllm_plugin.configs import ARCHITECTURE, TRIED

_MODEL = "puzzlebench.vllm_plugin.model:PuzzlebenchForCausalLM"
_PARSER = "puzzlebench.vllm_plugin.parsing"
_NEEDED = (
    ("vllm", "ModelRegistry"),
    ("vllm.transformers_utils.config", "HFConfigParser"),
    ("vllm.transformers_utils.config", "_CONFIG_FORMAT_TO_CONFIG_PARSER"),
)


def register_all() -> None:
    """See `puzzlebench.vllm_plugin.register`; a second call changes nothing."""
    try:
        registry, _, parsers = (_needed(module, name) for module, name in _NEEDED)
    except ImportError as error:
        logging.getLogger("vllm.puzzlebench").error("%s", error)
        return
    if ARCHITECTURE not in registry.get_supported_archs():
        registry.register_model(ARCHITECTURE, _MODEL)
    # vLLM has a public way to add a config format, which users would have to name; the hf format is read for every
    # model, so its parser is the one that can tell our models from others without being asked to.
    parsers["hf"] = importlib.import_module(_PARSER).PuzzlebenchConfigParser


def _needed(module: str, name: str) -> Any:
    """An attribute of vLLM.

    Raises:
        ImportError: it is not there; the message says with which versions it is.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        version = getattr(importlib.import_module("vllm"), "__version__", "of unknown version")
        raise ImportError(
            f"puzzlebench's plugin does nothing in vLLM {version}, which has no {module}.{name}; "
            f"it was tried with {', '.join(TRIED)}"
        ) from None
