"""A fingerprint of a checkpoint's weights, cheap enough for 70B models. Reads files, builds no model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

_ROWS: Final = 8
_COLUMNS: Final = 512
_NO_PART_OF_THE_MODEL: Final = ("_name_or_path", "transformers_version", "use_cache")


def checkpoint_fingerprint(folder: Path) -> str:
    """SHA-256 over the config, the name, dtype and shape of every tensor, and 512 values of eight rows of each.

    Fine-tuning, pruning, another RoPE or dtype change it; splitting the files another way does not.

    Raises:
        ValueError: the folder holds no safetensors weights that can be read.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no .safetensors weights; convert them with transformers' save_pretrained")
    digests = {}
    try:
        for file in files:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118, not a mapping
                    part = opened.get_slice(name)
                    shape = part.get_shape()
                    digest = hashlib.sha256(f"{part.get_dtype()} {shape}".encode())
                    for row in _spread(shape[0]) if shape else ():
                        values = part[row : row + 1]
                        values = values.reshape(-1)[:_COLUMNS].contiguous()
                        digest.update(values.view(torch.uint8).numpy().tobytes())
                    digests[name] = digest.hexdigest()
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} is not a safetensors file that can be read: {error}") from None
    whole: Any = [_config(folder), sorted(digests.items())]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def _config(folder: Path) -> dict[str, Any]:
    """The config, but for what says who wrote it."""
    try:
        stated: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} has no config.json that can be read: {error}") from None
    return {key: value for key, value in sorted(stated.items()) if key not in _NO_PART_OF_THE_MODEL}


def _spread(rows: int) -> list[int]:
    """Some rows from first to last."""
    return sorted({round(n * (rows - 1) / (_ROWS - 1)) for n in range(_ROWS)})
