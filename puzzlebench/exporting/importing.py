"""From a checkpoint in another format to a child of ours, which every command takes.

Read are DeciLM checkpoints (block_configs, or num_key_value_heads_per_layer of the first ones), Hugging Face ones and
GGUF files of llama.cpp's deci and llama architectures. Weights go from file to file a shard at a time, so a model need
not fit into memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from puzzlebench.exporting.decilm import finished_child
from puzzlebench.exporting.hf import write_code
from puzzlebench.exporting.rope import both_forms
from puzzlebench.exporting.sidecars import (
    copy_generation_config,
    copy_tokenizer,
    solution_of,
    without_folders,
    write_json,
    write_solution,
    written_by,
)
from puzzlebench.exporting.source import ExportSource, counted, is_decilm, open_source
from puzzlebench.files import new_folder
from puzzlebench.measuring.stack.checkpoint import write_shards
from puzzlebench.model.checks import require_positive_int
from puzzlebench.model.parameters import model_parameters
from puzzlebench.model.spec import ModelSpec

if TYPE_CHECKING:
    from puzzlebench.parent.open import ParentFiles

Report = Callable[[float, str], None]
SHARD_BYTES: Final = 5 * 10**9


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportJob:
    """What is read, and where the child goes.

    Attributes:
        checkpoint: a folder, a .gguf file, or a name `find_parent` knows.
        out: a new folder.
        parent: of which it is a child, a name `find_parent` knows, so that it can be distilled further; None: what the
            checkpoint itself says.
        shard_bytes: most of one file of weights.
    """

    checkpoint: str
    out: Path
    parent: str | None = None
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        require_positive_int("shard_bytes", self.shard_bytes)


def run_import(job: ImportJob, *, progress: Report = lambda _share, _stage: None) -> dict[str, Any]:
    """Write the child; what is known of it comes back.

    Raises:
        ValueError: there is no such checkpoint, it holds what no child of ours can, it is not the parent's, or `out`
            exists.
    """
    from safetensors import SafetensorError

    from puzzlebench.parent.open import find_parent

    if job.out.exists():
        raise ValueError(f"{job.out} exists; a child is written to a new folder")
    progress(0.0, "reading")
    place = Path(job.checkpoint).expanduser()
    if not place.exists():
        place = find_parent(job.checkpoint, quiet=True).folder
    parent = None if job.parent is None else find_parent(job.parent, quiet=True)
    file = _gguf_file(place)
    with new_folder(job.out, SafetensorError) as folder:
        if file is None:
            source = open_source(place)
            _check_parent(source.spec, parent)
            _write_checkpoint(source, folder, job.shard_bytes, progress)
            copy_generation_config(source, folder)
            tokenizer = bool(copy_tokenizer((place,), folder))
        else:
            tokenizer = _unpack(file, folder, parent, job.shard_bytes, progress)
            source = open_source(folder)
        facts = _facts(source, parent, name=job.checkpoint, file=file)
        write_solution(folder, solution_of(source, facts, parent=None))
    return {
        "path": str(job.out),
        "format": facts["imported"]["format"],
        "model_type": source.spec.model_type,
        "parameters": model_parameters(source.spec, source.architecture),
        "parent": facts["parent"] or (source.solution or {}).get("parent"),
        "tokenizer": tokenizer,
    }


def _gguf_file(place: Path) -> Path | None:
    if place.is_file():
        if place.suffix != ".gguf":
            raise ValueError(f"{place} is no folder and no .gguf file")
        return place
    if (place / "config.json").is_file():
        return None
    files = sorted(place.glob("*.gguf"))
    if len(files) > 1 and "-00001-of-" not in files[0].name:  # of a split file any part will do
        raise ValueError(f"{place} holds {len(files)} GGUF files; give one of them")
    return files[0] if files else None


def _check_parent(spec: ModelSpec, parent: ParentFiles | None) -> None:
    """The parent must have the child's frame, or it cannot teach it."""
    for name in ("num_hidden_layers", "hidden_size", "vocab_size") if parent is not None else ():
        assert parent is not None
        own, theirs = getattr(spec, name), getattr(parent.spec, name)
        if own != theirs:
            raise ValueError(f"{parent.name} is not the parent: its {name} is {theirs}, and the checkpoint's is {own}")


def _write_checkpoint(source: ExportSource, folder: Path, shard_bytes: int, progress: Report) -> None:
    config = {**finished_child(source.config), **both_forms(source.config)}
    write_json(folder / "config.json", config)
    write_code(config, folder)
    total = model_parameters(source.spec, source.architecture)
    write_shards(counted(source.tensors(), total, progress), folder, shard_bytes)


def _unpack(file: Path, folder: Path, parent: ParentFiles | None, shard_bytes: int, progress: Report) -> bool:
    """Write a GGUF file's config, weights and tokenizer; whether it has a tokenizer comes back."""
    from puzzlebench.exporting.gguf_import import read_gguf
    from puzzlebench.model.hf_config import from_hf_config

    config, state, tokenizer = read_gguf(file)
    spec, architecture = from_hf_config(config, name=file.name)
    _check_parent(spec, parent)
    done = {**finished_child(config), **both_forms(config)}
    write_json(folder / "config.json", done)
    write_code(done, folder)
    write_shards(counted(state, model_parameters(spec, architecture), progress), folder, shard_bytes)
    for name, text in tokenizer.items():
        (folder / name).write_text(text, encoding="utf-8")
    return "tokenizer.json" in tokenizer


def _facts(source: ExportSource, parent: ParentFiles | None, *, name: str, file: Path | None) -> dict[str, Any]:
    """What goes into puzzle_solution.json of where the child comes from."""
    stated = source.solution or {}
    kind = "gguf" if file is not None else ("decilm" if is_decilm(source.folder) else "hf")
    imported = written_by(format=kind, name=without_folders(name), weights_fingerprint=source.fingerprint)
    if parent is None:
        return {"parent": stated.get("parent"), "imported": imported}
    return {
        "parent": parent.name,
        "parent_fingerprint": parent.fingerprint,
        "parent_parameters": model_parameters(parent.spec, parent.architecture),
        "imported": imported,
    }
