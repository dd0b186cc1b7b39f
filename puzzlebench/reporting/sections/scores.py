"""What each block costs in quality, and which was chosen."""

from __future__ import annotations

from puzzlebench.reporting.charts.heat import Heat, draw_heat, draw_key, heat_of
from puzzlebench.reporting.data import ReportData
from puzzlebench.reporting.describe import metric_name
from puzzlebench.reporting.markup import Html, join, responsive, tag
from puzzlebench.reporting.numbers import digits
from puzzlebench.reporting.sections.parts import absent, details, figure, legend, section, swatch, table


def scores_section(data: ReportData) -> Html:
    """Heat map, its colours, and all scores."""
    title = "What each block costs in quality"
    if data.scores is None:
        return section("scores", title, absent("scores/kl.parquet", "scoring", data.passed_over))
    heat, metric = heat_of(data.scores), metric_name(data.scores.metric)
    chosen = None if data.search is None else data.search.architecture
    samples = sorted({int(count) for count in data.scores.frame["samples"]} - {0})
    behind = f", each on {samples[-1]:,} samples" if samples else ""
    return section(
        "scores",
        title,
        figure(
            join(
                (
                    tag("div", draw_key(heat, 340, metric), class_="key-box"),
                    responsive(lambda width: draw_heat(heat, width, chosen=chosen, metric=metric)),
                )
            )
        ),
        legend([(swatch(tag("rect", x=4, y=2, width=14, height=10, class_="pick")), "chosen")]) if chosen else None,
        details("All scores as a table", _table(heat), wide=True),
        lede=(
            f"The parent with one block replaced: {metric}{behind}. A row is a layer, a column an FFN, a panel a kind "
            "of attention. Outlined: what was chosen."
        ),
        kinds=("measured",) if samples else ("counted",),
    )


def _table(heat: Heat) -> Html:
    pairs = [(attention, ffn) for attention in heat.attention for ffn in heat.ffn]
    rows = [
        [
            f"{attention} + {ffn}",
            *(
                digits(heat.scores[layer, attention, ffn], 2) if (layer, attention, ffn) in heat.scores else ""
                for layer in range(heat.layers)
            ),
        ]
        for attention, ffn in pairs
    ]
    return table(["block", *(f"{layer}" for layer in range(heat.layers))], rows, label="Scores by block and layer")
