"""The `puzzlebench` command: parse, call one library function, print. Bad input is one line on stderr and exit 2."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import puzzlebench
from puzzlebench.cli_ablate import ablate_command, add_ablate
from puzzlebench.cli_bench import (
    add_bench,
    add_compare,
    add_history,
    bench_command,
    compare_command,
    history_command,
)
from puzzlebench.cli_bench_options import EXIT_CODES
from puzzlebench.cli_distil import add_distil, distil_command
from puzzlebench.cli_eval import add_eval, eval_command
from puzzlebench.cli_export import add_export, add_import, export_command, import_command
from puzzlebench.cli_gate import add_gate, gate_command
from puzzlebench.cli_library import (
    add_library,
    add_parent,
    add_realise,
    add_score,
    library_command,
    parent_command,
    realise_command,
    score_command,
)
from puzzlebench.cli_live import (
    add_live_options,
    campaign_command,
    live_device,
    profile_live_command,
    stack_command,
    validate_live_command,
)
from puzzlebench.cli_options import INFEASIBLE, length_or_range, read_json, whole_numbers
from puzzlebench.cli_run import add_run, run_command
from puzzlebench.cli_search import add_pareto, add_search, pareto_command, search_command
from puzzlebench.cli_serving import add_serving_options, refuse_serving_options, serving_command
from puzzlebench.cli_speed import add_speed, speed_command
from puzzlebench.cli_verify import add_verify, verify_command

if TYPE_CHECKING:
    from puzzlebench.model.blocks import Architecture
    from puzzlebench.model.dtypes import WeightDtype
    from puzzlebench.model.spec import ModelSpec
    from puzzlebench.scenario import Precision

    Commands = argparse._SubParsersAction["_Parser"]

_DEFAULT_MODEL = "llama-3.1-8b"
_DEFAULT_GPU = "h100_sxm"
_DEFAULT_ENGINE = "trtllm"


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        if message.endswith("expected one argument"):  # as in --max-tpot -5ms, which looks like an option
            message += "; one that begins with - is given as --option=VALUE"
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parsed = build_parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int | None] = parsed.run
    try:
        with _terminated_as_interrupted():
            code = run(parsed)
    except ValueError as error:
        if os.environ.get("PUZZLEBENCH_DEBUG"):
            raise
        print(f"puzzlebench: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError" or os.environ.get("PUZZLEBENCH_DEBUG"):
            raise
        print(
            "puzzlebench: error: the GPU has too little memory; lower --memory-limit, --batch-size or --length (of "
            "`run`: memory_limit, score.batch_size, evaluate.batch_size, or micro_batch=1 and checkpointing=true)",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("puzzlebench: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code or 0


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, which Slurm and containers send, ends a command as Ctrl-C does: what is unfinished is taken away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; docs/cli.md is generated from it."""
    parser = _Parser(prog="puzzlebench", description=puzzlebench.__doc__)
    parser.add_argument("--version", action="version", version=f"puzzlebench {puzzlebench.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_profile(commands)
    _add_show(commands)
    _add_estimate(commands)
    _add_search(commands)
    _add_blocks(commands)
    _add_regression(commands)
    _add_validate(commands)
    _add_campaign(commands)
    _add_stack(commands)
    for name, run, text in (
        ("gpus", _gpus, "list known GPUs and what was measured on them"),
        ("models", _models, "list bundled models"),
    ):
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        _add_json(command)
        command.set_defaults(run=run)
    return parser


def _add_regression(commands: Commands) -> None:
    for name, add, run, text, description in (
        (
            "bench",
            add_bench,
            bench_command,
            "time the suite of benchmarks",
            "Blocks, kernels, searches and stages of the pipeline, each timed in several fresh processes.",
        ),
        (
            "compare",
            add_compare,
            compare_command,
            "two results: faster, slower, the same, or not to be told",
            f"Compare two cost tables or benchmark results, cell by cell and as a whole. {EXIT_CODES}",
        ),
        (
            "gate",
            add_gate,
            gate_command,
            "did a revision make anything slower",
            "Measure two revisions of the code in turn, in fresh processes on this machine; what would fail is "
            f"measured again first. {EXIT_CODES}",
        ),
        (
            "history",
            add_history,
            history_command,
            "a series of results, and where a cell changed",
            "Keep results as plain files and find the points where cells changed.",
        ),
    ):
        command = commands.add_parser(name, help=text, description=description)
        add(command)
        _add_json(command)
        command.set_defaults(run=run)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _add_target(parser: argparse.ArgumentParser, *, measured_here: bool = False) -> None:
    """Options that say which model runs where, and how."""
    target = parser.add_argument_group("what runs where")
    target.add_argument(
        "--model", default=_DEFAULT_MODEL, help="bundled id, Hub id, directory or config.json (%(default)s)"
    )
    live = ", or to measure what is here: local, cpu, cuda:N" if measured_here else ""
    target.add_argument(
        "--gpu",
        default=_DEFAULT_GPU,
        help=f"a name from `puzzlebench gpus`, or a datasheet FILE.yaml{live} (%(default)s)",
    )
    if measured_here:
        target.add_argument(
            "--source",
            default="auto",
            choices=("auto", "kernels", "live"),
            help="kernels: shipped measurements; live: time the blocks here; auto: live if this machine holds the GPU",
        )
    live = "; live: torch (default), triton or trtllm" if measured_here else ""
    target.add_argument("--engine", help=f"trtllm (default), vllm or sglang{live}")
    target.add_argument("--engine-version", help="default: the one that was measured")
    dtypes = ("fp32", "bf16", "fp16", "fp8")
    target.add_argument("--weight-dtype", choices=dtypes, help="default: bf16, on a CPU fp32; fp8 has static scales")
    target.add_argument("--kv-dtype", choices=dtypes, help="default: as the weights")
    target.add_argument("--tp", type=int, default=1, help="tensor-parallel GPUs (%(default)s)")


def _add_profile(commands: Commands) -> None:
    text = (
        "Write the cost table of a model's search space on a device: from shipped kernel measurements, or, where this "
        "machine holds the device, by timing every block on it."
    )
    command = commands.add_parser("profile", help="write a cost table", description=text)
    _add_target(command, measured_here=True)
    grid = command.add_argument_group("cells and candidates")
    grid.add_argument(
        "--batch-sizes", type=whole_numbers, metavar="N,N", help="default: 1 to 128 in powers of two; a CPU's: 1,4,16"
    )
    grid.add_argument(
        "--prefill-lens",
        type=whole_numbers,
        metavar="N,N",
        help="default: 128,512,1024,2048,4096,8192; a CPU's: 64,128,256",
    )
    grid.add_argument(
        "--context-lens", type=whole_numbers, metavar="N,N", help="tokens in the cache; default: the same"
    )
    grid.add_argument(
        "--kv-heads", type=whole_numbers, metavar="N,N", help="default: the model's, and 1/2, 1/4, 1/8 of them"
    )
    grid.add_argument("--ffn-multiple", type=int, default=256, help="FFN widths are multiples of this (%(default)s)")
    grid.add_argument(
        "--max-num-tokens", type=int, default=8192, help="most prompt tokens per engine step (%(default)s)"
    )
    add_live_options(command)
    command.add_argument("--out", type=Path, help="default: MODEL.GPU.ENGINE.WEIGHTS-KV.tpN.parquet")
    _add_json(command)
    command.set_defaults(run=_profile)


def _add_show(commands: Commands) -> None:
    command = commands.add_parser("show", help="print a cost table", description="Print a cost table.")
    command.add_argument(
        "table",
        metavar="TABLE",
        help="a file that `profile` wrote, or a shipped table: gpu/model.engine.dtypes",
    )
    command.add_argument("--batch-size", type=int, help="default: the middle one")
    command.add_argument("--phase", choices=("prefill", "decode"), help="default: both")
    _add_json(command)
    command.set_defaults(run=_show)


def _add_estimate(commands: Commands) -> None:
    text = (
        "Latency, throughput and memory of a whole model: of a static batch, or with --serving of requests as they "
        f"come (in-flight batching). Where limits on times do not hold the exit code is {INFEASIBLE}."
    )
    command = commands.add_parser("estimate", help="cost a whole model in a scenario", description=text)
    _add_target(command)
    command.add_argument(
        "--architecture", metavar="FILE", help="an architecture JSON, or a heterogeneous model to cost instead"
    )
    command.add_argument("--batch", type=int, help="sequences of a static batch (1)")
    for name, tokens, what in (("--prefill", 1024, "prompt tokens"), ("--decode", 256, "generated tokens")):
        text = f"{what}, with --serving also a range such as 820:1024 (%(default)s)"
        command.add_argument(name, type=length_or_range, default=tokens, metavar="N", help=text)
    command.add_argument(
        "--memory-fraction",
        type=float,
        default=0.9,
        help="of the GPU's memory that may be used; with --serving and trtllm of what the weights leave, as its "
        "free_gpu_memory_fraction (%(default)s)",
    )
    add_serving_options(command)
    _add_json(command)
    command.set_defaults(run=_estimate)


def _add_search(commands: Commands) -> None:
    text = (
        "The architecture with the best score that keeps the limits: exact, over batch sizes, with bound and reasons. "
        f"When there is none it says which limits clash and what would do, and exits with {INFEASIBLE}; "
        "with --serving also when the best does not keep the limits in its own steady state."
    )
    command = commands.add_parser("search", help="choose the best architecture under limits", description=text)
    add_search(command)
    _add_json(command)
    command.set_defaults(run=search_command)
    text = "The best of one quantity for every budget of another: exact points, over all batch sizes."
    command = commands.add_parser("pareto", help="trace the front of two quantities", description=text)
    add_pareto(command)
    _add_json(command)
    command.set_defaults(run=pareto_command)


def _add_blocks(commands: Commands) -> None:
    for name, add, run, text, description in (
        (
            "parent",
            add_parent,
            parent_command,
            "make the small embedded parent",
            "Train the embedded parent on Python's standard library: minutes on two cores, once.",
        ),
        (
            "library",
            add_library,
            library_command,
            "make the blocks a model may be built from",
            "Initialise and distil the blocks of a search space from their parent, all of a layer side by side. "
            "Stopped at any point, the same command goes on.",
        ),
        (
            "score",
            add_score,
            score_command,
            "score every block of a library",
            "Replace one block of the parent at a time and compare: a score table per metric, for `search --scores`.",
        ),
        (
            "realise",
            add_realise,
            realise_command,
            "put an architecture's blocks together",
            "Write the checkpoint of an architecture: the parent with the library's blocks in place.",
        ),
        (
            "distil",
            add_distil,
            distil_command,
            "train a child as a whole on its parent's answers",
            "Global distillation of a realised child: hidden states and logits of its parent. One process, or many "
            "under `accelerate launch`. Stopped at any point, the same command goes on.",
        ),
        (
            "eval",
            add_eval,
            eval_command,
            "what a child keeps of its parent, by tasks of lm-eval",
            "Run tasks of the LM Evaluation Harness on parent and child, or read results of it, and compare sample by "
            "sample: retention, differences with intervals, flips.",
        ),
        (
            "speed",
            add_speed,
            speed_command,
            "measured speed of a child beside its parent",
            "Time prefill, decode and generation of checkpoints in turn, in fresh processes, beside the prediction of "
            "a cost table.",
        ),
        (
            "export",
            add_export,
            export_command,
            "write a child for the engines that will serve it",
            "A complete directory in a format that stock engines load (decilm, hf or gguf), with a model card; refused "
            "where the engine would not load a layer.",
        ),
        (
            "import",
            add_import,
            import_command,
            "make a child of a released heterogeneous model",
            "Read a decilm, hf or gguf checkpoint and write one that can be costed, evaluated and distilled further.",
        ),
        (
            "verify",
            add_verify,
            verify_command,
            "does an engine answer as puzzlebench does",
            "Compare greedy tokens and log-probabilities of an exported model in an engine with those of the child. "
            "Exit codes: 0 they agree, 1 they differ, 2 something is wrong with the input.",
        ),
        (
            "run",
            add_run,
            run_command,
            "the whole loop, from a parent to a measured child and a report",
            "Parent, profile, library, score, search, realise, distil, evaluate, speed, report: one recipe, one "
            "folder. A stage whose inputs have not changed is not done again; stopped at any point, the same command "
            "goes on.",
        ),
        (
            "ablate",
            add_ablate,
            ablate_command,
            "which parts of the method matter",
            "The ablations of the paper on a small parent, over several seeds: block distillation, scores, searches, "
            "search spaces and distillation losses at the same cost. Stopped at any point, the same command goes on.",
        ),
    ):
        command = commands.add_parser(name, help=text, description=description)
        add(command)
        _add_json(command)
        command.set_defaults(run=run)


def _add_validate(commands: Commands) -> None:
    text = (
        "Measure how wrong the cost model is: held-out kernels, unseen GPUs, and measured serving runs. With --live: "
        "how far the sum of measured blocks is from whole models timed beside them."
    )
    command = commands.add_parser("validate", help="measure the cost model's error", description=text)
    command.add_argument("--gpu", help=f"whose kernels to hold out ({_DEFAULT_GPU}); with --live: local (default), ...")
    command.add_argument("--engine", help="trtllm (default), vllm or sglang; with --live: torch (default) or triton")
    command.add_argument("--quick", action="store_true", help="a tenth of the held-out shapes")
    command.add_argument("--report", type=Path, metavar="FILE.md", help="also write the tables as Markdown")
    command.add_argument("--live", action="store_true", help="check on this machine that blocks add up to models")
    live = command.add_argument_group("with --live")
    live.add_argument("--model", default="embedded", help="bundled id, Hub id or directory (%(default)s)")
    live.add_argument("--weight-dtype", choices=("fp32", "bf16", "fp16", "fp8"), help="default: bf16, on a CPU fp32")
    live.add_argument("--kv-dtype", choices=("fp32", "bf16", "fp16", "fp8"), help="default: as the weights")
    live.add_argument("--batch-sizes", type=whole_numbers, metavar="N,N", help="default: as `profile`")
    live.add_argument("--lengths", type=whole_numbers, metavar="N,N", help="prompts and contexts; default as `profile`")
    add_live_options(command)
    _add_json(command)
    command.set_defaults(run=_validate, tp=1)


def _add_campaign(commands: Commands) -> None:
    text = (
        "Measure everything worth having on a machine that is lent for a while: kernel tests, ceilings, tables, "
        "composition, kernel benchmarks, repeats. Stops cleanly at the time limit; the same command goes on."
    )
    command = commands.add_parser("campaign", help="measure a machine in one resumable go", description=text)
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results go and are resumed")
    command.add_argument("--gpu", default="local", help="local, cpu or cuda:N (%(default)s)")
    command.add_argument("--steps", metavar="NAME,NAME", help="default: all, in their order")
    command.add_argument("--time-limit", type=float, metavar="SECONDS", help="stop after this long; default: when done")
    command.add_argument("--pace", type=float, default=1.0, help="scale of every duration; 0.1 to see it run (1)")
    command.add_argument("--archive", type=Path, metavar="FILE.tar.gz", help="pack the folder after every step")
    _add_json(command)
    command.set_defaults(run=campaign_command)


def _add_stack(commands: Commands) -> None:
    text = (
        "Time decoder blocks in an engine that loads checkpoints: random-weight stacks of N and 2N copies, run through "
        "its public interface; a block is the slope, everything else the intercept."
    )
    command = commands.add_parser("stack", help="time blocks in a serving engine", description=text)
    command.add_argument(
        "--model", default="embedded", help="whose sizes: bundled or Hub id, or directory (%(default)s)"
    )
    command.add_argument("--engine", default="transformers", help="transformers, trtllm or vllm (%(default)s)")
    command.add_argument(
        "--blocks", metavar="ATTENTION+FFN,...", help="such as gqa_8+mlp_14336,no_op+linear; default: the model's"
    )
    command.add_argument("--head", metavar="ATTENTION+FFN,...", help="blocks that both stacks begin with")
    command.add_argument("--copies", type=int, default=4, help="N (%(default)s)")
    command.add_argument("--batch", type=int, default=1, help="sequences (%(default)s)")
    command.add_argument("--prefill", type=int, default=128, help="prompt tokens (%(default)s)")
    command.add_argument("--decode", type=int, default=17, help="tokens of the longer answer (%(default)s)")
    command.add_argument("--repeats", type=int, default=5, help="pairs of runs (%(default)s)")
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16, float32 for transformers"
    )
    command.add_argument("--workdir", type=Path, default=Path(), help="where checkpoints lie meanwhile (here)")
    _add_json(command)
    command.set_defaults(run=stack_command)


