"""Rules that keep or leave out choices layer by layer, as people write them: "0-3=parent", "10-20=linear+*".

Knows names of blocks, no costs and no scores. Whether a rule fixes or excludes is the caller's to say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from puzzlebench.model.blocks import Part, parse_sub_block

_LAYERS: Final = re.compile(r"\*|([0-9]{1,9})(?:-([0-9]{1,9}))?")
_GLOB: Final = re.compile(r"[a-z0-9_*]*\*[a-z0-9_*]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockPattern:
    """Blocks whose halves match; `*` stands for any text, also within a half ("gqa_*")."""

    attention: str
    ffn: str

    def matches(self, block: str) -> bool:
        """Whether a block's name matches."""
        attention, _, ffn = block.partition("+")
        return _matches(self.attention, attention) and _matches(self.ffn, ffn)


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRule:
    """Blocks in a range of layers.

    Attributes:
        text: as written, for messages.
        first: layer, from 0.
        last: included; None for the model's last.
        block: None stands for each layer's own block.
    """

    text: str
    first: int
    last: int | None
    block: BlockPattern | None

    def layers(self, num_layers: int) -> range:
        """The layers it is about.

        Raises:
            ValueError: the model has fewer.
        """
        last = num_layers - 1 if self.last is None else self.last
        if last >= num_layers:
            raise ValueError(f"{self.text!r} names layer {last}, but the layers are 0 to {num_layers - 1}")
        return range(self.first, last + 1)

    def matches(self, block: str, own: str) -> bool:
        """Whether a block's name matches in a layer whose own block is `own`."""
        return block == own if self.block is None else self.block.matches(block)


def parse_layer_rule(text: str) -> LayerRule:
    """A rule: layers (3, 0-3 or *), =, and parent or attention+ffn, where * stands for anything.

    Raises:
        ValueError: it is not of that form, or a half without * is the name of no sub-block.
    """
    layers, equals, block = (part.strip() for part in text.partition("="))
    found = _LAYERS.fullmatch(layers)
    if not equals or found is None:
        raise ValueError(f"{text!r} is not layers=block; give a rule such as 5=gqa_8+*, 0-3=parent or *=*+mlp_14336")
    first = int(found[1] or 0)
    last = None if layers == "*" else int(found[2] or first)
    if last is not None and last < first:
        raise ValueError(f"{text!r}: the range {layers} is the wrong way round")
    return LayerRule(text=text, first=first, last=last, block=_parse_pattern(text, block))


def _parse_pattern(text: str, block: str) -> BlockPattern | None:
    if block == "parent":
        return None
    attention, plus, ffn = (half.strip() for half in block.partition("+"))
    if not plus:
        raise ValueError(f"{text!r}: {block!r} is neither parent nor attention+ffn, such as gqa_8+* or *+mlp_14336")
    halves: tuple[tuple[Part, str], ...] = (("attention", attention), ("ffn", ffn))
    for part, half in halves:
        if not _GLOB.fullmatch(half):
            try:
                parse_sub_block(part, half)
            except ValueError as error:
                raise ValueError(f"{text!r}: {error}, or * for any") from None
    return BlockPattern(attention=attention, ffn=ffn)


def _matches(pattern: str, name: str) -> bool:
    return re.fullmatch(".*".join(re.escape(piece) for piece in pattern.split("*")), name) is not None
