from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os

import pytest
import torch

transformers = pytest.importorskip("transformers")
from safetensors import SafetensorError  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from puzzlebench.parent import embedded  # noqa: E402
from puzzlebench.parent import training as parent_training  # noqa: E402
from puzzlebench.parent.embedded import (  # noqa: E402
    FACTS_FILE,
    ParentRecipe,
    cache_folder,
    embedded_folder,
    make_embedded,
    read_facts,
    train_tokenizer,
)
from puzzlebench.training import checkpoints  # noqa: E402

RECIPE = ParentRecipe(tokens=960, length=16, batch_size=4, warmup=3)  # 15 steps


def _weights(folder):
    return load_file(folder / "model.safetensors")


def _same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _left_over(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_the_folder_is_a_checkpoint_that_has_learned_something(small):
    folder = make_embedded(RECIPE, quiet=True)
    assert folder == embedded_folder(RECIPE)
    assert folder.parent == small
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (2, 16)
    assert tokenizer.decode(tokenizer.encode("naïve  \tdef ß\n")) == "naïve  \tdef ß\n"
    assert tokenizer.eos_token_id == model.config.eos_token_id < model.config.vocab_size
    facts = read_facts(folder)
    assert facts["recipe"]["tokens"] == 960
    assert 0 < facts["test_loss"] < math.log(300) - 0.5
    assert 0 < facts["test_accuracy"] <= 1
    assert facts["test_tokens"] == 8 * 16
    ids = torch.from_numpy(embedded.report_tokens(tokenizer, 16)).long()
    assert model(ids, labels=ids).loss.item() == pytest.approx(facts["test_loss"], rel=1e-4)
    assert _left_over(small) == []


def test_a_seed_gives_the_same_weights_and_another_seed_others(small, tmp_path):
    first = _weights(make_embedded(RECIPE, quiet=True))
    assert _same(_weights(make_embedded(RECIPE, tmp_path / "again", quiet=True)), first)
    other = ParentRecipe(tokens=960, length=16, batch_size=4, warmup=3, seed=1)
    assert not _same(_weights(make_embedded(other, quiet=True)), first)


def test_a_second_call_does_not_train(small, monkeypatch):
    folder = make_embedded(RECIPE, quiet=True)
    monkeypatch.setattr(embedded, "train", None)
    assert make_embedded(RECIPE, quiet=True) == folder


def _interrupt_after(monkeypatch, steps):
    """Save after every step, and press Ctrl-C after some."""
    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", -1.0)
    real, calls = parent_training.save_training, []

    def save(*args):
        real(*args)
        calls.append(args)
        if len(calls) == steps:
            raise KeyboardInterrupt

    monkeypatch.setattr(parent_training, "save_training", save)


@pytest.mark.parametrize("steps", [1, 7, 15])
def test_a_training_that_was_interrupted_goes_on(small, monkeypatch, tmp_path, steps):
    whole = _weights(make_embedded(RECIPE, tmp_path / "whole", quiet=True))
    with monkeypatch.context() as patched:
        _interrupt_after(patched, steps)
        with pytest.raises(KeyboardInterrupt):
            make_embedded(RECIPE, quiet=True)
    assert not embedded_folder(RECIPE).exists()
    done = []
    real = embedded.train

    def train(*args, report, **kwargs):
        real(*args, report=lambda share, stage: done.append(share), **kwargs)

    monkeypatch.setattr(embedded, "train", train)
    assert _same(_weights(make_embedded(RECIPE, quiet=True)), whole)
    assert len(done) == 15 - steps
    assert not list(embedded_folder(RECIPE).glob("training*"))
    assert _left_over(small) == []


def test_a_training_of_another_recipe_is_not_gone_on_with(small, monkeypatch, tmp_path):
    whole = _weights(make_embedded(RECIPE, tmp_path / "whole", quiet=True))
    other = ParentRecipe(tokens=960, length=16, batch_size=4, warmup=3, seed=1)
    with monkeypatch.context() as patched:
        _interrupt_after(patched, 5)
        with pytest.raises(KeyboardInterrupt):
            make_embedded(other, tmp_path / "same", quiet=True)
    assert _same(_weights(make_embedded(RECIPE, tmp_path / "same", quiet=True)), whole)


def test_what_is_no_embedded_parent_is_left_alone(small, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"mine exists and is no embedded parent; give another folder"):
        make_embedded(RECIPE, folder, quiet=True)
    assert os.listdir(folder) == ["thesis.txt"]
    made = make_embedded(RECIPE, tmp_path / "made", quiet=True)
    with pytest.raises(ValueError, match=r"made holds a parent of another recipe; give another folder, or remove it"):
        make_embedded(ParentRecipe(tokens=128, length=16, batch_size=4), made, quiet=True)
    (made / FACTS_FILE).write_text("{")
    with pytest.raises(ValueError, match=r"made is not an embedded parent"):
        make_embedded(RECIPE, made, quiet=True)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), SafetensorError("I/O error: No space left on device")],
)
def test_a_full_disk_is_one_line(small, monkeypatch, error):
    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(transformers.LlamaForCausalLM, "save_pretrained", fail)
    with pytest.raises(ValueError, match=r"^cannot write to .*cache: [^\n]*No space left on device$"):
        make_embedded(RECIPE, quiet=True)
    assert not embedded_folder(RECIPE).exists()


