"""The halves that the candidates of one layer are put together from, with their weights. Knows no data."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from puzzlebench.child.halves import load_half, new_sub_block
from puzzlebench.child.modeling_heterogeneous import take_half
from puzzlebench.library.store import Library
from puzzlebench.model.blocks import PARTS, Block, Part, SubBlock, block_name
from puzzlebench.model.space import LayerCandidates


class LayerHalves:
    """Every half that a layer's candidates need, each once; pairs trained together have halves of their own.

    Args:
        model: the parent.
        own: its block in this layer.
        recipe: id of the recipe whose blocks are taken.

    Raises:
        ValueError: the library lacks a block.
    """

    def __init__(
        self, model: nn.Module, layer: int, candidates: LayerCandidates, own: Block, library: Library, recipe: str
    ) -> None:
        stock = cast("Any", model).model.layers[layer]
        self._halves: dict[tuple[Block | None, Part, SubBlock], nn.Module] = {
            (None, part, getattr(own, part)): take_half(stock, part) for part in PARTS
        }
        for block in candidates.blocks():
            together = block if library.has(layer, block_name(block), recipe) else None
            missing = [part for part in PARTS if (together, part, getattr(block, part)) not in self._halves]
            for part, state in library.layer_states(layer, block, own, recipe, missing).items():
                sub = getattr(block, part)
                half = new_sub_block(stock, model.config, layer, part, sub)
                load_half(half, part, state)
                self._halves[together, part, sub] = half.eval().requires_grad_(requires_grad=False)

    def of(self, block: Block) -> tuple[nn.Module, nn.Module]:
        """The attention and the ffn half of a candidate."""
        return self._half(block, "attention", block.attention), self._half(block, "ffn", block.ffn)

    def _half(self, block: Block, part: Part, sub: SubBlock) -> nn.Module:
        together = self._halves.get((block, part, sub))
        return self._halves[None, part, sub] if together is None else together
