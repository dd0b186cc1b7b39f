"""What engines load: every kind of rule, every engine, and a file that is not as it should be."""

import copy
import re
from typing import get_args

import pytest

from puzzlebench.model.blocks import Architecture, parse_block
from puzzlebench.model.engine_rules import (
    EngineRule,
    EngineRules,
    RefusalKind,
    _parse_engine_rules,
    find_refusals,
    first_refusal,
    list_engine_rules,
    load_engine_rules,
)
from puzzlebench.model.spec import parent_architecture

ENGINES = ("vllm", "vllm_puzzlebench", "tensorrt_llm", "sglang", "llama_cpp", "transformers")


def rule(refuses, value=None):
    families = ("llama", "qwen2") if refuses == "family_not_listed" else None
    return EngineRule(
        refuses=refuses, value=value, families=families, reason="because", version="1.0", seen="not verified"
    )


# kind, changes to the spec, (layer, block) refused, (layer, block) loaded. The spec: 4 layers, gqa_4+mlp_512.
CASES = [
    ("attention_linear", {}, [(1, "linear+mlp_512")], [(1, "gqa_4+linear"), (1, "no_op+mlp_512")]),
    (
        "attention_no_op_in_first_layer",
        {},
        [(0, "no_op+mlp_512"), (0, "no_op+no_op")],
        [(1, "no_op+mlp_512"), (0, "gqa_4+no_op"), (0, "linear+mlp_512")],
    ),
    (
        "kv_heads_not_parents",
        {},
        [(0, "gqa_2+mlp_512"), (3, "gqa_8+no_op")],
        [(0, "gqa_4+mlp_256"), (0, "no_op+no_op")],
    ),
    ("sliding_window", {}, [(2, "gqa_4_w64+mlp_512")], [(2, "gqa_4+mlp_512"), (2, "linear+mlp_512")]),
    ("ffn_linear", {}, [(0, "gqa_4+linear")], [(0, "linear+mlp_512"), (0, "gqa_4+no_op")]),
    (
        "ffn_width_not_multiple",
        {},
        [(0, "gqa_4+mlp_384"), (0, "no_op+mlp_8")],
        [(0, "gqa_4+mlp_256"), (0, "gqa_4+linear")],
    ),
    (
        "ffn_no_op_in_last_layer",
        {},
        [(3, "gqa_4+no_op"), (3, "no_op+no_op")],
        [(2, "gqa_4+no_op"), (3, "gqa_4+linear"), (3, "no_op+mlp_512")],
    ),
    (
        "attention_beside_ffn_no_op",
        {},
        [(1, "gqa_4+no_op"), (1, "linear+no_op")],
        [(1, "no_op+no_op"), (1, "gqa_4+linear")],
    ),
    ("attention_bias", {"qkv_bias": True}, [(0, "gqa_1+no_op")], [(0, "linear+mlp_512"), (0, "no_op+mlp_512")]),
    ("attention_bias", {"attention_output_bias": True}, [(0, "gqa_4+mlp_512")], [(0, "no_op+mlp_512")]),
    ("attention_bias", {"mlp_bias": True}, [], [(0, "gqa_4+mlp_512")]),
    ("mlp_bias", {"mlp_bias": True}, [(0, "no_op+mlp_256")], [(0, "gqa_4+linear"), (0, "gqa_4+no_op")]),
    ("mlp_bias", {"qkv_bias": True}, [], [(0, "gqa_4+mlp_512")]),
    ("qk_norm", {"qk_norm": "per_head"}, [(0, "gqa_4+no_op")], [(0, "linear+mlp_512"), (0, "no_op+mlp_512")]),
    ("qk_norm", {"qk_norm": "full"}, [(3, "gqa_4+mlp_512")], []),
    ("qk_norm", {}, [], [(0, "gqa_4+mlp_512")]),
    (
        "norm_not_before",
        {"norm_placement": "post"},
        [(0, "gqa_4+mlp_512"), (0, "no_op+linear"), (0, "linear+no_op")],
        [(0, "no_op+no_op")],
    ),
    ("norm_not_before", {"norm_placement": "both"}, [(0, "no_op+mlp_512")], []),
    ("norm_not_before", {}, [], [(0, "gqa_4+mlp_512")]),
    ("family_not_listed", {"model_type": "granite"}, [(0, "gqa_4+mlp_512"), (1, "no_op+no_op")], []),
    ("family_not_listed", {}, [], [(0, "gqa_4+mlp_512")]),
]


@pytest.mark.parametrize(("kind", "changes", "refused", "loaded"), CASES)
def test_each_kind_refuses_what_it_says_and_nothing_else(make_spec, kind, changes, refused, loaded):
    one = rule(kind, value=256 if kind == "ffn_width_not_multiple" else None)
    rules = EngineRules(engine="toy", aliases=(), rules=(one,))
    spec = make_spec(**changes)
    for layer, name in refused:
        assert rules.refusal(spec, layer, parse_block(name)) == f"toy (1.0) does not load {name} [{kind}]: because"
    for layer, name in loaded:
        assert rules.refusal(spec, layer, parse_block(name)) is None


