"""What a gate found: the looks that it took, what counts of them, and what was not measured. Measures nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from puzzlebench.comparing.comparison import AMBIGUOUS_SHARE, Comparison, exit_code
from puzzlebench.comparing.words import comparison_json
from puzzlebench.gating.trees import Revision


@dataclass(frozen=True, kw_only=True, slots=True)
class GateResult:
    """What a gate found.

    Attributes:
        comparison: what counts, see `confirm`: the second look where there is one.
        first, second: both looks as they were; `second` is None where nothing was measured again.
        confirmed: cells that fail.
        not_confirmed: cells that looked slower once only.
        suite_slower: all cells are slower, and that counts.
        results: base and next of the first look, as `bench.json` has them.
    """

    comparison: Comparison
    first: Comparison
    second: Comparison | None
    confirmed: tuple[str, ...]
    not_confirmed: tuple[str, ...]
    suite_slower: bool
    base: Revision
    new: Revision
    results: tuple[dict[str, Any], dict[str, Any]]

    def code(self, *, strict: bool = False) -> int:
        """1 if something is slower or a cell is gone, 4 if a strict reader cannot tell, else 0."""
        return exit_code(self.comparison, strict=strict, ambiguous_share=AMBIGUOUS_SHARE)

    @property
    def again(self) -> str:
        """A sentence on what was measured again; empty where nothing was."""
        if self.second is None:
            return ""
        found = (
            f"{len(self.confirmed)} of {len(self.confirmed) + len(self.not_confirmed)} slower cells were slower again"
        )
        if self.first.suite_slower:
            found += f", the suite was {'' if self.suite_slower else 'not '}slower again"
        elif self.suite_slower:
            found += ", this time the whole suite was slower"
        return f"{found} in as many fresh sessions, whose numbers stand here."

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready object; the results are not in it."""
        return {
            "schema_version": 1,
            "base": asdict(self.base) | {"name": self.base.name},
            "new": asdict(self.new) | {"name": self.new.name},
            "exit_code": self.code(),
            "confirmed": list(self.confirmed),
            "not_confirmed": list(self.not_confirmed),
            "suite_slower": self.suite_slower,
            "again": self.again,
            "comparison": comparison_json(self.comparison),
            "first": comparison_json(self.first),
            "second": None if self.second is None else comparison_json(self.second),
        }


def gate_result(
    first: Comparison,
    second: Comparison | None,
    notes: Sequence[str],
    revisions: tuple[Revision, Revision],
    looks: Sequence[tuple[dict[str, Any], dict[str, Any]]],
) -> GateResult:
    """What two looks come to.

    Args:
        notes: what a reader must know of the two trees.
        looks: base and next of each look, as `bench.json` has them.
    """
    comparison, confirmed, not_confirmed = confirm(first, second)
    told = [*notes, *(note for results in looks for note in not_run(results)), *comparison.notes]
    return GateResult(
        comparison=replace(comparison, notes=tuple(dict.fromkeys(told))),
        first=first,
        second=second,
        confirmed=confirmed,
        not_confirmed=not_confirmed,
        suite_slower=comparison.suite_slower,
        base=revisions[0],
        new=revisions[1],
        results=looks[0],
    )


def confirm(first: Comparison, second: Comparison | None) -> tuple[Comparison, tuple[str, ...], tuple[str, ...]]:
    """(what counts, cells that fail, cells that were slower in the first look only).

    Whatever the first look found slower, a cell or the suite, the second look says what stands: its numbers, since
    those of the first were picked for being large, and its verdicts. What is slower in it fails, in whichever form;
    only a cell that is slower there for the first time, beside others, has been seen once and is AMBIGUOUS. Without
    a finding or a second look the first one stands.
    """
    suspects = [cell.name for cell in first.of("SLOWER")]
    if second is None or not (suspects or first.suite_slower):
        return first, tuple(suspects), ()
    seen = {cell.name for cell in first.cells} if first.suite_slower else set(suspects)
    cells = tuple(
        replace(cell, verdict="AMBIGUOUS") if cell.verdict == "SLOWER" and cell.name not in seen else cell
        for cell in second.cells
    )
    gone = {*first.missing, *second.missing}  # a suspect that neither side measured again is not acquitted
    gone |= set(suspects) - {cell.name for cell in cells}
    found = replace(
        second,
        cells=tuple(cell for cell in cells if cell.name not in gone),
        missing=tuple(sorted(gone)),
        notes=tuple(dict.fromkeys((*first.notes, *second.notes))),
    )
    confirmed = tuple(cell.name for cell in found.cells if cell.verdict == "SLOWER")
    return found, confirmed, tuple(name for name in suspects if name not in confirmed)


def not_run(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on what BASE and NEW did not measure: failures by name, the rest counted by reason."""
    notes, counted = [], []
    for side, result in zip(("BASE", "NEW"), results, strict=True):
        skipped = result["skipped"]
        notes += [f"{name} in {side}: {why}" for name, why in skipped.items() if why.startswith("failed")]
        reasons = Counter(why for why in skipped.values() if not why.startswith("failed"))
        why = ", ".join(f"{why} ({count})" for why, count in reasons.items())
        counted.append(f"{reasons.total()} benchmarks not run: {why}" if reasons else "")
    if counted[0] == counted[1]:
        counted = counted[:1]
    else:
        counted = [text and f"{side}: {text}" for side, text in zip(("BASE", "NEW"), counted, strict=True)]
    return [*notes, *filter(None, counted)]
