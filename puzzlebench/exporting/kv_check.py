"""Whether an engine's key-value cache takes, layer by layer, what puzzlebench counts for it.

Knows what engine scripts answer under `kv_cache` (see `verify`) and the formulas of `model.memory`; it knows no engine.
What an engine adds (pages rounded up, layers padded to the size of others) is shown as it is, not corrected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from puzzlebench.model.blocks import Architecture, sub_block_name
from puzzlebench.model.checks import require_positive_int, require_whole_number
from puzzlebench.model.dtypes import KVDtype
from puzzlebench.model.memory import kv_cache_bytes, sub_block_kv_bytes_per_token
from puzzlebench.model.spec import ModelSpec, check_architecture


@dataclass(frozen=True, kw_only=True, slots=True)
class KVRow:
    """One layer of the cache.

    Attributes:
        layer: its number; None for padding, pages that an engine takes for no layer.
        attention: the name of its attention, such as gqa_2 or no_op; "padding" where `layer` is None.
        predicted_bytes_per_token: by puzzlebench, for one token that the layer caches.
        allocated_bytes_per_token: by the engine, its page divided by the tokens that the page holds.
    """

    layer: int | None
    attention: str
    predicted_bytes_per_token: int
    allocated_bytes_per_token: float


@dataclass(frozen=True, kw_only=True, slots=True)
class KVComparison:
    """The cache of one engine beside the prediction, per token and, where the engine says it, per sequence.

    Attributes:
        rows: every layer in order, then the padding where there is any.
        block_size: tokens of one page.
        num_blocks: pages that the engine has.
        total_bytes: of its whole cache.
        max_model_len: tokens of the longest sequence; None where the engine did not say.
        predicted_sequence_bytes: of one such sequence, by puzzlebench; None as above.
        allocated_sequence_bytes: of one such sequence, by the engine; None as above.
    """

    rows: tuple[KVRow, ...]
    block_size: int
    num_blocks: int
    total_bytes: int
    max_model_len: int | None
    predicted_sequence_bytes: int | None
    allocated_sequence_bytes: int | None

    @property
    def predicted_bytes_per_token(self) -> int:
        """Sum over the layers."""
        return sum(row.predicted_bytes_per_token for row in self.rows)

    @property
    def allocated_bytes_per_token(self) -> float:
        """Sum over the layers and the padding."""
        return sum(row.allocated_bytes_per_token for row in self.rows)

    @property
    def agrees(self) -> bool:
        """Whether every layer and a longest sequence take exactly what was predicted, and nothing is padding."""
        layers = all(row.predicted_bytes_per_token == row.allocated_bytes_per_token for row in self.rows)
        return layers and self.predicted_sequence_bytes == self.allocated_sequence_bytes


def compare_kv(
    answer: Mapping[str, Any],
    spec: ModelSpec,
    architecture: Architecture,
    kv_dtype: KVDtype,
    *,
    tensor_parallel: int = 1,
) -> KVComparison:
    """What the engine allocated beside what `puzzlebench.model.memory` predicts.

    Args:
        answer: of an engine script; its `kv_cache` is read.
        kv_dtype: of the cache in that run.
        tensor_parallel: GPUs of that run; the answer is about one of them.

    Raises:
        ValueError: the answer says nothing of a cache, or something impossible of it, or names a layer that the model
            does not have.
    """
    check_architecture(spec, architecture)
    engine, cache = answer.get("engine"), answer.get("kv_cache")
    if not isinstance(cache, Mapping):
        raise ValueError(f"the answer of engine {engine!r} has no kv_cache, so there is nothing to compare with")
    allocated = _allocated(cache, len(architecture.blocks))
    rows = [
        KVRow(
            layer=layer,
            attention=sub_block_name(block.attention),
            predicted_bytes_per_token=sub_block_kv_bytes_per_token(
                spec, block.attention, kv_dtype=kv_dtype, tensor_parallel=tensor_parallel
            ),
            allocated_bytes_per_token=allocated.get(layer, 0),
        )
        for layer, block in enumerate(architecture.blocks)
    ]
    padding = _bytes(cache, "bytes_per_token") - sum(allocated.values())
    if padding < 0:
        raise ValueError(
            f"the kv_cache of engine {engine!r} states {cache['bytes_per_token']} bytes per token, and its layers "
            f"have {sum(allocated.values())}"
        )
    if padding:
        rows.append(
            KVRow(layer=None, attention="padding", predicted_bytes_per_token=0, allocated_bytes_per_token=padding)
        )
    longest = cache.get("max_model_len")
    predicted = None
    require_positive_int("block_size", cache.get("block_size"))
    if longest is not None:
        predicted = kv_cache_bytes(
            spec,
            architecture,
            batch_size=1,
            context_len=longest,
            kv_dtype=kv_dtype,
            tensor_parallel=tensor_parallel,
            tokens_per_block=cache["block_size"],
        )
    for field in ("num_blocks", "total_bytes"):
        require_whole_number(f"kv_cache {field}", cache.get(field))
    return KVComparison(
        rows=tuple(rows),
        block_size=cache["block_size"],
        num_blocks=cache["num_blocks"],
        total_bytes=cache["total_bytes"],
        max_model_len=longest,
        predicted_sequence_bytes=predicted,
        allocated_sequence_bytes=cache.get("bytes_per_sequence") if longest is not None else None,
    )


def _allocated(cache: Mapping[str, Any], layers: int) -> dict[int, float]:
    """Bytes per token by layer."""
    stated: dict[int, float] = {}
    for entry in cache.get("layers") or ():
        layer = entry.get("layer")
        require_whole_number("a layer of kv_cache", layer)
        if layer >= layers:
            raise ValueError(f"kv_cache has a layer {layer}; the model has layers 0 to {layers - 1}")
        stated[layer] = stated.get(layer, 0) + _bytes(entry, "bytes_per_token")
    return stated


def _bytes(values: Mapping[str, Any], field: str) -> float:
    value = values.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ValueError(f"kv_cache {field} must be a number of at least 0, not {value!r}")
    return value
