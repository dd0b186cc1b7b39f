"""Print searches and fronts for people. Computes nothing but ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.table import Table

from puzzlebench.model.blocks import Architecture, block_name
from puzzlebench.render import console
from puzzlebench.searching.compare import Compared
from puzzlebench.searching.quantities import format_value
from puzzlebench.searching.refining import RefinedArchitecture
from puzzlebench.searching.scenarios import ResourceLimit
from puzzlebench.searching.search import BatchOutcome, Found, SearchOutcome
from puzzlebench.searching.why_not import WhyNot

if TYPE_CHECKING:
    from puzzlebench.searching.pareto import Front

_STATUS = {
    "best": "the best",
    "solved": "{bound}, but another is better",
    "no better": "cannot be better than {bound}",
    "skipped": "cannot be better than {bound}",
    "infeasible": "nothing keeps the limits",
    "stopped": "stopped by the time limit; cannot be better than {bound}",
}


def print_search(
    facts: Mapping[str, Any],
    outcome: SearchOutcome,
    compared: Sequence[Compared],
    refined: RefinedArchitecture | None,
    parent: Mapping[str, float],
) -> None:
    """The best architecture with its costs and the parent's, how it was proven, and everything else that was asked."""
    _print_head(facts)
    out, best = console(), outcome.found[0]
    result = best.result
    proof = "proven best" if outcome.proven else "not proven: the time limit passed"
    out.print(
        f"[bold]batch {best.batch_size}: score {best.objective:.6g}[/bold] ({facts['scores']['metric']}, parent "
        f"{outcome.parent_score:.6g}); {proof}, bound {result.bound:.6g}, gap {result.gap or 0:.2%}",
        highlight=False,
    )
    out.print(
        f"{result.choices:,} choices, {result.choices_left:,} left after bounds; {result.solver}, "
        f"{outcome.seconds:.2f} s in all",
        highlight=False,
    )
    out.print(_costs_table(best, parent))
    if outcome.price is not None:
        confidence = facts["confidence"]
        out.print(
            f"limits hold with {confidence['level']:.0%} confidence each ({confidence['errors_are']} errors): the "
            f"score is {abs(outcome.price):.4g} worse than without",
            highlight=False,
        )
    for line in _architecture_lines(best.architecture):
        out.print(line, highlight=False)
    if len(outcome.batches) > 1:
        out.print(_batches_table(outcome.batches))
    if len(outcome.found) > 1:
        out.print(_solutions_table(outcome.found))
    if compared:
        out.print(_baselines_table(best, compared))
    if refined is not None:
        better = "better" if refined.real != refined.first_real else "no better"
        out.print(
            f"re-scored as whole models ({refined.evaluations} scored; {refined.stopped}): {refined.real:.6g}, "
            f"{better} than the search's best at {refined.first_real:.6g}; sum of single scores {refined.additive:.6g}",
            highlight=False,
        )
        if refined.real != refined.first_real:
            for line in _architecture_lines(refined.architecture):
                out.print(line, highlight=False)
    _print_foot(facts)


def print_why_not(facts: Mapping[str, Any], found: WhyNot) -> None:
    """Which limits clash, how near each can be had, and the least that has to give."""
    _print_head(facts)
    out = console()
    clash = [limit.text for limit in found.limits if limit.clashes]
    out.print("[bold]no architecture keeps these limits, at any of the batch sizes[/bold]")
    alone = len(clash) == 1
    out.print(
        f"nearest at batch {found.batch_size}: "
        + (f"{clash[0]} is out of reach" if alone else f"{' and '.join(clash)} cannot hold together"),
        highlight=False,
    )
    shown = Table()
    for name in ("limit", "nearest, the others kept", "nearest, alone", "cheapest relaxation"):
        shown.add_column(name)
    for limit in found.limits:
        shown.add_row(
            ("[bold]! [/bold]" if limit.clashes else "  ") + limit.text,
            limit.with_others or "the others clash without it",
            limit.alone,
            limit.relaxed or "as it is",
        )
    out.print(shown)
    out.print(f"so relaxed (by {found.change:.1%} in all) the best score is {found.objective:.6g}", highlight=False)
    if len(found.batches) > 1:
        needs = Table(title="what each batch size would need", title_justify="left")
        needs.add_column("batch", justify="right")
        needs.add_column("at the least")
        for batch_size, text in found.batches.items():
            needs.add_row(str(batch_size), text)
        out.print(needs)
    _print_foot(facts)


def print_front(facts: Mapping[str, Any], front: Front) -> None:
    """The points of a front."""
    _print_head(facts)
    shown = Table(title=f"best {front.y} for each {front.x}", title_justify="left")
    columns = [column for column in front.points[0].values if column not in (front.x, front.y)]
    for name in (front.x, front.y, "batch", *columns):
        shown.add_column(name, justify="right")
    for point in front.points:
        shown.add_row(
            _value(front.x, point.x),
            _value(front.y, point.y),
            str(point.batch_size),
            *(_value(column, point.values[column]) for column in columns),
        )
    console().print(shown)
    proven = sum(point.proven for point in front.points)
    console().print(f"{len(front.points)} points, {proven} proven", highlight=False)
    _print_foot(facts)


