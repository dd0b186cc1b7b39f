from __future__ import annotations

import numpy as np
import pytest

from puzzlebench.text.corpus import Document
from puzzlebench.text.tokens import pack_documents


class Letters:
    """A tokenizer of one token per letter: a is 1, b is 2; 0 ends a document."""

    eos_token_id: int | None = 0

    def encode(self, text, *, add_special_tokens):
        assert not add_special_tokens
        return [ord(letter) - ord("a") + 1 for letter in text]


def _documents(*texts):
    return [Document(name=text, text=text) for text in texts]


def test_documents_follow_one_another_with_an_end_token_behind_each():
    rows = pack_documents(_documents("abc", "d", "", "efg"), Letters(), sequences=2, length=5)
    assert rows.dtype == np.int32
    assert rows.tolist() == [[1, 2, 3, 0, 4], [0, 0, 5, 6, 7]]


def test_without_a_count_all_whole_rows_are_taken():
    rows = pack_documents(_documents("abc", "defgh"), Letters(), sequences=None, length=3)
    assert rows.tolist() == [[1, 2, 3], [0, 4, 5], [6, 7, 8]]


def test_a_tokenizer_without_an_end_token_puts_none():
    tokenizer = Letters()
    tokenizer.eos_token_id = None
    assert pack_documents(_documents("ab", "cd"), tokenizer, sequences=2, length=2).tolist() == [[1, 2], [3, 4]]


def test_no_more_documents_are_read_than_needed():
    def documents():
        yield from _documents("abc", "de")
        raise AssertionError("more than was needed")

    assert pack_documents(documents(), Letters(), sequences=1, length=6).tolist() == [[1, 2, 3, 0, 4, 5]]


def test_too_little_text_says_how_much_there_is_and_how_much_is_needed():
    with pytest.raises(ValueError, match=r"too little train text: it has 4 tokens and 2,000 are needed; .*--data"):
        pack_documents(_documents("abc"), Letters(), sequences=20, length=100, what="train text")
    with pytest.raises(ValueError, match=r"too little text: it has 4 tokens and 5 are needed"):
        pack_documents(_documents("abc"), Letters(), sequences=None, length=5)
    with pytest.raises(ValueError, match=r"it has 0 tokens"):
        pack_documents([], Letters(), sequences=None, length=5)


def test_spread_rows_are_evenly_apart_in_all_documents():
    tokenizer = Letters()
    documents = [Document(name=str(n), text=chr(97 + n) * 40) for n in range(10)]
    everything = pack_documents(documents, tokenizer, sequences=None, length=8)
    rows = pack_documents(documents, tokenizer, sequences=5, length=8, spread=True)
    expected = everything[[n * len(everything) // 5 for n in range(5)]]
    assert (rows == expected).all()
    assert (pack_documents(documents, tokenizer, sequences=len(everything), length=8, spread=True) == everything).all()
    with pytest.raises(ValueError, match="too little"):
        pack_documents(documents, tokenizer, sequences=len(everything) + 1, length=8, spread=True)
