"""Causal LMs whose layers differ from each other: the stock models of transformers with other modules in their layers.

Embeddings, RoPE, masks, multipliers and the forward of every family stay transformers' own. What differs is stated in
`per_layer_config` of the config: per layer, `num_key_value_heads`, `intermediate_size` and `sliding_window` in place of
the model's, `skip` (no attention, no mlp, and none of their norms) and `linear` (one hidden x hidden matrix instead).

This file is copied into every checkpoint, so it imports torch and transformers only and knows no other file. Legend:
B sequences, T tokens of this call, K keys (cached ones included), H hidden size.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn

CLASSES = {
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "llama": "LlamaForCausalLM",
    "ministral": "MinistralForCausalLM",
    "mistral": "MistralForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
"""The stock class of every supported model_type; ours are called Heterogeneous<stock class>."""

MODULES = {"attention": "self_attn", "ffn": "mlp"}
"""The sub-module of a decoder layer that is the sub-block of a part."""

_SKIPPED = {"attention": "attention", "ffn": "mlp"}  # how `skip` and `linear` call a part
_OWN_SIZES = {"attention": ("num_key_value_heads", "sliding_window"), "ffn": ("intermediate_size",)}
_WINDOWLESS = ("gemma", "granite", "llama", "olmo2")  # their attention passes no window to the kernel


class LayerConfig:
    """A config that answers some names itself and asks the model's own config for all others, at every question.

    So what is set on the model's config later (the attention implementation) holds in every layer. It also answers
    where the config refuses because layers differ: then with the value for the whole model.
    """

    def __init__(self, config: Any, overrides: Mapping[str, Any]) -> None:
        self.__dict__.update(_config=config, _overrides=dict(overrides))

    def __getattr__(self, name: str) -> Any:
        if name in ("_config", "_overrides") or name.startswith("__"):  # not there yet while copied
            raise AttributeError(name)
        if name in self._overrides:
            return self._overrides[name]
        return object.__getattribute__(self._config, type(self._config).attribute_map.get(name, name))

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._config, name, value)

    def get_text_config(self, **_: Any) -> LayerConfig:
        """Itself: there is no other modality."""
        return self

    @property
    def per_layer_config(self) -> list[LayerConfig]:
        """What caches are made from: every layer as the whole model is."""
        return _ByLayer([self] * self.num_hidden_layers)


class _ByLayer(list[LayerConfig]):
    """Layers by number or, as scaled RoPE asks for them, by type."""

    def __getitem__(self, place: Any) -> Any:
        return super().__getitem__(0 if isinstance(place, str) else place)


class _Counted(nn.Module):
    """In place of attention. Its cached key and value of one number per token let transformers count the tokens."""

    def __init__(self, replaced: nn.Module, layer_idx: int | None) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.is_sliding = getattr(replaced, "is_sliding", False)  # older Gemma 3 layers choose their RoPE by it

    def count(self, hidden_states: Tensor, kwargs: Mapping[str, Any]) -> None:
        """Tell the cache of this call, if there is one, how many tokens there are."""
        cache = _cache(kwargs)
        if cache is not None and self.layer_idx is not None:
            tokens = hidden_states.new_ones((hidden_states.shape[0], 1, hidden_states.shape[1], 1))
            cache.update(tokens, tokens, self.layer_idx, {"cache_position": kwargs.get("cache_position")})


class LinearAttention(_Counted):
    """One matrix in place of attention, [B, T, H] to the same."""

    def __init__(self, replaced: nn.Module, hidden_size: int, layer_idx: int | None) -> None:
        super().__init__(replaced, layer_idx)
        self.linear_attn = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        """The product, and None for the attention weights."""
        self.count(hidden_states, kwargs)
        return self.linear_attn(hidden_states), None


class LinearMLP(nn.Module):
    """One matrix in place of the MLP, [B, T, H] to the same."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear_mlp = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The product."""
        out: Tensor = self.linear_mlp(hidden_states)
        return out


class NoOpAttention(_Counted):
    """No attention: a zero without dimensions, which the residual stream does not notice.

    `layer_idx` None is for a layer that is not whole: its other half tells the cache.
    """

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        """Zero, and None for the attention weights."""
        self.count(hidden_states, kwargs)
        return hidden_states.new_zeros(()), None


class NoOpMLP(nn.Module):
    """No MLP: a zero without dimensions."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Zero."""
        return hidden_states.new_zeros(())


def half_norms(layer: nn.Module, part: str) -> tuple[str, ...]:
    """Names of the norms that belong to the attention or the ffn half of a decoder layer."""
    attention, ffn = ["input_layernorm"], ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    (attention if hasattr(layer, "post_feedforward_layernorm") else ffn).append("post_attention_layernorm")
    return tuple(name for name in (attention if part == "attention" else ffn) if hasattr(layer, name))


