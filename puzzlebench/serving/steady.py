"""The steady state of a served model, solved directly: how many sequences decode, and what a request waits for.

Requests come one by one, at times that have nothing to do with each other (lengths differ, or users do). An iteration
holds the prompts that came during the one before it; all others decode only. With n decoding sequences, g prompts that
run together, k iterations for each (parts of a long prompt) and answers of D tokens, n k / (g (D - 1)) of the
iterations are mixed, whatever they cost. Fixed numbers of users make the rate of requests a result; a given rate makes
n one.

Not here: the first wave of a benchmark whose users all begin at once, and users that stay in step because lengths are
alike (their prompts meet less often); `serving.simulate` has both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from puzzlebench.serving.cache import PagedCache
from puzzlebench.serving.iterations import IterationCosts
from puzzlebench.serving.workload import Scheduler, Workload

_ROUNDS: Final = 200
_CLOSE: Final = 1e-8


@dataclass(frozen=True, kw_only=True, slots=True)
class SteadyState:
    """Where a served model settles. Times are in milliseconds, means over requests or iterations.

    Attributes:
        decoding: sequences that decode.
        context: tokens that each of them has in the cache.
        prompts: that run together when any do; `chunks`: iterations that each takes.
        mixed_share: of the iterations, those with prompts; `seen_share`: those with prompts of others, as a decoding
            sequence sees them.
        decode_iteration_ms, mixed_iteration_ms: of either kind.
        tpot_ms, ttft_ms: time per further token, and to the first one, waiting included.
        way_ms: of `ttft_ms`, the overhead of a request (server, tokenizer, way there and back).
        wait_ms: of `ttft_ms`, for the iteration that begins its prompt, a place in the batch given.
        queue_ms: of `ttft_ms`, until there is a place in the batch or the cache.
        requests_per_s: of the whole tensor-parallel group.
        slots: sequences that the batch and the cache have place for.
        limit: what bounds the sequences in flight: "users", "cache", "batch size", "iteration size" or, where prompts
            come as fast as they can be run, "prefill".
    """

    decoding: float
    context: float
    prompts: float
    chunks: int
    mixed_share: float
    seen_share: float
    decode_iteration_ms: float
    mixed_iteration_ms: float
    tpot_ms: float
    ttft_ms: float
    way_ms: float
    wait_ms: float
    queue_ms: float
    requests_per_s: float
    slots: float
    limit: str


def solve(costs: IterationCosts, cache: PagedCache, scheduler: Scheduler, workload: Workload) -> SteadyState:
    """The steady state of a workload.

    Raises:
        ValueError: a sequence does not fit in the cache, answers are of one token, or requests come faster than they
            can be served (the message names the most).
    """
    return _Solver(costs, cache, scheduler, workload).solve()


@dataclass(frozen=True, slots=True)
class _Flow:
    """What n decoding sequences ask of the iterations."""

    rate: float  # requests per millisecond
    prompts: float
    mixed: float  # of the iterations, those with prompts
    decode_ms: float
    episode_ms: float  # all iterations of a group of prompts
    seen: float  # of the iterations that a sequence decodes in, those with prompts
    tpot_ms: float
    hold_ms: float  # prompts are held back for so long on average


class _Solver:
    def __init__(self, costs: IterationCosts, cache: PagedCache, scheduler: Scheduler, workload: Workload) -> None:
        self.costs, self.scheduler, self.workload = costs, scheduler, workload
        self.prefill, self.steps = workload.prefill.mean, workload.decode.mean - 1
        self.context = workload.mean_context
        if self.steps < 1:
            raise ValueError("answers of one token have no time per output token; give a longer --decode")
        held = self.prefill + workload.decode.mean if scheduler.reserves else self.context
        fits = cache.sequences(held)
        if fits < 1:
            raise ValueError(f"a sequence of {held:.0f} tokens does not fit in the cache; use more GPUs (--tp)")
        bounds = {"cache": fits, "batch size": float(scheduler.max_batch_size)}
        if scheduler.mixes:
            # The last to join may fill the iteration; a whole prompt that is longer runs when nothing decodes.
            prompt = 1 if scheduler.chunked else workload.prefill.high
            bounds["iteration size"] = float(max(1, scheduler.max_num_tokens - prompt + 1))
        self.bound = min(bounds, key=lambda name: bounds[name])
        self.slots = bounds[self.bound]
        users = workload.concurrency
        self.others = 1.0 if users is None else 1 - 1 / users  # of all prompts, those that are not a user's own

    def solve(self) -> SteadyState:
        if self.workload.request_rate is not None:
            return self._at_rate(self.workload.request_rate / 1e3)
        users = self.workload.concurrency or 0
        in_flight = min(self.slots, float(users))
        flow, decoding = self._with_in_flight(in_flight)
        missing = in_flight - self._in_flight(flow, decoding)
        saturated = missing > 1e-6 * in_flight
        queue = (users - in_flight + (missing if saturated else 0.0)) / flow.rate
        limit = "prefill" if saturated else self.bound if users > in_flight else "users"
        return self._state(flow, decoding, queue=queue, limit=limit)

    def _with_in_flight(self, wanted: float) -> tuple[_Flow, float]:
        """(flow, decoding sequences) with so many in flight, or with as many as prompts can feed."""
        most = min(wanted, self._saturated_decoding(wanted))
        flow = self._flow(most)
        if self._in_flight(flow, most) < wanted:
            return flow, most
        decoding = _bisect(lambda n: self._in_flight(self._flow(n), n) - wanted, 0.0, most)
        return self._flow(decoding), decoding

    def _at_rate(self, rate: float) -> SteadyState:
        full, most = self._with_in_flight(math.floor(self.slots))
        if rate >= full.rate:
            raise ValueError(
                f"{1e3 * rate:g} requests/s are more than can be served: {1e3 * full.rate:.3g} at the most, with "
                f"{most:.0f} sequences decoding ({self.bound}); lower --request-rate"
            )
        decoding = _bisect(lambda n: self._flow(n).rate - rate, 0.0, most)
        flow = self._flow(decoding)
        stay = self._wait(flow, decoding) + flow.episode_ms + self.steps * flow.tpot_ms
        answers = self.workload.decode
        variation = answers.mean_square / answers.mean**2 - 1
        queue = _wait_for_place(rate, stay, math.floor(self.slots), variation)
        return self._state(flow, decoding, queue=queue, limit=self.bound if queue > 1.0 else "users")

    def _chunks(self, decoding: float) -> int:
        if not self.scheduler.chunked:
            return 1
        return math.ceil(self.prefill / self._budget(decoding))

    def _budget(self, decoding: float) -> float:
        """Tokens of an iteration that prompts can have."""
        return max(1.0, self.scheduler.max_num_tokens - (decoding if self.scheduler.mixes else 0.0))

    def _most_prompts(self, decoding: float) -> float:
        return max(1.0, math.floor(self._budget(decoding) / self.prefill))

    def _saturated_decoding(self, most: float) -> float:
        """Sequences that decode when every iteration runs as many prompts as it can."""

        def room(decoding: float) -> float:
            return decoding - self._most_prompts(decoding) / self._chunks(decoding) * self.steps

        if not self.scheduler.mixes or room(most) <= 0:
            return most
        return _bisect(room, 0.0, most)

    def _episode_ms(self, decoding: float, prompts: float, chunks: int) -> float:
        beside = decoding * self.others if self.scheduler.mixes else 0.0
        return sum(self.costs.prompt_ms(beside, self.context, prompts, self.prefill, chunks))

    def _flow(self, decoding: float) -> _Flow:
        """What so many decoding sequences ask of the iterations; the prompts that run together by a fixed point."""
        chunks, most = self._chunks(decoding), self._most_prompts(decoding)
        decode_ms = self.costs.iteration_ms(decoding, self.context)
        rate, flow = decoding / (self.steps * decode_ms), None
        for number in range(_ROUNDS):
            prompts, hold = self._together(rate, decode_ms, flow, most)
            episode = self._episode_ms(decoding, prompts, chunks)
            # A token of each sequence in each iteration that it decodes in, so many requests end with each of them.
            per_token = decoding / (self.steps * prompts)  # groups of prompts
            if self.scheduler.mixes:
                mixed, seen = (min(1.0, per_token * chunks * part) for part in (1.0, self.others))
                tpot = seen * episode / chunks + (1 - seen) * decode_ms
            else:
                seen, tpot = 0.0, decode_ms + per_token * self.others * episode
                mixed = per_token * chunks / (1 + per_token * chunks)
            wanted = decoding / (self.steps * tpot)
            flow = _Flow(wanted, prompts, mixed, decode_ms, episode, seen, tpot, hold)
            if abs(wanted - rate) <= _CLOSE * rate:
                break
            rate = wanted if number < _ROUNDS // 4 else (rate + wanted) / 2  # damped if it swings
        assert flow is not None
        return flow

    def _together(self, rate: float, decode_ms: float, flow: _Flow | None, most: float) -> tuple[float, float]:
        """(prompts that run together, for how long they are held back on average)."""
        scheduler = self.scheduler
        if scheduler.wait_iterations:
            enough = min(most, max(1.0, scheduler.wait_share * self._budget(0.0) / self.prefill))
            window = scheduler.wait_iterations * decode_ms
            prompts = min(enough, 1 + rate * window)
            window = min(window, (prompts - 1) / rate)
            return prompts, window * (prompts + 1) / (2 * prompts)  # the first waits for all of it, the last not at all
        if flow is None:
            return 1.0, 0.0
        some = [-math.expm1(-rate * duration) for duration in (decode_ms, flow.episode_ms)]
        share = some[0] / (1 + some[0] - some[1])  # of episodes that follow one with an arrival
        mean = share * flow.episode_ms + (1 - share) * decode_ms
        return min(most, max(1.0, rate * mean / share)), 0.0

    def _in_flight(self, flow: _Flow, decoding: float) -> float:
        return decoding + flow.rate * (self._wait(flow, decoding) + flow.episode_ms)

    def _wait(self, flow: _Flow, decoding: float) -> float:
        """From the request, its overhead included, to the iteration that begins its prompt."""
        request = self.costs.overheads.request_ms
        part = flow.episode_ms / self._chunks(decoding)
        mixed = flow.mixed
        line, busy = self._line(flow, decoding)
        if line:  # who finds prompts before him waits for them, others for the end of a decode iteration
            part, mixed = 0.0, busy
        if self.workload.request_rate is None:
            # Sent when an answer has ended, and so while the next iteration runs already.
            mean = mixed * part + (1 - mixed) * flow.decode_ms
            return _whole_iterations(request / mean) * mean + line + flow.hold_ms
        squares, mean = (mixed * part**k + (1 - mixed) * flow.decode_ms**k for k in (2, 1))
        return request + squares / (2 * mean) + line + flow.hold_ms

    def _line(self, flow: _Flow, decoding: float) -> tuple[float, float]:
        """(wait for other prompts where no more can run together, share of the time that prompts run then)."""
        most = self._most_prompts(decoding)
        if flow.prompts < most:
            return 0.0, 0.0
        # With a line the budget of each iteration is used up, so a prompt takes a fraction of its last iteration.
        service = flow.episode_ms * min(1.0, self.prefill / self._budget(decoding) / self._chunks(decoding)) / most
        busy = min(1.0, flow.rate * service)
        if self.workload.request_rate is not None:
            return (busy * service / (2 * (1 - busy)) if busy < 1 else math.inf), busy
        users = round(min(self.slots, self.workload.concurrency or 1))
        return _closed_line(service, self.steps * flow.tpot_ms, users), busy

    def _state(self, flow: _Flow, decoding: float, *, queue: float, limit: str) -> SteadyState:
        chunks, wait = self._chunks(decoding), self._wait(flow, decoding)
        return SteadyState(
            decoding=decoding,
            context=self.context,
            prompts=flow.prompts,
            chunks=chunks,
            mixed_share=flow.mixed,
            seen_share=flow.seen,
            decode_iteration_ms=flow.decode_ms,
            mixed_iteration_ms=flow.episode_ms / chunks,
            tpot_ms=flow.tpot_ms,
            ttft_ms=queue + wait + flow.episode_ms,
            way_ms=self.costs.overheads.request_ms,
            wait_ms=wait - self.costs.overheads.request_ms,
            queue_ms=queue,
            requests_per_s=1e3 * flow.rate,
            slots=self.slots,
            limit=limit,
        )


def _whole_iterations(request: float) -> float:
    """Iterations that go by until the first one that begins after a time, in iterations; the time differs by half."""

    def up_to(end: float) -> float:  # the integral of the next whole number
        whole = math.floor(end)
        return whole * (whole + 1) / 2 + (end - whole) * (whole + 1)

    return (up_to(1.5 * request) - up_to(0.5 * request)) / request if request > 0 else 0.0


def _wait_for_place(rate: float, stay: float, places: int, variation: float) -> float:
    """The mean wait of requests that come at random for one of so many places.

    Erlang's C formula for stays of exponential length, times the usual correction for others (Lee and Longton 1959).

    Args:
        rate, stay: requests per time, and the time that each holds a place.
        variation: squared coefficient of variation of the stay.
    """
    busy = rate * stay
    if busy >= places:
        return math.inf
    blocked = 1.0  # Erlang's B, from 0 places on
    for place in range(1, places + 1):
        blocked = busy * blocked / (place + busy * blocked)
    waits = blocked / (1 - busy / places * (1 - blocked))
    return waits * stay / (places - busy) * (1 + variation) / 2


def _closed_line(service: float, elsewhere: float, users: int) -> float:
    """The mean wait before a server of equal service times that so many users come back to after a time elsewhere.

    Mean value analysis, a user sees what the others alone would make; the one being served has half of it left.
    """
    waiting = busy = 0.0  # mean number in the line and in service
    wait = 0.0
    for count in range(1, users + 1):
        wait = service * (waiting + busy / 2)
        rate = count / (elsewhere + wait + service)
        waiting, busy = rate * wait, min(1.0, rate * service)
    return wait


def _bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that rises crosses 0."""
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
        if high - low <= _CLOSE * high:
            break
    return (low + high) / 2
