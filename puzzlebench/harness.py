"""What every use of the LM Evaluation Harness (lm-eval 0.4.13 or newer) needs: its tasks by name, and its silence.

Knows no model and no metric.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

NEEDS_HARNESS: Final = "tasks need lm-eval: pip install 'puzzlebench[eval]'"


def find_tasks(tasks: Sequence[str], include_paths: Sequence[Path] = ()) -> Any:
    """A task manager of the harness that knows these tasks, groups and tags.

    The harness reads thousands of files to know its own tasks (12 s and more), so folders of one's own are looked
    through first, and it reads its own only for what they lack.

    Raises:
        ValueError: lm-eval is not installed, a folder is not there, or nothing has such a task.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ValueError(NEEDS_HARNESS) from None
    quiet_logging()
    for path in include_paths:
        if not path.is_dir():
            raise ValueError(f"--include-path {path}: no such folder")
    folders = [str(path) for path in include_paths]
    if folders:
        own = TaskManager(include_path=folders, include_defaults=False)
        if all(task in own.all_tasks for task in tasks):
            return own
    known = TaskManager(include_path=folders or None)
    for task in tasks:
        if task not in known.all_tasks:
            near = difflib.get_close_matches(task, known.all_tasks, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
            raise ValueError(f"lm-eval has no task {task!r}; {hint}")
    return known


def task_files_digest(folder: Path | None) -> str:
    """SHA-256 of a folder's files, what Python compiled of them aside: what tasks of one's own are decided by."""
    digest = hashlib.sha256()
    if folder is not None:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def quiet_logging() -> None:
    """Let the harness log errors only; its warnings are many and about itself."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


@contextlib.contextmanager
def without_bars(report: Callable[[float], None] | None = None) -> Iterator[None]:
    """Keep the harness's progress bars off standard error, and report the share that each of them shows.

    Errors are raised, not printed, so nothing is lost but warnings.
    """
    import sys

    with contextlib.redirect_stderr(_Bars(report, sys.stderr)):
        yield


class _Bars(io.StringIO):
    """Takes what tqdm draws, of whichever backend of the harness, and knows how far it says it is."""

    def __init__(self, report: Callable[[float], None] | None, outer: Any) -> None:
        super().__init__()
        self._report, self._outer = report, outer

    def write(self, text: str) -> int:
        """Report the last share in the text, on the standard error that was there before.

        Only bars of requests count, which every backend calls "Running ..."; those of preparations go before.
        """
        shares = re.findall(r"Running [^|%]*?(\d+)%\|", text)
        if shares and self._report is not None:
            with contextlib.redirect_stderr(self._outer):
                self._report(min(int(shares[-1]), 100) / 100)
        return len(text)
