"""Print a measurement of speed for people. Computes nothing but errors in percent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from puzzlebench.measuring.disturbance import BUSY_SHARE
from puzzlebench.render import console

_ROWS = (
    ("prefill_ms", "prefill, ms"),
    ("tpot_ms", "per later token, ms"),
    ("generate_ms", "generate, ms"),
    ("generated_tokens_per_s", "generated tokens/s"),
)
_PHASES = ("prefill", "decode", "generate")
_ROOM = 1.5  # of the last-level cache: a model that goes through less a step finds some of it there at the next
_OFF = 0.05  # of the parent's own time, above which the machine is not as it was
_ENGINES = {
    "torch": "the operations of a live cost table on the checkpoint's weights, eager, no CUDA graphs",
    "transformers": "forward and generate of transformers, its overhead included, no CUDA graphs",
}


def print_speed(result: Mapping[str, Any]) -> None:
    """Every model's times beside the prediction, the speed-ups, and what to know about them."""
    out, size = console(), result["scenario"]
    predictions = {one["model"]: one for one in result["predictions"] or ()}
    out.print(
        f"{size['batch_size']} prompts of {size['prefill_len']} tokens, {size['decode_len']} generated; "
        f"{result['device']}, {result['engine']}, {result['precision']}",
        highlight=False,
        soft_wrap=True,
    )
    table = Table()
    names = ["model", "", "measured", *(["predicted", "error"] if predictions else [])]
    for name in names:
        table.add_column(name, justify="left" if name in ("model", "") else "right", overflow="fold")
    for model in result["models"]:
        predicted = predictions.get(model["model"])
        for place, (field, title) in enumerate(_ROWS):
            cells = [model["model"] if place == 0 else "", title, _interval(model[field])]
            if predicted is not None:
                cells += [_interval(predicted[field]), _error(predicted[field]["value"] / model[field]["value"] - 1)]
            table.add_row(*cells, end_section=place == len(_ROWS) - 1)
    out.print(table)
    if result["speed_ups"]:
        out.print(_speed_ups(result))
    for line in _notes(result):
        out.print(line, highlight=False, soft_wrap=True)


def changed_machine(result: Mapping[str, Any]) -> str | None:
    """A sentence where the parent itself is not as fast as the cost table of the same machine says.

    Children of another size feel a busy neighbour in another measure, so no prediction of a speed-up holds then.
    """
    costs = result["costs"]
    if costs is None or not (costs["same_device"] and costs["same_precision"] and costs["engine"] == result["engine"]):
        return None
    parent, predicted = result["models"][0], result["predictions"][0]
    off = parent["generate_ms"]["value"] / predicted["generate_ms"]["value"] - 1
    if abs(off) <= _OFF:
        return None
    return (
        f"{parent['model']} itself takes {abs(off):.0%} {'longer' if off > 0 else 'less'} than its table says: the "
        "machine is not as it was when the table was made, and the errors have that in them; profile and measure again"
    )


def _speed_ups(result: Mapping[str, Any]) -> Table:
    predicted = {one["model"]: one for one in result["predicted_speed_ups"] or ()}
    table = Table(title=f"times as fast as {result['models'][0]['model']}", title_justify="left")
    for name in ("model", "", "measured", *(["predicted", "error"] if predicted else [])):
        table.add_column(name, justify="left" if name in ("model", "") else "right", overflow="fold")
    for speed_up in result["speed_ups"]:
        for phase in _PHASES:
            cells = [speed_up["model"] if phase == _PHASES[0] else "", phase, _interval(speed_up[phase])]
            if one := predicted.get(speed_up["model"]):
                cells += [f"{one[phase]:.3g}", _error(one["error"][phase])]
            table.add_row(*cells, end_section=phase == _PHASES[-1])
    return table


def _notes(result: Mapping[str, Any]) -> list[str]:
    notes = [
        f"{result['engine']} {result['engine_version']}: {_ENGINES[result['engine']]}; {result['threads']} thread(s); "
        f"{result['rounds']} rounds in {result['sessions']} fresh process(es); intervals are of 95 %",
        "the same tokens as greedy search by transformers: "
        + ", ".join(f"{model} {share:.1%}" for model, share in result["tokens_agree"].items()),
    ]
    if result["disturbed_share"] > 0:
        notes.append(
            f"{result['disturbed_share']:.0%} of the rounds were disturbed and are left out where others remain"
        )
    if result["others_share"] > BUSY_SHARE:
        notes.append(
            f"others took up to {result['others_share']:.0%} of the processors: measure again when they do not"
        )
    costs, cache = result["costs"], result["last_level_cache_bytes"]
    if costs is not None:
        small = [one for one in result["models"] if one["bytes_per_step"] < _ROOM * cache]
        notes += [
            f"{one['model']} goes through {one['bytes_per_step'] / 2**20:.0f} MiB a decode step and the last-level "
            f"cache holds {cache / 2**20:.0f} MiB, so part stays there, while the table's blocks are timed with cold "
            "caches: it can be faster than predicted; a larger batch compares better"
            for one in small
        ]
        notes.append(f"predicted from {costs['from']} ({costs['source']})")
        notes += [changed] if (changed := changed_machine(result)) else []
        if not costs["same_device"]:
            notes.append(f"the cost table is of {costs['gpu']}: its times are not of this device")
        if not costs["same_precision"]:
            notes.append(f"the cost table is of {costs['weight_dtype']} weights, measured was {result['precision']}")
        if costs["engine"] != result["engine"]:
            notes.append(f"the cost table is of the engine {costs['engine']}, measured was {result['engine']}")
    return notes


def _interval(values: Mapping[str, float]) -> str:
    value, low, high = (values[name] for name in ("value", "low", "high"))
    return f"{_number(value)} ({_number(low)} to {_number(high)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _error(share: float) -> str:
    return f"{100 * share:+.1f} %"
