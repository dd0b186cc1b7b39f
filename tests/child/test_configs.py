"""Configs of children: what they state, and that they are read back as the architecture they were made from."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import transformers

from puzzlebench.child.configs import check_family, child_config, per_layer_config, read_spec
from puzzlebench.model.blocks import GQA, Architecture, Block, GatedMLP, Linear, NoOp
from puzzlebench.model.hf_config import from_hf_config
from puzzlebench.model.spec import parent_architecture

from .conftest import make_parent, mixed_architecture


def with_windows(spec, *windows):
    ffn = GatedMLP(intermediate_size=spec.intermediate_size)
    return Architecture(
        blocks=tuple(
            Block(attention=GQA(num_key_value_heads=spec.num_key_value_heads, sliding_window=window), ffn=ffn)
            for window in windows
        )
    )


def test_a_config_is_read_back_as_its_architecture(parent):
    spec = read_spec(parent.config)
    before = parent.config.to_dict()
    for architecture in (mixed_architecture(spec), parent_architecture(spec)):
        config = child_config(parent.config, spec, architecture)
        assert type(config) is type(parent.config)
        read, found = from_hf_config(config.to_dict(), name="child")
        assert found == architecture
        assert read.head_dim == spec.head_dim
    assert parent.config.to_dict() == before


def test_only_what_differs_is_stated():
    parent = make_parent("llama")
    spec = read_spec(parent.config)
    ffn = GatedMLP(intermediate_size=48)
    architecture = Architecture(
        blocks=(
            Block(attention=GQA(num_key_value_heads=4), ffn=ffn),
            Block(attention=GQA(num_key_value_heads=1, sliding_window=64), ffn=GatedMLP(intermediate_size=24)),
            Block(attention=NoOp(), ffn=Linear()),
            Block(attention=NoOp(), ffn=NoOp()),
        )
    )
    stated = {
        "1": {"num_key_value_heads": 1, "sliding_window": 64, "intermediate_size": 24},
        "2": {"skip": ["attention"], "linear": ["mlp"]},
        "3": {"skip": ["attention", "mlp"]},
    }
    assert per_layer_config(spec, architecture, parent.config) == stated
    config = child_config(parent.config, spec, architecture).to_dict()
    assert config["per_layer_config"] == stated or config["per_layer_config"] == {int(k): stated[k] for k in stated}
    assert config["auto_map"] == {"AutoModelForCausalLM": "modeling_heterogeneous.HeterogeneousLlamaForCausalLM"}
    assert (config["model_type"], config["linear"], config["sliding_window"]) == ("llama", [], None)


def test_a_child_like_its_parent_states_nothing(parent):
    spec = read_spec(parent.config)
    assert not child_config(parent.config, spec, parent_architecture(spec)).to_dict().get("per_layer_config")


def test_a_window_where_the_parent_has_none_becomes_the_layers_type():
    parent = make_parent("qwen2")
    spec = read_spec(parent.config)
    config = child_config(parent.config, spec, with_windows(spec, None, 4, None, 9))
    assert config.layer_types == ["full_attention", "sliding_attention"] * 2
    assert config.use_sliding_window
    config = config.to_dict()
    assert config["sliding_window"] == 9
    assert {int(layer): values for layer, values in config["per_layer_config"].items()} == {1: {"sliding_window": 4}}


@pytest.mark.parametrize(
    ("family", "windows", "message"),
    [
        ("mistral", (6, None, 6, 6), "layer 1: a window of all tokens is wider than the parent's 6; use at most 6"),
        ("mistral", (6, 6, 7, 6), "layer 2: a window of 7 tokens is wider"),
        ("gemma3_text", (6, 6, 4, 6), "layer 2 attends to everything, and full layers of gemma3_text have a RoPE"),
        ("llama", (None,), "the architecture has 1 layers but"),
    ],
)
def test_windows_that_are_not_possible(family, windows, message):
    config = make_parent(family).config
    spec = read_spec(config)
    with pytest.raises(ValueError, match=message):
        child_config(config, spec, with_windows(spec, *windows))


def test_parents_that_are_not_possible():

    with pytest.raises(ValueError, match="'nemotron-nas' is the decilm format; `puzzlebench import` makes a child"):
        check_family("nemotron-nas")
    with pytest.raises(ValueError, match="model_type 'bert' is not supported; children have gemma, gemma2"):
        read_spec(transformers.BertConfig())
    parent = make_parent("llama").config
    spec = read_spec(parent)
    child = child_config(parent, spec, mixed_architecture(spec))
    with pytest.raises(ValueError, match="is a child already"):
        child_config(child, spec, mixed_architecture(spec))
