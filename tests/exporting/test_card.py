"""Model cards: what the Hub reads of them, and what people read."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

from huggingface_hub import ModelCard

from puzzlebench.exporting.card import model_card
from puzzlebench.exporting.evidence import Evidence, EvidenceFiles, read_evidence
from puzzlebench.exporting.licences import Licence, read_licence
from puzzlebench.exporting.samples import make_samples
from puzzlebench.exporting.source import open_source
from puzzlebench.model.blocks import Architecture, Block, Linear, NoOp
from puzzlebench.model.engine_rules import check_architecture_loads, load_engine_rules

from . import documents
from .documents import write

LLAMA = read_licence(None, given="llama3.1")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    (child,) = make_samples(tmp_path_factory.mktemp("samples"), ("llama-sized",))
    return open_source(child.folder)


@pytest.fixture
def evidence(source, tmp_path):
    return read_evidence(
        EvidenceFiles(
            search=write(tmp_path / "search.json", documents.search(source.architecture)),
            retention=write(tmp_path / "retention.json", documents.retention(source.folder)),
            speed=write(tmp_path / "speed.json", documents.speed()),
            distillation=write(
                tmp_path / "distillation.json", documents.distillation(source.solution["parent_fingerprint"])
            ),
        ),
        source,
    )


def write_card(source, evidence=None, licence=LLAMA, engines=("vllm", "transformers"), **changes):
    stated = {"format": "decilm", "title": "Llama-tiny-puzzle", "base_model": "meta-llama/Llama-3.1-8B", **changes}
    refusals = {
        engine: check_architecture_loads(load_engine_rules(engine), source.spec, source.architecture)
        for engine in engines
    }
    return model_card(source, evidence or Evidence(), licence, refusals, **stated)


def section(text: str, title: str) -> str:
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_front_matter(source, evidence):
    data = ModelCard(write_card(source, evidence)).data
    assert data.base_model == "meta-llama/Llama-3.1-8B"
    assert data.to_dict()["base_model_relation"] == "finetune"
    assert (data.license, data.license_name) == ("llama3.1", None)
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert "puzzlebench" in data.tags
    assert [(one.dataset_name, one.metric_type, one.metric_value) for one in data.eval_results] == [
        ("puzzlebench_choice", "acc", 0.6825),
        ("other", "acc", 12.5),
    ]
    assert data.model_name == "Llama-tiny-puzzle"


def test_results_only_where_something_was_measured(source):
    data = ModelCard(write_card(source)).data
    assert data.eval_results is None
    assert "model-index" not in data.to_dict()


def test_front_matter_of_other_licences_and_parents(source):
    nvidia = read_licence(None, given="nvidia-open-model-license")
    data = ModelCard(write_card(source, licence=nvidia, base_model="/home/me/my-parent", format="gguf")).data
    assert (data.license, data.license_name) == ("other", "nvidia-open-model-license")
    assert data.license_link.startswith("https://www.nvidia.com/")
    assert data.base_model is None
    assert "base_model_relation" not in data.to_dict()
    assert "gguf" in data.tags
    own = Licence(id="other", name="ours", license_name="ours", files=(Path("parent/LICENSE"),))
    assert ModelCard(write_card(source, licence=own)).data.license_link == "LICENSE"


def test_what_it_is(source, evidence):
    text = section(write_card(source, evidence), "What it is")
    assert "a smaller child of [meta-llama/Llama-3.1-8B](https://huggingface.co/meta-llama/Llama-3.1-8B)" in text
    own, parent = (source.solution[name] for name in ("parameters", "parent_parameters"))
    assert f"- parameters: {own:,} of {parent:,} ({100 * own / parent:.1f} %)" in text
    # bf16: 2 bytes x (key and value) x 64 x heads; 4 + 2 + 1 + 4 of 4 x 4
    assert "- key-value cache in bf16: 2,816 bytes per token of 4,096 (68.8 %)" in text


def test_architecture_with_equal_layers_folded(source):
    block = source.architecture.blocks[0]
    blocks = (block, block, Block(attention=NoOp(), ffn=Linear()), Block(attention=Linear(), ffn=NoOp()))
    text = section(write_card(replace(source, architecture=Architecture(blocks=blocks))), "Architecture")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    assert [row[:3] for row in rows[2:5]] == [
        ["0 to 1", "4 heads, 4 key-value", "gated, 512 wide"],
        ["2", "none", "one matrix"],
        ["3", "one matrix", "none"],
    ]
    assert [row[4] for row in rows[2:5]] == ["1,024", "0", "0"]
    assert rows[3][3] == f"{256 * 256 + 256:,}"
    assert rows[-1][:3] == ["each of 4", "4 heads, 4 key-value", "gated, 512 wide"]


def test_measured_and_modelled_speed(source, evidence):
    text = section(write_card(source, evidence), "Speed")
    assert "**Predicted** before the model was made" in text
    assert "The sums are modelled: the model itself did not run." in text
    assert "| first token | 21.5 ms | 51.4 ms | 2.39× |" in text
    assert "| throughput | 1,211 tokens/s | 576.5 tokens/s | 2.1× |" in text
    assert "| phase | parent, ms | this model, ms | speed-up, measured | speed-up, modelled | error |" in text
    assert "| 2.1× (1.89× to 2.31×) | 2.05× | -2.4 % |" in text
    assert "off by -2.4 %" in text


def test_what_was_not_measured_says_so(source, evidence):
    assert "The model itself was **not measured**." in write_card(source, replace(evidence, speed=None))
    empty = write_card(source)
    assert "Neither predicted nor measured here." in section(empty, "Speed")
    assert "Not evaluated here." in section(empty, "What it keeps of its parent")
    assert "not recorded here" in section(empty, "Training")
    assert "Not recorded here." in section(empty, "Limits it was searched under")
    measured = section(write_card(source, replace(evidence, search=None)), "Speed")
    assert "Predicted" not in measured
    assert "speed-up, modelled" in measured


def test_limits_retention_and_training(source, evidence):
    text = write_card(source, evidence)
    limits = section(text, "Limits it was searched under")
    assert "batches of 4 prompts of 128 tokens, each answered with 128: throughput at least 1,210 tokens/s" in limits
    assert "no other of the space is better" in limits
    kept = section(text, "What it keeps of its parent")
    assert "| puzzlebench_choice | acc | 0.6775 | 0.6825 | 100.7 % (97.9 % to 103.8 %) |" in kept
    assert "**100.1 % (98.7 % to 101.6 %)**" in kept
    assert "not in the overall retention" in kept
    training = section(text, "Training")
    assert "307,200 tokens (300 steps) of books.jsonl: cosine + forward_kl, adamw" in training
    assert "loss 0.07 to 0.033" in training


def test_engines(source):
    odd = replace(source, spec=replace(source.spec, qk_norm="per_head"))
    text = section(write_card(odd, engines=("vllm", "tensorrt_llm", "transformers")), "Engines")
    versions = ", ".join(dict.fromkeys(rule.version for rule in load_engine_rules("vllm").rules))
    assert f"| vLLM | {versions} | no: layer 0: vllm " in text
    assert re.search(r"\| vLLM \|.*\[qk_norm\].* \(and 3 more\) \|", text)
    assert "| transformers | any | yes: no rule against it |" in text
    assert "vllm serve" not in write_card(odd, engines=("vllm",))
    assert "vllm serve Llama-tiny-puzzle --trust-remote-code\n" in section(write_card(source), "Use")
    both = write_card(
        replace(source, spec=replace(source.spec, qk_norm="per_head")), engines=("vllm", "vllm_puzzlebench")
    )
    assert "--trust-remote-code    # puzzlebench installed beside vLLM" in section(both, "Use")
    assert "| vLLM with puzzlebench's plugin |" in both


@pytest.mark.parametrize(
    ("written_as", "wanted"),
    [
        ("hf", 'AutoModelForCausalLM.from_pretrained("Llama-tiny-puzzle", trust_remote_code=True)'),
        ("gguf", 'Llama.from_pretrained("Llama-tiny-puzzle", filename="*.gguf")'),
    ],
)
def test_use(source, written_as, wanted):
    assert wanted in section(write_card(source, format=written_as, engines=()), "Use")


def test_licence_and_its_duties(source):
    text = write_card(source)
    assert "\n**Built with Llama**\n" in text.partition("## What it is")[0]
    licence = section(text, "Licence")
    assert "[Llama 3.1 Community License Agreement](https://www.llama.com/llama3_1/license)" in licence
    assert "- The name of a model made from it begins with “Llama”." in licence
    assert "700 million" in licence
    assert "models/llama3_1/LICENSE" in licence
    assert "rename it first" in write_card(source, title="tiny-puzzle")
    assert "rename it first" not in text


def test_licences_that_are_not_known(source):
    assert "**Unknown.** Nothing beside the weights" in section(write_card(source, licence=Licence()), "Licence")
    assert ModelCard(write_card(source, licence=Licence())).data.license is None
    rare = read_licence(None, given="cc-by-nc-4.0")
    assert "puzzlebench knows no list of what it asks for: read it." in section(
        write_card(source, licence=rare), "Licence"
    )
    embedded = read_licence(None, parent="embedded")
    text = section(write_card(source, licence=embedded, base_model="embedded"), "Licence")
    assert "states no licence for its weights" in text
    assert "What it asks for" not in text


def test_no_folders_of_this_machine(source, evidence):
    gone = replace(LLAMA, files=(Path("/home/me/parent/LICENSE"),), base_models=("meta-llama/Llama-3.1-8B",))
    text = write_card(source, evidence, licence=gone, base_model="/home/me/parent")
    assert not re.findall(r"(?<![\w:/.)])/(?:[\w.-]+/)+[\w.-]+", text)
    assert str(source.folder.parent) not in text
    assert "a smaller child of parent, made" in text


def test_a_stock_checkpoint_in_another_format(source):
    text = section(write_card(replace(source, solution=None)), "What it is")
    assert text.strip().startswith("Llama-tiny-puzzle holds the weights of")
