"""One side of an evaluation: tasks of lm-eval run one after another on a model, each kept when it is done.

What is kept is lm-eval's own: results_DATE.json with samples_TASK_DATE.jsonl, in a folder named after the model. A task
is there whole or not at all, and is not run again for the same weights and settings.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puzzlebench.digest import short_digest
from puzzlebench.errors import first_line
from puzzlebench.evaluation.models import Backend, ModelFiles, model_arguments, open_model
from puzzlebench.evaluation.stored import OWN_KEY, Side, read_side
from puzzlebench.files import make_folder, unfinished
from puzzlebench.harness import find_tasks, task_files_digest, without_bars

Progress = Callable[[float, str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How tasks are asked.

    Attributes:
        include_paths: folders of task files that lm-eval does not have.
        limit: documents of each task; None: all.
        num_fewshot: examples before each document; None: the task's own number.
        chat: whether the model's chat template is put around.
        seed: of the examples, and of what is drawn otherwise.
    """

    include_paths: tuple[Path, ...] = ()
    limit: int | None = None
    num_fewshot: int | None = None
    chat: bool = False
    seed: int = 1234


def run_side(
    model: ModelFiles, tasks: Sequence[str], folder: Path, backend: Backend, settings: Settings, *, progress: Progress
) -> Side:
    """The results of a model on tasks and groups; those that the folder has already are not run.

    Raises:
        ValueError: there is no such task, or the folder cannot be written to.
    """
    stated = _stated(model, backend, settings)
    keys = {task: short_digest({**stated, "task": task}) for task in tasks}
    there = _finished(folder)
    missing = [task for task in tasks if keys[task] not in there]
    if missing:
        progress(0.0, "tasks")
        manager = find_tasks(missing, settings.include_paths)
        progress(0.0, "model")
        opened = open_model(model, backend)
        for number, task in enumerate(missing):
            begin, share = number / len(missing), 1 / len(missing)

            def report(done: float, begin: float = begin, share: float = share, task: str = task) -> None:
                progress(begin + done * share, task)

            report(0.0)
            with _kept(folder) as partial:
                facts = {"key": keys[task], "task": task, **stated}
                _run_task(opened, model, backend, settings, task, manager, partial, facts, report)
        del opened
        _free_memory()
    return read_side(folder, keys=set(keys.values()), source=model.name, name=model.name)


def _stated(model: ModelFiles, backend: Backend, settings: Settings) -> dict[str, Any]:
    """What decides a result, but for the task; devices and batch sizes do not, beyond rounding."""
    return {
        "model": model.fingerprint,
        "backend": backend.name or "hf",
        "arguments": backend.arguments if backend.name else f"dtype={backend.precision}",
        "limit": settings.limit,
        "num_fewshot": settings.num_fewshot,
        "chat": settings.chat,
        "seed": settings.seed,
        "task_files": [task_files_digest(path)[:12] for path in settings.include_paths],
        "lm_eval": importlib.metadata.version("lm_eval"),
    }


def _finished(folder: Path) -> set[str]:
    """The keys of what is there."""
    if not folder.is_dir():
        return set()
    found = set()
    for file in folder.glob("*/results_*.json"):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            found.add(json.loads(file.read_text("utf-8")).get(OWN_KEY, {}).get("key"))
    return found


@contextlib.contextmanager
def _kept(folder: Path) -> Iterator[Path]:
    """A hidden folder whose files are put in place at the end, results after their samples."""
    make_folder(folder)
    partial = unfinished(folder / "run")
    make_folder(partial)
    try:
        yield partial
        files = sorted(partial.rglob("*.json*"), key=lambda file: not file.name.startswith("samples_"))
        for file in files:
            place = folder / file.relative_to(partial)
            make_folder(place.parent)
            os.replace(file, place)
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _run_task(
    opened: Any,
    model: ModelFiles,
    backend: Backend,
    settings: Settings,
    task: str,
    manager: Any,
    folder: Path,
    facts: dict[str, Any],
    report: Callable[[float], None],
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(folder))
    try:
        with without_bars():
            loaded = manager.load([task])["tasks"]
    except Exception as error:  # of data sets' many libraries
        raise ValueError(f"task {task} cannot be loaded: {first_line(error)}") from error
    if unsafe := [name for name, one in loaded.items() if getattr(one, "UNSAFE_CODE", False)]:
        raise ValueError(
            f"{unsafe[0]} runs code that the model wrote; run it with lm-eval in a sandbox, give the results"
        )
    with without_bars(report), _without_git():
        found = simple_evaluate(
            opened,
            model_args={"pretrained": model.name},  # not used but for the record
            tasks=[task],
            num_fewshot=settings.num_fewshot,
            batch_size=backend.batch_size,
            limit=settings.limit,
            evaluation_tracker=tracker,
            apply_chat_template=settings.chat,
            task_manager=manager,
            random_seed=settings.seed,
            numpy_random_seed=settings.seed,
            torch_random_seed=settings.seed,
            fewshot_random_seed=settings.seed,
            bootstrap_iters=0,  # of standard errors of one side alone
        )
        samples = found.pop("samples")
        found["config"] |= {"model": facts["backend"], "model_args": model_arguments(model, backend)}
        tracker.general_config_tracker.model_source = facts["backend"]
        tracker.save_results_aggregated(found | {OWN_KEY: facts}, samples)
        for name in found["configs"]:
            tracker.save_results_samples(name, samples[name])
    written = {file.name.partition("_")[0] for file in folder.rglob("*.json*")}
    if written != {"results", "samples"}:  # the tracker logs what it cannot write, and goes on
        raise ValueError(f"cannot write to {folder}: lm-eval could not save the results of {task}")


def _without_git() -> contextlib.AbstractContextManager[Any]:
    """Let the harness not ask git for the commit of the working directory: it says nothing of the results, and git
    complains on standard error where there is no repository.
    """
    from unittest import mock

    from lm_eval import evaluator

    return mock.patch.object(evaluator, "get_git_commit_hash", return_value=None, create=True)


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
