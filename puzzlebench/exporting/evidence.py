"""What is known of a child: reads search.json, retention.json, speed.json and distillation.json of a run or one by one.

Refuses what is of another child. Runs nothing, computes nothing anew, and knows no card.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from puzzlebench.exporting.evidence_parsing import (
    Child,
    parse_distillation,
    parse_retention,
    parse_search,
    parse_speed,
)
from puzzlebench.exporting.evidence_values import (
    PHASES,
    DistillationEvidence,
    Evidence,
    RetentionEvidence,
    SearchEvidence,
    SpeedEvidence,
    TaskKept,
)
from puzzlebench.parent.fingerprint import checkpoint_fingerprint

if TYPE_CHECKING:
    from puzzlebench.exporting.source import ExportSource

__all__ = [
    "PHASES",
    "DistillationEvidence",
    "Evidence",
    "EvidenceFiles",
    "RetentionEvidence",
    "SearchEvidence",
    "SpeedEvidence",
    "TaskKept",
    "read_evidence",
]

SCHEMA_VERSION: Final = 1
Parsed = TypeVar("Parsed")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvidenceFiles:
    """Where to read; None is not there. A file given by name takes the place of the run's own.

    Attributes:
        run: folder of a `puzzlebench run`.
        search, retention, speed, distillation: search.json and so on.
    """

    run: Path | None = None
    search: Path | None = None
    retention: Path | None = None
    speed: Path | None = None
    distillation: Path | None = None


def read_evidence(files: EvidenceFiles, source: ExportSource | None = None) -> Evidence:
    """Read the files there are.

    Args:
        source: the child that all must be of; None checks nothing.

    Raises:
        ValueError: a file is not there, of another schema version or broken, or of another child.
    """
    child = _child(source)
    run = None if files.run is None else _open_run(files.run, source)
    if run is not None:
        child = replace(child, same_architecture=child.same_architecture | run.fingerprints)

    def read(given: Path | None, own: str | None, parse: Callable[[Mapping[str, Any], Path], Parsed]) -> Parsed | None:
        path = given if given is not None or run is None or own is None else run.find(own, child.notes)
        return None if path is None else _read_document(path, lambda stated: parse(stated, path))

    realised = run is not None and run.role == "child"
    search = read(files.search, "search/search.json", lambda stated, _: parse_search(stated, child))
    trained = read(
        files.distillation,
        None if realised else "distilled/distillation.json",
        lambda stated, _: parse_distillation(stated, child),
    )
    kept = read(
        files.retention,
        "evaluation/realised/retention.json" if realised else "evaluation/distilled/retention.json",
        lambda stated, _: parse_retention(stated, child),
    )
    if kept is not None and not realised and files.retention is None:
        anyone = Child()  # the realised child: other weights, by design
        before = read(None, "evaluation/realised/retention.json", lambda stated, _: parse_retention(stated, anyone))
        kept = kept if before is None else replace(kept, before=before.overall)
    speed = read(
        files.speed,
        "speed/speed.json",
        lambda stated, path: parse_speed(stated, child, path.parent / "run" / "job.json"),
    )
    return Evidence(search=search, retention=kept, speed=speed, distillation=trained, notes=tuple(child.notes))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """A run's folder.

    Attributes:
        finished: names of its finished stages; None where it has no run.json.
        role: which of its checkpoints the source is; None without a source.
        fingerprints: of its checkpoints, which all have one architecture.
    """

    folder: Path
    finished: frozenset[str] | None
    role: str | None
    fingerprints: frozenset[str]

    def find(self, inside: str, notes: list[str]) -> Path | None:
        """A file of a finished stage, or None; why a file that is there is passed over goes to the notes."""
        path = self.folder / inside
        if not path.is_file():
            return None
        if self.finished is not None and _STAGES[inside.partition("/")[0]] not in self.finished:
            notes.append(f"{inside} is of a stage that the run has not finished, and was passed over.")
            return None
        return path


_STAGES: Final = {"search": "search", "distilled": "distil", "evaluation": "evaluate", "speed": "speed"}
"""The stage that writes into each folder of a run."""


def _open_run(folder: Path, source: ExportSource | None) -> _Run:
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder of a run")
    finished = None
    if (folder / "run.json").exists():
        finished = _read_document(
            folder / "run.json", lambda stated: frozenset(str(stage["name"]) for stage in stated["stages"])
        )
    found = {name: _fingerprint(folder / name) for name in ("distilled", "child")}
    fingerprints = frozenset(value for value in found.values() if value is not None)
    role = None
    if source is not None:
        role = next((name for name, value in found.items() if value == source.fingerprint), None)
        if role is None:
            raise ValueError(
                f"{folder} is not the run of {source.folder}: its folders distilled and child hold other weights; "
                "give the files of this child one by one"
            )
    return _Run(folder=folder, finished=finished, role=role, fingerprints=fingerprints)


def _child(source: ExportSource | None) -> Child:
    if source is None:
        return Child()
    parent = (source.solution or {}).get("parent_fingerprint")
    own = frozenset({source.fingerprint})
    return Child(
        name=source.folder.resolve().name,
        architecture=source.architecture,
        parent_fingerprint=None if parent is None else str(parent),
        same_weights=own,
        same_architecture=own,
    )


def _fingerprint(folder: Path) -> str | None:
    return checkpoint_fingerprint(folder) if (folder / "config.json").is_file() else None


def _read_document(path: Path, parse: Callable[[Mapping[str, Any]], Parsed]) -> Parsed:
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a JSON file that can be read: {error}") from None
    version = stated.get("schema_version") if isinstance(stated, dict) else None
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise ValueError(f"{path} has schema version {version!r}; this version reads {SCHEMA_VERSION}")
    try:
        return parse(stated)
    except KeyError as error:
        raise ValueError(f"{path} lacks {error.args[0]!r}; run its stage again") from None
    except (TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is not as its stage writes it: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
