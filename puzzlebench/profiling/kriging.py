"""Local kriging: predict a smooth-plus-stepped surface from its nearest measured points, with an interval.

Knows nothing about GPUs or kernels: coordinates in, mean and standard deviation out. Each query takes its nearest
measured points, conditions a Gaussian process with a sum of Matern-3/2 kernels on them (ordinary kriging: the local
mean is estimated too), and does one robust reweighting so that a single odd measurement does not drag the rest.

Shapes: N measured points, Q queries, F features, C kernel components, K neighbours.
Source: Cressie, Statistics for Spatial Data (1993), ch. 3; robust weights follow Lange et al. (1989), Student t.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from puzzlebench.profiling.arrays import FloatArray, IntArray

_CHUNK = 512  # queries per batched solve: keeps the (chunk, K, K) temporaries inside the cache
_STUDENT_DOF = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class KrigingParameters:
    """Hyperparameters of one surface; fitted offline, read from a JSON file.

    `lengthscales` (C, F) and `amplitudes` (C,) are in feature units and log-latency units. `noise` is the standard
    deviation of one measurement. `metric` (F,) weighs features when neighbours are looked up. `interval_scale`
    multiplies the standard deviation; see `calibrate_intervals`.
    """

    lengthscales: FloatArray
    amplitudes: FloatArray
    noise: float
    metric: FloatArray
    neighbours: int
    interval_scale: float = 1.0

    def __post_init__(self) -> None:
        components, features = self.lengthscales.shape
        if self.amplitudes.shape != (components,) or self.metric.shape != (features,):
            raise ValueError(
                f"kriging parameters disagree: lengthscales {self.lengthscales.shape}, amplitudes "
                f"{self.amplitudes.shape}, metric {self.metric.shape}"
            )
        if self.neighbours < 1 or self.noise <= 0 or self.interval_scale <= 0:
            raise ValueError("kriging parameters need neighbours >= 1 and a positive noise and interval scale")


class LocalKriging:
    """A measured surface ready for queries.

    Args:
        parameters: hyperparameters.
        x: features of the measured points, (N, F).
        u: values there, (N,).
    """

    def __init__(self, parameters: KrigingParameters, x: FloatArray, u: FloatArray) -> None:
        if len(x) == 0:
            raise ValueError("no measured points to predict from")
        self._parameters = parameters
        self._x = np.ascontiguousarray(x, dtype=np.float64)
        self._u = np.ascontiguousarray(u, dtype=np.float64)
        self._tree = cKDTree(self._x * parameters.metric)

    def nearest(self, queries: FloatArray, count: int) -> tuple[FloatArray, IntArray]:
        """Distances in the metric and indices of the `count` nearest measured points, both (Q, count)."""
        distance, index = self._tree.query(queries * self._parameters.metric, k=np.arange(1, count + 1))
        return distance, index

    def predict(self, queries: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation at (Q, F) queries, both (Q,)."""
        _, index = self.nearest(queries, min(self._parameters.neighbours, len(self._u)))
        mean, deviation = np.empty(len(queries)), np.empty(len(queries))
        for start in range(0, len(queries), _CHUNK):
            rows = slice(start, start + _CHUNK)
            mean[rows], deviation[rows] = krige(
                self._parameters, self._x[index[rows]], self._u[index[rows]], queries[rows]
            )
        return mean, deviation


def krige(p: KrigingParameters, x: FloatArray, u: FloatArray, query: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Condition on (Q, K, F) neighbours with values (Q, K); mean and standard deviation at (Q, F), both (Q,)."""
    covariance = _covariance(p, x, x)  # (Q, K, K)
    to_query = _covariance(p, x, query[:, None, :])[..., 0]  # (Q, K)
    noise = p.noise**2
    weight = np.ones_like(u)
    for robust_pass in (True, False):
        diagonal = np.einsum("qkk->qk", covariance)
        inverse = _inverse_with_diagonal(covariance, diagonal + noise * weight)
        dual, ones = np.einsum("qij,qj->qi", inverse, u), inverse.sum(-1)
        mean = dual.sum(-1) / ones.sum(-1)
        dual -= mean[:, None] * ones
        if robust_pass:  # leave-one-out residuals come free from the inverse
            precision = np.einsum("qkk->qk", inverse)
            squared = (dual / precision) ** 2 * precision
            weight = np.maximum((_STUDENT_DOF + squared) / (_STUDENT_DOF + 1.0), 1.0)
    explained = np.einsum("qi,qij,qj->q", to_query, inverse, to_query)
    variance = (p.amplitudes**2).sum() + noise - explained
    return mean + (to_query * dual).sum(-1), p.interval_scale * np.sqrt(np.maximum(variance, noise))


def _inverse_with_diagonal(matrix: FloatArray, diagonal: FloatArray) -> FloatArray:
    filled = matrix.copy()
    k = matrix.shape[-1]
    filled[:, np.arange(k), np.arange(k)] = diagonal
    return np.asarray(np.linalg.inv(filled), dtype=np.float64)


def _covariance(p: KrigingParameters, a: FloatArray, b: FloatArray) -> FloatArray:
    """Sum of Matern-3/2 kernels between (Q, A, F) and (Q, B, F): (Q, A, B)."""
    total = np.zeros((len(a), a.shape[1], b.shape[1]))
    for lengthscale, amplitude in zip(p.lengthscales, p.amplitudes, strict=True):
        p_a, p_b = a / lengthscale, b / lengthscale
        squared = (p_a**2).sum(-1)[:, :, None] + (p_b**2).sum(-1)[:, None, :] - 2.0 * p_a @ p_b.transpose(0, 2, 1)
        distance = np.sqrt(3.0 * np.maximum(squared, 0.0))
        total += amplitude**2 * (1.0 + distance) * np.exp(-distance)
    return total
