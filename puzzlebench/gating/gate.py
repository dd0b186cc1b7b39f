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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from puzzlebench.benching.job import (
    STATED,
    Bench,
    Program,
    check_alike,
    keep_stated,
    merge_sessions,
    run_fresh,
    session_share,
)
from puzzlebench.comparing.comparison import Comparison
from puzzlebench.comparing.measured import Measurements, read_measurements
from puzzlebench.comparing.verdicts import BAND, RATE, compare
from puzzlebench.files import locked, make_folder, remove_folder, write_text
from puzzlebench.gating import trees
from puzzlebench.gating.outcome import GateResult, gate_result
from puzzlebench.gating.pair import SIDES, Pair, Side, read_pair, unpack_pair
from puzzlebench.gating.trees import Revision

LEAST_PAIRS: Final = 5
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
        work: where sessions are kept, and until the end both trees, so that the same call goes on after a kill; None
            keeps nothing.
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
        if job.work is None:
            work = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="puzzlebench-gate-"))).resolve()
        else:
            work = job.work.resolve()
        make_folder(work)
        held.enter_context(locked(work / "lock", "measures there"))
        pair = _open_pair(job, root, (base, new), work, progress)
        programs = _programs(job, pair)
        for side, program in programs.items():
            _probe(job, side, program, work)
        keep_stated(work, _stated(job, pair))  # from here on a kill is gone on from: what cannot run is not kept
        names = {"base": pair.base.name, "next": pair.new.name}
        looks = [_measure(job, programs, work / "first", names, progress)]
        first = _look(job, work / "first")
        second = None
        if job.rerun and (first.of("SLOWER") or first.suite_slower):
            again: Progress = lambda share, stage: progress(share, f"again, {stage}")  # noqa: E731
            looks.append(_measure(job, programs, work / "second", names, again))
            second = _look(job, work / "second")
        found = gate_result(first, second, _notes(job, pair, now=new), (pair.base, pair.new), looks)
        remove_folder(pair.folder)
        return found


def _stated(job: Gate, pair: Pair) -> dict[str, Any]:
    measured = {"only": list(job.only), "sessions": job.sessions, "seconds": job.seconds, "device": job.device}
    return {
        "base": pair.base.name,
        "new": pair.new.name,
        "measurement": {**measured, "threads": job.threads, "venv": job.venv},
    }


def _open_pair(job: Gate, root: Path, revisions: tuple[Revision, Revision], work: Path, progress: Progress) -> Pair:
    """The trees of the measurement that was begun there, or new ones.

    Raises:
        ValueError: another one was begun there, or these cannot be unpacked.
    """
    base, new = revisions
    folder, begun = work / "trees", (work / STATED).exists()
    kept = read_pair(folder) if begun else None
    if begun:
        if kept is not None and new.asked is None is kept.new.asked:
            new = kept.new  # whatever was edited since
        keep_stated(work, _stated(job, Pair(folder=folder, base=base, new=new)))
        if kept is not None:
            progress(0.0, f"going on with {base.name} and {new.name} as they were unpacked")
            return replace(kept, base=base, new=new)
    progress(0.0, f"unpacking {base.name} and {new.name}")
    return unpack_pair(root, base, new, folder, without=job.work)


def _notes(job: Gate, pair: Pair, *, now: Revision) -> list[str]:
    """What a reader must know of the two trees."""
    notes = []
    base, new = pair.base, pair.new
    if new.asked is None:
        files = f"{new.changes} changed file(s)" if new.changes else "unchanged"
        since = "" if new.name == now.name else ", as it was when this measurement began: it was edited since"
        notes.append(f"NEW is the working tree of {new.commit[:12]}, {files}{since}")
    if base.name == new.name:
        notes.append("both revisions are the same code: whatever is found is a false alarm")
    if trees.dependencies(pair.tree("base")) != trees.dependencies(pair.tree("next")):
        how = (
            "each runs in an environment of its own" if job.venv else "both run in this one; --venv gives each its own"
        )
        notes.append(f"the revisions ask for other dependencies: {how}")
    return [*notes, *filter(None, [pair.suite])]


def _programs(job: Gate, pair: Pair) -> dict[Side, Program]:
    programs: dict[Side, Program] = {}
    for side in SIDES:
        tree = pair.tree(side)
        programs[side] = Program(tree=tree)
        if job.venv:
            programs[side] = Program(tree=tree, python=trees.build_environment(tree, pair.environment(side)))
    return programs


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
    yield from SIDES if pair % 2 == 0 else SIDES[::-1]


def _look(job: Gate, folder: Path) -> Comparison:
    base, new = (_read(folder / f"{side}.json", name) for side, name in zip(SIDES, ("BASE", "NEW"), strict=True))
    return compare(base, new, paired=True, band=job.band, rate=job.rate)


def _read(file: Path, name: str) -> Measurements:
    found = read_measurements(file)
    return replace(found, source=name, notes=tuple(note.replace(str(file), name) for note in found.notes))
