"""From files written by hand to one row per workload."""

import math

import numpy as np
import pytest

from puzzlebench.measuring.plan import Effort
from puzzlebench.measuring.results import read_results
from puzzlebench.measuring.run_directory import open_run, workload_columns
from puzzlebench.measuring.statistics import median_interval

NAN = math.nan


@pytest.fixture
def one(work):
    return work("ffn", "mlp_64", "decode", 4, 1)


@pytest.fixture
def other(work):
    return work("head", "head", "decode", 4, 1)


@pytest.fixture
def run(tmp_path, make_plan, one, other):
    plan = make_plan([one, other], effort=Effort(sessions=3, seconds=1.0), device="cuda:0")
    with open_run(tmp_path / "run", plan) as opened:
        yield opened


@pytest.fixture
def write(run):
    """Write a session of one workload: latencies cold and hot, throttled where a reason is given."""

    def write(workload, session, cold, hot=(5.0,), reasons=None, clock=1000.0):
        reasons = reasons or [""] * len(cold)
        run.append_event(
            session,
            {
                "event": "prepared",
                "workload": workload_columns(workload),
                "copies": 3,
                "static_bytes": 300,
                **({"peak_bytes": 70, "reserved_bytes": None, "process_bytes": 9000} if session == 0 else {}),
            },
        )
        visit = {**workload_columns(workload), "session": session, "round": run.rounds(session), "seconds": 0.1}
        visit |= {"sm_clock_mhz": clock, "memory_clock_mhz": NAN, "temperature_c": NAN, "power_w": NAN}
        rows = [
            {**visit, "cache": "cold", "latency_us": us, "throttle_reasons": why}
            for us, why in zip(cold, reasons, strict=True)
        ]
        rows += [{**visit, "cache": "hot", "latency_us": us, "throttle_reasons": ""} for us in hot]
        run.write_samples(session, run.rounds(session), rows)

    return write


def test_a_row_per_workload(run, write, one, other):
    for session in range(3):
        write(one, session, [10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0], hot=(6.0, 7.0, 8.0))
        write(other, session, [2.0, 2.0, 2.0])
        run.append_event(
            session,
            {"event": "stopped", "workload": workload_columns(one), "by": "time limit" if session else "interval"},
        )
    run.append_event(0, {"event": "energy", "workload": workload_columns(one), "energy_mj": 4.5})
    results = read_results(run)
    assert list(results.measured) == [one, other]
    assert results.misses == {}
    found = results.measured[one]
    assert found.latency_us == pytest.approx(13)
    assert found.low_us < 13 < found.high_us
    assert found.relative_interval == pytest.approx((found.high_us - found.low_us) / 2 / 13)
    assert (found.hot_us, found.samples, found.sessions, found.energy_mj) == (7.0, 21, 3, 4.5)
    assert (found.copies, found.static_bytes, found.peak_bytes) == (3, 300, 70)
    assert (found.reserved_bytes, found.process_bytes) == (None, 9000)
    assert found.stopped_by == "interval or time limit"
    assert math.isnan(results.measured[other].energy_mj)
    assert results.measured[other].stopped_by == "time limit"
    assert results.session_shift == pytest.approx((0, 0, 0))


def test_sessions_shift_together(run, write, one, other):
    for session, factor in enumerate((0.9, 1.0, 1.1)):
        write(one, session, [10.0 * factor] * 3)
        write(other, session, [2.0 * factor] * 3)
    results = read_results(run)
    mean = (0.9 * 1.0 * 1.1) ** (1 / 3)
    assert results.measured[one].latency_us == pytest.approx(10 * mean)
    assert results.session_shift == pytest.approx([factor / mean - 1 for factor in (0.9, 1.0, 1.1)])


def test_throttled_samples_are_left_out(run, write, one):
    cold = [10.0, 10.1, 9.9, 10.0, 30.0, 31.0, 32.0, 33.0]
    write(one, 0, cold, reasons=[""] * 4 + ["hw_slowdown"] * 4)
    found = read_results(run).measured[one]
    assert found.latency_us == pytest.approx(10.0)
    assert found.high_us < 20
    assert (found.samples, found.throttled_share) == (4, 0.5)


def test_samples_that_are_all_throttled_are_kept(run, write, one):
    write(one, 0, [30.0, 31.0, 32.0], reasons=["hw_slowdown"] * 3)
    found = read_results(run).measured[one]
    assert found.latency_us == pytest.approx(31)
    assert (found.samples, found.throttled_share) == (3, 1.0)


def test_the_power_cap_is_counted_but_stays_in(run, write, one):
    """Large matrices run into it in serving too: samples that escaped it would be faster than any server."""
    write(one, 0, [10.0, 10.0, 12.0, 12.0, 12.0], reasons=["", "", *["sw_power_cap"] * 3])
    found = read_results(run).measured[one]
    assert found.latency_us == pytest.approx(12.0)
    assert (found.samples, found.throttled_share) == (5, 0.6)


def test_a_throttled_session_gives_way_to_one_that_was_not(run, write, one, other):
    write(one, 0, [10.0, 10.1, 9.9])
    write(other, 0, [2.0, 2.0, 2.0])
    write(one, 1, [30.0, 31.0, 32.0], reasons=["hw_slowdown"] * 3)
    write(other, 1, [2.0, 2.0, 2.0])
    found = read_results(run).measured[one]
    assert found.latency_us == pytest.approx(10.0, rel=0.02)
    assert (found.samples, found.sessions, found.throttled_share) == (3, 1, 0.5)


def test_an_interval_is_never_without_width_where_samples_differ(run, write, one):
    cold = np.random.default_rng(0).lognormal(2, 0.1, 30).tolist()
    write(one, 0, cold)
    found = read_results(run).measured[one]
    median, low, high = median_interval(np.array(cold))
    assert found.latency_us == pytest.approx(median)
    assert found.high_us / found.low_us >= high / low, "one session says at least what its samples say"


def test_misses_have_their_reason_unless_another_session_measured_it(run, write, one, other):
    write(one, 0, [10.0, 10.0, 10.0])
    for workload in (one, other):
        event = {"event": "miss", "workload": workload_columns(workload), "reason": "out of memory: 9 GiB"}
        run.append_event(1, event)
    results = read_results(run)
    assert list(results.measured) == [one]
    assert results.misses == {other: "out of memory: 9 GiB"}


def test_an_unfinished_measurement_can_be_read(run, write, one, other):
    write(one, 0, [10.0, 10.0, 10.0])
    run.append_event(0, {"event": "attempt", "workload": workload_columns(other)})
    assert list(read_results(run).measured) == [one]


def test_nothing_yet(run):
    results = read_results(run)
    assert (results.measured, results.misses, results.session_shift) == ({}, {}, ())


def test_what_others_took_is_the_worst_session(run, write, one):
    write(one, 0, [10.0, 10.0, 10.0])
    assert read_results(run).others_share == 0
    run.append_event(0, {"event": "finished"})  # of an earlier version
    assert read_results(run).others_share == 0
    run.append_event(1, {"event": "finished", "others_share": 0.4})
    run.append_event(2, {"event": "finished", "others_share": 0.1})
    assert read_results(run).others_share == 0.4
