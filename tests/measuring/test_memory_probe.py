"""Peaks on the CPU against sums made by hand."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="needs torch")

from puzzlebench.measuring.memory_probe import probe_memory  # noqa: E402

CPU = torch.device("cpu")
KIB = 1024


def peak(launch):
    probe = probe_memory(SimpleNamespace(copies=1, static_bytes=0, run=launch), CPU)
    assert probe.reserved_bytes is None
    return probe.peak_bytes


def test_the_worst_moment_not_the_sum():
    held = torch.ones(500 * KIB // 4)  # before the launch: does not count

    def launch(copy):
        first = torch.empty(100 * KIB // 4)
        second = torch.empty(300 * KIB // 4)  # 400 at once
        del first
        third = torch.empty(50 * KIB // 4)  # 350
        del second
        fourth = torch.empty(200 * KIB // 4)  # 250
        del third, fourth
        held.add_(1)  # in place: nothing

    assert peak(launch) == 400 * KIB


def test_a_chain_of_operations():
    x, weight = torch.randn(64, 256), torch.randn(512, 256)

    def launch(copy):
        product = torch.nn.functional.linear(x, weight)  # 64 x 512 fp32: 128 KiB
        gate, up = product.chunk(2, dim=-1)
        gated = torch.nn.functional.silu(gate)  # 64 KiB more
        result = gated * up  # and 64 KiB for the product
        del product, gate, up, gated, result

    with torch.inference_mode():
        assert peak(launch) == 256 * KIB


def test_a_launch_that_takes_nothing():
    x = torch.zeros(10)
    assert peak(lambda copy: x.relu_()) == 0


def test_a_result_that_is_kept_counts_once():
    kept = []

    def launch(copy):
        kept.clear()
        kept.append(torch.empty(10 * KIB // 4))

    assert peak(launch) == pytest.approx(10 * KIB, abs=0)


def test_the_first_launch_does_not_count():
    """Libraries take their buffers then, once and for all."""
    kept = []

    def launch(copy):
        if not kept:
            kept.append(torch.empty(900 * KIB // 4))
        torch.empty(30 * KIB // 4)

    assert peak(launch) == 30 * KIB
