"""Documents: the sources of Python's standard library, which every machine has, or files of one's own.

The library's files are split once and for all by a hash of their path, so that what is trained on, what scores are
taken on and what results are reported on never mix. Knows no tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

Split: TypeAlias = Literal["train", "validation", "test"]
"""train: parents, blocks and calibration; validation: scores and choices; test: results that are reported."""
SPLITS: Final[tuple[Split, ...]] = get_args(Split)

# Tables of numbers, tests (which distributions leave out) and packages of others would change what the text is like.
_LEFT_OUT: Final = frozenset(
    ("site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "lib-dynload", "__pycache__")
)
_PIECE: Final = 4096  # characters, about 1300 tokens
_TEXT_SUFFIXES: Final = (".txt", ".md", ".rst", ".py")
_SUFFIXES: Final = (*_TEXT_SUFFIXES, ".jsonl", ".parquet")


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One text, and where it is from."""

    name: str
    text: str


def standard_library(split: Split) -> list[Document]:
    """Pieces of the Python sources of this interpreter's standard library that belong to a split, in a fixed shuffled
    order, so that its first tokens are of many files.

    Of 20 files 18 are for training, one for validation and one for tests.

    Raises:
        ValueError: the split is unknown, or the interpreter comes without sources.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not known; use {', '.join(SPLITS)}")
    root = Path(sysconfig.get_paths()["stdlib"])
    pieces = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _LEFT_OUT.intersection(relative.parts) or relative.parts[0].startswith("config-"):
            continue
        if _split_of(_digest(relative.as_posix())) == split:
            for number, text in enumerate(_pieces(path.read_text("utf-8", "replace"))):
                pieces.append(Document(name=f"{relative.as_posix()}:{number}", text=text))
    if not pieces:
        raise ValueError(f"this Python has no library sources in {root}; give text of your own with --data")
    return sorted(pieces, key=lambda piece: _digest(piece.name))


def read_documents(path: Path) -> Iterator[Document]:
    """Documents of a file or of a folder's files, by name: .txt, .md, .rst and .py are one document each, .jsonl and
    .parquet one per line or row, under the key or column "text".

    Raises:
        ValueError: there is no such path, it holds nothing readable, or a line has no text.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES)
    if not files or files[0].suffix not in _SUFFIXES:
        raise ValueError(f"{path}: no text to read; known are files that end in {', '.join(_SUFFIXES)}")
    for file in files:
        if file.suffix == ".jsonl":
            yield from _json_lines(file)
        elif file.suffix == ".parquet":
            yield from _parquet_rows(file)
        else:
            try:
                yield Document(name=file.name, text=file.read_text("utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"{file} is not text that can be read: {error}") from None


def _pieces(text: str) -> Iterator[str]:
    """Whole lines, together as long as `_PIECE` at least; the last piece may be shorter."""
    held: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        held.append(line)
        size += len(line)
        if size >= _PIECE:
            yield "".join(held)
            held, size = [], 0
    if held:
        yield "".join(held)


def _json_lines(file: Path) -> Iterator[Document]:
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield Document(name=f"{file.name}:{number}", text=_text_of(line, file, number))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not text that can be read: {error}") from None


def _text_of(line: str, file: Path, number: int) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise ValueError(f'{file}, line {number}: not a JSON object with "text"')
    return text


def _parquet_rows(file: Path) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(file)
        if "text" not in opened.schema_arrow.names:
            raise ValueError(f"{file}: no column 'text'; its columns are {', '.join(opened.schema_arrow.names)}")
        for group in range(opened.num_row_groups):
            for row, text in enumerate(opened.read_row_group(group, columns=["text"])["text"].to_pylist()):
                if isinstance(text, str):
                    yield Document(name=f"{file.name}:{group}:{row}", text=text)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file} is not a parquet file that can be read: {str(error).splitlines()[0]}") from None


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _split_of(digest: str) -> Split:
    bucket = int(digest[:8], 16) % 20
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"
