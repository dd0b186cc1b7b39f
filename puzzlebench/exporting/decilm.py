"""The DeciLM format (model_type nemotron-nas): a child as vLLM, TensorRT-LLM and SGLang read it, and back.

Read for it: `vllm/model_executor/models/nemotron_nas.py` and `transformers_utils/config.py` (vLLM 0.32.0),
`tensorrt_llm/_torch/models/modeling_nemotron_nas.py` (commit 0193dbd4). Its layers are Llama's: no norms on queries and
keys, none after a sub-block, silu, rotation of whole heads in every layer. What else a model has is refused here, by
name; what single engines lack stands in engine_rules.yaml.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from puzzlebench.exporting.rope import one_rope
from puzzlebench.measuring.stack.layouts import CONFIG_CLASS_FILE, check_windows, decilm_layers
from puzzlebench.measuring.stack.read import config_class_source
from puzzlebench.model.blocks import GQA
from puzzlebench.model.hf_config import from_hf_config
from puzzlebench.model.layouts import largest_sizes

if TYPE_CHECKING:
    from torch import Tensor

    from puzzlebench.exporting.source import ExportSource

MODEL_FILE: Final = "modeling_decilm.py"
FAMILIES: Final = ("llama", "ministral", "mistral", "phi3", "qwen2", "smollm3")
"""Those whose layers can be written as Llama's; the others scale, cap or normalise somewhere besides."""

_SILU: Final = ("silu", "swish")
_SHARED: Final = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "attention_dropout",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
_OTHER_ROTATIONS: Final = ("mistral_yarn", "rope_llama4")  # values of position_embedding_type that pair neighbours


def decilm_config(source: ExportSource, *, dtype: str) -> dict[str, Any]:
    """A JSON-ready config.json.

    Args:
        dtype: of the weights, by its name in torch.

    Raises:
        ValueError: the format cannot say what the model has; the message names the layer or the setting.
    """
    settings, spec = source.settings(), source.spec
    rope = _checked_rope(source, settings)
    config: dict[str, Any] = {
        **{key: settings[key] for key in _SHARED if key in settings},
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "attention_bias": spec.attention_output_bias,
        "mlp_bias": spec.mlp_bias,
        "use_cache": True,
        "torch_dtype": dtype,
        **rope,
        # Which widths an engine takes is its rule; vLLM and our own class read intermediate_size too.
        **decilm_layers(spec, source.architecture, any_width=True),
    }
    if spec.qkv_bias != spec.attention_output_bias:
        config["qkv_bias"] = spec.qkv_bias
    config["auto_map"]["AutoModelForCausalLM"] = f"{MODEL_FILE.removesuffix('.py')}.DeciLMForCausalLM"
    return config


def decilm_tensors(source: ExportSource) -> Iterator[tuple[str, Tensor]]:
    """The weights under Llama's names; those that Phi-3 fuses come apart."""
    for name, tensor in source.tensors():
        if name.endswith("self_attn.qkv_proj.weight"):
            layer = int(name.split(".")[2])
            attention = source.architecture.blocks[layer].attention
            assert isinstance(attention, GQA)
            key = attention.num_key_value_heads * source.spec.head_dim
            sizes = (len(tensor) - 2 * key, key, key)
            yield from _apart(name, "qkv_proj", ("q_proj", "k_proj", "v_proj"), tensor, sizes)
        elif name.endswith("mlp.gate_up_proj.weight"):
            half = len(tensor) // 2
            yield from _apart(name, "gate_up_proj", ("gate_proj", "up_proj"), tensor, (half, half))
        else:
            yield name, tensor


def write_code(folder: Path) -> None:
    """The files that transformers runs to load the format."""
    from puzzlebench.child import modeling_heterogeneous
    from puzzlebench.child.configs import MODELING_FILE

    template = resources.files("puzzlebench.exporting") / "templates" / f"{MODEL_FILE}.in"
    (folder / CONFIG_CLASS_FILE).write_text(config_class_source(), encoding="utf-8")
    (folder / MODEL_FILE).write_text(template.read_text(encoding="utf-8"), encoding="utf-8")
    shutil.copyfile(modeling_heterogeneous.__file__, folder / MODELING_FILE)


