"""Results made up of known parts: what is common to a session, what is a cell's own, and planted changes."""

import json

import numpy as np
import pytest

from puzzlebench.comparing.measured import Measurements

FINGERPRINT = {
    "device": "amd_epyc_2c",
    "date": "2026-11-28T10:00:00+00:00",
    "git_commit": "0123abc",
    "torch": "2.13.0",
    "threads": 2,
    "governor": "performance",
    "cpu": {"model": "AMD EPYC", "usable_cores": 2, "flags": ["avx2", "fma"]},
}


def make_result(logs, *, names=None, unit="us", errors=None, **facts):
    """A result whose medians are 100 us times the exponential of (S, C) logs."""
    logs = np.asarray(logs, dtype=np.float64)
    names = names or [f"{('block', 'kernel')[place % 2]}/cell_{place}" for place in range(logs.shape[1])]
    stated = {"fingerprint": FINGERPRINT, "kind": "bench", "created": "2026-11-28T10:00:00+00:00"} | facts
    return Measurements(
        cells=tuple(names),
        units=(unit,) * len(names),
        medians=100 * np.exp(logs),
        errors=np.zeros_like(logs) if errors is None else errors,
        **stated,
    )


def draw_pairs(generator, sessions, cells, *, common=0.007, own=0.007, tails="normal", drift=0.0):
    """Logs of base and new, (S, C) each, of sessions in the order A B B A A B ..."""
    scatter = own * np.exp(0.3 * generator.standard_normal(cells))
    logs = np.empty((2, sessions, cells))
    for place, side in enumerate(side for pair in range(sessions) for side in ((0, 1), (1, 0))[pair % 2]):
        noise = generator.standard_normal(cells)
        if tails == "t3":
            noise = generator.standard_t(3, cells) / np.sqrt(3)
        if tails == "spikes":
            noise += (generator.random(cells) < 0.02) * generator.exponential(20, cells)
        shift = common * generator.standard_normal() + drift * place
        logs[side, place // 2] = shift + scatter * noise
    return logs


def draw_times(generator, sessions, cells, *, common=0.007, own=0.007, wander=0.005, machine=0.03):
    """The same of two different times: the machine moved as a whole, and cells wandered."""
    scatter = own * np.exp(0.3 * generator.standard_normal(cells))
    return [
        machine * generator.standard_normal()
        + wander * generator.standard_normal(cells)
        + common * generator.standard_normal((sessions, 1))
        + scatter * generator.standard_normal((sessions, cells))
        for _ in range(2)
    ]


@pytest.fixture(scope="session")
def result():
    return make_result


@pytest.fixture(scope="session")
def pairs():
    return draw_pairs


@pytest.fixture(scope="session")
def times():
    return draw_times


@pytest.fixture
def bench_file(tmp_path):
    """Write a bench.json of (S, C) medians."""

    def write(medians, name="bench.json", **changes):
        sessions = [
            {
                "session": place,
                "started": "2026-11-28T10:00:00+00:00",
                "seconds": 1.0,
                "others_share": 0.0,
                "cells": {
                    f"block/cell_{column}": {"unit": "us", "median": value, "low": 0.99 * value, "high": 1.01 * value,
                                             "samples": 20, "taken": 25}
                    for column, value in enumerate(row)
                    if np.isfinite(value)
                },
            }
            for place, row in enumerate(np.asarray(medians, dtype=np.float64).tolist())
        ]  # fmt: skip
        stated = {
            "schema_version": 1,
            "created": "2026-11-28T10:00:00+00:00",
            "puzzlebench_version": "0.1.0",
            "revision": "0123abc",
            "fingerprint": FINGERPRINT,
            "disturbed": False,
            "sessions": sessions,
        }
        path = tmp_path / name
        path.write_text(json.dumps(stated | changes))
        return path

    return write
