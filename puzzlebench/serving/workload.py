"""Who asks for what (lengths, concurrency or rate), and how the engine schedules it. Knows no model and no GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import numpy as np

from puzzlebench.model.checks import require_positive_int
from puzzlebench.profiling.arrays import IntArray

DEFAULT_MAX_BATCH_SIZE: Final = 2048
_LENGTHS: Final = re.compile(r"(\d+)(?::(\d+))?")


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token counts, uniform over the whole numbers from `low` to `high`; fixed where these are equal."""

    low: int
    high: int

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        require_positive_int("the shortest length", self.low)
        if self.high < self.low:
            raise ValueError(f"the longest length, {self.high}, must not be below the shortest, {self.low}")

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """From `1024` or `820:1024`.

        Raises:
            ValueError: it is neither.
        """
        found = _LENGTHS.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"{text!r} is no length; give tokens such as 1024, or a range such as 820:1024")
        low = int(found[1])
        return cls(low, int(found[2] or low))

    @property
    def mean(self) -> float:
        """Mean token count."""
        return (self.low + self.high) / 2

    @property
    def mean_square(self) -> float:
        """Mean of the squared token counts."""
        span = self.high - self.low
        return self.mean**2 + span * (span + 2) / 12

    def draw(self, count: int, random: np.random.Generator) -> IntArray:
        """Token counts, (count,)."""
        return random.integers(self.low, self.high + 1, size=count)

    def __str__(self) -> str:
        """As `parse` reads it."""
        return str(self.low) if self.low == self.high else f"{self.low}:{self.high}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Requests of independent lengths, from a fixed number of users or at a rate.

    Attributes:
        prefill, decode: tokens of a prompt and of its answer.
        concurrency: users, each with one request in the system at a time.
        request_rate: requests per second at random times (Poisson). Exactly one of the two is given.
    """

    prefill: Lengths
    decode: Lengths
    concurrency: int | None = None
    request_rate: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        if (self.concurrency is None) == (self.request_rate is None):
            raise ValueError("give either a concurrency or a request rate")
        if self.concurrency is not None:
            require_positive_int("concurrency", self.concurrency)
        if self.request_rate is not None and not 0 < self.request_rate < float("inf"):
            raise ValueError(f"the request rate must be above 0, not {self.request_rate}")

    @property
    def mean_context(self) -> float:
        """Tokens in the cache of a decoding sequence, averaged over decode steps (long answers have more of them)."""
        return self.prefill.mean + self.decode.mean_square / (2 * self.decode.mean)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheduler:
    """How an engine fills its iterations.

    Attributes:
        max_num_tokens: most tokens in one iteration.
        max_batch_size: most sequences in flight.
        chunked: cuts prompts to what is left of `max_num_tokens`; else a prompt runs whole (alone if it is longer).
        mixes: decoding goes on beside prompts; else it pauses.
        reserves: admits a request only if the cache holds its whole answer; else it admits what fits now and evicts the
            youngest when pages run out.
        wait_iterations, wait_share: hold prompts back until they fill this share of `max_num_tokens`, at most for so
            many iterations (TensorRT-LLM's `batch_wait_timeout_iters` and `batch_wait_max_tokens_ratio`).
        tokens_per_block: page size of the cache.
        free_memory: a memory fraction is of what weights leave, and for the cache and workspace; else of all memory.
    """

    max_num_tokens: int = 8192
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE
    chunked: bool = False
    mixes: bool = True
    reserves: bool = True
    wait_iterations: int = 0
    wait_share: float = 0.0
    tokens_per_block: int = 32
    free_memory: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        for field in ("max_num_tokens", "max_batch_size", "tokens_per_block"):
            require_positive_int(field, getattr(self, field))
        if self.wait_iterations < 0 or not 0 <= self.wait_share <= 1:
            raise ValueError("wait_iterations must be at least 0 and wait_share from 0 to 1")


SCHEDULERS: Final[dict[str, Scheduler]] = {
    "trtllm": Scheduler(free_memory=True),
    "vllm": Scheduler(chunked=True, reserves=False, tokens_per_block=16, max_batch_size=1024),
    "sglang": Scheduler(chunked=True, mixes=False, reserves=False, tokens_per_block=1),
}
"""What each engine does by default (TensorRT-LLM 1.x, PyTorch backend; vLLM 0.19; SGLang 0.5)."""
