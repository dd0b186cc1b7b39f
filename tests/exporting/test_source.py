"""What is read of a checkpoint, and which are refused."""

import json

import pytest

pytest.importorskip("transformers")

import torch
from safetensors.torch import load_file, save_file

from puzzlebench.exporting.source import open_source
from puzzlebench.model.blocks import parse_block

from .children import MIXED, architecture_of, read_json, save_model


def test_a_child_is_read_whole_and_in_order(tmp_path):
    model = save_model(tmp_path / "child", names=("gqa_2+mlp_256", *MIXED[1:]), num_hidden_layers=4)
    source = open_source(tmp_path / "child")
    assert source.architecture == architecture_of(*MIXED)
    assert (source.name, source.spec.vocab_size, source.solution["parent"]) == ("child", 300, "some/parent")
    found = dict(source.tensors())
    state = model.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.items())
    names = list(found)
    assert (names[0], names[-1]) == ("model.embed_tokens.weight", "lm_head.weight")
    assert source.settings()["rms_norm_eps"] == model.config.rms_norm_eps


def test_layer_10_comes_after_layer_9(tmp_path):
    save_model(tmp_path / "deep", None, num_hidden_layers=11)
    layers = [int(name.split(".")[2]) for name, _ in open_source(tmp_path / "deep").tensors() if ".layers." in name]
    assert layers == sorted(layers)
    assert layers[-1] == 10


def test_shards_and_stray_files_are_told_apart_by_the_index(tmp_path):
    model = save_model(tmp_path / "child")
    again = tmp_path / "sharded"
    model.save_pretrained(again, max_shard_size="100KB")
    assert len(list(again.glob("*.safetensors"))) > 1
    save_file({"tok_embeddings.weight": torch.zeros(2)}, again / "consolidated.safetensors")
    assert dict(open_source(again).tensors()).keys() == model.state_dict().keys()


def test_a_tied_head_does_not_come_twice(tmp_path):
    model = save_model(tmp_path / "tied", tie_word_embeddings=True)
    state = load_file(tmp_path / "tied" / "model.safetensors")
    state["lm_head.weight"] = model.lm_head.weight.detach().clone()
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)  # as old checkpoints have it
    save_file(state, tmp_path / "tied" / "model.safetensors", metadata={"format": "pt"})
    names = [name for name, _ in open_source(tmp_path / "tied").tensors()]
    assert "lm_head.weight" not in names
    assert not any("inv_freq" in name for name in names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("model.layers.1.mlp.up_proj.weight"),
            "1 weights are missing, the first is .*.up_proj",
        ),
        (lambda state: state.update(odd=torch.zeros(1)), "1 weights are of no layer in its config, the first is odd"),
        (
            lambda state: state.update({"model.norm.weight": torch.zeros(3)}),
            r"model.norm.weight is \[3\], and its config asks for \[32\]",
        ),
    ],
)
def test_broken_weights_are_named(tmp_path, change, message):
    save_model(tmp_path / "child")
    state = load_file(tmp_path / "child" / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "child" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / "child")


def edit(folder, **changes):
    config = read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"is quantised \(gptq\)"),
        ({"per_layer_config": {"9": {"intermediate_size": 3}}}, "per_layer_config has key '9'"),
    ],
)
def test_other_checkpoints_are_refused_in_one_line(tmp_path, changes, message):
    save_model(tmp_path / "child")
    edit(tmp_path / "child", **changes)
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / "child")


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is not a checkpoint: it has no config.json"):
        open_source(tmp_path)
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ValueError, match="make a checkpoint of it first with `puzzlebench import`"):
        open_source(tmp_path)


def test_an_index_cannot_name_files_elsewhere(tmp_path):
    model = save_model(tmp_path / "child")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    index = tmp_path / "sharded" / "model.safetensors.index.json"
    stated = read_json(index)
    stated["weight_map"]["model.norm.weight"] = "../child/model.safetensors"
    index.write_text(json.dumps(stated))
    with pytest.raises(ValueError, match=r"names ../child/model.safetensors, which is not in the folder"):
        open_source(tmp_path / "sharded")


def test_a_child_that_states_no_layer_is_a_stock_model(tmp_path):
    save_model(tmp_path / "same", ("gqa_2+mlp_512",) * 4)
    assert not read_json(tmp_path / "same" / "config.json").get("per_layer_config")
    assert set(open_source(tmp_path / "same").architecture.blocks) == {parse_block("gqa_2+mlp_512")}
