"""Which config.json the plugin takes from vLLM's own models, and the plain config it makes of it.

The plain config states nothing per layer that transformers or vLLM would look at: sizes are the largest of any layer,
there is no window, and the layers stand under one key of ours that only `model` reads. Knows raw dicts only: no vLLM,
no transformers, no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

from puzzlebench.model.blocks import Architecture, architecture_from_json, architecture_to_json
from puzzlebench.model.engine_rules import find_refusals, load_engine_rules
from puzzlebench.model.families import DECILM_TYPES
from puzzlebench.model.hf_config import from_hf_config

ARCHITECTURE = "PuzzlebenchForCausalLM"
"""The class vLLM makes of every config that the plugin takes."""

TRIED = ("0.32.0",)
"""Versions of vLLM that the plugin was run with."""

LAYERS_KEY = "puzzlebench_layers"

FAMILIES = ("llama", "mistral", "ministral", "qwen2", "qwen3")
"""Families whose children `model` computes."""

_OURS = "Heterogeneous"  # what classes of our children begin with, see child/modeling_heterogeneous.py
_STATED_PER_LAYER = ("per_layer_config", "block_configs", "linear", "layer_types", "auto_map")

Norm: TypeAlias = Literal["none", "per_head"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerPlan:
    """What the layers of a model are and have, beside the sizes that its config states for all of them.

    Attributes:
        qk_norm: "per_head" where queries and keys have a norm each, of head_dim weights.
    """

    architecture: Architecture
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: Norm

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        if self.qk_norm not in get_args(Norm):
            raise ValueError(f"qk_norm must be {' or '.join(get_args(Norm))} for vLLM, not {self.qk_norm!r}")


def plain_config(raw: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config of a stock family that stands for `raw` in vLLM; None where vLLM's own model should have it.

    Taken are children in the hf format, and models in the decilm format with a layer that vLLM's own DeciLM does not
    load (by the engine rules).

    Raises:
        ValueError: a child in the hf format whose family or layers the plugin does not compute.
    """
    architectures = raw.get("architectures") or [""]
    if str(architectures[0]).startswith(_OURS):
        return _plain(raw, _hf_plan(raw))
    if raw.get("model_type") in DECILM_TYPES:
        plan = _decilm_plan(raw)
        return None if plan is None else _plain({**raw, "model_type": "llama"}, plan)
    return None


def read_plan(config: Any) -> LayerPlan:
    """The plan in a config made of `plain_config`'s dict."""
    stated = getattr(config, LAYERS_KEY)
    flags = {key: value for key, value in stated.items() if key != "architecture"}
    return LayerPlan(architecture=architecture_from_json(stated["architecture"]), **flags)


def _hf_plan(raw: Mapping[str, Any]) -> LayerPlan:
    model_type = raw.get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(
            f"puzzlebench's vLLM plugin does not load children of model_type {model_type!r}; "
            f"it loads those of {', '.join(FAMILIES)}"
        )
    spec, architecture = from_hf_config(raw, name="config.json")
    return LayerPlan(
        architecture=architecture,
        qkv_bias=spec.qkv_bias,
        output_bias=spec.attention_output_bias,
        mlp_bias=spec.mlp_bias,
        qk_norm=cast("Norm", spec.qk_norm),
    )


def _decilm_plan(raw: Mapping[str, Any]) -> LayerPlan | None:
    """None where vLLM's own DeciLM loads every layer, or where the config says what is not known here."""
    try:
        spec, architecture = from_hf_config(raw, name="config.json")
    except ValueError:
        return None
    if not find_refusals(load_engine_rules("vllm"), spec, architecture):
        return None
    output_bias = bool(raw.get("attention_bias") or raw.get("bias"))
    return LayerPlan(
        architecture=architecture,
        qkv_bias=bool(raw["qkv_bias"]) if "qkv_bias" in raw else output_bias,  # as vLLM's DeciLM reads it
        output_bias=output_bias,
        mlp_bias=spec.mlp_bias,
        qk_norm="none",
    )


def _plain(raw: Mapping[str, Any], plan: LayerPlan) -> dict[str, Any]:
    spec, _ = from_hf_config(raw, name="config.json")
    plain = {key: value for key, value in raw.items() if key not in _STATED_PER_LAYER}
    return plain | {
        "architectures": [ARCHITECTURE],
        "num_key_value_heads": spec.num_key_value_heads,
        "intermediate_size": spec.intermediate_size,
        "head_dim": spec.head_dim,
        "sliding_window": None,
        "use_sliding_window": False,
        LAYERS_KEY: {
            "architecture": architecture_to_json(plan.architecture),
            "qkv_bias": plan.qkv_bias,
            "output_bias": plan.output_bias,
            "mlp_bias": plan.mlp_bias,
            "qk_norm": plan.qk_norm,
        },
    }
