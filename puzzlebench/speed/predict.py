"""What a cost table says of a whole model's speed in one scenario. Reads a table; knows no tensors and no clock.

The sums and what lies between two lengths of the table are those of a search (`searching.cells`), so that a prediction
here is what a search believed in.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from puzzlebench.estimate import Interval
from puzzlebench.model.blocks import Architecture, sub_block_name
from puzzlebench.model.spec import ModelSpec, check_architecture, same_shapes, spec_facts
from puzzlebench.profiling.arrays import FloatArray
from puzzlebench.profiling.cost_table import CostTable
from puzzlebench.searching.cells import EMBEDDING, HEAD, SubBlockKey, missing_cell, read_cells, scenario_costs, spec_of
from puzzlebench.searching.scenarios import ServingScenario


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedScenario:
    """`batch_size` prompts of `prefill_len` tokens, each answered with `decode_len` tokens, all at the same time."""

    batch_size: int
    prefill_len: int
    decode_len: int

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        for name, least in (("batch_size", 1), ("prefill_len", 1), ("decode_len", 2)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """How fast a model is, predicted or measured; with 95 % intervals.

    Attributes:
        prefill_ms: from the prompts to the first token of every sequence.
        tpot_ms: mean time per token after the first.
        generate_ms: from the prompts to the last token.
        generated_tokens_per_s: of the whole batch over prefill and decode.
    """

    prefill_ms: Interval
    tpot_ms: Interval
    generate_ms: Interval
    generated_tokens_per_s: Interval


def predict(table: CostTable, spec: ModelSpec, architecture: Architecture, scenario: SpeedScenario) -> Speed:
    """The sum of the table's cells; errors of blocks are added as if they were one (see `estimate`).

    Raises:
        ValueError: the table is of another model, or lacks a cell, the batch size or lengths that reach the scenario's.
    """
    check_same_shapes(table, spec)
    check_architecture(spec, architecture)
    cells = read_cells(table)
    counts: Counter[SubBlockKey] = Counter((EMBEDDING, HEAD))
    for block in architecture.blocks:
        counts["attention", sub_block_name(block.attention)] += 1
        counts["ffn", sub_block_name(block.ffn)] += 1
    places = cells.places(counts)
    if (places < 0).any():
        part, name = list(counts)[int(np.argmin(places))]
        raise ValueError(f"the cost table has no cells for {part} {name}; profile a space that holds it")
    asked = ServingScenario(name="speed", prefill_len=scenario.prefill_len, decode_len=scenario.decode_len)
    costs = scenario_costs(cells, scenario.batch_size, asked)
    missing = missing_cell(cells, scenario.batch_size, costs, places)
    if missing is not None:
        raise ValueError(f"the cost table has {missing[1]}")
    numbers = np.array(list(counts.values()), dtype=np.float64)
    prefill, decode = (1e3 * numbers @ seconds[places] for seconds in (costs.prefill, costs.decode))
    generate = _interval(prefill + decode)
    return Speed(
        prefill_ms=_interval(prefill),
        tpot_ms=_interval(decode / asked.steps),
        generate_ms=generate,
        generated_tokens_per_s=generate.scaled(1e-3).rate(scenario.batch_size * scenario.decode_len),
    )


def check_same_shapes(table: CostTable, spec: ModelSpec) -> None:
    """Raise ValueError unless the table is of a model of these shapes, whatever its name."""
    stated = spec_of(table)
    if not same_shapes(spec_facts(stated), spec_facts(spec)):
        raise ValueError(
            f"the cost table is of {stated.name}, whose shapes are not those of {spec.name}; profile that model"
        )


def _interval(values: FloatArray) -> Interval:
    return Interval(value=float(values[0]), low=float(values[1]), high=float(values[2]))
