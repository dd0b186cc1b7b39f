"""Static fp8 quantisation against torch."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from puzzlebench_kernels.quantise import LARGEST, quantise_fp8, quantise_fp8_reference

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# Exactly representable in e4m3, so that a rounding of the interpreter's cannot show: +-(1 + m / 8) * 2^e.
EXACT = [sign * (1 + m / 8) * 2.0**e for sign in (1, -1) for m in range(8) for e in range(-5, 8)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 65), (17, 257)])
def test_representable_values_come_out_exactly(dtype, shape, device):
    values = torch.tensor(EXACT, device=device)
    x = values[torch.randint(len(EXACT), shape, device=device)].to(dtype)
    for scale in (1.0, 0.25, 2.0):
        got, wanted = quantise_fp8(x * scale, scale), quantise_fp8_reference(x.double() * scale, scale)
        assert torch.equal(got.float(), wanted.float())


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_too_large_saturates(dtype, device):
    x = torch.tensor([[1e4, -1e4, 449.0, -449.0, 448.0, 0.0]], device=device).to(dtype)
    assert quantise_fp8(x, 1.0).float().tolist() == [[LARGEST, -LARGEST, LARGEST, -LARGEST, LARGEST, 0.0]]


@pytest.mark.gpu  # the interpreter loses the carry when a value rounds up to the next power of two
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_value_is_within_half_a_step(dtype, device):
    x = torch.randn(33, 129, device=device).to(dtype)
    # e4m3 has 4 significant bits: half a step is 2^-4 of the value; below 2^-6 steps are 2^-9 of the scale.
    got = quantise_fp8(x, 0.05).float() * 0.05
    torch.testing.assert_close(got, x.float(), rtol=2**-4, atol=0.05 * 2**-9)


def test_an_empty_batch(device):
    assert quantise_fp8(torch.empty(0, 8, device=device), 1.0).shape == (0, 8)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_none(scale, device):
    with pytest.raises(ValueError, match="scale must be a positive number"):
        quantise_fp8(torch.ones(1, 8, device=device), scale)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(8), "it must be \\[any, any\\]"),
        (torch.ones(2, 8, dtype=torch.int32), "x is int32"),
        (torch.ones(8, 2).t(), "it must be contiguous"),
    ],
)
def test_a_tensor_that_does_not_fit(x, message):
    with pytest.raises(ValueError, match=message):
        quantise_fp8(x, 1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [4096, 14336, 28672])
def test_real_sizes(width, device):
    x = torch.randn(8192, width, dtype=torch.bfloat16, device=device)
    got, wanted = quantise_fp8(x, 0.02), quantise_fp8_reference(x, 0.02)
    # Both round the same float32 product to nearest; the multiplication may be fused differently, once in a while.
    assert (got.float() != wanted.float()).float().mean() < 1e-5
