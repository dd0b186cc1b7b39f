"""Everything worth measuring on a machine that is only lent for a while, in one resumable command.

A list of steps, each of which writes one JSON file into the campaign's folder and is skipped once that is there; the
measurements inside a step resume too. When the time is up the folder is complete as far as it goes. It ends with a
table per model under tables/, in the form in which tables are shipped, and summary.md for people.
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import puzzlebench
from puzzlebench.files import write_text
from puzzlebench.measuring.agreement import agreement
from puzzlebench.measuring.ceilings import ceilings_to_json, measure_ceilings
from puzzlebench.measuring.composition import check_composition, median_error
from puzzlebench.measuring.device import Device, fingerprint
from puzzlebench.measuring.kernel_comparison import compare_with_kernels
from puzzlebench.measuring.live import CPU_GRID, profile_live
from puzzlebench.measuring.measure import Report, python_path
from puzzlebench.measuring.plan import Effort
from puzzlebench.model.catalog import load_model
from puzzlebench.model.space import default_space
from puzzlebench.profiling.cost_table import CostTable, read_cost_table, write_cost_table
from puzzlebench.profiling.profile import Grid
from puzzlebench.scenario import Precision

_log = logging.getLogger(__name__)
_REPEATS: Final = 2
_COMMAND_SECONDS: Final = 300.0
_GPU_GRID: Final = Grid(
    batch_sizes=(1, 8, 32, 128), prefill_lens=(128, 1024, 4096), context_lens=(128, 1024, 4096, 8192)
)
_SMALL_GPU_GRID: Final = Grid(batch_sizes=(1, 32), prefill_lens=(128, 1024), context_lens=(128, 2048))
_SMALL_CPU_GRID: Final = Grid(batch_sizes=(1, 16), prefill_lens=(64, 256), context_lens=(64, 256))


class TimeUpError(Exception):
    """The campaign's time is over; what is on disk can be resumed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One table to measure."""

    model: str
    engine: str
    precision: Precision
    grid: Grid
    effort: Effort

    @property
    def name(self) -> str:
        """File name of its table."""
        precision = f"{self.precision.weight_dtype}-{self.precision.kv_dtype}"
        return f"{self.model}.{self.engine}.{precision}.parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class Campaign:
    """What a step is given. `pace` scales every duration: 1 for real, less to prove that it runs."""

    folder: Path
    device: Device
    pace: float
    deadline: float | None
    report: Report
    archive: Path | None = None

    def seconds_left(self) -> float:
        """Until the deadline; infinite without one."""
        return math.inf if self.deadline is None else self.deadline - time.monotonic()

    def keep(self) -> None:
        """Write the summary and pack what there is: the machine may be gone in a moment."""
        write_summary(self.folder)
        if self.archive is not None:
            pack(self.folder, self.archive)

    def check_time(self) -> None:
        """Raise TimeUpError once the deadline is past."""
        if self.seconds_left() < 0:
            raise TimeUpError

    def watched(self, stage: str) -> Report:
        """A progress function that also watches the clock."""

        def report(share: float, what: str) -> None:
            self.check_time()
            self.report(share, f"{stage}: {what}")

        return report


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One measurement of the campaign; `needs_gpu` steps say so and do nothing on a CPU."""

    name: str
    about: str
    run: Callable[[Campaign], dict[str, Any]]
    needs_gpu: bool = False


def run_campaign(campaign: Campaign, steps: Sequence[str] | None = None) -> bool:
    """Run the steps (all by default) that are not on disk yet or failed before; False when the time was up first.

    Raises:
        ValueError: a step is unknown, or the folder belongs to another device.
    """
    chosen = _choose(steps)
    _claim(campaign)
    try:
        for step in chosen:
            if not _done(campaign.folder / f"{step.name}.json"):
                _run_step(campaign, step)
    except TimeUpError:
        return False
    finally:
        campaign.keep()
    return True


def _done(file: Path) -> bool:
    return file.exists() and "failed" not in json.loads(file.read_text())


def _run_step(campaign: Campaign, step: Step) -> None:
    """One step; an error is written down and the campaign goes on, since the machine will not be there tomorrow."""
    campaign.check_time()
    started = time.monotonic()
    if step.needs_gpu and campaign.device.kind == "cpu":
        found: dict[str, Any] = {"skipped": "it needs a GPU"}
    else:
        found = _attempt(step.name, lambda: step.run(campaign))
    _write_json(
        campaign.folder / f"{step.name}.json", {"step": step.name, "seconds": time.monotonic() - started, **found}
    )
    campaign.keep()


def _attempt(what: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `run` returns, or why it failed."""
    try:
        return run()
    except TimeUpError:
        raise
    except Exception as error:
        _log.warning("%s failed: %s", what, error, exc_info=not isinstance(error, ValueError))
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}


