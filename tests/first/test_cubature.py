"""Noise rules, row keys and densities of the log-SNR."""

import numpy as np
import pytest
from scipy import integrate, stats

from sk_itdiffusion._first._immse.cubature import (
    NoiseRule,
    PiecewiseDensity,
    hash_uniform,
    row_keys,
    spawn_keys,
)
from sk_itdiffusion._first.schedules import SCHEDULES, LogisticSchedule, UniformSchedule


def test_keys_depend_on_content_only():
    X = np.random.default_rng(0).normal(size=(1000, 3))
    keys = row_keys(X)
    np.testing.assert_array_equal(row_keys(X[::-1])[::-1], keys)
    np.testing.assert_array_equal(row_keys(np.asfortranarray(X)), keys)
    assert len(np.unique(keys)) == 1000
    assert row_keys(np.zeros((1, 2)))[0] == row_keys(np.array([[-0.0, 0.0]]))[0]
    assert len(np.intersect1d(keys, row_keys(X, seed=1))) == 0
    assert row_keys(X[:1, [1, 0, 2]])[0] != keys[0]


def test_hashes_of_similar_rows_are_uniform_and_uncorrelated():
    keys = row_keys(np.arange(20_000.0)[:, None])
    drawn = spawn_keys(keys, 2)
    u = np.stack([hash_uniform(drawn[:, i], j) for i in (0, 1) for j in (0, 1)])
    for values in u:
        assert stats.kstest(values, "uniform").pvalue > 1e-4
    correlation = np.corrcoef(np.vstack([u, np.roll(u[:1], 1, axis=1)])) - np.eye(5)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(20_000)


@pytest.mark.parametrize(("n_features", "n_directions"), [(1, 1), (3, 3), (5, 5)])
def test_degree_three_rule_is_exact_for_cubics(n_features, n_directions):
    rule = NoiseRule(n_features, n_directions, central=True, seed=0)
    eps, coefficient = rule.draw(np.arange(50, dtype=np.uint64))
    rng = np.random.default_rng(1)
    A, b, c = rng.normal(size=(n_features, n_features)), rng.normal(size=n_features), 0.7

    def cubic(e):
        return c + e @ b + np.einsum("...i,ij,...j", e, A, e) + (e @ b) ** 3

    values = (cubic(eps) * coefficient).sum(axis=1)
    np.testing.assert_allclose(values, c + np.trace(A), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(coefficient.sum(axis=1), 1.0)


@pytest.mark.parametrize("central", [True, False])
@pytest.mark.parametrize(("n_features", "n_directions"), [(2, 2), (2, 1), (6, 4), (30, 8)])
def test_rule_is_unbiased(n_features, n_directions, central):
    rule = NoiseRule(n_features, n_directions, central, seed=0)
    eps, coefficient = rule.draw(spawn_keys(np.arange(20_000, dtype=np.uint64), 1).ravel())
    direction = np.full(n_features, 1 / np.sqrt(n_features))
    for function, expected in [
        (lambda e: np.cos(e @ direction), np.exp(-0.5)),
        (lambda e: np.abs(e[..., 0]), np.sqrt(2 / np.pi)),
        (lambda e: e[..., -1] ** 4, 3.0),
    ]:
        values = (function(eps) * coefficient).sum(axis=1)
        assert abs(values.mean() - expected) < 4.5 * values.std() / np.sqrt(len(values)) + 1e-12


@pytest.mark.parametrize("central", [True, False])
@pytest.mark.parametrize(("n_features", "n_directions"), [(1, 1), (2, 2), (6, 4), (5, 2), (150, 2)])
def test_coupled_draws_are_unbiased_one_by_one(n_features, n_directions, central):
    rule = NoiseRule(n_features, n_directions, central, seed=0)
    eps, coefficient = rule.draws(row_keys(np.arange(4_000.0)[:, None]), 3, 4)
    direction = np.full(n_features, 1 / np.sqrt(n_features))
    for function, expected in [
        (lambda e: np.cos(e @ direction), np.exp(-0.5)),
        (lambda e: np.abs(e[..., 0]), np.sqrt(2 / np.pi)),
        (lambda e: e[..., -1] ** 4, 3.0),
    ]:
        values = (function(eps) * coefficient).sum(axis=2)
        error = values.std(axis=0) / np.sqrt(len(values))
        assert (np.abs(values.mean(axis=0) - expected) < 4.5 * error + 1e-12).all()


@pytest.mark.parametrize(("n_features", "n_directions"), [(1, 1), (4, 2), (5, 2), (7, 3)])
def test_complete_frames_are_exact_for_quadratic_functions(n_features, n_directions):
    rule = NoiseRule(n_features, n_directions, central=True, seed=0)
    n_draws = n_features  # of as many frames as each draw has directions
    matrix = np.random.default_rng(0).normal(size=(n_features, n_features))
    eps, coefficient = rule.draws(np.arange(9, dtype=np.uint64), n_draws, 2 * n_draws)
    values = np.einsum("...i,ij,...j", eps, matrix, eps) * coefficient
    mean = values.sum(axis=(1, 2)) / (2 * n_draws)
    np.testing.assert_allclose(mean, np.trace(matrix), rtol=1e-9)


def test_draws_are_the_same_in_parts():
    rule = NoiseRule(5, 2, central=False, seed=1)
    keys = np.arange(6, dtype=np.uint64)
    eps, coefficient = rule.draws(keys, 0, 12)
    parts = [rule.draws(keys, first, 4) for first in (0, 4, 8)]
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts], axis=1), eps)
    np.testing.assert_array_equal(np.concatenate([p[1] for p in parts], axis=1), coefficient)


