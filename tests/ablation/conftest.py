"""A tiny random parent, a made-up library of Python, and settings that take seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")

from puzzlebench.ablation import job as jobs
from puzzlebench.ablation.job import AblationJob, ablation_space
from puzzlebench.library import job as library_jobs
from puzzlebench.parent.embedded import train_tokenizer
from puzzlebench.parent.open import find_parent
from puzzlebench.profiling.cost_table import write_cost_table
from puzzlebench.profiling.profile import Grid, build_cost_table
from puzzlebench.scenario import Precision
from puzzlebench.text.corpus import Document

from ..child.conftest import make_parent

_BEGIN = {"train": 0, "validation": 10_000, "test": 20_000}


def documents(split):
    """Thirty documents of a split, in a fixed order."""
    begin = _BEGIN[split]
    return [
        Document(name=f"{n}", text="".join(f"{begin + 60 * n + k} is {(begin + k) ** 2}\n" for k in range(60)))
        for n in range(30)
    ]


@pytest.fixture(scope="session")
def parent_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ablations") / "parent"
    tokenizer = train_tokenizer(documents("train")[:2], 262)
    make_parent("llama", vocab_size=len(tokenizer), num_hidden_layers=2, max_position_embeddings=32).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def costs(parent_folder, h100_kernels, h100):
    files = find_parent(str(parent_folder))
    grid = Grid(batch_sizes=(2,), prefill_lens=(8,), context_lens=(8, 12, 16))
    table = build_cost_table(h100_kernels, h100, files.spec, ablation_space(files), Precision(), grid)
    write_cost_table(table, parent_folder.parent / "costs.parquet")
    return parent_folder.parent / "costs.parquet"


@pytest.fixture
def library_of_python(monkeypatch):
    monkeypatch.setattr(library_jobs, "standard_library", documents)
    monkeypatch.setattr(jobs, "standard_library", documents)


@pytest.fixture
def job(parent_folder, costs, tmp_path, library_of_python):
    return AblationJob(
        parent=str(parent_folder),
        out=tmp_path / "out",
        seeds=2,
        scale=0.05,
        costs=costs,
        speed_up=1.3,
        batch_size=2,
        prefill_len=8,
        decode_len=8,
    )
