"""What two results beside each other come to: verdicts on cells, on what all cells share, and an exit code.

Judges nothing; `verdicts` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np

from puzzlebench.estimate import Interval

Verdict: TypeAlias = Literal["SLOWER", "FASTER", "SAME", "AMBIGUOUS"]
VERDICTS: Final[tuple[Verdict, ...]] = ("SLOWER", "FASTER", "AMBIGUOUS", "SAME")
AMBIGUOUS_SHARE: Final = 0.1
"""Of the cells, above which a strict reader is told that the comparison cannot tell."""
MOST_SESSIONS: Final = 200
"""Beyond, "more sessions" is no advice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CellVerdict:
    """One cell.

    Attributes:
        base, new: its time in `unit`: the geometric mean of the sessions' medians.
        ratio: new over base, with its 95 % interval.
        relative: the same over the suite's ratio; equal to `ratio` where there is no suite.
        p: of no difference, adjusted for the number of cells (Benjamini-Hochberg); 1 where nothing can be said.
        sessions: behind it, the fewer of both sides; None where the files' own intervals stand for them.
        more_sessions: how many more on each side would settle it if it goes on like this; None where it is settled, or
            no reasonable number would.
        doubt: what forbids to call it SAME or FASTER, whatever the medians say; empty where nothing does.
    """

    name: str
    unit: str
    base: float
    new: float
    ratio: Interval
    relative: Interval
    p: float
    verdict: Verdict
    sessions: int | None
    more_sessions: int | None = None
    doubt: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteVerdict:
    """What all cells share.

    Attributes:
        ratio: new over base of the typical cell, with the 95 % interval over sessions.
        p: of no shift.
        cause: what can explain a shift: "code" in paired sessions, else "machine or code".
    """

    ratio: Interval
    p: float
    verdict: Verdict
    cause: Literal["code", "machine or code"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two results beside each other.

    Attributes:
        cells: those that both have, in NEW's order.
        suite: None with too few cells to say what they share.
        relative: cells are judged relative to the suite, which moved or is not known to stand still.
        paired: sessions ran next to each other.
        sessions: of BASE and NEW; None where a file's own intervals stand for them.
        missing: names that only BASE has, or that failed in sessions of NEW and in none of BASE.
        appeared: names that only NEW has.
        labels: differences of the machines or settings, a line each.
        notes: what else a reader must know, a line each.
        revisions: of BASE and NEW; None where unknown.
    """

    cells: tuple[CellVerdict, ...]
    suite: SuiteVerdict | None
    relative: bool
    paired: bool
    band: float
    rate: float
    sessions: tuple[int | None, int | None]
    missing: tuple[str, ...] = ()
    appeared: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    revisions: tuple[str | None, str | None] = (None, None)

    def of(self, verdict: Verdict) -> tuple[CellVerdict, ...]:
        """The cells with a verdict, those furthest from 1 first."""
        found = [cell for cell in self.cells if cell.verdict == verdict]
        return tuple(sorted(found, key=lambda cell: abs(np.log(self.judged(cell).value)), reverse=True))

    def judged(self, cell: CellVerdict) -> Interval:
        """The ratio that a cell's verdict is about."""
        return cell.relative if self.relative else cell.ratio

    @property
    def suite_slower(self) -> bool:
        """All cells became slower, and the machine does not explain it."""
        return self.suite is not None and self.suite.verdict == "SLOWER" and self.suite.cause == "code"


def exit_code(
    comparison: Comparison,
    *,
    strict: bool = False,
    allow_missing: bool = False,
    ambiguous_share: float = AMBIGUOUS_SHARE,
) -> int:
    """1 if a cell or the suite is slower or a cell is missing, 4 if a strict reader cannot tell, else 0.

    A strict reader cannot tell where many cells are AMBIGUOUS, where the suite is, or where that
    is slower and it may be the machine.
    """
    if comparison.of("SLOWER") or comparison.suite_slower or (comparison.missing and not allow_missing):
        return 1
    ambiguous = len(comparison.of("AMBIGUOUS")) > ambiguous_share * len(comparison.cells)
    moved = comparison.suite is not None and comparison.suite.verdict in ("SLOWER", "AMBIGUOUS")
    return 4 if strict and (ambiguous or moved) else 0
