"""Layer rules: which layers and blocks they are about, and what is no rule."""

import fnmatch
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzlebench.searching.layer_rules import parse_layer_rule

BLOCKS = [
    f"{attention}+{ffn}"
    for attention in ("gqa_8", "gqa_80", "gqa_8_w4096", "linear", "no_op")
    for ffn in ("mlp_14336", "mlp_1433", "linear", "no_op")
]


@pytest.mark.parametrize(
    ("text", "layers", "matched"),
    [
        ("0-3=parent", range(4), ["gqa_8+mlp_14336"]),
        ("5=gqa_8+*", range(5, 6), [block for block in BLOCKS if block.startswith("gqa_8+")]),
        ("*=*+mlp_14336", range(8), [block for block in BLOCKS if block.endswith("+mlp_14336")]),
        ("2-7=linear+*", range(2, 8), [block for block in BLOCKS if block.startswith("linear+")]),
        (" * = no_op + no_op ", range(8), ["no_op+no_op"]),
        ("7=gqa_*+mlp_*", range(7, 8), [block for block in BLOCKS if "gqa" in block and "mlp" in block]),
        ("0=*+*", range(1), BLOCKS),
    ],
)
def test_layers_and_blocks(text, layers, matched):
    rule = parse_layer_rule(text)
    assert rule.layers(8) == layers
    assert [block for block in BLOCKS if rule.matches(block, own="gqa_8+mlp_14336")] == matched


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parent", "'parent' is not layers=block; give a rule such as 5=gqa_8+*, 0-3=parent or *=*+mlp_14336"),
        ("-3=parent", "'-3=parent' is not layers=block"),
        ("1,2=parent", "is not layers=block"),
        ("7-3=parent", "'7-3=parent': the range 7-3 is the wrong way round"),
        ("3=gqa_8", "'gqa_8' is neither parent nor attention+ffn, such as gqa_8+* or *+mlp_14336"),
        ("3=*", "'*' is neither parent nor attention+ffn"),
        ("3=", "'' is neither parent nor attention+ffn"),
        ("3=gqa8+*", "'gqa8' is not an attention sub-block; expected gqa_<kv heads>"),
        ("3=mlp_8+*", "'mlp_8' is not an attention sub-block"),
        ("3=*+gqa_8", "'gqa_8' is not an ffn sub-block"),
        ("3=[a]*+*", "'[a]*' is not an attention sub-block"),
    ],
)
def test_refused_rules(text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse_layer_rule(text)
    assert "\n" not in str(caught.value)


def test_layers_must_be_there():
    rule = parse_layer_rule("3-8=parent")
    assert rule.layers(9) == range(3, 9)
    with pytest.raises(ValueError, match=r"'3-8=parent' names layer 8, but the layers are 0 to 7"):
        rule.layers(8)


halves = st.lists(st.sampled_from(["*", "gqa_", "8", "mlp_", "14336", "no_op", "linear", "_w4096"]), max_size=4)


@given(st.integers(0, 30), st.integers(0, 30), halves.map("".join), halves.map("".join))
def test_wildcards_are_those_of_file_names(first, last, attention, ffn):
    text = f"{first}-{last}={attention}+{ffn}"
    try:
        rule = parse_layer_rule(text)
    except ValueError as error:
        assert repr(text) in str(error)  # noqa: PT017
        assert last < first or "*" not in attention or "*" not in ffn
        return
    assert rule.layers(31) == range(first, last + 1)
    for block in BLOCKS:
        one, other = block.split("+")
        wanted = fnmatch.fnmatchcase(one, attention) and fnmatch.fnmatchcase(other, ffn)
        assert rule.matches(block, own="no_op+no_op") == wanted
