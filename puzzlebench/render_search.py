"""Print searches and fronts for people. Computes nothing but ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from puzzlebench.model.blocks import Architecture, block_name
from puzzlebench.render import console
from puzzlebench.searching.compare import Compared
from puzzlebench.searching.quantities import format_value
from puzzlebench.searching.recheck import Recheck
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
    parent: Recheck | None,
) -> None:
    """The best architecture with its costs and the parent's, how it was proven, and everything else that was asked."""
    _print_head(facts)
    best = outcome.found[0]
    result = best.result
    proof = "proven best"
    if not outcome.best_proven:
        proof = (
            f"not proven, the time limit passed: at best {outcome.bound:.6g} is possible (gap {outcome.gap or 0:.2%})"
        )
    console().print(
        f"[bold]batch {best.batch_size}: score {best.objective:.6g}[/bold] ("
        + escape(f"{facts['scores']['metric']}, parent {outcome.parent_score:.6g}); {proof}"),
        highlight=False,
    )
    settled = f"; settled by: {result.solver}" if result.outcome == "optimal" else ""
    _say(
        f"{result.choices:,} choices at this batch size, {result.choices_left:,} left after bounds{settled}; "
        f"{outcome.seconds:.2f} s in all"
    )
    console().print(_costs_table(best.check, parent, best.gains, best.at_confidence, facts["confidence"]))
    if parent is None:
        _say("the parent is not shown: the cost table lacks cells of its blocks")
    elif not parent.holds:
        _say("! the parent does not keep this limit")
    if outcome.price is not None:
        confidence = facts["confidence"]
        _say(
            f"limits hold with {confidence['level']:.6g} confidence each ({confidence['errors_are']} errors); without "
            f"it the score could be {outcome.price:.4g} better"
        )
    _print_lines("layers", best.architecture)
    if len(outcome.batches) > 1:
        console().print(_batches_table(outcome.batches))
    if outcome.wanted > 1:
        _print_solutions(outcome)
    if compared:
        console().print(_baselines_table(best, compared, facts["confidence"]))
    if refined is not None:
        _print_refined(refined, parent)
    _print_foot(facts)


def _print_solutions(outcome: SearchOutcome) -> None:
    if len(outcome.found) > 1:
        console().print(_solutions_table(outcome.found))
        for place, one in enumerate(outcome.found[1:], start=2):
            _print_lines(f"layers of {place}", one.architecture)
    if len(outcome.found) < outcome.wanted:
        why = "no other keeps the limits and differs in enough layers" if outcome.proven else "the time limit passed"
        _say(f"{len(outcome.found)} of {outcome.wanted} solutions: {why}")
    elif outcome.best_proven and not outcome.proven:
        _say("not all of them are proven: the time limit passed")


def _print_refined(refined: RefinedArchitecture, parent: Recheck | None) -> None:
    better = "better than" if refined.real != refined.first_real else "the same as"
    _say(
        f"re-scored as whole models ({refined.evaluations} scored; {refined.stopped}): {refined.real:.6g}, "
        f"{better} the search's best at {refined.first_real:.6g}; its sum of single scores is {refined.additive:.6g}"
    )
    if refined.real != refined.first_real:
        console().print(_costs_table(refined.check, parent, {}, {}, None))
        _print_lines("layers", refined.architecture)


def _say(text: str) -> None:
    """A line that is printed as it is: names in brackets are no markup."""
    console().print(text, highlight=False, markup=False)


def print_why_not(facts: Mapping[str, Any], found: WhyNot) -> None:
    """Which limits clash, how near each can be had, and the least that has to give."""
    _print_head(facts)
    out = console()
    clash = [limit.asked.text for limit in found.limits if limit.clashes]
    where = "any of the batch sizes" if len(found.batches) > 1 else f"batch {found.batch_size}"
    out.print(f"[bold]no architecture keeps these limits at {where}[/bold]", highlight=False)
    if found.errors_taken_as is not None:
        confidence = facts["confidence"]
        text = f"margins are of {confidence['level']:.6g} confidence in each limit, errors {found.errors_taken_as}"
        if confidence["errors_are"] != found.errors_taken_as:
            text += f": wider than the {confidence['errors_are']} ones asked for, so less may have to give"
        _say(text)
    _say(f"{clash[0]} is out of reach" if len(clash) == 1 else f"{' and '.join(clash)} cannot hold together")
    shown = Table()
    at = f", batch {found.batch_size}" if len(found.batches) > 1 else ""
    for name in ("limit (! clashes)", "nearest, the others kept", "nearest, alone", f"smallest change in all{at}"):
        shown.add_column(name)
    for limit in found.limits:
        column = limit.asked.column
        shown.add_row(
            escape(("! " if limit.clashes else "  ") + limit.asked.text),
            "the others clash without it" if limit.with_others is None else _short(column, limit.with_others),
            _short(column, limit.alone),
            escape("as it is" if limit.relaxed is None else limit.relaxed.roomy_text),
        )
    out.print(shown)
    _say(
        f"with the limits of the last column (changed by {found.change:.1%} in all) the best score is "
        f"{found.objective:.6g}"
    )
    if len(found.batches) > 1:
        needs = Table(title="what each batch size would need", title_justify="left")
        needs.add_column("batch", justify="right")
        needs.add_column("smallest change in all")
        for batch_size, ends in found.batches.items():
            needs.add_row(str(batch_size), escape("; ".join(end.roomy_text for end in ends)))
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
    console().print(f"[bold]{escape(facts['title'])}[/bold]", highlight=False)
    for scenario in facts["scenarios"]:
        own = [ResourceLimit(**limit).describe_named() for limit in scenario["limits"]]
        text = (
            f"scenario {scenario['name']}: prompts of {scenario['prefill_len']:,}, {scenario['decode_len']:,} generated"
        )
        _say(text + (f"; {', '.join(own)}" if own else ""))
    limits = []
    for limit in facts["limits"]:
        ours = facts["memory_limit_is_default"] and limit["resource"] == "memory"
        limits.append(ResourceLimit(**limit).describe_named() + (" (90 % of the GPU)" if ours else ""))
    _say(f"limits: {', '.join(limits) or 'none'}")
    chosen = f"{facts['layers']} layers, {facts['choices']:,} choices"
    if facts["removed"]:
        taken = sum(removal["count"] for removal in facts["removed"])
        chosen += f" ({taken:,} more taken out by rules)"
    good = "lower" if facts["scores"]["direction"] == "minimise" else "higher"
    _say(f"{chosen}; scores: {facts['scores']['metric']}, {good} is better")


