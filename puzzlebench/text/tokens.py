"""Packed sequences: documents one after another, an end token between them, cut into rows of one length.

Knows no model; a tokenizer is anything of transformers or with its `encode`. Legend: N sequences, T tokens of each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np

from puzzlebench.text.corpus import Document

Tokens: TypeAlias = np.ndarray[Any, np.dtype[np.int32]]


def pack_documents(
    documents: Iterable[Document],
    tokenizer: Any,
    *,
    sequences: int | None,
    length: int,
    spread: bool = False,
    what: str = "text",
) -> Tokens:
    """Token ids [N, T] of the first `sequences` rows (None: all whole rows).

    With `spread` all documents are read, and the rows are evenly apart in them: neighbours are of one document and say
    much the same, which a standard error over rows would not notice.

    A row may begin in the middle of a document and hold several; nothing separates them but the end token.

    Raises:
        ValueError: the text has fewer tokens than asked for, or not one row.
    """
    wanted = None if sequences is None else sequences * length
    end = tokenizer.eos_token_id
    ids: list[int] = []
    for document in documents:
        ids += tokenizer.encode(document.text, add_special_tokens=False)
        if end is not None:
            ids.append(end)
        if wanted is not None and not spread and len(ids) >= wanted:
            break
    rows = len(ids) // length if sequences is None else sequences
    if rows == 0 or len(ids) < rows * length:
        need = f"{wanted:,}" if wanted is not None else f"{length:,}"
        raise ValueError(
            f"too little {what}: it has {len(ids):,} tokens and {need} are needed; ask for fewer or give more (--data)"
        )
    every = len(ids) // length if spread else rows
    packed = np.asarray(ids[: every * length], dtype=np.int32).reshape(every, length)
    return packed[np.arange(rows) * every // rows]
