"""The Puzzle paper's parent and a model it led to, predicted as served, beside what was published of its 51B sibling.

The children were found by NVIDIA. The catalog holds the architecture of Llama-3_3-Nemotron-Super-49B-v1; the
published throughputs are those of Llama-3.1-Nemotron-51B, another choice of blocks. So ratios should be alike, and not
the same. Nothing is fitted here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from puzzlebench.estimate import Interval
from puzzlebench.model.catalog import load_model
from puzzlebench.profiling.sources import open_kernels
from puzzlebench.scenario import Precision
from puzzlebench.serving.estimating import best_concurrency, open_served
from puzzlebench.serving.workload import Lengths

GPU: Final = "h100_sxm"
ENGINE: Final = "trtllm"
PARENT: Final = "llama-3.1-70b"
CHILD: Final = "llama-3.3-nemotron-super-49b"
LENGTHS: Final = ((128, 128), (128, 1024), (2048, 128), (2048, 2048))
TENSOR_PARALLEL: Final = (1, 2, 4)


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """Tokens per second and GPU that were published for one pair of lengths (H100 SXM, FP8, TensorRT-LLM).

    Attributes:
        sibling, parent: each with the number of GPUs that is best for it.
        parent_alone: the parent on one GPU.
    """

    sibling: float
    parent: float
    parent_alone: float


PUBLISHED: Final[dict[tuple[int, int], Published]] = {
    (128, 1024): Published(sibling=6472, parent=2975, parent_alone=1274),
    (2048, 128): Published(sibling=653, parent=339, parent_alone=301),
}
"""NVIDIA's article "Advancing the Accuracy-Efficiency Frontier with Llama-3.1-Nemotron-51B" (2024-09-23), table 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperPoint:
    """One model at its best number of users. Throughput is tokens generated per second and GPU."""

    users: int
    tokens_per_s: Interval
    tpot_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperRow:
    """Both models at one pair of lengths and number of GPUs; None where the model does not fit."""

    prefill_len: int
    decode_len: int
    tensor_parallel: int
    parent: PaperPoint | None
    child: PaperPoint | None


def paper_rows(*, progress: Callable[[str], None] = lambda _text: None) -> list[PaperRow]:
    """Every pair of lengths and number of GPUs, FP8 weights and cache."""
    found = []
    for prefill_len, decode_len in LENGTHS:
        for tensor_parallel in TENSOR_PARALLEL:
            progress(f"paper: {prefill_len}/{decode_len} tokens on {tensor_parallel} GPUs")
            found.append(
                PaperRow(
                    prefill_len=prefill_len,
                    decode_len=decode_len,
                    tensor_parallel=tensor_parallel,
                    parent=best_point(PARENT, prefill_len, decode_len, tensor_parallel),
                    child=best_point(CHILD, prefill_len, decode_len, tensor_parallel),
                )
            )
    return found


def best_point(model: str, prefill_len: int, decode_len: int, tensor_parallel: int) -> PaperPoint | None:
    """The number of users with the most tokens per second; None where not one sequence fits."""
    spec, architecture = load_model(model)
    gpu, kernels = open_kernels(GPU, ENGINE)
    precision = Precision(weight_dtype="fp8", kv_dtype="fp8", tensor_parallel=tensor_parallel)
    prefill, decode = Lengths(prefill_len, prefill_len), Lengths(decode_len, decode_len)
    served = open_served(kernels, gpu, spec, architecture, precision, prefill, decode)
    try:
        room = served.cache.sequences(prefill_len + decode_len)
    except ValueError:
        return None
    if room < 1:
        return None
    best = best_concurrency(served, prefill, decode)
    return PaperPoint(
        users=round(best.concurrency),
        tokens_per_s=best.per_gpu(best.generated_tokens_per_s),
        tpot_ms=best.tpot_ms.value,
    )


def ratio(child: PaperPoint | None, parent: PaperPoint | None) -> Interval | None:
    """Child over parent, the errors of both taken as independent; None where one of them does not fit."""
    if parent is None or child is None:
        return None
    value = child.tokens_per_s.value / parent.tokens_per_s.value
    width = math.hypot(*(math.log(one.tokens_per_s.high / one.tokens_per_s.value) for one in (child, parent)))
    return Interval(value=value, low=value * math.exp(-width), high=value * math.exp(width))


def best_rows(rows: Sequence[PaperRow], lengths: tuple[int, int]) -> tuple[PaperRow, PaperRow]:
    """(the parent's row, the child's), each on the number of GPUs that is best for it.

    Raises:
        ValueError: one of them fits nowhere.
    """
    mine = [row for row in rows if (row.prefill_len, row.decode_len) == lengths]
    parents = [(row.parent.tokens_per_s.value, row) for row in mine if row.parent]
    children = [(row.child.tokens_per_s.value, row) for row in mine if row.child]
    if not parents or not children:
        raise ValueError(f"one of the models fits on none of {TENSOR_PARALLEL} GPUs")
    parent, child = (max(found, key=lambda pair: pair[0]) for found in (parents, children))
    return parent[1], child[1]
