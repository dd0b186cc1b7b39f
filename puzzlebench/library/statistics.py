"""What a parent's layers do on calibration tokens: sums gathered for all layers in one pass, no activation kept.

Knows which sums exist and what they cost in memory; which ones an initialisation needs is said in `initialise`.

Shapes: B sequences of T tokens, H hidden_size, I intermediate_size. Inputs and outputs are those of the modules
`self_attn` and `mlp`: behind the norm before a sub-block and before the norm behind it, whichever the family has.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn

from puzzlebench.library.projections import attention_projections, mlp_projections
from puzzlebench.model.blocks import GQA, Architecture, GatedMLP
from puzzlebench.model.spec import ModelSpec

Need: TypeAlias = Literal[
    "channel_contribution", "channel_second_moment", "kv_head_contribution", "attention_equations", "ffn_equations"
]
"""The fields of `LayerStatistics` that can be asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NormalEquations:
    """What decides the best linear map from inputs X [tokens, H] to outputs Y [tokens, H]; float32, no intercept."""

    xtx: Tensor  # [H, H]
    xty: Tensor  # [H, H]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerStatistics:
    """Statistics of one layer; None where they were not asked for.

    Attributes:
        tokens: how many tokens they are of.
        channel_contribution: [I] float64, per channel mean |X_i| * ||W_down[:, i]||_2 with X = act(gate) * up, the
            input of the down projection (arXiv 2411.19146, Channel Contribution).
        channel_second_moment: [I, I] float32, X^T X summed over the tokens.
        kv_head_contribution: [kv heads] float64, mean over tokens of the 2-norm of what the query heads of one
            key-value head together add to the output of the attention, its bias aside.
        attention_equations: from the input of the attention to its output.
        ffn_equations: from the input of the MLP to its output.
    """

    tokens: int
    channel_contribution: Tensor | None = None
    channel_second_moment: Tensor | None = None
    kv_head_contribution: Tensor | None = None
    attention_equations: NormalEquations | None = None
    ffn_equations: NormalEquations | None = None


def collect_statistics(
    model: nn.Module, batches: Iterable[Tensor], needs: Mapping[int, Collection[Need]]
) -> dict[int, LayerStatistics]:
    """The statistics asked for, by layer index, in one pass of the model over the batches.

    They stay on the device of their layer and take `statistics_bytes`. Beyond them a pass needs one layer's
    activations of one batch in float32.

    Args:
        model: a transformers causal LM with `model.layers`, in eval mode.
        batches: token ids [B, T], full sequences without padding; T may differ.
        needs: what to gather, by layer index. channel_second_moment takes 4 * I * I bytes per layer, 784 MiB for the
            14336 channels of Llama 3.1 8B, so ask for it layer by layer where memory is short.

    Raises:
        ValueError: a layer or a need is unknown, the layer has no such sub-block, the model is in training mode, or
            there are no tokens.
    """
    decoder: Any = getattr(model, "model", None)
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(f"{type(model).__name__} has no model.layers; use a transformers causal LM")
    if model.training:
        raise ValueError("the model is in training mode, where dropout would enter the statistics; call model.eval()")
    _check_needs(needs, len(layers))
    sums = {layer_idx: _LayerSums(layers[layer_idx], wanted) for layer_idx, wanted in needs.items()}
    device = next(model.parameters()).device
    tokens = 0
    with torch.no_grad(), ExitStack() as watched:
        for layer_sums in sums.values():
            watched.enter_context(layer_sums.watch())
        for ids in batches:
            decoder(input_ids=ids.to(device), use_cache=False)
            tokens += ids.numel()
    if not tokens:
        raise ValueError("there are no calibration tokens; give at least one batch of token ids [B, T]")
    return {layer_idx: layer_sums.result(tokens) for layer_idx, layer_sums in sums.items()}


def statistics_bytes(spec: ModelSpec, architecture: Architecture, needs: Mapping[int, Collection[Need]]) -> int:
    """Bytes that `collect_statistics` keeps for these needs; they do not grow with the tokens.

    Raises:
        ValueError: a layer or a need is unknown, or the architecture has no such sub-block there.
    """
    _check_needs(needs, len(architecture.blocks))
    total = 0
    for layer_idx, wanted in needs.items():
        block = architecture.blocks[layer_idx]
        for need in set(wanted):
            if need in ("kv_head_contribution", "attention_equations"):
                if not isinstance(block.attention, GQA):
                    raise ValueError(f"layer {layer_idx} has no attention to take {need} of")
                size = 8 * block.attention.num_key_value_heads
            else:
                if not isinstance(block.ffn, GatedMLP):
                    raise ValueError(f"layer {layer_idx} has no MLP to take {need} of")
                width = block.ffn.intermediate_size
                size = 8 * width if need == "channel_contribution" else 4 * width**2
            total += 8 * spec.hidden_size**2 if need.endswith("_equations") else size
    return total


