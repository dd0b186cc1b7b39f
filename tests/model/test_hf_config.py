"""Reading config.json dicts, family by family and layout by layout."""

import pytest

from puzzlebench.model.blocks import GQA, Block, GatedMLP, Linear, NoOp, sub_block_name
from puzzlebench.model.hf_config import from_hf_config
from puzzlebench.model.layouts import decilm_intermediate_size
from puzzlebench.model.spec import parent_architecture

SMALL = {
    "num_hidden_layers": 6,
    "hidden_size": 128,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 512,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
}


def read(**config):
    return from_hf_config({**SMALL, **config}, name="m")


def windows(**config):
    return read(**config)[0].sliding_windows


def test_head_dim_is_the_configs_own():
    assert read(model_type="llama")[0].head_dim == 16
    assert read(model_type="llama", head_dim=32)[0].head_dim == 32
    assert read(model_type="mistral", head_dim=None)[0].head_dim == 16
    assert read(model_type="qwen3")[0].head_dim == 128
    assert read(model_type="gemma2")[0].head_dim == 256
    with pytest.raises(ValueError, match="m: hidden_size 100 is not a multiple of num_attention_heads 8"):
        read(model_type="llama", hidden_size=100)


def test_null_key_value_heads_are_as_many_as_attention_heads():
    assert read(model_type="llama", num_key_value_heads=None)[0].num_key_value_heads == 8


@pytest.mark.parametrize(
    ("config", "qkv", "output", "mlp"),
    [
        ({"model_type": "llama"}, False, False, False),
        ({"model_type": "llama", "attention_bias": True}, True, True, False),
        ({"model_type": "granite", "mlp_bias": True}, False, False, True),
        ({"model_type": "qwen2"}, True, False, False),
        ({"model_type": "qwen2", "attention_bias": True, "mlp_bias": True}, True, False, False),
        ({"model_type": "qwen3", "attention_bias": True}, True, True, False),
        ({"model_type": "mistral", "attention_bias": True, "mlp_bias": True}, False, False, False),
        ({"model_type": "phi3", "attention_bias": True, "mlp_bias": True}, False, False, False),
        ({"model_type": "olmo2", "mlp_bias": True}, False, False, False),
    ],
)
def test_biases_are_those_the_family_builds(config, qkv, output, mlp):
    spec, _ = read(**config)
    assert (spec.qkv_bias, spec.attention_output_bias, spec.mlp_bias) == (qkv, output, mlp)


def test_norms_and_ties_by_family():
    facts = {
        model_type: (spec.qk_norm, spec.norm_placement, spec.tie_word_embeddings)
        for model_type in ("llama", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "smollm3")
        for spec, _ in [read(model_type=model_type)]
    }
    assert facts == {
        "llama": ("none", "pre", False),
        "qwen3": ("per_head", "pre", False),
        "gemma": ("none", "pre", True),
        "gemma2": ("none", "both", True),
        "gemma3_text": ("per_head", "both", True),
        "olmo2": ("full", "post", False),
        "smollm3": ("none", "pre", True),
    }


def test_uniform_windows():
    assert windows(model_type="mistral") == (4096,) * 6
    assert windows(model_type="mistral", sliding_window=None) == (None,) * 6
    assert windows(model_type="phi3") == (None,) * 6
    assert windows(model_type="phi3", sliding_window=2047) == (2047,) * 6
    assert windows(model_type="llama", sliding_window=512) == (None,) * 6
    assert windows(model_type="ministral") == (4096,) * 6


def test_patterned_windows():
    assert windows(model_type="gemma2", sliding_window=64) == (64, None) * 3
    assert windows(model_type="gemma3_text", sliding_window=64) == (64,) * 5 + (None,)
    assert windows(model_type="gemma3_text", sliding_window=64, sliding_window_pattern=3) == (64, 64, None) * 2
    assert windows(model_type="qwen2", sliding_window=64, max_window_layers=4) == (None,) * 6
    assert windows(model_type="qwen2", sliding_window=64, max_window_layers=4, use_sliding_window=True) == (
        *(None,) * 4,
        64,
        64,
    )
    smollm3 = {"model_type": "smollm3", "sliding_window": 64, "use_sliding_window": True}
    assert windows(**smollm3) == (None, None, None, 64, None, None)
    assert windows(**smollm3, no_rope_layers=[0, 1, 1, 1, 1, 1]) == (64, *(None,) * 5)
    assert windows(**smollm3, no_rope_layer_interval=2) == (None, 64) * 3


def test_layer_types_decide_where_they_are_given():
    layer_types = ["full_attention", "sliding_attention"] * 3
    assert windows(model_type="gemma2", layer_types=layer_types) == (None, 4096) * 3
    assert windows(model_type="qwen3", layer_types=layer_types) == (None,) * 6
    with pytest.raises(ValueError, match="layer_types must list 6 layers"):
        windows(model_type="gemma2", layer_types=layer_types[:2])
    with pytest.raises(ValueError, match="layer 1 has layer_type 'linear_attention'"):
        windows(model_type="gemma2", layer_types=["full_attention", "linear_attention"] * 3)


