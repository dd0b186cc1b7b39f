"""The comparison of an engine's cache with the prediction: agreement, padding, nonsense."""

import pytest

from puzzlebench.exporting.kv_check import compare_kv
from puzzlebench.model.blocks import Architecture, parse_block
from puzzlebench.model.spec import ModelSpec

SPEC = ModelSpec(
    name="small",
    model_type="llama",
    num_hidden_layers=4,
    hidden_size=64,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=16,
    intermediate_size=512,
    vocab_size=100,
    max_position_embeddings=128,
    tie_word_embeddings=False,
    qkv_bias=False,
    attention_output_bias=False,
    mlp_bias=False,
    qk_norm="none",
    norm_placement="pre",
    sliding_windows=(None,) * 4,
)
MIXED = ("no_op+mlp_512", "gqa_4+mlp_512", "linear+no_op", "gqa_1+linear")
PER_TOKEN = {1: 2 * 4 * 16 * 4, 3: 2 * 1 * 16 * 4}  # K and V, heads, head_dim, fp32


def architecture(names=MIXED):
    return Architecture(blocks=tuple(parse_block(name) for name in names))


def answer(layers=None, **changes):
    layers = PER_TOKEN if layers is None else layers
    total = sum(layers.values())
    cache = {
        "block_size": 16,
        "num_blocks": 10,
        "layers": [{"layer": layer, "bytes_per_token": size} for layer, size in layers.items()],
        "bytes_per_token": total,
        "total_bytes": 160 * total,
        "max_model_len": 40,
        "bytes_per_sequence": 48 * total,
    }
    return {"engine": "vllm", "kv_cache": {**cache, **changes}}


def test_a_cache_that_falls_with_the_heads_agrees():
    found = compare_kv(answer(), SPEC, architecture(), "fp32")
    assert [(row.layer, row.attention, row.predicted_bytes_per_token) for row in found.rows] == [
        (0, "no_op", 0),
        (1, "gqa_4", 512),
        (2, "linear", 0),
        (3, "gqa_1", 128),
    ]
    assert found.agrees
    assert found.predicted_bytes_per_token == found.allocated_bytes_per_token == 640
    assert found.predicted_sequence_bytes == found.allocated_sequence_bytes == 3 * 16 * 640
    assert (found.block_size, found.num_blocks, found.total_bytes) == (16, 10, 102400)


def test_layers_as_large_as_the_largest_are_shown_as_they_are():
    found = compare_kv(answer({1: 512, 3: 512}), SPEC, architecture(), "fp32")
    assert not found.agrees
    assert [row.allocated_bytes_per_token for row in found.rows] == [0, 512, 0, 512]
    assert (found.predicted_bytes_per_token, found.allocated_bytes_per_token) == (640, 1024)


def test_memory_of_a_layer_that_should_have_none_is_shown():
    found = compare_kv(answer({**PER_TOKEN, 2: 512}), SPEC, architecture(), "fp32")
    assert not found.agrees
    assert (found.rows[2].predicted_bytes_per_token, found.rows[2].allocated_bytes_per_token) == (0, 512)


def test_what_no_layer_has_is_padding():
    found = compare_kv(answer(bytes_per_token=1000), SPEC, architecture(), "fp32")
    assert not found.agrees
    padding = found.rows[-1]
    assert (padding.layer, padding.attention, padding.predicted_bytes_per_token) == (None, "padding", 0)
    assert padding.allocated_bytes_per_token == 360


def test_a_sequence_that_takes_more_pages_than_predicted_does_not_agree():
    found = compare_kv(answer(bytes_per_sequence=64 * 640), SPEC, architecture(), "fp32")
    assert not found.agrees
    assert (found.predicted_sequence_bytes, found.allocated_sequence_bytes) == (48 * 640, 64 * 640)


def test_gpus_and_dtypes_change_the_prediction():
    halves = {layer: size // 4 for layer, size in PER_TOKEN.items()}  # bf16, two GPUs; one head is on both
    found = compare_kv(answer({**halves, 3: 64}), SPEC, architecture(), "bf16", tensor_parallel=2)
    assert [row.predicted_bytes_per_token for row in found.rows] == [0, 128, 0, 64]
    assert found.agrees


def test_an_engine_may_say_nothing_of_sequences():
    found = compare_kv(answer(max_model_len=None), SPEC, architecture(), "fp32")
    assert (found.max_model_len, found.predicted_sequence_bytes, found.allocated_sequence_bytes) == (None, None, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"engine": "llama.cpp", "kv_cache": None}, "engine 'llama.cpp' has no kv_cache"),
        (answer({9: 4}), "has a layer 9; the model has layers 0 to 3"),
        (answer({-1: 4}), "a layer of kv_cache must be a whole number"),
        (answer(bytes_per_token=1), "states 1 bytes per token, and its layers have 640"),
        (answer(bytes_per_token="many"), "bytes_per_token must be a number of at least 0, not 'many'"),
        (answer(block_size=0), "block_size must be a whole number of at least 1, not 0"),
        (answer(num_blocks=None), "kv_cache num_blocks must be a whole number of at least 0, not None"),
    ],
)
def test_nonsense_is_an_error(given, message):
    with pytest.raises(ValueError, match=message):
        compare_kv(given, SPEC, architecture(), "fp32")
