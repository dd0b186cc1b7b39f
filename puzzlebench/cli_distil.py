"""The command `distil`: a child learns from its parent as a whole."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puzzlebench.cli_options import require_models
from puzzlebench.progress import progress

if TYPE_CHECKING:
    from puzzlebench.distillation.job import DistilJob
    from puzzlebench.distillation.recipe import Stage
    from puzzlebench.distillation.streams import HubText

_SEQUENCES, _LENGTH, _BATCH_SIZE = 1200, 256, 4


def add_distil(parser: argparse.ArgumentParser) -> None:
    """Options of `distil`."""
    parser.add_argument(
        "--parent", default="embedded", help="embedded, a directory, or a model of the Hub (%(default)s)"
    )
    parser.add_argument("--child", type=Path, required=True, metavar="DIR", help="which `realise` wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a checkpoint for transformers; new")
    text = parser.add_argument_group("text")
    text.add_argument("--data", type=Path, metavar="FILE|DIR", help="default: Python's standard library")
    text.add_argument("--stream", action="store_true", help="read --data while training goes on")
    text.add_argument("--dataset", metavar="NAME", help="in place of --data: a data set of the Hub, streamed")
    text.add_argument("--dataset-config", metavar="NAME", help="where it has several")
    text.add_argument("--dataset-split", default="train", metavar="NAME", help="(%(default)s)")
    text.add_argument("--dataset-column", default="text", metavar="NAME", help="which holds the text (%(default)s)")
    text.add_argument("--sequences", type=int, help=f"rows to train on ({_SEQUENCES})")
    text.add_argument("--length", type=int, help=f"tokens of each ({_LENGTH})")
    text.add_argument("--batch-size", type=int, help=f"rows per step, of all processes together ({_BATCH_SIZE})")
    text.add_argument(
        "--stage",
        dest="stages",
        type=_stage,
        action="append",
        default=[],
        metavar="LxNxB",
        help="length x sequences x batch size, in place of the three above; repeat for longer rows later on",
    )
    losses = parser.add_argument_group("losses (weights)")
    losses.add_argument("--cosine", type=float, default=1.0, metavar="W", help="of hidden states (%(default)s)")
    losses.add_argument("--forward-kl", type=float, default=1.0, metavar="W", help="KL(parent, child) (%(default)s)")
    losses.add_argument("--reverse-kl", type=float, default=0.0, metavar="W", help="KL(child, parent) (%(default)s)")
    losses.add_argument("--tvd", type=float, default=0.0, metavar="W", help="total variation (%(default)s)")
    losses.add_argument("--lm", type=float, default=0.0, metavar="W", help="cross-entropy of the text (%(default)s)")
    losses.add_argument("--temperature", type=float, default=1.0, help="of KL and TVD (%(default)s)")
    train = parser.add_argument_group("training")
    train.add_argument("--optimiser", choices=("adamw", "muon"), help="default: adamw")
    train.add_argument("--lr", type=float, help="learning rate; default: by optimiser and hidden size")
    train.add_argument("--warmup", type=int, help="steps (20)")
    train.add_argument("--evaluations", type=int, help="on held-out rows, evenly spread (5)")
    train.add_argument("--seed", type=int, default=0, help="of the order of rows (%(default)s)")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="cpu, cuda, cuda:N; auto: a GPU if there is one")
    machine.add_argument("--precision", choices=("fp32", "bf16"), help="default: what the device computes fast")
    machine.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    machine.add_argument("--micro-batch-size", type=int, help="rows of a forward; default: all of a process's step")
    machine.add_argument(
        "--teacher-cache", type=Path, metavar="DIR", help="keep the parent's most likely tokens there; needs --cosine 0"
    )
    machine.add_argument("--top-k", type=int, default=64, metavar="K", help="tokens that it keeps (%(default)s)")
    machine.add_argument("--work-dir", type=Path, metavar="DIR", help="state of the training; default: beside --out")


def distil_command(arguments: argparse.Namespace) -> None:
    """Distil a child; under `accelerate launch` the first process prints for all."""
    from puzzlebench.distillation.job import run_distil_job
    from puzzlebench.render import print_json

    require_models()
    first = os.environ.get("RANK", "0") == "0"
    try:
        job = _job(arguments)
        with progress(quiet=not first) as report:
            facts = run_distil_job(job, progress=report)
    except ValueError:
        if first:
            raise
        sys.exit(2)  # the first process says why
    _leave()
    if not first:
        return
    if arguments.json:
        print_json(facts | {"path": str(job.out)})
        return
    print(f"{job.out}: {_summary(facts)}")


def _leave() -> None:
    """End the process group; after an error it is left alone, since ending it waits for all."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _summary(facts: dict[str, Any]) -> str:
    lengths = dict.fromkeys(line["length"] for line in facts["held_out"])
    found = "; ".join(_held_out(facts["held_out"], length) for length in lengths)
    return f"{facts['tokens']:,} tokens in {facts['steps']:,} steps, {facts['seconds']:.0f} s; on held-out rows {found}"


