"""The config.json of a checkpoint: one dict per layout. Knows no weights and no files.

`decilm` is what TensorRT-LLM and vLLM load for layers that differ (model_type nemotron-nas, class DeciLMForCausalLM),
`llama` what everything loads for layers that do not. Read for it: `tensorrt_llm/_torch/models/modeling_nemotron_nas.py`
at NVIDIA/TensorRT-LLM commit 4d365368 and `vllm/model_executor/models/nemotron_nas.py` at vllm-project/vllm commit
00bd1493. Both derive an MLP's width from ffn_mult (vLLM reads intermediate_size where there is none), and neither looks
at a window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from puzzlebench.model.blocks import GQA, Architecture, AttentionSubBlock, FFNSubBlock, GatedMLP, Linear, NoOp
from puzzlebench.model.layouts import DECILM_WIDTH_MULTIPLE, decilm_intermediate_size, largest_sizes
from puzzlebench.model.spec import ModelSpec, check_architecture

Layout: TypeAlias = Literal["decilm", "llama"]
LAYOUTS: tuple[Layout, ...] = ("decilm", "llama")
CONFIG_CLASS_FILE = "configuration_decilm.py"

_ROPE_THETA = 500000.0
_NORM_EPS = 1e-5


def checkpoint_config(spec: ModelSpec, architecture: Architecture, *, dtype: str, layout: Layout) -> dict[str, Any]:
    """A JSON-ready config.json.

    Raises:
        ValueError: the layout cannot say what the model has: biases, norms other than before each sub-block, norms on
            queries and keys, windows, an MLP width that ffn_mult cannot give, layers that differ (llama).
    """
    check_architecture(spec, architecture)
    _check_expressible(spec, architecture)
    if layout == "decilm":
        return _shared(spec, dtype) | decilm_layers(spec, architecture)
    if layout == "llama":
        return _shared(spec, dtype) | _llama(architecture)
    raise ValueError(f"layout {layout!r} is not known; use {', '.join(LAYOUTS)}")


def decilm_layers(spec: ModelSpec, architecture: Architecture, *, any_width: bool = False) -> dict[str, Any]:
    """What a config.json of model_type nemotron-nas says of its layers, and where its config class is.

    Args:
        any_width: write widths that ffn_mult cannot give as intermediate_size, which vLLM reads and TensorRT-LLM not.

    Raises:
        ValueError: a layer has a window, or a width that ffn_mult cannot give; the message names the layer.
    """
    check_windows(architecture)
    blocks = []
    for layer, block in enumerate(architecture.blocks):
        try:
            ffn = _ffn(spec, block.ffn, any_width=any_width)
        except ValueError as error:
            raise ValueError(f"layer {layer}: {error}") from None
        blocks.append({"attention": _attention(spec, block.attention), "ffn": ffn})
    return {
        "model_type": "nemotron-nas",
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": f"{CONFIG_CLASS_FILE.removesuffix('.py')}.DeciLMConfig"},
        "block_configs": blocks,
        "num_key_value_heads": None,  # engines count them per layer
        "intermediate_size": largest_sizes(architecture).get("intermediate_size", spec.intermediate_size),
    }


def ffn_mult(intermediate_size: int, hidden_size: int) -> float:
    """The multiplier from which engines derive exactly this width.

    Raises:
        ValueError: there is none; the message names the nearest widths that have one.
    """
    if intermediate_size % DECILM_WIDTH_MULTIPLE:
        below = intermediate_size // DECILM_WIDTH_MULTIPLE * DECILM_WIDTH_MULTIPLE
        near = [str(width) for width in (below, below + DECILM_WIDTH_MULTIPLE) if width]
        raise ValueError(
            f"an MLP width of {intermediate_size} cannot be written as ffn_mult, which engines round up to "
            f"multiples of {DECILM_WIDTH_MULTIPLE}; nearest: {' or '.join(near)}"
        )
    multiplier = 1.5 * intermediate_size / hidden_size
    assert decilm_intermediate_size(multiplier, hidden_size) == intermediate_size
    return multiplier


def rope_settings(theta: float, scaling: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """RoPE of a config.json twice: as readers up to transformers 4 look for it, and as those from 5 on do.

    Args:
        scaling: rope_type and what belongs to it; None is RoPE as it is.
    """
    return {
        "rope_theta": theta,
        "rope_scaling": dict(scaling) if scaling else None,
        "rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": theta},
    }


def check_windows(architecture: Architecture) -> None:
    """Raise ValueError for a layer with a window, which no reader of block_configs looks at."""
    for layer, block in enumerate(architecture.blocks):
        if isinstance(block.attention, GQA) and block.attention.sliding_window is not None:
            raise ValueError(
                f"layer {layer} has a window of {block.attention.sliding_window} tokens, which engines would pass over "
                "in this layout; use GQA without a window"
            )


def _shared(spec: ModelSpec, dtype: str) -> dict[str, Any]:
    return {
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_hidden_layers,
        "num_attention_heads": spec.num_attention_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_position_embeddings,
        "tie_word_embeddings": spec.tie_word_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "rms_norm_eps": _NORM_EPS,
        **rope_settings(_ROPE_THETA),
        "torch_dtype": dtype,
        "use_cache": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }


def _attention(spec: ModelSpec, sub: AttentionSubBlock) -> dict[str, Any]:
    group = spec.num_attention_heads // sub.num_key_value_heads if isinstance(sub, GQA) else None
    return {
        "n_heads_in_group": group,
        "no_op": isinstance(sub, NoOp),
        "replace_with_linear": isinstance(sub, Linear),
    }


def _ffn(spec: ModelSpec, sub: FFNSubBlock, *, any_width: bool) -> dict[str, Any]:
    kind = {"no_op": isinstance(sub, NoOp), "replace_with_linear": isinstance(sub, Linear)}
    if not isinstance(sub, GatedMLP):
        return {"ffn_mult": None, **kind}
    if any_width and sub.intermediate_size % DECILM_WIDTH_MULTIPLE:
        return {"intermediate_size": sub.intermediate_size, **kind}
    return {"ffn_mult": ffn_mult(sub.intermediate_size, spec.hidden_size), **kind}


def _llama(architecture: Architecture) -> dict[str, Any]:
    first, *others = dict.fromkeys(architecture.blocks)
    if others or not isinstance(first.attention, GQA) or not isinstance(first.ffn, GatedMLP):
        raise ValueError("layout llama needs the same attention and MLP in every layer; layout decilm does not")
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_key_value_heads": first.attention.num_key_value_heads,
        "intermediate_size": first.ffn.intermediate_size,
    }


def _check_expressible(spec: ModelSpec, architecture: Architecture) -> None:
    has = None
    if spec.qkv_bias or spec.attention_output_bias or spec.mlp_bias:
        has = "biases"
    elif spec.qk_norm != "none":
        has = f"norms on queries and keys ({spec.qk_norm})"
    elif spec.norm_placement != "pre":
        has = f"norms placed {spec.norm_placement!r}"
    if has:
        raise ValueError(f"{spec.name} has {has}; a stack of blocks is written as Llama's, with none, normed before")
    check_windows(architecture)
