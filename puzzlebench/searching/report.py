"""Searches as JSON, and what a search writes. Every number keeps its plain unit: bytes, seconds, tokens per second."""

from __future__ import annotations

import datetime
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import puzzlebench
from puzzlebench.files import write_text
from puzzlebench.model.blocks import Architecture, architecture_to_json
from puzzlebench.profiling.cost_table import CostTable
from puzzlebench.scores import ScoreTable
from puzzlebench.searching.compare import Compared
from puzzlebench.searching.costs import SearchCosts
from puzzlebench.searching.recheck import Recheck
from puzzlebench.searching.refining import RefinedArchitecture
from puzzlebench.searching.scenarios import ResourceLimit, ServingScenario
from puzzlebench.searching.search import Confidence, Found, SearchOutcome
from puzzlebench.searching.why_not import WhyNot

SCHEMA_VERSION = 1
_OURS = re.compile(r"architecture(\.([2-9]|[1-9][0-9]+|refined))?\.json")


def search_facts(
    costs: SearchCosts,
    table: CostTable,
    scores: ScoreTable,
    scenarios: Sequence[ServingScenario],
    limits: Sequence[ResourceLimit],
    *,
    memory_is_default: bool,
    engine_rules: str | None,
    rules: Sequence[str],
    confidence: Confidence | None,
    costs_from: str,
    scores_from: str,
) -> dict[str, Any]:
    """What was asked, of which tables: the head of every report."""
    first = table.frame.iloc[0]
    provenance = table.frame["provenance"].value_counts()
    return {
        "schema_version": SCHEMA_VERSION,
        "puzzlebench_version": puzzlebench.__version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "title": (
            f"{costs.spec.name} on {first['gpu']} ({first['engine']} {first['engine_version']}, weights "
            f"{first['weight_dtype']}, KV cache {first['kv_dtype']}, tensor parallel {first['tensor_parallel']})"
        ),
        "model": costs.spec.name,
        "gpu": str(first["gpu"]),
        "engine": f"{first['engine']} {first['engine_version']}",
        "costs": {
            "from": costs_from,
            "source": str(first["source"]),
            "created": table.metadata.get("created"),
            "cells": {str(name): int(count) for name, count in provenance.items()},
        },
        "scores": {
            "from": scores_from,
            "metric": scores.metric,
            "direction": scores.direction,
            "source": scores.metadata.get("source"),
        },
        "scenarios": [asdict(scenario) for scenario in scenarios],
        "limits": [asdict(limit) for limit in limits],
        "memory_limit_is_default": memory_is_default,
        "confidence": None if confidence is None else asdict(confidence),
        "engine_rules": engine_rules,
        "rules": list(rules),
        "choices": len(costs.candidates.names),
        "layers": costs.spec.num_hidden_layers,
        "removed": [asdict(removal) for removal in costs.removed],
        "unused": list(costs.unused),
    }


def search_json(
    facts: dict[str, Any],
    outcome: SearchOutcome,
    compared: Sequence[Compared],
    refined: RefinedArchitecture | None,
    parent: Recheck | None,
) -> dict[str, Any]:
    """A search that found something; numbers that are not there or not finite are null.

    Args:
        parent: at the batch size of the first solution.
    """
    return facts | {
        "outcome": "optimal" if outcome.proven else "stopped",
        "bound": _finite(outcome.bound),
        "gap": outcome.gap,
        "parent_score": outcome.parent_score,
        "parent": None if parent is None else {"batch_size": parent.batch_size} | _check_json(parent),
        "price_of_confidence": outcome.price,
        "seconds": outcome.seconds,
        "solutions_wanted": outcome.wanted,
        "solutions": [_found_json(found) for found in outcome.found],
        "batches": [asdict(batch) | {"bound": _finite(batch.bound)} for batch in outcome.batches],
        "baselines": [asdict(one) for one in compared],
        "refined": None if refined is None else _refined_json(refined),
    }


def why_not_json(facts: dict[str, Any], found: WhyNot) -> dict[str, Any]:
    """A search that proved there is nothing."""
    batches = [
        {"batch_size": batch_size, "needs": [asdict(end) for end in ends]} for batch_size, ends in found.batches.items()
    ]
    return facts | {"outcome": "infeasible", "solutions": [], "explanation": asdict(found) | {"batches": batches}}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _found_json(found: Found) -> dict[str, Any]:
    result = found.result
    return {
        "batch_size": found.batch_size,
        "architecture": architecture_to_json(found.architecture),
        "objective": found.objective,
        "bound": _finite(result.bound),
        "gap": result.gap,
        "outcome": result.outcome,
        "solver": result.solver,
        "seconds": result.seconds,
        "root_bound": _finite(result.root_bound),
        "choices": result.choices,
        "choices_left": result.choices_left,
        "gain_per_percent": found.gains,
        "at_confidence": [
            {"column": column, "end": end, "value": value} for (column, end), value in found.at_confidence.items()
        ],
        "shared_layers": list(found.shared),
    } | _check_json(found.check)


def _refined_json(refined: RefinedArchitecture) -> dict[str, Any]:
    return {
        "batch_size": refined.batch_size,
        "architecture": architecture_to_json(refined.architecture),
        "additive_score": refined.additive,
        "whole_score": refined.real,
        "whole_score_of_first": refined.first_real,
        "evaluations": refined.evaluations,
        "stopped": refined.stopped,
    } | _check_json(refined.check)


def _check_json(check: Recheck) -> dict[str, Any]:
    return {
        "values": check.values,
        "limits": [
            {
                "column": limit.column,
                "value": limit.value,
                "low": limit.limit.low,
                "high": limit.limit.high,
                "holds": limit.holds,
            }
            for limit in check.limits
        ],
    }


def write_search(
    folder: Path,
    answer: dict[str, Any],
    architectures: Sequence[Architecture],
    refined: Architecture | None = None,
) -> None:
    """Write search.json, architecture.json for the best, architecture.2.json for the next, and so on.

    What an earlier search wrote there goes. search.json comes last, so that a folder with it is whole.

    Raises:
        ValueError: the folder cannot be written to.
    """
    names = ("architecture.json", *(f"architecture.{place}.json" for place in range(2, len(architectures) + 1)))
    files = dict(zip(names, architectures, strict=False))
    if refined is not None:
        files["architecture.refined.json"] = refined
    try:
        folder.mkdir(exist_ok=True)
        (folder / "search.json").unlink(missing_ok=True)
        for stale in folder.iterdir():
            if _OURS.fullmatch(stale.name):
                stale.unlink()
        for name, architecture in files.items():
            write_text(folder / name, json.dumps(architecture_to_json(architecture), indent=1))
        write_text(folder / "search.json", json.dumps(answer, indent=1))
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {os.strerror(error.errno or 0)}") from None
