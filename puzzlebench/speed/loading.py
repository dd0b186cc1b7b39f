"""A checkpoint's own weights, laid out as the live cost table's sub-blocks lay theirs out.

Takes a model of transformers apart. Knows no clock. Where a family does more than the table's operations express
(multipliers, soft caps, layers without RoPE), it is refused in one line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from puzzlebench.measuring.weights import Dense, Weights
from puzzlebench.model.blocks import GQA, Architecture, GatedMLP, Linear, NoOp, SubBlock
from puzzlebench.model.spec import ModelSpec

TORCH_FAMILIES: Final = ("llama", "mistral", "ministral", "olmo2", "qwen2", "qwen3")
_CONSTANT_ROPE: Final = ("default", "linear", "llama3", "yarn")
_INSTEAD: Final = "; use --engine transformers"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """Everything that runs: L layers of two sub-blocks each.

    Attributes:
        layers: 2 L sub-blocks with their weights, attention and FFN by turns.
        frequencies: of RoPE, [head_dim / 2], scaled as the checkpoint's config says.
        attention_scale: factor of RoPE's cos and sin.
    """

    spec: ModelSpec
    embedding: Weights
    layers: tuple[tuple[SubBlock, Weights], ...]
    head: Weights
    frequencies: Tensor
    attention_scale: float
    norm_epsilon: float


def check_expressible(config: Any, spec: ModelSpec) -> None:
    """Raise ValueError unless the torch engine's operations are all that this model does.

    Args:
        config: of transformers.
    """
    if spec.model_type not in TORCH_FAMILIES:
        raise ValueError(
            f"the torch engine runs {', '.join(TORCH_FAMILIES)}, not {spec.model_type} ({spec.name}){_INSTEAD}"
        )
    activation = getattr(config, "hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ValueError(f"{spec.name}: the torch engine has silu, not {activation}{_INSTEAD}")
    stated = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = stated.get("rope_type", stated.get("type", "default"))
    if kind not in _CONSTANT_ROPE:
        raise ValueError(
            f"{spec.name}: RoPE of type {kind} depends on the length; the torch engine has "
            f"{', '.join(_CONSTANT_ROPE)}{_INSTEAD}"
        )


def take_weights(model: nn.Module, spec: ModelSpec, architecture: Architecture) -> LoadedModel:
    """The weights of a causal LM, its own tensors where nothing is fused and copies where it is.

    Args:
        model: of transformers, the parent or a child, on the device and in the dtype it is to run in.
        spec: of the same model.

    Raises:
        ValueError: see `check_expressible`.
    """
    any_model: Any = model
    check_expressible(any_model.config, spec)
    decoder = any_model.model
    frequencies = decoder.rotary_emb.inv_freq
    if 2 * len(frequencies) != spec.head_dim:
        raise ValueError(f"{spec.name}: the torch engine rotates whole heads, not parts of them{_INSTEAD}")
    layers: list[tuple[SubBlock, Weights]] = []
    with torch.no_grad():
        for layer, block in zip(decoder.layers, architecture.blocks, strict=True):
            layers.append((block.attention, _attention(layer, block.attention, spec)))
            layers.append((block.ffn, _ffn(layer, block.ffn, spec)))
    table = any_model.get_input_embeddings().weight.detach()
    matrix = any_model.get_output_embeddings().weight.detach()
    return LoadedModel(
        spec=spec,
        embedding=Weights(matrices={"embedding": Dense(weight=table, bias=None)}),
        layers=tuple(layers),
        head=Weights(
            matrices={"head": Dense(weight=matrix, bias=None)}, norms={"before": decoder.norm.weight.detach()}
        ),
        frequencies=frequencies,
        attention_scale=float(decoder.rotary_emb.attention_scaling),
        norm_epsilon=float(any_model.config.rms_norm_eps),
    )


def _attention(layer: Any, sub: SubBlock, spec: ModelSpec) -> Weights:
    if isinstance(sub, NoOp):
        return Weights()
    norm = layer.post_attention_layernorm if spec.norm_placement == "post" else layer.input_layernorm
    norms = {_place(spec): norm.weight.detach()}
    own = layer.self_attn
    if isinstance(sub, Linear):
        return Weights(matrices={"linear": _dense(own.linear_attn)}, norms=norms)
    assert isinstance(sub, GQA)
    if spec.qk_norm != "none":
        norms |= {"query": own.q_norm.weight.detach(), "key": own.k_norm.weight.detach()}
    return Weights(matrices={"qkv": _dense(own.q_proj, own.k_proj, own.v_proj), "o": _dense(own.o_proj)}, norms=norms)


def _ffn(layer: Any, sub: SubBlock, spec: ModelSpec) -> Weights:
    if isinstance(sub, NoOp):
        return Weights()
    norm = layer.post_feedforward_layernorm if spec.norm_placement == "post" else layer.post_attention_layernorm
    norms = {_place(spec): norm.weight.detach()}
    if isinstance(sub, Linear):
        return Weights(matrices={"linear": _dense(layer.mlp.linear_mlp)}, norms=norms)
    assert isinstance(sub, GatedMLP)
    own = layer.mlp
    return Weights(matrices={"gate_up": _dense(own.gate_proj, own.up_proj), "down": _dense(own.down_proj)}, norms=norms)


def _place(spec: ModelSpec) -> str:
    return "after" if spec.norm_placement == "post" else "before"


def _dense(*modules: Any) -> Dense:
    """One matrix of the outputs of all modules, one after the other."""
    if len(modules) == 1:
        bias = modules[0].bias
        return Dense(weight=modules[0].weight.detach(), bias=None if bias is None else bias.detach())
    biases = [module.bias for module in modules]
    fused = None if biases[0] is None else torch.cat([cast("Tensor", bias) for bias in biases]).detach()
    return Dense(weight=torch.cat([module.weight for module in modules]).detach(), bias=fused)
