"""Lengths and what a workload refuses."""

import numpy as np
import pytest

from puzzlebench.serving.workload import Lengths, Scheduler, Workload


@pytest.mark.parametrize(("text", "low", "high"), [("1024", 1024, 1024), ("820:1024", 820, 1024), (" 7 ", 7, 7)])
def test_lengths_are_read(text, low, high):
    assert Lengths.parse(text) == Lengths(low, high)
    assert Lengths.parse(str(Lengths(low, high))) == Lengths(low, high)


@pytest.mark.parametrize("text", ["", "a", "1:", "2:1", "0", "1.5", "-3", "1:2:3"])
def test_other_lengths_are_refused(text):
    with pytest.raises(ValueError, match=r"length|shortest"):
        Lengths.parse(text)


def test_moments_are_those_of_the_draws():
    lengths = Lengths(3, 11)
    values = np.arange(3, 12)
    assert lengths.mean == values.mean()
    assert lengths.mean_square == pytest.approx((values**2).mean())
    drawn = lengths.draw(2000, np.random.default_rng(0))
    assert set(drawn) == set(values)


def test_long_answers_have_more_of_the_decode_steps():
    load = Workload(prefill=Lengths(100, 100), decode=Lengths(1, 3), concurrency=1)
    # Steps of answers of 1, 2 and 3 tokens: half of a step's own length is in the cache on average.
    assert load.mean_context == pytest.approx(100 + (1 + 4 + 9) / 3 / (2 * 2))


@pytest.mark.parametrize(
    "given", [{}, {"concurrency": 1, "request_rate": 1.0}, {"concurrency": 0}, {"request_rate": 0}]
)
def test_either_users_or_a_rate(given):
    with pytest.raises(ValueError, match=r"concurrency|rate"):
        Workload(prefill=Lengths(1, 1), decode=Lengths(2, 2), **given)


@pytest.mark.parametrize("given", [{"max_num_tokens": 0}, {"wait_share": 1.5}, {"wait_iterations": -1}])
def test_a_scheduler_refuses_what_cannot_be(given):
    with pytest.raises(ValueError, match=r"max_num_tokens|wait"):
        Scheduler(**given)
