"""`puzzlebench validate`: run every check, print it, and write docs/accuracy.md and its picture from it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.table import Table

import puzzlebench
from puzzlebench.profiling.sources import open_kernels
from puzzlebench.profiling.transfer_error import transfer_errors
from puzzlebench.progress import progress
from puzzlebench.render import console
from puzzlebench.serving.calibration import calibrations
from puzzlebench.serving.published import published_runs
from puzzlebench.serving.runs import serving_runs
from puzzlebench.validation import tables
from puzzlebench.validation.held_out import (
    ErrorSummary,
    HeldOutError,
    held_out_errors,
    interpolation_errors,
    repeat_error,
)
from puzzlebench.validation.monotone import Falls, falls
from puzzlebench.validation.paper import PaperRow, paper_rows
from puzzlebench.validation.picture import draw_serving, require_matplotlib
from puzzlebench.validation.serving import (
    SETTLED,
    PredictedRun,
    PublishedError,
    ServingError,
    UnusedGroup,
    errors_by_engine,
    predict_runs,
    published_errors,
    serving_errors,
    unused_groups,
)
from puzzlebench_profiles.kernel_tables import list_kernel_tables, manifest

_TRANSFER_ROWS = 4000
_TEXT = Path(__file__).with_name("accuracy.md.in")
_PICTURE: Final = "{stem}-serving.svg"  # beside the page


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
    """Everything `validate` measures.

    Attributes:
        held_out, interpolated: errors of the kernel model and of plain interpolation, in the same order.
        falls: where latency falls though a size grows.
        repeats: each other engine with how far its GEMMs lie apart.
    """

    gpu: str
    engine: str
    created: str
    held_out: list[HeldOutError]
    interpolated: list[HeldOutError]
    falls: list[Falls]
    repeats: dict[str, ErrorSummary]
    transfer: list[TransferRow]
    predicted: list[PredictedRun]
    serving: list[ServingError]
    residuals: dict[str, list[ServingError]]
    unused: list[UnusedGroup]
    published: list[PublishedError]
    paper: list[PaperRow]


def validate(gpu: str, engine: str, *, share: float = 1.0, pictured: bool = False) -> Report:
    """Measure the cost model's error.

    Args:
        share: of the held-out shapes and of the serving runs to predict, in (0, 1].
        pictured: the report is to be written, with its picture: minutes of work are not begun without matplotlib.

    Raises:
        ValueError: the GPU or engine is unknown or was not measured, or matplotlib is missing.
    """
    if pictured:
        require_matplotlib()
    sheet, kernels = open_kernels(gpu, engine)
    every = max(1, round(1 / share))
    with progress() as report:
        report(0.0, "kernels held out")
        held_out = held_out_errors(sheet.name, kernels.engine, share=share)
        interpolated = interpolation_errors(sheet.name, kernels.engine, share=share)
        others = sorted({t.engine for t in list_kernel_tables() if t.gpu == sheet.name} - {kernels.engine})
        repeats = {other: repeat_error(sheet.name, kernels.engine, other) for other in others}
        report(0.15, "kernels carried over")
        transfer = _transfer(rows=max(100, int(_TRANSFER_ROWS * share)))
        predicted = predict_runs(serving_runs()[::every], progress=lambda text: report(0.25, text))
        return Report(
            gpu=sheet.name,
            engine=kernels.engine,
            created=datetime.datetime.now(datetime.UTC).date().isoformat(),
            held_out=held_out,
            interpolated=interpolated,
            falls=falls(sheet.name, kernels.engine, share=share),
            repeats={other: error for other, error in repeats.items() if error is not None},
            transfer=transfer,
            predicted=predicted,
            serving=serving_errors(predicted),
            residuals=errors_by_engine(predicted, tables.RESIDUALS),
            unused=unused_groups(serving_runs()[::every], progress=lambda text: report(0.4, text)),
            published=published_errors(published_runs()[::every], progress=lambda text: report(0.65, text)),
            paper=paper_rows(progress=lambda text: report(0.9, text)),
        )


def _transfer(*, rows: int) -> list[TransferRow]:
    return [
        TransferRow(
            donor=error.donor,
            target=error.target,
            kind=error.kind,
            dtypes=error.dtypes,
            same_architecture=error.same_architecture,
            error=ErrorSummary.of(np.expm1(error.log_error)),
        )
        for error in transfer_errors(rows=rows)
    ]


def report_json(report: Report) -> dict[str, Any]:
    """The report as plain values."""
    return asdict(report)


def print_report(report: Report) -> None:
    """Print every table of the report."""
    for table in _tables(report).values():
        shown = Table(title=table.title, title_justify="left")
        for place, name in enumerate(table.header):
            shown.add_column(name, justify="left" if place < len(table.header) - table.numbers else "right")
        for row in table.rows:
            shown.add_row(*row)
        console().print(shown)
    console().print(
        "errors in percent of the measured value; coverage: inside the stated interval (kernels 95 %, serving 90 %)",
        highlight=False,
    )


def write_report(report: Report, path: Path) -> None:
    """Write the report as Markdown, the explanations of accuracy.md.in around its tables, and its picture beside it.

    Raises:
        ValueError: a file cannot be written, or matplotlib is not installed.
    """
    facts = manifest()
    runs = serving_runs()
    picture = path.with_name(_PICTURE.format(stem=path.stem))
    text = _TEXT.read_text(encoding="utf-8").format(
        **{name: table.markdown() for name, table in _tables(report).items()},
        gpu=report.gpu,
        engine=report.engine,
        created=report.created,
        version=puzzlebench.__version__,
        source=f"{facts['source']} {facts['source_version']}",
        picture=picture.name,
        settled_coverage=_settled_coverage(report.serving),
        runs=len(runs),
        develop=sum(run.split == "develop" for run in runs),
        report=sum(run.split == "report" for run in runs),
    )
    draw_serving(report.predicted, picture)  # first: a page does not link a picture that is not there
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from None


def _settled_coverage(errors: Sequence[ServingError]) -> str:
    """Of the report half, for its sentence."""
    found = [row.errors[SETTLED] for row in errors if (row.method, row.split, row.by) == ("steady", "report", "all")]
    coverage = found[0].coverage if found and found[0] else None
    return "no run" if coverage is None else f"{100 * coverage:.0f} %"


def _tables(report: Report) -> dict[str, tables.TextTable]:
    """By their names in accuracy.md.in."""
    repeats = [(f"{report.engine} and {other}", *tables.error_cells(error)) for other, error in report.repeats.items()]
    transfer = [
        (
            f"{row.donor} to {row.target}",
            row.kind,
            "/".join(row.dtypes),
            "yes" if row.same_architecture else "no",
            *tables.error_cells(row.error),
        )
        for row in report.transfer
    ]
    return {
        "held_out": tables.held_out_table(report.held_out, report.interpolated, report.gpu, report.engine),
        "falls": tables.falls_table(report.falls, report.gpu, report.engine),
        "repeats": tables.TextTable(
            title=f"bf16 GEMM on {report.gpu} measured by two engines",
            header=("engines", *tables.ERROR_COLUMNS),
            rows=repeats,
            numbers=5,
        ),
        "transfer": tables.TextTable(
            title="kernels of a GPU treated as unmeasured",
            header=("carried over", "kernel", "dtypes", "same architecture", *tables.ERROR_COLUMNS),
            rows=transfer,
            numbers=5,
        ),
        "calibrations": tables.calibrations_table(calibrations()),
        "targets": tables.targets_table(report.predicted),
        "overview": tables.serving_overview(report.serving),
        "replayed": tables.serving_groups(report.serving, "replay"),
        "steady": tables.serving_groups(report.serving, "steady"),
        "residuals": tables.residuals_table(report.residuals),
        "unused": tables.unused_table(report.unused),
        "published": tables.published_table(report.published),
        "paper": tables.paper_table(report.paper),
        "paper_best": tables.paper_best_table(report.paper),
    }
