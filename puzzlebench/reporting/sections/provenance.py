"""Where every number comes from: machine, versions, recipe, stages, tables, fingerprints."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import yaml

import puzzlebench
from puzzlebench.reporting.data import ReportData
from puzzlebench.reporting.describe import stage_duration
from puzzlebench.reporting.markup import Html, join, tag
from puzzlebench.reporting.numbers import NOTHING, duration, moment, percent, quantity
from puzzlebench.reporting.sections.parts import KINDS, absent, details, facts, fingerprint, kind, section, table

_MACHINE = {
    "cpu": "CPU",
    "cores": "cores",
    "memory_bytes": "memory",
    "gpu": "GPU",
    "platform": "platform",
    "python": "Python",
    "torch": "PyTorch",
    "transformers": "transformers",
    "lm_eval": "lm-eval",
}


def provenance_section(data: ReportData) -> Html:
    """The last section."""
    run = data.run
    return section(
        "provenance",
        "Provenance",
        tag("h3", "What the words mean"),
        facts((kind(name), meaning) for name, meaning in KINDS.items()),
        tag(
            "div",
            _part("Machine and versions", absent("run.json", "the run") if run is None else facts(_machine(run))),
            _part("Cost table", absent("costs.parquet", "profiling") if data.costs is None else facts(_costs(data))),
            _part("Scores and search", facts(_choice(data))),
            _part("Evaluation and this page", facts(_rest(data))),
            class_="columns",
        ),
        tag("h3", "Stages"),
        absent("run.json", "the run") if run is None else _stages(run),
        join((tag("h3", "Files that are not shown"), left)) if (left := _passed_over(data)) else None,
        tag("h3", "Recipe"),
        absent("run.json", "the run") if run is None else _recipe(run),
        lede="What was run where, and how far its numbers go.",
    )


def _part(title: str, content: Html) -> Html:
    return tag("div", tag("h3", title), content)


def _machine(run: Mapping[str, Any]) -> list[tuple[object, object]]:
    machine = run["machine"]
    rows: list[tuple[object, object]] = [("puzzlebench", run.get("puzzlebench_version", NOTHING))]
    for key, value in machine.items():
        if value is not None:
            shown = quantity("memory", float(value)) if key == "memory_bytes" else str(value)
            rows.append((_MACHINE.get(key, key.replace("_", " ")), shown))
        elif key == "gpu":
            rows.append(("GPU", "none"))
    return rows


def _costs(data: ReportData) -> list[tuple[object, object]]:
    assert data.costs is not None
    table, first = data.costs.table, data.costs.table.frame.iloc[0]
    cells = table.frame["provenance"].value_counts()
    whole = int(cells.sum())
    kinds = ", ".join(f"{count:,} {name} ({percent(count / whole, 0)})" for name, count in cells.items())
    rows: list[tuple[object, object]] = [
        ("device", str(first["gpu"])),
        ("engine", f"{first['engine']} {first['engine_version']}"),
        (
            "number formats",
            f"weights {first['weight_dtype']}, KV cache {first['kv_dtype']}, "
            f"tensor parallel {first['tensor_parallel']}",
        ),
        ("cells", kinds),
        ("source", str(table.metadata.get("source", NOTHING))),
        ("made", moment(table.metadata.get("created", NOTHING))),
    ]
    if missing := len(table.metadata.get("misses", [])):
        rows.append(("cells that could not be had", f"{missing:,}"))
    return rows


def _choice(data: ReportData) -> list[tuple[object, object]]:
    rows: list[tuple[object, object]] = []
    if data.scores is not None:
        stated = data.scores.metadata
        rows += [
            ("scores", f"{data.scores.metric}, {data.scores.direction}"),
            ("scores' source", str(stated["source"])),
            ("scores made", moment(stated.get("created", NOTHING))),
        ]
    if data.search is not None:
        search = data.search
        rows += [
            ("search", f"{search.stated['outcome']}, {search.stated['solutions'][0]['solver']}"),
            ("choices", f"{search.stated['choices']:,} in {search.stated['layers']} layers"),
            ("search took", duration(search.stated["seconds"])),
        ]
    if data.front is not None:
        proven = sum(point.proven for point in data.front.points)
        rows.append(("front", f"{len(data.front.points)} points, {proven} proven; {data.front.provenance}"))
    return rows


def _rest(data: ReportData) -> list[tuple[object, object]]:
    rows: list[tuple[object, object]] = []
    if data.distillation is not None and (print_ := data.distillation.stated.get("parent_fingerprint")):
        rows.append(("parent's fingerprint", fingerprint(str(print_))))
    if data.retention is not None:
        stated = data.retention.stated
        rows.append(("evaluated", f"lm-eval {stated['lm_eval_version']}, {moment(stated.get('created', NOTHING))}"))
    if data.speed is not None:
        facts_ = data.speed.stated
        rows.append(
            (
                "speed measured on",
                f"{facts_['device']}, threads: {facts_['threads']}, {moment(facts_.get('created', NOTHING))}",
            )
        )
    rows.append(
        (
            "this page",
            f"puzzlebench {puzzlebench.__version__}, {moment(datetime.datetime.now(datetime.UTC).isoformat())}",
        )
    )
    return rows


def _stages(run: Mapping[str, Any]) -> Html:
    stages = run["stages"]
    longest = max((stage["seconds"] for stage in stages), default=1.0) or 1.0
    rows = [
        [
            stage["name"],
            tag("span", tag("span", style=f"width:{max(100 * stage['seconds'] / longest, 0.5):.1f}%"), class_="meter"),
            stage_duration(stage),
            moment(stage.get("finished", NOTHING)).removesuffix(" UTC"),
            fingerprint(str(stage.get("key", NOTHING))),
        ]
        for stage in stages
    ]
    found = table(["stage", "", "took", "finished (UTC)", "fingerprint"], rows, label="Stages of the run")
    if not any(stage.get("resumed") for stage in stages):
        return found
    words = "At least: the stage was interrupted and resumed, and only its last attempt was timed."
    return join((found, tag("p", words, class_="note")))


def _passed_over(data: ReportData) -> Html | None:
    """Files of other runs, by why they are not shown."""
    reasons: dict[str, list[str]] = {}
    for file, why in data.passed_over.items():
        reasons.setdefault(why, []).append(file)
    if not reasons:
        return None
    return tag("ul", *(tag("li", f"{', '.join(files)}: {why}.") for why, files in reasons.items()), class_="note")


def _recipe(run: Mapping[str, Any]) -> Html:
    text = tag("pre", tag("code", yaml.safe_dump(dict(run["recipe"]), sort_keys=False, allow_unicode=True)), tabindex=0)
    return details("All that was asked, as YAML", text)
