"""For every benchmark here: one thread of torch, and the machine's fingerprint in pytest-benchmark's JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    try:
        import torch
    except ImportError:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """What `puzzlebench compare` needs to refuse results of unlike machines."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return
    from puzzlebench.benching.session import bench_fingerprint
    from puzzlebench.measuring.device import local_device

    machine_info["puzzlebench"] = {**bench_fingerprint(local_device("local")), "threads": 1}
