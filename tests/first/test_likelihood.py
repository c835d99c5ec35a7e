"""The likelihood integral against exact denoisers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from seeds import shifted

from first.marks import others_slow
from sk_itdiffusion._first._immse.cubature import (
    NoiseRule,
    PiecewiseDensity,
    hash_uniform,
    row_keys,
)
from sk_itdiffusion._first._immse.error_profiles import error_profile, stacking_weights
from sk_itdiffusion._first._immse.errors import Tolerance, calibrate_errors
from sk_itdiffusion._first._immse.likelihood import (
    IntegrationRule,
    StackedDenoiser,
    information_gap,
)
from sk_itdiffusion._first.channel import add_noise, data_from_noise, noise_from_data
from sk_itdiffusion._first.references import GaussianMixtureReference, GaussianReference


def random_mixture(n_features, n_components=3, seed=0):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(n_components, n_features, n_features)) / np.sqrt(n_features)
    covariances = 0.2 * roots @ np.swapaxes(roots, 1, 2) + 0.05 * np.eye(n_features)
    means = rng.normal(size=(n_components, n_features))
    return GaussianMixtureReference(rng.dirichlet(np.full(n_components, 3.0)), means, covariances)


def gaussian_of(mixture, seed=1):
    X = mixture.sample(20_000, np.random.RandomState(seed))
    return GaussianReference(X.mean(axis=0), np.cov(X.T).reshape(X.shape[1], X.shape[1]))


def pair(reference, denoiser):
    return lambda z, logsnr: (reference(z, logsnr), denoiser(z, logsnr))


def make_rule(n_features, *, n_draws=64, n_directions=2, low=-6.0, high=12.0, seed=3):
    edges = np.linspace(low, high, 41)
    middle = 0.5 * (edges[1:] + edges[:-1])
    placement = PiecewiseDensity.from_profile(edges, np.exp(-0.5 * ((middle - 1) / 3) ** 2))
    noise = NoiseRule.for_scoring(n_features, seed, n_directions)
    return IntegrationRule(placement, noise, n_draws)


def gap_and_truth(n_features, n_samples=400, **kwargs):
    mixture = random_mixture(n_features)
    reference = gaussian_of(mixture)
    X = mixture.sample(n_samples, np.random.RandomState(shifted(5)))
    gap, spread = information_gap(
        X, row_keys(X, 7), pair(reference, mixture), make_rule(n_features, **kwargs)
    )
    x = torch.from_numpy(X)
    truth = (mixture.log_prob(x) - reference.log_prob(x)).numpy()
    return gap, np.sqrt(spread), truth


@pytest.mark.parametrize("n_features", others_slow([1, 2, 10, 50], 3))
def test_exact_denoiser_gives_exact_log_density(n_features):
    gap, std, truth = gap_and_truth(n_features)
    error = gap - truth
    # The mean over rows: independent noise, so its standard error follows from the reported ones.
    assert abs(error.mean()) < 4 * np.sqrt((std**2).mean() / len(error)) + 2e-3
    assert np.abs(error).max() < 8 * std.max() + 1e-6


@pytest.mark.parametrize("n_features", others_slow([1, 2, 10, 50], 2))
def test_errors_are_calibrated_and_as_small_as_asked(n_features):
    """On rows other than those of the calibration.

    Errors are skewed, with a kurtosis of about ten: a standard deviation from the 100 rows of the
    calibration has a relative standard error of 0.15, one from 30 rows of 0.3; limits are 5 of it.
    """
    mixture = random_mixture(n_features)
    reference = gaussian_of(mixture)
    denoisers, rule = pair(reference, mixture), make_rule(n_features)

    def control(rows):
        return reference.log_prob(torch.from_numpy(rows)).numpy()

    few = mixture.sample(100, np.random.RandomState(shifted(4)))

    def integrate(keys, n_draws):
        return information_gap(few, keys, denoisers, replace(rule, n_draws=n_draws))

    errors = calibrate_errors(integrate, row_keys(few, 6), control(few), np.ones(100))
    X = mixture.sample(600, np.random.RandomState(shifted(5)))
    truth = mixture.log_prob(torch.from_numpy(X)).numpy() - control(X)
    order = np.argsort(control(X))
    for n_draws in (8, 32, 256):
        gap, spread = information_gap(X, row_keys(X, 7), denoisers, replace(rule, n_draws=n_draws))
        z = (gap - truth) / np.sqrt(errors.estimated(control(X), spread, n_draws))
        assert abs(np.log(z.std())) < 5 * 0.15
        assert abs(np.log(z[order[:30]].std())) < 5 * np.hypot(0.15, 0.3)
    for score_tol in (0.2, 0.05):
        found = np.empty(len(X))
        for n_draws, chosen in errors.rungs(control(X), Tolerance(score_tol)):
            found[chosen], _ = information_gap(
                X[chosen], row_keys(X[chosen], 7), denoisers, replace(rule, n_draws=n_draws)
            )
        assert np.sqrt(np.mean((found - truth) ** 2)) < 1.3 * score_tol


@pytest.mark.parametrize("unevenness", [0.6, 1.5])
def test_usual_tolerance_is_that_of_the_median_row(unevenness):
    """Errors of rows differ by more than their log-densities tell."""
    rng = np.random.default_rng(shifted(0))
    deviation = np.exp(unevenness * rng.normal(size=4_000))
    log_density = rng.normal(size=4_000)

    def integrate(keys, n_draws):
        radius, turn = (hash_uniform(keys, stream) for stream in (0, 1))
        noise = np.sqrt(-2.0 * np.log(radius)) * np.cos(2.0 * np.pi * turn)
        return deviation / np.sqrt(n_draws) * noise, deviation**2 / n_draws

    keys = row_keys(deviation[:, None], 1)
    errors = calibrate_errors(integrate, keys, log_density, np.ones(4_000))
    for nats in (0.2, 0.5):
        found = {}
        for of_median in (False, True):
            rungs = errors.rungs(log_density, Tolerance(nats, of_median=of_median))
            found[of_median] = np.empty(4_000)
            for n_draws, chosen in rungs:
                found[of_median][chosen] = deviation[chosen] / np.sqrt(n_draws)
        # Numbers of draws are powers of two: errors may be 0.7 times what was asked for.
        assert 0.65 * nats < np.sqrt(np.mean(found[False] ** 2)) < 1.1 * nats
        assert np.sqrt(np.mean(found[True] ** 2)) < 2.2 * nats
        assert np.median(found[True]) < 1.1 * nats
        if errors.typical > 0.25:  # no less is asked for
            assert np.median(found[True]) > 0.65 * nats


def test_error_falls_with_the_number_of_draws():
    few = gap_and_truth(2, n_draws=16)
    many = gap_and_truth(2, n_draws=128)
    ratio = np.mean((few[0] - few[2]) ** 2) / np.mean((many[0] - many[2]) ** 2)
    # Independent draws would give a ratio of 8; stratification and coupling give more.
    assert ratio > 8


@pytest.mark.parametrize("n_features", [2, 7, 10])
def test_coupled_draws_are_more_exact_than_independent_ones(n_features):
    """The sum of squared differences is the variance of independent draws."""
    gap, std, truth = gap_and_truth(n_features)
    assert np.mean((gap - truth) ** 2) < 0.7 * np.mean(std**2)


@pytest.mark.slow
@pytest.mark.parametrize("n_features", [2, 10])
def test_error_common_to_all_rows_is_small(n_features):
    """The mean error over many rows, beyond what independent errors explain."""
    mixture = random_mixture(n_features)
    reference = gaussian_of(mixture)
    n_rows = 16_000
    X = mixture.sample(n_rows, np.random.RandomState(shifted(6)))
    x = torch.from_numpy(X)
    truth = (mixture.log_prob(x) - reference.log_prob(x)).numpy()
    common, independent = [], []
    for seed in range(3):
        rule = make_rule(n_features, n_draws=32, seed=seed)
        gap, variance = information_gap(X, row_keys(X, seed), pair(reference, mixture), rule)
        common.append((gap - truth).mean() ** 2)
        independent.append(variance.mean() / n_rows)
    # Mean squares of three normal errors: the factor is the 0.1% point of chi-squared over 3.
    assert np.mean(common) < 0.005**2 + 5.4 * np.mean(independent)
    assert np.sqrt(np.mean(independent)) < 0.005


def test_a_row_does_not_depend_on_the_others():
    mixture = random_mixture(3)
    reference = gaussian_of(mixture)
    X = mixture.sample(57, np.random.RandomState(shifted(5)))
    denoisers, rule = pair(reference, mixture), make_rule(3)

    def score(rows):
        return information_gap(rows, row_keys(rows, 7), denoisers, rule, budget=1024)[0]

    together = score(X)
    np.testing.assert_array_equal(score(X[::-1])[::-1], together)
    np.testing.assert_array_equal(score(X[10:13]), together[10:13])
    np.testing.assert_array_equal(np.concatenate([score(x[None]) for x in X[:5]]), together[:5])


def test_cutting_the_range_never_flatters():
    """Outside the range the reference is used, so the mean can only fall (equation 2)."""
    mixture = random_mixture(2)
    reference = gaussian_of(mixture)
    X = mixture.sample(800, np.random.RandomState(shifted(5)))
    keys = row_keys(X, 7)
    x = torch.from_numpy(X)
    truth = float((mixture.log_prob(x) - reference.log_prob(x)).mean())
    for low, high in [(-1.0, 4.0), (-6.0, 2.0), (1.0, 12.0)]:
        rule = make_rule(2, low=low, high=high)
        gap, variance = information_gap(X, keys, pair(reference, mixture), rule)
        assert gap.mean() < truth - 0.01 + 3 * np.sqrt(variance.mean() / len(X))


def test_any_denoiser_stays_below_the_truth():
    mixture, wrong = random_mixture(2), random_mixture(2, seed=9)
    reference = gaussian_of(mixture)
    X = mixture.sample(3000, np.random.RandomState(shifted(5)))
    gap, variance = information_gap(X, row_keys(X, 7), pair(reference, wrong), make_rule(2))
    x = torch.from_numpy(X)
    truth = (mixture.log_prob(x) - reference.log_prob(x)).mean().item()
    expected = (wrong.log_prob(x) - reference.log_prob(x)).mean().item()
    error = np.sqrt(variance.mean() / len(X))
    assert gap.mean() < truth + 3 * error
    # The denoiser of another distribution gives that distribution's log-density.
    assert abs(gap.mean() - expected) < 4 * error + 0.01


def test_rotation_moves_nothing():
    mixture = random_mixture(3)
    reference = gaussian_of(mixture)
    Q = np.linalg.qr(np.random.default_rng(shifted(0)).normal(size=(3, 3)))[0]

    def rotated_gap(X, rotation):
        turned = torch.from_numpy(rotation)

        def rotate(denoiser):
            return lambda z, logsnr: denoiser(z @ turned, logsnr) @ turned.T

        rows = X @ rotation.T
        denoisers = pair(rotate(reference), rotate(mixture))
        return information_gap(rows, row_keys(rows, 7), denoisers, make_rule(3))

    X = mixture.sample(500, np.random.RandomState(shifted(5)))
    plain, _ = rotated_gap(X, np.eye(3))
    turned, _ = rotated_gap(X, Q)
    truth = (
        mixture.log_prob(torch.from_numpy(X)) - reference.log_prob(torch.from_numpy(X))
    ).numpy()
    assert np.abs(plain - turned).max() > 0  # other noise
    ratio = np.std(plain - truth) / np.std(turned - truth)
    assert 0.8 < ratio < 1.25


def test_stacking_finds_the_mixture_of_denoisers():
    mixture = random_mixture(2)
    reference = gaussian_of(mixture)
    X = mixture.sample(500, np.random.RandomState(shifted(2)))
    off = GaussianMixtureReference([1.0], [[2.0, 2.0]], [np.eye(2)])

    def blurred(z, logsnr):
        return 2.0 * mixture(z, logsnr) - reference(z, logsnr)

    experts = {"gaussian": reference, "blurred": blurred, "off": off}
    logsnr = np.linspace(-4, 8, 13)
    noise = NoiseRule(2, 2, central=False, seed=0)
    profile = error_profile(X, np.ones(500), row_keys(X, 1), experts, logsnr, noise)
    weights = stacking_weights(profile)
    best_single = np.min([profile.row_errors(profile.vertex(n)).mean(axis=1) for n in experts], 0)
    assert (profile.row_errors(weights).mean(axis=1) <= best_single * (1 + 1e-12)).all()
    # Half of the blurred denoiser and half of the Gaussian one is the exact one.
    middle = np.abs(logsnr - 1) < 2.5
    np.testing.assert_allclose(weights[middle, 1], 0.5, atol=0.1)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)


def test_stack_is_exactly_the_reference_where_it_has_all_the_weight():
    reference = gaussian_of(random_mixture(2))
    other = random_mixture(2)
    weights = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    stack = StackedDenoiser({"r": reference, "o": other}, np.array([-1.0, 0.0, 1.0]), weights)
    z = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(shifted(0)))
    logsnr = torch.linspace(-2, 2, 50, dtype=torch.float64)
    baseline, model = stack.paired_with(reference)(z, logsnr)
    below = logsnr <= 0
    assert torch.equal(model[below], baseline[below])
    assert torch.allclose(model[logsnr >= 1], other(z, logsnr)[logsnr >= 1], atol=1e-12)
    assert torch.allclose(stack(z, logsnr), model, atol=1e-12)


def test_channel_round_trip():
    generator = torch.Generator().manual_seed(shifted(0))
    x, eps = torch.randn(2, 40, 3, dtype=torch.float64, generator=generator)
    logsnr = torch.linspace(-8, 8, 40, dtype=torch.float64)
    z = add_noise(x, eps, logsnr)
    x_hat = x + 0.1
    eps_hat = noise_from_data(z, x_hat, logsnr)
    np.testing.assert_allclose(data_from_noise(z, eps_hat, logsnr), x_hat, rtol=1e-9)
    errors = (eps - eps_hat).square().sum(1), (x - x_hat).square().sum(1)
    np.testing.assert_allclose(errors[0], logsnr.exp() * errors[1], rtol=1e-6)
