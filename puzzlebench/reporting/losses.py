"""How global distillation went: distillation.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from puzzlebench.reporting.documents import number


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One loss over training.

    Attributes:
        name: loss, or the term's.
        training: (step, value), of each batch that was kept.
        held_out: the same on text that is not trained on.
        lengths: of the held-out rows behind each of those, in tokens; None where it is not known.
    """

    name: str
    training: tuple[tuple[int, float], ...]
    held_out: tuple[tuple[int, float], ...]
    lengths: tuple[int | None, ...]

    def __post_init__(self) -> None:
        """Raise ValueError unless there is a length for each held-out value."""
        if len(self.lengths) != len(self.held_out):
            raise ValueError(f"{self.name} has {len(self.held_out)} held-out values and {len(self.lengths)} lengths")

    @property
    def last(self) -> float | None:
        """The held-out value at the end; None where nothing was held out after the first step."""
        return self.held_out[-1][1] if self.held_out and self.held_out[-1][0] > 0 else None

    @property
    def first(self) -> float | None:
        """That before training; None where it is of rows of another length than the last, so nothing to compare."""
        if not self.held_out or self.lengths[0] != self.lengths[-1]:
            return None
        step, value = self.held_out[0]
        return value if step == 0 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Distillation:
    """Curves of what was minimised, the sum of all terms first.

    Attributes:
        others: further losses on held-out text that were not trained on.
    """

    curves: tuple[Curve, ...]
    others: tuple[Curve, ...]
    tokens: int
    steps: int
    seconds: float
    stated: Mapping[str, Any]


def parse_distillation(stated: Mapping[str, Any]) -> Distillation:
    """The document as values."""
    training, held_out = stated["losses"], stated["held_out"]
    weights = stated["recipe"]["losses"]
    weighted = [name for name, weight in weights.items() if name != "temperature" and weight]
    others = [name for name in weights if name not in (*weighted, "temperature")]
    # One term alone is the loss.
    names = ["loss", *(weighted if len(weighted) > 1 else ())]
    return Distillation(
        curves=_curves(names, training, held_out),
        others=_curves(others, (), held_out),
        tokens=int(stated["tokens"]),
        steps=int(stated["steps"]),
        seconds=number(stated["seconds"]),
        stated=stated,
    )


def _curves(
    names: Sequence[str], training: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]]
) -> tuple[Curve, ...]:
    curves = []
    for name in names:
        rows = [row for row in held_out if row.get(name) is not None]
        lengths = tuple(None if row.get("length") is None else int(row["length"]) for row in rows)
        points = _points(rows, name)
        curves.append(Curve(name=name, training=_points(training, name), held_out=points, lengths=lengths))
    return tuple(curve for curve in curves if curve.training or curve.held_out)


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[tuple[int, float], ...]:
    return tuple((int(row["step"]), number(row[name])) for row in rows if row.get(name) is not None)
