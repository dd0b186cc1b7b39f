"""How often verdicts are wrong, on made-up sessions whose truth is known. Seeds are fixed: rates do not flicker.

Nothing was tuned on these seeds. At most 3 alarms in 200 suites: a true rate of 5 % has a chance of 1 % to do that,
one of 1 % has 86 %.
"""

import numpy as np
import pytest

from puzzlebench.comparing.comparison import exit_code
from puzzlebench.comparing.verdicts import compare

SUITES = 100
EQUAL = 200
MOST_ALARMS = 3
NOISE = {
    "calm": {"common": 0.007, "own": 0.007},
    "restless": {"common": 0.02, "own": 0.01},
    "heavy tails": {"common": 0.007, "own": 0.01, "tails": "t3"},
    "spikes": {"common": 0.007, "own": 0.007, "tails": "spikes"},
    "drift": {"common": 0.007, "own": 0.007, "drift": 0.004},
}


@pytest.fixture
def generator_of_shares():
    """Draw (shares, numbers of samples), (S, C) each, of two sides: a load common to a session's cells, and chance."""
    generator = np.random.default_rng(17)

    def draw(sessions, cells):
        taken = np.broadcast_to(generator.integers(4, 200, cells), (sessions, cells))
        for _ in range(2):
            load = generator.beta(8, 2, (sessions, 1)) * np.exp(0.05 * generator.standard_normal((sessions, cells)))
            yield generator.binomial(taken, np.minimum(load, 1.0)) / taken, taken.astype(float)

    return draw


def rate_of(found):
    return float(np.mean(list(found)))


@pytest.mark.parametrize("name", NOISE)
def test_equal_code_rarely_fails(result, pairs, name):
    generator = np.random.default_rng([11, list(NOISE).index(name)])
    alarms = []
    for suite in range(EQUAL):
        base, new = pairs(generator, (3, 5, 10)[suite % 3], 40, **NOISE[name])
        found = compare(result(base), result(new), paired=True)
        alarms.append(exit_code(found) == 1 or bool(found.of("FASTER")))
    assert sum(alarms) <= MOST_ALARMS


@pytest.mark.parametrize("paired", [True, False])
def test_equal_shares_of_calm_samples_are_rarely_doubted(result, generator_of_shares, paired):
    doubted = []
    for _ in range(EQUAL):
        one, other = (
            result(np.zeros(share.shape), calm=share, taken=taken) for share, taken in generator_of_shares(8, 40)
        )
        doubted.append(any(cell.doubt for cell in compare(one, other, paired=paired).cells))
    assert sum(doubted) <= MOST_ALARMS


def test_small_suites_rarely_fail(result, pairs):
    generator = np.random.default_rng(12)
    alarms = []
    for suite in range(EQUAL):
        base, new = pairs(generator, 5, (1, 3, 6, 9)[suite % 4])
        alarms.append(exit_code(compare(result(base), result(new), paired=True)) == 1)
    assert sum(alarms) <= MOST_ALARMS


@pytest.mark.parametrize(
    ("planted", "sessions", "least"), [(0.03, 10, 0.65), (0.05, 5, 0.7), (0.05, 10, 0.93), (0.1, 5, 0.97)]
)
def test_planted_slow_downs_are_found(result, pairs, planted, sessions, least):
    """Sessions of 1 % noise of their own on top of what they share."""
    generator = np.random.default_rng(13)
    hits = []
    for _ in range(SUITES):
        base, new = pairs(generator, sessions, 40, common=0.01, own=0.01)
        new[:, 7] += np.log1p(planted)
        hits.append(compare(result(base), result(new), paired=True).cells[7].verdict == "SLOWER")
    assert rate_of(hits) >= least


def test_two_times_rarely_fail_and_find_what_is_large(result, times):
    generator = np.random.default_rng(14)
    alarms, moved, hits = [], [], []
    for _ in range(EQUAL):
        base, new = times(generator, 8, 40)
        found = compare(result(base), result(new), paired=False)
        alarms.append(exit_code(found) == 1)
        moved.append(found.suite.verdict in ("SLOWER", "FASTER"))
        new[:, 7] += np.log1p(0.1)
        hits.append(compare(result(base), result(new), paired=False).cells[7].verdict == "SLOWER")
    assert sum(alarms) <= MOST_ALARMS
    assert rate_of(moved) > 0.3  # the machine did move; that is one finding, and no alarm
    assert rate_of(hits) >= 0.95


def test_intervals_cover(result, pairs):
    generator = np.random.default_rng(15)
    covered = []
    for _ in range(SUITES):
        base, new = pairs(generator, 6, 30, common=0.01, own=0.01)
        found = compare(result(base), result(new + 0.01), paired=True)
        covered += [cell.ratio.low <= np.exp(0.01) <= cell.ratio.high for cell in found.cells]
        covered.append(found.suite.ratio.low <= np.exp(0.01) <= found.suite.ratio.high)
    assert 0.93 <= rate_of(covered) <= 0.995


def test_samples_of_one_session_would_raise_alarms_on_half_of_equal_pairs():
    """Why sessions are compared: a bootstrap of each process's own samples is sure of a difference that is none."""
    generator = np.random.default_rng(16)
    alarms = []
    for _ in range(2 * SUITES):
        shift = 0.007 * generator.standard_normal((2, 1))
        samples = shift + 0.02 * generator.standard_normal((2, 100))
        drawn = generator.integers(0, 100, (2, 400, 100))
        medians = [np.median(side[which], axis=1) for side, which in zip(samples, drawn, strict=True)]
        low, high = np.quantile(medians[1] - medians[0], (0.025, 0.975))
        alarms.append(low > 0 or high < 0)
    assert 0.35 <= rate_of(alarms) <= 0.65