def _held_out(lines: list[dict[str, Any]], length: int) -> str:
    """What became of the losses on rows of one length: those of different lengths do not compare."""
    own = [line for line in lines if line["length"] == length]
    first, last = own[0], own[-1]
    terms = ", ".join(
        f"{name} {last[name]:.4f}" if len(own) == 1 else f"{name} {first[name]:.4f} to {last[name]:.4f}"
        for name in ("loss", "cosine", "forward_kl", "lm")
        if name in first
    )
    return f"of {length} tokens {terms}"


def _job(arguments: argparse.Namespace) -> DistilJob:
    from puzzlebench.distillation.job import DistilJob
    from puzzlebench.distillation.recipe import TERMS, DistilRecipe, LossWeights
    from puzzlebench.training.precision import fast_precision, open_device

    losses = LossWeights(**{name: getattr(arguments, name) for name in (*TERMS, "temperature")})
    stated = {name: getattr(arguments, name) for name in ("optimiser", "lr", "warmup", "evaluations", "seed")}
    recipe = DistilRecipe(
        losses=losses,
        stages=_stages(arguments),
        **{name: value for name, value in stated.items() if value is not None},
    )
    device = open_device(arguments.device)
    return DistilJob(
        parent=arguments.parent,
        child=arguments.child,
        out=arguments.out,
        data=arguments.data,
        stream=arguments.stream,
        dataset=_dataset(arguments),
        recipe=recipe,
        device=str(device),
        precision=arguments.precision or fast_precision(device),
        checkpointing=arguments.gradient_checkpointing,
        micro_batch=arguments.micro_batch_size,
        teacher_cache=arguments.teacher_cache,
        top_k=arguments.top_k,
        work_dir=arguments.work_dir,
    )


def _dataset(arguments: argparse.Namespace) -> HubText | None:
    from puzzlebench.distillation.streams import HubText

    if arguments.dataset is None:
        return None
    return HubText(
        name=arguments.dataset,
        config=arguments.dataset_config,
        split=arguments.dataset_split,
        column=arguments.dataset_column,
    )


def _stages(arguments: argparse.Namespace) -> tuple[Stage, ...]:
    from puzzlebench.distillation.recipe import Stage

    sizes = (arguments.length, arguments.sequences, arguments.batch_size)
    if not arguments.stages:
        usual = (_LENGTH, _SEQUENCES, _BATCH_SIZE)
        length, sequences, batch_size = (
            default if own is None else own for own, default in zip(sizes, usual, strict=True)
        )
        return (Stage(length=length, sequences=sequences, batch_size=batch_size),)
    if any(size is not None for size in sizes):
        raise ValueError("--stage stands in place of --length, --sequences and --batch-size; give one or the others")
    return tuple(Stage(length=one[0], sequences=one[1], batch_size=one[2]) for one in arguments.stages)


def _stage(text: str) -> tuple[int, int, int]:
    """A type of arguments."""
    try:
        length, sequences, batch_size = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not LENGTHxSEQUENCESxBATCH such as 1024x200x2") from None
    return length, sequences, batch_size
