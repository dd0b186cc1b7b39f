"""Text files that appear whole or not at all, folders and locks: what is wrong with them is one line."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from puzzlebench.errors import first_line


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
def replacing(path: Path) -> Iterator[Path]:
    """Where to write in a `with`, what then takes the file's place; a reader sees the old file or the new one.

    Raises:
        ValueError: the folder does not exist or cannot be written to, or the disk is full.
    """
    part = unfinished(path)
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


@contextlib.contextmanager
def new_folder(path: Path, *failures: type[Exception]) -> Iterator[Path]:
    """Where to write in a `with`, what then appears as a folder `path`; after an error or an interrupt nothing is left.

    Args:
        failures: errors of the writers that mean that the disk is full, besides OSError.

    Raises:
        ValueError: `path` exists, or cannot be written, or the disk is full.
    """
    meant: tuple[type[Exception], ...] = (OSError, *failures)
    if path.exists():
        raise ValueError(f"{path} exists; give a new folder")
    make_folder(path.parent)
    try:
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise ValueError(f"cannot write to {path.parent}: {error.strerror}") from None
    try:
        yield partial
        for file in partial.rglob("*"):  # safetensors' files and mkdtemp's folders are for their owner alone
            file.chmod(0o755 if file.is_dir() else 0o644)
        partial.chmod(0o755)
        partial.rename(path)
    except meant as error:
        raise ValueError(f"cannot write {path}: {first_line(error)}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it where there are none; ValueError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to {path}: {error.strerror}") from None


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there, so that a kill leaves no half of it under its name; what stays hidden goes with
    the next call.

    Raises:
        ValueError: it cannot be removed.
    """
    hidden = path.with_name(f".{path.name}.removed.part")
    try:
        shutil.rmtree(hidden, ignore_errors=True)
        if path.exists():
            os.replace(path, hidden)
            shutil.rmtree(hidden)
    except OSError as error:
        raise ValueError(f"cannot remove {path}: {error.strerror}") from None


@contextlib.contextmanager
def locked(path: Path, what: str, *, wait: bool = False) -> Iterator[int]:
    """Hold a lock file, its descriptor, for the length of a `with`; a killed process holds it no longer.

    The file stays. Who removes it lets one that waits hold it while others lock its successor.

    Args:
        what: what another process that holds it is doing, for the message.
        wait: until no other process holds it.

    Raises:
        ValueError: another process holds it, or the folder cannot be written to.
    """
    try:
        file = path.open("a")
    except OSError as error:
        raise ValueError(f"cannot write to {path.parent}: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise ValueError(f"{path.parent} is in use: another process {what}") from None
        yield file.fileno()


def write_text(path: Path, text: str) -> None:
    """Write beside the file, then put it in its place.

    Raises:
        ValueError: the folder does not exist or cannot be written to.
    """
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
