"""What is known of a child by measurement, as plain values. Knows no file.

A number that is not known is not a number, and so are the unknown ends of an interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from puzzlebench.estimate import Interval
from puzzlebench.searching.scenarios import ResourceLimit, ServingScenario

PHASES: Final = ("prefill", "decode", "generate")
"""What speed.json has speed-ups of; `decode` is the time per token after the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchEvidence:
    """Under what the architecture was chosen, and what the cost table says of it.

    Attributes:
        title: model, device, engine and number formats of the cost table.
        cost_source: who measured or modelled the table.
        cost_cells: cells of the table by provenance.
        limits: that hold in every scenario without one of its own.
        values, parent_values: by resource, in the units of `Resource`; the parent's are empty where it was not costed.
        proven: no architecture in the space has a better score under these limits.
    """

    title: str
    device: str
    engine: str
    cost_source: str
    cost_cells: Mapping[str, int]
    metric: str
    scenarios: tuple[ServingScenario, ...]
    limits: tuple[ResourceLimit, ...]
    memory_limit_is_default: bool
    engine_rules: tuple[str, ...]
    batch_size: int
    values: Mapping[str, float]
    parent_values: Mapping[str, float]
    proven: bool
    created: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskKept:
    """One task; `retained` is child over parent, or the other way round where low values are good."""

    task: str
    metric: str
    parent: float
    child: float
    retained: Interval
    documents: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RetentionEvidence:
    """What the child keeps of its parent; 1 is all. An unknown end of an interval is not a number.

    Attributes:
        before: overall, before global distillation; None where that was not evaluated.
    """

    overall: Interval
    tasks: tuple[TaskKept, ...]
    lm_eval_version: str
    notes: tuple[str, ...]
    created: str
    before: Interval | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedEvidence:
    """What was timed of parent and child, and what the cost table said before.

    Attributes:
        times: milliseconds of parent and child, by `PHASES`.
        speed_ups: of the child, by `PHASES`.
        predicted: the same from the cost table; empty without one.
        errors: of those, predicted over measured less 1.
        other_setup: in what that cost table is of something else than was measured, a sentence each.
    """

    device: str
    engine: str
    engine_version: str
    precision: str
    batch_size: int
    prefill_len: int
    decode_len: int
    sessions: int
    times: tuple[Mapping[str, Interval], Mapping[str, Interval]]
    speed_ups: Mapping[str, Interval]
    predicted: Mapping[str, float]
    errors: Mapping[str, float]
    other_setup: tuple[str, ...]
    created: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationEvidence:
    """How the child was trained as a whole.

    Attributes:
        data: its name, without folders.
        losses: weights of the terms that were minimised.
        held_out: by term, first and last value on rows of one length that are not trained on.
    """

    tokens: int
    steps: int
    data: str
    losses: Mapping[str, float]
    held_out: Mapping[str, tuple[float, float]]
    optimiser: str
    precision: str
    device: str
    seconds: float
    created: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """All that is known of one child; what is None was not given.

    Attributes:
        notes: what could not be checked, a sentence each.
    """

    search: SearchEvidence | None = None
    retention: RetentionEvidence | None = None
    speed: SpeedEvidence | None = None
    distillation: DistillationEvidence | None = None
    notes: tuple[str, ...] = ()