def pack(folder: Path, file: Path) -> None:
    """Pack the campaign's folder, raw samples included, into one .tar.gz that appears whole or not at all."""
    unfinished = file.with_name(f".{file.name}.part")
    with tarfile.open(unfinished, "w:gz") as packed:
        packed.add(folder, arcname="campaign", filter=_anonymous)
    os.replace(unfinished, file)


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return None if entry.name.endswith(("/lock", ".part")) else entry


def _choose(names: Sequence[str] | None) -> list[Step]:
    known = {step.name: step for step in STEPS}
    for name in names or ():
        if name not in known:
            raise ValueError(f"no step is named {name!r}; steps: {', '.join(known)}")
    return [step for step in STEPS if names is None or step.name in names]


def _claim(campaign: Campaign) -> None:
    """Write down whose results these are, or check that they are this device's."""
    campaign.folder.mkdir(parents=True, exist_ok=True)
    (campaign.folder / "tables").mkdir(exist_ok=True)
    file = campaign.folder / "provenance.json"
    if file.exists():
        owner = json.loads(file.read_text())["device"]
        if owner != campaign.device.name:
            raise ValueError(f"{campaign.folder} holds results of {owner}, not of {campaign.device.name}")
        return
    _write_json(file, fingerprint(campaign.device))


def targets(campaign: Campaign) -> tuple[Target, ...]:
    """The tables to measure, most wanted first."""
    if campaign.device.kind == "cpu":
        effort = Effort(sessions=8 if campaign.pace == 1 else 2, seconds=100 * campaign.pace)
        fp32 = Precision(weight_dtype="fp32", kv_dtype="fp32")
        return (Target(model="embedded", engine="torch", precision=fp32, grid=CPU_GRID, effort=effort),)
    bf16 = Precision()
    fp8 = Precision(weight_dtype="fp8", kv_dtype="fp8")
    long = Effort(sessions=2, seconds=100 * campaign.pace)
    short = Effort(sessions=2, seconds=50 * campaign.pace)
    return (
        Target(model="llama-3.1-8b", engine="triton", precision=bf16, grid=_GPU_GRID, effort=long),
        Target(model="llama-3.1-8b", engine="triton", precision=fp8, grid=_SMALL_GPU_GRID, effort=short),
        Target(model="llama-3.1-70b", engine="triton", precision=bf16, grid=_SMALL_GPU_GRID, effort=short),
        Target(model="llama-3.1-8b", engine="torch", precision=bf16, grid=_SMALL_GPU_GRID, effort=short),
    )


def _kernel_tests(campaign: Campaign) -> dict[str, Any]:
    tests = Path(puzzlebench.__file__).parents[1] / "tests" / "kernels"
    if not tests.is_dir():
        return {"skipped": "the tests are not installed with the package; run from a checkout"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(tests)]
    done = _bounded(campaign, command)
    lines = done.stdout.strip().splitlines()
    return {"passed": done.returncode == 0, "summary": lines[-1] if lines else "", "tail": lines[-40:]}


