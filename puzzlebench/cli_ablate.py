"""The command `ablate`: what each part of the method is worth, with one thing done otherwise at a time."""

from __future__ import annotations

import argparse
from pathlib import Path

from puzzlebench.cli_options import require_models
from puzzlebench.progress import progress


def add_ablate(parser: argparse.ArgumentParser) -> None:
    """Options of `ablate`."""
    parser.add_argument(
        "--parent", default="embedded", help="embedded, a directory, or a model of the Hub (%(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("ablations"), metavar="DIR", help="goes on there (%(default)s)"
    )
    parser.add_argument("--report", type=Path, metavar="FILE.md", help="write the results as Markdown")
    parser.add_argument("--seeds", type=int, default=3, help="each with text and order of its own (%(default)s)")
    parser.add_argument(
        "--only", metavar="NAME,NAME", help="of bld, score, search, space and distil; default: all of them"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor of tokens, steps and time to measure (%(default)s)"
    )
    parser.add_argument("--costs", type=Path, metavar="TABLE", help="default: measure the scenario's cells here")
    parser.add_argument(
        "--speed-up", type=float, default=2.0, help="of every child's predicted throughput (%(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=4, help="sequences of the scenario (%(default)s)")
    parser.add_argument("--prefill", type=int, default=128, help="prompt tokens of the scenario (%(default)s)")
    parser.add_argument("--decode", type=int, default=128, help="generated tokens of the scenario (%(default)s)")
    parser.add_argument(
        "--distil-all",
        action="store_true",
        help="distil the children of the other ablations too, with the paper's losses",
    )
    parser.add_argument("--parent-seeds", action="store_true", help="another embedded parent for every seed")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N (%(default)s)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: fp32 on a CPU, bf16 on a GPU")


def ablate_command(arguments: argparse.Namespace) -> None:
    """Run, write and print."""
    require_models()
    from puzzlebench.ablation.job import AblationJob, run_ablations
    from puzzlebench.ablation.report import report
    from puzzlebench.files import check_file, write_text
    from puzzlebench.measuring.device import local_device
    from puzzlebench.render import print_json

    device = local_device(arguments.device)
    if arguments.report is not None:
        check_file(arguments.report)
    job = AblationJob(
        parent=arguments.parent,
        out=arguments.out,
        seeds=arguments.seeds,
        only=() if arguments.only is None else tuple(arguments.only.split(",")),
        scale=arguments.scale,
        costs=arguments.costs,
        speed_up=arguments.speed_up,
        distil_all=arguments.distil_all,
        parent_seeds=arguments.parent_seeds,
        batch_size=arguments.batch_size,
        prefill_len=arguments.prefill,
        decode_len=arguments.decode,
        device=device.torch_name,
        precision=arguments.precision or ("fp32" if device.kind == "cpu" else "bf16"),
    )
    with progress() as tell:
        result = run_ablations(job, progress=tell)
    text = report(result)
    if arguments.report is not None:
        write_text(arguments.report, text)
    if arguments.json:
        print_json(result)
        return
    print(text)
    print(f"wrote {arguments.out / 'ablations.json'}" + (f" and {arguments.report}" if arguments.report else ""))
