"""The integral over the log-SNR: noise, exact log-densities, standard errors, bounds."""

import numpy as np
import pytest
import torch
from seeds import shifted
from test_mixture import random_mixture, sample_of

from sk_itdiffusion._immse.integral import Calibration, Rule, Tolerance
from sk_itdiffusion._immse.noise import NoiseRule, child_keys, row_keys
from sk_itdiffusion._immse.placement import Placement
from sk_itdiffusion._immse.roles import Roles
from sk_itdiffusion._immse.schedules import SCHEDULES, resolve_schedule
from sk_itdiffusion._model.stack import Stack, least_on_simplex, residual_profile
from sk_itdiffusion.references.mixture import MixtureReference

NODES = np.linspace(-7.0, 9.0, 33)


def keys_of(n, seed=0):
    return row_keys(np.random.default_rng(shifted(seed)).normal(size=(n, 1)), 0)


@pytest.mark.parametrize("d", [1, 2, 5, 8, 200])
def test_noise_has_the_moments_of_the_normal_distribution(d):
    rule = NoiseRule(d, 0)
    eps, coefficient = (part[:, :1] for part in rule.draws(keys_of(20_000), 1))
    np.testing.assert_allclose(coefficient.sum(-1), 1.0)
    # Of many columns the bank has 5000 directions, whose squares are off by a fiftieth.
    bank = np.sqrt(2 / 5000) if d > 128 else 0.0
    squares = (coefficient * np.square(eps[..., 0])).sum(-1).ravel()
    assert abs(squares.mean() - 1.0) < 5 * np.hypot(squares.std() / np.sqrt(20_000), bank)
    fourth = (coefficient * eps[..., -1] ** 4).sum(-1).ravel()
    assert abs(fourth.mean() - 3.0) < 5 * np.hypot(fourth.std() / np.sqrt(20_000), 6 * bank)
    assert (coefficient[..., None] * eps).sum(2) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("d", [2, 5])
def test_noise_is_exact_for_quadratic_functions_over_whole_frames(d):
    """With the origin, the mean over the directions of a frame is the trace."""
    rule, matrix = NoiseRule(d, 0), np.random.default_rng(shifted(1)).normal(size=(d, d))
    eps, coefficient = rule.draws(keys_of(50), 2 * d)
    values = np.einsum("nsmi,ij,nsmj->nsm", eps, matrix, eps)
    found = (values * coefficient).sum(-1)
    # 2 d draws of two directions each are four frames.
    assert np.abs(found.mean(axis=1) - np.trace(matrix)).max() < 1e-9 * np.abs(values).max()


def test_noise_follows_the_row_alone():
    rule, keys = NoiseRule(3, 0), keys_of(40)
    together = rule.draws(keys, 8)[0]
    np.testing.assert_array_equal(rule.draws(keys[::-1], 8)[0][::-1], together)
    np.testing.assert_array_equal(rule.draws(keys[7:8], 8)[0], together[7:8])


def test_hash_sees_values_and_missing_entries_only():
    X = np.array([[0.0, np.nan], [-0.0, -np.nan], [0.0, 1.0]])
    keys = row_keys(X, 0)
    assert keys[0] == keys[1] != keys[2]
    assert len(np.unique(child_keys(keys[:1], np.arange(1000)))) == 1000


def exact_case(target, given, seed=0):
    """Return points, the reference and the truth: a mixture and the normal one of its moments."""
    truth = random_mixture(4, 3, seed)
    mean, covariance = truth.moments()
    reference = MixtureReference([1.0], mean[None], covariance[None])
    roles = Roles(np.array(target, dtype=bool), np.array(given, dtype=bool))
    return sample_of(truth, 150, seed), reference, truth, roles


CASES = {
    "joint": ([1, 1, 1], [0, 0, 0]),
    "marginal": ([1, 1, 0], [0, 0, 0]),
    "conditional": ([0, 1, 1], [1, 0, 0]),
}


def pair_of(reference, truth):
    experts = {"reference": reference.denoise, "truth": truth.denoise}
    weights = np.tile([0.0, 1.0], (2, 1))
    return Stack(("reference", "truth"), "reference", NODES[[0, -1]], weights).pair(experts)


@pytest.mark.parametrize("case", CASES)
def test_exact_denoiser_gives_exact_log_density(case):
    X, reference, truth, roles = exact_case(*CASES[case])
    x = torch.from_numpy(X)
    rule = Rule(Placement.at_nodes(NODES, np.ones(len(NODES))), 0, 4096)
    keys = row_keys(X, shifted(1))
    first, second = (
        rule.integrate(
            X, child_keys(keys, np.array([i]))[:, 0], pair_of(reference, truth), roles, 64
        )[0]
        for i in (0, 1)
    )
    expected = (truth.log_prob(x, roles) - reference.log_prob(x, roles)).numpy()
    error = 0.5 * (first + second) - expected
    # The error of rows follows from the two independent integrals.
    deviation = np.sqrt(np.mean((first - second) ** 2) / 4)
    assert abs(error.mean()) < 5 * deviation / np.sqrt(len(X)) + 2e-3
    assert np.sqrt(np.mean(error**2)) < 1.5 * deviation + 2e-3


