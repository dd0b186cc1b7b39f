from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from puzzlebench.child.halves import load_half, new_sub_block, swapped
from puzzlebench.library.build import build_library
from puzzlebench.library.recipe import Recipe, Training
from puzzlebench.library.store import ParentFacts, create_library
from puzzlebench.model.blocks import Block, NoOp, block_name
from puzzlebench.model.hf_config import from_hf_config
from puzzlebench.model.space import LayerCandidates, SearchSpace
from puzzlebench.scoring import replace_one
from puzzlebench.scoring.metrics import METRICS, metrics, reference
from puzzlebench.scoring.replace_one import score_layers

from .conftest import LENGTH, RECIPE, fill_library, parent_of, space_around

FAMILIES = ["llama", "qwen3", "olmo2", "gemma3_text", "phi3"]


def _score(model, library, tokens, folder, recipe=RECIPE, **settings):
    folder.mkdir(exist_ok=True)
    parent = parent_of(model)
    return score_layers(model, parent, space_around(parent), library, recipe, tokens, folder=folder, **settings)


@torch.inference_mode()
def _expected(model, library, layer, block, tokens, recipe=RECIPE):
    """Scores by two whole forwards of the model, the block swapped in for one of them."""
    own, ids = parent_of(model).blocks[layer], torch.from_numpy(tokens).long()
    halves = {}
    for part, state in library.layer_states(layer, block, own, recipe).items():
        half = new_sub_block(model.model.layers[layer], model.config, layer, part, getattr(block, part))
        load_half(half, part, state)
        halves[part] = half.eval()
    parent = reference(model(ids).logits, ids)
    with swapped(model, layer, **halves):
        return metrics(model(ids).logits, parent)


