"""A checkpoint's weights, read module by module when they are asked for: for models that are never whole in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn


class LayerWeights:
    """The weights in a folder of safetensors files.

    Raises:
        ValueError: a file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self._folder = folder
        self._files: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                file: Any = safe_open(path, framework="pt")
                self._files.update(dict.fromkeys(list(file.keys()), file))
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{path} is not a safetensors file that can be read: {error}") from None

    def load(self, module: nn.Module, prefix: str, device: torch.device, dtype: torch.dtype) -> None:
        """Give a module without memory its weights, frozen, on the device.

        Args:
            prefix: of its parameters' names in the checkpoint.

        Raises:
            ValueError: the checkpoint lacks some.
        """
        names = [name for name, _ in module.named_parameters()]
        if missing := [prefix + name for name in names if prefix + name not in self._files]:
            raise ValueError(f"{self._folder} is broken: {len(missing)} weights are missing, the first is {missing[0]}")
        # A copy even where nothing changes: a view would keep pages of the mapped file.
        state = {
            name: self._files[prefix + name].get_tensor(prefix + name).to(device, dtype, copy=True) for name in names
        }
        module.load_state_dict(state, assign=True)
        module.requires_grad_(requires_grad=False)
        module.to(device)  # what it has of buffers
