"""Children saved and loaded, by puzzlebench and by transformers alone."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import torch
import transformers

from puzzlebench.child.checkpoints import load_causal_lm, save_child
from puzzlebench.child.configs import read_spec
from puzzlebench.model.hf_config import from_hf_config
from puzzlebench.model.spec import parent_architecture

from .conftest import make_child, make_parent, mixed_architecture, tokens


@pytest.fixture(autouse=True)
def _own_module_cache(tmp_path, monkeypatch):
    """transformers copies the class of a checkpoint there before it runs it."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


@pytest.fixture
def llama_child(tmp_path):
    parent = make_parent("llama")
    child = make_child(parent, mixed_architecture(read_spec(parent.config)))
    save_child(child, tmp_path / "child")
    return child, tmp_path / "child"


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")


def test_round_trip(parent, tmp_path):
    architecture = mixed_architecture(read_spec(parent.config))
    child = make_child(parent, architecture)
    save_child(child, tmp_path / "new" / "child")
    folder = tmp_path / "new" / "child"
    config = json.loads((folder / "config.json").read_text())
    assert from_hf_config(config, name="child")[1] == architecture
    assert config["model_type"] == parent.config.model_type
    expected = child(tokens()).logits
    loaded = load_causal_lm(folder)
    assert not loaded.training
    assert torch.equal(loaded(tokens()).logits, expected)
    auto, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        trust_remote_code=True,
        output_loading_info=True,
        attn_implementation=parent.config._attn_implementation,
    )
    assert torch.equal(auto.eval()(tokens()).logits, expected)
    assert not any(report.values())
    assert type(transformers.AutoConfig.from_pretrained(folder)) is type(parent.config)
    # What transformers writes itself loads too.
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(load_causal_lm(tmp_path / "again")(tokens()).logits, expected)


def test_the_tokenizer_comes_along(tmp_path):
    parent = make_parent("llama")
    save_child(make_child(parent, mixed_architecture(read_spec(parent.config))), tmp_path / "child", tokenizer())
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "child")("a b").input_ids == [1, 2]


def test_further_files_come_along_and_all_are_readable(tmp_path):
    class Templates:
        def save_pretrained(self, folder):
            (folder / "additional_chat_templates").mkdir(mode=0o755)
            (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")

    parent = make_parent("llama")
    child = make_child(parent, mixed_architecture(read_spec(parent.config)))
    save_child(child, tmp_path / "child", Templates(), extra={"architecture.json": "{}"})
    assert (tmp_path / "child" / "architecture.json").read_text() == "{}"
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "child").iterdir()}
    assert modes.pop("additional_chat_templates") & 0o111
    assert set(modes.values()) == {0o644}


def test_the_class_in_the_checkpoint_needs_no_puzzlebench(llama_child, tmp_path):
    child, folder = llama_child
    torch.save({"ids": tokens(), "logits": child(tokens()).logits}, tmp_path / "expected.pt")
    script = (
        "import sys, torch\n"
        "sys.modules['puzzlebench'] = None\n"
        "from transformers import AutoModelForCausalLM\n"
        "expected = torch.load(sys.argv[2])\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "print(torch.allclose(model(expected['ids']).logits, expected['logits'], atol=1e-5))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(tmp_path / "expected.pt")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": ""},
    )
    assert done.stdout.split()[-1:] == ["True"], done.stderr


def test_dtype(llama_child):
    _, folder = llama_child
    assert {tensor.dtype for tensor in load_causal_lm(folder, torch.bfloat16).parameters()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in load_causal_lm(folder).parameters()} == {torch.float32}


def test_a_parent_is_loaded_as_itself(parent, tmp_path):
    parent.save_pretrained(tmp_path / "parent")
    loaded = load_causal_lm(str(tmp_path / "parent"))
    assert type(loaded) is type(parent)
    assert torch.equal(loaded(tokens()).logits, parent(tokens()).logits)


def test_transformers_loads_parents_after_a_child_as_before(llama_child, tmp_path):
    """It then takes our class for every config of the family."""
    _, folder = llama_child
    transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    parent = make_parent("llama")
    parent.save_pretrained(tmp_path / "parent")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "parent")
    assert torch.equal(loaded.eval()(tokens()).logits, parent(tokens()).logits)


def test_a_child_like_its_parent_needs_no_class_of_ours(tmp_path):
    parent = make_parent("gemma2")
    save_child(make_child(parent, parent_architecture(read_spec(parent.config))), tmp_path / "child")
    loaded = load_causal_lm(tmp_path / "child")
    assert type(loaded) is type(parent)
    assert torch.equal(loaded(tokens()).logits, parent(tokens()).logits)


def test_a_folder_appears_whole_or_not_at_all(llama_child, tmp_path):
    child, folder = llama_child

    class Broken:
        def save_pretrained(self, _folder):
            raise OSError("disk full")

    with pytest.raises(ValueError, match=r"cannot write .*other: disk full"):
        save_child(child, tmp_path / "other", Broken())
    assert sorted(path.name for path in tmp_path.iterdir() if "modules" not in path.name) == ["child"]
    with pytest.raises(ValueError, match="child exists; give a new folder"):
        save_child(child, folder)


def weights(folder):
    (file,) = folder.glob("*.safetensors")
    return file


def rewrite(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def drop_a_weight(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights(folder))
    del tensors["model.layers.1.mlp.linear_mlp.weight"]
    save_file(tensors, weights(folder), metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "is not a checkpoint: it has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded: "),
        (lambda folder: weights(folder).unlink(), "cannot be loaded: .*no file named"),
        (lambda folder: weights(folder).write_bytes(weights(folder).read_bytes()[:-99]), "cannot be loaded: "),
        (drop_a_weight, "1 weights are missing, the first is model.layers.1.mlp.linear_mlp.weight"),
        (lambda folder: rewrite(folder, intermediate_size=40), "cannot be loaded: "),
        (lambda folder: rewrite(folder, model_type="bert"), "model_type 'bert' is not supported; children have gemma"),
        (lambda folder: rewrite(folder, per_layer_config={"0": {"skip": ["norm"]}}), "layer 0: skip names 'norm'"),
        (
            lambda folder: rewrite(folder, per_layer_config={"9": {"skip": ["mlp"]}}),
            "cannot be loaded: .*0(, 4| to 3)",
        ),
    ],
)
def test_checkpoints_that_cannot_be_loaded(llama_child, damage, message):
    _, folder = llama_child
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load_causal_lm(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing"])
def test_folders_that_do_not_exist(name):
    with pytest.raises(ValueError, match=f"{name} does not exist"):
        load_causal_lm(name)
