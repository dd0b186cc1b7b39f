"""The head of the page: what was made of what, and the figures that matter most."""

from __future__ import annotations

from puzzlebench.reporting.charts.layers import draw_layers
from puzzlebench.reporting.data import ReportData
from puzzlebench.reporting.describe import gpu_name, memory_name, model_name, scenario_words, stage_duration
from puzzlebench.reporting.markup import NARROW, Html, tag
from puzzlebench.reporting.numbers import (
    NBSP,
    day,
    duration,
    parameters,
    percent,
    quantity,
    signed_percent,
    spread,
    times,
)
from puzzlebench.reporting.sections.parts import Kind, kind
from puzzlebench.searching.scenarios import column_name


def head(data: ReportData) -> Html:
    """Title, a sentence, headline figures, and the child as a picture."""
    created = str((data.run or {}).get("created") or "")
    tiles = [tile for tile in (_speed(data), _kept(data), _size(data), _took(data)) if tile is not None]
    return tag(
        "header",
        tag(
            "div",
            tag("p", "Report of a run", f" · {day(created)}" if created else "", class_="eyebrow"),
            tag("h1", _title(data)),
            tag("p", _story(data), class_="story"),
            class_="words",
        ),
        _picture(data),
        tag("div", *tiles, class_="tiles") if tiles else None,
        class_="hero",
        id="top",
    )


def _title(data: ReportData) -> str:
    name = model_name(data)
    if data.speed is not None and data.speed.children:
        faster = data.speed.speed_ups[data.speed.children[0]]["generate"].value
        return f"{name}, {times(faster)} as fast"
    return f"A smaller {name}" if data.search is not None else f"A run on {name}"


def _story(data: ReportData) -> str:
    if data.search is None:
        return "This run has not chosen an architecture yet; what it has so far is below."
    search, gpu = data.search, gpu_name(data)
    words = (
        f"A child of {model_name(data)}, chosen layer by layer by what its blocks cost on {gpu} "
        f"in {scenario_words(search.scenarios[0], search.batch_size)}"
    )
    if len(search.scenarios) > 1:
        words += f", and {len(search.scenarios) - 1} more scenario{'s' if len(search.scenarios) > 2 else ''}"
    if data.distillation is not None:
        words += f". Then distilled as a whole on {data.distillation.tokens:,} tokens"
    if data.speed is not None:
        words += f". Measured on {data.speed.stated['device']}"
    return words + "."


def _picture(data: ReportData) -> Html | None:
    if data.search is None or data.parent is None:
        return None
    label = "The child's layers beside the parent's"
    picture = draw_layers(data.search.architecture, data.parent, NARROW, height=56, label=label, tips=False)
    return tag("div", picture, class_="hero-picture", aria_hidden="true")


def _tile(title: str, value: str, where: Kind, interval: str, *notes: object) -> Html:
    parts = value.replace(NBSP, " ").split(" ")
    units = [tag("span", part, class_="unit") if not part[0].isdigit() else part for part in parts]
    return tag(
        "div",
        tag("h2", title, class_="tile-title"),
        tag("p", *_between(units), class_="figure"),
        tag("p", kind(where), f" 95 % interval {interval}" if interval else "", class_="tile-note"),
        *(tag("p", note, class_="tile-note") for note in notes if note),
        class_="tile",
    )


def _between(parts: list[str]) -> list[str]:
    """The parts with thin spaces between them."""
    return [piece for part in parts for piece in (part, "\u202f")][:-1]


def _speed(data: ReportData) -> Html | None:
    speed = data.speed
    if speed is None or not speed.children:
        return None
    child = speed.children[0]
    faster = speed.speed_ups[child]["generate"]
    note: object = "no cost table to predict it from"
    if child in speed.predicted_speed_ups:
        predicted, error = speed.predicted_speed_ups[child]["generate"], speed.errors[child]["generate"]
        note = tag("span", kind("predicted"), f" {times(predicted)}, off by {signed_percent(error)}")
    other = "The cost table is of another setup, see Speed" if speed.other_setup else None
    return _tile("Speed-up of generation", times(faster.value), "measured", spread(faster, times), note, other)


def _kept(data: ReportData) -> Html | None:
    kept = data.retention
    if kept is None:
        return None
    before = data.realised if data.distilled is not None else None
    return _tile(
        "Quality kept",
        percent(kept.overall.value),
        "measured",
        spread(kept.overall, percent),
        f"Mean over {len(kept.tasks)} tasks"
        + (f"; {percent(before.overall.value)} before distillation" if before else ""),
    )


def _size(data: ReportData) -> Html | None:
    search = data.search
    if search is None or "params" not in search.parent_values:
        return None
    mine, own = search.values, search.parent_values
    memory = column_name("memory", search.scenarios[0], search.scenarios)
    used = f" {quantity(memory, mine[memory])} of {memory_name(data)}, parent {quantity(memory, own[memory])}"
    return _tile(
        "Parameters kept",
        percent(mine["params"] / own["params"]),
        "counted",
        "",
        f"{parameters(mine['params'])} of {parameters(own['params'])}",
        tag("span", kind("predicted"), used),
    )


def _took(data: ReportData) -> Html | None:
    stages = (data.run or {}).get("stages") or []
    if not stages:
        return None
    longest = max(stages, key=lambda stage: stage["seconds"])
    resumed = sum(bool(stage.get("resumed")) for stage in stages)
    return _tile(
        "Time of the run, at least" if resumed else "Time of the run",
        duration(sum(stage["seconds"] for stage in stages)),
        "measured",
        "",
        f"{len(stages)} stages; longest: {longest['name']}, {stage_duration(longest)}",
        f"{resumed} resumed after an interruption: only the last attempt counts" if resumed else None,
    )