def test_every_kind_is_tested_and_used():
    assert {kind for kind, _, refused, _ in CASES if refused} == set(get_args(RefusalKind))
    used = {rule.refuses for rules in list_engine_rules() for rule in rules.rules}
    assert used == set(get_args(RefusalKind))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_plain_parent_loads_everywhere(make_spec, engine):
    spec = make_spec()
    assert find_refusals(load_engine_rules(engine), spec, parent_architecture(spec)) == ()


# Which engines refuse a block of the plain spec in a middle layer.
@pytest.mark.parametrize(
    ("layer", "name", "refusing"),
    [
        (1, "gqa_2+mlp_256", {"sglang"}),
        (1, "linear+mlp_512", {"vllm", "sglang"}),
        (1, "no_op+mlp_512", set()),
        (1, "gqa_4+linear", {"vllm", "sglang", "llama_cpp"}),
        (1, "gqa_4+no_op", {"llama_cpp"}),
        (1, "linear+no_op", {"vllm", "sglang", "llama_cpp"}),
        (1, "no_op+no_op", set()),
        (1, "gqa_4+mlp_384", {"tensorrt_llm", "sglang"}),
        (1, "gqa_4_w64+mlp_512", {"vllm", "tensorrt_llm", "sglang", "llama_cpp"}),
        (0, "no_op+mlp_512", {"vllm", "llama_cpp"}),
        (3, "no_op+no_op", {"llama_cpp"}),
    ],
)
def test_engines_differ_in_what_they_load(make_spec, layer, name, refusing):
    spec = make_spec()
    assert {
        engine for engine in ENGINES if load_engine_rules(engine).refusal(spec, layer, parse_block(name))
    } == refusing


@pytest.mark.parametrize(
    ("changes", "refusing"),
    [
        ({"qk_norm": "per_head"}, {"vllm", "tensorrt_llm", "sglang", "llama_cpp"}),
        ({"norm_placement": "both"}, {"vllm", "vllm_puzzlebench", "tensorrt_llm", "sglang", "llama_cpp"}),
        ({"model_type": "granite"}, {"vllm", "vllm_puzzlebench", "tensorrt_llm", "sglang", "llama_cpp"}),
        ({"model_type": "phi3"}, {"vllm_puzzlebench"}),
        ({"qkv_bias": True}, {"tensorrt_llm"}),
        ({"mlp_bias": True}, {"tensorrt_llm", "sglang"}),
        ({"head_dim": 32}, set()),
    ],
)
def test_engines_differ_in_the_parents_they_load(make_spec, changes, refusing):
    spec = make_spec(**changes)
    parent = parent_architecture(spec)
    assert {engine for engine in ENGINES if find_refusals(load_engine_rules(engine), spec, parent)} == refusing


def test_an_architecture_is_refused_layer_by_layer(make_spec):
    names = ("no_op+linear", "gqa_4+mlp_512", "linear+mlp_512", "gqa_4+mlp_512")
    architecture = Architecture(blocks=tuple(parse_block(name) for name in names))
    refusals = find_refusals(load_engine_rules("vllm"), make_spec(), architecture)
    assert [f"layer {one.layer}: {one.engine}" for one in refusals] == [
        "layer 0: vllm",
        "layer 0: vllm",
        "layer 2: vllm",
    ]
    assert [one.rule.refuses for one in refusals] == [
        "ffn_linear",
        "attention_no_op_in_first_layer",
        "attention_linear",
    ]
    assert all("\n" not in str(one) for one in refusals)
    assert first_refusal(refusals) == f"{refusals[0]} (and 2 more)"
    assert first_refusal(refusals[:1]) == str(refusals[0])


def test_a_refusal_in_parts_in_short_and_in_full(make_spec):
    names = ("gqa_4+mlp_512", "gqa_4+linear", "gqa_4+mlp_512", "gqa_4+mlp_512")
    architecture = Architecture(blocks=tuple(parse_block(name) for name in names))
    rules = EngineRules(engine="toy", aliases=(), rules=(rule("ffn_linear"),))
    (found,) = find_refusals(rules, make_spec(), architecture)
    assert (found.engine, found.layer, found.block, found.rule) == ("toy", 1, architecture.blocks[1], rules.rules[0])
    assert found.short == "layer 1: because [ffn_linear]"
    assert found.sentence == "toy (1.0) does not load gqa_4+linear [ffn_linear]: because"
    assert str(found) == f"layer 1: {found.sentence}"


def test_layers_and_architectures_must_be_the_specs(make_spec):
    rules, spec = load_engine_rules("vllm"), make_spec()
    with pytest.raises(ValueError, match="layers 0 to 3, not 4"):
        rules.refusal(spec, 4, parse_block("gqa_4+mlp_512"))
    with pytest.raises(ValueError, match="1 layers but small has 4"):
        find_refusals(rules, spec, Architecture(blocks=(parse_block("gqa_4+mlp_512"),)))


