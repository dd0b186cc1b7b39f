"""DeciLM folders: what their config says, that transformers computes the same from them, and what they cannot say."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("transformers")

import torch
import transformers

from puzzlebench.exporting.decilm import child_of_decilm, decilm_config
from puzzlebench.exporting.evidence import EvidenceFiles
from puzzlebench.exporting.job import ExportJob, run_export
from puzzlebench.exporting.source import open_source
from puzzlebench.measuring.stack.read import read_checkpoint
from puzzlebench.model.hf_config import from_hf_config

from .children import MIXED, architecture_of, load_auto, logits, read_json, save_model

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.fixture(autouse=True)
def _own_module_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


def export(child, out, **changes):
    settings = {"format": "decilm", "engines": (), "evidence": EvidenceFiles()}
    return run_export(ExportJob(child=str(child), out=out, **settings | changes))


@pytest.mark.parametrize(
    ("names", "family", "changes"),
    [
        (MIXED, "llama", {}),
        (MIXED, "llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        (MIXED, "llama", {"head_dim": 16, "rope_parameters": LLAMA3}),
        (MIXED, "qwen2", {}),
        (MIXED, "mistral", {"sliding_window": None, "head_dim": 16}),
        (MIXED, "ministral", {"sliding_window": 6, "layer_types": ["full_attention"] * 4}),
        (MIXED, "phi3", {"sliding_window": None}),
        (MIXED, "smollm3", {"no_rope_layers": [1, 1, 1, 1]}),
        (("no_op+no_op", "no_op+mlp_40", "gqa_4+mlp_512", "gqa_2+mlp_7"), "llama", {"num_key_value_heads": 4}),
        (None, "llama", {}),
    ],
)
def test_transformers_computes_the_same(tmp_path, names, family, changes):
    model = save_model(tmp_path / "child", names, family, **changes)
    export(tmp_path / "child", tmp_path / "out")
    exported = load_auto(tmp_path / "out")
    assert type(exported).__name__ == "DeciLMForCausalLM"
    torch.testing.assert_close(logits(exported), logits(model), rtol=0, atol=1e-5)
    prompt = torch.tensor([[5, 6, 7]])
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(exported.generate(prompt, **settings), model.generate(prompt, **settings))


def test_the_config_says_what_engines_read(tmp_path):
    save_model(tmp_path / "child", rope_parameters=LLAMA3)
    export(tmp_path / "child", tmp_path / "out", dtype="bf16")
    stated = read_json(tmp_path / "out" / "config.json")
    assert (stated["model_type"], stated["architectures"]) == ("nemotron-nas", ["DeciLMForCausalLM"])
    assert stated["num_key_value_heads"] is None
    assert stated["block_configs"][0] == {
        "attention": {"n_heads_in_group": 2, "no_op": False, "replace_with_linear": False},
        "ffn": {"ffn_mult": 12.0, "no_op": False, "replace_with_linear": False},
    }
    assert stated["block_configs"][1]["attention"]["no_op"]
    assert stated["block_configs"][2]["ffn"]["replace_with_linear"]
    assert stated["rope_theta"] == 500000.0
    assert stated["rope_scaling"] == {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    assert stated["rope_parameters"] == LLAMA3
    assert (stated["torch_dtype"], stated["hidden_act"], stated["eos_token_id"]) == ("bfloat16", "silu", 2)
    assert "qkv_bias" not in stated
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert config.block_configs[0].attention.n_heads_in_group == 2
    assert config.block_configs[3].ffn.no_op
    assert config.rope_parameters == LLAMA3
    assert config.rope_theta == 500000.0
    # The names are those of TensorRT-LLM's modules; a no-op leaves no norm.
    names = read_json(tmp_path / "out" / "model.safetensors.index.json")["weight_map"]
    assert "model.layers.2.self_attn.linear_attn.weight" in names
    assert "model.layers.2.mlp.linear_mlp.weight" in names
    assert "model.layers.1.input_layernorm.weight" not in names
    assert "model.layers.3.post_attention_layernorm.weight" not in names


def test_a_bias_on_queries_keys_and_values_alone_is_qkv_bias(tmp_path):
    save_model(tmp_path / "child", family="qwen2")
    export(tmp_path / "child", tmp_path / "out")
    stated = read_json(tmp_path / "out" / "config.json")
    assert (stated["attention_bias"], stated["qkv_bias"]) == (False, True)
    names = read_json(tmp_path / "out" / "model.safetensors.index.json")["weight_map"]
    assert "model.layers.0.self_attn.q_proj.bias" in names
    assert "model.layers.0.self_attn.o_proj.bias" not in names


def test_a_width_between_multiples_is_written_as_vllm_reads_it(tmp_path):
    save_model(tmp_path / "child", ("gqa_2+mlp_40", *MIXED[1:]))
    export(tmp_path / "child", tmp_path / "out")
    ffn = read_json(tmp_path / "out" / "config.json")["block_configs"][0]["ffn"]
    assert ffn == {"intermediate_size": 40, "no_op": False, "replace_with_linear": False}
    _, architecture = from_hf_config(read_json(tmp_path / "out" / "config.json"), name="out")
    assert architecture == architecture_of("gqa_2+mlp_40", *MIXED[1:])


def test_random_checkpoints_have_the_same_config_class(tmp_path):
    save_model(tmp_path / "child")
    export(tmp_path / "child", tmp_path / "out")
    assert read_checkpoint(tmp_path / "out").architecture == architecture_of(*MIXED)


def test_the_folder_needs_no_puzzlebench_and_saves_itself(tmp_path):
    model = save_model(tmp_path / "child", family="qwen2")
    export(tmp_path / "child", tmp_path / "out")
    torch.save(logits(model), tmp_path / "expected.pt")
    from ..child.conftest import tokens

    torch.save(tokens(), tmp_path / "ids.pt")
    script = (
        "import sys, torch\n"
        "sys.modules['puzzlebench'] = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "folder = sys.argv[1]\n"
        "model = AutoModelForCausalLM.from_pretrained(folder + '/out', trust_remote_code=True)\n"
        "model.save_pretrained(folder + '/again')\n"
        "again = AutoModelForCausalLM.from_pretrained(folder + '/again', trust_remote_code=True)\n"
        "expected, ids = torch.load(folder + '/expected.pt'), torch.load(folder + '/ids.pt')\n"
        "for one in (model, again):\n"
        "    print(torch.allclose(one.eval()(ids).logits, expected, atol=1e-5))\n"
        "print(AutoTokenizer.from_pretrained(folder + '/out', trust_remote_code=True).vocab_size > 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split() == ["True"] * 3, done.stderr


@pytest.mark.parametrize(
    ("family", "names", "changes", "message"),
    [
        ("qwen3", None, {"use_sliding_window": False}, r"no norms on queries and keys \(per_head here\)"),
        ("olmo2", None, {}, "no norms on queries and keys"),
        ("gemma", None, {}, "gemma scales, caps or rotates"),
        ("gemma2", None, {}, "norms before sub-blocks only, and here they are 'both'"),
        ("granite", None, {}, "granite scales, caps or rotates"),
        ("smollm3", None, {}, "layer 1 has no RoPE"),
        ("mistral", None, {"sliding_window": 6}, "layer 0 has a window of 6 tokens"),
        ("llama", ("gqa_2+mlp_256", "gqa_2_w4+mlp_512", "gqa_1+mlp_512", "gqa_2+mlp_512"), {}, "layer 1 has a window"),
        ("llama", None, {"hidden_act": "gelu"}, "hidden_act is 'gelu', and decilm has silu"),
        ("phi3", None, {"sliding_window": None, "partial_rotary_factor": 0.5}, "RoPE turns 50% of each head"),
    ],
)
def test_what_the_format_cannot_say_is_refused(tmp_path, family, names, changes, message):
    save_model(tmp_path / "child", names, family, **changes)
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "child", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "modules") == ["child"]


def released(**changes):
    """The words of a released DeciLM config, without sizes of its own."""
    attention = {
        "n_heads_in_group": 2,
        "no_op": False,
        "num_sink_tokens": None,
        "replace_with_linear": False,
        "sparsify": None,
        "unshifted_sink": False,
        "use_prefill_window_in_sink_attention": False,
        "window_length": None,
    }
    ffn = {"ffn_mult": 12.0, "no_op": False, "replace_with_linear": False, "sparsify": None}
    return {
        "model_type": "nemotron-nas",
        "vocab_size": 300,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": None,
        "intermediate_size": None,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "rope_theta": 500000.0,
        "rope_scaling": {**LLAMA3, "type": "llama3"} | {"rope_theta": 500000.0},
        "torch_dtype": "bfloat16",
        "eos_token_id": [1, 2],
        "block_configs": [
            {"attention": attention, "ffn": ffn},
            {"attention": attention | {"no_op": True, "n_heads_in_group": None}, "ffn": ffn | {"ffn_mult": 20.0}},
        ],
        **changes,
    }


def test_a_released_config_becomes_a_child_of_llama():
    child = child_of_decilm(released(), name="nemotron")
    assert (child["model_type"], child["intermediate_size"], child["num_key_value_heads"]) == ("llama", 512, 2)
    assert child["per_layer_config"] == {"0": {"intermediate_size": 256}, "1": {"skip": ["attention"]}}
    assert child["architectures"] == ["HeterogeneousLlamaForCausalLM"]
    assert child["eos_token_id"] == [1, 2]
    assert from_hf_config(child, name="child")[1] == from_hf_config(released(), name="nemotron")[1]


def test_a_window_of_a_layer_is_kept():
    config = released()
    config["block_configs"][0]["attention"] = config["block_configs"][0]["attention"] | {"window_length": 16}
    child = child_of_decilm(config, name="nemotron")
    assert child["per_layer_config"]["0"] == {"intermediate_size": 256, "sliding_window": 16}
    assert from_hf_config(child, name="child")[1] == architecture_of("gqa_2_w16+mlp_256", "no_op+mlp_512")


def test_the_first_decilm_becomes_a_child_of_llama():
    first = released(model_type="deci", num_key_value_heads_per_layer=[4, 1], intermediate_size=96)
    child = child_of_decilm({key: value for key, value in first.items() if key != "block_configs"}, name="decilm-7b")
    assert child["per_layer_config"] == {"1": {"num_key_value_heads": 1}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_embedding_type": "mistral_yarn"}, "position_embedding_type 'mistral_yarn' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True, "qkv_bias": False}, "as in no family that is supported"),
        ({"block_configs": []}, "nemotron"),
    ],
)
def test_a_config_that_is_no_child_of_ours_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        child_of_decilm(released(**changes), name="nemotron")


def test_an_export_is_exported_again(tmp_path):
    model = save_model(tmp_path / "child")
    export(tmp_path / "child", tmp_path / "one")
    again = export(tmp_path / "one", tmp_path / "two")
    assert read_json(tmp_path / "one" / "config.json") == read_json(tmp_path / "two" / "config.json")
    assert again["parameters"] == sum(tensor.numel() for tensor in model.state_dict().values())
    config = decilm_config(open_source(tmp_path / "two"), dtype="float32")
    assert json.loads(json.dumps(config)) == read_json(tmp_path / "two" / "config.json")
