"""Counts and defaults against the models and config classes of transformers itself (no weights: the meta device)."""

import pytest

from puzzlebench.model.catalog import bundled_models, load_model
from puzzlebench.model.families import FAMILIES
from puzzlebench.model.hf_config import from_hf_config
from puzzlebench.model.memory import kv_cache_bytes
from puzzlebench.model.parameters import (
    embedding_parameters,
    head_parameters,
    model_parameters,
    sub_block_parameters,
)

torch = pytest.importorskip("torch", reason="needs torch")
transformers = pytest.importorskip("transformers", reason="needs transformers")

TINY = {
    "num_hidden_layers": 6,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "vocab_size": 100,
    "max_position_embeddings": 256,
}
SPECIAL_TOKENS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


def hf_config(config):
    values = {key: value for key, value in config.items() if key != "model_type"}
    try:
        return transformers.AutoConfig.for_model(config["model_type"], **values)
    except ValueError:
        pytest.skip(f"this transformers has no {config['model_type']}")


def meta_model(config):
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(hf_config(config))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("entry", bundled_models(), ids=lambda entry: entry.id)
def test_every_bundled_model_has_the_parameters_transformers_builds(entry):
    model = meta_model(entry.config)
    spec, architecture = load_model(entry.id)
    assert model_parameters(spec, architecture) == count(model)
    assert embedding_parameters(spec) == count(model.get_input_embeddings())
    assert head_parameters(spec) == count(model.model.norm) + (
        0 if spec.tie_word_embeddings else count(model.get_output_embeddings())
    )
    for block, layer in zip(architecture.blocks, model.model.layers, strict=True):
        assert sub_block_parameters(spec, block.attention) + sub_block_parameters(spec, block.ffn) == count(layer)


VARIANTS = [
    {"model_type": model_type}
    for model_type in FAMILIES
    if model_type not in ("nemotron-nas", "deci")  # code of these comes with the checkpoint, not with transformers
] + [
    {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    {"model_type": "qwen3", "attention_bias": True},
    {"model_type": "olmo2", "attention_bias": True},
    {"model_type": "granite", "attention_bias": True, "mlp_bias": True},
    {"model_type": "gemma", "tie_word_embeddings": False},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(variant))
def test_every_family_counts_as_transformers_does(variant):
    spec, architecture = from_hf_config({**TINY, **variant}, name="tiny")
    assert model_parameters(spec, architecture) == count(meta_model({**TINY, **SPECIAL_TOKENS, **variant}))


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name not in ("nemotron-nas", "deci")])
def test_absent_keys_mean_what_transformers_means(model_type):
    config = hf_config({"model_type": model_type})
    for key, value in FAMILIES[model_type].defaults.items():
        theirs = getattr(config, key, None)
        if key == "num_key_value_heads" and value is None:
            value = config.num_attention_heads
        if key == "head_dim" and value is None:
            value = config.hidden_size // config.num_attention_heads
        if key == "sliding_window" and not getattr(config, "use_sliding_window", True):
            assert theirs is None or theirs == value
            continue
        if key == "head_dim" and theirs is None:
            continue  # some classes leave it to their attention to derive
        assert theirs == value, key


WINDOWED = [
    {"model_type": "mistral", "sliding_window": 8},
    {"model_type": "phi3", "sliding_window": 8, "head_dim": 16},
    {"model_type": "ministral", "sliding_window": 8},
    {"model_type": "gemma2", "sliding_window": 8},
    {"model_type": "gemma3_text", "sliding_window": 8},
    {"model_type": "gemma3_text", "sliding_window": 8, "sliding_window_pattern": 2},
    {"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2},
    {"model_type": "qwen3", "sliding_window": 8, "use_sliding_window": False},
    {"model_type": "smollm3", "sliding_window": 8, "use_sliding_window": True},
]


@pytest.mark.parametrize("variant", WINDOWED, ids=lambda variant: variant["model_type"])
def test_windows_are_where_transformers_has_them(variant):
    config = hf_config({**TINY, **SPECIAL_TOKENS, **variant})
    theirs = tuple(getattr(layer, "sliding_window", None) for layer in transformers.DynamicCache(config=config).layers)
    assert from_hf_config({**TINY, **variant}, name="tiny")[0].sliding_windows == theirs


@pytest.mark.parametrize(
    "variant",
    [
        {"model_type": "llama"},
        {"model_type": "qwen3"},
        {"model_type": "gemma2", "sliding_window": 512},
        {"model_type": "gemma3_text", "sliding_window": 9},
    ],
    ids=lambda variant: f"{variant['model_type']}-{variant.get('sliding_window')}",
)
def test_cache_bytes_are_those_of_a_real_cache(variant):
    config = hf_config({**TINY, **SPECIAL_TOKENS, **variant})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    cache = transformers.DynamicCache(config=config)
    tokens = torch.randint(0, 100, (3, 20))
    with torch.inference_mode():
        model(tokens, past_key_values=cache, use_cache=True)
    held = 0
    for layer in cache.layers:
        held += layer.keys.numel() + layer.values.numel()
        window = getattr(layer, "sliding_window", None)
        if window is not None and window <= 20:
            # transformers drops the oldest token of a full window before the next one comes; engines hold the window.
            held += 2 * layer.keys[:, :, :1].numel()
    spec, architecture = from_hf_config({**TINY, **variant}, name="tiny")
    ours = kv_cache_bytes(spec, architecture, batch_size=3, context_len=20, kv_dtype="fp32", tokens_per_block=1)
    assert ours == 4 * held


def test_per_layer_config_is_read_as_transformers_reads_it():
    overrides = {
        "0": {"num_key_value_heads": 1},
        "2": {"intermediate_size": 32, "skip": ["attention"]},
        "3": {"skip": ["mlp"]},
    }
    config = hf_config({**TINY, **SPECIAL_TOKENS, "model_type": "llama", "per_layer_config": overrides})
    if not getattr(config, "is_heterogeneous", False):
        pytest.skip("this transformers does not know per_layer_config")
    _, architecture = from_hf_config(config.to_dict(), name="tiny")
    for layer, block in zip(config.per_layer_config, architecture.blocks, strict=True):
        skipped = getattr(layer, "skip", [])
        heads = getattr(block.attention, "num_key_value_heads", None)
        width = getattr(block.ffn, "intermediate_size", None)
        assert heads == (None if "attention" in skipped else layer.num_key_value_heads)
        assert width == (None if "mlp" in skipped else layer.intermediate_size)
