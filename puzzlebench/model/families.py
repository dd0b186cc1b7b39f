"""What each supported Hugging Face model_type builds, and what its config means where a key is absent.

Data only. The defaults are those of transformers' config classes (a test compares them where transformers is
installed), held here so that reading a config needs neither torch nor transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from puzzlebench.model.spec import NormPlacement, QKNorm


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """How one model_type turns its config into shapes.

    Attributes:
        defaults: values of absent keys; None for num_key_value_heads means num_attention_heads, None for head_dim
            means hidden_size // num_attention_heads.
        attention_bias: "config" reads attention_bias, which covers q, k, v and o; "qkv" is always a bias on q, k, v;
            "qkv_bias" is "config", with qkv_bias, where it is stated, for q, k and v.
        mlp_bias: "config" reads mlp_bias.
        windows: how the sliding windows of the layers follow from the config, see `windows`.
    """

    defaults: Mapping[str, Any]
    attention_bias: Literal["config", "qkv", "qkv_bias", "none"] = "config"
    mlp_bias: Literal["config", "none"] = "none"
    qk_norm: QKNorm = "none"
    norm_placement: NormPlacement = "pre"
    windows: Literal["none", "uniform", "layer_types"] = "none"


def _defaults(  # one argument per config key
    *,
    vocab_size: int,
    hidden_size: int,
    intermediate_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    num_key_value_heads: int | None,
    max_position_embeddings: int,
    head_dim: int | None = None,
    tie_word_embeddings: bool = False,
    **others: Any,
) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads,
        "num_key_value_heads": num_key_value_heads,
        "head_dim": head_dim,
        "max_position_embeddings": max_position_embeddings,
        "tie_word_embeddings": tie_word_embeddings,
        **others,
    }


_LLAMA = _defaults(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=None,
    max_position_embeddings=2048,
    attention_bias=False,
    mlp_bias=False,
)
_MISTRAL = _defaults(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=131072,
    sliding_window=4096,
)
_QWEN2 = _defaults(
    vocab_size=151936,
    hidden_size=4096,
    intermediate_size=22016,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    max_position_embeddings=32768,
    use_sliding_window=False,
    sliding_window=4096,
    max_window_layers=28,
)
_GEMMA2 = _defaults(
    vocab_size=256000,
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
    attention_bias=False,
    sliding_window=4096,
)
_DECILM = Family(defaults=_LLAMA, attention_bias="qkv_bias", mlp_bias="config")

FAMILIES: dict[str, Family] = {
    "llama": Family(defaults=_LLAMA, mlp_bias="config"),
    "mistral": Family(defaults=_MISTRAL, attention_bias="none", windows="uniform"),
    "ministral": Family(defaults=_MISTRAL, attention_bias="none", windows="layer_types"),
    "ministral3": Family(
        defaults=_defaults(
            vocab_size=131072,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=34,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=262144,
            sliding_window=None,
        ),
        attention_bias="none",
        windows="uniform",
    ),
    "qwen2": Family(defaults=_QWEN2, attention_bias="qkv", windows="layer_types"),
    "qwen3": Family(
        defaults={**_QWEN2, "head_dim": 128, "attention_bias": False}, qk_norm="per_head", windows="layer_types"
    ),
    "phi3": Family(
        defaults=_defaults(
            vocab_size=32064,
            hidden_size=3072,
            intermediate_size=8192,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=None,
            max_position_embeddings=4096,
            sliding_window=None,
        ),
        attention_bias="none",
        windows="uniform",
    ),
    "gemma": Family(
        defaults=_defaults(
            vocab_size=256000,
            hidden_size=3072,
            intermediate_size=24576,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=16,
            head_dim=256,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            attention_bias=False,
        )
    ),
    "gemma2": Family(defaults=_GEMMA2, norm_placement="both", windows="layer_types"),
    "gemma3_text": Family(
        defaults={**_GEMMA2, "vocab_size": 262208, "max_position_embeddings": 131072},
        qk_norm="per_head",
        norm_placement="both",
        windows="layer_types",
    ),
    "olmo2": Family(
        defaults={key: value for key, value in _LLAMA.items() if key != "mlp_bias"} | {"vocab_size": 50304},
        qk_norm="full",
        norm_placement="post",
    ),
    "granite": Family(defaults=_LLAMA, mlp_bias="config"),
    "smollm3": Family(
        defaults=_defaults(
            vocab_size=128256,
            hidden_size=2048,
            intermediate_size=11008,
            num_hidden_layers=36,
            num_attention_heads=16,
            num_key_value_heads=4,
            max_position_embeddings=32768,
            tie_word_embeddings=True,
            attention_bias=False,
            mlp_bias=False,
            use_sliding_window=False,
            sliding_window=None,
            no_rope_layer_interval=4,
        ),
        mlp_bias="config",
        windows="layer_types",
    ),
    "nemotron-nas": _DECILM,
    "deci": _DECILM,
}

WRAPPERS: dict[str, str] = {"gemma3": "gemma3_text", "mistral3": "mistral"}
"""Multimodal model_types whose text_config is read, and the model_type it has when it states none."""
