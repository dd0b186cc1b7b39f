"""From a raw Hugging Face config.json to a `ModelSpec` and its `Architecture`.

Knows the dict only: no files, no network, no transformers. What each model_type builds is in `families`, per-layer
formats are in `layouts`. Keys that change no shape (RoPE, dtypes of caches, token ids) are not looked at.
"""

from collections.abc import Mapping
from typing import Any

from puzzlebench.model.blocks import GQA, Architecture
from puzzlebench.model.checks import require_positive_int
from puzzlebench.model.families import FAMILIES, WRAPPERS, Family
from puzzlebench.model.layouts import architecture_from_layout, has_layout, largest_sizes
from puzzlebench.model.spec import ModelSpec, check_architecture, parent_architecture
from puzzlebench.model.windows import sliding_windows

_UNSUPPORTED_KEYS = {
    "a mixture of experts": ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    "multi-head latent attention": ("kv_lora_rank",),
    "a state-space model": ("ssm_cfg", "state_size", "mamba_d_state", "ssm_state_size", "hybrid_override_pattern"),
    "a vision or audio wrapper": ("text_config", "vision_config", "thinker_config", "llm_config"),
    "an encoder-decoder": ("encoder_layers", "num_encoder_layers"),
}


def from_hf_config(config: Mapping[str, Any], *, name: str) -> tuple[ModelSpec, Architecture]:
    """The spec and the architecture that a config.json describes.

    Absent keys mean what transformers' config class of that model_type means by them. A null num_key_value_heads is
    num_attention_heads, a null head_dim hidden_size // num_attention_heads. Of a supported multimodal wrapper the text
    model is read; its tie_word_embeddings counts before the wrapper's.

    Raises:
        ValueError: the model_type is missing or not supported, or a value is not possible.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"{name}: a config is a JSON object, not {type(config).__name__}")
    model_type, config = _text_config(config, name)
    family = FAMILIES[model_type]
    values = {**family.defaults, **config}
    _check_readable(model_type, values, name)
    try:
        for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"):
            require_positive_int(key, values[key])
        if values["num_key_value_heads"] is None:
            values["num_key_value_heads"] = values["num_attention_heads"]
        windows = sliding_windows(model_type, values, family.windows)
        if not has_layout(values):
            spec = _spec(model_type, family, values, windows, name)
            return spec, parent_architecture(spec)
        architecture = architecture_from_layout(model_type, values, windows)
        own_windows = tuple(
            block.attention.sliding_window if isinstance(block.attention, GQA) else window
            for block, window in zip(architecture.blocks, windows, strict=True)
        )
        spec = _spec(model_type, family, values | largest_sizes(architecture), own_windows, name)
        check_architecture(spec, architecture)
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith(f"{name}: ") else f"{name}: {message}") from None
    return spec, architecture


def _text_config(config: Mapping[str, Any], name: str) -> tuple[str, Mapping[str, Any]]:
    model_type = config.get("model_type")
    text = config.get("text_config")
    if model_type in WRAPPERS and isinstance(text, Mapping):
        inherited = {key: config[key] for key in ("tie_word_embeddings", "torch_dtype", "dtype") if key in config}
        inner_type = text.get("model_type", WRAPPERS[model_type])
        if inner_type in FAMILIES:
            return inner_type, {**inherited, **text}
        model_type, config = inner_type, text
    if model_type is None:
        raise ValueError(f"{name}: the config has no model_type, so its layers are unknown")
    if model_type in WRAPPERS:
        raise ValueError(f"{name}: model_type {model_type!r} needs a text_config, and this config has none")
    if model_type not in FAMILIES:
        kind = _unsupported_kind(config)
        raise ValueError(
            f"{name}: model_type {model_type!r} is {f'{kind}, which is ' if kind else ''}not supported; supported are "
            f"dense decoders with gated MLPs: {', '.join([*FAMILIES, *WRAPPERS])}"
        )
    return model_type, config


def _unsupported_kind(config: Mapping[str, Any]) -> str | None:
    for kind, keys in _UNSUPPORTED_KEYS.items():
        if any(config.get(key) for key in keys):
            return kind
    return None


def _check_readable(model_type: str, values: Mapping[str, Any], name: str) -> None:
    for kind in ("a mixture of experts", "multi-head latent attention"):
        for key in _UNSUPPORTED_KEYS[kind]:
            if values.get(key):
                raise ValueError(f"{name}: {model_type!r} with {key} {values[key]!r} is {kind}, which is not supported")
    if model_type.startswith("gemma") and values.get("use_bidirectional_attention"):
        raise ValueError(f"{name}: use_bidirectional_attention makes this an encoder, not a decoder")


def _spec(
    model_type: str, family: Family, values: Mapping[str, Any], windows: tuple[int | None, ...], name: str
) -> ModelSpec:
    heads, head_dim = values["num_attention_heads"], values["head_dim"]
    if head_dim is None:
        if values["hidden_size"] % heads:
            raise ValueError(
                f"hidden_size {values['hidden_size']} is not a multiple of num_attention_heads {heads} "
                "and the config states no head_dim"
            )
        head_dim = values["hidden_size"] // heads
    bias = family.attention_bias in ("config", "qkv_bias") and _flag(values, "attention_bias")
    qkv_bias = bias or family.attention_bias == "qkv"
    if family.attention_bias == "qkv_bias" and values.get("qkv_bias") is not None:
        qkv_bias = _flag(values, "qkv_bias")
    return ModelSpec(
        name=name,
        model_type=model_type,
        num_hidden_layers=values["num_hidden_layers"],
        hidden_size=values["hidden_size"],
        num_attention_heads=heads,
        num_key_value_heads=values["num_key_value_heads"],
        head_dim=head_dim,
        intermediate_size=values["intermediate_size"],
        vocab_size=values["vocab_size"],
        max_position_embeddings=values["max_position_embeddings"],
        tie_word_embeddings=_flag(values, "tie_word_embeddings"),
        qkv_bias=qkv_bias,
        attention_output_bias=bias,
        mlp_bias=family.mlp_bias == "config" and _flag(values, "mlp_bias"),
        qk_norm=family.qk_norm,
        norm_placement=family.norm_placement,
        sliding_windows=windows,
        torch_dtype=values.get("dtype") or values.get("torch_dtype"),
    )


def _flag(values: Mapping[str, Any], key: str) -> bool:
    value = values[key]
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false, not {value!r}")
    return bool(value)
