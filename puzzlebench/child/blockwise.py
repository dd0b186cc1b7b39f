"""A causal LM taken apart: its layers are run one by one, on activations that somebody keeps between the calls.

What a layer needs besides hidden states (rotary embeddings, masks, positions) is recorded from the model's own forward,
and embedding and head run through that same forward around an emptied layer list, so scaled embeddings, multipliers
and soft caps of a family need no code here. Knows full sequences of one length only: no padding and no cache. Not
thread-safe: for the length of a call the model's layer list is another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from puzzlebench.model.checks import require_positive_int


@dataclass(frozen=True, kw_only=True, slots=True)
class _LayerCall:
    """What the model passes to one decoder layer, hidden states aside."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Reached(Exception):  # noqa: N818, a signal and no error
    """Stops a forward once the hidden states in it are what was wanted."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def open_blockwise(model: nn.Module, length: int) -> Blockwise:
    """Record what the model's layers are called with, in one forward over one sequence of `length` tokens.

    Args:
        model: a transformers causal LM with `model.layers` and `model.norm`. It is neither copied nor changed.
        length: tokens of every sequence to come.

    Raises:
        ValueError: the model is not such a one, or has more positions than `length` allows.
    """
    require_positive_int("length", length)
    decoder = _decoder(model)
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise ValueError(f"length {length} is more than the {positions} positions of {type(model).__name__}")
    calls: dict[int, _LayerCall] = {}

    def record(layer_idx: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        others = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        calls[layer_idx] = _LayerCall(args=args[1:], kwargs=others)

    hooks = [
        layer.register_forward_pre_hook(
            lambda _module, args, kwargs, layer_idx=layer_idx: record(layer_idx, args, kwargs), with_kwargs=True
        )
        for layer_idx, layer in enumerate(decoder.layers)
    ]
    ids = torch.zeros(1, length, dtype=torch.long, device=_device(model))
    try:
        # Tensors made in inference mode cannot be saved for a backward pass, so the caller's mode is left for a moment.
        with torch.inference_mode(mode=False), torch.no_grad():
            decoder(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return Blockwise(model, length, tuple(calls[layer_idx] for layer_idx in range(len(decoder.layers))))


class Blockwise:
    """Embedding, layers and head of one model, each on its own; made by `open_blockwise`.

    `embed`, `run` for every layer, then `logits` give exactly what the model gives. All three keep to the caller's
    autograd mode. B sequences of T tokens (`length`), H hidden_size, V vocab_size.
    """

    def __init__(self, model: nn.Module, length: int, calls: tuple[_LayerCall, ...]) -> None:
        self.model = model
        self.length = length
        self._decoder = _decoder(model)
        self._layers = cast("nn.ModuleList", self._decoder.layers)
        self._calls = calls

    @property
    def layers(self) -> nn.ModuleList:
        """The model's own decoder layers, first layer first."""
        return self._layers

    @property
    def num_layers(self) -> int:
        """How many layers the model has."""
        return len(self._layers)

    def embed(self, ids: Tensor) -> Tensor:
        """What layer 0 receives for these tokens: [B, T] int64 to [B, T, H].

        Raises:
            ValueError: the sequences are of another length.
        """
        if ids.ndim != 2:
            raise ValueError(f"token ids must be [B, T], not of shape {list(ids.shape)}")
        self._check_length(ids)

        def stop(_module: nn.Module, args: tuple[Any, ...]) -> None:
            raise _Reached(args[0])

        try:
            with self._without_layers(stop):
                self._decoder(input_ids=ids, use_cache=False)
        except _Reached as reached:
            return reached.hidden
        raise AssertionError("the forward ended before the final norm")

    def run(self, layer_idx: int, module: nn.Module, hidden: Tensor) -> Tensor:
        """What `module` makes of hidden states when called as the model calls layer `layer_idx`: [B, T, H] to the same.

        Args:
            module: that layer, a half of it, or anything that takes the same arguments.

        Raises:
            ValueError: the sequences are of another length.
        """
        self._check_length(hidden)
        call = self._calls[layer_idx]
        output = module(hidden, *call.args, **call.kwargs)
        return cast("Tensor", output[0] if isinstance(output, tuple) else output)

    def run_own(self, hidden: Tensor, first: int, stop: int) -> Tensor:
        """Through the model's own layers `first` to `stop` - 1: [B, T, H] to the same."""
        for layer_idx in range(first, stop):
            hidden = self.run(layer_idx, self._layers[layer_idx], hidden)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm, head and what the family does to logits: [B, N, H] of any N positions to [B, N, V]."""

        def inject(_module: nn.Module, _args: tuple[Any, ...]) -> tuple[Tensor]:
            return (hidden,)

        with self._without_layers(inject):
            # The embeddings are not used but set shape and dtype; looking tokens up would cost more.
            output = self.model(inputs_embeds=hidden.detach(), use_cache=False)
        return cast("Tensor", output.logits)

    def _check_length(self, states: Tensor) -> None:
        if states.shape[1] != self.length:
            raise ValueError(
                f"sequences of {states.shape[1]} tokens do not fit arguments recorded for {self.length}; "
                "open the model for that length"
            )

    @contextmanager
    def _without_layers(self, at_norm: Any) -> Iterator[None]:
        """The model without its layers, and a pre-hook on the final norm."""
        hook = self._decoder.norm.register_forward_pre_hook(at_norm)
        self._decoder.layers = nn.ModuleList()
        try:
            yield
        finally:
            self._decoder.layers = self._layers
            hook.remove()


def _decoder(model: nn.Module) -> Any:
    decoder = getattr(model, "model", None)
    if not isinstance(getattr(decoder, "layers", None), nn.ModuleList) or not isinstance(
        getattr(decoder, "norm", None), nn.Module
    ):
        raise ValueError(
            f"{type(model).__name__} has no model.layers and model.norm; use a transformers causal LM such as "
            "LlamaForCausalLM"
        )
    return decoder


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
