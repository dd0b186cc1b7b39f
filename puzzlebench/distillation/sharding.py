"""A teacher whose layers are spread over the processes with FSDP2, for a parent that fits no single device.

One layer at a time is whole, for the length of its forward. Embedding, final norm and head stay whole everywhere, as
losses use the head's matrix by itself. Knows no losses.
"""

from __future__ import annotations

from typing import Any

import torch

from puzzlebench.parent.layer_weights import LayerWeights
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
    weights = LayerWeights(files.folder)
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
