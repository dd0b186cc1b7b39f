"""Rows from documents that are read while training goes on: text too large to be tokenised beforehand.

Row s of every batch is made of its own documents: number s, s + batch size, s + 2 x batch size and so on. So each
document is tokenised by the one process that trains on it, a batch does not depend on how many processes there are, and
a position is a document and an offset per row of the batch. Documents come in the order of the stream: shuffle them
beforehand.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from puzzlebench.digest import short_digest
from puzzlebench.distillation.data import HELD_OUT, Batch, Numbers, own_share
from puzzlebench.distillation.recipe import Stage
from puzzlebench.errors import first_line
from puzzlebench.text.corpus import read_documents
from puzzlebench.text.tokens import Tokens

NEEDS_DATASETS: Final = "a data set of the Hub needs datasets: pip install datasets"


@dataclass(frozen=True, kw_only=True, slots=True)
class HubText:
    """A data set that `datasets.load_dataset` knows, streamed.

    Attributes:
        name: on the Hub, or a format such as json or parquet with `files`.
        config: of the data set, where it has several.
        split: of the data set.
        column: which holds the text.
        files: of the format's.
    """

    name: str
    config: str | None = None
    split: str = "train"
    column: str = "text"
    files: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """A file or folder that `read_documents` reads, or a data set of the Hub."""

    source: Path | HubText

    def texts(self, skip: int = 0) -> Iterator[str]:
        """The documents from number `skip` on.

        Raises:
            ValueError: there is no such text, or `datasets` is missing.
        """
        if isinstance(self.source, Path):
            return (document.text for document in itertools.islice(read_documents(self.source), skip, None))
        return _hub_texts(self.source, skip)

    @property
    def fingerprint(self) -> str:
        """Stands for where the text is from; what it holds is not read."""
        stated = str(self.source.resolve()) if isinstance(self.source, Path) else asdict(self.source)
        return short_digest({"stream": stated})


def _hub_texts(source: HubText, skip: int) -> Iterator[str]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(NEEDS_DATASETS) from None
    files = {"data_files": list(source.files)} if source.files else {}
    try:
        loaded: Any = load_dataset(source.name, source.config, split=source.split, streaming=True, **files)
        for row in loaded.skip(skip):
            text = row.get(source.column)
            if not isinstance(text, str):
                raise ValueError(f"no text in column {source.column!r}; its columns are {', '.join(row)}")
            yield text
    except Exception as error:  # of its HTTP clients and parsers
        raise ValueError(f"data set {source.name}: {first_line(error)}") from None


class _Slot:
    """One row of every batch: the tokens of its documents that are not used yet."""

    def __init__(self, document: int, offset: int) -> None:
        self.start = (document, offset)
        self.pieces: deque[tuple[int, list[int]]] = deque()

    def add(self, document: int, ids: list[int]) -> None:
        """Its next document; of one it was in the middle of, what is left."""
        first, offset = self.start
        self.pieces.append((document, ids[offset:] if document == first else ids))

    def take(self, count: int) -> list[int]:
        """The first `count` tokens, which must be there."""
        taken: list[int] = []
        while len(taken) < count:
            document, ids = self.pieces.popleft()
            used = min(count - len(taken), len(ids))
            taken += ids[:used]
            done = self.start[1] if self.start[0] == document else 0
            self.start = (document, done + used)
            if used < len(ids):
                self.pieces.appendleft((document, ids[used:]))
        return taken

    @property
    def held(self) -> int:
        """Tokens at hand."""
        return sum(len(ids) for _, ids in self.pieces)


class StreamedRows:
    """The rows of one stage, as one process sees them.

    Args:
        stages: all of the recipe's; the held-out rows are of the stream's first documents, as many as the longest rows
            need, and nothing is trained on those.
        number: of this stage.
        begin: the first document to train on; None: the first that is not held out.
    """

    def __init__(
        self,
        stream: Stream,
        tokenizer: Any,
        stages: tuple[Stage, ...],
        number: int,
        *,
        begin: int | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self._stream, self._tokenizer, self._stage = stream, tokenizer, stages[number]
        ids: list[int] = []
        held = 0
        wanted = HELD_OUT * max(stage.length for stage in stages)
        for text in stream.texts():
            if len(ids) >= wanted:
                break
            ids += self._tokens(text)
            held += 1
        if len(ids) < wanted:
            raise ValueError(f"too little text: the stream has {len(ids):,} tokens, and {wanted:,} are held out")
        self._held_out = np.asarray(ids[: HELD_OUT * self._stage.length], np.int32).reshape(HELD_OUT, -1)
        self._own = range(self._stage.batch_size)[own_share(self._stage, rank, ranks)]
        self._open(held if begin is None else begin)

    @property
    def held_out(self) -> Tokens:
        """Rows of the stream's first documents."""
        return self._held_out

    @property
    def held_out_rows(self) -> Numbers | None:
        """Rows of a stream have no numbers."""
        return None

    @property
    def fingerprint(self) -> str:
        """Stands for the stream."""
        return self._stream.fingerprint

    @property
    def end(self) -> int:
        """The first document after those that this process has used any token of."""
        return 1 + max(slot.start[0] for slot in self._slots.values())

    def batch(self, step: int) -> Batch:  # noqa: ARG002, it goes on from where it is
        """This process's rows of the next step.

        Raises:
            ValueError: the stream ends.
        """
        length = self._stage.length
        rows = []
        for number in self._own:
            slot = self._slots[number]
            while slot.held < length:
                slot.add(*self._document(number))
            rows.append(slot.take(length))
        return Batch(ids=np.asarray(rows, np.int32), rows=None)

    def position(self) -> dict[str, Any]:
        """Of each own row of the batch: the document it is in, and how many of its tokens are used."""
        return {"begin": self._begin, "slots": {str(number): list(self._slots[number].start) for number in self._own}}

    def go_to(self, positions: list[dict[str, Any]]) -> None:
        """Go on from where all processes were, however many they were."""
        begin: int = positions[0]["begin"]
        starts = {int(number): start for one in positions for number, start in one["slots"].items()}
        self._open(begin, {number: (start[0], start[1]) for number, start in starts.items() if number in self._own})

    def _open(self, begin: int, starts: dict[int, tuple[int, int]] | None = None) -> None:
        self._begin = begin
        starts = starts or {number: (begin + number, 0) for number in self._own}
        self._slots = {number: _Slot(*start) for number, start in starts.items()}
        self._waiting: dict[int, deque[tuple[int, str]]] = {number: deque() for number in self._own}
        self._next = min(start[0] for start in starts.values())
        self._texts: Callable[[], str] = iter(self._stream.texts(self._next)).__next__

    def _document(self, number: int) -> tuple[int, list[int]]:
        """The next document of a row of the batch; those that come before it wait for theirs."""
        while not self._waiting[number]:
            try:
                text = self._texts()
            except StopIteration:
                raise ValueError(
                    f"the stream ends after {self._next:,} documents, before training does; ask for fewer sequences"
                ) from None
            document, self._next = self._next, self._next + 1
            owner = (document - self._begin) % self._stage.batch_size
            if owner in self._waiting and document >= self._slots[owner].start[0]:
                self._waiting[owner].append((document, text))
        document, text = self._waiting[number].popleft()
        return document, self._tokens(text)

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        end = self._tokenizer.eos_token_id
        return ids if end is None else [*ids, end]
