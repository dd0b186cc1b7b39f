"""The score table: what replacing one block of the parent costs in quality, for every layer and block.

One parquet file, one row per (layer, block): the parent with only that block in place, scored. What the score is and
whether low or high is good stand in the metadata. Knows nothing of how blocks are trained, scored or timed; the one
score it makes itself, `parameter_scores`, is a count.
"""

from __future__ import annotations

import csv
import datetime
import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

import puzzlebench
from puzzlebench.model.blocks import (
    Architecture,
    architecture_from_json,
    architecture_to_json,
    block_name,
    parse_block,
)
from puzzlebench.model.parameters import sub_block_parameters
from puzzlebench.model.space import SearchSpace, distinct_sub_blocks
from puzzlebench.model.spec import ModelSpec, check_architecture, spec_facts
from puzzlebench.parquet import TableFormat, read_table, write_table

SCHEMA_VERSION: Final = 1
_FORMAT: Final = TableFormat(name="score table", schema_version=SCHEMA_VERSION, metadata_key="puzzlebench_scores")
Direction: TypeAlias = Literal["minimise", "maximise"]
DIRECTIONS: Final[tuple[Direction, ...]] = ("minimise", "maximise")
COLUMNS: Final = ("layer", "block", "score", "standard_error", "samples")
_CSV_NEEDS: Final = COLUMNS[:3]
_LARGEST_WHOLE: Final = 2**53  # above it a float skips whole numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreTable:
    """A validated frame with the columns of this module, and metadata about what its scores are.

    Metadata: `metric` (kl, lm_loss, accuracy, ...), `direction`, `parent` (by `architecture_to_json`) and `source`;
    where known also `model` (an object with the parent's `name` and any of the spec's facts), `created`,
    `puzzlebench_version` and `partial`: true for a table that lacks pairs of the sub-blocks it names. Whoever makes
    the scores may add keys.
    """

    frame: pd.DataFrame
    metadata: dict[str, Any]

    def __post_init__(self) -> None:
        """Raise ValueError for the first thing that is wrong: one line that names the layer and the block."""
        _check_metadata(self.metadata)
        _check_rows(self.frame)
        _check_layers(self.frame, self.parent, partial=self.partial)

    @property
    def metric(self) -> str:
        """What the scores are."""
        return cast("str", self.metadata["metric"])

    @property
    def direction(self) -> Direction:
        """Whether low or high scores are good."""
        return cast("Direction", self.metadata["direction"])

    @property
    def partial(self) -> bool:
        """Whether pairs of the sub-blocks it names may be missing."""
        return bool(self.metadata.get("partial", False))

    @property
    def parent(self) -> Architecture:
        """The architecture in which one block at a time was replaced."""
        return architecture_from_json(self.metadata["parent"])

    @property
    def num_layers(self) -> int:
        """Layers of the parent, and of the table."""
        return len(self.metadata["parent"]["blocks"])

    def layer_scores(self, layer: int) -> dict[str, float]:
        """The score of every block of a layer, in the table's order.

        Raises:
            ValueError: the parent has no such layer.
        """
        if not 0 <= layer < self.num_layers:
            raise ValueError(f"score table: no layer {layer}; its layers are 0 to {self.num_layers - 1}")
        rows = self.frame[self.frame["layer"] == layer]
        return {str(block): float(score) for block, score in zip(rows["block"], rows["score"], strict=True)}

    def candidates(self, layer: int) -> tuple[str, ...]:
        """The names of the blocks that have a score in a layer, in the table's order.

        Raises:
            ValueError: the parent has no such layer.
        """
        return tuple(self.layer_scores(layer))

    def score_of(self, layer: int, block: str) -> float:
        """The score of the parent with this block in this layer; for many, ask `layer_scores` once.

        Raises:
            ValueError: there is none.
        """
        scores = self.layer_scores(layer)
        if block not in scores:
            near = difflib.get_close_matches(block, scores, n=3)
            hint = (
                f"did you mean {', '.join(near)}?"
                if near
                else f"its {len(scores)} blocks begin with {next(iter(scores))}"
            )
            raise ValueError(f"score table: layer {layer} has no score for {block!r}; {hint}")
        return scores[block]


