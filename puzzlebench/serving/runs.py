"""Measured serving runs that ship with the package, each with the workload and scheduler it was made with.

The numbers are others' (serving/runs.csv), and so is most of what is known of how they were made
(serving/benchmarks.json, with sources; what is assumed is said there). Nothing here predicts or judges.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

from puzzlebench.model.checks import require_positive_int
from puzzlebench.model.dtypes import KVDtype, WeightDtype
from puzzlebench.scenario import Precision
from puzzlebench.serving.workload import SCHEDULERS, Lengths, Scheduler, Workload
from puzzlebench_profiles import SERVING_BENCHMARKS, SERVING_FILE

SCHEMA_VERSION = 1
SPLITS = ("develop", "report")


@dataclass(frozen=True, kw_only=True, slots=True)
class HoldBack:
    """Settings that hold prompts back, for one pair of lengths on at most `max_tensor_parallel` GPUs."""

    lengths: tuple[int, int]
    max_tensor_parallel: int
    wait_share: float
    wait_iterations: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """How runs were made.

    Attributes:
        engine_version: that its runs probably had where their rows have none; else empty.
        shortest_share: lengths are uniform from this share of the stated one up to it.
        requests_per_user: that were sent in all, over the number of users.
        scheduler: the engine's settings other than its defaults.
        assumed: what no source states.
    """

    name: str
    title: str
    engine_version: str
    shortest_share: float
    requests_per_user: int
    scheduler: Mapping[str, Any]
    hold_back: HoldBack | None
    assumed: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingRun:
    """One measured run under in-flight batching.

    Attributes:
        benchmark: name of its `Benchmark`.
        engine_version: empty where it was not recorded.
        prefill_len, decode_len: stated tokens; `workload` has the lengths that were drawn.
        concurrency: users, each with one request at a time.
        ttft_ms, tpot_ms: measured means over requests.
        split: `develop`, or `report` if nothing may be fitted to it.
    """

    id: str
    benchmark: str
    gpu: str
    engine: str
    engine_version: str
    model: str
    precision: Precision
    prefill_len: int
    decode_len: int
    concurrency: int
    ttft_ms: float
    tpot_ms: float
    split: str

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        for field in ("prefill_len", "decode_len", "concurrency"):
            require_positive_int(field, getattr(self, field))
        if not (0 < self.ttft_ms < float("inf") and 0 < self.tpot_ms < float("inf")):
            raise ValueError(f"{self.id}: times must be above 0, not {self.ttft_ms} and {self.tpot_ms}")
        if self.split not in SPLITS:
            raise ValueError(f"{self.id}: the split is {self.split!r}; it must be {' or '.join(SPLITS)}")

    @property
    def tensor_parallel(self) -> int:
        """GPUs that shared the model."""
        return self.precision.tensor_parallel

    @property
    def group(self) -> tuple[str, str, str]:
        """(benchmark, engine, engine version): runs that share overheads."""
        return self.benchmark, self.engine, self.engine_version

    @property
    def requests(self) -> int:
        """How many were sent."""
        return self.concurrency * benchmarks()[self.benchmark].requests_per_user

    @property
    def workload(self) -> Workload:
        """Drawn lengths and users."""
        share = benchmarks()[self.benchmark].shortest_share
        return Workload(
            prefill=Lengths(max(1, int(share * self.prefill_len)), self.prefill_len),
            decode=Lengths(max(1, int(share * self.decode_len)), self.decode_len),
            concurrency=self.concurrency,
        )

    @property
    def scheduler(self) -> Scheduler:
        """The engine's defaults with the benchmark's settings."""
        benchmark = benchmarks()[self.benchmark]
        found = replace(SCHEDULERS[self.engine], **benchmark.scheduler)
        held = benchmark.hold_back
        if held is None or held.lengths != (self.prefill_len, self.decode_len):
            return found
        if self.tensor_parallel > held.max_tensor_parallel:
            return found
        return replace(found, wait_share=held.wait_share, wait_iterations=held.wait_iterations)


@cache
def benchmarks() -> Mapping[str, Benchmark]:
    """How the runs were made, by name.

    Raises:
        ValueError: the file has another schema.
    """
    stated = json.loads(SERVING_BENCHMARKS.read_text(encoding="utf-8"))
    if stated["schema_version"] != SCHEMA_VERSION:
        found = stated["schema_version"]
        raise ValueError(f"{SERVING_BENCHMARKS.name} has schema {found}; this version reads {SCHEMA_VERSION}")
    return {name: _benchmark(name, entry) for name, entry in stated["benchmarks"].items()}


@cache
def serving_runs() -> tuple[ServingRun, ...]:
    """The measured runs that ship with the package, both halves of the split."""
    with SERVING_FILE.open(newline="", encoding="utf-8") as file:
        return tuple(_run(row) for row in csv.DictReader(file))


def _benchmark(name: str, entry: Mapping[str, Any]) -> Benchmark:
    held = entry.get("hold_back")
    return Benchmark(
        name=name,
        title=entry["title"],
        engine_version=entry.get("engine_version", ""),
        shortest_share=entry["shortest_share"],
        requests_per_user=entry["requests_per_user"],
        scheduler=entry["scheduler"],
        hold_back=None if held is None else HoldBack(**{**held, "lengths": tuple(held["lengths"])}),
        assumed=tuple(entry["assumed"]),
    )


def _run(row: Mapping[str, str]) -> ServingRun:
    return ServingRun(
        id=row["id"],
        benchmark=row["benchmark"],
        gpu=row["gpu"],
        engine=row["engine"],
        engine_version=row["engine_version"],
        model=row["model"],
        precision=Precision(
            weight_dtype=cast("WeightDtype", row["weight_dtype"]),
            kv_dtype=cast("KVDtype", row["kv_dtype"]),
            tensor_parallel=int(row["tensor_parallel"]),
        ),
        prefill_len=int(row["prefill_len"]),
        decode_len=int(row["decode_len"]),
        concurrency=int(row["concurrency"]),
        ttft_ms=float(row["ttft_ms"]),
        tpot_ms=float(row["tpot_ms"]),
        split=row["split"],
    )
