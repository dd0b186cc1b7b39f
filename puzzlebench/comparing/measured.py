"""Results to compare, from whichever file: names of cells, their medians in every session, and the machine.

A session is one fresh process. Files without sessions say so: a cost table has intervals that stand for them, one
pytest-benchmark file is one session (a folder of them is several). Judges nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias

import numpy as np

from puzzlebench.comparing.fingerprints import find_differences
from puzzlebench.digest import short_digest
from puzzlebench.measuring.disturbance import BUSY_SHARE
from puzzlebench.measuring.statistics import log_error, median_and_error
from puzzlebench.profiling.arrays import FloatArray

RESULT_SCHEMA: Final = 1
"""Of `bench.json`, for who reads it and who writes it."""
Kind: TypeAlias = Literal["bench", "cost_table", "pytest_benchmark"]
NANOSECONDS: Final = {"ns": 1.0, "us": 1e3, "ms": 1e6, "s": 1e9}
"""The units of time that files may have."""
_LEAST_SAMPLES: Final = 3  # the range of fewer says nothing of how well their median is known
_TABLE_KEYS: Final = {
    "gpu": "device",  # the fingerprint's word; its "gpu" is a group of facts
    **{key: key for key in ("engine", "engine_version", "weight_dtype", "kv_dtype", "tensor_parallel")},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurements:
    """One result: C cells in S sessions; lower is better.

    Attributes:
        cells: C names, "group/what", each once.
        units: of the medians, one for each cell.
        medians: (S, C), above 0, NaN where a session lacks a cell.
        errors: (S, C), standard error of the log of each median from its own session's samples; NaN where unknown.
        calm, taken: (S, C), the share of a session's samples behind its median, and their number before the others were
            set aside; NaN where unknown. None where the file keeps all samples or does not say.
        fingerprint: of the machine and what was measured with, as in JSON.
        revision: the commit, where it is known.
        created: an ISO date and time, or "".
        source: where it comes from, for messages.
        skipped: cells that some session did not measure, and why.
        conditions: what the machine did meanwhile, over sessions: `sm_clock_mhz` (median), `throttled_share` (mean).
        notes: what a reader must know, one sentence each.
    """

    cells: tuple[str, ...]
    units: tuple[str, ...]
    medians: FloatArray
    errors: FloatArray
    fingerprint: Mapping[str, Any]
    kind: Kind
    revision: str | None = None
    created: str = ""
    source: str = "result"
    notes: tuple[str, ...] = field(default=())
    calm: FloatArray | None = None
    taken: FloatArray | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    conditions: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError for the first thing that is wrong."""
        shape = (len(self.medians), len(self.cells))
        if not self.cells or not len(self.medians):
            raise ValueError(f"{self.source}: it has no measured cells")
        if self.medians.shape != shape or self.errors.shape != shape or len(self.units) != len(self.cells):
            raise ValueError(f"{self.source}: medians of {self.medians.shape} do not fit {len(self.cells)} cells")
        if len(set(self.cells)) < len(self.cells):
            twice = next(name for name in self.cells if self.cells.count(name) > 1)
            raise ValueError(f"{self.source}: cell {twice!r} stands twice")
        wrong = ~((self.medians > 0) & np.isfinite(self.medians)) & ~np.isnan(self.medians)
        if wrong.any():
            session, cell = (int(places[0]) for places in np.nonzero(wrong))
            value = float(self.medians[session, cell])
            raise ValueError(f"{self.source}: {self.cells[cell]} must be finite and above 0, not {value!r}")
        for shares in (self.calm, self.taken):
            if shares is not None and shares.shape != shape:
                raise ValueError(f"{self.source}: shares of calm samples of {shares.shape} do not fit {shape}")
        if np.isinf(self.errors).any() or (self.errors < 0).any():
            raise ValueError(f"{self.source}: an interval is not finite or the wrong way round")

    @property
    def sessions(self) -> int | None:
        """Fresh processes behind every number; None where the file has intervals in their place."""
        return None if self.kind == "cost_table" else len(self.medians)

    def only(self, sessions: Sequence[int]) -> Self:
        """The same of some sessions, in this order."""
        rows = list(sessions)
        calm, taken = (None if one is None else one[rows] for one in (self.calm, self.taken))
        return replace(self, medians=self.medians[rows], errors=self.errors[rows], calm=calm, taken=taken)


