"""The stages of a run in their order: what each reads, writes and is decided by. Knows no driver.

A stage either writes its output whole or not at all, or goes on in its folder where it stopped.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch

from puzzlebench.digest import short_digest
from puzzlebench.files import make_folder, unfinished, write_text
from puzzlebench.model.blocks import architecture_from_json
from puzzlebench.model.space import SearchSpace, default_space
from puzzlebench.parent.fingerprint import checkpoint_fingerprint
from puzzlebench.parent.open import ParentFiles, find_parent
from puzzlebench.pipeline.recipe import RunRecipe, plain
from puzzlebench.pipeline.run_folder import RunFolder, file_digest, version
from puzzlebench.pipeline.search_stage import run_search
from puzzlebench.searching.quantities import parse_bytes
from puzzlebench.training.precision import Precision, fast_precision, judging_precision, open_device

Report: TypeAlias = Callable[[float, str], None]


@dataclass(kw_only=True, slots=True)
class Run:
    """A run under way: the recipe, where it goes, and what several stages need.

    Attributes:
        parent: the parent's files; there once its stage is done.
    """

    recipe: RunRecipe
    folder: RunFolder
    device: torch.device
    precision: Precision
    parent: ParentFiles | None = None

    @property
    def judging(self) -> Precision:
        """Of scores and evaluation."""
        return judging_precision(self.device) if self.recipe.precision == "auto" else self.precision

    @property
    def files(self) -> ParentFiles:
        """The parent's files."""
        assert self.parent is not None, "the parent's stage comes first"
        return self.parent


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One step of a run.

    Attributes:
        needs: stages whose outputs it reads.
        outputs: files and folders in the run's folder.
        seconds: about what it takes in the default recipe on two cores; for shares of progress only.
        settings: the part of the recipe that decides its output.
        run: does it.
        output: fingerprint of the output; None where it is not there.
        resumes: it goes on in its folder, whatever is there; the outputs of others are removed when they are stale.
        left_out: why this recipe has no such stage; None where it has.
    """

    name: str
    needs: tuple[str, ...]
    outputs: tuple[str, ...]
    seconds: float
    settings: Callable[[Run], Any]
    run: Callable[[Run, Report], None]
    output: Callable[[RunFolder], str | None]
    resumes: bool = False
    left_out: Callable[[RunRecipe], str | None] = field(default=lambda _recipe: None)


def start_run(recipe: RunRecipe, path: Path) -> Run:
    """A run in a folder; nothing is done yet.

    Raises:
        ValueError: the device is not here.
    """
    device = open_device(recipe.device)
    precision = fast_precision(device) if recipe.precision == "auto" else recipe.precision
    return Run(recipe=recipe, folder=RunFolder(path=path), device=device, precision=precision)


def _space(run: Run) -> SearchSpace:
    """The blocks that are timed and made."""
    settings, files = run.recipe.library, run.files
    return default_space(files.spec, files.architecture, kv_heads=settings.kv_heads, ffn_multiple=settings.ffn_multiple)


def _parent(run: Run, report: Report) -> None:
    files = find_parent(run.recipe.parent, report=report)
    run.parent = files
    facts = {"name": files.name, "folder": str(files.folder), "fingerprint": files.fingerprint}
    write_text(run.folder.parent, json.dumps(facts, indent=1) + "\n")


def _parent_output(folder: RunFolder) -> str | None:
    try:
        stated = json.loads(folder.parent.read_text())
        return checkpoint_fingerprint(Path(stated["folder"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _profile(run: Run, report: Report) -> None:
    from puzzlebench.profiling.cost_table import open_cost_table, write_cost_table
    from puzzlebench.profiling.profile import build_cost_table, scenario_grid
    from puzzlebench.profiling.sources import open_kernels
    from puzzlebench.scenario import Precision as Formats

    settings, served, files = run.recipe.profile, run.recipe.scenario, run.files
    if settings.costs is not None:
        write_cost_table(open_cost_table(str(settings.costs)), run.folder.costs)
        return
    space = _space(run)
    grid = scenario_grid(batch_size=served.batch_size, prefill_len=served.prefill_len, decode_len=served.decode_len)
    if not settings.is_here:
        weights = settings.weight_dtype or "bf16"
        formats = Formats(
            weight_dtype=weights, kv_dtype=settings.kv_dtype or weights, tensor_parallel=settings.tensor_parallel
        )
        gpu, kernels = open_kernels(settings.gpu, settings.engine or "trtllm", None)
        write_cost_table(build_cost_table(kernels, gpu, files.spec, space, formats, grid), run.folder.costs)
        return
    from puzzlebench.measuring.device import local_device
    from puzzlebench.measuring.live import live_precision, profile_live
    from puzzlebench.measuring.plan import Effort

    device = local_device(settings.gpu)
    profile = profile_live(
        files.spec,
        files.architecture,
        space,
        live_precision(device, settings.weight_dtype, settings.kv_dtype, settings.tensor_parallel),
        grid,
        device,
        settings.engine or "torch",
        Effort(sessions=settings.sessions, seconds=settings.seconds),
        run.folder.path / "costs.run",
        report,
    )
    write_cost_table(profile.table, run.folder.costs)


def _library(run: Run, report: Report) -> None:
    from puzzlebench.launching.launchers import Local, run_library
    from puzzlebench.library.job import LibraryJob, job_recipe, load_tokens

    settings, files = run.recipe.library, run.files
    job = LibraryJob(
        parent=run.recipe.parent,
        space=_space(run),
        out=run.folder.library,
        data=run.recipe.data,
        sequences=settings.sequences,
        length=settings.length,
        mode=settings.mode,
        init=settings.init,
        training=settings.training,
        device=str(run.device),
        precision=run.precision,
        memory_limit=parse_bytes(run.recipe.memory_limit),
    )
    run_library(job, Local(), report)
    tokens = load_tokens(files, job.data, "train", sequences=job.sequences, length=job.length)
    recipe = job_recipe(job, tokens, files.spec.hidden_size)
    write_text(run.folder.library / "run_recipe.json", json.dumps({"recipe": recipe.id}) + "\n")


def _recipe_id(folder: RunFolder) -> str:
    return str(json.loads((folder.library / "run_recipe.json").read_text())["recipe"])


def _library_output(folder: RunFolder) -> str | None:
    from puzzlebench.library.store import open_library

    try:
        recipe = _recipe_id(folder)
        library = open_library(folder.library)
        library.require_complete(recipe)
    except (OSError, ValueError, KeyError):
        return None
    return short_digest([recipe, library.parent.fingerprint, sorted(map(list, library.wanted(recipe)))])


def _score(run: Run, report: Report) -> None:
    from puzzlebench.scoring.job import ScoreJob, run_score_job

    settings = run.recipe.score
    make_folder(run.folder.scores)
    job = ScoreJob(
        parent=run.recipe.parent,
        library=run.folder.library,
        out=run.folder.scores,
        recipe=_recipe_id(run.folder),
        data=run.recipe.validation_data,
        sequences=settings.sequences,
        length=settings.length,
        batch_size=settings.batch_size,
        device=str(run.device),
        precision=run.judging,
        memory_limit=parse_bytes(run.recipe.memory_limit),
    )
    run_score_job(job, progress=report)


def _search(run: Run, report: Report) -> None:
    run_search(run.recipe, run.folder, report)


def _realise(run: Run, report: Report) -> None:
    from puzzlebench.library.realise import realise

    report(0.0, "realise")
    if run.folder.child.exists():  # written by a run that was killed before it could say so
        return
    architecture = architecture_from_json(json.loads(run.folder.architecture.read_text()))
    realise(run.files, run.folder.library, architecture, run.folder.child, recipe=_recipe_id(run.folder))


def _distil(run: Run, report: Report) -> None:
    from puzzlebench.distillation.job import DistilJob, run_distil_job

    work = run.folder.path / "distilled.work"
    if run.folder.distilled.exists():  # as above
        shutil.rmtree(work, ignore_errors=True)
        return
    job = DistilJob(
        parent=run.recipe.parent,
        child=run.folder.child,
        out=run.folder.distilled,
        data=run.recipe.data,
        recipe=run.recipe.distil,
        device=str(run.device),
        precision=run.precision,
        checkpointing=run.recipe.checkpointing,
        micro_batch=run.recipe.micro_batch,
        work_dir=work,
    )
    run_distil_job(job, progress=report)
    shutil.rmtree(work, ignore_errors=True)


def _evaluate(run: Run, report: Report) -> None:
    from puzzlebench.evaluation.job import EvalJob, run_eval_job

    settings = run.recipe.evaluate
    children = {"realised": run.folder.child, "distilled": run.folder.distilled}
    names = ("realised", "distilled") if settings.before else ("distilled",)
    for name in set(children) - set(names):
        shutil.rmtree(run.folder.evaluation / name, ignore_errors=True)
    parents: Path | None = None
    for place, name in enumerate(names):
        out = run.folder.evaluation / name
        make_folder(out)
        # The parent's results are taken over; evaluation checks that weights and settings are the same.
        if parents is not None and not (out / "parent").exists():
            copied = unfinished(out / "parent")
            shutil.copytree(parents, copied)
            copied.rename(out / "parent")
        job = EvalJob(
            parent=run.recipe.parent,
            child=str(children[name]),
            out=out,
            tasks=settings.tasks,
            include_path=settings.include_path,
            limit=settings.limit,
            batch_size=settings.batch_size,
            device=str(run.device),
            precision=run.judging,
        )

        def part(done: float, stage: str, place: int = place) -> None:
            report((place + done) / len(names), stage)

        run_eval_job(job, progress=part)
        parents = out / "parent"


def _speed(run: Run, report: Report) -> None:
    from puzzlebench.speed.job import SpeedJob, measure_speed, precision_of

    settings, served = run.recipe.speed, run.recipe.scenario
    device = run.recipe.profile.gpu
    job = SpeedJob(
        models=(("parent", run.files.folder), ("child", run.folder.distilled)),
        batch_size=served.batch_size,
        prefill_len=served.prefill_len,
        decode_len=served.decode_len,
        engine=settings.engine,
        device=device,
        precision=precision_of(run.folder.costs, device),
        sessions=settings.sessions,
        seconds=settings.seconds,
        costs=run.folder.costs,
        folder=run.folder.speed,
        data=run.recipe.validation_data,
    )
    make_folder(run.folder.speed)
    measure_speed(job, progress=report)


def _report(run: Run, report: Report) -> None:
    from puzzlebench.reporting.write import write_report

    report(0.0, "report")
    write_report(run.folder.path, run.folder.report)


def _not_here(recipe: RunRecipe) -> str | None:
    from puzzlebench.measuring.device import local_device
    from puzzlebench.profiling.cost_table import open_cost_table

    costs = recipe.profile.costs
    here = recipe.profile.is_here
    if costs is not None:
        gpu = str(open_cost_table(str(costs)).frame["gpu"].iloc[0])
        here = here and gpu == local_device(recipe.profile.gpu).name
    if here:
        return None
    return "the costs are of another device than the one in hand; `puzzlebench speed` measures the child there"


def _contents(*names: str) -> Callable[[RunFolder], str | None]:
    return lambda folder: file_digest(*(folder.path / name for name in names))


def _checkpoint(name: str) -> Callable[[RunFolder], str | None]:
    def fingerprint(folder: RunFolder) -> str | None:
        try:
            return checkpoint_fingerprint(folder.path / name)
        except ValueError:
            return None

    return fingerprint


def _search_settings(run: Run) -> Any:
    return [plain(run.recipe.search), plain(run.recipe.scenario), run.recipe.score.metric]


def _tree(path: Path | None) -> str | None:
    """Text by its path, sizes and times: reading all of it to see whether it has changed could take hours."""
    if path is None:
        return None
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*.*") if file.is_file())
    stated = [
        [str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files if "__pycache__" not in file.parts
    ]
    return short_digest(stated)


def _device_here(run: Run) -> list[Any] | None:
    """The device that is measured, and by how many threads."""
    from puzzlebench.measuring.device import local_device

    if not run.recipe.profile.is_here:
        return None
    return [local_device(run.recipe.profile.gpu).name, torch.get_num_threads()]


STAGES: Final[tuple[Stage, ...]] = (
    Stage(
        name="parent",
        needs=(),
        outputs=("parent.json",),
        seconds=290,
        settings=lambda run: run.recipe.parent,
        run=_parent,
        output=_parent_output,
    ),
    Stage(
        name="profile",
        needs=("parent",),
        outputs=("costs.parquet", "costs.run"),
        seconds=80,
        settings=lambda run: [
            plain(run.recipe.profile),
            plain(run.recipe.scenario),
            run.recipe.library.kv_heads,
            run.recipe.library.ffn_multiple,
            file_digest(run.recipe.profile.costs) if run.recipe.profile.costs else _device_here(run),
        ],
        run=_profile,
        output=_contents("costs.parquet"),
    ),
    Stage(
        name="library",
        needs=("parent",),
        outputs=("library",),
        seconds=190,
        settings=lambda run: [plain(run.recipe.library), run.precision, _tree(run.recipe.data)],
        run=_library,
        output=_library_output,
        resumes=True,
    ),
    Stage(
        name="score",
        needs=("parent", "library"),
        outputs=("scores",),
        seconds=50,
        settings=lambda run: [
            plain(replace(run.recipe.score, metric="kl")),  # all metrics are taken at once
            run.judging,
            _tree(run.recipe.validation_data),
        ],
        run=_score,
        output=_contents("scores/kl.parquet", "scores/lm_loss.parquet", "scores/top1_agreement.parquet"),
        resumes=True,
    ),
    Stage(
        name="search",
        needs=("profile", "score"),
        outputs=("search",),
        seconds=5,
        settings=_search_settings,
        run=_search,
        output=_contents("search/architecture.json"),
    ),
    Stage(
        name="realise",
        needs=("parent", "library", "search"),
        outputs=("child",),
        seconds=3,
        settings=lambda _run: None,
        run=_realise,
        output=_checkpoint("child"),
    ),
    Stage(
        name="distil",
        needs=("parent", "realise"),
        outputs=("distilled", "distilled.work"),
        seconds=280,
        settings=lambda run: [plain(run.recipe.distil), run.precision, _tree(run.recipe.data)],
        run=_distil,
        output=_checkpoint("distilled"),
    ),
    Stage(
        name="evaluate",
        needs=("parent", "realise", "distil"),
        outputs=("evaluation",),
        seconds=120,
        settings=lambda run: [
            plain(run.recipe.evaluate),
            run.judging,
            _tree(run.recipe.evaluate.include_path),
            version("lm_eval"),
            platform.python_version(),  # whose standard library the bundled tasks are of
        ],
        run=_evaluate,
        output=_contents("evaluation/distilled/retention.json"),
        resumes=True,
    ),
    Stage(
        name="speed",
        needs=("parent", "profile", "distil"),
        outputs=("speed",),
        seconds=70,
        settings=lambda run: [
            plain(run.recipe.speed),
            plain(run.recipe.scenario),
            _device_here(run),
            _tree(run.recipe.validation_data),
        ],
        run=_speed,
        output=_contents("speed/speed.json"),
        left_out=_not_here,
    ),
    Stage(
        name="report",
        needs=("parent", "profile", "library", "score", "search", "realise", "distil", "evaluate", "speed"),
        outputs=("report",),
        seconds=5,
        settings=lambda run: plain(run.recipe),  # it is printed in it
        run=_report,
        output=_contents("report/report.html"),
    ),
)
"""In the order they run in; a stage needs earlier ones only."""
