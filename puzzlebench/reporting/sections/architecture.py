"""The chosen architecture, layer by layer, and the parameters it has left."""

from __future__ import annotations

from collections import Counter

from puzzlebench.model.blocks import Architecture, SubBlock, sub_block_name
from puzzlebench.model.parameters import (
    embedding_parameters,
    head_parameters,
    model_parameters,
    sub_block_parameters,
)
from puzzlebench.model.spec import ModelSpec
from puzzlebench.reporting.charts.layers import draw_layers
from puzzlebench.reporting.data import ReportData
from puzzlebench.reporting.describe import summary
from puzzlebench.reporting.markup import Html, responsive, tag
from puzzlebench.reporting.numbers import parameters, percent
from puzzlebench.reporting.sections.parts import absent, box, details, figure, legend, section, swatch, table


def architecture_section(data: ReportData) -> Html:
    """Picture, parameters and the list of blocks."""
    title = "The architecture"
    if data.search is None or data.parent is None:
        return section("architecture", title, absent("search/search.json", "the search", data.passed_over))
    child, parent = data.search.architecture, data.parent
    label = "Layers of the chosen child: attention up, FFN down, parts of the parent's"
    picture = responsive(lambda width: draw_layers(child, parent, width, label=label))
    return section(
        "architecture",
        title,
        figure(picture),
        legend(
            (
                (box("fill-attention"), "key-value heads kept"),
                (box("fill-ffn"), "FFN width kept"),
                (swatch(*_halves()), "one linear map instead"),
                (swatch(_cross()), "nothing: the residual stream passes by"),
                (box("ghost"), "the parent's"),
            )
        ),
        None if data.costs is None else _parameters(data.costs.spec, child, parent),
        details("All layers as a table", _blocks(child, parent)),
        lede=f"Full height is the parent's. What is left: {summary(child, parent)}.",
        kinds=("counted",),
    )


def _halves() -> tuple[Html, Html]:
    return (
        tag("rect", x=1, y=1, width=10, height=12, class_="hatch-attention"),
        tag("rect", x=12, y=1, width=9, height=12, class_="hatch-ffn"),
    )


def _cross() -> Html:
    return tag("path", d="M6.5 2.5l9 9m0 -9l-9 9", class_="gone")


def _parameters(spec: ModelSpec, child: Architecture, parent: Architecture) -> Html:
    def counts(architecture: Architecture) -> dict[str, int]:
        found: Counter[str] = Counter()
        for block in architecture.blocks:
            found["attention"] += sub_block_parameters(spec, block.attention)
            found["FFN"] += sub_block_parameters(spec, block.ffn)
        found["embedding and head"] = embedding_parameters(spec) + head_parameters(spec)
        return {**found, "whole model": model_parameters(spec, architecture)}

    mine, own = counts(child), counts(parent)
    rows = [
        [
            name,
            parameters(own[name]),
            parameters(mine[name]),
            tag("span", tag("span", style=f"width:{100 * mine[name] / own[name]:.1f}%"), class_="meter"),
            percent(mine[name] / own[name]),
        ]
        for name in own
    ]
    return table(["parameters", "parent", "child", "", "kept"], rows, label="Parameters of parent and child")


def _blocks(child: Architecture, parent: Architecture) -> Html:
    def words(sub: SubBlock, own: SubBlock) -> str:
        return sub_block_name(sub) if sub == own else f"{sub_block_name(own)} → {sub_block_name(sub)}"

    rows = [
        [place, words(block.attention, own.attention), words(block.ffn, own.ffn)]
        for place, (block, own) in enumerate(zip(child.blocks, parent.blocks, strict=True))
    ]
    return table(["layer", "attention", "FFN"], rows, label="Blocks of all layers", text_columns=3)
