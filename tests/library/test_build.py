from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from puzzlebench.child.blockwise import open_blockwise
from puzzlebench.child.halves import load_half, new_sub_block, swapped
from puzzlebench.library import build as building
from puzzlebench.library.build import build_library, wanted_blocks
from puzzlebench.library.initialise import InitRecipe, initial_state, needed_statistics
from puzzlebench.library.recipe import Recipe, Training
from puzzlebench.library.statistics import collect_statistics
from puzzlebench.library.store import ParentFacts, create_library
from puzzlebench.model.blocks import GQA, Block, GatedMLP, Linear, NoOp
from puzzlebench.model.hf_config import from_hf_config
from puzzlebench.model.space import LayerCandidates, SearchSpace
from puzzlebench.training import checkpoints

LENGTH = 12
FACTS = ParentFacts(name="tiny", model_type="llama", num_hidden_layers=2, fingerprint="f" * 64)


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, 64, (10, LENGTH)).astype(np.int32)


def _recipe(mode="decoupled", init=None, precision="fp32", **training):
    settings = {"steps": 4, "batch_size": 4, "evaluations": 2, "warmup": 1, "lr": 0.01, **training}
    return Recipe(
        mode=mode,
        init=init or InitRecipe(),
        training=Training(**settings),
        data="x",
        sequences=10,
        length=LENGTH,
        precision=precision,
    )


def _parent(model):
    return from_hf_config(model.config.to_dict(), name="tiny")


def _space(parent, kv_heads=(1,), widths=(8,), linear=True):
    """The parent's own, these, linear and no-op, in every layer."""
    layers = []
    for block in parent.blocks:
        heads = [replace(block.attention, num_key_value_heads=count) for count in kv_heads]
        others = (Linear(), NoOp()) if linear else (NoOp(),)
        layers.append(
            LayerCandidates(
                attention=(block.attention, *heads, *others),
                ffn=(block.ffn, *(GatedMLP(intermediate_size=width) for width in widths), *others),
            )
        )
    return SearchSpace(layers=tuple(layers))


def _make(model, space, tokens, recipe, path, **settings):
    spec, parent = _parent(model)
    library = create_library(path, FACTS)
    report = build_library(model, spec, parent, space, tokens, recipe, library, **settings)
    return library, report


def _states(library):
    """Every tensor of every block."""
    from safetensors.torch import load_file

    return {
        f"{file.name}/{name}": value
        for file in sorted((library.path / "blocks").iterdir())
        for name, value in load_file(file).items()
    }


def _assert_close(found, expected, **tolerances):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name, **tolerances)


@pytest.mark.parametrize("mode", ["decoupled", "coupled"])
def test_blocks_that_a_space_wants(build, mode):
    _, parent = _parent(build("llama"))
    wanted = wanted_blocks(_space(parent), parent, mode)
    halves = ["attention.gqa_1", "attention.linear", "ffn.mlp_8", "ffn.linear"]
    pairs = [f"{a}+{f}" for a in ("gqa_1", "linear", "no_op") for f in ("mlp_8", "linear", "no_op")][:-1]
    names = halves + (pairs if mode == "coupled" else [])
    assert [(one.layer, one.name) for one in wanted] == [(layer, name) for layer in (0, 1) for name in names]
    for one in wanted:
        parts = {"attention", "ffn"} if "+" in one.name else {one.name.partition(".")[0]}
        assert set(one.halves) == parts


def test_a_space_without_the_parents_own_wants_no_less(build):
    _, parent = _parent(build("llama"))
    layer = LayerCandidates(attention=(GQA(num_key_value_heads=1),), ffn=(NoOp(),))
    wanted = wanted_blocks(SearchSpace(layers=(layer, layer)), parent, "decoupled")
    assert [one.name for one in wanted] == ["attention.gqa_1"] * 2
    with pytest.raises(ValueError, match=r"the space has 1 layers, the parent 2"):
        wanted_blocks(SearchSpace(layers=(layer,)), parent, "decoupled")


