"""Two revisions measured on one machine in turn, and what is known of their difference afterwards.

A pair is one fresh process of either revision, one after the other, the order reversed from pair to pair (ABBA), so
that a machine that slows down meanwhile slows both. Cells that would fail are measured again, in as many fresh
processes, and fail only if something is slower there, too. Both revisions run NEW's benchmarks, under paths and
environments of the same length: a longer one moves the stack.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from puzzlebench.benching.job import (
    Bench,
    Program,
    check_alike,
    keep_stated,
    merge_sessions,
    run_fresh,
    session_share,
)
from puzzlebench.comparing.measured import Measurements, read_measurements
from puzzlebench.comparing.verdicts import AMBIGUOUS_SHARE, BAND, RATE, Comparison, compare, exit_code
from puzzlebench.comparing.words import comparison_json
from puzzlebench.files import locked, make_folder, write_text
from puzzlebench.gating import trees
from puzzlebench.gating.trees import Revision

LEAST_PAIRS: Final = 5
SIDES: Final = ("base", "next")
"""Names of folders and files, of one length."""
Side: TypeAlias = Literal["base", "next"]
Progress: TypeAlias = Callable[[float, str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """What to measure, and how to judge.

    Attributes:
        repository: a folder in it.
        base, new: revisions; NEW is the working tree where it is None.
        sessions: fresh processes of each revision, at least 5.
        seconds: of timing, all sessions of both revisions together, measuring again not counted.
        band, rate: see `comparing.verdicts.compare`.
        rerun: measure again before anything fails.
        venv: an environment for each revision, made by pip, instead of this interpreter for both.
        work: where sessions are kept, so that the same call goes on after a kill; None keeps nothing.
    """

    repository: Path = Path()
    base: str
    new: str | None = None
    only: tuple[str, ...] = ()
    sessions: int = 8
    seconds: float = 60.0
    device: str = "local"
    threads: int = 1
    band: float = BAND
    rate: float = RATE
    rerun: bool = True
    venv: bool = False
    work: Path | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        if self.sessions < LEAST_PAIRS:
            raise ValueError(
                f"a gate needs at least {LEAST_PAIRS} sessions of each revision, not {self.sessions}: fewer do not "
                "show how much sessions differ"
            )
        _ = self.bench

    @property
    def bench(self) -> Bench:
        """The sessions of one side."""
        return Bench(
            only=self.only,
            sessions=self.sessions,
            seconds=self.seconds / 2,
            device=self.device,
            threads=self.threads,
        )


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


def run_gate(job: Gate, *, progress: Progress = lambda _share, _stage: None) -> GateResult:
    """Measure and judge, or go on where an earlier call with the same `work` stopped.

    Raises:
        ValueError: there is no repository or no such revision, a revision cannot run the suite, a session died, or the
            folder is in use or holds another measurement.
    """
    root = trees.open_repository(job.repository)
    base = trees.find_revision(root, job.base)
    new = trees.working_tree(root, without=job.work) if job.new is None else trees.find_revision(root, job.new)
    with contextlib.ExitStack() as held:
        scratch = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="puzzlebench-gate-")))
        work = scratch / "work" if job.work is None else job.work
        make_folder(work)
        held.enter_context(locked(work / "lock", "measures there"))
        keep_stated(work, _stated(job, base, new))
        progress(0.0, f"unpacking {base.name} and {new.name}")
        programs, notes = _prepare(job, root, (base, new), scratch, work)
        for side, program in programs.items():
            _probe(job, side, program, work)
        names = {"base": base.name, "next": new.name}
        looks = [_measure(job, programs, work / "first", names, progress)]
        first = _look(job, work / "first")
        second = None
        if job.rerun and (first.of("SLOWER") or first.suite_slower):
            again: Progress = lambda share, stage: progress(share, f"again, {stage}")  # noqa: E731
            looks.append(_measure(job, programs, work / "second", names, again))
            second = _look(job, work / "second")
        return _result(first, second, notes, (base, new), looks)


def not_run(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on what BASE and NEW did not measure: failures by name, the rest counted by reason."""
    notes, counted = [], []
    for side, result in zip(("BASE", "NEW"), results, strict=True):
        skipped = result["skipped"]
        notes += [f"{name} in {side} {why}" for name, why in skipped.items() if why.startswith("failed")]
        reasons = Counter(why for why in skipped.values() if not why.startswith("failed"))
        why = ", ".join(f"{why} ({count})" for why, count in reasons.items())
        counted.append(f"{reasons.total()} benchmarks not run: {why}" if reasons else "")
    if counted[0] == counted[1]:
        counted = counted[:1]
    else:
        counted = [text and f"{side}: {text}" for side, text in zip(("BASE", "NEW"), counted, strict=True)]
    return [*notes, *filter(None, counted)]


def _stated(job: Gate, base: Revision, new: Revision) -> dict[str, Any]:
    measured = {"only": list(job.only), "sessions": job.sessions, "seconds": job.seconds, "device": job.device}
    return {
        "base": base.name,
        "new": new.name,
        "measurement": {**measured, "threads": job.threads, "venv": job.venv},
    }


