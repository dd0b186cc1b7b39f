"""A live table beside the cost model's, cell by cell: how far our engines are from the shipped TensorRT-LLM kernels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from puzzlebench.model.blocks import parse_sub_block
from puzzlebench.model.space import LayerCandidates, SearchSpace
from puzzlebench.model.spec import ModelSpec
from puzzlebench.profiling.cost_table import CostTable
from puzzlebench.profiling.profile import Grid, build_cost_table
from puzzlebench.profiling.sources import open_kernels
from puzzlebench.scenario import Precision

_CELL = ["part", "sub_block", "phase", "batch_size", "context_len"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """Measured latency over the cost model's, over the cells of one part in one phase."""

    part: str
    phase: str
    cells: int
    median_ratio: float
    p10_ratio: float
    p90_ratio: float


def compare_with_kernels(table: CostTable, engine: str = "trtllm") -> list[Ratio]:
    """Ratios by part and phase.

    Raises:
        ValueError: no kernels were measured on the table's GPU.
    """
    frame = table.frame
    first = frame.iloc[0]
    sheet, kernels = open_kernels(str(first["gpu"]), engine)
    facts = table.metadata["model"]
    spec = ModelSpec(**{**facts, "sliding_windows": tuple(facts["sliding_windows"])})
    precision = Precision(
        weight_dtype=first["weight_dtype"],
        kv_dtype=first["kv_dtype"],
        tensor_parallel=int(first["tensor_parallel"]),
    )
    modelled = build_cost_table(
        kernels,
        sheet,
        spec,
        _space(frame),
        precision,
        _grid(frame),
        max_num_tokens=table.metadata["settings"]["max_num_tokens"],
    )
    both = frame.merge(modelled.frame[[*_CELL, "latency_us"]], on=_CELL, suffixes=("", "_kernels"))
    both = both[both["latency_us"] > 0]
    both = both.assign(ratio=both["latency_us"] / both["latency_us_kernels"])
    found = []
    for key, rows in both.groupby(["part", "phase"], sort=False):
        part, phase = map(str, key)
        ratios = rows["ratio"].to_numpy()
        found.append(
            Ratio(
                part=part,
                phase=phase,
                cells=len(rows),
                median_ratio=float(np.median(ratios)),
                p10_ratio=float(np.percentile(ratios, 10)),
                p90_ratio=float(np.percentile(ratios, 90)),
            )
        )
    return found


def _space(frame: pd.DataFrame) -> SearchSpace:
    """A one-layer space of the table's sub-blocks."""
    names = {part: frame.loc[frame["part"] == part, "sub_block"].unique() for part in ("attention", "ffn")}
    attention = tuple(parse_sub_block("attention", name) for name in names["attention"])
    ffn = tuple(parse_sub_block("ffn", name) for name in names["ffn"])
    return SearchSpace(layers=(LayerCandidates(attention=attention, ffn=ffn),))


def _grid(frame: pd.DataFrame) -> Grid:
    def sizes(column: str, phase: str | None = None) -> tuple[int, ...]:
        rows = frame if phase is None else frame[frame["phase"] == phase]
        return tuple(int(value) for value in sorted(rows[column].unique()))

    return Grid(
        batch_sizes=sizes("batch_size"),
        prefill_lens=sizes("context_len", "prefill"),
        context_lens=sizes("context_len", "decode"),
    )
