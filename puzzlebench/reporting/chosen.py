"""What the search chose and the front it lies on: search.json and front.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from puzzlebench.model.blocks import Architecture, architecture_from_json
from puzzlebench.reporting.documents import number
from puzzlebench.searching.case_pool import SCORE
from puzzlebench.searching.pareto import Front, FrontPoint, SkippedBudget
from puzzlebench.searching.scenarios import ServingScenario


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """The answer of a search that found something.

    Attributes:
        values: of the best solution: the score, and every resource as `recheck` counts it.
        parent_values: the same of the parent at this batch size; empty where the table has no costs of it.
        stated: the document.
    """

    model: str
    gpu: str
    scenarios: tuple[ServingScenario, ...]
    batch_size: int
    architecture: Architecture
    values: dict[str, float]
    parent_values: dict[str, float]
    proven: bool
    stated: Mapping[str, Any]


def parse_search(stated: Mapping[str, Any]) -> Search:
    """The document as values.

    Raises:
        ValueError: the search found nothing.
    """
    if not stated["solutions"]:
        raise ValueError("the search found no architecture, so there is nothing to report; look into its explanation")
    best, parent = stated["solutions"][0], stated["parent"]
    return Search(
        model=str(stated["model"]),
        gpu=str(stated["gpu"]),
        scenarios=tuple(
            ServingScenario(
                name=row["name"], prefill_len=int(row["prefill_len"]), decode_len=int(row["decode_len"])
            )  # limits stay in `stated`
            for row in stated["scenarios"]
        ),
        batch_size=int(best["batch_size"]),
        architecture=architecture_from_json(best["architecture"]),
        values={SCORE: number(best["objective"])} | _numbers(best["values"]),
        parent_values={} if parent is None else {SCORE: number(stated["parent_score"])} | _numbers(parent["values"]),
        proven=stated["outcome"] == "optimal",
        stated=stated,
    )


def parse_front(stated: Mapping[str, Any]) -> Front:
    """The inverse of `pareto.front_json`."""
    return Front(
        x=stated["x"],
        y=stated["y"],
        x_better=stated["x_better"],
        y_better=stated["y_better"],
        points=tuple(
            FrontPoint(
                batch_size=int(row["batch_size"]),
                architecture=architecture_from_json(row["architecture"]),
                values=_numbers(row["values"]),
                x=number(row["x"]),
                y=number(row["y"]),
                budget=number(row["budget"]),
                proven=bool(row["proven"]),
                seconds=number(row["seconds"]),
            )
            for row in stated["points"]
        ),
        skipped=tuple(SkippedBudget(budget=number(row["budget"]), reason=row["reason"]) for row in stated["skipped"]),
        provenance=stated["provenance"],
        seconds=number(stated["seconds"]),
    )


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: number(value) for name, value in values.items()}
