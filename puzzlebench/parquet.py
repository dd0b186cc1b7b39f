"""Parquet files of one table with JSON metadata: written whole or not at all, read with one line for what is wrong.

Knows nothing of columns: what a table holds is checked by its own module.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from puzzlebench.files import unfinished


@dataclass(frozen=True, kw_only=True, slots=True)
class TableFormat:
    """One kind of table: what messages call it, its schema version, and the schema key its metadata stands under."""

    name: str
    schema_version: int
    metadata_key: str


def write_table(table_format: TableFormat, frame: pd.DataFrame, metadata: dict[str, Any], path: Path) -> None:
    """Write parquet with readable metadata; the file appears whole or not at all.

    Raises:
        ValueError: the folder does not exist or cannot be written to.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = pa.Table.from_pandas(frame, preserve_index=False)
    stated = json.dumps({"schema_version": table_format.schema_version, **metadata}, indent=1)
    arrow = arrow.replace_schema_metadata({table_format.metadata_key: stated})
    if not path.name:
        raise ValueError(f"cannot write {path}: it is a folder")
    part = unfinished(path)
    try:
        pq.write_table(arrow, part, compression="zstd")
        os.replace(part, path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)  # Arrow's text names the unfinished file
        raise ValueError(f"cannot write {path}: {reason}") from None
    finally:
        with contextlib.suppress(OSError):  # the folder may be what is wrong
            part.unlink()


def read_table(table_format: TableFormat, path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The frame and the metadata, without its schema version.

    Raises:
        ValueError: the file is missing, truncated, not this kind of table, or of another schema version.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = table_format.name
    try:
        arrow = pq.read_table(path, partitioning=None)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such {name}") from None
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is not a readable {name} (truncated or not parquet): {reason}") from None
    try:
        metadata: dict[str, Any] = json.loads((arrow.schema.metadata or {})[table_format.metadata_key.encode()])
        version = metadata.pop("schema_version")
    except (KeyError, ValueError, AttributeError, TypeError):
        raise ValueError(f"{path} is a parquet file but not a puzzlebench {name}") from None
    if version != table_format.schema_version:
        raise ValueError(f"{path} has {name} schema {version!r}; this version reads {table_format.schema_version}")
    try:
        return arrow.to_pandas(), metadata
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
