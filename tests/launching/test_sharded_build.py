"""One rank, in this process; `test_torchrun` has two."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from puzzlebench.child.blockwise import open_blockwise
from puzzlebench.launching.launchers import Local, run_library
from puzzlebench.launching.sharded_build import build_sharded
from puzzlebench.launching.sharded_parent import load_sharded, open_sharded, whole
from puzzlebench.library.job import finish_job
from puzzlebench.model.space import default_space
from puzzlebench.parent.open import find_parent, load_parent

FAMILIES = {
    "llama": {"tie_word_embeddings": True},
    "gemma3_text": {
        "sliding_window": 5,
        "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "phi3": {"pad_token_id": 0, "sliding_window": None},
}


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.fixture(params=FAMILIES)
def folder(request, tmp_path, save_parent):
    return save_parent(tmp_path / request.param, request.param, **FAMILIES[request.param])


def test_a_sharded_parent_gives_what_the_parent_gives(folder, group):
    files, ids = find_parent(str(folder)), torch.arange(12)[None]
    mesh = dist.init_device_mesh("cpu", (1,))
    sharded = open_sharded(load_sharded(files, torch.device("cpu"), torch.bfloat16, mesh), 12)
    parent = open_blockwise(load_parent(files, torch.device("cpu"), torch.bfloat16), 12)
    with torch.no_grad():
        with whole(sharded.model.get_input_embeddings()):
            hidden, expected = sharded.embed(ids), parent.embed(ids)
            assert torch.equal(hidden, expected)
        for number, layer in enumerate(sharded.layers):
            with whole(layer):
                hidden = sharded.run(number, layer, hidden)
            expected = parent.run(number, parent.layers[number], expected)
            assert torch.equal(hidden, expected)


@pytest.mark.parametrize("steps", [0, 3])
def test_blocks_are_those_of_a_whole_parent(steps, folder, group, elsewhere, assert_same_blocks):
    space = default_space(find_parent(str(folder)).spec, ffn_fractions=(1.0, 0.5), ffn_multiple=8)
    whole_parent = elsewhere("whole", parent=str(folder), space=space)
    whole_parent = replace(whole_parent, training=replace(whole_parent.training, steps=steps))
    sharded = replace(whole_parent, out=whole_parent.out.with_name("sharded"))
    run_library(whole_parent, Local())
    report = build_sharded(sharded, control=group, progress=lambda _share, _stage: None)
    assert report.made == 12
    finish_job(sharded)
    assert_same_blocks(whole_parent, sharded)
    assert build_sharded(sharded, control=group, progress=lambda _share, _stage: None).there_before == 12


def test_does_not_stream(elsewhere, group):
    with pytest.raises(ValueError, match="a sharded parent cannot stream activations; keep them with"):
        build_sharded(elsewhere(activations="stream"), control=group, progress=lambda _share, _stage: None)


def test_says_which_weights_a_checkpoint_lacks(elsewhere, group, tmp_path, save_parent):
    from safetensors.torch import load_file, save_file

    folder = save_parent(tmp_path / "parent")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing, the first is model\.layers\.1\.mlp\.up_proj\.weight"):
        build_sharded(elsewhere(parent=str(folder)), control=group, progress=lambda _share, _stage: None)
