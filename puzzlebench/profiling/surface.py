"""One measured surface: latency over shapes, for one kernel kind, dtype, engine and GPU.

A measured shape answers verbatim. A shape with measured ones both below and above it in every size is interpolated; any
other is extrapolated and says so. Both come from `kriging` of the logarithm of latency over the ideal latency. Along
the kind's monotone sizes an answer is then held between its measured neighbours, as long as those do not fall.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from puzzlebench.profiling.arrays import FloatArray, IntArray
from puzzlebench.profiling.kernel_features import KernelKind, Shapes
from puzzlebench.profiling.kriging import KrigingParameters, LocalKriging
from puzzlebench.profiling.timings import EXTRAPOLATED, INTERPOLATED, MEASURED, Timings
from puzzlebench_profiles.datasheets import Datasheet

_EXTRAPOLATION_FACTOR = 2.0  # docs/accuracy.md reports the error and coverage beyond the measured range with this
_NO_ROW = -1


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
        self._log_latency = np.log(table["latency_us"])
        self._levels = [np.unique(table[axis]) for axis in kind.axes]
        places = tuple(
            np.searchsorted(levels, table[axis]) for levels, axis in zip(self._levels, kind.axes, strict=True)
        )
        self._row = np.full([len(levels) for levels in self._levels], _NO_ROW)
        self._row[places] = np.arange(len(self._log_latency))
        measured = self._row != _NO_ROW
        self._row_below, self._row_above = measured, np.flip(measured)
        for axis in range(measured.ndim):
            self._row_below = np.logical_or.accumulate(self._row_below, axis=axis)
            self._row_above = np.logical_or.accumulate(self._row_above, axis=axis)
        self._row_above = np.flip(self._row_above)
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
        below, above = self._levels_around(unique)
        row = np.where((below == above).all(axis=1), _look_up(self._row, below, _NO_ROW), _NO_ROW)
        mean = self._log_latency[row]  # of a row that is missing: overwritten below
        deviation = np.full(len(unique), self._noise)
        provenance = np.full(len(unique), MEASURED)
        missing = row == _NO_ROW
        if missing.any():
            mean[missing], deviation[missing] = self._predict(unique[missing])
            below, above = below[missing], above[missing]
            mean[missing] = self._between_neighbours(mean[missing], below, above)
            inside = _look_up(self._row_below, below, False) & _look_up(self._row_above, above, False)
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

    def _levels_around(self, points: FloatArray) -> tuple[IntArray, IntArray]:
        """Places (Q, A) of the nearest measured sizes at most and at least as large; -1 or the count where none is."""
        columns = list(zip(self._levels, points.T, strict=True))
        below = [np.searchsorted(levels, column, side="right") - 1 for levels, column in columns]
        above = [np.searchsorted(levels, column, side="left") for levels, column in columns]
        return np.stack(below, axis=1), np.stack(above, axis=1)

    def _between_neighbours(self, mean: FloatArray, below: IntArray, above: IntArray) -> FloatArray:
        """Log latencies (Q,) held between those of the rows next to them along the monotone sizes.

        A neighbour is at the next measured size in every monotone size, and at the same one in the others. Where the
        neighbours themselves fall the answer is left alone: which kernel the engine picks changes there.
        """
        fixed = [place for place, axis in enumerate(self.kind.axes) if axis not in self.kind.monotone]
        same = (below[:, fixed] == above[:, fixed]).all(axis=1)
        low_row = np.where(same, _look_up(self._row, below, _NO_ROW), _NO_ROW)
        high_row = np.where(same, _look_up(self._row, above, _NO_ROW), _NO_ROW)
        low = np.where(low_row == _NO_ROW, -np.inf, self._log_latency[low_row])
        high = np.where(high_row == _NO_ROW, np.inf, self._log_latency[high_row])
        return np.where(low <= high, np.clip(mean, low, high), mean)


def _look_up(grid: npt.NDArray[Any], places: IntArray, outside: int) -> npt.NDArray[Any]:
    """Values (Q,) at the (Q, A) places of a grid with A axes; `outside` where a place is not on it."""
    on_grid = np.logical_and(places >= 0, places < np.array(grid.shape)).all(axis=1)
    found = grid[tuple(np.where(np.expand_dims(on_grid, 1), places, 0).T)]
    return np.where(on_grid, found, outside)
