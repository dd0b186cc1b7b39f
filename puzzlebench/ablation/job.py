"""All ablations over all seeds: one cost table, two libraries per seed, children judged on test text, resumable.

A seed decides the text that blocks and children are trained on (which documents, in which order), the text that scores
are taken on, and the order of the sequences. The parent, the cost table, the limit and the test text are the same for
all, unless every seed has a parent of its own. What is done is kept, one JSON file per child.
"""

from __future__ import annotations

import datetime
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

import puzzlebench
from puzzlebench.ablation.experiments import Experiment, chosen_experiments
from puzzlebench.ablation.seed import Runner
from puzzlebench.ablation.settings import SeedSettings
from puzzlebench.ablation.summary import summarise
from puzzlebench.digest import short_digest
from puzzlebench.files import locked, make_folder, write_text
from puzzlebench.model.checks import require_positive_int
from puzzlebench.model.space import SearchSpace, default_kv_heads, default_space
from puzzlebench.parent.open import EMBEDDED, ParentFiles, find_parent
from puzzlebench.profiling.cost_table import CostTable, open_cost_table, read_cost_table, write_cost_table
from puzzlebench.progress import part_of
from puzzlebench.text.corpus import Split, standard_library
from puzzlebench.training.precision import Precision

ABLATIONS_SCHEMA: Final = 1
_CHARACTERS_PER_TOKEN: Final = 8  # more than any tokenizer packs into one, so that the text is always enough
_PROFILE_SHARE: Final = 0.05
_FFN_FRACTIONS: Final = (1.0, 0.5, 0.25)


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationJob:
    """What to compare, and how much to spend on it.

    Attributes:
        parent: a name `find_parent` knows.
        out: where everything goes; goes on there where it stopped.
        seeds: how many, from 0.
        only: names of ablations; empty for all.
        scale: factor of the tokens and steps of everything, and of the time to measure; 1 takes about 20 minutes on two
            calm cores once the parent is made.
        costs: a cost table; None measures one here.
        speed_up: how many times the parent's predicted throughput every child must have.
        distil_all: also distil the children of the other ablations, with the paper's losses.
        parent_seeds: another embedded parent for every seed.
        batch_size, prefill_len, decode_len: of the scenario the limit is of.
    """

    parent: str = EMBEDDED
    out: Path
    seeds: int = 3
    only: tuple[str, ...] = ()
    scale: float = 1.0
    costs: Path | None = None
    speed_up: float = 2.0
    distil_all: bool = False
    parent_seeds: bool = False
    batch_size: int = 4
    prefill_len: int = 128
    decode_len: int = 128
    device: str = "cpu"
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        for name in ("seeds", "batch_size", "prefill_len", "decode_len"):
            require_positive_int(name, getattr(self, name))
        chosen_experiments(self.only)
        if not self.scale > 0:
            raise ValueError(f"the scale must be above 0, not {self.scale}")
        if not self.speed_up > 1:
            raise ValueError(f"the speed-up must be above 1, not {self.speed_up}")
        if self.parent_seeds and self.parent != EMBEDDED:
            raise ValueError(f"only the {EMBEDDED} parent is made anew for every seed; {self.parent} is one")

    def settings(self, max_positions: int) -> SeedSettings:
        """Sizes after scaling."""

        def scaled(value: int, least: int) -> int:
            return max(least, round(value * self.scale))

        return SeedSettings(
            length=min(256, max_positions),
            library_sequences=scaled(128, 20),
            steps=scaled(32, 1),
            score_sequences=scaled(16, 4),
            test_sequences=scaled(64, 4),
            distil_sequences=scaled(128, 4),
            speed_up=self.speed_up,
            distil_all=self.distil_all,
            batch_size=self.batch_size,
            prefill_len=self.prefill_len,
            decode_len=self.decode_len,
            device=self.device,
            precision=self.precision,
        )


def run_ablations(
    job: AblationJob, *, progress: Callable[[float, str], None] = lambda _share, _stage: None
) -> dict[str, Any]:
    """Run what is missing, and put all results together; also written to `ablations.json` in the folder.

    Raises:
        ValueError: the parent or the cost table does not fit, nothing keeps the limit, or the folder is in use or holds
            ablations with other settings.
    """
    experiments = chosen_experiments(job.only)
    progress(0.0, "parent")
    files = find_parent(job.parent)
    settings = job.settings(files.spec.max_position_embeddings)
    space = ablation_space(files)
    make_folder(job.out)
    with locked(job.out / "lock", "runs ablations there"):
        _keep_settings(job, settings, files)
        table = _cost_table(job, files, space, part_of(progress, 0.0, _PROFILE_SHARE, "cost table"))
        runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for seed in range(job.seeds):
            begin = _PROFILE_SHARE + (1 - _PROFILE_SHARE) * seed / job.seeds

            def tell(share: float, stage: str, seed: int = seed, begin: float = begin) -> None:
                whole = (1 - _PROFILE_SHARE) / job.seeds
                progress(begin + share * whole, f"seed {seed}: {stage}")

            for key, run in _run_seed(job, settings, seed, space, table, experiments, tell).items():
                runs.setdefault(key, []).append(run)
        result = _result(job, settings, files, table, summarise(experiments, runs))
        write_text(job.out / "ablations.json", json.dumps(result, indent=1) + "\n")
    return result


