"""What each layer of the parent is given: kept in memory or in a mapped file, or computed anew where neither has room.

All three hold or pass on the same numbers: hidden states are rounded to bfloat16 between layers. Knows no variants.
Legend: N sequences, T tokens, H hidden size.
"""

from __future__ import annotations

import copy
import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import torch

from puzzlebench.child.blockwise import Blockwise
from puzzlebench.text.tokens import Tokens

Storage: TypeAlias = Literal["auto", "memory", "disk", "stream"]
KEPT_IN = torch.bfloat16
_BATCH = 8


class LayerInputs(Protocol):
    """Inputs of one layer at a time, layer 0 first."""

    kind: str
    bytes: int

    def __len__(self) -> int:
        """Sequences."""

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [n] of what the layer is given, [n, T, H] on the parent's device and in its dtype."""

    def advance(self) -> None:
        """Go on to the next layer."""

    def close(self) -> None:
        """Free the memory, or the disk."""


def open_inputs(
    blockwise: Blockwise, tokens: Tokens, *, storage: Storage, memory_limit: int, folder: Path
) -> LayerInputs:
    """Inputs of layer 0 for all sequences.

    Args:
        storage: auto keeps them in memory up to half of `memory_limit`, else on disk up to half of what is free in
            `folder`, else nowhere.

    Raises:
        ValueError: they were to be kept on a disk that has no room for them.
    """
    if storage == "stream":
        return StreamedInputs(blockwise, tokens)
    with torch.no_grad():
        hidden_size = blockwise.embed(_ids(blockwise, tokens[:1])).shape[-1]
    size = tokens.size * hidden_size * KEPT_IN.itemsize
    if storage == "memory" or (storage == "auto" and size <= memory_limit // 2):
        return KeptInputs(blockwise, tokens, hidden_size, None)
    if storage == "disk" or size <= shutil.disk_usage(folder).free // 2:
        return KeptInputs(blockwise, tokens, hidden_size, folder)
    return StreamedInputs(blockwise, tokens)


class KeptInputs:
    """All of them at once, overwritten by the next layer's."""

    def __init__(self, blockwise: Blockwise, tokens: Tokens, hidden_size: int, folder: Path | None) -> None:
        self.kind = "memory" if folder is None else "disk"
        self._blockwise, self._folder, self._layer = blockwise, folder, 0
        shape = (*tokens.shape, hidden_size)
        self.bytes = tokens.size * hidden_size * KEPT_IN.itemsize
        self._values = torch.empty(shape, dtype=KEPT_IN) if folder is None else _mapped(folder, shape, self.bytes)
        with torch.no_grad():
            for start in range(0, len(tokens), _BATCH):
                ids = _ids(blockwise, tokens[start : start + _BATCH])
                self._values[start : start + len(ids)] = blockwise.embed(ids).to("cpu", KEPT_IN)

    def __len__(self) -> int:
        return len(self._values)

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        """See `LayerInputs`."""
        return self._values[rows].to(*_place(self._blockwise, self._layer))

    def advance(self) -> None:
        """See `LayerInputs`."""
        layer = self._blockwise.layers[self._layer]
        with torch.no_grad():
            for rows in torch.arange(len(self)).split(_BATCH):  # type: ignore[no-untyped-call]
                output = self._blockwise.run(self._layer, layer, self.read(rows))
                self._values[rows] = output.to("cpu", KEPT_IN)
        self._layer += 1

    def copy(self) -> KeptInputs:
        """The same layer's inputs, kept the same way, which stay when these advance.

        Raises:
            ValueError: the disk has no room for them.
        """
        other = copy.copy(self)
        if self._folder is None:
            other._values = self._values.clone()
        else:
            other._values = _mapped(self._folder, tuple(self._values.shape), self.bytes).copy_(self._values)
        return other

    def close(self) -> None:
        """See `LayerInputs`."""
        del self._values


class StreamedInputs:
    """None kept: every batch runs through the embedding and the layers before."""

    kind = "stream"
    bytes = 0

    def __init__(self, blockwise: Blockwise, tokens: Tokens) -> None:
        self._blockwise, self._tokens, self._layer = blockwise, tokens, 0

    def __len__(self) -> int:
        return len(self._tokens)

    @torch.no_grad()
    def read(self, rows: torch.Tensor) -> torch.Tensor:
        """See `LayerInputs`."""
        hidden = self._blockwise.embed(_ids(self._blockwise, self._tokens[rows.numpy()]))
        for layer in range(self._layer):
            hidden = hidden.to(KEPT_IN).to(*_place(self._blockwise, layer))
            hidden = self._blockwise.run(layer, self._blockwise.layers[layer], hidden)
        return hidden.to(KEPT_IN).to(*_place(self._blockwise, self._layer))

    def advance(self) -> None:
        """See `LayerInputs`."""
        self._layer += 1

    def close(self) -> None:
        """See `LayerInputs`."""


def _ids(blockwise: Blockwise, tokens: Tokens) -> torch.Tensor:
    device = next(blockwise.model.parameters()).device
    return torch.from_numpy(tokens).to(device=device, dtype=torch.long)


def _place(blockwise: Blockwise, layer: int) -> tuple[torch.device, torch.dtype]:
    """Where a layer lies, and in what; a model may be spread over devices."""
    parameter = next(blockwise.layers[layer].parameters(), None)
    parameter = next(blockwise.model.parameters()) if parameter is None else parameter
    return parameter.device, parameter.dtype


def _mapped(folder: Path, shape: tuple[int, ...], size: int) -> torch.Tensor:
    """A tensor in a file of its own, whose name is gone at once: its room is free again when the process ends, however
    that is, and processes of several machines that share the folder cannot take one another's."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise ValueError(
            f"activations need {size / 2**30:.1f} GiB and {folder} has {free / 2**30:.1f} GiB free; train on "
            "fewer sequences, give another --work-dir, or --activations stream"
        )
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix="activations-") as file:
            os.posix_fallocate(file.fileno(), 0, size)  # room is taken now, not found missing later
            values = torch.from_file(file.name, shared=True, size=size // KEPT_IN.itemsize, dtype=KEPT_IN)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise ValueError(f"cannot write activations to {folder}: {reason}") from None
    return values.view(shape)
