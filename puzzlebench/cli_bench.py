"""The commands `bench`, `compare`, `gate` and `history`: measure the suite, judge changes, keep results."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from puzzlebench.cli_options import require_models, whole_numbers
from puzzlebench.progress import progress

if TYPE_CHECKING:
    from puzzlebench.comparing.verdicts import Comparison
    from puzzlebench.gating.gate import GateResult

SLOWER: Final = 1
"""Exit code of a prediction that fails; of cells see `comparing.verdicts.exit_code`."""
EXIT_CODES: Final = (
    "Exit codes: 0 nothing is slower, 1 something is (or a cell is gone), 2 bad input or a revision that cannot run "
    "the suite, 4 cannot tell (with --strict), 130 interrupted."
)
_FORMATS: Final = ("bench", "github-action-benchmark", "bencher", "pytest-benchmark", "asv")


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Options of `bench`."""
    _add_measurement(parser, sessions=5, seconds=15.0, of="fresh processes, one after the other")
    parser.add_argument("--out", type=Path, default=Path("bench.json"), metavar="FILE", help="the result (%(default)s)")
    parser.add_argument("--list", action="store_true", help="list the benchmarks instead, and which can run here")
    parser.add_argument(
        "--read", type=Path, metavar="RESULT", help="measure nothing: take this result, for another --format"
    )
    parser.add_argument(
        "--format", default="bench", choices=_FORMATS, help="of the file; asv: --out is its folder of results"
    )


def bench_command(arguments: argparse.Namespace) -> None:
    """List, measure or convert, and print."""
    from puzzlebench.benching.job import Bench, run_bench
    from puzzlebench.render import print_json
    from puzzlebench.render_bench import print_bench

    if arguments.read is not None:
        stated = _convert(arguments.read, arguments.format, arguments.out)
    else:
        require_models()
        if arguments.list:
            _list_benchmarks(arguments)
            return
        job = Bench(
            only=tuple(arguments.only),
            sessions=arguments.sessions,
            seconds=arguments.seconds,
            device=arguments.device,
            threads=arguments.threads,
        )
        out = arguments.out if arguments.format == "bench" else arguments.out.with_suffix(".bench.json")
        with progress() as report:
            stated = run_bench(job, out, progress=report)
        if arguments.format != "bench":
            _convert(out, arguments.format, arguments.out)
    if arguments.json:
        print_json(stated)
        return
    if arguments.read is None:
        print_bench(stated)
    print(f"wrote {arguments.out}")


def _list_benchmarks(arguments: argparse.Namespace) -> None:
    from puzzlebench.benching.suite import choose, missing
    from puzzlebench.measuring.device import local_device
    from puzzlebench.render import print_json
    from puzzlebench.render_bench import print_benchmarks

    device, chosen = local_device(arguments.device), choose(arguments.only)
    reasons = {one.name: reason for one in chosen if (reason := missing(one, device))}
    if arguments.json:
        rows: list[dict[str, Any]] = [
            {"name": one.name, "group": one.group, "about": one.about, "needs": list(one.needs)} for one in chosen
        ]
        print_json([{**row, "missing": reasons.get(row["name"])} for row in rows])
    else:
        print_benchmarks(chosen, reasons)


def _convert(source: Path, form: str, out: Path) -> Any:
    """Write a result in another format; what was written."""
    from puzzlebench.comparing import interop
    from puzzlebench.comparing.measured import read_measurements
    from puzzlebench.files import write_text

    result = read_measurements(source)
    if form == "asv":
        return [str(path) for path in interop.write_asv(result, out)]
    writers = {
        "github-action-benchmark": interop.github_action_benchmark,
        "bencher": interop.bencher_metric_format,
        "pytest-benchmark": interop.pytest_benchmark,
    }
    if form not in writers:
        raise ValueError(f"--read {source} needs another --format: {', '.join(_FORMATS[1:])}")
    stated = writers[form](result)
    write_text(out, json.dumps(stated, indent=1) + "\n")
    return stated


def _add_measurement(parser: argparse.ArgumentParser, *, sessions: int, seconds: float, of: str) -> None:
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


def _add_judgement(parser: argparse.ArgumentParser) -> None:
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


