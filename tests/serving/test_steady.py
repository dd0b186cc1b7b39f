"""The steady state against the simulation, and against what can be said of it without either."""

import numpy as np
import pytest

from puzzlebench.serving.simulate import simulate
from puzzlebench.serving.steady import solve
from puzzlebench.serving.workload import Lengths, Scheduler, Workload

LARGE = 10**9


def load(users=None, *, rate=None, prefill=(400, 600), decode=(150, 250)):
    return Workload(prefill=Lengths(*prefill), decode=Lengths(*decode), concurrency=users, request_rate=rate)


def settled(found, *, skip):
    """Means over requests that arrived after the first `skip`, and the rate at which they came, per second."""
    arrivals = found.arrivals_ms[skip:]
    rate = 1e3 * (len(arrivals) - 1) / (arrivals[-1] - arrivals[0])
    return np.nanmean(found.tpot_ms[skip:]), found.ttft_ms[skip:].mean(), rate


CASES = {
    "a few users": (load(4), Scheduler(), LARGE),
    "many users": (load(64), Scheduler(), LARGE),
    "long prompts in chunks": (
        load(16, prefill=(3000, 5000), decode=(2, 398)),  # answers that are alike would keep prompts from meeting
        Scheduler(max_num_tokens=1024, chunked=True),
        LARGE,
    ),
    "a full cache": (load(64), Scheduler(), 20 * 750),
    "a full batch": (load(64), Scheduler(max_batch_size=16), LARGE),
    "no mixing": (load(16), Scheduler(mixes=False), LARGE),
    "short answers": (load(32, prefill=(900, 1100), decode=(20, 40)), Scheduler(), LARGE),
    "prompts held back": (load(16), Scheduler(wait_iterations=20, wait_share=0.9), LARGE),
    "short answers of some": (load(8, prefill=(900, 1100), decode=(4, 12)), Scheduler(), LARGE),
    "a small iteration": (load(8, prefill=(1000, 1000)), Scheduler(max_num_tokens=1004), LARGE),
    "a rate": (load(rate=5.0), Scheduler(), LARGE),
    "a high rate": (load(rate=20.0), Scheduler(), LARGE),
}


@pytest.mark.parametrize("case", CASES)
def test_the_simulation_settles_where_the_solution_is(plain, cache, case):
    workload, scheduler, capacity = CASES[case]
    costs = plain(step=8.0, decode=0.05, prompt=0.02, request_ms=3.0)
    state = solve(costs, cache(capacity), scheduler, workload)
    users = workload.concurrency or 40
    found = simulate(costs, cache(capacity), scheduler, workload, requests=40 * users + 400, seed=5)
    tpot, ttft, rate = settled(found, skip=6 * users)
    # Of short answers each prompt is a large part, and their mean times depend on who meets whom.
    close = 0.08 if case == "short answers of some" else 0.035
    assert state.tpot_ms == pytest.approx(tpot, rel=close)
    assert state.requests_per_s == pytest.approx(rate, rel=close if workload.concurrency else 0.06)
    assert state.ttft_ms == pytest.approx(ttft, rel=0.15)


def test_one_user_alone_is_exact(plain, cache):
    state = solve(plain(request_ms=3.0), cache(LARGE), Scheduler(), load(1, prefill=(100, 100), decode=(51, 51)))
    assert state.decode_iteration_ms == 10.0
    assert state.tpot_ms == state.decode_iteration_ms
    assert state.ttft_ms == pytest.approx(
        10 + 11.0, rel=2e-3
    )  # sent during an iteration of nobody's: to its end, then its prompt
    assert state.limit == "users"
    assert state.queue_ms == 0


@pytest.mark.parametrize("rate", [0.8, 0.92])
def test_requests_at_a_rate_wait_for_places(plain, cache, rate):
    scheduler, costs = Scheduler(max_batch_size=16), plain(decode=0.1, request_ms=1.0)
    wanted = load(rate=1e-9, prefill=(100, 100), decode=(50, 250))
    full = solve(costs, cache(LARGE), scheduler, load(16, prefill=(100, 100), decode=(50, 250))).requests_per_s
    workload = Workload(prefill=wanted.prefill, decode=wanted.decode, request_rate=rate * full)
    state = solve(costs, cache(LARGE), scheduler, workload)
    found = simulate(costs, cache(LARGE), scheduler, workload, requests=20_000, seed=2)
    assert state.queue_ms > 20
    assert state.ttft_ms == pytest.approx(found.ttft_ms[500:].mean(), rel=0.25)


def test_whole_prompts_bound_how_many_decode_beside_them(plain, cache):
    for tokens, slots in ((604, 5), (600, 1), (300, 1)):
        state = solve(plain(), cache(LARGE), Scheduler(max_num_tokens=tokens), load(9))
        assert state.limit == "iteration size"
        assert state.slots == slots


def test_little_s_law(plain, cache):
    for users in (2, 16, 100):
        state = solve(plain(decode=0.1), cache(LARGE), Scheduler(max_batch_size=32), load(users))
        seconds = (state.ttft_ms + state.tpot_ms * (200 - 1)) / 1e3
        assert state.requests_per_s * seconds == pytest.approx(users, rel=1e-4)


def test_more_users_wait_longer_and_are_served_more(plain, cache):
    states = [solve(plain(decode=0.1), cache(LARGE), Scheduler(), load(users)) for users in (1, 4, 16, 64, 256)]
    for name in ("tpot_ms", "ttft_ms", "requests_per_s", "mixed_share"):
        values = [getattr(state, name) for state in states]
        assert values == sorted(values), name


def test_what_bounds_the_sequences_in_flight_is_said(plain, cache):
    assert solve(plain(), cache(10 * 750), Scheduler(), load(64)).limit == "cache"
    assert solve(plain(), cache(LARGE), Scheduler(max_batch_size=8), load(64)).limit == "batch size"
    flood = load(400, prefill=(900, 1100), decode=(8, 12))
    state = solve(plain(prompt=0.05), cache(LARGE), Scheduler(max_num_tokens=2048), flood)
    assert state.limit == "prefill"
    assert state.mixed_share == pytest.approx(1.0)
    assert state.queue_ms > 0


def test_a_rate_beyond_what_can_be_served_is_refused_with_the_most(plain, cache):
    with pytest.raises(ValueError, match=r"1000 requests/s are more than can be served: .* at the most"):
        solve(plain(decode=1.0), cache(LARGE), Scheduler(max_batch_size=16), load(rate=1000.0))


def test_a_cache_without_place_for_one_and_answers_of_one_token_are_refused(plain, cache):
    with pytest.raises(ValueError, match="does not fit in the cache"):
        solve(plain(), cache(100), Scheduler(), load(1))
    with pytest.raises(ValueError, match="answers of one token"):
        solve(plain(), cache(LARGE), Scheduler(), load(1, decode=(1, 1)))
