"""Kernel timings for a GPU that nobody measured: a measured GPU's, carried over by what the two datasheets say.

Fills the `KernelTimings` protocol; every answer says `modelled`. Per kernel, with t the donor's latency, memory and
compute time at the shares of `kernel_features` on each GPU, and `roof` the longer of the two:

    t_new^2 = (t^2 - used) * r^2 + used * (roof_new / roof)^2,    used = min(t^2, roof^2)

so the part of the latency that the roof explains moves with the roof, and the rest stays, apart from the share that is
due to compute (inefficiency in a compute-bound kernel scales with the peak): r is the compute ratio to the power of
compute's share of the work. The interval is the error of the same procedure when each measured GPU in turn is treated
as unmeasured (`transfer_error`, docs/accuracy.md).
"""

from __future__ import annotations

import json
import math
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from puzzlebench.profiling.arrays import FloatArray
from puzzlebench.profiling.kernel_features import DECODE_ATTENTION, GEMM, PREFILL_ATTENTION, KernelKind, Shapes
from puzzlebench.profiling.measured_kernels import MeasuredKernels, as_shapes
from puzzlebench.profiling.memory_bound import ElementwiseCurve
from puzzlebench.profiling.timings import MODELLED, Timings
from puzzlebench_profiles.datasheets import Datasheet, bundled_datasheets
from puzzlebench_profiles.kernel_tables import KernelTableId, list_kernel_tables

ERROR_FILE = Path(__file__).parent / "data" / "transfer.json"
_BANDWIDTH_SHARE = 0.85
_OTHER_ARCHITECTURE = 1.0  # distance of a donor of another compute capability, in units of ln(peak) + ln(bandwidth)
_LINK_SHARE = 0.8  # of the link bandwidth that a ring all-reduce reaches
_LINK_FLOOR_US = 5.0
_LINK_DEVIATION = 0.4


class ModelledKernels:
    """Kernel timings on the GPU of a datasheet, carried over from the measured GPU most like it.

    Raises:
        ValueError: no measured GPU has this engine.
    """

    def __init__(self, datasheet: Datasheet, engine: str, *, exclude: str | None = None) -> None:
        self.datasheet = datasheet
        self._donor = MeasuredKernels(nearest_table(datasheet, engine, exclude=exclude))
        self.engine, self.engine_version = engine, self._donor.engine_version
        self.fuses_rope = self._donor.fuses_rope

    @property
    def donor(self) -> Datasheet:
        """The measured GPU that the timings come from."""
        return self._donor.datasheet

    @property
    def same_architecture(self) -> bool:
        """Whether donor and target have the same compute capability."""
        return self.donor.compute_capability == self.datasheet.compute_capability

    @property
    def source(self) -> str:
        """The donor and how its numbers were carried over."""
        return f"modelled: datasheet {self.datasheet.name}, carried over from {self._donor.source}"

    def gemm(self, m: ArrayLike, n: int, k: int, dtype: str) -> Timings:
        """See `KernelTimings.gemm`."""
        return self._carried(GEMM, self._donor.gemm(m, n, k, dtype), as_shapes(m=m, n=n, k=k), dtype)

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
        sizes = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
        timings = self._donor.prefill_attention(
            batch, seq_len, heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype, kv_dtype=kv_dtype
        )
        operands, _ = self._donor.prefill_dtypes(dtype, kv_dtype)
        return self._carried(PREFILL_ATTENTION, timings, as_shapes(batch=batch, seq_len=seq_len, **sizes), operands)

    def decode_attention(
        self, batch: ArrayLike, context: ArrayLike, *, heads: int, kv_heads: int, head_dim: int, kv_dtype: str
    ) -> Timings:
        """See `KernelTimings.decode_attention`."""
        sizes = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
        timings = self._donor.decode_attention(
            batch, context, heads=heads, kv_heads=kv_heads, head_dim=head_dim, kv_dtype=kv_dtype
        )
        return self._carried(DECODE_ATTENTION, timings, as_shapes(batch=batch, context=context, **sizes), kv_dtype)

    def elementwise(self, bytes_: ArrayLike) -> Timings:
        """See `KernelTimings.elementwise`."""
        return ElementwiseCurve(self.datasheet, None).timings(np.asarray(bytes_, dtype=np.float64)).marked(MODELLED)

    def all_reduce(self, elements: ArrayLike, gpus: int) -> Timings:
        """See `KernelTimings.all_reduce`: a ring over the datasheet's link."""
        moved = 2.0 * np.atleast_1d(np.asarray(elements, dtype=np.float64)) * 2.0 * (gpus - 1) / gpus
        mean = np.log(_LINK_FLOOR_US + 1e6 * moved / (_LINK_SHARE * self.datasheet.link_bandwidth))
        return Timings.from_log(mean, np.full(len(mean), _LINK_DEVIATION), np.full(len(mean), MODELLED))

    def _carried(self, kind: KernelKind, timings: Timings, shapes: Shapes, dtype: str) -> Timings:
        dtype = "fp8" if dtype == "fp8" else "bf16"
        carried = carry_over(kind, timings.latency_us, shapes, dtype, self.donor, self.datasheet)
        own = np.log(timings.high_us / timings.latency_us) / 1.96
        deviation = np.hypot(own, self._deviation[kind.name])
        return Timings.from_log(np.log(carried), deviation, np.full(len(carried), MODELLED))

    @cached_property
    def _deviation(self) -> dict[str, float]:
        errors = json.loads(ERROR_FILE.read_text())["log_deviation"]
        chosen: dict[str, float] = errors["same_architecture" if self.same_architecture else "other_architecture"]
        return chosen


