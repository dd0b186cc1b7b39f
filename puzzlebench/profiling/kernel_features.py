"""What a kernel's latency is made of: a roofline to divide by, and the coordinates in which the rest is smooth.

Knows shapes and the datasheet; knows nothing of measured data. For each kernel, `ideal_us` is the latency if the
kernel ran at its usual share of the datasheet's peaks, and `features` are the coordinates for kriging: sizes in log2,
then how full the last wave of tiles is on the GPU's SMs and how full the last row tile is (tile and wave quantisation).

Legend: m rows (tokens), n output width, k reduction length; heads = query heads, kv = key-value heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from puzzlebench.profiling.arrays import FloatArray
from puzzlebench_profiles.datasheets import Datasheet

Shapes = Mapping[str, FloatArray]  # column name -> (Q,) values
DTYPE_BYTES = {"bf16": 2.0, "fp8": 1.0}

_GEMM_TILES = ((64, 64), (64, 128), (128, 128), (128, 256), (256, 128))


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a kernel must do at the least: floating-point operations, and bytes to and from memory, both (Q,)."""

    flops: FloatArray
    bytes_: FloatArray


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelKind:
    """One family of kernels.

    Attributes:
        axes: table columns that give a shape.
        monotone: axes along which `surface` holds an answer between its measured neighbours. Not every axis along which
            the work grows: an engine that changes to a faster kernel where batch or KV heads grow does fall there
            (docs/accuracy.md), and along m the tiles do.
        sizes: how many leading features are plain log2 sizes (neighbours are looked up in these).
        peak_share, bandwidth_share: of the datasheet's peaks that a good kernel of the family reaches.
        floor_us: latency of an empty problem.
    """

    name: str
    axes: tuple[str, ...]
    monotone: tuple[str, ...]
    sizes: int
    work: Callable[[Shapes, str], Work]
    features: Callable[[Shapes, Datasheet], FloatArray]
    peak_share: float
    bandwidth_share: float
    floor_us: float

    def ideal_us(self, shapes: Shapes, gpu: Datasheet, dtype: str) -> FloatArray:
        """`floor_us` plus the longer of compute and memory time at the family's usual shares, (Q,)."""
        work = self.work(shapes, dtype)
        return self.floor_us + np.maximum(self.compute_us(work, gpu, dtype), self.memory_us(work, gpu))

    def compute_us(self, work: Work, gpu: Datasheet, dtype: str) -> FloatArray:
        """Time for the operations alone."""
        peak_dtype = "bf16" if self.name == "decode_attention" else dtype  # an fp8 cache is multiplied in bf16
        return 1e6 * work.flops / (self.peak_share * gpu.peak_flops(peak_dtype))

    def memory_us(self, work: Work, gpu: Datasheet) -> FloatArray:
        """Time for the bytes alone."""
        return 1e6 * work.bytes_ / (self.bandwidth_share * gpu.memory_bandwidth)


def _gemm_work(s: Shapes, dtype: str) -> Work:
    m, n, k = s["m"], s["n"], s["k"]
    return Work(flops=2.0 * m * n * k, bytes_=DTYPE_BYTES[dtype] * (m * k + n * k) + 2.0 * m * n)


def _gemm_features(s: Shapes, gpu: Datasheet) -> FloatArray:
    m, n, k = s["m"], s["n"], s["k"]
    columns = [np.log2(m), np.log2(n), np.log2(k)]
    columns += [_wave_waste(np.ceil(m / rows) * np.ceil(n / cols), gpu) for rows, cols in _GEMM_TILES]
    columns += [_tile_waste(m, 64.0), _tile_waste(m, 128.0), _tile_waste(n, 256.0), (m % 8 != 0).astype(float)]
    columns += [np.log2(_gemm_work(s, "bf16").bytes_), np.log2(m * n)]
    return np.stack(columns, axis=1)


def _prefill_work(s: Shapes, dtype: str) -> Work:  # noqa: ARG001  reads and writes activations in bf16 at any dtype
    pairs = s["seq_len"] * (s["seq_len"] + 1) / 2  # causal
    return Work(
        flops=4.0 * s["batch"] * s["heads"] * s["head_dim"] * pairs,
        bytes_=2.0 * s["batch"] * s["seq_len"] * s["head_dim"] * (2 * s["heads"] + 4 * s["kv_heads"]),
    )


def _prefill_features(s: Shapes, gpu: Datasheet) -> FloatArray:
    tiles = s["batch"] * s["heads"] * np.ceil(s["seq_len"] / 128.0)
    return np.stack(
        [*_attention_sizes(s, s["seq_len"]), _wave_waste(tiles, gpu), np.log2(tiles), _tile_waste(s["seq_len"], 128.0)],
        axis=1,
    )


def _decode_work(s: Shapes, dtype: str) -> Work:
    kv_bytes = 2.0 * s["context"] * s["kv_heads"] * DTYPE_BYTES[dtype]
    return Work(
        flops=4.0 * s["batch"] * s["heads"] * s["head_dim"] * s["context"],
        bytes_=s["batch"] * s["head_dim"] * (kv_bytes + 4.0 * s["heads"]),
    )


def _decode_features(s: Shapes, gpu: Datasheet) -> FloatArray:
    tiles = s["batch"] * s["kv_heads"]
    return np.stack(
        [*_attention_sizes(s, s["context"]), _wave_waste(tiles, gpu), np.log2(tiles), np.log2(tiles * s["context"])],
        axis=1,
    )


def _attention_sizes(s: Shapes, length: FloatArray) -> list[FloatArray]:
    group = s["heads"] / s["kv_heads"]
    return [np.log2(v) for v in (s["batch"], length, s["heads"], s["kv_heads"], s["head_dim"], group)]


def _wave_waste(tiles: FloatArray, gpu: Datasheet) -> FloatArray:
    """log2 of the tile slots that a whole number of waves holds over the tiles there are."""
    return np.log2(np.ceil(tiles / gpu.sm_count) * gpu.sm_count / tiles)


def _tile_waste(length: FloatArray, tile: float) -> FloatArray:
    return np.log2(np.ceil(length / tile) * tile / length)


GEMM = KernelKind(
    name="gemm",
    axes=("m", "n", "k"),
    monotone=("n", "k"),
    sizes=3,
    work=_gemm_work,
    features=_gemm_features,
    peak_share=0.8,
    bandwidth_share=0.83,
    floor_us=2.2,
)
PREFILL_ATTENTION = KernelKind(
    name="prefill_attention",
    axes=("batch", "seq_len", "heads", "kv_heads", "head_dim"),
    monotone=("batch", "seq_len", "kv_heads"),
    sizes=6,
    work=_prefill_work,
    features=_prefill_features,
    peak_share=0.6,
    bandwidth_share=0.6,
    floor_us=10.0,
)
DECODE_ATTENTION = KernelKind(
    name="decode_attention",
    axes=("batch", "context", "heads", "kv_heads", "head_dim"),
    monotone=("context",),
    sizes=6,
    work=_decode_work,
    features=_decode_features,
    peak_share=0.25,
    bandwidth_share=0.8,
    floor_us=5.0,
)
KINDS = {kind.name: kind for kind in (GEMM, PREFILL_ATTENTION, DECODE_ATTENTION)}
SLICES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("gemm", ("bf16",)),
    ("gemm", ("fp8",)),
    ("prefill_attention", ("bf16", "bf16")),
    ("prefill_attention", ("fp8", "fp8")),
    ("decode_attention", ("bf16",)),
    ("decode_attention", ("fp8",)),
)
"""Kernel kinds and dtypes (operands, then cache) that the model is fitted to and reported on."""
