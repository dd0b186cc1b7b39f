"""A second opinion on a finished architecture: every resource again, row by row from the cost table.

Plain Python, step by step and layer by layer; shares no arithmetic with `costs`, so that a mistake in one shows.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from puzzlebench.model.blocks import GQA, Architecture, AttentionSubBlock, FFNSubBlock, NoOp, sub_block_name
from puzzlebench.model.dtypes import KVDtype, WeightDtype
from puzzlebench.model.memory import ACTIVATION_BYTES, LOGIT_BYTES, kv_cache_bytes, model_weight_bytes
from puzzlebench.model.parameters import model_parameters
from puzzlebench.model.sharding import padded_vocab_size
from puzzlebench.model.spec import ModelSpec, check_architecture
from puzzlebench.profiling.cost_table import CostTable
from puzzlebench.searching.cells import max_num_tokens_of
from puzzlebench.searching.scenarios import ResourceLimit, ServingScenario, check_scenarios, column_name, limits_in
from puzzlebench_search.problem import TOLERANCE


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedLimit:
    """One limit beside what the architecture takes.

    Attributes:
        column: the resource, with its scenario in brackets where there are several.
        value: in the units of `Resource`; tokens per second for throughput.
        holds: to `TOLERANCE` of the limit.
    """

    column: str
    value: float
    limit: ResourceLimit
    holds: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Recheck:
    """What an architecture takes, and which limits it keeps.

    Attributes:
        values: by column, in the units of `Resource`; tokens per second for throughput.
    """

    batch_size: int
    values: dict[str, float]
    limits: tuple[CheckedLimit, ...]

    @property
    def holds(self) -> bool:
        """Whether it keeps every limit."""
        return all(limit.holds for limit in self.limits)


def recheck(
    table: CostTable,
    spec: ModelSpec,
    architecture: Architecture,
    scenarios: Sequence[ServingScenario],
    batch_size: int,
    limits: Sequence[ResourceLimit] = (),
    *,
    tokens_per_block: int = 32,
) -> Recheck:
    """Count again.

    Args:
        limits: that hold in every scenario without one of its own for the resource.
        tokens_per_block: page size of the KV cache.

    Raises:
        ValueError: the architecture is not of the model, a cell is missing, or the table's weights or cache are not
            those of the model.
    """
    check_scenarios(scenarios, limits)
    check_architecture(spec, architecture)
    counter = _Counter(table, spec, architecture, batch_size, tokens_per_block)
    values: dict[str, float] = {"params": float(model_parameters(spec, architecture))}
    checked = [check_limit("params", values["params"], limit) for limit in limits if limit.resource == "params"]
    for scenario in scenarios:
        found = counter.values(scenario)
        for limit in limits_in(scenario, limits):
            column = column_name(limit.resource, scenario, scenarios)
            checked.append(check_limit(column, found[limit.resource], limit))
        values |= {column_name(resource, scenario, scenarios): value for resource, value in found.items()}
    return Recheck(batch_size=batch_size, values=values, limits=tuple(checked))


def check_limit(column: str, value: float, limit: ResourceLimit) -> CheckedLimit:
    """A limit beside a value, both in the units of `Resource`."""
    enough = limit.low is None or value >= limit.low - TOLERANCE * limit.low
    little = limit.high is None or value <= limit.high + TOLERANCE * limit.high
    return CheckedLimit(column=column, value=value, limit=limit, holds=enough and little)


class _Counter:
    """The rows of one batch size, by (part, sub-block, phase) and then length."""

    def __init__(
        self, table: CostTable, spec: ModelSpec, architecture: Architecture, batch_size: int, tokens_per_block: int
    ) -> None:
        self._spec, self._architecture, self._batch = spec, architecture, batch_size
        self._page = tokens_per_block
        self._max_num_tokens = max_num_tokens_of(table)
        self._rows: dict[tuple[str, str, str], dict[int, Mapping[str, Any]]] = {}
        self._lengths: dict[str, list[int]] = {"prefill": [], "decode": []}
        frame = table.frame[table.frame["batch_size"] == batch_size]
        for row in cast("list[dict[str, Any]]", frame.to_dict("records")):
            key = (row["part"], row["sub_block"], row["phase"])
            self._rows.setdefault(key, {})[row["context_len"]] = row
            if row["sub_block"] != "no_op" and row["context_len"] not in self._lengths[row["phase"]]:
                bisect.insort(self._lengths[row["phase"]], row["context_len"])
        first = table.frame.iloc[0]
        self._weight_dtype = cast("WeightDtype", first["weight_dtype"])
        self._kv_dtype = cast("KVDtype", first["kv_dtype"])
        self._tensor_parallel = int(first["tensor_parallel"])

    def values(self, scenario: ServingScenario) -> dict[str, float]:
        """Every resource of a scenario but params."""
        prefill = math.fsum(self._over_model(lambda part, name: self._prefill_us(part, name, scenario))) / 1e6
        decode = math.fsum(self._over_model(lambda part, name: self._decode_us(part, name, scenario))) / 1e6
        latency = prefill + decode
        found = {"memory": float(self._memory(scenario)), "ttft": prefill}
        if scenario.decode_len > 1:
            found["tpot"] = decode / (scenario.decode_len - 1)
        found["latency"] = latency
        found["throughput"] = self._batch * scenario.decode_len / latency
        return found

    def _over_model(self, count: Callable[[str, str], float]) -> list[float]:
        """What each part of the model takes; a sub-block is counted once and repeated."""
        known: dict[tuple[str, str], float] = {}
        parts = [("embedding", "embedding"), ("head", "head")]
        for block in self._architecture.blocks:
            parts += [("attention", sub_block_name(block.attention)), ("ffn", sub_block_name(block.ffn))]
        for part in parts:
            if part not in known:
                known[part] = 0.0 if part[1] == "no_op" else count(*part)
        return [known[part] for part in parts]

    def _cell(self, part: str, name: str, phase: str, length: int) -> Mapping[str, Any]:
        try:
            return self._rows[part, name, phase][length]
        except KeyError:
            raise ValueError(
                f"the cost table has no cell for {part} {name}, {phase}, batch {self._batch}, length {length}"
            ) from None

    def _around(self, phase: str, wanted: int) -> tuple[int, int]:
        """The table's lengths next to one, twice the same where it is there."""
        lengths = self._lengths[phase]
        place = bisect.bisect_left(lengths, wanted)
        if place == len(lengths) or (place == 0 and lengths[0] != wanted):
            raise ValueError(f"the cost table has no {phase} lengths on both sides of {wanted} at batch {self._batch}")
        return (wanted, wanted) if lengths[place] == wanted else (lengths[place - 1], lengths[place])

    def _prefill_us(self, part: str, name: str, scenario: ServingScenario) -> float:
        below, above = self._around("prefill", scenario.prefill_len)
        start = float(self._cell(part, name, "prefill", below)["latency_us"])
        if below == above:
            return start
        end = float(self._cell(part, name, "prefill", above)["latency_us"])
        slope = (math.log(end) - math.log(start)) / (math.log(above) - math.log(below))
        return math.exp(math.log(start) + slope * (math.log(scenario.prefill_len) - math.log(below)))

    def _decode_us(self, part: str, name: str, scenario: ServingScenario) -> float:
        steps = []
        for generated in range(1, scenario.decode_len):
            context = scenario.prefill_len + generated
            below, above = self._around("decode", context)
            start = float(self._cell(part, name, "decode", below)["latency_us"])
            end = float(self._cell(part, name, "decode", above)["latency_us"])
            steps.append(start if below == above else start + (end - start) * (context - below) / (above - below))
        return math.fsum(steps)

    def _memory(self, scenario: ServingScenario) -> int:
        """Bytes on one GPU at the end of the scenario."""
        weights = sum(self._any_cell("embedding", "embedding", "head", "head", column="weight_bytes"))
        cache, held = 0, set()
        for block in self._architecture.blocks:
            for part, sub in (("attention", block.attention), ("ffn", block.ffn)):
                if isinstance(sub, NoOp):
                    continue
                name = sub_block_name(sub)
                weights += self._any_cell(part, name, column="weight_bytes")[0]
                per_token = self._any_cell(part, name, column="kv_bytes_per_token")[0]
                cache += self._batch * self._cached_tokens(sub, scenario) * per_token
                held.add((part, name))
        self._compare(
            "weight bytes",
            weights,
            model_weight_bytes(
                self._spec,
                self._architecture,
                weight_dtype=self._weight_dtype,
                tensor_parallel=self._tensor_parallel,
            ),
        )
        self._compare(
            "cache bytes",
            cache,
            kv_cache_bytes(
                self._spec,
                self._architecture,
                batch_size=self._batch,
                context_len=scenario.context_len,
                kv_dtype=self._kv_dtype,
                tensor_parallel=self._tensor_parallel,
                tokens_per_block=self._page,
            ),
        )
        tokens = min(self._batch * scenario.prefill_len, self._max_num_tokens)
        residual = tokens * self._spec.hidden_size * ACTIVATION_BYTES
        logits = self._batch * padded_vocab_size(self._spec, self._tensor_parallel) * LOGIT_BYTES
        workspace = max((max(self._workspaces(part, name, scenario)) for part, name in held), default=0)
        return weights + cache + residual + logits + workspace

    def _any_cell(self, *names: str, column: str) -> list[int]:
        """A column that all cells of a sub-block share, for (part, sub-block) pairs one after the other."""
        found = []
        for part, name in zip(names[::2], names[1::2], strict=True):
            rows = self._rows.get((part, name, "prefill")) or self._rows.get((part, name, "decode"))
            if not rows:
                raise ValueError(f"the cost table has no cell for {part} {name} at batch {self._batch}")
            found.append(int(next(iter(rows.values()))[column]))
        return found

    def _cached_tokens(self, sub: AttentionSubBlock | FFNSubBlock, scenario: ServingScenario) -> int:
        tokens = scenario.context_len
        if isinstance(sub, GQA) and sub.sliding_window is not None:
            tokens = min(tokens, sub.sliding_window)
        return -(-tokens // self._page) * self._page

    def _workspaces(self, part: str, name: str, scenario: ServingScenario) -> list[int]:
        """Of the prompt's length or the next larger one, and of each decode length the steps come from."""
        lengths = {("prefill", self._around("prefill", scenario.prefill_len)[1])}
        for generated in range(1, scenario.decode_len):
            around = self._around("decode", scenario.prefill_len + generated)
            lengths |= {("decode", length) for length in around}
        return [int(self._cell(part, name, phase, length)["workspace_bytes"]) for phase, length in lengths]

    def _compare(self, what: str, counted: int, expected: int) -> None:
        if not math.isclose(counted, expected, rel_tol=TOLERANCE):
            raise ValueError(
                f"the cost table's {what} add up to {counted:,}, but {self._spec.name} has {expected:,}: the table is "
                "not of this model"
            )
