"""The command `speed`: how fast a parent and its children really are, beside what a cost table predicts."""

from __future__ import annotations

import argparse
from pathlib import Path

from puzzlebench.cli_options import require_models
from puzzlebench.progress import progress

_CPU_SESSIONS, _GPU_SESSIONS = 5, 3


def add_speed(parser: argparse.ArgumentParser) -> None:
    """Options of `speed`."""
    parser.add_argument(
        "--parent", default="embedded", help="embedded, a directory, or a model of the Hub (%(default)s)"
    )
    parser.add_argument(
        "--child", type=Path, action="append", default=[], metavar="DIR", help="a checkpoint to compare; repeat"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="speed.json and the raw samples")
    size = parser.add_argument_group("scenario")
    size.add_argument("--batch-size", type=int, default=4, help="sequences (%(default)s)")
    size.add_argument("--prefill", type=int, default=128, help="prompt tokens (%(default)s)")
    size.add_argument("--decode", type=int, default=128, help="generated tokens (%(default)s)")
    size.add_argument("--data", type=Path, metavar="FILE|DIR", help="text of the prompts; default: validation files")
    size.add_argument("--costs", type=Path, metavar="TABLE", help="a cost table to predict the same from")
    run = parser.add_argument_group("how to measure")
    run.add_argument(
        "--engine",
        default="torch",
        choices=("torch", "transformers"),
        help="torch: the operations of a live cost table; transformers: its generate, overhead included (%(default)s)",
    )
    run.add_argument("--sessions", type=int, help="fresh processes (CPU: 5, GPU: 3)")
    run.add_argument("--seconds", type=float, default=100.0, help="of timing, all sessions together (%(default)s)")
    run.add_argument("--device", default="auto", help="cpu, cuda, cuda:N; auto: a GPU if there is one")
    run.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        help="default: the cost table's; without one as a live profile: fp32 on a CPU, bf16 on a GPU",
    )


def speed_command(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    require_models()
    from puzzlebench.measuring.device import local_device
    from puzzlebench.parent.open import find_parent
    from puzzlebench.render import print_json
    from puzzlebench.render_speed import print_speed
    from puzzlebench.speed.job import SpeedJob, measure_speed, precision_of

    device = local_device("local" if arguments.device == "auto" else arguments.device)
    usual_sessions = _CPU_SESSIONS if device.kind == "cpu" else _GPU_SESSIONS
    files = find_parent(arguments.parent)
    job = SpeedJob(
        models=((files.name, files.folder), *zip(_labels(files.name, arguments.child), arguments.child, strict=True)),
        batch_size=arguments.batch_size,
        prefill_len=arguments.prefill,
        decode_len=arguments.decode,
        engine=arguments.engine,
        device=device.torch_name,
        precision=arguments.precision or precision_of(arguments.costs, device.torch_name),
        sessions=usual_sessions if arguments.sessions is None else arguments.sessions,
        seconds=arguments.seconds,
        costs=arguments.costs,
        folder=arguments.out,
        data=arguments.data,
    )
    with progress() as report:
        result = measure_speed(job, progress=report)
    if arguments.json:
        print_json(result)
        return
    print_speed(result)
    print(f"wrote {arguments.out / 'speed.json'}; raw samples are in {arguments.out / 'run'}")


def _labels(parent: str, children: list[Path]) -> list[str]:
    """The folders' names, or as much of their paths as tells them apart."""
    for parts in range(1, 1 + max((len(child.resolve().parts) for child in children), default=1)):
        labels = ["/".join(child.resolve().parts[-parts:]) for child in children]
        if len({parent, *labels}) == 1 + len(labels):
            return labels
    raise ValueError(f"--child {children[0]} is given twice, or is the parent")
