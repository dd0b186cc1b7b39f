"""The best solution by trying every one: slow, and too simple to be wrong. For small cases and as a referee."""

from __future__ import annotations

import math
from collections.abc import Iterator

from puzzlebench_search.problem import Problem, Solution, broken_limits, make_solution


def count_solutions(problem: Problem) -> int:
    """How many sets of choices cover every layer exactly once, limits aside."""
    ways = [0] * problem.num_layers + [1]
    for layer, span in zip(problem.layers[::-1].tolist(), problem.spans[::-1].tolist(), strict=True):
        ways[layer] += ways[layer + span]
    return ways[0]


def every_solution(problem: Problem) -> Iterator[tuple[int, ...]]:
    """Those sets, as places in the problem's choices."""
    starting: list[list[int]] = [[] for _ in range(problem.num_layers)]
    for place, layer in enumerate(problem.layers.tolist()):
        starting[layer].append(place)
    spans = problem.spans.tolist()

    def extend(chosen: tuple[int, ...], reached: int) -> Iterator[tuple[int, ...]]:
        if reached == problem.num_layers:
            yield chosen
            return
        for place in starting[reached]:
            yield from extend((*chosen, place), reached + spans[place])

    return extend((), 0)


def brute_force(problem: Problem, limit: int = 2_000_000) -> Solution | None:
    """The best solution that keeps every limit; None if none does. Of equal ones the first.

    Args:
        limit: refuse more combinations than these; a million take about 3 seconds.

    Raises:
        ValueError: there are more.
    """
    count = count_solutions(problem)
    if count > limit:
        raise ValueError(f"there are {count:.3g} combinations, more than {limit}: use solve")
    losses = problem.losses.tolist()
    best, least = None, math.inf
    for choices in every_solution(problem):
        loss = math.fsum([losses[choice] for choice in choices])
        if loss < least:
            solution = make_solution(problem, choices)
            if not broken_limits(problem, solution):
                best, least = solution, loss
    return best
