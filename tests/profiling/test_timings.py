"""Arithmetic of latencies with intervals and provenance."""

import numpy as np
import pytest

from puzzlebench.profiling.timings import EXTRAPOLATED, INTERPOLATED, MEASURED, MODELLED, Timings


def timings(latency, low, high, provenance=MEASURED, modelled=0.0):
    return Timings(
        latency_us=np.array([latency]),
        low_us=np.array([low]),
        high_us=np.array([high]),
        provenance=np.array([provenance]),
        modelled_us=np.array([modelled]),
    )


def values(t):
    return [t.latency_us[0], t.low_us[0], t.high_us[0]]


def test_a_sum_adds_latencies_and_independent_errors():
    total = timings(10, 7, 13) + timings(20, 16, 24, INTERPOLATED, 5.0)
    assert values(total) == pytest.approx([30, 25, 35])
    assert total.provenance[0] == INTERPOLATED
    assert total.modelled_us[0] == 5.0


def test_nothing_added_changes_nothing():
    total = timings(10, 7, 13, EXTRAPOLATED, 2.0) + Timings.zero(1)
    assert values(total) == [10, 7, 13]
    assert (total.provenance[0], total.modelled_us[0]) == (EXTRAPOLATED, 2.0)


def test_a_sum_is_never_below_zero():
    assert (timings(1, 0, 9) + timings(1, 0, 9)).low_us[0] >= 0


def test_repeating_a_kernel_repeats_its_error():
    twice = timings(10, 7, 13, EXTRAPOLATED, 4.0).repeated(2)
    assert values(twice) == [20, 14, 26]
    assert (twice.provenance[0], twice.modelled_us[0]) == (EXTRAPOLATED, 8.0)


def test_repeating_a_kernel_no_times_leaves_no_trace():
    none = timings(10, 7, 13, EXTRAPOLATED, 4.0).repeated(0)
    assert values(none) == [0, 0, 0]
    assert (none.provenance[0], none.modelled_us[0]) == (MEASURED, 0.0)


def test_marking_only_lowers_trust():
    assert timings(1, 1, 1, EXTRAPOLATED).marked(INTERPOLATED).provenance[0] == EXTRAPOLATED
    assert timings(1, 1, 1, MEASURED).marked(MODELLED).provenance[0] == MODELLED


def test_the_interval_of_a_log_normal():
    t = Timings.from_log(np.log([100.0]), np.array([0.1]), np.array([MEASURED]))
    assert values(t) == pytest.approx([100, 100 / np.exp(0.196), 100 * np.exp(0.196)])


def test_entries_by_index():
    t = Timings.from_log(np.log([1.0, 2.0, 3.0]), np.full(3, 0.1), np.array([0, 1, 2])).at(np.array([2, 0, 2]))
    assert t.latency_us == pytest.approx([3, 1, 3])
    assert t.provenance.tolist() == [2, 0, 2]