def read_measurements(path: Path) -> Measurements:
    """Read a result of `puzzlebench bench`, a cost table, a pytest-benchmark JSON, or a folder of those JSONs.

    Raises:
        ValueError: the file is missing or none of these, or has a bad value; one line.
    """
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if not files:
            raise ValueError(f"{path}: no .json files in this folder")
        return _stack([read_measurements(file) for file in files], source=str(path))
    if path.suffix == ".parquet":
        return _cost_table(path)
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such result") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a JSON file or a cost table that can be read: {error}") from None
    if isinstance(stated, dict) and "benchmarks" in stated and "machine_info" in stated:
        read = _pytest_benchmark
    elif isinstance(stated, dict) and "sessions" in stated and "fingerprint" in stated:
        read = _bench
    else:
        raise ValueError(f"{path} is neither a result of `puzzlebench bench`, a cost table nor a pytest-benchmark JSON")
    try:
        return read(path, stated)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} lacks what its format needs ({type(error).__name__}: {error})") from None


def _bench(path: Path, stated: Mapping[str, Any]) -> Measurements:
    if stated.get("schema_version") != RESULT_SCHEMA:
        version = stated.get("schema_version")
        raise ValueError(f"{path} has schema version {version!r}; this version reads {RESULT_SCHEMA}")
    sessions = [
        {
            name: (cell["unit"], float(cell["median"]), _log_error(cell, f"{path}: {name}"), *_calm(cell))
            for name, cell in session["cells"].items()
        }
        for session in stated["sessions"]
    ]
    busy = [float(session.get("others_share") or 0) for session in stated["sessions"]]
    notes = []
    if max(busy, default=0) > BUSY_SHARE:
        count = sum(share > BUSY_SHARE for share in busy)
        notes.append(
            f"{path}: others took up to {max(busy):.0%} of the processors ({count} of {len(busy)} sessions disturbed)"
        )
    return _of_sessions(
        sessions,
        fingerprint=stated["fingerprint"],
        kind="bench",
        revision=stated.get("revision"),
        created=str(stated.get("created", "")),
        source=str(path),
        notes=tuple(notes),
        skipped=dict(stated.get("skipped") or {}),
        conditions=_conditions(stated["sessions"]),
    )


