"""Kernel timings of one engine on one GPU, from the measured tables that ship with the package.

Knows which table answers which question (dtypes, quantisation, missing combinations); the numbers between measured
shapes come from `surface`. Fills the `KernelTimings` protocol.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike

from puzzlebench.profiling.arrays import FloatArray
from puzzlebench.profiling.kernel_features import DECODE_ATTENTION, GEMM, KINDS, PREFILL_ATTENTION, Shapes
from puzzlebench.profiling.memory_bound import AllReduceCurve, ElementwiseCurve
from puzzlebench.profiling.parameters import calibrated_parameters
from puzzlebench.profiling.surface import Surface
from puzzlebench.profiling.timings import EXTRAPOLATED, Timings
from puzzlebench_profiles.datasheets import Datasheet, bundled_datasheets
from puzzlebench_profiles.kernel_tables import KernelTableId, find_kernel_table, manifest, read_kernel_table

Table = dict[str, FloatArray]
_FEWEST_SCALE_ROWS = 100  # tables have 1 to 18 rows or more than 1500
_ODD_SCALE = 3.0  # times the median of 5 neighbours in m; single rows of L40S under vLLM are 13 and 34 times that
_ELEMENTWISE_ENGINE = "trtllm"
_LEAST_STATIC_SHARE = 0.05  # two rows of B200 under vLLM were timed at odds with their scale kernel: 0.5 us of 43
_SHARED_DTYPE = {"fp16": "bf16"}  # same tensor-core rate and the same bytes


class MeasuredKernels:
    """Kernel timings from one measured table.

    Raises (all methods):
        ValueError: the engine was not measured for that kernel and dtype; the message says what was.
    """

    def __init__(self, table: KernelTableId) -> None:
        self.table = table
        self.engine, self.engine_version = table.engine, table.engine_version
        self.fuses_rope = table.engine == "trtllm"
        self._surfaces: dict[tuple[str, ...], Surface] = {}

    @cached_property
    def datasheet(self) -> Datasheet:
        """Of the GPU the kernels were measured on."""
        return bundled_datasheets()[self.table.gpu]

    @property
    def source(self) -> str:
        """The package the numbers come from."""
        facts = manifest()
        kernels = f"{self.engine} {self.engine_version} kernels, {self.table.gpu}"
        return f"{facts['source']} {facts['source_version']}: {kernels}"

    def gemm(self, m: ArrayLike, n: int, k: int, dtype: str) -> Timings:
        """See `KernelTimings.gemm`.

        fp8 rows were measured with dynamic quantisation; finding the scale is taken off. An output wider than any
        measured one (a vocabulary) is counted as equal parts that were measured, and says `extrapolated`.
        """
        surface = self.surface(GEMM.name, _SHARED_DTYPE.get(dtype, dtype))
        parts = math.ceil(n / surface.largest("n"))
        timings = surface.timings(as_shapes(m=m, n=n / parts, k=k)).repeated(parts)
        return timings.marked(EXTRAPOLATED) if parts > 1 else timings

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
        shapes = as_shapes(batch=batch, seq_len=seq_len, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
        dtypes = self.prefill_dtypes(_SHARED_DTYPE.get(dtype, dtype), _SHARED_DTYPE.get(kv_dtype, kv_dtype))
        return self.surface(PREFILL_ATTENTION.name, *dtypes).timings(shapes)

    def decode_attention(
        self, batch: ArrayLike, context: ArrayLike, *, heads: int, kv_heads: int, head_dim: int, kv_dtype: str
    ) -> Timings:
        """See `KernelTimings.decode_attention`."""
        shapes = as_shapes(batch=batch, context=context, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
        return self.surface(DECODE_ATTENTION.name, _SHARED_DTYPE.get(kv_dtype, kv_dtype)).timings(shapes)

    def elementwise(self, bytes_: ArrayLike) -> Timings:
        """See `KernelTimings.elementwise`."""
        return self._elementwise.timings(np.asarray(bytes_, dtype=np.float64))

    def all_reduce(self, elements: ArrayLike, gpus: int) -> Timings:
        """See `KernelTimings.all_reduce`."""
        return self._all_reduce.timings(np.asarray(elements, dtype=np.float64), gpus)

    def surface(self, kind: str, *dtypes: str) -> Surface:
        """The measured surface of a kernel kind; for prefill attention give the operands' and the cache's dtype."""
        key = (kind, *dtypes)
        if key not in self._surfaces:
            table = self.rows(kind, *dtypes)
            self._surfaces[key] = Surface(
                KINDS[kind], table, dtypes[0], self.datasheet, calibrated_parameters(self.table, kind, dtypes)
            )
        return self._surfaces[key]

    def rows(self, kind: str, *dtypes: str) -> Table:
        """Measured rows; fp8 GEMM with the time to find the activation's scale taken off."""
        table = self._read(kind, dtypes)
        if table is None:
            raise ValueError(
                f"{self.engine} {self.engine_version} has no measured {kind} with {' and '.join(dtypes)} on "
                f"{self.table.gpu}; try --weight-dtype bf16 --kv-dtype bf16"
            )
        if kind == GEMM.name and dtypes == ("fp8",):
            static = table["latency_us"] - self._compute_scale_us(table["m"], table["k"])
            sound = static > _LEAST_STATIC_SHARE * table["latency_us"]
            table = {column: values[sound] for column, values in (table | {"latency_us": static}).items()}
        return table

    def slices(self, asked: Iterable[tuple[str, tuple[str, ...]]]) -> Iterator[tuple[str, tuple[str, ...], Table]]:
        """(kernel kind, dtypes, measured rows) of those asked that the engine was measured in."""
        for kind, dtypes in asked:
            try:
                rows = self.rows(kind, *dtypes)
            except ValueError:
                continue
            yield kind, dtypes, rows

    def prefill_dtypes(self, dtype: str, kv_dtype: str) -> tuple[str, str]:
        """Which measured (operand, cache) dtypes stand for the asked ones.

        With an fp8 cache TensorRT-LLM attends in fp8 when the weights are fp8. Its measured "bf16 operands, fp8 cache"
        rows run faster than the bf16 peak allows, so they are not used: bf16 with a bf16 cache stands in for them.
        """
        if kv_dtype != "fp8":
            return ("bf16", "bf16")
        wanted = [("fp8", "fp8")] if dtype == "fp8" else []
        if self.engine != "trtllm":
            wanted.append(("bf16", "fp8"))
        return next((pair for pair in wanted if self._read(PREFILL_ATTENTION.name, pair) is not None), ("bf16", "bf16"))

    def _read(self, kind: str, dtypes: tuple[str, ...]) -> Table | None:
        columns = {"gemm": ("dtype",), "prefill_attention": ("dtype", "kv_dtype"), "decode_attention": ("kv_dtype",)}
        return read_kernel_table(self.table, kind, **dict(zip(columns[kind], dtypes, strict=True)))

    def _compute_scale_us(self, m: FloatArray, k: FloatArray) -> FloatArray:
        """Measured latency of finding the scale, (N,): rows far above their neighbours in m damped, gaps filled.

        An engine that was measured on a handful of shapes has no such kernel: what is there is noise around nothing.
        """
        found = np.zeros(len(m))
        scale = read_kernel_table(self.table, "compute_scale")
        if scale is None or len(scale["m"]) < _FEWEST_SCALE_ROWS:
            return found
        for width in np.unique(k):
            rows = np.flatnonzero(scale["k"] == width)
            rows = rows[np.argsort(scale["m"][rows])]
            latency = scale["latency_us"][rows]
            usual = np.median(sliding_window_view(np.pad(latency, 2, mode="edge"), 5), axis=1)
            latency = np.where(latency < _ODD_SCALE * usual, latency, usual)
            found[k == width] = np.interp(np.log(m[k == width]), np.log(scale["m"][rows]), latency)
        return found

    @cached_property
    def _elementwise(self) -> ElementwiseCurve:
        # SGLang's quantisation is a chain of framework kernels, nine times slower on H100: one engine's for all.
        stand_in = find_kernel_table(self.table.gpu, _ELEMENTWISE_ENGINE)
        return ElementwiseCurve(self.datasheet, read_kernel_table(stand_in, "quantise"))

    @cached_property
    def _all_reduce(self) -> AllReduceCurve:
        return AllReduceCurve(self.table, read_kernel_table(self.table, "all_reduce"))


def as_shapes(**sizes: ArrayLike) -> Shapes:
    """Sizes broadcast to (Q,) arrays."""
    arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(value, dtype=np.float64)) for value in sizes.values()))
    return dict(zip(sizes, arrays, strict=True))
