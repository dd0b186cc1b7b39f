"""The matrices of a decoder layer, read and written alike whether a family fuses them (Phi-3) or not.

Knows attribute names, which all supported families share, and no model_type. What is read are views of the layer's own
parameters: nobody may write into them.

Shapes: H hidden_size, I intermediate_size, Q num_attention_heads * head_dim, K num_key_value_heads * head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionProjections:
    """Weights q [Q, H], k and v [K, H], o [H, Q]; biases of their rows; q_norm and k_norm of one head or of all."""

    head_dim: int
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    q_bias: Tensor | None = None
    k_bias: Tensor | None = None
    v_bias: Tensor | None = None
    o_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None

    @property
    def num_attention_heads(self) -> int:
        """Query heads."""
        return self.q.shape[0] // self.head_dim

    @property
    def num_key_value_heads(self) -> int:
        """Key-value heads."""
        return self.k.shape[0] // self.head_dim

    @property
    def k_norm_is_full(self) -> bool:
        """The norm on keys has weights for all heads (OLMo 2), not for one (Qwen3, Gemma 3)."""
        return self.k_norm is not None and self.k_norm.shape[0] != self.head_dim


@dataclass(frozen=True, kw_only=True, slots=True)
class MLPProjections:
    """Weights gate and up [I, H], down [H, I]; biases of their rows."""

    gate: Tensor
    up: Tensor
    down: Tensor
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None

    @property
    def intermediate_size(self) -> int:
        """Channels."""
        return self.down.shape[1]


def attention_projections(layer: nn.Module) -> AttentionProjections:
    """The attention of a decoder layer.

    Raises:
        ValueError: it has neither q_proj, k_proj, v_proj nor qkv_proj beside o_proj, or has further parameters.
    """
    state = _parameters(layer, "self_attn")
    if "o_proj.weight" in state and "qkv_proj.weight" in state:
        queries = state["o_proj.weight"].shape[1]
        keys = (state["qkv_proj.weight"].shape[0] - queries) // 2
        _split(state, "qkv_proj", {"q_proj": queries, "k_proj": keys, "v_proj": keys})
    _require(layer, "self_attn", state, ("q_proj", "k_proj", "v_proj", "o_proj"), ("q_norm", "k_norm"))
    return AttentionProjections(
        head_dim=layer.get_submodule("self_attn").head_dim,  # type: ignore[arg-type]
        q=state["q_proj.weight"],
        k=state["k_proj.weight"],
        v=state["v_proj.weight"],
        o=state["o_proj.weight"],
        q_bias=state.get("q_proj.bias"),
        k_bias=state.get("k_proj.bias"),
        v_bias=state.get("v_proj.bias"),
        o_bias=state.get("o_proj.bias"),
        q_norm=state.get("q_norm.weight"),
        k_norm=state.get("k_norm.weight"),
    )


def mlp_projections(layer: nn.Module) -> MLPProjections:
    """The gated MLP of a decoder layer.

    Raises:
        ValueError: it has neither gate_proj, up_proj nor gate_up_proj beside down_proj, or has further parameters.
    """
    state = _parameters(layer, "mlp")
    if "gate_up_proj.weight" in state:
        width = state["gate_up_proj.weight"].shape[0] // 2
        _split(state, "gate_up_proj", {"gate_proj": width, "up_proj": width})
    _require(layer, "mlp", state, ("gate_proj", "up_proj", "down_proj"), ())
    return MLPProjections(
        gate=state["gate_proj.weight"],
        up=state["up_proj.weight"],
        down=state["down_proj.weight"],
        gate_bias=state.get("gate_proj.bias"),
        up_bias=state.get("up_proj.bias"),
        down_bias=state.get("down_proj.bias"),
    )


def attention_state(layer: nn.Module, projections: AttentionProjections) -> dict[str, Tensor]:
    """These projections under the names of that layer's attention: self_attn.q_proj.weight or self_attn.qkv_proj.weight
    and so on. Tensors are new and contiguous.
    """
    weights: dict[str, Tensor | None] = {"q_proj": projections.q, "k_proj": projections.k, "v_proj": projections.v}
    biases = {"q_proj": projections.q_bias, "k_proj": projections.k_bias, "v_proj": projections.v_bias}
    if hasattr(layer.get_submodule("self_attn"), "qkv_proj"):
        weights, biases = {"qkv_proj": _stack(weights)}, {"qkv_proj": _stack(biases)}
    norms = {"q_norm": projections.q_norm, "k_norm": projections.k_norm}
    return _named("self_attn", {**weights, "o_proj": projections.o, **norms}, {**biases, "o_proj": projections.o_bias})


def mlp_state(layer: nn.Module, projections: MLPProjections) -> dict[str, Tensor]:
    """These projections under the names of that layer's MLP: mlp.gate_proj.weight or mlp.gate_up_proj.weight and so on.
    Tensors are new and contiguous.
    """
    weights: dict[str, Tensor | None] = {"gate_proj": projections.gate, "up_proj": projections.up}
    biases = {"gate_proj": projections.gate_bias, "up_proj": projections.up_bias}
    if hasattr(layer.get_submodule("mlp"), "gate_up_proj"):
        weights, biases = {"gate_up_proj": _stack(weights)}, {"gate_up_proj": _stack(biases)}
    return _named("mlp", {**weights, "down_proj": projections.down}, {**biases, "down_proj": projections.down_bias})


def _parameters(layer: nn.Module, name: str) -> dict[str, Tensor]:
    module = getattr(layer, name, None)
    if not isinstance(module, nn.Module):
        raise ValueError(f"{type(layer).__name__} has no {name}; use a decoder layer of a supported family")
    return {key: value.detach() for key, value in module.named_parameters()}


def _split(state: dict[str, Tensor], fused: str, rows: dict[str, int]) -> None:
    """Replace a fused projection by its parts, which lie in it one after the other."""
    for kind in ("weight", "bias"):
        whole = state.pop(f"{fused}.{kind}", None)
        if whole is not None:
            parts = torch.split(whole, list(rows.values()))
            state |= {f"{name}.{kind}": part for name, part in zip(rows, parts, strict=True)}


def _require(
    layer: nn.Module, name: str, state: dict[str, Tensor], projections: tuple[str, ...], norms: tuple[str, ...]
) -> None:
    needed = {f"{projection}.weight" for projection in projections}
    known = needed | {f"{projection}.bias" for projection in projections} | {f"{norm}.weight" for norm in norms}
    if not needed <= state.keys():
        raise ValueError(
            f"{name} of {type(layer).__name__} has {', '.join(sorted(state)) or 'no parameters'}; "
            f"expected weights of {', '.join(projections)}, or the first ones fused"
        )
    if unknown := sorted(state.keys() - known):
        raise ValueError(f"{name} of {type(layer).__name__} has {unknown[0]}, which no supported family has")


def _stack(parts: dict[str, Tensor | None]) -> Tensor | None:
    present = [part for part in parts.values() if part is not None]
    assert len(present) in (0, len(parts)), "a fused projection has a bias or none"
    return torch.cat(present) if present else None


def _named(prefix: str, weights: dict[str, Tensor | None], biases: dict[str, Tensor | None]) -> dict[str, Tensor]:
    tensors = {f"{name}.weight": weight for name, weight in weights.items()}
    tensors |= {f"{name}.bias": bias for name, bias in biases.items()}
    return {
        f"{prefix}.{name}": tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
        if tensor is not None
    }
