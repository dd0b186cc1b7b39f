"""The formats in which a config.json states layers that differ from each other.

Three are read: `block_configs` (DeciLM, model_type nemotron-nas), `num_key_value_heads_per_layer` (the first DeciLM)
and `per_layer_config` (transformers; `linear`, which names sub-blocks as its `skip` does, is what our children add).
Knows configs with defaults filled in; a setting it cannot honour is an error.
"""

from collections.abc import Mapping
from typing import Any, NoReturn

from puzzlebench.model.blocks import (
    GQA,
    Architecture,
    AttentionSubBlock,
    Block,
    FFNSubBlock,
    GatedMLP,
    Linear,
    NoOp,
)
from puzzlebench.model.checks import require_positive_int
from puzzlebench.model.families import FAMILIES
from puzzlebench.model.windows import sliding_layers

_LAYOUT_KEYS = ("block_configs", "num_key_value_heads_per_layer", "per_layer_config")
_PARTS = {"attention": "attention", "self_attn": "attention", "mlp": "ffn", "ffn": "ffn"}
_ATTENTION_KEYS = {"no_op", "replace_with_linear", "n_heads_in_group", "num_key_value_heads", "window_length"}
_FFN_KEYS = {"no_op", "replace_with_linear", "ffn_mult", "intermediate_size"}
# Stated by real configs, without effect on the shapes: flags for sinks that are refused when there are any.
_IDLE_KEYS = {"unshifted_sink", "use_prefill_window_in_sink_attention", "hidden_act", "gated"}
_IDLE_OVERRIDES = ("rope", "partial_rotary", "attention_dropout", "initializer_range", "rms_norm_eps")
DECILM_WIDTH_MULTIPLE = 256


def has_layout(config: Mapping[str, Any]) -> bool:
    """Whether the config states its layers one by one."""
    return any(config.get(key) for key in _LAYOUT_KEYS)


def architecture_from_layout(
    model_type: str, config: Mapping[str, Any], windows: tuple[int | None, ...]
) -> Architecture:
    """The architecture that the config states layer by layer.

    Args:
        model_type: the family whose rules say where a per-layer window counts.
        config: with defaults filled in; num_key_value_heads is a number.
        windows: per layer, the window it has if it does not state its own.

    Raises:
        ValueError: a layer is missing, or states something that has no sub-block here; the message names the layer.
    """
    if config.get("block_configs"):
        blocks = tuple(_decilm_block(config, layer, block) for layer, block in enumerate(_block_configs(config)))
    elif config.get("num_key_value_heads_per_layer"):
        ffn = GatedMLP(intermediate_size=config["intermediate_size"])
        blocks = tuple(Block(attention=GQA(num_key_value_heads=heads), ffn=ffn) for heads in _heads_per_layer(config))
    else:
        overrides = _overrides(config)
        blocks = tuple(
            _overridden_block(model_type, config, layer, window, overrides.get(layer, {}))
            for layer, window in enumerate(windows)
        )
    return Architecture(blocks=blocks)


def largest_sizes(architecture: Architecture) -> dict[str, int]:
    """num_key_value_heads and intermediate_size of the largest layer; a key is absent where no layer has one."""
    heads = [block.attention.num_key_value_heads for block in architecture.blocks if isinstance(block.attention, GQA)]
    widths = [block.ffn.intermediate_size for block in architecture.blocks if isinstance(block.ffn, GatedMLP)]
    sizes = {"num_key_value_heads": max(heads, default=0), "intermediate_size": max(widths, default=0)}
    return {key: size for key, size in sizes.items() if size}


