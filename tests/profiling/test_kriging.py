"""Local kriging against a Gaussian process written out point by point, and its limits."""

import numpy as np
import pytest

from puzzlebench.profiling.kriging import KrigingParameters, LocalKriging


def parameters(**changes):
    fields = {
        "lengthscales": np.array([[2.0, 3.0, 1.5], [0.5, 0.8, 4.0]]),
        "amplitudes": np.array([0.4, 0.1]),
        "noise": 0.02,
        "metric": np.ones(3),
        "neighbours": 64,
        "interval_scale": 1.5,
    }
    return KrigingParameters(**{**fields, **changes})


@pytest.fixture
def points():
    rng = np.random.default_rng(7)
    x = rng.uniform(0, 4, (24, 3))
    u = 0.5 * np.sin(x[:, 0]) + 0.1 * x[:, 1] ** 2 + rng.normal(0, 0.05, 24) - 0.3
    return x, u, rng.uniform(0, 4, (10, 3))


def matern(p, a, b):
    total = 0.0
    for lengthscale, amplitude in zip(p.lengthscales, p.amplitudes, strict=True):
        d = np.sqrt(3 * sum(((a[f] - b[f]) / lengthscale[f]) ** 2 for f in range(len(a))))
        total += amplitude**2 * (1 + d) * np.exp(-d)
    return total


def naive_gp(p, x, u, query, *, robust=True):
    """Ordinary kriging with one Student-t reweighting; leave-one-out residuals by leaving each point out."""
    count = len(x)
    covariance = np.array([[matern(p, a, b) for b in x] for a in x])
    to_query = np.array([matern(p, a, query) for a in x])
    prior = sum(p.amplitudes**2)
    ones = np.ones(count)

    def local_mean(noisy):
        return ones @ np.linalg.solve(noisy, u) / (ones @ np.linalg.solve(noisy, ones))

    noisy = covariance + p.noise**2 * np.eye(count)
    if robust:
        mean, weight = local_mean(noisy), np.ones(count)
        for i in range(count):
            rest = [j for j in range(count) if j != i]
            gain = np.linalg.solve(noisy[np.ix_(rest, rest)], noisy[rest, i])
            residual = u[i] - mean - gain @ (u[rest] - mean)
            variance = prior + p.noise**2 - gain @ noisy[rest, i]
            weight[i] = max((3 + residual**2 / variance) / 4, 1)
        noisy = covariance + p.noise**2 * np.diag(weight)
    mean = local_mean(noisy)
    prediction = mean + to_query @ np.linalg.solve(noisy, u - mean)
    variance = prior + p.noise**2 - to_query @ np.linalg.solve(noisy, to_query)
    return prediction, p.interval_scale * np.sqrt(max(variance, p.noise**2))


