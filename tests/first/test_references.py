"""Analytic references against independent computations."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from seeds import shifted
from sklearn.base import clone
from sklearn.covariance import ledoit_wolf
from sklearn.mixture import GaussianMixture

from first.marks import others_slow
from sk_itdiffusion import (
    IMMSEDensity,
    IMMSEDiscreteDensity,
    IMMSEEnsemble,
    IMMSEMixedDensity,
)
from sk_itdiffusion._first._table.rows import (
    WeightedRows,
    effective_number,
    group_rows,
    in_common_units,
)
from sk_itdiffusion._first.channel import add_noise
from sk_itdiffusion._first.layout import Layout, Variable
from sk_itdiffusion._first.references import (
    GaussianMixtureReference,
    GaussianReference,
    IndependentReference,
    KernelDensityReference,
    LowRankGaussianReference,
)
from sk_itdiffusion._first.references import mixture_fit as mixture_module
from sk_itdiffusion._first.references.families.gaussian import fit_gaussian_by_validation
from sk_itdiffusion._first.references.gaussian import floor_eigenvalues, shrunk_covariance
from sk_itdiffusion._first.references.mixture_fit import fit_gaussian_mixture, widened

pytestmark = pytest.mark.usefixtures("brief_fits")


def make_mixture():
    rng = np.random.default_rng(shifted(0))
    roots = rng.normal(size=(3, 2, 2))
    covariances = roots @ np.swapaxes(roots, 1, 2) + 0.1 * np.eye(2)
    return GaussianMixtureReference([0.2, 0.5, 0.3], rng.normal(size=(3, 2)), covariances)


def parameters(mixture):
    covariances = torch.einsum(
        "kde,ke,kfe->kdf", mixture.basis, mixture.variances, mixture.basis
    ).numpy()
    return mixture.log_weights.exp().numpy(), mixture.means.numpy(), covariances


def test_log_densities_match_scipy():
    mixture = make_mixture()
    X = np.random.default_rng(shifted(1)).normal(size=(20, 2))
    expected = sum(
        w * stats.multivariate_normal(m, c).pdf(X)
        for w, m, c in zip(*parameters(mixture), strict=True)
    )
    got = mixture.log_prob(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(got, np.log(expected), rtol=1e-10)
    gaussian = GaussianReference([0.5, -1.0], [[2.0, 0.3], [0.3, 0.5]])
    expected = stats.multivariate_normal([0.5, -1.0], [[2.0, 0.3], [0.3, 0.5]]).logpdf(X)
    got = gaussian.log_prob(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-10)


@pytest.mark.parametrize("logsnr", [-3.0, 0.5, 4.0])
def test_denoisers_are_conditional_means(logsnr):
    """Brute force: the posterior of x given z by quadrature over x, in one dimension."""
    mixture = GaussianMixtureReference([0.3, 0.7], [[-1.0], [1.5]], [[[0.2]], [[0.6]]])
    gaussian = GaussianReference([0.4], [[1.3]])
    a = torch.tensor([logsnr], dtype=torch.float64)
    signal, noise = np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))
    for reference in (mixture, gaussian):
        for z in (-1.3, 0.2, 2.0):

            def joint(x, z=z, reference=reference):
                prior = np.exp(reference.log_prob(torch.tensor([[x]], dtype=torch.float64)).item())
                return prior * stats.norm.pdf(z, signal * x, noise)

            center = z / signal
            width = 12 * noise / signal
            points = {"points": [np.clip(center, -7, 7)], "limit": 200}
            low, high = max(-8, center - width), min(8, center + width)
            mass = integrate.quad(joint, low, high, **points)[0]
            mean = integrate.quad(lambda x, f=joint: x * f(x), low, high, **points)[0] / mass
            expected = (z - signal * mean) / noise
            got = reference.denoise(torch.tensor([[z]], dtype=torch.float64), a).item()
            assert got == pytest.approx(expected, abs=1e-6)


def test_a_mixture_of_one_component_is_the_gaussian():
    covariance = [[2.0, 0.3], [0.3, 0.5]]
    gaussian = GaussianReference([0.5, -1.0], covariance)
    mixture = GaussianMixtureReference([1.0], [[0.5, -1.0]], [covariance])
    z = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(shifted(0)))
    logsnr = torch.linspace(-10, 14, 30, dtype=torch.float64)
    np.testing.assert_allclose(mixture.log_prob(z), gaussian.log_prob(z), rtol=1e-12)
    np.testing.assert_allclose(mixture(z, logsnr), gaussian(z, logsnr), rtol=1e-9, atol=1e-12)
    assert mixture.variance_range() == pytest.approx(gaussian.variance_range())


def test_error_of_the_gaussian_denoiser_is_the_closed_form():
    variances = np.array([0.1, 1.0, 3.0])
    reference = GaussianReference(np.zeros(3), np.diag(variances))
    x = torch.from_numpy(reference.sample(200_000, np.random.RandomState(shifted(0))))
    eps = torch.randn(
        x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(shifted(0))
    )
    logsnr = torch.full((len(x),), 0.7, dtype=torch.float64)
    error = (eps - reference(add_noise(x, eps, logsnr), logsnr)).square().sum(1)
    snr = np.exp(0.7)
    expected = np.sum(snr * variances / (1 + snr * variances))
    assert abs(error.mean().item() - expected) < 4 * error.std().item() / np.sqrt(len(x))


@pytest.mark.parametrize("make", [make_mixture, lambda: GaussianReference([1.0, 2.0], np.eye(2))])
def test_standardised_reference_moves_by_the_jacobian(make):
    reference = make()
    X = np.random.default_rng(shifted(1)).normal(size=(20, 2))
    center, scale = np.array([0.3, -2.0]), np.array([4.0, 0.1])
    moved = reference.standardized(center, scale)
    got = moved.log_prob(torch.from_numpy((X - center) / scale)).numpy()
    expected = reference.log_prob(torch.from_numpy(X)).numpy() + np.log(scale).sum()
    np.testing.assert_allclose(got, expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_from_sklearn_keeps_the_density(kind):
    X = np.random.default_rng(shifted(0)).normal(size=(300, 3))
    fitted = GaussianMixture(2, covariance_type=kind, random_state=shifted(0)).fit(X)
    reference = GaussianMixtureReference.from_sklearn(fitted)
    got = reference.log_prob(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(got, fitted.score_samples(X), rtol=1e-9)


def test_samples_have_the_moments():
    mixture = make_mixture()
    X = mixture.sample(100_000, np.random.RandomState(shifted(0)))
    weights, means, covariances = parameters(mixture)
    mean = weights @ means
    spread = np.einsum("k,kde->de", weights, covariances)
    spread += np.einsum("k,kd,ke->de", weights, means - mean, means - mean)
    error = 5 / np.sqrt(len(X))
    np.testing.assert_allclose(X.mean(axis=0), mean, atol=error * np.sqrt(spread.max()))
    np.testing.assert_allclose(np.cov(X.T), spread, atol=2 * error * spread.max())


def test_fewer_rows_than_columns_give_a_usable_covariance():
    X = np.random.default_rng(shifted(0)).normal(size=(5, 20))
    reference = GaussianReference.fit(X)
    assert torch.isfinite(reference.log_prob(torch.from_numpy(X))).all()
    assert reference.variance_range()[0] >= 1e-6 * (1 - 1e-9)
    degenerate = floor_eigenvalues(np.ones((3, 3)))
    np.testing.assert_allclose(np.linalg.eigvalsh(degenerate), [1e-6, 1e-6, 3.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0], [[1.0, 0.0], [0.0, 1.0]]), "to match mean"),
        (([0.0, 0.0], [[1.0, 1.0], [1.0, 1.0]]), "positive definite"),
        (([np.nan], [[1.0]]), "mean must be finite"),
        (([[0.0]], [[1.0]]), "mean must have 1 dimension"),
    ],
)
def test_gaussian_refuses_bad_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianReference(*arguments)


def test_mixture_refuses_bad_parameters():
    with pytest.raises(ValueError, match="weights must be positive"):
        GaussianMixtureReference([1.0, 0.0], np.zeros((2, 1)), np.ones((2, 1, 1)))
    with pytest.raises(ValueError, match="to match means"):
        GaussianMixtureReference([1.0], np.zeros((1, 2)), np.ones((1, 1, 1)))


# -- weights -------------------------------------------------------------------------------------

WEIGHT = np.array([581.0, 331.0, 71.0, 17.0])


@pytest.mark.filterwarnings("ignore:.* have many equal:UserWarning")
@pytest.mark.parametrize("factor", [1.0, 0.37, 1e-6])
def test_reference_of_few_weighted_rows_has_their_moments(factor):
    """They were drawn once each, which gave a mean of 0.3 and a variance of 1.4."""
    X = np.array([[0.0], [1.0], [2.0], [3.5]])
    density = IMMSEDensity(max_epochs=0, random_state=shifted(0)).fit(
        X, sample_weight=factor * WEIGHT
    )
    assert density.reference_.mean.item() == pytest.approx(0.0, abs=2.0**-26)
    assert density.reference_.covariance.item() == pytest.approx(1.0, rel=2.0**-24)


def test_covariance_of_equal_weights_is_shrunk_like_scikit_learns():
    X = np.random.default_rng(shifted(0)).normal(size=(30, 5)) * np.arange(1.0, 6.0)
    expected = ledoit_wolf(X)[0]
    found = shrunk_covariance(X - X.mean(axis=0), np.full(30, 1.0 / 30.0))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    # The logarithms of its eigenvalues are drawn to that of their mean with the weight of one row.
    values, vectors = np.linalg.eigh(expected)
    drawn = np.exp((28.0 * np.log(values) + np.log(values.mean())) / 29.0)
    expected = (vectors * drawn) @ vectors.T
    for weight in (None, np.full(30, 2.5)):
        reference = GaussianReference.fit(X, weight)
        np.testing.assert_allclose(reference.covariance, expected, rtol=1e-9, atol=1e-12)


def test_moments_of_weighted_rows_are_those_of_repeated_ones():
    rng = np.random.default_rng(shifted(0))
    X, weight = rng.normal(size=(400, 2)) @ [[1.0, 0.9], [0.0, 0.3]], rng.integers(1, 9, 400)
    repeated = np.repeat(X, weight, axis=0)
    for reference in (
        GaussianReference.fit(X, weight),
        fit_gaussian_by_validation(
            WeightedRows(X, weight), WeightedRows(X, weight), np.random.RandomState(shifted(0))
        ),
    ):
        np.testing.assert_allclose(reference.mean, repeated.mean(axis=0), rtol=1e-9)
        # Shrunk by up to 0.015.
        np.testing.assert_allclose(reference.covariance, np.cov(repeated.T), atol=0.02)


def test_no_component_is_wider_than_columns_allow():
    """Behind a Pareto tail, a component of variance v would have a tail of v times the index."""
    rng = np.random.default_rng(shifted(0))
    X = rng.normal(size=(400, 2)) @ [[1.0, 0.9], [0.0, 0.4]]
    X[::4] *= [0.2, 3.0]
    limited = fit_gaussian_mixture(
        X, 4, np.random.RandomState(shifted(0)), largest_variances=np.array([1.0, np.inf])
    )
    variances = parameters(limited)[2][:, [0, 1], [0, 1]]
    assert (variances[:, 0] <= 1.0 + 1e-9).all()
    # Rows unlike all others are still allowed for in the other column.
    assert variances[-1, 1] > 9.0 * X[:, 1].var()
    free = [
        fit_gaussian_mixture(X, 4, np.random.RandomState(shifted(0)), largest_variances=largest)
        for largest in (None, np.full(2, np.inf))
    ]
    torch.testing.assert_close(free[0].variances, free[1].variances, rtol=0.0, atol=0.0)
    assert parameters(free[0])[2][-1, 0, 0] > 9.0


def test_widened_covariances_keep_to_the_largest_variances():
    covariance = np.array([[1.1, 0.9, 0.2], [0.9, 1.0, 0.1], [0.2, 0.1, 0.8]])
    np.testing.assert_allclose(widened(covariance, 9.0, np.full(3, np.inf)), 9.0 * covariance)
    largest = np.array([1.0, np.inf, 1.0])
    wide = widened(covariance, 9.0, largest)
    np.testing.assert_allclose(np.diag(wide), [1.0, 9.0, 1.0])
    # Those of the inverse of the sum of the inverses.
    precision = np.linalg.inv(9.0 * covariance) + np.diag([1.0, 0.0, 1.0])
    np.testing.assert_allclose(correlations(wide), correlations(np.linalg.inv(precision)))
    assert np.abs(correlations(widened(covariance, 1e6, np.ones(3)))[0, 1:]).max() < 1e-5


def correlations(covariance):
    deviation = np.sqrt(np.diag(covariance))
    return covariance / np.outer(deviation, deviation)


def with_wide():
    """Return a fitted mixture, its own components again, and rows near and far."""
    X = np.random.default_rng(shifted(0)).normal(size=(60, 2)) + np.arange(60)[:, None] % 2 * 5.0
    fitted = fit_gaussian_mixture(X, 2, np.random.RandomState(shifted(0)))
    weights, means, covariances = (part[:-3] for part in parameters(fitted))
    x = torch.from_numpy(np.vstack([X[:5], [[60.0, -40.0], [-50.0, 80.0]]]))
    return fitted, GaussianMixtureReference(weights, means, covariances), x


def test_mixture_without_wide_components_is_the_other_components():
    fitted, narrow, x = with_wide()
    assert fitted.n_wide == 3
    kept = fitted.without_wide_components()
    assert (kept.n_components, kept.n_wide) == (2, 0)
    assert kept.without_wide_components() is kept
    torch.testing.assert_close(kept.log_prob(x), narrow.log_prob(x), rtol=1e-9, atol=1e-9)
    noise = torch.full((len(x),), 1.0, dtype=torch.float64)
    torch.testing.assert_close(kept.denoise(x, noise), narrow.denoise(x, noise), rtol=1e-8, atol=0)
    # The wide components have the weight of one of 61 rows, and matter far away only.
    difference = (fitted.log_prob(x) - kept.log_prob(x)).numpy()
    assert (np.abs(difference[:5]) < 0.1).all()
    assert (difference[5:] > 100.0).all()


@pytest.mark.parametrize(
    "change",
    [
        copy.deepcopy,
        lambda reference: pickle.loads(pickle.dumps(reference)),
        lambda reference: copy.deepcopy(reference).to(dtype=torch.float32),
        lambda reference: reference.standardized([1.0, 2.0], [2.0, 0.5]),
    ],
    ids=["copied", "pickled", "in single precision", "standardised"],
)
def test_wide_components_are_known_in_every_form(change):
    fitted = with_wide()[0]
    changed = change(fitted)
    assert changed.n_wide == 3
    x = torch.tensor([[0.3, -0.2], [9.0, 40.0]], dtype=changed.means.dtype)
    expected = change(fitted.without_wide_components()).log_prob(x)
    found = changed.without_wide_components().log_prob(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_kernels_without_wide_components_are_those_that_are_no_wide_component():
    """p = (1 - s) p_without + s p_wide, where s is the share of the wide components."""
    fitted, _, x = with_wide()
    density = KernelDensityReference(x[:5], 0.1 * np.eye(2), fitted, 0.4)
    kept = density.without_wide_components()
    assert kept.background.n_components == 2
    share = 0.4 / 61.0
    assert 0.4 * fitted.share_of_wide == pytest.approx(share)
    wide = fitted.component_log_prob(x)[:, -3:].logsumexp(1) + math.log(0.4)
    expected = torch.logaddexp(math.log1p(-share) + kept.log_prob(x), wide)
    torch.testing.assert_close(density.log_prob(x), expected, rtol=1e-9, atol=1e-9)


def test_independent_columns_without_wide_components():
    fitted, narrow, x = with_wide()
    layout = Layout(2, [Variable(2)])
    rows = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    kept = IndependentReference(layout, [[0.3, 0.7]], fitted).without_wide_components()
    expected = IndependentReference(layout, [[0.3, 0.7]], narrow).log_prob(rows)
    torch.testing.assert_close(kept.log_prob(rows), expected, rtol=1e-9, atol=1e-9)
    plain = IndependentReference(layout, [[0.3, 0.7]], GaussianReference([0, 0], np.eye(2)))
    assert plain.without_wide_components() is plain


@pytest.mark.parametrize("n_wide", [-1, 2, 1.0, True, None])
def test_number_of_wide_components_is_checked(n_wide):
    with pytest.raises(ValueError, match="n_wide must be an integer from 0 to 1"):
        GaussianMixtureReference([0.5, 0.5], np.zeros((2, 1)), np.ones((2, 1, 1)), n_wide)


@pytest.fixture
def unshrunk(monkeypatch):
    """Fit mixtures whose covariances are not drawn to the common one; return their own parts."""
    monkeypatch.setattr(mixture_module, "_PSEUDO_ROWS", 1e-12)

    def fit(X, n_components, sample_weight=None, **options):
        weight = np.ones(len(X)) if sample_weight is None else sample_weight
        random_state = np.random.RandomState(shifted(0))
        mixture = fit_gaussian_mixture(
            X, n_components, random_state, sample_weight=sample_weight, **options
        )
        weights, means, covariances = parameters(mixture)
        # Behind them are the wide components, of the weight of one more row.
        own = slice(None, -3)
        assert weights[-3:].sum() == pytest.approx(1.0 / (effective_number(weight) + 1.0))
        return weights[own] / weights[own].sum(), means[own], covariances[own]

    return fit


def test_mixture_of_equal_weights_is_scikit_learns(unshrunk):
    X = np.random.default_rng(shifted(0)).normal(size=(300, 2))
    plain = GaussianMixture(3, reg_covar=1e-6, random_state=shifted(0)).fit(X)
    for weight in (None, np.full(300, 0.7)):
        weights, means, covariances = unshrunk(X, 3, sample_weight=weight)
        np.testing.assert_allclose(weights, plain.weights_, rtol=1e-6)
        np.testing.assert_allclose(means, plain.means_, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(covariances, plain.covariances_, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("n_components", [2, 6])  # by k-means, by k-means++ from few rows
def test_weighted_mixture_maximises_the_weighted_likelihood(unshrunk, n_components):
    """A step of expectation-maximisation from its end, written out, changes it no more."""
    rng = np.random.default_rng(shifted(0))
    X = np.concatenate([rng.normal(-4.0, 1.0, 20), rng.normal(4.0, 0.5, 20)])[:, None]
    weight = rng.uniform(0.1, 3.0, 40)
    weights, means, covariances = unshrunk(X, n_components, max_iter=500, sample_weight=weight)
    density = weights * stats.norm.pdf(X, means[:, 0], np.sqrt(covariances[:, 0, 0]))
    posterior = weight[:, None] * density / density.sum(axis=1, keepdims=True)
    size = posterior.sum(axis=0)
    np.testing.assert_allclose(weights, size / weight.sum(), atol=0.02)
    if n_components == 2:
        np.testing.assert_allclose(means, posterior.T @ X / size[:, None], rtol=1e-6)
        assert weights[means[:, 0] > 0] == pytest.approx(weight[20:].sum() / weight.sum())


def test_principal_components_of_weighted_rows():
    rng = np.random.default_rng(shifted(0))
    X = rng.normal(size=(200, 6)) * np.array([5.0, 3.0, 0.5, 0.5, 0.5, 0.5])
    weight = rng.uniform(0.0, 2.0, 200)
    reference = LowRankGaussianReference.fit(X, 2, np.random.RandomState(shifted(0)), weight)
    covariance = np.cov(X.T, aweights=weight)
    np.testing.assert_allclose(reference.mean, np.average(X, axis=0, weights=weight))
    variances = np.sort(np.linalg.eigvalsh(covariance))[::-1]
    np.testing.assert_allclose(reference.variances, variances[:2], rtol=1e-6)
    assert float(reference.residual) == pytest.approx(variances[2:].mean(), rel=1e-6)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ([2.0, 4.0], [2.0, 4.0]),  # integers are counts
        ([0.37 * 581, 0.37 * 331, 0.37 * 17], [581.0, 331.0, 17.0]),
        ([1e9 / 3, 1e9 / 2], [2.0, 3.0]),
        ([1e-3, 1.0], [1e-3, 1.0]),  # not a thousand observations
        ([0.5, 0.5], [1.0, 1.0]),
        # Balanced classes of 863 and 137 rows: no row is seen 137 times.
        ([500 / 863] * 863 + [500 / 137] * 137, [137 / 863] * 863 + [1.0] * 137),
        ([20 / 21] * 21 + [20 / 19] * 19, [19 / 21] * 21 + [1.0] * 19),
        # Weights of a survey, rounded.
        (np.arange(53, 153) / 100, np.arange(53, 153) / 152),
    ],
)
def test_multiples_of_a_unit_are_counts(weight, expected):
    np.testing.assert_allclose(in_common_units(np.array(weight)), expected, rtol=2.0**-24)


def test_balanced_classes_are_no_counts():
    """Weights of 137 and 863 units tell as much as others that are the same except for rounding."""
    rng = np.random.default_rng(shifted(0))
    y = np.arange(1000) < 137
    X = np.column_stack([rng.integers(0, 3, 1000) + y, rng.integers(0, 3, 1000)]).astype(float)
    weight = np.where(y, 500 / 137, 500 / 863)
    options = {"max_epochs": 0, "score_tol": 0.5, "random_state": shifted(0)}
    exact, rounded = (
        IMMSEDiscreteDensity(**options).fit(X, sample_weight=w)
        for w in (weight, weight * rng.uniform(1.0, 1.0 + 1e-7, 1000))
    )
    assert exact.entropy_ == pytest.approx(rounded.entropy_, abs=1e-4)
    assert exact.entropy_std_ == pytest.approx(rounded.entropy_std_, rel=1e-3)


@pytest.mark.parametrize("kind", others_slow(["uniform", "integers"]))
@pytest.mark.parametrize("make", [IMMSEDensity, IMMSEDiscreteDensity, IMMSEMixedDensity])
def test_a_common_factor_of_the_weights_changes_nothing(make, kind):
    rng = np.random.default_rng(shifted(0))
    X = rng.integers(0, 3, (150, 2)).astype(float)
    if make is not IMMSEDiscreteDensity:
        X[:, 0] = rng.normal(size=150)
    if make is IMMSEDensity:
        X[:, 1] += rng.normal(size=150)
    weight = rng.integers(1, 5, 150).astype(float) if kind == "integers" else rng.random(150)
    options = {"categorical_features": [1]} if make is IMMSEMixedDensity else {}
    options |= {"score_tol": 0.5, "max_epochs": 1, "steps_per_epoch": 3, "hidden_size": 8}
    first, second = (
        make(random_state=shifted(0), **options).fit(X, sample_weight=w).score_samples(X[:40])
        for w in (weight, 0.37 * weight)
    )
    np.testing.assert_array_equal(first, second)


def test_a_common_factor_changes_nothing_in_large_tables_either():
    """One of many weights is near a boundary of rounding, and then moved all rows' keys."""
    rng = np.random.default_rng(shifted(0))
    x = rng.normal(size=5000)
    X = np.column_stack([x, x**2 + rng.normal(size=5000)])
    weight = rng.gamma(1.0, size=5000)
    density = IMMSEDensity(
        max_epochs=0, experts=["gaussian"], reference="gaussian", random_state=shifted(0)
    )
    one, other = (
        density.fit(X, sample_weight=factor * weight).score_samples(X[:50]) for factor in (1.0, 3.0)
    )
    np.testing.assert_allclose(one, other, rtol=0.0, atol=1e-9)