def _prepare(
    job: Gate, root: Path, revisions: tuple[Revision, Revision], scratch: Path, work: Path
) -> tuple[dict[Side, Program], list[str]]:
    """Both trees, what runs them, and what a reader must know of them."""
    notes = []
    for side, revision in zip(SIDES, revisions, strict=True):
        trees.unpack(root, revision, scratch / side, without=job.work)
    base, new = revisions
    if new.asked is None:
        files = f"{new.changes} changed file(s)" if new.changes else "unchanged"
        notes.append(f"NEW is the working tree of {new.commit[:12]}, {files}")
    if base.name == new.name:
        notes.append("both revisions are the same code: whatever is found is a false alarm")
    asked = [trees.dependencies(scratch / side) for side in SIDES]
    if asked[0] != asked[1]:
        how = (
            "each runs in an environment of its own" if job.venv else "both run in this one; --venv gives each its own"
        )
        notes.append(f"the revisions ask for other dependencies: {how}")
    notes += filter(None, [trees.lay_suite_over(scratch / "base", scratch / "next")])
    programs: dict[Side, Program] = {}
    for side in ("base", "next"):
        tree = scratch / side
        programs[side] = Program(tree=tree)  # type: ignore[index]
        if job.venv:
            python = trees.build_environment(tree, work / f"environment-{side}")
            programs[side] = Program(tree=tree, python=python)  # type: ignore[index]
    return programs, notes


def _probe(job: Gate, side: Side, program: Program, work: Path) -> None:
    """One session that times nothing: it compiles the tree's byte code and finds out whether the suite runs at all."""
    try:
        run_fresh(program, replace(job.bench.request(0), seconds=0.0), work / f"{side}.probe.json", threads=job.threads)
    except ValueError as error:
        name = "BASE" if side == "base" else "NEW"
        raise ValueError(f"{name} cannot run the suite: {error}") from None


def _measure(
    job: Gate, programs: dict[Side, Program], folder: Path, names: dict[str, str], progress: Progress
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pairs of one look, those on disk already not again, merged to a result of each side."""
    make_folder(folder)
    bench = job.bench
    for pair in range(job.sessions):
        files = {side: folder / f"{side}.{pair:03d}.json" for side in programs}
        if all(file.exists() for file in files.values()):
            continue
        for file in files.values():  # half a pair of an hour ago is no pair
            file.unlink(missing_ok=True)
        for place, side in enumerate(_order(pair)):

            def tell(message: dict[str, Any], pair: int = pair, place: int = place) -> None:
                done = pair + (place + session_share(message)) / 2
                progress(done / job.sessions, f"pair {pair + 1} of {job.sessions}")

            run_fresh(programs[side], bench.request(pair), files[side], threads=job.threads, tell=tell)
            check_alike([folder / f"{side}.000.json", files[side]])
    results = []
    for side in SIDES:
        merged = merge_sessions(sorted(folder.glob(f"{side}.[0-9]*.json")), revision=names[side])
        write_text(folder / f"{side}.json", json.dumps(merged))
        results.append(merged)
    return results[0], results[1]


def _order(pair: int) -> Iterator[Side]:
    """ABBA."""
    order: tuple[Side, Side] = ("base", "next")
    yield from order if pair % 2 == 0 else order[::-1]


def _look(job: Gate, folder: Path) -> Comparison:
    base, new = (_read(folder / f"{side}.json", name) for side, name in zip(SIDES, ("BASE", "NEW"), strict=True))
    return compare(base, new, paired=True, band=job.band, rate=job.rate)


def _read(file: Path, name: str) -> Measurements:
    found = read_measurements(file)
    return replace(found, source=name, notes=tuple(note.replace(str(file), name) for note in found.notes))


def _result(
    first: Comparison,
    second: Comparison | None,
    notes: list[str],
    revisions: tuple[Revision, Revision],
    looks: Sequence[tuple[dict[str, Any], dict[str, Any]]],
) -> GateResult:
    comparison, confirmed, not_confirmed = confirm(first, second)
    for results in looks:
        comparison = _without_failed(comparison, [result["skipped"] for result in results])
        notes += [note for note in not_run(results) if note not in notes]
    return GateResult(
        comparison=replace(comparison, notes=(*notes, *comparison.notes)),
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


def _without_failed(comparison: Comparison, skipped: Sequence[Mapping[str, str]]) -> Comparison:
    """A benchmark that failed in sessions of NEW and in none of BASE is missing, whatever the other sessions say."""
    base, new = ({name for name, why in one.items() if why.startswith("failed")} for one in skipped)
    had = {*comparison.missing, *(cell.name for cell in comparison.cells)}
    failed = (new - base) & had
    return replace(
        comparison,
        cells=tuple(cell for cell in comparison.cells if cell.name not in failed),
        missing=tuple(dict.fromkeys((*comparison.missing, *sorted(failed)))),
    )
