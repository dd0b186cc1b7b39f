"""Numbers as text."""

import math

import pytest

from puzzlebench.estimate import Interval
from puzzlebench.reporting import numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.5349, "1.53"),
        (-0.04567, "−0.0457"),
        (114302.4, "114,302"),
        (0.00031623, "0.000316"),
        (9.996, "10.00"),
        (2e9, "2.00e+09"),
        (1e-7, "1.00e−07"),
        (math.nan, "–"),
    ],
)
def test_digits(value, text):
    assert numbers.digits(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0142, "0.014 s"), (2.41, "2.4 s"), (45.67, "45.7 s"), (1795.3, "29 min 55 s"), (119.6, "2 min 00 s"),
     (7384, "2 h 03 min")],
)  # fmt: skip
def test_duration(seconds, text):
    assert numbers.duration(seconds).replace(numbers.NBSP, " ") == text


def test_units_and_signs():
    assert numbers.quantity("ttft[chat]", 1.5e-4).replace(numbers.NBSP, " ") == "150 µs"
    assert numbers.quantity("score", 0.16661) == "0.1666"
    assert numbers.parameters(7_344_384).replace(numbers.NBSP, " ") == "7.344 M"
    assert numbers.signed_percent(-0.0571).replace(numbers.NBSP, " ") == "−5.7 %"
    assert numbers.signed_percent(0.0471).replace(numbers.NBSP, " ") == "+4.7 %"
    assert numbers.percent(0.95).replace(numbers.NBSP, " ") == "95.0 %"
    assert numbers.probability(1e-9) == "below 0.0001"


def test_spread_of_an_unknown_interval_is_nothing():
    assert numbers.spread(Interval(value=1.5, low=1.49, high=1.58), numbers.times) == "1.49× to 1.58×"
    assert numbers.spread(Interval(value=1.5, low=math.nan, high=1.58), numbers.times) == "–"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2026-11-28T09:30:00+00:00", "28 November 2026, 09:30 UTC"),
        ("2026-11-28T01:30:00+02:00", "27 November 2026, 23:30 UTC"),
        ("2026-11-28T09:30:00", "28 November 2026, 09:30"),
        ("yesterday", "yesterday"),
    ],
)
def test_moment(text, said):
    assert numbers.moment(text) == said


@pytest.mark.parametrize(("longest", "unit"), [(12_000, "s"), (1500, "ms"), (2.0, "ms"), (0.4, "µs")])
def test_time_unit(longest, unit):
    assert numbers.time_unit(longest)[1] == unit