def _profile(arguments: argparse.Namespace) -> None:
    from puzzlebench.model.catalog import load_model
    from puzzlebench.model.space import default_space
    from puzzlebench.profiling.cost_table import write_cost_table
    from puzzlebench.profiling.profile import Grid, build_cost_table
    from puzzlebench.profiling.sources import open_kernels
    from puzzlebench.render import cost_table_json, print_cost_table, print_json

    started = time.perf_counter()
    spec, architecture = load_model(arguments.model)
    asked = {name: getattr(arguments, name) for name in ("batch_sizes", "prefill_lens", "context_lens")}
    asked = {name: values for name, values in asked.items() if values is not None}
    if device := live_device(arguments):
        profile_live_command(arguments, device, spec, architecture, asked)
        return
    gpu, kernels = open_kernels(arguments.gpu, arguments.engine or _DEFAULT_ENGINE, arguments.engine_version)
    space = default_space(spec, architecture, kv_heads=arguments.kv_heads, ffn_multiple=arguments.ffn_multiple)
    grid = Grid(**asked)
    precision = _precision(arguments)
    table = build_cost_table(kernels, gpu, spec, space, precision, grid, max_num_tokens=arguments.max_num_tokens)
    out: Path = arguments.out or Path(
        f"{spec.name.replace('/', '--')}.{gpu.name}.{kernels.engine}.{precision.weight_dtype}-{precision.kv_dtype}"
        f".tp{precision.tensor_parallel}.parquet"
    )
    write_cost_table(table, out)
    if arguments.json:
        print_json(cost_table_json(table) | {"path": str(out)})
        return
    print_cost_table(table, phases=("prefill", "decode"), batch_size=None)
    print(f"wrote {out} in {time.perf_counter() - started:.1f} s; `puzzlebench show {out}` prints any batch of it")


