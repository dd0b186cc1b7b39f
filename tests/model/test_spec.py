"""Validation of specs, and of architectures against them."""

import pytest

from puzzlebench.model.blocks import GQA, Architecture, Block, GatedMLP, NoOp
from puzzlebench.model.spec import check_architecture, divisors, parent_architecture


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "small: hidden_size must be a whole number of at least 1, not 0"),
        ({"vocab_size": 1.5}, "vocab_size"),
        ({"num_hidden_layers": True, "sliding_windows": (None,)}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_attention_heads 8 is not a multiple of num_key_value_heads 3"),
        ({"sliding_windows": (None,)}, "tuple of 4 entries"),
        ({"sliding_windows": (None, None, None, 0)}, "sliding window of layer 3"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings must be true or false"),
        ({"qk_norm": "layer"}, "qk_norm must be"),
        ({"norm_placement": "sandwich"}, "norm_placement must be"),
        ({"name": ""}, "name must be a non-empty string"),
    ],
)
def test_impossible_facts_are_refused(make_spec, changes, message):
    with pytest.raises(ValueError, match=message):
        make_spec(**changes)


def test_parent_keeps_each_layers_window(make_spec):
    spec = make_spec(sliding_windows=(64, None, 64, None))
    attention = [block.attention for block in parent_architecture(spec).blocks]
    assert attention == [GQA(num_key_value_heads=4, sliding_window=window) for window in (64, None, 64, None)]


def test_an_architecture_must_fit_the_spec(make_spec):
    spec = make_spec()
    block = Block(attention=GQA(num_key_value_heads=3), ffn=NoOp())
    with pytest.raises(ValueError, match="has 1 layers but small has 4"):
        check_architecture(spec, Architecture(blocks=(block,)))
    with pytest.raises(ValueError, match=r"layer 0: 3 key-value heads do not divide the 8 .* what would: 8, 4, 2, 1"):
        check_architecture(spec, Architecture(blocks=(block,) * 4))
    check_architecture(spec, Architecture(blocks=(Block(attention=NoOp(), ffn=GatedMLP(intermediate_size=7)),) * 4))


def test_divisors():
    assert divisors(12) == (12, 6, 4, 3, 2, 1)
