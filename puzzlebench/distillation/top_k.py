"""The parent's most likely tokens for every token of the text, on disk: a teacher that is run once.

A row takes length x (8 k + 4) bytes: the k tokens and their log-probabilities, and the logarithm of the probability of
all others together. There are no hidden states in it, so cosine is not to be had from it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from puzzlebench.digest import short_digest
from puzzlebench.distillation.data import Numbers
from puzzlebench.distillation.losses import FullTarget, TopKTarget, top_k_target
from puzzlebench.distillation.ranks import Ranks
from puzzlebench.distillation.student import Lesson
from puzzlebench.distillation.teacher import Teacher
from puzzlebench.files import make_folder, write_text
from puzzlebench.text.tokens import Tokens
from puzzlebench.training.tensors import write_tensors

ROWS_OF_A_FILE: Final = 32
_TOKENS_AT_A_TIME: Final = 256
_SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheKey:
    """What decides the numbers in a cache.

    Attributes:
        teacher: the parent's fingerprint.
        rows: that of the rows.
        k: tokens kept of each distribution.
        temperature: by which logits are divided first.
        precision: that the parent was run in.
    """

    teacher: str
    rows: str
    length: int
    k: int
    temperature: float
    precision: str

    def folder(self, cache: Path) -> Path:
        """Its own folder in a cache for several."""
        return cache / f"top{self.k}-{short_digest(self.to_json())}"

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready object."""
        return {"schema_version": _SCHEMA_VERSION, **{name: getattr(self, name) for name in self.__slots__}}


def fill_cache(
    folder: Path,
    key: CacheKey,
    rows: Tokens,
    open_teacher: Callable[[], Teacher],
    ranks: Ranks,
    report: Callable[[float], None] = lambda _share: None,
) -> None:
    """Write what is missing of the cache of these rows; the processes share the files among them.

    Args:
        open_teacher: called only where something is missing.

    Raises:
        ValueError: the disk is full, or `k` does not fit the vocabulary.
    """
    numbers = range(-(-len(rows) // ROWS_OF_A_FILE))
    if ranks.index == 0:
        make_folder(folder)
        write_text(folder / "cache.json", json.dumps(key.to_json(), indent=1) + "\n")
    missing = ranks.agree([number for number in numbers if not _file(folder, number).exists()])
    if not missing:
        return
    teacher = open_teacher()
    for turn in range(0, len(missing), ranks.count):
        own = missing[turn + ranks.index] if turn + ranks.index < len(missing) else None
        # A teacher that is spread over the processes needs all of them in every forward.
        number = missing[turn] if own is None else own
        first = number * ROWS_OF_A_FILE
        kept = [_kept(teacher, rows[row : row + 1], key, ranks.device) for row in _rows_of(number, len(rows), ranks)]
        if own is not None:
            count = min(ROWS_OF_A_FILE, len(rows) - first)
            tensors = {
                name: torch.stack([getattr(one, name) for one in kept[:count]]).cpu()
                for name in ("ids", "log_probs", "rest")
            }
            write_tensors(_file(folder, number), tensors | {"ids": tensors["ids"].int()}, key.to_json())
        report((turn + 1) / len(missing))
    ranks.wait()


class CachedTeacher:
    """Answers from a filled cache."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened: dict[int, Any] = {}

    def lesson(self, ids: torch.Tensor, rows: Numbers | None) -> Lesson:
        """What is kept of these rows.

        Raises:
            ValueError: a file is missing or broken.
        """
        assert rows is not None
        assert len(rows) == len(ids)
        parts = {name: torch.cat([self._read(int(row), name) for row in rows]) for name in ("ids", "log_probs", "rest")}
        moved = {name: part.flatten(0, 1).to(ids.device) for name, part in parts.items()}
        return Lesson(target=TopKTarget(ids=moved["ids"].long(), log_probs=moved["log_probs"], rest=moved["rest"]))

    def _read(self, row: int, name: str) -> torch.Tensor:
        from safetensors import SafetensorError, safe_open

        number, at = divmod(row, ROWS_OF_A_FILE)
        try:
            if number not in self._opened:
                opened: Any = safe_open(_file(self._folder, number), framework="pt")
                self._opened[number] = opened
            part: torch.Tensor = self._opened[number].get_slice(name)[at : at + 1]
            return part
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{_file(self._folder, number)} cannot be read: {error}; remove it") from None


def _kept(teacher: Teacher, rows: Tokens, key: CacheKey, device: torch.device) -> TopKTarget:
    """Of one row, some tokens at a time."""
    lesson = teacher.lesson(torch.from_numpy(rows).to(device, torch.long), None)
    assert isinstance(lesson.target, FullTarget)
    hidden, head = lesson.target.hidden, lesson.target.head
    with torch.no_grad():
        parts = [
            top_k_target(head.logits(part.to(head.weight.dtype)), key.k, key.temperature)
            for part in torch.split(hidden, _TOKENS_AT_A_TIME)
        ]
    return TopKTarget(
        ids=torch.cat([part.ids for part in parts]),
        log_probs=torch.cat([part.log_probs for part in parts]),
        rest=torch.cat([part.rest for part in parts]),
    )


def _rows_of(number: int, rows: int, ranks: Ranks) -> list[int]:
    """The rows of a file; where all processes must run as often, the last row stands in for missing ones."""
    first = number * ROWS_OF_A_FILE
    count = ROWS_OF_A_FILE if ranks.sharded else min(ROWS_OF_A_FILE, rows - first)
    return [min(first + row, rows - 1) for row in range(count)]


def _file(folder: Path, number: int) -> Path:
    return folder / f"rows-{number:06d}.safetensors"
