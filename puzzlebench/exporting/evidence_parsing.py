"""From the JSON of search, retention, speed and distillation to values, by the names that those stages write.

Looks at other files only to see that a document is of the child it is said to be of.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from puzzlebench.estimate import Interval
from puzzlebench.exporting.evidence_values import (
    PHASES,
    DistillationEvidence,
    RetentionEvidence,
    SearchEvidence,
    SpeedEvidence,
    TaskKept,
)
from puzzlebench.model.blocks import Architecture, architecture_from_json, block_name
from puzzlebench.parent.fingerprint import checkpoint_fingerprint
from puzzlebench.searching.scenarios import ResourceLimit, ServingScenario

_TIMES = {"prefill": "prefill_ms", "decode": "tpot_ms", "generate": "generate_ms"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Child:
    """Which child documents must be of; nothing that is None is checked.

    Attributes:
        name: of its folder.
        same_weights: fingerprints that its checkpoint has.
        same_architecture: those of all checkpoints known to have its architecture, its own among them.
        notes: what could not be checked; parsers add to it.
    """

    name: str | None = None
    architecture: Architecture | None = None
    parent_fingerprint: str | None = None
    same_weights: frozenset[str] = frozenset()
    same_architecture: frozenset[str] = frozenset()
    notes: list[str] = field(default_factory=list)


def parse_search(stated: Mapping[str, Any], child: Child) -> SearchEvidence:
    """The solution that is the child.

    Raises:
        ValueError: the search found nothing, or none of what it found is the child's architecture.
    """
    found = [*stated["solutions"], *([stated["refined"]] if stated.get("refined") else [])]
    if not found:
        raise ValueError("the search found no architecture, so no child is of it")
    architectures = [architecture_from_json(one["architecture"]) for one in found]
    place = 0
    if child.architecture is not None:
        if child.architecture not in architectures:
            raise ValueError(_other_architecture(architectures[0], child.architecture))
        place = architectures.index(child.architecture)
    chosen, parent, costs = found[place], stated["parent"], stated["costs"]
    same_batch = parent is not None and parent["batch_size"] == chosen["batch_size"]
    return SearchEvidence(
        title=str(stated["title"]),
        device=str(stated["gpu"]),
        engine=str(stated["engine"]),
        cost_source=str(costs["source"]),
        cost_cells={str(name): int(count) for name, count in costs["cells"].items()},
        metric=str(stated["scores"]["metric"]),
        scenarios=tuple(
            ServingScenario(
                name=str(row["name"]),
                prefill_len=int(row["prefill_len"]),
                decode_len=int(row["decode_len"]),
                limits=_limits(row["limits"]),
            )
            for row in stated["scenarios"]
        ),
        limits=_limits(stated["limits"]),
        memory_limit_is_default=bool(stated["memory_limit_is_default"]),
        engine_rules=() if stated.get("engine_rules") is None else (str(stated["engine_rules"]),),
        batch_size=int(chosen["batch_size"]),
        values={str(name): _number(value) for name, value in chosen["values"].items()},
        parent_values={str(name): _number(value) for name, value in parent["values"].items()} if same_batch else {},
        proven=place == 0 and stated["outcome"] == "optimal",
        created=str(stated["created"]),
    )


def parse_retention(stated: Mapping[str, Any], child: Child) -> RetentionEvidence:
    """What the child kept.

    Raises:
        ValueError: it is of a checkpoint with other weights.
    """
    _check_weights(stated["child"], child)
    overall = stated["overall"]
    return RetentionEvidence(
        overall=_ends(overall, "retention", low="low", high="high"),
        tasks=tuple(
            TaskKept(
                task=str(row["task"]),
                metric=str(row["metric"]),
                parent=_number(row["parent"]),
                child=_number(row["child"]),
                retained=_ends(row, "retention", low="retention_low", high="retention_high"),
                documents=int(row["documents"]),
            )
            for row in stated["tasks"]
        ),
        lm_eval_version=str(stated["lm_eval_version"]),
        notes=tuple(str(note) for note in stated["notes"]),
        created=str(stated["created"]),
    )


def parse_speed(stated: Mapping[str, Any], child: Child, job: Path) -> SpeedEvidence:
    """The times of the child, and of the parent, which comes first.

    Args:
        job: the file beside it that says which label is of which checkpoint; it may be missing.

    Raises:
        ValueError: it has no child, or several and none that is known to be this one, or one of another architecture.
    """
    labels = [str(row["model"]) for row in stated["models"]]
    label = _label(labels[1:], child, job)
    times = {str(row["model"]): row for row in stated["models"]}
    ups = {str(row["model"]): row for row in stated["speed_ups"]}[label]
    predicted = {str(row["model"]): row for row in stated.get("predicted_speed_ups") or ()}.get(label)
    size = stated["scenario"]
    return SpeedEvidence(
        device=str(stated["device"]),
        engine=str(stated["engine"]),
        engine_version=str(stated["engine_version"]),
        precision=str(stated["precision"]),
        batch_size=int(size["batch_size"]),
        prefill_len=int(size["prefill_len"]),
        decode_len=int(size["decode_len"]),
        sessions=int(stated["sessions"]),
        times=(_times(times[labels[0]]), _times(times[label])),
        speed_ups={phase: _ends(ups[phase], "value", low="low", high="high") for phase in PHASES},
        predicted={} if predicted is None else {phase: _number(predicted[phase]) for phase in PHASES},
        errors={} if predicted is None else {phase: _number(predicted["error"][phase]) for phase in PHASES},
        other_setup=_other_setup(stated),
        created=str(stated["created"]),
    )


def parse_distillation(stated: Mapping[str, Any], child: Child) -> DistillationEvidence:
    """How the child was trained.

    Raises:
        ValueError: its parent was another one.
    """
    own = child.parent_fingerprint
    if own is not None and stated["parent_fingerprint"] != own:
        raise ValueError(f"the parent it is of, {_plain(stated['parent'])}, has other weights than this child's parent")
    recipe = stated["recipe"]
    weights = {name: _number(value) for name, value in recipe["losses"].items() if name != "temperature"}
    rows = stated["held_out"]
    same = [row for row in rows if row.get("length") == rows[-1].get("length")] if rows else []
    terms = [name for name in ("loss", *weights) if same and same[0].get(name) is not None]
    return DistillationEvidence(
        tokens=int(stated["tokens"]),
        steps=int(stated["steps"]),
        data=_plain(stated["data"]),
        losses={name: value for name, value in weights.items() if value},
        held_out={name: (_number(same[0][name]), _number(same[-1][name])) for name in terms},
        optimiser=str(recipe["optimiser"]),
        precision=str(stated["precision"]),
        device=str(stated["device"]),
        seconds=_number(stated["seconds"]),
        created=str(stated["created"]),
    )


def _other_architecture(found: Architecture, child: Architecture) -> str:
    if len(found.blocks) != len(child.blocks):
        return f"it is of another child: it chose {len(found.blocks)} layers and this one has {len(child.blocks)}"
    layer = next(place for place, pair in enumerate(zip(found.blocks, child.blocks, strict=True)) if pair[0] != pair[1])
    chosen, own = block_name(found.blocks[layer]), block_name(child.blocks[layer])
    return f"it is of another child: in layer {layer} it chose {chosen}, and this one has {own}"


def _check_weights(side: Mapping[str, Any], child: Child) -> None:
    """Raise ValueError where the checkpoint that was evaluated is here and another one; note where it is not here."""
    if not child.same_weights:
        return
    folder = Path(str(side["source"]))
    if (folder / "config.json").is_file():
        if checkpoint_fingerprint(folder) not in child.same_weights:
            raise ValueError(f"it is of another child: {folder} has other weights than {child.name}")
    else:
        child.notes.append(
            f"The evaluation is of a checkpoint called {_plain(side['name'])}, which is not there any more to compare."
        )


def _label(labels: list[str], child: Child, job: Path) -> str:
    """Which label is the child's."""
    if not labels:
        raise ValueError("it has no child beside the parent")
    known = _fingerprints(job)
    fitting = [label for label in labels if known.get(label) in child.same_architecture]
    if fitting:
        return next((label for label in fitting if known[label] in child.same_weights), fitting[0])
    if child.same_architecture and known:
        raise ValueError(f"it is of other checkpoints ({', '.join(labels)}) than {child.name}")
    if len(labels) > 1 and child.name not in labels:
        raise ValueError(f"it has {len(labels)} children ({', '.join(labels)}); this one is called {child.name}")
    label = child.name if child.name is not None and child.name in labels else labels[0]
    if child.same_architecture:
        child.notes.append(f"The times are of a checkpoint called {_plain(label)}; nothing says which weights it had.")
    return label