@pytest.mark.parametrize("mode", ["decoupled", "coupled"])
def test_a_library_holds_every_block_of_its_space(build, tokens, tmp_path, mode):
    model = build("llama")
    _, parent = _parent(model)
    space, recipe = _space(parent), _recipe(mode)
    shares = []
    library, report = _make(
        model, space, tokens, recipe, tmp_path / "l", progress=lambda share, stage: shares.append((share, stage))
    )
    count = 2 * (4 if mode == "decoupled" else 12)
    assert (report.made, report.there_before, report.activations) == (count, 0, "memory")
    assert report.activation_bytes == 10 * LENGTH * 32 * 2
    facts = list(library.blocks())
    assert len(facts) == count
    for one in facts:
        assert (one.recipe, one.parent) == (recipe.id, FACTS.fingerprint)
        assert one.final_loss <= one.initial_loss
        assert one.kept == ("trained" if one.final_loss < one.initial_loss else "initialisation")
        assert one.tokens == one.steps * 4 * LENGTH
    assert library.recipe_id() == recipe.id
    for layer, candidates in enumerate(space.layers):
        for block in candidates.blocks():
            library.require(layer, block, parent.blocks[layer], recipe.id)
    assert [share for share, _ in shares] == sorted(share for share, _ in shares)
    assert shares[-1] == (pytest.approx(1), f"layer 1: {count // 2} blocks")
    assert os.listdir(library.path / "work") == []


def test_what_is_there_is_not_made_again(build, tokens, tmp_path):
    model = build("llama")
    _, parent = _parent(model)
    library, _ = _make(model, _space(parent), tokens, _recipe(), tmp_path / "l")
    files = {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in (library.path / "blocks").iterdir()}
    _, report = _make(model, _space(parent), tokens, _recipe(), tmp_path / "l")
    assert (report.made, report.there_before, report.activations) == (0, 8, "none")
    gone = library.file(1, "ffn.mlp_8", _recipe().id)
    before = _states(library)
    gone.unlink()
    _, report = _make(model, _space(parent), tokens, _recipe(), tmp_path / "l")
    assert (report.made, report.there_before) == (1, 7)
    assert all((file.stat().st_mtime_ns, file.stat().st_ino) == seen for file, seen in files.items() if file != gone)
    _assert_close(_states(library), before, rtol=1e-4, atol=1e-5)
    _, report = _make(model, _space(parent), tokens, _recipe(seed=1), tmp_path / "l")
    assert report.made == 8


def test_layers_apart_are_layers_together(build, tokens, tmp_path):
    model = build("llama")
    _, parent = _parent(model)
    whole, _ = _make(model, _space(parent), tokens, _recipe(), tmp_path / "whole")
    for layer in (1, 0):
        library, report = _make(model, _space(parent), tokens, _recipe(), tmp_path / "apart", layers=[layer])
        assert report.made == 4
    _assert_close(_states(library), _states(whole), rtol=0, atol=0)
    _, report = _make(model, _space(parent), tokens, _recipe(), tmp_path / "none", layers=[])
    assert (report.made, report.there_before) == (0, 0)


@pytest.mark.parametrize("storage", ["memory", "disk", "stream"])
def test_a_limit_on_memory_changes_nothing_but_memory(build, tokens, tmp_path, monkeypatch, storage):
    model = build("qwen3")
    _, parent = _parent(model)
    space, recipe = _space(parent, kv_heads=(2, 1)), _recipe("coupled", steps=2)
    whole, _ = _make(model, space, tokens, recipe, tmp_path / "whole")
    sizes = []
    real = building.distil_layer

    def count(run, variants, *args, **kwargs):
        sizes.append(sum(value.numel() for variant in variants for value in variant.parameters().values()))
        real(run, variants, *args, **kwargs)

    monkeypatch.setattr(building, "distil_layer", count)
    limit = 400_000
    library, report = _make(model, space, tokens, recipe, tmp_path / "l", memory_limit=limit, activations=storage)
    assert report.activations == storage
    assert len(sizes) > 4
    assert max(sizes) * building._TRAINING_BYTES <= limit / 2
    _assert_close(_states(library), _states(whole), rtol=1e-3, atol=1e-4)


