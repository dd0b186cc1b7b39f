"""One fresh process of a measurement: `python -m puzzlebench.speed.session RUN_DIR SESSION`.

Loads every model, then lets them generate by turns, in rounds of a new random order each. The first session also checks
the tokens against transformers' own. Progress goes to stdout as JSON lines. What is on disk is not measured again.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from puzzlebench.child.checkpoints import load_causal_lm
from puzzlebench.measuring.device import local_device
from puzzlebench.measuring.rounds import shuffled_rounds
from puzzlebench.measuring.run_directory import RunDirectory
from puzzlebench.measuring.sensors import Sensor, open_sensor
from puzzlebench.measuring.session import OthersShare, main, reading_columns
from puzzlebench.model.catalog import load_model
from puzzlebench.speed.job import prompts_of, read_job
from puzzlebench.speed.results import MODEL_PART, PHASES
from puzzlebench.speed.runners import Runner, Timed, greedy_tokens, open_runner
from puzzlebench.training.precision import DTYPES

_LEAST_ROUNDS: Final = 3
_SHORT_PREFILL_MS: Final = 20.0
"""If any model's is shorter, the prefill of every model is run once, unkept, before it is timed: other models have
driven it out of the caches and of the processor's branch history, which costs a run of 3 to 6 ms about 4 %."""
_WARM_UP: Final = "warm_up"
_LOADING: Final = 0.2  # of a session's share of the progress


def run_session(run: RunDirectory, session: int, tell: Callable[[dict[str, Any]], None]) -> None:
    """Measure one session to its end.

    Args:
        tell: called with what to tell the user: `stage`, `done` and `total`.

    Raises:
        ValueError: the device is not to be had, or a model cannot be loaded or run.
    """
    job = read_job(run.path)
    device = local_device(job["device"])
    on = torch.device(device.torch_name)
    if on.type == "cuda":
        torch.cuda.set_device(on)
    prompts = prompts_of(run.path, on)
    sensor, _ = open_sensor(device.kind, device.index)
    with contextlib.closing(sensor), torch.inference_mode():
        runners = {}
        for place, model in enumerate(job["models"]):
            tell({"stage": "loading", "done": _LOADING * place / len(job["models"]), "total": 1})
            runners[model["label"]] = _load(run, session, job, model, prompts)
        others = OthersShare()
        _time_rounds(run, session, job, runners, sensor, tell, on_gpu=on.type == "cuda")
        share = others.share()
    run.append_event(session, {"event": "finished", "others_share": share})


def _load(run: RunDirectory, session: int, job: dict[str, Any], facts: dict[str, Any], prompts: torch.Tensor) -> Runner:
    """A warm runner; in the first session its tokens are compared."""
    folder, label, decode_len = Path(facts["folder"]), facts["label"], job["scenario"]["decode_len"]
    spec, architecture = load_model(str(folder))
    model = load_causal_lm(folder, dtype=DTYPES[job["precision"]], device=prompts.device)
    known = {event["model"] for event in run.events(session) if event["event"] == "tokens"}
    compare = session == 0 and label not in known
    expected = greedy_tokens(model, prompts, decode_len).cpu() if compare else None
    runner = open_runner(job["engine"], model, spec, architecture, prompts, decode_len)
    tokens = runner.generate().tokens  # which warms it up, too
    if expected is not None:
        agree = float((tokens == expected).float().mean())
        run.append_event(session, {"event": "tokens", "model": label, "agree": agree})
    return runner


def _time_rounds(
    run: RunDirectory,
    session: int,
    job: dict[str, Any],
    runners: dict[str, Runner],
    sensor: Sensor,
    tell: Callable[[dict[str, Any]], None],
    *,
    on_gpu: bool,
) -> None:
    seconds = job["seconds"] / job["sessions"]
    frame = run.samples(session)
    spent, begun = (0.0, 0) if frame.empty else (float(frame["seconds"].max()), run.rounds(session))
    warm_up = _warms_up(run, session, runners)
    started = time.perf_counter()

    def goes_on(number: int) -> bool:
        return spent + time.perf_counter() - started < seconds or number < _LEAST_ROUNDS

    for number, order in shuffled_rounds(sorted(runners), f"{session}.{begun}", goes_on, first=begun):
        rows: list[dict[str, Any]] = []
        reading = sensor.read()
        for label in order:
            if warm_up:
                runners[label].prefill()
            timed = runners[label].generate()
            if on_gpu:
                reading = sensor.read()
            now = spent + time.perf_counter() - started
            rows += _rows(job, label, timed, session, number, now, reading_columns(reading))
        run.write_samples(session, number, rows)
        done = min((spent + time.perf_counter() - started) / seconds, 1.0)
        tell({"stage": "timing", "done": _LOADING + (1 - _LOADING) * done, "total": 1})


def _warms_up(run: RunDirectory, session: int, runners: dict[str, Runner]) -> bool:
    """Whether prefills are run once before they are timed: of all models or of none, or they would not compare, and
    decided once, by the first session, for all sessions.
    """
    decided = [bool(event["prefill"]) for event in run.events(0) if event["event"] == _WARM_UP]
    if decided:
        return decided[0]
    assert session == 0
    warm_up = min(runner.generate().prefill_ms for runner in runners.values()) < _SHORT_PREFILL_MS
    run.append_event(session, {"event": _WARM_UP, "prefill": warm_up})
    return warm_up


def _rows(
    job: dict[str, Any],
    label: str,
    timed: Timed,
    session: int,
    number: int,
    seconds: float,
    sensors: dict[str, Any],
) -> list[dict[str, Any]]:
    """One row per phase, in the columns of a measurement of blocks; decode is of all its steps."""
    taken = dict(zip(PHASES, (timed.prefill_ms, timed.decode_ms, timed.generate_ms), strict=True))
    return [
        {
            "part": MODEL_PART,
            "sub_block": label,
            "phase": phase,
            "batch_size": job["scenario"]["batch_size"],
            "context_len": job["scenario"]["prefill_len"],
            "session": session,
            "round": number,
            "cache": "cold",
            "latency_us": 1e3 * milliseconds,
            "seconds": seconds,
            **sensors,
        }
        for phase, milliseconds in taken.items()
    ]


if __name__ == "__main__":
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    sys.exit(main(run_session))
