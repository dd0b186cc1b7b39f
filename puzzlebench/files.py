"""Text files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def check_file(path: Path) -> None:
    """Raise ValueError, before the work, for a file that cannot be written after it."""
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder")


def write_text(path: Path, text: str) -> None:
    """Write beside the file, then put it in its place.

    Raises:
        ValueError: the folder does not exist or cannot be written to.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_text(text)
        os.replace(unfinished, path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()
