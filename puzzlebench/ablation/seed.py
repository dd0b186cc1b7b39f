"""One seed's share of all ablations: libraries, scores, searches, children, distillation, and their quality.

Every child that was judged has a JSON file; what is there is not done again. Knows no statistics.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import torch

from puzzlebench.ablation.experiments import LOSSES, Experiment
from puzzlebench.ablation.quality import TestText
from puzzlebench.ablation.settings import SeedSettings
from puzzlebench.child.building import build_child
from puzzlebench.child.checkpoints import load_causal_lm
from puzzlebench.digest import short_digest
from puzzlebench.distillation.job import DistilJob, run_distil_job
from puzzlebench.distillation.recipe import DistilRecipe, LossWeights, Stage
from puzzlebench.files import make_folder, remove_folder, write_text
from puzzlebench.launching.launchers import Local, run_library
from puzzlebench.library.job import LibraryJob, job_recipe, load_tokens, parent_facts
from puzzlebench.library.realise import architecture_states, realise
from puzzlebench.library.recipe import Training
from puzzlebench.library.store import open_library
from puzzlebench.model.blocks import Architecture, architecture_from_json, architecture_to_json
from puzzlebench.model.parameters import model_parameters
from puzzlebench.model.space import SearchSpace
from puzzlebench.parent.open import find_parent, load_parent
from puzzlebench.profiling.cost_table import CostTable
from puzzlebench.scores import ScoreTable, parameter_scores, read_score_table
from puzzlebench.scoring.job import ScoreJob, run_score_job
from puzzlebench.searching.compare import choice_facts
from puzzlebench.searching.costs import SearchCosts, load_costs
from puzzlebench.searching.scenarios import ResourceLimit, ServingScenario
from puzzlebench.searching.search import Found, SearchSettings, count_again, problem_around, search_architectures
from puzzlebench.speed.predict import check_same_shapes
from puzzlebench.training.precision import DTYPES
from puzzlebench_search.baselines import Settings, run_baseline

_SEARCH_SECONDS: Final = 30.0
_BLOCK_BATCH: Final = 4
_PAPER_LOSSES: Final = LossWeights()
_WORK: Final = {
    "library-bld": 4.0,
    "library-initialised": 0.7,
    "scores-bld": 1.0,
    "scores-initialised": 1.0,
    "distil": 1.0,
}
"""How long pieces take beside each other, for the progress."""
Blocks: TypeAlias = Literal["bld", "initialised"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """An architecture and the blocks it is to be made of; no architecture where nothing keeps the limit."""

    architecture: Architecture | None
    blocks: Blocks
    throughput: float | None
    note: str = ""


class Runner:
    """Does what a seed's ablations need, each piece once."""

    def __init__(
        self,
        *,
        parent: str,
        folder: Path,
        seed: int,
        settings: SeedSettings,
        space: SearchSpace,
        table: CostTable,
        train_text: Path,
        score_text: Path,
        report: Callable[[float, str], None],
    ) -> None:
        self._parent, self._folder, self._seed, self._settings = parent, folder, seed, settings
        self._space = space
        self._train_text, self._score_text, self._report = train_text, score_text, report
        self._files = find_parent(parent, quiet=True)
        check_same_shapes(table, self._files.spec)
        self._table = table
        self._spent, self._of = 0.0, 1.0

    def run(self, experiments: tuple[Experiment, ...]) -> dict[tuple[str, str], dict[str, Any]]:
        """The results of every variant, by experiment and variant.

        Raises:
            ValueError: no architecture of the space keeps the limit.
        """
        self._of = self._work(experiments)
        found = {}
        for one in experiments:
            for variant in one.variants:
                self._report(min(self._spent / self._of, 1.0), f"{one.name}: {variant}")
                found[one.name, variant] = {"seed": self._seed, **self._one(one.name, variant)}
        return found

    def _work(self, experiments: tuple[Experiment, ...]) -> float:
        """About what is to be done, in units of `_WORK`; for shares of progress only."""
        names = {one.name for one in experiments}
        distilled = len(LOSSES) if "distil" in names else 0
        if self._settings.distil_all:
            distilled += sum(len(one.variants) for one in experiments if one.name != "distil")
        blocks = ("bld", *(("initialised",) if "bld" in names else ()))
        made = sum(_WORK[f"{kind}-{name}"] for kind in ("library", "scores") for name in blocks)
        return made + distilled * _WORK["distil"]

    @contextlib.contextmanager
    def _working(self, kind: str, stage: str) -> Iterator[Callable[[float, str], None]]:
        """Progress of one piece of the work."""
        begin = self._spent
        yield lambda share, what: self._report(min((begin + share * _WORK[kind]) / self._of, 1.0), f"{stage}: {what}")
        self._spent = begin + _WORK[kind]

    def _one(self, experiment: str, variant: str) -> dict[str, Any]:
        choice = self._choice(experiment, variant)
        facts: dict[str, Any] = {"note": choice.note, "throughput": choice.throughput}
        if choice.architecture is None:
            return facts | {"architecture": None, "parameters": None, "before": None, "after": None}
        facts["architecture"] = architecture_to_json(choice.architecture)
        facts["parameters"] = model_parameters(self._files.spec, choice.architecture)
        facts["before"] = self._judged(choice.architecture, choice.blocks)
        losses = None
        if experiment == "distil":
            losses = LOSSES.get(variant)
        elif self._settings.distil_all:
            losses = _PAPER_LOSSES
        facts["after"] = None if losses is None else self._distilled(choice.architecture, choice.blocks, losses)
        return facts

    def _choice(self, experiment: str, variant: str) -> Choice:
        match experiment:
            case "bld":
                blocks: Blocks = "bld" if variant == "bld" else "initialised"
                return self._searched(blocks, "kl")
            case "score":
                return self._searched("bld", variant)
            case "search" if variant != "mip":
                return self._baseline(variant)
            case "space" if variant != "full":
                return self._baseline(variant)
        return self._searched("bld", "kl")

    def _searched(self, blocks: Blocks, metric: str) -> Choice:
        found = self._search(blocks, metric)
        return Choice(architecture=found.architecture, blocks=blocks, throughput=found.check.values["throughput"])

    @functools.cache  # noqa: B019 (a runner lives as long as its seed)
    def _search(self, blocks: Blocks, metric: str) -> Found:
        costs, scores = self._costs(blocks, metric)
        settings = SearchSettings(batch_sizes=(self._settings.batch_size,), time_limit=_SEARCH_SECONDS)
        outcome = search_architectures(costs, self._table, scores, settings)
        if not outcome.found:
            raise ValueError(
                f"no architecture of the space is {self._settings.speed_up:g} times as fast as the parent by the cost "
                "table; lower --speed-up"
            )
        return outcome.found[0]

    @functools.cache  # noqa: B019
    def _costs(self, blocks: Blocks, metric: str) -> tuple[SearchCosts, ScoreTable]:
        """Under the one limit: so many times the parent's predicted throughput."""
        scores = self._scores(blocks, metric)
        asked = self._settings
        scenario = ServingScenario(name="ablation", prefill_len=asked.prefill_len, decode_len=asked.decode_len)
        costs = load_costs(self._table, scores, (scenario,))
        parent = count_again(costs, self._table, self._files.architecture, asked.batch_size)
        least = asked.speed_up * parent.values["throughput"]
        return costs.with_limits((ResourceLimit(resource="throughput", low=least),)), scores

    def _baseline(self, name: str) -> Choice:
        """Another way of searching, on the problem that the exact search solved."""
        costs, _ = self._costs("bld", "kl")
        problem = problem_around(costs, self._search("bld", "kl"), None)
        facts = choice_facts(problem, costs.spec, self._files.architecture)
        found = run_baseline(name, problem, facts, Settings(seed=self._seed, time_limit=_SEARCH_SECONDS))
        if found.solution is None:
            return Choice(architecture=None, blocks="bld", throughput=None, note=found.note)
        architecture = costs.architecture(problem, found.solution.choices)
        check = count_again(costs, self._table, architecture, self._settings.batch_size)
        return Choice(architecture=architecture, blocks="bld", throughput=check.values["throughput"], note=found.note)

    def _library_job(self, blocks: Blocks) -> LibraryJob:
        asked = self._settings
        return LibraryJob(
            parent=self._parent,
            space=self._space,
            out=self._folder / "library",
            data=self._train_text,
            sequences=asked.library_sequences,
            length=asked.length,
            training=Training(steps=asked.steps if blocks == "bld" else 0, batch_size=_BLOCK_BATCH, seed=self._seed),
            device=asked.device,
            precision=asked.precision,
        )

    @functools.cache  # noqa: B019
    def _library(self, blocks: Blocks) -> str:
        """The recipe of the seed's blocks, which are made if need be."""
        job = self._library_job(blocks)
        tokens = load_tokens(self._files, job.data, "train", sequences=job.sequences, length=job.length)
        recipe = job_recipe(job, tokens, self._files.spec.hidden_size)
        if not (self._folder / f"library-{blocks}.done").exists():
            with self._working(f"library-{blocks}", f"library ({blocks})") as tell:
                run_library(job, Local(), tell)
            write_text(self._folder / f"library-{blocks}.done", recipe.id + "\n")
        return recipe.id

    @functools.cache  # noqa: B019
    def _scores(self, blocks: Blocks, metric: str) -> ScoreTable:
        if metric == "params":
            return parameter_scores(self._files.spec, self._space, self._files.architecture)
        out = self._folder / f"scores-{blocks}"
        if not (out / f"{metric}.parquet").exists():
            recipe = self._library(blocks)
            make_folder(out)
            job = ScoreJob(
                parent=self._parent,
                library=self._folder / "library",
                out=out,
                recipe=recipe,
                data=self._score_text,
                sequences=self._settings.score_sequences,
                length=self._settings.length,
                device=self._settings.device,
                precision=self._settings.precision,
            )
            with self._working(f"scores-{blocks}", f"scores ({blocks})") as tell:
                run_score_job(job, progress=tell)
        return read_score_table(out / f"{metric}.parquet")

    def _judged(self, architecture: Architecture, blocks: Blocks) -> dict[str, float]:
        """The quality of a child as put together."""

        def measure() -> dict[str, float]:
            recipe = self._library(blocks)
            library = open_library(self._folder / "library", parent_facts(self._files))
            states = architecture_states(library, recipe, self._files.architecture, architecture)
            child: Any = build_child(self._model, self._files.spec, architecture, states)
            return self._test.measure(child)

        return self._kept(
            {"architecture": architecture_to_json(architecture), "blocks": blocks, "losses": None}, measure
        )

    def _distilled(self, architecture: Architecture, blocks: Blocks, losses: LossWeights) -> dict[str, float]:
        """The quality of a child after a short global distillation."""
        stated = {"architecture": architecture_to_json(architecture), "blocks": blocks, "losses": asdict(losses)}
        out = self._folder / "children" / f"{short_digest(stated)}-distilled"
        measures = self._kept(stated, lambda: self._distil(stated, losses, out))
        remove_folder(out)  # its results are what is kept
        return measures

    def _distil(self, stated: Mapping[str, Any], losses: LossWeights, out: Path) -> dict[str, float]:
        blocks: Blocks = stated["blocks"]
        child = self._folder / "children" / short_digest({**stated, "losses": None})
        if not child.exists():
            realise(
                find_parent(self._parent, quiet=True),
                self._folder / "library",
                architecture_from_json(stated["architecture"]),
                child,
                recipe=self._library(blocks),
            )
        model = self._loaded(out)
        if model is None:
            remove_folder(out)
            job = DistilJob(
                parent=self._parent,
                child=child,
                out=out,
                data=self._train_text,
                recipe=self._distil_recipe(losses),
                device=self._settings.device,
                precision=self._settings.precision,
            )
            with self._working("distil", f"distil ({'+'.join(losses.weighted)})") as tell:
                run_distil_job(job, progress=tell)
            model = self._load(out)
        return self._test.measure(model)

    def _load(self, folder: Path) -> Any:
        return load_causal_lm(folder, dtype=DTYPES[self._settings.precision], device=self._settings.device)

    def _loaded(self, folder: Path) -> Any:
        """What a run that was killed before it judged it left there; None where it is not there, or not whole."""
        if not folder.exists():
            return None
        try:
            return self._load(folder)
        except ValueError:
            return None

    def _distil_recipe(self, losses: LossWeights) -> DistilRecipe:
        sequences = self._settings.distil_sequences
        batch = min(4, sequences)
        stage = Stage(length=self._settings.length, sequences=sequences, batch_size=batch)
        return DistilRecipe(
            losses=losses, stages=(stage,), warmup=max(1, stage.steps // 8), evaluations=1, seed=self._seed
        )

    def _kept(self, stated: Mapping[str, Any], measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """What was measured of a child, measured now if it is not on disk; the same child is not judged twice."""
        folder = self._folder / "judged"
        file = folder / f"{short_digest(stated)}.json"
        if file.exists():
            try:
                kept: dict[str, float] = json.loads(file.read_text())["measures"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{file} holds no results that can be read ({error}); remove it") from None
            return kept
        make_folder(folder)
        measures = measure()
        write_text(file, json.dumps({**stated, "measures": measures}, indent=1) + "\n")
        return measures

    @functools.cached_property
    def _model(self) -> Any:
        return load_parent(self._files, torch.device(self._settings.device), DTYPES[self._settings.precision])

    @functools.cached_property
    def _test(self) -> TestText:
        tokens = load_tokens(
            self._files, None, "test", sequences=self._settings.test_sequences, length=self._settings.length
        )
        return TestText(self._model, tokens, _BLOCK_BATCH)