def _show(arguments: argparse.Namespace) -> None:
    from puzzlebench.profiling.cost_table import open_cost_table
    from puzzlebench.render import cost_table_json, print_cost_table, print_json

    table = open_cost_table(arguments.table)
    if arguments.json:
        print_json(cost_table_json(table))
        return
    phases = (arguments.phase,) if arguments.phase else ("prefill", "decode")
    print_cost_table(table, phases=phases, batch_size=arguments.batch_size)


def _estimate(arguments: argparse.Namespace) -> int:
    from puzzlebench.estimate import Estimate, estimate
    from puzzlebench.model.catalog import load_model
    from puzzlebench.profiling.sources import open_kernels
    from puzzlebench.render import print_estimate, print_json
    from puzzlebench.scenario import Scenario

    parent, parent_architecture = load_model(arguments.model)
    spec, architecture = parent, parent_architecture
    if arguments.architecture:
        spec, architecture = _read_architecture(arguments.architecture, parent)
    gpu, kernels = open_kernels(arguments.gpu, arguments.engine or _DEFAULT_ENGINE, arguments.engine_version)
    if arguments.serving:
        base = (parent, parent_architecture) if arguments.architecture else None
        return serving_command(arguments, (spec, architecture), base, gpu, kernels, _precision(arguments))
    refuse_serving_options(arguments)
    for name in ("prefill", "decode"):
        if not isinstance(getattr(arguments, name), int):
            raise ValueError(f"--{name} {getattr(arguments, name)!r} is no number of tokens; ranges need --serving")
    scenario = Scenario(
        batch_size=1 if arguments.batch is None else arguments.batch,
        prefill_len=arguments.prefill,
        decode_len=arguments.decode,
        precision=_precision(arguments),
    )
    fraction = arguments.memory_fraction

    def cost(spec: ModelSpec, architecture: Architecture, *, must_fit: bool) -> Estimate:
        return estimate(kernels, gpu, spec, architecture, scenario, memory_fraction=fraction, must_fit=must_fit)

    result = cost(spec, architecture, must_fit=True)
    # The parent is there for the ratio: it may be too large for the GPU that its child fits on.
    baseline = cost(parent, parent_architecture, must_fit=False) if arguments.architecture else None
    if arguments.json:
        speed_up = baseline and {
            "speed_up": baseline.total_ms.value / result.total_ms.value,
            "baseline": asdict(baseline),
        }
        print_json(asdict(result) | {"source": kernels.source} | (speed_up or {}))
        return 0
    precision = scenario.precision
    title = (
        f"{spec.name} on {precision.tensor_parallel} x {gpu.name} ({kernels.engine} {kernels.engine_version}, weights "
        f"{precision.weight_dtype}, KV cache {precision.kv_dtype}): batch {scenario.batch_size}, prompt "
        f"{scenario.prefill_len}, {scenario.decode_len} generated"
    )
    print_estimate(title, result, (parent.name, baseline) if baseline else None)
    print(f"source: {kernels.source}")
    return 0


