"""The folder of one measurement: its plan, a lock, and what every session wrote. Knows no device and no engine.

    plan.json                       what was asked, and on what
    events.<session>.jsonl          one line per thing that happened; a torn last line is passed over
    samples.<session>.<n>.parquet   raw samples, one file per round; whole or absent
    samples.parquet                 all of them, once the measurement is complete

A kill at any moment leaves a folder that the same plan can be resumed in.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pandas as pd

from puzzlebench.files import locked, make_folder, write_text
from puzzlebench.measuring.plan import Plan, plan_to_json, read_plan
from puzzlebench.measuring.workload import Workload

WORKLOAD_COLUMNS: Final = ("part", "sub_block", "phase", "batch_size", "context_len")
SAMPLE_COLUMNS: Final = (
    *WORKLOAD_COLUMNS,
    "session",
    "round",
    "cache",
    "latency_us",
    "seconds",
    "sm_clock_mhz",
    "memory_clock_mhz",
    "temperature_c",
    "power_w",
    "throttle_reasons",
)
_SAME: Final = ("puzzlebench", "device", "torch", "cuda", "triton", "threads")
"""Facts that a run may not change between its start and its resumption; two lent machines differ in smaller ones."""


class RunDirectory:
    """One measurement's folder, opened with `open_run`.

    `lock` is the descriptor that holds the lock; a session inherits it, since it may outlive a parent that is killed.
    """

    def __init__(self, path: Path, lock: int | None = None) -> None:
        self.path, self.lock = path, lock

    @property
    def plan(self) -> Plan:
        """The plan it was opened with."""
        return read_plan(self.path / "plan.json")

    def append_event(self, session: int, event: dict[str, Any]) -> None:
        """Append one line; a kill of this process does not lose it."""
        line = json.dumps(event).encode() + b"\n"
        with (self.path / f"events.{session}.jsonl").open("a+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line  # after one torn by a kill
            file.write(line)

    def events(self, session: int) -> list[dict[str, Any]]:
        """Every whole line of a session, oldest first."""
        try:
            lines = (self.path / f"events.{session}.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):  # torn by a kill
                found.append(json.loads(line))
        return found

    def write_samples(self, session: int, number: int, rows: Sequence[dict[str, Any]]) -> None:
        """Write one round's samples."""
        if rows:
            frame = pd.DataFrame(rows, columns=list(SAMPLE_COLUMNS))
            _write_parquet(frame, self.path / f"samples.{session}.{number:05d}.parquet")

    def samples(self, session: int | None = None) -> pd.DataFrame:
        """Raw samples of a session, or of all of them."""
        merged = self.path / "samples.parquet"
        if merged.exists():
            frame = pd.read_parquet(merged)
            return frame if session is None else frame[frame["session"] == session].reset_index(drop=True)
        pattern = f"samples.{'*' if session is None else session}.*.parquet"
        files = sorted(self.path.glob(pattern))
        if not files:
            return pd.DataFrame(columns=list(SAMPLE_COLUMNS))
        return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)

    def rounds(self, session: int) -> int:
        """Rounds that a session has on disk."""
        return len(list(self.path.glob(f"samples.{session}.*.parquet")))

    def merge_samples(self) -> None:
        """Put all samples into samples.parquet and remove the files of the rounds."""
        merged = self.path / "samples.parquet"
        if not merged.exists():
            _write_parquet(self.samples(), merged)
        for file in self.path.glob("samples.*.*.parquet"):
            file.unlink()


@contextlib.contextmanager
def open_run(path: Path, plan: Plan) -> Iterator[RunDirectory]:
    """Create or resume a measurement; the folder is locked until the end of the block.

    Raises:
        ValueError: another process measures in this folder, it holds a measurement of another plan, or it cannot be
            written to.
    """
    fresh = not path.exists()
    make_folder(path)
    with locked(path / "lock", "is measuring there") as lock:
        _keep_plan(path, plan)
        try:
            yield RunDirectory(path, lock)
        except ValueError:
            if fresh and not list(path.glob("events.*.jsonl")):  # refused before anything was put in place
                shutil.rmtree(path)
            raise


def _keep_plan(path: Path, plan: Plan) -> None:
    """Write the plan, or check that the one there is the same."""
    wanted = json.loads(json.dumps(plan_to_json(plan)))
    file = path / "plan.json"
    if not file.exists():
        write_text(file, json.dumps(wanted, indent=1))
        return
    there = json.loads(json.dumps(plan_to_json(read_plan(file))))
    if different := _first_difference(_stable(there), _stable(wanted)):
        raise ValueError(
            f"{path} holds a measurement with another {different}; give another --run-dir, or remove that folder"
        )


def _stable(plan: dict[str, Any]) -> dict[str, Any]:
    """The plan less what may change between a run and its resumption."""
    fingerprint = {key: value for key, value in plan["fingerprint"].items() if key in _SAME}
    return {**plan, "fingerprint": fingerprint}


def _first_difference(there: Any, wanted: Any, name: str = "") -> str:
    if isinstance(there, dict) and isinstance(wanted, dict):
        for key in {**there, **wanted}:
            if found := _first_difference(there.get(key), wanted.get(key), f"{name}.{key}".lstrip(".")):
                return found
        return ""
    if there == wanted:
        return ""
    if isinstance(there, list):
        return f"{name} (the lists differ)"
    return f"{name} ({there!r}, now {wanted!r})"


def _write_parquet(frame: pd.DataFrame, path: Path) -> None:
    unfinished = path.with_name(f".{path.name}.part")
    frame.to_parquet(unfinished, compression="zstd", index=False)
    os.replace(unfinished, path)


def workload_from_key(key: Any) -> Workload:
    """The workload of a group of samples, from the values of WORKLOAD_COLUMNS."""
    part, sub_block, phase, batch_size, context_len = key
    return Workload(
        part=part, sub_block=sub_block, phase=phase, batch_size=int(batch_size), context_len=int(context_len)
    )


def workload_columns(work: Workload) -> dict[str, Any]:
    """A workload as columns."""
    return asdict(work)
