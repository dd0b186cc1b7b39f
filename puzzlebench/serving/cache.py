"""How many sequences the paged cache of one GPU holds. Knows bytes, no time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from puzzlebench.model.blocks import GQA, Architecture
from puzzlebench.model.memory import model_memory, sub_block_kv_bytes_per_token
from puzzlebench.model.parameters import count_sub_blocks
from puzzlebench.model.spec import ModelSpec
from puzzlebench.profiling.arrays import FloatArray
from puzzlebench.scenario import Precision


@dataclass(frozen=True, slots=True)
class PagedCache:
    """Bytes for keys and values on each GPU, and what sequences take of them.

    Attributes:
        capacity_bytes: what weights and workspace leave of the usable memory.
        page_bytes: of one page in the layers with each window, (windows,).
        windows: most tokens that those layers keep, (windows,); infinite where there is none.
        tokens_per_block: tokens of a page.
    """

    capacity_bytes: float
    page_bytes: FloatArray
    windows: FloatArray
    tokens_per_block: int

    def bytes(self, tokens: ArrayLike) -> FloatArray:
        """Of sequences with so many tokens each, the same shape."""
        kept = np.minimum(np.asarray(tokens, dtype=np.float64)[..., None], self.windows)
        return np.asarray(np.ceil(kept / self.tokens_per_block) @ self.page_bytes)

    def sequences(self, tokens: float) -> float:
        """How many sequences with so many tokens fit, as a real number; infinite for a model without attention."""
        each = float(self.bytes(tokens))
        return self.capacity_bytes / each if each else float("inf")


def paged_cache(
    spec: ModelSpec,
    architecture: Architecture,
    precision: Precision,
    *,
    usable_bytes: int,
    max_num_tokens: int,
    tokens_per_block: int,
) -> PagedCache:
    """The cache of a model on each GPU of its group.

    Args:
        usable_bytes: of one GPU's memory, for weights, workspace and cache.
        max_num_tokens: tokens of the largest iteration, which the workspace must hold.

    Raises:
        ValueError: weights and workspace leave nothing, or the model cannot be split over the GPUs.
    """
    rest = model_memory(
        spec,
        architecture,
        batch_size=1,
        prefill_len=max_num_tokens,
        max_num_tokens=max_num_tokens,
        context_len=max_num_tokens,
        weight_dtype=precision.weight_dtype,
        kv_dtype=precision.kv_dtype,
        tensor_parallel=precision.tensor_parallel,
        tokens_per_block=tokens_per_block,
    )
    capacity = usable_bytes - rest.weights_bytes - rest.workspace_bytes
    if capacity <= 0:
        gib = 2**30
        raise ValueError(
            f"{spec.name} does not fit: weights take {rest.weights_bytes / gib:.1f} GiB and workspace "
            f"{rest.workspace_bytes / gib:.1f} of {usable_bytes / gib:.1f} usable on each GPU; use fewer bytes per "
            "weight or more GPUs (--tp)"
        )
    windows: dict[float, float] = {}
    for sub, count in count_sub_blocks(architecture).items():
        if isinstance(sub, GQA):
            window = float(sub.sliding_window or np.inf)
            per_token = sub_block_kv_bytes_per_token(
                spec, sub, kv_dtype=precision.kv_dtype, tensor_parallel=precision.tensor_parallel
            )
            windows[window] = windows.get(window, 0.0) + count * per_token * tokens_per_block
    return PagedCache(capacity, np.array(list(windows.values())), np.array(list(windows)), tokens_per_block)