def _value(column: str, value: float) -> str:
    return f"{value:.6g}" if column == "score" else format_value(column, value)


def _print_head(facts: Mapping[str, Any]) -> None:
    out = console()
    out.print(f"[bold]{facts['title']}[/bold]", highlight=False)
    for scenario in facts["scenarios"]:
        own = [ResourceLimit(**limit).describe_named() for limit in scenario["limits"]]
        text = (
            f"scenario {scenario['name']}: prompts of {scenario['prefill_len']:,}, {scenario['decode_len']:,} generated"
        )
        out.print(text + (f"; {', '.join(own)}" if own else ""), highlight=False)
    limits = []
    for limit in facts["limits"]:
        ours = facts["memory_limit_is_default"] and limit["resource"] == "memory"
        limits.append(ResourceLimit(**limit).describe_named() + (" (90 % of the GPU)" if ours else ""))
    out.print(f"limits: {', '.join(limits) or 'none'}", highlight=False)
    chosen = f"{facts['layers']} layers, {facts['choices']:,} choices"
    if facts["removed"]:
        taken = sum(removal["count"] for removal in facts["removed"])
        chosen += f" ({taken:,} taken out by rules)"
    out.print(f"{chosen}; scores: {facts['scores']['metric']} ({facts['scores']['direction']})", highlight=False)


def _print_foot(facts: Mapping[str, Any]) -> None:
    cells = ", ".join(f"{count:,} {name}" for name, count in facts["costs"]["cells"].items())
    out = console()
    for removal in facts["removed"]:
        out.print(f"taken out: {removal['count']:,} by {removal['reason']}", highlight=False, soft_wrap=True)
    if facts["unused"]:
        out.print(f"costed but not scored: {', '.join(facts['unused'])}", highlight=False, soft_wrap=True)
    out.print(
        f"costs: {facts['costs']['from']} ({cells} cells; {facts['costs']['source']})", highlight=False, soft_wrap=True
    )
    out.print(f"scores: {facts['scores']['from']} ({facts['scores']['source']})", highlight=False, soft_wrap=True)


def _costs_table(best: Found, parent: Mapping[str, float]) -> Table:
    limits = {limit.column: limit for limit in best.check.limits}
    shown = Table()
    for name in ("", "chosen", "limit", "margin", "1 % more room", "parent", "ratio"):
        shown.add_column(name, justify="left" if name in ("", "limit") else "right")
    for column, value in best.check.values.items():
        limit = limits.get(column)
        margins = [margin for name, margin in best.margins.items() if name.startswith(f"{column} ")]
        gain = best.gains.get(column)
        shown.add_row(
            column,
            format_value(column, value),
            limit.limit.describe() if limit else "",
            f"±{margins[0] / _seconds(best, column, value):.1%}" if margins else "",
            f"{gain:+.3g}" if gain else "",
            format_value(column, parent[column]),
            f"{value / parent[column]:.3f}",
        )
    return shown


def _seconds(best: Found, column: str, value: float) -> float:
    """What a margin, in seconds, is relative to."""
    if not column.startswith("throughput"):
        return value
    return best.check.values[column.replace("throughput", "latency", 1)]


def _architecture_lines(architecture: Architecture) -> list[str]:
    """Runs of equal layers: "0-3 gqa_8+mlp_28672", as many to a line as fit."""
    runs = []
    for name, layers in groupby(enumerate(architecture.blocks), key=lambda one: block_name(one[1])):
        places = [place for place, _ in layers]
        first, last = places[0], places[-1]
        runs.append(f"{first}-{last} {name}" if last > first else f"{first} {name}")
    lines, line = [], "layers"
    for run in runs:
        if len(line) + len(run) > 115:
            lines.append(line)
            line = "      "
        line += f"  {run}"
    return [*lines, line]


def _batches_table(batches: Sequence[BatchOutcome]) -> Table:
    shown = Table(title="batch sizes", title_justify="left")
    shown.add_column("batch", justify="right")
    shown.add_column("score")
    for batch in batches:
        shown.add_row(str(batch.batch_size), _STATUS[batch.status].format(bound=f"{batch.bound:.6g}"))
    return shown


def _solutions_table(found: Sequence[Found]) -> Table:
    shown = Table(title="solutions that differ", title_justify="left")
    for name in ("", "score", "batch", "layers shared with those before"):
        shown.add_column(name, justify="right" if name != "layers shared with those before" else "left")
    for place, one in enumerate(found, start=1):
        shown.add_row(str(place), f"{one.objective:.6g}", str(one.batch_size), ", ".join(map(str, one.shared)))
    return shown


def _baselines_table(best: Found, compared: Sequence[Compared]) -> Table:
    shown = Table(title=f"other ways to choose, batch {best.batch_size}, same limits", title_justify="left")
    for name in ("", "score", "worse by", "seconds", ""):
        shown.add_column(name, justify="right" if name in ("score", "worse by", "seconds") else "left")
    shown.add_row("search", f"{best.objective:.6g}", "", f"{best.result.seconds:.2f}", "")
    for one in compared:
        shown.add_row(
            one.name,
            "none" if one.objective is None else f"{one.objective:.6g}",
            "" if one.worse_by is None else f"{one.worse_by:.4g}",
            f"{one.seconds:.2f}",
            one.note,
        )
    return shown