def take_half(layer: nn.Module, part: str) -> nn.Module:
    """The attention or the ffn half of a decoder layer, called like the layer; it shares the layer's modules.

    The other half is a no-op without norms, so attention half and then ffn half are the layer. The copy has none of
    the layer's hooks, and a key-value cache is filled by the attention half only.
    """
    half = copy.copy(layer)
    half._modules = dict(layer._modules)
    for name, value in layer.__dict__.items():
        if "_hooks" in name and isinstance(value, dict):
            half.__dict__[name] = type(value)()
    make_no_op(half, "ffn" if part == "attention" else "attention", None)
    return half


def make_no_op(layer: nn.Module, part: str, layer_idx: int | None) -> None:
    """Replace a part by a no-op, and its norms by identities."""
    old = layer.get_submodule(MODULES[part])
    setattr(layer, MODULES[part], NoOpAttention(old, layer_idx) if part == "attention" else NoOpMLP())
    for name in half_norms(layer, part):
        setattr(layer, name, nn.Identity())


def make_linear(layer: nn.Module, part: str, hidden_size: int, layer_idx: int) -> None:
    """Replace a part by a fresh matrix on the default device; its norms stay."""
    old = layer.get_submodule(MODULES[part])
    new = LinearAttention(old, hidden_size, layer_idx) if part == "attention" else LinearMLP(hidden_size)
    setattr(layer, MODULES[part], new)


def make_own(layer: nn.Module, part: str, config: LayerConfig, layer_idx: int) -> None:
    """Replace a part by a fresh one of the family, of the sizes in `config`; its norms stay."""
    family: Any = type(layer.get_submodule(MODULES[part]))
    new = family(config, layer_idx) if part == "attention" else family(config)
    if part == "attention" and (window := config._overrides.get("sliding_window")) is not None:
        if hasattr(new, "sliding_window"):
            new.sliding_window = window
        new.register_forward_pre_hook(functools.partial(_narrow_mask, window=window), with_kwargs=True)
    setattr(layer, MODULES[part], new)


def layer_overrides(config: Any) -> dict[int, dict[str, Any]]:
    """What `per_layer_config` of a config states, by layer number; every version of transformers keeps it its own way.

    Raises:
        ValueError: something in it is not known here or does not fit the model; the message names the layer.
    """
    stated = config.to_dict().get("per_layer_config") or {}
    overrides = {int(layer_idx): dict(values) for layer_idx, values in stated.items()}
    for layer_idx, values in overrides.items():
        try:
            _check_overrides(LayerConfig(config, {}), layer_idx, values)
        except ValueError as error:
            raise ValueError(f"per_layer_config of layer {layer_idx}: {error}") from None
    return overrides


def _check_overrides(config: LayerConfig, layer_idx: int, values: Mapping[str, Any]) -> None:
    if layer_idx >= config.num_hidden_layers:
        raise ValueError(f"layers are numbered 0 to {config.num_hidden_layers - 1}")
    known = ("skip", "linear", *_OWN_SIZES["attention"], *_OWN_SIZES["ffn"])
    for key in values:
        if key not in known:
            raise ValueError(f"{key!r} is not known; known are {', '.join(known)}")
    for key in ("skip", "linear"):
        for name in values.get(key, ()):
            if name not in _SKIPPED.values():
                raise ValueError(f"{key} names {name!r}; known are {', '.join(_SKIPPED.values())}")
    heads, own_heads = config.num_attention_heads, values.get("num_key_value_heads", 1)
    if own_heads < 1 or heads % own_heads:
        raise ValueError(f"{own_heads} key-value heads do not divide {heads} attention heads")
    if "sliding_window" in values:
        window, widest = values["sliding_window"], getattr(config, "sliding_window", None)
        if widest is not None and (window is None or window > widest):
            raise ValueError(f"a window of {window or 'all'} tokens is wider than the model's {widest}")
        types = getattr(config, "layer_types", None)
        if types is not None and types[layer_idx] != "sliding_attention":
            raise ValueError(f"layer_types says {types[layer_idx]}, so a window of {window} has no effect")


