"""Hugging Face folders: every family with layers of its own computes the same, and stock checkpoints stay stock."""

import pytest

pytest.importorskip("transformers")

import torch
import transformers

from puzzlebench.child.checkpoints import load_causal_lm
from puzzlebench.child.configs import read_spec
from puzzlebench.exporting.job import ExportJob, run_export
from puzzlebench.exporting.rope import both_forms

from ..child.conftest import _SETTINGS, make_child, make_parent, mixed_architecture
from .children import load_auto, logits, read_json, save_model


@pytest.fixture(autouse=True)
def _own_module_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


def export(child, out, **changes):
    return run_export(ExportJob(child=str(child), out=out, format="hf", engines=("transformers",), **changes))


@pytest.mark.parametrize("family", sorted(_SETTINGS))
def test_every_family_computes_the_same(tmp_path, family):
    from puzzlebench.child.checkpoints import save_child

    parent = make_parent(family)
    model = make_child(parent, mixed_architecture(read_spec(parent.config)))
    save_child(model, tmp_path / "child")
    export(tmp_path / "child", tmp_path / "out", shard_bytes=20_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    ours = load_causal_lm(tmp_path / "out")
    assert torch.equal(logits(ours), logits(model))
    auto = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True, attn_implementation=parent.config._attn_implementation
    )
    assert torch.equal(logits(auto), logits(model))


def test_the_config_is_the_childs_with_rope_for_old_and_new(tmp_path):
    save_model(tmp_path / "child", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 20000.0})
    export(tmp_path / "child", tmp_path / "out", dtype="bf16")
    stated, own = read_json(tmp_path / "out" / "config.json"), read_json(tmp_path / "child" / "config.json")
    for key in ("per_layer_config", "auto_map", "architectures", "linear", "model_type", "intermediate_size"):
        assert stated[key] == own[key]
    assert (stated["rope_theta"], stated["rope_scaling"]) == (20000.0, {"rope_type": "linear", "factor": 2.0})
    assert stated["dtype"] == "bfloat16"
    assert (tmp_path / "out" / "modeling_heterogeneous.py").is_file()


@pytest.mark.parametrize("names", [None, ("gqa_2+mlp_512",) * 4])
def test_layers_that_are_alike_need_no_code(tmp_path, names):
    model = save_model(tmp_path / "child", names)
    export(tmp_path / "child", tmp_path / "out")
    stated = read_json(tmp_path / "out" / "config.json")
    assert stated["architectures"] == ["LlamaForCausalLM"]
    assert "auto_map" not in stated
    assert not list((tmp_path / "out").glob("*.py"))
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(loaded), logits(model))


def test_a_decilm_folder_becomes_a_child_again(tmp_path):
    model = save_model(tmp_path / "child")
    run_export(ExportJob(child=str(tmp_path / "child"), out=tmp_path / "decilm", format="decilm", engines=()))
    export(tmp_path / "decilm", tmp_path / "out")
    assert read_json(tmp_path / "out" / "config.json")["model_type"] == "llama"
    torch.testing.assert_close(logits(load_auto(tmp_path / "out")), logits(model), rtol=0, atol=1e-5)


def test_rope_by_kind_of_layer_gets_its_older_names():
    kinds = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert both_forms({"model_type": "gemma3_text", "rope_parameters": kinds}) == {
        "rope_theta": 1e6,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "rope_local_base_freq": 1e4,
    }


def test_phi3_gets_the_three_names_it_checks_for():
    long = {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0], "rope_theta": 1e4}
    stated = {"model_type": "phi3", "rope_parameters": long | {"partial_rotary_factor": 0.75}}
    assert both_forms(stated) == {
        "rope_theta": 1e4,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
        "partial_rotary_factor": 0.75,
    }


def test_a_config_of_older_versions_stays_as_it_is():
    assert both_forms({"model_type": "llama", "rope_theta": 5e5, "rope_scaling": None}) == {}
