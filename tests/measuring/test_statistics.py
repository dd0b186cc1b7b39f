"""Intervals by simulation: where the truth is known, how often it is inside."""

import math

import numpy as np
import pytest

from puzzlebench.measuring.statistics import combine_sessions, median_interval, relative_width


@pytest.mark.parametrize("count", [6, 7, 9, 12, 20, 51])
def test_the_median_is_inside_in_95_of_100(count):
    rng = np.random.default_rng(count)
    inside = 0
    for values in rng.lognormal(sigma=0.3, size=(1000, count)):
        _, low, high = median_interval(values)
        inside += low <= 1.0 <= high
    # Order statistics cover at least 95 % (6 values: 96.9 %); 1000 draws have a standard error of 0.7 %.
    assert 0.94 <= inside / 1000 <= 0.995


def test_a_lower_confidence_is_narrower():
    values = np.arange(1.0, 42.0)
    wide, narrow = median_interval(values), median_interval(values, 0.5)
    assert wide[0] == narrow[0] == 21
    assert wide[1] < narrow[1] < 21 < narrow[2] < wide[2]


def test_the_ends_are_the_right_order_statistics():
    # 20 values: the 6th from either side (P(at most 5 of 20 below the median) = 2.07 %, at most 6: 5.8 %).
    assert median_interval(np.arange(20.0)[::-1]) == (9.5, 5.0, 14.0)


@pytest.mark.parametrize(
    "values", [[3.0], [3.0, 1.0], [5.0, 1.0, 2.0], [4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0, 9.0]]
)
def test_few_values_give_their_range(values):
    assert median_interval(np.array(values)) == (float(np.median(values)), min(values), max(values))


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [1.0, math.inf]])
def test_no_values_or_none_that_count(values):
    with pytest.raises(ValueError, match="a median needs at least one value, all finite"):
        median_interval(np.array(values))


def test_relative_width():
    assert relative_width(np.array([1.0, 1.0])) == math.inf
    assert relative_width(np.array([2.0, 2.0, 2.0])) == 0
    assert relative_width(np.array([1.0, 2.0, 4.0])) == 1.5


def simulate(*, tables, sessions, cells, shift, scatter, missing=0.0, seed=0, uneven=False):
    """Share of cells whose truth is inside, over many tables; and the median width over the ideal one."""
    rng = np.random.default_rng(seed)
    truth = np.exp(rng.normal(5, 2, cells))
    inside, widths = [], []
    for _ in range(tables):
        own = scatter * (rng.choice([0.5, 2.0], cells) if uneven else 1.0)
        noise = shift * rng.standard_normal((sessions, 1)) + own * rng.standard_normal((sessions, cells))
        medians = truth * np.exp(noise)
        gone = rng.random(medians.shape) < missing
        gone[rng.integers(sessions, size=cells), np.arange(cells)] = False  # once at least
        medians[gone] = np.nan
        found = combine_sessions(medians, np.full(medians.shape, 0.1 * scatter))
        inside.append((found.low_us <= truth) & (truth <= found.high_us))
        widths.append(np.log(found.high_us / found.low_us))
    return float(np.mean(inside)), float(np.median(widths))


@pytest.mark.parametrize(
    "setting",
    [
        {"sessions": 5, "cells": 40, "shift": 0.03, "scatter": 0.01},
        {"sessions": 5, "cells": 40, "shift": 0.0, "scatter": 0.02},
        {"sessions": 5, "cells": 40, "shift": 0.05, "scatter": 0.001},
        {"sessions": 3, "cells": 40, "shift": 0.02, "scatter": 0.02},
        {"sessions": 2, "cells": 40, "shift": 0.02, "scatter": 0.02},
        {"sessions": 5, "cells": 40, "shift": 0.03, "scatter": 0.02, "missing": 0.3},
        {"sessions": 5, "cells": 40, "shift": 0.01, "scatter": 0.02, "uneven": True},
        {"sessions": 5, "cells": 4, "shift": 0.03, "scatter": 0.02},
        {"sessions": 5, "cells": 2, "shift": 0.01, "scatter": 0.02},
        {"sessions": 5, "cells": 1, "shift": 0.03, "scatter": 0.02},
    ],
    ids=lambda setting: " ".join(f"{name}={value}" for name, value in setting.items()),
)
def test_the_truth_is_inside_over_many_tables(setting):
    # All cells of a table share its shift, so 300 tables are little more than 300 draws: standard error 1.3 %.
    share, width = simulate(tables=300, **setting)
    assert share >= 0.93
    ideal = 2 * 1.96 * math.hypot(setting["shift"], setting["scatter"]) / math.sqrt(setting["sessions"])
    assert width < (12 if setting["sessions"] == 2 else 3.5) * ideal, "t with one degree of freedom alone is 6.5 wide"


def test_shift_and_scatter_are_told_apart():
    rng = np.random.default_rng(3)
    truth = np.exp(rng.normal(5, 2, 200))
    shift = np.array([0.10, -0.02, -0.03, -0.05])
    medians = truth * np.exp(shift[:, None] + 0.01 * rng.standard_normal((4, 200)))
    found = combine_sessions(medians, np.full(medians.shape, 0.001))
    assert found.shift == pytest.approx(shift, abs=0.003)
    assert np.median(found.scatter) == pytest.approx(0.01, rel=0.2)
    assert found.latency_us / truth == pytest.approx(np.ones(200), abs=0.03)


def test_a_missing_cell_is_not_biased_by_a_slow_session():
    """A cell that only slow sessions saw must not come out slow."""
    truth = np.array([10.0, 20.0, 30.0, 40.0, 50.0])
    medians = np.array([[1.2], [1.2], [1.0], [1.0]]) * truth
    medians[2:, 0] = np.nan
    found = combine_sessions(medians, np.full(medians.shape, 1e-4))
    assert found.latency_us / found.latency_us[1] == pytest.approx(truth / truth[1], rel=1e-3)


def test_the_samples_inside_a_session_are_a_floor():
    medians = np.full((5, 3), 10.0)  # sessions agree by luck
    found = combine_sessions(medians, np.full(medians.shape, 0.1))
    assert (np.log(found.high_us / found.low_us) > 2 * 1.96 * 0.1 / math.sqrt(5)).all()


def test_one_session_has_the_interval_of_its_samples():
    found = combine_sessions(np.array([[10.0, 20.0]]), np.array([[0.01, 0.04]]))
    assert found.latency_us == pytest.approx([10, 20])
    assert found.shift == pytest.approx([0])
    half = np.log(found.high_us / found.latency_us)
    assert np.log(found.latency_us / found.low_us) == pytest.approx(half)
    assert half[1] == pytest.approx(4 * half[0])
    assert half[0] >= 1.96 * 0.01


def test_cells_of_no_session():
    with pytest.raises(ValueError, match="1 cells were measured in no session"):
        combine_sessions(np.array([[1.0, np.nan], [1.0, np.nan]]), np.full((2, 2), 0.1))
