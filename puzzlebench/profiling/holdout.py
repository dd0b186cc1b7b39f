"""Splits of a kernel table that a kernel model must survive: at random, and whole sizes left out.

Yields index arrays; fits and scores nothing. The same splits serve the fit (on one GPU) and the report (on others).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from puzzlebench.profiling.arrays import FloatArray, IntArray
from puzzlebench.profiling.kernel_features import KernelKind


class Split(NamedTuple):
    """Rows to learn from and rows to predict."""

    name: str
    known: IntArray
    held_out: IntArray


def random_split(rows: int, *, share: float, seed: int) -> Split:
    """Hold out a random share of the rows."""
    held = np.random.default_rng(seed).random(rows) < share
    return Split(f"random {share:.0%}", np.flatnonzero(~held), np.flatnonzero(held))


def whole_value_splits(kind: KernelKind, table: dict[str, FloatArray]) -> Iterator[Split]:
    """Hold out every row of one interior size at a time.

    GEMM: each n, then each k, apart from the smallest and the largest (there is nothing to interpolate between
    beyond them). Attention: each (heads, kv_heads) configuration whose heads and kv_heads both lie inside the range
    measured with the same kv_heads or heads.
    """
    if kind.name == "gemm":
        for axis in ("n", "k"):
            for value in np.unique(table[axis])[1:-1]:
                held = table[axis] == value
                yield Split(f"whole {axis}", np.flatnonzero(~held), np.flatnonzero(held))
        return
    pairs = np.stack([table["heads"], table["kv_heads"]], axis=1)
    configurations = np.unique(pairs, axis=0)
    for heads, kv_heads in configurations:
        same_kv = configurations[configurations[:, 1] == kv_heads, 0]
        if same_kv.min() < heads < same_kv.max():
            held = (pairs == (heads, kv_heads)).all(axis=1)
            yield Split("whole head configuration", np.flatnonzero(~held), np.flatnonzero(held))


def beyond_split(kind: KernelKind, table: dict[str, FloatArray]) -> Split:
    """Hold out the largest problems: the top two octaves of m (GEMM) or of batch x length (attention)."""
    length = {"prefill_attention": "seq_len", "decode_attention": "context"}
    size = table["m"] if kind.name == "gemm" else table["batch"] * table[length[kind.name]]
    held = size > size.max() / 4
    return Split("beyond the range", np.flatnonzero(~held), np.flatnonzero(held))
