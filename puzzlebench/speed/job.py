"""One measurement of speed: which models, at which size, how long; carried out in fresh processes and resumable.

All models run in the same process, by turns, so that a drift of the machine falls on all of them. What is written:

    speed.json      the result
    run/            job.json, prompts.json, and what every session wrote (see `measuring.run_directory`)
"""

from __future__ import annotations

import datetime
import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

import puzzlebench
from puzzlebench.digest import short_digest
from puzzlebench.files import locked, make_folder, write_text
from puzzlebench.measuring.device import Device, fingerprint, local_device
from puzzlebench.measuring.measure import death, is_finished, run_process
from puzzlebench.measuring.run_directory import RunDirectory
from puzzlebench.model import memory
from puzzlebench.model.checks import require_positive_int
from puzzlebench.model.spec import ModelSpec
from puzzlebench.parent.open import ParentFiles, find_parent, load_tokenizer
from puzzlebench.profiling.cost_table import CostTable, read_cost_table
from puzzlebench.speed.loading import check_expressible
from puzzlebench.speed.predict import Speed, SpeedScenario, predict
from puzzlebench.speed.results import Measured, read_measured
from puzzlebench.speed.runners import ENGINES, SpeedEngine, engine_version
from puzzlebench.text.corpus import read_documents, standard_library
from puzzlebench.text.tokens import Tokens, pack_documents
from puzzlebench.training.precision import DTYPES, Precision

SPEED_SCHEMA: Final = 1
_JOB_SCHEMA: Final = 2
_SAME_MACHINE: Final = ("puzzlebench", "device", "torch", "cuda", "transformers", "threads")
_PHASES: Final = {"prefill": "prefill_ms", "decode": "tpot_ms", "generate": "generate_ms"}


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedJob:
    """What to measure.

    Attributes:
        models: label and checkpoint folder of each; the first is the parent, the others are compared with it.
        device: local, cpu, cuda or cuda:N.
        sessions: fresh processes, one after the other.
        seconds: of timing, all sessions together.
        costs: a cost table to predict the same from.
        folder: where `speed.json` and the raw samples go.
        data: text for the prompts, over and over where it is short; None for the validation files of Python's standard
            library.
    """

    models: tuple[tuple[str, Path], ...]
    batch_size: int
    prefill_len: int
    decode_len: int
    engine: SpeedEngine = "torch"
    device: str = "local"
    precision: Precision = "fp32"
    sessions: int = 5
    seconds: float = 100.0
    costs: Path | None = None
    folder: Path
    data: Path | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        if not self.models:
            raise ValueError("there is no model to measure")
        labels = [label for label, _ in self.models]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"two models are called {label!r}; give each a name of its own")
        if self.engine not in ENGINES:
            raise ValueError(f"engine {self.engine!r} cannot run checkpoints; use {' or '.join(ENGINES)}")
        if self.precision not in DTYPES:
            raise ValueError(f"precision {self.precision!r} is not known; use {' or '.join(DTYPES)}")
        _ = self.scenario
        require_positive_int("sessions", self.sessions)
        if not self.seconds > 0:
            raise ValueError(f"seconds must be above 0, not {self.seconds}")

    @property
    def scenario(self) -> SpeedScenario:
        """The size of a run."""
        return SpeedScenario(batch_size=self.batch_size, prefill_len=self.prefill_len, decode_len=self.decode_len)


def precision_of(costs: Path | None, device: str) -> Precision:
    """The number format to run checkpoints in: that of a cost table's weights; without one fp32 on CPUs, bf16 on GPUs.

    Checkpoints are not run in formats such as fp8: then it is bf16, and the result says that the table's is another
    (`same_precision`).

    Args:
        device: local, cpu, cuda or cuda:N.

    Raises:
        ValueError: the table cannot be read, or there is no such device.
    """
    if costs is None:
        return "fp32" if local_device(device).kind == "cpu" else "bf16"
    return "fp32" if read_cost_table(costs).frame["weight_dtype"].iloc[0] == "fp32" else "bf16"


