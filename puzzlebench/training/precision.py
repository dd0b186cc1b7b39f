"""Which floating-point format a device computes fast in, and computing in it."""

from __future__ import annotations

import contextlib
from typing import Any, Literal, TypeAlias

import torch

Precision: TypeAlias = Literal["fp32", "bf16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def fast_precision(device: torch.device) -> Precision:
    """bf16 on GPUs and on CPUs with units for it, else fp32: an AVX2 CPU multiplies bf16 matrices 8 times slower."""
    if device.type != "cpu":
        return "bf16"
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return "bf16" if any(check is not None and check() for check in checks) else "fp32"


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """bf16 matrix products over fp32 weights, or nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
