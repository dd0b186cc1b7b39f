"""The command `eval`: what a child keeps of its parent, by tasks of the LM Evaluation Harness."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from puzzlebench.cli_options import read_json, require_models
from puzzlebench.progress import progress

if TYPE_CHECKING:
    from puzzlebench.evaluation.job import EvalJob

_BACKEND_OWNS = "belongs to puzzlebench's own loader; say it in --model-args"


def add_eval(parser: argparse.ArgumentParser) -> None:
    """Options of `eval`."""
    side = "a model by name, a checkpoint's folder, or results that lm-eval wrote (file or folder)"
    parser.add_argument("--parent", default="embedded", help=f"{side} (%(default)s)")
    parser.add_argument("--child", required=True, help=side)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="retention.json, results and samples")
    what = parser.add_argument_group("tasks")
    what.add_argument(
        "--tasks",
        type=_names,
        metavar="T,T",
        help="of lm-eval, groups too; bundled: three that need no download (default: bundled; of two results: all)",
    )
    what.add_argument("--include-path", type=Path, metavar="DIR", help="task files of one's own")
    what.add_argument("--limit", type=int, help="documents of each task; default: all")
    what.add_argument("--num-fewshot", type=int, metavar="N", help="default: each task's own number")
    what.add_argument(
        "--metric",
        type=_metric,
        action="append",
        default=[],
        metavar="TASK=NAME",
        help="instead of the main one; repeat",
    )
    what.add_argument("--apply-chat-template", action="store_true", help="put the models' chat templates around")
    what.add_argument("--seed", type=int, default=1234, help="of few-shot examples and resamples (%(default)s)")
    run = parser.add_argument_group("how models are run")
    run.add_argument("--batch-size", default="16", metavar="N", help="requests at a time, or auto (%(default)s)")
    run.add_argument("--device", default="auto", help="cpu, cuda, cuda:N; auto: a GPU if there is one")
    run.add_argument("--precision", choices=("fp32", "bf16"), help="default: fp32 on a CPU, bf16 on a GPU")
    run.add_argument("--model-backend", metavar="NAME", help="a model type of lm-eval such as vllm, for both sides")
    run.add_argument(
        "--model-args",
        default="",
        metavar="K=V,K=V",
        help="for the backend; {model} stands for the model, default: pretrained={model} and these",
    )


def eval_command(arguments: argparse.Namespace) -> None:
    """Evaluate both sides and print."""
    from puzzlebench.render import print_json
    from puzzlebench.render_eval import print_retention

    require_models()
    from puzzlebench.evaluation.job import run_eval_job

    job = _job(arguments)
    with progress() as report:
        run_eval_job(job, progress=report)
    path = arguments.out / "retention.json"
    stated = read_json(path)
    print_json(stated) if arguments.json else print_retention(stated, path)


def _job(arguments: argparse.Namespace) -> EvalJob:
    from puzzlebench.evaluation.job import EvalJob
    from puzzlebench.evaluation.stored import is_stored
    from puzzlebench.training.precision import judging_precision, open_device

    if arguments.model_backend is not None and (arguments.precision is not None or arguments.device != "auto"):
        option = "--precision" if arguments.precision is not None else "--device"
        raise ValueError(f"{option} {_BACKEND_OWNS}")
    if arguments.model_backend is None and arguments.model_args:
        raise ValueError("--model-args belongs to --model-backend NAME")
    if arguments.batch_size != "auto" and not (arguments.batch_size.isdigit() and int(arguments.batch_size)):
        raise ValueError(f"--batch-size is a number of at least 1 or auto, not {arguments.batch_size!r}")
    device = open_device(arguments.device)
    stored = all(is_stored(Path(name).expanduser()) for name in (arguments.parent, arguments.child))
    tasks: tuple[str, ...] | None = arguments.tasks
    return EvalJob(
        parent=arguments.parent,
        child=arguments.child,
        out=arguments.out,
        tasks=tasks if tasks is not None else () if stored else ("bundled",),
        include_path=arguments.include_path,
        limit=arguments.limit,
        num_fewshot=arguments.num_fewshot,
        batch_size=arguments.batch_size,
        device=str(device),
        precision=arguments.precision or judging_precision(device),
        seed=arguments.seed,
        apply_chat_template=arguments.apply_chat_template,
        backend=arguments.model_backend,
        backend_arguments=arguments.model_args,
        metrics=dict(arguments.metric),
    )


def _names(text: str) -> tuple[str, ...]:
    """A type of arguments: names with commas between them."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of tasks such as arc_easy,hellaswag")
    return names


def _metric(text: str) -> tuple[str, str]:
    """A type of arguments: a task and one of its metrics."""
    task, sign, name = text.partition("=")
    if not (task and sign and name):
        raise argparse.ArgumentTypeError(f"{text!r} is not TASK=NAME, such as arc_easy=acc")
    return task, name
