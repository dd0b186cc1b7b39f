"""Print tables and estimates for people (rich), and the same facts as JSON. Computes nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from puzzlebench.estimate import Estimate, Interval
from puzzlebench.model.catalog import ModelRow
from puzzlebench.profiling.cost_table import CostTable
from puzzlebench_profiles.datasheets import Datasheet
from puzzlebench_profiles.kernel_tables import KernelTableId

if TYPE_CHECKING:
    from puzzlebench.measuring.composition import Composition
    from puzzlebench.measuring.results import Results
    from puzzlebench.measuring.stack.measure import StackTimings
    from puzzlebench.measuring.stack.slope import Slope

_MISSES_SHOWN = 5
_MARKS = {"measured": "", "interpolated": "~", "extrapolated": "^", "modelled": "*"}
_LEGEND = "no mark: measured   ~ interpolated   ^ extrapolated   * modelled"
_GIB = 2**30
_WIDTH_WITHOUT_TERMINAL = 120


def console() -> Console:
    """Standard output; a fixed width where it is not a terminal, so that piped output does not depend on one."""
    out = Console()
    return out if out.is_terminal else Console(width=_WIDTH_WITHOUT_TERMINAL)


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=1))


def cost_table_json(table: CostTable) -> dict[str, Any]:
    """Metadata and one object per cell; an energy that was not measured is null."""
    cells = json.loads(table.frame.to_json(orient="records", double_precision=10))
    return {**table.metadata, "cells": cells}


def print_cost_table(table: CostTable, *, phases: tuple[str, ...], batch_size: int | None) -> None:
    """Microseconds of every sub-block at one batch size, a column per length, for each phase."""
    out, frame = console(), table.frame
    first = frame.iloc[0]
    sizes = sorted(frame["batch_size"].unique())
    batch = batch_size if batch_size is not None else _middle(sizes)
    if batch not in sizes:
        raise ValueError(f"the table has no batch size {batch}; it has {', '.join(map(str, sizes))}")
    out.print(
        f"[bold]{table.metadata['model']['name']}[/bold] on [bold]{first['gpu']}[/bold]: {first['engine']} "
        f"{first['engine_version']}, weights {first['weight_dtype']}, KV cache {first['kv_dtype']}, "
        f"tensor parallel {first['tensor_parallel']}"
    )
    for phase in phases:
        cells = frame[(frame["phase"] == phase) & (frame["batch_size"] == batch)]
        if not cells.empty:
            out.print(_phase_table(cells, phase, int(batch)))
    counts = frame["provenance"].value_counts()
    trust = ", ".join(f"{counts[name]} {name}" for name in _MARKS if name in counts)
    out.print(f"{_LEGEND}\n{len(frame)} cells: {trust}; batch sizes {', '.join(map(str, sizes))}", highlight=False)
    misses = table.metadata.get("misses", [])
    for miss in misses[:_MISSES_SHOWN]:
        size = f"batch {miss['batch_size']}, length {miss['context_len']}"
        out.print(
            f"miss: {miss['part']} {miss['sub_block']}, {miss['phase']}, {size}: {miss['reason']}",
            highlight=False,
            soft_wrap=True,
        )
    if len(misses) > _MISSES_SHOWN:
        out.print(f"and {len(misses) - _MISSES_SHOWN} more misses; --json has them", highlight=False)
    out.print(f"source: {first['source']}", highlight=False, soft_wrap=True)


def print_measurement(results: Results) -> None:
    """How well a live measurement went: intervals, why cells stopped, sessions, throttling."""
    from puzzlebench.measuring.disturbance import BUSY_SHARE

    measured = list(results.measured.values())
    widths = np.array([one.relative_interval for one in measured])
    stops = Counter(one.stopped_by for one in measured)
    stopped = ", ".join(f"{count} by {why}" for why, count in stops.most_common())
    shifts = ", ".join(f"{100 * shift:+.1f} %" for shift in results.session_shift)
    out = console()
    out.print(
        f"{len(measured)} timed pieces of work, {sum(one.samples for one in measured):,} samples; 95 % interval: "
        f"median ±{100 * np.median(widths):.1f} %, 90th percentile ±{100 * np.percentile(widths, 90):.1f} %",
        highlight=False,
    )
    out.print(f"stopped: {stopped}; sessions against their mean: {shifts}", highlight=False)
    if results.others_share > BUSY_SHARE:
        out.print(
            f"other processes took up to {100 * results.others_share:.0f} % of the processors meanwhile: measure "
            "again on an idle machine before you rely on this",
            highlight=False,
        )
    calm = [one.disturbed_share for one in measured if one.disturbed_share > 0]
    if calm:
        out.print(
            f"something else slowed the machine in {100 * float(np.median(calm)):.0f} % of the samples: left out",
            highlight=False,
        )
    throttled = [one for one in measured if one.throttled_share > 0]
    if throttled:
        wholly = sum(one.throttled_share == 1 for one in throttled)
        out.print(
            f"clocks were held down in samples of {len(throttled)} of them ({wholly} in every sample, which are kept)",
            highlight=False,
        )


def print_composition(title: str, found: list[Composition]) -> None:
    """Whole models beside the sums of their blocks."""
    out = console()
    shown = Table(title=f"do blocks add up? {title}", title_justify="left")
    for name in ("model", "phase", "batch", "length", "whole ms", "±", "sum of blocks ms", "±", "error"):
        shown.add_column(name, justify="left" if name in ("model", "phase") else "right")
    previous = None
    for one in sorted(found, key=lambda one: (one.phase == "decode", one.model)):
        if previous not in (None, (one.phase, one.model)):
            shown.add_section()
        previous = (one.phase, one.model)
        shown.add_row(
            one.model,
            one.phase,
            str(one.batch_size),
            f"{one.context_len:,}",
            _number(one.whole_us / 1e3),
            f"{100 * (one.whole_high_us - one.whole_low_us) / 2 / one.whole_us:.1f} %",
            _number(one.sum_us / 1e3),
            f"{100 * (one.sum_high_us - one.sum_low_us) / 2 / one.sum_us:.1f} %",
            f"{100 * one.error:+.1f} %",
        )
    out.print(shown)
    for phase in ("prefill", "decode"):
        errors = np.array([one.error for one in found if one.phase == phase])
        if len(errors):
            out.print(
                f"{phase}: median absolute error {100 * np.median(np.abs(errors)):.1f} %, largest "
                f"{100 * np.max(np.abs(errors)):.1f} %, bias {100 * np.median(errors):+.1f} %",
                highlight=False,
            )


def print_stacks(title: str, found: Mapping[str, StackTimings | str]) -> None:
    """Blocks timed as slopes of stacks; a refused one says why."""
    shown = Table(title=f"microseconds per block, 95 % interval; {title}", title_justify="left")
    for name in ("block", "batch", "prefill", "block", "rest", "decode, mean context", "block", "rest"):
        shown.add_column(name, justify="left" if name == "block" and not shown.columns else "right")
    refused = []
    for block, timings in found.items():
        if isinstance(timings, str):
            refused.append(f"{block}: {timings}")
            continue
        shown.add_row(
            block,
            str(timings.batch_size),
            f"{timings.prompt_len:,}",
            *_slope_cells(timings.prefill),
            f"{timings.mean_context:,.1f}",
            *_slope_cells(timings.decode),
        )
    console().print(shown)
    for line in refused:
        console().print(f"refused: {line}", highlight=False, soft_wrap=True)


def _slope_cells(slope: Slope) -> tuple[str, str]:
    block = f"{_number(slope.latency_us)} ({_number(slope.low_us)} to {_number(slope.high_us)})"
    return block, _number(slope.intercept_us)


def _phase_table(cells: pd.DataFrame, phase: str, batch: int) -> Table:
    what = "prefill, by prompt length" if phase == "prefill" else "decode of one token each, by tokens in the cache"
    shown = Table(title=f"microseconds per block, batch {batch}: {what}", title_justify="left")
    shown.add_column("part")
    shown.add_column("sub-block")
    lengths = sorted(cells["context_len"].unique())
    for length in lengths:
        shown.add_column(f"{length:,}", justify="right")
    shown.add_column("weights MiB", justify="right")
    shown.add_column("KV B/token", justify="right")
    previous = None
    for key, rows in cells.groupby(["part", "sub_block"], sort=False):
        part, name = map(str, key)
        if previous not in (None, part):
            shown.add_section()
        previous = part
        by_length = rows.set_index("context_len")
        latencies = [
            _marked(by_length.loc[n, "latency_us"], by_length.loc[n, "provenance"]) if n in by_length.index else "miss"
            for n in lengths
        ]
        weights = rows["weight_bytes"].iloc[0] / 2**20
        shown.add_row(part, name, *latencies, f"{weights:,.1f}", f"{rows['kv_bytes_per_token'].iloc[0]:,}")
    return shown


def _marked(latency_us: float, provenance: str) -> str:
    number = f"{latency_us:,.0f}" if latency_us >= 1000 else f"{latency_us:.1f}"
    return f"{_MARKS[provenance]}{number}" if latency_us else "0"


def _middle(sizes: list[int]) -> int:
    return sizes[len(sizes) // 2]


def print_gpus(sheets: list[Datasheet], tables: tuple[KernelTableId, ...]) -> None:
    """Known GPUs with their datasheet and what was measured on them."""
    shown = Table()
    for name in ("GPU", "memory GiB", "TB/s", "bf16 TFLOP/s", "fp8 TFLOP/s", "measured engines"):
        shown.add_column(name, justify="left" if name in ("GPU", "measured engines") else "right")
    for sheet in sheets:
        engines = "\n".join(f"{table.engine} {table.engine_version}" for table in tables if table.gpu == sheet.name)
        fp8 = f"{sheet.peak_fp8_flops / 1e12:,.0f}" if sheet.peak_fp8_flops else "-"
        names = f"[bold]{sheet.name}[/bold]" + (f" ({', '.join(sheet.aliases)})" if sheet.aliases else "")
        shown.add_row(
            names,
            f"{sheet.memory_bytes / _GIB:.0f}",
            f"{sheet.memory_bandwidth / 1e12:.2f}",
            f"{sheet.peak_bf16_flops / 1e12:,.0f}",
            fp8,
            engines,
            end_section=True,
        )
    console().print(shown)
    console().print("any other GPU: give a datasheet, --gpu my_gpu.yaml (docs/new-hardware.md)", highlight=False)


def gpus_json(sheets: list[Datasheet], tables: tuple[KernelTableId, ...]) -> list[dict[str, Any]]:
    """Datasheets with the measured engines."""
    return [
        asdict(sheet)
        | {
            "measured": [
                {"engine": t.engine, "engine_version": t.engine_version} for t in tables if t.gpu == sheet.name
            ]
        }
        for sheet in sheets
    ]


def print_models(rows: tuple[ModelRow, ...]) -> None:
    """Bundled models."""
    shown = Table()
    for name in ("model", "parameters", "layers", "hidden", "heads", "KV heads", "head dim", "FFN"):
        shown.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
    for row in rows:
        shown.add_row(
            f"[bold]{row.id}[/bold]",
            f"{row.parameters / 1e9:.2f} B",
            str(row.num_hidden_layers),
            str(row.hidden_size),
            str(row.num_attention_heads),
            str(row.num_key_value_heads) + (" (varies)" if row.heterogeneous else ""),
            str(row.head_dim),
            str(row.intermediate_size),
        )
    console().print(shown)
    console().print(
        "--json has their Hub ids; any other: a Hub id, a directory with config.json, or such a file", highlight=False
    )


def print_estimate(title: str, result: Estimate, baseline: tuple[str, Estimate] | None) -> None:
    """One scenario: latency, throughput, memory, where the time goes, and the speed-up over a baseline."""
    out = console()
    out.print(title, highlight=False)
    shown = Table(show_header=False)
    shown.add_column()
    shown.add_column(justify="right")
    shown.add_column()
    for label, interval, unit in (
        ("time to first token (whole batch)", result.ttft_ms, "ms"),
        ("time per output token", result.tpot_ms, "ms"),
        ("prefill and decode", result.total_ms, "ms"),
        ("generated tokens", result.generated_tokens_per_s, "per second"),
        ("prompt and generated tokens", result.total_tokens_per_s, "per second"),
    ):
        shown.add_row(label, _number(interval.value), f"{unit} {_range(interval)}")
    shown.add_section()
    memory = result.memory
    shown.add_row(
        "memory per GPU", f"{memory.total_bytes / _GIB:.1f}", f"GiB of {result.usable_bytes / _GIB:.1f} usable"
    )
    for label, bytes_ in (
        ("  weights", memory.weights_bytes),
        ("  KV cache", memory.kv_cache_bytes),
        ("  workspace (modelled)", memory.workspace_bytes),
    ):
        shown.add_row(label, f"{bytes_ / _GIB:.2f}", "GiB")
    shown.add_row("largest batch that fits", f"{result.largest_batch:,}", "")
    if baseline is not None:
        name, other = baseline
        shown.add_section()
        shown.add_row(
            f"speed-up over {name}", f"{other.total_ms.value / result.total_ms.value:.3f}", "times, same batch"
        )
        shown.add_row("  in prefill", f"{other.ttft_ms.value / result.ttft_ms.value:.3f}", "")
        if result.tpot_ms.value:
            shown.add_row("  in decode", f"{other.tpot_ms.value / result.tpot_ms.value:.3f}", "")
    out.print(shown)
    out.print(_shares_table(result))
    trust = ", ".join(f"{share:.0%} {name}" for name, share in result.provenance.items())
    out.print(f"time by provenance of its cells: {trust}; 95 % intervals are of the kernel model", highlight=False)


def _shares_table(result: Estimate) -> Table:
    shown = Table(title="where the time goes", title_justify="left")
    for name in ("part", "sub-block", "layers", "prefill ms", "decode ms", "share"):
        shown.add_column(name, justify="left" if name in ("part", "sub-block") else "right")
    for share in sorted(result.shares, key=lambda share: -(share.prefill_ms + share.decode_ms)):
        spent = share.prefill_ms + share.decode_ms
        shown.add_row(
            share.part,
            share.sub_block,
            str(share.count),
            _number(share.prefill_ms),
            _number(share.decode_ms),
            f"{spent / result.total_ms.value:.1%}",
        )
    return shown


def _range(interval: Interval) -> str:
    return f"({_number(interval.low)} to {_number(interval.high)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}" if value else "0"
