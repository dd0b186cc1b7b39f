"""The commands that make and judge blocks: `parent`, `library`, `score` and `realise`."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puzzlebench.cli_options import read_json, require_models, whole_numbers
from puzzlebench.progress import progress

if TYPE_CHECKING:
    from puzzlebench.launching.launchers import Launcher
    from puzzlebench.library.job import LibraryJob
    from puzzlebench.model.space import SearchSpace
    from puzzlebench.parent.open import ParentFiles

_PARENT_HELP = "embedded (made here where it is not there yet), a directory, or a model of the Hub (%(default)s)"


def add_parent(parser: argparse.ArgumentParser) -> None:
    """Options of `parent`."""
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: the cache, where other commands look")
    parser.add_argument("--tokens", type=int, help="to train on (300000); fewer is quicker and worse")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another parent (%(default)s)")


def add_library(parser: argparse.ArgumentParser) -> None:
    """Options of `library`."""
    parser.add_argument("--parent", default="embedded", help=_PARENT_HELP)
    parser.add_argument("--out", type=Path, metavar="DIR", help="the library; what it has already is not made again")
    space = parser.add_argument_group("which blocks")
    space.add_argument("--mode", default="decoupled", choices=("decoupled", "coupled"), help="coupled: pairs too")
    space.add_argument(
        "--kv-heads", type=whole_numbers, metavar="N,N", help="default: the model's, and 1/2, 1/4, 1/8 of them"
    )
    space.add_argument("--ffn-multiple", type=int, default=256, help="FFN widths are multiples of this (%(default)s)")
    space.add_argument(
        "--from",
        dest="architectures",
        type=Path,
        action="append",
        default=[],
        metavar="FILE|DIR",
        help="only blocks of these architectures, such as the folder that `search --out` wrote; repeat",
    )
    space.add_argument("--layers", type=whole_numbers, metavar="N,N", help="default: all")
    start = parser.add_argument_group("initial weights")
    start.add_argument("--init-attention", default="mean_pool", help="or select, of key-value heads (%(default)s)")
    start.add_argument("--init-ffn", default="channel_contribution", help="or iterative (%(default)s)")
    start.add_argument("--init-linear", default="least_squares", help="or product (%(default)s)")
    train = parser.add_argument_group("training")
    train.add_argument("--data", type=Path, metavar="FILE|DIR", help="text; default: Python's standard library")
    train.add_argument("--sequences", type=int, default=256, help="of the text, the last tenth held out (%(default)s)")
    train.add_argument("--length", type=int, default=256, help="tokens of each (%(default)s)")
    train.add_argument("--steps", type=int, help="of each block at most (64); 0: initial weights only")
    train.add_argument("--batch-size", type=int, help="sequences per step (4)")
    train.add_argument("--optimiser", choices=("muon", "adamw"), help="default: adamw")
    train.add_argument("--lr", type=float, help="learning rate (0.8 / hidden size)")
    train.add_argument("--patience", type=int, help="evaluations without gain before a block stops (3; 0: never)")
    train.add_argument("--seed", type=int, default=0, help="of the order of sequences (%(default)s)")
    _add_machine(parser)
    where = parser.add_argument_group("where")
    where.add_argument(
        "--launcher",
        default="local",
        choices=("local", "torchrun", "ray", "slurm"),
        help="layers are spread over processes of torchrun, Ray tasks or a Slurm array (%(default)s)",
    )
    where.add_argument("--shards", type=int, help="with ray and slurm: how many tasks share the layers")
    where.add_argument("--shard-parent", action="store_true", help="with torchrun: spread the parent's weights too")
    where.add_argument("--ray-address", metavar="X", help="of a running Ray cluster; default: RAY_ADDRESS, or here")
    where.add_argument("--slurm-arg", action="append", default=[], metavar="--X=Y", help="an option of sbatch; repeat")
    where.add_argument("--work-dir", type=Path, metavar="DIR", help="activations, checkpoints; default: in --out")


def add_score(parser: argparse.ArgumentParser) -> None:
    """Options of `score`."""
    parser.add_argument("--parent", default="embedded", help=_PARENT_HELP)
    parser.add_argument("--library", type=Path, required=True, metavar="DIR", help="which `library` wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a score table per metric")
    parser.add_argument("--recipe", help="where the library has several: the beginning of one's id")
    parser.add_argument("--data", type=Path, metavar="FILE|DIR", help="text; default: files nothing is trained on")
    parser.add_argument("--sequences", type=int, default=32, help="more lower the standard errors (%(default)s)")
    parser.add_argument("--length", type=int, default=256, help="tokens of each (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=4, help="sequences at a time (%(default)s)")
    task = parser.add_argument_group("by a task of lm-eval instead of KL, loss and agreement")
    task.add_argument("--lm-eval", metavar="TASK", help="a task that lm-eval knows")
    task.add_argument("--lm-eval-metric", metavar="NAME", help="default: the task's first")
    task.add_argument("--include-path", type=Path, metavar="DIR", help="task files of one's own")
    task.add_argument("--limit", type=int, help="documents; default: all")
    _add_machine(parser, precision="fp32 on a CPU, bf16 on a GPU")


def add_realise(parser: argparse.ArgumentParser) -> None:
    """Options of `realise`."""
    parser.add_argument("--parent", default="embedded", help=_PARENT_HELP)
    parser.add_argument("--library", type=Path, required=True, metavar="DIR", help="which `library` wrote")
    parser.add_argument("--architecture", type=Path, required=True, metavar="FILE", help="which `search --out` wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a checkpoint for transformers; new")
    parser.add_argument("--recipe", help="where the library has several: the beginning of one's id")


def _add_machine(parser: argparse.ArgumentParser, *, precision: str = "what the device computes fast") -> None:
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="cpu, cuda, cuda:N; auto: a GPU if there is one")
    machine.add_argument("--precision", choices=("fp32", "bf16"), help=f"default: {precision}")
    machine.add_argument(
        "--activations",
        default="auto",
        choices=("auto", "memory", "disk", "stream"),
        help="where inputs of layers are kept; stream: nowhere, they are computed anew (%(default)s)",
    )
    machine.add_argument(
        "--memory-limit", default="8GiB", metavar="X", help="for activations and training (%(default)s)"
    )


def parent_command(arguments: argparse.Namespace) -> None:
    """Make the embedded parent, or say where it is."""
    require_models()
    from puzzlebench.parent.embedded import ParentRecipe, make_embedded, read_facts
    from puzzlebench.render import print_json

    stated = {"seed": arguments.seed} | ({} if arguments.tokens is None else {"tokens": arguments.tokens})
    folder = make_embedded(ParentRecipe(**stated), arguments.out)
    facts = read_facts(folder)
    if arguments.json:
        print_json(facts | {"path": str(folder)})
        return
    print(
        f"{folder}\n{facts['recipe']['tokens']:,} tokens of the standard library of Python {facts['python']}; on test "
        f"files: loss {facts['test_loss']:.3f} nats per token, next token right {facts['test_accuracy']:.1%} of the "
        f"time ({facts['test_tokens']:,} tokens)"
    )


def library_command(arguments: argparse.Namespace) -> None:
    """Make the missing blocks of a library."""
    require_models()
    from puzzlebench.launching.launchers import run_library
    from puzzlebench.library.job import peak_memory_bytes
    from puzzlebench.render import print_json
    from puzzlebench.render_library import print_library

    if arguments.out is None:
        raise ValueError("say where the library goes: --out DIR")
    launcher = _launcher(arguments)
    job = _library_job(arguments)
    with progress(quiet=os.environ.get("RANK", "0") != "0") as report:
        outcome = run_library(job, launcher, report)
    if outcome.command is not None:
        print_json({"command": outcome.command}) if arguments.json else print(outcome.command)
        return
    if outcome.manifest is None:  # another rank's to print
        return
    import torch

    host, gpu = peak_memory_bytes(torch.device(job.device))
    if arguments.json:
        print_json(
            {
                "path": str(job.out),
                "shards": [asdict(shard) for shard in outcome.shards],
                "peak_host_bytes": host,
                "peak_gpu_bytes": gpu,
                "blocks": outcome.manifest["blocks"],
            }
        )
        return
    print_library(job.out, outcome.manifest, outcome.shards, host=host, gpu=gpu)


def score_command(arguments: argparse.Namespace) -> None:
    """Score every block of a library."""
    require_models()
    from puzzlebench.library.job import peak_memory_bytes
    from puzzlebench.render import print_json
    from puzzlebench.render_library import peak_memory, print_scores
    from puzzlebench.scores import read_score_table
    from puzzlebench.scoring.job import ScoreJob, TaskChoice, run_score_job

    if arguments.lm_eval is None and (arguments.lm_eval_metric or arguments.include_path or arguments.limit):
        raise ValueError("--lm-eval-metric, --include-path and --limit belong to --lm-eval TASK")
    task = None
    if arguments.lm_eval is not None:
        task = TaskChoice(
            task=arguments.lm_eval,
            metric=arguments.lm_eval_metric,
            include_path=arguments.include_path,
            limit=arguments.limit,
        )
    job = ScoreJob(
        parent=arguments.parent,
        library=arguments.library,
        out=arguments.out,
        recipe=arguments.recipe,
        data=arguments.data,
        sequences=arguments.sequences,
        length=arguments.length,
        batch_size=_positive("--batch-size", arguments.batch_size),
        task=task,
        **_machine(arguments, judging=True),
    )
    with progress() as report:
        paths = run_score_job(job, progress=report)
    import torch

    host, gpu = peak_memory_bytes(torch.device(job.device))
    if arguments.json:
        tables = {metric: str(path) for metric, path in paths.items()}
        print_json({"tables": tables, "peak_host_bytes": host, "peak_gpu_bytes": gpu})
        return
    for metric, path in paths.items():
        print_scores(metric, path, read_score_table(path))
    print(peak_memory(host, gpu))


def realise_command(arguments: argparse.Namespace) -> None:
    """Put an architecture's blocks together to a checkpoint."""
    require_models()
    from puzzlebench.library.realise import realise
    from puzzlebench.parent.open import find_parent
    from puzzlebench.render import print_json

    files = find_parent(arguments.parent)
    architecture = _read_architecture(arguments.architecture)
    facts = realise(files, arguments.library, architecture, arguments.out, recipe=arguments.recipe)
    if arguments.json:
        print_json(facts)
        return
    print(
        f"{arguments.out}: {facts['parameters']:,} parameters, "
        f"{facts['parameters'] / facts['parent_parameters']:.1%} of {files.name}'s; load it with "
        "AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)"
    )