def ablation_space(files: ParentFiles) -> SearchSpace:
    """The parent's sub-blocks, a quarter of its key-value heads, FFNs of half and a quarter of its width, and linear
    layers and no-ops.
    """
    heads = default_kv_heads(files.spec.num_key_value_heads)[::2]
    return default_space(files.spec, files.architecture, kv_heads=heads, ffn_fractions=_FFN_FRACTIONS)


def _parent_of(job: AblationJob, seed: int) -> str:
    """The name of a seed's parent."""
    if not job.parent_seeds or seed == 0:
        return job.parent
    from puzzlebench.parent.embedded import ParentRecipe, make_embedded

    return str(make_embedded(ParentRecipe(seed=seed)))


def _run_seed(
    job: AblationJob,
    settings: SeedSettings,
    seed: int,
    space: SearchSpace,
    table: CostTable,
    experiments: tuple[Experiment, ...],
    tell: Callable[[float, str], None],
) -> dict[tuple[str, str], dict[str, Any]]:
    folder = job.out / f"seed-{seed}"
    make_folder(folder)
    needed = settings.length * max(settings.library_sequences, settings.distil_sequences)
    runner = Runner(
        parent=_parent_of(job, seed),
        folder=folder,
        seed=seed,
        settings=settings,
        space=space,
        table=table,
        train_text=_text(folder, "train", seed, needed),
        score_text=_text(folder, "validation", seed, settings.length * settings.score_sequences),
        report=tell,
    )
    return runner.run(experiments)


def _text(folder: Path, split: Split, seed: int, tokens: int) -> Path:
    """Documents of a split in this seed's order, enough for so many tokens."""
    file = folder / f"{split}.jsonl"
    if file.exists():
        return file
    documents = standard_library(split)
    random.Random(seed).shuffle(documents)  # noqa: S311 (an order, not a secret)
    lines, characters = [], 0
    for document in documents:
        lines.append(json.dumps({"text": document.text}))
        characters += len(document.text)
        if characters >= _CHARACTERS_PER_TOKEN * tokens:
            break
    write_text(file, "\n".join(lines) + "\n")
    return file


def _cost_table(job: AblationJob, files: ParentFiles, space: SearchSpace, tell: Callable[[float], None]) -> CostTable:
    """The one given, or one measured here once, of just the scenario's cells."""
    if job.costs is not None:
        return open_cost_table(str(job.costs))
    file = job.out / "costs.parquet"
    if not file.exists():
        from puzzlebench.measuring.device import local_device
        from puzzlebench.measuring.live import profile_live
        from puzzlebench.measuring.plan import Effort
        from puzzlebench.profiling.profile import scenario_grid
        from puzzlebench.scenario import Precision as Formats

        grid = scenario_grid(batch_size=job.batch_size, prefill_len=job.prefill_len, decode_len=job.decode_len)
        profile = profile_live(
            files.spec,
            files.architecture,
            space,
            Formats(weight_dtype=job.precision, kv_dtype=job.precision),
            grid,
            local_device(job.device),
            "torch",
            Effort(sessions=4, seconds=max(60.0 * job.scale, 1.0)),
            job.out / "costs.run",
            lambda share, _stage: tell(share),
        )
        write_cost_table(profile.table, file)
    return read_cost_table(file)


def _stated(job: AblationJob, settings: SeedSettings, files: ParentFiles) -> dict[str, Any]:
    return {
        "schema_version": ABLATIONS_SCHEMA,
        "parent_fingerprint": files.fingerprint,
        "parent_seeds": job.parent_seeds,
        "settings": settings.to_json(),
        "costs": None if job.costs is None else str(job.costs),
    }


def _keep_settings(job: AblationJob, settings: SeedSettings, files: ParentFiles) -> None:
    """Write down what results depend on, or refuse a folder in which it was something else; seeds may be added."""
    file, stated = job.out / "settings.json", _stated(job, settings, files)
    if not file.exists():
        write_text(file, json.dumps(stated, indent=1))
        return
    try:
        there: Any = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    for key in stated:
        if short_digest(there.get(key)) != short_digest(stated[key]):
            raise ValueError(f"{job.out} holds ablations with other {key}; give another folder, or remove that one")


def _result(
    job: AblationJob, settings: SeedSettings, files: ParentFiles, table: CostTable, experiments: list[dict[str, Any]]
) -> dict[str, Any]:
    first = table.frame.iloc[0]
    return {
        "schema_version": ABLATIONS_SCHEMA,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "puzzlebench_version": puzzlebench.__version__,
        "parent": {"name": files.name, "fingerprint": files.fingerprint, "one_per_seed": job.parent_seeds},
        "seeds": job.seeds,
        "scale": job.scale,
        "settings": settings.to_json(),
        "limit": {
            "speed_up": job.speed_up,
            "scenario": {
                "batch_size": job.batch_size,
                "prefill_len": job.prefill_len,
                "decode_len": job.decode_len,
            },
            "costs": "costs.parquet" if job.costs is None else str(job.costs),
            "costs_of": f"{first['gpu']}, {first['engine']} {first['engine_version']}, {first['weight_dtype']}",
            "source": table.metadata.get("source", ""),
        },
        "torch": torch.__version__,
        "experiments": experiments,
    }
