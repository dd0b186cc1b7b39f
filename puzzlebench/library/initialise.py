"""Weights with which a smaller sub-block starts, made from the parent's and, where a recipe says so, its statistics.

Follows Puzzle (arXiv 2411.19146, on how the blocks of its library are initialised): the channels that contribute most,
key and value heads averaged in groups, products of matrices in place of attention and MLP. Knows tensors and names of
one decoder layer at a time, no model and no training.

Shapes: H hidden_size, I intermediate_size, W the narrower intermediate_size, K key-value heads, k the fewer ones.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from puzzlebench.child.modeling_heterogeneous import MODULES, half_norms
from puzzlebench.library.projections import (
    attention_projections,
    attention_state,
    mlp_projections,
    mlp_state,
)
from puzzlebench.library.statistics import LayerStatistics, Need, NormalEquations
from puzzlebench.model.blocks import GQA, GatedMLP, Linear, NoOp, Part, SubBlock, sub_block_name
from puzzlebench.model.spec import ModelSpec, check_key_value_heads

AttentionRecipe: TypeAlias = Literal["mean_pool", "select"]
FFNRecipe: TypeAlias = Literal["channel_contribution", "iterative"]
LinearRecipe: TypeAlias = Literal["least_squares", "product"]

LINEAR_WEIGHT = {"attention": "self_attn.linear_attn.weight", "ffn": "mlp.linear_mlp.weight"}
"""The one parameter of a linear sub-block, norms aside."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InitRecipe:
    """How sub-blocks smaller than the parent's start.

    Attributes:
        attention: for fewer key-value heads, in groups of consecutive heads: mean_pool takes the mean of their weights
            (as in GQA, arXiv 2305.13245), select the head that contributes most.
        ffn: for fewer channels: channel_contribution keeps those that contribute most on their own (Puzzle), iterative
            removes one after the other the one that, with those removed before, changes the output least.
        linear: for a matrix in place of a sub-block: product is W_o W_v or W_down W_up (Puzzle), least_squares the map
            nearest to the sub-block on the calibration tokens.
        ridge: of least_squares, relative to the mean of the diagonal of X^T X.
    """

    attention: AttentionRecipe = "mean_pool"
    ffn: FFNRecipe = "channel_contribution"
    linear: LinearRecipe = "least_squares"
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        for field, known in (("attention", AttentionRecipe), ("ffn", FFNRecipe), ("linear", LinearRecipe)):
            value = getattr(self, field)
            if value not in get_args(known):
                near = difflib.get_close_matches(str(value), get_args(known), n=1) or get_args(known)
                raise ValueError(f"{field} recipe {value!r} is not known; did you mean {' or '.join(near)}?")
        if (
            isinstance(self.ridge, bool)
            or not isinstance(self.ridge, int | float)
            or not 0 <= self.ridge < float("inf")
        ):
            raise ValueError(f"ridge must be a number of at least 0, not {self.ridge!r}")


def needed_statistics(recipe: InitRecipe, part: Part, own_sub_block: SubBlock, sub_block: SubBlock) -> frozenset[Need]:
    """The statistics of its layer that `initial_state` reads for this sub-block; mean_pool and product read none."""
    if sub_block == own_sub_block:
        return frozenset()
    match sub_block:
        case Linear() if recipe.linear == "least_squares":
            return frozenset({"attention_equations" if part == "attention" else "ffn_equations"})
        case GatedMLP():
            return frozenset(
                {"channel_contribution" if recipe.ffn == "channel_contribution" else "channel_second_moment"}
            )
        case GQA() if recipe.attention == "select" and _fewer_heads(own_sub_block, sub_block):
            return frozenset({"kv_head_contribution"})
    return frozenset()


