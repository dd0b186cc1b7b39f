"""A cost table as arrays: what each sub-block costs at a batch size in a scenario. Knows no layers, scores or limits.

Legend for shapes: K sub-blocks (embedding and head among them), B batch sizes and L lengths of the table; the last axis
of three is (value, low, high), low and high being the ends of the 95 % interval. Latencies are in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from puzzlebench.estimate import decode_node_weights
from puzzlebench.model.spec import ModelSpec
from puzzlebench.profiling.arrays import BoolArray, FloatArray, IntArray
from puzzlebench.profiling.block_costs import PHASES, Phase
from puzzlebench.profiling.cost_table import CostTable
from puzzlebench.searching.scenarios import ServingScenario

SubBlockKey = tuple[str, str]
"""(part, sub-block), as the table names them."""

EMBEDDING: Final[SubBlockKey] = ("embedding", "embedding")
HEAD: Final[SubBlockKey] = ("head", "head")
IDENTITY_COLUMNS: Final = ("gpu", "engine", "engine_version", "weight_dtype", "kv_dtype", "tensor_parallel")
_NO_OPS: Final[tuple[SubBlockKey, ...]] = (("attention", "no_op"), ("ffn", "no_op"))


@dataclass(frozen=True, kw_only=True)
class Cells:
    """The cells of one model on one GPU.

    Attributes:
        subs: K keys; the two no-ops are always among them and cost nothing, in the table or not.
        batch_sizes: B, ascending.
        lengths: of each phase L, ascending.
        seconds: of each phase (K, B, L, 3); NaN where the table has no cell.
        workspace: of each phase (K, B, L), bytes; NaN where the table has no cell.
        weight_bytes: (K,).
        kv_bytes_per_token: (K,).
        misses: why a cell is missing, by (part, sub-block, phase, batch size, length).
    """

    subs: tuple[SubBlockKey, ...]
    batch_sizes: tuple[int, ...]
    lengths: dict[Phase, IntArray]
    seconds: dict[Phase, FloatArray]
    workspace: dict[Phase, FloatArray]
    weight_bytes: FloatArray
    kv_bytes_per_token: FloatArray
    misses: dict[tuple[str, str, str, int, int], str]

    def places(self, subs: Iterable[SubBlockKey]) -> IntArray:
        """Where sub-blocks stand among the K; -1 for those without any cell."""
        found = {sub: place for place, sub in enumerate(self.subs)}
        return np.array([found.get(sub, -1) for sub in subs], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class ScenarioCosts:
    """What sub-blocks cost at one batch size in one scenario; NaN for those that lack a cell.

    Attributes:
        prefill: (K, 3), seconds of the whole batch.
        decode: (K, 3), seconds of all steps after the first token.
        workspace: (K,), bytes.
        needs: of each phase, which of its L lengths these come from.
    """

    prefill: FloatArray
    decode: FloatArray
    workspace: FloatArray
    needs: dict[Phase, IntArray]


def read_cells(table: CostTable) -> Cells:
    """The arrays of a table.

    Raises:
        ValueError: it mixes GPUs, engines, number formats or degrees of tensor parallelism, or a sub-block's weight
            bytes or cache bytes differ between its cells.
    """
    frame = table.frame
    for column in IDENTITY_COLUMNS:
        values = frame[column].unique().tolist()
        if len(values) > 1:
            raise ValueError(
                f"the cost table mixes {column} {values[0]} and {values[1]}; give a table with one {column}"
            )
    kinds = frame["part"] + "+" + frame["sub_block"]
    sub_places, kind_names = pd.factorize(kinds)
    subs: list[SubBlockKey] = [(part, name) for part, _, name in (kind.partition("+") for kind in kind_names.tolist())]
    subs += [sub for sub in _NO_OPS if sub not in subs]
    batch_sizes, batch_places = np.unique(frame["batch_size"].to_numpy(dtype=np.int64), return_inverse=True)
    lengths: dict[Phase, IntArray] = {}
    seconds: dict[Phase, FloatArray] = {}
    workspace: dict[Phase, FloatArray] = {}
    idle = [subs.index(sub) for sub in _NO_OPS]
    columns = frame[["latency_us", "latency_low_us", "latency_high_us"]].to_numpy(dtype=np.float64) / 1e6
    working = frame["workspace_bytes"].to_numpy(dtype=np.float64)
    for phase in PHASES:
        rows = np.flatnonzero(frame["phase"] == phase)
        lengths[phase], length_places = np.unique(
            frame["context_len"].to_numpy(dtype=np.int64)[rows], return_inverse=True
        )
        where = (sub_places[rows], batch_places[rows], length_places)
        shape = (len(subs), len(batch_sizes), len(lengths[phase]))
        seconds[phase], workspace[phase] = np.full((*shape, 3), np.nan), np.full(shape, np.nan)
        seconds[phase][where], workspace[phase][where] = columns[rows], working[rows]
        seconds[phase][idle], workspace[phase][idle] = 0.0, 0.0
    return Cells(
        subs=tuple(subs),
        batch_sizes=tuple(batch_sizes.tolist()),
        lengths=lengths,
        seconds=seconds,
        workspace=workspace,
        weight_bytes=_constant(frame, "weight_bytes", sub_places, subs),
        kv_bytes_per_token=_constant(frame, "kv_bytes_per_token", sub_places, subs),
        misses={
            (miss["part"], miss["sub_block"], miss["phase"], miss["batch_size"], miss["context_len"]): miss["reason"]
            for miss in table.metadata.get("misses", [])
        },
    )


def _constant(frame: pd.DataFrame, column: str, places: IntArray, subs: Sequence[SubBlockKey]) -> FloatArray:
    """A column that must be the same in all cells of a sub-block, (K,)."""
    values = frame[column].to_numpy(dtype=np.float64)
    found = np.zeros(len(subs))
    found[places] = values
    wrong = np.flatnonzero(found[places] != values)
    if len(wrong):
        sub = describe(subs[places[wrong[0]]])
        raise ValueError(f"the cost table's cells of {sub} differ in {column}; it must be the same in all")
    return found


def spec_of(table: CostTable) -> ModelSpec:
    """The model a table is of.

    Raises:
        ValueError: its metadata does not say, or says what is not possible.
    """
    facts = table.metadata.get("model")
    if not isinstance(facts, dict):
        raise ValueError("the cost table's metadata does not say of which model it is; profile it again")
    try:
        return ModelSpec(**{**facts, "sliding_windows": tuple(facts["sliding_windows"])})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the cost table's metadata has no usable model: {error}") from None


def max_num_tokens_of(table: CostTable) -> int:
    """Most prompt tokens that run in one step.

    Raises:
        ValueError: the table's metadata does not say.
    """
    settings: Any = table.metadata.get("settings")
    value = settings.get("max_num_tokens") if isinstance(settings, dict) else None
    if not isinstance(value, int) or value < 1:
        raise ValueError("the cost table's metadata does not say max_num_tokens, which memory depends on")
    return value


def check_lengths(cells: Cells, scenario: ServingScenario) -> None:
    """Raise ValueError unless the scenario's lengths lie within those of the table at some batch size."""
    _prefill_places(cells.lengths["prefill"], scenario)
    _decode_places(cells.lengths["decode"], scenario)


