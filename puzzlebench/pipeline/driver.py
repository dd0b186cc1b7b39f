"""Run the stages of a recipe in a folder; what is done and has the same inputs is not done again.

A stage has a key: a digest of its settings and of the outputs it is made from. Before it runs, outputs of another key
are removed and the key is written down; when it is done, its output's fingerprint is written beside it. A process that
is killed in between leaves outputs of the key that is written down: they are whole, or the stage goes on in them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, TypeAlias

from puzzlebench.digest import short_digest
from puzzlebench.files import locked, make_folder, remove_folder, write_text
from puzzlebench.parent.open import find_parent
from puzzlebench.pipeline.checks import check_recipe
from puzzlebench.pipeline.recipe import RunRecipe, recipe_to_json, recipe_yaml
from puzzlebench.pipeline.run_folder import SCHEMA, StageRecord, machine_facts, now
from puzzlebench.pipeline.stages import STAGES, Run, Stage, start_run

Status: TypeAlias = Literal["done", "to do", "to finish", "left out"]

_OURS: Final = ("run.json", "recipe.yaml", ".lock")
_HIDDEN_LEFTOVERS: Final = (".*.part", ".child-*", ".distilled-*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A stage as a run would treat it now.

    Attributes:
        why: of "to do" and "left out".
    """

    name: str
    status: Status
    why: str
    outputs: tuple[str, ...]


def plan_run(recipe: RunRecipe, path: Path, *, until: str | None = None) -> list[Planned]:
    """What `run_stages` would do, without doing it.

    Raises:
        ValueError: the folder is another program's, or a stage's name is unknown.
    """
    run = start_run(recipe, path)
    check_recipe(recipe, tasks=False)
    state = run.folder.read_state()
    outputs: dict[str, str | None] = {}
    planned = []
    for stage in _chosen(until):
        if reason := stage.left_out(recipe):
            planned.append(Planned(name=stage.name, status="left out", why=reason, outputs=()))
            continue
        waits = [need for need in stage.needs if need in outputs and outputs[need] is None]
        record, output = state.get(stage.name), stage.output(run.folder)
        status: Status = "to do"
        if waits:
            why = f"after {', '.join(waits)}"
        else:
            key = _key(stage, run, outputs)
            status, why = _status(record, key, output)
        outputs[stage.name] = output if status == "done" else None
        planned.append(Planned(name=stage.name, status=status, why=why, outputs=stage.outputs))
    return planned


def run_stages(
    recipe: RunRecipe,
    path: Path,
    *,
    until: str | None = None,
    report: Callable[[float, str], None] = lambda _share, _stage: None,
) -> dict[str, StageRecord]:
    """Run what is missing; the records of all stages, by name.

    Raises:
        ValueError: another process runs in the folder, it is another program's, or a stage cannot be done.
        InfeasibleError: no architecture keeps the limits.
    """
    run = start_run(recipe, path)
    chosen = _chosen(until)
    stages = [stage for stage in chosen if not stage.left_out(recipe)]
    evaluated = run.folder.read_state().get("evaluate")
    pending = evaluated is None or evaluated.output is None
    check_recipe(recipe, tasks=pending and any(stage.name == "evaluate" for stage in stages))
    make_folder(path)
    with locked(path / ".lock", "runs in it"):
        state = run.folder.read_state()
        if not state:
            _check_empty(path)
        _clear_leftovers(path)
        stated, machine = recipe_to_json(recipe), machine_facts()

        def write() -> None:
            order = {stage.name: state[stage.name] for stage in STAGES if stage.name in state}
            run.folder.write_state(stated, machine, order)

        for stage in chosen:
            if stage not in stages and stage.name in state:  # of an earlier recipe
                del state[stage.name]
                write()
                _remove(path, stage.outputs)
        write_text(path / "recipe.yaml", recipe_yaml(recipe))
        outputs: dict[str, str | None] = {}
        total = sum(stage.seconds for stage in stages)
        before = 0.0
        for stage in stages:
            part = _part(report, before / total, stage.seconds / total, stage.name)
            outputs[stage.name] = _run_stage(stage, run, state, outputs, write, part)
            before += stage.seconds
            report(before / total, stage.name)
        write()
        return state


