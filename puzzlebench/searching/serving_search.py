"""A search under in-flight batching: at the parent's operating points first, then at that of what was found.

What the search adds up is exact at a fixed operating point (`serving_costs`); an architecture's own point differs from
its parent's, because its prompts may be cheaper than its decoding by another factor. So the search goes on at the point
of what it found until what it adds up is what that has there. The best of those that keep the limits at their own point
is the answer; where the searches go in circles that is all there is to say, and `settled` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from puzzlebench.model.blocks import Architecture
from puzzlebench.profiling.cost_table import CostTable
from puzzlebench.scores import ScoreTable
from puzzlebench.searching.costs import SearchCosts
from puzzlebench.searching.recheck import CheckedLimit, check_limit
from puzzlebench.searching.scenarios import limits_in
from puzzlebench.searching.search import Found, SearchOutcome, SearchSettings, search_architectures
from puzzlebench.searching.serving_costs import OperatingPoint, ServedSpace
from puzzlebench.serving.estimating import ServingEstimate

SETTLED: Final = 0.01
_MOST_SEARCHES: Final = 6


@dataclass(frozen=True, kw_only=True)
class ServedOutcome:
    """One search of several, and what became of all.

    Attributes:
        tensor_parallel: GPUs of the group.
        costs, table, settings: of this search: one batch size, the users, once it left the parent's points.
        point: that the best was found at; None without one.
        keeps: whether the best keeps the limits on times and throughput at its own point.
        moves: by how much the best's times at its own point differ from what was added up, search by search; the last
            one's are of this search or of a later one that did not get further.
        settled: what this search added up is what its best has, to `SETTLED`.
    """

    tensor_parallel: int
    costs: SearchCosts
    table: CostTable
    settings: SearchSettings
    outcome: SearchOutcome
    point: OperatingPoint | None
    keeps: bool = False
    moves: tuple[float, ...] = ()
    settled: bool = False


@dataclass(frozen=True, kw_only=True)
class ServedCheck:
    """An architecture's own steady state.

    Attributes:
        estimate: None where it does not fit, `why_not` says why.
        limits: of times and throughput (of the whole group), beside what they are there.
    """

    estimate: ServingEstimate | None
    limits: tuple[CheckedLimit, ...] = ()
    why_not: str = ""

    @property
    def broken(self) -> tuple[CheckedLimit, ...]:
        """Limits that do not hold."""
        return tuple(limit for limit in self.limits if not limit.holds)

    @property
    def keeps(self) -> bool:
        """Whether it fits and all limits hold."""
        return self.estimate is not None and not self.broken


def search_served(
    space: ServedSpace,
    load: Callable[[CostTable], SearchCosts],
    scores: ScoreTable,
    settings: SearchSettings,
    *,
    report: Callable[[float, str], None] | None = None,
) -> ServedOutcome:
    """The best architectures at their own operating point.

    Args:
        load: puts the costs of a table beside the scores.
        settings: its batch sizes are the numbers of users to choose among.

    Raises:
        ValueError: as `ServedSpace.points` and `search_architectures`.
    """
    now = _search(space, load, scores, settings, space.points(scores.parent, settings.batch_sizes), report)
    tried: list[ServedOutcome] = []
    moves: list[float] = []
    while now.point is not None:
        best = now.outcome.found[0]
        own = space.points(best.architecture, [now.point.concurrency])[0]
        moves.append(_move(best, own))
        keeps = all(limit.holds for limit in _limits_at(now.costs, own.estimate))
        before = [one.outcome.found[0].architecture for one in tried]
        tried.append(replace(now, keeps=keeps, settled=moves[-1] < SETTLED))
        if (tried[-1].settled and keeps) or best.architecture in before or len(moves) == _MOST_SEARCHES:
            break
        now = _search(space, load, scores, replace(settings, batch_sizes=(own.concurrency,)), [own], report)
    if not tried:
        return now
    sign = 1.0 if scores.direction == "minimise" else -1.0
    kept = [one for one in tried if one.keeps]
    order = [(sign * one.outcome.found[0].objective, not one.settled) for one in kept]
    chosen = kept[order.index(min(order))] if kept else tried[-1]
    return replace(chosen, moves=tuple(moves))


def _move(found: Found, own: OperatingPoint) -> float:
    pairs = ((found.check.values["ttft"], own.estimate.ttft_ms), (found.check.values["tpot"], own.estimate.tpot_ms))
    return max(abs(interval.value / 1e3 / added - 1) for added, interval in pairs)


def _search(
    space: ServedSpace,
    load: Callable[[CostTable], SearchCosts],
    scores: ScoreTable,
    settings: SearchSettings,
    points: Sequence[OperatingPoint],
    report: Callable[[float, str], None] | None,
) -> ServedOutcome:
    if report is not None:
        report(0.0, "costing sub-blocks")
    table = space.table(points)
    costs = load(table)
    outcome = search_architectures(costs, table, scores, settings, report=report)
    users = outcome.found[0].batch_size if outcome.found else None
    return ServedOutcome(
        tensor_parallel=costs.tensor_parallel,
        costs=costs,
        table=table,
        settings=settings,
        outcome=outcome,
        point=next((point for point in points if point.concurrency == users), None),
    )


def check_served(space: ServedSpace, costs: SearchCosts, architecture: Architecture, users: int) -> ServedCheck:
    """An architecture served by itself, in the memory that the search's limit leaves it (or 90 % of the GPU's)."""
    scenario = costs.scenarios[0]
    limits = limits_in(scenario, costs.limits)
    memory = next((limit.high for limit in limits if limit.resource == "memory" and limit.high), None)
    fraction = None if memory is None else min(1.0, memory / space.gpu_memory_bytes)
    try:
        found = space.estimate(architecture, users, memory_fraction=fraction)
    except ValueError as error:
        return ServedCheck(estimate=None, why_not=str(error))
    return ServedCheck(estimate=found, limits=_limits_at(costs, found))


def _limits_at(costs: SearchCosts, estimate: ServingEstimate) -> tuple[CheckedLimit, ...]:
    """The limits of times and throughput beside a steady state."""
    scenario = costs.scenarios[0]
    ttft, tpot = estimate.ttft_ms.value / 1e3, estimate.tpot_ms.value / 1e3
    values = {
        "ttft": ttft,
        "tpot": tpot,
        "latency": ttft + scenario.steps * tpot,
        "throughput": estimate.generated_tokens_per_s.value,
    }
    limits = limits_in(scenario, costs.limits)
    return tuple(
        check_limit(limit.resource, values[limit.resource], limit) for limit in limits if limit.resource in values
    )