def measure_speed(
    job: SpeedJob, *, progress: Callable[[float, str], None] = lambda _share, _stage: None
) -> dict[str, Any]:
    """Measure, or go on where an earlier call stopped; the result is also written to `speed.json` in the folder.

    Raises:
        ValueError: a model cannot be loaded or run, the prompts are too long, there is no text, the cost table does not
            reach the scenario, the folder is in use or holds another measurement, or a session died.
    """
    progress(0.0, "models and prompts")
    device = local_device(job.device)
    found = [find_parent(str(folder), quiet=True) for _, folder in job.models]
    for (label, _), files in zip(job.models, found, strict=True):
        _check_model(job, label, files)
    table = None if job.costs is None else read_cost_table(job.costs)
    predictions = None if table is None else _predictions(job, table, found)
    prompts = make_prompts(found[0], job.data, job.scenario).tolist()
    stated = _stated(job, device, found, prompts)
    run_folder = job.folder / "run"
    fresh = not run_folder.exists()
    make_folder(run_folder)
    with locked(run_folder / "lock", "measures speed there") as lock:
        _keep_job(run_folder, stated, prompts)
        run = RunDirectory(run_folder, lock)
        try:
            for session in range(job.sessions):
                while not is_finished(run, session):
                    _session(run, session, job.sessions, progress)
        except ValueError:
            if fresh and not list(run_folder.glob("events.*.jsonl")):  # refused before anything was measured
                shutil.rmtree(run_folder)
            raise
        run.merge_samples()
        measured = read_measured(
            run, [label for label, _ in job.models], job.scenario, sessions=job.sessions, on_cpu=device.kind == "cpu"
        )
        result = _result(job, device, stated, measured, table, predictions, found)
        write_text(job.folder / "speed.json", json.dumps(result, indent=1) + "\n")
    return result


def make_prompts(files: ParentFiles, data: Path | None, scenario: SpeedScenario) -> Tokens:
    """The first token ids of the text, [B, P], of all its documents again and again where they are too few: which
    tokens they are does not change how long anything takes.

    Raises:
        ValueError: there is no text, or the parent has no tokenizer.
    """
    documents = standard_library("validation") if data is None else read_documents(data)
    wanted = scenario.batch_size * scenario.prefill_len
    # a document has a token at least, so more of them than tokens are never needed
    endless = itertools.islice(itertools.cycle(one for one in documents if one.text.strip()), wanted)
    return pack_documents(
        endless,
        load_tokenizer(files),
        sequences=scenario.batch_size,
        length=scenario.prefill_len,
        what="validation text" if data is None else str(data),
    )


def _check_model(job: SpeedJob, label: str, files: ParentFiles) -> None:
    """Raise ValueError, before a process is started, for a model that cannot do this."""
    import transformers

    tokens = job.prefill_len + job.decode_len
    if tokens > files.spec.max_position_embeddings:
        raise ValueError(
            f"{label} has {files.spec.max_position_embeddings} positions; {job.prefill_len} prompt tokens and "
            f"{job.decode_len} generated ones need {tokens}"
        )
    if job.engine == "torch":
        config = transformers.AutoConfig.from_pretrained(files.folder, trust_remote_code=False)
        check_expressible(config, files.spec)


def _stated(job: SpeedJob, device: Device, found: Sequence[ParentFiles], prompts: list[list[int]]) -> dict[str, Any]:
    """All that a session needs, and that may not change between the start of a measurement and its resumption."""
    facts = fingerprint(device)
    return {
        "schema": _JOB_SCHEMA,
        "models": [
            {"label": label, "folder": str(files.folder.resolve()), "fingerprint": files.fingerprint}
            for (label, _), files in zip(job.models, found, strict=True)
        ],
        "scenario": asdict(job.scenario),
        "prompts": short_digest(prompts),
        "engine": job.engine,
        "engine_version": engine_version(job.engine),
        "precision": job.precision,
        "device": device.torch_name,
        "sessions": job.sessions,
        "seconds": job.seconds,
        "machine": {key: facts[key] for key in _SAME_MACHINE},
    }


def _keep_job(folder: Path, stated: dict[str, Any], prompts: list[list[int]]) -> None:
    file = folder / "job.json"
    if not file.exists():
        write_text(folder / "prompts.json", json.dumps(prompts))
        write_text(file, json.dumps(stated, indent=1))
        return
    there = read_job(folder)
    for key in {**there, **stated}:
        if there.get(key) != stated.get(key):
            was, now = (json.dumps(one.get(key))[:60] for one in (there, stated))
            raise ValueError(
                f"{folder} holds a measurement with another {key} ({was}, now {now}); give another folder, or remove "
                "that one"
            )