def write_score_table(table: ScoreTable, path: Path) -> None:
    """Write parquet with readable metadata; the file appears whole or not at all.

    Raises:
        ValueError: the folder does not exist or cannot be written to, or the name says that it is a CSV.
    """
    if _is_csv(path):
        raise ValueError(f"cannot write {path}: score tables are written as parquet; give a name that ends in .parquet")
    write_table(_FORMAT, table.frame, table.metadata, path)


def read_score_table(
    path: Path,
    *,
    metric: str | None = None,
    direction: str | None = None,
    parent: Architecture | None = None,
    partial: bool = False,
) -> ScoreTable:
    """Read and validate a score table: parquet, or a CSV (.csv) of layer,block,score[,standard_error,samples].

    A parquet file says all about itself and must not contradict what is given. A CSV says nothing: it needs `metric`,
    `direction` and `parent`, and `partial` where it lacks pairs.

    Raises:
        ValueError: the file is missing, truncated, not a score table, of another schema version, has a bad value (a
            CSV's message has the line number), contradicts what is given, or is a CSV that lacks one of the three.
    """
    if _is_csv(path):
        return _read_csv(path, metric=metric, direction=direction, parent=parent, partial=partial)
    frame, metadata = read_table(_FORMAT, path)
    table = _table_of(path, frame, metadata)
    for option, given, stated in (("metric", metric, table.metric), ("direction", direction, table.direction)):
        if given is not None and given != stated:
            raise ValueError(f"{path}: its {option} is {stated}, not {given}; leave out --score-{option}")
    if parent is not None and parent != table.parent:
        raise ValueError(f"{path}: it scores another parent: {_first_difference(table.parent, parent)}")
    return table


def parameter_scores(spec: ModelSpec, space: SearchSpace, architecture: Architecture) -> ScoreTable:
    """Parameters that each candidate takes from the parent: scores without data, to compare real ones with.

    Minimising them is the "maximise parameters" baseline of Puzzle (arXiv 2411.19146).

    Args:
        spec: the model.
        space: the candidates, the parent's own block among them in every layer.
        architecture: the parent.

    Raises:
        ValueError: the space or the architecture is not of this model, or a layer lacks the parent's block.
    """
    check_architecture(spec, architecture)
    if len(space.layers) != spec.num_hidden_layers:
        raise ValueError(f"the space has {len(space.layers)} layers but {spec.name} has {spec.num_hidden_layers}")
    attention, ffn = distinct_sub_blocks(space)
    parameters = {sub: sub_block_parameters(spec, sub) for sub in (*attention, *ffn)}
    rows = []
    for layer, (candidates, own) in enumerate(zip(space.layers, architecture.blocks, strict=True)):
        whole = sub_block_parameters(spec, own.attention) + sub_block_parameters(spec, own.ffn)
        for block in candidates.blocks():
            removed = whole - parameters[block.attention] - parameters[block.ffn]
            rows.append((layer, block_name(block), float(removed), 0.0, 0))
    metadata = _provenance(
        metric="parameters_removed",
        direction="minimise",
        parent=architecture,
        source="parameters of the parent's block less the candidate's; a proxy that knows nothing of quality "
        "(the 'maximise parameters' baseline of Puzzle, arXiv 2411.19146)",
    )
    metadata["model"] = spec_facts(spec)
    return ScoreTable(frame=_frame(rows), metadata=metadata)


def _provenance(*, metric: str, direction: str, parent: Architecture, source: str) -> dict[str, Any]:
    return {
        "puzzlebench_version": puzzlebench.__version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "metric": metric,
        "direction": direction,
        "parent": architecture_to_json(parent),
        "source": source,
    }


