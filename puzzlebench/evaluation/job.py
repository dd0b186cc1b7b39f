"""Evaluate a parent and a child on the same tasks, and say what the child keeps. Knows no command line."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import puzzlebench
from puzzlebench.evaluation.bundled import BUNDLED, GROUP, bundled_folder
from puzzlebench.evaluation.models import Backend, find_model
from puzzlebench.evaluation.records import Retention, retention_json
from puzzlebench.evaluation.retention import compare
from puzzlebench.evaluation.running import Settings, run_side
from puzzlebench.evaluation.stored import Side, is_stored, read_side
from puzzlebench.files import locked, make_folder, write_text
from puzzlebench.model.checks import require_positive_int
from puzzlebench.parent.embedded import cache_folder
from puzzlebench.text.corpus import Split

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalJob:
    """What to evaluate, on what and where to.

    Attributes:
        parent, child: a model by name or folder, or results that lm-eval wrote, a file or folder.
        out: folder of retention.json and of each side's results.
        tasks: of lm-eval, groups included; `bundled` are the three that need no download. May be empty where both
            sides are results.
        include_path: a folder of task files of one's own.
        limit: documents of each task; None: all.
        num_fewshot: examples before each document; None: each task's own number.
        batch_size: requests at a time, or what the backend knows, such as auto.
        backend: a model type of lm-eval for both sides; None: transformers with puzzlebench's loader.
        backend_arguments: for it, see `Backend`.
        metrics: by task, instead of the main one.
        split: of the bundled tasks; results are reported on test, choices made on validation.
    """

    parent: str
    child: str
    out: Path
    tasks: tuple[str, ...] = (GROUP,)
    include_path: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int | str = 16
    device: str = "cpu"
    precision: str = "fp32"
    seed: int = 1234
    apply_chat_template: bool = False
    backend: str | None = None
    backend_arguments: str = ""
    metrics: dict[str, str] = field(default_factory=dict)
    split: Split = "test"

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        if self.limit is not None:
            require_positive_int("limit", self.limit)
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise ValueError(f"num_fewshot must be 0 or more, not {self.num_fewshot}")
        if self.backend is None and self.backend_arguments:
            raise ValueError("arguments for a backend need a backend, such as vllm")


def run_eval_job(job: EvalJob, *, progress: Callable[[float, str], None] = lambda _share, _stage: None) -> Retention:
    """Run what is not there yet of both sides, compare them, and write retention.json.

    Raises:
        ValueError: a model, task or result does not fit, or the folder cannot be written to.
    """
    sides = (("parent", job.parent), ("child", job.child))
    to_run = [which for which, name in sides if not is_stored(Path(name).expanduser())]
    tasks = tuple(dict.fromkeys(one for task in job.tasks for one in (BUNDLED if task == GROUP else (task,))))
    if to_run and not tasks:
        raise ValueError(f"say which tasks the {to_run[0]} is evaluated on: --tasks {GROUP}, or names of lm-eval")
    # What is not there is said before anything runs.
    backend = _backend(job)
    models = {which: find_model(name, backend) for which, name in sides if which in to_run}
    found = {which: read_side(Path(name).expanduser()) for which, name in sides if which not in to_run}
    make_folder(job.out)
    with locked(job.out / ".lock", "evaluates"):
        for number, which in enumerate(to_run):

            def report(done: float, stage: str, number: int = number, who: str = which) -> None:
                progress((number + done) / len(to_run), f"{who}: {stage}")

            found[which] = run_side(
                models[which], tasks, job.out / which, backend, _settings(job, tasks), progress=report
            )
        progress(1.0, "comparison")
        parent, child = found["parent"], found["child"]
        asked = _asked(tasks, [parent, child])
        retention = compare(parent, child, asked, metrics=job.metrics, seed=job.seed)
        stated = {
            "schema_version": SCHEMA_VERSION,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "puzzlebench_version": puzzlebench.__version__,
            **retention_json(retention),
        }
        write_text(job.out / "retention.json", json.dumps(stated, indent=1) + "\n")
    return retention


def _backend(job: EvalJob) -> Backend:
    return Backend(
        name=job.backend,
        arguments=job.backend_arguments,
        device=job.device,
        precision=job.precision,
        batch_size=str(job.batch_size),
    )


def _settings(job: EvalJob, tasks: tuple[str, ...]) -> Settings:
    paths = [] if job.include_path is None else [job.include_path]
    if any(task.startswith("puzzlebench_") for task in tasks):  # misspelt ones too, for near names
        make_folder(cache_folder())
        paths.append(bundled_folder(cache_folder(), job.split))
    return Settings(
        include_paths=tuple(paths),
        limit=job.limit,
        num_fewshot=job.num_fewshot,
        chat=job.apply_chat_template,
        seed=job.seed,
    )


def _asked(tasks: tuple[str, ...], sides: list[Side]) -> list[str]:
    """The tasks by the names they have in results, where a tag of lm-eval has become its tasks."""
    names: list[str] = []
    for task in tasks:
        if any(task in side.tasks for side in sides):
            names.append(task)
        else:  # a tag
            names += [name for name in sides[0].tasks if name not in tasks and name not in names]
    return list(dict.fromkeys(names))