def test_a_cache_that_cannot_be_written_to(small, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(embedded.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError, match=r"^cannot write to .*file/cache: Not a directory$"):
        make_embedded(RECIPE, quiet=True)


def _in_a_process(start, trained):
    """Make the parent, and count the trainings."""
    real = embedded.train

    def train(*args, **kwargs):
        with trained.get_lock():
            trained.value += 1
        real(*args, **kwargs)

    embedded.train = train
    start.wait()
    make_embedded(RECIPE, quiet=True)


def test_processes_do_not_train_the_same_parent_twice(small):
    context = multiprocessing.get_context("fork")  # so that what is replaced here is replaced there
    start, trained = context.Barrier(3), context.Value("i", 0)
    processes = [context.Process(target=_in_a_process, args=(start, trained)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert trained.value == 1
    assert read_facts(embedded_folder(RECIPE))["recipe"]["tokens"] == 960


def test_every_recipe_and_python_has_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv(embedded.CACHE_VARIABLE, str(tmp_path))
    folders = {embedded_folder(recipe) for recipe in (ParentRecipe(), RECIPE, ParentRecipe(seed=1))}
    monkeypatch.setattr(embedded.platform, "python_version", lambda: "3.99.0")
    folders.add(embedded_folder(ParentRecipe()))
    assert len(folders) == 4
    assert {folder.parent for folder in folders} == {tmp_path}
    monkeypatch.delenv(embedded.CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "puzzlebench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "puzzlebench"


def test_recipes_are_checked():
    with pytest.raises(ValueError, match="batch_size"):
        ParentRecipe(batch_size=0)
    with pytest.raises(ValueError, match=r"63 tokens are less than one step of 64"):
        ParentRecipe(tokens=63, length=16, batch_size=4)
    assert ParentRecipe(tokens=127, length=16, batch_size=4).steps == 1


def test_facts_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"is not an embedded parent"):
        read_facts(tmp_path)
    (tmp_path / FACTS_FILE).write_text(json.dumps({"recipe": {}}))
    assert read_facts(tmp_path) == {"recipe": {}}


def test_the_tokenizer_has_a_token_for_every_byte():
    tokenizer = train_tokenizer(embedded.standard_library("test")[:1], 280)
    text = "".join(map(chr, (*range(1, 0x300), 0x4E2D, 0x1F600)))
    assert tokenizer.decode(tokenizer.encode(text), clean_up_tokenization_spaces=False) == text
    assert len(tokenizer) == 280
