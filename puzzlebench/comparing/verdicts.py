"""FASTER, SLOWER, SAME or AMBIGUOUS: for every cell of two results, and once for what all cells share.

A cell of paired sessions is SLOWER or FASTER if there is a difference for certain (Student's t over sessions,
Benjamini-Hochberg over cells) and the estimate is beyond a band that nobody minds; its interval may reach into the
band. It is SAME if its 95 % interval lies inside the band; else AMBIGUOUS. Samples inside a session give no verdict:
they do not know what the next process would have seen.

Medians do not see what happens now and then. So a cell is neither SAME nor FASTER if two or more sessions of one side
stood far out, or if the shares of calm samples behind the medians differ for certain. A cell that all sessions of BASE
have and some of NEW lack is missing, and so is one that failed in some of NEW and in none of BASE.

A shift common to all cells is one finding of the suite, not one of each cell. As long as the suite is known to stand
still, a cell's own ratio is judged. Otherwise its ratio relative to the suite is; in paired sessions its own must be
beyond the band too, since the machine explains no shift there and a cell that kept its time is not slower because the
others gained; and while the suite is AMBIGUOUS there, a cell is SAME only if its own ratio is inside the band.

Two results of different times cannot tell the machine from the code: their common shift is said to be of either and
does not fail. Their cells wander apart by themselves, so the test there is of a difference beyond the band, not of any
difference: 5 % may stay AMBIGUOUS where paired sessions find it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from puzzlebench.comparing.comparison import MOST_SESSIONS, CellVerdict, Comparison, SuiteVerdict, Verdict
from puzzlebench.comparing.doubts import calm_shares, doubt_notes, find_doubts
from puzzlebench.comparing.estimates import (
    LEAST_CELLS,
    Ratios,
    benjamini_hochberg,
    interval_ratios,
    paired_ratios,
    quotient,
    session_floor,
    unpaired_ratios,
)
from puzzlebench.comparing.fingerprints import check_comparable, condition_labels
from puzzlebench.comparing.measured import Measurements
from puzzlebench.estimate import Interval
from puzzlebench.profiling.arrays import BoolArray, FloatArray

BAND: Final = 0.02
RATE: Final = 0.01


def compare(
    base: Measurements,
    new: Measurements,
    *,
    paired: bool,
    band: float = BAND,
    rate: float = RATE,
    across: bool = False,
) -> Comparison:
    """Judge every cell that both results have.

    Args:
        paired: session i of both ran next to each other.
        band: relative difference that nobody minds, in both directions.
        rate: of false findings (Benjamini-Hochberg over cells; the suite is tested at half of it).
        across: compare although the machines or settings differ.

    Raises:
        ValueError: the kinds of results or the fingerprints forbid it, no cell is in both, a cell's units differ,
            paired results have unlike numbers of sessions, or an option is out of range.
    """
    if not 0 < band < 1:
        raise ValueError(f"the band must be a share above 0 and below 1, such as 0.02, not {band}")
    if not 0 < rate < 0.5:
        raise ValueError(f"the rate of false findings must be above 0 and below 0.5, such as 0.01, not {rate}")
    if base.kind != new.kind:
        raise ValueError(
            f"{base.source} is a {base.kind} and {new.source} a {new.kind}, whose times are different statistics; "
            "compare results of one kind"
        )
    labels = check_comparable(base.fingerprint, new.fingerprint, across=across)
    labels += condition_labels(base.conditions, new.conditions)
    places = {name: place for place, name in enumerate(base.cells)}
    failed = _failed(base, new, places)
    names = [name for name in new.cells if name in places and name not in failed]
    if not names:
        raise ValueError(f"{base.source} and {new.source} have no cell in common: {base.cells[0]}, {new.cells[0]}")
    common = set(names)
    mine, its = [places[name] for name in names], [place for place, name in enumerate(new.cells) if name in common]
    units = [new.units[place] for place in its]
    for name, first, second in zip(names, (base.units[place] for place in mine), units, strict=True):
        if first != second:
            raise ValueError(f"{name} is in {first} in {base.source} and in {second} in {new.source}")
    ratios = _ratios(base, new, mine, its, paired=paired)
    suite, relative = _judge_suite(ratios, band=band, rate=rate, paired=paired)
    doubts = find_doubts(ratios, calm_shares(base, new, mine, its, paired=paired, rate=rate), band=band)
    missing = tuple(name for name in base.cells if name not in common)
    notes = [*base.notes, *new.notes, *_notes(base, new, ratios, paired=paired), *doubt_notes(doubts)]
    notes += [f"{name} in NEW: {why}" for name in missing if (why := new.skipped.get(name) or failed.get(name))]
    cells = _judge(
        ratios,
        suite,
        relative,
        paired=paired,
        band=band,
        rate=rate,
        names=names,
        units=units,
        values=(_typical(base.medians[:, mine]), _typical(new.medians[:, its])),
        doubts=doubts,
    )
    return Comparison(
        cells=cells,
        suite=suite,
        relative=relative,
        paired=paired,
        band=band,
        rate=rate,
        sessions=(base.sessions, new.sessions),
        missing=missing,
        appeared=tuple(name for name in new.cells if name not in places),
        labels=labels,
        notes=tuple(dict.fromkeys(notes)),
        revisions=(base.revision, new.revision),
    )


def _ratios(base: Measurements, new: Measurements, mine: list[int], its: list[int], *, paired: bool) -> Ratios:
    medians = base.medians[:, mine], new.medians[:, its]
    errors = base.errors[:, mine], new.errors[:, its]
    if base.kind == "cost_table":
        if paired:
            raise ValueError("cost tables have no sessions to pair; compare them unpaired")
        return interval_ratios(medians[0][0], medians[1][0], errors[0][0], errors[1][0])
    floors = [session_floor(error) for error in errors]
    return paired_ratios(*medians, floors[0] + floors[1]) if paired else unpaired_ratios(*medians, *floors)


def _failed(base: Measurements, new: Measurements, places: Mapping[str, int]) -> dict[str, str]:
    """Cells that failed in sessions of NEW and in none of BASE, and in how many: BASE has them all, or says why not."""
    whole: list[bool] = [bool(np.isfinite(column).all()) for column in base.medians.T]
    lacking: list[int] = [int(np.isnan(column).sum()) for column in new.medians.T]
    failures = [{name for name, why in one.skipped.items() if why.startswith("failed")} for one in (base, new)]
    return {
        name: f"failed in {count} of {len(new.medians)} sessions"
        for name, count in zip(new.cells, lacking, strict=True)
        if count and name in places and (whole[places[name]] or name in failures[1] - failures[0])
    }


def _notes(base: Measurements, new: Measurements, ratios: Ratios, *, paired: bool) -> list[str]:
    notes = [
        f"{one.source} is one session: samples of one process do not say what the next one would see, so nothing is "
        "judged; measure at least 5 sessions"
        for one in (base, new)
        if one.sessions == 1
    ]
    if not ratios.suite and not notes:
        few = f"fewer than {LEAST_CELLS} cells in 2 or more sessions: a shift of the whole machine cannot be seen"
        notes.append(few if paired else f"{few}, so nothing is called SLOWER or FASTER across two times")
    return notes


def _judge_suite(ratios: Ratios, *, band: float, rate: float, paired: bool) -> tuple[SuiteVerdict | None, bool]:
    """The suite's verdict, and whether cells are to be judged relative to it."""
    from scipy.stats import t as student

    if not ratios.suite:
        return None, False
    edge, error = np.log1p(band), np.sqrt(ratios.level_variance)
    p = float(2 * student.sf(quotient(abs(ratios.level), error), ratios.level_degrees))
    half = float(student.ppf(0.975, ratios.level_degrees) * error)
    if p <= rate / 2 and abs(ratios.level) > edge:
        verdict: Verdict = "SLOWER" if ratios.level > 0 else "FASTER"
    else:
        verdict = "SAME" if abs(ratios.level) + half <= edge else "AMBIGUOUS"
    suite = SuiteVerdict(
        ratio=_interval(ratios.level, half), p=p, verdict=verdict, cause="code" if paired else "machine or code"
    )
    return suite, verdict != "SAME"


