"""The number formats puzzlebench counts in, and their bytes. Knows nothing about which tensor uses which."""

from typing import Literal, TypeAlias, get_args

WeightDtype: TypeAlias = Literal["fp32", "bf16", "fp16", "fp8"]
KVDtype: TypeAlias = Literal["fp32", "bf16", "fp16", "fp8"]

DTYPE_BYTES: dict[str, int] = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}


def weight_dtype_bytes(dtype: WeightDtype) -> int:
    """Bytes of one element of a GEMM matrix."""
    return _bytes_of("weight_dtype", dtype, get_args(WeightDtype))


def unquantised_dtype_bytes(dtype: WeightDtype) -> int:
    """Bytes of one element of what is never quantised (norms, biases, embeddings, head): 2 under fp8."""
    return max(2, weight_dtype_bytes(dtype))


def kv_dtype_bytes(dtype: KVDtype) -> int:
    """Bytes of one element of the key-value cache."""
    return _bytes_of("kv_dtype", dtype, get_args(KVDtype))


def _bytes_of(field: str, dtype: str, known: tuple[str, ...]) -> int:
    if dtype not in known:
        raise ValueError(f"{field} {dtype!r} is not known; use {', '.join(known)}")
    return DTYPE_BYTES[dtype]
