"""Prices and bounds against a linear program and against trying everything."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from puzzlebench_search.dual import lower_bound, maximise_bound, reduced_losses
from puzzlebench_search.instances import hard_instance, served_instance
from puzzlebench_search.layered import layer_problem


def relaxed_optimum(losses, uses, room):
    """The least loss with fractions of choices; infinite when even those break a row."""
    there = np.isfinite(losses)
    layer = np.nonzero(there)[0]
    one_each = (np.arange(len(losses))[:, None] == layer[None]).astype(float)
    rows = uses[there].T
    unit = float(np.abs(losses[there]).max()) or 1.0  # linprog's tolerances are absolute
    found = linprog(losses[there] / unit, A_ub=rows, b_ub=room, A_eq=one_each, b_eq=np.ones(len(losses)))
    return unit * found.fun if found.status == 0 else math.inf


def priced(layered):
    prices = maximise_bound(
        layered.losses,
        layered.uses,
        layered.room[None],
        start=np.zeros(len(layered.room)),
        scale=layered.spread,
    )[0]
    return prices, lower_bound(layered.losses, layered.uses, layered.room, prices)


@st.composite
def arrays(draw):
    """Losses (L, J) with gaps, uses (L, J, M), room (M,)."""
    layers, width, rows = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(0, 3))
    unit = draw(st.sampled_from([1e-9, 1.0, 1e9]))
    numbers = st.floats(0, 1, allow_subnormal=False)
    losses = unit * np.array(draw(st.lists(numbers, min_size=layers * width, max_size=layers * width)))
    losses = losses.reshape(layers, width)
    gaps = np.array(draw(st.lists(st.integers(0, 3), min_size=layers * width, max_size=layers * width)))
    losses[(gaps.reshape(layers, width) == 0) & (np.arange(width) > 0)] = np.inf
    uses = np.array(draw(st.lists(numbers, min_size=layers * width * rows, max_size=layers * width * rows))).reshape(
        layers, width, rows
    )
    if rows > 1 and draw(st.booleans()):
        uses[:, :, 1] = uses[:, :, 0] * draw(st.sampled_from([1.0, 1 + 1e-9, 1 + 1e-5]))  # nearly or quite collinear
    if rows > 2 and draw(st.booleans()):
        uses[:, :, 2] = uses[:, :, 0].max(axis=1, keepdims=True) - uses[:, :, 0]  # the other end of a limit
    room = np.array(draw(st.lists(st.floats(0.01, 3), min_size=rows, max_size=rows)))
    return losses, uses, room, unit


@settings(deadline=None, max_examples=120)
@given(drawn=arrays(), data=st.data())
def test_any_prices_bound_from_below(drawn, data):
    losses, uses, room, unit = drawn
    powers = data.draw(st.lists(st.floats(-6, 15), min_size=len(room), max_size=len(room)))
    prices = unit * 10.0 ** np.array(powers) * data.draw(st.sampled_from([0.0, 1.0]))
    bound = lower_bound(losses, uses, room, prices)
    rows = np.arange(len(losses))
    for way in itertools.product(*(np.flatnonzero(np.isfinite(one)) for one in losses)):
        if (uses[rows, way].sum(axis=0) <= room).all():
            assert bound <= losses[rows, way].sum() + 1e-13 * unit


@settings(deadline=None, max_examples=100)
@given(drawn=arrays())
def test_the_best_prices_reach_the_relaxed_optimum(drawn):
    """To 5 % of the scale at the worst, where a layer's choices are all but settled; real shapes come far closer."""
    losses, uses, room, unit = drawn
    worst = np.where(np.isfinite(losses), losses, -np.inf).max(axis=1)
    scale = float((worst - losses.min(axis=1)).mean()) or unit
    prices = maximise_bound(losses, uses, room[None], start=np.zeros(len(room)), scale=scale)
    assert prices.shape == (1, len(room))
    assert np.isfinite(prices).all()
    assert (prices >= 0).all()
    bound = lower_bound(losses, uses, room, prices[0])
    best = relaxed_optimum(losses, uses, room)
    if math.isfinite(best):
        assert bound <= best + 1e-9 * max(scale, abs(best))
        assert bound >= best - 0.05 * scale
    assert bound >= losses.min(axis=1).sum() - 1e-3 * scale


@pytest.mark.parametrize("instance", [served_instance, hard_instance])
@pytest.mark.parametrize("seed", range(3))
def test_prices_of_real_shapes(instance, seed):
    layered = layer_problem(instance(seed=seed))
    prices, bound = priced(layered)
    best = relaxed_optimum(layered.losses, layered.uses, layered.room)
    assert bound <= best + 1e-9 * layered.spread
    assert bound >= best - 0.02 * layered.spread  # of the objective, about one part in 10 000
    assert (prices >= 0).all()


@pytest.mark.parametrize("copies", [2, 6])
@pytest.mark.parametrize("noise", [0.0, 1e-12, 1e-6])
def test_prices_of_rows_that_are_nearly_alike(copies, noise):
    """Their curvature is singular."""
    rng = np.random.default_rng(copies)
    layered = layer_problem(served_instance(20, seed=1))
    uses = np.repeat(layered.uses[:, :, :1], copies, axis=2)
    uses = uses * (1 + noise * rng.uniform(size=uses.shape))
    rooms = np.linspace(0.2, 1.0, 16)[:, None] * np.ones(copies)
    prices = maximise_bound(layered.losses, uses, rooms, start=np.zeros(copies), scale=layered.spread)
    for room, one in zip(rooms, prices, strict=True):
        best = relaxed_optimum(layered.losses, uses, room)
        assert best - 0.02 * layered.spread <= lower_bound(layered.losses, uses, room, one)
        assert lower_bound(layered.losses, uses, room, one) <= best + 1e-9 * layered.spread


def test_several_rooms_are_like_one_after_the_other():
    layered = layer_problem(hard_instance(20, seed=3))
    rooms = np.array([[0.8] * 4, [1.0] * 4, [0.9, 1.1, 0.9, 1.1]])[:, : len(layered.room)]
    start = np.zeros(len(layered.room))
    together = maximise_bound(layered.losses, layered.uses, rooms, start=start, scale=layered.spread)
    for room, prices in zip(rooms, together, strict=True):
        alone = maximise_bound(layered.losses, layered.uses, room[None], start=start, scale=layered.spread)[0]
        bounds = [lower_bound(layered.losses, layered.uses, room, one) for one in (prices, alone)]
        assert bounds[0] == pytest.approx(bounds[1], abs=0.02 * layered.spread)


def test_reduced_losses():
    losses, uses = np.array([[1.0, 3.0, np.inf]]), np.array([[[2.0], [0.0], [0.0]]])
    assert reduced_losses(losses, uses, np.array([0.5])).tolist() == [[0.0, 1.0, np.inf]]
    assert reduced_losses(losses, uses, np.array([2.0])).tolist() == [[2.0, 0.0, np.inf]]


def test_without_rows_there_is_nothing_to_price():
    prices = maximise_bound(np.ones((2, 2)), np.zeros((2, 2, 0)), np.zeros((3, 0)), start=np.zeros(0), scale=1.0)
    assert prices.shape == (3, 0)
    assert lower_bound(np.ones((2, 2)), np.zeros((2, 2, 0)), np.zeros(0), np.zeros(0)) == pytest.approx(2.0)
