"""One export, as a value, and the doing of it: a folder that stock engines load, whole or not at all.

Knows no command line. What each engine refuses is data, in engine_rules.yaml; what a format cannot say is its writer's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

from puzzlebench.exporting import decilm, hf
from puzzlebench.exporting.evidence import EvidenceFiles, read_evidence
from puzzlebench.exporting.evidence_values import Evidence
from puzzlebench.exporting.hub import check_repo, push_folder
from puzzlebench.exporting.licences import Licence, name_problem, read_licence, write_licence_files
from puzzlebench.exporting.sidecars import (
    check_no_link_out,
    copy_generation_config,
    copy_tokenizer,
    file_digest,
    find_parent_folder,
    solution_of,
    tokenizer_folder,
    without_folders,
    write_json,
    write_solution,
    written_by,
)
from puzzlebench.exporting.source import SHARD_BYTES, ExportSource, cast, counted, open_source
from puzzlebench.files import new_folder
from puzzlebench.measuring.stack.checkpoint import write_shards
from puzzlebench.model.checks import require_positive_int
from puzzlebench.model.engine_rules import Refusal, find_refusals, first_refusal, load_engine_rules
from puzzlebench.model.parameters import model_parameters
from puzzlebench.parent.fingerprint import checkpoint_fingerprint

if TYPE_CHECKING:
    from torch import Tensor

Format: TypeAlias = Literal["decilm", "hf", "gguf"]
ExportDtype: TypeAlias = Literal["fp32", "bf16", "fp16"]
Report: TypeAlias = Callable[[float, str], None]

ENGINES: Final[Mapping[Format, tuple[str, ...]]] = {
    "decilm": ("vllm", "vllm_puzzlebench", "tensorrt_llm", "sglang", "transformers"),
    "hf": ("transformers", "vllm_puzzlebench"),
    "gguf": ("llama_cpp",),
}
"""Engines that read a format. The first is the one it is written for where none is named."""

DTYPES: Final[Mapping[ExportDtype, str]] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
GGUF_FILE: Final = "model.gguf"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportJob:
    """Which checkpoint goes where, and for whom.

    Attributes:
        child: a folder, or a name `find_parent` knows.
        out: a new folder.
        engines: that have to load it, by name or alias; empty asks none.
        dtype: of the weights; None: the checkpoint's own.
        evidence: files that the model card speaks of.
        base_model: what the card names as the parent; None: what the child says.
        licence: by its id on the Hub, in place of what the parent's folder states.
        shard_bytes: most of one file of weights.
        push_to: a repository of the Hub.
    """

    child: str
    out: Path
    format: Format
    engines: tuple[str, ...]
    dtype: ExportDtype | None = None
    evidence: EvidenceFiles = field(default_factory=EvidenceFiles)
    base_model: str | None = None
    licence: str | None = None
    shard_bytes: int = SHARD_BYTES
    push_to: str | None = None
    private: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        if self.format not in get_args(Format):
            raise ValueError(f"format {self.format!r} is not known; use {', '.join(get_args(Format))}")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is not known; use {', '.join(DTYPES)}")
        require_positive_int("shard_bytes", self.shard_bytes)
        for name in self.engines:
            engine = load_engine_rules(name).engine
            if engine not in ENGINES[self.format]:
                formats = [other for other, readers in ENGINES.items() if engine in readers]
                hint = f"; it reads {' and '.join(formats)}" if formats else ""
                raise ValueError(f"{engine} does not read format {self.format}{hint}")
        if self.private and self.push_to is None:
            raise ValueError("private is for a repository that is pushed to; name one")


def run_export(job: ExportJob, *, progress: Report = lambda _share, _stage: None, api: Any = None) -> dict[str, Any]:
    """Write the folder, and push it where that is asked; what was written comes back.

    Args:
        api: an HfApi to push with; by default one with the token of this machine.

    Raises:
        ValueError: an engine or the format cannot hold the model (the layer is named), `out` exists or cannot be
            written, the evidence is of another child, the licence asks for another name than is pushed to, or pushing
            fails, after which the folder stays.
    """
    from safetensors import SafetensorError

    if job.out.exists():
        raise ValueError(f"{job.out} exists; an export is written to a new folder")
    if job.push_to is not None and api is None:
        check_repo(job.push_to)
    progress(0.0, "reading")
    source, hub_id = _open(job.child)
    refused = _refusals(source, job.format)
    _check_engines(job, source, refused)
    evidence = read_evidence(job.evidence, source)
    parent = find_parent_folder(source, job.evidence.run)
    named = job.base_model or _named_parent(source) or hub_id
    licence = _licence(job, source, parent, named)
    words = tokenizer_folder((source.folder, *(() if parent is None else (parent,))))
    with new_folder(job.out, SafetensorError) as folder:
        notes = _write_weights(job, source, folder, words, licence, named, progress)
        progress(1.0, "card")
        made = file_digest(folder / GGUF_FILE) if job.format == "gguf" else checkpoint_fingerprint(folder)
        _write_words(job, source, folder, evidence, licence, refused, named, made, tokenizer=words is not None)
    facts = {
        "path": str(job.out),
        "format": job.format,
        "dtype": _dtype_name(job, source),
        "parameters": model_parameters(source.spec, source.architecture),
        "fingerprint": made,
        "bytes": sum(file.stat().st_size for file in job.out.rglob("*") if file.is_file()),
        "files": sorted(str(file.relative_to(job.out)) for file in job.out.rglob("*") if file.is_file()),
        "engines": {engine: [str(reason) for reason in reasons] for engine, reasons in refused.items()},
        "licence": licence.id,
        "notes": [*notes, *filter(None, [name_problem(licence, _title(job))]), *evidence.notes],
        "pushed": None,
    }
    if job.push_to is not None:
        progress(1.0, "pushing")
        message = f"{job.format} export of {job.out.resolve().name}"
        facts["pushed"] = push_folder(job.out, job.push_to, private=job.private, message=message, api=api)
    return facts


def default_engines(format: Format) -> tuple[str, ...]:  # noqa: A002, the word of the command line
    """The engine that a format is written for where none is named."""
    return ENGINES[format][:1]


def _open(child: str) -> tuple[ExportSource, str | None]:
    """The source, and its name where it is none of a folder here."""
    from puzzlebench.parent.open import find_parent

    folder = Path(child).expanduser()
    if folder.exists():
        return open_source(folder), None
    source = open_source(find_parent(child, quiet=True).folder)
    return replace(source, name=child, spec=replace(source.spec, name=child)), child


def _refusals(source: ExportSource, format: Format) -> dict[str, tuple[Refusal, ...]]:  # noqa: A002
    return {
        engine: find_refusals(load_engine_rules(engine), source.spec, source.architecture) for engine in ENGINES[format]
    }


def _check_engines(job: ExportJob, source: ExportSource, refused: Mapping[str, tuple[Refusal, ...]]) -> None:
    for name in job.engines:
        engine = load_engine_rules(name).engine
        if reasons := refused[engine]:
            raise ValueError(
                f"{source.name}: {first_refusal(reasons)}; search with --engine-rules {engine} for a child that it "
                "loads, or export for another engine, or for none (--engine none)"
            )


def _named_parent(source: ExportSource) -> str | None:
    """The parent as the child names it: on the Hub where that is known, without folders."""
    from puzzlebench.model.catalog import hub_id

    parent = (source.solution or {}).get("parent")
    if not isinstance(parent, str) or not parent:
        return None
    return str(without_folders(hub_id(parent)))


def _licence(job: ExportJob, source: ExportSource, parent: Path | None, named: str | None) -> Licence:
    """The parent's, or that of the checkpoint itself, which may carry what was carried over.

    Raises:
        ValueError: it asks for another name than that of the repository to push to, or its files are elsewhere.
    """
    folder = parent if parent is not None else source.folder
    licence = read_licence(folder, given=job.licence, parent=named)
    for file in licence.files:
        check_no_link_out(file, folder)
    if job.push_to is not None and (problem := name_problem(licence, _title(job))) is not None:
        raise ValueError(f"{job.push_to} is not pushed to: {problem}")
    return licence


def _title(job: ExportJob) -> str:
    """Name of the model."""
    return (job.push_to or job.out.resolve().name).split("/")[-1]


def _write_weights(
    job: ExportJob,
    source: ExportSource,
    folder: Path,
    words: Path | None,
    licence: Licence,
    named: str | None,
    progress: Report,
) -> tuple[str, ...]:
    """The weights and all that loads them; notes on what is not as it was come back.

    Args:
        words: where the tokenizer's files are.
    """
    if job.format == "gguf":
        from puzzlebench.exporting.gguf_file import write_gguf

        progress(0.1, "weights")
        return write_gguf(
            source,
            folder / GGUF_FILE,
            dtype=job.dtype,
            title=_title(job),
            base_model=named,
            licence=licence.id,
            tokenizer_folder=words,
            loads=bool(job.engines),
        )
    dtype = _dtype_name(job, source)
    if job.format == "decilm":
        config, tensors = decilm.decilm_config(source, dtype=dtype), decilm.decilm_tensors(source)
        decilm.write_code(folder)
    else:
        config, tensors = hf.hf_config(source, dtype=dtype), source.tensors()
        hf.write_code(config, folder)
    write_json(folder / "config.json", config)
    total = model_parameters(source.spec, source.architecture)
    write_shards(counted(_cast(tensors, dtype), total, progress), folder, job.shard_bytes)
    copy_generation_config(source, folder)
    if words is None:
        return ("there is no tokenizer beside the weights, so none was written",)
    copy_tokenizer(words, folder)
    return ()


def _write_words(
    job: ExportJob,
    source: ExportSource,
    folder: Path,
    evidence: Evidence,
    licence: Licence,
    refused: Mapping[str, tuple[Refusal, ...]],
    named: str | None,
    made: str,
    *,
    tokenizer: bool,
) -> None:
    """Card, licence files and puzzle_solution.json.

    Args:
        made: the fingerprint of what was written.
        tokenizer: whether there is one.
    """
    from puzzlebench.exporting.card import model_card

    known = {
        "search": evidence.search,
        "distillation": evidence.distillation,
        "retention": evidence.retention,
        "speed": evidence.speed,
        "export": written_by(
            format=job.format,
            dtype=_dtype_name(job, source),
            weights_fingerprint=made,
            made_from=source.fingerprint,
            engines={engine: not reasons for engine, reasons in refused.items()},
        ),
    }
    write_solution(folder, solution_of(source, known, parent=named))
    write_licence_files(licence, folder)
    gguf = job.format == "gguf"
    card = model_card(
        source,
        evidence,
        licence,
        refused,
        format=job.format,
        title=_title(job),
        base_model=named,
        dtype=_dtype_name(job, source),
        repo=job.push_to,
        config={} if gguf else json.loads((folder / "config.json").read_text(encoding="utf-8")),
        tokenizer=tokenizer,
    )
    (folder / "README.md").write_text(str(without_folders(card)), encoding="utf-8")


def _dtype_name(job: ExportJob, source: ExportSource) -> str:
    """torch's name of the dtype of the weights."""
    if job.dtype is not None:
        return DTYPES[job.dtype]
    if source.spec.torch_dtype is not None:
        return source.spec.torch_dtype
    return str(next(source.tensors())[1].dtype).removeprefix("torch.")


def _cast(tensors: Iterable[tuple[str, Tensor]], dtype: str) -> Iterator[tuple[str, Tensor]]:
    import torch

    for name, tensor in tensors:
        yield name, cast(name, tensor, getattr(torch, dtype))
