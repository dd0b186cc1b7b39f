from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from puzzlebench.launching.launchers import Local, run_library
from puzzlebench.library.initialise import InitRecipe
from puzzlebench.library.job import LibraryJob, parent_facts, write_job
from puzzlebench.library.recipe import Training
from puzzlebench.library.store import open_library
from puzzlebench.model.blocks import GQA, Linear, NoOp
from puzzlebench.model.space import default_space
from puzzlebench.parent.embedded import train_tokenizer
from puzzlebench.parent.open import find_parent
from puzzlebench.text.corpus import Document
from puzzlebench.training.tensors import read_tensors

TEXT = "".join(f"{n} times {n} is {n * n}, and {n} plus {n} is {2 * n}.\n" for n in range(1, 300))

# Takes a job and how to run it: replicated or sharded; a rank 1 that is broken or killed ends at its third block.
WORKER = """
import os, signal, sys
from pathlib import Path
from puzzlebench.launching.launchers import Torchrun, run_library
from puzzlebench.library.job import read_job
from puzzlebench.library.build import Maker

store, stored = Maker.store, []

def end(*args, **kwargs):
    if len(stored) == 2:
        if "killed" in mode:
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("the disk of this rank is full")
    stored.append(store(*args, **kwargs))

path, *mode = sys.argv[1:]
rank = os.environ["RANK"]
if {"broken", "killed"} & set(mode) and rank == "1":
    Maker.store = end
outcome = run_library(read_job(Path(path)), Torchrun(shard_parent="sharded" in mode))
print(f"rank {rank}: made {[report.made for report in outcome.shards]}, "
      f"there {[report.there_before for report in outcome.shards]}, kept in {outcome.shards[0].activations}, "
      f"manifest {outcome.manifest is not None}", flush=True)
"""


def save_parent(folder: Path, family: str = "llama", **changes: Any) -> Path:
    """A random parent with a tokenizer: 3 layers, 4 query heads, 2 key-value heads, 48 channels."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = train_tokenizer([Document(name="text", text=TEXT)], 260)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        num_hidden_layers=3,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **changes,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama."""
    return save_parent(tmp_path_factory.mktemp("parent") / "llama")


@pytest.fixture(scope="session")
def job(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> LibraryJob:
    """Five blocks of each of 3 layers, whose initial weights need statistics of three kinds."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "text.txt").write_text(TEXT)
    space = default_space(find_parent(str(parent)).spec, ffn_fractions=(1.0, 0.5), ffn_multiple=8)
    assert {type(sub) for sub in space.layers[0].attention} == {GQA, Linear, NoOp}
    return LibraryJob(
        parent=str(parent),
        space=space,
        out=folder / "local",
        data=folder / "text.txt",
        sequences=20,
        length=16,
        init=InitRecipe(attention="select"),
        training=Training(steps=4, batch_size=4, warmup=1, evaluations=2),
    )


@pytest.fixture(scope="session")
def local(job: LibraryJob) -> LibraryJob:
    """The same job, done in this process."""
    outcome = run_library(job, Local())
    assert outcome.manifest is not None
    assert len(outcome.manifest["blocks"]) == outcome.shards[0].made == 12
    return job


@pytest.fixture
def elsewhere(job: LibraryJob, tmp_path: Path) -> Callable[..., LibraryJob]:
    """The same job for another folder of this test, with changes."""
    return lambda name="library", **changes: replace(job, out=tmp_path / name, **changes)


@pytest.fixture
def torchrun(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a job in two processes under torchrun; a run that hangs fails the test."""
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)

    def run(job: LibraryJob, *mode: str) -> subprocess.CompletedProcess[str]:
        write_job(job, tmp_path / "job.json")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        return run_command([*command, str(worker), str(tmp_path / "job.json"), *mode])

    return run


def run_command(command: Sequence[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command that finds puzzlebench, with one thread per process."""
    paths = os.pathsep.join([str(Path.cwd()), *filter(None, sys.path)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def assert_same_blocks(one: LibraryJob, other: LibraryJob) -> None:
    """Both libraries hold the same blocks by the same recipe, with the same weights and facts."""
    facts = parent_facts(find_parent(one.parent))
    expected, found = open_library(one.out, facts), open_library(other.out, facts)
    blocks = list(expected.blocks())
    assert list(found.blocks()) == blocks
    assert (found.path / "manifest.json").read_text() == (expected.path / "manifest.json").read_text()
    for block in blocks:
        path = expected.file(block.layer, block.block, block.recipe)
        weights, _ = read_tensors(path)
        same, _ = read_tensors(found.path / "blocks" / path.name)
        assert weights.keys() == same.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(same[name], weight, rtol=0, atol=1e-5, msg=f"{path.name}: {name}")


@pytest.fixture(name="assert_same_blocks", scope="session")
def _assert_same_blocks() -> Callable[[LibraryJob, LibraryJob], None]:
    return assert_same_blocks


@pytest.fixture(name="save_parent", scope="session")
def _save_parent() -> Callable[..., Path]:
    return save_parent


@pytest.fixture(name="run_command", scope="session")
def _run_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    return run_command
