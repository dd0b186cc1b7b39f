from __future__ import annotations

import pytest
import torch

from puzzlebench.training.muon import Muon, orthogonalise


def _random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24), (1, 16), (16, 1)])
def test_singular_values_move_to_about_one_and_directions_stay(shape):
    matrices = _random(3, *shape)
    result = orthogonalise(matrices)
    assert result.shape == matrices.shape
    values = torch.linalg.svdvals(result)
    # Jordan's slopes end between 0.7 and 1.2; singular values near zero have not come as far after five steps
    assert values.max() < 1.25
    assert values.median() > 0.65
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ result @ v.mT  # diagonal where the singular vectors are the same
    off_diagonal = inner - torch.diag_embed(inner.diagonal(dim1=1, dim2=2))
    assert off_diagonal.abs().max() < 1e-4


def test_matrices_are_treated_as_each_alone():
    matrices = _random(5, 12, 7) * torch.tensor([1e-4, 1.0, 10.0, 1e3, 3.0])[:, None, None]
    together = orthogonalise(matrices)
    alone = torch.cat([orthogonalise(matrix[None]) for matrix in matrices])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_a_gradient_of_zero_moves_nothing():
    weight = torch.nn.Parameter(_random(4, 4))
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    Muon([weight], lr=0.1).step()
    assert torch.equal(weight, before)


@pytest.mark.parametrize("shape", [(16, 16), (32, 8), (8, 32)])
def test_the_update_is_torchs_up_to_its_bfloat16(shape):
    ours, theirs = (torch.nn.Parameter(_random(*shape)) for _ in range(2))
    our = Muon([ours], lr=0.02, weight_decay=0.1)
    their = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        before = ours.detach().clone(), theirs.detach().clone()
        ours.grad = _random(*shape, seed=step + 1)
        theirs.grad = ours.grad.clone()
        our.step()
        their.step()
        moved = (ours - before[0]).detach().flatten(), (theirs - before[1]).detach().flatten()
        assert torch.cosine_similarity(*moved, dim=0) > 0.999
        # bfloat16 keeps 8 bits, and five steps add their errors up
        torch.testing.assert_close(moved[0].norm(), moved[1].norm(), rtol=0.03, atol=0)


def test_an_update_has_the_size_of_adamws():
    weight = torch.nn.Parameter(torch.zeros(64, 64))
    weight.grad = _random(64, 64)
    Muon([weight], lr=1.0).step()
    assert 0.15 < weight.detach().square().mean().sqrt() < 0.25  # AdamW's is about 0.2 to 0.4


def test_a_quadratic_loss_falls():
    target = _random(12, 6, seed=1)
    weight = torch.nn.Parameter(torch.zeros(12, 6))
    optimiser = Muon([weight], lr=0.1)
    losses = []
    for step in range(60):
        loss = (weight - target).square().mean()
        loss.backward()
        losses.append(loss.item())
        for group in optimiser.param_groups:
            group["lr"] = 0.5 * (1 - step / 60)
        optimiser.step()
        optimiser.zero_grad()
    assert losses[-1] < 0.02 * losses[0]


def test_parameters_of_one_shape_keep_to_their_own_groups():
    first, second, still = (torch.nn.Parameter(torch.zeros(4, 4)) for _ in range(3))
    optimiser = Muon([{"params": [first]}, {"params": [second], "lr": 0.02}, {"params": [still]}], lr=0.01)
    first.grad, second.grad = _random(4, 4), _random(4, 4)
    optimiser.step()
    torch.testing.assert_close(second.detach(), 2 * first.detach())
    assert not still.any()
    assert not optimiser.state[still]


def test_weight_decay_shrinks_by_the_learning_rate():
    weight = torch.nn.Parameter(torch.ones(3, 3))
    weight.grad = torch.zeros(3, 3)
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), torch.full((3, 3), 0.95))


def test_a_closure_is_run_with_gradients():
    weight = torch.nn.Parameter(torch.ones(3, 3))
    optimiser = Muon([weight], lr=0.1)

    def closure():
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert optimiser.step(closure) == 9.0
    assert weight.grad is not None
    assert not torch.equal(weight, torch.ones(3, 3))


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), ()])
def test_only_matrices_are_taken(shape):
    with pytest.raises(ValueError, match=r"Muon takes matrices, not a tensor of shape \("):
        Muon([torch.nn.Parameter(torch.zeros(shape))])
