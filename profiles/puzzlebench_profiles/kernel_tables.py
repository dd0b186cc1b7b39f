"""Measured kernel latencies shipped with the package: one parquet file per GPU, engine and kernel kind.

Reads and lists files; interpolates nothing. The numbers come from the PyPI package named in `kernels/manifest.json`
(Apache-2.0, licence text beside it); `latency_us` is the mean of CUDA-graph replays, one row per shape.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

KERNEL_DIR = Path(__file__).parent / "kernels"
MANIFEST = "manifest.json"
_ATTENTION = ("heads", "kv_heads", "head_dim", "latency_us")
TABLE_COLUMNS: dict[str, tuple[str, ...]] = {
    "gemm": ("dtype", "n", "k", "m", "latency_us"),
    "prefill_attention": ("dtype", "kv_dtype", "batch", "seq_len", *_ATTENTION),
    "decode_attention": ("kv_dtype", "batch", "context", *_ATTENTION),
    "all_reduce": ("num_gpus", "elements", "latency_us"),
    "compute_scale": ("m", "k", "latency_us"),
    "quantise": ("m", "k", "latency_us"),
}
TEXT_COLUMNS = ("dtype", "kv_dtype")


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelTableId:
    """Which engine, in which version, on which GPU."""

    gpu: str
    engine: str
    engine_version: str

    @property
    def folder(self) -> Path:
        """Where its files are, relative to the kernel folder."""
        return Path(self.gpu) / f"{self.engine}-{self.engine_version}"


@cache
def manifest() -> dict[str, Any]:
    """The manifest: source package, version, licence, and rows and sha256 per file."""
    loaded: dict[str, Any] = json.loads((KERNEL_DIR / MANIFEST).read_text())
    return loaded


def list_kernel_tables() -> tuple[KernelTableId, ...]:
    """Every (gpu, engine, version) that was measured."""
    folders = sorted({Path(name).parent for name in manifest()["files"]})
    split = [(folder.parts[0], *folder.name.split("-", 1)) for folder in folders]
    return tuple(KernelTableId(gpu=gpu, engine=engine, engine_version=version) for gpu, engine, version in split)


def find_kernel_table(gpu: str, engine: str, engine_version: str | None = None) -> KernelTableId:
    """The measured table of an engine on a GPU; its only or given version.

    Raises:
        ValueError: that GPU, engine or version was not measured; the message lists what was.
    """
    of_gpu = [table for table in list_kernel_tables() if table.gpu == gpu]
    if not of_gpu:
        measured = ", ".join(sorted({table.gpu for table in list_kernel_tables()}))
        raise ValueError(f"no kernels were measured on {gpu}; measured GPUs: {measured}")
    of_engine = [table for table in of_gpu if table.engine == engine]
    if not of_engine:
        raise ValueError(f"engine {engine!r} was not measured on {gpu}; engines: {', '.join(t.engine for t in of_gpu)}")
    fitting = [table for table in of_engine if engine_version in (None, table.engine_version)]
    if not fitting:
        versions = ", ".join(table.engine_version for table in of_engine)
        raise ValueError(f"{engine} {engine_version} was not measured on {gpu}; measured versions: {versions}")
    return fitting[-1]


def read_kernel_table(table: KernelTableId, kind: str, **equals: str) -> dict[str, npt.NDArray[np.float64]] | None:
    """Numeric columns of one kind, as float arrays, keeping the rows whose text columns equal what is asked.

    Returns None where this engine was not measured for that kind or those dtypes.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    path = KERNEL_DIR / table.folder / f"{kind}.parquet"
    if not path.exists():
        return None
    rows = pq.read_table(path, use_threads=False, partitioning=None)
    for column, value in equals.items():
        rows = rows.filter(pc.equal(rows[column], value))
    if rows.num_rows == 0:
        return None
    return {c: rows[c].to_numpy().astype(np.float64) for c in TABLE_COLUMNS[kind] if c not in TEXT_COLUMNS}
