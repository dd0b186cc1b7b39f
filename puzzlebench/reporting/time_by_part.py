"""Where an architecture's time goes: attention, FFN, embedding and head, summed from a cost table."""

from __future__ import annotations

from collections import Counter
from typing import Final

import numpy as np

from puzzlebench.estimate import Interval
from puzzlebench.model.blocks import Architecture, sub_block_name
from puzzlebench.profiling.block_costs import Phase
from puzzlebench.profiling.cost_table import CostTable
from puzzlebench.searching.cells import (
    EMBEDDING,
    HEAD,
    SubBlockKey,
    missing_cell,
    read_cells,
    scenario_costs,
)
from puzzlebench.searching.scenarios import ServingScenario

PARTS: Final = ("attention", "ffn", "ends")
"""What times are added up by; "ends" are embedding and head."""
TITLES: Final = {"attention": "attention", "ffn": "FFN", "ends": "embedding and head"}


def time_by_part(
    table: CostTable, architecture: Architecture, scenario: ServingScenario, batch_size: int
) -> dict[Phase, dict[str, Interval]]:
    """Seconds of the whole batch by phase and part, as the search counts them; decode is all steps together.

    Raises:
        ValueError: the table lacks a cell, the batch size, or lengths around the scenario's.
    """
    cells = read_cells(table)
    costs = scenario_costs(cells, batch_size, scenario)
    counts: Counter[SubBlockKey] = Counter((EMBEDDING, HEAD))
    for block in architecture.blocks:
        counts["attention", sub_block_name(block.attention)] += 1
        counts["ffn", sub_block_name(block.ffn)] += 1
    places = cells.places(counts)
    if (unknown := np.flatnonzero(places < 0)).size:
        raise ValueError(f"the cost table has no cell for {' '.join(list(counts)[unknown[0]])}")
    if missing := missing_cell(cells, batch_size, costs, places):
        raise ValueError(f"the cost table has {missing[1]}")
    times: dict[Phase, dict[str, Interval]] = {}
    by_phase: tuple[tuple[Phase, np.ndarray], ...] = (("prefill", costs.prefill), ("decode", costs.decode))
    for phase, seconds in by_phase:
        sums = {part: np.zeros(3) for part in PARTS}
        for (part, _), count, place in zip(counts, counts.values(), places.tolist(), strict=True):
            sums[part if part in sums else "ends"] += count * seconds[place]
        times[phase] = {
            part: Interval(value=float(total[0]), low=float(total[1]), high=float(total[2]))
            for part, total in sums.items()
        }
    return times


def whole(parts: dict[str, Interval]) -> Interval:
    """All parts together, errors added as if they were one, as in `estimate`."""
    return Interval(
        value=sum(part.value for part in parts.values()),
        low=sum(part.low for part in parts.values()),
        high=sum(part.high for part in parts.values()),
    )
