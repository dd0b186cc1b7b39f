"""A training that can go on where it stopped: weights, optimiser state and a few facts in one file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from puzzlebench.training.optimisers import Optimisers
from puzzlebench.training.tensors import read_tensors, write_tensors

SAVE_SECONDS = 30.0
_WEIGHTS: Final = "weights//"
_OPTIMISER: Final = "optimiser//"


class SaveClock:
    """Says now and then that it is time to write a checkpoint: `SAVE_SECONDS` after the one before was written."""

    def __init__(self) -> None:
        self._last: float | None = time.monotonic()

    def __call__(self) -> bool:
        """Whether it is time."""
        now = time.monotonic()
        if self._last is None:  # the one before has just been written, which may have taken long
            self._last = now
        if now - self._last < SAVE_SECONDS:
            return False
        self._last = None
        return True


def save_training(
    path: Path, named: Mapping[str, torch.nn.Parameter], optimisers: Optimisers, facts: Mapping[str, Any]
) -> None:
    """Write all of it; the file before it stays until then.

    Raises:
        ValueError: the disk is full, or cannot be written to.
    """
    tensors: dict[str, torch.Tensor] = {_WEIGHTS + name: parameter.detach() for name, parameter in named.items()}
    tensors |= {_OPTIMISER + name: value for name, value in optimisers.state().items()}
    write_tensors(path, tensors, facts)


def restore_training(path: Path, named: Mapping[str, torch.nn.Parameter], optimisers: Optimisers) -> dict[str, Any]:
    """Take weights and optimiser state over, and return the facts.

    Raises:
        ValueError: the file is broken, or of another training.
    """
    tensors, facts = read_tensors(path)
    with torch.no_grad():
        for name, parameter in named.items():
            kept = tensors.get(_WEIGHTS + name)
            if kept is None or kept.shape != parameter.shape:
                raise ValueError(f"{path} is of another training: {name} is missing or of another shape; remove it")
            parameter.copy_(kept)
    optimisers.restore(
        {name.removeprefix(_OPTIMISER): value for name, value in tensors.items() if name.startswith(_OPTIMISER)}
    )
    return facts
