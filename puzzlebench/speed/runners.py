"""Runners: a checkpoint that really generates, and the times it takes. No statistics here.

`torch` runs the sub-blocks of the live cost table (`measuring.sub_blocks` on `measuring.ops`) with the checkpoint's own
weights; `transformers` runs the model as transformers does, its overhead included. Neither uses CUDA graphs: on a GPU
small models are then bound by the host's launches, which a table measured under graphs leaves out.

Legend: B sequences, P prompt tokens, D generated tokens.
"""

from __future__ import annotations

import importlib.metadata
import time
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn

from puzzlebench.measuring.ops import AttentionStep, DenseCache, TorchOps, rotation_of
from puzzlebench.measuring.sub_blocks import Stream, run_embedding, run_head, run_sub_block
from puzzlebench.model.blocks import GQA, Architecture
from puzzlebench.model.spec import ModelSpec
from puzzlebench.profiling.block_costs import Phase
from puzzlebench.speed.loading import LoadedModel, take_weights

SpeedEngine: TypeAlias = Literal["torch", "transformers"]
ENGINES: Final[tuple[SpeedEngine, ...]] = ("torch", "transformers")


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """One generation of the whole batch, milliseconds.

    Attributes:
        prefill_ms: from the prompts to the first tokens, the largest logit's search included.
        decode_ms: the D - 1 steps after it.
        generate_ms: from the prompts to the last tokens.
        tokens: [B, D], on the CPU.
    """

    prefill_ms: float
    decode_ms: float
    generate_ms: float
    tokens: Tensor


class Runner(Protocol):
    """A model with its prompts in place."""

    def prefill(self) -> None:
        """Run the prompts alone."""

    def generate(self) -> Timed:
        """Run the prompts, then greedily decode."""


def engine_version(engine: SpeedEngine) -> str:
    """The version of what runs."""
    if engine == "torch":
        return torch.__version__
    return f"{importlib.metadata.version('transformers')}+torch{torch.__version__}"


def open_runner(
    engine: SpeedEngine, model: nn.Module, spec: ModelSpec, architecture: Architecture, prompts: Tensor, decode_len: int
) -> Runner:
    """The runner of an engine; it may take the model's tensors, so let the model go.

    Args:
        model: of transformers, on the device and in the dtype it is to run in.
        prompts: [B, P].

    Raises:
        ValueError: the engine cannot run the model.
    """
    if engine == "torch":
        return TorchRunner(take_weights(model, spec, architecture), prompts, decode_len)
    return TransformersRunner(model, prompts, decode_len)


Attention: TypeAlias = tuple[DenseCache, AttentionStep]


class TorchRunner:
    """The operations of the cost table with a cache that grows.

    Each layer's cache is made for all P + D tokens, and what a step sees of it is a view made in advance, as a serving
    engine prepares its step: a window is a view of the last tokens only (its memory is not saved here).
    """

    def __init__(self, model: LoadedModel, prompts: Tensor, decode_len: int) -> None:
        self._model, self._prompts, self._decode_len = model, prompts, decode_len
        batch, length = prompts.shape
        table = model.embedding.matrices["embedding"].weight
        self._device, dtype = table.device, table.dtype
        self._ops = TorchOps(dtype, model.norm_epsilon)
        self._last = torch.arange(batch, device=self._device) * length + length - 1
        rotation = rotation_of(model.frequencies, length + decode_len, attention_scale=model.attention_scale)
        angles = tuple(angle[:, None].to(dtype) for angle in rotation)
        subs = [sub for sub, _ in model.layers if isinstance(sub, GQA)]
        rest = (length + decode_len, model.spec.head_dim)
        storages = [
            torch.zeros((2, batch, sub.num_key_value_heads, *rest), dtype=dtype, device=self._device) for sub in subs
        ]
        lengths = range(length, length + decode_len)
        self._steps: list[list[Attention]] = [
            [
                self._view(sub, storage, angles, rotation, "decode" if place else "prefill", seen)
                for sub, storage in zip(subs, storages, strict=True)
            ]
            for place, seen in enumerate(lengths)
        ]

    def prefill(self) -> None:
        """Run the prompts alone."""
        self._prompt()
        synchronise(self._device)

    def generate(self) -> Timed:
        """Prefill and decode."""
        synchronise(self._device)
        began = time.perf_counter_ns()
        tokens = self._prompt()
        synchronise(self._device)
        first = time.perf_counter_ns()
        found = [tokens]
        for attentions in self._steps[1:]:
            stream = self._layers(run_embedding(self._model.embedding, tokens), attentions)
            tokens = run_head(self._ops, self._model.head, stream)
            found.append(tokens)
        synchronise(self._device)
        ended = time.perf_counter_ns()
        return _timed(began, first, ended, torch.stack(found, dim=1))

    def _prompt(self) -> Tensor:
        stream = self._layers(run_embedding(self._model.embedding, self._prompts.reshape(-1)), self._steps[0])
        residual = None if stream.residual is None else stream.residual[self._last]
        return run_head(self._ops, self._model.head, Stream(delta=stream.delta[self._last], residual=residual))

    def _layers(self, stream: Stream, attentions: list[Attention]) -> Stream:
        mine = iter(attentions)
        for sub, weights in self._model.layers:
            attention = next(mine) if isinstance(sub, GQA) else None
            stream = run_sub_block(self._ops, self._model.spec, sub, weights, stream, attention)
        return stream

    def _view(
        self,
        sub: GQA,
        storage: Tensor,
        angles: tuple[Tensor, ...],
        rotation: tuple[Tensor, Tensor],
        phase: Phase,
        length: int,
    ) -> Attention:
        step = AttentionStep(
            phase=phase,
            batch_size=self._prompts.shape[0],
            length=length,
            num_heads=self._model.spec.num_attention_heads,
            num_kv_heads=sub.num_key_value_heads,
            head_dim=self._model.spec.head_dim,
            window=sub.sliding_window,
            rotation=rotation,
        )
        keys, values = storage[:, :, :, length - step.cached : length]
        cosine, sine = (angle[(0 if phase == "prefill" else length - 1) : length] for angle in angles)
        return DenseCache(keys=keys, values=values, cosine=cosine, sine=sine), step


