"""A child model from its parent's weights and the states of the sub-blocks that differ."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from puzzlebench.child.configs import child_config
from puzzlebench.child.halves import check_state, part_state
from puzzlebench.child.modeling_heterogeneous import heterogeneous_class
from puzzlebench.model.blocks import GQA, PARTS, Architecture, Part, SubBlock, sub_block_name
from puzzlebench.model.spec import ModelSpec, parent_architecture


def build_child(
    parent_model: Any,
    spec: ModelSpec,
    architecture: Architecture,
    states: Mapping[tuple[int, Part], Mapping[str, Tensor]],
) -> nn.Module:
    """A child with the parent's weights and, in sub-blocks that differ, those of `states`.

    All its tensors are copies, of the parent's dtype and on its device: training the child leaves the parent alone.

    Args:
        parent_model: a causal LM of a supported family whose layers are all alike.
        spec: the parent's.
        architecture: the child's.
        states: by layer and part, see `half_state`. One may also be given for a sub-block that is the parent's kind.

    Raises:
        ValueError: the architecture does not fit the parent, or a state is missing or does not fit; the message names
            the layer.
    """
    config = child_config(parent_model.config, spec, architecture)
    with torch.device("meta"):
        child = heterogeneous_class(config.model_type)(config)
    parent = parent_model.state_dict()
    tensors = {name: tensor.clone() for name, tensor in parent.items() if not name.startswith("model.layers.")}
    like = next(parent_model.parameters())
    own = parent_architecture(spec)
    for layer_idx, block in enumerate(architecture.blocks):
        for part in PARTS:
            sub, parents = getattr(block, part), getattr(own.blocks[layer_idx], part)
            needed = part_state(child.model.layers[layer_idx], part)
            prefix = f"model.layers.{layer_idx}."
            state = states.get((layer_idx, part))
            if state is None and _has_parents_weights(sub, parents):
                state = {name: parent[prefix + name] for name in needed}
            if state is None and needed:
                raise ValueError(f"layer {layer_idx}: the {part} {sub_block_name(sub)} needs a state; none is given")
            try:
                check_state(needed, state or {})
            except ValueError as error:
                raise ValueError(f"layer {layer_idx}: state of the {part} {sub_block_name(sub)}: {error}") from None
            for name, tensor in (state or {}).items():
                tensors[prefix + name] = tensor.detach().to(like.device, like.dtype, copy=True)
    child.load_state_dict(tensors, assign=True)
    _copy_buffers(parent_model, child)
    child.tie_weights()
    child.generation_config = copy.deepcopy(parent_model.generation_config)
    return cast("nn.Module", child.train(parent_model.training))


def _has_parents_weights(sub: SubBlock, parents: SubBlock) -> bool:
    """Whether the parent's weights fit: a narrower window needs no others."""
    if isinstance(sub, GQA) and isinstance(parents, GQA):
        return sub.num_key_value_heads == parents.num_key_value_heads
    return sub == parents


def _copy_buffers(parent: nn.Module, child: nn.Module) -> None:
    """Give the child what is computed when a model is made and is in no state: rotary frequencies, embedding scales."""
    modules = dict(child.named_modules())
    for name, module in parent.named_modules():
        attributes = {key: value for key, value in module.__dict__.items() if isinstance(value, Tensor)}
        for key, value in {**attributes, **module._buffers}.items():
            if name in modules and value is not None:
                setattr(modules[name], key, value.clone())
