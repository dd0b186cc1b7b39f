"""Score a library: which blocks it has, on which text, and a score table per metric.

Knows no command line. Scores of a layer survive an interruption, in a folder beside the tables.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import puzzlebench
from puzzlebench.digest import short_digest
from puzzlebench.files import make_folder
from puzzlebench.harness import task_files_digest
from puzzlebench.library.activations import Storage
from puzzlebench.library.job import data_fingerprint, load_tokens, parent_facts
from puzzlebench.library.store import open_library
from puzzlebench.model.blocks import Architecture, architecture_to_json, block_name
from puzzlebench.model.spec import spec_facts
from puzzlebench.parent.open import ParentFiles, find_parent, load_parent, load_tokenizer
from puzzlebench.scores import COLUMNS, Direction, ScoreTable, write_score_table
from puzzlebench.scoring.lm_eval_metric import TaskMetric, score_by_task
from puzzlebench.scoring.metrics import METRICS
from puzzlebench.scoring.replace_one import score_layers
from puzzlebench.scoring.results import LayerScores
from puzzlebench.training.precision import DTYPES, Precision


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskChoice:
    """A task of the LM Evaluation Harness to score by, see `TaskMetric`."""

    task: str
    metric: str | None = None
    include_path: Path | None = None
    limit: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreJob:
    """What to score, on what and where to.

    Attributes:
        recipe: beginning of the id of the recipe to score; None where the library has one only.
        data: a file or folder of text; None for the validation files of Python's standard library.
        out: folder of the tables, one per metric.
    """

    parent: str
    library: Path
    out: Path
    recipe: str | None = None
    data: Path | None = None
    sequences: int = 32
    length: int = 256
    batch_size: int = 4
    task: TaskChoice | None = None
    device: str = "cpu"
    precision: Precision = "fp32"
    activations: Storage = "auto"
    memory_limit: int = 8 << 30


def run_score_job(
    job: ScoreJob, *, progress: Callable[[float, str], None] = lambda _share, _stage: None
) -> dict[str, Path]:
    """Score every pair of halves that the library has, and write a score table per metric: its path by metric.

    Raises:
        ValueError: parent, library, text or task do not fit, or the disk is full.
    """
    progress(0.0, "parent and text")
    files = find_parent(job.parent, quiet=True)
    library = open_library(job.library, parent_facts(files))
    recipe = library.recipe_id(job.recipe)
    library.require_complete(recipe)
    space = library.space(files.architecture, recipe)
    pairs = sorted(one for one in library.wanted(recipe) if "+" in one[1])
    model = load_parent(files, torch.device(job.device), DTYPES[job.precision])
    about: dict[str, Any] = {"parent": files.fingerprint, "recipe": recipe, "precision": job.precision, "pairs": pairs}
    if job.task is not None:
        metric = TaskMetric(
            model,
            load_tokenizer(files),
            task=job.task.task,
            metric=job.task.metric,
            include_path=job.task.include_path,
            limit=job.task.limit,
            batch_size=job.batch_size,
            memory_limit=job.memory_limit,
        )
        about |= {"task": metric.task, "metric": metric.metric, "limit": job.task.limit, **_task_version(job.task)}
        found = score_by_task(
            metric,
            model,
            files.architecture,
            space,
            library,
            recipe,
            folder=_work_folder(job.out, about),
            progress=progress,
        )
        return _write_tables(job, files, found, {metric.metric: metric.direction}, about, prefix=f"{metric.task}.")
    tokens = load_tokens(files, job.data, "validation", sequences=job.sequences, length=job.length)
    _check_unseen(files, job.data, library.recipe(recipe))
    about |= {"data": data_fingerprint(tokens), "sequences": job.sequences, "length": job.length}
    found = score_layers(
        model,
        files.architecture,
        space,
        library,
        recipe,
        tokens,
        folder=_work_folder(job.out, about),
        batch_size=job.batch_size,
        activations=job.activations,
        memory_limit=job.memory_limit,
        progress=progress,
    )
    return _write_tables(job, files, found, METRICS, about)


def _task_version(task: TaskChoice) -> dict[str, str]:
    """What else decides a task: the harness's version, and the files of one's own."""
    return {"lm_eval": importlib.metadata.version("lm_eval"), "task_files": task_files_digest(task.include_path)}


def _check_unseen(files: ParentFiles, data: Path | None, recipe: dict[str, Any]) -> None:
    """Raise ValueError if this text is the one that the blocks were trained on, as far as its beginning tells."""
    if data is None:
        return
    try:
        trained = load_tokens(files, data, "train", sequences=recipe["sequences"], length=recipe["length"])
    except ValueError:  # it is shorter
        return
    if data_fingerprint(trained) == recipe["data"]:
        raise ValueError(f"the blocks were trained on {data}; score them on other text")


def _work_folder(out: Path, about: dict[str, Any]) -> Path:
    """Where layers are kept: another parent, recipe or text has another folder."""
    folder = out / "layers" / short_digest(about)
    make_folder(folder)
    return folder


def _write_tables(
    job: ScoreJob,
    files: ParentFiles,
    found: Sequence[LayerScores],
    directions: dict[str, Direction],
    about: dict[str, Any],
    *,
    prefix: str = "",
) -> dict[str, Path]:
    paths = {}
    for column, (metric, direction) in enumerate(directions.items()):
        table = score_table(found, column, files.architecture, metric=prefix + metric, direction=direction)
        table.metadata.update(
            model=spec_facts(files.spec),
            replace_one=about,
            source=f"replace-1-block of {files.name} by recipe {about['recipe']}",
        )
        paths[prefix + metric] = job.out / f"{prefix}{metric}.parquet"
        write_score_table(table, paths[prefix + metric])
    return paths


def score_table(
    found: Sequence[LayerScores], column: int, parent: Architecture, *, metric: str, direction: Direction
) -> ScoreTable:
    """The mean over samples of one metric. The standard error is of its difference from the parent's own block on the
    same samples, since differences are what a search compares.
    """
    rows = []
    for scores in found:
        own = scores.values[block_name(parent.blocks[scores.layer])][:, column]
        for name, values in scores.values.items():
            sample = values[:, column]
            error = float((sample - own).std(unbiased=True)) / math.sqrt(len(sample))
            rows.append((scores.layer, name, float(sample.mean()), error, len(sample)))
    return ScoreTable(
        frame=pd.DataFrame(rows, columns=pd.Index(COLUMNS)),
        metadata={
            "metric": metric,
            "direction": direction,
            "parent": architecture_to_json(parent),
            "source": "replace-1-block",
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "puzzlebench_version": puzzlebench.__version__,
        },
    )