def test_wrappers_are_unwrapped():
    spec, _ = from_hf_config(
        {"model_type": "gemma3", "text_config": {**SMALL, "sliding_window": 64}, "vision_config": {"x": 1}}, name="m"
    )
    assert (spec.model_type, spec.tie_word_embeddings, spec.head_dim) == ("gemma3_text", True, 256)
    spec, _ = from_hf_config(
        {"model_type": "mistral3", "text_config": {**SMALL, "model_type": "ministral3"}, "dtype": "bfloat16"}, name="m"
    )
    assert (spec.model_type, spec.tie_word_embeddings, spec.torch_dtype) == ("ministral3", False, "bfloat16")


def test_dtype_in_either_spelling():
    assert read(model_type="llama", torch_dtype="bfloat16")[0].torch_dtype == "bfloat16"
    assert read(model_type="llama", dtype="float16")[0].torch_dtype == "float16"
    assert read(model_type="llama")[0].torch_dtype is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "mixtral", "num_local_experts": 8},
            "'mixtral' is a mixture of experts, which is not supported",
        ),
        ({"model_type": "deepseek_v2", "kv_lora_rank": 512}, "'deepseek_v2' is multi-head latent attention"),
        ({"model_type": "mamba2", "state_size": 128}, "'mamba2' is a state-space model"),
        ({"model_type": "qwen2_vl", "vision_config": {"depth": 2}}, "'qwen2_vl' is a vision or audio wrapper"),
        ({"model_type": "gpt2"}, "'gpt2' is not supported; supported are dense decoders with gated MLPs: llama, "),
        ({"model_type": "qwen3", "num_experts": 128}, "'qwen3' with num_experts 128 is a mixture of experts"),
        ({"model_type": "gemma3"}, "'gemma3' needs a text_config"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "encoder"),
        (
            {"model_type": "mistral3", "text_config": {"model_type": "mixtral", "num_local_experts": 8}},
            "'mixtral' is a",
        ),
        ({}, "has no model_type"),
        ({"model_type": "llama", "hidden_size": "big"}, "m: hidden_size must be a whole number"),
        ({"model_type": "llama", "tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"model_type": "llama", "num_key_value_heads": 3}, "not a multiple of num_key_value_heads 3"),
    ],
)
def test_what_is_not_supported_is_refused_in_one_line(config, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(**config)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("m: ")


def test_a_config_that_is_not_an_object_is_refused():
    with pytest.raises(ValueError, match="m: a config is a JSON object, not list"):
        from_hf_config([], name="m")


def decilm(*blocks, **changes):
    return read(
        model_type="nemotron-nas",
        hidden_size=8192,
        num_attention_heads=64,
        num_key_value_heads=None,
        intermediate_size=None,
        num_hidden_layers=len(blocks),
        block_configs=list(blocks),
        **changes,
    )


QUIET = {"num_sink_tokens": None, "unshifted_sink": False, "sparsify": None, "replace_with_linear": False}


@pytest.mark.parametrize(
    ("changes", "biases"),
    [
        ({}, (False, False)),
        ({"qkv_bias": True}, (True, False)),
        ({"attention_bias": True}, (True, True)),
        ({"attention_bias": True, "qkv_bias": False}, (False, True)),
    ],
)
def test_biases_of_decilm(changes, biases):
    spec, _ = decilm({"attention": {"n_heads_in_group": 8}, "ffn": {"ffn_mult": 5.25}}, **changes)
    assert (spec.qkv_bias, spec.attention_output_bias) == biases


def test_block_configs_of_decilm():
    spec, architecture = decilm(
        {"attention": {"n_heads_in_group": 8, "no_op": False, **QUIET}, "ffn": {"ffn_mult": 5.25, "no_op": False}},
        {"attention": {"n_heads_in_group": 32, "window_length": 512}, "ffn": {"ffn_mult": 0.5}},
        {"attention": {"n_heads_in_group": None, "no_op": True}, "ffn": {"replace_with_linear": True}},
        {"attention": {"replace_with_linear": True}, "ffn": {"no_op": True, "ffn_mult": None}},
        {"attention": {"num_key_value_heads": 4}, "ffn": {"intermediate_size": 1000}},
    )
    assert [(sub_block_name(block.attention), sub_block_name(block.ffn)) for block in architecture.blocks] == [
        ("gqa_8", "mlp_28672"),
        ("gqa_2_w512", "mlp_2816"),
        ("no_op", "linear"),
        ("linear", "no_op"),
        ("gqa_4", "mlp_1000"),
    ]
    assert (spec.num_key_value_heads, spec.intermediate_size) == (8, 28672)
    assert spec.sliding_windows == (None, 512, None, None, None)


@pytest.mark.parametrize(
    ("multiplier", "width"), [(5.25, 28672), (2.625, 14336), (3.28125, 17920), (1.3125, 7168), (1.0, 5632), (0.5, 2816)]
)
def test_decilm_width_of_a_multiplier(multiplier, width):
    assert decilm_intermediate_size(multiplier, 8192) == width


GOOD = {"attention": {"n_heads_in_group": 8}, "ffn": {"ffn_mult": 1.0}}


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({**GOOD, "attention": {}}, "layer 1: attention states neither n_heads_in_group"),
        ({**GOOD, "attention": {"n_heads_in_group": 7}}, "layer 1: n_heads_in_group 7 does not divide"),
        ({**GOOD, "attention": {"n_heads_in_group": 8, "num_sink_tokens": 4}}, "sets num_sink_tokens to 4"),
        ({**GOOD, "ffn": {"ffn_mult": "big"}}, "layer 1: ffn_mult must be a positive number"),
        ({**GOOD, "ffn": {"ffn_mult": 1.0, "moe": {"num_local_experts": 4}}}, "layer 1: ffn sets moe"),
        ({**GOOD, "ffn": {"ffn_mult": 1.0, "gated": False}}, "not gated"),
        ({"attention": {"n_heads_in_group": 8}}, "layer 1: a block config is an object with"),
    ],
)
def test_block_configs_that_cannot_be_honoured(block, message):
    with pytest.raises(ValueError, match=message):
        decilm(GOOD, block)


