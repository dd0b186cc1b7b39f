"""TensorRT-LLM, imported where it is needed: one line that says how to get it, and the oldest version that will do."""

from __future__ import annotations

import importlib
from typing import Any

INSTALL = (
    "TensorRT-LLM is not installed: pip install tensorrt-llm==1.2.1 from NVIDIA's package index, or use its release "
    "image (docs/tensorrt-llm.md)"
)
OLDEST = (1, 2)


def import_trtllm(module: str) -> Any:
    """A module of TensorRT-LLM.

    Raises:
        ValueError: it is not installed, or has no such module; the message says what was missing.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{INSTALL} ({error})") from None


def check_version(package: Any) -> str:
    """The version; ValueError if it is older than what the adapters are written against."""
    version = str(package.__version__)
    parts = version.split(".")[:2]
    if not all(part.isdecimal() for part in parts) or tuple(map(int, parts)) < OLDEST:
        raise ValueError(f"TensorRT-LLM {version} is not supported; use {OLDEST[0]}.{OLDEST[1]} or newer")
    return version
