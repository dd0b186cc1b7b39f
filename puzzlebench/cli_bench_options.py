"""What `bench`, `compare`, `gate` and `history` have in common: options of measuring and judging, and reports."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from puzzlebench.comparing.comparison import Comparison
    from puzzlebench.gating.outcome import GateResult

EXIT_CODES: Final = (
    "Exit codes: 0 nothing is slower; 1 something is (`gate`: in both looks, unless --no-rerun), a cell is gone or a "
    "prediction fails; 2 bad input, or a revision that cannot run the suite; 4 it cannot tell (with --strict only); "
    "130 interrupted."
)


def add_measurement(parser: argparse.ArgumentParser, *, sessions: int, seconds: float, of: str) -> None:
    """Options of `bench` and `gate`: which benchmarks, on what, how often and how long."""
    group = parser.add_argument_group("what to measure, and how long")
    group.add_argument(
        "--only", action="append", default=[], metavar="PATTERN", help="benchmarks by name, as in a shell; repeat"
    )
    group.add_argument("--sessions", type=int, default=sessions, help=f"{of} (%(default)s)")
    group.add_argument("--seconds", type=float, default=seconds, help="of timing, all sessions together (%(default)s)")
    group.add_argument(
        "--device", default="local", help="cpu, cuda, cuda:N; local: a GPU if there is one (%(default)s)"
    )
    group.add_argument("--threads", type=int, default=1, help="of CPU work; 1 repeats best (%(default)s)")


def add_judgement(parser: argparse.ArgumentParser) -> None:
    """Options of `compare` and `gate`: how to judge, and which reports to write."""
    group = parser.add_argument_group("how to judge")
    group.add_argument("--band", type=float, help="relative change that nobody minds (0.02)")
    group.add_argument("--rate", type=float, help="of false findings among the cells (0.01)")
    group.add_argument("--strict", action="store_true", help="exit with 4 where it cannot tell: see docs/regression.md")
    group = parser.add_argument_group("reports")
    group.add_argument("--markdown", type=Path, metavar="FILE", help="the text of a pull-request comment")
    group.add_argument("--junit", type=Path, metavar="FILE", help="JUnit XML")
    group.add_argument("--html", type=Path, metavar="FILE", help="a page with plots")
    group.add_argument("--name", default="benchmarks", help="tells comments of several suites apart (%(default)s)")
    group.add_argument("--all", action="store_true", help="print every cell, SAME ones too")


def given(arguments: argparse.Namespace, *names: str) -> dict[str, float]:
    """Options that were given; of the others the library knows the defaults."""
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def check_reports(arguments: argparse.Namespace) -> None:
    """Refuse, before the work, what cannot be written after it."""
    from puzzlebench.comparing.markdown import marker
    from puzzlebench.files import check_file

    marker(arguments.name)
    for path in (arguments.markdown, arguments.junit, arguments.html):
        if path is not None:
            check_file(path)


def write_reports(
    arguments: argparse.Namespace, comparison: Comparison, *, names: tuple[str, str], gate: GateResult | None = None
) -> None:
    """Files that were asked for, and the terminal or JSON."""
    from puzzlebench.comparing.html import render_comparison
    from puzzlebench.comparing.junit import junit
    from puzzlebench.comparing.markdown import comment
    from puzzlebench.comparing.terminal import print_comparison
    from puzzlebench.comparing.words import comparison_json
    from puzzlebench.files import write_text
    from puzzlebench.render import print_json

    again = "" if gate is None else gate.again
    allow_missing = bool(getattr(arguments, "allow_missing", False))
    if arguments.markdown is not None:
        write_text(arguments.markdown, comment(comparison, name=arguments.name, confirmed=again))
    if arguments.junit is not None:
        write_text(arguments.junit, junit(comparison, name=arguments.name, allow_missing=allow_missing))
    if arguments.html is not None:
        write_text(arguments.html, render_comparison(comparison, base=names[0], new=names[1]))
    if arguments.json:
        print_json(comparison_json(comparison) if gate is None else gate.to_json())
        return
    print_comparison(comparison, every_cell=arguments.all)
    if again:
        print(again)
