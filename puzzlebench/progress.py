"""Progress of long work on standard error: a bar with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

_LINE_SECONDS = 15.0


@contextlib.contextmanager
def progress(quiet: bool = False) -> Iterator[Callable[[float, str], None]]:
    """A function to call with the share done (0 to 1) and what is going on."""
    if quiet:
        yield lambda _share, _stage: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"))
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("starting", total=1.0)
            yield lambda share, stage: bar.update(task, completed=share, description=stage)
    else:
        yield _Lines()


def part_of(report: Callable[[float, str], None], begin: float, share: float, stage: str) -> Callable[[float], None]:
    """Report the share done of one part of the work, which begins at `begin` and is `share` of all."""
    return lambda done: report(begin + done * share, stage)


class _Lines:
    """A line whenever the stage changes, and every 15 seconds."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()
        self._stage = ""
        self._from = self._share = 0.0  # what was done already when this began, by an earlier run

    def __call__(self, share: float, stage: str) -> None:
        now = time.monotonic()
        if not self._stage or share < self._share:  # begins, or begins something new
            self._started, self._from = now, share
        self._share = share
        if stage == self._stage and now - self._last < _LINE_SECONDS:
            return
        done, spent = share - self._from, now - self._started
        left = f", about {spent * (1 - share) / done:.0f} s left" if done > 0.02 else ""
        print(f"{share:4.0%} {stage}{left}", file=sys.stderr, flush=True)
        self._last, self._stage = now, stage
