"""How often the gate is wrong on this machine: false alarms between equal code, and planted slow-downs that it finds.

One pool of fresh sessions in time order, of one code. Most are plain. Some are really slowed: a few cells wait busily
for a share of their own time (`benching.session.SLOW_VARIABLE`). A suite is a window of successive sessions taken for
the base and the new revision in turn (ABBA), judged as the gate judges; a second look is the window beside it. Windows
that share sessions are not independent: only the disjoint ones bound how often the gate is wrong. Every planted
slow-down is new: no two windows of those share sessions.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

import puzzlebench
from puzzlebench.benching.job import (
    Bench,
    Program,
    check_alike,
    keep_stated,
    merge_sessions,
    read_session,
    run_fresh,
    session_share,
)
from puzzlebench.benching.session import code_digest
from puzzlebench.comparing.comparison import Comparison
from puzzlebench.comparing.measured import Measurements, read_measurements
from puzzlebench.comparing.verdicts import BAND, RATE, compare
from puzzlebench.files import locked, make_folder, write_text
from puzzlebench.gating.gate import LEAST_PAIRS
from puzzlebench.gating.outcome import confirm

FACTORS: Final = (1.03, 1.05, 1.10)
CYCLE: Final = "APPAAA"
"""Plain and slowed sessions in their order; a slowed one has a plain one at its side, and the order reverses."""
PER_FACTOR: Final = 1
"""Cells that a slowed session slows by each factor: Benjamini-Hochberg finds many at once more easily than one."""
_SAME_PAIRS: Final = 16
"""Pairs in a row that slow the same cells."""
_NORMAL: Final = 1.96


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """What to measure and judge.

    Attributes:
        folder: where the pool grows; the same call goes on, a later one adds.
        suites: windows of equal code that are wanted for the smallest of `pairs`; longer ones are a few less.
        pairs: how many pairs a suite has; each is judged.
        seconds: of timing in each session.
        minutes: stop after this long, whatever is there by then; None goes on to the end.
    """

    folder: Path
    suites: int = 200
    pairs: tuple[int, ...] = (5, 8)
    seconds: float = 2.0
    only: tuple[str, ...] = ()
    device: str = "local"
    threads: int = 1
    band: float = BAND
    rate: float = RATE
    minutes: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        if not self.pairs or min(self.pairs) < LEAST_PAIRS or 2 * max(self.pairs) > _SAME_PAIRS:
            raise ValueError(f"pairs of a suite are {LEAST_PAIRS} to {_SAME_PAIRS // 2}, not {self.pairs}")
        if self.suites < 1:
            raise ValueError(f"suites must be at least 1, not {self.suites}")
        _ = self.bench

    @property
    def bench(self) -> Bench:
        """One session."""
        return Bench(only=self.only, sessions=1, seconds=self.seconds, device=self.device, threads=self.threads)

    @property
    def sessions(self) -> int:
        """How many the pool needs: plain ones for so many windows, and for a second look beside the first."""
        plain = max(self.suites + 2 * min(self.pairs) - 1, 4 * max(self.pairs))
        return next(count for count in range(plain, 10 * plain) if _kinds(count).count("A") >= plain)


def _kinds(count: int) -> str:
    return (CYCLE * (count // len(CYCLE) + 1))[:count]


def planted_cells(cells: Sequence[str], pair: int) -> dict[str, float]:
    """Which cells the slowed session of a pair slows, and how much; the same for `_SAME_PAIRS` pairs in a row.

    Raises:
        ValueError: there are too few cells for most of them to stay as they are.
    """
    wanted = PER_FACTOR * len(FACTORS)
    if len(cells) < 2 * wanted:
        raise ValueError(f"a proof slows {wanted} cells and needs twice as many; {len(cells)} can be measured here")
    drawn = random.Random(pair // _SAME_PAIRS).sample(list(cells), wanted)  # noqa: S311 (a draw, not a secret)
    return {cell: FACTORS[place // PER_FACTOR] for place, cell in enumerate(drawn)}


def run_proof(job: Proof, *, progress: Callable[[float, str], None] = lambda _s, _t: None) -> dict[str, Any]:
    """Grow the pool, or go on where an earlier call stopped, judge what is there, and write `proof.json` in the folder.

    Raises:
        ValueError: a session died, the folder is in use or holds another pool, or there are too few sessions to judge.
    """
    started = time.monotonic()
    make_folder(job.folder)
    with locked(job.folder / "lock", "measures there"):
        stated = {"only": list(job.only), "seconds": job.seconds, "device": job.device, "threads": job.threads}
        keep_stated(job.folder, {**stated, "cycle": CYCLE, "per_factor": PER_FACTOR, "code": code_digest()})
        program, request = Program(), job.bench.request(0)
        files: list[Path] = []
        slowed = 0
        for number, kind in enumerate(_kinds(job.sessions)):
            file = job.folder / f"session.{number:05d}.json"
            if not file.exists():
                if job.minutes is not None and time.monotonic() - started > 60 * job.minutes:
                    break

                def tell(message: dict[str, Any], number: int = number) -> None:
                    done = (number + session_share(message)) / job.sessions
                    progress(done, f"session {number + 1} of {job.sessions}")

                slow = planted_cells(list(read_session(files[0])["session"]["cells"]), slowed) if kind == "P" else {}
                text = ",".join(f"{name}={factor}" for name, factor in slow.items())
                run_fresh(program, replace(request, session=number), file, threads=job.threads, tell=tell, slow=text)
                check_alike([job.folder / "session.00000.json", file])
            files.append(file)
            slowed += kind == "P"
        result = judge_pool(job, files)
        write_text(job.folder / "proof.json", json.dumps(result, indent=1) + "\n")
    return result


def judge_pool(job: Proof, files: Sequence[Path]) -> dict[str, Any]:
    """Every window of the pool, judged.

    Raises:
        ValueError: there are too few sessions for a suite and a second look at it.
    """
    needed = 4 * min(job.pairs)
    kinds = _kinds(len(files))
    if kinds.count("A") < needed:
        raise ValueError(f"{kinds.count('A')} plain sessions are too few; a suite and its second look need {needed}")
    pool_file = job.folder / "pool.json"
    merged = merge_sessions(files)
    write_text(pool_file, json.dumps(merged))
    pool = replace(read_measurements(pool_file), source="the pool", notes=())
    plain = [place for place, kind in enumerate(kinds) if kind == "A"]
    planted = [read_session(file)["slowed"] for file in files]
    seconds = [session["seconds"] for session in merged["sessions"]]
    return {
        "schema_version": 1,
        "puzzlebench_version": puzzlebench.__version__,
        "created": merged["created"],
        "began": merged["sessions"][0]["started"],
        "revision": merged["revision"],
        "fingerprint": merged["fingerprint"],
        "sessions": len(files),
        "plain_sessions": len(plain),
        "cells": len(pool.cells),
        "timing_seconds": float(np.median(seconds)),
        "others_share": float(np.median([session["others_share"] for session in merged["sessions"]])),
        "band": job.band,
        "rate": job.rate,
        "session_scatter": _session_scatter(pool, plain),
        "within_session": _within_session(pool, plain, job.band),
        "suites": [
            {
                "pairs": pairs,
                "equal": _equal(job, pool, plain, pairs),
                "slowed": _slowed(job, pool, kinds, planted, pairs),
            }
            for pairs in job.pairs
            if len(plain) >= 4 * pairs
        ],
    }


def _session_scatter(pool: Measurements, plain: Sequence[int]) -> dict[str, float]:
    """How much a session moves all cells, and how much a cell moves on its own: standard deviations of logs."""
    logs = np.log(pool.medians[list(plain)])
    logs = logs - np.nanmedian(logs, axis=0)
    shift = np.nanmedian(logs, axis=1)
    own = np.nanstd(logs - shift[:, None], axis=0)
    return {"all_cells": float(np.std(shift)), "typical_cell": float(np.median(own)), "worst_cell": float(own.max())}


def _within_session(pool: Measurements, plain: Sequence[int], band: float) -> dict[str, float]:
    """What intervals of samples inside one process would claim of two plain sessions next to each other."""
    pairs = list(zip(plain[::2], plain[1::2], strict=False))
    before, after = ([pair[side] for pair in pairs] for side in (0, 1))
    ratios = np.log(pool.medians[after] / pool.medians[before])
    errors = np.hypot(pool.errors[after], pool.errors[before])
    wrong = np.abs(ratios) > _NORMAL * errors
    beyond = wrong & (np.abs(ratios) > np.log1p(band))
    return {
        "pairs": len(pairs),
        "cells_wrong": float(wrong.mean()),
        "cells_wrong_beyond_band": float(beyond.mean()),
        "pairs_with_any_beyond_band": float(beyond.any(axis=1).mean()),
    }


def _window(pool: Measurements, base: Sequence[int], new: Sequence[int], job: Proof) -> Comparison:
    def side(places: Sequence[int]) -> Measurements:
        return pool.only(list(places))

    return compare(side(base), side(new), paired=True, band=job.band, rate=job.rate)


def _abba(places: Sequence[int]) -> tuple[list[int], list[int]]:
    """Base and new of successive sessions, the order reversed in every other pair."""
    pairs = list(zip(places[::2], places[1::2], strict=True))
    turned = [pair[::-1] if number % 2 else pair for number, pair in enumerate(pairs)]
    return [base for base, _ in turned], [new for _, new in turned]


def _equal(job: Proof, pool: Measurements, plain: Sequence[int], pairs: int) -> dict[str, Any]:
    """False alarms between equal code, in all windows and in the disjoint ones."""
    length = 2 * pairs
    offsets = range(len(plain) - length + 1)
    looks = [_window(pool, *_abba(plain[offset : offset + length]), job) for offset in offsets]
    alarms = [_alarms(look) for look in looks]
    kept = {}
    for offset, look in enumerate(looks):
        beside = offset + length if offset + length < len(looks) else offset - length
        if beside >= 0:  # in a small pool those in the middle have none
            kept[offset] = _alarms(confirm(look, looks[beside])[0])
    disjoint = list(offsets)[::length]
    verdicts = [cell.verdict for look in looks for cell in look.cells]
    return {
        "suites": len(looks),
        "disjoint": len(disjoint),
        "alarms": _share(alarms, independent=False),
        "alarms_disjoint": _share([alarms[offset] for offset in disjoint]),
        "confirmed": _share(list(kept.values()), independent=False),
        "confirmed_disjoint": _share([kept[offset] for offset in disjoint if offset in kept]),
        "claims_either_way": _share([_alarms(look) + len(look.of("FASTER")) for look in looks], independent=False),
        "cells": {verdict: verdicts.count(verdict) / len(verdicts) for verdict in sorted(set(verdicts))},
        "half_width": float(
            np.median([np.log(cell.ratio.high / cell.ratio.low) / 2 for look in looks for cell in look.cells])
        ),
    }


def _alarms(look: Comparison) -> int:
    """What would fail: slower cells, and the suite."""
    return len(look.of("SLOWER")) + look.suite_slower


def _share(counts: Sequence[int], *, independent: bool = True) -> dict[str, float | None]:
    """How many suites had any, of how many, and the upper end of its interval where they share no sessions."""
    some, total = sum(count > 0 for count in counts), len(counts)
    return {"suites": some, "of": total, "upper": interval(some, total)[1] if independent else None}


def interval(some: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share of independent trials (Clopper and Pearson 1934); (0, 1) of none."""
    from scipy.stats import beta

    low = float(beta.ppf(0.025, some, total - some + 1)) if some else 0.0
    return low, float(beta.ppf(0.975, some + 1, total - some)) if some < total else 1.0


