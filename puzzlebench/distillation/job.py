"""One child to distil, as a value, and the doing of it: files in, files out, on one process or many.

What is trained lies in a working folder until all is done; the child then appears whole. Knows no command line.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch

import puzzlebench
from puzzlebench.child.checkpoints import load_causal_lm, save_child
from puzzlebench.digest import short_digest
from puzzlebench.distillation.data import own_share
from puzzlebench.distillation.materials import Rows, load_child, open_teachers
from puzzlebench.distillation.ranks import Ranks
from puzzlebench.distillation.recipe import DistilRecipe
from puzzlebench.distillation.states import States
from puzzlebench.distillation.streams import HubText, Stream
from puzzlebench.distillation.student import Student
from puzzlebench.distillation.trainer import History, Training, train
from puzzlebench.files import locked, make_folder, write_text
from puzzlebench.library.realise import OF_WEIGHTS, SOLUTION_FILE
from puzzlebench.model.checks import require_positive_int
from puzzlebench.parent.fingerprint import checkpoint_fingerprint
from puzzlebench.parent.open import ParentFiles, find_parent, load_tokenizer
from puzzlebench.training.precision import Precision

FACTS_FILE: Final = "distillation.json"
SCHEMA_VERSION: Final = 1
STANDARD_LIBRARY: Final = "Python's standard library"


@dataclass(frozen=True, kw_only=True, slots=True)
class DistilJob:
    """Which child learns from which parent, and on what.

    Attributes:
        parent: a name `find_parent` knows.
        child: a checkpoint that `realise` (or an earlier distillation) wrote.
        out: a new folder for the distilled child.
        data: a file or folder of text; None for the training files of Python's standard library.
        stream: read `data` while training goes on, instead of tokenising it beforehand.
        dataset: a data set of the Hub to stream, in place of `data`.
        precision: of the parent, and of the child's matrix products; the child's weights are float32 in training.
        checkpointing: compute activations anew in the backward pass, for less memory.
        micro_batch: rows of a forward of one process; None: all its rows of a step.
        teacher_cache: folder for the parent's most likely tokens, which are then made once; the parent need not run
            beside the child. Not with cosine, and not with text that is streamed.
        top_k: tokens of each distribution that such a cache holds.
        work_dir: for the state of the training; None: a hidden folder beside `out`, which goes when all is done.
    """

    parent: str
    child: Path
    out: Path
    data: Path | None = None
    stream: bool = False
    dataset: HubText | None = None
    recipe: DistilRecipe = field(default_factory=DistilRecipe)
    device: str = "cpu"
    precision: Precision = "fp32"
    checkpointing: bool = False
    micro_batch: int | None = None
    teacher_cache: Path | None = None
    top_k: int = 64
    work_dir: Path | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for what does not go together."""
        for name in ("micro_batch", "top_k"):
            if getattr(self, name) is not None:
                require_positive_int(name, getattr(self, name))
        if self.data is not None and self.dataset is not None:
            raise ValueError("text is either of files (data) or a data set of the Hub, not both")
        if self.stream and self.data is None:
            raise ValueError("only text of one's own can be streamed; say which (data)")
        if self.teacher_cache is not None and self.recipe.losses.cosine > 0:
            raise ValueError("a teacher cache holds no hidden states, so cosine must have weight 0 with it")
        if self.teacher_cache is not None and self.source is not None:
            raise ValueError("a teacher cache needs rows that are numbered, so the text cannot be streamed")

    @property
    def source(self) -> Stream | None:
        """What is streamed."""
        if self.dataset is not None:
            return Stream(source=self.dataset)
        return Stream(source=self.data) if self.stream and self.data is not None else None

    @property
    def work_folder(self) -> Path:
        """Where the state of the training lies."""
        return self.work_dir or self.out.with_name(f".{self.out.name}.distil")


def run_distil_job(
    job: DistilJob, *, progress: Callable[[float, str], None] = lambda _share, _stage: None
) -> dict[str, Any]:
    """Distil the child, or go on with it where an earlier run was interrupted; the facts come back.

    Under `accelerate launch` all processes call it together, and all get the facts; only the first also gets the
    fingerprint of the new weights.

    Raises:
        ValueError: the child is not the parent's, the text or the lengths do not fit, `out` exists, another process
            distils it, or the disk is full.
    """
    if job.out.exists():
        raise ValueError(f"{job.out} exists; a distilled child is written to a new folder")
    solution = json.loads(read_solution(job.child))
    ranks = Ranks(job.device, job.precision)
    report = progress if ranks.index == 0 else (lambda _share, _stage: None)
    report(0.0, "parent and text")
    files = find_parent(job.parent, quiet=True)
    recipe = job.recipe.with_rates(files.spec.hidden_size)
    _check(job, files, solution, ranks)
    with contextlib.ExitStack() as stack:
        _lock(job.work_folder, ranks, stack)
        rows = Rows(recipe, load_tokenizer(files), job.data, job.source, ranks)
        states = States(job.work_folder, _training_name(job, recipe, files, rows.fingerprints), ranks)
        module, history = _train(job, recipe, files, rows, ranks, states, report)
        report(1.0, "writing")
        facts = _facts(job, recipe, files, history, ranks)
        state = ranks.whole_state(module)
        if ranks.index == 0:
            own = {key: value for key, value in solution.items() if key not in OF_WEIGHTS}
            _write(job, files, state, {SOLUTION_FILE: _text(own), FACTS_FILE: _text(facts)})
            facts["weights_fingerprint"] = checkpoint_fingerprint(job.out)  # of what was just written
            write_text(job.out / FACTS_FILE, _text(facts))
        states.remove()
    if ranks.index == 0 and job.work_dir is None:
        shutil.rmtree(job.work_folder, ignore_errors=True)
    ranks.wait()
    return facts


