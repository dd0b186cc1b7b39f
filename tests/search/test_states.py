"""The walk, wide and narrow, against trying everything."""

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puzzlebench_search import states
from puzzlebench_search.dual import maximise_bound
from puzzlebench_search.instances import hard_instance
from puzzlebench_search.layered import layer_problem
from puzzlebench_search.problem import Limit, Problem

NEVER = 10**9


def best_way(layered):
    """The least loss that keeps every row."""
    rows = np.arange(len(layered.losses))
    losses = [
        layered.losses[rows, way].sum()
        for way in itertools.product(*(np.flatnonzero(there) for there in layered.there))
        if (layered.uses[rows, way].sum(axis=0) <= layered.room + 1e-12).all()
    ]
    return min(losses, default=math.inf)


def prices_of(layered):
    start = np.zeros(len(layered.room))
    return maximise_bound(layered.losses, layered.uses, layered.room[None], start=start, scale=layered.spread)[0]


def loss_of(layered, choices):
    return layered.losses[np.arange(len(layered.losses)), choices].sum()


@pytest.mark.parametrize(("refit_at", "merge_at"), [(NEVER, NEVER), (2, NEVER), (NEVER, 1), (2, 1)])
def test_finds_the_best_below_a_target(problems, refit_at, merge_at):
    @settings(deadline=None, max_examples=60)
    @given(data=st.data())
    def finds(data):
        layered = layer_problem(data.draw(problems(most_layers=5)))
        if layered is None:
            return
        scale = layered.spread
        prices = prices_of(layered) * data.draw(st.sampled_from([0.0, 0.5, 1.0, 1e6]))
        best = best_way(layered)
        found = states.walk(layered, prices, target=math.inf, beam=NEVER, scale=scale)
        assert found.complete
        assert (found.choices is None) == math.isinf(best)
        if found.choices is None:
            return
        assert loss_of(layered, found.choices) == pytest.approx(best, abs=1e-9 * max(scale, abs(best)))
        above = states.walk(layered, prices, target=best + 1e-6 * scale, beam=NEVER, scale=scale)
        assert loss_of(layered, above.choices) == pytest.approx(best, abs=1e-9 * max(scale, abs(best)))
        below = states.walk(layered, prices, target=best - 1e-6 * scale, beam=NEVER, scale=scale)
        assert below.complete
        assert below.choices is None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "_REFIT_AT", refit_at)
        patch.setattr(states, "_REFIT_GROWTH", 1.1)
        patch.setattr(states, "_MERGE_AT", merge_at)
        finds()


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_narrow_beam_never_claims_what_it_did_not_see(problems, data):
    layered = layer_problem(data.draw(problems(most_layers=5)))
    if layered is None:
        return
    best, beam = best_way(layered), data.draw(st.integers(1, 4))
    found = states.walk(layered, prices_of(layered), target=math.inf, beam=beam, scale=layered.spread)
    assert found.states <= beam
    if found.choices is not None:
        assert loss_of(layered, found.choices) >= best - 1e-9 * max(layered.spread, abs(best))
    if found.complete:
        reached = math.inf if found.choices is None else loss_of(layered, found.choices)
        assert reached == best or reached == pytest.approx(best, abs=1e-9 * max(layered.spread, abs(best)))


def alike(layers):
    return Problem(
        scores=np.tile([0.0, 1.0, 2.5], layers),
        uses=np.tile([[3.0], [2.0], [0.0]], (layers, 1)),
        layers=np.repeat(np.arange(layers), 3),
        names=tuple("abc") * layers,
        resources=("r",),
        limits=(Limit(resource="r", high=1.5 * layers - 0.5),),
    )


def test_layers_that_are_alike_merge(monkeypatch):
    layered = layer_problem(alike(12))
    counts = {}
    for merge_at in (1, NEVER):
        monkeypatch.setattr(states, "_MERGE_AT", merge_at)
        monkeypatch.setattr(states, "_REFIT_AT", NEVER)
        found = states.walk(layered, np.zeros(1), target=math.inf, beam=NEVER, scale=1.0)
        counts[merge_at] = found.states
        # 17.5 units: six of the last, and two fewer of the first for the odd one left
        assert loss_of(layered, found.choices) == min(
            b + 2.5 * c for b in range(13) for c in range(13 - b) if 3 * (12 - b - c) + 2 * b <= 17.5
        )
    assert counts[1] < counts[NEVER] / 1000


def test_merging_keeps_the_best_of_each(monkeypatch):
    """States whose uses differ by rounding only, on either side of where the key they are sorted by is rounded."""
    monkeypatch.setattr(states, "_MERGE_AT", 1)
    layered = layer_problem(alike(2))
    walker = states._Walker(layered, np.arange(2), np.zeros(1), math.inf, NEVER, 1.0, math.inf)
    half = 0.5**11  # in the tenth decimal a five comes last
    losses = np.array([1.0, 5.0, 0.0, 2.0])
    kept = walker._distinct(losses, np.array([[half, half, half + 1e-17, 0.1]]))
    assert set(losses[kept]) == {0.0, 1.0, 2.0}
    kept = walker._distinct(losses, np.array([[half, half, half, 0.1]]))
    assert set(losses[kept]) == {0.0, 2.0}


def test_a_deadline_that_has_passed():
    layered = layer_problem(hard_instance(10, seed=1).with_limits(()))
    found = states.walk(layered, np.zeros(0), target=math.inf, beam=10, scale=1.0, deadline=time.perf_counter() - 1)
    assert found.choices is None
    assert not found.complete


def test_without_rows_the_best_of_each_layer():
    layered = layer_problem(hard_instance(10, seed=1).with_limits(()))
    found = states.walk(layered, np.zeros(0), target=math.inf, beam=NEVER, scale=layered.spread)
    assert found.complete
    assert loss_of(layered, found.choices) == pytest.approx(layered.losses.min(axis=1).sum())
