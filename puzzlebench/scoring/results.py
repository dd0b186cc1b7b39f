"""Results of one layer's candidates on disk, so that scoring goes on where it stopped. Knows no model.

Legend: N samples (sequences, or documents of a task), M metrics.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from puzzlebench.files import write_text

_SCHEMA: Final = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerScores:
    """Scores of one layer's candidates: per block, for every sample and metric a value, [N, M] float64."""

    layer: int
    metrics: tuple[str, ...]
    values: dict[str, torch.Tensor]


def write_layer(folder: Path, scores: LayerScores) -> None:
    """Keep a layer's results.

    Raises:
        ValueError: the folder cannot be written to.
    """
    data = {
        "schema": _SCHEMA,
        "layer": scores.layer,
        "metrics": list(scores.metrics),
        "values": {name: values.tolist() for name, values in scores.values.items()},
    }
    write_text(_file(folder, scores.layer), json.dumps(data))


def read_layer(folder: Path, layer: int, blocks: Collection[str]) -> LayerScores | None:
    """A layer's results in the order of `blocks`, or None unless all of them are there.

    Raises:
        ValueError: the file is broken or of another schema.
    """
    file = _file(folder, layer)
    if not file.exists():
        return None
    try:
        data = json.loads(file.read_text())
        if data["schema"] != _SCHEMA:
            raise ValueError(f"schema {data['schema']!r}")
        values = {name: torch.tensor(rows, dtype=torch.float64) for name, rows in data["values"].items()}
        metrics = tuple(data["metrics"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} holds no results that can be read ({error}); remove it") from None
    if not set(blocks) <= set(values):
        return None
    return LayerScores(layer=layer, metrics=metrics, values={name: values[name] for name in blocks})


def _file(folder: Path, layer: int) -> Path:
    return folder / f"layer-{layer:03d}.json"
