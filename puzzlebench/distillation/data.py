"""Rows of token ids to train on, stage by stage: packed beforehand, in an order that a seed decides.

Every process takes its own rows of each batch, and what a batch holds does not depend on how many processes there are.
Legend: N rows, T tokens of each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np

from puzzlebench.distillation.recipe import Stage
from puzzlebench.text.corpus import Document, read_documents, standard_library
from puzzlebench.text.tokens import Tokens, pack_documents

HELD_OUT: Final = 32
"""Rows of the standard library's validation split; of a stream, its first ones."""
_MOST_HELD_OUT: Final = 128
Numbers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
"""Which rows, where all rows of a stage are numbered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The rows of one step that are this process's [N, T], and where they lie in `StageRows.all_rows`."""

    ids: Tokens
    rows: Numbers | None


class StageRows(Protocol):
    """The rows of one stage, as one process sees them."""

    @property
    def held_out(self) -> Tokens:
        """Rows that are never trained on, the same in every process."""
        ...

    @property
    def held_out_rows(self) -> Numbers | None:
        """Their numbers, after those of the rows to train on."""
        ...

    @property
    def fingerprint(self) -> str:
        """Stands for the text."""
        ...

    def batch(self, step: int) -> Batch:
        """This process's rows of a step of the stage, counted from 0. Steps are asked for in order."""
        ...

    def position(self) -> dict[str, Any]:
        """JSON-ready: where this process is, for `go_to`."""
        ...

    def go_to(self, positions: list[dict[str, Any]]) -> None:
        """Go on from where all processes were."""
        ...


class PackedRows:
    """Rows in memory.

    Args:
        train, held_out: token ids [N, T].
        rank, ranks: which process this is, of how many.
    """

    def __init__(
        self, train: Tokens, held_out: Tokens, stage: Stage, seed: int, *, rank: int = 0, ranks: int = 1
    ) -> None:
        self._train, self._held_out = train, held_out
        self._order = np.random.default_rng([seed, stage.length]).permutation(len(train))
        self._size, self._share = stage.batch_size, own_share(stage, rank, ranks)
        self.fingerprint = hashlib.sha256(train.tobytes() + held_out.tobytes()).hexdigest()

    @property
    def held_out(self) -> Tokens:
        """Rows that are never trained on."""
        return self._held_out

    @property
    def held_out_rows(self) -> Numbers:
        """Their numbers in `all_rows`."""
        return np.arange(len(self._train), len(self._train) + len(self._held_out))

    @property
    def all_rows(self) -> Tokens:
        """Rows to train on and then those held out, by the numbers of `Batch.rows`."""
        return np.concatenate([self._train, self._held_out])

    def batch(self, step: int) -> Batch:
        """This process's rows of a step."""
        rows = self._order[step * self._size : (step + 1) * self._size][self._share]
        return Batch(ids=self._train[rows], rows=rows)

    def position(self) -> dict[str, Any]:
        """Nothing: the step says it."""
        return {}

    def go_to(self, positions: list[dict[str, Any]]) -> None:
        """Nothing to do."""


def own_share(stage: Stage, rank: int, ranks: int) -> slice:
    """Which rows of a batch are a process's.

    Raises:
        ValueError: they cannot be shared out evenly.
    """
    if stage.batch_size % ranks:
        raise ValueError(f"a batch of {stage.batch_size} rows cannot be shared evenly by {ranks} processes")
    own = stage.batch_size // ranks
    return slice(rank * own, (rank + 1) * own)


def pack_stages(
    stages: Sequence[Stage], tokenizer: Any, data: Path | None, seed: int, *, rank: int = 0, ranks: int = 1
) -> list[PackedRows]:
    """The rows of every stage: the first of one's own text, or of the standard library's training files; each stage
    begins where the one before ended.

    Held out are, of one's own text, the tokens after those that any stage trains on, cut to rows of each stage's
    length: a ninth as many as are trained on (the last tenth of the rows of a single stage), 128 at most, and as many
    in all stages of one length. Of the library they are rows of its validation files.

    Raises:
        ValueError: there is too little text.
    """
    train = sum(stage.sequences * stage.length for stage in stages)
    if data is None:
        ids = _first_tokens(standard_library("train"), tokenizer, train, "train text")
        held_out = {
            length: pack_documents(
                standard_library("validation"),
                tokenizer,
                sequences=HELD_OUT,
                length=length,
                spread=True,
                what="validation text",
            )
            for length in {stage.length for stage in stages}
        }
    else:
        rows = {stage.length: 0 for stage in stages}
        for stage in stages:
            rows[stage.length] = max(rows[stage.length], min(_MOST_HELD_OUT, -(-stage.sequences // 9)))
        most = max(count * length for length, count in rows.items())
        ids = _first_tokens(read_documents(data), tokenizer, train + most, str(data))
        held_out = {
            length: ids[train : train + count * length].reshape(count, length) for length, count in rows.items()
        }
    packed, begin = [], 0
    for stage in stages:
        end = begin + stage.sequences * stage.length
        own = ids[begin:end].reshape(stage.sequences, stage.length)
        packed.append(PackedRows(own, held_out[stage.length], stage, seed, rank=rank, ranks=ranks))
        begin = end
    return packed


def _first_tokens(documents: Iterable[Document], tokenizer: Any, count: int, what: str) -> Tokens:
    """So many token ids, not cut into rows yet."""
    return pack_documents(documents, tokenizer, sequences=count, length=1, what=what).reshape(-1)
