"""Which sub-blocks a search may choose from, layer by layer.

Knows shapes only: what a candidate costs, how well it works and whether an engine can serve it are decided elsewhere.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from puzzlebench.model.blocks import (
    GQA,
    PARTS,
    Architecture,
    AttentionSubBlock,
    Block,
    FFNSubBlock,
    GatedMLP,
    Linear,
    NoOp,
    parse_sub_block,
    sub_block_name,
)
from puzzlebench.model.checks import require_positive_int
from puzzlebench.model.spec import ModelSpec, check_architecture, divisors, parent_architecture

DEFAULT_FFN_FRACTIONS = (1.0, 0.875, 0.75, 0.5, 0.25, 0.2, 0.1)
DEFAULT_FFN_MULTIPLE = 256
SPACE_SCHEMA = 1

_KV_FRACTIONS = (1, 2, 4, 8)
_LEAST_FFN_MULTIPLE = 8
_STEPS_PER_WIDTH = 20  # a multiple is too coarse when it is more than 5 %, the closest two default fractions lie


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerCandidates:
    """What one layer may become: any pair of an attention and an FFN sub-block."""

    attention: tuple[AttentionSubBlock, ...]
    ffn: tuple[FFNSubBlock, ...]

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        for part, candidates in (("attention", self.attention), ("ffn", self.ffn)):
            if not candidates:
                raise ValueError(f"a layer needs at least one {part} candidate")
            names = [sub_block_name(sub) for sub in candidates]
            if len(set(names)) != len(names):
                raise ValueError(f"{part} candidates repeat: {', '.join(names)}")

    def blocks(self) -> tuple[Block, ...]:
        """Every pair, attention by attention."""
        return tuple(Block(attention=attention, ffn=ffn) for attention in self.attention for ffn in self.ffn)


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpace:
    """The candidates of every layer, first layer first."""

    layers: tuple[LayerCandidates, ...]

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        if not self.layers:
            raise ValueError("a search space needs at least one layer")

    @property
    def log10_size(self) -> float:
        """Decimal logarithm of the number of architectures."""
        return sum(math.log10(len(layer.attention) * len(layer.ffn)) for layer in self.layers)


def distinct_sub_blocks(space: SearchSpace) -> tuple[tuple[AttentionSubBlock, ...], tuple[FFNSubBlock, ...]]:
    """The attention and the FFN candidates of all layers, each once, in order of appearance: a cost table's rows."""
    attention = dict.fromkeys(sub for layer in space.layers for sub in layer.attention)
    ffn = dict.fromkeys(sub for layer in space.layers for sub in layer.ffn)
    return tuple(attention), tuple(ffn)


def space_of(architecture: Architecture) -> SearchSpace:
    """The space that holds this architecture and nothing else."""
    return SearchSpace(
        layers=tuple(LayerCandidates(attention=(block.attention,), ffn=(block.ffn,)) for block in architecture.blocks)
    )


def default_space(
    spec: ModelSpec,
    architecture: Architecture | None = None,
    *,
    kv_heads: Sequence[int] | None = None,
    ffn_fractions: Sequence[float] = DEFAULT_FFN_FRACTIONS,
    ffn_multiple: int = DEFAULT_FFN_MULTIPLE,
    attention_linear: bool = True,
    attention_no_op: bool = True,
    ffn_linear: bool = True,
    ffn_no_op: bool = True,
) -> SearchSpace:
    """The candidates around a parent; for Llama 70B the 6 attention x 9 FFN of Puzzle (arXiv 2411.19146, section 2).

    A layer's candidates derive from its own block in `architecture` (the spec's parent by default), never exceed it,
    keep its sliding window, and always hold it first. What is already a linear layer or nothing stays as small.

    Attention: for the fractions 1, 1/2, 1/4 and 1/8 the largest divisor of the layer's key-value heads that is not
    above the fraction of them (8 -> 8, 4, 2, 1; 10 -> 10, 5, 2, 1; 4 -> 4, 2, 1), since fewer heads are made by
    mean-pooling equal groups of consecutive ones; then linear and no-op.

    FFN: each fraction of the width rounded to the nearest multiple of `ffn_multiple` that is below the width; then
    linear and no-op. A multiple above 5 % of the width is halved until it is not, at the least 8. Repeats are dropped.

    Args:
        kv_heads: counts to offer instead; a layer takes those of them below its own.
        ffn_fractions: of the layer's width, in (0, 1].

    Raises:
        ValueError: a count in `kv_heads` does not divide a layer's, or an argument is out of range.
    """
    if architecture is None:
        architecture = parent_architecture(spec)
    check_architecture(spec, architecture)
    require_positive_int("ffn_multiple", ffn_multiple)
    for fraction in ffn_fractions:
        if not 0 < fraction <= 1:
            raise ValueError(f"ffn_fractions must be above 0 and at most 1, not {fraction!r}")
    if kv_heads is not None:
        _check_kv_heads(kv_heads, architecture)
    layers = []
    for block in architecture.blocks:
        attention: list[AttentionSubBlock] = [block.attention]
        if isinstance(block.attention, GQA):
            attention += _smaller_attention(block.attention, kv_heads)
        attention += _replacements(block.attention, linear=attention_linear, no_op=attention_no_op)
        ffn: list[FFNSubBlock] = [block.ffn]
        if isinstance(block.ffn, GatedMLP):
            widths = ffn_widths(block.ffn.intermediate_size, fractions=ffn_fractions, multiple=ffn_multiple)
            ffn += (GatedMLP(intermediate_size=width) for width in widths if width < block.ffn.intermediate_size)
        ffn += _replacements(block.ffn, linear=ffn_linear, no_op=ffn_no_op)
        layers.append(LayerCandidates(attention=tuple(attention), ffn=tuple(ffn)))
    return SearchSpace(layers=tuple(layers))


