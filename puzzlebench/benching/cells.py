"""The cells of a session from its samples: which of them were calm, and their median. Knows no benchmark."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

_CALM_QUANTILE: Final = 0.05
_LEAST_FOR_INTERVAL: Final = 3  # the range of two samples says nothing


def calm_cells(
    samples: Mapping[str, list[list[float]]],
    throttled: Mapping[str, list[list[float]]] | None = None,
    on_gpu: Collection[str] = (),
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The medians of calm samples, with their intervals within this process, which say nothing of the next one; and all
    samples by visit.

    What is over 4 % slower than a cell's own calmest twentieth was interrupted, or had a neighbour. On a calm machine
    that is next to nothing. With three quarters of two processors taken by others, medians of all samples of
    two sessions side by side differed by 15 % (typical cell), those of the calm ones by 1.8 %. `samples` of `taken`
    says how many were calm. Work of a GPU has no such neighbours, so nothing is set aside there.

    Args:
        throttled: visits while the GPU was throttled: a cell that has no others is made of them, and marked.
        on_gpu: names of work that a GPU times itself.
    """
    import numpy as np

    from puzzlebench.measuring.disturbance import TOLERANCE
    from puzzlebench.measuring.statistics import median_interval

    for name, good in samples.items():
        visits = good or (throttled or {}).get(name, [])
        taken = np.array([value for visited in visits for value in visited])
        if not len(taken):
            continue
        edge = np.inf if name in on_gpu else np.quantile(taken, _CALM_QUANTILE) * (1 + TOLERANCE)
        calm = taken[taken <= edge]
        median, low, high = median_interval(calm)
        known = len(calm) >= _LEAST_FOR_INTERVAL
        found = {"unit": "us", "median": median, "low": low if known else None, "high": high if known else None}
        found |= {"samples": len(calm), "taken": len(taken)} | ({} if good else {"throttled": True})
        yield name, {**found, "visits": visits}
