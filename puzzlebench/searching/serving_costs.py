"""What sub-blocks cost a served model at an operating point: a cost table of request times that a search adds up.

Under in-flight batching an iteration with prompts and one without are sums over blocks, and at a fixed operating point
(`serving.steady`) every time that a request sees is a weighted sum of the two: of an answer's steps a share m has
prompts of others in it, whatever the blocks cost; a prompt takes k mixed iterations after its way through the server,
which no block changes, and a wait of some average ones. So

    time per output token = (1 - m) x decode iteration + m x mixed iteration
    time to first token   = way + waiting x average iteration + k x mixed iteration

and the throughput of users who ask again at once is users x answer / (time to first token + all further tokens). Where
an engine pauses decoding for prompts, some mixed iterations come on top of each decode iteration instead. Where
launching its kernels takes longer than they run, a mixed iteration is counted as launches, which add up as well.

A point is that of a reference architecture with all users in flight, whatever its memory: a search that limits memory
then looks for architectures that hold them all, and more users than that would only queue. The operating point of what
is found differs a little; whoever searches goes there and searches again (`serving_search`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, exp
from typing import Any, Final, cast

import numpy as np
import pandas as pd

from puzzlebench.model.blocks import Architecture, Block, GatedMLP, NoOp, SubBlock, parse_sub_block
from puzzlebench.model.dtypes import KVDtype, WeightDtype
from puzzlebench.profiling.arrays import BoolArray, FloatArray
from puzzlebench.profiling.block_costs import Steps
from puzzlebench.profiling.cost_table import CostTable
from puzzlebench.profiling.modelled_kernels import ModelledKernels
from puzzlebench.profiling.profile import end_bytes, sub_block_bytes
from puzzlebench.profiling.remembered import RememberedKernels
from puzzlebench.profiling.sources import ENGINES, open_kernels
from puzzlebench.profiling.timings import PROVENANCE, KernelTimings, Timings
from puzzlebench.scenario import Precision
from puzzlebench.searching.cells import spec_of
from puzzlebench.searching.scenarios import ServingScenario
from puzzlebench.serving.cache import PagedCache
from puzzlebench.serving.estimating import TO_95, ServingEstimate, estimate_workload, open_served, widths_of
from puzzlebench.serving.iterations import IterationCosts
from puzzlebench.serving.served_model import ServedModel
from puzzlebench.serving.workload import Lengths, Scheduler, Workload
from puzzlebench_profiles.datasheets import Datasheet, bundled_datasheets

_LEAST_US: Final = (
    1e-3  # a table has no cell of 0 or less, which an engine's overheads could leave of a small sub-block
)
_NOTHING: Final = Architecture(blocks=(Block(attention=NoOp(), ffn=NoOp()),))


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """Where a reference architecture settles with all its users in flight.

    Attributes:
        concurrency: users, and sequences in flight.
        estimate: of the reference, as if memory held everything.
        tpot: weights of an iteration without prompts and of one with them, (2,).
        ttft: the same.
        fixed_ttft_ms: of the time to first token, what no block changes.
        launched: of the iterations of a prompt, those that launches bound and not kernels, (k,).
        beside: sequences that decode in an iteration with a prompt: without the user's own.
        widths: of the 90 % intervals, logarithms by metric.
    """

    concurrency: int
    estimate: ServingEstimate
    tpot: FloatArray
    ttft: FloatArray
    fixed_ttft_ms: float
    launched: BoolArray
    beside: float
    widths: Mapping[str, float]


class ServedSpace:
    """The sub-blocks of a cost table, served by the table's engine on groups of its GPU.

    Args:
        table: says what is served where; its latencies are not used.
        scenario: lengths of prompts and answers.
        scheduler: None for the engine's own.

    Raises:
        ValueError: the table's engine has no shipped kernels or no known scheduler, the model cannot be split over the
            GPUs, or answers are of one token.
    """

    def __init__(
        self,
        table: CostTable,
        scenario: ServingScenario,
        *,
        tensor_parallel: int,
        scheduler: Scheduler | None = None,
    ) -> None:
        if scenario.steps < 1:
            raise ValueError("answers of one token have no time per output token; give a scenario with more")
        self._table, self._spec = table, spec_of(table)
        first = table.frame.iloc[0]
        self._precision = Precision(
            weight_dtype=cast("WeightDtype", first["weight_dtype"]),
            kv_dtype=cast("KVDtype", first["kv_dtype"]),
            tensor_parallel=tensor_parallel,
        )
        self._gpu, kernels = kernels_of(table)
        self._kernels = RememberedKernels(kernels)  # architectures are made of the same parts
        self._prefill = Lengths(scenario.prefill_len, scenario.prefill_len)
        self._decode = Lengths(scenario.decode_len, scenario.decode_len)
        self._open_scheduler = scheduler
        self._workload = Workload(prefill=self._prefill, decode=self._decode, concurrency=1)
        held = self._workload.mean_context
        self.scenario = scenario if self.scheduler.reserves else replace(scenario, held_len=ceil(held))

    @property
    def scheduler(self) -> Scheduler:
        """How iterations are filled."""
        return self._ends.scheduler

    @cached_property
    def most_users(self) -> int:
        """That the engine takes in flight, whatever the memory.

        Raises:
            ValueError: as `serving.steady.solve`.
        """
        return int(_without_bound(self._ends).steady(self._workload).slots)

    @property
    def gpu_memory_bytes(self) -> int:
        """Of one GPU."""
        return self._gpu.memory_bytes

    def served(self, architecture: Architecture, *, memory_fraction: float | None = None) -> ServedModel:
        """An architecture under this engine."""
        scheduler, more = self._open_scheduler, {}
        if memory_fraction is not None:  # a limit of a search counts weights too
            scheduler = replace(scheduler or self.scheduler, free_memory=False)
            more = {"memory_fraction": memory_fraction}
        return open_served(
            self._kernels,
            self._gpu,
            self._spec,
            architecture,
            self._precision,
            self._prefill,
            self._decode,
            scheduler=scheduler,
            **more,
        )

    def estimate(
        self, architecture: Architecture, concurrency: int, *, memory_fraction: float | None = None
    ) -> ServingEstimate:
        """An architecture's own steady state.

        Raises:
            ValueError: it does not fit into that share of the GPU's memory.
        """
        return estimate_workload(
            self.served(architecture, memory_fraction=memory_fraction), replace(self._workload, concurrency=concurrency)
        )

    def points(self, architecture: Architecture, concurrencies: Sequence[int]) -> list[OperatingPoint]:
        """The operating points of a reference architecture.

        Raises:
            ValueError: more users than the engine takes in flight.
        """
        for users in concurrencies:
            if users > self.most_users:
                option = "batch-size" if self.most_users == self.scheduler.max_batch_size else "num-tokens"
                raise ValueError(
                    f"a search has all users in flight, and {users} are more than the engine's {self.most_users} "
                    f"sequences; lower --concurrency or raise --max-{option}"
                )
        served = _without_bound(self.served(architecture))
        return [
            _point(users, estimate_workload(served, replace(self._workload, concurrency=users)), served)
            for users in concurrencies
        ]

    def table(self, points: Sequence[OperatingPoint]) -> CostTable:
        """The costs of all sub-blocks at some points, one batch size each: the users.

        A prefill cell is a sub-block's part of the time to first token, a decode cell that of the time per output
        token. Embeddings, head and what does not depend on the blocks are shared by the rows of embedding and head.
        """
        rows = [row for point in points for row in self._rows(point)]
        frame = pd.DataFrame(rows)
        names = ("gpu", "engine", "engine_version", "source")
        values = (self._gpu.name, self._kernels.engine, self._kernels.engine_version, self._kernels.source)
        for name, value in zip(names, values, strict=True):
            frame[name] = value
        for name in ("weight_dtype", "kv_dtype", "tensor_parallel"):
            frame[name] = getattr(self._precision, name)
        frame["samples"] = 0
        for name in ("latency_hot_us", "throttled_share", "energy_mj"):
            frame[name] = np.nan
        settings = {"max_num_tokens": self.scheduler.max_num_tokens, "composition": "in-flight batching"}
        return CostTable(frame=frame, metadata=self._table.metadata | {"settings": settings, "misses": []})

    @cached_property
    def _subs(self) -> dict[tuple[str, str], SubBlock]:
        known = self._table.frame[["part", "sub_block"]].drop_duplicates()
        found: dict[tuple[str, str], SubBlock] = {}
        for part, name in zip(known["part"], known["sub_block"], strict=True):
            if name == "no_op":
                continue
            if part == "attention":
                found[part, name] = parse_sub_block("attention", name)
            elif part == "ffn":
                found[part, name] = parse_sub_block("ffn", name)
        return found

    @cached_property
    def _ends(self) -> ServedModel:
        """A model without any sub-block: what is left is embeddings, head and constants."""
        return self.served(_NOTHING)

    @cached_property
    def _costs(self) -> dict[SubBlock, IterationCosts]:
        """Of a model whose only sub-block is each of these."""
        return {sub: replace(self._ends, architecture=_only(sub)).costs for sub in dict.fromkeys(self._subs.values())}

    def _rows(self, point: OperatingPoint) -> list[dict[str, Any]]:
        state, blocks = point.estimate.state, self._ends.costs.blocks
        ends = self._iterations(self._ends.costs, 0, point)
        decodes = Steps.of(decodes=max(1.0, state.decoding), contexts=state.context)
        mixed = Steps.of(
            decodes=point.beside,
            contexts=state.context,
            prompts=state.prompts,
            lengths=self._prefill.mean,
        )
        tokens = np.array([self.scheduler.max_num_tokens])
        rows = []
        for (part, name), sub in self._subs.items():
            each = self._iterations(self._costs[sub], 1, point) - ends
            timings = blocks.sub_block_step(sub, decodes), blocks.sub_block_step(sub, mixed)
            facts = sub_block_bytes(self._spec, sub, self._precision, tokens)
            rows += self._phases(point, part, name, each, 0.0, timings, facts)
        timings = blocks.ends_step(decodes), blocks.ends_step(mixed)
        for part, count in (("embedding", tokens), ("head", np.array([point.concurrency]))):
            facts = end_bytes(self._spec, part, self._precision, count)
            rows += self._phases(point, part, part, ends / 2, point.fixed_ttft_ms / 2, timings, facts)
        return rows

    def _phases(
        self,
        point: OperatingPoint,
        part: str,
        name: str,
        iterations: FloatArray,
        fixed_ms: float,
        timings: tuple[Timings, Timings],
        facts: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """The rows of one sub-block; `iterations` (2,) in milliseconds, without and with prompts."""
        prefill, decode = self.scenario.prefill_len, self.scenario.decode_len
        contexts = sorted({prefill + 1, prefill + decode - 1})
        ttft, tpot = float(point.ttft @ iterations) + fixed_ms, float(point.tpot @ iterations)
        widths = {metric: TO_95 * width for metric, width in point.widths.items()}
        cells = [("prefill", prefill, ttft, widths["ttft"], timings[1])]
        cells += [("decode", length, tpot, widths["tpot"], timings[0]) for length in contexts]
        rows = []
        for phase, length, milliseconds, width, source in cells:
            value = max(_LEAST_US, 1e3 * milliseconds)
            rows.append(
                {
                    "part": part,
                    "sub_block": name,
                    "phase": phase,
                    "batch_size": point.concurrency,
                    "context_len": length,
                    "latency_us": value,
                    "latency_low_us": value * exp(-width),
                    "latency_high_us": value * exp(width),
                    "modelled_share": float(source.modelled_us[0] / source.latency_us[0]),
                    "provenance": PROVENANCE[int(source.provenance[0])],
                }
                | {key: int(np.ravel(fact)[0]) for key, fact in facts.items()}
            )
        return rows

    def _iterations(self, costs: IterationCosts, present: int, point: OperatingPoint) -> FloatArray:
        """Milliseconds of an iteration without prompts and of one with them at a point, (2,).

        Args:
            present: sub-blocks other than no-ops.
        """
        state, overheads = point.estimate.state, costs.overheads
        kernels = _with_prompts(costs.with_overheads(replace(overheads, launch_us=0.0)), point.estimate, point.beside)
        mixed = np.where(point.launched, present * overheads.launch_us / 1e3, kernels)
        return np.array([costs.iteration_ms(state.decoding, state.context), mixed.mean()])


def engine_of(table: CostTable) -> str:
    """The engine of a cost table, if its kernels ship.

    Raises:
        ValueError: the table was measured live.
    """
    engine = str(table.frame["engine"].iloc[0])
    if engine not in ENGINES or "fingerprint" in table.metadata:
        raise ValueError(
            f"in-flight batching needs shipped kernels, and the cost table was measured live ({engine}); profile with "
            f"--source kernels and one of the engines {', '.join(ENGINES)}"
        )
    return engine


def kernels_of(table: CostTable) -> tuple[Datasheet, KernelTimings]:
    """The GPU of a cost table and its kernels.

    Raises:
        ValueError: they do not ship, or the table does not hold the datasheet of a GPU of the user's.
    """
    engine, first = engine_of(table), table.frame.iloc[0]
    gpu, facts = str(first["gpu"]), table.metadata.get("gpu")
    if gpu in bundled_datasheets():
        return open_kernels(gpu, engine, str(first["engine_version"]))
    try:
        sheet = Datasheet(**{**facts, "aliases": tuple(facts["aliases"])})  # type: ignore[dict-item,index]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"the cost table does not hold the datasheet of {gpu}; profile it again") from None
    return sheet, ModelledKernels(sheet, engine)


def _only(sub: SubBlock) -> Architecture:
    """One layer with nothing but this; attention and FFN share linear and no-op, which cost the same."""
    block = Block(attention=NoOp(), ffn=sub) if isinstance(sub, GatedMLP) else Block(attention=sub, ffn=NoOp())
    return Architecture(blocks=(block,))


def _without_bound(served: ServedModel) -> ServedModel:
    """The same with a cache that holds everything."""
    found = replace(served)
    endless = PagedCache(float("inf"), np.zeros(0), np.zeros(0), served.scheduler.tokens_per_block)
    found.__dict__.update(cache=endless, costs=served.costs)
    return found


def _with_prompts(costs: IterationCosts, estimate: ServingEstimate, beside: float) -> FloatArray:
    """Milliseconds of each iteration that a prompt takes at a steady state, (k,)."""
    state, prefill = estimate.state, estimate.workload.prefill.mean
    return np.array(costs.prompt_ms(beside, state.context, state.prompts, prefill, state.chunks))


def _point(users: int, estimate: ServingEstimate, served: ServedModel) -> OperatingPoint:
    state, mixes = estimate.state, served.scheduler.mixes
    shares = np.array([1 - state.mixed_share, state.mixed_share])
    average = float(shares @ [state.decode_iteration_ms, state.mixed_iteration_ms])
    seen = np.array([1 - state.seen_share, state.seen_share])
    if not mixes:  # decoding goes on after the prompts
        seen = np.array([1.0, (state.tpot_ms - state.decode_iteration_ms) / state.mixed_iteration_ms])
    beside = state.decoding * (1 - 1 / users) if mixes else 0.0
    bare = served.costs.with_overheads(replace(served.overheads, launch_us=0.0))
    taken, kernels = (_with_prompts(costs, estimate, beside) for costs in (served.costs, bare))
    waiting = (state.wait_ms + state.queue_ms) / average  # where prompts come too fast they queue even so
    return OperatingPoint(
        concurrency=users,
        estimate=estimate,
        tpot=seen,
        ttft=waiting * shares + np.array([0.0, state.chunks]),
        fixed_ttft_ms=state.way_ms,
        launched=taken > (1 + 1e-12) * kernels,
        beside=beside,
        widths=widths_of(served, state),
    )
