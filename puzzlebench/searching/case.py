"""One search problem: a batch size, and the workspace that its memory is counted with. Knows numbers and names only.

Legend for shapes: N choices, R resources.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from puzzlebench.model.blocks import Architecture, parse_block
from puzzlebench.profiling.arrays import FloatArray
from puzzlebench.searching.scenarios import Resource, ResourceLimit, ServingScenario, column_name
from puzzlebench_search.problem import Limit, Problem

WORKSPACE = "workspace"
"""A column that only a lower limit of memory brings: how many choices need the whole workspace of the case."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A problem whose sums are linear.

    Workspace is a maximum over sub-blocks and not a sum. So a batch size has one case per amount of it: memory is
    counted with that amount whatever is chosen, and choices that need more are left out. The best solution of all cases
    is the best of the batch size. A solution that needs less than its case counts is heavier here than it is.

    Attributes:
        workspace_bytes: of each scenario.
        problem: its throughput columns hold seconds, see `to_user`; other units are those of `Resource`.
        upper_sd: (N, R), by how much a use may be above its value: one standard error of a normal distribution with the
            upper half of the 95 % interval; 0 for bytes and parameters. Errors of choices add up as if they were one.
        lower_sd: (N, R), the same below.
        base_upper_sd: (R,), of what embedding and head take.
        base_lower_sd: (R,).
    """

    batch_size: int
    workspace_bytes: tuple[int, ...]
    scenarios: tuple[ServingScenario, ...]
    problem: Problem
    upper_sd: FloatArray
    lower_sd: FloatArray
    base_upper_sd: FloatArray
    base_lower_sd: FloatArray

    def to_user(self, column: str, value: float) -> float:
        """A sum of a column in the units of `Resource`: seconds of a throughput column become tokens per second.

        Raises:
            ValueError: the problem has no such column.
        """
        resource, scenario = self.parse_column(column)
        if resource != "throughput":
            return value
        assert scenario is not None
        return tokens_per_second(self.batch_size, scenario, value)

    def user_limit(self, limit: Limit) -> ResourceLimit:
        """A limit of the problem as it was asked for.

        Raises:
            ValueError: the problem has no such column, or it is none that can be asked for (`WORKSPACE`).
        """
        resource, _ = self.parse_column(limit.resource)
        low, high = (
            self.to_user(limit.resource, end) if math.isfinite(end) else None for end in (limit.low, limit.high)
        )
        if resource == "throughput":
            low, high = high, low
        return ResourceLimit(resource=cast("Resource", resource), low=low, high=high)

    def parse_column(self, column: str) -> tuple[str, ServingScenario | None]:
        """A column's resource and scenario; params has none.

        Raises:
            ValueError: the problem has no such column.
        """
        if column not in self.problem.resources:
            raise ValueError(f"no column is named {column!r}; there are {', '.join(self.problem.resources)}")
        resource = column.partition("[")[0]
        if resource == "params":
            return resource, None
        named = {column_name(resource, scenario, self.scenarios): scenario for scenario in self.scenarios}
        return resource, named[column]


def tokens_per_second(batch_size: int, scenario: ServingScenario, seconds: float) -> float:
    """Generated tokens of the whole batch over its time; infinite for no time. Also turns a rate into seconds."""
    return batch_size * scenario.decode_len / seconds if seconds > 0 else math.inf


def problem_limit(batch_size: int, scenario: ServingScenario, limit: ResourceLimit, column: str) -> Limit:
    """A limit as the problem's columns hold it: at least T tokens per second is at most tokens / T seconds."""
    low, high = limit.low, limit.high
    if limit.resource == "throughput":
        low, high = (None if end is None else tokens_per_second(batch_size, scenario, end) for end in (high, low))
    return Limit(resource=column, low=-math.inf if low is None else low, high=math.inf if high is None else high)


def architecture_of(problem: Problem, choices: Sequence[int]) -> Architecture:
    """The architecture of a solution.

    Args:
        choices: places in the problem's choices, in any order.

    Raises:
        ValueError: they are not one for each layer.
    """
    chosen = sorted(int(choice) for choice in choices)
    layers = [int(problem.layers[choice]) for choice in chosen]
    if layers != list(range(problem.num_layers)):
        raise ValueError(f"choices must be one for each of {problem.num_layers} layers, not for layers {layers}")
    return Architecture(blocks=tuple(parse_block(problem.names[choice].partition(":")[2]) for choice in chosen))
