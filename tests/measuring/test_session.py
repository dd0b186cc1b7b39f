"""One session in this process: an engine that runs nothing, stopwatches that say what they are told, a fake clock."""

import gc
import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")

from puzzlebench.measuring import rounds  # noqa: E402
from puzzlebench.measuring import session as module  # noqa: E402
from puzzlebench.measuring.memory_probe import Probe  # noqa: E402
from puzzlebench.measuring.plan import Effort, Planned  # noqa: E402
from puzzlebench.measuring.run_directory import (  # noqa: E402
    WORKLOAD_COLUMNS,
    open_run,
    workload_columns,
    workload_from_key,
)
from puzzlebench.measuring.sensors import Reading  # noqa: E402
from puzzlebench.measuring.session import run_session  # noqa: E402
from puzzlebench.model.spec import parent_architecture  # noqa: E402
from puzzlebench.scenario import Precision  # noqa: E402

STEADY, NOISY, LONG = "mlp_64", "mlp_32", "mlp_16"


class Clock:
    """Stands in for the time module; only samples move it."""

    def __init__(self):
        self.us = 0.0

    def perf_counter(self):
        return self.us / 1e6

    def perf_counter_ns(self):
        return int(self.us * 1e3)

    def process_time(self):
        return self.us / 1e6


class Watch:
    """Takes as long as it is told and says what it is told; `taken` counts its samples."""

    def __init__(self, clock, duration_us, latencies):
        self.clock, self.duration_us, self.latencies, self.taken = clock, duration_us, latencies, 0

    def sample(self, state):
        self.taken += 1
        self.clock.us += self.duration_us
        return next(self.latencies) if state == "cold" else 5.0


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    for one in (module, rounds):
        monkeypatch.setattr(one, "time", found)
    # A collection with all of pytest and torch in memory takes longer than most tests here.
    lazy = SimpleNamespace(collect=lambda: 0, disable=gc.disable, enable=gc.enable)
    monkeypatch.setattr(rounds, "gc", lazy)
    return found


@pytest.fixture
def watches(monkeypatch, clock):
    """Every stopwatch that was started, by sub-block."""
    found = {}

    def start(prepared, device):
        name = prepared.workload.sub_block
        noise = np.random.default_rng(len(found)).lognormal(2, 0.3, 2000).tolist()
        latencies = iter(noise) if name == NOISY else itertools.repeat(10.0)
        found[name] = Watch(clock, 25_000.0 if name == LONG else 1_000.0, latencies)
        return found[name]

    monkeypatch.setattr(module, "start_stopwatch", start)
    monkeypatch.setattr(module, "probe_memory", lambda prepared, device: Probe(peak_bytes=70, reserved_bytes=None))
    return found


@pytest.fixture
def ffn(work):
    return lambda name, tokens=4: work("ffn", name, "decode", tokens, 1)


@pytest.fixture
def start(tmp_path, make_plan, stub_engine):
    """A run directory with a plan for the stub engine."""
    with_open = []

    def start(workloads, **changes):
        effort = Effort(**{"sessions": 2, "seconds": 0.4, **changes.pop("effort", {})})
        plan = make_plan(workloads, engine="stub", effort=effort, **changes)
        opened = open_run(tmp_path / "run", plan)
        with_open.append(opened)
        return opened.__enter__()

    yield start
    for opened in with_open:
        opened.__exit__(None, None, None)


def events(run, kind, session=0):
    return [event for event in run.events(session) if event["event"] == kind]


def rows_of(run, name, session=0, cache="cold"):
    frame = run.samples(session)
    return frame[(frame["sub_block"] == name) & (frame["cache"] == cache)]


def quiet(message):
    pass


def test_a_steady_workload_stops_and_a_noisy_one_goes_on_to_the_end(start, watches, ffn):
    run = start([ffn(STEADY), ffn(NOISY)])
    run_session(run, 0, quiet)
    # Six rounds of two samples: the least that says a width; hot ones in the first and the fifth.
    assert len(rows_of(run, STEADY)) == 12
    assert len(rows_of(run, STEADY, cache="hot")) == 2
    assert len(rows_of(run, NOISY)) >= 60
    assert float(rows_of(run, NOISY)["seconds"].max()) == pytest.approx(0.2, abs=0.01), "half of 0.4 s for 2 sessions"
    assert {e["workload"]["sub_block"]: e["by"] for e in events(run, "stopped")} == {
        STEADY: "interval",
        NOISY: "time limit",
    }
    assert run.events(0)[-1]["event"] == "finished"