def _bounded(campaign: Campaign, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command, at the longest until the campaign's time is up or `_COMMAND_SECONDS`.

    Raises:
        TimeUpError: the campaign's time was up first.
        ValueError: it took too long.
    """
    campaign.check_time()
    limit = min(campaign.seconds_left(), _COMMAND_SECONDS)
    environment = os.environ | {"PYTHONPATH": python_path()}
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit, env=environment)
    except subprocess.TimeoutExpired:
        if limit < _COMMAND_SECONDS:
            raise TimeUpError from None
        raise ValueError(f"{command[2]} took over {_COMMAND_SECONDS:.0f} s") from None


def _ceilings(campaign: Campaign) -> dict[str, Any]:
    return {"ceilings": ceilings_to_json(measure_ceilings(campaign.device, seconds=max(1.0, 10.0 * campaign.pace)))}


def _first_table(campaign: Campaign) -> dict[str, Any]:
    return _tables(campaign, targets(campaign)[:1])


def _other_tables(campaign: Campaign) -> dict[str, Any]:
    return _tables(campaign, targets(campaign)[1:])


def _tables(campaign: Campaign, wanted: Sequence[Target]) -> dict[str, Any]:
    """Measure tables one by one; one that is there is not measured again, and one that fails is written down."""
    summaries = []
    for target in wanted:
        file = campaign.folder / "tables" / target.name
        facts = file.with_suffix(".json")

        def measure_one(target: Target = target, file: Path = file) -> dict[str, Any]:
            table, found = _profile(campaign, target, campaign.folder / "runs" / file.stem)
            write_cost_table(table, file)
            return found

        if not _done(facts):
            _write_json(facts, _attempt(target.name, measure_one))
            campaign.keep()
        summaries.append({"table": target.name, **json.loads(facts.read_text())})
    failed = [row["table"] for row in summaries if "failed" in row]
    return {"tables": summaries, **({"failed": ", ".join(failed)} if failed else {})}


def _profile(campaign: Campaign, target: Target, run: Path) -> tuple[CostTable, dict[str, Any]]:
    spec, architecture = load_model(target.model)
    profile = profile_live(
        spec,
        architecture,
        default_space(spec, architecture),
        target.precision,
        target.grid,
        campaign.device,
        target.engine,
        target.effort,
        run,
        campaign.watched(target.name),
    )
    measured = list(profile.results.measured.values())
    widths = sorted(one.relative_interval for one in measured)
    return profile.table, {
        "cells": len(profile.table.frame),
        "misses": len(profile.table.metadata["misses"]),
        "samples": sum(one.samples for one in measured),
        "median_relative_interval": widths[len(widths) // 2],
        "stopped_by_interval": sum(one.stopped_by == "interval" for one in measured),
        "throttled_cells": sum(one.throttled_share > 0 for one in measured),
        "session_shift": list(profile.results.session_shift),
    }


def _composition(campaign: Campaign) -> dict[str, Any]:
    target = targets(campaign)[0]
    spec, architecture = load_model(target.model)
    on_cpu = campaign.device.kind == "cpu"
    grid = _SMALL_CPU_GRID if on_cpu else _SMALL_GPU_GRID
    found, results = check_composition(
        spec,
        architecture,
        default_space(spec, architecture),
        target.precision,
        replace(grid, context_lens=grid.prefill_lens),
        campaign.device,
        target.engine,
        replace(target.effort, seconds=90 * campaign.pace, energy_seconds=0.0),
        campaign.folder / "runs" / "composition",
        campaign.watched("composition"),
    )
    return {
        "engine": target.engine,
        "median_absolute_error": median_error(found),
        "comparisons": [asdict(one) for one in found],
        "misses": [f"{work}: {reason}" for work, reason in results.misses.items()],
    }


def _kernel_comparison(campaign: Campaign) -> dict[str, Any]:
    compared = []
    for target in targets(campaign):
        file = campaign.folder / "tables" / target.name
        if file.exists():
            compared += [{"table": target.name, **asdict(row)} for row in compare_with_kernels(read_cost_table(file))]
    return {"ratios": compared}


def _kernel_benchmark(campaign: Campaign) -> dict[str, Any]:
    """In a process of its own: what it allocates is given back to the card."""
    seconds = max(0.02, 0.2 * campaign.pace)
    code = f"import json; from puzzlebench_kernels.benchmark import run; print(json.dumps(run(seconds={seconds})))"
    done = _bounded(campaign, [sys.executable, "-c", code])
    if done.returncode:
        raise ValueError(f"the kernel benchmark failed: {done.stderr.strip().splitlines()[-1:]}")
    return {"kernels": json.loads(done.stdout.splitlines()[-1])}


def _repeats(campaign: Campaign) -> dict[str, Any]:
    """A/A: the same small profile several times over, each pair compared."""
    on_cpu = campaign.device.kind == "cpu"
    first = targets(campaign)[0]
    target = replace(
        first,
        grid=_SMALL_CPU_GRID if on_cpu else _SMALL_GPU_GRID,
        effort=Effort(sessions=first.effort.sessions, seconds=60 * campaign.pace),
    )
    tables = [
        _profile(campaign, target, campaign.folder / "runs" / f"repeat-{number}")[0] for number in range(_REPEATS)
    ]
    pairs = [
        {"pair": f"{a + 1}-{b + 1}", **asdict(agreement(tables[a], tables[b]))}
        for a in range(_REPEATS)
        for b in range(a + 1, _REPEATS)
    ]
    return {"repeats": _REPEATS, "pairs": pairs}


def _energy(campaign: Campaign) -> dict[str, Any]:
    """Energy of every sub-block at two sizes; the card's counter ticks slowly, so each takes over a second."""
    first = targets(campaign)[0]
    target = replace(
        first,
        grid=Grid(batch_sizes=(8, 128), prefill_lens=(1024,), context_lens=(1024,)),
        effort=Effort(sessions=1, seconds=10 * campaign.pace, energy_seconds=1.5 * campaign.pace),
    )
    table, _ = _profile(campaign, target, campaign.folder / "runs" / "energy")
    write_cost_table(table, campaign.folder / "tables" / f"{Path(target.name).stem}.energy.parquet")
    measured = table.frame[table.frame["energy_mj"] > 0]
    watts = measured["energy_mj"] / measured["latency_us"] * 1e3
    return {"cells": len(measured), "median_watts": float(watts.median()) if len(measured) else None}


STEPS: Final = (
    Step(name="kernel-tests", about="Triton kernels against float64", run=_kernel_tests, needs_gpu=True),
    Step(name="ceilings", about="copy bandwidth, matrix rates, launch latency, graph gap", run=_ceilings),
    Step(name="table", about="every sub-block, prefill and decode", run=_first_table),
    Step(name="composition", about="sums of blocks against whole models", run=_composition),
    Step(name="kernel-benchmark", about="our kernels beside torch", run=_kernel_benchmark, needs_gpu=True),
    Step(name="repeats", about="the same profile again (A/A)", run=_repeats),
    Step(name="other-tables", about="fp8, a larger model, plain torch", run=_other_tables, needs_gpu=True),
    Step(name="energy", about="millijoules of every sub-block", run=_energy, needs_gpu=True),
    Step(name="kernel-comparison", about="against shipped kernel measurements", run=_kernel_comparison, needs_gpu=True),
)


def write_summary(folder: Path) -> None:
    """summary.md: one line of each step that is done, and what is missing."""
    lines = [f"# Campaign on {json.loads((folder / 'provenance.json').read_text())['display_name']}", ""]
    lines += ["| step | seconds | result |", "| --- | ---: | --- |"]
    for step in STEPS:
        file = folder / f"{step.name}.json"
        if not file.exists():
            lines.append(f"| {step.name} | | not done: {step.about} |")
            continue
        found = json.loads(file.read_text())
        lines.append(f"| {step.name} | {found['seconds']:.0f} | {_line(step.name, found)} |")
    write_text(folder / "summary.md", "\n".join(lines) + "\n")


def _line(step: str, found: dict[str, Any]) -> str:
    for word in ("skipped", "failed"):
        if word in found and "tables" not in found:
            return f"{word}: {found[word]}"
    match step:
        case "kernel-tests":
            return str(found["summary"])
        case "ceilings":
            ceilings = found["ceilings"]
            copy, bf16 = ceilings["copy_bytes_per_s"]["median"], ceilings["bf16_flops"]["median"]
            return f"copy {copy / 1e9:,.0f} GB/s, bf16 {bf16 / 1e12:,.3g} TFLOP/s"
        case "table" | "other-tables":
            return "; ".join(
                f"{row['table']}: failed, {row['failed']}"
                if "failed" in row
                else f"{row['table']}: {row['cells']} cells, {row['misses']} misses, interval ±"
                f"{100 * row['median_relative_interval']:.1f} %"
                for row in found["tables"]
            )
        case "composition":
            return f"median absolute error {100 * found['median_absolute_error']:.1f} %"
        case "kernel-comparison":
            return "; ".join(
                f"{row['table']} {row['part']} {row['phase']}: {row['median_ratio']:.2f} times the shipped kernels"
                for row in found["ratios"]
            )
        case "kernel-benchmark":
            ours = [row for row in found["kernels"] if row["implementation"] == "triton"]
            return "; ".join(f"{row['kernel']} {row['share_of_copy']:.2f} of copy" for row in ours)
        case "energy":
            return f"{found['cells']} cells, median {found['median_watts'] or math.nan:.0f} W"
        case _:
            return "; ".join(
                f"{row['pair']}: {100 * row['agree']:.0f} % of {row['cells']} cells agree" for row in found["pairs"]
            )


def _write_json(file: Path, value: dict[str, Any]) -> None:
    write_text(file, json.dumps(value, indent=1))
