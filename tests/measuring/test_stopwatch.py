"""Stretches on a clock that only launches move: how long, over which copies, and what a sample is."""

import itertools
import math
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="needs torch")

from puzzlebench.measuring import stopwatch as module  # noqa: E402
from puzzlebench.measuring.stopwatch import energy_per_launch, start_stopwatch  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    found = SimpleNamespace(us=0.0)
    fake = SimpleNamespace(perf_counter_ns=lambda: int(found.us * 1e3), perf_counter=lambda: found.us / 1e6)
    monkeypatch.setattr(module, "time", fake)
    return found


@pytest.fixture
def prepare(clock):
    def make(copies, cost_us):
        launched = []

        def run(copy):
            launched.append(copy)
            clock.us += cost_us(copy) if callable(cost_us) else cost_us

        return SimpleNamespace(copies=copies, static_bytes=0, run=run, launched=launched)

    return make


@pytest.mark.parametrize(("cost_us", "launches"), [(10.0, 30), (7.0, 43), (300.0, 1), (5000.0, 1), (0.5, 512)])
def test_a_stretch_is_300_us_or_512_launches(prepare, cost_us, launches):
    prepared = prepare(3, cost_us)
    watch = start_stopwatch(prepared, CPU)
    for state in ("cold", "hot"):
        prepared.launched.clear()
        assert watch.sample(state) == pytest.approx(cost_us)
        assert len(prepared.launched) == launches


def test_cold_goes_round_all_copies_and_hot_stays_on_one(prepare):
    prepared = prepare(4, 50.0)
    watch = start_stopwatch(prepared, CPU)
    assert prepared.launched, "it was warmed up"
    prepared.launched.clear()
    for _ in range(4):
        watch.sample("cold")
    assert len(prepared.launched) == 24
    assert {prepared.launched.count(copy) for copy in range(4)} == {6}, "across samples too, none is skipped"
    assert all((second - first) % 4 == 1 for first, second in itertools.pairwise(prepared.launched))
    prepared.launched.clear()
    watch.sample("hot")
    assert prepared.launched == [0] * 6


def test_a_sample_is_the_mean_of_one_launch(prepare):
    watch = start_stopwatch(prepare(2, lambda copy: 100.0 if copy else 200.0), CPU)
    assert watch.sample("hot") == pytest.approx(200)
    cold = [watch.sample("cold") for _ in range(2)]
    assert sum(cold) / 2 == pytest.approx(150, rel=0.2)
    assert all(100 < one < 200 for one in cold)


def test_a_slow_first_launch_does_not_shorten_the_stretch(prepare):
    costs = itertools.chain([50_000.0], itertools.repeat(10.0))
    prepared = prepare(1, lambda copy: next(costs))
    watch = start_stopwatch(prepared, CPU)
    prepared.launched.clear()
    watch.sample("cold")
    assert len(prepared.launched) == 30


def test_energy_of_a_launch_is_power_times_its_time(clock, prepare):
    watch = start_stopwatch(prepare(1, 100.0), CPU)
    started = clock.us
    energy = energy_per_launch(watch, lambda: 0.02 * (clock.us - started), seconds=0.01)  # 20 W: 0.02 mJ a us
    assert energy == pytest.approx(0.02 * 100)
    assert clock.us - started >= 10_000


@pytest.mark.parametrize("counter", [math.nan, 7.0], ids=["cannot be read", "does not move"])
def test_energy_that_is_not_counted(clock, prepare, counter):
    watch = start_stopwatch(prepare(1, 100.0), CPU)
    assert math.isnan(energy_per_launch(watch, lambda: counter, seconds=0.01))


def test_no_time_is_spent_on_a_counter_that_cannot_be_read(clock, prepare):
    prepared = prepare(1, 100.0)
    watch = start_stopwatch(prepared, CPU)
    prepared.launched.clear()
    energy_per_launch(watch, lambda: math.nan, seconds=60.0)
    assert prepared.launched == []
