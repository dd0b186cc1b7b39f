"""What every launcher needs: argument checks and the size of the device. Knows no kernel."""

from __future__ import annotations

import contextlib
import functools

import torch

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
FP8 = torch.float8_e4m3fn
CPU_MULTIPROCESSORS = 4  # for Triton's interpreter: few, so that small tensors reach every path


def check(
    name: str,
    tensor: torch.Tensor,
    *,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int | None, ...],
    device: torch.device | None = None,
    contiguous: bool = True,
) -> None:
    """Raise ValueError unless the tensor has one of the dtypes, the shape (None: any size), the device, and no gaps."""
    if tensor.dtype not in dtypes:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name} is {str(tensor.dtype).removeprefix('torch.')}; it must be one of {allowed}")
    sizes = tuple(tensor.shape)
    if len(sizes) != len(shape) or any(want not in (None, size) for want, size in zip(shape, sizes, strict=True)):
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{name} has shape {list(sizes)}; it must be [{wanted}]")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}; it must be on {device} like the first argument")
    if contiguous and not tensor.is_contiguous():
        raise ValueError(f"{name} has strides {tensor.stride()}; it must be contiguous")


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of the device."""
    if device.type != "cuda":
        return CPU_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def on_device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager[None]:
    """Launch on the tensor's device, whichever is current; nothing for a CPU tensor."""
    guard: contextlib.AbstractContextManager[None] = torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]
    return guard


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype references compute in: float64 stays, everything else is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
