"""Children from a parent's weights and states."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import torch

from puzzlebench.child.building import build_child
from puzzlebench.child.configs import read_spec
from puzzlebench.child.halves import half_state, new_sub_block
from puzzlebench.model.blocks import GQA, Architecture, Block, Linear, NoOp
from puzzlebench.model.parameters import model_parameters
from puzzlebench.model.spec import parent_architecture

from .conftest import make_child, make_parent, mixed_architecture, tokens


def test_weights_are_the_parents_where_the_sub_block_is(parent):
    spec = read_spec(parent.config)
    architecture = mixed_architecture(spec)
    child = make_child(parent, architecture)
    assert sum(parameter.numel() for parameter in child.parameters()) == model_parameters(spec, architecture)
    state = parent.state_dict()
    for name, parameter in child.named_parameters():
        if not name.startswith(("model.layers.1.", "model.layers.2.")):
            assert torch.equal(parameter, state[name]), name
    assert not any(tensor.is_meta for tensor in (*child.parameters(), *child.buffers()))


def test_training_a_child_leaves_its_parent_and_states_alone(parent):
    spec = read_spec(parent.config)
    half = new_sub_block(parent.model.layers[0], parent.config, 0, "ffn", Linear())
    blocks = parent_architecture(spec).blocks
    architecture = Architecture(blocks=(Block(attention=blocks[0].attention, ffn=Linear()), *blocks[1:]))
    given = half_state(half)
    child = build_child(parent, spec, architecture, {(0, "ffn"): given})
    parents = {name: tensor.clone() for name, tensor in parent.state_dict().items()}
    before = {name: tensor.clone() for name, tensor in given.items()}
    child(tokens(), labels=tokens()).loss.backward()
    torch.optim.SGD(child.parameters(), lr=0.1).step()
    assert not torch.equal(child.model.embed_tokens.weight, parents["model.embed_tokens.weight"])
    assert all(torch.equal(tensor, parents[name]) for name, tensor in parent.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in given.items())


def test_tied_embeddings_stay_tied():
    child = make_child(parent := make_parent("qwen2"), mixed_architecture(read_spec(parent.config)))
    assert child.lm_head.weight is child.model.embed_tokens.weight


def test_states_take_the_parents_dtype():
    parent = make_parent("olmo2")
    architecture = mixed_architecture(read_spec(parent.config))
    child = make_child(parent.to(torch.bfloat16), architecture)
    assert {parameter.dtype for parameter in child.parameters()} == {torch.bfloat16}
    assert child(tokens()).logits.dtype == torch.bfloat16


def test_scaled_rope_is_the_parents():
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    parent = make_parent("llama", rope_scaling=scaling, max_position_embeddings=8)
    child = make_child(parent, parent_architecture(read_spec(parent.config)))
    for length in (6, 20, 6):  # past the positions it was trained for, and back
        assert torch.equal(child(tokens(length=length)).logits, parent(tokens(length=length)).logits)


def test_a_state_may_replace_weights_of_the_same_kind():
    parent = make_parent("mistral")
    spec = read_spec(parent.config)
    own = parent_architecture(spec)
    half = new_sub_block(parent.model.layers[1], parent.config, 1, "attention", own.blocks[1].attention)
    child = build_child(parent, spec, own, {(1, "attention"): half_state(half)})
    assert torch.equal(child.model.layers[1].self_attn.q_proj.weight, half.self_attn.q_proj.weight)


def attention_of_layer_2(spec, attention):
    blocks = list(parent_architecture(spec).blocks)
    blocks[2] = Block(attention=attention, ffn=blocks[2].ffn)
    return Architecture(blocks=tuple(blocks))


@pytest.mark.parametrize(
    ("attention", "states", "message"),
    [
        (Linear(), {}, "layer 2: the attention linear needs a state; none is given"),
        (GQA(num_key_value_heads=1), {}, "layer 2: the attention gqa_1 needs a state"),
        (Linear(), {(2, "attention"): {}}, "layer 2: state of the attention linear: input_layernorm.weight is missing"),
        (NoOp(), {(2, "attention"): {"x": torch.zeros(1)}}, "layer 2: .* x has no place; there are no weights"),
        (
            Linear(),
            {
                (2, "attention"): {
                    "input_layernorm.weight": torch.zeros(32),
                    "self_attn.linear_attn.weight": torch.zeros(32, 16),
                }
            },
            r"layer 2: .* self_attn.linear_attn.weight has shape \[32, 16\], not \[32, 32\]",
        ),
        (GQA(num_key_value_heads=3), {}, "layer 2: 3 key-value heads do not divide"),
    ],
)
def test_children_that_cannot_be_built(attention, states, message):
    parent = make_parent("llama")
    spec = read_spec(parent.config)
    with pytest.raises(ValueError, match=message):
        build_child(parent, spec, attention_of_layer_2(spec, attention), states)