def _validate(arguments: argparse.Namespace) -> None:
    from puzzlebench.validation.report import print_report, report_json, validate, write_report

    if arguments.live:
        arguments.gpu = arguments.gpu or "local"
        validate_live_command(arguments)
        return
    share = 0.1 if arguments.quick else 1.0
    pictured = arguments.report is not None
    report = validate(
        arguments.gpu or _DEFAULT_GPU, arguments.engine or _DEFAULT_ENGINE, share=share, pictured=pictured
    )
    if arguments.report:
        write_report(report, arguments.report)
    if arguments.json:
        from puzzlebench.render import print_json

        print_json(report_json(report))
        return
    print_report(report)


def _gpus(arguments: argparse.Namespace) -> None:
    from puzzlebench.render import gpus_json, print_gpus, print_json
    from puzzlebench_profiles.datasheets import bundled_datasheets
    from puzzlebench_profiles.kernel_tables import list_kernel_tables

    sheets, tables = list(bundled_datasheets().values()), list_kernel_tables()
    if arguments.json:
        print_json(gpus_json(sheets, tables))
        return
    print_gpus(sheets, tables)


def _models(arguments: argparse.Namespace) -> None:
    from puzzlebench.model.catalog import list_models
    from puzzlebench.render import print_json, print_models

    if arguments.json:
        print_json([asdict(row) for row in list_models()])
        return
    print_models(list_models())


def _precision(arguments: argparse.Namespace) -> Precision:
    from puzzlebench.scenario import Precision

    weights: WeightDtype = arguments.weight_dtype or "bf16"
    return Precision(
        weight_dtype=weights,
        kv_dtype=arguments.kv_dtype or weights,
        tensor_parallel=arguments.tp,
    )


def _read_architecture(name: str, parent: ModelSpec) -> tuple[ModelSpec, Architecture]:
    """The spec and architecture of an architecture JSON over the parent, or of a model by name or path."""
    from puzzlebench.model.blocks import architecture_from_json
    from puzzlebench.model.catalog import load_model
    from puzzlebench.model.spec import check_architecture

    path = Path(name)
    if path.is_file():
        data = read_json(path)
        if isinstance(data, dict) and "blocks" in data:
            architecture = architecture_from_json(data)
            check_architecture(parent, architecture)
            return parent, architecture
    elif path.suffix == ".json":  # not an `org/name` to ask the Hub for
        raise ValueError(f"{path}: no such file")
    return load_model(name)


if __name__ == "__main__":
    sys.exit(main())