def decilm_intermediate_size(ffn_mult: float, hidden_size: int) -> int:
    """The MLP width DeciLM derives from its multiplier: 2/3 of it times hidden_size, rounded up to 256s."""
    width = int(2 * ffn_mult * hidden_size / 3)
    return -(-width // DECILM_WIDTH_MULTIPLE) * DECILM_WIDTH_MULTIPLE


def _block_configs(config: Mapping[str, Any]) -> list[Any]:
    blocks, layers = config["block_configs"], config["num_hidden_layers"]
    if not isinstance(blocks, list) or len(blocks) != layers:
        found = f"{len(blocks)} entries" if isinstance(blocks, list) else type(blocks).__name__
        raise ValueError(f"block_configs must list {layers} layers (num_hidden_layers), not {found}")
    return blocks


def _decilm_block(config: Mapping[str, Any], layer: int, block: Any) -> Block:
    if not isinstance(block, Mapping) or not all(isinstance(block.get(part), Mapping) for part in ("attention", "ffn")):
        raise ValueError(f"layer {layer}: a block config is an object with 'attention' and 'ffn', not {block!r}")
    return Block(
        attention=_decilm_attention(config, layer, block["attention"]), ffn=_decilm_ffn(config, layer, block["ffn"])
    )


def _decilm_attention(config: Mapping[str, Any], layer: int, settings: Mapping[str, Any]) -> AttentionSubBlock:
    _refuse_unknown(layer, "attention", settings, _ATTENTION_KEYS)
    if settings.get("no_op"):
        return NoOp()
    if settings.get("replace_with_linear"):
        return Linear()
    heads, window = settings.get("num_key_value_heads"), settings.get("window_length")
    if heads is None:
        group = settings.get("n_heads_in_group")
        if group is None:
            raise ValueError(f"layer {layer}: attention states neither n_heads_in_group, no_op nor replace_with_linear")
        require_positive_int(f"layer {layer}: n_heads_in_group", group)
        if config["num_attention_heads"] % group:
            raise ValueError(
                f"layer {layer}: n_heads_in_group {group} does not divide num_attention_heads "
                f"{config['num_attention_heads']}"
            )
        heads = config["num_attention_heads"] // group
    return GQA(num_key_value_heads=heads, sliding_window=window)


def _decilm_ffn(config: Mapping[str, Any], layer: int, settings: Mapping[str, Any]) -> FFNSubBlock:
    _refuse_unknown(layer, "ffn", settings, _FFN_KEYS)
    if settings.get("no_op"):
        return NoOp()
    if settings.get("replace_with_linear"):
        return Linear()
    if settings.get("intermediate_size") is not None:
        return GatedMLP(intermediate_size=settings["intermediate_size"])
    multiplier = settings.get("ffn_mult")
    if isinstance(multiplier, bool) or not isinstance(multiplier, int | float) or multiplier <= 0:
        raise ValueError(f"layer {layer}: ffn_mult must be a positive number, not {multiplier!r}")
    return GatedMLP(intermediate_size=decilm_intermediate_size(multiplier, config["hidden_size"]))


def _refuse_unknown(layer: int, part: str, settings: Mapping[str, Any], known: set[str]) -> None:
    """A setting that is unknown and switched on would change the layer, so it is not passed over."""
    for key, value in settings.items():
        if key not in known and key not in _IDLE_KEYS and value:
            raise ValueError(f"layer {layer}: {part} sets {key} to {value!r}, which is not supported")
    if settings.get("gated") is False and not (settings.get("no_op") or settings.get("replace_with_linear")):
        raise ValueError(f"layer {layer}: {part} is not gated; only gated MLPs are supported")


def _heads_per_layer(config: Mapping[str, Any]) -> list[int]:
    heads, layers = config["num_key_value_heads_per_layer"], config["num_hidden_layers"]
    if not isinstance(heads, list) or len(heads) != layers:
        raise ValueError(f"num_key_value_heads_per_layer must list {layers} layers (num_hidden_layers), not {heads!r}")
    for layer, count in enumerate(heads):
        require_positive_int(f"num_key_value_heads of layer {layer}", count)
    return heads


def _overrides(config: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    stated, layers = config["per_layer_config"], config["num_hidden_layers"]
    if not isinstance(stated, Mapping):
        raise ValueError(f"per_layer_config must map layer numbers to overrides, not {type(stated).__name__}")
    overrides: dict[int, Mapping[str, Any]] = {}
    for key, override in stated.items():
        if not str(key).isdecimal() or int(key) >= layers:
            raise ValueError(f"per_layer_config has key {key!r}; layers are numbered 0 to {layers - 1}")
        if not isinstance(override, Mapping):
            raise ValueError(f"per_layer_config of layer {key} must be an object, not {override!r}")
        overrides[int(key)] = override
    return overrides


def _overridden_block(
    model_type: str, config: Mapping[str, Any], layer: int, window: int | None, override: Mapping[str, Any]
) -> Block:
    """One layer: the model's own values with the layer's overrides."""
    skipped, linear = (_named_parts(layer, key, override.get(key, ())) for key in ("skip", "linear"))
    if both := skipped & linear:
        raise ValueError(f"per_layer_config of layer {layer} names {both.pop()} in skip and in linear; use one")
    heads, width = config["num_key_value_heads"], config["intermediate_size"]
    for key, value in override.items():
        match key:
            case "skip" | "linear":
                pass
            case "num_key_value_heads":
                heads = value
            case "intermediate_size":
                width = value
            case "sliding_window":
                rule = FAMILIES[model_type].windows
                if rule != "layer_types" or sliding_layers(model_type, config)[layer]:
                    window = value
            case _ if not key.startswith(_IDLE_OVERRIDES) and value != config.get(key):
                _refuse_override(layer, key, value)
    attention: AttentionSubBlock = GQA(num_key_value_heads=heads, sliding_window=window)
    ffn: FFNSubBlock = GatedMLP(intermediate_size=width)
    for parts, sub in ((skipped, NoOp()), (linear, Linear())):
        attention = sub if "attention" in parts else attention
        ffn = sub if "ffn" in parts else ffn
    return Block(attention=attention, ffn=ffn)


def _named_parts(layer: int, key: str, names: Any) -> set[str]:
    if isinstance(names, str) or not isinstance(names, list | tuple | set):
        raise ValueError(f"per_layer_config of layer {layer}: {key} must be a list of names, not {names!r}")
    for name in names:
        if name not in _PARTS:
            raise ValueError(f"per_layer_config of layer {layer}: {key} names {name!r}; known are {', '.join(_PARTS)}")
    return {_PARTS[name] for name in names}


def _refuse_override(layer: int, key: str, value: Any) -> NoReturn:
    raise ValueError(
        f"per_layer_config of layer {layer} sets {key} to {value!r}, which is not supported; supported are "
        "num_key_value_heads, intermediate_size, sliding_window, skip and linear"
    )
