"""The tables of a model card, as lines of Markdown: architecture, limits, costs, speed, retention, engines.

Numbers with an interval are written "value (low to high)". What was modelled says so. Reads no file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from puzzlebench.estimate import Interval
from puzzlebench.exporting.card_text import plain
from puzzlebench.exporting.evidence_values import PHASES, RetentionEvidence, SearchEvidence, SpeedEvidence
from puzzlebench.model.blocks import GQA, Architecture, Block, GatedMLP, Linear, NoOp
from puzzlebench.model.dtypes import KVDtype
from puzzlebench.model.engine_rules import Refusal, list_engine_rules
from puzzlebench.model.memory import sub_block_kv_bytes_per_token
from puzzlebench.model.parameters import sub_block_parameters
from puzzlebench.model.spec import ModelSpec
from puzzlebench.searching.quantities import format_value
from puzzlebench.searching.scenarios import ServingScenario, limits_in

_BLOCK_HEAD = ("layers", "attention", "FFN", "parameters per layer", "KV bytes per token")
_PHASES = {"prefill": "prefill", "decode": "per later token", "generate": "prefill and decode"}
_RESOURCES = {
    "memory": "memory per device",
    "params": "parameters",
    "throughput": "throughput",
    "latency": "whole answer",
    "ttft": "first token",
    "tpot": "per later token",
}
_ENGINES = {
    "transformers": "transformers",
    "vllm": "vLLM",
    "vllm_puzzlebench": "vLLM with puzzlebench's plugin",
    "tensorrt_llm": "TensorRT-LLM",
    "sglang": "SGLang",
    "llama_cpp": "llama.cpp",
}
_TRANSFORMERS: Final = "4.57.1 to 5.24.0"
"""What the code beside the weights was run with; there are no rules that state a version. See docs/export.md."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """A Markdown table; columns `right` are set to the right."""
    rule = ["---:" if place in right else "---" for place in range(len(head))]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in (head, rule, *rows)]


def architecture_table(spec: ModelSpec, architecture: Architecture, kv_dtype: KVDtype) -> list[str]:
    """A row for every run of layers with one block."""
    rows = [
        [str(first) if first == last else f"{first} to {last}", *_block_cells(spec, block, kv_dtype)]
        for first, last, block in _runs(architecture)
    ]
    return table(_BLOCK_HEAD, rows, right=(3, 4))


def parent_table(spec: ModelSpec, architecture: Architecture, kv_dtype: KVDtype) -> list[str]:
    """A row for every block of a parent, whose layers differ in windows at most."""
    total = len(architecture.blocks)
    rows = []
    for block, count in Counter(architecture.blocks).items():
        layers = f"each of {total}" if count == total else f"{count} of {total}"
        rows.append([layers, *_block_cells(spec, block, kv_dtype)])
    return table(_BLOCK_HEAD, rows, right=(3, 4))


def kv_bytes_per_token(spec: ModelSpec, architecture: Architecture, kv_dtype: KVDtype) -> int:
    """Of the whole model."""
    return sum(sub_block_kv_bytes_per_token(spec, block.attention, kv_dtype=kv_dtype) for block in architecture.blocks)


def limits_lines(search: SearchEvidence) -> list[str]:
    """What the search had to keep, a line for each scenario."""
    lines = []
    for scenario in search.scenarios:
        limits = [limit.describe_named() for limit in limits_in(scenario, search.limits)]
        limits += [limit.describe_named() for limit in search.limits if limit.resource == "params"]
        lines.append(f"- {_scenario(scenario, search.batch_size)}: {'; '.join(limits) if limits else 'no limits'}")
    if search.memory_limit_is_default:
        lines.append("- The limit of memory is what the device has, not one that was asked for.")
    if search.engine_rules:
        lines.append(f"- Only layers that {', '.join(search.engine_rules)} loads.")
    return lines


def costs_table(search: SearchEvidence) -> list[str]:
    """What the cost table says of the child, and of the parent where it was costed."""
    rows = []
    for column, value in search.values.items():
        name, bracket, scenario = column.partition("[")
        title = _RESOURCES.get(name, plain(name)) + (f" ({plain(scenario.rstrip(']'))})" if bracket else "")
        own, parent = (_quantity(column, one) for one in (value, search.parent_values.get(column, math.nan)))
        rows.append([title, own, parent, _ratio(column, value, search.parent_values.get(column, math.nan))])
    return table(["predicted", "this model", "parent", "better by"], rows, right=(1, 2, 3))


def speed_table(speed: SpeedEvidence) -> list[str]:
    """Measured times and speed-ups beside the predicted ones."""
    parent, child = speed.times
    modelled = speed.predicted_times[-1] if speed.predicted_times else None
    head = ["phase", "parent, ms", "this model, ms"]
    head += [] if modelled is None else ["this model, ms, predicted"]
    head += ["speed-up"]
    head += ["speed-up, predicted", "error"] if speed.predicted else []
    rows = []
    for phase in PHASES:
        row = [_PHASES[phase], *(with_interval(one[phase], _digits) for one in (parent, child))]
        row += [] if modelled is None else [with_interval(modelled[phase], _digits)]
        row.append(with_interval(speed.speed_ups[phase], times))
        if speed.predicted:
            row += [times(speed.predicted[phase]), f"{100 * speed.errors[phase]:+.1f} %"]
        rows.append(row)
    return table(head, rows, right=range(1, len(head)))


def retention_table(kept: RetentionEvidence) -> list[str]:
    """Each task, and the mean of all; a column for what is above chance where that is known of a task."""
    chance = any(math.isfinite(one.above_chance.value) for one in kept.tasks)
    rows = []
    for one in kept.tasks:
        row = [one.task, f"{one.documents:,}", one.metric, _digits(one.parent), _digits(one.child)]
        row.append(with_interval(one.retained, percent))
        if chance:
            row.append(with_interval(one.above_chance, percent))
        rows.append(row)
    whole = f"**{with_interval(kept.overall, percent)}**"
    rows.append(["**mean of the tasks**", "", "", "", "", whole, *([""] if chance else [])])
    head = ["task", "documents", "metric", "parent", "this model", "retained", *(["above chance"] if chance else [])]
    return table(head, rows, right=(1, *range(3, len(head))))


def engines_table(compatibility: Mapping[str, tuple[Refusal, ...]]) -> list[str]:
    """Each engine of the format, the versions that its rules are of, and whether one of them is against the model."""
    versions = {
        rules.engine: list(dict.fromkeys(rule.version for rule in rules.rules)) for rules in list_engine_rules()
    }
    rows = []
    for engine, refusals in compatibility.items():
        of = _TRANSFORMERS if engine == "transformers" else ", ".join(versions.get(engine, [])) or "–"
        rows.append([_ENGINES.get(engine, engine), of, _refusal(refusals)])
    return table(["engine", "version", "loads it"], rows)


def _refusal(refusals: Sequence[Refusal]) -> str:
    if not refusals:
        return "yes"
    first = f"layer {refusals[0].layer}: {refusals[0].rule.reason}"
    return f"no: {first}{f' (and {len(refusals) - 1} more)' if len(refusals) > 1 else ''}"


def _runs(architecture: Architecture) -> list[tuple[int, int, Block]]:
    """First and last layer of every run of the same block."""
    runs: list[tuple[int, int, Block]] = []
    for layer, block in enumerate(architecture.blocks):
        if runs and runs[-1][2] == block:
            runs[-1] = (runs[-1][0], layer, block)
        else:
            runs.append((layer, layer, block))
    return runs


def _block_cells(spec: ModelSpec, block: Block, kv_dtype: KVDtype) -> list[str]:
    parameters = sum(sub_block_parameters(spec, sub) for sub in (block.attention, block.ffn))
    cache = sub_block_kv_bytes_per_token(spec, block.attention, kv_dtype=kv_dtype)
    return [_attention(spec, block), _ffn(block), f"{parameters:,}", f"{cache:,}"]


def _attention(spec: ModelSpec, block: Block) -> str:
    match block.attention:
        case GQA(num_key_value_heads=heads, sliding_window=window):
            text = f"{spec.num_attention_heads} heads, {heads} key-value"
            return text if window is None else f"{text}, window of {window:,}"
        case Linear():
            return "one matrix"
        case NoOp():
            return "none"


def _ffn(block: Block) -> str:
    match block.ffn:
        case GatedMLP(intermediate_size=width):
            return f"gated, {width:,} wide"
        case Linear():
            return "one matrix"
        case NoOp():
            return "none"


def _scenario(scenario: ServingScenario, batch_size: int) -> str:
    many = f"batches of {batch_size} prompts" if batch_size > 1 else "single prompts"
    return f"{many} of {scenario.prefill_len:,} tokens, each answered with {scenario.decode_len:,}"


def _quantity(column: str, value: float) -> str:
    if not math.isfinite(value):
        return "–"
    try:
        return format_value(column, value).replace(" parameters", "")
    except ValueError:
        return _digits(value)


def _ratio(column: str, child: float, parent: float) -> str:
    if not (math.isfinite(child) and math.isfinite(parent)) or not (child and parent):
        return "–"
    return times(child / parent if column.startswith("throughput") else parent / child)


def with_interval(value: Interval, write: Callable[[float], str]) -> str:
    """The value, and its ends in brackets where they are known."""
    if not (math.isfinite(value.low) and math.isfinite(value.high)):
        return write(value.value)
    return f"{write(value.value)} ({write(value.low)} to {write(value.high)})"


def times(value: float) -> str:
    """A ratio: "1.53×"."""
    return f"{value:.3g}×" if math.isfinite(value) else "–"


def percent(value: float) -> str:
    """A share: "95.1 %"."""
    return f"{100 * value:.1f} %" if math.isfinite(value) else "–"


def _digits(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.5g}"
