"""Kernels run on the GPU where there is one, and in Triton's interpreter otherwise: the same tests, the same kernels.

The interpreter differs in what it cannot do: it truncates to bf16 where the hardware rounds to nearest (errors up to
2^-7 instead of 2^-8), and its conversion to float8 loses the carry where rounding reaches the next power of two.
Its matrix product takes bf16 operands for integers; that one is repaired here.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

GPU = torch.cuda.is_available()
if not GPU:
    assert "triton" not in sys.modules or os.environ.get("TRITON_INTERPRET") == "1", "triton is already imported"
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported


def _repair_products_of_bf16() -> None:
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    product = InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return product(self, a, b, *rest)

    InterpreterBuilder.create_dot = create_dot


if not GPU and importlib.util.find_spec("triton"):
    _repair_products_of_bf16()


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if GPU else "cpu")


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Every torch.empty holds NaN, so that an element no kernel wrote fails its comparison."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors: threads that wait for each other cost more than they do
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not GPU:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
