"""What medians do not see: sessions that stood far out, and samples that were set aside before the median was taken.

Either can be what the code does now and then. It is no proof of a slow-down, and it forbids to say that there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from puzzlebench.comparing.estimates import (
    Ratios,
    benjamini_hochberg,
    paired_ratios,
    quotient,
    session_floor,
    unpaired_ratios,
    welch,
)
from puzzlebench.comparing.measured import Measurements

_MOST_FAR: Final = 1  # sessions of a side; one that stands far out is an accident, two may be the code


def find_doubts(ratios: Ratios, calm: Sequence[str], *, band: float) -> list[str]:
    """What else than medians speaks against SAME, cell by cell.

    Args:
        band: a session that stood out by less beyond its reach is nobody's concern.
    """
    far = [(moved > np.log1p(band)).sum(axis=0) for moved in ratios.moved]
    doubts = []
    for cell, share in enumerate(calm):
        parts = [
            f"{count[cell]} {side} sessions far out"
            for side, count in zip(("BASE", "NEW"), far, strict=True)
            if count[cell] > _MOST_FAR
        ]
        doubts.append(", ".join(filter(None, [share, *parts])))
    return doubts


def calm_shares(
    base: Measurements, new: Measurements, mine: Sequence[int], its: Sequence[int], *, paired: bool, rate: float
) -> list[str]:
    """For each cell what its shares of calm samples are, where they differ for certain; else nothing.

    The same estimates as for times, as the exponentials of shares are to them what times are to their logarithms. A
    load that comes with the session is common to its cells and is no cell's difference.
    """
    from scipy.stats import t as student

    if base.calm is None or base.taken is None or new.calm is None or new.taken is None:
        return [""] * len(mine)
    shares = base.calm[:, list(mine)], new.calm[:, list(its)]
    floors = []
    for share, taken in zip(shares, (base.taken[:, list(mine)], new.taken[:, list(its)]), strict=True):
        likely = (share * taken + 1) / (taken + 2)  # all of a few samples may be calm by chance
        floors.append(session_floor(np.sqrt(likely * (1 - likely) / taken)))
    both = np.exp(shares[0]), np.exp(shares[1])
    found = paired_ratios(*both, floors[0] + floors[1]) if paired else unpaired_ratios(*both, *floors)
    usable = (found.counts >= 2) & np.isfinite(found.variance)
    away, variance, degrees = found.relative, found.variance, found.degrees
    if paired and found.suite:  # the machine explains no shift here
        level = np.full(len(mine), found.level_variance)
        away, variance = found.own, found.variance + level
        degrees = welch([found.variance, level], [found.degrees, np.full(len(mine), found.level_degrees)])
    adjusted = np.ones(len(mine))
    tests = 2 * student.sf(quotient(np.abs(away[usable]), np.sqrt(variance[usable])), degrees[usable])
    adjusted[usable] = benjamini_hochberg(tests)
    return [
        f"calm samples {np.nanmean(shares[0][:, cell]):.0%} to {np.nanmean(shares[1][:, cell]):.0%}" if differs else ""
        for cell, differs in enumerate(adjusted <= rate)
    ]


def doubt_notes(doubts: Sequence[str]) -> list[str]:
    """A sentence for each kind of doubt that some cell has."""
    calm, far = (sum(word in doubt for doubt in doubts) for word in ("calm", "far out"))
    notes = []
    if calm:
        notes.append(
            f"{calm} cells have other shares of calm samples in NEW than in BASE: medians are of calm samples, so they "
            "do not show what slows some samples only"
        )
    if far:
        notes.append(f"{far} cells have 2 or more sessions of one side that stand far out and count for less")
    return notes
