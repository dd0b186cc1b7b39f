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
SCHEMA_VERSION = 1
"""Of both files."""


@cache
def kriging_parameters(kind: str) -> KrigingParameters:
    """Hyperparameters of a kernel kind, the same for every GPU and engine, with intervals not yet calibrated."""
    raw = _read(PARAMETERS_FILE)["surfaces"][kind]
    return KrigingParameters(
        lengthscales=np.array(raw["lengthscales"]),
        amplitudes=np.array(raw["amplitudes"]),
        noise=float(raw["noise"]),
        metric=np.array(raw["metric"]),
        neighbours=int(raw["neighbours"]),
    )


def calibrated_parameters(table: KernelTableId, kind: str, dtypes: tuple[str, ...]) -> KrigingParameters:
    """Hyperparameters of a kernel kind with the interval scale of one measured table.

    Raises:
        ValueError: the table's intervals were not calibrated.
    """
    try:
        scale = _read(SCALES_FILE)["scales"][table.folder.as_posix()][slice_name(kind, dtypes)]
    except KeyError:
        raise ValueError(
            f"{table.folder.as_posix()} has no interval scale for {slice_name(kind, dtypes)}; "
            "`python -m puzzlebench.profiling.calibrate_intervals` finds it"
        ) from None
    return replace(kriging_parameters(kind), interval_scale=float(scale))


def slice_name(kind: str, dtypes: tuple[str, ...]) -> str:
    """How the file of interval scales names a kernel kind and its dtypes."""
    return f"{kind} {'/'.join(dtypes)}"


@cache
def _read(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    found = loaded.get("schema_version")
    if found != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {found}, not {SCHEMA_VERSION}: {loaded.get('about', 'write it anew')}"
        )
    return loaded
