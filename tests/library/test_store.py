from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from puzzlebench.library.store import BlockFacts, ParentFacts, create_library, half_name, open_library
from puzzlebench.model.blocks import GQA, Architecture, Block, GatedMLP, Linear, NoOp
from puzzlebench.model.space import LayerCandidates
from puzzlebench.training.tensors import write_tensors

PARENT = ParentFacts(name="tiny", model_type="llama", num_hidden_layers=2, fingerprint="f" * 64)
OWN = Block(attention=GQA(num_key_value_heads=4), ffn=GatedMLP(intermediate_size=24))
SMALL = Block(attention=GQA(num_key_value_heads=2), ffn=GatedMLP(intermediate_size=8))
RECIPE = "0123456789ab"


@pytest.fixture
def library(tmp_path):
    library = create_library(tmp_path / "library", PARENT)
    library.write_recipe(RECIPE, {"mode": "decoupled"}, {})
    return library


def _put(library, layer, block, value, names=("self_attn.q_proj.weight",), **facts):
    state = {name: torch.full((2, 2), float(value)) for name in names}
    library.write(BlockFacts(parent=PARENT.fingerprint, layer=layer, block=block, recipe=RECIPE, **facts), state)
    return state


def test_a_block_comes_back_as_it_was_stored(library):
    assert not library.has(1, "attention.gqa_2", RECIPE)
    facts = {"initial_loss": 0.5, "final_loss": 0.25, "kept": "trained", "steps": 3, "tokens": 96}
    state = _put(library, 1, "attention.gqa_2", 3, **facts)
    assert library.has(1, "attention.gqa_2", RECIPE)
    assert not library.has(0, "attention.gqa_2", RECIPE)
    assert not library.has(1, "attention.gqa_2", "other")
    block = Block(attention=SMALL.attention, ffn=OWN.ffn)
    found = open_library(library.path, PARENT).layer_states(1, block, OWN, RECIPE)
    assert found.keys() == {"attention"}
    assert found["attention"].keys() == state.keys()
    assert torch.equal(found["attention"]["self_attn.q_proj.weight"], state["self_attn.q_proj.weight"])
    (read,) = library.blocks()
    assert read == BlockFacts(parent=PARENT.fingerprint, layer=1, block="attention.gqa_2", recipe=RECIPE, **facts)


def test_names_of_halves():
    assert half_name("attention", GQA(num_key_value_heads=2, sliding_window=8)) == "attention.gqa_2_w8"
    assert half_name("ffn", Linear()) == "ffn.linear"


def test_a_pair_trained_together_comes_before_halves_trained_apart(library):
    _put(library, 0, "attention.gqa_2", 1)
    _put(library, 0, "ffn.mlp_8", 2, ("mlp.up_proj.weight",))
    found = library.layer_states(0, SMALL, OWN, RECIPE)
    assert found["attention"]["self_attn.q_proj.weight"][0, 0] == 1
    assert found["ffn"]["mlp.up_proj.weight"][0, 0] == 2
    _put(library, 0, "gqa_2+mlp_8", 3, ("attention/self_attn.q_proj.weight", "ffn/mlp.up_proj.weight"))
    found = library.layer_states(0, SMALL, OWN, RECIPE)
    assert {part: list(state) for part, state in found.items()} == {
        "attention": ["self_attn.q_proj.weight"],
        "ffn": ["mlp.up_proj.weight"],
    }
    assert {state[name][0, 0].item() for state in found.values() for name in state} == {3}
    halved = Block(attention=SMALL.attention, ffn=OWN.ffn)  # not that pair
    assert library.layer_states(0, halved, OWN, RECIPE)["attention"]["self_attn.q_proj.weight"][0, 0] == 1


def test_no_ops_need_no_file_and_the_parents_own_is_left_out(library):
    assert library.layer_states(0, OWN, OWN, RECIPE) == {}
    nothing = Block(attention=NoOp(), ffn=NoOp())
    assert library.layer_states(0, nothing, OWN, RECIPE) == {"attention": {}, "ffn": {}}
    _put(library, 0, "no_op+mlp_8", 3, ("ffn/mlp.up_proj.weight",))
    pair = library.layer_states(0, Block(attention=NoOp(), ffn=SMALL.ffn), OWN, RECIPE)
    assert pair["attention"] == {}
    assert list(pair["ffn"]) == ["mlp.up_proj.weight"]


def test_a_missing_block_is_named_with_its_layer(library):
    _put(library, 1, "attention.gqa_2", 1)
    for call in (library.require, library.layer_states):
        with pytest.raises(ValueError, match=rf"has no ffn\.mlp_8 for layer 1 by recipe {RECIPE}; make it with"):
            call(1, SMALL, OWN, RECIPE)
        with pytest.raises(ValueError, match=r"has no attention\.gqa_2 for layer 0"):
            call(0, SMALL, OWN, RECIPE)