def _launcher(arguments: argparse.Namespace) -> Launcher:
    from puzzlebench.launching.launchers import Local, Ray, Slurm, Torchrun

    name: str = arguments.launcher
    for option, owners in (
        ("shards", ("ray", "slurm")),
        ("shard_parent", ("torchrun",)),
        ("ray_address", ("ray",)),
        ("slurm_arg", ("slurm",)),
    ):
        if getattr(arguments, option) and name not in owners:
            raise ValueError(f"--{option.replace('_', '-')} belongs to --launcher {' or '.join(owners)}")
    if name in ("ray", "slurm") and arguments.shards is None:
        raise ValueError(f"say how many tasks share the layers: --launcher {name} --shards N")
    match name:
        case "torchrun":
            return Torchrun(shard_parent=arguments.shard_parent)
        case "ray":
            return Ray(shards=_positive("--shards", arguments.shards), address=arguments.ray_address)
        case "slurm":
            return Slurm(shards=_positive("--shards", arguments.shards), args=tuple(arguments.slurm_arg))
    return Local()


def _library_job(arguments: argparse.Namespace) -> LibraryJob:
    from puzzlebench.library.initialise import InitRecipe
    from puzzlebench.library.job import LibraryJob
    from puzzlebench.library.recipe import Training
    from puzzlebench.parent.open import find_parent

    stated = {name: getattr(arguments, name) for name in ("steps", "batch_size", "optimiser", "lr", "patience", "seed")}
    stated["other_lr"] = arguments.lr
    training = Training(**{name: value for name, value in stated.items() if value is not None})
    init = InitRecipe(attention=arguments.init_attention, ffn=arguments.init_ffn, linear=arguments.init_linear)
    files = find_parent(arguments.parent)
    return LibraryJob(
        parent=arguments.parent,
        space=_space(arguments, files),
        out=arguments.out,
        data=arguments.data,
        sequences=_positive("--sequences", arguments.sequences),
        length=_positive("--length", arguments.length),
        mode=arguments.mode,
        init=init,
        training=training,
        work_dir=arguments.work_dir,
        **_machine(arguments),
    )


