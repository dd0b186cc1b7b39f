"""What a simulation saw in its warm middle."""

from types import SimpleNamespace

import pytest

from puzzlebench.serving.check import simulate_warm
from puzzlebench.serving.simulate import simulate
from puzzlebench.serving.steady import solve
from puzzlebench.serving.workload import Lengths, Scheduler, Workload


@pytest.fixture
def world(plain, cache):
    costs, room, scheduler = plain(step=10.0, decode=0.1, prompt=0.01), cache(1e9), Scheduler()

    def served(workload, *, requests, seed):
        return simulate(costs, room, scheduler, workload, requests=requests, seed=seed)

    return SimpleNamespace(
        simulate=served, steady=lambda workload: solve(costs, room, scheduler, workload), costs=costs
    )


def estimate(workload, concurrency):
    return SimpleNamespace(workload=workload, concurrency=concurrency)


def test_users(world):
    workload = Workload(prefill=Lengths(50, 150), decode=Lengths(20, 60), concurrency=8)
    found, state = simulate_warm(world, estimate(workload, 8.0)), world.steady(workload)
    assert found.requests == 200 - 16
    assert found.tpot_ms == pytest.approx(state.tpot_ms, rel=0.03)
    assert found.ttft_ms == pytest.approx(state.ttft_ms, rel=0.1)
    assert found.requests_per_s == pytest.approx(state.requests_per_s, rel=0.03)
    assert found.generated_tokens_per_s == pytest.approx(40 * found.requests_per_s, rel=0.1)
    assert found.total_tokens_per_s - found.generated_tokens_per_s == pytest.approx(100 * found.requests_per_s, rel=0.1)
    assert found.evictions == 0


def test_a_rate(world):
    workload = Workload(prefill=Lengths(100, 100), decode=Lengths(30, 30), request_rate=5.0)
    state = world.steady(workload)
    found = simulate_warm(world, estimate(workload, state.decoding))
    assert found.requests >= 1980
    assert found.requests_per_s == pytest.approx(5.0)  # whatever was drawn
    assert found.tpot_ms == pytest.approx(state.tpot_ms, rel=0.03)


def test_answers_of_one_token_have_no_time_per_token_but_count(world):
    workload = Workload(prefill=Lengths(100, 100), decode=Lengths(1, 3), concurrency=2)
    found = simulate_warm(world, estimate(workload, 2.0))
    assert found.tpot_ms > 0
    assert found.generated_tokens_per_s == pytest.approx(2 * found.requests_per_s, rel=0.15)


def test_too_few_requests(world):
    workload = Workload(prefill=Lengths(100, 100), decode=Lengths(30, 30), concurrency=20)
    with pytest.raises(ValueError, match="40 requests are too few with 20 at a time; simulate 60 or more"):
        simulate_warm(world, estimate(workload, 20.0), requests=40)
