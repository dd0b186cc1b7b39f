"""Throughputs that TensorRT-LLM's own documentation publishes, and the same benchmark predicted.

Never fitted. The figures (profiles/puzzlebench_profiles/serving/published.csv) are those of the page "perf-overview" of
TensorRT-LLM 1.0: tokens generated per second of the whole group, all requests queued at once (`trtllm-bench
throughput`), lengths fixed, ModelOpt's fp8 checkpoints. The page names the number of requests; batch and token limits
are what trtllm-bench works out for itself, and the share of free memory for the cache is 0.90 or 0.95.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

from puzzlebench.model.catalog import load_model
from puzzlebench.model.dtypes import KVDtype, WeightDtype
from puzzlebench.profiling.sources import open_kernels
from puzzlebench.scenario import Precision
from puzzlebench.serving.iterations import Overheads
from puzzlebench.serving.served_model import ServedModel
from puzzlebench.serving.workload import SCHEDULERS, Lengths, Scheduler, Workload
from puzzlebench_profiles import PUBLISHED_FILE

FREE_MEMORY_SHARE: Final = 0.95
"""Of what weights leave, for the cache: what the page says it used in many cases; 0.90 in the others."""
_MOST_SEQUENCES: Final = 4096
_MOST_TOKENS: Final = 32768


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedRun:
    """One figure."""

    model: str
    gpu: str
    engine: str
    engine_version: str
    weight_dtype: WeightDtype
    kv_dtype: KVDtype
    tensor_parallel: int
    prefill_len: int
    decode_len: int
    requests: int
    generated_tokens_per_s: float

    @property
    def precision(self) -> Precision:
        """Number formats and GPUs."""
        return Precision(weight_dtype=self.weight_dtype, kv_dtype=self.kv_dtype, tensor_parallel=self.tensor_parallel)

    @property
    def workload(self) -> Workload:
        """All requests at once."""
        return Workload(
            prefill=Lengths(self.prefill_len, self.prefill_len),
            decode=Lengths(self.decode_len, self.decode_len),
            concurrency=self.requests,
        )


@cache
def published_runs() -> tuple[PublishedRun, ...]:
    """The figures that ship with the package."""
    numbers = ("tensor_parallel", "prefill_len", "decode_len", "requests")
    with PUBLISHED_FILE.open(newline="", encoding="utf-8") as file:
        return tuple(
            PublishedRun(
                **{
                    name: int(value) if name in numbers else float(value) if name.startswith("generated") else value
                    for name, value in row.items()
                }  # type: ignore[arg-type]
            )
            for row in csv.DictReader(file)
        )


def bench_scheduler(cached_sequences: float, prefill_len: int, decode_len: int) -> Scheduler:
    """The limits that trtllm-bench 1.x sets itself, from how many whole sequences the cache holds.

    Source of the rule: `tensorrt_llm/bench/build/tuning.py` and `bench/benchmark/utils/general.py`. Both limits are
    rounded up to be a little optimistic; an iteration has place for a whole prompt beside a full batch.
    """
    sequences = min(cached_sequences, _MOST_SEQUENCES)
    tokens = min(sequences * (1 + prefill_len / decode_len), _MOST_TOKENS)
    step = 32 if sequences < 256 else 128 if sequences < 1024 else 256
    batch = step * math.ceil(sequences / step)
    token_step = 256 if tokens < 4096 else 512 if tokens < 8192 else 1024
    most = token_step * math.ceil(tokens / token_step)
    batch = max(64, batch)
    most = max(2048, most, prefill_len + batch)
    return replace(SCHEDULERS["trtllm"], max_batch_size=batch, max_num_tokens=most)


def predict_published(run: PublishedRun, overheads: Overheads) -> float:
    """Tokens generated per second over the whole benchmark, filling and draining included; simulated."""
    spec, architecture = load_model(run.model)
    gpu, kernels = open_kernels(run.gpu, run.engine)

    def opened(scheduler: Scheduler) -> ServedModel:
        return ServedModel(
            kernels=kernels,
            gpu=gpu,
            spec=spec,
            architecture=architecture,
            precision=run.precision,
            scheduler=scheduler,
            longest=(run.prefill_len, run.decode_len),
            overheads=overheads,
            memory_fraction=FREE_MEMORY_SHARE,
        )

    room = opened(SCHEDULERS[run.engine]).cache.sequences(run.prefill_len + run.decode_len)
    scheduler = bench_scheduler(room, run.prefill_len, run.decode_len)
    return opened(scheduler).simulate(run.workload, requests=run.requests).generated_tokens_per_s
