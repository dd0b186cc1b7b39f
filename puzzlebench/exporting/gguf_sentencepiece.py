"""SentencePiece vocabularies of the BPE kind, as Llama 2's: pieces with scores on one side, merges on the other.

llama.cpp joins the two neighbouring pieces whose joint piece has the best score; tokenizer.json lists pairs that may
be joined, best first. One says what the other does where every way to put a piece together is listed, and that is
checked. `tokenizer.model` is read here without the sentencepiece package: it is a small protocol buffer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens, the same numbers in SentencePiece and in GGUF."""

SPACE = "▁"
_BYTES = {f"<0x{value:02X}>" for value in range(256)}
_UNIGRAM, _BPE = 1, 2
_ROLES = {"unk": (40, 0), "bos": (41, 1), "eos": (42, 2), "pad": (43, -1)}  # field of the trainer's, and its default
_NONE = 1 << 63  # from here on ids are negative


@dataclass(frozen=True, kw_only=True, slots=True)
class Pieces:
    """A vocabulary, by id.

    Attributes:
        space_prefix: a space is put before the text.
        special: ids by role: bos, eos, unk, pad.
    """

    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    space_prefix: bool
    special: Mapping[str, int] = field(default_factory=dict)


def is_byte(token: str) -> bool:
    """Whether a token stands for one byte, as <0x0A> does."""
    return token in _BYTES


def scores_from_merges(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> dict[str, float]:
    """A score for every token that merges make, falling from first to last.

    Args:
        vocab: the tokens that are pieces of text, not the added ones.

    Raises:
        ValueError: some way to put a token together is not listed, or the ways of two tokens are mixed, so that scores
            of tokens cannot say the order of merges.
    """
    scores: dict[str, float] = {}
    previous = None
    for left, right in merges:
        token = left + right
        if token != previous and token in scores:
            raise ValueError(
                f"its merges return to {token!r}, so scores of tokens, all that llama.cpp has, cannot order them"
            )
        previous = token
        scores.setdefault(token, -float(len(scores)))
    listed = set(merges)
    for token in vocab:
        if is_byte(token):
            continue
        for left, right in _splits(token):
            if left in vocab and right in vocab and (left, right) not in listed:
                raise ValueError(
                    f"its merges do not list {left!r} with {right!r}, which llama.cpp would join to {token!r}; "
                    "SentencePiece's own tokenizers list every such pair"
                )
    return scores


def merges_from_scores(pieces: Pieces) -> list[tuple[str, str]]:
    """Every pair of pieces whose joint piece is one too, best first: what transformers makes of tokenizer.model."""
    ids = {
        token: number
        for number, (token, kind) in enumerate(zip(pieces.tokens, pieces.types, strict=True))
        if kind in (NORMAL, USER_DEFINED)
    }
    found = []
    for token, number in ids.items():
        if pieces.types[number] != NORMAL:
            continue
        for left, right in _splits(token):
            if left in ids and right in ids:
                found.append((-pieces.scores[number], number, ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _splits(token: str) -> Iterator[tuple[str, str]]:
    for place in range(1, len(token)):
        yield token[:place], token[place:]


def read_pieces(file: Path) -> Pieces:
    """The vocabulary in a tokenizer.model.

    Raises:
        ValueError: it is none that can be read, or not of the BPE kind.
    """
    try:
        return _parse_pieces(file.read_bytes())
    except (OSError, struct.error, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a SentencePiece model that can be read: {error}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _parse_pieces(data: bytes) -> Pieces:
    tokens, scores, types = [], [], []
    trainer: dict[int, Any] = {}
    prefix = True
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(value))
            tokens.append(piece[1].decode())
            scores.append(piece.get(2, 0.0))
            types.append(piece.get(3, NORMAL))
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            prefix = bool(dict(_fields(value)).get(3, 1))
    if not tokens:
        raise ValueError("it has no pieces")
    if trainer.get(3, _UNIGRAM) != _BPE:
        raise ValueError("it is no BPE model, and llama.cpp's reading of scores (tokenizer 'llama') is BPE's")
    special = {role: trainer.get(place, default) for role, (place, default) in _ROLES.items()}
    return Pieces(
        tokens=tuple(tokens),
        scores=tuple(scores),
        types=tuple(types),
        space_prefix=prefix,
        special={role: number for role, number in special.items() if 0 <= number < _NONE},
    )


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Field numbers and values of a protocol buffer's message: integers, floats, and bytes of what is nested."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        match key & 7:
            case 0:
                value, place = _varint(data, place)
                yield key >> 3, value
            case 1:
                yield key >> 3, struct.unpack_from("<d", data, place)[0]
                place += 8
            case 2:
                length, place = _varint(data, place)
                if place + length > len(data):
                    raise IndexError("it ends too early")
                yield key >> 3, data[place : place + length]
                place += length
            case 5:
                yield key >> 3, struct.unpack_from("<f", data, place)[0]
                place += 4
            case wire:
                raise ValueError(f"it is no protocol buffer (wire type {wire})")


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place += 1
        if byte < 128:
            return value, place
        shift += 7
