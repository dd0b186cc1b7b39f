"""One fresh process of the suite: `python -m puzzlebench.benching.session FILE REQUEST`, REQUEST being JSON.

Puts every chosen benchmark in place, times them in rounds, each in a new random order, and writes FILE whole or not at
all. Progress goes to stdout as JSON lines, an error as one with `error`. This command line and the file are all that
two revisions of the project need to agree on to be measured by one gate.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import puzzlebench
from puzzlebench.benching.cells import calm_cells
from puzzlebench.benching.suite import Benchmark, choose, matching, missing
from puzzlebench.errors import first_line
from puzzlebench.files import write_text

if TYPE_CHECKING:
    from puzzlebench.measuring.device import Device
    from puzzlebench.measuring.engines import Prepared
    from puzzlebench.measuring.sensors import Sensor
    from puzzlebench.measuring.stopwatch import Stopwatch

Tell: TypeAlias = Callable[[dict[str, Any]], None]

SESSION_SCHEMA: Final = 1
SLOW_VARIABLE: Final = "PUZZLEBENCH_BENCH_SLOW"
"""`PATTERN=FACTOR,PATTERN=FACTOR`: these cells really take so many times as long, by waiting busily after each run."""
_LONG_US: Final = 2_000.0
_TURN_US: Final = 5_000.0
"""A run that takes longer has its turn in every second, third, ... round only: short ones need more looks."""
_LEAST_VISITS: Final = 2
_COMPANIONS: Final = ("puzzlebench_kernels", "puzzlebench_profiles", "puzzlebench_search")
_SUITE_FILES: Final = ("suite.py", "workloads.py")
_GOVERNOR: Final = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_PACKAGES: Final = ("scipy", "pandas", "highspy", "pulp")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a session is asked for.

    Attributes:
        only: patterns of names, see `suite.choose`.
        seconds: of timing; 0 puts everything in place and times nothing.
        session: its number, which seeds the orders.
        device: local, cpu, cuda or cuda:N.
    """

    only: tuple[str, ...] = ()
    seconds: float = 3.0
    session: int = 0
    device: str = "local"

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        if not 0 <= self.seconds < float("inf"):
            raise ValueError(f"seconds must be 0 or more, not {self.seconds}")

    def to_json(self) -> str:
        """One line; the inverse of `read_request`."""
        return json.dumps(asdict(self))


def read_request(text: str) -> Request:
    """The request in a line of JSON.

    Raises:
        ValueError: it is not one, or asks for what this version does not know.
    """
    asked = json.loads(text)
    if unknown := sorted(set(asked) - {field.name for field in fields(Request)}):
        raise ValueError(f"a session of puzzlebench {puzzlebench.__version__} does not know {unknown[0]!r}")
    return Request(**{**asked, "only": tuple(asked.get("only", ()))})