class TransformersRunner:
    """transformers' forward with a dynamic cache for prefill and per-token times, its `generate` for the whole."""

    def __init__(self, model: nn.Module, prompts: Tensor, decode_len: int) -> None:
        self._model: Any = model
        self._prompts, self._decode_len = prompts, decode_len

    def prefill(self) -> None:
        """Run the prompts alone."""
        self._forward(self._prompts, {})
        synchronise(self._prompts.device)

    def generate(self) -> Timed:
        """Prefill and decode step by step, then all again by `generate`, whose tokens are given."""
        device = self._prompts.device
        synchronise(device)
        began = time.perf_counter_ns()
        tokens, cache = self._forward(self._prompts, {})
        synchronise(device)
        first = time.perf_counter_ns()
        for _ in range(self._decode_len - 1):
            tokens, cache = self._forward(tokens, cache)
        synchronise(device)
        stepped = time.perf_counter_ns()
        found = greedy_tokens(self._model, self._prompts, self._decode_len)
        synchronise(device)
        ended = time.perf_counter_ns()
        timed = _timed(began, first, stepped, found)
        return Timed(
            prefill_ms=timed.prefill_ms,
            decode_ms=timed.decode_ms,
            generate_ms=(ended - stepped) / 1e6,
            tokens=timed.tokens,
        )

    def _forward(self, ids: Tensor, cache: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The next token of every sequence, [B, 1], and the cache by the name it has in this version."""
        output = self._model(input_ids=ids, use_cache=True, logits_to_keep=1, **cache)
        name = "cache" if "cache" in output else "past_key_values"
        return output.logits[:, -1:].argmax(dim=-1), {name: output[name]}


def greedy_tokens(model: nn.Module, prompts: Tensor, decode_len: int) -> Tensor:
    """What transformers' own `generate` gives greedily, [B, D]; end tokens end nothing."""
    any_model: Any = model
    config = any_model.generation_config
    kept = config.eos_token_id, config.pad_token_id
    config.eos_token_id, config.pad_token_id = None, 0  # nothing is padded; None makes it ask
    try:
        found = any_model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            num_beams=1,
            max_new_tokens=decode_len,
            use_cache=True,
        )
    finally:
        config.eos_token_id, config.pad_token_id = kept
    return cast("Tensor", found[:, prompts.shape[1] :])


def synchronise(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(began: int, first: int, ended: int, tokens: Tensor) -> Timed:
    return Timed(
        prefill_ms=(first - began) / 1e6,
        decode_ms=(ended - first) / 1e6,
        generate_ms=(ended - began) / 1e6,
        tokens=tokens.cpu(),
    )
