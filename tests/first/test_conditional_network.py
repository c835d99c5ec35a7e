"""Networks of conditional densities, and the curves that distributions of rows are."""

import pickle

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import cumulative_trapezoid, trapezoid
from scipy.special import expit, xlogy
from sklearn.base import clone
from sklearn.linear_model import LinearRegression, RidgeCV

from sk_itdiffusion import IMMSEConditionalDensity, load
from sk_itdiffusion._first._conditional import model as conditional_model
from sk_itdiffusion._first._conditional.curves import NODES, ResidualCurves, at_nodes
from sk_itdiffusion._first._conditional.model import located
from sk_itdiffusion._first._conditional.network import NoiseProducts
from sk_itdiffusion._first._conditional.residual import NormalMixture
from sk_itdiffusion._first.references.gaussian import GaussianReference
from sk_itdiffusion._first.references.mixture import as_mixture

pytestmark = pytest.mark.usefixtures("brief_fits")

LINEAR = IMMSEConditionalDensity(LinearRegression(), max_epochs=0, random_state=0)


def two_modes(n, seed=0):
    """The distance of the modes depends on the features, which no scale and mixture can follow."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1.0, 1.0, size=(n, 2))
    side = np.where(rng.random(n) < 0.5, -1.0, 1.0)
    y = X[:, 1] + side * (1.0 + X[:, 0]) + 0.2 * rng.normal(size=n)

    def log_density(X, y):
        modes = [stats.norm(X[:, 1] + s * (1.0 + X[:, 0]), 0.2).logpdf(y) for s in (-1.0, 1.0)]
        return np.logaddexp(*modes) - np.log(2.0)

    return X, y, log_density


@pytest.fixture(scope="module")
def with_network():
    X, y, _ = two_modes(600)
    return clone(LINEAR).set_params(base=RidgeCV(), max_epochs=10, cv=2).fit(X, y)


def test_networks_follow_what_depends_on_the_features(with_network):
    """Without it the divergence is 0.3 nats; the mixture has to have been improved upon."""
    X, y, log_density = two_modes(150, 1000)
    plain = clone(LINEAR).set_params(cv=2).fit(*two_modes(600)[:2])
    gain = with_network.score_samples(X, y) - plain.score_samples(X, y)
    assert gain.mean() > 3.0 * gain.std() / np.sqrt(len(gain))
    assert (log_density(X, y) - with_network.score_samples(X, y)).mean() > 0.0


REFERENCE = NormalMixture(np.array([0.7, 0.3]), np.array([-0.3, 0.7]), np.array([0.8, 1.4]))


@pytest.mark.parametrize(
    "law", [stats.norm(0.4, 0.3), stats.norm(-2.0, 0.5), stats.gumbel_r(0, 0.7)]
)
def test_curves_are_distributions(law):
    """Of any gain over the reference, known at the nodes: here that of a known distribution."""
    u = REFERENCE.of_score(NODES)
    curves = ResidualCurves(REFERENCE, (law.logpdf(u) - REFERENCE.log_density(u) + 3.0)[None])
    rows = curves.take(np.zeros(99, dtype=int))
    levels = np.linspace(0.005, 0.995, 99)
    at = law.ppf(levels)
    # The logarithm is linear in cells, whose width is 0.06 of the reference's deviation.
    np.testing.assert_allclose(rows.log_density(at), law.logpdf(at), atol=0.03)
    np.testing.assert_allclose(rows.cdf(at[:, None])[:, 0], levels, atol=3e-3)
    np.testing.assert_allclose(rows.sf(at[:, None])[:, 0], 1.0 - levels, atol=3e-3)
    np.testing.assert_allclose(curves.quantile(levels)[0], at, atol=0.02 * law.std())
    mean, std = curves.moments
    assert mean[0, 0] == pytest.approx(law.mean(), abs=0.01)
    assert std[0, 0] == pytest.approx(law.std(), rel=0.03)
    assert curves.entropy[0] == pytest.approx(law.entropy(), abs=0.01)
    # Exact, whatever the gain: inverse, complement, and the integral of the density.
    far = np.concatenate([[1e-9, 1e-4], levels, [1.0 - 1e-4]])
    quantiles = curves.quantile(far)[0]
    many = curves.take(np.zeros(len(far), dtype=int))
    np.testing.assert_allclose(many.cdf(quantiles[:, None])[:, 0], far, rtol=1e-6)
    total = many.cdf(quantiles[:, None]) + many.sf(quantiles[:, None])
    np.testing.assert_allclose(total, 1.0, atol=1e-9)
    fine = np.linspace(-9.0, 9.0, 4001)
    density = np.exp(curves.take(np.zeros(len(fine), dtype=int)).log_density(fine))
    assert trapezoid(density, fine) == pytest.approx(1.0, abs=1e-3)


def test_sums_over_nodes_are_the_integral_of_the_relation():
    """The denoiser of a normal distribution, in front of that of a wider one, has its density."""
    standard = as_mixture(GaussianReference.fit(np.array([[-1.0], [1.0]]), np.ones(2)))
    levels = np.linspace(-8.0, 12.0, 41)
    products = NoiseProducts.of(standard, levels)
    center, scale = 0.7, 0.4
    signal, noise = expit(levels)[:, None], expit(-levels)[:, None]
    own = np.sqrt(noise) * (products.z - np.sqrt(signal) * center) / (signal * scale**2 + noise)
    correction = own - np.sqrt(noise) * products.z
    step = products.step[:, None]
    cross = np.einsum("lk,lkj->j", step * correction, products.cross)
    square = np.einsum("lk,lkj->j", step * correction**2, products.square)
    u = products.mixture.of_score(NODES)
    likely = np.abs(u - center) < 2.0 * scale
    expected = stats.norm(center, scale).logpdf(u) - stats.norm(0.0, 1.0).logpdf(u)
    np.testing.assert_allclose((cross - 0.5 * square)[likely], expected[likely], atol=0.02)


def test_networks_have_normalised_densities_and_their_distribution_function(with_network):
    grid = 0.5 * np.sinh(np.linspace(-5.5, 5.5, 401))  # tails are wide
    for row in ([0.5, 0.0], [-0.9, 0.5]):
        rows = np.tile(row, (len(grid), 1))
        density = np.exp(with_network.score_samples(rows, grid))
        below = with_network.cdf(rows, grid)
        assert (np.diff(below) >= 0.0).all()
        total = cumulative_trapezoid(density, grid, initial=0.0)
        np.testing.assert_allclose(total, below, atol=5e-3)
        assert trapezoid(density * grid, grid) == pytest.approx(
            with_network.predict(rows[:1])[0], abs=0.01
        )
        entropy = -trapezoid(xlogy(density, density), grid)
        assert with_network.score_samples(rows[:1])[0] == pytest.approx(-entropy, abs=0.02)


def test_networks_draw_from_their_distributions(with_network):
    X = two_modes(4, 5)[0]
    drawn = with_network.sample(X, 250, random_state=0)
    below = with_network.cdf(np.repeat(X, 250, axis=0), drawn.ravel())
    assert stats.kstest(below, "uniform")[1] > 1e-3
    levels = np.array([0.001, 0.1, 0.5, 0.95])
    quantiles = with_network.predict(X, quantiles=levels)
    found = [with_network.cdf(X, quantiles[:, j]) for j in range(4)]
    np.testing.assert_allclose(np.transpose(found), np.tile(levels, (4, 1)), atol=1e-9)


def test_half_the_area_between_error_curves_is_what_the_network_gains(with_network):
    X, y, _ = two_modes(200, 3)
    curve = with_network.mse_curve(X, y)
    gap = curve.references["gaussian_mixture"] - curve.model
    fitted = with_network._model
    features = with_network._read(X)
    location, log_scale = located(fitted.numbers, features)
    u = (y - location[:, 0]) * np.exp(-log_scale[:, 0])
    curves = fitted.curves(fitted.seen(features, location, log_scale))
    expected = at_nodes(curves.gain, curves.mixture.score(u)).mean()
    assert 0.5 * trapezoid(gap, curve.logsnr) == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(sum(curve.weights.values()), 1.0)
    plain = clone(LINEAR).set_params(cv=2).fit(X, y)
    without = plain.mse_curve(X, y)
    np.testing.assert_array_equal(without.model, without.references["gaussian_mixture"])
    assert without.model[-1] == pytest.approx(1.0, abs=0.02)  # nothing is known of such fine noise


def test_networks_are_there_by_default_where_enough_rows_validate(monkeypatch):
    asked = []
    monkeypatch.setattr(
        conditional_model, "fit_context_network", lambda *given: asked.append(given[3])
    )
    for n, epochs, expected in (
        (600, "auto", []),
        (1100, "auto", [40]),
        (600, 7, [7]),
        (1100, 0, []),
    ):
        asked.clear()
        X, y, _ = two_modes(n)
        clone(LINEAR).set_params(cv=2, max_epochs=epochs).fit(X, y)
        assert asked == expected


@pytest.mark.slow
def test_networks_are_saved_and_score_rows_by_themselves(with_network, tmp_path):
    X, y, _ = two_modes(10, 5)
    scores = with_network.score_samples(X, y)
    with_network.save(tmp_path / "file")
    for other in (
        load(tmp_path / "file", classes=[RidgeCV]),
        pickle.loads(pickle.dumps(with_network)),
    ):
        np.testing.assert_array_equal(other.score_samples(X, y), scores)
        np.testing.assert_array_equal(other.cdf(X, y), with_network.cdf(X, y))
    alone = [with_network.score_samples(X[i : i + 1], y[i : i + 1])[0] for i in range(10)]
    np.testing.assert_array_equal(scores, alone)


@pytest.mark.slow
def test_networks_come_near_known_conditionals():
    estimator = clone(LINEAR).set_params(max_epochs=200)
    X, y, _ = two_modes(5000)
    X_new, y_new, log_density = two_modes(4000, 1000)
    fitted = clone(estimator).fit(X, y)
    apart = log_density(X_new, y_new) - fitted.score_samples(X_new, y_new)
    plain = log_density(X_new, y_new) - clone(LINEAR).fit(X, y).score_samples(X_new, y_new)
    # The mixture alone has a divergence of 0.31 nats, of which a third is left.
    excess = apart - plain / 2.0
    assert excess.mean() < -2.0 * excess.std() / np.sqrt(len(excess))
    X, y, _ = two_modes(2000)
    fits = [clone(estimator).set_params(max_epochs=20).fit(X, y) for _ in range(2)]
    np.testing.assert_array_equal(fits[0].score_samples(X, y), fits[1].score_samples(X, y))
