"""add_rms_norm against float64."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from puzzlebench_kernels.rms_norm import add_rms_norm, add_rms_norm_reference

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# One rounding to 8, 11 or 24 bits: half a unit in the last place on a GPU, a whole one where the interpreter truncates.
ROUNDING = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 2**-23}
# The mean of squares and its inverse root in float32, relative: a tree of H terms and two approximate instructions.
ARITHMETIC = 2e-6
SUBNORMAL = 2**-24  # spacing of the smallest fp16 values, which have no relative accuracy


def compare(tokens: int, hidden: int, dtype: torch.dtype, with_residual: bool, device: torch.device) -> None:
    x = 2 * torch.randn(tokens, hidden, dtype=dtype, device=device)
    residual = torch.randn_like(x) if with_residual else None
    weight = torch.randn(hidden, dtype=dtype, device=device)
    normed, residual_out = add_rms_norm(x, residual, weight, 1e-5)
    assert normed.dtype == residual_out.dtype == dtype
    if residual is None:
        assert residual_out is x
    else:
        exact = x.double() + residual.double()
        torch.testing.assert_close(residual_out.double(), exact, rtol=ROUNDING[dtype], atol=SUBNORMAL)
    # The norm is of the rounded sum, so that is where the reference starts.
    expected, _ = add_rms_norm_reference(residual_out.double(), None, weight.double(), 1e-5)
    torch.testing.assert_close(normed.double(), expected, rtol=ROUNDING[dtype] + ARITHMETIC, atol=SUBNORMAL)


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "hidden"), [(1, 1), (3, 7), (70, 64), (5, 256), (33, 301), (2, 4097), (3, 5120), (1, 16384)]
)
def test_matches_float64(
    tokens: int, hidden: int, dtype: torch.dtype, with_residual: bool, device: torch.device
) -> None:
    compare(tokens, hidden, dtype, with_residual, device)


def test_weight_of_another_dtype_and_no_tokens(device: torch.device) -> None:
    x = torch.randn(2, 40, dtype=torch.bfloat16, device=device)
    weight = torch.randn(40, device=device)
    normed, _ = add_rms_norm(x, None, weight, 0.0)
    expected, _ = add_rms_norm_reference(x.double(), None, weight.double(), 0.0)
    torch.testing.assert_close(normed.double(), expected, rtol=ROUNDING[x.dtype] + ARITHMETIC, atol=SUBNORMAL)
    assert add_rms_norm(x[:0], x[:0], weight, 1e-5)[0].shape == (0, 40)


def test_reference_is_float64_when_given_float64() -> None:
    x, weight = torch.randn(3, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    normed, _ = add_rms_norm_reference(x, None, weight, 1e-5)
    torch.testing.assert_close(normed, torch.nn.functional.rms_norm(x, (8,), weight, 1e-5), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 8, dtype=torch.float64)}, "x is float64"),
        ({"x": torch.zeros(8)}, r"x has shape \[8\]; it must be \[any, any\]"),
        ({"x": torch.zeros(8, 2).T}, r"x has strides \(1, 2\)"),
        ({"x": torch.zeros(1, 16385)}, "x has 16385 columns; 1 to 16384"),
        ({"residual": torch.zeros(2, 7)}, r"residual has shape \[2, 7\]"),
        ({"residual": torch.zeros(2, 8, dtype=torch.float16)}, "residual is float16"),
        ({"weight": torch.zeros(7)}, r"weight has shape \[7\]; it must be \[8\]"),
        ({"weight": torch.zeros(8, device="meta")}, "weight is on meta"),
        ({"eps": -1.0}, "eps is -1.0"),
        ({"eps": float("nan")}, "eps is nan"),
    ],
)
def test_bad_input(change: dict, message: str) -> None:
    arguments = {"x": torch.zeros(2, 8), "residual": torch.zeros(2, 8), "weight": torch.zeros(8), "eps": 1e-5}
    with pytest.raises(ValueError, match=message):
        add_rms_norm(**(arguments | change))


@pytest.mark.gpu
@pytest.mark.parametrize("hidden", [4096, 8192])
@pytest.mark.parametrize("tokens", [1, 128, 16384])
def test_llama_sizes(tokens: int, hidden: int, device: torch.device) -> None:
    compare(tokens, hidden, torch.bfloat16, True, device)
