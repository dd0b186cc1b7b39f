"""Print results of the suite and of the gate on predictions for people. Computes nothing but percentages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from puzzlebench.measuring.disturbance import BUSY_SHARE
from puzzlebench.measuring.statistics import combine_sessions, log_error
from puzzlebench.render import console

if TYPE_CHECKING:
    from puzzlebench.benching.suite import Benchmark
    from puzzlebench.gating.predictions import PredictionGate


def print_benchmarks(benchmarks: Sequence[Benchmark], missing: Mapping[str, str]) -> None:
    """The suite, and why something of it cannot run here."""
    table = Table()
    for name in ("benchmark", "what one run is", "here"):
        table.add_column(name, overflow="fold")
    for one in benchmarks:
        table.add_row(escape(one.name), escape(one.about), escape(missing.get(one.name, "runs")))
    console().print(table)


def print_bench(result: Mapping[str, Any]) -> None:
    """Every cell over the sessions, and what to know."""
    out, sessions = console(), result["sessions"]
    names = list(dict.fromkeys(name for session in sessions for name in session["cells"]))
    cells = [[session["cells"].get(name) for name in names] for session in sessions]
    medians = np.array([[np.nan if cell is None else cell["median"] for cell in row] for row in cells])
    errors = np.array([[np.nan if cell is None else _error(cell) for cell in row] for row in cells])
    combined = combine_sessions(medians, np.where(np.isnan(medians), np.nan, np.nan_to_num(errors)))
    known = (len(sessions) > 1) | np.isfinite(errors).any(axis=0)  # one session with few samples has no interval
    table = Table()
    for name in ("benchmark", "us", "95 % interval", "sessions scatter by"):
        table.add_column(name, justify="left" if name == "benchmark" else "right", overflow="fold")
    for place, name in enumerate(names):
        interval = f"{combined.low_us[place]:,.4g} to {combined.high_us[place]:,.4g}" if known[place] else "unknown"
        scatter = f"{combined.scatter[place]:.1%}" if len(sessions) > 1 else ""
        table.add_row(escape(name), f"{combined.latency_us[place]:,.4g}", interval, scatter)
    out.print(table)
    shift = f"all cells together by {float(np.std(combined.shift, ddof=1)):.1%}; " if len(sessions) > 1 else ""
    disturbed = result["disturbed"]
    lines = [
        f"{len(sessions)} fresh process(es) on {result['fingerprint']['display_name']}, "
        f"{result['fingerprint']['threads']} thread(s); {shift}up to {disturbed['set_aside_share']:.0%} of the samples "
        "set aside as disturbed"
    ]
    if disturbed["others_share"] > BUSY_SHARE:
        lines.append(f"others took up to {disturbed['others_share']:.0%} of the processors meanwhile")
    throttled = sorted({name for session in sessions for name, cell in session["cells"].items() if "throttled" in cell})
    lines += [f"{name}: made of samples of a throttled GPU, for want of others" for name in throttled]
    lines += [f"{name}: {why}" for name, why in result["skipped"].items() if why.startswith("failed")]
    for line in lines:
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def _error(cell: Mapping[str, Any]) -> float:
    if cell["low"] is None:  # too few samples
        return math.nan
    return float(log_error(cell["low"], cell["high"]))


def print_predictions(gate: PredictionGate) -> None:
    """What is other than the goldens say, the gravest first."""
    out = console()
    if gate.findings:
        table = Table()
        for name in ("prediction", "", "what"):
            table.add_column(name, overflow="fold")
        for finding in gate.by_gravity:
            style = "bold red" if finding.outcome == "fails" else ""
            table.add_row(escape(finding.cell), finding.outcome, escape(finding.what), style=style)
        out.print(table)
    out.print(
        f"{gate.cells} predictions, {len(gate.failed)} fail; the largest drift is {gate.largest_drift:.2%}",
        style="bold",
        highlight=False,
        markup=False,
    )
