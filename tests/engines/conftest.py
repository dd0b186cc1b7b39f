"""Engines by the interpreters that have them, samples to run in them, and the table that comes of it.

PUZZLEBENCH_VLLM_PYTHON, PUZZLEBENCH_LLAMA_CPP_PYTHON: interpreters with vllm and llama-cpp-python; without one its
tests are skipped. transformers is that of this interpreter, or of PUZZLEBENCH_TRANSFORMERS_PYTHON.
PUZZLEBENCH_WRITE_DOCS: write the table into docs/engines.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from . import table

VARIABLES = {
    "transformers": "PUZZLEBENCH_TRANSFORMERS_PYTHON",
    "vllm": "PUZZLEBENCH_VLLM_PYTHON",
    "vllm+plugin": "PUZZLEBENCH_VLLM_PYTHON",
    "llama_cpp": "PUZZLEBENCH_LLAMA_CPP_PYTHON",
}
_PLUGIN = "from importlib.metadata import entry_points as e; print(*(p.name for p in e(group='vllm.general_plugins')))"


@pytest.fixture(scope="session")
def rows():
    """One for every sample, format and engine that was run; they become the table at the end."""
    found: list[table.Row] = []
    yield found
    if found:
        print("\n" + "\n".join(table.lines(found)))
    if os.environ.get("PUZZLEBENCH_WRITE_DOCS"):
        table.write(found, Path(__file__).parents[2] / "docs" / "engines.md")


@pytest.fixture(scope="session")
def samples(tmp_path_factory):
    from ..exporting.samples import make_samples

    return {sample.name: sample for sample in make_samples(tmp_path_factory.mktemp("samples"))}


@pytest.fixture(scope="session")
def exports(tmp_path_factory):
    """Where exports go; each is written once."""
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="session")
def plugins():
    """Names of the plugins that an interpreter's vLLM finds."""
    known: dict[str, list[str]] = {}

    def ask(python: str) -> list[str]:
        if python not in known:
            done = subprocess.run([python, "-c", _PLUGIN], capture_output=True, text=True, timeout=60, check=True)
            known[python] = done.stdout.split()
        return known[python]

    return ask


@pytest.fixture
def python_of(plugins, monkeypatch):
    """The interpreter of an engine, its environment set; skips where there is none."""

    def find(engine: str) -> Path:
        stated = os.environ.get(VARIABLES[engine])
        if stated is None and engine != "transformers":
            pytest.skip(f"no {engine}: {VARIABLES[engine]} names no interpreter")
        python = stated or sys.executable
        if engine == "vllm+plugin" and "puzzlebench" not in plugins(python):
            pytest.skip(f"puzzlebench is not installed beside vLLM in {python}, so its plugin is not there")
        if engine.startswith("vllm"):
            monkeypatch.setenv("VLLM_PLUGINS", "puzzlebench" if engine == "vllm+plugin" else "")
        return Path(python)

    return find
