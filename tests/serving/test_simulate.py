"""Requests served event by event: by hand where that can be done, else what must hold for any workload."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puzzlebench.serving.simulate import simulate
from puzzlebench.serving.workload import Lengths, Scheduler, Workload

from .conftest import PlainCosts, cache_of

LARGE = 10**9


def users(count, prefill=100, decode=5):
    return Workload(prefill=Lengths(prefill, prefill), decode=Lengths(decode, decode), concurrency=count)


def test_a_user_alone_pays_one_prompt_and_a_step_for_each_further_token(plain, cache):
    found = simulate(plain(), cache(LARGE), Scheduler(), users(1), requests=3)
    assert found.ttft_ms == pytest.approx([11.0] * 3)
    assert found.tpot_ms == pytest.approx([10.0] * 3)
    assert found.arrivals_ms == pytest.approx([0.0, 51.0, 102.0])  # 11 + 4 steps each
    assert found.seconds == pytest.approx(0.153)
    assert found.generated_tokens_per_s == pytest.approx(15 / 0.153)


def test_the_way_to_the_server_counts_to_the_first_token(plain, cache):
    found = simulate(plain(request_ms=3.0), cache(LARGE), Scheduler(), users(1), requests=2)
    assert found.ttft_ms == pytest.approx([14.0, 14.0])


def test_prompts_that_fit_run_together_and_delay_those_that_decode(plain, cache):
    # Both prompts at once: 10 + 2 ms. With 100 tokens for an iteration the second waits for the first.
    together = simulate(plain(), cache(LARGE), Scheduler(), users(2), requests=2)
    assert together.ttft_ms == pytest.approx([12.0, 12.0])
    assert together.tpot_ms == pytest.approx([10.0, 10.0])
    apart = simulate(plain(), cache(LARGE), Scheduler(max_num_tokens=150), users(2), requests=2)
    assert apart.ttft_ms == pytest.approx([11.0, 22.0])
    assert apart.tpot_ms[0] == pytest.approx((11.0 + 3 * 10.0) / 4)  # one of its four steps beside the other's prompt


def test_an_engine_that_does_not_mix_pauses_decoding(plain, cache):
    found = simulate(plain(), cache(LARGE), Scheduler(max_num_tokens=150, mixes=False), users(2), requests=2)
    assert found.tpot_ms[0] == pytest.approx((11.0 + 4 * 10.0) / 4)


def test_long_prompts_are_cut_where_the_engine_chunks(plain, cache):
    costs = plain()
    found = simulate(costs, cache(LARGE), Scheduler(max_num_tokens=40, chunked=True), users(1), requests=1)
    assert [parts for _, _, parts in costs.asked if parts] == [[(0, 40)], [(40, 40)], [(80, 20)]]
    assert found.ttft_ms == pytest.approx([31.0])


def test_a_prompt_longer_than_an_iteration_runs_alone_where_it_does_not(plain, cache):
    costs = plain()
    simulate(costs, cache(LARGE), Scheduler(max_num_tokens=40), users(2), requests=2)
    assert [parts for _, _, parts in costs.asked if parts] == [[(0, 100)], [(0, 100)]]


def test_prompts_are_held_back_until_there_are_enough_or_too_many_iterations_went_by(plain, cache):
    scheduler = Scheduler(max_num_tokens=1000, wait_iterations=3, wait_share=0.5)
    load = Workload(prefill=Lengths(100, 100), decode=Lengths(2, 30), concurrency=2)
    held = simulate(plain(request_ms=1.0), cache(LARGE), scheduler, load, requests=12, seed=1)
    free = simulate(plain(request_ms=1.0), cache(LARGE), Scheduler(max_num_tokens=1000), load, requests=12, seed=1)
    # The next request comes during an iteration, and waits for its end and three more if another sequence decodes.
    assert np.median(free.ttft_ms[2:]) == pytest.approx(10 + 11, abs=1)
    assert held.ttft_ms.max() == pytest.approx(4 * 10 + 11, abs=1)
    few = simulate(
        plain(),
        cache(LARGE),
        Scheduler(max_num_tokens=200, wait_iterations=3, wait_share=0.5),
        load,
        requests=12,
        seed=1,
    )
    assert few.ttft_ms.max() <= 22  # one prompt is enough already


def test_a_request_that_reserves_its_answer_waits_for_the_cache(plain, cache):
    found = simulate(plain(), cache(2 * 105), Scheduler(), users(3), requests=3)
    assert found.ttft_ms[:2] == pytest.approx([12.0, 12.0])
    assert found.ttft_ms[2] == pytest.approx(12.0 + 4 * 10 + 11)
    assert found.evictions == 0


def test_an_engine_that_does_not_reserve_evicts_the_youngest_and_finishes_all(plain, cache):
    found = simulate(plain(), cache(2 * 100 + 6), Scheduler(chunked=True, reserves=False), users(2), requests=2)
    assert found.evictions == 1
    assert found.tpot_ms[0] < found.tpot_ms[1]
    assert np.isfinite(found.tpot_ms).all()


def test_a_sequence_that_never_fits_is_refused(plain, cache):
    with pytest.raises(ValueError, match="a sequence of 105 tokens does not fit"):
        simulate(plain(), cache(104), Scheduler(), users(1), requests=1)


def test_random_arrivals_come_at_the_rate(plain, cache):
    load = Workload(prefill=Lengths(10, 10), decode=Lengths(2, 2), request_rate=5.0)
    found = simulate(plain(step=1.0), cache(LARGE), Scheduler(), load, requests=4000, seed=3)
    gaps = np.diff(found.arrivals_ms)
    assert gaps.mean() == pytest.approx(200.0, rel=0.06)  # 4 standard errors
    assert found.ttft_ms.mean() == pytest.approx(1.1, rel=0.02)


@settings(deadline=None, max_examples=60)
@given(
    prefill=st.tuples(st.integers(1, 80), st.integers(0, 40)),
    decode=st.tuples(st.integers(2, 30), st.integers(0, 20)),
    count=st.integers(1, 9),
    tokens=st.integers(130, 400),
    capacity=st.integers(200, 900),
    chunked=st.booleans(),
    mixes=st.booleans(),
    reserves=st.booleans(),
    seed=st.integers(0, 99),
)
def test_limits_hold_and_every_token_comes_out(
    prefill, decode, count, tokens, capacity, chunked, mixes, reserves, seed
):
    load = Workload(
        prefill=Lengths(prefill[0], sum(prefill)), decode=Lengths(decode[0], sum(decode)), concurrency=count
    )
    scheduler = Scheduler(max_num_tokens=tokens, max_batch_size=6, chunked=chunked, mixes=mixes, reserves=reserves)
    costs = PlainCosts(decode=0.1)
    found = simulate(costs, cache_of(capacity), scheduler, load, requests=25, seed=seed)
    assert np.isfinite(found.ttft_ms).all()
    assert (found.ttft_ms >= 10.0).all()
    assert (found.tpot_ms >= 10.0 - 1e-9).all()
    for decodes, _, parts in costs.asked:
        assert decodes + sum(now for _, now in parts) <= tokens
        assert decodes + len(parts) <= 6
    prompt_tokens = sum(now for _, _, parts in costs.asked for _, now in parts)
    if not found.evictions:
        assert prompt_tokens == found.prefill_len.sum()
    else:
        assert not reserves
        assert prompt_tokens > found.prefill_len.sum()