def scenario_costs(cells: Cells, batch_size: int, scenario: ServingScenario) -> ScenarioCosts:
    """What every sub-block costs in a scenario.

    Prefill between two lengths of the table is straight in logarithms, decode straight in the tokens in the cache;
    workspace is that of the next larger prompt, or of a decode step where that takes more.

    Raises:
        ValueError: the table has not that batch size, or the scenario's lengths lie outside the table's at it.
    """
    if batch_size not in cells.batch_sizes:
        known = ", ".join(map(str, cells.batch_sizes))
        raise ValueError(f"the cost table has no batch size {batch_size}; it has {known}")
    batch = cells.batch_sizes.index(batch_size)
    own = [place for place, sub in enumerate(cells.subs) if sub not in _NO_OPS]
    there = {phase: np.flatnonzero(~np.isnan(cells.seconds[phase][own, batch, :, 0]).all(axis=0)) for phase in PHASES}
    lengths = {phase: cells.lengths[phase][there[phase]] for phase in PHASES}
    needs: dict[Phase, IntArray] = {
        "prefill": there["prefill"][_prefill_places(lengths["prefill"], scenario)],
        "decode": there["decode"][_decode_places(lengths["decode"], scenario)],
    }
    prompts = cells.seconds["prefill"][:, batch, needs["prefill"]]
    nodes = cells.lengths["prefill"][needs["prefill"]]
    prefill: FloatArray = prompts[:, 0]
    if len(nodes) == 2:
        share = np.log(scenario.prefill_len / nodes[0]) / np.log(nodes[1] / nodes[0])
        prefill = prompts[:, 0] ** (1 - share) * prompts[:, 1] ** share
    workspace: FloatArray = cells.workspace["prefill"][:, batch, needs["prefill"][-1]]
    decode = np.zeros_like(prefill)
    if scenario.steps:
        contexts = scenario.prefill_len + 1 + np.arange(scenario.steps)
        weights = decode_node_weights(contexts, cells.lengths["decode"][needs["decode"]].tolist())
        decode = np.einsum("kle,l->ke", cells.seconds["decode"][:, batch, needs["decode"]], weights)
        workspace = np.maximum(workspace, cells.workspace["decode"][:, batch, needs["decode"]].max(axis=1))
    return ScenarioCosts(prefill=prefill, decode=decode, workspace=workspace, needs=needs)


