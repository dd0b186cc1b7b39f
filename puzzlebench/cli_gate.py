"""The command `gate`: two revisions in turn, the cost model's predictions, or a proof of the gate itself."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from puzzlebench.cli_bench_options import add_judgement, add_measurement, check_reports, given, write_reports
from puzzlebench.cli_options import require_models, whole_numbers
from puzzlebench.progress import progress

SLOWER: Final = 1
"""Exit code of a prediction that fails; of cells see `comparing.comparison.exit_code`."""


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
        "--work", type=Path, metavar="DIR", help="keep sessions and code there: the same command goes on after a kill"
    )
    add_measurement(parser, sessions=8, seconds=60.0, of="fresh processes of each revision, in pairs")
    add_judgement(parser)
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

    check_reports(arguments)
    job = Gate(
        repository=arguments.repository,
        base=arguments.base,
        new=arguments.new,
        only=tuple(arguments.only),
        sessions=arguments.sessions,
        seconds=arguments.seconds,
        device=arguments.device,
        threads=arguments.threads,
        **given(arguments, "band", "rate"),
        rerun=arguments.rerun,
        venv=arguments.venv,
        work=arguments.work,
    )
    with progress() as report:
        result = run_gate(job, progress=report)
    write_reports(arguments, result.comparison, names=(result.base.name, result.new.name), gate=result)
    return result.code(strict=arguments.strict)


def _predictions(arguments: argparse.Namespace) -> int:
    from puzzlebench.files import write_text
    from puzzlebench.gating import predictions
    from puzzlebench.gating.prediction_reports import predictions_junit, predictions_markdown
    from puzzlebench.render import print_json
    from puzzlebench.render_bench import print_predictions

    if arguments.update and (arguments.markdown or arguments.junit):
        raise ValueError("--update judges nothing, so there is no report; leave out --markdown and --junit")
    check_reports(arguments)
    goldens = arguments.goldens or predictions.GOLDENS
    kept = {} if arguments.update else predictions.read_goldens(goldens)
    with progress() as report:
        found = predictions.predict_cases(predictions.read_cases(), progress=report)
    if arguments.update:
        predictions.write_goldens(goldens, found)
        print(f"wrote {len(found)} predictions to {goldens}; look at the diff before you commit it")
        return 0
    gate = predictions.compare_predictions(kept, found, **given(arguments, "tolerance"))
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
        **given(arguments, "band", "rate"),
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
