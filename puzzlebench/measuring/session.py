"""One fresh process of a measurement: `python -m puzzlebench.measuring.session RUN_DIR SESSION`.

Puts every workload in place, then times them in rounds, each in a new random order, so that a drift of the machine
falls on all of them alike. A workload is left alone once its interval is narrow enough; the session ends when all are,
or its share of the time is over. What is on disk already is not measured again. Progress goes to stdout as JSON lines.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import scipy.stats  # noqa: F401 (the first interval would otherwise load it in the middle of timing)
import torch

from puzzlebench.measuring.device import local_device
from puzzlebench.measuring.engines import Engine, Prepared, open_engine
from puzzlebench.measuring.memory_probe import Probe, probe_memory
from puzzlebench.measuring.plan import Plan, Planned, bytes_of_run
from puzzlebench.measuring.results import set_aside
from puzzlebench.measuring.rounds import shuffled_rounds, visit
from puzzlebench.measuring.run_directory import WORKLOAD_COLUMNS, RunDirectory, workload_columns, workload_from_key
from puzzlebench.measuring.sensors import Reading, Sensor, open_sensor
from puzzlebench.measuring.statistics import relative_width
from puzzlebench.measuring.stopwatch import CacheState, Stopwatch, energy_per_launch, start_stopwatch
from puzzlebench.measuring.workload import MODEL_PART, Workload
from puzzlebench.model import memory

_LONG_US = 2_000.0
"""A stretch this long is taken once per visit and needs no rewarming."""
_LONG_MODEL_US = 20_000.0
"""The same for a whole model, whose weights the other workloads have driven out of the caches."""
_HOT_EVERY = 4
"""Hot samples are taken in every so many rounds."""
_LEAST_ROUNDS = 4
_LEAST_WIDTH_SAMPLES = 12


def run_session(run: RunDirectory, session: int, report: Callable[[dict[str, Any]], None]) -> None:
    """Measure one session to its end.

    Args:
        report: called with what to tell the user: `stage`, `done` and `total`.

    Raises:
        ValueError: the device or the engine of the plan is not to be had here.
    """
    plan = run.plan
    device = local_device(plan.device)
    on = torch.device(device.torch_name)
    if on.type == "cuda":
        torch.cuda.set_device(on)
    works = [planned.workload for planned in plan.workloads]
    engine = open_engine(
        plan.engine,
        plan.spec,
        plan.precision,
        on,
        max_batch_size=max(work.tokens if work.context_len == 1 else work.batch_size for work in works),
        max_len=max(work.context_len for work in works),
    )
    if plan.models:
        if not hasattr(engine, "models"):
            raise ValueError(f"the {plan.engine} engine builds no whole models; use torch or triton")
        engine.models.update(plan.models)
    sensor, _ = open_sensor(device.kind, device.index)
    with contextlib.closing(sensor), torch.inference_mode(), _clocks(plan, device.index):
        in_place = _put_in_place(run, session, plan, engine, sensor, device.available_bytes, report)
        others = OthersShare()
        _time_rounds(run, session, plan, in_place, sensor, report)
        others_share = others.share()
        if session == 0 and plan.effort.energy_seconds:
            _count_energy(run, session, plan, in_place, sensor, report)
    engine.close()
    run.append_event(session, {"event": "finished", "engine_version": engine.version, "others_share": others_share})


class OthersShare:
    """How much of this machine's processors went to others since it was made, 0 to 1; stolen time included."""

    def __init__(self) -> None:
        self._started, self._busy, self._own = time.perf_counter(), _busy_seconds(), time.process_time()

    def share(self) -> float:
        """The share until now."""
        elapsed = (time.perf_counter() - self._started) * (psutil.cpu_count() or 1)
        others = _busy_seconds() - self._busy - (time.process_time() - self._own)
        return min(max(others / max(elapsed, 1e-9), 0.0), 1.0)


def _busy_seconds() -> float:
    times = psutil.cpu_times()._asdict()
    return float(sum(value for name, value in times.items() if name not in ("idle", "iowait", "guest", "guest_nice")))


def _clocks(plan: Plan, index: int) -> contextlib.AbstractContextManager[object]:
    """Locked clocks where the user asked for them, else nothing."""
    if plan.effort.lock_clocks_mhz is None:
        return contextlib.nullcontext()
    from puzzlebench.measuring.nvml import locked_clocks

    return locked_clocks(index, plan.effort.lock_clocks_mhz)