def read_job(folder: Path) -> dict[str, Any]:
    """What `job.json` in a run's folder states.

    Raises:
        ValueError: there is none that can be read.
    """
    try:
        stated: dict[str, Any] = json.loads((folder / "job.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} has no job.json that can be read: {error}") from None
    return stated


def _session(run: RunDirectory, session: int, sessions: int, progress: Callable[[float, str], None]) -> None:
    def tell(message: dict[str, Any]) -> None:
        share = min(message["done"] / max(message["total"], 1e-9), 1.0)
        progress((session + share) / sessions, f"session {session + 1} of {sessions}: {message['stage']}")

    died = run_process("puzzlebench.speed.session", run, session, tell)
    if died:
        raise ValueError(death(run, session, died))


def _bytes_per_step(job: SpeedJob, files: ParentFiles) -> int:
    """What the last decode step goes through: all weights and the whole key-value cache."""
    cached = memory.kv_cache_bytes(
        files.spec,
        files.architecture,
        batch_size=job.batch_size,
        context_len=job.prefill_len + job.decode_len,
        kv_dtype=job.precision,
    )
    return memory.model_weight_bytes(files.spec, files.architecture, weight_dtype=job.precision) + cached


def _predictions(job: SpeedJob, table: CostTable, found: Sequence[ParentFiles]) -> list[Speed]:
    spec: ModelSpec = found[0].spec
    return [predict(table, spec, files.architecture, job.scenario) for files in found]


def _result(
    job: SpeedJob,
    device: Device,
    stated: dict[str, Any],
    measured: Measured,
    table: CostTable | None,
    predictions: list[Speed] | None,
    found: Sequence[ParentFiles],
) -> dict[str, Any]:
    labels = [label for label, _ in job.models]
    speed_ups = [
        {"model": label, **{phase: asdict(one[phase]) for phase in _PHASES}}
        for label, one in zip(labels[1:], measured.speed_ups, strict=True)
    ]
    return {
        "schema_version": SPEED_SCHEMA,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "puzzlebench_version": puzzlebench.__version__,
        "device": device.display_name,
        "engine": job.engine,
        "engine_version": stated["engine_version"],
        "precision": job.precision,
        "threads": stated["machine"]["threads"],
        "scenario": asdict(job.scenario),
        "sessions": job.sessions,
        "rounds": measured.rounds,
        "disturbed_share": measured.disturbed_share,
        "others_share": measured.others_share,
        "last_level_cache_bytes": device.last_level_cache_bytes,
        "models": [
            {
                "model": label,
                "fingerprint": files.fingerprint,
                "bytes_per_step": _bytes_per_step(job, files),
                **asdict(one),
            }
            for label, files, one in zip(labels, found, measured.speeds, strict=True)
        ],
        "speed_ups": speed_ups,
        "predictions": None
        if predictions is None
        else [{"model": label, **asdict(one)} for label, one in zip(labels, predictions, strict=True)],
        "predicted_speed_ups": None if predictions is None else _predicted_speed_ups(predictions, speed_ups),
        "costs": None if table is None else _costs(job, device, table),
        "tokens_agree": measured.tokens_agree,
    }


def _predicted_speed_ups(predictions: Sequence[Speed], measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    parent, *children = predictions
    rows = []
    for child, speed_up in zip(children, measured, strict=True):
        values = {phase: getattr(parent, field).value / getattr(child, field).value for phase, field in _PHASES.items()}
        errors = {phase: value / speed_up[phase]["value"] - 1 for phase, value in values.items()}
        rows.append({"model": speed_up["model"], **values, "error": errors})
    return rows


def _costs(job: SpeedJob, device: Device, table: CostTable) -> dict[str, Any]:
    first = table.frame.iloc[0]
    return {
        "from": str(job.costs),
        "source": table.metadata.get("source", ""),
        "gpu": str(first["gpu"]),
        "engine": str(first["engine"]),
        "weight_dtype": str(first["weight_dtype"]),
        "same_device": bool(first["gpu"] == device.name),
        "same_precision": bool(first["weight_dtype"] == job.precision),
    }


def prompts_of(folder: Path, device: torch.device) -> torch.Tensor:
    """The prompts of a run, [B, P] int64."""
    return torch.tensor(json.loads((folder / "prompts.json").read_text()), dtype=torch.long, device=device)
