"""Walk through the layers keeping every partial solution that could still lead to a better whole one.

A state is a choice for each of the layers so far. It is dropped when some lower bound on its best completion reaches
the target, or when it leaves the other layers less room than they need. Bounds are Lagrangian, from several price
vectors at once; new ones are made on the way, fitted to the room that typical states have left. When the states kept
are more than the beam is wide the best are taken, and the walk proves nothing but may find something.

Legend for shapes: L layers, J choices, M rows, K price vectors, S states.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puzzlebench_search.dual import maximise_bound, reduced_losses
from puzzlebench_search.layered import Layered
from puzzlebench_search.problem import FloatArray, IntArray

_REFIT_AT = 300
_REFIT_GROWTH = 2.5
"""New prices are made whenever there are this many times more states than the last time."""
_REFIT_PRICES = 16
_REFIT_HEAT = (1e-3,)
_CHUNK = 4_096  # states at a time, so that what is made of them stays in the processor's cache
_MERGE_AT = 400
_MERGE_WORTH = 0.05
_MERGE_PAUSE = 4
"""Layers before merging is tried again where it merged next to nothing."""
_EQUAL = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class Walk:
    """The outcome of a walk.

    Attributes:
        choices: of the best whole solution below the target, a place in each layer's choices (L,); None without one.
        complete: nothing was dropped for want of beam: without a solution there is none below the target.
        states: the most there were at once.
    """

    choices: IntArray | None
    complete: bool
    states: int


def walk(
    layered: Layered, prices: FloatArray, *, target: float, beam: int, scale: float, deadline: float = math.inf
) -> Walk:
    """Search below a target.

    Args:
        prices: (M,), the best for the whole.
        target: only solutions with a loss below this are looked for; may be infinite.
        beam: the most states that are kept.
        deadline: of time.perf_counter(), at which it gives up.
    """
    reduced = reduced_losses(layered.losses, layered.uses, prices)
    there = layered.there
    alternatives = np.where(there, reduced, 0.0).sum(axis=1) / np.maximum(there.sum(axis=1) - 1, 1)
    order = np.argsort(-alternatives, kind="stable")  # layers that are nearly settled first: states grow late
    walker = _Walker(layered, order, prices, target, beam, scale, deadline)
    for place in range(len(order)):
        if not walker.step(place):
            return Walk(choices=None, complete=walker.complete, states=walker.peak)
    found = walker.best() if walker.loss.min() < target else None
    return Walk(choices=found, complete=walker.complete, states=walker.peak)


class _Walker:
    """The states after some of the layers: loss (S,), use (M, S), and loss + price . use for every price (K, S)."""

    def __init__(
        self,
        layered: Layered,
        order: IntArray,
        prices: FloatArray,
        target: float,
        beam: int,
        scale: float,
        deadline: float,
    ) -> None:
        self.losses, self.uses = layered.losses[order], layered.uses[order]
        self.counts = layered.there[order].sum(axis=1)
        self.order, self.room, self.target, self.beam, self.scale = order, layered.room, target, beam, scale
        self.deadline = deadline
        least = np.where(layered.there[order][:, :, None], self.uses, np.inf).min(axis=1)
        self.needed = np.vstack([least[::-1].cumsum(axis=0)[::-1], np.zeros((1, self.uses.shape[2]))])  # (L + 1, M)
        self.loss = np.zeros(1)
        self.use = np.zeros((self.uses.shape[2], 1))
        self.complete, self.peak, self.refit_at, self.merge_after = True, 1, _REFIT_AT, 0
        self.trail: list[tuple[NDArray[np.int32], NDArray[np.int16]]] = []
        self.base = prices[None]
        self._set_prices(self.base, 0)

    def _set_prices(self, prices: FloatArray, place: int) -> None:
        self.prices = prices
        best = (self.losses[place:, :, None] + self.uses[place:] @ prices.T).min(axis=1)  # (L - place, K)
        rest = np.zeros((len(self.losses) + 1, len(prices)))
        rest[place:-1] = best[::-1].cumsum(axis=0)[::-1]
        doubt = prices.sum(axis=1) * (_EQUAL + 4 * len(self.losses) * np.finfo(np.float64).eps)  # uses may be off by it
        self.rest = rest - prices @ self.room - doubt
        self.priced = self.loss[None] + prices @ self.use

    def _refit(self, place: int) -> None:
        picked = np.linspace(0, len(self.loss) - 1, _REFIT_PRICES).astype(np.int64)
        rooms = self.room[None] - self.use[:, picked].T
        fitted = maximise_bound(
            self.losses[place:],
            self.uses[place:],
            rooms,
            start=self.base[0],
            scale=self.scale,
            temperatures=_REFIT_HEAT,
        )
        self._set_prices(np.vstack([self.base, fitted]), place)
        self.refit_at = int(_REFIT_GROWTH * len(self.loss))
        self._keep(np.flatnonzero((self.priced + self.rest[place][:, None]).max(axis=0) < self.target))

    def _keep(self, states: IntArray) -> None:
        if len(states) != len(self.loss):
            self.loss, self.use, self.priced = self.loss[states], self.use[:, states], self.priced[:, states]
            source, choice = self.trail[-1]
            self.trail[-1] = (source[states], choice[states])

    def step(self, place: int) -> bool:
        """Choose for one more layer; False when no state or no time is left."""
        if len(self.loss) >= self.refit_at and place < len(self.losses) - 1 and self.uses.shape[2]:
            self._refit(place)
            if not len(self.loss):
                return False
        sources, choices, bounds = [], [], []
        spare = (self.room - self.needed[place + 1])[:, None] + _EQUAL
        added = self.losses[place][:, None] + self.uses[place] @ self.prices.T  # (J, K)
        toward = added + self.rest[place + 1]  # (J, K)
        for begin in range(0, len(self.loss), _CHUNK):
            if time.perf_counter() > self.deadline:
                self.complete = False
                return False
            use, priced = self.use[:, begin : begin + _CHUNK], self.priced[:, begin : begin + _CHUNK]
            for choice in range(int(self.counts[place])):
                bound = (priced + toward[choice][:, None]).max(axis=0)
                kept = np.flatnonzero(bound < self.target)
                fits = (use[:, kept] <= spare - self.uses[place, choice][:, None]).all(axis=0)
                kept = kept[fits]
                sources.append(kept + begin)
                choices.append(np.full(len(kept), choice, dtype=np.int64))
                bounds.append(bound[kept])
        source, chosen, bound = np.concatenate(sources), np.concatenate(choices), np.concatenate(bounds)
        loss = self.loss[source] + self.losses[place, chosen]
        use = self.use[:, source] + self.uses[place, chosen].T
        kept = self._distinct(loss, use)
        if len(kept) > self.beam:
            self.complete = False
            kept = kept[np.argpartition(bound[kept], self.beam)[: self.beam]]
        source, chosen = source[kept], chosen[kept]
        self.loss, self.use = loss[kept], use[:, kept]
        self.priced = self.priced[:, source] + added[chosen].T
        self.trail.append((source.astype(np.int32), chosen.astype(np.int16)))
        self.peak = max(self.peak, len(kept))
        return len(kept) > 0

    def _distinct(self, loss: FloatArray, use: FloatArray) -> IntArray:
        """The best of the states that use the same: layers that cost alike make many."""
        everything = np.arange(len(loss))
        self.merge_after -= 1
        if self.merge_after > 0 or len(loss) < _MERGE_AT:
            return everything
        weights = np.linspace(1.0, 2.0, len(use)) ** 0.5
        keys = np.round(weights @ use, 10)
        order = np.lexsort((loss, keys))
        repeats = np.zeros(len(order), dtype=bool)
        repeats[1:] = (np.abs(np.diff(use[:, order], axis=1)) <= _EQUAL).all(axis=0)
        repeats[1:] &= np.diff(keys[order]) == 0  # the next key begins with the best of its own
        if repeats.mean() < _MERGE_WORTH:
            self.merge_after = _MERGE_PAUSE
            return everything
        return order[~repeats]

    def best(self) -> IntArray:
        """The choices of the best state, layer by layer in the problem's order."""
        state = int(np.argmin(self.loss))
        chosen = np.zeros(len(self.order), dtype=np.int64)
        for place in range(len(self.order) - 1, -1, -1):
            source, choice = self.trail[place]
            chosen[self.order[place]] = choice[state]
            state = int(source[state])
        return chosen
