"""How the losses of global distillation fell."""

from __future__ import annotations

from puzzlebench.reporting.charts.curves import draw_curves
from puzzlebench.reporting.charts.frame import line, point
from puzzlebench.reporting.data import ReportData
from puzzlebench.reporting.losses import Curve, Distillation
from puzzlebench.reporting.markup import Html, responsive, tag
from puzzlebench.reporting.numbers import NOTHING, digits, duration, signed_percent
from puzzlebench.reporting.sections.parts import absent, figure, legend, section, swatch, table


def distillation_section(data: ReportData) -> Html:
    """Curves, and where they began and ended."""
    title = "Global distillation"
    found = data.distillation
    if found is None:
        return section("distillation", title, absent("distilled/distillation.json", "distillation", data.passed_over))
    facts = found.stated
    rate = found.tokens / found.seconds if found.seconds > 0 else float("nan")
    ends = [curve for curve in (*found.curves, *found.others) if curve.last is not None]
    return section(
        "distillation",
        title,
        figure(responsive(lambda width: draw_curves(found.curves, width)))
        if found.curves
        else tag("p", "It kept no losses.", class_="absent"),
        legend(
            (
                (swatch(line(1, 7, 21, 7, "curve accent")), "on the batch trained on"),
                (swatch(point(11, 7, "dot", "accent", 4)), "on held-out text"),
            )
        ),
        table(["loss, held out", "before", "after", "change"], map(_row, ends), label="Held-out losses")
        if ends
        else None,
        _lengths(found),
        tag(
            "p", f"Not trained on, for comparison: {', '.join(_words(curve) for curve in found.others)}.", class_="note"
        )
        if found.others
        else None,
        lede=(
            f"{found.steps:,} steps on {found.tokens:,} tokens of {facts['data'] or 'the default text'} in "
            f"{duration(found.seconds)} ({digits(rate)} tokens/s) on {facts['device']}, {facts['precision']}, "
            f"{facts['world_size']} process{'es' if facts['world_size'] != 1 else ''}."
        ),
        kinds=("measured",),
    )


def _row(curve: Curve) -> list[object]:
    first, last = curve.first, curve.last
    assert last is not None, "rows are of curves with an end"
    change = signed_percent(last / first - 1) if first else NOTHING
    return [_words(curve), NOTHING if first is None else digits(first), digits(last), change]


def _lengths(found: Distillation) -> Html | None:
    """A note where held-out rows grew: losses of rows of different lengths do not compare."""
    grown = {length for curve in (*found.curves, *found.others) for length in curve.lengths if length is not None}
    if len(grown) < 2:
        return None
    words = " and ".join(f"{length:,}" for length in sorted(grown))
    return tag(
        "p",
        f"Held-out rows are of {words} tokens. Losses of different lengths do not compare: a change is given where the "
        "last rows are as long as those before training.",
        class_="note",
    )


def _words(curve: Curve) -> str:
    return curve.name.replace("_", " ")
