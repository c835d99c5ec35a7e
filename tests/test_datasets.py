"""Laws of the demonstration sets and of the analytic densities; scipy.stats is the oracle."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp
from seeds import shifted

from sk_itdiffusion.datasets import (
    DENSITY_NAMES,
    BananaDensity,
    GaussianMixtureDensity,
    StudentTDensity,
    load_density,
    load_dino,
    make_circle_of_discs,
    make_correlated_gaussian,
    make_dino,
    make_square,
    make_two_circles,
    make_two_moons,
)

MAKERS = (
    make_circle_of_discs,
    make_correlated_gaussian,
    make_dino,
    make_square,
    make_two_circles,
    make_two_moons,
)
MIXTURE_NAMES = tuple(
    name for name in DENSITY_NAMES if isinstance(load_density(name), GaussianMixtureDensity)
)
PLANE_LIMITS = {
    "correlated_gaussian": ((-7.0, 7.0), (-7.0, 7.0)),
    "ring": ((-6.5, 6.5), (-6.5, 6.5)),
    "banana": ((-7.0, 7.0), (-3.0, 52.0)),
    "spiral": ((-8.0, 8.0), (-8.0, 8.0)),
}
N_SAMPLES = 20_000
SIGMAS = 4.5  # two-sided probability 7e-6 per comparison


def scipy_mixture_log_prob(density, X):
    components = [
        stats.multivariate_normal(mean, covariance).logpdf(X)
        for mean, covariance in zip(density.means, density.covariances, strict=True)
    ]
    return logsumexp(np.log(density.weights) + np.column_stack(components), axis=1)


def mixture_moments(density):
    mean = density.weights @ density.means
    deviations = density.means - mean
    within = np.einsum("k,kij->ij", density.weights, density.covariances)
    between = np.einsum("k,ki,kj->ij", density.weights, deviations, deviations)
    return mean, within + between


def plane_integral(function, limits, step=0.04):
    """Midpoint rule; its error is exponentially small for Gaussians wider than the step."""
    first, second = (np.arange(low + step / 2, high, step) for low, high in limits)
    grid = np.stack(np.meshgrid(first, second, indexing="ij"), axis=-1).reshape(-1, 2)
    return step**2 * function(grid).sum()


def twonorm_entropy():
    """Entropy of a two-component mixture along its axis, plus 19 standard normal directions."""
    axis = np.linspace(-12.0, 12.0, 4001)
    density = 0.5 * stats.norm.pdf(axis, 2.0) + 0.5 * stats.norm.pdf(axis, -2.0)
    return np.trapezoid(-density * np.log(density), axis) + 19 * stats.norm.entropy()


def ring_or_spiral_entropy(name):
    def integrand(X):
        log_prob = scipy_mixture_log_prob(load_density(name), X)
        return -np.exp(log_prob) * log_prob

    return plane_integral(integrand, PLANE_LIMITS[name])


def entropy_oracle(name):
    """Differential entropy in nats, computed without the density's own log_prob."""
    if name == "correlated_gaussian":
        rho = -0.495 / 0.505
        return stats.multivariate_normal([0, 0], [[1, rho], [rho, 1]]).entropy()
    if name == "banana":  # the map (x1, noise) -> (x1, x1 ** 2 + noise) preserves volume
        return stats.norm.entropy() + stats.norm(scale=0.3).entropy()
    if name == "twonorm":
        return twonorm_entropy()
    if name == "student_t":
        return stats.multivariate_t(np.zeros(5), np.eye(5), df=4).entropy()
    if name == "lognormal_cauchy":
        return stats.lognorm(1.0).entropy() + stats.cauchy.entropy()
    return ring_or_spiral_entropy(name)


def log_prob_oracle(name, X):
    if name == "banana":
        return stats.norm.logpdf(X[:, 0]) + stats.norm.logpdf(X[:, 1], X[:, 0] ** 2, 0.3)
    if name == "student_t":
        return stats.multivariate_t(np.zeros(5), np.eye(5), df=4).logpdf(X)
    if name == "lognormal_cauchy":
        return stats.lognorm(1.0).logpdf(X[:, 0]) + stats.cauchy.logpdf(X[:, 1])
    return scipy_mixture_log_prob(load_density(name), X)


