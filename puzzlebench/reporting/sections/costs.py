"""Where the time goes, parent beside child."""

from __future__ import annotations

from puzzlebench.profiling.block_costs import PHASES
from puzzlebench.reporting.charts.bars import draw_bars
from puzzlebench.reporting.data import ReportData
from puzzlebench.reporting.describe import gpu_name, scenario_words
from puzzlebench.reporting.markup import Html, responsive, tag
from puzzlebench.reporting.numbers import quantity, spread, times
from puzzlebench.reporting.sections.parts import absent, box, details, figure, legend, section, table
from puzzlebench.reporting.time_by_part import PARTS, TITLES, whole

_PHASE_TITLES = {"prefill": "Prefill, all prompts", "decode": "Decode, all later tokens"}


def costs_section(data: ReportData) -> Html:
    """Bars by part and the numbers under them."""
    title = "Where the time goes"
    if data.costs is None:
        return section("costs", title, absent("costs.parquet", "profiling", data.passed_over))
    costs, search = data.costs, data.search
    if search is None or costs.child_times is None or costs.parent_times is None:
        return section("costs", title, tag("p", f"Not to be told: {costs.why}.", class_="absent"))
    both = {"parent": costs.parent_times, "child": costs.child_times}
    pictures, rows = [], []
    for phase in PHASES:
        if phase == "decode" and not search.scenarios[0].steps:
            continue
        spent = {name: found[phase] for name, found in both.items()}

        def draw(width: int, phase: str = phase, spent: dict = spent) -> Html:  # type: ignore[type-arg]
            return draw_bars(spent, width, title=_PHASE_TITLES[phase])

        pictures.append(figure(responsive(draw, 470)))
        for part in (*PARTS, "whole"):
            own, mine = (whole(one) if part == "whole" else one[part] for one in spent.values())
            rows.append(
                [
                    f"{phase}, {TITLES.get(part, 'whole model')}",
                    *(cell for one in (own, mine) for cell in (_time(one.value), spread(one, _time))),
                    times(own.value / mine.value) if mine.value else "gone",
                ]
            )
    return section(
        "costs",
        title,
        tag("div", *pictures, class_="pair"),
        legend((box(f"fill-{part}"), TITLES[part]) for part in PARTS),
        details(
            "As a table",
            table(["", "parent", "95 % interval", "child", "95 % interval", "faster by"], rows, label="Time by part"),
        ),
        lede=(
            f"Summed from the cost table of {gpu_name(data)}, in "
            f"{scenario_words(search.scenarios[0], search.batch_size)}. Each phase has its own scale."
        ),
        kinds=("predicted",),
    )


def _time(seconds: float) -> str:
    return quantity("latency", seconds)
