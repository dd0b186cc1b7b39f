"""Devices by name, which floating-point format each computes fast in, and computing in it."""

from __future__ import annotations

import contextlib
from typing import Any, Literal, TypeAlias

import torch

Precision: TypeAlias = Literal["fp32", "bf16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def open_device(name: str) -> torch.device:
    """The device of that name; auto is a GPU if there is one, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is not known; use auto, cpu, cuda or cuda:N") from None
    count = torch.cuda.device_count()
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= count):
        raise ValueError(f"device {name}: torch sees {count} GPU(s); use auto, cpu, cuda or cuda:N")
    return device


def fast_precision(device: torch.device) -> Precision:
    """bf16 on GPUs and on CPUs with units for it, else fp32: an AVX2 CPU multiplies bf16 matrices 8 times slower."""
    if device.type != "cpu":
        return "bf16"
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return "bf16" if any(check is not None and check() for check in checks) else "fp32"


def judging_precision(device: torch.device) -> Precision:
    """fp32 on CPUs, bf16 on GPUs: for scores and evaluations, which are small differences of two models. A model that
    a CPU judges is small enough for it.
    """
    return "fp32" if device.type == "cpu" else "bf16"


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """bf16 matrix products over fp32 weights, or nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