def _space(arguments: argparse.Namespace, files: ParentFiles) -> SearchSpace:
    from puzzlebench.model.space import default_space, space_around, space_of

    if arguments.architectures:
        found = [_read_architecture(file) for path in arguments.architectures for file in _architecture_files(path)]
        space = space_around(files.architecture, found)
    else:
        space = default_space(
            files.spec, files.architecture, kv_heads=arguments.kv_heads, ffn_multiple=arguments.ffn_multiple
        )
    if arguments.layers is None:
        return space
    if unknown := [layer for layer in arguments.layers if not 0 <= layer < len(space.layers)]:
        raise ValueError(f"there is no layer {unknown[0]}; the layers are 0 to {len(space.layers) - 1}")
    own = space_of(files.architecture)
    layers = [(space if layer in arguments.layers else own).layers[layer] for layer in range(len(space.layers))]
    return type(space)(layers=tuple(layers))


def _architecture_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.glob("*.json") if file.name.startswith(("architecture", "solution")))
    if not files:
        raise ValueError(f"{path} holds no architecture*.json; give a folder that `search --out` wrote")
    return files


def _read_architecture(path: Path) -> Any:
    from puzzlebench.model.blocks import architecture_from_json

    data = read_json(path)
    try:
        return architecture_from_json(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _machine(arguments: argparse.Namespace, *, judging: bool = False) -> dict[str, Any]:
    from puzzlebench.training.precision import fast_precision, judging_precision, open_device

    name: str = arguments.device
    if getattr(arguments, "launcher", "local") in ("ray", "slurm"):  # the tasks' machines, not this one
        if name not in ("cpu", "cuda"):
            raise ValueError(f"say what the tasks of {arguments.launcher} run on: --device cuda or --device cpu")
        precision = arguments.precision or ("bf16" if name == "cuda" else "fp32")
        return _settings(arguments, name, precision)
    device = open_device(name)
    usual = judging_precision if judging else fast_precision
    return _settings(arguments, str(device), arguments.precision or usual(device))


def _settings(arguments: argparse.Namespace, device: str, precision: str) -> dict[str, Any]:
    from puzzlebench.searching.quantities import parse_bytes

    return {
        "device": device,
        "precision": precision,
        "activations": arguments.activations,
        "memory_limit": parse_bytes(arguments.memory_limit),
    }


def _positive(option: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{option} must be at least 1, not {value}")
    return value