def _fingerprints(job: Path) -> dict[str, str]:
    try:
        return {str(row["label"]): str(row["fingerprint"]) for row in json.loads(job.read_text())["models"]}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{job.name} beside it cannot be read: {error}") from None


def _other_setup(stated: Mapping[str, Any]) -> tuple[str, ...]:
    costs = stated.get("costs") or {}
    found = []
    if costs.get("same_device") is False:
        found.append(f"The cost table is of {costs['gpu']}: its times are not of this device.")
    if costs.get("same_precision") is False:
        found.append(f"The cost table is of {costs['weight_dtype']} weights, measured was {stated['precision']}.")
    if costs.get("engine", stated["engine"]) != stated["engine"]:
        found.append(f"The cost table is of the engine {costs['engine']}, measured was {stated['engine']}.")
    return tuple(found)


def _limits(rows: list[Mapping[str, Any]]) -> tuple[ResourceLimit, ...]:
    return tuple(ResourceLimit(resource=row["resource"], low=row["low"], high=row["high"]) for row in rows)


def _times(row: Mapping[str, Any]) -> dict[str, Interval]:
    return {phase: _ends(row[column], "value", low="low", high="high") for phase, column in _TIMES.items()}


def _ends(row: Mapping[str, Any], value: str, *, low: str, high: str) -> Interval:
    return Interval(value=_number(row[value]), low=_number(row.get(low)), high=_number(row.get(high)))


def _number(value: object) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _plain(name: object) -> str:
    """A name as it is, and of a path its last part: a card says nothing about folders of the machine it is made on."""
    text = str(name)
    return PurePath(text).name if text.startswith(("/", "~", ".")) else text