def _put_in_place(
    run: RunDirectory,
    session: int,
    plan: Plan,
    engine: Engine,
    sensor: Sensor,
    available_bytes: Callable[[], int],
    report: Callable[[dict[str, Any]], None],
) -> dict[Workload, Stopwatch]:
    """Prepare every workload, the largest first so that shared buffers are made once; what fails is written down."""
    refused = {Workload(**event["workload"]) for event in run.events(session) if event["event"] == "miss"}
    probed = {
        Workload(**event["workload"])
        for earlier in range(session + 1)
        for event in run.events(earlier)
        if "peak_bytes" in event
    }
    on_gpu = engine.device.type == "cuda"
    found: dict[Workload, Stopwatch] = {}
    order = sorted(plan.workloads, key=lambda planned: _bytes_held(plan, planned), reverse=True)
    for place, planned in enumerate(order):
        work = workload_columns(planned.workload)
        if planned.workload in refused:
            continue
        report({"stage": "preparing", "done": place, "total": len(order)})
        run.append_event(session, {"event": "attempt", "workload": work})
        try:
            if (needed := _bytes_held(plan, planned)) > (free := available_bytes()):
                raise torch.OutOfMemoryError(f"one copy takes {needed / 2**30:.1f} GiB of {free / 2**30:.1f} free")
            prepared = engine.prepare(planned.workload, copies=planned.copies)
            probe = None if planned.workload in probed else probe_memory(prepared, engine.device)
            stopwatch = start_stopwatch(prepared, engine.device)
        except Exception as error:
            from_triton = type(error).__module__.startswith("triton")  # not RuntimeErrors; nothing has run yet
            if not from_triton and not isinstance(error, MemoryError | RuntimeError | ValueError):
                raise
            if on_gpu and isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
                # A failed capture or an illegal access leaves CUDA unusable: start afresh without this workload.
                traceback.print_exc()
                os.abort()
            run.append_event(session, {"event": "miss", "workload": work, "reason": _reason(error)})
            del error
            _recover()
            continue
        found[planned.workload] = stopwatch
        run.append_event(session, _prepared_event(work, prepared, probe, sensor))
    return found


def _prepared_event(work: dict[str, Any], prepared: Prepared, probe: Probe | None, sensor: Sensor) -> dict[str, Any]:
    facts = {} if probe is None else {**asdict(probe), "process_bytes": sensor.process_memory_bytes()}
    return {
        "event": "prepared",
        "workload": work,
        "copies": prepared.copies,
        "static_bytes": prepared.static_bytes,
        **facts,
    }


def _bytes_held(plan: Plan, planned: Planned) -> int:
    """Bytes of one copy: what has to fit at the least."""
    work = planned.workload
    if work.part != MODEL_PART:
        return bytes_of_run(plan.spec, plan.precision, work)
    model, precision = plan.models[work.sub_block], plan.precision
    weights = memory.model_weight_bytes(plan.spec, model, weight_dtype=precision.weight_dtype)
    return weights + memory.kv_cache_bytes(
        plan.spec,
        model,
        batch_size=work.batch_size,
        context_len=work.context_len,
        kv_dtype=precision.kv_dtype,
    )


