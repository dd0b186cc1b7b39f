"""`puzzlebench validate`: run every check, print it, and write docs/accuracy.md from it."""

from __future__ import annotations

import datetime
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

import puzzlebench
from puzzlebench.profiling.kernel_features import SLICES
from puzzlebench.profiling.sources import open_kernels
from puzzlebench.profiling.transfer_error import ENGINE as TRANSFER_ENGINE
from puzzlebench.profiling.transfer_error import transfer_error
from puzzlebench.render import console
from puzzlebench.validation.held_out import ErrorSummary, HeldOutError, held_out_errors, repeat_error
from puzzlebench.validation.serving import MODEL, ServingError, serving_errors, serving_runs
from puzzlebench_profiles.kernel_tables import list_kernel_tables, manifest

_TRANSFER_ROWS = 4000
_TEXT = Path(__file__).with_name("accuracy.md.in")


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferRow:
    """Error of a GPU's kernels when they are carried over from another's."""

    donor: str
    target: str
    kind: str
    dtypes: tuple[str, ...]
    same_architecture: bool
    error: ErrorSummary


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything `validate` measures. `repeats` pairs each other engine with how far its GEMMs lie apart."""

    gpu: str
    engine: str
    created: str
    held_out: list[HeldOutError]
    repeats: dict[str, ErrorSummary]
    transfer: list[TransferRow]
    serving: list[ServingError]


def validate(gpu: str, engine: str, *, share: float = 1.0) -> Report:
    """Measure the cost model's error.

    Args:
        share: of the held-out shapes to predict, in (0, 1].

    Raises:
        ValueError: the GPU or engine is unknown or was not measured.
    """
    sheet, kernels = open_kernels(gpu, engine)
    held_out = held_out_errors(sheet.name, kernels.engine, share=share)
    others = sorted({t.engine for t in list_kernel_tables() if t.gpu == sheet.name} - {kernels.engine})
    repeats = {other: repeat_error(sheet.name, kernels.engine, other) for other in others}
    return Report(
        gpu=sheet.name,
        engine=kernels.engine,
        created=datetime.datetime.now(datetime.UTC).date().isoformat(),
        held_out=held_out,
        repeats={other: error for other, error in repeats.items() if error is not None},
        transfer=_transfer(rows=max(100, int(_TRANSFER_ROWS * share))),
        serving=serving_errors(serving_runs()),
    )


def _transfer(*, rows: int) -> list[TransferRow]:
    found = []
    for target in sorted({table.gpu for table in list_kernel_tables() if table.engine == TRANSFER_ENGINE}):
        for kind, dtypes in SLICES:
            error = transfer_error(target, kind, dtypes, rows=rows)
            if error is not None:
                found.append(
                    TransferRow(
                        donor=error.donor,
                        target=target,
                        kind=kind,
                        dtypes=dtypes,
                        same_architecture=error.same_architecture,
                        error=ErrorSummary.of(np.expm1(error.log_error)),
                    )
                )
    return found


def report_json(report: Report) -> dict[str, Any]:
    """The report as plain values."""
    return asdict(report)


def print_report(report: Report) -> None:
    """Print every table of the report."""
    for title, header, rows in _tables(report):
        shown = Table(title=title, title_justify="left")
        for place, name in enumerate(header):
            shown.add_column(name, justify="left" if place < len(header) - 5 else "right")
        for row in rows:
            shown.add_row(*row)
        console().print(shown)
    console().print(
        "errors in percent of the measured value; coverage: inside the stated 95 % interval", highlight=False
    )


def write_report(report: Report, path: Path) -> None:
    """Write the report as Markdown, the explanations of accuracy.md.in around its tables.

    Raises:
        ValueError: the file cannot be written.
    """
    tables = [_markdown(header, rows) for _, header, rows in _tables(report)]
    facts = manifest()
    text = _TEXT.read_text().format(
        held_out=tables[0],
        repeats=tables[1],
        transfer=tables[2],
        serving=tables[3],
        gpu=report.gpu,
        engine=report.engine,
        created=report.created,
        model=MODEL,
        version=puzzlebench.__version__,
        source=f"{facts['source']} {facts['source_version']}",
    )
    try:
        path.write_text(text)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from None


def _tables(report: Report) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    errors = ("n", "median", "p90", "bias", "coverage")
    held_out = [(row.kind, "/".join(row.dtypes), row.split, *_cells(row.error)) for row in report.held_out]
    repeats = [(f"{report.engine} and {other}", *_cells(error)) for other, error in report.repeats.items()]
    transfer = [
        (
            f"{row.donor} to {row.target}",
            row.kind,
            "/".join(row.dtypes),
            "yes" if row.same_architecture else "no",
            *_cells(row.error),
        )
        for row in report.transfer
    ]
    serving = [
        (row.gpu, row.engine, row.split, str(row.tensor_parallel or "all"), *_cells(row.error))
        for row in report.serving
    ]
    return [
        (f"{report.engine} kernels on {report.gpu}, held out", ("kernel", "dtypes", "held out", *errors), held_out),
        (f"bf16 GEMM on {report.gpu} measured by two engines", ("engines", *errors), repeats),
        (
            "kernels of a GPU treated as unmeasured",
            ("carried over", "kernel", "dtypes", "same architecture", *errors),
            transfer,
        ),
        (f"time per output token of {MODEL}, served", ("GPU", "engine", "split", "TP", *errors), serving),
    ]


def _cells(error: ErrorSummary) -> tuple[str, ...]:
    coverage = "" if error.coverage is None else f"{100 * error.coverage:.0f} %"
    return (f"{error.count:,}", f"{error.median:.2f}", f"{error.p90:.2f}", f"{error.bias:+.2f}", coverage)


def _markdown(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    rule = ["---"] * (len(header) - 5) + ["---:"] * 5
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))
