"""Predicted against measured time per output token of a served model under in-flight batching.

The prediction has no fitted parameter. With concurrency C, prompts of P and answers of D tokens, at most B sequences
that fit in memory (B <= C), every sequence decodes D steps, and the B - 1 others are each prefilled once meanwhile:

    time per output token = decode step (B sequences, P + D/2 tokens each) + (B - 1) / D x prefill (one prompt)

Host-side scheduling and sampling are not counted. Queueing (B < C) lengthens the wait for the first token only.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from functools import cache

import numpy as np

from puzzlebench.estimate import DEFAULT_MEMORY_FRACTION
from puzzlebench.model.blocks import Architecture
from puzzlebench.model.catalog import load_model
from puzzlebench.model.dtypes import KVDtype
from puzzlebench.model.memory import largest_batch
from puzzlebench.model.parameters import count_sub_blocks
from puzzlebench.profiling.block_costs import BlockCosts, Phase
from puzzlebench.profiling.profile import DEFAULT_MAX_NUM_TOKENS
from puzzlebench.profiling.sources import open_kernels
from puzzlebench.profiling.timings import KernelTimings
from puzzlebench.scenario import Precision
from puzzlebench.validation.held_out import ErrorSummary
from puzzlebench_profiles import SERVING_FILE
from puzzlebench_profiles.datasheets import Datasheet

MODEL = "llama-3.1-70b"
_KV_DTYPE: dict[str, KVDtype] = {"trtllm": "fp8", "vllm": "bf16"}  # what each engine picks for an fp8 checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingError:
    """Error of the predicted time per output token over the runs of one GPU, engine, split and tensor parallelism."""

    gpu: str
    engine: str
    split: str
    tensor_parallel: int | None
    error: ErrorSummary


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingRun:
    """One measured run of the fp8 model under in-flight batching."""

    gpu: str
    engine: str
    split: str
    tensor_parallel: int
    prefill_len: int
    decode_len: int
    concurrency: int
    tpot_ms: float


def serving_runs() -> list[ServingRun]:
    """The measured runs that ship with the package."""
    with SERVING_FILE.open(newline="") as file:
        return [
            ServingRun(
                gpu=row["gpu"],
                engine=row["engine"],
                split=row["split"],
                tensor_parallel=int(row["tensor_parallel"]),
                prefill_len=int(row["prefill_len"]),
                decode_len=int(row["decode_len"]),
                concurrency=int(row["concurrency"]),
                tpot_ms=float(row["tpot_ms"]),
            )
            for row in csv.DictReader(file)
        ]


def serving_errors(runs: list[ServingRun]) -> list[ServingError]:
    """Errors by GPU, engine and split: over all runs, then by tensor parallelism."""
    groups: dict[tuple[str, str, str, int | None], list[float]] = defaultdict(list)
    for run in runs:
        error = predict_tpot_ms(run) / run.tpot_ms - 1
        for tensor_parallel in (None, run.tensor_parallel):
            groups[run.gpu, run.engine, run.split, tensor_parallel].append(error)
    return [
        ServingError(
            gpu=key[0],
            engine=key[1],
            split=key[2],
            tensor_parallel=key[3],
            error=ErrorSummary.of(np.array(groups[key])),
        )
        for key in sorted(groups, key=lambda key: (key[3] is not None, *key[:3], key[3] or 0))
    ]


def predict_tpot_ms(run: ServingRun) -> float:
    """Time per output token by the formula of this module."""
    spec, architecture = load_model(MODEL)
    gpu, kernels = _open(run.gpu, run.engine)
    precision = Precision(weight_dtype="fp8", kv_dtype=_KV_DTYPE[run.engine], tensor_parallel=run.tensor_parallel)
    fits = largest_batch(
        spec,
        architecture,
        capacity_bytes=int(DEFAULT_MEMORY_FRACTION * gpu.memory_bytes),
        prefill_len=run.prefill_len,
        context_len=run.prefill_len + run.decode_len,
        weight_dtype=precision.weight_dtype,
        kv_dtype=precision.kv_dtype,
        tensor_parallel=precision.tensor_parallel,
    )
    sequences = min(run.concurrency, fits)
    costs = BlockCosts(kernels, spec, precision, max_num_tokens=DEFAULT_MAX_NUM_TOKENS)
    step = _model_ms(costs, architecture, "decode", sequences, run.prefill_len + run.decode_len // 2)
    prefill = _model_ms(costs, architecture, "prefill", 1, run.prefill_len)
    return step + (sequences - 1) / run.decode_len * prefill


@cache
def _open(gpu: str, engine: str) -> tuple[Datasheet, KernelTimings]:
    return open_kernels(gpu, engine)


def _model_ms(costs: BlockCosts, architecture: Architecture, phase: Phase, batch: int, length: int) -> float:
    at = np.array([batch]), np.array([length])
    blocks = sum(
        count * costs.sub_block(sub, phase, *at).latency_us[0] for sub, count in count_sub_blocks(architecture).items()
    )
    ends = costs.embedding(phase, *at).latency_us[0] + costs.head(phase, *at).latency_us[0]
    return float(blocks + ends) / 1e3
