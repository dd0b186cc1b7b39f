"""What a distillation is made of: rows of every stage, a teacher for each, and the child to train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from puzzlebench.child.checkpoints import load_causal_lm
from puzzlebench.distillation.data import PackedRows, StageRows, pack_stages
from puzzlebench.distillation.ranks import Ranks
from puzzlebench.distillation.recipe import DistilRecipe
from puzzlebench.distillation.sharding import load_sharded_teacher
from puzzlebench.distillation.streams import Stream, StreamedRows
from puzzlebench.distillation.teacher import LiveTeacher, Teacher
from puzzlebench.distillation.top_k import CachedTeacher, CacheKey, fill_cache
from puzzlebench.parent.open import ParentFiles, empty_parent, load_parent
from puzzlebench.training.precision import DTYPES, Precision


class Rows:
    """The rows of every stage: packed beforehand, or streamed one stage after the other.

    Args:
        data: a file or folder of text, or None for the standard library's.
        stream: what is streamed in its place, if anything is.
    """

    def __init__(
        self, recipe: DistilRecipe, tokenizer: Any, data: Path | None, stream: Stream | None, ranks: Ranks
    ) -> None:
        self._stages, self._tokenizer, self._ranks = recipe.stages, tokenizer, ranks
        self._stream, self._last = stream, None if stream is None else self._open_stream(0, stream, None)
        self.packed: list[PackedRows] = []
        if stream is None:
            self.packed = pack_stages(recipe.stages, tokenizer, data, recipe.seed, rank=ranks.index, ranks=ranks.count)

    @property
    def fingerprints(self) -> list[str]:
        """Stand for the text of every stage."""
        return [self._stream.fingerprint] if self._stream is not None else [one.fingerprint for one in self.packed]

    def open(self, number: int) -> StageRows:
        """The rows of a stage; a stream goes on after what the stage before has used."""
        if self._stream is None:
            return self.packed[number]
        assert self._last is not None
        if number > 0:
            begin = max(self._ranks.gather(self._last.end))
            self._last = self._open_stream(number, self._stream, begin)
        return self._last

    def _open_stream(self, number: int, stream: Stream, begin: int | None) -> StreamedRows:
        rank, ranks = self._ranks.index, self._ranks.count
        return StreamedRows(stream, self._tokenizer, self._stages, number, begin=begin, rank=rank, ranks=ranks)


def open_teachers(
    files: ParentFiles,
    recipe: DistilRecipe,
    precision: Precision,
    rows: Rows,
    ranks: Ranks,
    *,
    cache: Path | None,
    top_k: int,
    report: Callable[[float, str], None],
) -> list[Teacher]:
    """For every stage the parent, or what a cache holds of it, which is filled first."""

    def live() -> LiveTeacher:
        load = load_sharded_teacher if ranks.sharded else load_parent
        return LiveTeacher(load(files, ranks.device, DTYPES[precision]), recipe.losses, precision)

    if cache is None:
        return [live()] * len(recipe.stages)
    teachers: list[Teacher] = []
    for stage, packed in zip(recipe.stages, rows.packed, strict=True):
        key = CacheKey(
            teacher=files.fingerprint,
            rows=packed.fingerprint,
            length=stage.length,
            k=top_k,
            temperature=recipe.losses.temperature,
            precision=precision,
        )
        folder = key.folder(cache)
        fill_cache(folder, key, packed.all_rows, live, ranks, lambda share: report(0.0, f"the parent, {share:.0%}"))
        teachers.append(CachedTeacher(folder))
    return teachers


def load_child(folder: Path, files: ParentFiles, ranks: Ranks) -> Any:
    """The child to train in float32, or what takes its weights from process 0 when it is sharded."""
    if ranks.loads_weights:
        return load_causal_lm(folder, dtype=torch.float32).requires_grad_(requires_grad=True)
    return empty_parent(replace(files, folder=folder), torch.float32).requires_grad_(requires_grad=True)