def carry_over(
    kind: KernelKind, latency_us: FloatArray, shapes: Shapes, dtype: str, donor: Datasheet, target: Datasheet
) -> FloatArray:
    """Latencies (Q,) on `target`, given those on `donor`; the formula is in the module's text."""
    work = kind.work(shapes, dtype)
    memory = 1e6 * work.bytes_ / (_BANDWIDTH_SHARE * donor.memory_bandwidth)
    new_memory = 1e6 * work.bytes_ / (_BANDWIDTH_SHARE * target.memory_bandwidth)
    compute, new_compute = kind.compute_us(work, donor, dtype), kind.compute_us(work, target, dtype)
    roof, new_roof = np.maximum(memory, compute), np.maximum(new_memory, new_compute)
    compute_share = compute**2 / (compute**2 + memory**2 + kind.floor_us**2)
    rest_ratio = (new_compute / compute) ** compute_share
    used = np.minimum(latency_us**2, roof**2)
    carried: FloatArray = np.sqrt((latency_us**2 - used) * rest_ratio**2 + used * (new_roof / roof) ** 2)
    return carried


def nearest_table(datasheet: Datasheet, engine: str, *, exclude: str | None = None) -> KernelTableId:
    """The engine's table on the measured GPU most like the datasheet, leaving out the GPU named `exclude`."""
    tables = [table for table in list_kernel_tables() if table.engine == engine and table.gpu != exclude]
    if not tables:
        engines = ", ".join(sorted({table.engine for table in list_kernel_tables()}))
        raise ValueError(f"engine {engine!r} was not measured on any GPU; engines: {engines}")
    sheets = bundled_datasheets()
    if datasheet.peak_fp8_flops:  # a donor without fp8 units could not answer for fp8
        tables = [table for table in tables if sheets[table.gpu].peak_fp8_flops] or tables
    return min(tables, key=lambda table: _distance(datasheet, sheets[table.gpu]))


def _distance(a: Datasheet, b: Datasheet) -> float:
    apart = abs(math.log(a.peak_bf16_flops / b.peak_bf16_flops)) + abs(
        math.log(a.memory_bandwidth / b.memory_bandwidth)
    )
    return apart + (_OTHER_ARCHITECTURE if a.compute_capability != b.compute_capability else 0.0)
