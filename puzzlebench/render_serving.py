"""Print served models for people, and the same as JSON: steady states, sweeps over users, searches. Computes ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from rich.markup import escape
from rich.table import Table

from puzzlebench.estimate import Interval
from puzzlebench.render import console
from puzzlebench.searching.quantities import format_value
from puzzlebench.searching.serving_search import ServedCheck, ServedOutcome
from puzzlebench.serving.check import Simulated
from puzzlebench.serving.estimating import ServingEstimate

_QUANTITIES: Final = ("ttft_ms", "tpot_ms", "requests_per_s", "generated_tokens_per_s", "total_tokens_per_s")
_LIMITS: Final = {
    "users": "sequences, more than there are",
    "cache": "sequences: the cache is full and others wait",
    "batch size": "sequences: the batch is full and others wait",
    "iteration size": "sequences: more leave no room for a prompt in an iteration, and others wait",
    "prefill": "sequences, but prompts come as fast as they can be run",
}


def serving_json(estimate: ServingEstimate) -> dict[str, Any]:
    """A steady state with its intervals; throughputs of the group and per GPU."""
    shown = _as_asked(estimate)
    per_gpu = {
        f"{name}_per_gpu": asdict(shown.per_gpu(getattr(shown, name)))
        for name in ("generated_tokens_per_s", "total_tokens_per_s")
    }
    return asdict(shown) | per_gpu | {"interval_coverage": 0.9}


def _as_asked(estimate: ServingEstimate) -> ServingEstimate:
    """Throughput is given where a rate of requests is, so nothing is uncertain about it."""
    if estimate.workload.request_rate is None:
        return estimate
    generated, total = (
        Interval(value=one, low=one, high=one)
        for one in (estimate.generated_tokens_per_s.value, estimate.total_tokens_per_s.value)
    )
    return replace(estimate, generated_tokens_per_s=generated, total_tokens_per_s=total)


def print_serving(
    title: str,
    estimate: ServingEstimate,
    *,
    kernels: str,
    baseline: tuple[str, ServingEstimate | str] | None = None,
    simulated: Simulated | None = None,
    remarks: Sequence[str] = (),
) -> None:
    """One steady state; beside it the parent's and what a simulation saw.

    Args:
        kernels: the engine's version that they are of.
        baseline: the parent's name, and its steady state or why it has none.
        remarks: what else there is to say, a line each.
    """
    out = console()
    out.print(title, highlight=False, markup=False)
    parent = baseline[1] if baseline is not None and isinstance(baseline[1], ServingEstimate) else None
    shown = Table(show_header=parent is not None or simulated is not None)
    shown.add_column("")
    shown.add_column("steady state", justify="right")
    shown.add_column("90 % interval")
    if simulated is not None:
        shown.add_column("simulated", justify="right")
    if baseline is not None and parent is not None:
        shown.add_column(escape(baseline[0]), justify="right")
        shown.add_column("ratio", justify="right")
    rows = _times_and_rates(estimate, simulated)
    others = [None] * len(rows) if parent is None else [interval for _, _, interval, _ in _times_and_rates(parent)]
    for (label, unit, interval, seen), other in zip(rows, others, strict=True):
        given = unit == "per second" and estimate.workload.request_rate is not None
        span = "as asked" if given else f"({_number(interval.low)} to {_number(interval.high)})"
        row = [label, _number(interval.value), f"{unit} {span}"]
        if simulated is not None:
            row.append(_number(seen))
        if other is not None:
            row += [_number(other.value), f"{interval.value / other.value:.3f}"]
        shown.add_row(*row)
    shown.add_section()
    for label, text, unit in _point(estimate):
        shown.add_row(label, text, unit)
    out.print(shown)
    if baseline is not None and isinstance(baseline[1], str):
        out.print(f"{baseline[0]} is not shown: {baseline[1]}", highlight=False, markup=False, soft_wrap=True)
    if simulated is not None:
        out.print(
            f"simulated: means of {simulated.requests:,} requests between the first and the last of each user; "
            f"{simulated.evictions:,} evictions",
            highlight=False,
        )
    for remark in remarks:
        out.print(remark, highlight=False, markup=False)
    _print_trust(estimate, kernels)


def print_broken(lines: Sequence[str]) -> None:
    """Limits that do not hold."""
    for line in lines:
        console().print(f"! {line}", highlight=False, markup=False)


def print_sweep(title: str, points: Sequence[ServingEstimate], best: ServingEstimate | None) -> None:
    """A row for each number of users, with a mark at the best."""
    console().print(title, highlight=False, markup=False)
    shown = Table()
    names = (
        "users",
        "decode",
        "first token ms",
        "per token ms",
        "generated/s/GPU",
        "all/s/GPU",
        "mixed",
        "bound",
    )
    for name in names:
        shown.add_column(name, justify="left" if name == "bound" else "right")
    rows = list(points)
    if best is not None and all(one.concurrency != best.concurrency for one in rows):
        rows = sorted([*rows, best], key=lambda one: one.concurrency)
    for one in rows:
        chosen = best is not None and one.concurrency == best.concurrency
        shown.add_row(
            ("* " if chosen else "") + f"{one.concurrency:,.0f}",
            f"{one.state.decoding:,.1f}",
            _number(one.ttft_ms.value),
            _number(one.tpot_ms.value),
            _number(one.per_gpu(one.generated_tokens_per_s).value),
            _number(one.per_gpu(one.total_tokens_per_s).value),
            f"{one.state.mixed_share:.0%}",
            one.state.limit,
            style="bold" if chosen else None,
        )
    console().print(shown)


def served_search_json(tried: Sequence[ServedOutcome], own: ServedCheck, parent: ServedCheck) -> dict[str, Any]:
    """The operating point of a search, and what its best and the parent do by themselves."""
    best = tried[0]
    assert best.point is not None
    return {
        "tensor_parallel": best.tensor_parallel,
        "concurrency": best.point.concurrency,
        "point": asdict(best.point.estimate.state),
        "moves": list(best.moves),
        "settled": best.settled,
        "keeps_limits": best.keeps and own.keeps,
        "own": _check_json(own),
        "parent": _check_json(parent),
        "tried": [_tried_json(one) for one in tried],
    }


def print_served_search(tried: Sequence[ServedOutcome], own: ServedCheck, parent: ServedCheck) -> None:
    """The best served by itself beside what the search added up, and the degrees of tensor parallelism."""
    out, best = console(), tried[0]
    assert best.point is not None
    found = best.outcome.found[0]
    gpus = best.tensor_parallel
    group = f"; throughput is of the {gpus} GPUs together, limits were given per GPU" if gpus > 1 else ""
    out.print(f"a batch is the users, each with one request in flight{group}", highlight=False)
    title = f"served by itself: {found.batch_size} users on {gpus} GPU{'s' * (gpus > 1)}"
    shown = Table(title=title, title_justify="left")
    for name in ("", "as the search adds up", "own steady state", "90 % interval", "parent's", "ratio"):
        shown.add_column(name, justify="right" if name else "left")
    broken = {limit.column for limit in own.broken}
    for column in ("ttft", "tpot", "throughput"):
        mine, others = _value(own, column), _value(parent, column)
        shown.add_row(
            ("! " if column in broken else "") + column,
            format_value(column, found.check.values[column]),
            "does not fit" if mine is None else format_value(column, mine.value),
            "" if mine is None else " to ".join(format_value(column, end) for end in (mine.low, mine.high)),
            "does not fit" if others is None else format_value(column, others.value),
            "" if mine is None or others is None else f"{mine.value / others.value:.3f}",
        )
    out.print(shown)
    for limit in own.broken:
        text = f"! served by itself it does not keep {limit.limit.describe_named()}"
        out.print(f"{text}: {format_value(limit.column, limit.value)}", highlight=False, markup=False)
    for who, check in (("it", own), ("the parent", parent)):
        if check.estimate is None:
            out.print(f"{who} is not served: {check.why_not}", highlight=False, markup=False, soft_wrap=True)
    out.print(_moves(best), highlight=False)
    if len(tried) > 1:
        out.print(_tried_table(tried))
    if own.estimate is not None:
        _print_trust(own.estimate, str(best.table.frame["engine_version"].iloc[0]))


def _moves(best: ServedOutcome) -> str:
    off = ", ".join(f"{move:.2%}" for move in best.moves)
    searches = f"{len(best.moves)} search{'es' * (len(best.moves) > 1)}"
    text = f"{searches}; times added up lay {off} off those of the best's own operating point"
    return text if best.settled else f"{text}: not settled, so others may be better"


def _tried_table(tried: Sequence[ServedOutcome]) -> Table:
    shown = Table(title="by tensor parallelism", title_justify="left")
    for name in ("GPUs", "users", "score", "first token", "per token", "generated per s and GPU"):
        shown.add_column(name, justify="right")
    for one in sorted(tried, key=lambda each: each.tensor_parallel):
        gpus = f"{'* ' if one is tried[0] else ''}{one.tensor_parallel}"
        if not one.outcome.found:
            shown.add_row(gpus, "", "nothing keeps the limits" if one.outcome.proven else "out of time")
            continue
        found = one.outcome.found[0]
        values = found.check.values
        shown.add_row(
            gpus,
            str(found.batch_size),
            f"{found.objective:.6g}",
            format_value("ttft", values["ttft"]),
            format_value("tpot", values["tpot"]),
            format_value("throughput", values["throughput"] / one.tensor_parallel),
        )
    return shown


def _tried_json(one: ServedOutcome) -> dict[str, Any]:
    found = one.outcome.found[0] if one.outcome.found else None
    return {
        "tensor_parallel": one.tensor_parallel,
        "concurrency": None if found is None else found.batch_size,
        "objective": None if found is None else found.objective,
        "values": None if found is None else found.check.values,
        "proven": one.outcome.proven,
    }


def _check_json(check: ServedCheck) -> dict[str, Any]:
    limits = [
        {"column": one.column, "value": one.value, "low": one.limit.low, "high": one.limit.high, "holds": one.holds}
        for one in check.limits
    ]
    estimate = None if check.estimate is None else serving_json(check.estimate)
    return {"estimate": estimate, "limits": limits, "why_not": check.why_not or None}


def _value(check: ServedCheck, column: str) -> Interval | None:
    """In the units of the search."""
    one = check.estimate
    if one is None:
        return None
    if column == "throughput":
        return one.generated_tokens_per_s
    return (one.ttft_ms if column == "ttft" else one.tpot_ms).scaled(1e-3)


def _times_and_rates(
    one: ServingEstimate, simulated: Simulated | None = None
) -> list[tuple[str, str, Interval, float]]:
    """(label, unit, interval, what was simulated)."""
    seen = dict.fromkeys(_QUANTITIES, math.nan) if simulated is None else asdict(simulated)
    requests = one.generated_tokens_per_s.scaled(1 / one.workload.decode.mean)
    rows = [
        ("time to first token", "ms", one.ttft_ms, seen["ttft_ms"]),
        ("time per output token", "ms", one.tpot_ms, seen["tpot_ms"]),
        ("requests", "per second", requests, seen["requests_per_s"]),
    ]
    for label, interval, name in (
        ("generated tokens", one.generated_tokens_per_s, "generated_tokens_per_s"),
        ("prompt and generated tokens", one.total_tokens_per_s, "total_tokens_per_s"),
    ):
        rows.append((label, "per second", interval, seen[name]))
        if one.tensor_parallel > 1:
            per_gpu = one.per_gpu(interval)
            rows.append(("  per GPU", "per second", per_gpu, seen[name] / one.tensor_parallel))
    return rows


def _point(one: ServingEstimate) -> list[tuple[str, str, str]]:
    """(label, number, unit or remark) of the operating point."""
    state = one.state
    parts = f", {state.chunks} parts of each" if state.chunks > 1 else ""
    slots = "no bound" if state.slots == float("inf") else f"{state.slots:,.0f}"
    return [
        ("requests in the system", f"{one.concurrency:,.1f}", ""),
        ("  that decode", f"{state.decoding:,.1f}", f"at {state.context:,.0f} tokens each, on average"),
        ("place for", slots, _LIMITS[state.limit]),
        ("iterations with prompts", f"{state.mixed_share:.1%}", f"{state.prompts:.3g} prompts together{parts}"),
        ("  one of them", _number(state.mixed_iteration_ms), "ms"),
        ("  one without", _number(state.decode_iteration_ms), "ms"),
        ("way through the server", _number(state.way_ms), "ms, of the time to first token; fitted"),
        ("wait for an iteration", _number(state.wait_ms), "ms, of the time to first token"),
        ("wait for a place", _number(state.queue_ms), "ms, of the time to first token"),
    ]


def _print_trust(one: ServingEstimate, kernels: str) -> None:
    """Where the numbers come from, and what the intervals are.

    Args:
        kernels: the engine's version that they are of.
    """
    trust = ", ".join(f"{share:.0%} {name}" for name, share in one.provenance.items())
    if not one.calibrated:
        lines = ["no measured runs of this engine: kernels without overheads, and wider intervals"]
    else:
        lines = [f"overheads fitted on {one.calibrated}; kernels are of version {kernels}"]
        if not one.measured_here:
            lines.append("no measured runs of this GPU and model: wider intervals")
    for line in lines:
        console().print(line, highlight=False, markup=False, soft_wrap=True)
    console().print(escape(f"decode kernels by provenance: {trust}; 90 % intervals"), highlight=False)


def _number(value: float) -> str:
    if value < 1e-6:
        return "0"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
