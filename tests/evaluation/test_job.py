"""A tiny parent and child, evaluated for real."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from puzzlebench.child.building import build_child
from puzzlebench.child.checkpoints import save_child
from puzzlebench.child.configs import read_spec
from puzzlebench.model.blocks import Architecture, Block, NoOp
from puzzlebench.model.spec import parent_architecture
from puzzlebench.parent.embedded import train_tokenizer
from puzzlebench.parent.fingerprint import checkpoint_fingerprint
from puzzlebench.text.corpus import Document

pytest.importorskip("lm_eval")

from puzzlebench.evaluation import running
from puzzlebench.evaluation.job import EvalJob, run_eval_job

TEXT = "for number in range(12): self.total = self.total + number  # counts what is there\n" * 40


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a parent and of a child without attention in its second layer."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=290,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.4,
    )
    parent = LlamaForCausalLM(config).eval()
    tokenizer = train_tokenizer([Document(name="text", text=TEXT)], 290)
    parent.save_pretrained(folder / "parent")
    tokenizer.save_pretrained(folder / "parent")
    spec = read_spec(parent.config)
    blocks = list(parent_architecture(spec).blocks)
    blocks[1] = Block(attention=NoOp(), ffn=blocks[1].ffn)
    save_child(build_child(parent, spec, Architecture(blocks=tuple(blocks)), {}), folder / "child", tokenizer)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("PUZZLEBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def evaluated(models, cache, tmp_path_factory):
    """The job, and what it found."""
    job = EvalJob(
        parent=str(models / "parent"),
        child=str(models / "child"),
        out=tmp_path_factory.mktemp("out"),
        limit=6,
        split="validation",
    )
    shares = []
    return job, run_eval_job(job, progress=lambda share, stage: shares.append((share, stage))), shares


def changed(job, **changes):
    return EvalJob(**{name: getattr(job, name) for name in EvalJob.__slots__} | changes)


def test_the_three_bundled_tasks(evaluated):
    job, found, shares = evaluated
    assert [row.task.removeprefix("puzzlebench_") for row in found.tasks] == ["choice", "perplexity", "generation"]
    assert [row.metric for row in found.tasks] == ["acc", "bits_per_byte", "prefix_match"]
    assert [row.chance for row in found.tasks] == [0.25, None, None]
    assert [row.documents for row in found.tasks] == [6, 6, 6]
    bits = found.tasks[1]
    assert bits.retention.value == pytest.approx(bits.parent / bits.child)
    assert bits.parent != bits.child
    stated = json.loads((job.out / "retention.json").read_text())
    assert (stated["schema_version"], stated["lm_eval_version"]) == (1, found.lm_eval_version)
    assert stated["tasks"][1]["parent"] == bits.parent
    for which in ("parent", "child"):
        assert stated[which]["fingerprint"] == checkpoint_fingerprint(Path(getattr(job, which)))
    assert shares[-1][0] == 1.0
    assert [share for share, _ in shares] == sorted(share for share, _ in shares)
    assert {stage.split(":")[0] for _, stage in shares} == {"parent", "child", "comparison"}


def test_what_lm_eval_says_of_a_side_is_what_is_compared(evaluated):
    job, found, _ = evaluated
    for which in ("parent", "child"):
        files = sorted((job.out / which).rglob("results_*.json"))
        assert len(files) == 3
        stated = [json.loads(file.read_text())["results"] for file in files]
        aggregates = {task: row for one in stated for task, row in one.items()}
        for row in found.tasks:
            assert getattr(row, which) == pytest.approx(aggregates[row.task][f"{row.metric},none"])


def test_a_finished_side_is_not_run_again(evaluated, monkeypatch):
    job, found, _ = evaluated
    monkeypatch.setattr(running, "open_model", lambda *_: pytest.fail("a model was opened"))
    again = run_eval_job(job)
    assert (again.tasks, again.overall) == (found.tasks, found.overall)
    fewer = run_eval_job(changed(job, tasks=("puzzlebench_perplexity",)))
    assert fewer.tasks == found.tasks[1:2]


def test_a_child_that_cannot_be_loaded_is_refused_before_the_parent_runs(evaluated, models, tmp_path, monkeypatch):
    job, *_ = evaluated
    monkeypatch.setattr(running, "open_model", lambda *_: pytest.fail("a model was opened"))
    shutil.copytree(models / "child", tmp_path / "decilm")
    config = json.loads((tmp_path / "decilm" / "config.json").read_text())
    layers = [{"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.0}}] * 2
    del config["per_layer_config"]
    config |= {"model_type": "nemotron-nas", "block_configs": layers}
    (tmp_path / "decilm" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"decilm format; `puzzlebench import` makes a child of it"):
        run_eval_job(changed(job, child=str(tmp_path / "decilm"), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changes", [{"limit": 3}, {"precision": "bf16"}, {"seed": 7}, {"split": "test"}])
def test_other_settings_are_run(evaluated, monkeypatch, changes):
    job, *_ = evaluated

    def opened(*_):
        raise ValueError("a model was opened")

    monkeypatch.setattr(running, "open_model", opened)
    with pytest.raises(ValueError, match="a model was opened"):
        run_eval_job(changed(job, **changes))


def test_what_was_killed_goes_on(evaluated, tmp_path, monkeypatch):
    job, found, _ = evaluated
    run_task, ran = running._run_task, []

    def killed_in_the_second(*arguments):
        ran.append(arguments[4])
        if len(ran) == 2:
            (arguments[6] / "half").mkdir()
            (arguments[6] / "half" / "results_half.json").write_text("{")
            raise KeyboardInterrupt
        run_task(*arguments)

    monkeypatch.setattr(running, "_run_task", killed_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        run_eval_job(changed(job, out=tmp_path))
    assert [file.name[:8] for file in sorted(tmp_path.rglob("*.json*"))] == ["results_", "samples_"]
    assert run_eval_job(changed(job, out=tmp_path)).tasks == found.tasks
    assert ran == [f"puzzlebench_{name}" for name in ("choice", "perplexity", "perplexity", "generation")] + [
        f"puzzlebench_{name}" for name in ("choice", "perplexity", "generation")
    ]


def test_results_instead_of_models(evaluated, tmp_path, monkeypatch):
    job, found, _ = evaluated
    monkeypatch.setattr(running, "open_model", lambda *_: pytest.fail("a model was opened"))
    sides = {which: str(job.out / which) for which in ("parent", "child")}
    again = run_eval_job(changed(job, out=tmp_path, tasks=(), **sides))
    assert sorted(row.task for row in again.tasks) == sorted(row.task for row in found.tasks)
    assert again.overall.value == pytest.approx(found.overall.value)
    mixed = run_eval_job(changed(job, parent=sides["parent"]))
    assert mixed.tasks == found.tasks


def test_a_backend_of_lm_eval_gives_the_same(evaluated, tmp_path):
    job, *_ = evaluated
    parent = str(job.out / "parent")
    arguments = "dtype=float32,device=cpu"
    job = changed(job, out=tmp_path, parent=parent, child=job.parent, backend="hf", backend_arguments=arguments)
    same = run_eval_job(changed(job, tasks=("puzzlebench_choice", "puzzlebench_perplexity")))
    for row in same.tasks:
        assert row.child == pytest.approx(row.parent)
    assert same.notes == ()
    with pytest.raises(ValueError, match="no backend 'nothing'"):
        run_eval_job(changed(job, backend="nothing", backend_arguments=""))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limit": 0}, "limit must be"),
        ({"num_fewshot": -1}, "num_fewshot must be"),
        ({"backend_arguments": "x=1"}, "need a backend"),
        ({"tasks": ()}, "say which tasks the parent"),
        ({"child": "no/such/model"}, "no/such/model"),
        ({"include_path": "missing", "tasks": ("one",)}, "no such folder"),
    ],
)
def test_what_is_wrong_is_one_line(evaluated, tmp_path, changes, message):
    if "include_path" in changes:
        changes = changes | {"include_path": tmp_path / "missing"}
    with pytest.raises(ValueError, match=message):
        run_eval_job(changed(evaluated[0], **changes))


def test_a_task_that_cannot_be_loaded_is_one_line(evaluated, tmp_path):
    (tmp_path / "broken.yaml").write_text(
        "task: broken\ndataset_path: json\ndataset_kwargs:\n  data_files: {test: missing.jsonl}\ntest_split: test\n"
        "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: text\n"
        "metric_list: [{metric: bits_per_byte}]\n"
    )
    with pytest.raises(ValueError, match="task broken cannot be loaded"):
        run_eval_job(changed(evaluated[0], include_path=tmp_path, tasks=("broken",)))
