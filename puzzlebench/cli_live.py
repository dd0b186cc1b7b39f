"""The commands that measure the device in hand: `profile` with a live source, and `validate --live`."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puzzlebench.progress import progress

if TYPE_CHECKING:
    from puzzlebench.measuring.device import Device
    from puzzlebench.measuring.plan import Effort
    from puzzlebench.model.spec import ModelSpec
    from puzzlebench.profiling.profile import Grid

_HERE = ("local", "cpu", "cuda")


def add_live_options(parser: argparse.ArgumentParser) -> None:
    """How long and how to measure; each has no effect on a table made from measured kernels."""
    live = parser.add_argument_group("measuring the device in hand")
    live.add_argument("--sessions", type=int, help="fresh processes, each measures everything (CPU: 8, GPU: 3)")
    live.add_argument("--seconds", type=float, help="of timing, all sessions together (100)")
    live.add_argument("--target-width", type=float, help="stop a cell at this relative width of its interval (0.02)")
    live.add_argument("--energy-seconds", type=float, help="count each cell's energy over this long (0: not at all)")
    live.add_argument("--lock-clocks", type=int, metavar="MHZ", help="fix the GPU's clock meanwhile; needs root")
    live.add_argument("--run-dir", type=Path, help="raw samples, and where to resume; default: beside the table, .run")


def live_device(arguments: argparse.Namespace) -> Device | None:
    """The device to measure, or None where measured kernels answer.

    Raises:
        ValueError: the device is not here, or `--source` and `--gpu` contradict each other.
    """
    from puzzlebench.measuring.device import holds_gpu, local_device
    from puzzlebench.profiling.sources import engine_name
    from puzzlebench_profiles.datasheets import find_datasheet

    name: str = arguments.gpu
    if arguments.engine is not None:
        arguments.engine = engine_name(arguments.engine)
    if name in _HERE or name.startswith("cuda:"):
        if arguments.source == "kernels":
            raise ValueError(f"--gpu {name} is measured live; --source kernels needs a GPU from `puzzlebench gpus`")
        return local_device(name)
    if arguments.source == "kernels":
        return None
    index = holds_gpu(find_datasheet(name).name)
    if index is not None and (arguments.source == "live" or _engine_is_live(arguments)):
        return local_device(f"cuda:{index}")
    if arguments.source == "live":
        raise ValueError(f"this machine has no {name}; --gpu local measures what it has")
    return None


def _engine_is_live(arguments: argparse.Namespace) -> bool:
    """Whether the engine asked for, if any, can be measured live."""
    from puzzlebench.measuring.engines import ENGINES

    return arguments.engine is None or arguments.engine in ENGINES


def profile_live_command(
    arguments: argparse.Namespace,
    device: Device,
    spec: ModelSpec,
    architecture: Any,
    asked_grid: dict[str, tuple[int, ...]],
) -> None:
    """Measure, write the table, print it."""
    from puzzlebench.measuring.live import live_precision, profile_live
    from puzzlebench.model.space import default_space
    from puzzlebench.profiling.cost_table import write_cost_table
    from puzzlebench.render import cost_table_json, print_cost_table, print_json, print_measurement

    if arguments.engine_version is not None:
        raise ValueError("--engine-version is of shipped kernels; a live measurement runs what is installed")
    precision = live_precision(device, arguments.weight_dtype, arguments.kv_dtype, arguments.tp)
    engine = arguments.engine or "torch"
    space = default_space(spec, architecture, kv_heads=arguments.kv_heads, ffn_multiple=arguments.ffn_multiple)
    out: Path = arguments.out or Path(
        f"{spec.name.replace('/', '--')}.{device.name}.{engine}.{precision.weight_dtype}-{precision.kv_dtype}"
        f".tp{precision.tensor_parallel}.parquet"
    )
    if not out.parent.is_dir():
        raise ValueError(f"cannot write {out}: there is no folder {out.parent}")
    folder: Path = arguments.run_dir or out.with_suffix(".run")
    with progress() as report:
        profile = profile_live(
            spec,
            architecture,
            space,
            precision,
            _grid(device, asked_grid),
            device,
            engine,
            _effort(arguments, device),
            folder,
            report,
            max_num_tokens=arguments.max_num_tokens,
        )
    write_cost_table(profile.table, out)
    if arguments.json:
        print_json(cost_table_json(profile.table) | {"path": str(out), "run_dir": str(folder)})
        return
    print_cost_table(profile.table, phases=("prefill", "decode"), batch_size=None)
    print_measurement(profile.results)
    print(f"wrote {out}; raw samples are in {folder}; `puzzlebench show {out}` prints any batch of it")


def validate_live_command(arguments: argparse.Namespace) -> None:
    """Time whole models beside their blocks and print how far the sums are off."""
    for option in ("quick", "report"):
        if getattr(arguments, option):
            raise ValueError(f"--{option} has no meaning with --live; --seconds says how long to measure")
    from puzzlebench.measuring.composition import check_composition, median_error
    from puzzlebench.measuring.live import live_precision
    from puzzlebench.model.catalog import load_model
    from puzzlebench.model.space import default_space
    from puzzlebench.render import print_composition, print_json

    device = live_device(argparse.Namespace(**{**vars(arguments), "source": "live"}))
    assert device is not None
    spec, architecture = load_model(arguments.model)
    precision = live_precision(device, arguments.weight_dtype, arguments.kv_dtype, arguments.tp)
    grid = _grid(device, _asked_grid(arguments))
    grid = replace(grid, context_lens=grid.prefill_lens)
    engine = arguments.engine or "torch"
    folder: Path = arguments.run_dir or Path(f"{spec.name.replace('/', '--')}.{device.name}.{engine}.composition.run")
    with progress() as report:
        found, results = check_composition(
            spec,
            architecture,
            default_space(spec, architecture),
            precision,
            grid,
            device,
            engine,
            _effort(arguments, device),
            folder,
            report,
        )
    if not found:
        work, reason = next(iter(results.misses.items()))
        raise ValueError(f"no whole model could be compared; the first that failed: {work}: {reason}")
    if arguments.json:
        print_json(
            {
                "model": spec.name,
                "device": device.display_name,
                "engine": engine,
                "precision": asdict(precision),
                "median_absolute_error": median_error(found),
                "comparisons": [asdict(one) for one in found],
                "misses": [asdict(work) | {"reason": reason} for work, reason in results.misses.items()],
            }
        )
        return
    print_composition(f"{spec.name} on {device.display_name}, {engine}, {precision.weight_dtype}", found)
    print(f"raw samples are in {folder}")


def campaign_command(arguments: argparse.Namespace) -> None:
    """Run the campaign, print its summary, pack its folder."""
    from puzzlebench.measuring.campaign import Campaign, run_campaign
    from puzzlebench.measuring.device import local_device
    from puzzlebench.render import print_json

    if not 0 < arguments.pace <= 1:
        raise ValueError(f"--pace must be above 0 and at most 1, not {arguments.pace}")
    if arguments.time_limit is not None and not arguments.time_limit > 0:
        raise ValueError(f"--time-limit must be above 0, not {arguments.time_limit}")
    if arguments.archive and not arguments.archive.parent.is_dir():
        raise ValueError(f"cannot write {arguments.archive}: there is no folder {arguments.archive.parent}")
    deadline = None if arguments.time_limit is None else time.monotonic() + arguments.time_limit
    folder: Path = arguments.out
    steps = None if arguments.steps is None else arguments.steps.split(",")
    with progress() as report:
        campaign = Campaign(
            folder=folder,
            device=local_device(arguments.gpu),
            pace=arguments.pace,
            deadline=deadline,
            report=report,
            archive=arguments.archive,
        )
        done = run_campaign(campaign, steps)
    if arguments.json:
        print_json({"done": done, "folder": str(folder), "steps": _step_results(folder)})
        return
    print((folder / "summary.md").read_text(), end="")
    print("complete" if done else "the time is up; the same command goes on from here")


def _step_results(folder: Path) -> dict[str, Any]:
    from puzzlebench.measuring.campaign import STEPS

    files = {step.name: folder / f"{step.name}.json" for step in STEPS}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def stack_command(arguments: argparse.Namespace) -> None:
    """Time blocks in an engine by stacking them."""
    from puzzlebench.measuring.stack.engines import open_stack_engine
    from puzzlebench.measuring.stack.measure import StackTimings, measure_stack
    from puzzlebench.measuring.stack.slope import StackRefused
    from puzzlebench.model.blocks import Block, block_name, parse_block
    from puzzlebench.model.catalog import load_model
    from puzzlebench.render import print_json, print_stacks

    spec, architecture = load_model(arguments.model)

    def blocks(names: str | None, default: tuple[Block, ...]) -> tuple[Block, ...]:
        return default if names is None else tuple(parse_block(name) for name in names.split(","))

    wanted, head = blocks(arguments.blocks, (architecture.blocks[0],)), blocks(arguments.head, ())
    engine = open_stack_engine(arguments.engine)
    found: dict[str, StackTimings | str] = {}
    with progress() as report:
        for place, block in enumerate(wanted):
            report(place / len(wanted), f"stacks of {block_name(block)}")
            try:
                found[block_name(block)] = measure_stack(
                    engine,
                    spec,
                    block,
                    copies=arguments.copies,
                    batch_size=arguments.batch,
                    prompt_len=arguments.prefill,
                    decode_tokens=arguments.decode,
                    repeats=arguments.repeats,
                    workdir=arguments.workdir,
                    dtype=arguments.dtype or ("float32" if arguments.engine == "transformers" else "bfloat16"),
                    head=head,
                )
            except StackRefused as refusal:
                found[block_name(block)] = str(refusal)
    if all(isinstance(timings, str) for timings in found.values()):
        raise ValueError("; ".join(str(timings) for timings in found.values()))
    if arguments.json:
        rows = {
            name: {"refused": timings} if isinstance(timings, str) else asdict(timings)
            for name, timings in found.items()
        }
        print_json({"model": spec.name, "engine": engine.name, "engine_version": engine.version, "blocks": rows})
        return
    print_stacks(f"{spec.name}: {engine.name} {engine.version}, N = {arguments.copies}", found)


def _asked_grid(arguments: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    asked = {"batch_sizes": arguments.batch_sizes, "prefill_lens": arguments.lengths}
    return {name: values for name, values in asked.items() if values is not None}


def _grid(device: Device, asked: dict[str, tuple[int, ...]]) -> Grid:
    from puzzlebench.measuring.live import CPU_GRID
    from puzzlebench.profiling.profile import Grid

    return replace(CPU_GRID, **asked) if device.kind == "cpu" else Grid(**asked)


def _effort(arguments: argparse.Namespace, device: Device) -> Effort:
    from puzzlebench.measuring.plan import Effort

    asked = {
        "sessions": (8 if device.kind == "cpu" else 3) if arguments.sessions is None else arguments.sessions,
        "seconds": arguments.seconds,
        "target_width": arguments.target_width,
        "energy_seconds": arguments.energy_seconds,
        "lock_clocks_mhz": arguments.lock_clocks,
    }
    return Effort(**{name: value for name, value in asked.items() if value is not None})