def test_a_library_of_another_parent_is_refused(library):
    other = ParentFacts(name="other", model_type="llama", num_hidden_layers=2, fingerprint="e" * 64)
    for opens in (open_library, create_library):
        with pytest.raises(ValueError, match=r"is a library of tiny \(f{12}\), not of other \(e{12}\); give another"):
            opens(library.path, other)
    with pytest.raises(ValueError, match=r"is a library of another parent"):
        library.write(BlockFacts(parent="e" * 64, layer=0, block="ffn.linear", recipe=RECIPE), {})
    assert list(library.blocks()) == []
    renamed = ParentFacts(name="moved", model_type="llama", num_hidden_layers=2, fingerprint="f" * 64)
    assert open_library(library.path, renamed).parent == PARENT
    assert open_library(library.path).parent == PARENT


def test_the_manifest_is_made_from_the_files(library):
    _put(library, 1, "ffn.linear", 1, initial_loss=0.5, final_loss=0.5)
    _put(library, 0, "gqa_2+linear", 1)
    manifest = library.write_manifest()
    assert json.loads((library.path / "manifest.json").read_text()) == manifest
    assert manifest["parent"]["fingerprint"] == PARENT.fingerprint
    assert manifest["recipes"] == {RECIPE: {"mode": "decoupled"}}
    assert [(one["layer"], one["block"]) for one in manifest["blocks"]] == [(0, "gqa_2+linear"), (1, "ffn.linear")]
    assert all((library.path / one["file"]).exists() for one in manifest["blocks"])
    (library.path / "manifest.json").unlink()
    library.file(0, "gqa_2+linear", RECIPE).unlink()
    assert [one["block"] for one in library.write_manifest()["blocks"]] == ["ffn.linear"]


def test_recipes_are_found_by_how_they_begin(library):
    assert library.recipe_id() == library.recipe_id("01") == library.recipe_id(RECIPE) == RECIPE
    with pytest.raises(ValueError, match=rf"holds 0 recipes begin with 'f'; name one with --recipe: {RECIPE}"):
        library.recipe_id("f")
    library.write_recipe("0199", {}, {"0": []})
    assert library.recipe_id("0123") == RECIPE
    with pytest.raises(ValueError, match=rf"holds 2 recipes; name one with --recipe: {RECIPE}, 0199"):
        library.recipe_id()
    with pytest.raises(ValueError, match=r"2 recipes begin with '01'"):
        library.recipe_id("01")


def test_the_space_of_a_library_is_what_it_has_by_a_recipe(library):
    parent = Architecture(blocks=(OWN, OWN))
    nothing = LayerCandidates(attention=(OWN.attention, NoOp()), ffn=(OWN.ffn, NoOp()))
    assert library.space(parent, RECIPE).layers == (nothing, nothing)
    for layer, block in ((0, "attention.gqa_2"), (0, "ffn.mlp_8"), (0, "ffn.linear"), (0, "gqa_2+mlp_8")):
        _put(library, layer, block, 1)
    found = library.space(parent, RECIPE).layers
    assert found[1] == nothing
    assert (found[0].attention[0], found[0].ffn[0]) == (OWN.attention, OWN.ffn)
    assert set(found[0].attention) == {OWN.attention, SMALL.attention, NoOp()}
    assert set(found[0].ffn) == {OWN.ffn, SMALL.ffn, Linear(), NoOp()}
    assert library.space(parent, "other").layers == (nothing, nothing)
    for block in found[0].blocks():
        library.require(0, block, OWN, RECIPE)


def test_a_library_without_recipes(tmp_path):
    with pytest.raises(ValueError, match=r"holds 0 recipes; name one with --recipe: there is none"):
        create_library(tmp_path, PARENT).recipe_id()


def test_what_is_no_library_is_refused(tmp_path, library):
    with pytest.raises(ValueError, match=r"nowhere is not a block library: it has no library\.json"):
        open_library(tmp_path / "nowhere")
    index = library.path / "library.json"
    stated = json.loads(index.read_text())
    index.write_text(json.dumps(stated | {"schema": 9}))
    with pytest.raises(ValueError, match=r"is a library of schema 9; this version reads 1"):
        open_library(library.path)
    for broken in ("{", "[]", json.dumps({"schema": 1}), json.dumps({"schema": 1, "parent": {"name": "x"}})):
        index.write_text(broken)
        with pytest.raises(ValueError, match=r"is not a block library: library\.json cannot be read"):
            open_library(library.path)
    index.unlink()
    _put(library, 0, "ffn.linear", 1)
    with pytest.raises(ValueError, match=r"holds 000\.ffn\.linear\.\w+\.safetensors and no library\.json"):
        create_library(library.path, PARENT)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to .*file: "):
        create_library(tmp_path / "file", PARENT)


def test_foreign_files_and_other_schemas_among_the_blocks_are_named(library):
    file = library.path / "blocks" / "000.ffn.linear.x.safetensors"
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"000\.ffn\.linear\.x\.safetensors was not written by puzzlebench"):
        list(library.blocks())
    write_tensors(file, {}, {"schema": 2, "layer": 0})
    with pytest.raises(ValueError, match=r"is of another schema; this version reads 1"):
        library.write_manifest()
