"""The same documents of both sides, side by side; what differs between two runs is refused or said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from puzzlebench.evaluation.stored import Sample, Side, StoredTask, read_samples

_SETTINGS: Final = (
    ("lm_eval_version", "lm-eval"),
    ("transformers_version", "transformers"),
    ("chat_template_sha", "chat template"),
    ("system_instruction_sha", "system instruction"),
)
_CONFIG: Final = (("model", "backend"), ("model_dtype", "dtype"), ("gen_kwargs", "generation arguments"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Joined:
    """The samples of both sides.

    Attributes:
        parent, child: all samples, by document id.
        places: of the documents that both have, in the order of `parent` and of `child`.
        chance: what guessing reaches, of multiple choice.
        notes: what the reader should know, a line each.
    """

    parent: dict[int, Sample]
    child: dict[int, Sample]
    places: tuple[list[int], list[int]]
    chance: float | None
    notes: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether both sides have the same documents."""
        return len(self.places[0]) == len(self.parent) == len(self.child)


def check_same_task(parent: StoredTask, child: StoredTask) -> None:
    """Raise ValueError where two results of a task cannot be compared at all."""
    for what, one, other in (
        ("version", parent.version, child.version),
        ("number of shots", parent.shots, child.shots),
    ):
        if one != other:
            raise ValueError(
                f"{parent.name}: the parent's {what} is {one} and the child's {other}; run one of them again"
            )


def join(parent: StoredTask, child: StoredTask, metric: str) -> Joined:
    """The documents of both, matched by id and hash.

    Raises:
        ValueError: documents of the same id differ, or the sides have none in common.
    """
    own, other = read_samples(parent, metric), read_samples(child, metric)
    both = [number for number in own if number in other]
    changed = [number for number in both if own[number].document_hash != other[number].document_hash]
    if changed:
        raise ValueError(
            f"{parent.name}: {len(changed)} of {len(both)} documents differ between the sides, the first is document "
            f"{changed[0]}; they had other data, so they cannot be compared"
        )
    if not both:
        raise ValueError(f"{parent.name}: the sides have no document in common")
    notes = []
    if len(both) < max(len(own), len(other)):
        notes.append(
            f"{parent.name}: the parent has {len(own)} documents and the child {len(other)}; compared are the "
            f"{len(both)} that both have"
        )
    asked = sum(own[number].prompt_hash != other[number].prompt_hash for number in both)
    if asked:
        notes.append(f"{parent.name}: {asked} of {len(both)} prompts differ between the sides")
    first, second = ({number: place for place, number in enumerate(samples)} for samples in (own, other))
    chance = None
    if parent.config.get("output_type") == "multiple_choice":
        twice = (
            2 if any(name.startswith("acc_mutual_info,") for name in parent.metrics) else 1
        )  # with and without context
        chance = float(np.mean([twice / own[number].requests for number in both]))
    return Joined(
        parent=own,
        child=other,
        places=([first[number] for number in both], [second[number] for number in both]),
        chance=chance,
        notes=tuple(notes),
    )


def differing_settings(parent: Side, child: Side, tasks: Sequence[str]) -> list[str]:
    """What differs between the runs and does not forbid a comparison, a line each."""
    found: dict[str, None] = {}
    for name in tasks:
        own, other = parent.tasks[name].header, child.tasks[name].header
        pairs: list[tuple[str, Any, Any]] = [(label, own.get(key), other.get(key)) for key, label in _SETTINGS]
        one, two = own.get("config") or {}, other.get("config") or {}
        pairs += [(label, one.get(key), two.get(key)) for key, label in _CONFIG]
        for label, first, second in pairs:
            if (first or None) != (second or None):  # nothing is written as null, {} or not at all
                found[f"{label} differs: {first} for the parent, {second} for the child"] = None
    return list(found)
