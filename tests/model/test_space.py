"""Search spaces: the paper's, and how they shrink with the model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzlebench.model.blocks import GQA, Architecture, Block, GatedMLP, Linear, NoOp, sub_block_name
from puzzlebench.model.catalog import load_model
from puzzlebench.model.space import (
    LayerCandidates,
    SearchSpace,
    default_kv_heads,
    default_space,
    distinct_sub_blocks,
    ffn_widths,
)


def names(subs):
    return [sub_block_name(sub) for sub in subs]


def test_llama_70b_has_the_papers_54_blocks():
    space = default_space(load_model("llama-3.1-70b")[0])
    assert len(space.layers) == 80
    for layer in space.layers:
        assert names(layer.attention) == ["gqa_8", "gqa_4", "gqa_2", "gqa_1", "linear", "no_op"]
        widths = [f"mlp_{width}" for width in (28672, 25088, 21504, 14336, 7168, 5632, 2816)]
        assert names(layer.ffn) == [*widths, "linear", "no_op"]
        assert len(layer.blocks()) == 54
    assert space.log10_size == pytest.approx(138.6, abs=0.05)
    assert tuple(len(part) for part in distinct_sub_blocks(space)) == (6, 9)


@pytest.mark.parametrize(
    ("heads", "offered"),
    [
        (8, (8, 4, 2, 1)),
        (32, (32, 16, 8, 4)),
        (40, (40, 20, 10, 5)),
        (10, (10, 5, 2, 1)),
        (4, (4, 2, 1)),
        (3, (3, 1)),
        (1, (1,)),
    ],
)
def test_default_kv_heads(heads, offered):
    assert default_kv_heads(heads) == offered


@pytest.mark.parametrize(
    ("width", "widths"),
    [
        (29568, (29568, 25856, 22272, 14848, 7424, 5888, 3072)),  # not a multiple of 256 itself
        (4864, (4864, 4224, 3712, 2432, 1280, 1024, 512)),  # 128s
        (1024, (1024, 896, 768, 512, 256, 192, 96)),  # 32s
        (64, (64, 56, 48, 32, 16, 8)),  # 8s: 25 % and 20 % give the same
    ],
)
def test_ffn_widths_use_a_multiple_fine_enough(width, widths):
    assert ffn_widths(width) == widths


@given(st.integers(1, 60000), st.lists(st.floats(0.01, 1.0), max_size=8))
def test_ffn_widths_stay_within_the_parent(width, fractions):
    widths = ffn_widths(width, fractions=fractions)
    assert all(0 < narrow <= width for narrow in widths)
    assert list(widths) == sorted(set(widths), reverse=True)


@given(st.integers(1, 256))
def test_kv_heads_divide_the_parents(heads):
    assert all(heads % count == 0 for count in default_kv_heads(heads))
    assert default_kv_heads(heads)[0] == heads


def test_windows_are_kept(make_spec):
    space = default_space(make_spec(sliding_windows=(64, None, 64, None)))
    assert names(space.layers[0].attention) == ["gqa_4_w64", "gqa_2_w64", "gqa_1_w64", "linear", "no_op"]
    assert names(space.layers[1].attention) == ["gqa_4", "gqa_2", "gqa_1", "linear", "no_op"]
    assert len(distinct_sub_blocks(space)[0]) == 8


def test_a_heterogeneous_parent_is_never_exceeded(make_spec):
    architecture = Architecture(
        blocks=(
            Block(attention=GQA(num_key_value_heads=4), ffn=GatedMLP(intermediate_size=512)),
            Block(attention=GQA(num_key_value_heads=2), ffn=GatedMLP(intermediate_size=64)),
            Block(attention=Linear(), ffn=Linear()),
            Block(attention=NoOp(), ffn=NoOp()),
        )
    )
    layers = default_space(make_spec(), architecture, kv_heads=(4, 2, 1)).layers
    assert names(layers[0].attention) == ["gqa_4", "gqa_2", "gqa_1", "linear", "no_op"]
    assert names(layers[1].attention) == ["gqa_2", "gqa_1", "linear", "no_op"]
    assert names(layers[1].ffn) == ["mlp_64", "mlp_56", "mlp_48", "mlp_32", "mlp_16", "mlp_8", "linear", "no_op"]
    assert names(layers[2].attention) == names(layers[2].ffn) == ["linear", "no_op"]
    assert names(layers[3].attention) == names(layers[3].ffn) == ["no_op"]


def test_what_is_offered_can_be_chosen(make_spec):
    layer = default_space(
        make_spec(),
        kv_heads=(1,),
        ffn_fractions=(0.5,),
        attention_linear=False,
        attention_no_op=False,
        ffn_linear=False,
        ffn_no_op=False,
    ).layers[0]
    assert names(layer.attention) == ["gqa_4", "gqa_1"]
    assert names(layer.ffn) == ["mlp_512", "mlp_256"]


def test_bad_arguments_say_what_would_work(make_spec):
    spec = make_spec()
    with pytest.raises(ValueError, match=r"kv_heads 3 does not divide the 4 key-value heads .*: 4, 2, 1"):
        default_space(spec, kv_heads=(4, 3))
    with pytest.raises(ValueError, match="kv_heads 8 does not divide"):
        default_space(spec, kv_heads=(8,))
    with pytest.raises(ValueError, match=r"ffn_fractions must be above 0 and at most 1, not 1\.5"):
        default_space(spec, ffn_fractions=(1.5,))
    with pytest.raises(ValueError, match="ffn_multiple"):
        default_space(spec, ffn_multiple=0)


def test_candidates_are_checked():
    with pytest.raises(ValueError, match="at least one ffn candidate"):
        LayerCandidates(attention=(NoOp(),), ffn=())
    with pytest.raises(ValueError, match="attention candidates repeat: no_op, no_op"):
        LayerCandidates(attention=(NoOp(), NoOp()), ffn=(NoOp(),))
    with pytest.raises(ValueError, match="at least one layer"):
        SearchSpace(layers=())
