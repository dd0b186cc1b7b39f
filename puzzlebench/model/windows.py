"""Sliding windows per layer, as each family's config implies them. Knows configs with defaults filled in, no shapes."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from puzzlebench.model.checks import require_positive_int

_SLIDING = "sliding_attention"
_FULL = ("full_attention", "attention")  # the second is what older configs say


def sliding_windows(
    model_type: str, config: Mapping[str, Any], rule: Literal["none", "uniform", "layer_types"]
) -> tuple[int | None, ...]:
    """One window (tokens) or None per layer.

    "none" families attend to everything, whatever the config says; "uniform" ones use sliding_window in every layer;
    "layer_types" ones in the layers that layer_types, or the family's own pattern without it, calls sliding.
    """
    layers: int = config["num_hidden_layers"]
    window: int | None = config.get("sliding_window")
    if rule == "none" or window is None or not config.get("use_sliding_window", True):
        return (None,) * layers
    require_positive_int("sliding_window", window)
    if rule == "uniform":
        return (window,) * layers
    sliding = sliding_layers(model_type, config)
    return tuple(window if is_sliding else None for is_sliding in sliding)


def sliding_layers(model_type: str, config: Mapping[str, Any]) -> tuple[bool, ...]:
    """Which layers are sliding ones, by layer_types or by the pattern of the family."""
    layers: int = config["num_hidden_layers"]
    layer_types = config.get("layer_types")
    if layer_types is None:
        return tuple(_PATTERNS[model_type](config, layer) for layer in range(layers))
    if not isinstance(layer_types, list | tuple) or len(layer_types) != layers:
        raise ValueError(f"layer_types must list {layers} layers (num_hidden_layers), not {layer_types!r}")
    for layer, layer_type in enumerate(layer_types):
        if layer_type != _SLIDING and layer_type not in _FULL:
            raise ValueError(f"layer {layer} has layer_type {layer_type!r}; supported: {', '.join((_SLIDING, *_FULL))}")
    return tuple(layer_type == _SLIDING for layer_type in layer_types)


def _qwen(config: Mapping[str, Any], layer: int) -> bool:
    return bool(layer >= config["max_window_layers"])


def _gemma3(config: Mapping[str, Any], layer: int) -> bool:
    pattern = config.get("sliding_window_pattern", 6)
    require_positive_int("sliding_window_pattern", pattern)
    return bool((layer + 1) % pattern)


def _smollm3(config: Mapping[str, Any], layer: int) -> bool:
    no_rope_layers = config.get("no_rope_layers")  # 1 where the layer does use RoPE
    if no_rope_layers is None:
        return bool((layer + 1) % config["no_rope_layer_interval"] == 0)
    if not isinstance(no_rope_layers, list | tuple) or len(no_rope_layers) <= layer:
        raise ValueError(f"no_rope_layers must list every layer, but has none for layer {layer}: {no_rope_layers!r}")
    return not no_rope_layers[layer]


_PATTERNS: dict[str, Callable[[Mapping[str, Any], int], bool]] = {
    "ministral": lambda _config, _layer: True,
    "qwen2": _qwen,
    "qwen3": _qwen,
    "gemma2": lambda _config, layer: layer % 2 == 0,
    "gemma3_text": _gemma3,
    "smollm3": _smollm3,
}
