"""Fresh processes of the suite, one after the other, and the result they make together. Knows no benchmark.

A result (`bench.json`) has one entry per session; its sessions wait in a folder beside it until all are there, so a
kill costs the session that was running. Raw samples stay out of the result.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import puzzlebench
from puzzlebench.benching.session import SESSION_SCHEMA, Request, code_digest
from puzzlebench.benching.suite import choose
from puzzlebench.comparing.measured import RESULT_SCHEMA
from puzzlebench.files import check_file, locked, make_folder, remove_folder, write_text
from puzzlebench.model.checks import require_positive_int

Progress = Callable[[float, str], None]
PACKAGE_FOLDERS: Final = (".", "kernels", "profiles", "search")
"""Where the packages lie in a checkout."""
STATED: Final = "job.json"
"""Where a folder of sessions says what it is of."""
_MODULE: Final = "puzzlebench.benching.session"
_PREPARING: Final = 0.5  # of a session's share of the progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """What to measure.

    Attributes:
        only: patterns of names; none for all.
        sessions: fresh processes, one after the other.
        seconds: of timing, all sessions together.
        device: local, cpu, cuda or cuda:N.
        threads: of torch and of numerical libraries. One repeats best; it says nothing of how work is shared.
    """

    only: tuple[str, ...] = ()
    sessions: int = 5
    seconds: float = 15.0
    device: str = "local"
    threads: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        choose(self.only)
        require_positive_int("sessions", self.sessions)
        require_positive_int("threads", self.threads)
        if not 0 < self.seconds < float("inf"):
            raise ValueError(f"seconds must be above 0, not {self.seconds}")

    def request(self, session: int) -> Request:
        """What one session is asked for."""
        return Request(only=self.only, seconds=self.seconds / self.sessions, session=session, device=self.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """Which code a session runs, and by what.

    Attributes:
        tree: a checkout's root; None for the packages that this process runs.
        python: the interpreter.
    """

    tree: Path | None = None
    python: str = sys.executable

    def environment(self, threads: int) -> dict[str, str]:
        """The environment of a session: the tree's packages first, and of other paths only those without ours."""
        from puzzlebench.measuring.measure import SESSION_ENVIRONMENT, python_path

        paths = python_path()
        if self.tree is not None:
            theirs = [self.tree / folder for folder in PACKAGE_FOLDERS if (self.tree / folder).is_dir()]
            kept = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and not _has_ours(path)]
            paths = os.pathsep.join([*map(str, theirs), *kept])
        return {
            **os.environ,
            **SESSION_ENVIRONMENT,
            "PYTHONPATH": paths,
            "OMP_NUM_THREADS": str(threads),
            "TRANSFORMERS_VERBOSITY": "error",
        }


def _has_ours(path: str) -> bool:
    names = ("puzzlebench", "puzzlebench_kernels", "puzzlebench_profiles", "puzzlebench_search")
    return any((Path(path) / name).is_dir() for name in names)


def run_bench(job: Bench, out: Path, *, progress: Progress = lambda _share, _stage: None) -> dict[str, Any]:
    """Measure, or go on where an earlier call stopped; the result is also written to `out`.

    Raises:
        ValueError: the device is not to be had, a session died, `out` cannot be written, or its folder of sessions is
            in use or holds another measurement.
    """
    check_file(out)
    folder = out.with_name(f"{out.stem}.sessions")
    make_folder(folder)
    with locked(folder / "lock", "measures there"):
        stated = {"job": asdict(job) | {"only": list(job.only)}, "puzzlebench": puzzlebench.__version__}
        keep_stated(folder, {**stated, "code": code_digest()})
        files = [folder / f"session.{number}.json" for number in range(job.sessions)]
        for number, file in enumerate(files):
            if not file.exists():
                run_fresh(
                    Program(),
                    job.request(number),
                    file,
                    threads=job.threads,
                    tell=_teller(progress, number, job.sessions),
                )
                check_alike([files[0], file])
        result = merge_sessions(files)
        write_text(out, json.dumps(result, indent=1) + "\n")
    remove_folder(folder)
    return result


def _teller(progress: Progress, session: int, sessions: int) -> Callable[[dict[str, Any]], None]:
    def tell(message: dict[str, Any]) -> None:
        progress(
            (session + session_share(message)) / sessions, f"session {session + 1} of {sessions}: {message['stage']}"
        )

    return tell


def session_share(message: Mapping[str, Any]) -> float:
    """How much of a session is done by what it says, 0 to 1."""
    share = min(message["done"] / max(message["total"], 1), 1.0)
    return float(_PREPARING * share if message["stage"] == "preparing" else _PREPARING + (1 - _PREPARING) * share)


def keep_stated(folder: Path, stated: Mapping[str, Any]) -> None:
    """Write down what a folder of sessions is of, or check that it is of the same.

    Raises:
        ValueError: it is of something else.
    """
    file, wanted = folder / STATED, json.loads(json.dumps(stated))
    if not file.exists():
        write_text(file, json.dumps(wanted, indent=1))
        return
    there = json.loads(file.read_text())
    for key in {**there, **wanted}:
        if there.get(key) != wanted.get(key):
            was, now = (json.dumps(one.get(key))[:80] for one in (there, wanted))
            raise ValueError(
                f"{folder} holds a measurement with another {key} ({was}, now {now}); finish that one, give another "
                "folder, or remove it"
            )


