"""The config of a child: its parent's, with an architecture stated in per_layer_config. Knows no weights."""

from __future__ import annotations

import copy
from typing import Any

from puzzlebench.child.modeling_heterogeneous import CLASSES
from puzzlebench.model.blocks import GQA, Architecture, GatedMLP, Linear, NoOp
from puzzlebench.model.families import FAMILIES
from puzzlebench.model.hf_config import from_hf_config
from puzzlebench.model.spec import ModelSpec, check_architecture

MODELING_FILE = "modeling_heterogeneous.py"


def read_spec(config: Any) -> ModelSpec:
    """The spec that a transformers config object states for the whole model, whatever single layers state.

    Raises:
        ValueError: it is none of a supported family.
    """
    check_family(getattr(config, "model_type", None))
    stated = {**config.to_dict(), "per_layer_config": None}
    return from_hf_config(stated, name=getattr(config, "name_or_path", "") or config.model_type)[0]


def check_family(model_type: Any) -> None:
    """Raise ValueError unless there is a class for children of this model_type."""
    if model_type in ("nemotron-nas", "deci"):
        raise ValueError(f"model_type {model_type!r} is the decilm format; `puzzlebench import` makes a child of it")
    if model_type not in CLASSES:
        raise ValueError(f"model_type {model_type!r} is not supported; children have {', '.join(CLASSES)}")


def child_config(parent_config: Any, spec: ModelSpec, architecture: Architecture) -> Any:
    """A config for a child of the parent, of the parent's class; the parent's stays as it is.

    Layers of the same kind as the parent's stay unstated. Where a layer gets a window and its parent has none, its
    layer_types entry (in families that have them) becomes sliding_attention.

    Args:
        spec: the parent's.

    Raises:
        ValueError: the architecture does not fit the parent, or widens a window, or the family has no child class.
    """
    check_family(parent_config.model_type)
    if parent_config.to_dict().get("per_layer_config"):
        raise ValueError(f"{spec.name} has a per_layer_config, so it is a child already; start from its parent")
    check_architecture(spec, architecture)
    config = copy.deepcopy(parent_config)
    _set_windows(config, spec, architecture)
    config.linear = []  # transformers wants a value for the whole model of everything that layers state
    config.auto_map = auto_map(config.model_type)
    overrides = per_layer_config(spec, architecture, config)
    config.per_layer_config = overrides or None
    return config


def auto_map(model_type: str) -> dict[str, str]:
    """Where AutoModelForCausalLM finds the class of a child: in the file that lies in its checkpoint."""
    return {"AutoModelForCausalLM": f"{MODELING_FILE.removesuffix('.py')}.Heterogeneous{CLASSES[model_type]}"}


def per_layer_config(spec: ModelSpec, architecture: Architecture, config: Any) -> dict[str, dict[str, Any]]:
    """What each layer states because it differs from the values that `config` has for the whole model.

    Args:
        spec: the parent's; a layer that does not slide in `config` keeps what the spec says.
        config: the config these overrides are for, see `child_config`.
    """
    windows = read_spec(config).sliding_windows
    heads, width = spec.num_key_value_heads, spec.intermediate_size
    stated: dict[str, dict[str, Any]] = {}
    for layer, block in enumerate(architecture.blocks):
        values: dict[str, Any] = {}
        if isinstance(block.attention, GQA):
            if block.attention.num_key_value_heads != heads:
                values["num_key_value_heads"] = block.attention.num_key_value_heads
            if block.attention.sliding_window != windows[layer]:
                values["sliding_window"] = block.attention.sliding_window
        if isinstance(block.ffn, GatedMLP) and block.ffn.intermediate_size != width:
            values["intermediate_size"] = block.ffn.intermediate_size
        for key, kind in (("skip", NoOp), ("linear", Linear)):
            names = [
                name for name, sub in (("attention", block.attention), ("mlp", block.ffn)) if isinstance(sub, kind)
            ]
            if names:
                values[key] = names
        if values:
            stated[str(layer)] = values
    return stated


def check_window(spec: ModelSpec, layer: int, window: int | None) -> None:
    """Raise ValueError if the layer of a child would see more than the parent's, or its family allows no window there.

    Masks are made for the parent's windows and then narrowed layer by layer, so none can be wider.
    """
    limit = spec.sliding_windows[layer]
    if limit is not None and (window is None or window > limit):
        raise ValueError(
            f"layer {layer}: a window of {window or 'all'} tokens is wider than the parent's {limit}; "
            f"use at most {limit}"
        )
    if limit is None and window is not None and spec.model_type == "gemma3_text":
        raise ValueError(
            f"layer {layer} attends to everything, and full layers of {spec.model_type} have a RoPE of their own, so "
            f"it cannot get a window of {window}; use none"
        )


def _set_windows(config: Any, spec: ModelSpec, architecture: Architecture) -> None:
    """State which layers slide, and the widest window, where the family's config says so for the whole model."""
    rule = FAMILIES[spec.model_type].windows
    if not hasattr(config, "sliding_window"):
        config.sliding_window = None
    widest = [window for window in spec.sliding_windows if window is not None]
    sliding = []
    for layer, block in enumerate(architecture.blocks):
        if isinstance(block.attention, GQA):
            check_window(spec, layer, block.attention.sliding_window)
            if spec.sliding_windows[layer] is None and block.attention.sliding_window is not None:
                sliding.append(layer)
                widest.append(block.attention.sliding_window)
    if rule == "layer_types" and sliding:
        types = list(config.layer_types)
        for layer in sliding:
            types[layer] = "sliding_attention"
        config.layer_types, config.sliding_window = types, max(widest)
        if hasattr(config, "use_sliding_window"):
            config.use_sliding_window = True