def _print_foot(facts: Mapping[str, Any]) -> None:
    cells = ", ".join(f"{count:,} {name}" for name, count in facts["costs"]["cells"].items())
    for removal in facts["removed"]:
        _say_long(f"taken out, {removal['count']:,}: {removal['reason']}")
    if facts["unused"]:
        _say_long(f"costed but not scored: {', '.join(facts['unused'])}")
    _say_long(f"costs: {facts['costs']['from']} ({cells} cells; {facts['costs']['source']})")
    _say_long(f"scores: {facts['scores']['from']} ({facts['scores']['source']})")


def _say_long(text: str) -> None:
    """The same on one line, however long: for what is copied or searched for."""
    console().print(text, highlight=False, markup=False, soft_wrap=True)


def _costs_table(
    check: Recheck,
    parent: Recheck | None,
    gains: Mapping[str, float],
    at_confidence: Mapping[tuple[str, str], float],
    confidence: Mapping[str, Any] | None,
) -> Table:
    """What it takes; a limit with a gain binds."""
    limits = {limit.column: limit.limit for limit in check.limits}
    broken = set() if parent is None else {limit.column for limit in parent.limits if not limit.holds}
    shown = Table()
    shown.add_column("")
    shown.add_column("chosen", justify="right")
    if at_confidence:
        assert confidence is not None
        shown.add_column(f"at {confidence['level']:.6g}", justify="right")
    shown.add_column("limit")
    if gains:
        shown.add_column("binds: score, 1 % more room", justify="right", max_width=13)
    if parent is not None:
        shown.add_column(f"parent, batch {parent.batch_size}", justify="right", min_width=14)
        shown.add_column("ratio", justify="right")
    for column, value in check.values.items():
        row = [column, _short(column, value)]
        if at_confidence:
            row.append(", ".join(_short(column, at) for (name, _), at in at_confidence.items() if name == column))
        row.append(limits[column].describe() if column in limits else "")
        if gains:
            row.append(f"{gains[column]:+.3g}" if column in gains else "")
        if parent is not None:
            row.append(("! " if column in broken else "") + _short(column, parent.values[column]))
            row.append(f"{value / parent.values[column]:.3f}")
        shown.add_row(*map(escape, row))
    return shown


def _short(column: str, value: float) -> str:
    """A value beside its column's name, which says already what it counts."""
    return format_value(column, value).removesuffix(" parameters")


def _print_lines(title: str, architecture: Architecture) -> None:
    for line in _architecture_lines(title, architecture):
        _say(line)


def _architecture_lines(title: str, architecture: Architecture) -> list[str]:
    """Runs of equal layers: "0-3 gqa_8+mlp_28672", as many to a line as fit."""
    runs = []
    for name, layers in groupby(enumerate(architecture.blocks), key=lambda one: block_name(one[1])):
        places = [place for place, _ in layers]
        first, last = places[0], places[-1]
        runs.append(f"{first}-{last} {name}" if last > first else f"{first} {name}")
    lines, line = [], title
    for run in runs:
        if len(line) + len(run) > 115:
            lines.append(line)
            line = " " * len(title)
        line += f"  {run}"
    return [*lines, line]


def _batches_table(batches: Sequence[BatchOutcome]) -> Table:
    shown = Table(title="batch sizes", title_justify="left")
    shown.add_column("batch", justify="right")
    shown.add_column("best score")
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


def _baselines_table(best: Found, compared: Sequence[Compared], confidence: Mapping[str, Any] | None) -> Table:
    title = f"other ways to choose, batch {best.batch_size}, same limits"
    if confidence is not None:
        title += " and confidence"
        if confidence["errors_are"] == "independent":
            title += " (margins made linear at the search's best)"
    shown = Table(title=title, title_justify="left")
    for name in ("", "score", "worse by", "seconds", ""):
        shown.add_column(name, justify="right" if name in ("score", "worse by", "seconds") else "left")
    shown.add_row("search", f"{best.objective:.6g}", "", f"{best.result.seconds:.2f}", "")
    for one in compared:
        shown.add_row(
            one.name,
            "none" if one.objective is None else f"{one.objective:.6g}",
            "" if one.worse_by is None else f"{one.worse_by:.4g}",
            f"{one.seconds:.2f}",
            escape(one.note),
        )
    return shown
