"""One result in the formats of other tools: github-action-benchmark, Bencher, airspeed velocity, pytest-benchmark.

Formats as these tools document them: "customSmallerIsBetter" in the README of github-action-benchmark; the Bencher
Metric Format in Bencher's reference; result files of version 2 in asv's developer documentation; pytest-benchmark's
`--benchmark-json`. A cell's value is the geometric mean of its sessions' medians with the interval over sessions, which
these tools show and mostly do not use: their own alarms compare single values.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from puzzlebench.comparing.fingerprints import comparable_digest, facts
from puzzlebench.comparing.measured import NANOSECONDS, Measurements
from puzzlebench.files import make_folder, write_text
from puzzlebench.measuring.statistics import combine_sessions
from puzzlebench.profiling.arrays import FloatArray

_ASV_COLUMNS: Final = (
    *("result", "params", "version", "started_at", "duration", "stats_ci_99_a", "stats_ci_99_b"),
    *("stats_q_25", "stats_q_75", "stats_number", "stats_repeat", "samples", "profile"),
)
_TO_99: Final = 2.576 / 1.96  # of a normal interval's width; asv wants 99 %
_ASV_VERSION: Final = "1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Typical:
    """Cells over the sessions of one result, (C,), with 95 % intervals (NaN where unknown), in the cells' units."""

    value: FloatArray
    low: FloatArray
    high: FloatArray


def typical(result: Measurements) -> Typical:
    """Each cell's value over the sessions, and how well it is known."""
    if result.sessions is None:
        half = 1.96 * result.errors[0]
        value = result.medians[0]
        return Typical(value=value, low=value * np.exp(-half), high=value * np.exp(half))
    # Several sessions show their own scatter, and an unknown error inside one adds no floor to it; one alone has none.
    errors = np.nan_to_num(result.errors) if result.sessions > 1 else result.errors
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        combined = combine_sessions(result.medians, errors)
    return Typical(value=combined.latency_us, low=combined.low_us, high=combined.high_us)


def github_action_benchmark(result: Measurements) -> list[dict[str, Any]]:
    """For its tool "customSmallerIsBetter"; `range` is half of the 95 % interval."""
    values = typical(result)
    stated = []
    for place, (name, unit) in enumerate(zip(result.cells, result.units, strict=True)):
        value, low, high = (float(one[place]) for one in (values.value, values.low, values.high))
        known = math.isfinite(low)
        extra = [f"95 % interval {low:.6g} to {high:.6g} {unit}" if known else "interval unknown"]
        extra += [f"sessions: {result.sessions or 'none'}"]
        extra += [f"revision: {result.revision}"] if result.revision else []
        one = {"name": name, "unit": unit, "value": value, "extra": "\n".join(extra)}
        stated.append(one | ({"range": f"± {(high - low) / 2:.4g}"} if known else {}))
    return stated


def bencher_metric_format(result: Measurements) -> dict[str, dict[str, dict[str, float]]]:
    """Times under Bencher's own measure "latency", in its nanoseconds; anything else under its unit's name."""
    values = typical(result)
    stated: dict[str, dict[str, dict[str, float]]] = {}
    for place, (name, unit) in enumerate(zip(result.cells, result.units, strict=True)):
        measure, factor = ("latency", NANOSECONDS[unit]) if unit in NANOSECONDS else (unit, 1.0)
        ends = {"value": values.value, "lower_value": values.low, "upper_value": values.high}
        known = {key: float(one[place]) * factor for key, one in ends.items()}
        stated[name] = {measure: {key: one for key, one in known.items() if math.isfinite(one)}}
    return stated


def pytest_benchmark(result: Measurements) -> dict[str, Any]:
    """As `pytest --benchmark-json` writes it; every round is the median of one session.

    Raises:
        ValueError: a cell is no time.
    """
    seconds = _seconds(result)
    benchmarks = []
    for place, name in enumerate(result.cells):
        data = [float(value) for value in result.medians[:, place] * seconds[place] if np.isfinite(value)]
        quarters = [float(one) for one in np.quantile(data, (0.25, 0.5, 0.75))]
        stats = {"min": min(data), "max": max(data), "mean": float(np.mean(data)), "median": quarters[1]}
        stats |= {"stddev": float(np.std(data, ddof=1)) if len(data) > 1 else 0.0, "rounds": len(data), "iterations": 1}
        stats |= {"q1": quarters[0], "q3": quarters[2], "iqr": quarters[2] - quarters[0], "total": sum(data)}
        stats |= {"ops": 1 / stats["mean"], "iqr_outliers": 0, "stddev_outliers": 0, "ld15iqr": min(data)}
        benchmarks.append(
            {
                "group": name.partition("/")[0],
                "name": name,
                "fullname": name,
                "params": None,
                "param": None,
                "extra_info": {"cell": name},
                "options": {},
                "stats": {**stats, "hd15iqr": max(data), "outliers": "0;0", "data": data},
            }
        )
    known = facts(result.fingerprint)
    cpu = {"brand_raw": known.get("cpu.model"), "count": known.get("cpu.usable_cores")}
    return {
        "machine_info": {
            "node": comparable_digest(result.fingerprint),
            "python_version": known.get("python"),
            "cpu": cpu,
            "puzzlebench": dict(result.fingerprint),
        },
        "commit_info": {"id": result.revision, "dirty": False},
        "benchmarks": benchmarks,
        "datetime": result.created or _now().isoformat(),
        "version": "5.3.1",
    }


