"""Paired statistics, by hand and by simulation."""

import numpy as np
import pytest

from puzzlebench.evaluation.statistics import Pairs, difference, interval, mcnemar, ratio, ratios, resample


def pairs_of(parent, child, size=None, *, binary=False):
    parent, child = np.asarray(parent, dtype=float), np.asarray(child, dtype=float)
    size = np.ones(len(parent)) if size is None else np.asarray(size, dtype=float)
    return Pairs(parent=parent, child=child, size=size, binary=binary)


def test_difference_of_means_by_hand():
    # differences 1, 2, 6: mean 3, standard deviation sqrt(7), t(2) = 4.302653
    found = difference(pairs_of([1, 2, 3], [2, 4, 9]))
    half = 4.302653 * np.sqrt(7 / 3)
    assert found.value == pytest.approx(3)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), rel=1e-6)


def test_difference_of_shares_by_hand():
    # 3 lost, 1 gained of 10: (4 and 2)/12, middle -1/6, half 1.96 sqrt((1/2 - 1/36)/12)
    pairs = pairs_of([1, 1, 1, 0, 1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1, 0, 0, 0], binary=True)
    found = difference(pairs)
    assert pairs.flips == (3, 1)
    assert found.value == pytest.approx(-0.2)
    assert (found.low, found.high) == pytest.approx((-1 / 6 - 0.388804, -1 / 6 + 0.388804), abs=1e-5)


def test_sizes_weigh():
    pairs = pairs_of([10, 2], [20, 2], size=[8, 2])
    assert pairs.values == (1.2, 2.2)
    assert difference(pairs).value == pytest.approx(1.0)


def test_mcnemar_by_hand():
    assert mcnemar(5, 1) == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar(1, 5) == mcnemar(5, 1)
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1.0


def test_no_flip_still_leaves_a_doubt():
    same = pairs_of([1] * 30 + [0] * 10, [1] * 30 + [0] * 10, binary=True)
    found = difference(same)
    assert found.low < 0 == found.value < found.high
    kept = interval(1.0, ratios(*resample(same, np.random.default_rng(0)), higher_is_better=True))
    assert 0.8 < kept.low < 1 < kept.high < 1.25


def test_one_document_has_no_interval():
    found = difference(pairs_of([1.0], [0.5]))
    assert (found.value, found.low, found.high) == (-0.5, None, None)


@pytest.mark.parametrize(("higher", "expected"), [(True, 0.5), (False, 2.0)])
def test_ratio(higher, expected):
    assert ratio(4.0, 2.0, higher_is_better=higher) == expected
    assert ratio(0.0, 1.0, higher_is_better=True) is None


def test_an_interval_without_bound_is_none():
    parent, child = np.array([0.0] * 2 + [2.0] * 98), np.ones(100)
    assert interval(0.5, ratios(parent, child, higher_is_better=True)).high == 0.5
    parent[:3] = 0.0  # more than one in forty
    found = interval(0.5, ratios(parent, child, higher_is_better=True))
    assert (found.value, found.low, found.high) == (0.5, None, None)


def test_counts_of_kinds_are_drawn_like_documents():
    rng = np.random.default_rng(1)
    few = rng.integers(0, 3, size=(2, 80)).astype(float)  # 9 kinds of documents
    many = few + rng.uniform(-1e-9, 1e-9, size=few.shape)  # 80 kinds
    moments = []
    for values in (few, many):
        drawn = resample(pairs_of(*values, size=np.full(80, 2.0)), np.random.default_rng(2), 20_000)
        moments.append([np.mean(drawn[0]), np.std(drawn[0]), np.std(drawn[1] - drawn[0]), np.corrcoef(*drawn)[0, 1]])
    assert moments[0] == pytest.approx(moments[1], rel=0.03, abs=0.02)
    spread = (few[1] - few[0]).std() / 2 / np.sqrt(80)
    assert moments[0][2] == pytest.approx(spread, rel=0.03)


def test_resamples_are_seeded():
    pairs = pairs_of([1, 0, 1, 1], [1, 1, 0, 1], binary=True)
    one, two, other = (resample(pairs, np.random.default_rng(seed), 50)[0] for seed in (5, 5, 6))
    assert (one == two).all()
    assert (one != other).any()


def accuracies(rng, n):
    """Both right 50 %, lost 12 %, gained 4 %: 62 and 54 %."""
    kind = rng.choice(4, size=n, p=[0.5, 0.12, 0.04, 0.34])
    return pairs_of(np.isin(kind, (0, 1)), np.isin(kind, (0, 2)), binary=True), True, (0.62, 0.54)


def bits(rng, n):
    """Bits per byte 2.0 and 2.2, longer documents easier."""
    size = rng.uniform(50, 150, size=n)
    own = size * 2.0 + rng.normal(0, 25, size=n) - 0.4 * (size - 100)
    return pairs_of(own, own + 0.2 * size + rng.normal(0, 8, size=n), size=size), False, (2.0, 2.2)


@pytest.mark.parametrize("world", [accuracies, bits])
def test_intervals_cover_the_truth(world):
    rng, covered, trials = np.random.default_rng(3), np.zeros(2), 400
    for _ in range(trials):
        pairs, higher, (parent, child) = world(rng, 120)
        drawn = ratios(*resample(pairs, rng, 800), higher_is_better=higher)
        for place, (found, true) in enumerate(
            (
                (difference(pairs), child - parent),
                (interval(1.0, drawn), ratio(parent, child, higher_is_better=higher)),
            )
        ):
            covered[place] += found.low <= true <= found.high
    share = covered / trials
    assert ((share > 0.91) & (share < 0.985)).all(), share


def test_the_mean_of_two_tasks_covers_the_truth():
    rng, covered, trials = np.random.default_rng(4), 0, 400
    true = np.mean([0.54 / 0.62, 2.0 / 2.2])
    for _ in range(trials):
        drawn = []
        for world in (accuracies, bits):
            pairs, higher, _ = world(rng, 80)
            drawn.append(ratios(*resample(pairs, rng, 800), higher_is_better=higher))
        found = interval(1.0, np.mean(drawn, axis=0))
        covered += found.low <= true <= found.high
    assert 0.91 < covered / trials < 0.985


def test_what_is_no_pairs():
    with pytest.raises(ValueError, match="different shapes"):
        pairs_of([1, 2], [1])
    with pytest.raises(ValueError, match="no documents"):
        pairs_of([], [])
