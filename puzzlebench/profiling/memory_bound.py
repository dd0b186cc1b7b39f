"""Latency curves of kernels that only move bytes: elementwise work and all-reduce.

Knows nothing of blocks. Elementwise kernels (norms, RoPE, activation, cache append) are in no measured table; the
measured fp8 quantisation kernel of TensorRT-LLM on the same GPU, which reads two bytes and writes one per element,
stands in for them byte for byte, so their latencies are always `modelled`.
"""

from __future__ import annotations

import numpy as np

from puzzlebench.profiling.arrays import FloatArray
from puzzlebench.profiling.timings import EXTRAPOLATED, INTERPOLATED, MEASURED, Timings
from puzzlebench_profiles.datasheets import Datasheet
from puzzlebench_profiles.kernel_tables import KernelTableId

_QUANTISE_BYTES_PER_ELEMENT = 3.0
_FLOOR_US = 1.75  # median over the six GPUs with a measured quantisation kernel
_BANDWIDTH_SHARE = 0.85
_L2_BANDWIDTH = 5e12  # bytes/s, while what is moved stays in three quarters of the L2 cache
_L2_SHARE = 0.75
_UNMEASURED_DEVIATION = 0.3  # of the logarithm; covers 95 % of those six around the constants above
_ALL_REDUCE_DEVIATION = 0.05
_BINS_PER_OCTAVE = 2


class ElementwiseCurve:
    """Latency against bytes moved: the median and spread of the quantisation kernel in half-octave bins of bytes.

    Where quantisation was not measured: a floor, plus bytes at `_BANDWIDTH_SHARE` of the datasheet's memory bandwidth
    or, while they fit, at that of the L2 cache: a model's activations were written just before.
    """

    def __init__(self, datasheet: Datasheet, quantise: dict[str, FloatArray] | None) -> None:
        bytes_ = np.exp2(np.arange(8.0, 36.0, 0.5))
        memory = _BANDWIDTH_SHARE * datasheet.memory_bandwidth
        fits = bytes_ <= _L2_SHARE * datasheet.l2_bytes
        latency = _FLOOR_US + 1e6 * bytes_ / np.where(fits, max(_L2_BANDWIDTH, memory), memory)
        deviation = np.full(len(bytes_), _UNMEASURED_DEVIATION)
        if quantise is not None:
            moved = np.log2(_QUANTISE_BYTES_PER_ELEMENT * quantise["m"] * quantise["k"])
            log_latency = np.log(quantise["latency_us"])
            bins = np.round(moved * _BINS_PER_OCTAVE).astype(np.int64)
            members = [log_latency[bins == b] for b in np.unique(bins)]
            bytes_ = np.exp2(np.unique(bins) / _BINS_PER_OCTAVE)
            latency = np.maximum.accumulate([np.exp(np.median(rows)) for rows in members])
            deviation = np.array([max(0.1, float(np.std(rows))) for rows in members])
        self._log_bytes, self._log_latency, self._deviation = np.log(bytes_), np.log(latency), deviation

    def timings(self, bytes_: FloatArray) -> Timings:
        """Latencies at (Q,) byte counts."""
        log_bytes = np.log(np.maximum(np.atleast_1d(bytes_), 1.0))
        mean = np.interp(log_bytes, self._log_bytes, self._log_latency)
        mean += np.maximum(log_bytes - self._log_bytes[-1], 0.0)  # beyond the largest measured: at its bandwidth
        deviation = np.interp(log_bytes, self._log_bytes, self._deviation)
        timings = Timings.from_log(mean, deviation, np.full(len(mean), MEASURED))
        return Timings(
            latency_us=timings.latency_us,
            low_us=timings.low_us,
            high_us=timings.high_us,
            provenance=timings.provenance,  # carried by `modelled_us` instead, see Timings
            modelled_us=timings.latency_us,
        )


class AllReduceCurve:
    """Latency against elements for each measured number of GPUs, interpolated in logarithms."""

    def __init__(self, table: KernelTableId, rows: dict[str, FloatArray] | None) -> None:
        self._where = f"{table.engine} {table.engine_version} on {table.gpu}"
        self._curves: dict[int, tuple[FloatArray, FloatArray]] = {}
        if rows is not None:
            for gpus in np.unique(rows["num_gpus"]):
                mine = rows["num_gpus"] == gpus
                order = np.argsort(rows["elements"][mine])
                self._curves[int(gpus)] = (rows["elements"][mine][order], rows["latency_us"][mine][order])

    def timings(self, elements: FloatArray, gpus: int) -> Timings:
        """Latencies at (Q,) element counts.

        Raises:
            ValueError: that number of GPUs was not measured.
        """
        elements = np.atleast_1d(elements)
        if gpus not in self._curves:
            measured = ", ".join(str(count) for count in self._curves) or "none"
            raise ValueError(f"all-reduce over {gpus} GPUs was not measured for {self._where}; measured: {measured}")
        sizes, latency = self._curves[gpus]
        mean = np.interp(np.log(elements), np.log(sizes), np.log(latency))
        mean += np.maximum(np.log(elements / sizes[-1]), 0.0)
        inside = (elements >= sizes[0]) & (elements <= sizes[-1])
        provenance = np.where(np.isin(elements, sizes), MEASURED, np.where(inside, INTERPOLATED, EXTRAPOLATED))
        return Timings.from_log(mean, np.full(len(mean), _ALL_REDUCE_DEVIATION), provenance)
