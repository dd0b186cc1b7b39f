"""A small spec that tests bend to their case."""

import pytest

from puzzlebench.model.spec import ModelSpec


@pytest.fixture
def make_spec():
    """Build a 4-layer spec with 8 heads of 16; keyword arguments replace fields."""

    def make(**changes):
        fields = {
            "name": "small",
            "model_type": "llama",
            "num_hidden_layers": 4,
            "hidden_size": 128,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "intermediate_size": 512,
            "vocab_size": 1001,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
            "qkv_bias": False,
            "attention_output_bias": False,
            "mlp_bias": False,
            "qk_norm": "none",
            "norm_placement": "pre",
            "sliding_windows": (None,) * changes.get("num_hidden_layers", 4),
        }
        return ModelSpec(**{**fields, **changes})

    return make