def test_standard_errors_are_calibrated_on_other_rows():
    X, reference, truth, roles = exact_case(*CASES["joint"])
    pair, x = pair_of(reference, truth), torch.from_numpy(X)
    rule = Rule(Placement.at_nodes(NODES, np.ones(len(NODES))), 0, 4096)
    log_q = reference.log_prob(x, roles).numpy()

    def integrate(n_draws, part):
        keys = child_keys(row_keys(X[:50], 0), np.array([2 * n_draws + part]))[:, 0]
        return rule.integrate(X[:50], keys, pair, roles, n_draws)

    errors = Calibration.measured(integrate, log_q[:50])
    expected = truth.log_prob(x, roles).numpy() - log_q
    for n_draws in (8, 32, 128):
        gap, spread = rule.integrate(X[50:], row_keys(X[50:], 7), pair, roles, n_draws)
        variance = errors.estimated(log_q[50:], spread, n_draws)
        z = (gap - expected[50:]) / np.sqrt(variance)
        # Squares of 50 and of 100 rows, of kurtosis 10 at most: a relative error of 0.26.
        assert abs(np.log(z.std())) < 5 * 0.26
    rungs = list(errors.rungs(log_q, Tolerance(0.2)))
    assert sorted(np.concatenate([rows for _, rows in rungs])) == list(range(len(X)))
    needed = {n for n, _ in errors.rungs(log_q, Tolerance(0.1))}
    assert max(needed) > max(n for n, _ in rungs)


def test_any_denoiser_stays_below_the_truth():
    """With a denoiser that is wrong the mean falls short, by half the integral of its excess."""
    X, reference, truth, roles = exact_case(*CASES["joint"])
    rule = Rule(Placement.at_nodes(NODES, np.ones(len(NODES))), 0, 4096)

    def pair(z, logsnr, roles):
        baseline = reference.denoise(z, logsnr, roles)
        return baseline, 0.5 * (truth.denoise(z, logsnr, roles) - baseline)

    gap, _ = rule.integrate(X, row_keys(X, 1), pair, roles, 64)
    x = torch.from_numpy(X)
    lead = gap - (truth.log_prob(x, roles) - reference.log_prob(x, roles)).numpy()
    assert lead.mean() < 5 * lead.std() / np.sqrt(len(X))


def test_weights_on_the_simplex_are_never_worse_than_one_expert():
    rng = np.random.default_rng(shifted(0))
    for _ in range(20):
        residuals = rng.normal(size=(4, 30)) * rng.lognormal(size=(4, 1))
        gram = residuals @ residuals.T
        weights = least_on_simplex(gram)
        assert weights.sum() == pytest.approx(1.0)
        assert (weights >= 0).all()
        assert weights @ gram @ weights <= gram.diagonal().min() * (1 + 1e-6)


def test_profile_finds_the_expert_that_is_right():
    X, reference, truth, roles = exact_case(*CASES["joint"])
    experts = {"reference": reference.denoise, "truth": truth.denoise}
    profile = residual_profile(X, row_keys(X, 0), experts, NODES, roles, np.ones(len(X)), 0, 4)
    gain = profile.cross_fitted_gain("reference")
    x = torch.from_numpy(X)
    expected = (truth.log_prob(x, roles) - reference.log_prob(x, roles)).numpy()
    difference = gain - expected
    assert abs(difference.mean()) < 5 * difference.std() / np.sqrt(len(X)) + 0.02


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_densities(name):
    placement = resolve_schedule(name).density(-5.0, 12.0, np.array([0.1, 1.0, 3.0]))
    grid = np.linspace(-5.0, 12.0, 20_001)
    assert np.trapezoid(placement.density(grid), grid) == pytest.approx(1.0, rel=1e-3)
    inside = placement.quantile(np.linspace(0.0, 1.0, 101))
    assert (np.diff(inside) > 0).all()
    # A uniform share keeps importance weights bounded.
    assert placement.density(grid).min() > 0.04 / 17.0


def test_wrong_schedules_are_errors_that_name_them():
    with pytest.raises(ValueError, match="schedule must be one of"):
        resolve_schedule("linear")
    with pytest.raises(ValueError, match="schedule's scale"):
        SCHEDULES["logistic"](scale=-1.0).density(-1.0, 1.0, np.ones(2))