def _time_rounds(
    run: RunDirectory,
    session: int,
    plan: Plan,
    in_place: dict[Workload, Stopwatch],
    sensor: Sensor,
    report: Callable[[dict[str, Any]], None],
) -> None:
    seconds = plan.effort.seconds / plan.effort.sessions
    on_gpu = torch.cuda.is_available() and plan.device != "cpu"
    cold, spent, first_round = _on_disk(run, session, in_place)
    active = [work for work in in_place if not _narrow(cold[work], plan.effort.target_width)]
    started = time.perf_counter()

    def goes_on(number: int) -> bool:
        return spent + time.perf_counter() - started < seconds or number < _LEAST_ROUNDS

    for number, order in shuffled_rounds(active, session, goes_on, first=first_round):
        rows: list[dict[str, Any]] = []
        reading = sensor.read()
        for work in order:
            place = {
                **workload_columns(work),
                "session": session,
                "round": number,
                "seconds": spent + time.perf_counter() - started,
            }
            long_us = _LONG_MODEL_US if work.part == MODEL_PART else _LONG_US
            taken = list(_visit(in_place[work], long_us=long_us, with_hot=number % _HOT_EVERY == 0))
            if on_gpu:  # a look at a CPU's sensors costs more than most visits: there, one a round
                reading = sensor.read()
            rows += [{**place, "cache": cache, "latency_us": us, **reading_columns(reading)} for cache, us in taken]
            if not set_aside(reading.throttle_reasons):  # those that count towards the interval
                cold[work] += [us for cache, us in taken if cache == "cold"]
        run.write_samples(session, number, rows)
        active[:] = [work for work in active if not _narrow(cold[work], plan.effort.target_width)]
        elapsed = spent + time.perf_counter() - started
        left = len(active) / max(len(in_place), 1)
        report({"stage": "timing", "done": max(elapsed / seconds, 1 - left), "total": 1})
    for work in in_place:
        by = "interval" if _narrow(cold[work], plan.effort.target_width) else "time limit"
        run.append_event(session, {"event": "stopped", "workload": workload_columns(work), "by": by})


def _visit(stopwatch: Stopwatch, *, long_us: float, with_hot: bool) -> Iterator[tuple[CacheState, float]]:
    """The samples of one visit."""
    cold = visit(stopwatch, "cold", long_us=long_us)
    yield from (("cold", us) for us in cold)
    if with_hot:
        if len(cold) > 1:  # a short one
            stopwatch.sample("hot")
        yield "hot", stopwatch.sample("hot")


def _on_disk(
    run: RunDirectory, session: int, in_place: dict[Workload, Stopwatch]
) -> tuple[dict[Workload, list[float]], float, int]:
    """(cold samples so far, seconds spent, next round) of an interrupted session."""
    cold: dict[Workload, list[float]] = {work: [] for work in in_place}
    frame = run.samples(session)
    if frame.empty:
        return cold, 0.0, 0
    slowed = frame["throttle_reasons"].map(lambda reasons: set_aside(reasons.split(",")))
    counted = frame[(frame["cache"] == "cold") & ~slowed]
    for key, rows in counted.groupby(list(WORKLOAD_COLUMNS), sort=False):
        cold.setdefault(workload_from_key(key), []).extend(rows["latency_us"].tolist())
    return cold, float(frame["seconds"].max()), run.rounds(session)


def _narrow(samples: list[float], target: float) -> bool:
    return len(samples) >= _LEAST_WIDTH_SAMPLES and relative_width(np.array(samples)) <= target


def _count_energy(
    run: RunDirectory,
    session: int,
    plan: Plan,
    in_place: dict[Workload, Stopwatch],
    sensor: Sensor,
    report: Callable[[dict[str, Any]], None],
) -> None:
    counted = {Workload(**event["workload"]) for event in run.events(session) if event["event"] == "energy"}
    for place, (work, stopwatch) in enumerate(in_place.items()):
        columns = workload_columns(work)
        if work in counted:
            continue
        report({"stage": "energy", "done": place, "total": len(in_place)})
        energy = energy_per_launch(stopwatch, lambda: sensor.read().energy_mj, seconds=plan.effort.energy_seconds)
        if np.isfinite(energy):
            run.append_event(session, {"event": "energy", "workload": columns, "energy_mj": energy})


def reading_columns(reading: Reading) -> dict[str, Any]:
    """A look at the sensors as columns of samples."""
    return {
        "sm_clock_mhz": reading.sm_clock_mhz,
        "memory_clock_mhz": reading.memory_clock_mhz,
        "temperature_c": reading.temperature_c,
        "power_w": reading.power_w,
        "throttle_reasons": ",".join(reading.throttle_reasons),
    }


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return f"out of memory: {text}"
    return text or type(error).__name__


def _recover() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(session: Callable[[RunDirectory, int, Callable[[dict[str, Any]], None]], None] = run_session) -> int:
    """Run the session that the command line names; returns the exit code."""
    run = RunDirectory(Path(sys.argv[1]))
    try:
        session(run, int(sys.argv[2]), lambda progress: print(json.dumps(progress), flush=True))
    except ValueError as error:
        print(json.dumps({"error": " ".join(str(error).split())}), flush=True)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
