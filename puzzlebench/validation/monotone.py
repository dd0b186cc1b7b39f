"""Where latency falls though a size grows: in the measured rows, and in what the kernel model says between them.

More work does not take less time on a given kernel, but an engine may change to a faster kernel where a size grows, and
one measurement is noise. Rows come back verbatim, so their falls are the model's too; the question that is left is how
often the model falls between two rows that do not. Knows nothing of blocks or serving.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from puzzlebench.profiling.arrays import FloatArray, IntArray
from puzzlebench.profiling.kernel_features import KINDS, SLICES, KernelKind, Shapes
from puzzlebench.profiling.measured_kernels import MeasuredKernels
from puzzlebench.profiling.surface import Surface
from puzzlebench_profiles.kernel_tables import find_kernel_table

GROWING = {
    "gemm": ("n", "k"),
    "prefill_attention": ("batch", "seq_len", "kv_heads"),
    "decode_attention": ("batch", "context", "kv_heads"),
}
"""Sizes that only add work, by kernel kind; rows of a GEMM (m) are left out, since tiles make them fall."""
NOISE = 0.02
"""A fall of less is within what a measurement is worth."""
_LARGE = 0.2
_STEPS = 1000  # pairs of rows per kernel kind, dtype and size that the model is asked between
_PARTS = 4  # of the octaves between two rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Falls:
    """Falls along one size of one kernel kind and dtype.

    Attributes:
        steps: pairs of measured rows that are next to each other in this size and equal in all others.
        measured, measured_large: shares of them that fall by more than 2 % and 20 %.
        asked: pairs that do not fall by more than 2 %, and that the model was asked between.
        model: share of these between which it falls by more than 2 %, from or to a measured row included.
        largest: the model's largest fall there, a share of the latency before it.
    """

    kind: str
    dtypes: tuple[str, ...]
    size: str
    steps: int
    measured: float
    measured_large: float
    asked: int
    model: float
    largest: float


def falls(gpu: str, engine: str, *, share: float = 1.0, seed: int = 0) -> list[Falls]:
    """Falls along every growing size of every measured slice.

    Args:
        share: of the pairs that the model is asked between, in (0, 1].

    Raises:
        ValueError: the GPU or engine was not measured.
    """
    kernels = MeasuredKernels(find_kernel_table(gpu, engine))
    found = []
    for name, dtypes, table in kernels.slices(SLICES):
        for size in GROWING[name]:
            rng = np.random.default_rng(seed)
            found.append(_falls(KINDS[name], dtypes, size, table, kernels.surface(name, *dtypes), rng, share))
    return found


def _falls(
    kind: KernelKind,
    dtypes: tuple[str, ...],
    size: str,
    table: Shapes,
    surface: Surface,
    rng: np.random.Generator,
    share: float,
) -> Falls:
    low, high = neighbours(kind, table, size)
    ratio = table["latency_us"][high] / table["latency_us"][low]
    rising = np.flatnonzero(ratio >= 1 - NOISE)
    chosen = rng.permutation(rising)[: max(20, int(_STEPS * share))]
    drop = model_drops(kind, table, surface, size, low[chosen], high[chosen])
    return Falls(
        kind=kind.name,
        dtypes=dtypes,
        size=size,
        steps=len(ratio),
        measured=float(np.mean(ratio < 1 - NOISE)),
        measured_large=float(np.mean(ratio < 1 - _LARGE)),
        asked=len(drop),
        model=float(np.mean(drop > NOISE)) if len(drop) else 0.0,
        largest=float(drop.max(initial=0.0)),
    )


def neighbours(kind: KernelKind, table: Shapes, size: str) -> tuple[IntArray, IntArray]:
    """Rows (P,) and those next to them where `size` grows and all other sizes stay."""
    others = [table[axis] for axis in kind.axes if axis != size]
    order = np.lexsort([table[size], *others])
    same = np.all([np.diff(column[order]) == 0 for column in others], axis=0)
    return order[:-1][same], order[1:][same]


def model_drops(
    kind: KernelKind, table: Shapes, surface: Surface, size: str, low: IntArray, high: IntArray
) -> FloatArray:
    """The largest fall (P,) on the way from row to row, a share of the latency before; only where a size lies between.

    The way is three sizes evenly spaced in the logarithm, rounded to whole ones.
    """
    ends = table[size][low], table[size][high]
    inner = [np.round(ends[0] * (ends[1] / ends[0]) ** (part / _PARTS)) for part in range(1, _PARTS)]
    way = np.stack([ends[0], *inner, ends[1]], axis=1)  # (P, parts + 1)
    between = ((way > way[:, :1]) & (way < way[:, -1:])).any(axis=1)
    way, low = way[between], low[between]
    asked = {axis: np.repeat(table[axis][low], way.shape[1]) for axis in kind.axes} | {size: way.reshape(-1)}
    if not len(low):
        return np.zeros(0)
    latency = surface.timings(asked).latency_us.reshape(way.shape)
    drop: FloatArray = (1 - latency / np.maximum.accumulate(latency, axis=1)).max(axis=1)
    return drop
