"""Several good solutions that differ: each the best among those that share at most a part of the layers with every one
before it (Puzzle, arXiv 2411.19146, section 4: sum of x y <= alpha L).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from puzzlebench_search.problem import FloatArray, Limit, Problem


def apart_from(problem: Problem, others: Sequence[Sequence[str]], alpha: float) -> Problem:
    """The problem, with solutions only that share at most `alpha` of the layers with each of the others.

    Args:
        others: names of the choices of earlier solutions.
        alpha: from 0 to 1; 1 allows the same again.

    Raises:
        ValueError: alpha is out of range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 to 1, not {alpha}")
    for number, other in enumerate(others, start=1):
        chosen = set(other)
        shared: FloatArray = np.array([name in chosen for name in problem.names], dtype=np.float64) * problem.spans
        most = math.floor(alpha * problem.num_layers + 1e-9)
        problem = problem.with_resource(_row(number), shared, Limit(resource=_row(number), high=float(most)))
    return problem


def _row(number: int) -> str:
    return f"layers shared with solution {number}"


def shared_layers(problem: Problem, one: Sequence[str], other: Sequence[str]) -> int:
    """How many layers two solutions have in common."""
    spans = dict(zip(problem.names, problem.spans.tolist(), strict=True))
    return sum(int(spans[name]) for name in set(one) & set(other))
