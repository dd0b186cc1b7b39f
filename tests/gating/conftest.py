"""A checkout whose suite takes milliseconds: its sessions write times that its own code states, and a little noise."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SESSION = """
import json, os, random, sys
from pathlib import Path
import puzzlebench
from puzzlebench.costs import COSTS

file, request = Path(sys.argv[1]), json.loads(sys.argv[2])
print(json.dumps({"from": str(Path(puzzlebench.__file__).parents[1])}), flush=True)
if COSTS.get("error"):
    print(json.dumps({"error": COSTS["error"]}), flush=True)
    sys.exit(2)
print(json.dumps({"stage": "timing", "done": 1, "total": 1}), flush=True)
slow = dict(part.split("=") for part in os.environ.get("PUZZLEBENCH_BENCH_SLOW", "").split(",") if part)
cells, turn = {}, len(list(file.parent.glob("*.json")))
for name, cost in COSTS["cells"].items():
    draw = random.Random(f"{name} {file.parent.name} {file.name}")
    median = cost * (1 + 0.002 * draw.gauss(0, 1)) * float(slow.get(name, 1))
    cells[name] = {"unit": "us", "median": median, "low": median * 0.999, "high": median * 1.001, "samples": 9,
                   "taken": 9, "visits": [[median]]}
session = {"session": request["session"], "started": f"2026-01-01T00:00:00.{turn:03d}", "seconds": request["seconds"],
           "others_share": 0.0, "set_aside_share": 0.0, "throttled_share": 0.0,
           "cells": cells if request["seconds"] else {}}
file.write_text(json.dumps({
    "schema_version": 1, "puzzlebench_version": "0", "skipped": COSTS.get("skipped", {}),
    "slowed": {name: float(factor) for name, factor in slow.items()}, "session": session,
    "fingerprint": {"device": "made_up", "display_name": "made up", "threads": 1, "torch": "0", "git_commit": None},
}))
"""
CELLS = {f"block/cell_{number}": 100.0 + number for number in range(14)}


class Checkout:
    """A git repository with the package in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def costs(self, **stated: object) -> None:
        self.write("puzzlebench/costs.py", f"COSTS = { ({'cells': CELLS} | stated)!r}\n")

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        command = ["git", "-C", str(self.root), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self) -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "change")
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    one = Checkout(tmp_path / "checkout")
    one.write("puzzlebench/__init__.py", "")
    one.write("puzzlebench/benching/__init__.py", "")
    one.write("puzzlebench/benching/session.py", SESSION)
    one.write("pyproject.toml", '[project]\nname = "puzzlebench"\ndependencies = ["numpy"]\n')
    one.write(".gitignore", "*.log\n")
    one.costs()
    one.git("init", "-q", "-b", "main")
    one.commit()
    return one


@pytest.fixture
def stages() -> tuple[list[str], Callable[[float, str], None]]:
    said: list[str] = []
    return said, lambda _share, stage: said.append(stage)
