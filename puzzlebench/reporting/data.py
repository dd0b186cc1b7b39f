"""All that a report shows, read from a run folder. What is not there is None and named; nothing is computed anew but
sums of the cost table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from puzzlebench.estimate import Interval
from puzzlebench.model.blocks import Architecture
from puzzlebench.model.spec import ModelSpec, parent_architecture
from puzzlebench.profiling.block_costs import Phase
from puzzlebench.profiling.cost_table import CostTable, read_cost_table
from puzzlebench.reporting.chosen import Search, parse_front, parse_search
from puzzlebench.reporting.documents import read_document
from puzzlebench.reporting.losses import Distillation, parse_distillation
from puzzlebench.reporting.retention import Retention, parse_retention
from puzzlebench.reporting.speeds import Speed, parse_speed
from puzzlebench.reporting.stale import COSTS, DISTILLATION, DISTILLED, FRONT, REALISED, SEARCH, SPEED, passed_over
from puzzlebench.reporting.time_by_part import time_by_part
from puzzlebench.scores import ScoreTable, read_score_table
from puzzlebench.searching.cells import spec_of
from puzzlebench.searching.pareto import Front

Parsed = TypeVar("Parsed")
PhaseTimes = dict[Phase, dict[str, Interval]]
"""Seconds by phase and part, see `time_by_part`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """The cost table, and where the time goes in it: None where it lacks a cell, with `why`."""

    table: CostTable
    spec: ModelSpec
    parent: Architecture
    parent_times: PhaseTimes | None
    child_times: PhaseTimes | None
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportData:
    """A run; every part but the folder may be missing.

    Attributes:
        run: run.json.
        scores: the table that the search chose by.
        realised: retention before global distillation.
        distilled: and after it.
        passed_over: files that are there and not of this run, by path, and why; they are read as if missing.
    """

    folder: Path
    run: Mapping[str, Any] | None
    costs: Costs | None
    scores: ScoreTable | None
    search: Search | None
    front: Front | None
    distillation: Distillation | None
    realised: Retention | None
    distilled: Retention | None
    speed: Speed | None
    passed_over: Mapping[str, str]

    @property
    def parent(self) -> Architecture | None:
        """The parent's architecture."""
        if self.scores is not None:
            return self.scores.parent
        return None if self.costs is None else self.costs.parent

    @property
    def retention(self) -> Retention | None:
        """Of the child as it is last."""
        return self.distilled or self.realised


def collect(folder: Path) -> ReportData:
    """Read a run folder.

    Raises:
        ValueError: there is no such folder, it holds nothing of a run, or a file in it is broken.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder of a run")
    run = read_document(folder / "run.json", _run)
    skipped = passed_over(folder, run)

    def read(name: str, parse: Callable[[Mapping[str, Any]], Parsed], *, unversioned: bool = False) -> Parsed | None:
        return None if name in skipped else read_document(folder / name, parse, unversioned=unversioned)

    search = read(SEARCH, parse_search)
    scores = _scores(folder, search, skipped)
    found = ReportData(
        folder=folder,
        run=run,
        costs=None if COSTS in skipped else _costs(folder / COSTS, search, None if scores is None else scores.parent),
        scores=scores,
        search=search,
        front=read(FRONT, parse_front, unversioned=True),
        distillation=read(DISTILLATION, parse_distillation),
        realised=read(REALISED, parse_retention),
        distilled=read(DISTILLED, parse_retention),
        speed=read(SPEED, parse_speed),
        passed_over=skipped,
    )
    parts = (found.run, found.costs, found.scores, found.search, found.front, found.distillation)
    if all(part is None for part in (*parts, found.retention, found.speed)):
        raise ValueError(f"{folder} holds nothing of a run: no run.json, costs.parquet, search/search.json, ...")
    return found


def _run(stated: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parts the page reads, checked."""
    recipe = dict(stated["recipe"])
    dict(recipe.get("evaluate") or {}), dict(stated["machine"]), str(stated["created"])
    for stage in stated["stages"]:
        float(stage["seconds"]), str(stage["name"])
    return stated


def _costs(path: Path, search: Search | None, parent: Architecture | None) -> Costs | None:
    if not path.exists():
        return None
    table = read_cost_table(path)
    spec = spec_of(table)
    parent = parent or parent_architecture(spec)
    parent_times = child_times = None
    why = "the run has no search/search.json yet, which says for which scenario and batch size"
    if search is not None:
        scenario, why = search.scenarios[0], ""
        try:
            child_times = time_by_part(table, search.architecture, scenario, search.batch_size)
            parent_times = time_by_part(table, parent, scenario, search.batch_size)
        except ValueError as error:
            why = str(error)
    return Costs(table=table, spec=spec, parent=parent, parent_times=parent_times, child_times=child_times, why=why)


def _scores(folder: Path, search: Search | None, skipped: Collection[str]) -> ScoreTable | None:
    """The table of the metric that was searched by, or KL, or the first there is."""
    metric = "kl" if search is None else search.stated["scores"]["metric"]
    found = [path for path in folder.glob("scores/*.parquet") if path.relative_to(folder).as_posix() not in skipped]
    files = sorted(found, key=lambda path: (path.stem != metric, path.stem != "kl", path.stem))
    return read_score_table(files[0]) if files else None