def test_agrees_with_a_gaussian_process_written_out(points):
    x, u, queries = points
    p = parameters()
    mean, deviation = LocalKriging(p, x, u).predict(queries)
    expected = [naive_gp(p, x, u, query) for query in queries]
    np.testing.assert_allclose(mean, [m for m, _ in expected], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(deviation, [d for _, d in expected], rtol=1e-9)


def test_takes_only_the_nearest_in_the_metric(points):
    x, u, queries = points
    p = parameters(neighbours=6, metric=np.array([1.0, 0.0, 2.0]))
    mean, _ = LocalKriging(p, x, u).predict(queries)
    for query, found in zip(queries, mean, strict=True):
        near = np.argsort((((x - query) * p.metric) ** 2).sum(1))[:6]
        assert found == pytest.approx(naive_gp(p, x[near], u[near], query)[0], rel=1e-9)


def test_without_noise_a_measured_point_is_reproduced(points):
    x, u, _ = points
    mean, deviation = LocalKriging(parameters(noise=1e-5, interval_scale=1.0), x, u).predict(x)
    np.testing.assert_allclose(mean, u, atol=1e-5)
    assert deviation.max() < 1e-4


def test_with_noise_a_measured_point_is_smoothed(points):
    x, u, _ = points
    mean, _ = LocalKriging(parameters(noise=0.3), x, u).predict(x)
    assert np.abs(mean - u).max() > 0.02


def test_a_constant_moves_the_prediction_by_itself(points):
    x, u, queries = points
    p = parameters()
    mean, deviation = LocalKriging(p, x, u).predict(queries)
    moved, same = LocalKriging(p, x, u + 7.25).predict(queries)
    np.testing.assert_allclose(moved, mean + 7.25, atol=1e-9)
    np.testing.assert_allclose(same, deviation, rtol=1e-7)


def test_far_from_all_data_the_prediction_is_the_local_mean(points):
    x, u, _ = points
    mean, deviation = LocalKriging(parameters(), x, u).predict(np.full((1, 3), 1e4))
    assert u.min() < mean[0] < u.max()
    assert deviation[0] == pytest.approx(1.5 * np.sqrt(0.4**2 + 0.1**2 + 0.02**2))


def test_one_outlier_is_damped():
    x = np.stack(np.meshgrid(np.arange(5.0), np.arange(5.0), [0.0]), -1).reshape(-1, 3)
    u = 0.05 * x[:, 0] + 0.02 * x[:, 1]
    wrong = u.copy()
    wrong[12] += 0.5
    query = np.array([[2.3, 2.3, 0.0]])
    p = parameters(lengthscales=np.array([[6.0, 6.0, 6.0]]), amplitudes=np.array([0.4]))
    moved = LocalKriging(p, x, wrong).predict(query)[0] - LocalKriging(p, x, u).predict(query)[0]
    plain = naive_gp(p, x, wrong, query[0], robust=False)[0] - naive_gp(p, x, u, query[0], robust=False)[0]
    assert abs(plain) > 0.05, "the case must be one that hurts a plain Gaussian process"
    assert abs(moved[0]) < 0.3 * abs(plain)


def test_the_interval_widens_away_from_the_data(points):
    x, u, _ = points
    away = np.array([[4.0 + step, 2.0, 2.0] for step in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)])
    _, deviation = LocalKriging(parameters(), x, u).predict(away)
    assert (np.diff(deviation) > 0).all()


def test_the_interval_is_never_below_the_noise():
    x = np.repeat([[1.0, 1.0, 1.0]], 30, axis=0)
    _, deviation = LocalKriging(parameters(interval_scale=2.0), x, np.zeros(30)).predict(x[:1])
    assert deviation[0] == pytest.approx(2.0 * 0.02, rel=0.05)


def test_many_queries_answer_as_one_by_one(points):
    x, u, _ = points
    model = LocalKriging(parameters(neighbours=8), x, u)
    queries = np.random.default_rng(0).uniform(0, 4, (700, 3))  # more than one batch of solves
    mean, deviation = model.predict(queries)
    for place in (0, 511, 512, 699):
        one, one_deviation = model.predict(queries[place : place + 1])
        assert (mean[place], deviation[place]) == pytest.approx((one[0], one_deviation[0]), rel=1e-9)


def test_a_single_measured_point_answers_itself_everywhere():
    mean, _ = LocalKriging(parameters(), np.zeros((1, 3)), np.array([2.0])).predict(np.ones((2, 3)))
    np.testing.assert_allclose(mean, 2.0)


def test_no_measured_points_are_refused():
    with pytest.raises(ValueError, match="no measured points"):
        LocalKriging(parameters(), np.empty((0, 3)), np.empty(0))


@pytest.mark.parametrize(
    "changes",
    [{"amplitudes": np.ones(3)}, {"metric": np.ones(2)}, {"noise": 0.0}, {"neighbours": 0}, {"interval_scale": -1.0}],
)
def test_parameters_that_disagree_are_refused(changes):
    with pytest.raises(ValueError, match="kriging parameters"):
        parameters(**changes)