def _judge(
    ratios: Ratios,
    suite: SuiteVerdict | None,
    relative: bool,
    *,
    paired: bool,
    band: float,
    rate: float,
    names: Sequence[str],
    units: Sequence[str],
    values: tuple[FloatArray, FloatArray],
    doubts: Sequence[str],
) -> tuple[CellVerdict, ...]:
    from scipy.stats import t as student

    edge = np.log1p(band)
    tables = bool((ratios.counts == 0).all())
    usable: BoolArray = np.isfinite(ratios.variance) & (tables | (ratios.counts >= 2))
    adjusted = np.ones(len(names))
    error = np.sqrt(np.where(usable, ratios.variance, np.inf))
    least = 0.0 if paired else edge  # see the module's text: cells of different times must be further apart
    tests = np.minimum(2 * student.sf(quotient(np.abs(ratios.relative) - least, error), ratios.degrees), 1.0)
    if paired or suite is not None:  # with few cells of different times nothing tells the machine from the code
        adjusted[usable] = benjamini_hochberg(tests[usable])
    half = student.ppf(0.975, ratios.degrees) * error
    common = 0.0 if suite is None else np.log(suite.ratio.high / suite.ratio.value)
    own_half = half if tables else np.hypot(half, common)  # a table's interval holds the common part already
    judged, reach = (ratios.relative, half) if relative else (ratios.own, own_half)
    beyond = np.abs(judged) > edge
    if relative and paired:
        beyond &= (np.abs(ratios.own) > edge) & (np.sign(ratios.own) == np.sign(ratios.relative))
    certain = np.array([not doubt for doubt in doubts])
    found = (adjusted <= rate) & beyond & (certain | (judged > 0))
    same = ~found & (np.abs(judged) + reach <= edge)
    if relative and paired and suite is not None and suite.verdict == "AMBIGUOUS":
        open_suite = same & (np.abs(ratios.own) > edge)
        same &= ~open_suite
        doubts = [doubt or "the suite is open" * bool(one) for doubt, one in zip(doubts, open_suite, strict=True)]
        certain &= ~open_suite
    by_own = np.full(len(names), not relative)
    if relative and paired:  # a cell that kept its time is the same, however the others moved
        same |= ~found & (np.abs(ratios.own) + own_half <= edge)
        by_own = (np.abs(ratios.own) <= edge) & (np.abs(ratios.relative) > edge)
    same &= certain
    more = _more_sessions(
        ratios,
        np.where(by_own, ratios.own, judged),
        usable & ~found & ~same & ~tables & certain,
        edge=edge,
        least=least,
        rate=rate * max(int(found.sum()), 1),
        common=np.where(by_own, common, 0.0),
    )
    cells = []
    for place, name in enumerate(names):
        verdict: Verdict = "SAME" if same[place] else "AMBIGUOUS"
        if found[place]:
            verdict = "SLOWER" if judged[place] > 0 else "FASTER"
        cells.append(
            CellVerdict(
                name=name,
                unit=units[place],
                base=float(values[0][place]),
                new=float(values[1][place]),
                ratio=_interval(ratios.own[place], own_half[place]),
                relative=_interval(ratios.relative[place], half[place]),
                p=float(adjusted[place]),
                verdict=verdict,
                sessions=None if tables else int(ratios.counts[place]),
                more_sessions=more[place],
                doubt=doubts[place],
            )
        )
    return tuple(cells)


