"""Fresh halves, their states, and layers of swapped halves."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import torch

from puzzlebench.child.configs import read_spec
from puzzlebench.child.halves import half_state, load_half, new_sub_block, part_state, swapped
from puzzlebench.child.modeling_heterogeneous import MODULES, take_half
from puzzlebench.model.blocks import GQA, GatedMLP, Linear, NoOp
from puzzlebench.model.parameters import sub_block_parameters

from .conftest import cache_of, make_child, make_parent, mixed_architecture, tokens

SUB_BLOCKS = (
    ("attention", GQA(num_key_value_heads=1, sliding_window=5)),
    ("attention", GQA(num_key_value_heads=4, sliding_window=5)),
    ("attention", Linear()),
    ("attention", NoOp()),
    ("ffn", GatedMLP(intermediate_size=16)),
    ("ffn", Linear()),
    ("ffn", NoOp()),
)


@pytest.mark.parametrize(("part", "sub_block"), SUB_BLOCKS)
def test_a_fresh_half_has_the_parameters_of_its_sub_block_and_shares_none(parent, part, sub_block):
    layer, spec = parent.model.layers[3], read_spec(parent.config)
    half = new_sub_block(layer, parent.config, 3, part, sub_block)
    state = half_state(half)
    assert sum(tensor.numel() for tensor in state.values()) == sub_block_parameters(spec, sub_block)
    assert {name.split(".")[0] for name in state} <= {name.split(".")[0] for name in part_state(layer, part)}
    theirs = {parameter.data_ptr() for parameter in parent.parameters()}
    assert not theirs & {parameter.data_ptr() for parameter in half.parameters()}
    assert all(parameter.requires_grad for parameter in half.parameters())
    for name, tensor in state.items():
        if "layernorm" in name:
            assert torch.equal(tensor, layer.get_parameter(name))


def test_a_fresh_half_is_where_the_layer_is():
    parent = make_parent("qwen3").to(torch.bfloat16)
    half = new_sub_block(parent.model.layers[0], parent.config, 0, "attention", GQA(num_key_value_heads=1))
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert not half.self_attn.training


def test_the_parents_sub_block_with_the_parents_state_is_the_parents(parent):
    spec, layer = read_spec(parent.config), parent.model.layers[1]
    gqa = GQA(num_key_value_heads=spec.num_key_value_heads, sliding_window=spec.sliding_windows[1])
    for part, sub_block in (("attention", gqa), ("ffn", GatedMLP(intermediate_size=spec.intermediate_size))):
        half = new_sub_block(layer, parent.config, 1, part, sub_block)
        load_half(half, part, part_state(layer, part))
        expected = parent(tokens()).logits
        with swapped(parent, 1, **{part: half}):
            assert torch.equal(parent(tokens()).logits, expected)


def test_swapped_halves_are_the_child(parent):
    """One layer after the other exchanged in memory gives what the built child gives, with a cache too."""
    architecture = mixed_architecture(read_spec(parent.config))
    child = make_child(parent, architecture)
    expected = parent(tokens()).logits
    modules = dict(parent.named_modules())
    halves = []
    for layer, block in enumerate(architecture.blocks):
        pair = {}
        for part in MODULES:
            pair[part] = new_sub_block(parent.model.layers[layer], parent.config, layer, part, getattr(block, part))
            load_half(pair[part], part, part_state(child.model.layers[layer], part))
        halves.append(pair)
    with (
        swapped(parent, 0, **halves[0]),
        swapped(parent, 1, **halves[1]),
        swapped(parent, 2, **halves[2]),
        swapped(parent, 3, ffn=halves[3]["ffn"]),
    ):
        assert not torch.equal(parent(tokens()).logits, expected)
        torch.testing.assert_close(parent(tokens()).logits, child(tokens()).logits, rtol=0, atol=1e-5)
        output = parent(tokens()[:, :7], use_cache=True)
        rest = parent(tokens()[:, 7:], use_cache=True, **cache_of(output)).logits
        torch.testing.assert_close(rest, child(tokens()).logits[:, 7:], rtol=0, atol=1e-4)
    assert torch.equal(parent(tokens()).logits, expected)
    assert dict(parent.named_modules()) == modules


def test_a_swap_ends_after_an_error():
    parent = make_parent("llama")
    own = parent.model.layers[2].mlp
    half = new_sub_block(parent.model.layers[2], parent.config, 2, "ffn", NoOp())
    with pytest.raises(IndexError), swapped(parent, 2, ffn=half):
        parent(tokens() + 1000)
    assert parent.model.layers[2].mlp is own


def test_training_a_half_leaves_the_parent_alone():
    parent = make_parent("gemma2")
    before = {name: tensor.clone() for name, tensor in parent.state_dict().items()}
    half = new_sub_block(parent.model.layers[0], parent.config, 0, "ffn", GatedMLP(intermediate_size=16))
    optimiser = torch.optim.SGD(half.parameters(), lr=0.1)
    with swapped(parent, 0, ffn=half):
        parent(tokens(), labels=tokens()).loss.backward()
    start = {name: tensor.clone() for name, tensor in half_state(half).items()}
    optimiser.step()
    assert all(not torch.equal(tensor, start[name]) for name, tensor in half_state(half).items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in parent.state_dict().items())


def test_the_state_of_a_half_names_what_the_layer_names():
    layer = make_parent("gemma3_text").model.layers[0]
    assert set(half_state(take_half(layer, "ffn"))) == {
        "mlp.gate_proj.weight",
        "mlp.up_proj.weight",
        "mlp.down_proj.weight",
        "pre_feedforward_layernorm.weight",
        "post_feedforward_layernorm.weight",
    }
    assert set(part_state(layer, "attention")) | set(part_state(layer, "ffn")) == set(layer.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("mlp.up_proj.weight"), "mlp.up_proj.weight is missing"),
        (lambda state: state.update(bias=torch.zeros(1)), "bias has no place; there are mlp.gate_proj.weight"),
        (
            lambda state: state.update({"mlp.up_proj.weight": torch.zeros(3, 32)}),
            r"mlp.up_proj.weight has shape \[3, 32\], not \[48, 32\]",
        ),
    ],
)
def test_states_that_do_not_fit(change, message):
    layer = make_parent("mistral").model.layers[0]
    state = part_state(layer, "ffn")
    change(state)
    with pytest.raises(ValueError, match=message):
        load_half(layer, "ffn", state)


@pytest.mark.parametrize(
    ("family", "layer", "part", "sub_block", "message"),
    [
        ("llama", 0, "attention", GQA(num_key_value_heads=3), "3 key-value heads do not divide the 4 attention heads"),
        ("llama", 0, "ffn", GQA(num_key_value_heads=2), "gqa_2 cannot be the ffn of a layer"),
        ("llama", 0, "attention", GatedMLP(intermediate_size=8), "mlp_8 cannot be the attention of a layer"),
        ("llama", 0, "mlp", NoOp(), "part must be 'attention' or 'ffn', not 'mlp'"),
        ("mistral", 1, "attention", GQA(num_key_value_heads=2), "layer 1: a window of all tokens is wider"),
        ("mistral", 1, "attention", GQA(num_key_value_heads=2, sliding_window=7), "of 7 tokens is wider than the par"),
        ("gemma3_text", 2, "attention", GQA(num_key_value_heads=2, sliding_window=4), "have a RoPE of their own"),
    ],
)
def test_sub_blocks_that_do_not_fit(family, layer, part, sub_block, message):
    parent = make_parent(family)
    with pytest.raises(ValueError, match=message):
        new_sub_block(parent.model.layers[layer], parent.config, layer, part, sub_block)
