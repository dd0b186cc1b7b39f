"""Carry a plan out: one fresh process per session, resumed where it stopped. Knows no tensors.

A process that dies while it puts a workload in place (killed for memory, or by a crash in a library) leaves a note of
which one it was: that workload becomes a miss and the session goes on without it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import puzzlebench
from puzzlebench.measuring.plan import Plan
from puzzlebench.measuring.results import Results, read_results
from puzzlebench.measuring.run_directory import RunDirectory, open_run

Report = Callable[[float, str], None]
"""Called with the share of the whole that is done, 0 to 1, and what is going on."""

SESSION_ENVIRONMENT: Final = {
    # glibc otherwise gives memory back to the kernel between launches and takes it again page by page, which the
    # caching allocators of serving processes do not.
    "MALLOC_TRIM_THRESHOLD_": str(2**36),
    "MALLOC_MMAP_THRESHOLD_": str(2**36),
}
_CRASHES: Final = {signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL}
"""Signals that speak of memory or a broken library; any other was sent by somebody."""
_PREPARING = 0.15  # of a session's share of the progress


def measure(folder: Path, plan: Plan, report: Report) -> Results:
    """Measure everything the plan names in `folder`, or go on where an earlier call stopped.

    Raises:
        ValueError: the folder is in use or holds another measurement, the device or engine is not to be had, a session
            died while it was timing, or nothing could be measured.
    """
    with open_run(folder, plan) as run:
        for session in range(plan.effort.sessions):
            while not is_finished(run, session):
                _run_session(run, session, plan, report)
        run.merge_samples()
        results = read_results(run)
    if not results.measured:
        work, reason = next(iter(results.misses.items()))
        raise ValueError(f"nothing could be measured; the first that failed: {work}: {reason}")
    return results


def is_finished(run: RunDirectory, session: int) -> bool:
    """Whether a session has come to its end."""
    return any(event["event"] == "finished" for event in run.events(session))


def _run_session(run: RunDirectory, session: int, plan: Plan, report: Report) -> None:
    def tell(message: dict[str, Any]) -> None:
        report(*_progress(session, plan.effort.sessions, message))

    died = run_process("puzzlebench.measuring.session", run, session, tell)
    if died:
        _blame(run, session, died)


def run_process(module: str, run: RunDirectory, session: int, tell: Callable[[dict[str, Any]], None]) -> int:
    """Run a session in a fresh process, `python -m MODULE RUN_DIR SESSION`, to its end; returns how it died, or 0.

    It writes JSON lines to its standard output: those with a `stage` are passed on, one with an `error` says in a line
    why it stops. What else it says is kept in `log_file`.

    Raises:
        ValueError: the session says why it stopped.
        KeyboardInterrupt: it was interrupted.
    """
    environment = {**os.environ, **SESSION_ENVIRONMENT, "PYTHONPATH": python_path()}
    command = [sys.executable, "-m", module, str(run.path), str(session)]
    error = None
    held = () if run.lock is None else (run.lock,)
    with (
        log_file(run, session).open("ab") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True, pass_fds=held
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if not line.startswith("{"):  # a library's greeting
                    errors.write(line.encode())
                    continue
                message = json.loads(line)
                error = message.get("error", error)
                if "stage" in message:
                    tell(message)
        except BaseException:
            process.terminate()  # Ctrl-C reaches the session too, unless it was sent to us alone
            process.wait()
            raise
    if process.returncode and error:
        raise ValueError(error)
    if process.returncode in (130, -2):
        raise KeyboardInterrupt
    return process.returncode


def log_file(run: RunDirectory, session: int) -> Path:
    """What a session's libraries said."""
    return run.path / f"session.{session}.log"


def death(run: RunDirectory, session: int, code: int) -> str:
    """One line on a session that died of a signal (negative) or with an exit code."""
    return (
        f"session {session + 1} died of {_how(code)}; {log_file(run, session)} has what it said. The same command goes "
        "on from there"
    )


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _blame(run: RunDirectory, session: int, code: int) -> None:
    """Turn a death during preparation into a miss; any other is an error."""
    events = run.events(session)
    last = events[-1] if events else {}
    if last.get("event") == "attempt" and -code in _CRASHES:
        reason = f"out of memory or crashed: the process died of {_how(code)} while it was put in place"
        run.append_event(session, {"event": "miss", "workload": last["workload"], "reason": reason})
        return
    raise ValueError(death(run, session, code))


def _progress(session: int, sessions: int, message: dict[str, Any]) -> tuple[float, str]:
    share = min(message["done"] / max(message["total"], 1), 1.0)
    stage = message["stage"]
    inside = {"preparing": _PREPARING * share, "energy": 1.0}.get(stage, _PREPARING + (1 - _PREPARING) * share)
    return (session + inside) / sessions, f"session {session + 1} of {sessions}: {stage}"


def python_path() -> str:
    """PYTHONPATH under which a child process finds the packages that this one found."""
    import puzzlebench_profiles

    roots = [Path(module.__file__ or "").parents[1] for module in (puzzlebench, puzzlebench_profiles)]
    roots += [roots[0] / "kernels", roots[0] / "search"]
    existing = [Path(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return os.pathsep.join(str(path) for path in dict.fromkeys([*(r for r in roots if r.exists()), *existing]))
