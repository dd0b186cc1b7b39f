"""From a cost table, a score table and scenarios to the problems a search solves, one batch size at a time.

Latencies add up over blocks (the errors too, as if they were one, see `estimate`); embedding and head go to the base.
Memory is counted as `model.memory` does, with the table's bytes.

Legend for shapes: N choices, K sub-blocks of the table, S scenarios, R resources.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from puzzlebench.model.blocks import GQA, Architecture, parse_sub_block
from puzzlebench.model.checks import require_positive_int
from puzzlebench.model.engine_rules import EngineRules
from puzzlebench.model.memory import ACTIVATION_BYTES, LOGIT_BYTES
from puzzlebench.model.parameters import embedding_parameters, head_parameters, sub_block_parameters
from puzzlebench.model.sharding import padded_vocab_size
from puzzlebench.model.spec import ModelSpec, same_shapes, spec_facts
from puzzlebench.profiling.arrays import BoolArray, FloatArray, IntArray
from puzzlebench.profiling.cost_table import CostTable
from puzzlebench.scores import ScoreTable
from puzzlebench.searching.candidates import Candidates, Removal, scored_candidates, select_candidates
from puzzlebench.searching.case import WORKSPACE, Case, architecture_of, problem_limit
from puzzlebench.searching.cells import (
    EMBEDDING,
    HEAD,
    Cells,
    ScenarioCosts,
    check_lengths,
    describe,
    max_num_tokens_of,
    missing_cell,
    read_cells,
    scenario_costs,
    spec_of,
)
from puzzlebench.searching.layer_rules import LayerRule
from puzzlebench.searching.scenarios import ResourceLimit, ServingScenario, check_scenarios, column_name, limits_in
from puzzlebench_search.problem import Limit, Problem

NORMAL_95 = 1.959964
"""Standard errors from the middle of a normal distribution to the ends of its 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class SearchCosts:
    """What every choice scores and costs in every scenario, at every batch size of the table.

    Attributes:
        limits: that hold in every scenario without one of its own; the one of params among them.
        attention: (N,), where a choice's attention sub-block stands in `cells`.
        ffn: (N,).
        parameters: (K,), embedding and head among them; 0 for what no choice needs.
        windows: (K,), most tokens that are cached; infinite without a window.
        unused: sub-blocks that have costs but no scores, for people.
        tensor_parallel: GPUs that share the model.
    """

    spec: ModelSpec
    scenarios: tuple[ServingScenario, ...]
    limits: tuple[ResourceLimit, ...]
    candidates: Candidates
    cells: Cells
    attention: IntArray
    ffn: IntArray
    parameters: FloatArray
    windows: FloatArray
    unused: tuple[str, ...]
    tensor_parallel: int
    max_num_tokens: int
    tokens_per_block: int

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Those of the table, ascending."""
        return self.cells.batch_sizes

    @property
    def removed(self) -> tuple[Removal, ...]:
        """Choices that rules took out, with the reasons."""
        return self.candidates.removed

    def with_limits(self, limits: Sequence[ResourceLimit]) -> SearchCosts:
        """The same under other global limits.

        Raises:
            ValueError: a resource has more than one, or a scenario lacks it.
        """
        check_scenarios(self.scenarios, limits)
        return replace(self, limits=tuple(limits))

    def cases(self, batch_size: int) -> tuple[Case, ...]:
        """The problems of a batch size, most workspace first: several where memory is limited, else one; see `Case`.

        Columns: memory of each scenario, params, and of each scenario ttft, tpot (if it has steps), latency and
        throughput, named by `column_name`.

        Raises:
            ValueError: the table lacks the batch size, lengths that reach the scenarios' at it, or a cell for a choice,
                embedding or head; the message names the layer, the block and the cell.
        """
        costs = [self._costs(batch_size, scenario) for scenario in self.scenarios]
        names, values, upper, lower = self._columns(batch_size, costs)
        ends = self.cells.places((EMBEDDING, HEAD))
        workspace = np.column_stack([one.workspace for one in costs])
        needed = np.maximum(workspace[self.attention], workspace[self.ffn])
        limits = self._limits(batch_size)
        limited = [
            any(limit.resource == "memory" for limit in limits_in(scenario, self.limits)) for scenario in self.scenarios
        ]
        uses, upper_sd, lower_sd = (table[self.attention] + table[self.ffn] for table in (values, upper, lower))
        fixed, base_upper, base_lower = (table[ends].sum(axis=0) for table in (values, upper, lower))
        fixed[: len(costs)] += [self._rest_bytes(batch_size, scenario) for scenario in self.scenarios]
        choice_names = np.array(self.candidates.names, dtype=object)
        found = []
        for keep in _workspace_levels(needed, np.array(limited), self.candidates.layers):
            level = needed[keep].max(axis=0)
            base = fixed.copy()
            base[: len(costs)] += level
            problem = Problem(
                scores=self.candidates.scores[keep],
                uses=uses[keep],
                layers=self.candidates.layers[keep],
                names=tuple(choice_names[keep].tolist()),
                resources=names,
                limits=limits,
                base=base,
                direction=self.candidates.direction,
            )
            case = Case(
                batch_size=batch_size,
                workspace_bytes=tuple(int(size) for size in level),
                scenarios=self.scenarios,
                problem=problem,
                upper_sd=upper_sd[keep],
                lower_sd=lower_sd[keep],
                base_upper_sd=base_upper,
                base_lower_sd=base_lower,
            )
            found.append(self._holding_workspace(case, needed[keep]))
        return tuple(found)

    def architecture(self, problem: Problem, choices: Sequence[int]) -> Architecture:
        """The architecture of a solution of one of the cases, or of a problem made from it.

        Raises:
            ValueError: the choices are not one for each layer.
        """
        return architecture_of(problem, choices)

    def _costs(self, batch_size: int, scenario: ServingScenario) -> ScenarioCosts:
        """Of all K, with a cell for every one that is needed."""
        costs = scenario_costs(self.cells, batch_size, scenario)
        missing = missing_cell(self.cells, batch_size, costs, self.cells.places((EMBEDDING, HEAD)))
        if missing:
            raise ValueError(f"the cost table has {missing[1]}")
        halves = np.column_stack([self.attention, self.ffn]).ravel()
        missing = missing_cell(self.cells, batch_size, costs, halves)
        if missing:
            choice = missing[0] // 2
            layer, block = self.candidates.layers[choice], self.candidates.blocks[choice]
            raise ValueError(f"layer {layer}, {block}: the cost table has {missing[1]}")
        return costs

    def _columns(
        self, batch_size: int, costs: Sequence[ScenarioCosts]
    ) -> tuple[tuple[str, ...], FloatArray, FloatArray, FloatArray]:
        """Names (R), and per sub-block the values and standard errors above and below, each (K, R)."""
        columns: list[tuple[str, FloatArray]] = []  # (K, 3) each
        for scenario in self.scenarios:
            tokens = np.minimum(scenario.context_len, self.windows)
            paged = np.ceil(tokens / self.tokens_per_block) * self.tokens_per_block
            held = self.cells.weight_bytes + batch_size * paged * self.cells.kv_bytes_per_token
            columns.append((column_name("memory", scenario, self.scenarios), np.column_stack([held] * 3)))
        columns.append(("params", np.column_stack([self.parameters] * 3)))
        for scenario, cost in zip(self.scenarios, costs, strict=True):
            times = {"ttft": cost.prefill}
            if scenario.steps:
                times["tpot"] = cost.decode / scenario.steps
            times["latency"] = times["throughput"] = cost.prefill + cost.decode
            columns += [(column_name(name, scenario, self.scenarios), value) for name, value in times.items()]
        names = tuple(name for name, _ in columns)
        value, low, high = np.moveaxis(np.stack([column for _, column in columns], axis=1), 2, 0)
        return names, value, np.maximum(high - value, 0) / NORMAL_95, np.maximum(value - low, 0) / NORMAL_95

    def _rest_bytes(self, batch_size: int, scenario: ServingScenario) -> int:
        """The residual stream and the logits, as `model_memory` counts them."""
        tokens = min(batch_size * scenario.prefill_len, self.max_num_tokens)
        logits = batch_size * padded_vocab_size(self.spec, self.tensor_parallel) * LOGIT_BYTES
        return tokens * self.spec.hidden_size * ACTIVATION_BYTES + logits

    def _limits(self, batch_size: int) -> tuple[Limit, ...]:
        found = [
            problem_limit(batch_size, scenario, limit, column_name(limit.resource, scenario, self.scenarios))
            for scenario in self.scenarios
            for limit in limits_in(scenario, self.limits)
        ]
        first = self.scenarios[0]
        found += [
            problem_limit(batch_size, first, limit, "params") for limit in self.limits if limit.resource == "params"
        ]
        return tuple(found)

    def _holding_workspace(self, case: Case, needed: FloatArray) -> Case:
        """The case, with a column that makes some choice need its whole workspace where memory has a lower limit.

        Without it a solution that needs less than is counted could seem to be heavy enough.
        """
        for place, scenario in enumerate(self.scenarios):
            column = column_name("memory", scenario, self.scenarios)
            if any(limit.resource == column and math.isfinite(limit.low) for limit in case.problem.limits):
                name = column_name(WORKSPACE, scenario, self.scenarios)
                use = (needed[:, place] == case.workspace_bytes[place]).astype(np.float64)
                nothing = np.zeros((len(use), 1))
                case = replace(
                    case,
                    problem=case.problem.with_resource(name, use, Limit(resource=name, low=1.0)),
                    upper_sd=np.hstack([case.upper_sd, nothing]),
                    lower_sd=np.hstack([case.lower_sd, nothing]),
                    base_upper_sd=np.append(case.base_upper_sd, 0.0),
                    base_lower_sd=np.append(case.base_lower_sd, 0.0),
                )
        return case


def load_costs(
    table: CostTable,
    scores: ScoreTable,
    scenarios: Sequence[ServingScenario],
    *,
    limits: Sequence[ResourceLimit] = (),
    engine_rules: EngineRules | None = None,
    fixes: Sequence[LayerRule] = (),
    exclusions: Sequence[LayerRule] = (),
    tokens_per_block: int = 32,
) -> SearchCosts:
    """Put costs beside scores.

    Args:
        limits: that hold in every scenario without one of its own for the resource.
        engine_rules: what the engine does not load is no choice.
        fixes: in their layers only what matches is a choice.
        exclusions: what matches is no choice.
        tokens_per_block: page size of the KV cache.

    Raises:
        ValueError: the tables are of different models, the cost table mixes GPUs, formats or engines, a scored
            sub-block has no costs, a scenario's lengths lie outside the table's, a rule or an engine leaves a layer
            without a choice, or limits contradict each other.
    """
    require_positive_int("tokens_per_block", tokens_per_block)
    check_scenarios(scenarios, limits)
    cells, spec = read_cells(table), spec_of(table)
    _check_same_model(scores, spec)
    for scenario in scenarios:
        check_lengths(cells, scenario)
    found = select_candidates(scores, spec, engine_rules=engine_rules, fixes=fixes, exclusions=exclusions)
    attention, ffn = (cells.places(half) for half in found.halves())
    _check_costed(cells, found, np.column_stack([attention, ffn]))
    parameters, windows = np.zeros(len(cells.subs)), np.full(len(cells.subs), np.inf)
    for place in np.unique(np.concatenate([attention, ffn])).tolist():
        part, name = cells.subs[place]
        sub = parse_sub_block("attention", name) if part == "attention" else parse_sub_block("ffn", name)
        parameters[place] = sub_block_parameters(spec, sub)
        if isinstance(sub, GQA) and sub.sliding_window is not None:
            windows[place] = sub.sliding_window
    parameters[cells.places((EMBEDDING, HEAD))] = embedding_parameters(spec), head_parameters(spec)
    scored = {sub for half in scored_candidates(scores).halves() for sub in half}
    costed = dict.fromkeys(zip(table.frame["part"], table.frame["sub_block"], strict=True))
    return SearchCosts(
        spec=spec,
        scenarios=tuple(scenarios),
        limits=tuple(limits),
        candidates=found,
        cells=cells,
        attention=attention,
        ffn=ffn,
        parameters=parameters,
        windows=windows,
        unused=tuple(describe(sub) for sub in costed if sub not in scored and sub not in (EMBEDDING, HEAD)),
        tensor_parallel=int(table.frame["tensor_parallel"].iloc[0]),
        max_num_tokens=max_num_tokens_of(table),
        tokens_per_block=tokens_per_block,
    )


def device_memory_limit(table: CostTable, share: float) -> ResourceLimit | None:
    """That much of the memory of the table's device; None where the table does not say how much it has."""
    held = table.metadata.get("gpu", {}).get("memory_bytes")
    return None if held is None else ResourceLimit(resource="memory", high=float(int(share * held)))


