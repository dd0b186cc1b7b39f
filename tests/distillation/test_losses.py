from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from puzzlebench.distillation import losses
from puzzlebench.distillation.head import Head, output_head
from puzzlebench.distillation.losses import (
    NO_LABEL,
    FullTarget,
    TopKTarget,
    cosine_distance,
    token_losses,
    top_k_target,
)
from puzzlebench.distillation.recipe import TERMS, LossWeights

from ..child.conftest import make_parent, tokens
from ..child.conftest import parent as family_parent  # noqa: F401

ALL = LossWeights(cosine=0.0, forward_kl=0.7, reverse_kl=0.3, tvd=0.9, lm=0.2, temperature=1.7)
N, H, V = 11, 6, 23


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def plain(logits, teacher, labels, weights):
    """Every term written out in float64, over whole matrices."""
    log_p = (teacher.double() / weights.temperature).log_softmax(-1)
    log_q = (logits.double() / weights.temperature).log_softmax(-1)
    known = labels != NO_LABEL
    rows = logits.double().log_softmax(-1)[known]
    return {
        "forward_kl": (log_p.exp() * (log_p - log_q)).sum(-1).mean(),
        "reverse_kl": (log_q.exp() * (log_q - log_p)).sum(-1).mean(),
        "tvd": 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1).mean(),
        "lm": -rows.gather(-1, labels[known][:, None]).mean(),
    }


@pytest.fixture
def labels():
    labels = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(5))
    labels[[3, N - 1]] = NO_LABEL
    return labels


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (2.0, 3.0)])
def test_terms_and_gradients_are_those_of_whole_float64_matrices(labels, chunk, scale, cap):
    hidden, weight = numbers(N, H).requires_grad_(), numbers(V, H, seed=1).requires_grad_()
    teacher_head = Head(weight=numbers(V, 4, seed=3), scale=scale, cap=cap)
    target = FullTarget(hidden=numbers(N, 4, seed=2), head=teacher_head)
    head = Head(weight=weight, scale=scale, cap=cap)
    loss, found = token_losses(hidden, head, target, labels, ALL, chunk_tokens=chunk)
    (3 * loss).backward()
    grads = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    terms = plain(head.logits(hidden), teacher_head.logits(target.hidden), labels, ALL)
    expected = sum(getattr(ALL, name) * term for name, term in terms.items())
    (3 * expected).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for name, term in terms.items():
        torch.testing.assert_close(found[name], term, rtol=1e-12, atol=0)
    for grad, wanted in zip(grads, (hidden.grad, weight.grad), strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "tvd", "lm"])
def test_one_term_alone_and_terms_that_are_only_reported(labels, name):
    weights = LossWeights(**{"cosine": 0.0, "forward_kl": 0.0, name: 2.0})
    hidden = numbers(N, H).requires_grad_()
    head = Head(weight=numbers(V, H, seed=1))
    target = FullTarget(hidden=numbers(N, H, seed=2), head=head)
    loss, found = token_losses(hidden, head, target, labels, weights, also=("lm", "tvd"))
    expected = plain(head.logits(hidden), head.logits(target.hidden), labels, weights)
    torch.testing.assert_close(loss, 2 * expected[name])
    assert found.keys() == {name, "lm", "tvd"}
    for one, value in found.items():
        torch.testing.assert_close(value, expected[one])
    assert head.weight.grad is None
    loss.backward()
    assert hidden.grad.abs().sum() > 0
    with torch.no_grad():
        again, _ = token_losses(hidden, head, target, labels, weights)
    assert not again.requires_grad
    torch.testing.assert_close(again, loss.detach())


def test_a_tied_matrix_gets_both_gradients():
    table = torch.nn.Embedding(V, H).double()
    ids = torch.arange(N) % V
    target = FullTarget(hidden=numbers(N, H, seed=2), head=Head(weight=numbers(V, H, seed=1)))
    weights = LossWeights(cosine=0)

    def grad(loss):
        table.weight.grad = None
        loss.backward()
        return table.weight.grad.clone()

    own, _ = token_losses(table(ids), Head(weight=table.weight), target, ids, weights, chunk_tokens=3)
    logits = table(ids) @ table.weight.T
    wanted = plain(logits, target.head.logits(target.hidden), ids, weights)["forward_kl"]
    torch.testing.assert_close(grad(own), grad(wanted))


