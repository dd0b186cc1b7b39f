"""The cost table: what every sub-block costs in every phase, batch and length; tidy, validated, one parquet file.

One row per (part, sub_block, phase, batch_size, context_len); the GPU, engine, number formats and tensor parallelism
are columns too, so that tables can be stacked. Latencies are of one sub-block of one layer, for the whole batch, on one
GPU of the tensor-parallel group. Knows nothing of where numbers come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from puzzlebench.parquet import TableFormat, read_table, write_table
from puzzlebench.profiling.timings import PROVENANCE
from puzzlebench_profiles.measured_tables import list_measured_tables

SCHEMA_VERSION: Final = 2
_FORMAT: Final = TableFormat(name="cost table", schema_version=SCHEMA_VERSION, metadata_key="puzzlebench")
PARTS = ("attention", "ffn", "embedding", "head")
KEY_COLUMNS: Final = (
    "gpu",
    "engine",
    "engine_version",
    "part",
    "sub_block",
    "weight_dtype",
    "kv_dtype",
    "tensor_parallel",
    "phase",
    "batch_size",
    "context_len",
)
_COLUMNS: Final[dict[str, str]] = {
    "gpu": "text",
    "engine": "text",
    "engine_version": "text",
    "part": "text",
    "sub_block": "text",
    "weight_dtype": "text",
    "kv_dtype": "text",
    "tensor_parallel": "positive",
    "phase": "text",
    "batch_size": "positive",
    "context_len": "positive",
    "latency_us": "float",
    "latency_low_us": "float",
    "latency_high_us": "float",
    "latency_hot_us": "optional",
    "samples": "count",
    "throttled_share": "optional",
    "energy_mj": "optional",
    "weight_bytes": "count",
    "kv_bytes_per_token": "count",
    "workspace_bytes": "count",
    "modelled_share": "float",
    "provenance": "text",
    "source": "text",
}
_ONE_OF = {"part": PARTS, "phase": ("prefill", "decode"), "provenance": PROVENANCE}
COLUMN_HELP: Final[dict[str, str]] = {
    "part": "attention, ffn, embedding or head (with the final norm)",
    "sub_block": "gqa_8, mlp_14336, linear, no_op; embedding and head name themselves",
    "phase": "prefill (all prompts of the batch) or decode (one token for every sequence)",
    "context_len": "prompt length in prefill, tokens in the cache in decode",
    "latency_us": "median latency of the whole batch, microseconds",
    "latency_low_us, latency_high_us": "95 % interval",
    "latency_hot_us": "with weights and cache left where the last run put them; empty where it was not measured",
    "samples": "measurements behind a measured cell, 0 for the others",
    "throttled_share": "share of them taken while the GPU held its clocks down; empty where it was not measured",
    "energy_mj": "millijoules; empty where it was not measured",
    "modelled_share": "share of the latency from elementwise kernels, which are modelled",
    "provenance": "of the least trusted GEMM, attention or all-reduce kernel: measured, interpolated, "
    "extrapolated or modelled",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CostTable:
    """A validated frame with the columns of this module, and metadata about the run that made it.

    Metadata: `model` (the spec's facts), `gpu` (datasheet), `settings`, `source`, `puzzlebench_version`, `created`;
    of a live measurement also `fingerprint` (hardware and library versions) and `misses`: the cells that have no row,
    each with its reason.
    """

    frame: pd.DataFrame
    metadata: dict[str, Any]

    def __post_init__(self) -> None:
        """Raise ValueError for the first thing that is wrong."""
        validate_frame(self.frame)


def validate_frame(frame: pd.DataFrame) -> None:
    """Check columns, values and keys.

    Raises:
        ValueError: one line that names the column, the row's sub-block and the value seen.
    """
    unknown = [column for column in frame.columns if column not in _COLUMNS]
    missing = [column for column in _COLUMNS if column not in frame.columns]
    if unknown or missing:
        wrong = f"unknown column {unknown[0]!r}" if unknown else f"column {missing[0]!r} is missing"
        raise ValueError(f"cost table: {wrong}; schema {SCHEMA_VERSION} has: {', '.join(_COLUMNS)}")
    if frame.empty:
        raise ValueError("cost table: it has no rows")
    for column, kind in _COLUMNS.items():
        _check_column(frame, column, kind)
    idle = frame["sub_block"] == "no_op"
    latency = frame["latency_us"]
    _refuse(frame, "latency_us", (latency <= 0) & ~idle, "must be above 0")
    _refuse(frame, "latency_us", (latency != 0) & idle, "must be 0 for a no-op")
    _refuse(frame, "latency_low_us", frame["latency_low_us"] > latency, "must not exceed latency_us")
    _refuse(frame, "latency_high_us", frame["latency_high_us"] < latency, "must not be below latency_us")
    for share in ("modelled_share", "throttled_share"):
        _refuse(frame, share, frame[share] > 1 + 1e-9, "must be at most 1")
    repeated = frame.duplicated(list(KEY_COLUMNS))
    _refuse(frame, "context_len", repeated, "stands twice for the same sub-block, phase and batch")


def _check_column(frame: pd.DataFrame, column: str, kind: str) -> None:
    values = frame[column]
    if kind == "text":
        _refuse(frame, column, ~values.map(lambda value: isinstance(value, str) and value != ""), "must be text")
        if column in _ONE_OF:
            _refuse(frame, column, ~values.isin(_ONE_OF[column]), f"must be one of {', '.join(_ONE_OF[column])}")
        return
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        raise ValueError(f"cost table: column {column!r} must hold numbers, not {values.dtype}")
    numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
    bad = ~np.isfinite(numbers) | (numbers < (1 if kind == "positive" else 0))
    if kind == "optional":
        bad &= ~np.isnan(numbers)
    if kind in ("positive", "count"):
        bad |= numbers % 1 != 0
    wanted = {"positive": "a whole number of at least 1", "count": "a whole number of at least 0"}
    _refuse(frame, column, bad, f"must be {wanted.get(kind, 'finite and not negative')}")


def _refuse(frame: pd.DataFrame, column: str, bad: ArrayLike, what: str) -> None:
    wrong = np.flatnonzero(bad)
    if len(wrong):
        row = frame.iloc[wrong[0]]
        where = (
            f"{row['part']} {row['sub_block']}, {row['phase']}, batch {row['batch_size']}, length {row['context_len']}"
        )
        value = row[column].item() if isinstance(row[column], np.generic) else row[column]
        raise ValueError(f"cost table: {column} {what}, not {value!r} ({where})")


def write_cost_table(table: CostTable, path: Path) -> None:
    """Write parquet with readable metadata; the file appears whole or not at all.

    Raises:
        ValueError: the folder does not exist or cannot be written to.
    """
    write_table(_FORMAT, table.frame, table.metadata, path)


def open_cost_table(name: str) -> CostTable:
    """A cost table by its file, or a shipped one by its name.

    Raises:
        ValueError: as `read_cost_table`.
    """
    path = Path(name)
    return read_cost_table(path if path.exists() else list_measured_tables().get(name, path))


def read_cost_table(path: Path) -> CostTable:
    """Read and validate a cost table.

    Raises:
        ValueError: the file is missing, truncated, not a cost table, of another schema version, or has a bad value.
    """
    frame, metadata = read_table(_FORMAT, path)
    try:
        return CostTable(frame=frame, metadata=metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
