"""Error of the kernel model on measured shapes it did not see, and of plain interpolation on the same ones.

Splits come from `puzzlebench.profiling.holdout`; the model is rebuilt on the known rows of each split. Knows nothing of
blocks or serving.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from puzzlebench.profiling.arrays import BoolArray, FloatArray
from puzzlebench.profiling.holdout import beyond_split, random_split, whole_value_splits
from puzzlebench.profiling.interpolation import interpolate
from puzzlebench.profiling.kernel_features import KINDS, SLICES, KernelKind, Shapes
from puzzlebench.profiling.measured_kernels import MeasuredKernels
from puzzlebench.profiling.parameters import calibrated_parameters
from puzzlebench.profiling.surface import Surface
from puzzlebench_profiles.kernel_tables import find_kernel_table

_ROWS_PER_SPLIT = 1500  # random rows of each split that are predicted
_SHARE = 0.2
_NESTING = {
    "gemm": ("n", "m", "k"),
    "prefill_attention": ("seq_len", "batch", "head_dim", "kv_heads", "heads"),
    "decode_attention": ("head_dim", "kv_heads", "heads", "batch", "context"),
}
"""Axes of plain interpolation, the outermost first: of the orders tried, the best on the H200's tables (NOTES.md)."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Held:
    """Rows that a model is to predict from the known ones. `truth_us` is (Q,), as are the shapes' sizes."""

    split: str
    known: Shapes
    shapes: Shapes
    truth_us: FloatArray


def held_out_errors(gpu: str, engine: str, *, share: float = 1.0, seed: int = 0) -> list[HeldOutError]:
    """Errors of every measured slice: random rows, whole sizes, and beyond the measured range.

    Args:
        share: of the held-out rows that are predicted, in (0, 1].
    """
    kernels = MeasuredKernels(find_kernel_table(gpu, engine))

    def kriged(kind: KernelKind, dtypes: tuple[str, ...], held: _Held) -> tuple[FloatArray, BoolArray]:
        parameters = calibrated_parameters(kernels.table, kind.name, dtypes)
        timings = Surface(kind, held.known, dtypes[0], kernels.datasheet, parameters).timings(held.shapes)
        return timings.latency_us, (timings.low_us <= held.truth_us) & (held.truth_us <= timings.high_us)

    return _errors(kernels, kriged, share=share, seed=seed)


def interpolation_errors(gpu: str, engine: str, *, share: float = 1.0, seed: int = 0) -> list[HeldOutError]:
    """Errors of plain interpolation on the rows of `held_out_errors`, in the same order.

    The logarithm of latency over the ideal latency is interpolated linearly in the logarithms of the sizes; beyond the
    measured range the utilisation stays what it was at the edge. There is no interval.
    """
    kernels = MeasuredKernels(find_kernel_table(gpu, engine))

    def interpolated(kind: KernelKind, dtypes: tuple[str, ...], held: _Held) -> tuple[FloatArray, None]:
        known, asked = (
            np.log2(np.stack([sizes[axis] for axis in _NESTING[kind.name]], axis=1))
            for sizes in (held.known, held.shapes)
        )
        ideal, ideal_asked = (kind.ideal_us(sizes, kernels.datasheet, dtypes[0]) for sizes in (held.known, held.shapes))
        return ideal_asked * np.exp(interpolate(known, np.log(held.known["latency_us"] / ideal), asked)), None

    return _errors(kernels, interpolated, share=share, seed=seed)


def _errors(
    kernels: MeasuredKernels,
    predict: Callable[[KernelKind, tuple[str, ...], _Held], tuple[FloatArray, BoolArray | None]],
    *,
    share: float,
    seed: int,
) -> list[HeldOutError]:
    """Errors by slice and kind of split; `predict` gives latencies and whether the truth is inside the intervals."""
    found = []
    for name, dtypes, table in kernels.slices(SLICES):
        errors: dict[str, list[FloatArray]] = defaultdict(list)
        inside: dict[str, list[BoolArray]] = defaultdict(list)
        for held in _held_out(KINDS[name], table, share=share, seed=seed):
            latency, covered = predict(KINDS[name], dtypes, held)
            errors[held.split].append(latency / held.truth_us - 1)
            if covered is not None:
                inside[held.split].append(covered)
        found += [
            HeldOutError(
                kind=name,
                dtypes=dtypes,
                split=split,
                error=ErrorSummary.of(
                    np.concatenate(parts), np.concatenate(inside[split]) if split in inside else None
                ),
            )
            for split, parts in errors.items()
        ]
    return found


def _held_out(kind: KernelKind, table: dict[str, FloatArray], *, share: float, seed: int) -> Iterator[_Held]:
    """Every split of a table, with a random choice of its held-out rows."""
    rng = np.random.default_rng(seed)
    splits = [random_split(len(table["latency_us"]), share=_SHARE, seed=seed), beyond_split(kind, table)]
    whole = list(whole_value_splits(kind, table))
    names = [split.name for split in whole]
    for split in splits + whole:
        limit = _ROWS_PER_SPLIT * (3 if split.name.startswith("random") else 1) // max(names.count(split.name), 1)
        held = rng.permutation(split.held_out)[: max(20, int(limit * share))]
        yield _Held(
            split=split.name,
            known={column: values[split.known] for column, values in table.items()},
            shapes={axis: table[axis][held] for axis in kind.axes},
            truth_us=table["latency_us"][held],
        )


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
