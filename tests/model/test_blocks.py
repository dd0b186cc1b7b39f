"""Names, parsing and JSON of blocks."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzlebench.model.blocks import (
    GQA,
    Architecture,
    Block,
    GatedMLP,
    Linear,
    NoOp,
    architecture_from_json,
    architecture_to_json,
    parse_sub_block,
    sub_block_name,
)

positive = st.integers(min_value=1, max_value=10**6)
attention = st.one_of(
    st.builds(GQA, num_key_value_heads=positive, sliding_window=st.none() | positive),
    st.just(Linear()),
    st.just(NoOp()),
)
ffn = st.one_of(st.builds(GatedMLP, intermediate_size=positive), st.just(Linear()), st.just(NoOp()))
blocks = st.builds(Block, attention=attention, ffn=ffn)


@pytest.mark.parametrize(
    ("part", "sub", "name"),
    [
        ("attention", GQA(num_key_value_heads=8), "gqa_8"),
        ("attention", GQA(num_key_value_heads=8, sliding_window=4096), "gqa_8_w4096"),
        ("attention", Linear(), "linear"),
        ("ffn", GatedMLP(intermediate_size=14336), "mlp_14336"),
        ("ffn", NoOp(), "no_op"),
    ],
)
def test_names_are_the_documented_ones(part, sub, name):
    assert sub_block_name(sub) == name
    assert parse_sub_block(part, name) == sub


@given(attention)
def test_attention_names_round_trip(sub):
    assert parse_sub_block("attention", sub_block_name(sub)) == sub


@given(ffn)
def test_ffn_names_round_trip(sub):
    assert parse_sub_block("ffn", sub_block_name(sub)) == sub


@given(st.lists(blocks, min_size=1, max_size=6))
def test_architecture_json_round_trips(layers):
    architecture = Architecture(blocks=tuple(layers))
    assert architecture_from_json(json.loads(json.dumps(architecture_to_json(architecture)))) == architecture


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("attention", "mlp_256"),
        ("ffn", "gqa_8"),
        ("attention", "gqa_08"),
        ("attention", "gqa_0"),
        ("attention", "gqa_8_w"),
        ("ffn", "mlp_256 "),
        ("ffn", 256),
    ],
)
def test_a_name_of_the_other_part_or_form_is_refused(part, name):
    with pytest.raises(ValueError, match=f"is not an {part} sub-block; expected"):
        parse_sub_block(part, name)


def test_unknown_part_is_refused():
    with pytest.raises(ValueError, match="'attention' or 'ffn', not 'mlp'"):
        parse_sub_block("mlp", "linear")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "JSON object"),
        ({"schema": 2, "blocks": []}, "schema 2 is not known"),
        ({"schema": 1}, "'blocks' is missing"),
        ({"schema": 1, "blocks": [], "name": "x"}, "unknown key 'name'"),
        ({"schema": 1, "blocks": {}}, "must be a list"),
        ({"schema": 1, "blocks": []}, "at least one Block"),
        ({"schema": 1, "blocks": [{"attention": "gqa_8", "ffn": "gqa_8"}]}, "layer 0: 'gqa_8' is not an ffn"),
        ({"schema": 1, "blocks": [{"attention": "gqa_8"}]}, "layer 0: key 'ffn' is missing"),
        ({"schema": 1, "blocks": ["gqa_8"]}, "layer 0: a block is a JSON object"),
    ],
)
def test_bad_architecture_json_says_what_is_wrong(data, message):
    with pytest.raises(ValueError, match=message):
        architecture_from_json(data)


def test_impossible_values_are_refused():
    with pytest.raises(ValueError, match="num_key_value_heads must be a whole number of at least 1, not 0"):
        GQA(num_key_value_heads=0)
    with pytest.raises(ValueError, match="sliding_window"):
        GQA(num_key_value_heads=1, sliding_window=-1)
    with pytest.raises(ValueError, match="intermediate_size"):
        GatedMLP(intermediate_size=2.5)
    with pytest.raises(ValueError, match="attention must be GQA, Linear or NoOp"):
        Block(attention=GatedMLP(intermediate_size=1), ffn=NoOp())
    with pytest.raises(ValueError, match="ffn must be GatedMLP, Linear or NoOp"):
        Block(attention=NoOp(), ffn=GQA(num_key_value_heads=1))
