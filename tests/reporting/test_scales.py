"""Scales and their ticks."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzlebench.reporting.scales import Scale, padded


@given(
    low=st.floats(-1e9, 1e9),
    length=st.floats(1e-6, 1e9),
    kind=st.sampled_from(["straight", "log", "root"]),
    about=st.integers(2, 8),
)
def test_ticks_are_on_the_scale_in_order_and_of_a_fair_number(low, length, kind, about):
    low = low if kind == "straight" else abs(low) + 1e-6 * (kind == "log")
    if low + length == low or length < 1e-9 * abs(low):
        return
    scale = Scale(low=low, high=low + length, start=0, end=100, kind=kind)
    ticks = scale.ticks(about)
    assert list(ticks) == sorted(set(ticks))
    slack = 1e-6 * max(abs(low), length)
    assert all(low - slack <= tick <= low + length + slack for tick in ticks)
    assert len(ticks) <= 2 * about + 4
    assert ticks or kind == "root"


def test_root_shows_small_values_and_its_ticks_are_apart():
    scale = Scale(low=0, high=4, start=0, end=100, kind="root")
    assert scale(1) == 50
    assert scale(0.04) == 10
    ticks = scale.ticks(5)
    assert ticks[0] == 0
    assert {0.2, 2.0} <= set(ticks)
    assert min(scale(after) - scale(before) for before, after in itertools.pairwise(ticks)) >= 100 / 6


def test_places():
    assert Scale(low=0, high=10, start=100, end=0)(2.5) == 75
    assert Scale(low=1, high=100, start=0, end=50, kind="log")(10) == pytest.approx(25)
    assert Scale(low=1, high=100, start=0, end=50, kind="log")(0) < -50


@pytest.mark.parametrize(
    ("low", "high", "kind"),
    [(1, 1, "straight"), (2, 1, "straight"), (0, 1, "log"), (-1, 1, "root"), (0, float("inf"), "straight")],
)
def test_impossible_scales(low, high, kind):
    with pytest.raises(ValueError, match="a scale cannot go"):
        Scale(low=low, high=high, start=0, end=1, kind=kind)


@given(
    values=st.lists(st.floats(-1e6, 1e6), max_size=5),
    zero=st.booleans(),
    kind=st.sampled_from(["straight", "log", "root"]),
)
def test_padded_holds_all_values(values, zero, kind):
    low, high = padded(values, zero=zero, kind=kind)
    assert low < high
    assert all(low <= value <= high for value in values if value > 0 or kind == "straight")
    if kind == "log":
        assert low > 0
    elif kind == "root":
        assert low >= 0
    elif zero:
        assert low <= 0
