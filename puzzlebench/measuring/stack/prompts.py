"""Random prompts that never repeat, and the checks of a run's size. Knows no engine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from puzzlebench.model.checks import require_positive_int


class RandomPrompts:
    """Token ids drawn afresh on every call, reproducible from the seed."""

    def __init__(self, vocab_size: int, *, seed: int = 0) -> None:
        require_positive_int("vocab_size", vocab_size)
        self._vocab_size = vocab_size
        self._generator = np.random.default_rng(seed)

    def draw(self, batch_size: int, prompt_len: int) -> NDArray[np.int64]:
        """Token ids, [batch_size, prompt_len]."""
        return self._generator.integers(self._vocab_size, size=(batch_size, prompt_len), dtype=np.int64)


def check_run(*, batch_size: int, prompt_len: int, new_tokens: int, max_batch_size: int, max_seq_len: int) -> None:
    """Raise ValueError unless a run fits what the model was loaded for."""
    for name, value in (("batch_size", batch_size), ("prompt_len", prompt_len), ("new_tokens", new_tokens)):
        require_positive_int(name, value)
    if batch_size > max_batch_size:
        raise ValueError(f"batch_size {batch_size} is over the {max_batch_size} sequences the model was loaded for")
    if prompt_len + new_tokens > max_seq_len:
        raise ValueError(
            f"{prompt_len} prompt and {new_tokens} new tokens are over the {max_seq_len} the model was loaded for"
        )
