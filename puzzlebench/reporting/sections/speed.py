"""Speed: what was predicted from the cost table and what was measured, parent and children."""

from __future__ import annotations

from typing import Final

from puzzlebench.reporting.charts.dots import Dot, Row, draw_dots
from puzzlebench.reporting.charts.frame import point
from puzzlebench.reporting.data import ReportData
from puzzlebench.reporting.documents import number
from puzzlebench.reporting.markup import Html, join, responsive, tag
from puzzlebench.reporting.numbers import (
    NOTHING,
    digits,
    milliseconds,
    percent,
    signed_percent,
    spread,
    tick,
    time_unit,
    times,
)
from puzzlebench.reporting.sections.parts import absent, figure, kind, legend, section, swatch, table
from puzzlebench.reporting.speeds import MEASURES, TITLES, Speed

_LONGEST: Final = 110
"""Pixels for names beside a chart; longer ones stand over their rows."""


def speed_section(data: ReportData) -> Html:
    """A chart per measure, the times and the speed-ups."""
    title = "Predicted and measured speed"
    if data.speed is None:
        return section("speed", title, absent("speed/speed.json", "measuring speed", data.passed_over))
    speed = data.speed
    facts = speed.stated
    pictures = []
    left = max(len(one.model) for one in speed.models) * 7 + 14
    above = left > _LONGEST
    for measure in MEASURES:
        found = [one.milliseconds[measure].value for one in (*speed.models, *speed.predicted.values())]
        scale, unit = time_unit(max(found))

        def draw(width: int, measure: str = measure, scale: float = scale, unit: str = unit) -> Html:
            return draw_dots(
                _rows(speed, measure, scale),
                width,
                label=f"{TITLES[measure]}, predicted and measured",
                title=unit,
                write=tick,
                left=left,
                from_zero=True,
                names_above=above,
            )

        pictures.append(figure(join((tag("h3", TITLES[measure]), responsive(draw, 310)))))
    agree = ", ".join(f"{name} {percent(share)}" for name, share in speed.tokens_agree.items())
    source, disturbed = facts.get("costs") or {}, number(facts.get("disturbed_share"))
    return section(
        "speed",
        title,
        tag("div", *pictures, class_="triple"),
        legend(
            (
                (swatch(point(11, 7, "dot", "accent", 4.5)), "measured, 95 % interval"),
                (swatch(point(11, 7, "diamond", "accent", 4.5)), "predicted, 95 % interval"),
            )
        )
        if speed.predicted
        else tag("p", "There is no prediction: the run gave no cost table of this machine.", class_="note"),
        _times(speed),
        _speed_ups(speed) if speed.children else None,
        tag(
            "p",
            f"Predicted from: {source['source']}. " if source.get("source") else "",
            f"The same tokens as greedy search by transformers on the same checkpoint: {agree}. " if agree else "",
            f"Rounds that other work on the machine disturbed: {percent(disturbed, 0)}." if disturbed > 0 else "",
            class_="note",
        ),
        *(tag("p", words, class_="note") for words in _other_setup(data, speed)),
        lede=(
            f"Whole models on {facts['device']}, {facts['engine']} {facts['engine_version']}, {facts['precision']}: "
            f"{speed.scenario_text}. Models took turns in {facts['sessions']} fresh processes."
        ),
    )


def _other_setup(data: ReportData, speed: Speed) -> list[str]:
    """How the cost table and the measurement differ in more than one being a sum of blocks."""
    found = list(speed.other_setup)
    costs = speed.stated.get("costs") or {}
    if data.costs is None or costs.get("source") != data.costs.table.metadata.get("source"):
        return found  # predicted from a table that is not at hand
    composition = str((data.costs.table.metadata.get("settings") or {}).get("composition", ""))
    on_gpu = costs.get("same_device") or speed.stated["device"] == ((data.run or {}).get("machine") or {}).get("gpu")
    if on_gpu and composition.startswith("CUDA graphs"):
        found.append(
            "The cost table is of CUDA graphs, measured was eager: where the host's launches take longer than the "
            "work, measured is slower than predicted."
        )
    return found


def _rows(speed: Speed, measure: str, scale: float) -> list[Row]:
    rows = []
    for place, taken in enumerate(speed.models):
        colour = "accent" if place else "parent"
        found = taken.milliseconds[measure]
        tip = f"{taken.model}, measured\n{milliseconds(found.value)}\n95 % interval {spread(found, milliseconds)}"
        dots = [Dot(value=found.scaled(1 / scale), shape="dot", colour=colour, tip=tip)]
        error = speed.error(taken.model, measure)
        if error is not None:
            said = speed.predicted[taken.model].milliseconds[measure]
            tip = (
                f"{taken.model}, predicted\n{milliseconds(said.value)}, {signed_percent(error)}\n"
                f"95 % interval {spread(said, milliseconds)}"
            )
            dots.append(
                Dot(value=said.scaled(1 / scale), shape="diamond", colour=colour, tip=tip, note=signed_percent(error))
            )
        rows.append(Row(name=taken.model, dots=tuple(dots)))
    return rows


def _times(speed: Speed) -> Html:
    rows: list[list[object]] = []
    for taken in speed.models:
        said_of = speed.predicted.get(taken.model)
        rows.append([taken.model])
        for measure in MEASURES:
            found, error = taken.milliseconds[measure], speed.error(taken.model, measure)
            said = None if said_of is None else said_of.milliseconds[measure]
            rows.append(
                [
                    TITLES[measure],
                    milliseconds(found.value),
                    spread(found, milliseconds),
                    NOTHING if said is None else milliseconds(said.value),
                    NOTHING if said is None else spread(said, milliseconds),
                    NOTHING if error is None else signed_percent(error),
                ]
            )
        rate = taken.tokens_per_s
        row: list[object] = ["Generated tokens/s", digits(rate.value), spread(rate, digits)]
        if said_of is None:
            rows.append([*row, *[NOTHING] * 3])
        else:
            said_rate = said_of.tokens_per_s
            error = said_rate.value / rate.value - 1
            rows.append([*row, digits(said_rate.value), spread(said_rate, digits), signed_percent(error)])
    heads = ["", kind("measured"), "95 % interval", kind("predicted"), "95 % interval", "error"]
    return table(heads, rows, label="Times of whole models, measured and predicted")


def _speed_ups(speed: Speed) -> Html:
    rows = []
    for child in speed.children:
        for measure in MEASURES:
            found = speed.speed_ups[child][measure]
            said = speed.predicted_speed_ups.get(child)
            rows.append(
                [
                    f"{child}, {measure}",
                    times(found.value),
                    spread(found, times),
                    times(said[measure]) if said else NOTHING,
                    signed_percent(speed.errors[child][measure]) if said else NOTHING,
                ]
            )
    heads = ["speed-up", kind("measured"), "95 % interval", kind("predicted"), "error"]
    return table(heads, rows, label="Speed-ups, measured and predicted")
