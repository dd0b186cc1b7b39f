"""One library to make, as a value that can be written down, and a share of it done in this process.

The same job runs in one process, under torchrun, as Ray tasks or as a Slurm array: each takes the layers of its shard.
Knows no command line and starts no process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from puzzlebench.files import locked, write_text
from puzzlebench.library.activations import Storage
from puzzlebench.library.build import BuildReport, build_library, work_folder
from puzzlebench.library.initialise import InitRecipe
from puzzlebench.library.recipe import Mode, Recipe, Training
from puzzlebench.library.store import ParentFacts, create_library, open_library
from puzzlebench.model.space import SearchSpace, space_from_json, space_to_json
from puzzlebench.parent.open import ParentFiles, find_parent, load_parent, load_tokenizer
from puzzlebench.text.corpus import Split, read_documents, standard_library
from puzzlebench.text.tokens import Tokens, pack_documents
from puzzlebench.training.precision import DTYPES, Precision

JOB_SCHEMA = 1
_LEFT_FOR_S = 24 * 3600.0  # nobody writes to a file for so long


@dataclass(frozen=True, kw_only=True, slots=True)
class LibraryJob:
    """What to make, of whom, from what and where.

    Attributes:
        parent: a name `find_parent` knows.
        data: a file or folder of text; None for the training files of Python's standard library.
        sequences, length: of tokens to train on.
        precision: of the parent, and what blocks are trained in.
        memory_limit: bytes, see `build_library`.
    """

    parent: str
    space: SearchSpace
    out: Path
    data: Path | None = None
    sequences: int
    length: int
    mode: Mode = "decoupled"
    init: InitRecipe = field(default_factory=InitRecipe)
    training: Training = field(default_factory=Training)
    device: str = "cpu"
    precision: Precision = "fp32"
    activations: Storage = "auto"
    memory_limit: int = 8 << 30
    work_dir: Path | None = None


def run_job(
    job: LibraryJob,
    *,
    shard: int = 0,
    shards: int = 1,
    progress: Callable[[float, str], None] = lambda _share, _stage: None,
) -> BuildReport:
    """Make the blocks of every `shards`-th layer, beginning with number `shard`.

    Raises:
        ValueError: the parent, the data or the library does not fit, or the disk is full.
    """
    if not 0 <= shard < shards:
        raise ValueError(f"shard {shard} is none of the {shards} shards 0 to {shards - 1}")
    progress(0.0, "parent and text")
    files = find_parent(job.parent, quiet=True)
    tokens = load_tokens(files, job.data, "train", sequences=job.sequences, length=job.length)
    library = create_library(job.out, parent_facts(files))
    recipe = job_recipe(job, tokens, files.spec.hidden_size)
    lock = work_folder(library, job.work_dir) / f"{recipe.id}.{shard}-of-{shards}.lock"
    with locked(lock, "makes these blocks"):
        return build_library(
            load_parent(files, torch.device(job.device), DTYPES[job.precision]),
            files.spec,
            files.architecture,
            job.space,
            tokens,
            recipe,
            library,
            layers=range(shard, files.spec.num_hidden_layers, shards),
            activations=job.activations,
            memory_limit=job.memory_limit,
            work_dir=job.work_dir,
            progress=progress,
        )


def finish_job(job: LibraryJob) -> dict[str, Any]:
    """Write the library's manifest once all shards are done, and return it. What killed processes left goes.

    Raises:
        ValueError: there is no library.
    """
    library = open_library(job.out, parent_facts(find_parent(job.parent, quiet=True)))
    leftovers = [*library.path.glob("work/*"), *library.path.glob("*/.*.part"), *library.path.glob(".*.part")]
    for file in leftovers:
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > _LEFT_FOR_S:
                file.unlink()
    return library.write_manifest()


def job_recipe(job: LibraryJob, tokens: Tokens, hidden_size: int) -> Recipe:
    """The recipe that names the job's blocks."""
    return Recipe(
        mode=job.mode,
        init=job.init,
        training=job.training.with_rates(hidden_size),
        data=data_fingerprint(tokens),
        sequences=job.sequences,
        length=job.length,
        precision=job.precision,
    )


def parent_facts(files: ParentFiles) -> ParentFacts:
    """What a library says of its parent."""
    return ParentFacts(
        name=files.name,
        model_type=files.spec.model_type,
        num_hidden_layers=files.spec.num_hidden_layers,
        fingerprint=files.fingerprint,
    )


def load_tokens(files: ParentFiles, data: Path | None, split: Split, *, sequences: int, length: int) -> Tokens:
    """Packed token ids [sequences, length] of text of one's own, or of a split of the standard library.

    Raises:
        ValueError: there is too little text, or the parent has no tokenizer.
    """
    if length > files.spec.max_position_embeddings:
        raise ValueError(f"{files.name} has {files.spec.max_position_embeddings} positions; --length {length} is more")
    documents = standard_library(split) if data is None else read_documents(data)
    return pack_documents(
        documents,
        load_tokenizer(files),
        sequences=sequences,
        length=length,
        spread=data is None and split != "train",  # small enough to be read whole
        what=f"{split} text" if data is None else str(data),
    )


def data_fingerprint(tokens: Tokens) -> str:
    """SHA-256 of token ids."""
    return hashlib.sha256(tokens.tobytes()).hexdigest()


def write_job(job: LibraryJob, path: Path) -> None:
    """Write a job as JSON, for processes that are started elsewhere."""
    data = asdict(job) | {"schema": JOB_SCHEMA, "space": space_to_json(job.space)}
    data |= {key: str(data[key]) for key in ("out", "data", "work_dir") if data[key] is not None}
    write_text(path, json.dumps(data, indent=1) + "\n")


def read_job(path: Path) -> LibraryJob:
    """The job in a file that `write_job` wrote.

    Raises:
        ValueError: there is no such file, or it is no job.
    """
    try:
        data = json.loads(path.read_text())
        if data.pop("schema") != JOB_SCHEMA:
            raise ValueError("another schema")
        for key in ("out", "data", "work_dir"):
            data[key] = None if data[key] is None else Path(data[key])
        data |= {"init": InitRecipe(**data["init"]), "training": Training(**data["training"])}
        return LibraryJob(**data | {"space": space_from_json(data["space"])})
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a library job: {error}") from None


def peak_memory_bytes(device: torch.device) -> tuple[int, int]:
    """Most memory this process has held: resident on the host, allocated on the GPU (0 without one)."""
    unit = 1 if sys.platform == "darwin" else 1024
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return host, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