def test_small_divergences_survive_a_large_vocabulary():
    """float32 at 128k tokens: torch's log_softmax alone is 5e-5 off there."""
    base = 4 * numbers(4, 128_000, dtype=torch.float32)
    weight = torch.eye(4)  # the hidden states of token n choose row n of the logits
    other = base + 0.01 * numbers(4, 128_000, seed=1, dtype=torch.float32)
    labels = torch.zeros(4, dtype=torch.long)
    target = FullTarget(hidden=weight, head=Head(weight=base.T.contiguous()))
    found = token_losses(weight, Head(weight=other.T.contiguous()), target, labels, LossWeights(reverse_kl=1.0))[1]
    expected = plain(other, base, labels, LossWeights())
    assert expected["forward_kl"] < 1e-4
    for name in ("forward_kl", "reverse_kl"):
        assert float(found[name]) == pytest.approx(float(expected[name]), rel=0.02)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_what_is_kept_of_a_teacher_is_its_distribution_with_the_rest_in_one(labels, temperature):
    weights = LossWeights(cosine=0.0, reverse_kl=0.3, tvd=0.9, temperature=temperature)
    hidden, head = numbers(N, H).requires_grad_(), Head(weight=numbers(V, H, seed=1))
    teacher = numbers(N, V, seed=4)
    kept = top_k_target(teacher, 5, temperature)
    assert isinstance(kept, TopKTarget)

    def merged(logits):
        probs = (logits / temperature).softmax(-1)
        top = probs.gather(-1, kept.ids)
        return torch.cat([top, 1 - top.sum(-1, keepdim=True)], -1).log()

    own = torch.cat([kept.log_probs, kept.rest[:, None]], -1)
    torch.testing.assert_close(own, merged(teacher), rtol=1e-5, atol=1e-5)
    loss, _ = token_losses(hidden, head, kept, labels, weights, chunk_tokens=4)
    loss.backward()
    grad = hidden.grad.clone()
    hidden.grad = None
    at_one = LossWeights(cosine=0.0, reverse_kl=0.3, tvd=0.9)
    terms = plain(merged(head.logits(hidden)), merged(teacher), labels * 0, at_one)
    expected = terms["forward_kl"] + 0.3 * terms["reverse_kl"] + 0.9 * terms["tvd"]
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, hidden.grad, rtol=1e-4, atol=1e-6)
    full = token_losses(
        hidden, head, FullTarget(hidden=teacher, head=Head(weight=torch.eye(V).double())), labels, weights
    )[1]
    values = [
        float(token_losses(hidden, head, top_k_target(teacher, k, temperature), labels, weights)[1]["forward_kl"])
        for k in (1, 5, 15, V - 1)
    ]
    assert all(one <= other + 1e-6 for one, other in pairwise(values))  # never above the full divergence
    assert values[-1] == pytest.approx(float(full["forward_kl"]), rel=1e-4)


def test_top_k_that_does_not_fit():
    with pytest.raises(ValueError, match="top-k must be from 1 to 22 for this vocabulary, not 23"):
        top_k_target(numbers(2, V), V, 1.0)


def test_cosine_distance_and_its_gradient():
    student, teacher = numbers(2, 5, H).requires_grad_(), numbers(2, 5, H, seed=1)
    own = cosine_distance(student, teacher)
    expected = (1 - torch.nn.functional.cosine_similarity(student, teacher, dim=-1)).mean()
    torch.testing.assert_close(own, expected)
    torch.testing.assert_close(
        torch.autograd.grad(2 * own, student)[0], torch.autograd.grad(2 * expected, student)[0], rtol=1e-9, atol=1e-12
    )
    assert torch.autograd.gradcheck(lambda one: cosine_distance(one, teacher), (student,))
    half = cosine_distance(student.bfloat16(), teacher.bfloat16())
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(own.item(), abs=0.01)


