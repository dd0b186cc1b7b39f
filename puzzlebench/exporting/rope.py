"""RoPE in a config.json: transformers 4 reads rope_theta and rope_scaling, from 5 on it writes rope_parameters only.

A config that states one form loads in the other with the default base and no scaling, and no error. So what is exported
states both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from puzzlebench.measuring.stack.layouts import rope_settings

_DEFAULT_THETA = 10000.0
_WITHIN = ("llama3", "longrope", "yarn")  # they scale by the length that the model was first trained for


def both_forms(config: Mapping[str, Any]) -> dict[str, Any]:
    """What to add to a config of any family, so that both generations of transformers rotate alike."""
    stated = config.get("rope_parameters")
    if not stated:
        return {}  # of transformers 4; the newer ones read it
    if is_by_layer_type(stated):
        full, sliding = (stated.get(kind) or {} for kind in ("full_attention", "sliding_attention"))
        forms = {"rope_theta": full.get("rope_theta"), "rope_scaling": _scaling(full, config)}
        forms["rope_local_base_freq"] = sliding.get("rope_theta")
        return {key: value for key, value in forms.items() if value is not None}
    scaling = _scaling(stated, config)
    forms = {"rope_theta": stated.get("rope_theta") or config.get("rope_theta") or _DEFAULT_THETA}
    forms["rope_scaling"] = _as_phi3(scaling) if config.get("model_type") == "phi3" else scaling
    if "partial_rotary_factor" in stated:
        forms["partial_rotary_factor"] = stated["partial_rotary_factor"]
    return forms


def one_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE in both forms, of a config that has it in either: one for all layers, of whole heads.

    Raises:
        ValueError: there are several, or only part of a head is rotated, or it needs settings from elsewhere.
    """
    stated = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    if is_by_layer_type(stated):
        raise ValueError("RoPE differs between kinds of layers, and decilm has one")
    part = stated.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if part != 1.0:
        raise ValueError(f"RoPE turns {part:.0%} of each head (partial_rotary_factor), and decilm turns all of it")
    scaling = _scaling(stated, config)
    if scaling and scaling["rope_type"] == "longrope":
        raise ValueError("RoPE of type longrope depends on settings outside it, which decilm does not have")
    return rope_settings(stated.get("rope_theta") or config.get("rope_theta") or _DEFAULT_THETA, scaling)


def is_by_layer_type(stated: Mapping[str, Any]) -> bool:
    """Whether rope_parameters holds one object per kind of layer."""
    return any(isinstance(value, Mapping) for value in stated.values())


def _scaling(stated: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What changes the angles, without the base; None where nothing does."""
    kind = stated.get("rope_type") or stated.get("type") or "default"
    if kind == "default":
        return None
    others = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
    scaling = {"rope_type": kind, **{key: value for key, value in stated.items() if key not in others}}
    if kind in _WITHIN and scaling.get("original_max_position_embeddings") is None:
        first = config.get("original_max_position_embeddings") or config.get("max_position_embeddings")
        scaling["original_max_position_embeddings"] = first
    return scaling


def _as_phi3(scaling: dict[str, Any] | None) -> dict[str, Any] | None:
    """Phi-3's own check in transformers 4 wants these three names and no others."""
    if scaling is None:
        return None
    return {"type": scaling["rope_type"], **{key: scaling[key] for key in ("short_factor", "long_factor")}}