def test_one_block_that_is_above_the_limit_is_trained_alone(build, tokens, tmp_path):
    model = build("llama")
    _, parent = _parent(model)
    library, report = _make(model, _space(parent), tokens, _recipe(), tmp_path / "l", memory_limit=2)
    assert report.made == len(list(library.blocks())) == 8


@pytest.mark.parametrize("init", [InitRecipe(), InitRecipe(attention="select", ffn="iterative", linear="product")])
def test_without_steps_blocks_are_their_initialisations(build, tokens, tmp_path, init):
    model = build("olmo2")
    spec, parent = _parent(model)
    space, recipe = _space(parent, kv_heads=(2,)), _recipe(init=init, steps=0)
    library, report = _make(model, space, tokens, recipe, tmp_path / "l")
    assert (report.made, report.activations) == (8, "none")
    assert {(one.kept, one.steps, one.initial_loss, one.final_loss) for one in library.blocks()} == {
        ("initialisation", 0, None, None)
    }
    calibration = torch.from_numpy(tokens[:9]).long()  # the tenth is held out
    for layer, candidates in enumerate(space.layers):
        own = parent.blocks[layer]
        for part in ("attention", "ffn"):
            for sub in getattr(candidates, part)[1:-1]:
                needs = needed_statistics(init, part, getattr(own, part), sub)
                found = collect_statistics(model, [calibration], {layer: needs}) if needs else {}
                expected = initial_state(
                    model.model.layers[layer], spec, part, getattr(own, part), sub, init, found.get(layer)
                )
                block = replace(own, **{part: sub})
                # sums over batches of 8 differ from sums over all in their last digits
                _assert_close(library.layer_states(layer, block, own, recipe.id)[part], expected, rtol=1e-3, atol=1e-4)


def test_pairs_start_where_their_halves_start(build, tokens, tmp_path):
    model = build("llama")
    _, parent = _parent(model)
    recipe = _recipe("coupled", steps=0)
    library, _ = _make(model, _space(parent, kv_heads=(2,)), tokens, recipe, tmp_path / "l")
    own = parent.blocks[0]
    sub, mlp = GQA(num_key_value_heads=2), GatedMLP(intermediate_size=8)
    pair = library.layer_states(0, Block(attention=sub, ffn=mlp), own, recipe.id)
    for part, block in (("attention", replace(own, attention=sub)), ("ffn", replace(own, ffn=mlp))):
        half = library.layer_states(0, block, own, recipe.id)[part]
        _assert_close(pair[part], half, rtol=0, atol=0)


def test_a_trained_block_is_better_in_the_model_itself(build, tmp_path):
    """The whole way, from the space to the model with the block in it, without the code that reports losses."""
    model = build("llama")
    tokens = np.random.default_rng(0).integers(0, 64, (80, LENGTH)).astype(np.int32)
    _, parent = _parent(model)
    space = _space(parent, widths=(12,), linear=False)
    blockwise, ids = open_blockwise(model, LENGTH), torch.from_numpy(tokens[-8:]).long()
    errors = {}
    for steps in (0, 30):
        recipe = _recipe(steps=steps, batch_size=8)
        library, _ = _make(model, space, tokens, recipe, tmp_path / "l")
        own, layer = parent.blocks[1], model.model.layers[1]
        for part, sub in (("attention", GQA(num_key_value_heads=1)), ("ffn", GatedMLP(intermediate_size=12))):
            half = new_sub_block(layer, model.config, 1, part, sub)
            load_half(half, part, library.layer_states(1, replace(own, **{part: sub}), own, recipe.id)[part])
            with torch.no_grad():
                hidden = blockwise.run(0, blockwise.layers[0], blockwise.embed(ids))
                target = blockwise.run(1, layer, hidden)
                with swapped(model, 1, **{part: half}):
                    error = (blockwise.run(1, layer, hidden) - target).square().sum() / target.square().sum()
            facts = next(
                one for one in library.blocks() if (one.layer, one.recipe) == (1, recipe.id) and part in one.block
            )
            if steps:
                # what the library says, but for the inputs' rounding to bfloat16
                assert facts.final_loss == pytest.approx(error.item(), rel=0.05)
            errors[part, steps] = error.item()
    for part in ("attention", "ffn"):
        assert errors[part, 30] < 0.97 * errors[part, 0]