def test_directions_are_orthonormal():
    rule = NoiseRule(6, 4, central=False, seed=2)
    eps, _ = rule.draw(np.arange(7, dtype=np.uint64))
    gram = np.einsum("nid,njd->nij", eps[:, :4], eps[:, :4])
    norm = np.einsum("nii->ni", gram)
    np.testing.assert_allclose(gram, norm[:, :1, None] * np.eye(4), atol=1e-12)


def test_piecewise_density_is_a_density_and_its_quantiles_invert_it():
    edges = np.array([-2.0, -1.0, 1.5, 4.0])
    density = PiecewiseDensity.from_profile(edges, np.array([1.0, 0.0, 3.0]), floor=0.1)
    total = integrate.quad(density.density, -2, 4, points=[-1, 1.5])[0]
    assert total == pytest.approx(1.0)
    points = np.linspace(-1.99, 3.99, 50)
    below = [integrate.quad(density.density, -2, p, points=[-1, 1.5])[0] for p in points]
    np.testing.assert_allclose(density.quantile(np.array(below)), points, atol=1e-6)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedules_are_densities_that_cover_the_range(name):
    density = SCHEDULES[name]().density(-5.0, 11.0, np.array([0.1, 0.5, 2.4]))
    assert density.mass.sum() == pytest.approx(1.0)
    uniform = np.diff(density.edges) / 16.0
    assert (density.mass >= 0.049 * uniform).all()


def test_logistic_schedule_follows_the_distribution():
    density = LogisticSchedule(loc=2.0, scale=1.5).density(-8.0, 12.0, np.ones(2))
    law = stats.logistic(2.0, 1.5)
    inside = law.cdf(12) - law.cdf(-8)
    expected = 0.95 * np.diff(law.cdf(density.edges)) / inside + 0.05 / 256
    np.testing.assert_allclose(density.mass, expected, rtol=1e-9)


def test_cosine_and_ddpm_match_their_definitions():
    t = (np.arange(20_000) + 0.5) / 20_000
    cosine = SCHEDULES["cosine"]().density(-6.0, 6.0, np.ones(1))
    logsnr = -2 * np.log(np.tan(np.pi * t / 2))
    inside = logsnr[(logsnr > -6) & (logsnr < 6)]
    empirical = np.histogram(inside, cosine.edges)[0] / len(inside)
    np.testing.assert_allclose(cosine.mass, 0.95 * empirical + 0.05 / 256, atol=3e-4)
    ddpm = SCHEDULES["ddpm_linear"]().density(-8.0, 8.0, np.ones(1))
    signal = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    steps = np.log(signal / (1 - signal))
    inside = steps[(steps > -8) & (steps < 8)]
    share = np.mean(inside < 0)
    mass_below = ddpm.mass[ddpm.edges[1:] <= 0].sum()
    assert mass_below == pytest.approx(0.95 * share + 0.05 * 0.5, abs=5e-3)


def test_a_reversed_range_is_refused():
    with pytest.raises(ValueError, match="increasing"):
        UniformSchedule().density(2.0, 2.0, np.ones(1))
    with pytest.raises(ValueError, match="scale must be a positive"):
        LogisticSchedule(scale=-1.0).density(0.0, 1.0, np.ones(1))
