"""What is served: batch, lengths, number formats and tensor parallelism. Knows no model and no GPU."""

from __future__ import annotations

from dataclasses import dataclass

from puzzlebench.model.checks import require_positive_int
from puzzlebench.model.dtypes import KVDtype, WeightDtype, kv_dtype_bytes, weight_dtype_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """Number formats and how many GPUs share one copy of the model."""

    weight_dtype: WeightDtype = "bf16"
    kv_dtype: KVDtype = "bf16"
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        weight_dtype_bytes(self.weight_dtype)
        kv_dtype_bytes(self.kv_dtype)
        require_positive_int("tensor_parallel", self.tensor_parallel)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """A static batch: `batch_size` prompts of `prefill_len` tokens, each answered with `decode_len` tokens."""

    batch_size: int
    prefill_len: int
    decode_len: int
    precision: Precision

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        for field in ("batch_size", "prefill_len", "decode_len"):
            require_positive_int(field, getattr(self, field))

    @property
    def context_len(self) -> int:
        """Tokens in the cache of one sequence at the end."""
        return self.prefill_len + self.decode_len