def _check_same_model(scores: ScoreTable, spec: ModelSpec) -> None:
    model = scores.metadata.get("model")
    if model is not None and model["name"] != spec.name and not same_shapes(model, spec_facts(spec)):
        raise ValueError(f"the scores are of {model['name']}, the costs of {spec.name}")
    if scores.num_layers != spec.num_hidden_layers:
        raise ValueError(
            f"the scores are of {scores.num_layers} layers, the costs of {spec.name}, a model with "
            f"{spec.num_hidden_layers}"
        )


def _check_costed(cells: Cells, found: Candidates, places: IntArray) -> None:
    """Raise ValueError where a choice's sub-block has no cell at all, or embedding or head has none."""
    for end in (EMBEDDING, HEAD):
        if end not in cells.subs:
            raise ValueError(f"the cost table has no cells for {describe(end)}")
    without = np.argwhere(places < 0)
    if len(without):
        choice, half = (int(place) for place in without[0])
        sub = found.halves()[half][choice]
        known = ", ".join(name for part, name in cells.subs if part == sub[0])
        reason = next((text for key, text in cells.misses.items() if key[:2] == sub), None)
        raise ValueError(
            f"layer {found.layers[choice]}, {found.blocks[choice]}: the cost table has no cells for {describe(sub)}; "
            + (f"{reason}" if reason else f"it has {known}")
        )


def _workspace_levels(needed: FloatArray, limited: BoolArray, layers: IntArray) -> list[BoolArray]:
    """The choices of each case, most workspace first, as masks (N,) that leave no layer empty.

    Args:
        needed: (N, S), bytes of workspace a choice needs.
        limited: (S,), whether the scenario's memory is limited; one case where none is.
    """
    everything: list[BoolArray] = [np.ones(len(needed), dtype=bool)]
    if not limited.any():
        return everything
    single = {tuple(row) for row in np.unique(needed[:, limited], axis=0).tolist()}
    # What an architecture needs is the maximum over its choices in each scenario by itself.
    levels, fresh = set(single), set(single)
    while fresh:
        fresh = {tuple(map(max, one, other)) for one in fresh for other in single} - levels
        levels |= fresh
    num_layers = int(layers[-1]) + 1
    masks: list[BoolArray] = []
    for level in sorted(levels, reverse=True):
        mask = np.all(needed[:, limited] <= np.array(level), axis=1)
        if np.bincount(layers[mask], minlength=num_layers).all():
            masks.append(mask)
    return masks