def run_session(request: Request, tell: Tell, *, slow: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Measure; what goes into the session's file, raw samples included.

    Args:
        tell: called with what to tell the user: `stage`, `done` and `total`.
        slow: patterns of names to how many times as long they are to take.

    Raises:
        ValueError: a pattern matches nothing, or the device is not to be had.
    """
    from puzzlebench.measuring.device import local_device
    from puzzlebench.measuring.sensors import open_sensor

    benchmarks = choose(request.only)
    device = local_device(request.device)
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    sensor, _ = open_sensor(device.kind, device.index)
    with contextlib.closing(sensor):
        in_place, skipped = _put_in_place(benchmarks, device, slow or {}, tell)
        if not in_place:
            name, reason = next(iter(skipped.items()))
            raise ValueError(f"nothing can be measured on {device.torch_name}; {name} {reason}")
        taken = _time_rounds(request, in_place, device, sensor, tell)
    return {
        "schema_version": SESSION_SCHEMA,
        "puzzlebench_version": puzzlebench.__version__,
        "fingerprint": bench_fingerprint(device),
        "code": code_digest(),
        "skipped": skipped,
        "slowed": dict(slow or {}),
        "session": {"session": request.session, "started": started, **taken},
    }


def bench_fingerprint(device: Device) -> dict[str, Any]:
    """`measuring.device.fingerprint`, and what else decides the suite's times: further packages, the CPU's governor,
    the cores this process may use, and a digest of the suite itself. A GPU's power cap and driver are in its `gpu`.
    """
    import importlib.metadata

    from puzzlebench.measuring.device import fingerprint

    found = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    governor = _GOVERNOR.read_text().strip() if _GOVERNOR.exists() else None
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    suite = _digest(Path(__file__).parent / name for name in _SUITE_FILES)
    return {**fingerprint(device), **found, "governor": governor, "affinity": affinity, "suite": suite}


def code_digest() -> str:
    """Of the Python files of all our packages: what tells code under measurement that was edited meanwhile."""
    specs = [importlib.util.find_spec(name) for name in ("puzzlebench", *_COMPANIONS) if name not in _barred()]
    folders = [Path(spec.origin).parent for spec in specs if spec is not None and spec.origin]
    return _digest(path for folder in folders for path in sorted(folder.rglob("*.py")))


def _digest(files: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for file in files:
        found.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()[:12]


def _barred() -> list[str]:
    return [name for name in _COMPANIONS if name in sys.modules and sys.modules[name] is None]


def _bar_packages_from_elsewhere() -> None:
    """Our other packages come from where this one does, or not at all: an older checkout that lacks one would be
    measured with whatever version is installed. Benchmarks that need it fail, and say so.
    """
    root = Path(puzzlebench.__file__).parents[1].resolve()
    for name in _COMPANIONS:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin and not Path(spec.origin).resolve().is_relative_to(root):
            sys.modules[name] = None  # type: ignore[assignment]  # Python's way to say that it cannot be imported


def parse_slow(text: str) -> dict[str, float]:
    """`search/*=1.05,decode=1.1` as patterns and factors.

    Raises:
        ValueError: it is not that, or a factor is below 1.
    """
    found: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        pattern, _, factor = part.rpartition("=")
        try:
            found[pattern] = float(factor)
        except ValueError:
            raise ValueError(f"{SLOW_VARIABLE} is PATTERN=FACTOR,..., not {text!r}") from None
        if not pattern or not 1 <= found[pattern] < float("inf"):
            raise ValueError(f"{SLOW_VARIABLE}: {part!r} is no pattern with a factor of at least 1")
    return found


@dataclass(kw_only=True, slots=True)
class _Slowed:
    """Work that is followed by busy waiting for a share of the time it took itself."""

    work: Prepared
    factor: float
    copies: int
    static_bytes: int

    def run(self, copy: int) -> None:
        started = time.perf_counter_ns()
        self.work.run(copy)
        end = started + (time.perf_counter_ns() - started) * self.factor
        while time.perf_counter_ns() < end:
            pass


def _put_in_place(
    benchmarks: Sequence[Benchmark], device: Device, slow: Mapping[str, float], tell: Tell
) -> tuple[dict[Benchmark, Stopwatch], dict[str, str]]:
    """Warm stopwatches, and why the others have none. Whatever a benchmark raises is its own fault, not the suite's."""
    found: dict[Benchmark, Stopwatch] = {}
    skipped: dict[str, str] = {}
    names = [benchmark.name for benchmark in benchmarks]
    factors = {name: factor for pattern, factor in slow.items() for name in matching(pattern, names)}
    for place, benchmark in enumerate(benchmarks):
        tell({"stage": "preparing", "done": place, "total": len(benchmarks)})
        if reason := missing(benchmark, device):
            skipped[benchmark.name] = reason
            continue
        try:
            found[benchmark] = _stopwatch(benchmark, device, factors.get(benchmark.name, 1.0))
        except Exception as error:
            skipped[benchmark.name] = f"failed: {type(error).__name__}: {first_line(error)}"
    return found, skipped


def _stopwatch(benchmark: Benchmark, device: Device, factor: float) -> Stopwatch:
    import torch

    from puzzlebench.measuring.stopwatch import CpuStopwatch, start_stopwatch

    on = torch.device(device.torch_name)
    work = benchmark.prepare(device)
    if benchmark.on != "cuda":
        if factor > 1:
            work = _Slowed(work=work, factor=factor, copies=work.copies, static_bytes=work.static_bytes)
        return CpuStopwatch(work)
    stopwatch = start_stopwatch(work, on)
    return stopwatch if factor == 1 else start_stopwatch(_waiting_on_gpu(work, stopwatch, factor, on), on)


def _waiting_on_gpu(work: Prepared, plain: Stopwatch, factor: float, device: Any) -> Prepared:
    """The same for work that is captured in a graph: the device waits, for a number of its own clocks."""
    import torch

    from puzzlebench.benching.workloads import Ready
    from puzzlebench.measuring.stopwatch import start_stopwatch

    sleep: Any = torch.cuda._sleep
    probe = 1_000_000
    clocks_per_us = probe / start_stopwatch(Ready(launch=lambda _copy: sleep(probe)), device).sample("hot")
    clocks = round((factor - 1) * plain.sample("cold") * clocks_per_us)

    def launch(copy: int) -> None:
        work.run(copy)
        sleep(clocks)

    return Ready(launch=launch, copies=work.copies, static_bytes=work.static_bytes)


def _time_rounds(
    request: Request, in_place: dict[Benchmark, Stopwatch], device: Device, sensor: Sensor, tell: Tell
) -> dict[str, Any]:
    """Rounds until the time is over: the cells, and what the machine did meanwhile."""
    from puzzlebench.measuring.results import set_aside
    from puzzlebench.measuring.rounds import shuffled_rounds, visit
    from puzzlebench.measuring.session import OthersShare

    samples: dict[str, list[list[float]]] = {benchmark.name: [] for benchmark in in_place}
    slow_clock: dict[str, list[list[float]]] = {benchmark.name: [] for benchmark in in_place}
    every = {one: max(1, round(stopwatch.sample(one.cache) / _TURN_US)) for one, stopwatch in in_place.items()}
    throttled = readings = 0
    others, started = OthersShare(), time.perf_counter()

    def goes_on(number: int) -> bool:
        if request.seconds == 0:
            return False
        return number < _LEAST_VISITS * max(every.values()) or time.perf_counter() - started < request.seconds

    for number, order in shuffled_rounds(list(in_place), f"{request.session}", goes_on):
        for benchmark in order:
            if (number + len(benchmark.name)) % every[benchmark]:  # not all long ones in one round
                continue
            values = visit(in_place[benchmark], benchmark.cache, long_us=_LONG_US)
            if device.kind == "cuda":
                readings += 1
                if set_aside(sensor.read().throttle_reasons):
                    throttled += 1
                    slow_clock[benchmark.name].append(values)
                    continue
            samples[benchmark.name].append(values)
        done = (time.perf_counter() - started) / request.seconds
        tell({"stage": "timing", "done": min(done, 1.0), "total": 1, "round": number})
    on_gpu = {benchmark.name for benchmark in in_place if benchmark.on == "cuda"}
    reading, cells = sensor.read(), dict(calm_cells(samples, slow_clock, on_gpu))
    taken = sum(one["taken"] for one in cells.values())
    return {
        "seconds": time.perf_counter() - started,
        "others_share": others.share(),
        "throttled_share": throttled / readings if readings else 0.0,
        "sm_clock_mhz": _or_none(reading.sm_clock_mhz),
        "temperature_c": _or_none(reading.temperature_c),
        "set_aside_share": 1 - sum(one["samples"] for one in cells.values()) / max(taken, 1),
        "cells": cells,
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value  # JSON has no NaN


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the session that the command line asks for; returns the exit code."""
    file, request = sys.argv[1:] if arguments is None else arguments

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), flush=True)

    try:
        say({"from": str(Path(puzzlebench.__file__).parents[1])})
        _bar_packages_from_elsewhere()
        slow = parse_slow(os.environ.get(SLOW_VARIABLE, ""))
        write_text(Path(file), json.dumps(run_session(read_request(request), say, slow=slow)))
    except ValueError as error:
        say({"error": " ".join(str(error).split())})
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
