"""Latencies with an interval and a provenance, and the protocol that every source of kernel latencies fills.

Knows no source. Shapes: every array is (Q,), one entry per question; all latencies are in microseconds and for one
GPU of the tensor-parallel group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from puzzlebench.profiling.arrays import FloatArray, IntArray

PROVENANCE = ("measured", "interpolated", "extrapolated", "modelled")
"""From the most to the least trusted; a sum is as trusted as its least trusted term."""
MEASURED, INTERPOLATED, EXTRAPOLATED, MODELLED = range(4)


@dataclass(frozen=True, kw_only=True, slots=True)
class Timings:
    """Latencies with 95 % intervals.

    `provenance` indexes PROVENANCE. `modelled_us` is the part of each latency that comes from elementwise work, which
    no table measures for every shape; it is tracked apart so that it does not hide how the rest was obtained.
    """

    latency_us: FloatArray
    low_us: FloatArray
    high_us: FloatArray
    provenance: IntArray
    modelled_us: FloatArray

    @classmethod
    def zero(cls, count: int) -> Timings:
        """No work: exactly nothing."""
        zeros = np.zeros(count)
        return cls(
            latency_us=zeros, low_us=zeros, high_us=zeros, provenance=np.zeros(count, dtype=np.int64), modelled_us=zeros
        )

    @classmethod
    def from_log(cls, mean_log: FloatArray, deviation: FloatArray, provenance: IntArray) -> Timings:
        """From a log-normal estimate: exp(mean_log), 95 % of it within 1.96 standard deviations."""
        return cls(
            latency_us=np.exp(mean_log),
            low_us=np.exp(mean_log - 1.96 * deviation),
            high_us=np.exp(mean_log + 1.96 * deviation),
            provenance=provenance,
            modelled_us=np.zeros(len(mean_log)),
        )

    def __add__(self, other: Timings) -> Timings:
        """One kernel after the other; their errors are taken as independent."""
        latency = self.latency_us + other.latency_us
        below = np.hypot(self.latency_us - self.low_us, other.latency_us - other.low_us)
        above = np.hypot(self.high_us - self.latency_us, other.high_us - other.latency_us)
        return Timings(
            latency_us=latency,
            low_us=np.maximum(latency - below, 0.0),
            high_us=latency + above,
            provenance=np.maximum(self.provenance, other.provenance),
            modelled_us=self.modelled_us + other.modelled_us,
        )

    def repeated(self, times: ArrayLike) -> Timings:
        """The same kernel `times` times over (the error repeats too); none of it where that is 0."""
        factor = np.asarray(times, dtype=np.float64)
        return Timings(
            latency_us=self.latency_us * factor,
            low_us=self.low_us * factor,
            high_us=self.high_us * factor,
            provenance=np.where(factor > 0, self.provenance, MEASURED),
            modelled_us=self.modelled_us * factor,
        )

    def at(self, index: IntArray) -> Timings:
        """The entries at `index`, in that order."""
        return Timings(
            latency_us=self.latency_us[index],
            low_us=self.low_us[index],
            high_us=self.high_us[index],
            provenance=self.provenance[index],
            modelled_us=self.modelled_us[index],
        )

    def marked(self, provenance: int | IntArray) -> Timings:
        """The same latencies, trusted no more than `provenance` (one, or one each)."""
        return Timings(
            latency_us=self.latency_us,
            low_us=self.low_us,
            high_us=self.high_us,
            provenance=np.maximum(self.provenance, provenance),
            modelled_us=self.modelled_us,
        )


class KernelTimings(Protocol):
    """A source of kernel latencies for one GPU and one engine."""

    @property
    def engine(self) -> str:
        """Engine name, as in `puzzlebench gpus`."""

    @property
    def engine_version(self) -> str:
        """Engine version."""

    @property
    def source(self) -> str:
        """Where the numbers come from, for people to read."""

    @property
    def fuses_rope(self) -> bool:
        """Whether the attention latencies contain RoPE and the append to the cache."""

    def gemm(self, m: ArrayLike, n: int, k: int, dtype: str) -> Timings:
        """(m, k) x (k, n) with bf16 output; fp8 counts the quantisation of the input with a static scale."""

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
        """Causal self-attention over whole prompts."""

    def decode_attention(
        self, batch: ArrayLike, context: ArrayLike, *, heads: int, kv_heads: int, head_dim: int, kv_dtype: str
    ) -> Timings:
        """One query token per sequence against a paged cache of `context` tokens."""

    def elementwise(self, bytes_: ArrayLike) -> Timings:
        """A memory-bound kernel that moves `bytes_`, reads and writes together."""

    def all_reduce(self, elements: ArrayLike, gpus: int) -> Timings:
        """Sum `elements` bf16 values over `gpus` GPUs of one node."""
