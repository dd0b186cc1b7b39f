"""How wrong `modelled_kernels` is: every measured GPU in turn is treated as unmeasured.

`python -m puzzlebench.profiling.transfer_error` rewrites data/transfer.json, from which modelled timings take their
intervals. A GPU is predicted from the measured GPU most like it, itself left out.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from puzzlebench.profiling.arrays import FloatArray
from puzzlebench.profiling.kernel_features import KINDS, SLICES
from puzzlebench.profiling.measured_kernels import MeasuredKernels
from puzzlebench.profiling.modelled_kernels import ERROR_FILE, carry_over, nearest_table
from puzzlebench_profiles.datasheets import bundled_datasheets
from puzzlebench_profiles.kernel_tables import find_kernel_table, list_kernel_tables

ENGINE = "trtllm"
_ROWS = 4000  # held-out rows per slice
_COVERAGE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferError:
    """Log errors (Q,) of one slice of a target GPU, predicted from a donor."""

    target: str
    donor: str
    kind: str
    dtypes: tuple[str, ...]
    same_architecture: bool
    log_error: FloatArray


def transfer_errors(*, rows: int = _ROWS, seed: int = 0) -> list[TransferError]:
    """Errors for every measured GPU and slice."""
    found = []
    for target in sorted({table.gpu for table in list_kernel_tables() if table.engine == ENGINE}):
        for kind, dtypes in SLICES:
            error = transfer_error(target, kind, dtypes, rows=rows, seed=seed)
            if error is not None:
                found.append(error)
    return found


def transfer_error(
    target: str, kind: str, dtypes: tuple[str, ...], *, rows: int = _ROWS, seed: int = 0
) -> TransferError | None:
    """Error of one slice over `rows` random measured shapes; None where target or donor lack the dtypes."""
    sheet = bundled_datasheets()[target]
    measured = MeasuredKernels(find_kernel_table(target, ENGINE))
    donor = MeasuredKernels(nearest_table(sheet, ENGINE, exclude=target))
    try:
        table = measured.rows(kind, *dtypes)
        surface = donor.surface(kind, *dtypes)
    except ValueError:
        return None
    chosen = np.random.default_rng(seed).permutation(len(table["latency_us"]))[:rows]
    shapes = {axis: table[axis][chosen] for axis in KINDS[kind].axes}
    smooth = surface.smoothed_us(shapes)
    predicted = carry_over(KINDS[kind], smooth, shapes, dtypes[0], donor.datasheet, sheet)
    return TransferError(
        target=target,
        donor=donor.datasheet.name,
        kind=kind,
        dtypes=dtypes,
        same_architecture=sheet.compute_capability == donor.datasheet.compute_capability,
        log_error=np.log(predicted / table["latency_us"][chosen]),
    )


def main() -> None:
    """Command line: rewrite the file of errors."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ERROR_FILE)
    out: Path = parser.parse_args().out
    pooled: dict[str, dict[str, list[FloatArray]]] = defaultdict(lambda: defaultdict(list))
    for error in transfer_errors():
        print(f"{error.donor} -> {error.target} {error.kind} {error.dtypes}: {_summary(error.log_error)}", flush=True)
        pooled["same_architecture" if error.same_architecture else "other_architecture"][error.kind].append(
            error.log_error
        )
    deviation = {
        group: {kind: _deviation(np.concatenate(errors)) for kind, errors in kinds.items()}
        for group, kinds in pooled.items()
    }
    out.write_text(json.dumps({"method": (__doc__ or "").splitlines()[0], "log_deviation": deviation}, indent=1) + "\n")


def _deviation(log_error: FloatArray) -> float:
    """The standard deviation for which 1.96 of them cover 95 % of the errors."""
    return round(float(np.quantile(np.abs(log_error), _COVERAGE)) / 1.96, 4)


def _summary(log_error: FloatArray) -> str:
    percent = 100 * np.abs(np.expm1(log_error))
    return f"median {np.median(percent):.1f} %, 90th percentile {np.quantile(percent, 0.9):.1f} %"


if __name__ == "__main__":
    main()