def write_asv(result: Measurements, folder: Path, *, machine: str | None = None) -> list[Path]:
    """Add a result to asv's results folder: benchmarks.json, MACHINE/machine.json and MACHINE/COMMIT-ENV.json.

    `asv publish` then shows it, if its repository has the commit. Names become asv's: dots for slashes.

    Args:
        machine: its name there; by default one that all comparable results share.

    Raises:
        ValueError: the result names no commit, a cell is no time, or the folder cannot be written to.
    """
    if result.revision is None or not re.fullmatch(r"[0-9a-f]{7,64}", result.revision):
        raise ValueError(f"asv files results by commit, and {result.source} has {result.revision or 'none'}")
    seconds, values, known = _seconds(result), typical(result), facts(result.fingerprint)
    machine = machine or f"{known.get('device', 'machine')}-{comparable_digest(result.fingerprint)}"
    if not re.fullmatch(r"[\w.-]+", machine):
        raise ValueError(f"a machine's name is letters, digits, dots and dashes, not {machine!r}")
    python = str(known.get("python", "3"))
    environment = f"existing-py{python.rpartition('.')[0] or python}"
    started = _milliseconds(result.created)
    rows, described = {}, {}
    for place, (cell, name) in enumerate(zip(result.cells, _asv_names(result.cells), strict=True)):
        samples = [float(value) for value in result.medians[:, place] * seconds[place] if np.isfinite(value)]
        centre, low, high = (float(one[place] * seconds[place]) for one in (values.value, values.low, values.high))
        quarters = np.quantile(samples, (0.25, 0.75))
        rows[name] = [
            [centre], [], _ASV_VERSION, started, None,
            [_or_none(centre * (low / centre) ** _TO_99)], [_or_none(centre * (high / centre) ** _TO_99)],
            [float(quarters[0])], [float(quarters[1])], [1], [len(samples)], [samples], None,
        ]  # fmt: skip
        described[name] = {
            "name": name, "pretty_name": cell, "type": "time", "unit": "seconds", "version": _ASV_VERSION,
            "code": f"# measured by puzzlebench bench: {cell}", "params": [], "param_names": [], "timeout": 60.0,
        }  # fmt: skip
    platform = str(known.get("platform", ""))
    architecture = re.search(r"x86_64|aarch64|arm64|ppc64le|riscv64", platform)
    params = {
        "machine": machine,
        "os": platform,
        "arch": architecture.group() if architecture else "",
        "cpu": str(known.get("cpu.model", "")),
        "num_cpu": str(known.get("cpu.usable_cores", "")),
        "ram": str(known.get("cpu.memory_bytes", "")),
    }
    stated = {
        "commit_hash": result.revision,
        "env_name": environment,
        "date": started,
        "params": params | {"python": python},
        "python": python,
        "requirements": {},
        "env_vars": {},
        "result_columns": list(_ASV_COLUMNS),
        "results": rows,
        "durations": {},
        "version": 2,
    }
    make_folder(folder / machine)
    written = [
        folder / machine / f"{result.revision[:8]}-{environment}.json",
        folder / machine / "machine.json",
        folder / "benchmarks.json",
    ]
    for path, content in zip(
        written, (stated, {**params, "version": 1}, {**_benchmarks(written[2]), **described, "version": 2}), strict=True
    ):
        write_text(path, json.dumps(content, indent=1) + "\n")
    return written


def _benchmarks(path: Path) -> Mapping[str, Any]:
    """Those that the folder knows already."""
    if not path.exists():
        return {}
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a JSON file that can be read: {error}") from None
    if not isinstance(stated, dict) or stated.get("version") != 2:
        raise ValueError(f"{path} is no list of asv's benchmarks of version 2; give another folder")
    return stated


def _asv_names(cells: tuple[str, ...]) -> list[str]:
    """Names that asv can make file names of, each once."""
    names: list[str] = []
    for cell in cells:
        name = re.sub(r"[^\w.-]", "_", cell.replace("/", "."))
        names.append(name if name not in names else f"{name}_{len(names)}")
    return names


def _seconds(result: Measurements) -> list[float]:
    for name, unit in zip(result.cells, result.units, strict=True):
        if unit not in NANOSECONDS:
            raise ValueError(f"{name} is in {unit}; this format holds times ({', '.join(NANOSECONDS)})")
    return [NANOSECONDS[unit] / 1e9 for unit in result.units]


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN


def _milliseconds(created: str) -> int:
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        moment = _now()
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _now() -> datetime:
    return datetime.now(UTC)