class _LayerSums:
    """The sums of one layer while they grow. Sums of vectors are float64; matrices are float32, for their size."""

    def __init__(self, layer: nn.Module, needs: Collection[Need]) -> None:
        self._layer = layer
        self._needs = frozenset(needs)
        self._sums: dict[str, Tensor] = {}
        if self._needs & {"kv_head_contribution", "attention_equations"}:
            attention = attention_projections(layer)
            self._kv_heads, hidden = attention.num_key_value_heads, attention.o.shape[0]
            self._zeros("kv_head_contribution", (self._kv_heads,), torch.float64, attention.o)
            self._equations("attention_equations", hidden, attention.o)
        if self._needs & {"channel_contribution", "channel_second_moment", "ffn_equations"}:
            mlp = mlp_projections(layer)
            hidden, width = mlp.down.shape
            self._zeros("channel_contribution", (width,), torch.float64, mlp.down)
            self._zeros("channel_second_moment", (width, width), torch.float32, mlp.down)
            self._equations("ffn_equations", hidden, mlp.down)

    def _zeros(self, need: Need, shape: tuple[int, ...], dtype: torch.dtype, like: Tensor) -> None:
        if need in self._needs:
            self._sums[need] = torch.zeros(shape, dtype=dtype, device=like.device)

    def _equations(self, need: Need, hidden: int, like: Tensor) -> None:
        if need in self._needs:
            for matrix in ("xtx", "xty"):
                self._sums[f"{need}.{matrix}"] = torch.zeros(hidden, hidden, dtype=torch.float32, device=like.device)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Add up what passes through the layer until the end of the block."""
        hooks = []
        if self._needs & {"channel_contribution", "channel_second_moment"}:
            hooks.append(self._layer.get_submodule("mlp.down_proj").register_forward_pre_hook(self._add_channels))
        if "kv_head_contribution" in self._needs:
            hooks.append(self._layer.get_submodule("self_attn.o_proj").register_forward_pre_hook(self._add_heads))
        for need, module in (("attention_equations", "self_attn"), ("ffn_equations", "mlp")):
            if need in self._needs:
                hooks.append(
                    self._layer.get_submodule(module).register_forward_hook(
                        lambda _module, args, kwargs, output, need=need: self._add_equations(
                            need, args[0] if args else kwargs["hidden_states"], output
                        ),
                        with_kwargs=True,
                    )
                )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _add_channels(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        activations = args[0].flatten(0, -2).float()
        if "channel_contribution" in self._needs:
            self._sums["channel_contribution"] += activations.abs().sum(0, dtype=torch.float64)
        if "channel_second_moment" in self._needs:
            self._sums["channel_second_moment"].addmm_(activations.T, activations)

    def _add_heads(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        groups = args[0].flatten(0, -2).chunk(self._kv_heads, dim=-1)  # the query heads of a kv head lie together
        weights = cast("Tensor", module.weight).chunk(self._kv_heads, dim=1)
        norms = [(group @ weight.T).float().norm(dim=-1) for group, weight in zip(groups, weights, strict=True)]
        self._sums["kv_head_contribution"] += torch.stack(norms).sum(-1, dtype=torch.float64)

    def _add_equations(self, need: str, inputs: Tensor, output: Tensor | tuple[Tensor, ...]) -> None:
        x = inputs.flatten(0, -2).float()
        y = (output[0] if isinstance(output, tuple) else output).flatten(0, -2).float()
        self._sums[f"{need}.xtx"].addmm_(x.T, x)
        self._sums[f"{need}.xty"].addmm_(x.T, y)

    def result(self, tokens: int) -> LayerStatistics:
        channels = self._sums.get("channel_contribution")
        if channels is not None:
            norms = mlp_projections(self._layer).down.double().norm(dim=0)
            channels = channels / tokens * norms
        heads = self._sums.get("kv_head_contribution")
        return LayerStatistics(
            tokens=tokens,
            channel_contribution=channels,
            channel_second_moment=self._sums.get("channel_second_moment"),
            kv_head_contribution=None if heads is None else heads / tokens,
            attention_equations=self._equations_of("attention_equations"),
            ffn_equations=self._equations_of("ffn_equations"),
        )

    def _equations_of(self, need: Need) -> NormalEquations | None:
        if need not in self._needs:
            return None
        return NormalEquations(xtx=self._sums[f"{need}.xtx"], xty=self._sums[f"{need}.xty"])


def _check_needs(needs: Mapping[int, Collection[Need]], num_layers: int) -> None:
    for layer_idx, wanted in needs.items():
        if layer_idx not in range(num_layers):
            raise ValueError(f"there is no layer {layer_idx}; the layers are 0 to {num_layers - 1}")
        for need in wanted:
            if need not in get_args(Need):
                near = difflib.get_close_matches(str(need), get_args(Need), n=1) or get_args(Need)
                raise ValueError(f"statistic {need!r} is not known; did you mean {' or '.join(near)}?")
