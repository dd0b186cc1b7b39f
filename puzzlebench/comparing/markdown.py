"""The text of one pull-request comment, which updates itself: whoever posts it looks for the hidden first line.

GitHub takes comments of 65,536 characters. Every part that can grow has its share; what does not fit is
counted.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Final

from puzzlebench.comparing.comparison import VERDICTS, CellVerdict, Comparison
from puzzlebench.comparing.words import (
    HOW_TO_READ,
    amount,
    basis_line,
    change_with_interval,
    headline,
    more_sessions,
    probability,
    suite_line,
)

_ROOM: Final = 60_000
_ROOM_MATTER: Final = 25_000
_ROOM_LIST: Final = 6_000
_LONGEST_NAME: Final = 200
_MARKUP: Final = re.compile(r"[\\`*\[\]|~!@:$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_OPEN_SHOWN: Final = 10


def marker(name: str = "benchmarks") -> str:
    """The hidden line that a comment begins with; by it the next run finds the comment to replace.

    Raises:
        ValueError: the name could end the hidden line.
    """
    if not re.fullmatch(r"[\w./]+(-[\w./]+)*", name):
        raise ValueError(f"a comment's name is letters, digits and single dashes, such as cpu-gate, not {name!r}")
    return f"<!-- puzzlebench {name} -->"


def comment(comparison: Comparison, *, name: str = "benchmarks", title: str = "Benchmarks", confirmed: str = "") -> str:
    """The comment's text.

    Args:
        name: tells the comments of several suites on one pull request apart.
        title: its heading.
        confirmed: a sentence on how findings were measured again, where they were.
    """
    head = [marker(name), f"### {_text(title)}: {_summary(comparison)}", "", _text(suite_line(comparison) + "."), ""]
    matter = [*comparison.of("SLOWER"), *comparison.of("FASTER")]
    if matter:
        head += [*_fitting(_table(comparison, matter), _ROOM_MATTER, "slower or faster cells"), ""]
    for names, what in ((comparison.missing, "Missing in NEW"), (comparison.appeared, "Only in NEW")):
        if names:
            head += [f"{what}: {', '.join(map(_code, names[:_OPEN_SHOWN]))}{_rest(len(names), _OPEN_SHOWN)}.", ""]
    if comparison.labels:
        labels = [f"- {_text(label)}" for label in comparison.labels]
        head += ["Differs between BASE and NEW:", *_fitting(labels, _ROOM_LIST, "differences"), ""]
    if confirmed:
        head += [_text(confirmed), ""]
    foot = ["<details><summary>How to read this</summary>", "", _text(basis_line(comparison)) + ".", ""]
    foot += [f"- {_text(line)}" for line in HOW_TO_READ]
    foot += _fitting([f"- {_text(note)}" for note in comparison.notes], _ROOM_LIST, "notes")
    foot += [f"- BASE {_code(comparison.revisions[0] or 'unknown')}, NEW {_code(comparison.revisions[1] or 'unknown')}"]
    foot += ["", "</details>", ""]
    cells = [cell for verdict in VERDICTS for cell in comparison.of(verdict)]
    fixed = len("\n".join([*head, *foot]))
    rows = _fitting(_table(comparison, cells), _ROOM - fixed, "cells")
    body = [f"<details><summary>All {len(cells)} cells</summary>", "", *rows, "", "</details>", ""]
    return "\n".join([*head, *body, *foot])


def _fitting(lines: list[str], room: int, what: str) -> list[str]:
    """The first lines that fit into so many characters, and how many did not."""
    for kept, line in enumerate(lines):
        room -= len(line) + 1
        if room < 0:
            return [*lines[:kept], "", f"{len(lines) - kept} {what} did not fit into a comment."]
    return lines


def _summary(comparison: Comparison) -> str:
    if comparison.suite_slower:
        return f"the whole suite is slower; {_text(headline(comparison))}"
    return _text(headline(comparison))


def _table(comparison: Comparison, cells: Sequence[CellVerdict]) -> list[str]:
    """Lines of a table; the first two are its head."""
    relative = ["relative to the suite"] if comparison.relative else []
    heads = ["cell", "verdict", "base", "new", "change", *relative, "p", ""]
    sides = [":--" if name in ("cell", "verdict", "") else "--:" for name in heads]
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join(sides)} |"]
    for cell in cells:
        bold = "**" if cell.verdict == "SLOWER" else ""
        row = [_code(cell.name), f"{bold}{cell.verdict}{bold}"]
        row += [amount(cell.base, cell.unit), amount(cell.new, cell.unit), change_with_interval(cell.ratio)]
        row += [change_with_interval(cell.relative)] if comparison.relative else []
        row += [probability(cell.p), more_sessions(cell)]
        lines.append(f"| {' | '.join([row[0], *map(_text, row[1:])])} |")
    return lines


def _rest(count: int, shown: int) -> str:
    return f" and {count - shown} more" if count > shown else ""


def _text(words: str) -> str:
    """Words that Markdown leaves as they are; verdicts in bold stay bold."""
    return re.sub(r"([\\`_\[\]|~#@])", r"\\\1", html.escape(words, quote=False).replace("\n", " "))


def _code(words: str) -> str:
    """A name as code, whatever is in it: Markdown inside HTML is Markdown still, unless written as entities."""
    if len(words) > _LONGEST_NAME:
        words = f"{words[: _LONGEST_NAME - 1]}…"
    escaped = _MARKUP.sub(lambda found: f"&#{ord(found.group())};", html.escape(" ".join(words.split())))
    return f"<code>{escaped}</code>"