def _frame(rows: Iterable[Sequence[object]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=pd.Index(COLUMNS))


def _table_of(path: Path, frame: pd.DataFrame, metadata: dict[str, Any]) -> ScoreTable:
    try:
        return ScoreTable(frame=frame, metadata=metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _check_metadata(metadata: dict[str, Any]) -> None:
    for key in ("metric", "direction", "source", "parent"):
        if key not in metadata:
            raise ValueError(f"score table: its metadata lacks {key!r}")
    for key in ("metric", "source", "created", "puzzlebench_version"):
        if key in metadata and (not isinstance(metadata[key], str) or not metadata[key]):
            raise ValueError(f"score table: {key} must be text, not {metadata[key]!r}")
    if metadata["direction"] not in DIRECTIONS:
        raise ValueError(f"score table: direction must be {' or '.join(DIRECTIONS)}, not {metadata['direction']!r}")
    if not isinstance(metadata.get("partial", False), bool):
        raise ValueError(f"score table: partial must be true or false, not {metadata['partial']!r}")
    if "model" in metadata:
        name = metadata["model"].get("name") if isinstance(metadata["model"], dict) else None
        if not isinstance(name, str) or not name:
            raise ValueError(f"score table: model must be an object with a name, not {metadata['model']!r}")
    try:
        architecture_from_json(metadata["parent"])
    except ValueError as error:
        raise ValueError(f"score table: parent: {error}") from None


def _check_rows(frame: pd.DataFrame) -> None:
    """Columns and the value in each cell."""
    _check_columns(list(frame.columns), needed=COLUMNS)
    if frame.empty:
        raise ValueError("score table: it has no rows")
    _refuse(frame, "block", [not isinstance(name, str) for name in frame["block"]], "must be text")
    layer, score, error, samples = (
        _numbers(frame, column) for column in ("layer", "score", "standard_error", "samples")
    )
    for column, numbers in (("layer", layer), ("samples", samples)):
        bad = ~np.isfinite(numbers) | (numbers < 0) | (numbers % 1 != 0)
        _refuse(frame, column, bad, "must be a whole number of at least 0")
    for name in dict.fromkeys(frame["block"]):
        try:
            parse_block(name)
        except ValueError as reason:
            found = frame["layer"].iloc[frame["block"].tolist().index(name)]
            raise ValueError(f"score table: layer {found}, block {name!r}: {reason}") from None
    _refuse(frame, "score", ~np.isfinite(score), "must be finite")
    _refuse(frame, "standard_error", (error < 0) | np.isinf(error), "must be finite and not negative, or empty")


def _check_columns(columns: Sequence[object], *, needed: Sequence[str]) -> None:
    for column in columns:
        if column not in COLUMNS:
            raise ValueError(f"score table: unknown column {column!r}; the columns are: {', '.join(COLUMNS)}")
        if columns.count(column) > 1:
            raise ValueError(f"score table: column {column!r} stands twice")
    for column in needed:
        if column not in columns:
            raise ValueError(f"score table: column {column!r} is missing; it needs: {', '.join(needed)}")


def _numbers(frame: pd.DataFrame, column: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    values = frame[column]
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        raise ValueError(f"score table: column {column!r} must hold numbers, not {values.dtype}")
    return values.to_numpy(dtype=np.float64, na_value=np.nan)


def _refuse(frame: pd.DataFrame, column: str, bad: ArrayLike, what: str) -> None:
    wrong = np.flatnonzero(bad)
    if len(wrong):
        value, layer, name = (frame[key].iloc[wrong[0]] for key in (column, "layer", "block"))
        seen = value.item() if isinstance(value, np.generic) else value
        raise ValueError(f"score table: {column} {what}, not {seen!r} (layer {layer}, {name})")


def _check_layers(frame: pd.DataFrame, parent: Architecture, *, partial: bool) -> None:
    """Every layer of the parent, its own block in each, no block twice and, unless `partial`, every pair."""
    layers: list[set[str]] = [set() for _ in parent.blocks]
    for layer, name in zip(frame["layer"].astype(int), frame["block"], strict=True):
        if layer >= len(layers):
            raise ValueError(f"score table: layer {layer} ({name}) is none of the parent's 0 to {len(layers) - 1}")
        if name in layers[layer]:
            raise ValueError(f"score table: layer {layer} has {name} twice")
        layers[layer].add(name)
    for layer, (names, own) in enumerate(zip(layers, parent.blocks, strict=True)):
        if not names:
            raise ValueError(f"score table: layer {layer} has no scores; the parent has {len(layers)} layers")
        if block_name(own) not in names:
            raise ValueError(
                f"score table: layer {layer} lacks {block_name(own)}, the parent's own block and the reference"
            )
        missing = None if partial else _first_missing(names)
        if missing:
            raise ValueError(
                f"score table: layer {layer} lacks {missing}; a table that covers only part of the pairs says partial "
                "(for a .csv: --partial-scores)"
            )


def _first_missing(names: set[str]) -> str | None:
    halves = [name.split("+") for name in sorted(names)]
    attention = dict.fromkeys(first for first, _ in halves)
    ffn = dict.fromkeys(second for _, second in halves)
    pairs = (f"{first}+{second}" for first in attention for second in ffn)
    return next((pair for pair in pairs if pair not in names), None)


def _first_difference(stated: Architecture, given: Architecture) -> str:
    if len(stated.blocks) != len(given.blocks):
        return f"one of {len(stated.blocks)} layers, not {len(given.blocks)}"
    layer, one, other = next(
        (layer, one, other)
        for layer, (one, other) in enumerate(zip(stated.blocks, given.blocks, strict=True))
        if one != other
    )
    return f"its layer {layer} is {block_name(one)}, not {block_name(other)}"


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv"


def _read_csv(
    path: Path, *, metric: str | None, direction: str | None, parent: Architecture | None, partial: bool
) -> ScoreTable:
    if direction is None:
        raise ValueError(
            f"{path}: a CSV does not say whether low or high scores are good; "
            f"give --score-direction {' or '.join(DIRECTIONS)}"
        )
    if metric is None:
        raise ValueError(
            f"{path}: a CSV does not say what its scores are; give --score-metric, such as kl, lm_loss or accuracy"
        )
    if parent is None:
        raise ValueError(f"{path}: a CSV does not say which model it scores; give the parent's architecture")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = _csv_rows(path, file)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such score table") from None
    except OSError as error:
        raise ValueError(f"{path} is not a readable score table: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a readable score table (a CSV is text in UTF-8)") from None
    metadata = _provenance(metric=metric, direction=direction, parent=parent, source=f"read from {path.name}")
    return _table_of(path, _frame(rows), metadata | {"partial": partial})


def _csv_rows(path: Path, lines: Iterable[str]) -> list[tuple[int, str, float, float, int]]:
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    rows = []
    try:
        for fields in reader:
            cells = [field.strip() for field in fields]
            if not any(cells):
                continue
            if header is None:
                _check_columns(cells, needed=_CSV_NEEDS)
                header = cells
                continue
            if len(cells) != len(header):
                raise ValueError(f"{len(cells)} values under {len(header)} columns")
            named = dict(zip(header, cells, strict=True))
            layer = int(_csv_number(named, "layer", whole=True))
            try:
                numbers = (
                    _csv_number(named, "score"),
                    _csv_number(named, "standard_error") if named.get("standard_error") else math.nan,
                    int(_csv_number(named, "samples", whole=True)) if named.get("samples") else 0,
                )
            except ValueError as error:
                raise ValueError(f"layer {layer}, {named['block']}: {error}") from None
            rows.append((layer, named["block"], *numbers))
    except UnicodeDecodeError:
        raise
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
    return rows


def _csv_number(cells: dict[str, str], column: str, *, whole: bool = False) -> float:
    text = cells[column]
    try:
        number = math.nan if "_" in text else float(text)  # Python alone reads 1_000
    except ValueError:
        number = math.nan
    if math.isnan(number) and text.lower() != "nan":
        raise ValueError(f"{column} {text!r} is not a number")
    if whole and not (number.is_integer() and 0 <= number <= _LARGEST_WHOLE):
        raise ValueError(f"{column} must be a whole number of at least 0, not {text!r}")
    if not math.isfinite(number) and not (column == "standard_error" and math.isnan(number)):
        raise ValueError(f"{column} must be finite, not {text!r}")
    return number
