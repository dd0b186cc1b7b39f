"""Which rounds count as disturbed, by simulated measurements with known slow rounds."""

import numpy as np
import pandas as pd
import pytest

from puzzlebench.measuring.disturbance import TOLERANCE, find_disturbance

SESSIONS, ROUNDS, WORKLOADS = 4, 10, 20


def samples(slowdown, *, workloads=WORKLOADS, sessions=SESSIONS, rounds=ROUNDS, noise=0.01, seed=0):
    """Cold samples of a machine that is `slowdown(session, round)` times slower than when it is calm."""
    drawn = np.random.default_rng(seed)
    rows = [
        {
            "part": "ffn",
            "sub_block": f"mlp_{work + 1}",
            "phase": "decode",
            "batch_size": 1,
            "context_len": 1,
            "session": session,
            "round": number,
            "cache": "cold",
            "latency_us": (work + 1) * 10.0 * slowdown(session, number) * np.exp(drawn.normal(0, noise)),
        }
        for session in range(sessions)
        for number in range(rounds)
        for work in range(workloads)
    ]
    return pd.DataFrame(rows)


def disturbed_rounds(frame):
    marked = frame[find_disturbance(frame).disturbed]
    return set(zip(marked["session"], marked["round"], strict=True))


def test_slow_rounds_are_marked_and_no_others():
    frame = samples(lambda session, number: 1.3 if (session, number) in {(0, 3), (2, 7)} else 1.0)
    assert disturbed_rounds(frame) == {(0, 3), (2, 7)}


def test_most_of_the_rounds_may_be_slow():
    frame = samples(lambda session, number: 1.0 if session == 1 else 1.2)
    assert {session for session, _ in disturbed_rounds(frame)} == {0, 2, 3}


def test_a_calm_machine_has_none():
    found = find_disturbance(samples(lambda session, number: 1.0))
    assert not found.disturbed.any()
    assert found.level_error < 0.005


def test_one_slow_workload_does_not_mark_its_round():
    frame = samples(lambda session, number: 1.0)
    frame.loc[(frame["sub_block"] == "mlp_3") & (frame["round"] == 2), "latency_us"] *= 5
    assert disturbed_rounds(frame) == set()


def test_the_level_is_less_sure_where_sessions_differ():
    """Sessions a few percent apart: any of them might have been the calmest there was."""
    levels = [1.0, 1.02, 1.04, 1.06]
    alike = find_disturbance(samples(lambda session, number: 1.0)).level_error
    apart = find_disturbance(samples(lambda session, number: levels[session])).level_error
    assert apart > 3 * alike
    assert apart < TOLERANCE


@pytest.mark.parametrize(("workloads", "sessions", "rounds"), [(7, 4, 10), (20, 1, 7)])
def test_too_little_to_tell(workloads, sessions, rounds):
    frame = samples(
        lambda session, number: 1.5 if number == 0 else 1.0, workloads=workloads, sessions=sessions, rounds=rounds
    )
    found = find_disturbance(frame)
    assert not found.disturbed.any()
    assert found.level_error == 0.0


def test_hot_samples_of_a_slow_round_are_marked_too():
    frame = samples(lambda session, number: 1.3 if number == 4 else 1.0)
    hot = frame[frame["round"] == 4].assign(cache="hot")
    found = find_disturbance(pd.concat([frame, hot], ignore_index=True))
    assert found.disturbed.to_numpy()[-len(hot) :].all()
