"""Bundled models, paths and the Hub."""

import json
import subprocess
import sys

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from puzzlebench.model.blocks import GQA, NoOp
from puzzlebench.model.catalog import bundled_models, list_models, load_model
from puzzlebench.model.parameters import model_parameters

PUBLISHED_PARAMETERS = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-nemotron-super-49b": 49_867_145_216,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-32b": 32_762_123_264,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "mistral-small-24b": 23_572_403_200,
    "phi-3-mini-4k": 3_821_079_552,
    "phi-3-medium-4k": 13_960_238_080,
    "phi-4": 14_659_507_200,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-1b": 999_885_952,
    "olmo-2-13b": 13_716_198_400,
    "smollm3-3b": 3_075_098_624,
    "granite-3.3-8b": 8_170_864_640,
}


@pytest.mark.parametrize(("model", "parameters"), PUBLISHED_PARAMETERS.items())
def test_parameters_are_the_published_ones(model, parameters):
    assert model_parameters(*load_model(model)) == parameters


def test_every_id_and_hub_id_loads_in_any_case():
    for entry in bundled_models():
        spec, architecture = load_model(entry.id)
        assert spec.name == entry.id == entry.id.lower()
        assert len(architecture.blocks) == spec.num_hidden_layers
        for hub_id in entry.hub_ids:
            assert load_model(hub_id.upper()) == (spec, architecture)


def test_listing_has_a_row_per_model():
    rows = {row.id: row for row in list_models()}
    assert list(rows) == [entry.id for entry in bundled_models()]
    row = rows["llama-3.1-70b"]
    assert (row.hub_id, row.parameters, row.num_hidden_layers) == ("meta-llama/Llama-3.1-70B", 70_553_706_496, 80)
    assert (row.hidden_size, row.num_attention_heads, row.num_key_value_heads, row.head_dim) == (8192, 64, 8, 128)
    assert [row.id for row in rows.values() if row.heterogeneous] == ["llama-3.3-nemotron-super-49b"]


def test_nemotron_super_layers():
    spec, architecture = load_model("nvidia/Llama-3_3-Nemotron-Super-49B-v1")
    attention = [block.attention for block in architecture.blocks]
    assert attention.count(GQA(num_key_value_heads=8)) == 49
    assert attention.count(NoOp()) == 31
    assert {block.ffn.intermediate_size for block in architecture.blocks} == {2816, 5632, 7168, 14336, 17920, 28672}
    assert spec.intermediate_size == 28672


def test_windows_of_bundled_models():
    assert load_model("gemma-2-9b")[0].sliding_windows[:3] == (4096, None, 4096)
    gemma3 = load_model("gemma-3-27b")[0].sliding_windows
    assert gemma3.count(None) == 10
    assert gemma3[:6] == (1024,) * 5 + (None,)
    assert set(load_model("mistral-7b-v0.1")[0].sliding_windows) == {4096}
    assert set(load_model("qwen2.5-72b")[0].sliding_windows) == {None}


CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
}


def test_local_directory_and_file(tmp_path):
    directory = tmp_path / "mine"
    directory.mkdir()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_model(str(directory))
    (directory / "config.json").write_text(json.dumps(CONFIG))
    spec, architecture = load_model(str(directory))
    assert (spec.name, spec.hidden_size, len(architecture.blocks)) == ("mine", 64, 2)
    assert load_model(str(directory / "config.json")) == (spec, architecture)
    (directory / "other.json").write_text("{")
    with pytest.raises(ValueError, match=r"other\.json is not a JSON file that can be read"):
        load_model(str(directory / "other.json"))


def test_the_hub_is_asked_last(monkeypatch, tmp_path):
    asked = []

    def download(repo, file):
        asked.append((repo, file))
        path = tmp_path / "config.json"
        path.write_text(json.dumps(CONFIG))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert load_model("someone/small-llama")[0].name == "someone/small-llama"
    load_model("meta-llama/Llama-3.1-8B")
    assert asked == [("someone/small-llama", "config.json")]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalEntryNotFoundError("no network\nat all"), "the Hub cannot be reached and no copy is cached"),
        (ConnectionError("refused\nsecond line"), "the Hub answered with ConnectionError: refused"),
    ],
)
def test_an_unreachable_hub_is_one_line(monkeypatch, error, message):
    def download(*_):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(ValueError, match=message) as caught:
        load_model("meta-llama/Llama-3.1-9B")
    assert "\n" not in str(caught.value)
    assert "did you mean meta-llama/llama-3.1-" in str(caught.value)


def test_an_unknown_name_is_told_near_ones():
    with pytest.raises(
        ValueError, match=r"no model is named 'llama-3\.1-80b'.*did you mean .*llama-3\.1-8b.*puzzlebench"
    ):
        load_model("llama-3.1-80b")
    with pytest.raises(ValueError, match="`puzzlebench models` lists"):
        load_model("zzzzzzzz")


def test_facts_load_without_torch_transformers_or_the_hub():
    code = (
        "import sys; from puzzlebench.model import catalog, memory, space; catalog.list_models(); "
        "print([m for m in ('torch', 'transformers', 'huggingface_hub', 'numpy') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"
