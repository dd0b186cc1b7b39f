"""Build a cost table: every distinct sub-block of a search space, over batches and lengths, from one kernel source."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

import puzzlebench
from puzzlebench.model import memory
from puzzlebench.model.blocks import SubBlock, sub_block_name
from puzzlebench.model.checks import require_positive_int
from puzzlebench.model.sharding import padded_vocab_size
from puzzlebench.model.space import SearchSpace, distinct_sub_blocks
from puzzlebench.model.spec import ModelSpec
from puzzlebench.profiling.arrays import IntArray
from puzzlebench.profiling.block_costs import PHASES, BlockCosts, Phase
from puzzlebench.profiling.cost_table import CostTable
from puzzlebench.profiling.timings import MEASURED, MODELLED, PROVENANCE, KernelTimings, Timings
from puzzlebench.scenario import Precision
from puzzlebench_profiles.datasheets import Datasheet

DEFAULT_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
DEFAULT_LENGTHS = (128, 512, 1024, 2048, 4096, 8192)
DEFAULT_MAX_NUM_TOKENS = 8192
_MOSTLY = 0.5  # a cell with more elementwise work than this is modelled as a whole
_REPLAYS = 6  # CUDA-graph replays behind each row of the measured kernel tables


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Where a table has cells: every batch with every prompt length, and with every context length."""

    batch_sizes: tuple[int, ...] = DEFAULT_BATCH_SIZES
    prefill_lens: tuple[int, ...] = DEFAULT_LENGTHS
    context_lens: tuple[int, ...] = DEFAULT_LENGTHS

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        for name in ("batch_sizes", "prefill_lens", "context_lens"):
            values: Sequence[int] = getattr(self, name)
            if not values:
                raise ValueError(f"{name} must not be empty")
            for value in values:
                require_positive_int(name, value)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} repeat a value: {', '.join(map(str, values))}")

    def pairs(self, phase: Phase) -> tuple[IntArray, IntArray]:
        """Batch sizes and lengths of every cell of a phase, both (Q,)."""
        lengths = self.prefill_lens if phase == "prefill" else self.context_lens
        batch, length = np.meshgrid(np.array(self.batch_sizes), np.array(lengths), indexing="ij")
        return batch.ravel(), length.ravel()


def scenario_grid(*, batch_size: int, prefill_len: int, decode_len: int) -> Grid:
    """The cells of one scenario: decode at the beginning, in the middle and at the end of the answer."""
    middle, last = prefill_len + decode_len // 2, prefill_len + decode_len
    return Grid(
        batch_sizes=(batch_size,),
        prefill_lens=(prefill_len,),
        context_lens=tuple(sorted({prefill_len, middle, last})),
    )


def build_cost_table(
    kernels: KernelTimings,
    gpu: Datasheet,
    spec: ModelSpec,
    space: SearchSpace,
    precision: Precision,
    grid: Grid,
    *,
    max_num_tokens: int = DEFAULT_MAX_NUM_TOKENS,
) -> CostTable:
    """The cost table of a search space on a GPU.

    Args:
        max_num_tokens: most prompt tokens an engine runs in one step.

    Raises:
        ValueError: the model cannot be split over the GPUs, or a kernel was not measured in these formats.
    """
    require_positive_int("max_num_tokens", max_num_tokens)
    costs = BlockCosts(kernels, spec, precision, max_num_tokens=max_num_tokens)
    attention, ffn = distinct_sub_blocks(space)
    rows: list[pd.DataFrame] = []
    for phase in PHASES:
        batch, length = grid.pairs(phase)
        most_tokens = np.minimum(batch * length, max_num_tokens) if phase == "prefill" else batch
        for part, subs in (("attention", attention), ("ffn", ffn)):
            for sub in subs:
                timings = costs.sub_block(sub, phase, batch, length)
                facts = sub_block_bytes(spec, sub, precision, most_tokens)
                rows.append(_rows(part, sub_block_name(sub), phase, batch, length, timings, facts))
        for end, cost, count in (("embedding", costs.embedding, most_tokens), ("head", costs.head, batch)):
            timings = cost(phase, batch, length)
            rows.append(_rows(end, end, phase, batch, length, timings, end_bytes(spec, end, precision, count)))
    frame = pd.concat(rows, ignore_index=True)
    frame.insert(0, "gpu", gpu.name)
    frame.insert(1, "engine", kernels.engine)
    frame.insert(2, "engine_version", kernels.engine_version)
    for place, (column, value) in enumerate(asdict(precision).items()):
        frame.insert(5 + place, column, value)
    frame["source"] = kernels.source
    return CostTable(frame=frame, metadata=_metadata(kernels, gpu, spec, max_num_tokens))


def _rows(
    part: str, sub_block: str, phase: str, batch: IntArray, length: IntArray, timings: Timings, facts: dict[str, Any]
) -> pd.DataFrame:
    modelled = np.divide(
        timings.modelled_us, timings.latency_us, out=np.zeros(len(batch)), where=timings.latency_us > 0
    )
    provenance = np.where(modelled > _MOSTLY, MODELLED, timings.provenance)
    return pd.DataFrame(
        {
            "part": part,
            "sub_block": sub_block,
            "phase": phase,
            "batch_size": batch,
            "context_len": length,
            "latency_us": timings.latency_us,
            "latency_low_us": timings.low_us,
            "latency_high_us": timings.high_us,
            "samples": np.where(provenance == MEASURED, 0 if sub_block == "no_op" else _REPLAYS, 0),
            "latency_hot_us": np.nan,
            "throttled_share": np.nan,
            "energy_mj": np.nan,
            **facts,
            "modelled_share": modelled,
            "provenance": np.array(PROVENANCE)[provenance],
        }
    )


def sub_block_bytes(spec: ModelSpec, sub: SubBlock, precision: Precision, tokens: IntArray) -> dict[str, Any]:
    """The byte columns of a sub-block's rows with (Q,) tokens in a step; the workspace is by formula."""
    tp = precision.tensor_parallel
    workspace = memory.sub_block_workspace_bytes(spec, sub, tokens=1, tensor_parallel=tp)
    return {
        "weight_bytes": memory.sub_block_weight_bytes(
            spec, sub, weight_dtype=precision.weight_dtype, tensor_parallel=tp
        ),
        "kv_bytes_per_token": memory.sub_block_kv_bytes_per_token(
            spec, sub, kv_dtype=precision.kv_dtype, tensor_parallel=tp
        ),
        "workspace_bytes": workspace * tokens,
    }


def end_bytes(spec: ModelSpec, part: str, precision: Precision, rows: IntArray) -> dict[str, Any]:
    """The byte columns of the embedding's or the head's rows, with (Q,) tokens or sequences."""
    tp = precision.tensor_parallel
    count = memory.embedding_weight_bytes if part == "embedding" else memory.head_weight_bytes
    per_row = memory.ACTIVATION_BYTES * spec.hidden_size
    if part == "head":
        per_row = memory.LOGIT_BYTES * padded_vocab_size(spec, tp)
    return {
        "weight_bytes": count(spec, weight_dtype=precision.weight_dtype, tensor_parallel=tp),
        "kv_bytes_per_token": 0,
        "workspace_bytes": per_row * rows,
    }


def _metadata(kernels: KernelTimings, gpu: Datasheet, spec: ModelSpec, max_num_tokens: int) -> dict[str, Any]:
    return {
        "puzzlebench_version": puzzlebench.__version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": asdict(spec),
        "gpu": asdict(gpu),
        "settings": {"max_num_tokens": max_num_tokens, "composition": "CUDA graphs, no launch gaps"},
        "source": kernels.source,
    }
