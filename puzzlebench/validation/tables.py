"""What `validate` measured as tables of text, for the terminal and for Markdown."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from puzzlebench.estimate import Interval
from puzzlebench.serving.calibration import METRICS, Calibration
from puzzlebench.serving.iterations import Overheads
from puzzlebench.serving.runs import SPLITS, benchmarks
from puzzlebench.validation import paper
from puzzlebench.validation.held_out import ErrorSummary, HeldOutError
from puzzlebench.validation.monotone import Falls
from puzzlebench.validation.paper import PaperPoint, PaperRow
from puzzlebench.validation.serving import (
    METHODS,
    SETTLED,
    UNQUEUED,
    PredictedRun,
    PublishedError,
    ServingError,
    UnusedGroup,
    missed,
    target_cells,
)

ERROR_COLUMNS: Final = ("n", "median", "p90", "bias", "coverage")
GROUPED: Final = ("GPU", "engine", "model", "TP", "lengths")
RESIDUALS: Final = ("users", "lengths", "TP")
_NAMES: Final = {
    "tpot": "time per output token",
    "ttft": "time to first token",
    "throughput": "throughput",
    UNQUEUED: "time to first token, all in flight",
    SETTLED: "time to first token, without a first wave",
    "replay": "benchmark replayed",
    "steady": "steady state",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTable:
    """Cells of text; the last `numbers` columns are aligned to the right."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numbers: int

    def markdown(self) -> str:
        """As a Markdown table."""
        rule = ("---",) * (len(self.header) - self.numbers) + ("---:",) * self.numbers
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (self.header, rule, *self.rows))


def held_out_table(found: Sequence[HeldOutError], plain: Sequence[HeldOutError], gpu: str, engine: str) -> TextTable:
    """Kernels by kind, dtype and split; `plain` has the errors of interpolation on the same rows."""
    rows = [
        (row.kind, "/".join(row.dtypes), row.split, *error_cells(row.error), *error_cells(other.error)[1:3])
        for row, other in zip(found, plain, strict=True)
    ]
    header = ("kernel", "dtypes", "held out", *ERROR_COLUMNS, "plain median", "plain p90")
    return TextTable(title=f"{engine} kernels on {gpu}, held out", header=header, rows=rows, numbers=7)


def falls_table(found: Sequence[Falls], gpu: str, engine: str) -> TextTable:
    """Falls along sizes, in measured rows and in the model between rows that do not fall."""
    rows = [
        (
            row.kind,
            "/".join(row.dtypes),
            row.size,
            f"{row.steps:,}",
            f"{100 * row.measured:.1f} %",
            f"{100 * row.measured_large:.1f} %",
            f"{100 * row.model:.1f} %",
            f"{100 * row.largest:.0f} %",
        )
        for row in found
    ]
    header = ("kernel", "dtypes", "size", "steps", "rows > 2 %", "rows > 20 %", "model > 2 %", "largest")
    return TextTable(title=f"{engine} kernels on {gpu} that get faster", header=header, rows=rows, numbers=5)


def calibrations_table(calibrations: Sequence[Calibration]) -> TextTable:
    """Fitted overheads and the widths of intervals."""
    names = [field.name for field in dataclasses.fields(Overheads)]
    where = tuple(f"{metric} elsewhere" for metric in METRICS)
    rows = [
        (
            f"{one.engine} {one.engine_version or benchmarks()[one.name].engine_version}",
            one.name,
            ", ".join(one.gpus),
            ", ".join(one.models),
            str(one.runs),
            *(f"{getattr(one.overheads, name):.2f}" for name in names),
            *(
                f"{100 * math.expm1(widths[metric]):.0f} %"
                for widths in (one.widths, one.elsewhere)
                for metric in METRICS
            ),
        )
        for one in calibrations
    ]
    return TextTable(
        title="overheads fitted on develop runs, and the upper half of the 90 % intervals",
        header=("engine", "benchmark", "GPUs", "models", "runs", *names, *METRICS, *where),
        rows=rows,
        numbers=1 + len(names) + 2 * len(METRICS),
    )


