"""Model cards: what the Hub reads of them, and what people read."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

from huggingface_hub import ModelCard

from puzzlebench.estimate import Interval
from puzzlebench.exporting.card import model_card
from puzzlebench.exporting.evidence import Evidence, EvidenceFiles, read_evidence
from puzzlebench.exporting.evidence_values import UNKNOWN
from puzzlebench.exporting.job import ExportJob, run_export
from puzzlebench.exporting.licences import Licence, read_licence
from puzzlebench.exporting.source import open_source
from puzzlebench.model.blocks import Architecture, Block, Linear, NoOp
from puzzlebench.model.engine_rules import find_refusals, load_engine_rules

from . import documents
from .documents import write
from .samples import make_samples

LLAMA = read_licence(None, given="llama3.1")
CODE = {"auto_map": {"AutoModelForCausalLM": "modeling_decilm.DeciLMForCausalLM"}}


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
    stated = {
        "format": "decilm",
        "title": "Llama-tiny-puzzle",
        "base_model": "meta-llama/Llama-3.1-8B",
        "dtype": "float32",
        "repo": None,
        "config": CODE,
        "tokenizer": True,
        **changes,
    }
    refusals = {
        engine: find_refusals(load_engine_rules(engine), source.spec, source.architecture) for engine in engines
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
    assert "is made from [meta-llama/Llama-3.1-8B](https://huggingface.co/meta-llama/Llama-3.1-8B)" in text
    own, parent = (source.solution[name] for name in ("parameters", "parent_parameters"))
    assert f"- parameters: {own:,} of {parent:,} ({100 * own / parent:.1f} %)" in text
    assert "- weights: fp32\n" in text
    # 4 bytes x (key and value) x 64 x heads; 4 + 2 + 1 + 4 of 4 x 4
    assert "- key-value cache in fp32: 5,632 bytes per token of 8,192 (68.8 %)" in text
    assert "(98.7 % to 101.6 %) of its parent's results in 2 tasks of 800 documents" in text


def test_weights_in_another_dtype(source, evidence):
    text = write_card(source, evidence, dtype="bfloat16")
    assert "- weights: bf16, cast from fp32\n" in text
    assert "- key-value cache in bf16: 2,816 bytes per token of 4,096 (68.8 %)" in text
    assert "Measured was fp32; the weights here are bf16." in section(text, "Speed")
    assert "Evaluated were the fp32 weights; those here are bf16." in section(text, "What it keeps of its parent")
    same = write_card(source, evidence)
    assert "Measured was" not in same
    assert "Evaluated were" not in same


def test_no_headline_without_an_interval(source, evidence):
    few = replace(evidence.retention, overall=Interval(value=0.998, low=math.nan, high=math.nan))
    text = write_card(source, replace(evidence, retention=few))
    assert "- keeps" not in section(text, "What it is")
    assert "**99.8 %**" in section(text, "What it keeps of its parent")


def test_what_was_not_checked_says_so_beside_the_number(source, evidence):
    unchecked = {
        name: replace(getattr(evidence, name), checked=False) for name in ("retention", "speed", "distillation")
    }
    text = write_card(source, replace(evidence, **unchecked))
    assert section(text, "What it is").count("not checked in full") == 2
    for title in ("Speed", "What it keeps of its parent", "Training"):
        assert "**Not checked:**" in section(text, title)
    checked = {name: replace(one, checked=True) for name, one in unchecked.items()}
    assert "checked" not in write_card(source, replace(evidence, **checked, notes=()))


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
    assert [row[4] for row in rows[2:5]] == ["2,048", "0", "0"]
    assert rows[3][3] == f"{256 * 256 + 256:,}"
    assert rows[-1][:3] == ["each of 4", "4 heads, 4 key-value", "gated, 512 wide"]


def test_measured_and_modelled_speed(source, evidence):
    text = section(write_card(source, evidence), "Speed")
    assert "**Predicted** before the model was made" in text
    assert "The sums are modelled: the model itself did not run." in text
    assert "| first token | 21.5 ms | 51.4 ms | 2.39× |" in text
    assert "| throughput | 1,211 tokens/s | 576.5 tokens/s | 2.1× |" in text
    head = (
        "| phase | parent, ms | this model, ms | this model, ms, predicted | speed-up | speed-up, predicted | error |"
    )
    assert head in text
    assert "| prefill | 50 (45 to 55) | 50 (45 to 55) | 50 (45 to 55) | 2.1× (1.89× to 2.31×) | 2.4× | +2.0 % |" in text
    assert "| 2.05× | -2.4 % |" in text
    assert "disturbed 12 % of the rounds" in text
    calm = replace(evidence.speed, disturbed_share=0.0)
    assert "disturbed" not in write_card(source, replace(evidence, speed=calm))


def test_what_was_not_measured_says_so(source, evidence):
    assert "The model itself was **not measured**." in write_card(source, replace(evidence, speed=None))
    empty = write_card(source)
    assert "Neither predicted nor measured here." in section(empty, "Speed")
    assert "Not evaluated here." in section(empty, "What it keeps of its parent")
    assert "not recorded here" in section(empty, "Training")
    assert "Not recorded here." in section(empty, "Limits it was searched under")
    measured = section(write_card(source, replace(evidence, search=None)), "Speed")
    assert "Predicted" not in measured
    assert "speed-up, predicted" in measured


def test_limits_retention_and_training(source, evidence):
    text = write_card(source, evidence)
    limits = section(text, "Limits it was searched under")
    assert "batches of 4 prompts of 128 tokens, each answered with 128: throughput at least 1,210 tokens/s" in limits
    assert "no other in the search space is better" in limits
    kept = section(text, "What it keeps of its parent")
    assert "| task | documents | metric | parent | this model | retained | above chance |" in kept
    row = "| puzzlebench_choice | 400 | acc | 0.6775 | 0.6825 | 100.7 % (97.9 % to 103.8 %) |"
    assert f"{row} 101.2 % (96.6 % to 106.0 %) |" in kept
    no_choice = replace(
        evidence.retention, tasks=tuple(replace(one, above_chance=UNKNOWN) for one in evidence.retention.tasks)
    )
    assert "above chance |" not in write_card(source, replace(evidence, retention=no_choice))
    assert "**100.1 % (98.7 % to 101.6 %)**" in kept
    assert "not in the overall retention" in kept
    training = section(text, "Training")
    assert "307,200 tokens (300 steps) of books.jsonl: cosine + forward_kl, adamw" in training
    assert "loss 0.07 to 0.033" in training


def test_engines(source):
    odd = replace(source, spec=replace(source.spec, qk_norm="per_head"))
    text = section(write_card(odd, engines=("vllm", "tensorrt_llm", "transformers")), "Engines")
    (version,) = {rule.version for rule in load_engine_rules("vllm").rules}
    (reason,) = (rule.reason for rule in load_engine_rules("vllm").rules if rule.refuses == "qk_norm")
    assert f"| vLLM | {version} | no: layer 0: {reason} (and 3 more) |" in text
    assert re.search(r"\| transformers \| 4\.57\.1 to [\d.]+ \| yes \|", text)


def test_commands_of_engines(source):
    assert "vllm serve Llama-tiny-puzzle --trust-remote-code\n" in section(write_card(source), "Use")
    odd = replace(source, spec=replace(source.spec, qk_norm="per_head"))
    assert "vllm serve" not in write_card(odd, engines=("vllm",))
    both = write_card(odd, engines=("vllm", "vllm_puzzlebench"))
    assert "vllm serve Llama-tiny-puzzle    # with puzzlebench installed beside vLLM\n" in section(both, "Use")
    assert "| vLLM with puzzlebench's plugin |" in both
    assert "vllm serve" not in write_card(source, tokenizer=False)


def test_use_of_a_pushed_repository_and_of_odd_names(source):
    pushed = section(write_card(source, repo="me/Llama-x"), "Use")
    assert 'name = "me/Llama-x"\n' in pushed
    assert "vllm serve me/Llama-x --trust-remote-code\n" in pushed
    assert "is the folder" not in pushed
    odd = section(write_card(source, title='a "b" c'), "Use")
    assert 'name = "a \\"b\\" c"\n' in odd
    assert "vllm serve 'a \"b\" c' --trust-remote-code\n" in odd


def test_use_of_gguf(source):
    here = section(write_card(source, format="gguf", config={}, engines=("llama_cpp",)), "Use")
    assert 'model = Llama("model.gguf")' in here
    assert "llama-cli -m model.gguf -p" in here
    assert "-hf" not in here
    pushed = section(write_card(source, format="gguf", config={}, repo="me/x", engines=("llama_cpp",)), "Use")
    assert "llama-cli -hf me/x -p" in pushed
    assert '# model = Llama.from_pretrained("me/x", filename="model.gguf")' in pushed
    ids = section(write_card(source, format="gguf", config={}, tokenizer=False, engines=("llama_cpp",)), "Use")
    assert "llama-cli" not in ids
    assert "model.generate([1, 2, 3])" in ids


def test_a_stock_checkpoint_claims_no_code(source):
    text = write_card(source, format="hf", config={"model_type": "llama"}, engines=("transformers", "vllm_puzzlebench"))
    assert "trust_remote_code" not in text
    assert "code in this repository" not in text
    assert "A stock checkpoint of model type `llama`" in section(text, "Engines")
    assert "**Changed** from the parent: the weights and the config." in section(text, "Licence")
    own = section(write_card(source, format="hf"), "Licence")
    assert "**Changed** from the parent: the weights, the config and the code of the model." in own
    same = write_card(replace(source, solution=None), format="hf", config={})
    assert "**Changed** from the parent: the config." in same


@pytest.mark.parametrize(
    ("name", "written_as", "words"),
    [
        ("llama-sized", "hf", True),
        ("llama-sized", "decilm", True),
        ("llama-sized", "decilm", False),
        ("llama-parent", "hf", True),
    ],
)
def test_the_code_of_the_card_runs(tmp_path, monkeypatch, capsys, name, written_as, words):
    (sample,) = make_samples(tmp_path / "samples", (name,))
    if not words:
        for file in sample.folder.glob("tokenizer*"):
            file.unlink()
    solution = sample.folder / "puzzle_solution.json"
    if not words:  # nor one in the parent's folder
        solution.write_text(json.dumps({**json.loads(solution.read_text()), "parent": "nowhere"}))
    run_export(
        ExportJob(child=str(sample.folder), out=tmp_path / "a model", format=written_as, engines=("transformers",))
    )
    (python,) = re.findall(r"```python\n(.*?)```", (tmp_path / "a model" / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("transformers asks whether to run code"))
    capsys.readouterr()
    exec(compile(python, "card", "exec"), {})
    said = capsys.readouterr().out.replace(" ", "")
    assert ("importos" if words else "tensor([[1,2,3,") in said


def test_texts_of_others_are_no_markdown(source, evidence):
    bad = "x\n\n# Injected\n<script>alert(1)</script> [click](http://e.vil) `code`"
    solution = {**source.solution, "parent": bad, "recipe": bad}
    hostile = Evidence(
        search=replace(evidence.search, title=bad, cost_source=bad, cost_cells={bad: 1}),
        retention=replace(
            evidence.retention, notes=("# Injected",), tasks=(replace(evidence.retention.tasks[0], task=bad),)
        ),
        speed=replace(evidence.speed, device=bad, other_setup=(bad * 100,)),
        distillation=replace(evidence.distillation, data=bad),
        notes=(bad,),
    )
    licence = Licence(id="other", name=bad, base_models=(bad,))
    text = write_card(replace(source, solution=solution), hostile, licence=licence, base_model=bad, title=bad)
    body = text.split("\n---\n", 1)[1]
    shown = re.sub(r"```.*?```|`[^`\n]*`", "", body, flags=re.DOTALL)
    assert "<script>" not in shown
    assert "](http://e.vil)" not in re.sub(r"\\\\\]", "", shown).replace("\\](", "")
    assert not re.search(r"^(- )?# Injected", body, re.MULTILINE)
    assert max(map(len, shown.splitlines())) < 2000


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
    assert "puzzlebench has no list of what it asks for: read it." in section(
        write_card(source, licence=rare), "Licence"
    )
    embedded = read_licence(None, parent="embedded")
    text = section(write_card(source, licence=embedded, base_model="embedded"), "Licence")
    assert "states no licence for its weights" in text
    assert "What it asks for" not in text
    given = read_licence(None, parent="embedded", given="mit")
    text = section(write_card(source, licence=given, base_model="embedded"), "Licence")
    assert "MIT License](https://opensource.org/license/mit), as was given for this export." in text
    assert "(`embedded`), states none." in text
    assert "under its licence" not in text


def test_the_text_of_the_licence(source, tmp_path):
    missing = "**Its text is missing here**"
    assert missing in section(write_card(source), "Licence")
    (tmp_path / "LICENSE").write_text("MIT License\n")
    assert missing not in section(write_card(source, licence=read_licence(tmp_path)), "Licence")
    other = read_licence(tmp_path, given="apache-2.0")
    assert "states another one, MIT License, whose terms may hold too." in section(
        write_card(source, licence=other), "Licence"
    )


def test_no_folders_of_this_machine(source, evidence):
    gone = replace(LLAMA, files=(Path("/home/me/parent/LICENSE"),), base_models=("meta-llama/Llama-3.1-8B",))
    text = write_card(source, evidence, licence=gone, base_model="/home/me/parent")
    assert not re.findall(r"(?<![\w:/.)])/(?:[\w.-]+/)+[\w.-]+", text)
    assert str(source.folder.parent) not in text
    assert "is made from parent with" in text


def test_a_stock_checkpoint_in_another_format(source):
    text = section(write_card(replace(source, solution=None)), "What it is")
    assert text.strip().startswith("Llama-tiny-puzzle holds the weights of")