def _given(arguments: argparse.Namespace, *names: str) -> dict[str, float]:
    """Options that were given; of the others the library knows the defaults."""
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Options of `compare`."""
    what = "a result of `bench`, a cost table, or a pytest-benchmark JSON (a folder of them: each is a session)"
    parser.add_argument("base", type=Path, metavar="BASE", help=what)
    parser.add_argument("new", type=Path, metavar="NEW", help="another of the same kind")
    parser.add_argument("--paired", action="store_true", help="session i of both ran side by side, as in a gate")
    parser.add_argument("--across", action="store_true", help="compare although machines or settings differ, labelled")
    parser.add_argument("--allow-missing", action="store_true", help="cells that only BASE has do not fail")
    _add_judgement(parser)


def compare_command(arguments: argparse.Namespace) -> int:
    """Judge, print, write reports; the exit code."""
    from puzzlebench.comparing.measured import read_measurements
    from puzzlebench.comparing.verdicts import compare, exit_code

    _check_reports(arguments)
    comparison = compare(
        read_measurements(arguments.base),
        read_measurements(arguments.new),
        paired=arguments.paired,
        **_given(arguments, "band", "rate"),
        across=arguments.across,
    )
    _report(arguments, comparison, names=(str(arguments.base), str(arguments.new)))
    return exit_code(comparison, strict=arguments.strict, allow_missing=arguments.allow_missing)


def _check_reports(arguments: argparse.Namespace) -> None:
    """Refuse, before the work, what cannot be written after it."""
    from puzzlebench.comparing.markdown import marker
    from puzzlebench.files import check_file

    marker(arguments.name)
    for path in (arguments.markdown, arguments.junit, arguments.html):
        if path is not None:
            check_file(path)


def _report(
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


def add_gate(parser: argparse.ArgumentParser) -> None:
    """Options of `gate`."""
    modes = parser.add_mutually_exclusive_group(required=True)
    modes.add_argument("--base", metavar="REV", help="measure this revision and another in turn, in fresh processes")
    modes.add_argument(
        "--predictions", action="store_true", help="hold the cost model's predictions against goldens; no GPU, no clock"
    )
    modes.add_argument(
        "--prove", action="store_true", help="how often the gate is wrong on this machine: half an hour, resumable"
    )
    parser.add_argument("--new", metavar="REV", help="with --base; default: the working tree")
    parser.add_argument("--repository", type=Path, default=Path(), metavar="DIR", help="default: where you are")
    parser.add_argument(
        "--rerun", action=argparse.BooleanOptionalAction, default=True, help="measure again before anything fails (yes)"
    )
    parser.add_argument("--venv", action="store_true", help="an environment of its own for each revision, made by pip")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="keep the sessions there: the same command goes on after a kill"
    )
    _add_measurement(parser, sessions=8, seconds=60.0, of="fresh processes of each revision, in pairs")
    _add_judgement(parser)
    group = parser.add_argument_group("with --predictions")
    group.add_argument("--goldens", type=Path, metavar="FILE", help="default: those that ship")
    group.add_argument("--update", action="store_true", help="make today's predictions the goldens")
    group.add_argument("--tolerance", type=float, help="drift above which a prediction fails (0.02)")
    group = parser.add_argument_group("with --prove")
    group.add_argument("--suites", type=int, default=200, help="windows of equal code to judge (%(default)s)")
    group.add_argument(
        "--pairs", type=whole_numbers, default=(5, 8), metavar="N,N", help="sizes of a suite to judge (5,8)"
    )
    group.add_argument("--session-seconds", type=float, default=2.0, help="of timing in a session (%(default)s)")
    group.add_argument("--minutes", type=float, help="stop after so many; the same command goes on")
    group.add_argument("--document", type=Path, metavar="FILE.md", help="put the tables between its marks")


_MEASURES: Final = ("only", "device", "threads", "band", "rate", "work")
_OPTIONS: Final = {
    "base": (
        *_MEASURES,
        *("new", "repository", "rerun", "venv", "sessions", "seconds"),
        *("strict", "markdown", "junit", "html", "name", "all"),
    ),
    "predictions": ("goldens", "update", "tolerance", "markdown", "junit", "name"),
    "prove": (*_MEASURES, "suites", "pairs", "session_seconds", "minutes", "document"),
}
"""Which options each of the gates has; the others would be ignored, so they are refused."""


def _refuse_foreign(arguments: argparse.Namespace) -> None:
    mode = next((name for name in ("predictions", "prove") if getattr(arguments, name)), "base")
    plain = argparse.ArgumentParser()
    add_gate(plain)
    for name in sorted({option for options in _OPTIONS.values() for option in options} - {*_OPTIONS[mode]}):
        if getattr(arguments, name) != plain.get_default(name):
            raise ValueError(f"--{name.replace('_', '-')} has no meaning with --{mode}; leave it out")


def gate_command(arguments: argparse.Namespace) -> int:
    """One of the three gates; the exit code."""
    _refuse_foreign(arguments)
    if arguments.predictions:
        return _predictions(arguments)
    require_models()
    if arguments.prove:
        return _prove(arguments)
    from puzzlebench.gating.gate import Gate, run_gate

    _check_reports(arguments)
    job = Gate(
        repository=arguments.repository,
        base=arguments.base,
        new=arguments.new,
        only=tuple(arguments.only),
        sessions=arguments.sessions,
        seconds=arguments.seconds,
        device=arguments.device,
        threads=arguments.threads,
        **_given(arguments, "band", "rate"),
        rerun=arguments.rerun,
        venv=arguments.venv,
        work=arguments.work,
    )
    with progress() as report:
        result = run_gate(job, progress=report)
    _report(arguments, result.comparison, names=(result.base.name, result.new.name), gate=result)
    return result.code(strict=arguments.strict)


def _predictions(arguments: argparse.Namespace) -> int:
    from puzzlebench.files import write_text
    from puzzlebench.gating import predictions
    from puzzlebench.gating.prediction_reports import predictions_junit, predictions_markdown
    from puzzlebench.render import print_json
    from puzzlebench.render_bench import print_predictions

    if arguments.update and (arguments.markdown or arguments.junit):
        raise ValueError("--update judges nothing, so there is no report; leave out --markdown and --junit")
    _check_reports(arguments)
    goldens = arguments.goldens or predictions.GOLDENS
    kept = {} if arguments.update else predictions.read_goldens(goldens)
    with progress() as report:
        found = predictions.predict_cases(predictions.read_cases(), progress=report)
    if arguments.update:
        predictions.write_goldens(goldens, found)
        print(f"wrote {len(found)} predictions to {goldens}; look at the diff before you commit it")
        return 0
    gate = predictions.compare_predictions(kept, found, **_given(arguments, "tolerance"))
    if arguments.markdown is not None:
        write_text(arguments.markdown, predictions_markdown(gate, name=arguments.name))
    if arguments.junit is not None:
        write_text(arguments.junit, predictions_junit(gate, list(found), name=arguments.name))
    if arguments.json:
        print_json(gate.to_json())
    else:
        print_predictions(gate)
    return 0 if gate.passed else SLOWER


def _prove(arguments: argparse.Namespace) -> int:
    from puzzlebench.gating.proof_table import proof_markdown, write_into
    from puzzlebench.gating.prove import Proof, run_proof
    from puzzlebench.render import print_json

    if arguments.work is None:
        raise ValueError("--prove takes long and keeps its sessions: give --work DIR")
    job = Proof(
        folder=arguments.work,
        suites=arguments.suites,
        pairs=arguments.pairs,
        seconds=arguments.session_seconds,
        only=tuple(arguments.only),
        device=arguments.device,
        threads=arguments.threads,
        **_given(arguments, "band", "rate"),
        minutes=arguments.minutes,
    )
    with progress() as report:
        result = run_proof(job, progress=report)
    text = proof_markdown(result)
    if arguments.document is not None:
        write_into(arguments.document, text)
    if arguments.json:
        print_json(result)
    else:
        print(text)
    return 0


def add_history(parser: argparse.ArgumentParser) -> None:
    """Options of `history`."""
    parser.add_argument("action", metavar="ACTION", choices=("append", "show", "changes"), help="what to do")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="plain files, one for each result; made for git")
    parser.add_argument("results", type=Path, nargs="*", metavar="RESULT", help="append: what to add")
    parser.add_argument("--band", type=float, help="least relative change that counts (0.02)")
    parser.add_argument("--rate", type=float, help="of false changes in a series (0.001)")


def history_command(arguments: argparse.Namespace) -> None:
    """Add results, list them, or find where cells changed."""
    from dataclasses import asdict

    from puzzlebench.comparing.history import append, find_changes, read_history
    from puzzlebench.comparing.measured import read_measurements
    from puzzlebench.comparing.terminal import print_changes, print_history
    from puzzlebench.render import print_json

    if arguments.action == "append":
        if not arguments.results:
            raise ValueError("there is nothing to append; name a result of `puzzlebench bench`")
        added = [str(append(read_measurements(result), arguments.folder)) for result in arguments.results]
        if arguments.json:
            print_json(added)
        else:
            print("\n".join(f"added {path}" for path in added))
        return
    if arguments.results:
        raise ValueError(f"{arguments.action} takes a folder only, not {arguments.results[0]}")
    entries = read_history(arguments.folder)
    if arguments.action == "show":
        if arguments.json:
            print_json([asdict(entry) for entry in entries])
        else:
            print_history(entries)
        return
    changes = find_changes(entries, **_given(arguments, "band", "rate"))
    if arguments.json:
        print_json([asdict(change) for change in changes])
    else:
        print_changes(changes, results=len(entries))
