"""Predictions of the cost model for a fixed list of cases, held against committed goldens: a gate without a GPU.

What is compared is deterministic: shipped kernels, datasheets and float64 arithmetic, no clock. `SAME` leaves room for
the last digits, which numerical libraries of other machines round otherwise, and for the six that goldens keep.
"""

from __future__ import annotations

import datetime
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import yaml

import puzzlebench
from puzzlebench.errors import first_line
from puzzlebench.estimate import estimate
from puzzlebench.files import write_text
from puzzlebench.model.catalog import load_model
from puzzlebench.profiling.sources import open_kernels
from puzzlebench.profiling.timings import PROVENANCE
from puzzlebench.scenario import Precision, Scenario

_DATA: Final = Path(__file__).parent / "data"
CASES: Final = _DATA / "predictions.yaml"
GOLDENS: Final = _DATA / "predictions.json"
GOLDENS_SCHEMA: Final = 1
SAME: Final = 1e-4
"""Relative difference that is none."""
TOLERANCE: Final = 0.02
"""Drift above which a cell fails."""
PROVENANCE_STEP: Final = 0.05
"""Share of the time that may come from worse sources than before."""
_QUANTITIES: Final = {
    "prefill_ms": "ms",
    "decode_ms": "ms",
    "memory_gib": "GiB",
    "generated_tokens_per_s": "tokens/s",
}
_DIGITS: Final = 6

Outcome: TypeAlias = Literal["fails", "drifts", "improves"]
Cell: TypeAlias = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One prediction: a model on a GPU in a scenario. `gpu` is a name, or a datasheet file beside the list."""

    model: str
    gpu: str
    engine: str
    scenario: Scenario

    @property
    def name(self) -> str:
        """MODEL/GPU/ENGINE/WEIGHTS-KV.tpN/bB.pP.dD."""
        one, precision = self.scenario, self.scenario.precision
        formats = f"{precision.weight_dtype}-{precision.kv_dtype}.tp{precision.tensor_parallel}"
        size = f"b{one.batch_size}.p{one.prefill_len}.d{one.decode_len}"
        return f"{self.model}/{self.gpu.removesuffix('.yaml')}/{self.engine}/{formats}/{size}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What is other than the golden says: of which cell, how grave, and in a few words."""

    cell: str
    outcome: Outcome
    what: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionGate:
    """How the predictions stand to the goldens. `largest_drift` is relative, over all quantities of all cells."""

    cells: int
    findings: tuple[Finding, ...]
    largest_drift: float

    @property
    def passed(self) -> bool:
        """Whether no cell fails."""
        return not self.failed

    @property
    def failed(self) -> frozenset[str]:
        """Names of the cells that fail."""
        return frozenset(finding.cell for finding in self.findings if finding.outcome == "fails")

    @property
    def by_gravity(self) -> list[Finding]:
        """The findings, those that fail first."""
        return sorted(self.findings, key=lambda finding: ("fails", "improves", "drifts").index(finding.outcome))

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready object."""
        return {**asdict(self), "passed": self.passed}


def read_cases(path: Path = CASES) -> tuple[Case, ...]:
    """The list of cases, products multiplied out.

    Raises:
        ValueError: the file cannot be read, is not such a list, or names a case twice.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        cases = tuple(
            Case(model=model, gpu=gpu, engine=engine, scenario=_scenario(size, precision))
            for entry in entries
            for model, gpu, engine, precision, size in itertools.product(
                *(entry[key] for key in ("models", "gpus", "engines", "precisions", "scenarios"))
            )
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no list of predictions: {first_line(error)}") from None
    names = [case.name for case in cases]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path} has {repeated[0]} twice")
    return cases


def _scenario(size: list[int], precision: Mapping[str, Any]) -> Scenario:
    batch_size, prefill_len, decode_len = size
    return Scenario(
        batch_size=batch_size, prefill_len=prefill_len, decode_len=decode_len, precision=Precision(**precision)
    )


def predict_cases(
    cases: Iterable[Case], *, progress: Callable[[float, str], None] = lambda _s, _t: None
) -> dict[str, Cell]:
    """Every case's quantities and share of the time by provenance, or `miss` and why there is no prediction."""
    cases = tuple(cases)
    found = {}
    for place, case in enumerate(cases):
        progress(place / len(cases), "predictions")
        found[case.name] = _predict(case)
    return found