def _conditions(sessions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    known = {
        key: [float(one[key]) for one in sessions if one.get(key) is not None]
        for key in ("sm_clock_mhz", "throttled_share")
    }
    return {
        key: float(np.median(values) if "clock" in key else np.mean(values)) for key, values in known.items() if values
    }


def _pytest_benchmark(path: Path, stated: Mapping[str, Any]) -> Measurements:
    session = {}
    for one in stated["benchmarks"]:
        stats = one["stats"]
        data = np.asarray(stats.get("data") or [], dtype=np.float64)
        median, error = float(stats["median"]), math.nan
        if len(data) >= _LEAST_SAMPLES and (data > 0).all():
            median, error = median_and_error(data)
        elif stats.get("rounds", 0) >= _LEAST_SAMPLES and median > 0:
            # Of a median: 1.25 standard deviations, 1.35 to a range.
            error = 1.2533 * float(stats["iqr"]) / 1.349 / math.sqrt(stats["rounds"]) / median
        name = (one.get("extra_info") or {}).get("cell") or "_".join(str(one["fullname"]).split())
        session[str(name)] = ("us", median * 1e6, error, math.nan, math.nan)
    return _of_sessions(
        [session],
        fingerprint=_pytest_machine(stated["machine_info"]),
        kind="pytest_benchmark",
        revision=(stated.get("commit_info") or {}).get("id"),
        created=str(stated.get("datetime", "")),
        source=str(path),
    )


def _pytest_machine(machine: Mapping[str, Any]) -> dict[str, Any]:
    """The project's own fingerprint, if `pytest benchmarks/` put it there; else what pytest-benchmark knows."""
    if isinstance(own := machine.get("puzzlebench"), Mapping):
        return dict(own)
    cpu = machine.get("cpu") or {}
    return {
        "python": machine.get("python_version"),
        "platform": f"{machine.get('system')}-{machine.get('release')}-{machine.get('machine')}",
        "cpu": {"model": cpu.get("brand_raw") or cpu.get("brand"), "usable_cores": cpu.get("count")},
    }


def _cost_table(path: Path) -> Measurements:
    from puzzlebench.profiling.cost_table import read_cost_table

    table = read_cost_table(path)
    frame = table.frame[table.frame["latency_us"] > 0]  # a no-op takes no time, so it has no ratio
    if frame.empty:
        raise ValueError(f"{path}: every cell of this cost table is a no-op")
    settings = {key: frame[key].unique() for key in _TABLE_KEYS}
    mixed = next((key for key, found in settings.items() if len(found) > 1), None)
    if mixed is not None:
        found = ", ".join(map(str, settings[mixed]))
        raise ValueError(f"{path}: it holds several of {mixed} ({found}); compare tables of one")
    names = [
        f"{part}/{sub}.{phase}.b{batch}.n{length}"
        for part, sub, phase, batch, length in zip(
            *(frame[key] for key in ("part", "sub_block", "phase", "batch_size", "context_len")), strict=True
        )
    ]
    low, high = (frame[key].to_numpy(np.float64) for key in ("latency_low_us", "latency_high_us"))
    if (low <= 0).any():
        raise ValueError(f"{path}: {names[int(np.argmax(low <= 0))]} has an interval that reaches 0")
    metadata = table.metadata
    model = metadata.get("model") or {}
    notes = [f"{path} has no sessions: its own 95 % intervals stand for them"]
    trust = frame["provenance"].value_counts()
    if others := ", ".join(f"{count} {name}" for name, count in trust.items() if name != "measured"):
        notes.append(f"{path}: {others} cells, whose intervals are of a model's error, not of a measurement's")
    return Measurements(
        cells=tuple(names),
        units=("us",) * len(names),
        medians=frame["latency_us"].to_numpy(np.float64)[None, :],
        errors=(log_error(low, high))[None, :],
        fingerprint={
            **(metadata.get("fingerprint") or {}),
            **{_TABLE_KEYS[key]: str(found[0]) for key, found in settings.items()},
            "model": f"{model.get('name')} ({short_digest(model)})",
            "settings": metadata.get("settings") or {},
        },
        kind="cost_table",
        created=str(metadata.get("created", "")),
        revision=(metadata.get("fingerprint") or {}).get("git_commit"),
        source=str(path),
        notes=tuple(notes),
    )


def _log_error(cell: Mapping[str, Any], name: str) -> float:
    """From a 95 % interval; NaN where there is none, or too few samples for one."""
    low, high = cell.get("low"), cell.get("high")
    if low is None or high is None or cell.get("samples", _LEAST_SAMPLES) < _LEAST_SAMPLES:
        return math.nan
    if not 0 < low <= high < math.inf:
        raise ValueError(f"{name}: an interval is not above 0, not finite or the wrong way round: {low} to {high}")
    return float(log_error(low, high))


def _calm(cell: Mapping[str, Any]) -> tuple[float, float]:
    """(share of calm samples, samples taken)."""
    samples, taken = cell.get("samples"), cell.get("taken")
    return (samples / taken, float(taken)) if samples is not None and taken else (math.nan, math.nan)


_Cell: TypeAlias = tuple[str, float, float, float, float]
"""Unit, median, error, share of calm samples, samples taken."""


def _of_sessions(sessions: Sequence[Mapping[str, _Cell]], **facts: Any) -> Measurements:
    """From the cells of each session by name; in the order in which they first appear."""
    units: dict[str, str] = {}
    for session in sessions:
        for name, (unit, *_) in session.items():
            if units.setdefault(name, unit) != unit:
                raise ValueError(f"{facts['source']}: {name} is in {units[name]} and in {unit}")
    values = np.full((4, len(sessions), len(units)), np.nan)
    for row, session in enumerate(sessions):
        for column, name in enumerate(units):
            if name in session:
                values[:, row, column] = session[name][1:]
    medians, errors, calm, taken = values
    known = bool(np.isfinite(calm).any())
    return Measurements(
        cells=tuple(units),
        units=tuple(map(str, units.values())),
        medians=medians,
        errors=errors,
        calm=calm if known else None,
        taken=taken if known else None,
        **facts,
    )


def _stack(results: Sequence[Measurements], source: str) -> Measurements:
    """Results of one revision on one machine, each a session."""
    first = results[0]
    for one in results:
        if one.kind != "pytest_benchmark":
            raise ValueError(f"{one.source}: only pytest-benchmark files make a result together; give this one itself")
        both = f"{source}: {first.source} and {one.source}"
        if first.revision != one.revision:
            raise ValueError(f"{both} are not of one commit: {first.revision} and {one.revision}")
        found = find_differences(first.fingerprint, one.fingerprint)
        if differ := (*found.refused, *found.labelled):
            what, mine, its = differ[0].key, differ[0].base, differ[0].new
            raise ValueError(f"{both} are not of one machine and its libraries: {what} {mine} and {its}")
    return _of_sessions(
        list(_rows(results)),
        fingerprint=first.fingerprint,
        kind=first.kind,
        revision=first.revision,
        created=first.created,
        source=source,
    )


def _rows(results: Iterable[Measurements]) -> Iterable[dict[str, _Cell]]:
    for one in results:
        yield {
            name: (unit, float(median), float(error), math.nan, math.nan)
            for name, unit, median, error in zip(one.cells, one.units, one.medians[0], one.errors[0], strict=True)
        }
