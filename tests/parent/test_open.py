from __future__ import annotations

import pytest
import torch

transformers = pytest.importorskip("transformers")
from puzzlebench.model.catalog import list_models  # noqa: E402
from puzzlebench.parent import embedded  # noqa: E402
from puzzlebench.parent import open as parents  # noqa: E402
from puzzlebench.parent.embedded import ParentRecipe, make_embedded  # noqa: E402
from puzzlebench.parent.open import empty_parent, find_parent, load_parent, load_tokenizer  # noqa: E402

RECIPE = ParentRecipe(tokens=128, length=16, batch_size=4, warmup=1)


@pytest.fixture
def folder(small, tmp_path):
    return make_embedded(RECIPE, tmp_path / "parent", quiet=True)


def test_a_directory_is_a_parent(folder):
    files = find_parent(str(folder))
    assert (files.name, files.folder) == (str(folder), folder)
    assert files.spec.hidden_size == 16
    assert len(files.architecture.blocks) == 2
    for dtype in (torch.float32, torch.bfloat16):
        model = load_parent(files, torch.device("cpu"), dtype)
        assert not model.training
        assert {(parameter.dtype, parameter.requires_grad) for parameter in model.parameters()} == {(dtype, False)}
    assert load_tokenizer(files).eos_token == embedded.END_TOKEN


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_empty_parent_is_the_parent_but_for_the_memory_of_its_weights(folder, dtype):
    files = find_parent(str(folder))
    empty, whole = empty_parent(files, dtype), load_parent(files, torch.device("cpu"), dtype)
    own, others = dict(empty.named_parameters()), dict(whole.named_parameters())
    assert {name: (value.shape, value.dtype) for name, value in own.items()} == {
        name: (value.shape, value.dtype) for name, value in others.items()
    }
    assert all(value.is_meta and not value.requires_grad for value in own.values())
    buffers = dict(whole.named_buffers())
    assert dict(empty.named_buffers()).keys() == buffers.keys()
    assert all(torch.equal(value, buffers[name]) for name, value in empty.named_buffers())
    assert not empty.training
    assert not any(parameter.is_meta for parameter in torch.nn.Linear(2, 2).parameters())  # the hook is gone


def test_the_embedded_parent_is_made_on_the_spot(small, monkeypatch):
    monkeypatch.setattr(embedded.ParentRecipe, "__init__", _of(RECIPE))
    files = find_parent("embedded", quiet=True)
    assert files.name == "embedded"
    assert files.folder.parent == small
    assert files == find_parent("embedded", quiet=True)


def _of(recipe):
    def fill(self):
        for name in recipe.__dataclass_fields__:
            object.__setattr__(self, name, getattr(recipe, name))

    return fill


@pytest.mark.parametrize("called", ["id", "hub_id"])
def test_a_bundled_model_is_downloaded_under_its_name_on_the_hub(monkeypatch, folder, called):
    row = next(row for row in list_models() if row.hub_id is not None)
    asked = []

    def download(name, *, allow_patterns, **_kwargs):
        asked.append(name)
        assert {"*.safetensors", "README.md", "LICENSE*", "NOTICE*"} <= set(allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    files = find_parent(getattr(row, called))
    assert asked == [row.hub_id]
    assert files.folder == folder


def test_a_download_that_fails_is_one_line(monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("no network\nand a long story")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    row = next(row for row in list_models() if row.hub_id is not None)
    with pytest.raises(ValueError, match=rf"^{row.hub_id} could not be downloaded: no network$"):
        find_parent(row.id)


def test_names_that_nothing_has(tmp_path):
    with pytest.raises(ValueError, match=r"no model is named 'embeded' .*did you mean"):
        find_parent("embeded")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        find_parent(str(tmp_path))


def test_a_parent_without_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"parent has no tokenizer that can be read: [^\n]+$"):
        load_tokenizer(find_parent(str(folder)))


def test_download_errors_without_words_are_named_too(monkeypatch):
    class SilentError(Exception):
        pass

    def fail(*_args, **_kwargs):
        raise SilentError

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ValueError, match=r"org/x could not be downloaded: SilentError"):
        parents._download("org/x")
