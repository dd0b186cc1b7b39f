"""One measured surface: latency over shapes, for one kernel kind, dtype, engine and GPU.

A measured shape answers verbatim. A shape with measured ones both below and above it in every size is interpolated; any
other is extrapolated and says so. Both come from `kriging` of the logarithm of latency over the ideal latency.
"""

from __future__ import annotations

import numpy as np

from puzzlebench.profiling.arrays import BoolArray, FloatArray, IntArray
from puzzlebench.profiling.kernel_features import KernelKind, Shapes
from puzzlebench.profiling.kriging import KrigingParameters, LocalKriging
from puzzlebench.profiling.timings import EXTRAPOLATED, INTERPOLATED, MEASURED, Timings
from puzzlebench_profiles.datasheets import Datasheet

_EXTRAPOLATION_FACTOR = 2.0  # docs/accuracy.md reports the error and coverage beyond the measured range with this
_CHUNK = 64


class Surface:
    """Measured rows, ready for questions.

    Args:
        table: one array per axis of `kind`, and `latency_us`; all (N,).
        dtype: of the operands (of the cache, for decode attention).
        datasheet: of the GPU the rows were measured on.
    """

    def __init__(
        self, kind: KernelKind, table: Shapes, dtype: str, datasheet: Datasheet, parameters: KrigingParameters
    ) -> None:
        self.kind, self.dtype, self.datasheet = kind, dtype, datasheet
        self._noise = parameters.noise
        self._axes = np.stack([table[axis] for axis in kind.axes], axis=1)  # (N, A)
        self._log_latency = np.log(table["latency_us"])
        self._levels = [np.unique(column) for column in self._axes.T]
        key = self._grid_key(self._axes)
        self._order = np.argsort(key)
        self._sorted_key = key[self._order]
        u = self._log_latency - np.log(kind.ideal_us(table, datasheet, dtype))
        self._kriging = LocalKriging(parameters, kind.features(table, datasheet), u)

    def largest(self, axis: str) -> float:
        """The largest measured size on an axis."""
        return float(self._levels[self.kind.axes.index(axis)][-1])

    def timings(self, shapes: Shapes) -> Timings:
        """Latencies at (Q,) shapes; repeated questions cost nothing more."""
        wanted = np.stack([np.asarray(shapes[axis], dtype=np.float64) for axis in self.kind.axes], axis=1)
        if not (np.isfinite(wanted).all() and (wanted > 0).all()):
            first = wanted[~(np.isfinite(wanted) & (wanted > 0)).all(axis=1)][0]
            sizes = ", ".join(f"{axis} {size:g}" for axis, size in zip(self.kind.axes, first, strict=True))
            raise ValueError(f"{self.kind.name} needs sizes above 0, not {sizes}")
        unique, back = np.unique(wanted, axis=0, return_inverse=True)
        row = self._measured_row(unique)
        mean = self._log_latency[row]  # row -1 is overwritten below
        deviation = np.full(len(unique), self._noise)
        provenance = np.full(len(unique), MEASURED)
        missing = row < 0
        if missing.any():
            asked = unique[missing]
            mean[missing], deviation[missing] = self._predict(asked)
            inside = self._inside(asked)
            deviation[missing] *= np.where(inside, 1.0, _EXTRAPOLATION_FACTOR)
            provenance[missing] = np.where(inside, INTERPOLATED, EXTRAPOLATED)
        return Timings.from_log(mean, deviation, provenance).at(back.reshape(-1))

    def smoothed_us(self, shapes: Shapes) -> FloatArray:
        """Kriged latencies (Q,), measured shapes included: with one row's noise averaged out."""
        mean, _ = self._predict(
            np.stack([np.asarray(shapes[axis], dtype=np.float64) for axis in self.kind.axes], axis=1)
        )
        return np.exp(mean)

    def _predict(self, asked: FloatArray) -> tuple[FloatArray, FloatArray]:
        shapes = dict(zip(self.kind.axes, asked.T, strict=True))
        mean, deviation = self._kriging.predict(self.kind.features(shapes, self.datasheet))
        return mean + np.log(self.kind.ideal_us(shapes, self.datasheet, self.dtype)), deviation

    def _grid_key(self, points: FloatArray) -> IntArray:
        """One integer per point of the grid of measured levels; -1 off the grid."""
        key = np.zeros(len(points), dtype=np.int64)
        on_grid = np.ones(len(points), dtype=bool)
        for levels, column in zip(self._levels, points.T, strict=True):
            index = np.minimum(np.searchsorted(levels, column), len(levels) - 1)
            on_grid &= levels[index] == column
            key = key * len(levels) + index
        return np.where(on_grid, key, -1)

    def _measured_row(self, points: FloatArray) -> IntArray:
        key = self._grid_key(points)
        place = np.minimum(np.searchsorted(self._sorted_key, key), len(self._order) - 1)
        return np.where(self._sorted_key[place] == key, self._order[place], -1)

    def _inside(self, points: FloatArray) -> BoolArray:
        """Whether some measured shape is at most, and some at least, the asked one in every size."""
        inside = np.empty(len(points), dtype=bool)
        for start in range(0, len(points), _CHUNK):
            rows = slice(start, start + _CHUNK)
            above = np.ones((len(points[rows]), len(self._axes)), dtype=bool)
            below = above.copy()
            for measured, asked in zip(self._axes.T, points[rows].T, strict=True):
                above &= measured[None, :] >= asked[:, None]
                below &= measured[None, :] <= asked[:, None]
            inside[rows] = above.any(axis=1) & below.any(axis=1)
        return inside