def assert_within_standard_error(samples, expected):
    """The mean over axis 0 agrees with ``expected`` up to its own standard error."""
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    np.testing.assert_array_less(np.abs(samples.mean(axis=0) - expected), SIGMAS * error)


# --- analytic densities ---------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PLANE_LIMITS))
def test_density_in_the_plane_has_unit_mass(name):
    density = load_density(name)
    mass = plane_integral(lambda X: np.exp(density.log_prob(X)), PLANE_LIMITS[name])
    assert mass == pytest.approx(1.0, abs=1e-9)


def test_heavy_tailed_density_has_unit_mass():
    density = load_density("lognormal_cauchy")

    def integrand(angles):  # x1 = exp(tan u), x2 = tan v maps the plane onto a square
        tangents = np.tan(angles)
        X = np.column_stack([np.exp(tangents[:, 0]), tangents[:, 1]])
        log_jacobian = tangents[:, 0] + np.log1p(tangents**2).sum(axis=1)
        return np.exp(density.log_prob(X) + log_jacobian)

    limits = ((-1.5, 1.5), (-np.pi / 2, np.pi / 2))
    assert plane_integral(integrand, limits, step=np.pi / 200) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", DENSITY_NAMES)
def test_log_prob_equals_scipy(name):
    density = load_density(name)
    near = density.sample(200, random_state=shifted(0))
    X = np.concatenate([near, 3.0 * near - 1.0])
    with np.errstate(divide="ignore"):
        expected = log_prob_oracle(name, X)
    np.testing.assert_allclose(density.log_prob(X), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in DENSITY_NAMES if name != "mixture_10d"])
def test_mean_log_prob_of_samples_is_minus_the_entropy(name):
    density = load_density(name)
    X = density.sample(N_SAMPLES, random_state=shifted(1))
    assert_within_standard_error(density.log_prob(X), -entropy_oracle(name))


@pytest.mark.parametrize("name", MIXTURE_NAMES)
def test_moments_of_mixture_samples(name):
    density = load_density(name)
    mean, covariance = mixture_moments(density)
    X = density.sample(N_SAMPLES, random_state=shifted(2))
    assert_within_standard_error(X, mean)
    deviations = X - mean
    assert_within_standard_error(np.einsum("ni,nj->nij", deviations, deviations), covariance)


@pytest.mark.parametrize("name", MIXTURE_NAMES)
def test_mixture_responsibilities_of_samples_average_to_the_weights(name):
    density = load_density(name)
    X = density.sample(N_SAMPLES, random_state=shifted(3))
    joint = np.column_stack(
        [
            np.log(weight) + stats.multivariate_normal(mean, covariance).logpdf(X)
            for weight, mean, covariance in zip(
                density.weights, density.means, density.covariances, strict=True
            )
        ]
    )
    if len(density.weights) > 1:
        responsibilities = np.exp(joint - density.log_prob(X)[:, None])
        assert_within_standard_error(responsibilities, density.weights)


def uniform_variables(name, X):
    """Independent variables that are uniform on [0, 1] if the rows follow the density."""
    if name == "banana":
        return stats.norm.cdf(np.column_stack([X[:, 0], (X[:, 1] - X[:, 0] ** 2) / 0.3])).T
    if name == "student_t":
        radius = stats.f(5, 4).cdf((X**2).sum(axis=1) / 5)
        return np.vstack([radius, stats.t(4).cdf(X.T)])
    return stats.lognorm(1.0).cdf(X[:, 0]), stats.cauchy.cdf(X[:, 1])


@pytest.mark.parametrize("name", ["banana", "student_t", "lognormal_cauchy"])
def test_samples_follow_their_distribution(name):
    X = load_density(name).sample(N_SAMPLES, random_state=shifted(4))
    for values in uniform_variables(name, X):
        assert stats.kstest(values, "uniform").pvalue > 1e-4


