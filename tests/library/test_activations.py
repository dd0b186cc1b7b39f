from __future__ import annotations

import errno
import os
from collections import namedtuple

import numpy as np
import pytest
import torch

from puzzlebench.child.blockwise import open_blockwise
from puzzlebench.library import activations
from puzzlebench.library.activations import open_inputs

LENGTH = 12
SIZE = 19 * LENGTH * 32 * 2  # sequences x tokens x hidden size in bfloat16


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, 64, (19, LENGTH)).astype(np.int32)


def _open(model, tokens, folder, storage="auto", memory_limit=1 << 30):
    return open_inputs(open_blockwise(model, LENGTH), tokens, storage=storage, memory_limit=memory_limit, folder=folder)


@pytest.fixture
def disk(monkeypatch):
    """Says how much is free on the disk."""
    usage = namedtuple("usage", "total used free")

    def set_free(free):
        monkeypatch.setattr(activations.shutil, "disk_usage", lambda _folder: usage(free, 0, free))

    return set_free


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "granite"])
def test_wherever_they_are_kept_a_layer_is_given_the_same(build, tokens, tmp_path, family):
    model = build(family, num_hidden_layers=3, layer_types=None) if family != "gemma3_text" else build(family)
    opened = {kind: _open(model, tokens, tmp_path, kind) for kind in ("memory", "disk", "stream")}
    assert [inputs.kind for inputs in opened.values()] == list(opened)
    assert {kind: inputs.bytes for kind, inputs in opened.items()} == {"memory": SIZE, "disk": SIZE, "stream": 0}
    blockwise = open_blockwise(model, LENGTH)
    hidden = blockwise.embed(torch.from_numpy(tokens).long())
    for layer in range(model.config.num_hidden_layers):
        if layer:
            for inputs in opened.values():
                inputs.advance()
            hidden = blockwise.run(layer - 1, blockwise.layers[layer - 1], hidden)
        for rows in (torch.arange(8), torch.arange(8, 16)):
            reads = {kind: inputs.read(rows) for kind, inputs in opened.items()}
            assert torch.equal(reads["memory"], reads["disk"])
            assert torch.equal(reads["memory"], reads["stream"])
        # in other batches matrix products may be summed in another order, which moves a rounding to bfloat16 by a step
        odd = torch.tensor([18, 3, 3, 11, 0])
        reads = {kind: inputs.read(odd) for kind, inputs in opened.items()}
        assert torch.equal(reads["memory"], reads["disk"])
        torch.testing.assert_close(reads["stream"], reads["memory"], rtol=2**-7, atol=2**-7)
        assert reads["memory"].shape == (5, LENGTH, 32)
        assert reads["memory"].dtype == torch.float32
        # what the model itself would give, but for the roundings
        torch.testing.assert_close(reads["memory"], hidden[odd], rtol=0.03, atol=0.03 * hidden.std().item())
    for inputs in opened.values():
        assert len(inputs) == 19
        inputs.close()


def test_a_model_in_bfloat16_loses_nothing(build, tokens, tmp_path):
    model = build("llama").bfloat16()
    inputs = _open(model, tokens, tmp_path, "memory")
    blockwise = open_blockwise(model, LENGTH)
    with torch.no_grad():
        hidden = blockwise.embed(torch.from_numpy(tokens[:8]).long())
        assert torch.equal(inputs.read(torch.arange(8)), hidden)
        inputs.advance()
        assert torch.equal(inputs.read(torch.arange(8)), blockwise.run(0, blockwise.layers[0], hidden))
    assert inputs.read(torch.arange(2)).dtype == torch.bfloat16


def test_what_is_read_is_a_copy(build, tokens, tmp_path):
    inputs = _open(build("llama").bfloat16(), tokens, tmp_path, "memory")
    inputs.read(torch.arange(3)).zero_()
    assert inputs.read(torch.arange(3)).any()


@pytest.mark.parametrize(
    ("memory_limit", "free", "kind"),
    [
        (2 * SIZE, 0, "memory"),
        (2 * SIZE - 2, 2 * SIZE, "disk"),
        (2 * SIZE - 2, 2 * SIZE - 2, "stream"),
        (0, 1 << 40, "disk"),
    ],
)
def test_they_are_kept_where_there_is_room(build, tokens, tmp_path, disk, memory_limit, free, kind):
    disk(free)
    inputs = _open(build("llama"), tokens, tmp_path, memory_limit=memory_limit)
    assert inputs.kind == kind
    inputs.close()


def test_a_disk_that_is_too_small_is_refused_at_once(build, tokens, tmp_path, disk):
    disk(SIZE - 1)
    with pytest.raises(
        ValueError, match=r"activations need 0\.0 GiB and .* has 0\.0 GiB free; train on fewer .*stream"
    ):
        _open(build("llama"), tokens, tmp_path, "disk")
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_up_meanwhile(build, tokens, tmp_path, monkeypatch):
    def fail(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(activations.os, "posix_fallocate", fail)
    with pytest.raises(ValueError, match=r"cannot write activations to .*: the disk is full$"):
        _open(build("llama"), tokens, tmp_path, "disk")
    assert os.listdir(tmp_path) == []


def _mappings(folder):
    with open("/proc/self/maps") as maps:
        return [line for line in maps if str(folder) in line]


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="Linux says which files are mapped")
def test_nothing_is_left_on_the_disk(build, tokens, tmp_path, monkeypatch):
    inputs = _open(build("llama"), tokens, tmp_path, "disk")
    assert os.listdir(tmp_path) == []  # nor would there be, were this process killed now
    assert len(_mappings(tmp_path)) == 1
    inputs.close()
    assert _mappings(tmp_path) == []
    real, calls = activations._ids, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:  # the first is for the hidden size, the second for the first batch
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(activations, "_ids", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _open(build("llama"), tokens, tmp_path, "disk")
    assert os.listdir(tmp_path) == []


def test_two_in_one_folder_do_not_mix(build, tokens, tmp_path):
    model = build("llama")
    one, other = (_open(model, some, tmp_path, "disk") for some in (tokens, tokens[::-1].copy()))
    assert torch.equal(one.read(torch.tensor([18])), other.read(torch.tensor([0])))
    one.advance()
    assert not torch.equal(one.read(torch.tensor([18])), other.read(torch.tensor([0])))


def test_no_gradient_reaches_the_parent(build, tokens, tmp_path):
    model = build("llama").requires_grad_(True)
    for kind in ("memory", "stream"):
        inputs = _open(model, tokens, tmp_path, kind)
        inputs.advance()
        assert not inputs.read(torch.arange(2)).requires_grad
