"""Error of the kernel model on measured shapes it did not see.

Splits come from `puzzlebench.profiling.holdout`; the model is rebuilt on the known rows of each split. Knows nothing of
blocks or serving.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from puzzlebench.profiling.arrays import FloatArray
from puzzlebench.profiling.holdout import beyond_split, random_split, whole_value_splits
from puzzlebench.profiling.kernel_features import KINDS, SLICES
from puzzlebench.profiling.measured_kernels import MeasuredKernels
from puzzlebench.profiling.parameters import calibrated_parameters
from puzzlebench.profiling.surface import Surface
from puzzlebench_profiles.kernel_tables import find_kernel_table

_ROWS_PER_SPLIT = 1500  # random rows of each split that are predicted
_SHARE = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorSummary:
    """Relative errors in percent, signed median as bias; `coverage` is the share inside the stated 95 % interval."""

    count: int
    median: float
    p90: float
    bias: float
    coverage: float | None

    @classmethod
    def of(cls, relative_error: FloatArray, inside: FloatArray | None = None) -> ErrorSummary:
        """Summarise prediction / truth - 1, (Q,)."""
        percent = 100 * np.abs(relative_error)
        return cls(
            count=len(percent),
            median=float(np.median(percent)),
            p90=float(np.quantile(percent, 0.9)),
            bias=float(100 * np.median(relative_error)),
            coverage=None if inside is None else float(np.mean(inside)),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutError:
    """Error of one kernel kind and dtype under one kind of split."""

    kind: str
    dtypes: tuple[str, ...]
    split: str
    error: ErrorSummary


def held_out_errors(gpu: str, engine: str, *, share: float = 1.0, seed: int = 0) -> list[HeldOutError]:
    """Errors of every measured slice: random rows, whole sizes, and beyond the measured range.

    Args:
        share: of the held-out rows that are predicted, in (0, 1].
    """
    kernels = MeasuredKernels(find_kernel_table(gpu, engine))
    found = []
    for name, dtypes in SLICES:
        try:
            table = kernels.rows(name, *dtypes)
        except ValueError:
            continue  # this engine was not measured in these dtypes
        kind, rows = KINDS[name], len(table["latency_us"])
        errors: dict[str, list[FloatArray]] = defaultdict(list)
        inside: dict[str, list[FloatArray]] = defaultdict(list)
        rng = np.random.default_rng(seed)
        splits = [random_split(rows, share=_SHARE, seed=seed), beyond_split(kind, table)]
        whole = list(whole_value_splits(kind, table))
        names = [split.name for split in whole]
        for split in splits + whole:
            limit = _ROWS_PER_SPLIT * (3 if split.name.startswith("random") else 1) // max(names.count(split.name), 1)
            held = rng.permutation(split.held_out)[: max(20, int(limit * share))]
            known = {column: values[split.known] for column, values in table.items()}
            surface = Surface(
                kind, known, dtypes[0], kernels.datasheet, calibrated_parameters(kernels.table, name, dtypes)
            )
            predicted = surface.timings({axis: table[axis][held] for axis in kind.axes})
            truth = table["latency_us"][held]
            errors[split.name].append(predicted.latency_us / truth - 1)
            inside[split.name].append((predicted.low_us <= truth) & (truth <= predicted.high_us))
        found += [
            HeldOutError(
                kind=name,
                dtypes=dtypes,
                split=split_name,
                error=ErrorSummary.of(np.concatenate(parts), np.concatenate(inside[split_name])),
            )
            for split_name, parts in errors.items()
        ]
    return found


def repeat_error(gpu: str, engine: str, other: str) -> ErrorSummary | None:
    """How far two engines' measurements of the same bf16 GEMM lie apart, the constant between them taken out.

    Both call the same vendor library, so this is what one measurement of a kernel is worth when it is taken again in
    another process and library version. None where either was not measured.
    """
    try:
        tables = [MeasuredKernels(find_kernel_table(gpu, name)).rows("gemm", "bf16") for name in (engine, other)]
    except ValueError:
        return None
    latency = [dict(zip(zip(t["m"], t["n"], t["k"], strict=True), t["latency_us"], strict=True)) for t in tables]
    common = latency[0].keys() & latency[1].keys()
    apart = np.log([latency[1][shape] / latency[0][shape] for shape in common])
    return ErrorSummary.of(np.expm1(apart - np.median(apart)))
