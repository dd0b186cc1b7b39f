"""What measures a stack: an engine that loads a checkpoint, and the model it loaded. Protocols only."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class LoadedModel(Protocol):
    """A model ready to generate."""

    def generate_seconds(self, *, batch_size: int, prompt_len: int, new_tokens: int) -> float:
        """Seconds of one run: `batch_size` random prompts of `prompt_len` tokens, `new_tokens` answered to each.

        The prompts differ from call to call, no cache of prefixes answers for them, and no token ends a sequence early.

        Raises:
            ValueError: the model was not loaded for that size.
        """

    def close(self) -> None:
        """Free the model's memory; the model is not used again."""


class StackEngine(Protocol):
    """Loads checkpoints of one engine at one version."""

    name: str
    version: str

    def load(self, checkpoint: Path, *, max_batch_size: int, max_seq_len: int) -> LoadedModel:
        """Load a checkpoint to run up to `max_batch_size` sequences of up to `max_seq_len` tokens, prompt and answer.

        Raises:
            torch.OutOfMemoryError: it does not fit.
            ValueError: the engine cannot run it.
        """