def serving_overview(errors: Sequence[ServingError]) -> TextTable:
    """All runs: a row for each metric, method and half of the split; each prediction of the first token once."""
    whole = {(row.method, row.split): row.errors for row in errors if row.by == "all"}
    shown = [(metric, method) for metric in ("tpot", "throughput") for method in METHODS]
    shown += [("ttft", "replay"), (UNQUEUED, "replay"), (SETTLED, "steady")]
    rows = [
        (_NAMES[metric], _NAMES[method], split, *error_cells(error))
        for metric, method in shown
        for split in SPLITS
        if (method, split) in whole and (error := whole[method, split][metric]) is not None
    ]
    header = ("metric", "method", "split", *ERROR_COLUMNS)
    return TextTable(title="served models, all runs", header=header, rows=rows, numbers=5)


def targets_table(predicted: Sequence[PredictedRun]) -> TextTable:
    """The report half by GPU, engine and tensor parallelism, and which targets each of them misses."""
    rows = []
    for key, errors in target_cells(predicted):
        tpot, rate = (error_cells(errors[metric]) for metric in ("tpot", "throughput"))
        first, settled = (error_cells(errors[metric]) for metric in (UNQUEUED, SETTLED))
        misses = ", ".join(missed(errors)) or "none"
        rows.append((*key, misses, *tpot, *rate[1:3], rate[4], first[1], settled[4]))
    each = ("median", "p90")
    header = (
        "GPU",
        "engine",
        "TP",
        "misses",
        "n",
        *(f"TPOT {name}" for name in (*each, "bias", "inside")),
        *(f"throughput {name}" for name in (*each, "inside")),
        "TTFT median",
        "settled TTFT inside",
    )
    return TextTable(title="report half against the targets", header=header, rows=rows, numbers=10)


def serving_groups(errors: Sequence[ServingError], method: str) -> TextTable:
    """One method by GPU, engine, model, tensor parallelism and lengths."""
    rows = []
    for row in errors:
        if row.method == method and row.by in GROUPED:
            tpot, rate, ttft = (row.errors[metric] for metric in ("tpot", "throughput", "ttft"))
            assert tpot is not None
            cells = (*error_cells(tpot), *error_cells(rate)[1:], *error_cells(ttft)[1:])
            rows.append((row.by, row.value, row.split, *cells))
    each = ("median", "p90", "bias", "inside")
    names = ("TPOT", "throughput", "TTFT")
    header = ("by", "value", "split", "n", *(f"{name} {column}" for name in names for column in each))
    return TextTable(title=f"served models, {_NAMES[method]}", header=header, rows=rows, numbers=13)


def residuals_table(engines: Mapping[str, Sequence[ServingError]]) -> TextTable:
    """Median signed errors by engine and users, lengths or tensor parallelism (steady state), halves side by side."""
    metrics = ("tpot", "ttft", "throughput")
    rows = []
    for engine, errors in engines.items():
        found = {(row.by, row.value, row.split): row.errors for row in errors if row.method == "steady"}
        for by, value in dict.fromkeys(key[:2] for key in found):
            cells: list[str] = []
            for split in SPLITS:
                mine = [found.get((by, value, split), {}).get(metric) for metric in metrics]
                cells.append("0" if mine[0] is None else str(mine[0].count))
                cells += ["" if one is None else f"{one.bias:+.1f}" for one in mine]
            rows.append((engine, by, value, *cells))
    names = tuple(f"{split} {name}" for split in SPLITS for name in ("n", "TPOT", "TTFT", "throughput"))
    header = ("engine", "by", "value", *names)
    return TextTable(title="median signed errors, steady state", header=header, rows=rows, numbers=8)


def unused_table(groups: Sequence[UnusedGroup]) -> TextTable:
    """GPUs and models that nothing was fitted on."""
    rows = []
    for group in groups:
        cells = [error_cells(group.errors[metric]) for metric in ("tpot", "throughput", "ttft")]
        rows.append(
            (
                group.engine,
                group.left_out,
                group.used,
                str(group.fitted),
                cells[0][0],
                *(c for one in cells for c in one[1:]),
            )
        )
    each = ("median", "p90", "bias", "inside")
    names = ("TPOT", "throughput", "TTFT")
    header = (
        "engine",
        "left out",
        "fitted on",
        "runs",
        "n",
        *(f"{name} {column}" for name in names for column in each),
    )
    return TextTable(
        title="a GPU or model whose runs were not used (report half)", header=header, rows=rows, numbers=14
    )


