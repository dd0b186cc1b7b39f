"""Print a comparison and a history for people. Computes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.markup import escape
from rich.table import Table

from puzzlebench.comparing.comparison import VERDICTS, CellVerdict, Comparison
from puzzlebench.comparing.history import Change, Entry
from puzzlebench.comparing.words import (
    amount,
    basis_line,
    change,
    change_with_interval,
    headline,
    more_sessions,
    probability,
    suite_line,
)
from puzzlebench.render import console

_OPEN_SHOWN = 10
_STYLES = {"SLOWER": "bold red", "FASTER": "green", "AMBIGUOUS": "yellow", "SAME": ""}


def print_comparison(comparison: Comparison, *, every_cell: bool = False) -> None:
    """What matters: slower, faster and missing cells, some that are open, and what to know; or every cell."""
    out = console()
    _say(basis_line(comparison))
    shown: list[CellVerdict] = []
    for verdict in VERDICTS:
        cells = comparison.of(verdict)
        limit = len(cells) if every_cell or verdict in ("SLOWER", "FASTER") else _OPEN_SHOWN
        shown += () if verdict == "SAME" and not every_cell else cells[:limit]
    if shown:
        out.print(_cells(comparison, shown))
    hidden = len(comparison.of("AMBIGUOUS")) - sum(cell.verdict == "AMBIGUOUS" for cell in shown)
    if hidden:
        _say(f"and {hidden} more AMBIGUOUS")
    for names, what in ((comparison.missing, "missing in NEW"), (comparison.appeared, "only in NEW")):
        if names:
            _say(f"{what}: {', '.join(names)}")
    for label in comparison.labels:
        _say(f"differs: {label}")
    for note in comparison.notes:
        _say(f"note: {note}")
    _say(suite_line(comparison))
    out.print(headline(comparison), style="bold", highlight=False, markup=False, soft_wrap=True)


def print_history(entries: Sequence[Entry]) -> None:
    """The results of a history, oldest first."""
    table = Table()
    for name in ("date", "revision", "machine and settings", "cells", "sessions"):
        table.add_column(name, justify="right" if name in ("cells", "sessions") else "left")
    for entry in entries:
        sessions = "" if entry.sessions is None else str(entry.sessions)
        table.add_row(
            *map(escape, (entry.created, entry.revision or "unknown", entry.digest, str(len(entry.cells)), sessions))
        )
    console().print(table)


def print_changes(changes: Sequence[Change], *, results: int) -> None:
    """Where cells changed, newest first."""
    if not changes:
        _say(f"no change in {results} results")
        return
    table = Table()
    for name in ("cell", "since", "after", "change", "p", "with it"):
        table.add_column(name, justify="right" if name in ("change", "p") else "left", overflow="fold")
    for one in sorted(changes, key=lambda one: one.created, reverse=True):
        table.add_row(
            escape(one.cell),
            escape(f"{one.revision or 'unknown'} ({one.created})"),
            escape(one.previous or "unknown"),
            change(one.ratio),
            probability(one.p),
            escape("; ".join(one.labels)),
        )
    console().print(table)
    _say(f"{len(changes)} changes in {results} results")


def _cells(comparison: Comparison, cells: Iterable[CellVerdict]) -> Table:
    """Times, or the ratio relative to the suite where that is judged: both do not fit into 120 columns."""
    table = Table()
    middle = ("change", "relative to the suite") if comparison.relative else ("base", "new", "change")
    for name in ("cell", "verdict", *middle, "settled by"):
        right = name in middle
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=right)
    for cell in cells:
        row = [escape(cell.name), f"[{style}]{cell.verdict}[/]" if (style := _STYLES[cell.verdict]) else cell.verdict]
        changed = escape(change_with_interval(cell.ratio))
        if comparison.relative:
            row += [changed, escape(change_with_interval(cell.relative))]
        else:
            row += [amount(cell.base, cell.unit), amount(cell.new, cell.unit), changed]
        table.add_row(*row, more_sessions(cell))
    return table


def _say(text: str) -> None:
    console().print(text, highlight=False, markup=False, soft_wrap=True)
