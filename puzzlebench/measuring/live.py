"""A cost table measured on the device in hand: plan, measure, and put the results into the cells they fill."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

import puzzlebench
from puzzlebench.files import write_text
from puzzlebench.measuring.ceilings import ceilings_from_json, ceilings_to_json, measure_ceilings, with_ceilings
from puzzlebench.measuring.device import Device, fingerprint
from puzzlebench.measuring.engines import check_engine_name
from puzzlebench.measuring.measure import Report, measure
from puzzlebench.measuring.plan import CACHE_FACTOR, Effort, Plan, plan_workloads
from puzzlebench.measuring.results import Measured, Results
from puzzlebench.measuring.workload import Cell, Workload, is_no_op, plan_cells
from puzzlebench.model.blocks import Architecture, parse_sub_block
from puzzlebench.model.dtypes import KVDtype, WeightDtype
from puzzlebench.model.space import SearchSpace
from puzzlebench.model.spec import ModelSpec
from puzzlebench.profiling.cost_table import CostTable
from puzzlebench.profiling.profile import DEFAULT_MAX_NUM_TOKENS, Grid, end_bytes, sub_block_bytes
from puzzlebench.scenario import Precision
from puzzlebench_profiles.datasheets import bundled_datasheets

CPU_GRID: Final = Grid(batch_sizes=(1, 4, 16), prefill_lens=(64, 128, 256), context_lens=(64, 128, 256))
"""Where a CPU is measured unless asked otherwise: what it can be timed at in minutes."""


def live_precision(
    device: Device, weight_dtype: WeightDtype | None = None, kv_dtype: KVDtype | None = None, tensor_parallel: int = 1
) -> Precision:
    """The number formats asked for; fp32 on a CPU and bf16 on a GPU by default, the cache's as the weights'."""
    weights: WeightDtype = weight_dtype or ("fp32" if device.kind == "cpu" else "bf16")
    return Precision(weight_dtype=weights, kv_dtype=kv_dtype or weights, tensor_parallel=tensor_parallel)


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveProfile:
    """A measured table and what the measurement says of itself."""

    table: CostTable
    results: Results


def profile_live(
    spec: ModelSpec,
    parent: Architecture,
    space: SearchSpace,
    precision: Precision,
    grid: Grid,
    device: Device,
    engine: str,
    effort: Effort,
    folder: Path,
    report: Report,
    *,
    max_num_tokens: int = DEFAULT_MAX_NUM_TOKENS,
) -> LiveProfile:
    """Measure a search space; resumes in `folder`.

    Raises:
        ValueError: see `measure`.
    """
    check_engine_name(engine)
    cells = plan_cells(space, grid, max_num_tokens=max_num_tokens)
    planned = plan_workloads(spec, parent, precision, cells, cache_bytes=device.last_level_cache_bytes)
    plan = Plan(
        spec=spec,
        device=device.torch_name,
        engine=engine,
        precision=precision,
        effort=effort,
        workloads=planned,
        models={},
        fingerprint=fingerprint(device),
    )
    results = measure(folder, plan, report)
    device = with_measured_rates(device, folder)
    return LiveProfile(table=live_table(plan, cells, results, device, max_num_tokens=max_num_tokens), results=results)


def with_measured_rates(device: Device, folder: Path) -> Device:
    """The device with measured ceilings where no datasheet is bundled; measured once, kept in the folder."""
    if device.name in bundled_datasheets():
        return device
    file = folder / "ceilings.json"
    if not file.exists():
        ceilings = measure_ceilings(device)
        write_text(file, json.dumps(ceilings_to_json(ceilings)))
    return with_ceilings(device, ceilings_from_json(json.loads(file.read_text())))


def live_table(
    plan: Plan, cells: Iterable[Cell], results: Results, device: Device, *, max_num_tokens: int
) -> CostTable:
    """The cost table of a measurement. A cell whose work was not measured has no row but an entry in `misses`.

    Raises:
        ValueError: no cell was measured.
    """
    rows, misses = [], []
    source = f"measured by puzzlebench {puzzlebench.__version__} on {device.display_name}"
    for cell in cells:
        missing = [step.workload for step in cell.steps if step.workload not in results.measured]
        if missing:
            misses.append(asdict(cell.key) | {"reason": results.misses.get(missing[0], "not measured")})
            continue
        rows.append(_row(plan, cell, results))
    frame = pd.DataFrame(rows)
    identity: dict[str, Any] = {
        "gpu": device.name,
        "engine": plan.engine,
        "engine_version": results.engine_version,
        **asdict(plan.precision),
        "source": source,
    }
    frame = frame.assign(**identity)
    settings = {
        "max_num_tokens": max_num_tokens,
        "composition": "CUDA graphs" if device.kind == "cuda" else "eager",
        "effort": asdict(plan.effort),
        "caches": f"rotated over what the parent touches, at most {CACHE_FACTOR} x the last-level cache",
    }
    return CostTable(
        frame=frame,
        metadata={
            "puzzlebench_version": puzzlebench.__version__,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "model": asdict(plan.spec),
            "gpu": asdict(device.datasheet),
            "settings": settings,
            "source": source,
            "fingerprint": dict(plan.fingerprint),
            "session_shift": list(results.session_shift),
            "misses": misses,
        },
    )


def cell_interval(cell: Cell, results: Results) -> tuple[float, float, float]:
    """(latency, low, high) of a cell in microseconds; a repeated step repeats its error, different ones add up
    independently.
    """
    latency = below = above = 0.0
    for step in cell.steps:
        measured = results.measured[step.workload]
        latency += step.times * measured.latency_us
        below = math.hypot(below, step.times * (measured.latency_us - measured.low_us))
        above = math.hypot(above, step.times * (measured.high_us - measured.latency_us))
    return latency, max(latency - below, 0.0), latency + above


def _row(plan: Plan, cell: Cell, results: Results) -> dict[str, Any]:
    measured = [(step.times, results.measured[step.workload]) for step in cell.steps]
    latency, low, high = cell_interval(cell, results)
    facts = _static_bytes(plan, cell.key)
    if measured:
        facts["workspace_bytes"] = max(one.peak_bytes for _, one in measured)
    return {
        **asdict(cell.key),
        "latency_us": latency,
        "latency_low_us": low,
        "latency_high_us": high,
        "latency_hot_us": _total(measured, "hot_us"),
        "samples": min((one.samples for _, one in measured), default=0),
        "throttled_share": max((one.throttled_share for _, one in measured), default=math.nan),
        "energy_mj": _total(measured, "energy_mj"),
        **facts,
        "modelled_share": 0.0,
        "provenance": "measured",
    }


def _total(measured: list[tuple[int, Measured]], field: str) -> float:
    return float(sum(times * getattr(one, field) for times, one in measured))


def _static_bytes(plan: Plan, key: Workload) -> dict[str, Any]:
    """Weight, cache and workspace bytes by formula; the measured workspace takes the last one's place."""
    tokens = np.array([key.tokens])
    if key.part in ("embedding", "head"):
        rows = tokens if key.part == "embedding" else np.array([key.batch_size])
        facts = end_bytes(plan.spec, key.part, plan.precision, rows)
    else:
        sub = parse_sub_block("attention" if key.part == "attention" else "ffn", key.sub_block)
        facts = sub_block_bytes(plan.spec, sub, plan.precision, tokens)
    workspace = 0 if is_no_op(key) else int(np.asarray(facts["workspace_bytes"]).item())
    return {**facts, "workspace_bytes": workspace}
