"""Folders that appear whole or not at all, and JSON in them."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from puzzlebench.errors import first_line
from puzzlebench.files import make_folder


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Where to write in a `with`, what then appears as `out`; after an error or an interrupt nothing is left.

    Raises:
        ValueError: `out` exists, or cannot be written, or the disk is full.
    """
    from safetensors import SafetensorError

    if out.exists():
        raise ValueError(f"{out} exists; give a new folder")
    make_folder(out.parent)
    try:
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise ValueError(f"cannot write to {out.parent}: {error.strerror}") from None
    try:
        yield partial
        for file in partial.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        partial.chmod(0o755)  # mkdtemp's folders are for their owner alone
        partial.rename(out)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot write {out}: {first_line(error)}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """One JSON document."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