def test_names_aliases_and_case():
    assert tuple(rules.engine for rules in list_engine_rules()) == ENGINES
    assert load_engine_rules("TRTLLM") is load_engine_rules("tensorrt_llm")
    assert load_engine_rules("llama.cpp") is load_engine_rules("Llama_CPP")
    assert load_engine_rules("vLLM+puzzlebench") is load_engine_rules("vllm_puzzlebench")


def test_unknown_names_are_answered_with_known_ones():
    with pytest.raises(
        ValueError, match=r"no engine is named 'vlm'; did you mean vllm.*known are vllm, vllm_puzzlebench, tensorrt_llm"
    ):
        load_engine_rules("vlm")
    with pytest.raises(ValueError, match=r"no engine is named 'onnx'; known are vllm, .*transformers"):
        load_engine_rules("onnx")


VALID = {
    "schema": 1,
    "engines": [
        {
            "engine": "toy",
            "aliases": ["t"],
            "rules": [
                {
                    "refuses": "ffn_linear",
                    "reason": "because",
                    "version": "1.0",
                    "how": "run",
                    "seen": "not verified",
                },
                {
                    "refuses": "ffn_width_not_multiple",
                    "value": 64,
                    "reason": "because",
                    "version": "1.0",
                    "how": "read",
                    "seen": "not verified",
                },
            ],
        }
    ],
}


def test_valid_content_is_read():
    (toy,) = _parse_engine_rules(VALID)
    assert toy.aliases == ("t",)
    assert [(one.refuses, one.value, one.how) for one in toy.rules] == [
        ("ffn_linear", None, "run"),
        ("ffn_width_not_multiple", 64, "read"),
    ]


def replaced(path, value):
    """VALID with one entry replaced, or removed where value is Ellipsis."""
    data = copy.deepcopy(VALID)
    at = data
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return data


RULES = ("engines", 0, "rules")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 2, "schema 2 is not known; this version reads 1"),
        (("schema",), True, "schema True is not known"),
        (("engine",), [], "engine rules: unknown key 'engine'; known are engines, schema"),
        (("engines",), ..., "key 'engines' is missing"),
        (("engines",), {}, "engines must be a list"),
        (("engines", 0), "toy", "engine 0: expected a mapping"),
        (("engines", 0, "version"), "1", "engine 0: unknown key 'version'"),
        (("engines", 0, "aliases"), "t", "aliases must be a list"),
        (("engines", 0, "aliases"), ["toy"], "two engines or aliases are named 'toy'"),
        (("engines", 0, "aliases"), [1], "name must be one line of text, not 1"),
        (("engines", 0, "engine"), "Toy", "lower case, not 'Toy'"),
        (("engines", 0, "rules"), None, "rules must be a list, not None"),
        ((*RULES, 0, "refuse"), "ffn_linear", "engine 0: rule 0: unknown key 'refuse'"),
        ((*RULES, 0, "refuses"), "ffn_liner", "rule 0: refuses 'ffn_liner' is not known; did you mean ffn_linear"),
        ((*RULES, 0, "refuses"), ["ffn_linear"], "is not known"),
        ((*RULES, 0, "refuses"), "ffn_width_not_multiple", "must be a whole number of at least 1, not None"),
        ((*RULES, 0, "value"), 256, "ffn_linear takes no value, not 256"),
        ((*RULES, 0, "families"), ["llama"], "families go with family_not_listed alone; ffn_linear has"),
        ((*RULES, 0, "refuses"), "family_not_listed", "family_not_listed needs families"),
        ((*RULES, 0, "reason"), "two\nlines", "reason of ffn_linear must be one line of text"),
        ((*RULES, 0, "reason"), " ", "reason of ffn_linear must be one line of text"),
        ((*RULES, 0, "version"), 1.0, "version of ffn_linear must be one line of text, not 1.0"),
        ((*RULES, 0, "seen"), ..., "key 'seen' is missing"),
        ((*RULES, 0, "how"), ..., "key 'how' is missing"),
        ((*RULES, 0, "how"), "guessed", "how of ffn_linear must be read or run, not 'guessed'"),
        ((*RULES, 1, "value"), 0, "must be a whole number of at least 1, not 0"),
        ((*RULES, 1), VALID["engines"][0]["rules"][0], "toy refuses ffn_linear in 2 rules"),
    ],
)
def test_bad_content_is_an_error(path, value, message):
    with pytest.raises(ValueError, match=message):
        _parse_engine_rules(replaced(path, value))


def test_content_that_is_no_mapping_is_an_error():
    with pytest.raises(ValueError, match="engine rules: expected a mapping"):
        _parse_engine_rules(None)


def test_the_file_says_where_each_rule_was_seen():
    for rules in list_engine_rules():
        for one in rules.rules:
            assert one.seen == "not verified" or len(one.seen.split(", ")) == 3, one.seen
            assert not one.reason.endswith(".")


def test_versions_are_plain():
    """How a rule was found stands beside its version, not in it."""
    for rules in list_engine_rules():
        for one in rules.rules:
            assert re.fullmatch(r"(llama-cpp-python )?\d+\.\d+\.\d+|commit [0-9a-f]{8}", one.version), one.version
        assert len({one.version for one in rules.rules}) <= 1, f"{rules.engine} was read at different versions"