def _slowed(
    job: Proof, pool: Measurements, kinds: str, planted: Sequence[dict[str, float]], pairs: int
) -> dict[str, Any]:
    """What is found of what was planted: at a first look, and by the gate, which looks twice."""
    found = {f"{factor:g}": {"first": [0, 0], "gate": [0, 0]} for factor in FACTORS}
    untouched: list[int] = []
    untouched_confirmed: list[int] = []
    for block in _blocks(kinds, planted):
        windows = [block[start : start + pairs] for start in range(0, len(block) - pairs + 1, pairs)]
        slow = planted[block[0][1]]
        looks = [_window(pool, [one[0] for one in window], [one[1] for one in window], job) for window in windows]
        gates = [confirm(one, other)[0] for one, other in zip(looks[::2], looks[1::2], strict=False)]
        for which, several in (("first", looks), ("gate", gates)):
            for look in several:
                slower = {cell.name for cell in look.of("SLOWER")}
                for cell, factor in slow.items():
                    count = found[f"{factor:g}"][which]
                    count[0] += cell in slower
                    count[1] += 1
                (untouched if which == "first" else untouched_confirmed).append(
                    len(slower - set(slow)) + look.suite_slower
                )
    return {
        "factors": {
            factor: {
                which: {"found": count[0], "of": count[1], "interval": interval(*count)}
                for which, count in counts.items()
            }
            for factor, counts in found.items()
        },
        "untouched_alarms": _share(untouched),
        "untouched_confirmed": _share(untouched_confirmed),
    }


def _blocks(kinds: str, planted: Sequence[dict[str, float]]) -> list[list[tuple[int, int]]]:
    """(plain, slowed) sessions side by side, in runs that slow the same cells."""
    blocks: list[list[tuple[int, int]]] = []
    for place, kind in enumerate(kinds):
        if kind != "P":
            continue
        beside = place - 1 if kinds[place - 1] == "A" else place + 1
        if beside >= len(kinds):
            continue
        if blocks and planted[blocks[-1][0][1]] == planted[place]:
            blocks[-1].append((beside, place))
        else:
            blocks.append([(beside, place)])
    return blocks
