"""The engines that can run a block here, and the protocol they fill.

An engine turns a workload into something that can be launched again and again; it knows no clock and no statistics.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final, Protocol

from puzzlebench.measuring.workload import Workload
from puzzlebench.model.spec import ModelSpec
from puzzlebench.scenario import Precision

if TYPE_CHECKING:
    import torch

ENGINES: Final[dict[str, str]] = {
    "torch": "puzzlebench.measuring.block_engine:torch_engine",
    "triton": "puzzlebench.measuring.block_engine:triton_engine",
    "trtllm": "puzzlebench.measuring.trtllm_engine:trtllm_engine",
}
"""Name to `module:function`; the function takes (spec, precision, device, max_batch_size, max_len) by name."""


class Prepared(Protocol):
    """A workload with its weights and caches in place."""

    copies: int
    """Copies of weights and cache that runs rotate over."""
    static_bytes: int
    """Bytes of those copies."""

    def run(self, copy: int) -> None:
        """Launch once on one copy. Asynchronous on a GPU, and can be captured in a CUDA graph."""


class Engine(Protocol):
    """Prepares workloads of one model in one precision on one device."""

    name: str
    version: str
    device: torch.device

    def prepare(self, workload: Workload, *, copies: int) -> Prepared:
        """Put a workload in place.

        Raises:
            torch.OutOfMemoryError: it does not fit.
            ValueError: the engine cannot run it.
        """

    def close(self) -> None:
        """Release everything."""


def open_engine(
    name: str, spec: ModelSpec, precision: Precision, device: torch.device, *, max_batch_size: int, max_len: int
) -> Engine:
    """The engine of that name.

    Raises:
        ValueError: it is unknown, not installed, or cannot run this model, precision or device.
    """
    check_engine_name(name)
    module, _, function = ENGINES[name].partition(":")
    engine: Engine = getattr(importlib.import_module(module), function)(
        spec=spec, precision=precision, device=device, max_batch_size=max_batch_size, max_len=max_len
    )
    return engine


def check_engine_name(name: str) -> None:
    """Raise ValueError unless an engine has that name."""
    if name not in ENGINES:
        raise ValueError(f"engine {name!r} cannot be measured live; use {', '.join(ENGINES)}")
