"""A parent whose weights are spread over the ranks with FSDP2, for one that fits no single device.

Its decoder layers and its embedding are sharded each on its own. One of them at a time is whole, on all ranks: by
itself in a forward, or for longer within `whole`. There is no head: blocks are made without it. Knows no blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from puzzlebench.child.blockwise import Blockwise, open_blockwise
from puzzlebench.parent.layer_weights import LayerWeights
from puzzlebench.parent.open import ParentFiles, empty_parent


def load_sharded(files: ParentFiles, device: torch.device, dtype: torch.dtype, mesh: DeviceMesh) -> Any:
    """The parent in eval mode, every rank with its share of each sharded parameter. All ranks call it together.

    Every rank reads the mapped checkpoint layer by layer and holds, beyond its shards, one whole layer or the whole
    embedding at a time.

    Raises:
        ValueError: the checkpoint cannot be read, or lacks weights.
    """
    model = empty_parent(files, dtype)
    model.lm_head = nn.Identity()
    weights = LayerWeights(files.folder)
    for name, child in model.model.named_children():
        if child is model.model.layers:
            for layer_idx, layer in enumerate(child):
                weights.load(layer, f"model.layers.{layer_idx}.", device, dtype)
                _shard(layer, mesh)
        else:
            weights.load(child, f"model.{name}.", device, dtype)
            if isinstance(child, nn.Embedding):
                _shard(child, mesh)
    return model


def open_sharded(model: Any, length: int) -> Blockwise:
    """`open_blockwise` of a sharded parent: every layer is whole in its turn only. All ranks call it together."""
    # Layers stay whole after their forward so that `whole` can span many; in this forward they must not.
    hooks = [
        module.register_forward_hook(_reshard)
        for module in cast("nn.Module", model).modules()
        if isinstance(module, FSDPModule)
    ]
    try:
        return open_blockwise(model, length)
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """A sharded module with plain parameters, gathered once for all that is done within. All ranks enter together."""
    sharded = cast("FSDPModule", module)
    sharded.unshard()
    try:
        yield
    finally:
        sharded.reshard()


def copy_layer(like: nn.Module, layer: nn.Module) -> nn.Module:
    """A plain copy of a sharded layer that is whole now, made in the same layer of an `empty_parent`."""
    state = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    like.load_state_dict(state, assign=True)
    return like.requires_grad_(requires_grad=False)


def _reshard(module: Any, _args: Any, _output: Any) -> None:
    module.reshard()


def _shard(module: nn.Module, mesh: DeviceMesh) -> None:
    module.requires_grad_(requires_grad=False)
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
