"""Rounds of a measurement: who is visited in which order, and what a visit takes. Knows stopwatches and no devices."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from puzzlebench.measuring.stopwatch import CacheState, Stopwatch

Item = TypeVar("Item", bound=Hashable)

_BURST = 2


def shuffled_rounds(
    items: list[Item], seed: int | str, goes_on: Callable[[int], bool], *, first: int = 0
) -> Iterator[tuple[int, list[Item]]]:
    """(number, order) of each round: every item once, in a new random order, so that a drift of the machine falls on
    all alike. The garbage collector is off until the last one: a collection inside a sample would be timed.

    Args:
        items: may become fewer between rounds.
        goes_on: asked with the number of a round whether to begin it.
    """
    order = random.Random(seed)  # noqa: S311 (an order, not a secret)
    gc.collect()
    gc.disable()
    try:
        number = first
        while items and goes_on(number):
            order.shuffle(items)
            yield number, list(items)
            number += 1
    finally:
        gc.enable()


def visit(stopwatch: Stopwatch, state: CacheState, *, long_us: float) -> list[float]:
    """The samples of one visit in microseconds: few, because visits far apart say more than samples side by side.

    Args:
        long_us: a stretch this long is taken once; a shorter one is run once before, unkept, to bring code and branch
            history back.
    """
    before = time.perf_counter_ns()
    first = stopwatch.sample(state)
    if (time.perf_counter_ns() - before) / 1e3 >= long_us:
        return [first]
    return [stopwatch.sample(state) for _ in range(_BURST)]