def test_hardly_any_weight_is_rounded_otherwise_behind_a_factor():
    """Errors of a factor and a ratio, of 2**-53, move one of 10**9 weights; here 4 million."""
    rng = np.random.default_rng(shifted(0))
    weight = rng.gamma(2.0, size=20_000) + 0.1
    units = in_common_units(weight)
    for factor in 10.0 ** rng.uniform(-6.0, 6.0, 200):
        np.testing.assert_array_equal(in_common_units(factor * weight), units)


def test_multiples_that_are_rounded_are_integers_again():
    weight = np.array([1.0, 2.0, 7.0, 4999.0])
    rows = [group_rows(np.arange(8.0).reshape(4, 2), w) for w in (weight, 0.37 * weight)]
    np.testing.assert_array_equal(rows[0].weight, rows[1].weight)


@pytest.mark.parametrize(
    "kind", others_slow(["mapped", "mixed", "groups", "ensemble", "dequantized"], 1)
)
def test_last_bits_of_weights_decide_nothing(kind, usual_fits):
    """Noise of validation rows must not follow from maps, which depend on all bits of weights.

    The least weight, changed by a share of 3e-7, changes log-densities by less; other noise would
    change them by some 1e-2, and other validation rows by more.
    """
    rng = np.random.default_rng(shifted(0))
    z = rng.integers(0, 2, 500)
    X = np.column_stack([np.exp(0.7 * rng.normal(size=500)) + z, rng.normal(size=500) + 2.0 * z])
    weight = rng.gamma(2.0, size=500) + 0.1
    options = {"score_tol": 0.5, "max_epochs": 0, "random_state": shifted(0)}
    options |= {"experts": ["gaussian", "gaussian_mixture"], "reference": "gaussian"}
    fit_options = {}
    density = IMMSEDensity(marginals="quantile", **options)
    if kind == "dequantized":
        density.set_params(dequantize=0.1)
        X = np.round(X, 1)
    elif kind == "mixed":
        options |= {"experts": "auto", "reference": "auto"}
        density = IMMSEMixedDensity(categorical_features=[2], marginals="quantile", **options)
        X = np.column_stack([X, z])
    elif kind == "ensemble":
        # Without references, to which members may be equal: weights among equals are rounding.
        members = [(name, clone(density).set_params(experts=[name])) for name in options["experts"]]
        density = IMMSEEnsemble(
            members, include_references=False, random_state=shifted(0), score_tol=0.5
        )
        X[:, 1] += 2.0 * z  # so that fewer rows show that a mixture is better
    elif kind == "groups":
        fit_options["groups"] = np.arange(500) // 2
    changed = np.where(weight == weight.min(), (1.0 + 3e-7) * weight, weight)
    one, other = (
        density.fit(X, sample_weight=w, **fit_options).score_samples(X[:50])
        for w in (weight, changed)
    )
    assert 0.0 < np.abs(one - other).max() < 1e-5


def test_last_bits_of_weights_do_not_change_the_units_of_images():
    rng = np.random.default_rng(shifted(0))
    X, weight = rng.random((200, 4)), rng.random(200)
    found = [
        IMMSEDensity(image_shape=(2, 2), max_epochs=0, random_state=shifted(0))
        .fit(X, sample_weight=w)
        ._model.space.standardizer
        for w in (weight, np.where(weight == weight.min(), (1.0 + 3e-7) * weight, weight))
    ]
    np.testing.assert_array_equal(found[0].center, found[1].center)
    np.testing.assert_array_equal(found[0].scale, found[1].scale)
