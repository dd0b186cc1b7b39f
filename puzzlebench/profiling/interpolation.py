"""Plain interpolation on a ragged grid: linear between the nearest measured sizes, one axis inside the other.

Knows nothing about GPUs or kernels: coordinates in, values out. It is what `kriging` is held against
(`puzzlebench.validation.held_out`). The levels of an axis are those that were measured at the chosen levels of the axes
outside it, so a table need not be a full grid. Beyond its outermost level an axis keeps the value there; for the
logarithm of latency over the ideal latency that is the same utilisation. It gives no interval.
"""

from __future__ import annotations

import numpy as np

from puzzlebench.profiling.arrays import FloatArray


def interpolate(x: FloatArray, u: FloatArray, queries: FloatArray) -> FloatArray:
    """Values (Q,) at (Q, A) queries, from values (N,) at (N, A) measured points; the first axis is the outermost."""
    if x.shape[1] == 1:
        order = np.argsort(x[:, 0])
        return np.interp(queries[:, 0], x[order, 0], u[order])
    levels, level = np.unique(x[:, 0], return_inverse=True)
    asked = queries[:, 0]
    above = np.minimum(np.searchsorted(levels, asked), len(levels) - 1)
    below = np.where(levels[above] > asked, np.maximum(above - 1, 0), above)
    value_below, value_above = np.empty(len(asked)), np.empty(len(asked))
    for place in np.union1d(below, above):
        rows = level.reshape(-1) == place
        wanted = np.flatnonzero((below == place) | (above == place))
        values = interpolate(x[rows, 1:], u[rows], queries[wanted, 1:])
        value_below[wanted] = np.where(below[wanted] == place, values, value_below[wanted])
        value_above[wanted] = np.where(above[wanted] == place, values, value_above[wanted])
    width = levels[above] - levels[below]
    share = np.divide(asked - levels[below], width, out=np.zeros(len(asked)), where=width > 0)
    return np.asarray((1.0 - share) * value_below + share * value_above)
