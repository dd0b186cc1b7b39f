"""Raw configs of small children in the hf format."""

import pytest

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
}
CLASSES = {"llama": "Llama", "mistral": "Mistral", "ministral": "Ministral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
MIXED = {
    "0": {"skip": ["attention"]},
    "1": {"num_key_value_heads": 1, "intermediate_size": 160},
    "2": {"linear": ["attention"], "skip": ["mlp"]},
    "3": {"linear": ["mlp"]},
}


@pytest.fixture
def sizes():
    """What every config of these tests states for the whole model."""
    return dict(SIZES)


@pytest.fixture
def make_child():
    """Build a config.json of a child; its layers are no_op+mlp_512, gqa_1+mlp_160, linear+no_op and gqa_2+linear."""

    def make(model_type="llama", layers=None, **changes):
        return {
            **SIZES,
            "model_type": model_type,
            "architectures": [f"Heterogeneous{CLASSES.get(model_type, 'Other')}ForCausalLM"],
            "auto_map": {"AutoModelForCausalLM": "modeling_heterogeneous.Some"},
            "linear": [],
            "per_layer_config": MIXED if layers is None else layers,
            **changes,
        }

    return make
