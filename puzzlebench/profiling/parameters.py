"""The kriging hyperparameters that ship with the package; `fit_kriging` and `calibrate_intervals` write them."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from puzzlebench.profiling.kriging import KrigingParameters
from puzzlebench_profiles.kernel_tables import KernelTableId

PARAMETERS_FILE = Path(__file__).parent / "data" / "kriging.json"
SCALES_FILE = Path(__file__).parent / "data" / "interval_scales.json"


@cache
def kriging_parameters(kind: str) -> KrigingParameters:
    """Hyperparameters of a kernel kind, the same for every GPU, with intervals not yet calibrated."""
    raw = json.loads(PARAMETERS_FILE.read_text())["surfaces"][kind]
    return KrigingParameters(
        lengthscales=np.array(raw["lengthscales"]),
        amplitudes=np.array(raw["amplitudes"]),
        noise=float(raw["noise"]),
        metric=np.array(raw["metric"]),
        neighbours=int(raw["neighbours"]),
    )


def calibrated_parameters(table: KernelTableId, kind: str, dtypes: tuple[str, ...]) -> KrigingParameters:
    """Hyperparameters of a kernel kind with the interval scale of one measured table."""
    scale = _interval_scales()[str(table.folder)][slice_name(kind, dtypes)]
    return replace(kriging_parameters(kind), interval_scale=float(scale))


def slice_name(kind: str, dtypes: tuple[str, ...]) -> str:
    """How the file of interval scales names a kernel kind and its dtypes."""
    return f"{kind} {'/'.join(dtypes)}"


@cache
def _interval_scales() -> dict[str, Any]:
    scales: dict[str, Any] = json.loads(SCALES_FILE.read_text())["scales"]
    return scales
