"""Medians and speed-ups from samples whose truth is known."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from puzzlebench.measuring.run_directory import SAMPLE_COLUMNS, RunDirectory
from puzzlebench.speed.predict import SpeedScenario
from puzzlebench.speed.results import PHASES, read_measured

SCENARIO = SpeedScenario(batch_size=3, prefill_len=8, decode_len=11)
MS = {("parent", "prefill"): 20.0, ("parent", "decode"): 100.0, ("parent", "generate"): 120.0}
MS |= {("child", "prefill"): 10.0, ("child", "decode"): 40.0, ("child", "generate"): 50.0}


def make_run(
    folder,
    *,
    sessions=4,
    rounds=12,
    slow=lambda session, number: 1.0,
    throttled=lambda session, number: "",
    noise=0.002,
):
    """Samples of a machine that is `slow(session, round)` times as slow as when calm."""
    rng = np.random.default_rng(0)
    run = RunDirectory(folder)
    for session in range(sessions):
        for number in range(rounds):
            rows = []
            for (label, phase), milliseconds in MS.items():
                us = 1e3 * milliseconds * slow(session, number) * np.exp(noise * rng.standard_normal())
                rows.append(
                    dict.fromkeys(SAMPLE_COLUMNS, 0.0)
                    | {"part": "model", "sub_block": label, "phase": phase, "batch_size": 3, "context_len": 8}
                    | {"session": session, "round": number, "cache": "cold", "latency_us": us}
                    | {"throttle_reasons": throttled(session, number)}
                )
            run.write_samples(session, number, rows)
        run.append_event(session, {"event": "finished", "others_share": 0.1 * session})
    run.append_event(0, {"event": "tokens", "model": "child", "agree": 0.5})
    return run


def measured(run, on_cpu=True, sessions=4):
    return read_measured(run, ["parent", "child"], SCENARIO, sessions=sessions, on_cpu=on_cpu)


def near(interval, value, tolerance=0.005):
    assert interval.low <= interval.value <= interval.high
    assert interval.value == pytest.approx(value, rel=tolerance)


def test_a_calm_machine(tmp_path):
    found = measured(make_run(tmp_path))
    parent, child = found.speeds
    near(parent.prefill_ms, 20.0)
    near(parent.tpot_ms, 10.0)
    near(child.generate_ms, 50.0)
    near(child.generated_tokens_per_s, 3 * 11 / 0.05)
    for phase, ratio in zip(PHASES, (2.0, 2.5, 2.4), strict=True):
        near(found.speed_ups[0][phase], ratio)
        assert found.speed_ups[0][phase].high / found.speed_ups[0][phase].low < 1.01
    assert found.tokens_agree == {"child": 0.5}
    assert found.others_share == pytest.approx(0.3)
    assert (found.rounds, found.disturbed_share) == (48, 0.0)


def test_disturbed_rounds_are_left_out_of_times(tmp_path):
    run = make_run(tmp_path, slow=lambda session, number: 1.6 if number % 3 else 1.0)
    found = measured(run)
    near(found.speeds[0].generate_ms, 120.0, 0.02)
    assert found.disturbed_share == pytest.approx(2 / 3)
    near(measured(run, on_cpu=False).speeds[0].generate_ms, 1.6 * 120.0, 0.02)


def test_a_machine_that_drifts_leaves_speed_ups_alone(tmp_path):
    run = make_run(tmp_path, slow=lambda session, number: 1.0 + 0.3 * session + 0.01 * number)
    found = measured(run, on_cpu=False)
    near(found.speed_ups[0]["decode"], 2.5)
    assert found.speed_ups[0]["decode"].high / found.speed_ups[0]["decode"].low < 1.02
    assert found.speeds[0].generate_ms.high / found.speeds[0].generate_ms.low > 1.3


def test_samples_of_held_down_clocks_are_left_out(tmp_path):
    run = make_run(
        tmp_path,
        slow=lambda session, number: 2.0 if number < 6 else 1.0,
        throttled=lambda session, number: "hw_slowdown" if number < 6 else "sw_power_cap",
    )
    found = measured(run, on_cpu=False)
    near(found.speeds[0].prefill_ms, 20.0)
    assert found.disturbed_share == 0.5


def test_one_session_of_few_rounds_has_an_interval_of_its_samples(tmp_path):
    found = measured(make_run(tmp_path, sessions=1, rounds=3, noise=0.02), sessions=1)
    assert found.speeds[0].prefill_ms.low < found.speeds[0].prefill_ms.high
    assert found.speed_ups[0]["generate"].low < found.speed_ups[0]["generate"].high


def test_a_round_that_one_model_lacks_is_no_pair(tmp_path):
    run = make_run(tmp_path, sessions=1, rounds=2, noise=0.0)
    frame = pd.read_parquet(tmp_path / "samples.0.00001.parquet")
    frame[frame["sub_block"] == "parent"].assign(latency_us=1e9).to_parquet(tmp_path / "samples.0.00001.parquet")
    assert measured(run, on_cpu=False, sessions=1).speed_ups[0]["prefill"].value == pytest.approx(2.0)
    assert json.loads((tmp_path / "events.0.jsonl").read_text().splitlines()[0])["event"] == "finished"
