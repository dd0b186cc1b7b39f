"""A small spec and checkpoints of it."""

import pytest

from puzzlebench.model.blocks import GQA, Architecture, Block, GatedMLP, Linear, NoOp
from puzzlebench.model.spec import ModelSpec


@pytest.fixture
def make_stack_spec():
    def make(layers, **changes):
        fields = {
            "name": "small",
            "model_type": "llama",
            "num_hidden_layers": layers,
            "hidden_size": 64,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "intermediate_size": 256,
            "vocab_size": 97,
            "max_position_embeddings": 128,
            "tie_word_embeddings": False,
            "qkv_bias": False,
            "attention_output_bias": False,
            "mlp_bias": False,
            "qk_norm": "none",
            "norm_placement": "pre",
            "sliding_windows": (None,) * layers,
        }
        return ModelSpec(**{**fields, **changes})

    return make


@pytest.fixture
def every_sub_block():
    """One layer of each pairing that differs in kind."""
    attention = (GQA(num_key_value_heads=8), GQA(num_key_value_heads=1), Linear(), NoOp())
    ffn = (GatedMLP(intermediate_size=256), GatedMLP(intermediate_size=768), Linear(), NoOp())
    return Architecture(blocks=tuple(Block(attention=a, ffn=f) for a in attention for f in ffn))
