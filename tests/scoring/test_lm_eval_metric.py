"""Scores by a task of the LM Evaluation Harness."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from puzzlebench.child.halves import swapped
from puzzlebench.library.build import build_library
from puzzlebench.library.recipe import Recipe, Training
from puzzlebench.library.store import ParentFacts, create_library
from puzzlebench.model.blocks import block_name
from puzzlebench.model.hf_config import from_hf_config
from puzzlebench.model.space import default_space
from puzzlebench.parent.embedded import train_tokenizer
from puzzlebench.scoring.layer_halves import LayerHalves
from puzzlebench.text.corpus import Document
from puzzlebench.text.tokens import pack_documents

pytest.importorskip("lm_eval")

from puzzlebench.scoring.lm_eval_metric import TaskMetric, score_by_task

TEXT = "for number in range(12): total = total + number  # counts what is there\n" * 40
CHOICES = """task: choices
dataset_path: json
dataset_kwargs:
  data_files:
    test: {docs}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{start}}}}"
doc_to_choice: "{{{{[first, second]}}}}"
doc_to_target: gold
metric_list:
  - metric: acc
    higher_is_better: true
  - metric: acc_norm
    higher_is_better: true
"""
GENERATES = """task: generates
dataset_path: json
dataset_kwargs:
  data_files:
    test: {docs}
test_split: test
output_type: generate_until
doc_to_text: "{{{{start}}}}"
doc_to_target: "{{{{first}}}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 4
  do_sample: false
metric_list:
  - metric: exact_match
    higher_is_better: true
"""


@pytest.fixture(scope="module")
def parent():
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=290,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.4,  # answers that differ from block to block
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(requires_grad=False)
    tokenizer = train_tokenizer([Document(name="text", text=TEXT)], 290)
    spec, architecture = from_hf_config(config.to_dict(), name="tiny")
    return model, tokenizer, spec, architecture


@pytest.fixture(scope="module")
def library(parent, tmp_path_factory):
    model, tokenizer, spec, architecture = parent
    space = default_space(spec, architecture, ffn_fractions=(1.0, 0.5))
    tokens = pack_documents([Document(name="text", text=TEXT)], tokenizer, sequences=8, length=16)
    facts = ParentFacts(name="tiny", model_type="llama", num_hidden_layers=2, fingerprint="0" * 64)
    library = create_library(tmp_path_factory.mktemp("library"), facts)
    recipe = Recipe(data="text", sequences=8, length=16, training=Training(steps=0))
    build_library(model, spec, architecture, space, tokens, recipe, library)
    return library, recipe.id, space


@pytest.fixture
def tasks(tmp_path):
    docs = [
        {"start": "total = total" + " + 1" * number, "first": chr(97 + number), "second": chr(110 - number), "gold": 0}
        for number in range(14)
    ]
    file = tmp_path / "docs.jsonl"
    file.write_text("\n".join(json.dumps(doc) for doc in docs))
    for name, text in (("choices", CHOICES), ("generates", GENERATES)):
        (tmp_path / f"{name}.yaml").write_text(text.format(docs=file))
    return tmp_path


def test_a_candidate_from_its_layer_on_answers_like_the_whole_model(parent, library, tasks):
    model, tokenizer, _, architecture = parent
    folder, recipe, space = library
    metric = TaskMetric(model, tokenizer, task="choices", include_path=tasks, batch_size=4)
    assert (metric.metric, metric.direction) == ("acc", "maximise")
    seen = set()
    for layer in (1, 0):
        halves = LayerHalves(model, layer, space.layers[layer], architecture.blocks[layer], folder, recipe)
        for block in space.layers[layer].blocks()[1:]:
            attention, ffn = halves.of(block)
            from_layer = metric.values(layer, (attention, ffn))
            with swapped(model, layer, attention=attention, ffn=ffn):
                whole = metric.values(layer, None)
            assert from_layer.shape == (14, 1)
            assert torch.equal(from_layer, whole), block_name(block)
            seen.add(tuple(from_layer[:, 0].tolist()))
    assert len(seen) > 3  # blocks do give different answers, so equal ones mean something


def test_nothing_kept_gives_the_same(parent, library, tasks):
    model, tokenizer, _, architecture = parent
    folder, recipe, space = library
    halves = LayerHalves(model, 1, space.layers[1], architecture.blocks[1], folder, recipe)
    block = halves.of(space.layers[1].blocks()[-1])
    kept, anew = (
        TaskMetric(model, tokenizer, task="choices", include_path=tasks, memory_limit=limit).values(1, block)
        for limit in (1 << 30, 0)
    )
    assert torch.equal(kept, anew)


def test_tasks_that_generate_run_the_swapped_model(parent, library, tasks):
    model, tokenizer, _, architecture = parent
    folder, recipe, space = library
    metric = TaskMetric(model, tokenizer, task="generates", include_path=tasks, limit=3)
    halves = LayerHalves(model, 0, space.layers[0], architecture.blocks[0], folder, recipe)
    before = model.model.layers[0].self_attn
    values = metric.values(0, halves.of(space.layers[0].blocks()[-1]))
    assert values.shape == (3, 1)
    assert model.model.layers[0].self_attn is before


def test_scores_of_every_block_resume(parent, library, tasks, tmp_path, monkeypatch):
    model, tokenizer, _, architecture = parent
    folder, recipe, space = library
    metric = TaskMetric(model, tokenizer, task="choices", metric="acc_norm", include_path=tasks)
    scores = score_by_task(metric, model, architecture, space, folder, recipe, folder=tmp_path)
    assert [len(one.values) for one in scores] == [len(layer.blocks()) for layer in space.layers]
    own = block_name(architecture.blocks[0])
    assert torch.equal(scores[0].values[own], scores[1].values[own])
    monkeypatch.setattr(metric, "values", lambda *_: pytest.fail("scored again"))
    again = score_by_task(metric, model, architecture, space, folder, recipe, folder=tmp_path)
    assert all(torch.equal(one.values[own], two.values[own]) for one, two in zip(scores, again, strict=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"task": "choices", "metric": "f1"}, "has no metric 'f1'; it has acc, acc_norm"),
        ({"task": "choices", "include_path": "missing"}, "no such folder"),
    ],
)
def test_what_is_wrong_is_one_line(parent, tasks, wrong, message):
    model, tokenizer, *_ = parent
    options = {"include_path": tasks} | {
        key: tasks / value if key == "include_path" else value for key, value in wrong.items()
    }
    with pytest.raises(ValueError, match=message):
        TaskMetric(model, tokenizer, **options)