@pytest.mark.parametrize("mode", ["decoupled", "coupled"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_whole_model_with_the_block_in_it(build, tokens, tmp_path, family, mode):
    model = build(family, num_hidden_layers=3, layer_types=["full_attention"] * 3 if "gemma3" in family else None)
    library = fill_library(model, tmp_path / "library", mode)
    space = space_around(parent_of(model))
    scores = _score(model, library, tokens, tmp_path / "scores", batch_size=2)
    assert [one.layer for one in scores] == [0, 1, 2]
    for one in scores:
        assert one.metrics == tuple(METRICS)
        blocks = space.layers[one.layer].blocks()
        assert list(one.values) == [block_name(block) for block in blocks]
        for block in blocks:
            found, expected = one.values[block_name(block)], _expected(model, library, one.layer, block, tokens)
            assert found.shape == (5, 3)
            if block == parent_of(model).blocks[one.layer]:
                assert found[:, 0].max() < 1e-5
                assert (found[:, 2] == 1).all()
                continue
            # what layers are given is rounded to bfloat16, for the candidate and for the parent it is compared with
            torch.testing.assert_close(found[:, :2], expected[:, :2], rtol=0.05, atol=0.01)
            torch.testing.assert_close(found[:, 2].mean(), expected[:, 2].mean(), rtol=0, atol=0.06)


def test_in_a_bf16_parent_nothing_is_rounded_that_was_not(build, tokens, tmp_path):
    model = build("llama").bfloat16()
    library = fill_library(model, tmp_path / "library")
    scores = _score(model, library, tokens, tmp_path / "scores", batch_size=5)
    for one in scores:
        for block in space_around(parent_of(model)).layers[one.layer].blocks():
            expected = _expected(model, library, one.layer, block, tokens)
            torch.testing.assert_close(one.values[block_name(block)], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("storage", ["disk", "stream"])
def test_where_activations_are_kept_and_batches_do_not_matter(build, tokens, tmp_path, storage):
    model = build("llama")
    library = fill_library(model, tmp_path / "library")
    expected = _score(model, library, tokens, tmp_path / "memory", activations="memory")
    found = _score(model, library, tokens, tmp_path / storage, activations=storage, batch_size=3)
    for one, other in zip(found, expected, strict=True):
        for name, values in one.values.items():
            torch.testing.assert_close(values, other.values[name], rtol=0.02, atol=0.002)
    assert sorted(os.listdir(tmp_path / storage)) == ["layer-000.json", "layer-001.json"]


def test_scoring_goes_on_with_the_layer_that_was_interrupted(build, tokens, tmp_path, monkeypatch):
    model = build("llama", num_hidden_layers=3)
    library = fill_library(model, tmp_path / "library")
    whole = _score(model, library, tokens, tmp_path / "whole")

    def interrupt(_share, stage):
        if stage == "layer 1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _score(model, library, tokens, tmp_path / "scores", progress=interrupt, activations="disk")
    assert os.listdir(tmp_path / "scores") == ["layer-000.json"]
    scored = []
    real = replace_one._score

    def score(blockwise, inputs, layer, *args):
        scored.append(layer)
        return real(blockwise, inputs, layer, *args)

    monkeypatch.setattr(replace_one, "_score", score)
    shares = []
    scores = _score(model, library, tokens, tmp_path / "scores", progress=lambda share, _: shares.append(share))
    assert scored == [1, 2]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    for one, other in zip(scores, whole, strict=True):
        assert one.layer == other.layer
        assert all(torch.equal(one.values[name], other.values[name]) for name in other.values)
    _score(model, library, tokens, tmp_path / "scores")
    assert scored == [1, 2]


def test_a_missing_block_is_named_before_any_work(build, tokens, tmp_path, monkeypatch):
    model = build("llama")
    library = fill_library(model, tmp_path / "library")
    library.file(1, "ffn.mlp_8", RECIPE).unlink()
    monkeypatch.setattr(replace_one, "open_inputs", None)
    with pytest.raises(ValueError, match=r"has no ffn\.mlp_8 for layer 1 by recipe"):
        _score(model, library, tokens, tmp_path / "scores")


def test_pairs_trained_together_are_used_where_there_are_some(build, tokens, tmp_path):
    model = build("llama")
    parent = parent_of(model)
    library = fill_library(model, tmp_path / "library")
    before = _score(model, library, tokens, tmp_path / "before")
    coupled = fill_library(model, tmp_path / "coupled", "coupled")
    block = space_around(parent).layers[1].blocks()[4]
    assert block_name(block) == "gqa_1+mlp_8"
    file = coupled.file(1, block_name(block), RECIPE)
    os.replace(file, library.file(1, block_name(block), RECIPE))
    after = _score(model, library, tokens, tmp_path / "after")
    changed = {
        (one.layer, name)
        for one, other in zip(before, after, strict=True)
        for name in one.values
        if not torch.equal(one.values[name], other.values[name])
    }
    assert changed == {(1, "gqa_1+mlp_8")}


def test_one_sequence_has_no_standard_error(build, tokens, tmp_path):
    with pytest.raises(ValueError, match=r"1 sequence\(s\) are too few for a standard error; give at least 2"):
        _score(build("llama"), None, tokens[:1], tmp_path / "scores")


def test_a_space_without_the_parents_own_is_scored_too(build, tokens, tmp_path):
    model = build("llama")
    library = fill_library(model, tmp_path / "library")
    block = Block(attention=NoOp(), ffn=NoOp())
    layer = LayerCandidates(attention=(block.attention,), ffn=(block.ffn,))
    (tmp_path / "scores").mkdir()
    scores = score_layers(
        model, parent_of(model), SearchSpace(layers=(layer, layer)), library, RECIPE, tokens, folder=tmp_path / "scores"
    )
    for one in scores:
        expected = _expected(model, library, one.layer, block, tokens)
        torch.testing.assert_close(one.values["no_op+no_op"][:, :2], expected[:, :2], rtol=0.05, atol=0.01)


@pytest.mark.parametrize("mode", ["decoupled", "coupled"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_way_from_a_space_to_scores(build, tmp_path, family, mode):
    """A trained library loses less than an untrained one."""
    model = build(family)
    spec, parent = from_hf_config(model.config.to_dict(), name="tiny")
    space = space_around(parent)
    tokens = np.random.default_rng(1).integers(0, 64, (72, LENGTH)).astype(np.int32)
    facts = ParentFacts(name="tiny", model_type=family, num_hidden_layers=2, fingerprint="f" * 64)
    library = create_library(tmp_path / "library", facts)
    losses = {}
    for steps in (0, 24):
        training = Training(steps=steps, batch_size=8, lr=0.02, evaluations=2, warmup=2)
        recipe = Recipe(mode=mode, training=training, data="x", sequences=64, length=LENGTH)
        build_library(model, spec, parent, space, tokens[:64], recipe, library)
        (tmp_path / str(steps)).mkdir()
        scores = score_layers(model, parent, space, library, recipe.id, tokens[64:], folder=tmp_path / str(steps))
        losses[steps] = {
            (one.layer, name): values[:, 0].mean().item() for one in scores for name, values in one.values.items()
        }
    own = {(layer, block_name(block)) for layer, block in enumerate(parent.blocks)}
    assert max(losses[24][key] for key in own) < 1e-5
    trained = [key for key in losses[24] if key not in own and not key[1].endswith("no_op")]
    assert sum(losses[24][key] for key in trained) < sum(losses[0][key] for key in trained)
    library.write_manifest()
    assert replace(facts) == library.parent
