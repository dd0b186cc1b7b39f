"""A teacher whose layers are spread over the processes with FSDP2, for a parent that fits no single device.

One layer at a time is whole, for the length of its forward. Embedding, final norm and head stay whole everywhere, as
losses use the head's matrix by itself. Knows no losses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from puzzlebench.parent.open import ParentFiles, empty_parent


def load_sharded_teacher(files: ParentFiles, device: torch.device, dtype: torch.dtype) -> Any:
    """The parent in evaluation mode. All processes call it together.

    Every process reads the mapped checkpoint layer by layer, and holds one whole layer beside its shares of the others.

    Raises:
        ValueError: the checkpoint cannot be read, or lacks weights.
    """
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    model = empty_parent(files, dtype)
    weights = _Weights(files.folder)
    for number, layer in enumerate(model.model.layers):
        weights.load(layer, f"model.layers.{number}.", device, dtype)
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    for name, module in model.model.named_children():
        if module is not model.model.layers:
            weights.load(module, f"model.{name}.", device, dtype)
    if files.spec.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    else:
        weights.load(model.lm_head, "lm_head.", device, dtype)
    return model


class _Weights:
    """The tensors in a folder of safetensors files, read when they are asked for."""

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
        """Give a module without memory its weights, on the device."""
        names = [name for name, _ in module.named_parameters()]
        if missing := [prefix + name for name in names if prefix + name not in self._files]:
            raise ValueError(f"{self._folder} is broken: {len(missing)} weights are missing, the first is {missing[0]}")
        state = {
            name: self._files[prefix + name].get_tensor(prefix + name).to(device, dtype, copy=True) for name in names
        }
        module.load_state_dict(state, assign=True)
        module.requires_grad_(requires_grad=False)
        module.to(device)  # what it has of buffers
