"""The arithmetic of a slope: exact without noise, covered with it, refused where it shows nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puzzlebench.measuring.stack.slope import Slope, StackRefused, slope_from_runs


@settings(deadline=None)  # the first call imports scipy
@given(
    block=st.floats(1e-6, 10),
    rest=st.floats(0, 10),
    copies=st.integers(1, 64),
    repeats=st.integers(2, 9),
)
def test_exact_without_noise(block, rest, copies, repeats):
    small, large = [rest + copies * block] * repeats, [rest + 2 * copies * block] * repeats
    slope = slope_from_runs(small, large, copies=copies)
    assert slope.latency_us == pytest.approx(block * 1e6, rel=1e-6)
    assert slope.intercept_us == pytest.approx(rest * 1e6, rel=1e-6, abs=1e-3 * copies * block * 1e6)
    assert slope.low_us == pytest.approx(slope.high_us, rel=1e-6)
    assert len(slope.samples) == repeats


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(1.0, 1.1), st.floats(2.0, 2.1)), min_size=2, max_size=9),
    st.floats(0.01, 100),
)
def test_everything_scales_with_time(pairs, factor):
    small, large = zip(*pairs, strict=True)
    try:
        slope = slope_from_runs(small, large, copies=4)
    except StackRefused:
        with pytest.raises(StackRefused):
            slope_from_runs([s * factor for s in small], [t * factor for t in large], copies=4)
        return
    scaled = slope_from_runs([s * factor for s in small], [t * factor for t in large], copies=4)
    for field in ("latency_us", "low_us", "high_us", "intercept_low_us", "intercept_high_us"):
        assert getattr(scaled, field) == pytest.approx(
            getattr(slope, field) * factor, rel=1e-6, abs=1e-6 * factor * 1e6
        )


@pytest.mark.parametrize("repeats", [3, 5, 10])
def test_the_interval_covers_at_its_rate(repeats):
    block, rest, copies, trials = 1e-3, 5e-3, 8, 1000
    covered = intercepts = 0
    for seed in range(trials):
        noise = np.random.default_rng(seed).normal(0, 2e-4, (2, repeats))
        slope = slope_from_runs(rest + copies * block + noise[0], rest + 2 * copies * block + noise[1], copies=copies)
        covered += slope.low_us <= block * 1e6 <= slope.high_us
        intercepts += slope.intercept_low_us <= rest * 1e6 <= slope.intercept_high_us
    # 950 of 1000 with a standard deviation of 7: 30 is over four of them.
    assert abs(covered - 950) < 30
    assert abs(intercepts - 950) < 30


def test_numbers_by_hand():
    slope = slope_from_runs([10e-6, 10e-6, 10e-6], [20e-6, 20.4e-6, 20.8e-6], copies=2)
    half = 4.30265 * 0.2 / 3**0.5  # t at two degrees of freedom, standard deviation, square root of the repeats
    assert slope.samples == pytest.approx((5.0, 5.2, 5.4))
    assert (slope.low_us, slope.latency_us, slope.high_us) == pytest.approx((5.2 - half, 5.2, 5.2 + half), rel=1e-5)
    assert (slope.intercept_us, slope.intercept_high_us) == pytest.approx((-0.4, -0.4 + 2 * half), rel=1e-5)


@pytest.mark.parametrize(
    ("small", "large"),
    [
        ([2.0, 2.1, 1.9], [1.0, 1.1, 0.9]),  # negative
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]),  # zero
        ([1.0, 2.0, 3.0], [1.5, 2.0, 3.6]),  # the interval includes zero
    ],
)
def test_what_shows_nothing_is_refused(small, large):
    with pytest.raises(StackRefused, match=r"prefill: .* us per block, 95 % interval .* use more than 7 copies"):
        slope_from_runs(small, large, copies=7, what="prefill")


@pytest.mark.parametrize(
    ("small", "large", "copies", "message"),
    [
        ([1.0], [2.0], 1, "at least two pairs"),
        ([1.0, 1.0], [2.0], 1, "at least two pairs"),
        ([], [], 1, "at least two pairs"),
        ([1.0, float("nan")], [2.0, 2.0], 1, "finite"),
        ([1.0, 1.0], [2.0, float("inf")], 1, "finite"),
        ([1.0, 1.0], [2.0, 2.0], 0, "copies must be"),
    ],
)
def test_bad_runs_are_refused(small, large, copies, message):
    with pytest.raises(ValueError, match=message) as caught:
        slope_from_runs(small, large, copies=copies)
    assert not isinstance(caught.value, StackRefused)


@pytest.mark.parametrize(
    "changes",
    [{"low_us": 0.0}, {"low_us": -1.0}, {"latency_us": 9.0}, {"intercept_us": 9.0}, {"samples": (float("nan"),)}],
)
def test_a_slope_cannot_hold_what_is_not_a_measurement(changes):
    fields = {
        "latency_us": 2.0,
        "low_us": 1.0,
        "high_us": 3.0,
        "intercept_us": 0.0,
        "intercept_low_us": -1.0,
        "intercept_high_us": 1.0,
        "samples": (2.0,),
    }
    assert Slope(**fields).latency_us == 2.0
    with pytest.raises(ValueError, match=r"a slope|an intercept"):
        Slope(**fields | changes)
