"""Mixtures and kernels: closed forms, quadrature, and expectation-maximisation."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from seeds import shifted

from sk_itdiffusion._immse.channel import noise_scale, noised, signal_scale
from sk_itdiffusion._immse.roles import Roles
from sk_itdiffusion.references.em import (
    Mixtures,
    Rows,
    clustered,
    expectations,
    fit_mixtures,
    gaussians,
    maximized,
)
from sk_itdiffusion.references.kernels import KernelReference, fit_kernels
from sk_itdiffusion.references.mixture import MixtureReference

D = 3
ROLES = {
    "joint": ([1, 1, 1], [0, 0, 0]),
    "marginal": ([1, 0, 1], [0, 0, 0]),
    "conditional": ([1, 0, 0], [0, 1, 1]),
    "partly given": ([0, 1, 0], [1, 0, 0]),
}


def random_mixture(n_components=4, d=D, seed=0):
    rng = np.random.default_rng(shifted(seed))
    factors = rng.normal(size=(n_components, d, d)) / np.sqrt(d)
    covariances = factors @ factors.transpose(0, 2, 1) + 0.1 * np.eye(d)
    return MixtureReference(
        rng.dirichlet(np.full(n_components, 3.0)), rng.normal(size=(n_components, d)), covariances
    )


def kernels(seed=0):
    rng = np.random.default_rng(shifted(seed))
    factor = 0.4 * rng.normal(size=(D, D))
    return KernelReference(
        rng.normal(size=(6, D)),
        rng.uniform(0.5, 2.0, size=6),
        factor @ factor.T + 0.05 * np.eye(D),
        random_mixture(2, seed=seed + 1),
        0.3,
    )


def as_components(reference):
    """Return weights, means and covariances of all normal components of a reference."""
    if isinstance(reference, MixtureReference):
        return reference.log_weights.exp().numpy(), reference.means, reference.covariances
    own = (1 - reference.share) * reference.weights / reference.weights.sum()
    background = reference.background
    weights = torch.cat([own, reference.share * background.log_weights.exp()]).numpy()
    same = reference.covariance.expand(len(reference.points), -1, -1)
    return (
        weights,
        torch.cat([reference.points, background.means]),
        torch.cat([same, background.covariances]),
    )


def exact_log_density(reference, x, columns):
    """Return the marginal log-density of some columns by scipy."""
    if not columns.any():
        return np.zeros(len(x))
    weights, means, covariances = as_components(reference)
    parts = [
        np.log(weight)
        + np.atleast_1d(
            multivariate_normal(
                mean.numpy()[columns], covariance.numpy()[np.ix_(columns, columns)]
            ).logpdf(x[:, columns])
        )
        for weight, mean, covariance in zip(weights, means, covariances, strict=True)
    ]
    return np.logaddexp.reduce(parts, axis=0)


def roles_of(name):
    target, given = (np.array(mask, dtype=bool) for mask in ROLES[name])
    return Roles(target, given)


REFERENCES = {"mixture": random_mixture, "kernels": kernels}


@pytest.fixture(params=REFERENCES)
def reference(request):
    return REFERENCES[request.param]()


def points(n=20, seed=5):
    return torch.from_numpy(np.random.default_rng(shifted(seed)).normal(size=(n, D)))


@pytest.mark.parametrize("name", ROLES)
def test_log_density_is_the_closed_form_for_every_kind_of_role(reference, name):
    roles, x = roles_of(name), points()
    joint = exact_log_density(reference, x.numpy(), roles.target | roles.given)
    expected = joint - exact_log_density(reference, x.numpy(), roles.given)
    np.testing.assert_allclose(reference.log_prob(x, roles).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("name", ROLES)
@pytest.mark.parametrize("logsnr", [-3.0, 0.5, 4.0])
def test_denoiser_is_the_score_of_the_noisy_density(reference, name, logsnr):
    """Tweedie: E[eps | z] = -beta d/dz log p(z), here of the exact density with noise added."""
    roles, x = roles_of(name), points()
    level = torch.full((len(x),), logsnr, dtype=torch.float64)
    eps = points(seed=6) * torch.from_numpy(roles.target)
    z = noised(x, eps, level, roles)
    alpha, beta = float(signal_scale(level[:1])), float(noise_scale(level[:1]))
    weights, means, covariances = as_components(reference)
    scale = np.where(roles.target, alpha, 1.0)
    noisy = MixtureReference(
        weights,
        means.numpy() * scale,
        covariances.numpy() * np.outer(scale, scale) + np.diag(beta**2 * roles.target),
    )
    found = reference.denoise(z, level, roles).numpy()
    step, columns = 1e-5, roles.target | roles.given
    for j in range(D):
        if not roles.target[j]:
            assert (found[:, j] == 0).all()
            continue
        shift = step * np.eye(D)[j]
        up, down = (exact_log_density(noisy, z.numpy() + s * shift, columns) for s in (1, -1))
        np.testing.assert_allclose(found[:, j], -beta * (up - down) / (2 * step), atol=1e-6)


def test_denoiser_in_two_columns_is_the_quadrature():
    reference = random_mixture(d=2)
    z, logsnr = torch.tensor([[0.3, -0.4]], dtype=torch.float64), 0.7
    level = torch.tensor([logsnr], dtype=torch.float64)
    alpha, beta = float(signal_scale(level)), float(noise_scale(level))
    grid = np.linspace(-9, 9, 1201)
    x = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    roles = Roles.all_targets(2)
    log_prior = reference.log_prob(torch.from_numpy(x), roles).numpy()
    log_joint = log_prior - 0.5 * ((z.numpy() - alpha * x) ** 2).sum(1) / beta**2
    weight = np.exp(log_joint - log_joint.max())
    mean = weight @ x / weight.sum()
    expected = (z.numpy()[0] - alpha * mean) / beta
    np.testing.assert_allclose(reference.denoise(z, level, roles).numpy()[0], expected, atol=1e-7)


def test_rows_with_roles_of_their_own_are_answered_one_by_one(reference):
    target, given = (np.array(m, dtype=bool) for m in zip(*ROLES.values(), strict=True))
    x, each = points(4), Roles(target, given)
    level = torch.linspace(-2, 2, 4, dtype=torch.float64)
    together = reference.log_prob(x, each), reference.denoise(x, level, each)
    for i in range(4):
        own = Roles(target[i], given[i])
        part = slice(i, i + 1)
        torch.testing.assert_close(together[0][part], reference.log_prob(x[part], own))
        torch.testing.assert_close(together[1][part], reference.denoise(x[part], level[part], own))


@pytest.mark.parametrize("name", ROLES)
def test_draws_have_the_density(reference, name):
    """The mean of log q over draws is minus the entropy, which two kinds of draws agree on."""
    roles, n = roles_of(name), 4000
    x = points(1).expand(n, -1)
    drawn = reference.sample(x, roles, np.random.default_rng(shifted(1)))
    assert torch.equal(drawn[:, ~roles.target], x[:, ~roles.target])
    log_prob = reference.log_prob(drawn, roles).numpy()
    # Importance weights from a wide normal distribution give the same mean.
    rng, scale = np.random.default_rng(shifted(2)), 3.0
    wide = x.numpy().copy()
    wide[:, roles.target] = scale * rng.normal(size=(n, roles.target.sum()))
    log_q = reference.log_prob(torch.from_numpy(wide), roles).numpy()
    squares = (wide[:, roles.target] / scale) ** 2 + np.log(2 * np.pi * scale**2)
    weight = np.exp(log_q + 0.5 * squares.sum(1))
    weighted = weight * log_q
    error = np.hypot(log_prob.std(), weighted.std()) / np.sqrt(n)
    assert abs(log_prob.mean() - weighted.mean()) < 5 * error


def test_states_give_equal_references(reference):
    other = type(reference).from_state(reference.state())
    x = points()
    torch.testing.assert_close(
        other.log_prob(x, roles_of("joint")), reference.log_prob(x, roles_of("joint"))
    )


# --- Expectation-maximisation ---------------------------------------------------------------


def sample_of(mixture, n, seed=0):
    roles = Roles.all_targets(mixture.n_columns)
    x = torch.zeros(n, mixture.n_columns, dtype=torch.float64)
    return mixture.sample(x, roles, np.random.default_rng(shifted(seed))).numpy()


def holes(X, share, seed=3):
    return np.where(np.random.default_rng(shifted(seed)).random(X.shape) < share, np.nan, X)


def penalised(rows, mixtures, log_prob, prior, prior_rows):
    """Return the objective of EM without a floor: likelihood and priors."""
    precision = torch.linalg.inv(mixtures.covariances)
    penalty = torch.logdet(mixtures.covariances) + (prior[:, None] * precision.mT).sum((-2, -1))
    total = (rows.weight * log_prob).sum(0) - 0.5 * prior_rows * penalty.sum(1)
    return (total + mixtures.log_weights.sum(1)).numpy()


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_no_step_lowers_the_objective(share):
    X = holes(sample_of(random_mixture(3), 400), share)
    weight = np.random.default_rng(shifted(4)).integers(0, 3, size=(400, 2)).astype(float)
    rows = Rows.of(X, weight)
    gaussian, _ = gaussians(rows, 1e-9)
    mixtures = clustered(rows, gaussian, 4, 1e-9, 0)
    prior = torch.einsum("gk,gkij->gij", mixtures.log_weights.exp(), mixtures.covariances)
    reached = []
    for _ in range(12):
        moments = expectations(rows, mixtures)
        reached.append(penalised(rows, mixtures, moments.log_prob, prior, 4.0))
        mixtures = maximized(mixtures, moments, prior, 4.0, 0.0)
    assert (np.diff(reached, axis=0) > -1e-8 * np.abs(reached[0])).all()
    assert (reached[-1] > reached[0]).all()


def test_log_densities_of_incomplete_rows_are_those_of_the_marginals():
    mixture = random_mixture()
    X = holes(sample_of(mixture, 50), 0.4)
    rows = Rows.of(X, np.ones((50, 1)))
    one = Mixtures(mixture.log_weights[None], mixture.means[None], mixture.covariances[None])
    _, found = fit_mixtures(rows, one, 0.0, 0.0, max_steps=0)
    roles = Roles.of_rows(X, np.zeros(D, dtype=bool))
    expected = mixture.log_prob(torch.from_numpy(np.nan_to_num(X)), roles)
    torch.testing.assert_close(found[:, 0], expected)


def test_groups_are_fitted_as_if_alone():
    X = sample_of(random_mixture(3), 300)
    weight = np.ones((300, 2))
    weight[::3, 0] = 0.0
    rows, alone = Rows.of(X, weight), Rows.of(X, weight[:, :1])
    start = clustered(rows, gaussians(rows, 1e-6)[0], 3, 1e-6, 0)
    together, log_prob = fit_mixtures(rows, start, 4.0, 1e-6, max_steps=5, tol=0.0)
    first = Mixtures(*(part[:1] for part in (start.log_weights, start.means, start.covariances)))
    apart, own = fit_mixtures(alone, first, 4.0, 1e-6, max_steps=5, tol=0.0)
    torch.testing.assert_close(together.means[:1], apart.means)
    torch.testing.assert_close(log_prob[:, :1], own)


def test_mean_is_right_where_entries_are_missing_at_random():
    """The second column is hidden for most rows whose first is positive (correlation 0.8)."""
    rng = np.random.default_rng(shifted(0))
    n = 20_000
    X = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], n)
    hidden = (X[:, 0] > 0) & (rng.random(n) < 0.8)
    X[hidden, 1] = np.nan
    mean = gaussians(Rows.of(X, np.ones((n, 1))), 1e-9)[0].means[0, 0].numpy()
    # The rows that are seen alone have a mean of -0.43; the error is that of a regression.
    assert np.abs(mean).max() < 5 * 1.5 / np.sqrt((~hidden).sum())


def test_weights_are_repetitions():
    X = sample_of(random_mixture(2), 60)
    times = np.random.default_rng(shifted(1)).integers(1, 4, size=60)
    weighted = gaussians(Rows.of(X, times[:, None].astype(float)), 1e-6)[0]
    repeated = gaussians(Rows.of(np.repeat(X, times, axis=0), np.ones((times.sum(), 1))), 1e-6)[0]
    torch.testing.assert_close(weighted.covariances, repeated.covariances)


def test_kernels_find_the_width_of_repeated_values():
    """Rows are pairs that differ by noise of a known width, in two columns."""
    rng = np.random.default_rng(shifted(0))
    centers = np.repeat(rng.normal(size=(400, 2)), 2, axis=0)
    X = centers + 0.01 * rng.normal(size=centers.shape)
    background = gaussians(Rows.of(X, np.ones((800, 1))), 1e-6)[0][0]
    covariance, share = fit_kernels(X, np.ones(800), np.arange(800), background, 1e-9, 0)
    # The difference of two rows has twice the variance of the noise.
    deviation = np.sqrt(np.diag(covariance) / 2.0)
    assert (np.abs(np.log(deviation / 0.01)) < 5 / np.sqrt(2 * 400)).all()
    assert share < 0.2