def default_kv_heads(num_key_value_heads: int) -> tuple[int, ...]:
    """The counts offered for a layer with that many, its own first; the rule is in `default_space`."""
    fitting = divisors(num_key_value_heads)
    counts = (
        next((count for count in fitting if count * share <= num_key_value_heads), None) for share in _KV_FRACTIONS
    )
    return tuple(dict.fromkeys(count for count in counts if count is not None))


def ffn_widths(
    intermediate_size: int,
    *,
    fractions: Iterable[float] = DEFAULT_FFN_FRACTIONS,
    multiple: int = DEFAULT_FFN_MULTIPLE,
) -> tuple[int, ...]:
    """The widths those fractions give, largest first without repeats; the rule is in `default_space`."""
    while multiple * _STEPS_PER_WIDTH > intermediate_size and multiple % 2 == 0 and multiple > _LEAST_FFN_MULTIPLE:
        multiple //= 2
    widths = set()
    for fraction in fractions:
        if fraction == 1:
            widths.add(intermediate_size)
            continue
        width = math.floor(fraction * intermediate_size / multiple + 0.5) * multiple
        if 0 < width < intermediate_size:
            widths.add(width)
    return tuple(sorted(widths, reverse=True))


def _smaller_attention(own: GQA, kv_heads: Sequence[int] | None) -> list[AttentionSubBlock]:
    counts = default_kv_heads(own.num_key_value_heads) if kv_heads is None else sorted(set(kv_heads), reverse=True)
    return [
        GQA(num_key_value_heads=count, sliding_window=own.sliding_window)
        for count in counts
        if count < own.num_key_value_heads
    ]


def _replacements(own: AttentionSubBlock | FFNSubBlock, *, linear: bool, no_op: bool) -> list[Linear | NoOp]:
    """Linear and no-op where they are asked for and smaller than the layer's own sub-block."""
    replacements: list[Linear | NoOp] = []
    if linear and not isinstance(own, Linear | NoOp):
        replacements.append(Linear())
    if no_op and not isinstance(own, NoOp):
        replacements.append(NoOp())
    return replacements


def _check_kv_heads(kv_heads: Sequence[int], architecture: Architecture) -> None:
    own_counts = sorted(
        {block.attention.num_key_value_heads for block in architecture.blocks if isinstance(block.attention, GQA)},
        reverse=True,
    )
    for count in kv_heads:
        require_positive_int("kv_heads", count)
        for own in own_counts:
            if (count < own and own % count) or count > own_counts[0]:
                fitting = ", ".join(str(divisor) for divisor in divisors(own))
                raise ValueError(
                    f"kv_heads {count} does not divide the {own} key-value heads of a layer; what would: {fitting}"
                )


def space_to_json(space: SearchSpace) -> dict[str, Any]:
    """A JSON-ready dict: the schema version and the names of each layer's candidates."""
    return {
        "schema": SPACE_SCHEMA,
        "layers": [
            {part: [sub_block_name(sub) for sub in getattr(layer, part)] for part in PARTS} for layer in space.layers
        ],
    }


def space_from_json(data: Mapping[str, Any]) -> SearchSpace:
    """The space in a dict written by `space_to_json`.

    Raises:
        ValueError: another schema version, or a name that is no sub-block.
    """
    if data.get("schema") != SPACE_SCHEMA:
        raise ValueError(f"search space schema {data.get('schema')!r} is not known; this version reads {SPACE_SCHEMA}")
    return SearchSpace(
        layers=tuple(
            LayerCandidates(
                attention=tuple(parse_sub_block("attention", name) for name in layer["attention"]),
                ffn=tuple(parse_sub_block("ffn", name) for name in layer["ffn"]),
            )
            for layer in data["layers"]
        )
    )


def space_around(parent: Architecture, architectures: Sequence[Architecture]) -> SearchSpace:
    """The space of the parent's blocks and everything that occurs in one of the architectures, layer by layer.

    Raises:
        ValueError: an architecture has another number of layers.
    """
    for architecture in architectures:
        if len(architecture.blocks) != len(parent.blocks):
            raise ValueError(f"an architecture has {len(architecture.blocks)} layers, the parent {len(parent.blocks)}")
    layers = []
    for layer, own in enumerate(parent.blocks):
        blocks = [own, *(architecture.blocks[layer] for architecture in architectures)]
        layers.append(
            LayerCandidates(
                attention=tuple(dict.fromkeys(block.attention for block in blocks)),
                ffn=tuple(dict.fromkeys(block.ffn for block in blocks)),
            )
        )
    return SearchSpace(layers=tuple(layers))