def child_of_decilm(config: Mapping[str, Any], *, name: str) -> dict[str, Any]:
    """The config of a child of ours that is what a DeciLM config says: a Llama, or with biases on q, k, v only a Qwen2.

    Raises:
        ValueError: it has something that these families have not; the message begins with the name.
    """
    from puzzlebench.child.configs import child_config, read_spec
    from puzzlebench.exporting.source import read_config

    spec, architecture = from_hf_config(config, name=name)
    try:
        family = _family(config)
        sizes = {"num_key_value_heads": spec.num_attention_heads, "intermediate_size": spec.intermediate_size}
        values = {
            **{key: config[key] for key in _SHARED if config.get(key) is not None},
            **sizes,
            **largest_sizes(architecture),
            **one_rope(config),
            "model_type": family,
            "head_dim": spec.head_dim,
            "hidden_act": "silu",
            "torch_dtype": spec.torch_dtype,
        }
        if family == "llama":
            values |= {"attention_bias": _output_bias(config), "mlp_bias": spec.mlp_bias}
        stock = read_config(values)
        child = child_config(stock, read_spec(stock), architecture)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return finished_child(json.loads(child.to_json_string()))


def finished_child(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a child with this config: where its class is, or that a stock class will do.

    Layers that are alike need no class of ours, so any engine loads such a checkpoint.
    """
    from puzzlebench.child.configs import auto_map
    from puzzlebench.child.modeling_heterogeneous import CLASSES

    done = {key: value for key, value in config.items() if key not in ("auto_map", "linear", "per_layer_config")}
    stock = CLASSES[config["model_type"]]
    if not config.get("per_layer_config"):
        return done | {"architectures": [stock]}
    return done | {
        "architectures": [f"Heterogeneous{stock}"],
        "auto_map": auto_map(config["model_type"]),
        "linear": [],
        "per_layer_config": config["per_layer_config"],
    }


def _checked_rope(source: ExportSource, settings: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE as the format states it, after a look at everything that the format cannot state."""
    spec, instead = source.spec, "; --format hf keeps it"
    if spec.model_type not in FAMILIES and spec.qk_norm == "none" and spec.norm_placement == "pre":
        raise ValueError(
            f"{spec.name}: decilm is for {', '.join(FAMILIES)}; {spec.model_type} scales, caps or rotates as its "
            f"layers cannot say{instead}"
        )
    if spec.qk_norm != "none":
        raise ValueError(f"{spec.name}: decilm has no norms on queries and keys ({spec.qk_norm} here){instead}")
    if spec.norm_placement != "pre":
        raise ValueError(
            f"{spec.name}: decilm has norms before sub-blocks only, and here they are {spec.norm_placement!r}{instead}"
        )
    try:
        check_windows(source.architecture)
        _check_act(settings.get("hidden_act", "silu"))
        for layer, rotates in enumerate(settings.get("no_rope_layers") or ()):
            if not rotates:
                raise ValueError(f"layer {layer} has no RoPE, and decilm has it in every layer")
        return one_rope(settings)
    except ValueError as error:
        raise ValueError(f"{spec.name}: {error}{instead}") from None


def _family(config: Mapping[str, Any]) -> str:
    """Which stock family a DeciLM config amounts to."""
    rotation = config.get("position_embedding_type")
    if rotation in _OTHER_ROTATIONS:
        raise ValueError(f"position_embedding_type {rotation!r} is not supported: heads are rotated otherwise")
    _check_act(config.get("hidden_act", "silu"))
    for layer, block in enumerate(config.get("block_configs") or ()):
        act = block["ffn"].get("hidden_act")
        if act is not None and act not in _SILU:
            raise ValueError(f"layer {layer}: hidden_act {act!r} is not silu")
    output = _output_bias(config)
    if bool(config.get("qkv_bias", output)) == output:
        return "llama"
    if output or config.get("mlp_bias"):
        raise ValueError("qkv_bias, attention_bias and mlp_bias are set as in no family that is supported")
    return "qwen2"


def _output_bias(config: Mapping[str, Any]) -> bool:
    return bool(config.get("attention_bias") or config.get("bias"))


def _check_act(act: Any) -> None:
    if act not in _SILU:
        raise ValueError(f"hidden_act is {act!r}, and decilm has silu")


def _apart(
    name: str, fused: str, names: tuple[str, ...], tensor: Tensor, sizes: tuple[int, ...]
) -> Iterator[tuple[str, Tensor]]:
    import torch

    for own, part in zip(names, torch.split(tensor, list(sizes)), strict=True):
        yield name.replace(fused, own), part.clone()