def run_fresh(
    program: Program,
    request: Request,
    file: Path,
    *,
    threads: int,
    tell: Callable[[dict[str, Any]], None] = lambda _message: None,
    slow: str = "",
) -> dict[str, Any]:
    """One session in a fresh process, to its end; what it wrote to `file`.

    Args:
        slow: see `session.SLOW_VARIABLE`.

    Raises:
        ValueError: it says why it stopped, died, or did not run the packages of the program's tree.
        KeyboardInterrupt: it was interrupted.
    """
    from puzzlebench.benching.session import SLOW_VARIABLE

    environment = program.environment(threads)
    environment["PYTHONHASHSEED"] = str(request.session)  # alike within a pair, another one in the next
    if slow:
        environment[SLOW_VARIABLE] = slow
    command = [program.python, "-m", _MODULE, str(file.resolve()), request.to_json()]
    error, origin = None, ""
    log = file.with_suffix(".log")
    with (
        log.open("wb") as said,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            env=environment,
            cwd=file.resolve().parent,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        with _ended(process):
            for line in process.stdout:
                if not line.startswith("{"):  # a library's greeting
                    continue
                message = json.loads(line)
                error, origin = message.get("error", error), message.get("from", origin)
                if "stage" in message:
                    tell(message)
    if process.returncode in (130, -2):
        raise KeyboardInterrupt
    if process.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise ValueError(
            error or f"a session died with exit code {process.returncode}: {''.join(last) or 'no message'}"
        )
    if program.tree is not None and Path(origin).resolve() != program.tree.resolve():
        raise ValueError(f"a session for {program.tree} ran the packages of {origin or 'an unknown place'}")
    log.unlink()
    return read_session(file)


@contextlib.contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """The process does not outlive an error here: Ctrl-C reaches it too, unless it was sent to us alone."""
    try:
        yield
    except BaseException:
        process.terminate()
        process.wait()
        raise


def read_session(file: Path) -> dict[str, Any]:
    """What a session wrote.

    Raises:
        ValueError: it cannot be read, or is of another schema.
    """
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is no session that can be read: {error}") from None
    if found.get("schema_version") != SESSION_SCHEMA:
        raise ValueError(f"{file} has schema {found.get('schema_version')!r}; this version reads {SESSION_SCHEMA}")
    return found


def check_alike(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Sessions of one code on one machine, or none of them can stand beside another; what the files hold.

    Raises:
        ValueError: a session differs from the first, or cannot be read.
    """
    found = [read_session(file) for file in files]
    first = _conditions(found[0])
    for file, one in zip(files[1:], found[1:], strict=True):
        now = _conditions(one)
        for key in {**first, **now}:
            if first.get(key) != now.get(key):
                was, its = (json.dumps(facts.get(key))[:60] for facts in (first, now))
                raise ValueError(
                    f"{file} was measured with another {key} ({its}) than {files[0].name} ({was}); code and machine "
                    "must stay as they are: remove the folder and measure anew"
                )
    return found


def _conditions(session: Mapping[str, Any]) -> dict[str, Any]:
    """What must not change meanwhile. A commit may: the code's digest says whether that matters."""
    facts = {key: value for key, value in session["fingerprint"].items() if key not in ("date", "git_commit")}
    return {**facts, "code": session.get("code")}


def merge_reasons(sessions: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Why a benchmark did not run, over all sessions; a failure in some of them says in how many."""
    merged: dict[str, str] = {}
    for name in dict.fromkeys(name for reasons in sessions for name in reasons):
        reasons = [one[name] for one in sessions if name in one]
        failures = [reason for reason in reasons if reason.startswith("failed")]
        why = (failures or reasons)[0]
        if len(reasons) < len(sessions):
            count = f"in {len(reasons)} of {len(sessions)} sessions"
            why = f"failed {count}{why.removeprefix('failed')}" if failures else f"{why} ({count})"
        merged[name] = why
    return merged


def merge_sessions(files: Sequence[Path], *, revision: str | None = None) -> dict[str, Any]:
    """One result of sessions in their order; raw samples are left out.

    Args:
        revision: of the code, where it is known better than by the fingerprint.

    Raises:
        ValueError: a file cannot be read, or sessions are of different code or machines.
    """
    found = check_alike(files)
    first = found[0]
    sessions = [
        {
            **one["session"],
            "session": number,
            "cells": {
                name: {key: value for key, value in cell.items() if key != "visits"}
                for name, cell in one["session"]["cells"].items()
            },
        }
        for number, one in enumerate(found)
    ]
    return {
        "schema_version": RESULT_SCHEMA,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "puzzlebench_version": first["puzzlebench_version"],
        "revision": revision or first["fingerprint"].get("git_commit"),
        "fingerprint": first["fingerprint"],
        "disturbed": {
            key: max(one[key] for one in sessions) for key in ("others_share", "set_aside_share", "throttled_share")
        },
        "skipped": merge_reasons([one["skipped"] for one in found]),
        "sessions": sessions,
    }
