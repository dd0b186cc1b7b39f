"""What a measurement will do, frozen before it starts and kept beside its results as plan.json.

A plan is all that a session (a fresh process) needs. Two plans are the same when a run may be resumed under either.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from puzzlebench.measuring.workload import MODEL_PART, Cell, Workload, distinct_workloads
from puzzlebench.model import memory
from puzzlebench.model.blocks import (
    GQA,
    Architecture,
    architecture_from_json,
    architecture_to_json,
    parse_sub_block,
)
from puzzlebench.model.checks import require_positive_int
from puzzlebench.model.dtypes import unquantised_dtype_bytes
from puzzlebench.model.spec import ModelSpec
from puzzlebench.scenario import Precision

PLAN_SCHEMA: Final = 1
CACHE_FACTOR = 5
"""Runs rotate over this many times the last-level cache, or what the whole parent touches if that is less."""
_MOST_COPIES = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How long to measure.

    Attributes:
        sessions: fresh processes, one after the other.
        seconds: of timing, all sessions together; each stops earlier when its intervals are narrow enough.
        target_width: width of the 95 % interval of a median over the median, within a session.
        energy_seconds: stretch over which each workload's energy is counted, in the first session; 0 for none.
        lock_clocks_mhz: fix the GPU's SM clock while measuring; None leaves the card as it is.
    """

    sessions: int = 8
    seconds: float = 100.0
    target_width: float = 0.02
    energy_seconds: float = 0.0
    lock_clocks_mhz: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        require_positive_int("sessions", self.sessions)
        for name, least in (("seconds", 0.0), ("target_width", 0.0)):
            if not getattr(self, name) > least:
                raise ValueError(f"{name} must be above {least:g}, not {getattr(self, name)}")
        if not self.energy_seconds >= 0:
            raise ValueError(f"energy_seconds must not be negative, but is {self.energy_seconds}")
        if self.lock_clocks_mhz is not None:
            require_positive_int("lock_clocks_mhz", self.lock_clocks_mhz)


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A workload and how many copies of its weights and cache runs rotate over."""

    workload: Workload
    copies: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything a session needs. `models` are whole models to time too, by name."""

    spec: ModelSpec
    device: str
    engine: str
    precision: Precision
    effort: Effort
    workloads: tuple[Planned, ...]
    models: Mapping[str, Architecture]
    fingerprint: Mapping[str, Any]


def plan_workloads(
    spec: ModelSpec,
    parent: Architecture,
    precision: Precision,
    cells: Iterable[Cell],
    *,
    cache_bytes: int,
) -> tuple[Planned, ...]:
    """Every distinct workload behind the cells with its copies.

    In a model the other layers go through the caches between two runs of a block. So its weights and cache are rotated
    over as many copies as touch what the whole parent touches (weights, and the key-value cache of the largest cell
    that the workload serves), up to CACHE_FACTOR times the last-level cache of `cache_bytes`.
    """
    cells = tuple(cells)
    touched: dict[Workload, int] = {}
    weights = memory.model_weight_bytes(spec, parent, weight_dtype=precision.weight_dtype)
    for cell in cells:
        cached = memory.kv_cache_bytes(
            spec,
            parent,
            batch_size=cell.key.batch_size,
            context_len=cell.key.context_len,
            kv_dtype=precision.kv_dtype,
        )
        for step in cell.steps:
            touched[step.workload] = max(touched.get(step.workload, 0), weights + cached)
    return tuple(
        Planned(
            workload=work,
            copies=_copies(min(CACHE_FACTOR * cache_bytes, touched[work]), bytes_of_run(spec, precision, work)),
        )
        for work in distinct_workloads(cells)
    )


def model_workload(name: str, cell: Workload) -> Planned:
    """A whole model at a cell's size; its own layers evict each other, so there is one copy."""
    return Planned(workload=replace(cell, part=MODEL_PART, sub_block=name), copies=1)


def bytes_of_run(spec: ModelSpec, precision: Precision, work: Workload) -> int:
    """Bytes of weights and cache that one run goes through."""
    if work.part == "embedding":
        return work.tokens * spec.hidden_size * unquantised_dtype_bytes(precision.weight_dtype)
    if work.part == "head":
        return memory.embedding_weight_bytes(spec, weight_dtype=precision.weight_dtype)
    sub = parse_sub_block("attention" if work.part == "attention" else "ffn", work.sub_block)
    weights = memory.sub_block_weight_bytes(spec, sub, weight_dtype=precision.weight_dtype)
    if not isinstance(sub, GQA):
        return weights
    cached = min(work.context_len, sub.sliding_window or work.context_len)
    per_token = memory.sub_block_kv_bytes_per_token(spec, sub, kv_dtype=precision.kv_dtype)
    return weights + work.batch_size * cached * per_token


def _copies(touched: int, one_run: int) -> int:
    return min(max(1, -(-touched // one_run)), _MOST_COPIES)


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """JSON-ready; the inverse of `plan_from_json`."""
    return {
        "schema": PLAN_SCHEMA,
        "spec": asdict(plan.spec),
        "device": plan.device,
        "engine": plan.engine,
        "precision": asdict(plan.precision),
        "effort": asdict(plan.effort),
        "workloads": [asdict(planned.workload) | {"copies": planned.copies} for planned in plan.workloads],
        "models": {name: architecture_to_json(model) for name, model in plan.models.items()},
        "fingerprint": dict(plan.fingerprint),
    }


def plan_from_json(data: Mapping[str, Any]) -> Plan:
    """The plan in a dict written by `plan_to_json`.

    Raises:
        ValueError: another schema, or something is missing.
    """
    if not isinstance(data, Mapping) or data.get("schema") != PLAN_SCHEMA:
        schema = data.get("schema") if isinstance(data, Mapping) else None
        raise ValueError(f"plan schema {schema!r} is not known; this version reads {PLAN_SCHEMA}")
    try:
        windows = tuple(data["spec"]["sliding_windows"])
        return Plan(
            spec=ModelSpec(**{**data["spec"], "sliding_windows": windows}),
            device=data["device"],
            engine=data["engine"],
            precision=Precision(**data["precision"]),
            effort=Effort(**data["effort"]),
            workloads=tuple(
                Planned(
                    workload=Workload(**{key: value for key, value in row.items() if key != "copies"}),
                    copies=row["copies"],
                )
                for row in data["workloads"]
            ),
            models={name: architecture_from_json(model) for name, model in data["models"].items()},
            fingerprint=data["fingerprint"],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"a plan is incomplete: {error}") from None


def read_plan(path: Path) -> Plan:
    """Read plan.json.

    Raises:
        ValueError: it is missing or cannot be read.
    """
    try:
        return plan_from_json(json.loads(path.read_text()))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
