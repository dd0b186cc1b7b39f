"""The search space that a cost table covers: what each layer of the parent may become, of the sub-blocks with costs."""

from __future__ import annotations

from puzzlebench.model.blocks import (
    GQA,
    Architecture,
    AttentionSubBlock,
    FFNSubBlock,
    GatedMLP,
    Linear,
    NoOp,
    parse_sub_block,
)
from puzzlebench.model.space import LayerCandidates, SearchSpace
from puzzlebench.profiling.cost_table import CostTable


def costed_space(table: CostTable, parent: Architecture) -> SearchSpace:
    """Each layer's own sub-blocks first, then those of the table that are smaller, largest first, linear, no-op.

    A layer keeps its sliding window; no-ops need no row in the table.
    """
    frame = table.frame[["part", "sub_block"]].drop_duplicates()
    attention: list[AttentionSubBlock] = [
        parse_sub_block("attention", name) for name in frame.loc[frame["part"] == "attention", "sub_block"]
    ]
    ffn: list[FFNSubBlock] = [parse_sub_block("ffn", name) for name in frame.loc[frame["part"] == "ffn", "sub_block"]]
    return SearchSpace(
        layers=tuple(
            LayerCandidates(
                attention=tuple(dict.fromkeys([block.attention, *_smaller_attention(block.attention, attention)])),
                ffn=tuple(dict.fromkeys([block.ffn, *_smaller_ffn(block.ffn, ffn)])),
            )
            for block in parent.blocks
        )
    )


def _smaller_attention(own: AttentionSubBlock, known: list[AttentionSubBlock]) -> list[AttentionSubBlock]:
    if not isinstance(own, GQA):
        return [NoOp()]
    same = [sub for sub in known if isinstance(sub, GQA) and sub.sliding_window == own.sliding_window]
    same.sort(key=lambda sub: -sub.num_key_value_heads)
    fewer = [sub for sub in same if sub.num_key_value_heads < own.num_key_value_heads]
    return [*fewer, *([Linear()] if Linear() in known else []), NoOp()]


def _smaller_ffn(own: FFNSubBlock, known: list[FFNSubBlock]) -> list[FFNSubBlock]:
    if not isinstance(own, GatedMLP):
        return [NoOp()]
    widths = [sub for sub in known if isinstance(sub, GatedMLP)]
    widths.sort(key=lambda sub: -sub.intermediate_size)
    narrower = [sub for sub in widths if sub.intermediate_size < own.intermediate_size]
    return [*narrower, *([Linear()] if Linear() in known else []), NoOp()]
