"""Iterations whose durations can be worked out by hand, and which write down what they were asked."""

import numpy as np
import pytest

from puzzlebench.serving.cache import PagedCache
from puzzlebench.serving.iterations import IterationCosts, Overheads


class PlainCosts:
    """`step` ms for an iteration, `decode` ms more for each decoding sequence, `prompt` ms for each prompt token."""

    def __init__(self, *, step=10.0, decode=0.0, prompt=0.01, request_ms=0.0):
        self.step, self.decode, self.prompt = step, decode, prompt
        self.overheads = Overheads(request_ms=request_ms)
        self.asked = []

    def iteration_ms(self, decodes, context, parts=()):
        self.asked.append((decodes, context, list(parts)))
        return self.step + self.decode * decodes + self.prompt * sum(now for _, now in parts)

    def mixed_ms(self, decodes, context, prompts, length):
        return self.step + self.decode * decodes + self.prompt * prompts * length

    prompt_ms = IterationCosts.prompt_ms


def cache_of(tokens, tokens_per_block=1):
    """A cache for so many tokens, a byte each."""
    return PagedCache(float(tokens), np.array([float(tokens_per_block)]), np.array([np.inf]), tokens_per_block)


@pytest.fixture
def plain():
    return PlainCosts


@pytest.fixture
def cache():
    return cache_of
