"""Stacks on transformers' Llama parts: eager, greedy, with a key-value cache. Runs on a CPU too.

It shows that a measurement works where no serving engine is; its latencies are those of an eager loop and say nothing
about a serving engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch

from puzzlebench.measuring.stack.prompts import RandomPrompts, check_run
from puzzlebench.measuring.stack.transformers_model import StackModel, load_model, new_cache


class TransformersEngine:
    """Loads both layouts of checkpoints.

    Args:
        device: where models run.
        clock: seconds, monotonic.
        seed: of the prompts.
    """

    name = "transformers"

    def __init__(
        self, device: torch.device | str = "cpu", *, clock: Callable[[], float] = time.perf_counter, seed: int = 0
    ) -> None:
        try:
            self.version = metadata.version("transformers")
        except metadata.PackageNotFoundError:
            raise ValueError(
                "the transformers engine needs the extra 'models': pip install puzzlebench[models]"
            ) from None
        self._device = torch.device(device)
        self._clock = clock
        self._seed = seed

    def load(self, checkpoint: Path, *, max_batch_size: int, max_seq_len: int) -> LoadedTransformers:
        """See `StackEngine.load`."""
        model = load_model(Path(checkpoint), self._device)
        return LoadedTransformers(
            model,
            device=self._device,
            clock=self._clock,
            seed=self._seed,
            max_batch_size=max_batch_size,
            max_seq_len=max_seq_len,
        )


class LoadedTransformers:
    """A stack on one device."""

    def __init__(
        self,
        model: StackModel,
        *,
        device: torch.device,
        clock: Callable[[], float],
        seed: int,
        max_batch_size: int,
        max_seq_len: int,
    ) -> None:
        self._model: StackModel | None = model
        self._device = device
        self._clock = clock
        self._prompts = RandomPrompts(model.lm_head.out_features, seed=seed)
        self._max_batch_size = max_batch_size
        self._max_seq_len = max_seq_len

    def generate_seconds(self, *, batch_size: int, prompt_len: int, new_tokens: int) -> float:
        """See `LoadedModel.generate_seconds`."""
        check_run(
            batch_size=batch_size,
            prompt_len=prompt_len,
            new_tokens=new_tokens,
            max_batch_size=self._max_batch_size,
            max_seq_len=self._max_seq_len,
        )
        prompts = torch.from_numpy(self._prompts.draw(batch_size, prompt_len)).to(self._device)
        self._wait()
        begin = self._clock()
        self.generate(prompts, new_tokens)
        self._wait()
        return self._clock() - begin

    @torch.inference_mode()
    def generate(self, prompts: torch.Tensor, new_tokens: int) -> torch.Tensor:
        """The most likely continuation, [batch, new_tokens], of prompts [batch, prompt_len]."""
        if self._model is None:
            raise ValueError("the model is closed; load it again")
        cache, ids, start = new_cache(), prompts, 0
        tokens = []
        for _ in range(new_tokens):
            hidden = self._model(ids, start=start, cache=cache)
            start += ids.shape[1]
            ids = self._model.logits(hidden[:, -1:]).argmax(dim=-1)
            tokens.append(ids)
        return torch.cat(tokens, dim=1)

    def close(self) -> None:
        """See `LoadedModel.close`."""
        self._model = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
