"""Kernel timings that are asked once: a source whose every GEMM and attention size is remembered.

For whoever costs many models of the same parts, as a search does. Kriging takes about half a millisecond for a size
that was not measured. Elementwise work and all-reduces are curves, which are as quick as a look-up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import numpy as np
from numpy.typing import ArrayLike

from puzzlebench.profiling.arrays import FloatArray
from puzzlebench.profiling.timings import KernelTimings, Timings


class RememberedKernels:
    """Fills `KernelTimings` from another source; what that raises is raised, and not remembered."""

    def __init__(self, kernels: KernelTimings) -> None:
        self._kernels = kernels
        self.engine, self.engine_version = kernels.engine, kernels.engine_version
        self.fuses_rope = kernels.fuses_rope
        self._known: dict[tuple[object, ...], tuple[dict[tuple[float, ...], int], Timings]] = {}

    @property
    def source(self) -> str:
        """That of the other."""
        return self._kernels.source

    def gemm(self, m: ArrayLike, n: int, k: int, dtype: str) -> Timings:
        """See `KernelTimings.gemm`."""
        return self._recall(("gemm", n, k, dtype), (m,), lambda asked: self._kernels.gemm(asked[:, 0], n, k, dtype))

    def prefill_attention(
        self,
        batch: ArrayLike,
        seq_len: ArrayLike,
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        dtype: str,
        kv_dtype: str,
    ) -> Timings:
        """See `KernelTimings.prefill_attention`."""

        def ask(asked: FloatArray) -> Timings:
            return self._kernels.prefill_attention(
                asked[:, 0],
                asked[:, 1],
                heads=heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                dtype=dtype,
                kv_dtype=kv_dtype,
            )

        return self._recall(("prefill", heads, kv_heads, head_dim, dtype, kv_dtype), (batch, seq_len), ask)

    def decode_attention(
        self, batch: ArrayLike, context: ArrayLike, *, heads: int, kv_heads: int, head_dim: int, kv_dtype: str
    ) -> Timings:
        """See `KernelTimings.decode_attention`."""

        def ask(asked: FloatArray) -> Timings:
            return self._kernels.decode_attention(
                asked[:, 0], asked[:, 1], heads=heads, kv_heads=kv_heads, head_dim=head_dim, kv_dtype=kv_dtype
            )

        return self._recall(("decode", heads, kv_heads, head_dim, kv_dtype), (batch, context), ask)

    def elementwise(self, bytes_: ArrayLike) -> Timings:
        """See `KernelTimings.elementwise`."""
        return self._kernels.elementwise(bytes_)

    def all_reduce(self, elements: ArrayLike, gpus: int) -> Timings:
        """See `KernelTimings.all_reduce`."""
        return self._kernels.all_reduce(elements, gpus)

    def _recall(
        self, key: tuple[object, ...], sizes: tuple[ArrayLike, ...], ask: Callable[[FloatArray], Timings]
    ) -> Timings:
        columns = np.broadcast_arrays(*(np.atleast_1d(np.asarray(size, dtype=np.float64)) for size in sizes))
        rows = [tuple(row) for row in np.stack(columns, axis=1).tolist()]
        places, known = self._known.get(key, ({}, Timings.zero(0)))
        fresh = list(dict.fromkeys(row for row in rows if row not in places))
        if fresh:
            known = _joined(known, ask(np.array(fresh)))
            places.update({row: len(places) + place for place, row in enumerate(fresh)})
            self._known[key] = places, known
        return known.at(np.array([places[row] for row in rows], dtype=np.int64))


def _joined(first: Timings, second: Timings) -> Timings:
    """One after the other, (Q1 + Q2,)."""
    names = [field.name for field in fields(Timings)]
    return Timings(**{name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in names})
