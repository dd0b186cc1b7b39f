"""The commands `bench`, `compare` and `history`: measure the suite, judge changes, keep results."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

from puzzlebench.cli_bench_options import add_judgement, add_measurement, check_reports, given, write_reports
from puzzlebench.cli_options import require_models
from puzzlebench.progress import progress

_FORMATS: Final = ("bench", "github-action-benchmark", "bencher", "pytest-benchmark", "asv")


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Options of `bench`."""
    add_measurement(parser, sessions=5, seconds=15.0, of="fresh processes, one after the other")
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


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Options of `compare`."""
    what = "a result of `bench`, a cost table, or a pytest-benchmark JSON (a folder of them: each is a session)"
    parser.add_argument("base", type=Path, metavar="BASE", help=what)
    parser.add_argument("new", type=Path, metavar="NEW", help="another of the same kind")
    parser.add_argument("--paired", action="store_true", help="session i of both ran side by side, as in a gate")
    parser.add_argument("--across", action="store_true", help="compare although machines or settings differ, labelled")
    parser.add_argument("--allow-missing", action="store_true", help="cells that only BASE has do not fail")
    add_judgement(parser)


def compare_command(arguments: argparse.Namespace) -> int:
    """Judge, print, write reports; the exit code."""
    from puzzlebench.comparing.comparison import exit_code
    from puzzlebench.comparing.measured import read_measurements
    from puzzlebench.comparing.verdicts import compare

    check_reports(arguments)
    comparison = compare(
        read_measurements(arguments.base),
        read_measurements(arguments.new),
        paired=arguments.paired,
        **given(arguments, "band", "rate"),
        across=arguments.across,
    )
    write_reports(arguments, comparison, names=(str(arguments.base), str(arguments.new)))
    return exit_code(comparison, strict=arguments.strict, allow_missing=arguments.allow_missing)


def add_history(parser: argparse.ArgumentParser) -> None:
    """Options of `history`."""
    parser.add_argument("action", metavar="ACTION", choices=("append", "show", "changes"), help="what to do")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="plain files, one for each result; made for git")
    parser.add_argument("results", type=Path, nargs="*", metavar="RESULT", help="append: what to add")
    parser.add_argument("--band", type=float, help="least relative change that counts (0.02)")
    parser.add_argument(
        "--rate", type=float, help="Otava's threshold for a change, not the share of false ones (0.001)"
    )


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
    changes = find_changes(entries, **given(arguments, "band", "rate"))
    if arguments.json:
        print_json([asdict(change) for change in changes])
    else:
        print_changes(changes, results=len(entries))