def _run_stage(
    stage: Stage,
    run: Run,
    state: dict[str, StageRecord],
    outputs: Mapping[str, str | None],
    write: Callable[[], None],
    report: Callable[[float, str], None],
) -> str | None:
    """Run a stage unless it is done; the fingerprint of its output."""
    path = run.folder.path
    key, record = _key(stage, run, outputs), state.get(stage.name)
    output = stage.output(run.folder)
    if _status(record, key, output)[0] == "done":
        if stage.name != "parent":
            return output
        run.parent = find_parent(run.recipe.parent, report=report)
        if run.parent.fingerprint == output:
            return output
    resumed = record is not None and record.key == key and record.output is None
    if not resumed and not stage.resumes:
        _remove(path, stage.outputs)
    state[stage.name] = StageRecord(name=stage.name, key=key, resumed=resumed, outputs=stage.outputs)
    write()
    started = time.monotonic()
    stage.run(run, report)
    output = stage.output(run.folder)
    assert output is not None, f"stage {stage.name} left no output"
    if record is None or output != record.output:
        _forget(stage, state, path)
    state[stage.name] = replace(state[stage.name], output=output, seconds=time.monotonic() - started, finished=now())
    write()
    return output


def _forget(stage: Stage, state: dict[str, StageRecord], path: Path) -> None:
    """Drop what is known of stages that are made from an output that is another one now; those that go on in their
    folders keep them, unless it is the parent that changed.
    """
    changed = {stage.name}
    for later in STAGES:
        if changed & set(later.needs):
            changed.add(later.name)
            known = state.get(later.name)
            if known is not None and known.output is not None:
                del state[later.name]
            if stage.name == "parent" and later.resumes and known is not None:
                _remove(path, later.outputs)


def _status(record: StageRecord | None, key: str, output: str | None) -> tuple[Status, str]:
    if record is None:
        return "to do", "never done"
    if record.key != key:
        return "to do", "its settings or inputs have changed"
    if record.output is None:
        return "to finish", "it was interrupted"
    if output is None:
        return "to do", "its output is gone"
    if output != record.output:
        return "to do", "its output was changed"
    return "done", ""


def _key(stage: Stage, run: Run, outputs: Mapping[str, str | None]) -> str:
    inputs = {need: outputs.get(need) for need in stage.needs}
    return short_digest([SCHEMA, stage.name, stage.settings(run), inputs])


def _chosen(until: str | None) -> Sequence[Stage]:
    if until is None:
        return STAGES
    names = [stage.name for stage in STAGES]
    if until not in names:
        raise ValueError(f"no stage is named {until!r}; they are {', '.join(names)}")
    return STAGES[: names.index(until) + 1]


def _part(report: Callable[[float, str], None], begin: float, share: float, name: str) -> Callable[[float, str], None]:
    def part(done: float, stage: str) -> None:
        report(begin + min(max(done, 0.0), 1.0) * share, name if stage in ("", name) else f"{name}: {stage}")

    return part


def _check_empty(path: Path) -> None:
    """Raise ValueError for a folder that holds something and is no run: its files could be taken for a stage's."""
    foreign = (entry for entry in sorted(path.iterdir()) if entry.name not in _OURS and not entry.match(".*.part"))
    found = next(foreign, None)
    if found is not None:
        raise ValueError(f"{path} holds {found.name} and is no run; give a new folder")


def _clear_leftovers(path: Path) -> None:
    """What writers that were killed left behind; the lock is held, so nobody writes here."""
    for pattern in _HIDDEN_LEFTOVERS:
        for leftover in path.glob(pattern):
            _remove(path, (leftover.name,))


def _remove(path: Path, names: Sequence[str]) -> None:
    for name in names:
        target = path / name
        if target.is_dir() and not target.is_symlink():
            remove_folder(target)
            continue
        try:
            target.unlink(missing_ok=True)
        except OSError as error:
            raise ValueError(f"cannot remove {target}: {error.strerror}") from None