def test_parameters_of_the_densities():
    ring, spiral = load_density("ring"), load_density("spiral")
    np.testing.assert_allclose(np.linalg.norm(ring.means, axis=1), 4.0)
    np.testing.assert_allclose(ring.covariances, np.broadcast_to(0.09 * np.eye(2), (8, 2, 2)))
    np.testing.assert_allclose(
        np.sqrt(np.linalg.eigvalsh(spiral.covariances)), np.tile([0.08, 0.25], (40, 1))
    )
    t = np.linspace(0.5, 3.5 * np.pi, 40)
    np.testing.assert_allclose(np.linalg.norm(spiral.means, axis=1), 0.5 * t)
    # The long axis points to the neighbour on the curve.
    chord = spiral.means[2:] - spiral.means[:-2]
    chord /= np.linalg.norm(chord, axis=1, keepdims=True)
    along = np.einsum("ki,kij,kj->k", chord, spiral.covariances[1:-1], chord)
    np.testing.assert_allclose(np.sqrt(along), 0.25, rtol=0.02)
    twonorm = load_density("twonorm")
    np.testing.assert_allclose(np.abs(twonorm.means), 2 / np.sqrt(20))
    mixture = load_density("mixture_10d")
    assert mixture.means.shape == (5, 10)
    assert np.linalg.eigvalsh(mixture.covariances).min() > 0.05


def test_generalised_parameters():
    X = np.random.default_rng(shifted(0)).standard_normal((50, 3))
    student = StudentTDensity(n_features=3, degrees_of_freedom=2.5)
    expected = stats.multivariate_t(np.zeros(3), np.eye(3), df=2.5).logpdf(X)
    np.testing.assert_allclose(student.log_prob(X), expected)
    banana = BananaDensity(noise=2.0)
    expected = stats.norm.logpdf(X[:, 0]) + stats.norm.logpdf(X[:, 1], X[:, 0] ** 2, 2.0)
    np.testing.assert_allclose(banana.log_prob(X[:, :2]), expected)


def test_log_prob_outside_the_support_is_minus_infinity():
    values = load_density("lognormal_cauchy").log_prob([[0.0, 1.0], [-2.0, 0.0], [2.0, 0.0]])
    assert (values[:2] == -np.inf).all()
    assert np.isfinite(values[2])


def test_densities_reject_wrong_input():
    with pytest.raises(ValueError, match=r"Unknown density .rign.; .*ring"):
        load_density("rign")
    with pytest.raises(ValueError, match="X has 3 features"):
        load_density("ring").log_prob(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="n_samples"):
        load_density("ring").sample(0)
    with pytest.raises(ValueError, match="noise must be positive"):
        BananaDensity(noise=0.0)
    with pytest.raises(ValueError, match="degrees_of_freedom must be positive"):
        StudentTDensity(degrees_of_freedom=-1.0)


