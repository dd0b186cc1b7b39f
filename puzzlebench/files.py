"""Text files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


def check_file(path: Path) -> None:
    """Raise ValueError, before the work, for a file that cannot be written after it."""
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder")


def unfinished(path: Path) -> Path:
    """Where to write what is then put in the file's place; no other process, on whichever host, has the same name."""
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file for the length of a `with`; a killed process holds it no longer.

    Raises:
        ValueError: another process holds it, or the folder cannot be written to.
    """
    try:
        file = path.open("a")
    except OSError as error:
        raise ValueError(f"cannot write to {path.parent}: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{path.parent} is in use: another process {what}") from None
        yield


def write_text(path: Path, text: str) -> None:
    """Write beside the file, then put it in its place.

    Raises:
        ValueError: the folder does not exist or cannot be written to.
    """
    part = unfinished(path)
    try:
        part.write_text(text)
        os.replace(part, path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
