"""Tiny parents and children on disk, with a tokenizer and text for prompts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")

from puzzlebench.child.checkpoints import save_child
from puzzlebench.child.configs import read_spec
from puzzlebench.parent.embedded import train_tokenizer
from puzzlebench.text.corpus import Document

from ..child.conftest import make_child, make_parent, mixed_architecture

TEXT = "".join(f"{n} words and {n * n} more of them\n" for n in range(200))


def save_pair(folder: Path, family: str = "llama", **changes) -> SimpleNamespace:
    """A random parent and a child of every kind of sub-block."""
    tokenizer = train_tokenizer([Document(name="text", text=TEXT)], 260)
    parent = make_parent(family, vocab_size=len(tokenizer), **changes)
    parent.save_pretrained(folder / "parent")
    tokenizer.save_pretrained(folder / "parent")
    child = make_child(parent, mixed_architecture(read_spec(parent.config)))
    save_child(child, folder / "child", tokenizer)
    (folder / "text.txt").write_text(TEXT)
    return SimpleNamespace(parent=folder / "parent", child=folder / "child", text=folder / "text.txt")


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    return save_pair(tmp_path_factory.mktemp("pair"), tie_word_embeddings=True)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
