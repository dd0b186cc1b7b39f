"""Results that lm-eval wrote: the JSON with the aggregates, and the samples of each task beside it.

Reads what `lm-eval --output_path FOLDER --log_samples` leaves behind, and what this package keeps in the same format.
Computes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

OWN_KEY: Final = "puzzlebench"
"""Where this package notes in a result which run it is of."""
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")  # a backend's own model goes by its name instead
_DATED: Final = re.compile(r"_(\d{4}-\d\d-\d\dT[\d.-]+)\.json$")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTask:
    """One task in a result.

    Attributes:
        name: of the task, or group.
        header: the whole result but its tasks: versions, model and settings.
        aggregates: by "metric,filter", and the standard errors and counts beside them.
        config: the task's own.
        better: whether higher is better, by metric; None where lm-eval does not say.
        samples: the file with a line per document and filter; None of groups.
        children: of groups.
    """

    name: str
    file: Path
    header: dict[str, Any]
    aggregates: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    version: Any = None
    shots: Any = None
    better: dict[str, bool | None] = field(default_factory=dict)
    samples: Path | None = None
    children: tuple[str, ...] = ()

    @property
    def metrics(self) -> list[str]:
        """Its metrics as "metric,filter", in the order of the result."""
        return [key for key in self.aggregates if "," in key and "_stderr," not in key]


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One model's results.

    Attributes:
        name: of the model.
        source: where the results are from: a model's folder or name, or a file or folder of results.
    """

    name: str
    source: str
    tasks: dict[str, StoredTask]

    @property
    def fingerprint(self) -> str | None:
        """Of the weights; None where the results do not say, or differ."""
        found = {(task.header.get(OWN_KEY) or {}).get("model") for task in self.tasks.values()}
        stated = found.pop() if len(found) == 1 else None
        return stated if isinstance(stated, str) and _FINGERPRINT.fullmatch(stated) else None

    def task(self, name: str) -> StoredTask:
        """One task or group; ValueError where there is none of that name."""
        if name not in self.tasks:
            raise ValueError(f"the results in {self.source} have no task {name}; they have {', '.join(self.tasks)}")
        return self.tasks[name]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What a model got on a document, through one filter."""

    document: int
    document_hash: str
    prompt_hash: str
    requests: int
    values: dict[str, Any]


def is_stored(path: Path) -> bool:
    """Whether a path is of results and not of a model: a JSON file, or a folder with dated results and no config."""
    if path.is_file():
        return path.suffix == ".json"
    return path.is_dir() and not (path / "config.json").exists() and bool(_result_files(path))


def read_side(
    path: Path, *, keys: Collection[str] | None = None, source: str | None = None, name: str | None = None
) -> Side:
    """The newest result of each task in a file, or in a folder and those below it.

    Args:
        keys: take only results of these runs, as noted under `OWN_KEY`; there may be none.
        source, name: instead of the path and of what the result calls the model.

    Raises:
        ValueError: there are no results, they are of several models, or they cannot be read.
    """
    files = [path] if path.is_file() else _result_files(path)
    if keys is None and not files:
        raise ValueError(f"{path}: no results of lm-eval; it writes results_*.json with --output_path")
    if keys is None and len(folders := sorted({file.parent for file in files})) > 1:
        shown = ", ".join(str(folder) for folder in folders[:4])
        raise ValueError(f"{path} holds results of several models; give one of {shown}")
    tasks: dict[str, StoredTask] = {}
    for file in files:  # newest last
        stated = _read_result(file)
        if keys is None or stated.get(OWN_KEY, {}).get("key") in keys:
            tasks.update(_tasks_of(stated, file))
    headers = [task.header for task in tasks.values()]
    called = (headers[-1].get("model_name") if headers else None) or path.name
    return Side(name=name or str(called), source=source or str(path), tasks=tasks)


def read_samples(task: StoredTask, metric: str) -> dict[int, Sample]:
    """What the model got on every document of a task, by document id, through a metric's filter.

    Raises:
        ValueError: the samples were not kept, or the file is damaged.
    """
    _, _, chosen = metric.partition(",")
    if task.samples is None or not task.samples.is_file():
        raise ValueError(f"{task.file}: no samples of {task.name} beside it; run lm-eval with --log_samples")
    found = {}
    try:
        with task.samples.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                if row.get("filter", "none") == chosen:
                    found[int(row["doc_id"])] = Sample(
                        document=int(row["doc_id"]),
                        document_hash=str(row["doc_hash"]),
                        prompt_hash=str(row["prompt_hash"]),
                        requests=len(row["arguments"]),
                        values={name: row[name] for name in row["metrics"] if name in row},
                    )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{task.samples} is damaged: {type(error).__name__}: {error}") from None
    return found


def _result_files(folder: Path) -> list[Path]:
    """Results in a folder and those below it, by date; what is hidden is not finished."""
    files = [
        file
        for file in folder.rglob("*.json")
        if _DATED.search(file.name) and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    return sorted(files, key=lambda file: (_date(file), file.name))


def _date(file: Path) -> str:
    found = _DATED.search(file.name)
    return found[1] if found else ""


def _read_result(file: Path) -> dict[str, Any]:
    try:
        stated = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is not a result that can be read: {error}") from None
    if not isinstance(stated, dict) or not isinstance(stated.get("results"), dict) or "configs" not in stated:
        raise ValueError(f"{file} is not a result of lm-eval: it has no results and configs")
    return stated


def _tasks_of(stated: dict[str, Any], file: Path) -> dict[str, StoredTask]:
    parts = ("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
    header = {key: value for key, value in stated.items() if key not in parts}
    children: dict[str, list[str]] = stated.get("group_subtasks") or {}
    tasks = {}
    for name, aggregates in stated["results"].items():
        config = stated["configs"].get(name)
        inner = tuple(children.get(name) or ())
        if config is None and not inner:
            continue
        samples = file.parent / f"samples_{name}_{_date(file)}.jsonl"
        tasks[name] = StoredTask(
            name=name,
            file=file,
            header=header,
            aggregates=aggregates,
            config=config or {},
            version=(stated.get("versions") or {}).get(name),
            shots=(stated.get("n-shot") or {}).get(name),
            better=(stated.get("higher_is_better") or {}).get(name) or {},
            samples=None if config is None else samples,
            children=() if config is not None else inner,
        )
    return tasks
