from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from puzzlebench.scoring import metrics as module
from puzzlebench.scoring.metrics import METRICS, metrics, reference


def _logits(batch, length, vocabulary, seed=0, scale=3.0):
    return scale * torch.randn(batch, length, vocabulary, generator=torch.Generator().manual_seed(seed))


def _ids(batch, length, vocabulary):
    return torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(9))


def _brute_force(child, parent, ids):
    """Sequence by sequence, position by position, in float64."""
    rows = []
    for own, theirs, tokens in zip(child.double(), parent.double(), ids, strict=True):
        kl = F.kl_div(F.log_softmax(own, -1), F.log_softmax(theirs, -1), reduction="none", log_target=True).sum(-1)
        loss = F.cross_entropy(own[:-1], tokens[1:])
        same = (own.argmax(-1) == theirs.argmax(-1)).double()
        rows.append([kl.mean().item(), loss.item(), same.mean().item()])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(("batch", "length", "vocabulary"), [(1, 2, 3), (3, 7, 11), (2, 129, 1000), (5, 2, 4)])
def test_metrics_are_those_of_torch(batch, length, vocabulary):
    child, parent = _logits(batch, length, vocabulary), _logits(batch, length, vocabulary, seed=1)
    ids = _ids(batch, length, vocabulary)
    found = metrics(child, reference(parent, ids))
    assert found.dtype == torch.float64
    assert found.shape == (batch, len(METRICS))
    torch.testing.assert_close(found, _brute_force(child, parent, ids), rtol=1e-5, atol=1e-6)


def test_logits_in_bfloat16_are_summed_in_float32():
    child, parent = (_logits(2, 9, 500, seed).bfloat16() for seed in (0, 1))
    ids = _ids(2, 9, 500)
    torch.testing.assert_close(
        metrics(child, reference(parent, ids)), _brute_force(child, parent, ids), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
def test_the_parent_against_itself(scale):
    logits, ids = _logits(3, 40, 2000, scale=scale), _ids(3, 40, 2000)
    kl, loss, same = metrics(logits, reference(logits, ids)).unbind(1)
    assert (kl >= 0).all()
    assert kl.max() < 1e-9  # the same numbers are subtracted
    torch.testing.assert_close(loss, _brute_force(logits, logits, ids)[:, 1], rtol=1e-5, atol=1e-6)
    assert (same == 1).all()


def test_small_differences_are_not_lost():
    parent, ids = _logits(2, 50, 300), _ids(2, 50, 300)
    child = parent + 0.01 * _logits(2, 50, 300, seed=2)
    found, expected = metrics(child, reference(parent, ids))[:, 0], _brute_force(child, parent, ids)[:, 0]
    assert expected.max() < 1e-3
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0)


@pytest.mark.parametrize(("noise", "size"), [(0.01, 5e-5), (0.1, 5e-3)])
def test_small_differences_are_not_lost_in_a_large_vocabulary(noise, size):
    """Where float32 sums of 128k terms, which are 1e-4 off, would be as large as what is looked for."""
    parent, ids = _logits(1, 8, 128_256, scale=4.0) + 5, _ids(1, 8, 128_256)
    child = parent + noise * _logits(1, 8, 128_256, seed=2, scale=1.0)
    found, expected = metrics(child, reference(parent, ids))[:, 0], _brute_force(child, parent, ids)[:, 0]
    assert 0.5 * size < expected.item() < 2 * size
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0)


@pytest.mark.parametrize("positions", [1, 3, 6, 13, 14, 1000])
def test_chunks_of_positions_change_nothing(monkeypatch, positions):
    child, parent, ids = _logits(2, 7, 11), _logits(2, 7, 11, seed=1), _ids(2, 7, 11)
    monkeypatch.setattr(module, "_POSITIONS", positions)
    torch.testing.assert_close(metrics(child, reference(parent, ids)), _brute_force(child, parent, ids))


def test_sequences_do_not_mix():
    child, parent, ids = _logits(4, 9, 20), _logits(4, 9, 20, seed=1), _ids(4, 9, 20)
    whole = metrics(child, reference(parent, ids))
    for row in range(4):
        part = slice(row, row + 1)
        torch.testing.assert_close(metrics(child[part], reference(parent[part], ids[part])), whole[part])


def test_what_is_better_is_what_the_parent_has():
    parent, ids = _logits(2, 30, 20), _ids(2, 30, 20)
    parent[:, :-1].scatter_add_(-1, ids[:, 1:, None], torch.full((2, 29, 1), 5.0))  # it knows what follows
    better = metrics(parent, reference(parent, ids)).mean(0)
    worse = metrics(parent + _logits(2, 30, 20, seed=3), reference(parent, ids)).mean(0)
    for place, direction in enumerate(METRICS.values()):
        sign = 1 if direction == "minimise" else -1
        assert sign * better[place] < sign * worse[place]