def test_a_build_that_was_interrupted_goes_on(build, tokens, tmp_path, monkeypatch):
    model = build("llama")
    _, parent = _parent(model)
    space, recipe = _space(parent), _recipe(steps=6)
    whole, _ = _make(model, space, tokens, recipe, tmp_path / "whole")
    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", -1.0)

    def interrupt_at(wanted):
        def progress(share, stage):
            if stage.startswith("layer") and share >= wanted:
                raise KeyboardInterrupt

        return progress

    for share in (0.2, 0.45, 0.8):
        with pytest.raises(KeyboardInterrupt):
            _make(model, space, tokens, recipe, tmp_path / "l", activations="disk", progress=interrupt_at(share))
        left = os.listdir(tmp_path / "l" / "work")
        assert len(left) == 1
        assert left[0].endswith(".safetensors")
    library, report = _make(model, space, tokens, recipe, tmp_path / "l")
    assert (report.made, report.there_before) == (4, 4)
    _assert_close(_states(library), _states(whole), rtol=0, atol=0)
    assert os.listdir(tmp_path / "l" / "work") == []


def test_a_training_of_other_blocks_is_not_gone_on_with(build, tokens, tmp_path, monkeypatch):
    model = build("llama")
    _, parent = _parent(model)
    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", -1.0)

    def interrupt(share, _stage):
        if share:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _make(model, _space(parent, widths=(8,)), tokens, _recipe(), tmp_path / "l", progress=interrupt)
    library, report = _make(model, _space(parent, widths=(16,)), tokens, _recipe(), tmp_path / "l")
    assert report.made == len(list(library.blocks())) == 8


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_blocks_of_a_bf16_parent_are_stored_in_bf16(build, family, tokens, tmp_path):
    model = build(family).bfloat16()
    _, parent = _parent(model)
    library, _ = _make(model, _space(parent), tokens, _recipe("coupled", precision="bf16"), tmp_path / "l")
    assert {value.dtype for value in _states(library).values()} == {torch.bfloat16}
    assert any(one.kept == "trained" for one in library.blocks())


def test_dropout_of_the_parents_training_is_none_of_its_behaviour(build, tokens, tmp_path):
    results = []
    for dropout in (0.0, 0.5):
        model = build("phi3", attention_dropout=dropout, resid_pdrop=dropout)
        _, parent = _parent(model)
        library, _ = _make(model, _space(parent), tokens, _recipe(), tmp_path / str(dropout))
        results.append(_states(library))
        assert not any(module.training for module in model.modules())
    _assert_close(*results, rtol=0, atol=0)


def test_every_family(build, family, tokens, tmp_path):
    model = build(family)
    _, parent = _parent(model)
    library, _ = _make(model, _space(parent), tokens, _recipe("coupled", steps=2), tmp_path / "l", layers=[1])
    assert len(list(library.blocks())) == 12
    for block in _space(parent).layers[1].blocks():
        states = library.layer_states(1, block, parent.blocks[1], _recipe("coupled", steps=2).id)
        for part, state in states.items():
            half = new_sub_block(model.model.layers[1], model.config, 1, part, getattr(block, part))
            load_half(half, part, state)  # refuses what does not fit


def test_too_few_sequences(build, tokens, tmp_path):
    model = build("llama")
    _, parent = _parent(model)
    with pytest.raises(ValueError, match=r"1 sequence\(s\) cannot be split"):
        _make(model, _space(parent), tokens[:1], _recipe(), tmp_path / "l")