class _Heterogeneous:
    """What our classes add to the stock ones, whose subclasses they are."""

    def __init__(self, config: Any) -> None:
        overrides = layer_overrides(config)
        if not overrides:
            super().__init__(config)  # type: ignore[call-arg]
            return
        config.per_layer_config = None  # the stock constructor reads sizes that a config with overrides withholds
        try:
            super().__init__(config)  # type: ignore[call-arg]
        finally:
            config.per_layer_config = overrides
        _replace(self, overrides)
        self.init_weights()  # type: ignore[attr-defined]

    def create_masks_for_generate(self, **kwargs: Any) -> Any:
        """The masks that generation with a static cache makes in advance: those for the whole model."""
        kwargs["config"] = self.model.config  # type: ignore[attr-defined]
        return transformers.masking_utils.create_masks_for_generate(**kwargs)

    def _get_static_cache_init_shape(self) -> None:
        """Layers without attention cache another shape, so a static cache has to take its shapes from what it gets."""


def _replace(model: Any, overrides: Mapping[int, Mapping[str, Any]]) -> None:
    config, whole = model.config, LayerConfig(model.config, {})
    for module in model.modules():
        if module is not model and module.__dict__.get("config") is config:
            module.config = whole
    for layer_idx, values in overrides.items():
        layer, own = model.model.layers[layer_idx], LayerConfig(config, values)
        for part, name in _SKIPPED.items():
            if name in values.get("skip", ()):
                make_no_op(layer, part, layer_idx)
            elif name in values.get("linear", ()):
                make_linear(layer, part, config.hidden_size, layer_idx)
            elif any(size in values for size in _OWN_SIZES[part]):
                make_own(layer, part, own, layer_idx)
    if any("sliding_window" in values for values in overrides.values()):
        model.model.register_forward_pre_hook(_one_cache_per_kind, with_kwargs=True)


def _cache(kwargs: Mapping[str, Any]) -> Any:
    cache = kwargs.get("cache")
    return kwargs.get("past_key_values") if cache is None else cache


def _one_cache_per_kind(model: Any, _args: Any, kwargs: dict[str, Any]) -> None:
    """Let an empty cache hold the model's window in every sliding layer, however narrow the layer's own.

    transformers sizes the mask of all sliding layers by the first one's cache, and `_narrow_mask` narrows that mask.
    """
    cache = _cache(kwargs)
    if cache is None:
        return
    if getattr(cache, "is_compileable", False):
        raise ValueError("layers with windows of their own need a dynamic cache (a DynamicCache), not a static one")
    if type(cache) is transformers.DynamicCache and cache.layers and not cache.get_seq_length():
        cache.layers[:] = transformers.DynamicCache(config=model.config).layers


def _narrow_mask(attention: Any, args: Any, kwargs: dict[str, Any], *, window: int) -> tuple[Any, dict[str, Any]]:
    """Before an attention with a window of its own: take the keys that are too old out of the mask it is given."""
    hidden, mask = kwargs["hidden_states"], kwargs["attention_mask"]
    if attention.config.model_type in _WINDOWLESS:
        kwargs["sliding_window"] = window  # kernels that are given no mask go by it
    implementation = attention.config._attn_implementation or "eager"
    if "flash" in implementation:
        return args, kwargs
    if mask is not None and not isinstance(mask, Tensor):
        raise ValueError(f"a window of layer {attention.layer_idx} alone is not possible with {implementation}")
    tokens = hidden.shape[1]
    keys = _keys(_cache(kwargs), attention.layer_idx, tokens) if mask is None else mask.shape[-1]
    places = torch.arange(keys, device=hidden.device)
    age = places[keys - tokens :, None] - places
    seen = age < window  # [T, K]
    if mask is None:
        seen = (seen & (age >= 0))[None, None]
        mask = seen if implementation == "sdpa" else _additive(seen, hidden.dtype)
    elif mask.dtype == torch.bool:
        mask = mask & seen
    else:
        mask = mask.masked_fill(~seen, torch.finfo(mask.dtype).min)
    return args, {**kwargs, "attention_mask": mask}


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def _keys(cache: Any, layer_idx: int, tokens: int) -> int:
    """How many keys the layer's attention will see."""
    if cache is None:
        return tokens
    past: int = cache.get_seq_length(layer_idx)
    window = getattr(cache.layers[layer_idx], "sliding_window", None) if layer_idx < len(cache.layers) else None
    return tokens + (past if window is None else min(past, window - 1))


@functools.cache
def heterogeneous_class(model_type: str) -> Any:
    """Our class for a model_type in `CLASSES`; of a config without per_layer_config it makes the stock model."""
    stock = getattr(transformers, CLASSES[model_type])
    return type(f"Heterogeneous{stock.__name__}", (_Heterogeneous, stock), {"__module__": __name__})


def __getattr__(name: str) -> Any:
    """The classes by name, each made when it is asked for: importing a family takes time."""
    for model_type, stock in CLASSES.items():
        if name == f"Heterogeneous{stock}":
            return heterogeneous_class(model_type)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