def test_the_first_stretch_of_a_visit_is_not_kept(start, watches, ffn):
    run = start([ffn(STEADY)])
    run_session(run, 0, quiet)
    assert watches[STEADY].taken == 6 * (1 + 2) + 2 * (1 + 1)
    assert len(run.samples()) == 6 * 2 + 2


def test_a_long_stretch_is_taken_once_a_visit(start, watches, ffn):
    run = start([ffn(LONG)], effort={"seconds": 100.0})
    run_session(run, 0, quiet)
    assert (len(rows_of(run, LONG)), len(rows_of(run, LONG, cache="hot"))) == (12, 3)
    assert watches[LONG].taken == 12 + 3


def test_four_rounds_at_least_when_there_is_no_time(start, watches, ffn):
    run = start([ffn(NOISY), ffn(LONG)], effort={"seconds": 1e-6})
    run_session(run, 0, quiet)
    assert run.rounds(0) == 4
    assert len(rows_of(run, LONG)) == 4
    assert run.events(0)[-1]["event"] == "finished"


def test_every_round_has_another_order(start, watches, ffn):
    names = [f"mlp_{8 * n}" for n in range(1, 9)]
    run = start([ffn(name) for name in names], effort={"seconds": 1e-6})
    run_session(run, 0, quiet)
    run_session(run, 1, quiet)
    orders = [
        tuple(dict.fromkeys(rows["sub_block"]))
        for session in (0, 1)
        for _, rows in run.samples(session).groupby("round", sort=True)
    ]
    assert len(orders) == 8
    assert len(set(orders)) == 8
    assert all(sorted(order) == sorted(names) for order in orders)


def interrupt_after(rounds):
    seen = itertools.count(1)

    def report(message):
        if message["stage"] == "timing" and next(seen) == rounds:
            raise KeyboardInterrupt

    return report


def test_a_session_goes_on_where_it_was_stopped(start, watches, ffn):
    run = start([ffn(STEADY), ffn(NOISY)])
    with pytest.raises(KeyboardInterrupt):
        run_session(run, 0, interrupt_after(10))
    assert gc.isenabled()
    assert events(run, "finished") == []
    before = run.samples()
    first = watches[STEADY]
    run_session(run, 0, quiet)
    after = run.samples()
    assert watches[STEADY] is not first
    assert watches[STEADY].taken == 0, "its interval was narrow before"
    assert after.iloc[: len(before)].equals(before)
    assert sorted(after["round"].unique()) == list(range(run.rounds(0)))
    assert after["seconds"].is_monotonic_increasing
    assert float(after["seconds"].max()) == pytest.approx(0.2, abs=0.01), "what was spent before counts"
    assert events(run, "stopped")[-1]["by"] == "time limit"
    assert run.events(0)[-1]["event"] == "finished"


def test_a_session_stopped_before_the_least_takes_the_rest(start, watches, ffn):
    run = start([ffn(STEADY), ffn(NOISY)], effort={"seconds": 1e-6})
    with pytest.raises(KeyboardInterrupt):
        run_session(run, 0, interrupt_after(2))
    run_session(run, 0, quiet)
    assert run.rounds(0) == 4
    assert len(rows_of(run, STEADY)) == 8


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB"),
            "out of memory: CUDA out of memory. T",
        ),
        (MemoryError(), "out of memory: "),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory: DefaultCPUAllocator"),
        (RuntimeError("no kernel image"), "no kernel image"),
        (RuntimeError(), "RuntimeError"),
        (ValueError("the engine has no windows"), "the engine has no windows"),
    ],
    ids=["cuda memory", "python memory", "cpu memory", "kernel", "silent", "engine"],
)
def test_what_cannot_be_put_in_place_is_a_miss_and_the_rest_is_measured(
    start, watches, ffn, stub_engine, error, reason
):
    stub_engine.raises["mlp_48"] = error
    run = start([ffn("mlp_48"), ffn(STEADY)])
    run_session(run, 0, quiet)
    (miss,) = events(run, "miss")
    assert miss["workload"] == workload_columns(ffn("mlp_48"))
    assert miss["reason"].startswith(reason)
    assert "\n" not in miss["reason"]
    assert set(run.samples()["sub_block"]) == {STEADY}
    assert run.events(0)[-1]["event"] == "finished"


def test_a_bug_is_not_a_miss(start, watches, ffn, stub_engine):
    stub_engine.raises[STEADY] = KeyError("weights")
    run = start([ffn(STEADY)])
    with pytest.raises(KeyError):
        run_session(run, 0, quiet)
    assert events(run, "miss") == []