def test_a_vector_of_zeros_counts_as_unlike_and_has_no_gradient():
    student = torch.zeros(2, H, requires_grad=True)
    distance = cosine_distance(student, torch.ones(2, H))
    distance.backward()
    assert distance.item() == 1.0
    assert torch.equal(student.grad, torch.zeros(2, H))


def test_the_head_gives_each_familys_logits(family_parent):  # noqa: F811
    ids = tokens()
    with torch.no_grad():
        output = family_parent(ids, use_cache=False)
        hidden = family_parent.model(ids, use_cache=False).last_hidden_state
        found = output_head(family_parent).logits(hidden)
    torch.testing.assert_close(found, output.logits, rtol=1e-5, atol=1e-5)


def test_a_head_with_a_bias_is_refused():
    model = make_parent("llama")
    model.lm_head = torch.nn.Linear(32, 64)
    with pytest.raises(ValueError, match="has a bias"):
        output_head(model)


def test_in_autocast_products_are_in_bf16(labels):
    hidden = numbers(N, H, dtype=torch.float32).requires_grad_()
    weight = numbers(V, H, seed=1, dtype=torch.float32).requires_grad_()
    target = FullTarget(hidden=numbers(N, H, seed=2, dtype=torch.float32), head=Head(weight=weight.detach()))
    seen = []
    real = Head.logits

    def logits(self, states):
        seen.append((states.dtype, self.weight.dtype))
        return real(self, states)

    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", dtype=torch.bfloat16):
        patch.setattr(Head, "logits", logits)
        loss, _ = token_losses(hidden, Head(weight=weight), target, labels, ALL)
    loss.backward()
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}
    assert (hidden.grad.dtype, weight.grad.dtype) == (torch.float32, torch.float32)
    exact, _ = token_losses(hidden.detach(), Head(weight=weight.detach()), target, labels, ALL)
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)


def peak_bytes(work):
    """The most bytes of tensors that were allocated on the CPU at one time by some work."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_for_gpus_gives_the_same(labels, monkeypatch, dtype):
    """In Triton's interpreter where there is no GPU."""
    pytest.importorskip("triton")
    weights = LossWeights(cosine=0.0, reverse_kl=0.5, temperature=1.7)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hidden, weight = (numbers(n, H, seed=n, dtype=dtype).to(device).requires_grad_() for n in (N, V))
    head = Head(weight=numbers(V, H, seed=2, dtype=dtype).to(device))
    target = FullTarget(hidden=numbers(N, H, seed=3, dtype=dtype).to(device), head=head)

    def run(fused):
        monkeypatch.setattr(losses, "_for_kernel", lambda *_: fused)
        loss, terms = token_losses(hidden, Head(weight=weight), target, labels.to(device), weights, chunk_tokens=4)
        return loss, *terms.values(), *torch.autograd.grad(loss, (hidden, weight))

    # the kernel sums in another order; its gradient of bf16 logits is rounded to bf16
    rtol, atol = (1e-4, 1e-6) if dtype == torch.float32 else (0.03, 0.003)
    for own, wanted in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(own, wanted, rtol=rtol, atol=atol)


def test_memory_does_not_grow_with_all_tokens_times_the_vocabulary():
    tokens, vocabulary, width = 512, 16_000, 16
    hidden = numbers(tokens, width, dtype=torch.float32).requires_grad_()
    weight = numbers(vocabulary, width, seed=1, dtype=torch.float32).requires_grad_()
    target = FullTarget(hidden=numbers(tokens, width, seed=2, dtype=torch.float32), head=Head(weight=weight.detach()))
    labels = torch.zeros(tokens, dtype=torch.long)
    whole = 4 * tokens * vocabulary  # one float32 copy of all logits: 31 MiB

    def run(chunk):
        token_losses(hidden, Head(weight=weight), target, labels, LossWeights(), chunk_tokens=chunk)[0].backward()

    assert peak_bytes(lambda: run(512)) > 6 * whole
    assert peak_bytes(lambda: run(16)) < 0.6 * whole


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_weights_that_are_none(name, value):
    with pytest.raises(ValueError, match=f"the weight of {name} must be"):
        LossWeights(**{name: value})


def test_no_weight_at_all():
    with pytest.raises(ValueError, match="all loss weights are 0"):
        LossWeights(cosine=0.0, forward_kl=0.0)
