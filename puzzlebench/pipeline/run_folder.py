"""The folder of a run: where each stage's artefact lies, and run.json, which says what is done. Runs nothing.

run.json      recipe, machine, and of every stage its key, its output's fingerprint and its seconds
recipe.yaml   the whole recipe, defaults too
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import puzzlebench
from puzzlebench.files import write_text

SCHEMA: Final = 1
PARENT_FILE: Final = "parent.json"
_STATE_FILE: Final = "run.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRecord:
    """What is known of a stage.

    Attributes:
        key: digest of what decides its output: settings, and the outputs it is made from.
        output: fingerprint of the output; None where it was begun and not finished.
        seconds: of the run that finished it; None as above.
        resumed: an earlier run of it was interrupted, so that its seconds are not all that it took.
        finished: when, UTC.
    """

    name: str
    key: str
    output: str | None = None
    seconds: float | None = None
    resumed: bool = False
    finished: str | None = None
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFolder:
    """Paths of a run's artefacts."""

    path: Path

    @property
    def parent(self) -> Path:
        """Name, folder and fingerprint of the parent."""
        return self.path / PARENT_FILE

    @property
    def costs(self) -> Path:
        """The cost table."""
        return self.path / "costs.parquet"

    @property
    def library(self) -> Path:
        """The block library."""
        return self.path / "library"

    @property
    def scores(self) -> Path:
        """Score tables, one per metric."""
        return self.path / "scores"

    @property
    def search(self) -> Path:
        """search.json, architecture.json, front.json."""
        return self.path / "search"

    @property
    def architecture(self) -> Path:
        """The best architecture."""
        return self.search / "architecture.json"

    @property
    def child(self) -> Path:
        """The child as the library's blocks make it."""
        return self.path / "child"

    @property
    def distilled(self) -> Path:
        """The child after global distillation."""
        return self.path / "distilled"

    @property
    def evaluation(self) -> Path:
        """Results of realised and distilled child, a folder each."""
        return self.path / "evaluation"

    @property
    def speed(self) -> Path:
        """speed.json and what is behind it."""
        return self.path / "speed"

    @property
    def report(self) -> Path:
        """report.html and pictures."""
        return self.path / "report"

    def read_state(self) -> dict[str, StageRecord]:
        """The stages of run.json by name; none where there is no such file.

        Raises:
            ValueError: the file is another program's, or broken.
        """
        file = self.path / _STATE_FILE
        try:
            data = json.loads(file.read_text())
            if data["schema_version"] != SCHEMA:
                raise ValueError(f"schema {data['schema_version']!r}")
            rows = [*data["stages"], *data["begun"]]
            records = [StageRecord(**row | {"outputs": tuple(row["outputs"])}) for row in rows]
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is no run that can be read ({error}); give another folder") from None
        return {record.name: record for record in records}

    def write_state(
        self, recipe: Mapping[str, Any], machine: Mapping[str, Any], state: Mapping[str, StageRecord]
    ) -> None:
        """Write run.json, whole or not at all."""
        data = {
            "schema_version": SCHEMA,
            "puzzlebench_version": puzzlebench.__version__,
            "created": now(),
            "recipe": recipe,
            "machine": machine,
            "stages": [asdict(record) for record in state.values() if record.output is not None],
            "begun": [asdict(record) for record in state.values() if record.output is None],
        }
        write_text(self.path / _STATE_FILE, json.dumps(data, indent=1) + "\n")


def now() -> str:
    """This second, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def machine_facts() -> dict[str, Any]:
    """What a run ran on."""
    import psutil
    import torch

    from puzzlebench.measuring.device import local_device

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "cpu": local_device("cpu").display_name,
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": gpu,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in ("transformers", "lm_eval", "accelerate")},
    }


def file_digest(*files: Path) -> str | None:
    """SHA-256 over the contents of files; None where one is missing."""
    digest = hashlib.sha256()
    for file in files:
        if not file.is_file():
            return None
        digest.update(file.read_bytes())
    return digest.hexdigest()


def version(name: str) -> str | None:
    """Of an installed distribution; None where it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
