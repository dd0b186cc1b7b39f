"""Halves of decoder layers: fresh sub-blocks in place of a parent's, their state, and layers of swapped halves.

Knows layers and sub-blocks; how a fresh sub-block gets good weights is decided elsewhere. The halves that a layer
already has are taken by `take_half`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from puzzlebench.child.configs import check_window, read_spec
from puzzlebench.child.modeling_heterogeneous import (
    MODULES,
    LayerConfig,
    half_norms,
    make_linear,
    make_no_op,
    make_own,
    take_half,
)
from puzzlebench.model.blocks import GQA, GatedMLP, Linear, NoOp, Part, SubBlock, sub_block_name
from puzzlebench.model.spec import check_key_value_heads


def new_sub_block(layer: nn.Module, config: Any, layer_idx: int, part: Part, sub_block: SubBlock) -> nn.Module:
    """The half of a decoder layer with a fresh sub-block in it, called like the layer.

    The sub-block has the random weights that torch gives, and its norms are copies of the layer's: nothing trainable is
    shared with the layer. It has the dtype, device and mode of the layer's own sub-block.

    Args:
        layer: a decoder layer of a parent.
        config: the parent's config.
        layer_idx: number of the layer.
        part: which half.
        sub_block: what to put there; a GQA's window is at most the parent's.

    Raises:
        ValueError: the sub-block is not one of that part, or does not fit the parent.
    """
    _check_part(part, sub_block)
    half = take_half(layer, part)
    old = layer.get_submodule(MODULES[part])
    like = next(old.parameters())
    with torch.device(like.device):
        match sub_block:
            case NoOp():
                make_no_op(half, part, layer_idx)
            case Linear():
                make_linear(half, part, config.hidden_size, layer_idx)
            case GQA():
                make_own(half, part, LayerConfig(config, _attention_overrides(config, layer_idx, sub_block)), layer_idx)
            case GatedMLP():
                width = {"intermediate_size": sub_block.intermediate_size}
                make_own(half, part, LayerConfig(config, width), layer_idx)
    half.get_submodule(MODULES[part]).to(like.dtype).train(old.training)
    for name in half_norms(half, part):
        setattr(half, name, copy.deepcopy(half.get_submodule(name)))
    return half


def half_state(half: nn.Module) -> dict[str, Tensor]:
    """The parameters of a half by the names they have in a whole layer: self_attn.q_proj.weight and so on.

    They share memory with the half and take no gradients. A no-op's state is empty.
    """
    return dict(half.state_dict())


def part_state(layer: nn.Module, part: Part) -> dict[str, Tensor]:
    """The state of one half of a whole layer."""
    return half_state(take_half(layer, part))


def load_half(layer: nn.Module, part: Part, state: Mapping[str, Tensor]) -> None:
    """Copy a state into that half of a layer.

    Raises:
        ValueError: a tensor is missing, is too much, or has another shape.
    """
    own = part_state(layer, part)
    check_state(own, state)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def check_state(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless `state` has exactly the names and shapes of `own`."""
    if missing := sorted(set(own) - set(state)):
        raise ValueError(f"{missing[0]} is missing")
    if extra := sorted(set(state) - set(own)):
        raise ValueError(f"{extra[0]} has no place; there are {', '.join(own) or 'no weights'}")
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise ValueError(f"{name} has shape {list(state[name].shape)}, not {list(tensor.shape)}")


@contextmanager
def swapped(
    model: nn.Module, layer_idx: int, *, attention: nn.Module | None = None, ffn: nn.Module | None = None
) -> Iterator[None]:
    """Put halves into one layer of a model for the length of a `with`; None leaves that half as it is.

    Nothing is copied: the layer runs the halves' own modules. Afterwards it has its own again, after an error too.
    """
    layer = model.get_submodule("model.layers")[layer_idx]  # type: ignore[index]
    kept = dict(layer._modules)
    try:
        for part, half in (("attention", attention), ("ffn", ffn)):
            if half is not None:
                for name in (MODULES[part], *half_norms(layer, part)):
                    layer._modules[name] = half.get_submodule(name)
        yield
    finally:
        layer._modules.update(kept)


def _check_part(part: Part, sub_block: SubBlock) -> None:
    if part not in MODULES:
        raise ValueError(f"part must be 'attention' or 'ffn', not {part!r}")
    if isinstance(sub_block, GatedMLP if part == "attention" else GQA):
        raise ValueError(f"{sub_block_name(sub_block)} cannot be the {part} of a layer")


def _attention_overrides(config: Any, layer_idx: int, attention: GQA) -> dict[str, int]:
    spec = read_spec(config)
    check_key_value_heads(spec, attention.num_key_value_heads)
    overrides = {"num_key_value_heads": attention.num_key_value_heads}
    check_window(spec, layer_idx, attention.sliding_window)
    if attention.sliding_window is not None and attention.sliding_window != spec.sliding_windows[layer_idx]:
        overrides["sliding_window"] = attention.sliding_window
    return overrides
