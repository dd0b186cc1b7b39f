"""Losses and their gradients against float64."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from puzzlebench_kernels import losses
from puzzlebench_kernels.losses import (
    kl_divergence,
    kl_divergence_reference,
    linear_kl_divergence,
    linear_kl_divergence_reference,
    normalised_mse,
    normalised_mse_reference,
)

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# One rounding to 8, 11 or 24 bits: half a unit in the last place on a GPU, a whole one where the interpreter truncates.
ROUNDING = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 2**-23}
# Sums of squares: each float32 term has a relative error of 2^-23 and all have one sign.
SUM = 1e-6
# A divergence is a difference of float32 terms of about 10 nats (the normalisers and the mean gap), each with a few
# roundings: absolute.
NATS = 5e-6
# Probabilities come from exponents of about 10 in float32, so their relative error is 1e-6 to 1e-5; a gradient is a
# difference of two, so its error is relative to the largest of a row.
PROBABILITY = 1e-5


def gradient(loss: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, leaf)[0]


def leaf(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone().requires_grad_()


def compare_mse(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    parent = torch.randn(shape, device=device).to(dtype)
    child = leaf((parent + torch.randn(shape, device=device) / 10).to(dtype))
    loss = normalised_mse(child, parent)
    grad = gradient(3 * loss, child)
    exact = leaf(child.double())
    expected = normalised_mse_reference(exact, parent.double())
    assert loss.dtype == torch.float32
    assert grad.dtype == dtype
    torch.testing.assert_close(loss.double(), expected, rtol=SUM, atol=0)
    torch.testing.assert_close(grad.double(), gradient(3 * expected, exact), rtol=ROUNDING[dtype] + SUM, atol=2**-24)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (7, 301), (2, 3, 1111)])
def test_mse_matches_float64(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    compare_mse(shape, dtype, device)


def test_mse_in_many_steps(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    monkeypatch.setattr(losses, "multiprocessors", lambda _: 1)  # 8 programs: 6 steps each
    compare_mse((91_001,), torch.float32, device)


def test_mse_keeps_small_terms(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    # One large term, then a million small ones: a single float32 sum would lose 3 percent.
    monkeypatch.setattr(losses, "multiprocessors", lambda _: 4)
    parent = torch.ones(1_000_001, device=device)
    parent[0] = 2.0**13
    child = 2 * parent
    child[1:] += 0.5
    loss = normalised_mse(child, parent)
    expected = normalised_mse_reference(child.double(), parent.double())
    # Only the terms of the large one's lane, one in 65 thousand, are rounded to its last place.
    torch.testing.assert_close(loss.double(), expected, rtol=5e-6, atol=0)


def test_mse_of_two_dtypes_and_a_parent_with_gradient(device: torch.device) -> None:
    child = torch.randn(5, 9, device=device, requires_grad=True)
    parent = torch.randn(5, 9, dtype=torch.float16, device=device, requires_grad=True)
    normalised_mse(child, parent).backward()
    assert child.grad is not None
    assert parent.grad is None


def compare_kl(
    rows: int, vocabulary: int, dtype: torch.dtype, reverse: bool, temperature: float, device: torch.device
) -> None:
    teacher = (3 * torch.randn(rows, vocabulary, device=device)).to(dtype)
    student = leaf((teacher + torch.randn(rows, vocabulary, device=device)).to(dtype))
    options = {"temperature": temperature, "reverse": reverse}
    divergence = kl_divergence(student, teacher, reduction="none", **options)
    weights = torch.rand(rows, device=device)
    grad = gradient(divergence @ weights, student)
    exact = leaf(student.double())
    expected = kl_divergence_reference(exact, teacher.double(), reduction="none", **options)
    expected_grad = gradient(expected @ weights.double(), exact)
    assert divergence.dtype == torch.float32
    assert grad.dtype == dtype
    torch.testing.assert_close(divergence.double(), expected.detach(), rtol=PROBABILITY, atol=NATS)
    bound = ROUNDING[dtype] * expected_grad.abs() + PROBABILITY * expected_grad.abs().amax(-1, keepdim=True) + 2**-24
    assert ((grad.double() - expected_grad).abs() <= bound).all()
    mean = kl_divergence(student, teacher, **options)
    torch.testing.assert_close(mean.double(), expected.mean(), rtol=PROBABILITY, atol=NATS)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "vocabulary", "temperature"), [(1, 1, 1.0), (5, 37, 2.0), (2, 9001, 0.5)])
def test_kl_matches_float64(
    rows: int, vocabulary: int, temperature: float, dtype: torch.dtype, reverse: bool, device: torch.device
) -> None:
    compare_kl(rows, vocabulary, dtype, reverse, temperature, device)


def test_kl_of_equal_logits_is_zero(device: torch.device) -> None:
    logits = leaf(10 * torch.randn(3, 5001, device=device))
    divergence = kl_divergence(logits, logits, reduction="none")
    assert (divergence == 0).all()
    assert (gradient(divergence.sum(), logits) == 0).all()


@pytest.mark.parametrize("reverse", [False, True])
def test_kl_with_impossible_tokens(reverse: bool, device: torch.device) -> None:
    teacher, student = torch.randn(2, 2, 9000, device=device)
    for logits in (teacher, student):
        logits[0, :4200] = float("-inf")  # the whole first chunk
        logits[1, -5:] = float("-inf")
    student = leaf(student)
    divergence = kl_divergence(student, teacher, reduction="none", reverse=reverse)
    grad = gradient(divergence.sum(), student)
    for row, kept in ((0, slice(4200, None)), (1, slice(0, -5))):
        exact = leaf(student[row : row + 1, kept].double())
        expected = kl_divergence_reference(exact, teacher[row : row + 1, kept].double(), reverse=reverse)
        torch.testing.assert_close(divergence[row].double(), expected, rtol=PROBABILITY, atol=NATS)
        torch.testing.assert_close(grad[row : row + 1, kept].double(), gradient(expected, exact), rtol=1e-4, atol=1e-8)
    assert (grad[student == float("-inf")] == 0).all()
    student = torch.zeros(1, 4, device=device)
    student[0, 0] = float("-inf")
    assert kl_divergence(student, torch.zeros_like(student)) == float("inf")  # the teacher does the impossible


def test_kl_of_rows_with_gaps_and_of_two_dtypes(device: torch.device) -> None:
    student = leaf(torch.randn(3, 64, device=device))
    teacher = torch.randn(3, 64, dtype=torch.float16, device=device)
    loss = kl_divergence(student[:, :50], teacher[:, :50])
    expected = kl_divergence_reference(student[:, :50].double(), teacher[:, :50].double())
    torch.testing.assert_close(loss.double(), expected, rtol=PROBABILITY, atol=NATS)
    grad = gradient(loss, student)
    assert (grad[:, 50:] == 0).all()
    assert kl_divergence(student[:0], teacher[:0], reduction="none").shape == (0,)


def hidden_states(dtype: torch.dtype, device: torch.device, tokens: int = 7, vocabulary: int = 301) -> list:
    shapes = ((tokens, 16), (vocabulary, 16), (tokens, 24), (vocabulary, 24))
    return [(torch.randn(shape, device=device) / 2).to(dtype) for shape in shapes]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("chunk_tokens", [1, 3, 7, 1024])
def test_linear_kl_matches_float64(chunk_tokens: int, reverse: bool, device: torch.device) -> None:
    tensors = hidden_states(torch.float32, device)
    ours = [leaf(tensor) for tensor in tensors[:2]]
    options = {"temperature": 1.5, "reverse": reverse}
    loss = linear_kl_divergence(*ours, *tensors[2:], chunk_tokens=chunk_tokens, **options)
    grads = torch.autograd.grad(3 * loss, ours)
    exact = [leaf(tensor.double()) for tensor in tensors[:2]]
    expected = linear_kl_divergence_reference(*exact, *(tensor.double() for tensor in tensors[2:]), **options)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=PROBABILITY, atol=NATS)
    for grad, wanted in zip(grads, torch.autograd.grad(3 * expected, exact), strict=True):
        # Sums of products of either sign: relative to the largest.
        torch.testing.assert_close(grad.double(), wanted, rtol=0, atol=PROBABILITY * wanted.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_linear_kl_equals_kl_of_logits(dtype: torch.dtype, device: torch.device) -> None:
    tensors = hidden_states(dtype, device)
    ours, whole = [leaf(tensor) for tensor in tensors[:2]], [leaf(tensor) for tensor in tensors[:2]]
    loss = linear_kl_divergence(*ours, *tensors[2:], chunk_tokens=3)
    expected = kl_divergence(whole[0] @ whole[1].T, tensors[2] @ tensors[3].T)
    # Chunks may round a few logits the other way.
    torch.testing.assert_close(loss, expected, rtol=ROUNDING[dtype], atol=0)
    for grad, wanted in zip(torch.autograd.grad(loss, ours), torch.autograd.grad(expected, whole), strict=True):
        assert grad.dtype == dtype
        # Gradients of logits, of each chunk's weight gradient and of the result are rounded: three times each side.
        torch.testing.assert_close(grad, wanted, rtol=0, atol=6 * ROUNDING[dtype] * wanted.abs().max().item())


def test_linear_kl_computes_only_the_gradients_asked_for(device: torch.device) -> None:
    tensors = hidden_states(torch.float32, device)
    tensors[0].requires_grad_()
    linear_kl_divergence(*tensors).backward()
    assert tensors[0].grad is not None
    assert all(tensor.grad is None for tensor in tensors[1:])
    with torch.autocast(device.type, dtype=torch.bfloat16):
        loss = linear_kl_divergence(*tensors)
    torch.testing.assert_close(loss, linear_kl_divergence(*tensors), rtol=0, atol=0)  # no rounding to bf16 inside
    with torch.no_grad():
        assert not linear_kl_divergence(*tensors).requires_grad


def test_second_derivatives_are_refused(device: torch.device) -> None:
    child = torch.randn(4, device=device, requires_grad=True)
    (grad,) = torch.autograd.grad(normalised_mse(child, torch.ones_like(child)), child, create_graph=True)
    with pytest.raises(RuntimeError, match=r"does not require grad|differentiate twice"):
        grad.sum().backward()


def test_bad_input() -> None:
    a, b = torch.zeros(2, 8), torch.zeros(2, 9)
    for call, message in (
        (lambda: normalised_mse(a, b), r"parent has shape \[2, 9\]; it must be \[2, 8\]"),
        (lambda: normalised_mse(a.T, a.T), "child has strides"),
        (lambda: normalised_mse(a[:0], a[:0]), r"child has shape \[0, 8\]"),
        (lambda: normalised_mse(a.double(), a), "child is float64"),
        (lambda: kl_divergence(a, b), r"teacher_logits has shape \[2, 9\]"),
        (lambda: kl_divergence(a.T, a.T), r"student_logits has strides \(1, 8\)"),
        (lambda: kl_divergence(a, a, temperature=0.0), "temperature is 0.0"),
        (lambda: kl_divergence(a, a, reduction="sum"), "reduction is 'sum'"),
        (lambda: kl_divergence(a[:0], a[:0]), "student_logits has 0 rows"),
        (lambda: kl_divergence(a[:, :0], a[:, :0]), "student_logits has 0 columns"),
        (lambda: linear_kl_divergence(a, b, a, a), r"student_weight has shape \[2, 9\]; it must be \[any, 8\]"),
        (lambda: linear_kl_divergence(a, a, a, b), r"teacher_weight has shape \[2, 9\]; it must be \[2, 8\]"),
        (lambda: linear_kl_divergence(a, a.half(), a, a), "student_weight is float16"),
        (lambda: linear_kl_divergence(a, a, a, a, chunk_tokens=0), "chunk_tokens is 0"),
        (lambda: linear_kl_divergence(a[:0], a, a[:0], a), "there are 0 tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_mse_of_a_hundred_million_elements(dtype: torch.dtype, device: torch.device) -> None:
    compare_mse((100_000_007,), dtype, device)


@pytest.mark.gpu
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("vocabulary", [50257, 128256, 262144])
def test_kl_of_real_vocabularies(vocabulary: int, reverse: bool, device: torch.device) -> None:
    compare_kl(512, vocabulary, torch.bfloat16, reverse, 1.0, device)


@pytest.mark.gpu
def test_linear_kl_keeps_no_logits(device: torch.device) -> None:
    tokens, vocabulary, chunk = 8192, 128256, 1024
    hidden = (torch.randn(tokens, 4096, device=device) / 64).bfloat16().requires_grad_()
    weight = torch.randn(vocabulary, 4096, device=device).bfloat16().requires_grad_()
    teacher_hidden = (torch.randn(tokens, 8192, device=device) / 90).bfloat16()
    teacher_weight = torch.randn(vocabulary, 8192, device=device).bfloat16()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = linear_kl_divergence(hidden, weight, teacher_hidden, teacher_weight, chunk_tokens=chunk)
    # Float32 and bf16 weight gradients, one chunk's part of them, two chunks of logits, and the gradient of hidden.
    limit = weight.numel() * (4 + 2 + 2) + 2 * chunk * vocabulary * 2 + hidden.numel() * 2
    assert torch.cuda.max_memory_allocated() - before < 1.2 * limit
    loss.backward()
    with torch.no_grad():
        rows = slice(0, 256)
        part = kl_divergence(hidden[rows] @ weight.T, teacher_hidden[rows] @ teacher_weight.T)
    # Random tokens: the mean of 256 is within a few percent of the mean of all.
    torch.testing.assert_close(part, loss.detach(), rtol=0.05, atol=0)
    assert hidden.grad.isfinite().all()
    assert weight.grad.isfinite().all()