def test_one_copy_that_does_not_fit_is_not_tried(start, watches, work, ffn, stub_engine, monkeypatch):
    monkeypatch.setattr("puzzlebench.measuring.device.available_memory_bytes", lambda: 1 << 20)
    large = work("attention", "gqa_2", "decode", 1000, 1000)  # 2 x 2 heads x 8 x 4 bytes x 1e6 tokens: 128 MB
    run = start([ffn(STEADY), large])
    run_session(run, 0, quiet)
    (miss,) = events(run, "miss")
    assert miss["workload"] == workload_columns(large)
    assert miss["reason"] == "out of memory: one copy takes 0.1 GiB of 0.0 free"
    assert stub_engine.opened[0].asked == [ffn(STEADY)]


def test_a_miss_is_not_tried_again_when_resumed(start, watches, ffn, stub_engine):
    stub_engine.raises["mlp_48"] = RuntimeError("no")
    run = start([ffn("mlp_48"), ffn(NOISY)])
    with pytest.raises(KeyboardInterrupt):
        run_session(run, 0, interrupt_after(2))
    run_session(run, 0, quiet)
    assert [set(engine.asked) for engine in stub_engine.opened] == [{ffn("mlp_48"), ffn(NOISY)}, {ffn(NOISY)}]
    assert len(events(run, "miss")) == 1


def test_nothing_that_can_be_measured_ends_too(start, watches, ffn, stub_engine):
    stub_engine.raises[STEADY] = RuntimeError("no")
    run = start([ffn(STEADY)])
    run_session(run, 0, quiet)
    assert run.events(0)[-1]["event"] == "finished"
    assert run.samples().empty


def test_the_largest_is_put_in_place_first(start, watches, work, ffn, stub_engine):
    parts = [
        ffn("mlp_8"),
        work("attention", "gqa_2", "decode", 9, 99),
        ffn("linear"),
        work("head", "head", "decode", 4, 1),
    ]
    run = start(parts)
    run_session(run, 0, quiet)
    assert stub_engine.opened[0].asked == [parts[1], parts[3], parts[2], parts[0]]
    assert [workload_from_key(event["workload"].values()) for event in events(run, "attempt")] == [
        parts[1],
        parts[3],
        parts[2],
        parts[0],
    ]


def test_memory_is_probed_in_the_first_session_only(start, watches, ffn):
    run = start([ffn(STEADY)])
    for session in (0, 1):
        run_session(run, session, quiet)
    first, second = events(run, "prepared", 0)[0], events(run, "prepared", 1)[0]
    assert (first["copies"], first["static_bytes"], first["peak_bytes"]) == (2, 200, 70)
    assert first["process_bytes"] > 1 << 20
    assert "peak_bytes" not in second


def test_a_session_knows_the_largest_batch_and_length(start, watches, work, stub_engine):
    run = start([work("attention", "gqa_2", "prefill", 2, 99), work("ffn", "mlp_64", "decode", 17, 1)])
    run_session(run, 0, quiet)
    engine = stub_engine.opened[0]
    assert (engine.max_batch_size, engine.max_len, engine.closed) == (17, 99, True)


def test_every_sample_says_what_it_was_taken_under(start, watches, ffn, monkeypatch):
    reading = Reading(sm_clock_mhz=1000.0, power_w=50.0, throttle_reasons=("sw_power_cap", "hw_slowdown"))
    sensor = SimpleNamespace(read=lambda: reading, process_memory_bytes=lambda: None, close=lambda: None)
    monkeypatch.setattr(module, "open_sensor", lambda kind, index: (sensor, None))
    run = start([ffn(STEADY)])
    run_session(run, 0, quiet)
    frame = run.samples()
    assert set(frame["throttle_reasons"]) == {"sw_power_cap,hw_slowdown"}
    assert set(frame["sm_clock_mhz"]) == {1000.0}
    assert frame["temperature_c"].isna().all()
    assert {workload_from_key(key) for key in frame[list(WORKLOAD_COLUMNS)].itertuples(index=False)} == {ffn(STEADY)}


def test_energy_is_counted_once_in_the_first_session(start, watches, ffn, monkeypatch):
    asked = []

    def energy(watch, read_mj, *, seconds):
        asked.append(seconds)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return math.nan if len(asked) == 4 else 2.5

    monkeypatch.setattr(module, "energy_per_launch", energy)
    run = start([ffn(STEADY), ffn(LONG), ffn("mlp_48")], effort={"energy_seconds": 0.5, "seconds": 1e-6})
    with pytest.raises(KeyboardInterrupt):
        run_session(run, 0, quiet)
    assert len(events(run, "energy")) == 1
    run_session(run, 0, quiet)
    run_session(run, 1, quiet)
    assert asked == [0.5] * 4
    assert len({event["workload"]["sub_block"] for event in events(run, "energy")}) == 2, "the last could not be read"
    assert all(event["energy_mj"] == 2.5 for event in events(run, "energy"))


