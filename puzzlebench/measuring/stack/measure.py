"""A block's latency in an engine: write the two stacks, load them, run them in turn, take the slope.

Prefill is a run that answers with one token. Decode is what further tokens cost, per token: the difference between an
answer of d tokens and one of f, over d - f, where f is 1 unless said otherwise; the context of those steps is on
average the prompt plus (f + d - 1) / 2. An engine that is given requests one by one begins with part of the batch and
ends with part of it; with f beyond those first steps both answers hold them alike.

Blocks in `head` come first in both stacks, so they are part of the intercept and not of the slope: they carry what an
engine cannot have in its first layer, or the one layer with a key-value cache that it needs.

Repeats alternate N, 2N, 2N, N, ..., so a steady drift of the clocks shifts neighbouring repeats in opposite directions.
Both models stay loaded where they fit together; where they do not, each is loaded for the two visits that follow each
other, and warmed up again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from puzzlebench.measuring.stack.checkpoint import write_checkpoint
from puzzlebench.measuring.stack.engine import LoadedModel, StackEngine
from puzzlebench.measuring.stack.layouts import Layout
from puzzlebench.measuring.stack.slope import Slope, slope_from_runs
from puzzlebench.model.blocks import Architecture, Block, NoOp, sub_block_name
from puzzlebench.model.checks import require_positive_int
from puzzlebench.model.spec import ModelSpec

_Size: TypeAlias = Literal["small", "large"]
_WARM_UPS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class StackTimings:
    """One block at one batch and prompt length.

    Attributes:
        mean_context: tokens in the cache, the current one included, averaged over the decode steps.
        prefill: per block and prompt of the whole batch.
        decode: per block and step of the whole batch.
    """

    batch_size: int
    prompt_len: int
    mean_context: float
    prefill: Slope
    decode: Slope


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """Seconds of one visit to one model: answers of one token, of `decode_from` and of all."""

    first: float
    begun: float
    answer: float


def measure_stack(
    engine: StackEngine,
    spec: ModelSpec,
    block: Block,
    *,
    copies: int,
    batch_size: int,
    prompt_len: int,
    decode_tokens: int,
    decode_from: int = 1,
    repeats: int = 5,
    workdir: Path,
    head: tuple[Block, ...] = (),
    dtype: str = "bfloat16",
    vocab_size: int | None = None,
    layout: Layout = "decilm",
    seed: int = 0,
) -> StackTimings:
    """Latency of one block from stacks of `copies` and of twice as many.

    Args:
        spec: sizes that all layers share; its number of layers is not used.
        decode_tokens: length of the longer answer, at least 2.
        decode_from: length of the shorter one, from which decode steps are counted.
        workdir: the two checkpoints lie there while this runs.
        head: blocks that both stacks begin with.
        dtype, vocab_size, layout, seed: as in `write_checkpoint`; a small vocabulary shortens the runs.

    Raises:
        StackRefused: the runs do not show a positive time per block.
        torch.OutOfMemoryError: the larger stack does not fit.
        ValueError: the engine cannot run it, or a size is not possible.
    """
    for name, value in (("copies", copies), ("batch_size", batch_size), ("prompt_len", prompt_len)):
        require_positive_int(name, value)
    for name, value in (("decode_tokens", decode_tokens), ("repeats", repeats)):
        require_positive_int(name, value)
        if value < 2:
            raise ValueError(f"{name} must be at least 2, not {value}")
    require_positive_int("decode_from", decode_from)
    if decode_from >= decode_tokens:
        raise ValueError(f"decode_from must be below decode_tokens {decode_tokens}, not {decode_from}")
    if block == Block(attention=NoOp(), ffn=NoOp()):
        raise ValueError("a block without attention and FFN has nothing to time; it costs nothing")
    what = f"{sub_block_name(block.attention)} + {sub_block_name(block.ffn)}, batch {batch_size}, prompt {prompt_len}"
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="stack-", dir=workdir) as place:
        folders: dict[_Size, Path] = {"small": Path(place) / "small", "large": Path(place) / "large"}
        for folder, times in zip(folders.values(), (1, 2), strict=True):
            stack = Architecture(blocks=(*head, *(block,) * (copies * times)))
            write_checkpoint(
                stack_spec(spec, len(stack.blocks), max_seq_len=prompt_len + decode_tokens),
                stack,
                folder,
                dtype=dtype,
                seed=seed,
                vocab_size=vocab_size,
                layout=layout,
            )
        with _loaded(
            engine, folders, batch_size=batch_size, prompt_len=prompt_len, answers=(1, decode_from, decode_tokens)
        ) as models:
            runs = models.repeat(repeats)
    small, large = runs["small"], runs["large"]
    steps = decode_tokens - decode_from
    return StackTimings(
        batch_size=batch_size,
        prompt_len=prompt_len,
        mean_context=prompt_len + (decode_from + decode_tokens - 1) / 2,
        prefill=slope_from_runs(
            [run.first for run in small], [run.first for run in large], copies=copies, what=f"prefill of {what}"
        ),
        decode=slope_from_runs(
            [(run.answer - run.begun) / steps for run in small],
            [(run.answer - run.begun) / steps for run in large],
            copies=copies,
            what=f"decode of {what}",
        ),
    )


def stack_spec(spec: ModelSpec, layers: int, *, max_seq_len: int) -> ModelSpec:
    """The spec with that many layers without windows, and at least `max_seq_len` positions."""
    return replace(
        spec,
        num_hidden_layers=layers,
        sliding_windows=(None,) * layers,
        max_position_embeddings=max(spec.max_position_embeddings, max_seq_len),
    )


class _Models:
    """The two stacks in an engine, together where both fit."""

    def __init__(
        self,
        engine: StackEngine,
        folders: dict[_Size, Path],
        *,
        batch_size: int,
        prompt_len: int,
        answers: tuple[int, int, int],
    ) -> None:
        self._engine = engine
        self._folders = folders
        self._batch_size = batch_size
        self._prompt_len = prompt_len
        self._answers = answers
        self._open: dict[_Size, LoadedModel] = {}
        self._together = True

    def repeat(self, repeats: int) -> dict[_Size, list[_Run]]:
        """Runs of both sizes, paired by position."""
        runs: dict[_Size, list[_Run]] = {"small": [], "large": []}
        lengths = sorted(set(self._answers))
        for repeat in range(repeats):
            forth = repeat % 2 == 0
            order: tuple[_Size, _Size] = ("small", "large") if forth else ("large", "small")
            for size in order:
                model = self._model(size)
                seconds = {length: self._seconds(model, length) for length in (lengths if forth else lengths[::-1])}
                first, begun, answer = (seconds[length] for length in self._answers)
                runs[size].append(_Run(first=first, begun=begun, answer=answer))
        return runs

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def open_both(self) -> None:
        """Load both, or find that they do not fit together."""
        self._load("small")
        try:
            self._load("large")
        except (torch.OutOfMemoryError, MemoryError):
            self._together = False

    def _model(self, size: _Size) -> LoadedModel:
        if size not in self._open:
            if not self._together:
                self.close()
            self._load(size)
        return self._open[size]

    def _load(self, size: _Size) -> None:
        model = self._engine.load(
            self._folders[size],
            max_batch_size=self._batch_size,
            max_seq_len=self._prompt_len + max(self._answers),
        )
        self._open[size] = model
        try:
            for _ in range(_WARM_UPS):
                for length in sorted(set(self._answers)):
                    self._seconds(model, length)
        except BaseException:
            self._open.pop(size).close()
            raise

    def _seconds(self, model: LoadedModel, new_tokens: int) -> float:
        return model.generate_seconds(batch_size=self._batch_size, prompt_len=self._prompt_len, new_tokens=new_tokens)


@contextmanager
def _loaded(
    engine: StackEngine,
    folders: dict[_Size, Path],
    *,
    batch_size: int,
    prompt_len: int,
    answers: tuple[int, int, int],
) -> Iterator[_Models]:
    models = _Models(engine, folders, batch_size=batch_size, prompt_len=prompt_len, answers=answers)
    try:
        models.open_both()
        yield models
    finally:
        models.close()
