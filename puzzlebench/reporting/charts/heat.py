"""What each block costs in quality: a panel per kind of attention, layers down, FFNs across, logarithmic colour."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from puzzlebench.model.blocks import (
    GQA,
    Architecture,
    GatedMLP,
    Linear,
    NoOp,
    Part,
    block_name,
    parse_sub_block,
)
from puzzlebench.reporting.charts.frame import mark, svg, text
from puzzlebench.reporting.charts.layers import size
from puzzlebench.reporting.markup import Html, tag
from puzzlebench.reporting.numbers import digits
from puzzlebench.scores import ScoreTable

STEPS: Final = 9
_LEFT: Final = 26
_SPACE: Final = 14
_HEAD: Final = 26
_FOOT: Final = 62
_ROOMY: Final = 10  # rows taller than this have room for a halo around the outline


@dataclass(frozen=True, kw_only=True, slots=True)
class Heat:
    """Harm of every scored block: how much worse than the parent's own, in the score's direction.

    Attributes:
        attention, ffn: names, the largest first, then linear and no-op.
        harm: by layer, attention and FFN.
        scores: the same as the table has them.
        ends: smallest and largest harm above 0; None without any.
    """

    attention: tuple[str, ...]
    ffn: tuple[str, ...]
    layers: int
    harm: dict[tuple[int, str, str], float]
    scores: dict[tuple[int, str, str], float]
    ends: tuple[float, float] | None

    def step(self, harm: float) -> int:
        """Which of the `STEPS` colours: 0 for none, the others by its logarithm."""
        if harm <= 0 or self.ends is None:
            return 0
        low, high = self.ends
        share = math.log(harm / low) / math.log(high / low) if high > low else 1.0
        return 1 + min(int(share * (STEPS - 1)), STEPS - 2)

    def bounds(self) -> tuple[float, ...]:
        """Where colours 1 to the last begin, and where the last ends."""
        if self.ends is None:
            return ()
        low, high = self.ends
        return tuple(low * (high / low) ** (place / (STEPS - 1)) for place in range(STEPS))


def heat_of(table: ScoreTable) -> Heat:
    """The values to colour."""
    sign = 1.0 if table.direction == "minimise" else -1.0
    harm: dict[tuple[int, str, str], float] = {}
    scores: dict[tuple[int, str, str], float] = {}
    for layer, own in enumerate(table.parent.blocks):
        found = table.layer_scores(layer)
        reference = found[block_name(own)]
        for name, score in found.items():
            attention, _, ffn = name.partition("+")
            harm[layer, attention, ffn] = sign * (score - reference)
            scores[layer, attention, ffn] = score
    positive = [value for value in harm.values() if value > 0]
    return Heat(
        attention=_largest_first("attention", {key[1] for key in harm}),
        ffn=_largest_first("ffn", {key[2] for key in harm}),
        layers=table.num_layers,
        harm=harm,
        scores=scores,
        ends=(min(positive), max(positive)) if positive else None,
    )


def _largest_first(part: Part, names: set[str]) -> tuple[str, ...]:
    kinds = (GQA, GatedMLP, Linear, NoOp)

    def key(name: str) -> tuple[int, int, str]:
        sub = parse_sub_block("attention", name) if part == "attention" else parse_sub_block("ffn", name)
        return kinds.index(type(sub)), -size(sub), name

    return tuple(sorted(names, key=key))


def draw_heat(heat: Heat, width: int, *, chosen: Architecture | None, metric: str) -> Html:
    """The picture; the chosen cell of each layer is outlined."""
    panels = len(heat.attention)
    across = panels if width > 500 else min(2, panels)
    cell = (width - _LEFT - _SPACE * (across - 1)) / (across * len(heat.ffn))
    cell = min(cell, 30)
    tall = max(7.0, min(18.0, 560 / heat.layers)) if width > 500 else max(6.0, min(16.0, 320 / heat.layers))
    row_height = _HEAD + heat.layers * tall + _FOOT
    picked = {} if chosen is None else {place: block_name(block) for place, block in enumerate(chosen.blocks)}
    parts: list[Html] = []
    outlines: list[Html] = []
    every = max(1, math.ceil(12 / tall))
    for panel, attention in enumerate(heat.attention):
        row, column = divmod(panel, across)
        left = _LEFT + column * (len(heat.ffn) * cell + _SPACE)
        top = row * row_height + _HEAD
        parts.append(text(left, top - 9, _title(attention), class_="label"))
        if column == 0:
            parts += [
                text(_LEFT - 6, top + (place + 0.5) * tall + 4, place, anchor="end", class_="tick")
                for place in range(0, heat.layers, every)
            ]
        foot = top + heat.layers * tall + 8
        for place, ffn in enumerate(heat.ffn):
            x = left + (place + 0.5) * cell + 4
            if cell >= 9 or place % 2 == 0:
                parts.append(
                    tag("text", _ffn(ffn), x=0, y=0, transform=f"translate({x:.1f} {foot:.1f}) rotate(-90)",
                        text_anchor="end", class_="tick")
                )  # fmt: skip
        for layer in range(heat.layers):
            for place, ffn in enumerate(heat.ffn):
                key = (layer, attention, ffn)
                if key not in heat.harm:
                    continue
                x, y = left + place * cell, top + layer * tall
                box = {"x": x + 0.5, "y": y + 0.5, "width": cell - 1, "height": tall - 1}
                is_chosen = picked.get(layer) == f"{attention}+{ffn}"
                parts.append(
                    mark(
                        tag("rect", **box, class_=f"q{heat.step(heat.harm[key])}"),
                        tip=f"layer {layer}, {attention} + {ffn}\n{metric} {digits(heat.scores[key])}"
                        + ("\nchosen" if is_chosen else ""),
                        row=row * heat.layers + layer,
                        column=column * len(heat.ffn) + place,
                    )
                )
                if is_chosen:
                    edge = {"x": x - 0.5, "y": y - 0.5, "width": cell + 1, "height": tall + 1}
                    outlines += [
                        tag("rect", **edge, class_=name)
                        for name in (("pick-halo", "pick") if tall > _ROOMY else ("pick fine",))
                    ]
    rows = math.ceil(panels / across)
    drawn = _LEFT + across * len(heat.ffn) * cell + _SPACE * (across - 1)
    return svg(
        max(drawn, width * 0.5), rows * row_height, *parts, *outlines, label=f"{metric} of every block", marks=True
    )


def draw_key(heat: Heat, width: int, metric: str) -> Html:
    """The colours and where each begins."""
    if heat.ends is None:
        return tag("p", "No block does any harm.")
    bounds = heat.bounds()
    start, step = 72.0, (width - 72 - 26) / (STEPS - 1)
    parts = [tag("rect", x=0, y=20, width=30, height=12, class_="q0 key")]
    parts += [
        tag("rect", x=start + place * step, y=20, width=step - 1, height=12, class_=f"q{place + 1} key")
        for place in range(STEPS - 1)
    ]
    parts += [
        text(start + place * step, 47, digits(bounds[place], 2), anchor="middle", class_="tick")
        for place in range(0, STEPS, 2)
    ]
    parts.append(text(0, 12, f"{metric} above the parent's, logarithmic", class_="axis"))
    parts.append(text(15, 47, "none", anchor="middle", class_="tick"))
    return svg(width, 52, *parts, label=f"Colours from {digits(bounds[0], 2)} to {digits(bounds[-1], 2)}")


def _title(attention: str) -> str:
    kind, _, rest = attention.partition("_")
    if kind == "gqa":
        heads, _, window = rest.partition("_w")
        return f"{heads} kv head{'' if heads == '1' else 's'}" + (f", window {window}" if window else "")
    return "no attention" if attention == "no_op" else "linear attention"


def _ffn(name: str) -> str:
    return name.removeprefix("mlp_").replace("no_op", "no-op")