def test_progress_grows_to_the_end(start, watches, ffn):
    run = start([ffn(STEADY), ffn(NOISY)])
    told = []
    run_session(run, 0, told.append)
    assert [message["stage"] for message in told[:3]] == ["preparing", "preparing", "timing"]
    done = [message["done"] / message["total"] for message in told if message["stage"] == "timing"]
    assert done == sorted(done)
    assert done[-1] >= 1


def test_whole_models_need_an_engine_that_builds_them(start, watches, make_spec, work):
    run = start([work("model", "parent", "decode", 1, 4)], models={"parent": parent_architecture(make_spec())})
    with pytest.raises(ValueError, match="the stub engine builds no whole models; use torch or triton"):
        run_session(run, 0, quiet)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"engine": "tensorflow"}, "engine 'tensorflow' cannot be measured live; use torch, triton, trtllm"),
        ({"engine": "triton"}, "the triton engine needs a GPU; use --engine torch on the CPU"),
        (
            {"precision": Precision(weight_dtype="fp32", kv_dtype="fp32", tensor_parallel=2)},
            "live measurement times one GPU; --tp 2 needs --source kernels",
        ),
        ({"precision": Precision(weight_dtype="fp8", kv_dtype="bf16")}, "fp8 weights are measured on GPUs of compute"),
        (
            {"precision": Precision(weight_dtype="fp32", kv_dtype="bf16")},
            "keeps the cache in the activations' dtype, not bf16 under fp32 weights; give --kv-dtype fp32",
        ),
        (
            {"precision": Precision(weight_dtype="bf16", kv_dtype="fp8")},
            "not fp8 under bf16 weights; give --kv-dtype bf16",
        ),
        ({"device": "cuda:7"}, "no device 'cuda:7'"),
    ],
)
def test_what_cannot_be_had_here(tmp_path, make_plan, work, changes, words):
    plan = replace(make_plan([work("head", "head")]), **changes)
    with pytest.raises(ValueError, match=words) as error, open_run(tmp_path / "run", plan) as run:
        run_session(run, 0, quiet)
    assert "\n" not in str(error.value)


def test_the_real_engine_on_a_cpu(tmp_path, make_plan, work, make_spec):
    """Every kind of work goes through preparing, probing and timing."""
    spec = make_spec()
    kinds = [
        work("attention", "gqa_2", "prefill", 2, 8),
        work("attention", "gqa_1_w4", "decode", 2, 8),
        work("attention", "linear", "decode", 3, 1),
        work("ffn", "mlp_16", "decode", 3, 1),
        work("embedding", "embedding", "decode", 3, 1),
        work("head", "head", "decode", 3, 1),
        work("model", "parent", "prefill", 2, 8),
        work("model", "parent", "decode", 2, 8),
    ]
    plan = make_plan(kinds, models={"parent": parent_architecture(spec)}, effort=Effort(sessions=1, seconds=1e-3))
    plan = replace(plan, workloads=tuple(Planned(workload=one, copies=2) for one in kinds))
    with open_run(tmp_path / "run", plan) as run:
        run_session(run, 0, quiet)
        assert events(run, "miss") == []
        assert {workload_from_key(e["workload"].values()) for e in events(run, "prepared")} == set(kinds)
        assert all(e["peak_bytes"] > 0 for e in events(run, "prepared"))
        counts = run.samples().groupby(list(WORKLOAD_COLUMNS)).size()
        assert len(counts) == len(kinds)
        assert (run.samples()["latency_us"] > 0).all()


@pytest.mark.parametrize(("busy_s", "share"), [(10.0, 0.25), (2.0, 0.05), (0.0, 0.0), (1e9, 1.0)])
def test_what_others_took_is_noted(start, watches, clock, ffn, monkeypatch, busy_s, share):
    """Of four processors this process keeps one busy, and others take `busy_s` in ten seconds."""
    monkeypatch.setattr(module.psutil, "cpu_count", lambda: 4)
    started = clock.us
    monkeypatch.setattr(module, "_busy_seconds", lambda: (clock.us - started) / 1e6 * (1 + busy_s / 10))
    run = start([ffn(NOISY)], effort={"sessions": 1, "seconds": 0.1})
    run_session(run, 0, quiet)
    assert run.events(0)[-1]["others_share"] == pytest.approx(share)
