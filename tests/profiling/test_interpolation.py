"""Plain interpolation against answers worked out by hand and SciPy's on a full grid."""

import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

from puzzlebench.profiling.interpolation import interpolate


def test_agrees_with_scipy_on_a_full_grid():
    rng = np.random.default_rng(3)
    levels = [np.sort(rng.uniform(0, 10, count)) for count in (4, 3, 5)]
    values = rng.normal(size=(4, 3, 5))
    points = np.stack(np.meshgrid(*levels, indexing="ij"), axis=-1).reshape(-1, 3)
    asked = np.stack([rng.uniform(axis[0], axis[-1], 200) for axis in levels], axis=1)
    mixed = rng.permutation(len(points))
    found = interpolate(points[mixed], values.reshape(-1)[mixed], asked)
    np.testing.assert_allclose(found, RegularGridInterpolator(levels, values)(asked), rtol=1e-12, atol=1e-12)


def test_measured_points_come_back():
    rng = np.random.default_rng(4)
    points = np.unique(rng.integers(0, 6, (60, 3)), axis=0).astype(float)
    values = rng.normal(size=len(points))
    np.testing.assert_allclose(interpolate(points, values, points), values, rtol=1e-12)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ((1, 15), 1.5),  # along the inner axis
        ((2, 10), 6.0),  # between the outer levels, both measured there
        ((2, 20), 7.0),  # (3, 20) was not measured: the outer level 3 goes from 10 to 30
        ((2, 30), 7.5),  # (1, 30) was not measured: level 1 keeps what it had at 20
        ((0, 10), 1.0),
        ((9, 99), 13.0),
    ],
)
def test_a_ragged_grid_worked_out_by_hand(asked, expected):
    points = np.array([(1, 10), (1, 20), (3, 10), (3, 30)], dtype=float)
    values = np.array([1.0, 2.0, 11.0, 13.0])
    assert interpolate(points, values, np.array([asked], dtype=float))[0] == pytest.approx(expected)