def test_block_configs_must_list_every_layer():
    with pytest.raises(ValueError, match=r"block_configs must list 6 layers .*, not 1 entries"):
        read(model_type="nemotron-nas", block_configs=[GOOD])


def test_decilm_without_any_mlp_needs_a_width():
    linear = {"attention": {"no_op": True}, "ffn": {"replace_with_linear": True}}
    with pytest.raises(ValueError, match="intermediate_size must be a whole number"):
        decilm(linear)


def test_first_decilm():
    spec, architecture = read(model_type="deci", num_key_value_heads_per_layer=[4, 4, 2, 1, 2, 4])
    assert [block.attention.num_key_value_heads for block in architecture.blocks] == [4, 4, 2, 1, 2, 4]
    assert spec.num_key_value_heads == 4
    with pytest.raises(ValueError, match="num_key_value_heads_per_layer must list 6 layers"):
        read(model_type="deci", num_key_value_heads_per_layer=[4])


def test_per_layer_config():
    spec, architecture = read(
        model_type="llama",
        per_layer_config={
            "0": {"num_key_value_heads": 2, "intermediate_size": 768},
            "01": {"skip": ["attention"], "rope_theta": 1.0},
            "2": {"skip": ["mlp"], "hidden_size": 128},
            "3": {"skip": ["attention", "mlp"]},
            "4": {"linear": ["attention"], "skip": ["mlp"]},
            "5": {"linear": ["mlp"], "num_key_value_heads": 1},
        },
        linear=[],
    )
    assert architecture.blocks == (
        Block(attention=GQA(num_key_value_heads=2), ffn=GatedMLP(intermediate_size=768)),
        Block(attention=NoOp(), ffn=GatedMLP(intermediate_size=512)),
        Block(attention=GQA(num_key_value_heads=4), ffn=NoOp()),
        Block(attention=NoOp(), ffn=NoOp()),
        Block(attention=Linear(), ffn=NoOp()),
        Block(attention=GQA(num_key_value_heads=1), ffn=Linear()),
    )
    assert (spec.num_key_value_heads, spec.intermediate_size) == (4, 768)


def test_layers_without_overrides_are_the_models():
    _, architecture = read(model_type="llama", per_layer_config={"1": {"skip": ["attention"]}})
    blocks = parent_architecture(read(model_type="llama")[0]).blocks
    assert (architecture.blocks[0], architecture.blocks[2:]) == (blocks[0], blocks[2:])


def test_per_layer_windows_count_where_the_layer_slides():
    override = {str(layer): {"sliding_window": 32} for layer in (0, 1)}
    assert windows(model_type="gemma2", sliding_window=64, per_layer_config=override) == (32, None, 64, None, 64, None)
    assert windows(model_type="mistral", per_layer_config={"5": {"sliding_window": None}}) == (4096,) * 5 + (None,)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"6": {}}, "key '6'; layers are numbered 0 to 5"),
        ({"-1": {}}, "key '-1'"),
        ({"0": {"head_dim": 32}}, "sets head_dim to 32, which is not supported"),
        ({"0": {"skip": "mlp"}}, "skip must be a list"),
        ({"0": {"skip": ["norm"]}}, "layer 0: skip names 'norm'; known are attention"),
        ({"0": {"linear": "mlp"}}, "linear must be a list"),
        ({"0": {"linear": ["norm"]}}, "layer 0: linear names 'norm'; known are attention"),
        ({"0": {"linear": ["mlp"], "skip": ["ffn"]}}, "layer 0 names ffn in skip and in linear"),
        ({"0": {"num_key_value_heads": 3}}, "layer 0: 3 key-value heads do not divide the 8 attention heads"),
        ({"0": {"intermediate_size": 0}}, "intermediate_size must be a whole number"),
        ({"0": [1]}, "of layer 0 must be an object"),
        ([1], "per_layer_config must map layer numbers"),
    ],
)
def test_per_layer_config_that_cannot_be_honoured(overrides, message):
    with pytest.raises(ValueError, match=message):
        read(model_type="llama", per_layer_config=overrides)
