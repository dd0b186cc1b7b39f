"""The commands `export` and `import`: children as stock engines load them, and back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from puzzlebench.cli_options import require_models
from puzzlebench.progress import progress
from puzzlebench.searching.quantities import parse_bytes

if TYPE_CHECKING:
    from puzzlebench.exporting.job import ExportJob


def add_export(parser: argparse.ArgumentParser) -> None:
    """Options of `export`."""
    parser.add_argument("child", metavar="CHILD", help="a checkpoint: of ours, a stock one, or a model of the Hub")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder, as a repository of the Hub has it")
    parser.add_argument(
        "--format",
        required=True,
        choices=("decilm", "hf", "gguf"),
        help="decilm: vLLM, TensorRT-LLM, SGLang; hf: transformers, every family; gguf: llama.cpp",
    )
    parser.add_argument(
        "--engine",
        dest="engines",
        action="append",
        default=[],
        metavar="NAME",
        help="an engine that must load the export, else it is refused; give it again for more engines, or none for "
        "no engine. Default: decilm vllm, hf transformers, gguf llama_cpp",
    )
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="of the weights; default: the checkpoint's")
    _add_shard_size(parser)
    card = parser.add_argument_group("model card: what is known of the child")
    card.add_argument(
        "--run", dest="run_folder", type=Path, metavar="DIR", help="of `puzzlebench run`: all of the following"
    )
    card.add_argument("--search", type=Path, metavar="FILE", help="search.json")
    card.add_argument("--retention", type=Path, metavar="FILE", help="retention.json of `eval`")
    card.add_argument("--speed", type=Path, metavar="FILE", help="speed.json")
    card.add_argument("--distillation", type=Path, metavar="FILE", help="distillation.json")
    card.add_argument("--base-model", metavar="ID", help="the parent on the Hub; default: what the child says")
    card.add_argument("--licence", metavar="ID", help="such as apache-2.0; default: what the parent's folder states")
    hub = parser.add_argument_group("Hugging Face Hub")
    hub.add_argument("--push-to-hub", metavar="REPO", help="upload the folder; needs a token that may write")
    hub.add_argument("--private", action="store_true", help="make the repository a private one")


def export_command(arguments: argparse.Namespace) -> None:
    """Export and print."""
    require_models()
    from puzzlebench.exporting.job import run_export
    from puzzlebench.model.engine_rules import first_refusal
    from puzzlebench.render import print_json

    job = _export_job(arguments)
    with progress() as report:
        facts = run_export(job, progress=report)
    if arguments.json:
        print_json(facts)
        return
    print(
        f"{facts['path']}: {facts['format']}, {facts['parameters']:,} parameters in {facts['dtype']}, "
        f"{facts['bytes']:,} bytes, fingerprint {facts['fingerprint'][:16]}"
    )
    for engine, reasons in facts["engines"].items():
        print(f"  {engine}: {first_refusal(reasons) if reasons else 'loads'}")
    for note in facts["notes"]:
        print(f"  note: {note}")
    if facts["licence"] is None:
        print("  note: no licence is known; state one with --licence before you share it")
    if facts["pushed"] is not None:
        print(f"pushed to {facts['pushed']}")


def add_import(parser: argparse.ArgumentParser) -> None:
    """Options of `import`."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="DeciLM, Hugging Face or GGUF: a folder, a file, or a model of the Hub"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder, for a child that every command takes")
    parser.add_argument(
        "--parent", metavar="NAME", help="whose child it is, so that `distil` takes it; default: what it says itself"
    )
    _add_shard_size(parser)


def import_command(arguments: argparse.Namespace) -> None:
    """Import and print."""
    require_models()
    from puzzlebench.exporting.importing import ImportJob, run_import
    from puzzlebench.render import print_json

    job = ImportJob(
        checkpoint=arguments.checkpoint,
        out=arguments.out,
        parent=arguments.parent,
        **_shard_bytes(arguments),
    )
    with progress() as report:
        facts = run_import(job, progress=report)
    if arguments.json:
        print_json(facts)
        return
    print(f"{facts['path']}: from {facts['format']}, {facts['model_type']}, {facts['parameters']:,} parameters")
    for note in facts["notes"]:
        print(f"  note: {note}")
    if not facts["tokenizer"]:
        print("  note: there was no tokenizer to take along; `eval` and `distil` need one")


def _add_shard_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shard-size", metavar="SIZE", help="most of one file of weights; default: 5 GB")


def _shard_bytes(arguments: argparse.Namespace) -> dict[str, int]:
    """Nothing where the jobs' own default will do."""
    return {} if arguments.shard_size is None else {"shard_bytes": parse_bytes(arguments.shard_size)}


def _export_job(arguments: argparse.Namespace) -> ExportJob:
    from puzzlebench.exporting.evidence import EvidenceFiles
    from puzzlebench.exporting.job import ExportJob, default_engines

    names: list[str] = arguments.engines
    if "none" in names and len(names) > 1:
        raise ValueError("--engine none goes with no other engine")
    engines = () if names == ["none"] else tuple(names) or default_engines(arguments.format)
    files = EvidenceFiles(
        run=arguments.run_folder,
        search=arguments.search,
        retention=arguments.retention,
        speed=arguments.speed,
        distillation=arguments.distillation,
    )
    return ExportJob(
        child=arguments.child,
        out=arguments.out,
        format=arguments.format,
        engines=engines,
        dtype=arguments.dtype,
        evidence=files,
        base_model=arguments.base_model,
        licence=arguments.licence,
        **_shard_bytes(arguments),
        push_to=arguments.push_to_hub,
        private=arguments.private,
    )
