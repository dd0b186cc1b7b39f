"""swiglu and its gradient against float64."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from puzzlebench_kernels import swiglu as module
from puzzlebench_kernels.swiglu import swiglu, swiglu_reference

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# One rounding to 8, 11 or 24 bits: half a unit in the last place on a GPU, a whole one where the interpreter truncates.
ROUNDING = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 2**-23}
# The sigmoid in float32: an approximate exponential and division.
ARITHMETIC = 2e-6
# Where the gradient of silu crosses zero its terms, at most about 20 here, cancel: float32 error of the terms.
CANCELLATION = 1e-5


def compare(tokens: int, intermediate: int, dtype: torch.dtype, device: torch.device) -> None:
    gate_up = (2 * torch.randn(tokens, 2 * intermediate, device=device)).to(dtype).requires_grad_()
    grad_out = torch.randn(tokens, intermediate, device=device).to(dtype)
    out = swiglu(gate_up)
    (grad,) = torch.autograd.grad(out, gate_up, grad_out)
    exact = gate_up.detach().double().requires_grad_()
    expected = swiglu_reference(exact)
    (expected_grad,) = torch.autograd.grad(expected, exact, grad_out.double())
    assert out.dtype == grad.dtype == dtype
    rtol = ROUNDING[dtype] + ARITHMETIC
    torch.testing.assert_close(out.double(), expected, rtol=rtol, atol=2**-24)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=rtol, atol=CANCELLATION)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "intermediate"), [(1, 1), (3, 7), (2, 256), (5, 301), (2, 2816), (1, 4099)])
def test_matches_float64(tokens: int, intermediate: int, dtype: torch.dtype, device: torch.device) -> None:
    compare(tokens, intermediate, dtype, device)


def test_large_blocks(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    monkeypatch.setattr(module, "multiprocessors", lambda _: 1)  # as if there were tokens enough to fill the device
    compare(3, 2500, torch.bfloat16, device)


def test_large_gates_and_no_tokens(device: torch.device) -> None:
    gate_up = torch.tensor([[-500.0, 500.0, 2.0, 3.0]], device=device)
    torch.testing.assert_close(swiglu(gate_up), torch.tensor([[0.0, 1500.0]], device=device), rtol=1e-6, atol=0)
    assert swiglu(gate_up[:0]).shape == (0, 2)


def test_gradient_that_is_not_contiguous(device: torch.device) -> None:
    gate_up = torch.randn(3, 8, device=device, requires_grad=True)
    swiglu(gate_up).sum().backward()  # an expanded scalar
    exact = gate_up.detach().double().requires_grad_()
    swiglu_reference(exact).sum().backward()
    torch.testing.assert_close(gate_up.grad.double(), exact.grad, rtol=ARITHMETIC, atol=CANCELLATION)


@pytest.mark.parametrize(
    ("gate_up", "message"),
    [
        (torch.zeros(2, 7), "gate_up has 7 columns"),
        (torch.zeros(2, 0), "gate_up has 0 columns"),
        (torch.zeros(2, 3, 4), r"gate_up has shape \[2, 3, 4\]"),
        (torch.zeros(4, 4).T, "gate_up has strides"),
        (torch.zeros(2, 4, dtype=torch.int32), "gate_up is int32"),
    ],
)
def test_bad_input(gate_up: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        swiglu(gate_up)


@pytest.mark.gpu
@pytest.mark.parametrize("intermediate", [14336, 28672, 21504, 5632])
@pytest.mark.parametrize("tokens", [1, 128, 8192])
def test_llama_sizes(tokens: int, intermediate: int, device: torch.device) -> None:
    compare(tokens, intermediate, torch.bfloat16, device)
