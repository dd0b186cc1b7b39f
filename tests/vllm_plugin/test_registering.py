"""Registration with a vLLM that is only as large as the plugin needs, and with ones that lack something."""

import json
import subprocess
import sys
import types

import pytest

pytest.importorskip("transformers", reason="needs transformers")

import puzzlebench.vllm_plugin as plugin
from puzzlebench.vllm_plugin.configs import ARCHITECTURE, LAYERS_KEY


class Registry:
    def __init__(self):
        self.models = {"LlamaForCausalLM": "stock"}
        self.calls = 0

    def get_supported_archs(self):
        return self.models.keys()

    def register_model(self, name, path):
        self.calls += 1
        self.models[name] = path


class HFConfigParser:
    """As vLLM's: answers with what it was asked for."""

    def parse(self, model, trust_remote_code, revision=None, code_revision=None, **kwargs):
        return {"asked": (str(model), trust_remote_code, revision, code_revision, kwargs)}, "stock"


@pytest.fixture
def vllm(monkeypatch):
    """A package vllm with the names the plugin needs; its parsers are in `parsers`, its models in `registry`."""
    package = types.ModuleType("vllm")
    utils = types.ModuleType("vllm.transformers_utils")
    config = types.ModuleType("vllm.transformers_utils.config")
    package.__version__ = "0.0.1"
    package.ModelRegistry = package.registry = Registry()
    config.HFConfigParser = HFConfigParser
    config._CONFIG_FORMAT_TO_CONFIG_PARSER = package.parsers = {"hf": HFConfigParser, "mistral": "mistral's"}
    package.transformers_utils, utils.config = utils, config
    for module in (package, utils, config):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "puzzlebench.vllm_plugin.parsing", raising=False)
    yield package
    sys.modules.pop("puzzlebench.vllm_plugin.parsing", None)


def test_registering_adds_a_model_by_name_and_replaces_one_parser(vllm):
    plugin.register()
    plugin.register()
    assert vllm.registry.models == {
        "LlamaForCausalLM": "stock",
        ARCHITECTURE: "puzzlebench.vllm_plugin.model:PuzzlebenchForCausalLM",
    }
    assert vllm.registry.calls == 1
    assert vllm.parsers["mistral"] == "mistral's"
    assert issubclass(vllm.parsers["hf"], HFConfigParser)
    assert "puzzlebench.vllm_plugin.model" not in sys.modules


def test_our_configs_are_read_without_running_their_code(vllm, make_child, tmp_path):
    plugin.register()
    (tmp_path / "config.json").write_text(json.dumps(make_child()), encoding="utf-8")
    raw, config = vllm.parsers["hf"]().parse(tmp_path, trust_remote_code=False)
    assert type(config).__name__ == "LlamaConfig"
    assert (config.num_key_value_heads, config.intermediate_size, config.sliding_window) == (2, 512, None)
    assert config.architectures == raw["architectures"] == [ARCHITECTURE]
    assert getattr(config, LAYERS_KEY) == raw[LAYERS_KEY]
    assert json.loads(config.to_json_string())[LAYERS_KEY] == raw[LAYERS_KEY]
    assert config.name_or_path == str(tmp_path)


@pytest.mark.parametrize(("version", "lines"), [("0.0.1", 1), ("0.32.0", 0), ("0.32.0+cpu", 0)])
def test_a_version_that_was_not_tried_is_said_when_a_model_of_ours_is_loaded(
    vllm, make_child, tmp_path, caplog, version, lines
):
    vllm.__version__ = version
    plugin.register()
    (tmp_path / "config.json").write_text(json.dumps(make_child()), encoding="utf-8")
    vllm.parsers["hf"]().parse(tmp_path, trust_remote_code=False)
    told = [record.getMessage() for record in caplog.records if record.name == "vllm.puzzlebench"]
    assert told == [f"puzzlebench's plugin loads {tmp_path}; it was tried with vLLM 0.32.0, and this is 0.0.1"] * lines


def test_other_configs_and_folders_without_one_go_to_vllms_own_parser(vllm, sizes, tmp_path):
    plugin.register()
    parser = vllm.parsers["hf"]()
    stock = {**sizes, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(stock), encoding="utf-8")
    for folder in (tmp_path, tmp_path / "none"):
        asked, config = parser.parse(folder, True, revision="r", code_revision="c", token="t")
        assert config == "stock"
        assert asked["asked"] == (str(folder), True, "r", "c", {"token": "t"})


def test_a_child_that_the_plugin_does_not_compute_is_an_error_and_not_vllms(vllm, make_child, tmp_path):
    plugin.register()
    (tmp_path / "config.json").write_text(json.dumps(make_child("gemma2")), encoding="utf-8")
    with pytest.raises(ValueError, match="does not load children of model_type 'gemma2'"):
        vllm.parsers["hf"]().parse(tmp_path, trust_remote_code=False)


@pytest.mark.parametrize(
    ("at", "name"), [("", "ModelRegistry"), (".transformers_utils.config", "_CONFIG_FORMAT_TO_CONFIG_PARSER")]
)
def test_a_vllm_that_lacks_something_is_left_alone_with_one_line(vllm, caplog, at, name):
    delattr(sys.modules[f"vllm{at}"], name)
    plugin.register()
    (record,) = caplog.records
    assert record.getMessage() == (
        f"puzzlebench's plugin does nothing in vLLM 0.0.1, which has no vllm{at}.{name}; it was tried with 0.32.0"
    )
    assert vllm.registry.calls == 0
    assert vllm.parsers["hf"] is HFConfigParser


def test_the_plugin_imports_nothing_heavy_before_vllm_calls_it():
    program = (
        "import sys, puzzlebench.vllm_plugin as plugin; assert callable(plugin.register); "
        "print([name for name in ('vllm', 'torch', 'transformers', 'numpy', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