def _predict(case: Case) -> Cell:
    try:
        spec, architecture = load_model(case.model)
        gpu, kernels = open_kernels(str(_DATA / case.gpu) if case.gpu.endswith(".yaml") else case.gpu, case.engine)
        one = estimate(kernels, gpu, spec, architecture, case.scenario)
    except ValueError as error:
        return {"miss": first_line(error)}
    values = {
        "prefill_ms": one.ttft_ms.value,
        "decode_ms": one.total_ms.value - one.ttft_ms.value,
        "memory_gib": one.memory.total_bytes / 2**30,
        "generated_tokens_per_s": one.generated_tokens_per_s.value,
    }
    return {**{key: _rounded(value) for key, value in values.items()}, "provenance": _shares(one.provenance)}


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _shares(provenance: Mapping[str, float]) -> dict[str, float]:
    return {name: _rounded(provenance[name]) for name in PROVENANCE if provenance.get(name)}


def compare_predictions(
    goldens: Mapping[str, Cell], found: Mapping[str, Cell], *, tolerance: float = TOLERANCE
) -> PredictionGate:
    """Hold predictions against goldens.

    Args:
        tolerance: relative drift of a quantity above which its cell fails.

    Raises:
        ValueError: the tolerance is not a number of at least `SAME`.
    """
    if not SAME <= tolerance < math.inf:
        raise ValueError(f"the tolerance must be at least {SAME:g}, not {tolerance:g}")
    findings: list[Finding] = []
    largest = 0.0
    for name in {**goldens, **found}:
        if name not in goldens or name not in found:
            what = "has no golden" if name not in goldens else "is no case any more"
            findings.append(Finding(cell=name, outcome="fails", what=f"{what}; --update writes the goldens anew"))
            continue
        golden, now = goldens[name], found[name]
        if "miss" in golden or "miss" in now:
            findings += _misses(name, golden, now)
            continue
        for quantity, unit in _QUANTITIES.items():
            drift = now[quantity] / golden[quantity] - 1
            largest = max(largest, abs(drift))
            if abs(drift) > SAME:
                outcome: Outcome = "fails" if abs(drift) > tolerance else "drifts"
                change = f"{quantity} {golden[quantity]:g} to {now[quantity]:g} {unit} ({drift:+.2%})"
                findings.append(Finding(cell=name, outcome=outcome, what=change))
        findings += _provenance(name, golden["provenance"], now["provenance"])
    return PredictionGate(cells=len(found), findings=tuple(findings), largest_drift=largest)


def _misses(name: str, golden: Cell, now: Cell) -> list[Finding]:
    if "miss" not in golden:
        return [Finding(cell=name, outcome="fails", what=f"is a miss now: {now['miss']}")]
    if "miss" not in now:
        return [Finding(cell=name, outcome="improves", what=f"is a miss no longer (was: {golden['miss']})")]
    return []  # the words of a reason may change


def _provenance(name: str, golden: Mapping[str, float], now: Mapping[str, float]) -> list[Finding]:
    """The share of the time from sources at least as bad as each kind; the kind that grew most speaks for all."""
    changes = {}
    for place, kind in enumerate(PROVENANCE[1:], start=1):
        before, after = (sum(one.get(other, 0.0) for other in PROVENANCE[place:]) for one in (golden, now))
        changes[kind] = (after - before, before, after)
    kind, (change, before, after) = max(changes.items(), key=lambda item: item[1][0])
    if change <= SAME:
        return []
    outcome: Outcome = "fails" if change > PROVENANCE_STEP else "drifts"
    what = f"{kind} or worse for {before:.1%} of the time, now {after:.1%}"
    return [Finding(cell=name, outcome=outcome, what=what)]


def read_goldens(path: Path = GOLDENS) -> dict[str, Cell]:
    """The committed cells.

    Raises:
        ValueError: the file cannot be read or is of another schema.
    """
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there are no goldens in {path}; --update writes them") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} holds no goldens that can be read: {first_line(error)}") from None
    if not isinstance(kept, dict) or kept.get("schema_version") != GOLDENS_SCHEMA:
        raise ValueError(f"{path} is not of schema {GOLDENS_SCHEMA}; --update writes it anew")
    cells: dict[str, Cell] = kept["cells"]
    return cells


def write_goldens(path: Path, cells: Mapping[str, Cell]) -> None:
    """Make these cells the goldens.

    Raises:
        ValueError: the file cannot be written.
    """
    kept = {
        "schema_version": GOLDENS_SCHEMA,
        "about": "written by `puzzlebench gate --predictions --update`; look at its diff before you commit it",
        "puzzlebench_version": puzzlebench.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cells": dict(cells),
    }
    write_text(path, json.dumps(kept, indent=1) + "\n")
