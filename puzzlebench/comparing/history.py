"""A series of results in a folder of plain JSON files, to keep in git, and where in it cells changed.

One file for each result, so that branches merge without conflict. Change points are those of Apache Otava (E-divisive
means with a t-test; Fleming et al. 2023), called in this process. Only results that may be compared are in one series;
what differs between neighbours (a library, a driver) is said beside a change, as it may be its cause. As in a
comparison, what all cells share is a series of its own, and cells are looked at relative to it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from puzzlebench.comparing.estimates import LEAST_CELLS, common_shift
from puzzlebench.comparing.fingerprints import comparable_digest, facts, find_differences
from puzzlebench.comparing.interop import typical
from puzzlebench.comparing.measured import Measurements
from puzzlebench.comparing.verdicts import BAND
from puzzlebench.digest import short_digest
from puzzlebench.files import make_folder, write_text
from puzzlebench.profiling.arrays import FloatArray

SCHEMA_VERSION: Final = 1
SUITE: Final = "suite"
"""Stands for a cell's name where what all cells share changed."""
RATE: Final = 0.001
"""Threshold for Otava's p-values, over all cells together. Their t-test is at the split that was chosen for being the
largest, so this is no rate of false changes.
"""
_LEAST_RESULTS: Final = 6  # fewer say nothing certain
_LEAST_SEGMENT: Final = 2  # one result that stands out is a spike, not a change


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One result of a history.

    Attributes:
        created: an ISO date and time.
        digest: of what makes results comparable.
        fingerprint: the facts, flat.
        sessions: behind each value; None where a file's own intervals stood for them.
        cells: name to (unit, value).
    """

    created: str
    revision: str | None
    kind: str
    digest: str
    fingerprint: Mapping[str, Any]
    sessions: int | None
    cells: Mapping[str, tuple[str, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """Where a cell changed.

    Attributes:
        cell: its name, or `SUITE`.
        revision, created: of the first result after the change.
        previous: revision of the last result before it.
        ratio: mean after over mean before, up to the neighbouring changes; of a cell relative to the suite.
        p: of Student's t between both stretches, as Otava gives it: at a split chosen for being the largest.
        digest: of the series it is in.
        labels: what else differs between the two results.
    """

    cell: str
    revision: str | None
    created: str
    previous: str | None
    ratio: float
    p: float
    digest: str
    labels: tuple[str, ...]


def append(result: Measurements, folder: Path) -> Path:
    """Add a result; the same result again is the same file.

    Raises:
        ValueError: the result does not say when it was measured, or the folder cannot be written to.
    """
    moment = _moment(result.created, result.source)
    values = typical(result).value
    digest = comparable_digest(result.fingerprint)
    stated = {
        "schema_version": SCHEMA_VERSION,
        "created": moment.isoformat(),
        "revision": result.revision,
        "kind": result.kind,
        "digest": digest,
        "sessions": result.sessions,
        "fingerprint": facts(result.fingerprint),
        "cells": {
            name: {"unit": unit, "value": float(f"{value:.6g}")}
            for name, unit, value in zip(result.cells, result.units, values, strict=True)
        },
    }
    make_folder(folder)
    revision = re.sub(r"\W", "", result.revision or "unknown")[:12]
    path = folder / f"{moment:%Y%m%dT%H%M%S}-{revision}-{short_digest(stated)}.json"
    write_text(path, json.dumps(stated, indent=1) + "\n")
    return path


def read_history(folder: Path) -> tuple[Entry, ...]:
    """Every result of a folder, oldest first.

    Raises:
        ValueError: there is no such folder, or a file in it is not of a history.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; `puzzlebench history append` makes one")
    entries = [_entry(path) for path in sorted(folder.glob("*.json"))]
    return tuple(sorted(entries, key=lambda entry: datetime.fromisoformat(entry.created)))


def find_changes(entries: Sequence[Entry], *, band: float = BAND, rate: float = RATE) -> tuple[Change, ...]:
    """Change points of every cell, series by series.

    Args:
        band: the least relative change that counts.
        rate: Otava's threshold of p for a series of results, shared out evenly among its cells; see `RATE`.

    Raises:
        ValueError: apache-otava is not installed.
    """
    series: dict[str, list[Entry]] = {}
    for entry in entries:
        series.setdefault(f"{entry.kind} {entry.digest}", []).append(entry)
    found: list[Change] = []
    for one in series.values():
        found += _changes(one, band=band, rate=rate)
    return tuple(found)


def _changes(entries: Sequence[Entry], *, band: float, rate: float) -> list[Change]:
    names = list(dict.fromkeys(name for entry in entries for name in entry.cells))
    logs = np.array([[_log(entry, name) for name in names] for entry in entries])  # (R results, C cells)
    enough = np.isfinite(logs).sum(axis=0) >= _LEAST_RESULTS
    names, logs = [name for name, kept in zip(names, enough, strict=True) if kept], logs[:, enough]
    if not names:
        return []
    level = common_shift(logs) if len(names) >= LEAST_CELLS else np.zeros(len(logs))
    found = _points(SUITE, level, entries, band=band, rate=rate / 2) if np.any(level) else []
    for column, name in enumerate(names):
        found += _points(name, logs[:, column] - level, entries, band=band, rate=rate / 2 / len(names))
    return found


def _points(name: str, logs: FloatArray, entries: Sequence[Entry], *, band: float, rate: float) -> list[Change]:
    try:
        from otava.analysis import compute_change_points
    except ImportError:
        raise ValueError("change points need apache-otava: pip install 'puzzlebench[regression]'") from None

    places = np.flatnonzero(np.isfinite(logs))
    points, _ = compute_change_points(list(np.exp(logs[places])), max_pvalue=rate, min_magnitude=band)
    ends = [0, *(int(point.index) for point in points), len(places)]
    changes = []
    for place, point in enumerate(points, start=1):
        if min(ends[place] - ends[place - 1], ends[place + 1] - ends[place]) < _LEAST_SEGMENT:
            continue
        before, after = (entries[places[ends[place] + step]] for step in (-1, 0))
        differences = find_differences(before.fingerprint, after.fingerprint)
        changes.append(
            Change(
                cell=name,
                revision=after.revision,
                created=after.created,
                previous=before.revision,
                ratio=float(point.stats.mean_2 / point.stats.mean_1),
                p=float(point.stats.pvalue),
                digest=after.digest,
                labels=tuple(f"{one.key} {one.base} to {one.new}" for one in differences.labelled),
            )
        )
    return changes


def _log(entry: Entry, name: str) -> float:
    return math.log(entry.cells[name][1]) if name in entry.cells else math.nan


def _entry(path: Path) -> Entry:
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        if stated["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {stated['schema_version']!r}; this version reads {SCHEMA_VERSION}")
        cells = {name: (str(cell["unit"]), float(cell["value"])) for name, cell in stated["cells"].items()}
        if not all(value > 0 and math.isfinite(value) for _, value in cells.values()):
            raise ValueError("a value is not finite and above 0")
        return Entry(
            created=_moment(stated["created"], str(path)).isoformat(),
            revision=stated["revision"],
            kind=str(stated["kind"]),
            digest=str(stated["digest"]),
            fingerprint=dict(stated["fingerprint"]),
            sessions=stated["sessions"],
            cells=cells,
        )
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is not a result of a history: {type(error).__name__}: {error}") from None


def _moment(created: str, source: str) -> datetime:
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        raise ValueError(f"{source} does not say when it was measured: created is {created!r}") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
