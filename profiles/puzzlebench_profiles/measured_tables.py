"""Cost tables measured live and shipped with the package: measured/<gpu>/<model>.<engine>.<weights>-<kv>.parquet.

Finds files; reading them is the cost table's own business. Each carries its provenance (hardware, driver, library
versions, commit, date) in its metadata.
"""

from __future__ import annotations

import difflib
from pathlib import Path

MEASURED_DIR = Path(__file__).parent / "measured"


def list_measured_tables() -> dict[str, Path]:
    """Every shipped table by name, `gpu/model.engine.weights-kv`."""
    return {f"{path.parent.name}/{path.stem}": path for path in sorted(MEASURED_DIR.glob("*/*.parquet"))}


def find_measured_table(name: str) -> Path:
    """The file of a shipped table.

    Raises:
        ValueError: none has that name; the message suggests near ones.
    """
    tables = list_measured_tables()
    if name in tables:
        return tables[name]
    near = difflib.get_close_matches(name, tables, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"shipped: {', '.join(tables) or 'none'}"
    raise ValueError(f"no measured table is named {name!r}; {hint}")