@pytest.mark.parametrize(
    ("weights", "means", "covariances", "message"),
    [
        ([0.5, 0.6], [[0.0], [1.0]], [[[1.0]], [[1.0]]], "sum 1"),
        ([0.0, 1.0], [[0.0], [1.0]], [[[1.0]], [[1.0]]], "positive"),
        ([1.0], [0.0], [[[1.0]]], "means must have shape"),
        ([1.0], [[0.0, 0.0]], [[[1.0]]], "covariances of shape"),
        ([1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.0, 1.0]]], "symmetric"),
        ([1.0], [[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]], "positive definite"),
    ],
)
def test_mixture_rejects_wrong_parameters(weights, means, covariances, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixtureDensity(weights, means, covariances)


# --- demonstration sets ---------------------------------------------------------------------


def test_dino_has_the_published_summary():
    X = load_dino()
    assert X.shape == (142, 2)
    assert len(np.unique(X, axis=0)) == 142
    np.testing.assert_allclose(X.mean(axis=0), [54.26, 47.83], atol=0.005)
    np.testing.assert_allclose(X.std(axis=0, ddof=1), [16.76, 26.93], atol=0.006)
    assert np.corrcoef(X.T)[0, 1] == pytest.approx(-0.06, abs=0.005)


def test_dino_rows_are_points_plus_gaussian_jitter():
    points = load_dino()
    X = make_dino(2000, jitter=1e-3, random_state=shifted(0))
    squared_distances = ((X[:, None] - points) ** 2).sum(axis=2)
    frequencies = np.bincount(squared_distances.argmin(axis=1), minlength=142)
    assert stats.chisquare(frequencies).pvalue > 1e-4
    scaled = squared_distances.min(axis=1) / 1e-6
    assert stats.kstest(scaled, stats.chi2(2).cdf).pvalue > 1e-4


def test_circle_of_discs_is_a_projected_grid():
    X = make_circle_of_discs(N_SAMPLES, random_state=shifted(0))
    radius = np.linalg.norm(X, axis=1)
    assert (np.minimum(radius, np.abs(radius - 1.0)) <= 0.03).all()
    inner = radius < 0.5
    assert stats.binomtest(int(inner.sum()), N_SAMPLES, 1 / 25).pvalue > 1e-4
    assert stats.kstest(radius[inner] / 0.03, "uniform").pvalue > 1e-4
    angles = np.arctan2([0, 1, 1, 2], [1, 2, 1, 1])  # one quadrant; the others are rotations
    centres = np.concatenate([angles + k * np.pi / 2 for k in range(4)])
    unit = np.column_stack([np.cos(centres), np.sin(centres)])
    nearest = np.linalg.norm(X[~inner, None] - unit, axis=2)
    assert nearest.min(axis=1).max() <= 0.03
    expected = np.tile([2.0, 1.0, 2.0, 1.0], 4) * (~inner).sum() / 24
    assert stats.chisquare(np.bincount(nearest.argmin(axis=1)), expected).pvalue > 1e-4


def test_square_is_uniform():
    X = make_square(N_SAMPLES, random_state=shifted(0))
    for column in X.T:
        assert stats.kstest(column, stats.uniform(-1.0, 2.0).cdf).pvalue > 1e-4
    assert abs(stats.spearmanr(*X.T).statistic) < SIGMAS / np.sqrt(N_SAMPLES)


def test_correlated_gaussian_is_the_analytic_density():
    X = make_correlated_gaussian(100, random_state=shifted(5))
    np.testing.assert_array_equal(X, load_density("correlated_gaussian").sample(100, shifted(5)))


def test_curves_without_noise_are_circles():
    radius = np.linalg.norm(make_two_circles(400, noise=0.0, random_state=shifted(0)), axis=1)
    np.testing.assert_allclose(np.sort(radius), np.repeat([0.5, 1.0], 200))
    X = make_two_moons(400, noise=0.0, random_state=shifted(0))
    distances = [np.linalg.norm(X - centre, axis=1) for centre in ([0.0, 0.0], [1.0, 0.5])]
    np.testing.assert_allclose(np.abs(np.array(distances) - 1.0).min(axis=0), 0.0, atol=1e-12)


# --- randomness -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "draw",
    [*MAKERS, *(load_density(name).sample for name in DENSITY_NAMES)],
    ids=[*(maker.__name__ for maker in MAKERS), *DENSITY_NAMES],
)
def test_draws_depend_on_the_seed_alone(draw):
    before = np.random.get_state(legacy=False)
    X = draw(50, random_state=shifted(7))
    after = np.random.get_state(legacy=False)
    np.testing.assert_equal(after, before)
    assert X.dtype == np.float64
    np.testing.assert_array_equal(X, draw(50, random_state=shifted(7)))
    np.testing.assert_array_equal(X, draw(50, random_state=np.random.RandomState(shifted(7))))
    assert not np.array_equal(X, draw(50, random_state=shifted(8)))
