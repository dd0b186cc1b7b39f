from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from puzzlebench.library import job as jobs
from puzzlebench.library.initialise import InitRecipe
from puzzlebench.library.job import (
    LibraryJob,
    data_fingerprint,
    finish_job,
    job_recipe,
    load_tokens,
    parent_facts,
    peak_memory_bytes,
    read_job,
    run_job,
    write_job,
)
from puzzlebench.library.recipe import Training
from puzzlebench.library.store import open_library
from puzzlebench.model.blocks import GatedMLP, Linear, NoOp
from puzzlebench.model.space import LayerCandidates, SearchSpace, space_of
from puzzlebench.model.spec import parent_architecture
from puzzlebench.parent.embedded import train_tokenizer
from puzzlebench.parent.open import find_parent
from puzzlebench.text.corpus import Document

LENGTH = 16


@pytest.fixture
def parent(build, tmp_path):
    """A parent with a tokenizer, in a directory."""
    folder = tmp_path / "parent"
    build("llama", vocab_size=300).save_pretrained(folder)
    train_tokenizer([Document(name="x", text="some words and some more words " * 20)], 300).save_pretrained(folder)
    return folder


@pytest.fixture
def job(parent, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{n} words and {n * n} more\n" for n in range(100)))
    own = parent_architecture(find_parent(str(parent)).spec).blocks[0]
    layer = LayerCandidates(
        attention=(own.attention, NoOp()), ffn=(own.ffn, GatedMLP(intermediate_size=8), Linear(), NoOp())
    )
    return LibraryJob(
        parent=str(parent),
        space=SearchSpace(layers=(layer, layer)),
        out=tmp_path / "library",
        data=text,
        sequences=12,
        length=LENGTH,
        training=Training(steps=2, batch_size=4, evaluations=1),
    )


def test_a_job_comes_back_as_it_was_written(job, tmp_path):
    full = replace(
        job,
        data=None,
        work_dir=tmp_path / "work",
        mode="coupled",
        init=InitRecipe(attention="select", ridge=0.5),
        training=Training(steps=7, lr=0.02, optimiser="adamw"),
        device="cuda:3",
        precision="bf16",
        activations="stream",
        memory_limit=123,
    )
    for one in (job, full):
        write_job(one, tmp_path / "job.json")
        assert read_job(tmp_path / "job.json") == one
        assert (
            job_recipe(read_job(tmp_path / "job.json"), np.zeros((1, 2), np.int32), 32).id
            == job_recipe(one, np.zeros((1, 2), np.int32), 32).id
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "another schema"),
        ({"more": 1}, "more"),
        ({"init": {"attention": "meanpool"}}, "did you mean mean_pool"),
        ({"training": {"steps": -1}}, "steps must be"),
        ({"training": {"stepz": 1}}, "stepz"),
        ({"space": {"schema": 1, "layers": []}}, "at least one layer"),
        ({"space": {"schema": 1, "layers": [{"attention": ["gqa"], "ffn": []}]}}, "'gqa' is not an attention"),
        ({"space": None}, ""),
        ({"out": 3}, ""),
    ],
)
def test_a_file_that_is_no_job_says_why(job, tmp_path, change, message):
    file = tmp_path / "job.json"
    write_job(job, file)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=rf"job\.json is not a library job: .*{message}"):
        read_job(file)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"schema": 1}'])
def test_a_broken_file_is_no_job(tmp_path, text):
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(ValueError, match=r"job\.json is not a library job"):
        read_job(tmp_path / "job.json")
    with pytest.raises(ValueError, match=r"nowhere\.json: no such file"):
        read_job(tmp_path / "nowhere.json")


def test_shards_make_together_what_one_process_makes_alone(job, tmp_path):
    whole = replace(job, out=tmp_path / "whole")
    assert run_job(whole).made == 4
    assert [run_job(job, shard=shard, shards=3).made for shard in (2, 1, 0)] == [0, 2, 2]
    manifest, expected = finish_job(job), finish_job(whole)
    assert manifest == expected
    assert [(one["layer"], one["block"]) for one in manifest["blocks"]] == [
        (layer, block) for layer in (0, 1) for block in ("ffn.linear", "ffn.mlp_8")
    ]
    (recipe,) = manifest["recipes"].values()
    assert recipe["length"] == LENGTH
    assert recipe["init"]["attention"] == "mean_pool"
    for one in manifest["blocks"]:
        found, alone = (load_file(library.out / one["file"]) for library in (job, whole))
        assert found.keys() == alone.keys()
        assert all(torch.equal(found[name], alone[name]) for name in found)
    assert run_job(job).there_before == 4


def test_a_library_says_whose_it_is(job, parent, build):
    run_job(replace(job, space=space_of(find_parent(str(parent)).architecture)))
    facts = open_library(job.out).parent
    assert facts == parent_facts(find_parent(str(parent)))
    assert (facts.model_type, facts.num_hidden_layers) == ("llama", 2)
    assert len(facts.fingerprint) == 64
    model = build("llama", vocab_size=300)
    model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    model.save_pretrained(parent)
    for call in (run_job, finish_job):
        with pytest.raises(
            ValueError, match=r"library is a library of .*parent \(\w{12}\), not of .*parent \(\w{12}\)"
        ):
            call(job)


def test_there_is_nothing_to_finish_where_there_is_no_library(job):
    job.out.mkdir()
    with pytest.raises(ValueError, match=r"library is not a block library"):
        finish_job(job)
    assert list(job.out.iterdir()) == []


@pytest.mark.parametrize(("shard", "shards"), [(2, 2), (-1, 2), (0, 0)])
def test_shards_that_are_not_there(job, shard, shards):
    with pytest.raises(ValueError, match=rf"shard {shard} is none of the {shards} shards"):
        run_job(job, shard=shard, shards=shards)


def test_too_little_text_names_the_file(job):
    with pytest.raises(ValueError, match=r"too little .*text\.txt: it has [\d,]+ tokens and 1,600,000 are needed"):
        run_job(replace(job, sequences=100_000))


def test_without_data_the_standard_librarys_split_is_read(job, monkeypatch):
    asked = []

    def documents(split):
        asked.append(split)
        return [Document(name="x", text=f"{split} words " * 50)]

    monkeypatch.setattr(jobs, "standard_library", documents)
    files = find_parent(job.parent)
    train, validation = (load_tokens(files, None, split, sequences=3, length=8) for split in ("train", "validation"))
    assert asked == ["train", "validation"]
    assert train.shape == (3, 8)
    assert data_fingerprint(train) != data_fingerprint(validation)
    assert data_fingerprint(train) == data_fingerprint(train.copy())


def test_memory_is_in_bytes():
    host, gpu = peak_memory_bytes(torch.device("cpu"))
    assert host > 50 << 20
    assert gpu == 0
