"""Do blocks add up to models? Whole models timed beside the blocks they are made of, in the same rounds.

The sum of a table's cells is what every search believes in; this is the check of it on the device in hand. Models are
built of the same sub-blocks by the same engine, the parent and heterogeneous children of it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from puzzlebench.measuring.device import Device, fingerprint
from puzzlebench.measuring.live import cell_interval
from puzzlebench.measuring.measure import Report, measure
from puzzlebench.measuring.plan import Effort, Plan, model_workload, plan_workloads
from puzzlebench.measuring.results import Results
from puzzlebench.measuring.workload import Workload, plan_cell
from puzzlebench.model.blocks import Architecture, Block, Linear, NoOp, sub_block_name
from puzzlebench.model.space import SearchSpace
from puzzlebench.model.spec import ModelSpec
from puzzlebench.profiling.block_costs import PHASES, Phase
from puzzlebench.profiling.profile import Grid
from puzzlebench.scenario import Precision

PARENT = "parent"


@dataclass(frozen=True, kw_only=True, slots=True)
class Composition:
    """One model at one size, microseconds; the intervals are of 95 %.

    `error` is (sum of blocks - whole) / whole.
    """

    model: str
    phase: Phase
    batch_size: int
    context_len: int
    whole_us: float
    whole_low_us: float
    whole_high_us: float
    sum_us: float
    sum_low_us: float
    sum_high_us: float
    error: float


def check_composition(
    spec: ModelSpec,
    parent: Architecture,
    space: SearchSpace,
    precision: Precision,
    grid: Grid,
    device: Device,
    engine: str,
    effort: Effort,
    folder: Path,
    report: Report,
) -> tuple[list[Composition], Results]:
    """Time models and their blocks at every size of the grid; resumes in `folder`.

    Every size must run in one step: prompts are not split.

    Raises:
        ValueError: see `measure`.
    """
    models = {PARENT: parent, **heterogeneous_children(space)}
    largest = max(grid.batch_sizes) * max(grid.prefill_lens)
    sizes = [
        (phase, int(batch), int(length)) for phase in PHASES for batch, length in zip(*grid.pairs(phase), strict=True)
    ]
    cells = [
        plan_cell(key, max_num_tokens=largest)
        for size in sizes
        for key in dict.fromkeys(key for model in models.values() for key in cell_keys(model, *size))
    ]
    planned = plan_workloads(spec, parent, precision, cells, cache_bytes=device.last_level_cache_bytes)
    whole = [model_workload(name, _key("model", name, *size)) for size in sizes for name in models]
    plan = Plan(
        spec=spec,
        device=device.torch_name,
        engine=engine,
        precision=precision,
        effort=effort,
        workloads=(*planned, *whole),
        models=models,
        fingerprint=fingerprint(device),
    )
    results = measure(folder, plan, report)
    found = []
    for size in sizes:
        for name, model in models.items():
            checked = _compare(name, model, size, results, max_num_tokens=largest)
            if checked is not None:
                found.append(checked)
    return found, results


def heterogeneous_children(space: SearchSpace) -> Mapping[str, Architecture]:
    """Four architectures from a space: about half the layers changed at random (twice), the smallest real sub-blocks
    everywhere, and every other layer without attention or without FFN.
    """
    layers = space.layers
    drawn = random.Random(0)  # noqa: S311 (the same children every time)

    def mixed() -> Architecture:
        return Architecture(
            blocks=tuple(
                Block(attention=drawn.choice(layer.attention), ffn=drawn.choice(layer.ffn))
                if drawn.random() < 0.5
                else Block(attention=layer.attention[0], ffn=layer.ffn[0])
                for layer in layers
            )
        )

    smallest = Architecture(
        blocks=tuple(
            Block(
                attention=next(
                    (sub for sub in reversed(layer.attention) if not isinstance(sub, Linear | NoOp)), layer.attention[0]
                ),
                ffn=next((sub for sub in reversed(layer.ffn) if not isinstance(sub, Linear | NoOp)), layer.ffn[0]),
            )
            for layer in layers
        )
    )
    dropped = Architecture(
        blocks=tuple(
            Block(attention=layer.attention[0] if place % 2 else NoOp(), ffn=NoOp() if place % 2 else layer.ffn[0])
            for place, layer in enumerate(layers)
        )
    )
    return {"mixed-1": mixed(), "mixed-2": mixed(), "smallest": smallest, "dropped": dropped}


def cell_keys(model: Architecture, phase: Phase, batch_size: int, length: int) -> list[Workload]:
    """The cells that a model is the sum of, layer by layer, between embedding and head."""
    keys = [_key("embedding", "embedding", phase, batch_size, length)]
    for block in model.blocks:
        keys.append(_key("attention", sub_block_name(block.attention), phase, batch_size, length))
        keys.append(_key("ffn", sub_block_name(block.ffn), phase, batch_size, length))
    return [*keys, _key("head", "head", phase, batch_size, length)]


def median_error(found: list[Composition]) -> float:
    """Median absolute error.

    Raises:
        ValueError: nothing was compared.
    """
    if not found:
        raise ValueError("no whole model could be compared")
    return float(np.median([abs(one.error) for one in found]))


def _key(part: str, name: str, phase: Phase, batch_size: int, length: int) -> Workload:
    return Workload(part=part, sub_block=name, phase=phase, batch_size=batch_size, context_len=length)


def _compare(
    name: str, model: Architecture, size: tuple[Phase, int, int], results: Results, *, max_num_tokens: int
) -> Composition | None:
    """One comparison, or None where something is missing (it is in the results' misses)."""
    whole = results.measured.get(_key("model", name, *size))
    cells = [plan_cell(key, max_num_tokens=max_num_tokens) for key in cell_keys(model, *size)]
    if whole is None or any(step.workload not in results.measured for cell in cells for step in cell.steps):
        return None
    # Layers repeat the same measurement, so their errors are taken as one: intervals add up.
    total, low, high = np.sum([cell_interval(cell, results) for cell in cells], axis=0).tolist()
    phase, batch_size, length = size
    return Composition(
        model=name,
        phase=phase,
        batch_size=batch_size,
        context_len=length,
        whole_us=whole.latency_us,
        whole_low_us=whole.low_us,
        whole_high_us=whole.high_us,
        sum_us=total,
        sum_low_us=low,
        sum_high_us=high,
        error=total / whole.latency_us - 1,
    )