def initial_state(
    layer: nn.Module,
    spec: ModelSpec,
    part: Part,
    own_sub_block: SubBlock,
    sub_block: SubBlock,
    recipe: InitRecipe,
    statistics: LayerStatistics | None = None,
) -> dict[str, Tensor]:
    """The state of one half of a layer: the sub-block's parameters and the norms of that half, named as in the layer.

    Norms are the parent's, since the smaller sub-block answers the same input with the same kind of output. Biases go
    with the rows they belong to; a linear sub-block has none, so product ignores the parent's, and least_squares, which
    has no intercept either, takes them into the fit as part of the output.

    Args:
        layer: the parent's decoder layer.
        part: attention or ffn.
        own_sub_block: what the parent has there.
        sub_block: what to start: the parent's own, a smaller one, a linear one or a no-op (which has no parameters).
        statistics: of that layer, with what `needed_statistics` names.

    Returns:
        New tensors on the layer's device and in its dtype.

    Raises:
        ValueError: the sub-block is not smaller than the parent's, or a statistic is missing.
    """
    if isinstance(sub_block, NoOp):
        return {}
    norms = tuple(f"{norm}." for norm in half_norms(layer, part))
    if sub_block == own_sub_block:
        return _copies(layer, (f"{MODULES[part]}.", *norms))
    match own_sub_block, sub_block:
        case GQA(), GQA():
            check_key_value_heads(spec, sub_block.num_key_value_heads)
            state = _fewer_key_value_heads(layer, sub_block.num_key_value_heads, recipe, statistics)
        case GatedMLP(), GatedMLP():
            state = _narrower_mlp(layer, sub_block.intermediate_size, recipe, statistics)
        case GQA() | GatedMLP(), Linear():
            state = {LINEAR_WEIGHT[part]: _linear(layer, part, recipe, statistics)}
        case _:
            raise ValueError(f"{sub_block_name(sub_block)} cannot start from {sub_block_name(own_sub_block)}")
    return state | _copies(layer, norms)


def channel_order(down: Tensor, second_moment: Tensor) -> Tensor:
    """All channels of an MLP, the most important first, by greedy removal: [I] int64.

    With c_i = X_i W_down[:, i] the part of the output that channel i adds, removing the set R changes the output by
    sum_{i in R} c_i. Its squared norm over all calibration tokens is the sum over R x R of the Gram matrix G of the
    channel outputs, G = (X^T X) * (W_down^T W_down) elementwise, and each step removes the channel that raises it
    least: argmin G_ii + 2 sum_{j in R} G_ij. So of channels that say the same the last one left is not removed lightly,
    which contributions on their own cannot know. Being greedy, it does not find channels that only cancel each other.

    Args:
        down: [H, I], the down projection.
        second_moment: [I, I], X^T X of its inputs; one more float32 matrix of that size is made.
    """
    down = down.float()
    gram = (down.T @ down).mul_(second_moment)
    rise = gram.diagonal().double().clone()
    removed = []
    for _ in range(len(rise)):
        channel = rise.argmin()
        removed.append(channel)
        rise += 2 * gram[channel]
        rise[channel] = torch.inf
    return torch.stack(removed).flip(0)


def _narrower_mlp(
    layer: nn.Module, width: int, recipe: InitRecipe, statistics: LayerStatistics | None
) -> dict[str, Tensor]:
    own = mlp_projections(layer)
    if width > own.intermediate_size:
        raise ValueError(f"an MLP of {own.intermediate_size} channels cannot start one of {width}")
    if recipe.ffn == "channel_contribution":
        contribution = _statistic(statistics, "channel_contribution")
        order = contribution.argsort(descending=True, stable=True)
    else:
        order = channel_order(own.down, _statistic(statistics, "channel_second_moment"))
    kept = order[:width].sort().values.to(own.down.device)
    return mlp_state(
        layer,
        replace(
            own,
            gate=own.gate[kept],
            up=own.up[kept],
            down=own.down[:, kept],
            gate_bias=None if own.gate_bias is None else own.gate_bias[kept],
            up_bias=None if own.up_bias is None else own.up_bias[kept],
        ),
    )


