"""An architecture as a row of layers: attention upwards, FFN downwards, each beside the outline of the parent's."""

from __future__ import annotations

import math
from typing import Final

from puzzlebench.model.blocks import GQA, Architecture, GatedMLP, Linear, SubBlock, sub_block_name
from puzzlebench.reporting.charts.frame import line, mark, svg, text
from puzzlebench.reporting.markup import Html, join, tag

_LEFT: Final = 58
_WIDEST: Final = 113
_NARROWEST: Final = 9.0
_NARROWEST_COMPACT: Final = 3.4  # where layers cannot be pointed at
_GAP: Final = 7
_SHORT: Final = 11
_CHARACTER: Final = 7.6


def draw_layers(
    child: Architecture, parent: Architecture, width: int, *, height: int = 84, label: str, tips: bool = True
) -> Html:
    """The picture.

    Args:
        height: of the parent's bar, pixels.
        label: for screen readers.
        tips: layers can be pointed at.
    """
    layers = len(child.blocks)
    room = width - _LEFT
    rows = math.ceil(layers * (_NARROWEST if tips else _NARROWEST_COMPACT) / room)
    across = math.ceil(layers / rows)
    step = min(room / across, _WIDEST)
    tall = 2 * height + _GAP + 62
    parts = []
    for row in range(rows):
        top = row * tall
        first = row * across
        shown = range(first, min(first + across, layers))
        middle = top + 18 + height
        parts += [
            text(0, middle - height / 2 + 4, "attention", class_="tick"),
            text(0, middle + _GAP + height / 2 + 4, "FFN", class_="tick"),
            line(_LEFT, middle + _GAP / 2, _LEFT + step * len(shown), middle + _GAP / 2, "grid"),
            text(0, middle + _GAP + height + 34, "layer", class_="tick"),
        ]
        every = max(1, math.ceil(22 / step))
        for place in shown:
            x = _LEFT + (place - first) * step
            own, block = parent.blocks[place], child.blocks[place]
            words = f"layer {place}: attention {_words(block.attention, own.attention)}, " + (
                f"FFN {_words(block.ffn, own.ffn)}"
            )
            up = _bar(x, middle, step, height, block.attention, own.attention, "attention")
            down = _bar(x, middle + _GAP, step, height, block.ffn, own.ffn, "ffn")
            at = text(x + step / 2, middle + _GAP + height + 34, place, anchor="middle", class_="tick")
            shapes = (up, down, at if place % every == 0 else None)
            parts.append(mark(*shapes, tip=words, row=row, column=place - first) if tips else join(shapes))
    return svg(width, rows * tall - 14, *parts, label=label, marks=tips)


def size(sub: SubBlock) -> int:
    """Key-value heads or FFN width; 0 for linear and no-op."""
    if isinstance(sub, GQA):
        return sub.num_key_value_heads
    return sub.intermediate_size if isinstance(sub, GatedMLP) else 0


def _words(sub: SubBlock, own: SubBlock) -> str:
    if sub == own:
        return f"{sub_block_name(sub)} (the parent's)"
    kept = f" ({size(sub) / size(own):.0%} of the parent's)" if size(sub) and size(own) else ""
    return sub_block_name(sub) + kept


def _bar(x: float, base: float, step: float, height: int, sub: SubBlock, own: SubBlock, part: str) -> Html:
    """One half of a layer; attention goes up from its base, FFN down."""
    inset = min(step * 0.12, 5)
    left, wide = x + inset, step - 2 * inset
    sign = -1 if part == "attention" else 1

    def box(length: float, class_: str) -> Html:
        top = base if sign > 0 else base - length
        return tag("rect", x=left, y=top, width=wide, height=length, class_=class_)

    kept = size(sub) / size(own) if size(own) else float(sub == own)
    parts = [box(height, "ghost" if kept or isinstance(sub, Linear) else "ghost gone")]
    middle = x + step / 2
    words: str | None = None
    if isinstance(sub, Linear):
        parts.append(box(_SHORT, f"hatch-{part}"))
        words = "linear"
    elif kept:
        parts.append(box(max(height * kept, 2), f"fill-{part}"))
        words = str(size(sub))
    else:
        arm = min(wide / 2, 5)
        centre = base + sign * height / 2
        cross = f"M{middle - arm:.2f} {centre - arm:.2f}l{2 * arm:.2f} {2 * arm:.2f}m0 {-2 * arm:.2f}" + (
            f"l{-2 * arm:.2f} {2 * arm:.2f}"
        )
        parts.append(tag("path", d=cross, class_="gone"))
        words = "no-op"
    if words and len(words) * _CHARACTER + 5 < step:
        y = base - height - 6 if sign < 0 else base + height + 14
        parts.append(text(middle, y, words, anchor="middle", class_="tick"))
    return join(parts)