def read_solution(child: Path) -> str:
    """The text of a child's `puzzle_solution.json`.

    Raises:
        ValueError: it has none that can be read.
    """
    try:
        text = (child / SOLUTION_FILE).read_text()
        if not isinstance(json.loads(text), dict):
            raise ValueError("it holds no object")
    except FileNotFoundError:
        raise ValueError(f"{child} has no {SOLUTION_FILE}; give a child that `puzzlebench realise` wrote") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{child / SOLUTION_FILE} cannot be read: {error}") from None
    return text


def _check(job: DistilJob, files: ParentFiles, solution: dict[str, Any], ranks: Ranks) -> None:
    if solution.get("parent_fingerprint") != files.fingerprint:
        raise ValueError(
            f"{job.child} is a child of {solution.get('parent')} with other weights than {files.name} has here; "
            "give its own parent"
        )
    for stage in job.recipe.stages:
        if stage.length > files.spec.max_position_embeddings:
            raise ValueError(
                f"{files.name} has {files.spec.max_position_embeddings} positions; rows of {stage.length} are longer"
            )
        own_share(stage, ranks.index, ranks.count)
    if ranks.sharded and job.recipe.optimiser == "muon":
        raise ValueError("Muon needs whole matrices, and FSDP2 spreads them; use --optimiser adamw")


def _lock(folder: Path, ranks: Ranks, stack: contextlib.ExitStack) -> None:
    """Process 0 holds the lock for all; where it cannot, all of them say why."""
    reason = None
    if ranks.index == 0:
        try:
            make_folder(folder)
            stack.enter_context(locked(folder / "lock", "distils there"))
        except ValueError as error:
            reason = str(error)
    if (reason := ranks.agree(reason)) is not None:
        raise ValueError(reason)


def _training_name(job: DistilJob, recipe: DistilRecipe, files: ParentFiles, rows: list[str]) -> str:
    """Stands for all that decides the result, so that nothing goes on from another training."""
    stated = {
        "schema_version": SCHEMA_VERSION,
        "recipe": recipe.to_json(),
        "parent": files.fingerprint,
        "child": checkpoint_fingerprint(job.child),
        "rows": rows,
        "precision": job.precision,
        "top_k": job.top_k if job.teacher_cache is not None else None,
    }
    return f"training-{short_digest(stated)}"


def _train(
    job: DistilJob,
    recipe: DistilRecipe,
    files: ParentFiles,
    rows: Rows,
    ranks: Ranks,
    states: States,
    report: Callable[[float, str], None],
) -> tuple[torch.nn.Module, History]:
    teachers = open_teachers(
        files,
        recipe,
        job.precision,
        rows,
        ranks,
        cache=job.teacher_cache,
        top_k=job.top_k,
        report=report,
    )
    child = load_child(job.child, files, ranks)
    if child.config.vocab_size != files.spec.vocab_size:
        raise ValueError(f"{job.child} has another vocabulary than {files.name}")
    student = Student(child, recipe.losses, job.precision, checkpointing=job.checkpointing)
    module = ranks.prepare(student)
    training = Training(
        module=module,
        teachers=teachers,
        open_rows=rows.open,
        recipe=recipe,
        ranks=ranks,
        states=states,
        micro_batch=job.micro_batch,
    )
    return module, train(training, report)


def _facts(job: DistilJob, recipe: DistilRecipe, files: ParentFiles, history: History, ranks: Ranks) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "puzzlebench_version": puzzlebench.__version__,
        "parent": files.name,
        "parent_fingerprint": files.fingerprint,
        "child": str(job.child),
        "child_fingerprint": checkpoint_fingerprint(job.child),
        "recipe": recipe.to_json(),
        "data": _text_name(job),
        "tokens": history.tokens,
        "steps": history.step,
        "losses": history.losses,
        "held_out": history.held_out,
        "seconds": round(history.seconds, 3),
        "device": str(ranks.device),
        "precision": job.precision,
        "world_size": ranks.count,
    }


def _text(stated: dict[str, Any]) -> str:
    return json.dumps(stated, indent=1) + "\n"


def _text_name(job: DistilJob) -> str:
    if job.dataset is not None:
        return "/".join(part for part in (job.dataset.name, job.dataset.config, job.dataset.split) if part)
    return STANDARD_LIBRARY if job.data is None else str(job.data)


def _write(job: DistilJob, files: ParentFiles, state: dict[str, torch.Tensor], extra: dict[str, str]) -> None:
    """The child in its own dtype, with other weights."""
    child: Any = load_causal_lm(job.child)
    child.load_state_dict({name.removeprefix("child."): tensor for name, tensor in state.items()})
    child.tie_weights()
    save_child(child, job.out, load_tokenizer(files), extra=extra)
