"""Tensors on disk: one safetensors file with JSON beside them in its header, whole or not there at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from puzzlebench.files import replacing

_KEY: Final = "puzzlebench"


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Write the tensors and a JSON-ready object; a reader sees the old file or the new one.

    Raises:
        ValueError: the folder cannot be written to, or the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    held = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as part:
        try:
            save_file(held, part, metadata={"format": "pt", _KEY: json.dumps(facts)})
        except SafetensorError as error:  # its writer wraps the system's errors
            raise ValueError(f"cannot write {path}: {error}") from None
        part.chmod(0o644)  # safetensors' files are for their owner alone


def read_facts(path: Path) -> dict[str, Any]:
    """The JSON object of a file that `write_tensors` wrote; reads the header only.

    Raises:
        ValueError: the file is missing, broken, or another program's.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, Any] = json.loads((file.metadata() or {})[_KEY])
            return facts
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is not a safetensors file that can be read: {error}") from None
    except (KeyError, ValueError):
        raise ValueError(f"{path} was not written by puzzlebench") from None


def read_tensors(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the JSON object of a file that `write_tensors` wrote.

    Raises:
        ValueError: the file is missing, broken, or another program's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    facts = read_facts(path)
    try:
        return load_file(path, device=str(device)), facts
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is not a safetensors file that can be read: {error}") from None