def published_table(found: Sequence[PublishedError]) -> TextTable:
    """Published throughputs by GPU, model and tensor parallelism."""
    groups: dict[tuple[str, str, str], list[PublishedError]] = defaultdict(list)
    for one in found:
        model = f"{one.run.model} {one.run.weight_dtype}"
        for key in (("all", "", ""), (one.run.gpu, model, "all"), (one.run.gpu, model, str(one.run.tensor_parallel))):
            groups[key].append(one)
    rows = []
    for key in sorted(groups, key=lambda key: (key[0] != "all", key)):
        mine = groups[key]
        ratios = np.array([one.predicted / one.run.generated_tokens_per_s for one in mine])
        inside = np.abs(np.log(ratios)) <= np.array([one.width for one in mine])
        rows.append((*key, *error_cells(ErrorSummary.of(ratios - 1, inside))))
    header = ("GPU", "model", "TP", *ERROR_COLUMNS)
    return TextTable(title="throughputs published for TensorRT-LLM", header=header, rows=rows, numbers=5)


def paper_table(rows: Sequence[PaperRow]) -> TextTable:
    """Parent and child at every pair of lengths and number of GPUs."""
    cells = []
    for row in rows:
        ratio = paper.ratio(row.child, row.parent)
        cells.append(
            (
                f"{row.prefill_len}/{row.decode_len}",
                str(row.tensor_parallel),
                *_point_cells(row.parent),
                *_point_cells(row.child),
                "" if ratio is None else _interval(ratio, 2),
            )
        )
    header = ("lengths", "TP", "users", paper.PARENT, "users", paper.CHILD, "ratio")
    return TextTable(
        title="tokens per second and GPU at the best number of users", header=header, rows=cells, numbers=6
    )


def paper_best_table(rows: Sequence[PaperRow]) -> TextTable:
    """Both models on the number of GPUs that is best for each, beside what was published."""
    cells = []
    for lengths in dict.fromkeys((row.prefill_len, row.decode_len) for row in rows):
        parent, child = paper.best_rows(rows, lengths)
        found = paper.ratio(child.child, parent.parent)
        stated = paper.PUBLISHED.get(lengths)
        assert parent.parent is not None
        assert child.child is not None
        assert found is not None
        cells.append(
            (
                f"{lengths[0]}/{lengths[1]}",
                f"{parent.parent.tokens_per_s.value:,.0f} (TP {parent.tensor_parallel})",
                f"{child.child.tokens_per_s.value:,.0f} (TP {child.tensor_parallel})",
                _interval(found, 2),
                *(
                    ("", "", "")
                    if stated is None
                    else (f"{stated.parent:,.0f}", f"{stated.sibling:,.0f}", f"{stated.sibling / stated.parent:.2f}")
                ),
            )
        )
    header = ("lengths", paper.PARENT, paper.CHILD, "ratio", "published parent", "published 51B", "published ratio")
    title = "tokens per second and GPU, each model on its best number of GPUs"
    return TextTable(title=title, header=header, rows=cells, numbers=6)


def error_cells(error: ErrorSummary | None) -> tuple[str, str, str, str, str]:
    """Count, median, 90th percentile, bias and coverage."""
    if error is None:
        return ("0", "", "", "", "")
    coverage = "" if error.coverage is None else f"{100 * error.coverage:.0f} %"
    return (f"{error.count:,}", f"{error.median:.2f}", f"{error.p90:.2f}", f"{error.bias:+.2f}", coverage)


def _point_cells(point: PaperPoint | None) -> tuple[str, str]:
    return ("", "does not fit") if point is None else (f"{point.users:,}", _interval(point.tokens_per_s, 0))


def _interval(interval: Interval, digits: int) -> str:
    value, low, high = (f"{number:,.{digits}f}" for number in (interval.value, interval.low, interval.high))
    return f"{value} ({low} to {high})"