def _fewer_key_value_heads(
    layer: nn.Module, kv_heads: int, recipe: InitRecipe, statistics: LayerStatistics | None
) -> dict[str, Tensor]:
    own = attention_projections(layer)
    group, rest = divmod(own.num_key_value_heads, kv_heads)
    if rest:
        raise ValueError(
            f"{own.num_key_value_heads} key-value heads cannot be put into {kv_heads} groups of equal size"
        )
    if recipe.attention == "select" and group > 1:
        best = _statistic(statistics, "kv_head_contribution").view(kv_heads, group).argmax(dim=1).to(own.k.device)

    def fewer(rows: Tensor) -> Tensor:
        if group == 1:
            return rows
        heads = rows.view(kv_heads, group, own.head_dim, -1)
        if recipe.attention == "select":
            taken = heads[torch.arange(kv_heads, device=best.device), best]
        else:
            taken = heads.float().mean(dim=1).to(rows.dtype)
        return taken.reshape(kv_heads * own.head_dim, *rows.shape[1:])

    return attention_state(
        layer,
        replace(
            own,
            k=fewer(own.k),
            v=fewer(own.v),
            k_bias=None if own.k_bias is None else fewer(own.k_bias),
            v_bias=None if own.v_bias is None else fewer(own.v_bias),
            k_norm=fewer(own.k_norm) if own.k_norm is not None and own.k_norm_is_full else own.k_norm,
        ),
    )


def _linear(layer: nn.Module, part: Part, recipe: InitRecipe, statistics: LayerStatistics | None) -> Tensor:
    """[H, H], outputs first."""
    if part == "attention":
        attention = attention_projections(layer)
        left, right = attention.o, _values_of_query_heads(layer)
    else:
        mlp = mlp_projections(layer)
        left, right = mlp.down, mlp.up
    if recipe.linear == "product":
        return (left.float() @ right.float()).to(left.dtype)
    equations = _equations(statistics, part)
    return least_squares(equations, ridge=recipe.ridge).to(device=left.device, dtype=left.dtype)


def _values_of_query_heads(layer: nn.Module) -> Tensor:
    """[query heads * head_dim, H]: attention over a single token gives every query head the value of its group."""
    own = attention_projections(layer)
    heads = own.v.view(own.num_key_value_heads, own.head_dim, -1)
    return heads.repeat_interleave(own.num_attention_heads // own.num_key_value_heads, dim=0).flatten(0, 1)


def least_squares(equations: NormalEquations, *, ridge: float) -> Tensor:
    """The matrix M [H, H] (outputs first) with the least squared error of X M^T to Y, in float64.

    Minimises |X M^T - Y|^2 + ridge * mean(diag(X^T X)) * |M|^2.

    Raises:
        ValueError: the equations have no single solution at this ridge.
    """
    xtx = equations.xtx.double()
    penalised = xtx + ridge * xtx.diagonal().mean() * torch.eye(len(xtx), dtype=xtx.dtype, device=xtx.device)
    factor, failed = torch.linalg.cholesky_ex(penalised)
    if failed:
        raise ValueError(f"X^T X is singular at ridge {ridge}; give more calibration tokens or a ridge such as 1e-3")
    return torch.cholesky_solve(equations.xty.double(), factor).T.contiguous()


def _copies(layer: nn.Module, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in layer.state_dict().items() if name.startswith(prefixes)}


def _fewer_heads(own_sub_block: SubBlock, sub_block: GQA) -> bool:
    return isinstance(own_sub_block, GQA) and sub_block.num_key_value_heads < own_sub_block.num_key_value_heads


def _statistic(
    statistics: LayerStatistics | None,
    need: Literal["channel_contribution", "channel_second_moment", "kv_head_contribution"],
) -> Tensor:
    value: Tensor | None = None if statistics is None else getattr(statistics, need)
    if value is None:
        raise _missing(need)
    return value


def _equations(statistics: LayerStatistics | None, part: Part) -> NormalEquations:
    need: Need = "attention_equations" if part == "attention" else "ffn_equations"
    value: NormalEquations | None = None if statistics is None else getattr(statistics, need)
    if value is None:
        raise _missing(need)
    return value


def _missing(need: Need) -> ValueError:
    return ValueError(f"the recipe needs {need} of the layer; ask collect_statistics for what needed_statistics names")