def missing_cell(cells: Cells, batch_size: int, costs: ScenarioCosts, places: IntArray) -> tuple[int, str] | None:
    """The first of `places` (among the K) that lacks a cell the costs come from, as (its index in `places`, a text
    that says which cell), or None.
    """
    batch = cells.batch_sizes.index(batch_size)
    for phase in PHASES:
        lacks: BoolArray = np.isnan(cells.seconds[phase][:, batch, costs.needs[phase], 0])
        hits = np.flatnonzero(np.any(lacks, axis=1)[places])
        if len(hits):
            place = places[hits[0]]
            length = int(cells.lengths[phase][costs.needs[phase][int(np.argmax(lacks[place]))]])
            reason = cells.misses.get((*cells.subs[place], phase, batch_size, length))
            text = f"no cell for {describe(cells.subs[place])}, {phase}, batch {batch_size}, length {length}"
            return int(hits[0]), text + (f" ({reason})" if reason else "")
    return None


def describe(sub: SubBlockKey) -> str:
    """A sub-block for people: "attention gqa_8", "head"."""
    part, name = sub
    return name if part == name else f"{part} {name}"


def _prefill_places(lengths: IntArray, scenario: ServingScenario) -> IntArray:
    """Where the prompt's length stands, or those around it."""
    wanted = scenario.prefill_len
    _refuse_outside(lengths, wanted, wanted, scenario, "prefill", f"prompts of {wanted} tokens")
    above = int(np.searchsorted(lengths, wanted))
    return np.array([above]) if lengths[above] == wanted else np.array([above - 1, above])


def _decode_places(lengths: IntArray, scenario: ServingScenario) -> IntArray:
    """Where the tokens in the cache stand that the steps attend to, those around them included; none without steps."""
    if not scenario.steps:
        return np.zeros(0, dtype=np.int64)
    first, last = scenario.prefill_len + 1, scenario.prefill_len + scenario.steps
    _refuse_outside(lengths, first, last, scenario, "decode", f"steps that attend to {first} to {last} tokens")
    return np.arange(int(np.searchsorted(lengths, first, side="right")) - 1, int(np.searchsorted(lengths, last)) + 1)


def _refuse_outside(
    lengths: IntArray, first: int, last: int, scenario: ServingScenario, phase: Phase, what: str
) -> None:
    if not len(lengths) or first < lengths[0] or last > lengths[-1]:
        known = ", ".join(map(str, lengths.tolist())) or "none"
        option = "--prefill-lens" if phase == "prefill" else "--context-lens"
        raise ValueError(
            f"scenario {scenario.name}: {what} lie outside the cost table's {phase} lengths ({known}); profile with "
            f"{option} that reach them"
        )
