"""The search of a run: costs and scores to an architecture and a front. Knows no model weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from puzzlebench.estimate import DEFAULT_MEMORY_FRACTION
from puzzlebench.files import write_text
from puzzlebench.model.engine_rules import load_engine_rules
from puzzlebench.model.spec import parent_architecture
from puzzlebench.pipeline.recipe import RunRecipe, SearchTarget
from puzzlebench.pipeline.run_folder import RunFolder
from puzzlebench.profiling.cost_table import CostTable, open_cost_table
from puzzlebench.scores import read_score_table
from puzzlebench.searching.cells import spec_of
from puzzlebench.searching.costs import SearchCosts, device_memory_limit, load_costs
from puzzlebench.searching.pareto import front_json, pareto
from puzzlebench.searching.report import search_facts, search_json, why_not_json, write_search
from puzzlebench.searching.scenarios import ResourceLimit, ServingScenario, join_limits, parse_limit
from puzzlebench.searching.search import SearchSettings, count_again, search_architectures
from puzzlebench.searching.why_not import WhyNot, why_not


class InfeasibleError(ValueError):
    """No architecture keeps the limits."""


def run_search(recipe: RunRecipe, folder: RunFolder, report: Callable[[float, str], None]) -> None:
    """Write search.json, architecture.json and front.json.

    Raises:
        InfeasibleError: no architecture keeps the limits; the message says how near they can be had.
        ValueError: tables and scenario do not fit.
    """
    target, served = recipe.search, recipe.scenario
    table = open_cost_table(str(folder.costs))
    scores_file = folder.scores / f"{recipe.score.metric}.parquet"
    scores = read_score_table(scores_file, metric=None, direction=None, parent=None, partial=False)
    scenario = ServingScenario(
        name=f"{served.prefill_len}+{served.decode_len}",
        prefill_len=served.prefill_len,
        decode_len=served.decode_len,
    )
    rules = load_engine_rules(target.engine_rules) if target.engine_rules else None
    costs = load_costs(table, scores, (scenario,), engine_rules=rules)
    if served.batch_size not in costs.batch_sizes:
        known = ", ".join(map(str, costs.batch_sizes))
        raise ValueError(f"{folder.costs} has no batch size {served.batch_size}; it has {known}")
    parent = count_again(costs, table, parent_architecture(spec_of(table)), served.batch_size)
    limits, own_memory = _limits(target, table, parent.values["throughput"])
    costs = costs.with_limits(limits)
    parent = count_again(costs, table, scores.parent, served.batch_size)  # beside the limits
    settings = SearchSettings(batch_sizes=(served.batch_size,), time_limit=target.time_limit)
    outcome = search_architectures(costs, table, scores, settings, report=lambda done, stage: report(done * 0.5, stage))
    facts = search_facts(
        costs,
        table,
        scores,
        (scenario,),
        limits,
        memory_is_default=own_memory,
        engine_rules=target.engine_rules,
        rules=(),
        confidence=None,
        costs_from=folder.costs.name,
        scores_from=f"{folder.scores.name}/{scores_file.name}",
    )
    if not outcome.found:
        found = why_not(costs, settings)
        write_search(folder.search, why_not_json(facts, found), [])
        raise InfeasibleError(_refusal(found, parent.values["throughput"]))
    answer = search_json(facts, outcome, (), None, parent)
    write_search(folder.search, answer, [outcome.found[0].architecture])
    if target.front_points:
        _write_front(costs, table, target, served.batch_size, folder, facts, report)


def _write_front(
    costs: SearchCosts,
    table: CostTable,
    target: SearchTarget,
    batch_size: int,
    folder: RunFolder,
    facts: dict[str, Any],
    report: Callable[[float, str], None],
) -> None:
    """The front of throughput and score, under the limits of memory only: it shows what other targets would give."""
    memory = tuple(limit for limit in costs.limits if limit.resource == "memory")
    front = pareto(
        costs.with_limits(memory),
        (batch_size,),
        "throughput",
        "score",
        table=table,
        points=target.front_points,
        time_limit=target.time_limit,
        report=lambda done, stage: report(0.5 + done * 0.5, stage),
    )
    write_text(folder.search / "front.json", json.dumps(facts | front_json(front), indent=1) + "\n")


def _limits(target: SearchTarget, table: CostTable, parent_rate: float) -> tuple[tuple[ResourceLimit, ...], bool]:
    """The limits, and whether the one of memory is ours."""
    given = [parse_limit(name, text) for name, text in target.limits.items()]
    if target.speed_up is not None:
        asked = target.speed_up * (1 + target.margin) * parent_rate
        given.append(ResourceLimit(resource="throughput", low=asked))
    ours = None if "max-memory" in target.limits else device_memory_limit(table, DEFAULT_MEMORY_FRACTION)
    return join_limits([*given, *([ours] if ours else [])]), ours is not None


def _refusal(found: WhyNot, parent_rate: float) -> str:
    """One line: what clashes and what would do."""
    parts = []
    for limit in found.limits:
        if limit.clashes:
            nearest = limit.alone if limit.with_others is None else limit.with_others
            text = f"{limit.asked.text} (nearest {nearest:.6g}"
            if limit.asked.column.startswith("throughput"):
                text += f", {nearest / parent_rate:.2f} times the parent's"
            parts.append(text + ")")
    return f"no architecture keeps these limits: {'; '.join(parts)}; lower search.speed_up or loosen search.limits"
