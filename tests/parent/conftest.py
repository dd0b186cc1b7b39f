"""An embedded parent so small that it is trained in a second."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

pytest.importorskip("transformers")
from puzzlebench.parent import embedded
from puzzlebench.text.corpus import Document

CONFIG = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Entry:
    id: str
    config: dict


def documents(split):
    words = ["def", "return", "self", "value", "for", "in", "range"]
    begin = {"train": 0, "validation": 1000, "test": 2000}[split]
    lines = (f"{words[n % 7]} {words[n * n % 7]} {words[n % 3]}\n" for n in range(begin, begin + 400))
    return [Document(name=f"{split}.py", text="".join(lines))]


def make_small(monkeypatch, cache):
    monkeypatch.setattr(embedded, "standard_library", documents)
    monkeypatch.setattr(embedded, "bundled_models", lambda: (Entry("other", {}), Entry("embedded", CONFIG)))
    monkeypatch.setattr(embedded, "TEST_SEQUENCES", 8)
    monkeypatch.setenv(embedded.CACHE_VARIABLE, str(cache))


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The cache in which a small embedded parent is made."""
    make_small(monkeypatch, tmp_path / "cache")
    return tmp_path / "cache"
