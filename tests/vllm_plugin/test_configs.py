"""Which configs the plugin takes, what it tells vLLM of them, and what it leaves alone."""

import json
from types import SimpleNamespace

import pytest

from puzzlebench.model.blocks import block_name
from puzzlebench.vllm_plugin.configs import ARCHITECTURE, FAMILIES, LAYERS_KEY, LayerPlan, plain_config, read_plan

MIXED_BLOCKS = ["no_op+mlp_512", "gqa_1+mlp_160", "linear+no_op", "gqa_2+linear"]
DECILM = {
    "model_type": "nemotron-nas",
    "architectures": ["DeciLMForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": None,
    "vocab_size": 100,
}


def decilm(blocks, **changes):
    return {**DECILM, "block_configs": blocks, **changes}


GQA_2 = {"n_heads_in_group": 2, "no_op": False, "replace_with_linear": False}
NO_OP = {"n_heads_in_group": None, "no_op": True, "replace_with_linear": False}
LINEAR = {"n_heads_in_group": None, "no_op": False, "replace_with_linear": True}
MLP_512 = {"ffn_mult": 12.0, "no_op": False, "replace_with_linear": False}
STOCK = [{"attention": GQA_2, "ffn": MLP_512}] * 4


def plan_of(plain):
    return read_plan(SimpleNamespace(**json.loads(json.dumps(plain))))  # as vLLM's processes get it: as JSON


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_child_of_every_family_states_its_layers_under_our_key_alone(make_child, model_type):
    plain = plain_config(make_child(model_type, sliding_window=None))
    assert plain["architectures"] == [ARCHITECTURE]
    assert plain["model_type"] == model_type
    assert not {"per_layer_config", "linear", "layer_types", "auto_map", "block_configs"} & set(plain)
    assert [block_name(block) for block in plan_of(plain).architecture.blocks] == MIXED_BLOCKS


@pytest.mark.parametrize(
    ("model_type", "changes", "has"),
    [
        ("llama", {}, (False, False, False, "none")),
        ("llama", {"attention_bias": True, "mlp_bias": True}, (True, True, True, "none")),
        ("mistral", {}, (False, False, False, "none")),
        ("qwen2", {}, (True, False, False, "none")),
        ("qwen3", {"head_dim": 16}, (False, False, False, "per_head")),
        ("qwen3", {"head_dim": 16, "attention_bias": True}, (True, True, False, "per_head")),
    ],
)
def test_biases_and_norms_are_the_familys(make_child, model_type, changes, has):
    plan = plan_of(plain_config(make_child(model_type, **changes)))
    assert (plan.qkv_bias, plan.output_bias, plan.mlp_bias, plan.qk_norm) == has


def test_sizes_for_the_whole_model_are_the_largest_of_any_layer(make_child):
    layers = {str(layer): {"num_key_value_heads": 1, "intermediate_size": 64 + layer} for layer in range(4)}
    plain = plain_config(make_child(layers=layers))
    assert (plain["num_key_value_heads"], plain["intermediate_size"], plain["head_dim"]) == (1, 67, 16)


def test_windows_stand_in_the_layers_and_not_in_the_config(make_child):
    layers = {"1": {"sliding_window": 8}, "2": {"skip": ["attention"]}}
    plain = plain_config(make_child("mistral", layers, sliding_window=32))
    assert plain["sliding_window"] is None
    windows = [getattr(block.attention, "sliding_window", "none") for block in plan_of(plain).architecture.blocks]
    assert windows == [32, 8, "none", 32]


def test_a_child_like_its_parent_is_taken_too(make_child):
    plain = plain_config(make_child(layers={}))
    assert {block_name(block) for block in plan_of(plain).architecture.blocks} == {"gqa_2+mlp_512"}


@pytest.mark.parametrize(
    "raw",
    [
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64},
        {"model_type": "bert", "architectures": None},
        {},
        decilm(STOCK),
        decilm([{"attention": GQA_2, "ffn": NO_OP}, {"attention": NO_OP, "ffn": MLP_512}, *STOCK[2:]]),
        decilm([{"attention": {"num_sink_tokens": 4, **GQA_2}, "ffn": MLP_512}, *STOCK[1:]]),
        decilm([{"attention": GQA_2, "ffn": {"intermediate_size": 160}}, *STOCK[1:]]),
        decilm([]),
    ],
)
def test_what_vllm_loads_by_itself_or_nobody_knows_is_left_to_it(raw):
    assert plain_config(raw) is None


@pytest.mark.parametrize(
    ("first", "name"),
    [
        ({"attention": NO_OP, "ffn": MLP_512}, "no_op+mlp_512"),
        ({"attention": LINEAR, "ffn": MLP_512}, "linear+mlp_512"),
        ({"attention": GQA_2, "ffn": LINEAR}, "gqa_2+linear"),
    ],
)
def test_decilm_with_what_vllms_own_refuses_is_taken(first, name):
    plain = plain_config(decilm([first, *STOCK[1:]]))
    assert plain["model_type"] == "llama"
    assert plain["num_key_value_heads"] == 2
    assert [block_name(block) for block in plan_of(plain).architecture.blocks] == [name, *["gqa_2+mlp_512"] * 3]


@pytest.mark.parametrize(
    ("changes", "biases"),
    [
        ({}, (False, False)),
        ({"attention_bias": True}, (True, True)),
        ({"qkv_bias": True}, (True, False)),
        ({"attention_bias": True, "qkv_bias": False}, (False, True)),
    ],
)
def test_decilms_flags_of_biases_are_read_as_vllms_own_reads_them(changes, biases):
    plan = plan_of(plain_config(decilm([{"attention": LINEAR, "ffn": MLP_512}, *STOCK[1:]], **changes)))
    assert (plan.qkv_bias, plan.output_bias) == biases


def test_children_of_other_families_and_broken_ones_are_refused_in_one_line(make_child):
    with pytest.raises(ValueError, match=r"^puzzlebench's vLLM plugin does not load children of model_type 'gemma2'"):
        plain_config(make_child("gemma2"))
    with pytest.raises(ValueError, match="layers are numbered 0 to 3"):
        plain_config(make_child(layers={"7": {"skip": ["mlp"]}}))
    architecture = plan_of(plain_config(make_child())).architecture
    with pytest.raises(ValueError, match="qk_norm must be none or per_head for vLLM, not 'full'"):
        LayerPlan(architecture=architecture, qkv_bias=False, output_bias=False, mlp_bias=False, qk_norm="full")


def test_the_key_of_the_layers_is_no_setting_of_transformers(make_child):
    plain = plain_config(make_child())
    assert set(plain[LAYERS_KEY]) == {"architecture", "qkv_bias", "output_bias", "mlp_bias", "qk_norm"}