def _more_sessions(
    ratios: Ratios,
    judged: FloatArray,
    unsettled: BoolArray,
    *,
    edge: float,
    least: float,
    rate: float,
    common: FloatArray,
) -> list[int | None]:
    """Further sessions on each side that would decide a cell, if estimates and scatter stay as they are.

    Inside the band that is when the interval fits into it, outside when a test at the strictest threshold of
    Benjamini-Hochberg that applies would find it.

    Args:
        least: distance from which a test starts.
        rate: over the number of cells, that threshold.
        common: (C,), half of the interval of what all cells share, where it counts.
    """
    from scipy.stats import t as student

    answers: list[int | None] = [None] * len(judged)
    places = np.flatnonzero(unsettled)
    now = ratios.counts[places, None]
    total = now + np.arange(1, MOST_SESSIONS + 1)  # (cells, further sessions)
    fixed = ratios.fixed[places, None]
    variance = (ratios.variance[places, None] - fixed) * now / total + fixed
    degrees = ratios.degrees[places, None] + total - now
    away = np.abs(judged[places, None])
    half = np.hypot(student.ppf(0.975, degrees) * np.sqrt(variance), common[places, None] * np.sqrt(now / total))
    apart = quotient(np.abs(ratios.relative[places, None]) - least, np.sqrt(variance))
    certain = 2 * student.sf(apart, degrees) <= rate / len(judged)
    settled = np.where(away <= edge, away + half <= edge, certain)
    for place, row in zip(places, settled, strict=True):
        if row.any():
            answers[place] = int(np.argmax(row)) + 1
    return answers


def _typical(medians: FloatArray) -> FloatArray:
    logs = np.log(medians)
    measured = np.isfinite(logs)
    with np.errstate(invalid="ignore"):
        means: FloatArray = np.exp(np.where(measured, logs, 0).sum(axis=0) / measured.sum(axis=0))
    return means


def _interval(log: float, half: float) -> Interval:
    return Interval(value=float(np.exp(log)), low=float(np.exp(log - half)), high=float(np.exp(log + half)))
