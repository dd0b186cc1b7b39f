"""A workload served iteration by iteration, event by event: the check of the steady state, and replays of benchmarks.

Between two events (a prompt to run, an answer that ends, an arrival, a full cache) all iterations are alike but for
contexts that grow by a token each, so they are taken in one go at their middle.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from puzzlebench.profiling.arrays import FloatArray
from puzzlebench.serving.cache import PagedCache
from puzzlebench.serving.iterations import IterationCosts
from puzzlebench.serving.workload import Scheduler, Workload


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """What every request saw, all (requests,), in the order they arrived.

    Attributes:
        arrivals_ms, ttft_ms, tpot_ms: when it arrived, time to its first token, time per further token (NaN of none).
        decode_len: tokens of its answer.
        seconds: from the first arrival to the last token.
        evictions: sequences that lost their cache on the way and were prefilled again.
    """

    arrivals_ms: FloatArray
    ttft_ms: FloatArray
    tpot_ms: FloatArray
    prefill_len: FloatArray
    decode_len: FloatArray
    seconds: float
    evictions: int

    @property
    def generated_tokens_per_s(self) -> float:
        """Of the whole group, over all of the time, filling and draining included."""
        return float(self.decode_len.sum() / self.seconds)


@dataclass(slots=True, eq=False)
class _Request:
    number: int
    arrival: float
    prefill: int
    decode: int
    context: int = 0  # tokens in the cache
    produced: int = 0
    first: float = field(default=np.nan)

    @property
    def to_fill(self) -> int:
        """Tokens that must be in the cache before the next one comes out: the prompt, and what an eviction lost."""
        return self.prefill + self.produced


def simulate(
    costs: IterationCosts, cache: PagedCache, scheduler: Scheduler, workload: Workload, *, requests: int, seed: int = 0
) -> Served:
    """Serve so many requests, all users beginning at once or at random times.

    Raises:
        ValueError: a request alone does not fit in the cache.
    """
    if cache.sequences(workload.prefill.high + workload.decode.high) < 1:
        longest = workload.prefill.high + workload.decode.high
        raise ValueError(f"a sequence of {longest} tokens does not fit in the cache")
    return _Simulation(costs, cache, scheduler, workload, requests, np.random.default_rng(seed)).run()


class _Simulation:
    def __init__(
        self,
        costs: IterationCosts,
        cache: PagedCache,
        scheduler: Scheduler,
        workload: Workload,
        requests: int,
        random: np.random.Generator,
    ) -> None:
        self.costs, self.cache, self.scheduler, self.workload = costs, cache, scheduler, workload
        prompts, answers = workload.prefill.draw(requests, random), workload.decode.draw(requests, random)
        if workload.request_rate is None:
            arrivals = np.zeros(requests)
            self.begun = min(requests, workload.concurrency or 0)
        else:
            arrivals = np.cumsum(random.exponential(1e3 / workload.request_rate, size=requests))
            self.begun = requests
        self.all = [
            _Request(number, at, int(p), int(d))
            for number, (at, p, d) in enumerate(zip(arrivals, prompts, answers, strict=True))
        ]
        self.coming = deque(self.all[: self.begun])  # sent and not yet at the scheduler
        self.waiting: deque[_Request] = deque()
        self.filling: deque[_Request] = deque()  # admitted, prompt not finished
        self.decoding: list[_Request] = []
        self.now = 0.0
        self.held = 0  # iterations that prompts were held back
        self.evictions = 0
        self.finished: list[float] = [0.0] * requests

    def run(self) -> Served:
        """Until the last answer ends."""
        while self.coming or self.waiting or self.filling or self.decoding:
            self._arrive()
            parts = self._prompt_parts()
            if parts:
                self._mixed(parts)
            elif self.decoding:
                self._decode(self._steps_until_event())
            else:
                self.now = max(self.now, self.coming[0].arrival + self.costs.overheads.request_ms)
        return self._served()

    def _arrive(self) -> None:
        while self.coming and self.coming[0].arrival + self.costs.overheads.request_ms <= self.now:
            self.waiting.append(self.coming.popleft())

    def _used(self) -> float:
        if self.scheduler.reserves:
            held = [one.prefill + one.decode for one in (*self.decoding, *self.filling)]
        else:
            held = [one.context + 1 for one in self.decoding] + [one.to_fill for one in self.filling]
        return float(self.cache.bytes(held).sum()) if held else 0.0

    def _prompt_parts(self) -> list[tuple[_Request, int]]:
        """Prompts, or parts of them, of the next iteration."""
        scheduler = self.scheduler
        if not (self.waiting or self.filling):
            return []
        left = scheduler.max_num_tokens - (len(self.decoding) if scheduler.mixes else 0)
        if self._hold_back(left):
            return []
        parts: list[tuple[_Request, int]] = []
        for one in self.filling:  # only chunks leave any
            now = min(one.to_fill - one.context, left)
            if now > 0:
                parts.append((one, now))
                left -= now
        used, in_flight = self._used(), len(self.decoding) + len(self.filling)
        while self.waiting and in_flight < scheduler.max_batch_size and left > 0:
            one = self.waiting[0]
            tokens = one.prefill + one.decode if scheduler.reserves else one.to_fill
            needs = float(self.cache.bytes(tokens))
            now = min(one.to_fill, left) if scheduler.chunked else one.to_fill
            whole_alone = not parts and one.to_fill > scheduler.max_num_tokens
            if used + needs > self.cache.capacity_bytes or (now > left and not whole_alone):
                break
            self.filling.append(self.waiting.popleft())
            parts.append((one, now))
            used, in_flight, left = used + needs, in_flight + 1, left - now
        return parts

    def _hold_back(self, left: int) -> bool:
        """Whether prompts wait for more of them (only while something decodes)."""
        scheduler = self.scheduler
        if not self.decoding or self.filling or self.held >= scheduler.wait_iterations:
            return False
        return sum(one.to_fill for one in self.waiting) < scheduler.wait_share * left

    def _mixed(self, parts: list[tuple[_Request, int]]) -> None:
        self.held = 0
        beside = self.decoding if self.scheduler.mixes else []
        context = sum(one.context for one in beside) / len(beside) if beside else 1.0
        cut = [(one.context, now) for one, now in parts]
        self.now += self.costs.iteration_ms(len(beside), context, cut)
        self._advance(list(beside), 1)
        for one, now in parts:
            one.context += now
            if one.context >= one.to_fill:
                self.filling.remove(one)
                self.decoding.append(one)
                self._advance([one], 1, in_cache=False)
        self._evict()

    def _steps_until_event(self) -> int:
        steps = min(one.decode - one.produced for one in self.decoding)
        batch = len(self.decoding)
        context = sum(one.context for one in self.decoding) / batch
        if self.waiting and self.scheduler.wait_iterations > self.held:
            steps = min(steps, self.scheduler.wait_iterations - self.held)
        if not self.scheduler.reserves:
            steps = min(steps, self._steps_that_fit(steps))
        if self.coming:
            until = self.coming[0].arrival + self.costs.overheads.request_ms - self.now
            each = self.costs.iteration_ms(batch, context + steps / 2)
            steps = min(steps, max(1, int(np.ceil(until / each))))
        return steps

    def _steps_that_fit(self, most: int) -> int:
        contexts = np.array([one.context for one in self.decoding])
        low, high = 1, most
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.cache.bytes(contexts + middle).sum() <= self.cache.capacity_bytes
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

    def _decode(self, steps: int) -> None:
        batch = len(self.decoding)
        context = sum(one.context for one in self.decoding) / batch
        self.now += steps * self.costs.iteration_ms(batch, context + (steps - 1) / 2)
        self.held += steps if self.waiting else 0
        self._advance(list(self.decoding), steps)
        self._evict()

    def _advance(self, requests: list[_Request], steps: int, *, in_cache: bool = True) -> None:
        """Give tokens to sequences; those whose answer ends leave, and their users send the next request."""
        for one in requests:
            one.produced += steps
            one.context += steps if in_cache else 0
            if np.isnan(one.first):
                one.first = self.now
            if one.produced >= one.decode:
                self.decoding.remove(one)
                self.finished[one.number] = self.now
                if self.begun < len(self.all):
                    following = self.all[self.begun]
                    following.arrival = self.now
                    self.coming.append(following)
                    self.begun += 1

    def _evict(self) -> None:
        if self.scheduler.reserves:
            return
        while len(self.decoding) > 1 and self._used() > self.cache.capacity_bytes:
            youngest = max(self.decoding, key=lambda one: one.number)
            self.decoding.remove(youngest)
            youngest.context = 0
            self.waiting.appendleft(youngest)
            self.evictions += 1

    def _served(self) -> Served:
        arrivals = np.array([one.arrival for one in self.all])
        first = np.array([one.first for one in self.all])
        answers = np.array([one.decode for one in self.all], dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            tpot = (np.array(self.finished) - first) / (answers - 1)
        return Served(
            arrivals_ms=arrivals,
            ttft_ms=first - arrivals,
            tpot_ms=np.where(answers > 1, tpot, np.nan),
            prefill_len=np.array([one.prefill for one in self.all], dtype=np.float64),
            decode_len=answers,
            seconds=(max(self.finished) - float(arrivals.min())) / 1e3,
            evictions=self.evictions,
        )
