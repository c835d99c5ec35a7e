"""Two-dimensional demonstration sets and densities whose logarithm is known exactly.

The ``make_*`` and ``load_*`` functions return the 2-D sets of the demonstration that
accompanies *Information-Theoretic Diffusion* [1]_. The demonstration divides every column
by its standard deviation; these functions keep the natural units, since the estimators of
this package standardise internally.

:func:`load_density` returns a density with an exact ``log_prob`` and a ``sample`` method.
It is the oracle against which an estimated density is measured: with ``X`` drawn from the
density, the mean of ``density.log_prob(X) - estimator.score_samples(X)`` estimates the
Kullback-Leibler divergence from the truth to the estimate, in nats.

References
----------
.. [1] X. Kong, R. Brekelmans and G. Ver Steeg, "Information-Theoretic Diffusion",
   International Conference on Learning Representations, 2023, arXiv:2302.03792.
   Demonstration: https://github.com/gregversteeg/InfoDiffusionSimple
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve_triangular
from scipy.special import gammaln, logsumexp
from sklearn.datasets import make_circles, make_moons
from sklearn.utils import check_array, check_random_state

__all__ = [
    "DENSITY_NAMES",
    "AnalyticDensity",
    "BananaDensity",
    "GaussianMixtureDensity",
    "LogNormalCauchyDensity",
    "StudentTDensity",
    "load_density",
    "load_dino",
    "make_circle_of_discs",
    "make_correlated_gaussian",
    "make_dino",
    "make_square",
    "make_two_circles",
    "make_two_moons",
]

FloatArray = NDArray[np.float64]
RandomState = int | np.random.RandomState | None

_LOG_2PI = float(np.log(2.0 * np.pi))

# Covariance of the demonstration's strongly correlated Gaussian: unit variances, entropy 1.22 nats.
_CORRELATION = -0.4950 / 0.5050

# The 142 points of the Datasaurus (Alberto Cairo, 2016), "x y" pairs in drawing order.
_DINO_POINTS = """
55.3846 97.1795  51.5385 96.0256  46.1538 94.4872  42.8205 91.4103  40.7692 88.3333  38.7179 84.8718
35.641 79.8718  33.0769 77.5641  28.9744 74.4872  26.1538 71.4103  23.0769 66.4103  22.3077 61.7949
22.3077 57.1795  23.3333 52.9487  25.8974 51.0256  29.4872 51.0256  32.8205 51.0256  35.3846 51.4103
40.2564 51.4103  44.1026 52.9487  46.6667 54.1026  50.0 55.2564  53.0769 55.641  56.6667 56.0256
59.2308 57.9487  61.2821 62.1795  61.5385 66.4103  61.7949 69.1026  57.4359 55.2564  54.8718 49.8718
52.5641 46.0256  48.2051 38.3333  49.4872 42.1795  51.0256 44.1026  45.3846 36.4103  42.8205 32.5641
38.7179 31.4103  35.1282 30.2564  32.5641 32.1795  30.0 36.7949  33.5897 41.4103  36.6667 45.641
38.2051 49.1026  29.7436 36.0256  29.7436 32.1795  30.0 29.1026  32.0513 26.7949  35.8974 25.2564
41.0256 25.2564  44.1026 25.641  47.1795 28.718  49.4872 31.4103  51.5385 34.8718  53.5897 37.5641
55.1282 40.641  56.6667 42.1795  59.2308 44.4872  62.3077 46.0256  64.8718 46.7949  67.9487 47.9487
70.5128 53.718  71.5385 60.641  71.5385 64.4872  69.4872 69.4872  46.9231 79.8718  48.2051 84.1026
50.0 85.2564  53.0769 85.2564  55.3846 86.0256  56.6667 86.0256  56.1538 82.9487  53.8462 80.641
51.2821 78.718  50.0 78.718  47.9487 77.5641  29.7436 59.8718  29.7436 62.1795  31.2821 62.5641
57.9487 99.4872  61.7949 99.1026  64.8718 97.5641  68.4615 94.1026  70.7692 91.0256  72.0513 86.4103
73.8462 83.3333  75.1282 79.1026  76.6667 75.2564  77.6923 71.4103  79.7436 66.7949  81.7949 60.2564
83.3333 55.2564  85.1282 51.4103  86.4103 47.5641  87.9487 46.0256  89.4872 42.5641  93.3333 39.8718
95.3846 36.7949  98.2051 33.718  56.6667 40.641  59.2308 38.3333  60.7692 33.718  63.0769 29.1026
64.1026 25.2564  64.359 24.1026  74.359 22.9487  71.2821 22.9487  67.9487 22.1795  65.8974 20.2564
63.0769 19.1026  61.2821 19.1026  58.7179 18.3333  55.1282 18.3333  52.3077 18.3333  49.7436 17.5641
47.4359 16.0256  44.8718 13.718  48.7179 14.8718  51.2821 14.8718  54.1026 14.8718  56.1538 14.1026
52.0513 12.5641  48.7179 11.0256  47.1795 9.8718  46.1538 6.0256  50.5128 9.4872  53.8462 10.2564
57.4359 10.2564  60.0 10.641  64.1026 10.641  66.9231 10.641  71.2821 10.641  74.359 10.641
78.2051 10.641  67.9487 8.718  68.4615 5.2564  68.2051 2.9487  37.6923 25.7692  39.4872 25.3846
91.2821 41.5385  50.0 95.7692  47.9487 95.0  44.1026 92.6923
"""


# --- 2-D sets of the demonstration ----------------------------------------------------------


def make_correlated_gaussian(
    n_samples: int = 1000, *, random_state: RandomState = None
) -> FloatArray:
    """Draw rows from a strongly correlated Gaussian with unit variances.

    The correlation is -0.495 / 0.505 = -0.980, so the differential entropy is 1.22 nats.

    Parameters
    ----------
    n_samples : int, default=1000
        Number of rows.
    random_state : int, RandomState instance or None, default=None
        Source of randomness.

    Returns
    -------
    ndarray of shape (n_samples, 2)
        The rows.

    See Also
    --------
    load_density : The same distribution with its exact log-density.

    Examples
    --------
    >>> from sk_itdiffusion.datasets import make_correlated_gaussian
    >>> make_correlated_gaussian(5, random_state=0).shape
    (5, 2)
    """
    return _correlated_gaussian().sample(n_samples, random_state=random_state)


def make_two_moons(
    n_samples: int = 1000, *, noise: float = 0.03, random_state: RandomState = None
) -> FloatArray:
    """Draw rows from two interleaved half circles of radius 1.

    Parameters
    ----------
    n_samples : int, default=1000
        Number of rows.
    noise : float, default=0.03
        Standard deviation of the Gaussian noise around the half circles.
    random_state : int, RandomState instance or None, default=None
        Source of randomness.

    Returns
    -------
    ndarray of shape (n_samples, 2)
        The rows, in random order.

    See Also
    --------
    sklearn.datasets.make_moons : The generator behind this function.

    Examples
    --------
    >>> from sk_itdiffusion.datasets import make_two_moons
    >>> make_two_moons(5, random_state=0).shape
    (5, 2)
    """
    X, _ = make_moons(n_samples, noise=noise, random_state=random_state)
    return np.asarray(X)


def make_square(n_samples: int = 1000, *, random_state: RandomState = None) -> FloatArray:
    """Draw rows from the uniform distribution on the square [-1, 1] x [-1, 1].

    The differential entropy is log 4 = 1.39 nats.

    Parameters
    ----------
    n_samples : int, default=1000
        Number of rows.
    random_state : int, RandomState instance or None, default=None
        Source of randomness.

    Returns
    -------
    ndarray of shape (n_samples, 2)
        The rows.

    Examples
    --------
    >>> from sk_itdiffusion.datasets import make_square
    >>> X = make_square(5, random_state=0)
    >>> bool(abs(X).max() <= 1.0)
    True
    """
    rng = check_random_state(random_state)
    return np.asarray(rng.uniform(-1.0, 1.0, size=(n_samples, 2)))


def make_circle_of_discs(n_samples: int = 1000, *, random_state: RandomState = None) -> FloatArray:
    """Draw rows from sixteen small discs on the unit circle and one at its centre.

    This is the set that the demonstration calls "circle": the nodes of a 5 x 5 grid, chosen
    with equal probability and projected onto the unit circle (the middle node stays at the
    origin), plus a displacement in a uniform direction whose length is uniform on [0, 0.03].

    Parameters
    ----------
    n_samples : int, default=1000
        Number of rows.
    random_state : int, RandomState instance or None, default=None
        Source of randomness.

    Returns
    -------
    ndarray of shape (n_samples, 2)
        The rows.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion.datasets import make_circle_of_discs
    >>> X = make_circle_of_discs(500, random_state=0)
    >>> bool(np.linalg.norm(X, axis=1).max() <= 1.03)
    True
    """
    rng = check_random_state(random_state)
    nodes = rng.randint(-2, 3, size=(n_samples, 2)).astype(np.float64)
    centres = nodes / np.maximum(np.linalg.norm(nodes, axis=1, keepdims=True), 1.0)
    angle = rng.uniform(0.0, 2.0 * np.pi, size=n_samples)
    radius = rng.uniform(0.0, 0.03, size=n_samples)
    offsets = radius[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    return np.asarray(centres + offsets)


def make_two_circles(
    n_samples: int = 1000, *, noise: float = 0.03, random_state: RandomState = None
) -> FloatArray:
    """Draw rows from two concentric circles of radius 1 and 0.5.

    Parameters
    ----------
    n_samples : int, default=1000
        Number of rows, half of them on each circle.
    noise : float, default=0.03
        Standard deviation of the Gaussian noise around the circles.
    random_state : int, RandomState instance or None, default=None
        Source of randomness.

    Returns
    -------
    ndarray of shape (n_samples, 2)
        The rows, in random order.

    See Also
    --------
    make_circle_of_discs : The set that the demonstration of the paper calls "circle".
    sklearn.datasets.make_circles : The generator behind this function.

    Examples
    --------
    >>> from sk_itdiffusion.datasets import make_two_circles
    >>> make_two_circles(5, random_state=0).shape
    (5, 2)
    """
    X, _ = make_circles(n_samples, noise=noise, factor=0.5, random_state=random_state)
    return np.asarray(X)


def load_dino() -> FloatArray:
    """Return the 142 points of the Datasaurus drawing.

    The points were drawn by Alberto Cairo [1]_ and became the first of the thirteen sets of
    the "Datasaurus dozen" [2]_, which share means (54.26, 47.83), standard deviations
    (16.76, 26.93) and correlation (-0.06).

    Returns
    -------
    ndarray of shape (142, 2)
        The points, in the original units of 0 to 100.

    References
    ----------
    .. [1] A. Cairo, "Download the Datasaurus: never trust summary statistics alone; always
       visualize your data", The Functional Art, 2016.
    .. [2] J. Matejka and G. Fitzmaurice, "Same stats, different graphs: generating datasets
       with varied appearance and identical statistics through simulated annealing", ACM CHI
       Conference on Human Factors in Computing Systems, 2017.

    Examples
    --------
    >>> from sk_itdiffusion.datasets import load_dino
    >>> load_dino().shape
    (142, 2)
    """
    return np.array(_DINO_POINTS.split(), dtype=np.float64).reshape(-1, 2)


def make_dino(
    n_samples: int = 1000, *, jitter: float = 0.15, random_state: RandomState = None
) -> FloatArray:
    """Draw rows around the points of the Datasaurus drawing.

    Each row is one of the 142 points of :func:`load_dino`, chosen with equal probability,
    plus isotropic Gaussian noise. The distribution is therefore a mixture of 142 equal
    Gaussians.

    Parameters
    ----------
    n_samples : int, default=1000
        Number of rows.
    jitter : float, default=0.15
        Standard deviation of the noise in each direction, in the units of the drawing.
    random_state : int, RandomState instance or None, default=None
        Source of randomness.

    Returns
    -------
    ndarray of shape (n_samples, 2)
        The rows.

    Examples
    --------
    >>> from sk_itdiffusion.datasets import make_dino
    >>> make_dino(5, random_state=0).shape
    (5, 2)
    """
    rng = check_random_state(random_state)
    points = load_dino()
    chosen = points[rng.randint(len(points), size=n_samples)]
    return np.asarray(chosen + jitter * rng.standard_normal((n_samples, 2)))


# --- Densities with a known logarithm -------------------------------------------------------


class AnalyticDensity(ABC):
    """A distribution that can be sampled and whose log-density is known exactly.

    Parameters
    ----------
    n_features : int
        Number of columns of a row, at least 1.

    Attributes
    ----------
    n_features : int
        Number of columns of a row.

    Examples
    --------
    >>> from sk_itdiffusion.datasets import AnalyticDensity, load_density
    >>> isinstance(load_density("banana"), AnalyticDensity)
    True
    """

    def __init__(self, n_features: int) -> None:
        self.n_features = n_features

    def sample(self, n_samples: int = 1, random_state: RandomState = None) -> FloatArray:
        """Draw independent rows.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows, at least 1.
        random_state : int, RandomState instance or None, default=None
            Source of randomness.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            The rows.
        """
        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, got {n_samples}.")
        return self._sample(n_samples, check_random_state(random_state))

    def log_prob(self, X: ArrayLike) -> FloatArray:
        """Evaluate the exact log-density.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            The rows.

        Returns
        -------
        ndarray of shape (n_samples,)
            Log-density of each row, in nats.
        """
        rows = check_array(X, dtype=np.float64)
        if rows.shape[1] != self.n_features:
            raise ValueError(
                f"X has {rows.shape[1]} features, but {type(self).__name__} has "
                f"{self.n_features} features."
            )
        return self._log_prob(rows)

    @abstractmethod
    def _sample(self, n_samples: int, rng: np.random.RandomState) -> FloatArray:
        """Draw rows of shape (n_samples, n_features)."""

    @abstractmethod
    def _log_prob(self, X: FloatArray) -> FloatArray:
        """Return the log-density of validated rows, shape (n_samples,)."""


class GaussianMixtureDensity(AnalyticDensity):
    """Mixture of Gaussians with full covariances.

    Parameters
    ----------
    weights : array-like of shape (n_components,)
        Probability of each component; positive, with sum 1.
    means : array-like of shape (n_components, n_features)
        Mean of each component.
    covariances : array-like of shape (n_components, n_features, n_features)
        Covariance of each component, symmetric and positive definite.

    Attributes
    ----------
    n_features : int
        Number of columns of a row.
    weights : ndarray of shape (n_components,)
        Probability of each component.
    means : ndarray of shape (n_components, n_features)
        Mean of each component.
    covariances : ndarray of shape (n_components, n_features, n_features)
        Covariance of each component.

    Examples
    --------
    >>> from sk_itdiffusion.datasets import GaussianMixtureDensity
    >>> density = GaussianMixtureDensity([0.5, 0.5], [[-2.0], [2.0]], [[[1.0]], [[1.0]]])
    >>> density.log_prob([[0.0]]).round(3)
    array([-2.919])
    """

    def __init__(self, weights: ArrayLike, means: ArrayLike, covariances: ArrayLike) -> None:
        self.weights = np.array(weights, dtype=np.float64)
        self.means = np.array(means, dtype=np.float64)
        self.covariances = np.array(covariances, dtype=np.float64)
        _check_mixture(self.weights, self.means, self.covariances)
        super().__init__(n_features=self.means.shape[1])
        self._cholesky = np.linalg.cholesky(self.covariances)

    def _sample(self, n_samples: int, rng: np.random.RandomState) -> FloatArray:
        component = rng.choice(len(self.weights), size=n_samples, p=self.weights)
        X = rng.standard_normal((n_samples, self.n_features))
        for k, (mean, factor) in enumerate(zip(self.means, self._cholesky, strict=True)):
            rows = component == k
            X[rows] = mean + X[rows] @ factor.T
        return np.asarray(X)

    def _log_prob(self, X: FloatArray) -> FloatArray:
        joint = np.column_stack(
            [
                np.log(weight) + _gaussian_log_prob(X - mean, factor)
                for weight, mean, factor in zip(
                    self.weights, self.means, self._cholesky, strict=True
                )
            ]
        )
        return np.asarray(logsumexp(joint, axis=1))


class BananaDensity(AnalyticDensity):
    """Gaussian bent along a parabola: x1 ~ N(0, 1), x2 = x1 ** 2 + noise * N(0, 1).

    Parameters
    ----------
    noise : float, default=0.3
        Standard deviation of x2 around the parabola.

    Attributes
    ----------
    n_features : int
        Number of columns of a row, 2.
    noise : float
        Standard deviation of x2 around the parabola.

    Examples
    --------
    >>> from sk_itdiffusion.datasets import BananaDensity
    >>> BananaDensity(noise=1.0).log_prob([[1.0, 1.0]]).round(3)
    array([-2.338])
    """

    def __init__(self, noise: float = 0.3) -> None:
        if not noise > 0.0:
            raise ValueError(f"noise must be positive, got {noise}.")
        super().__init__(n_features=2)
        self.noise = noise

    def _sample(self, n_samples: int, rng: np.random.RandomState) -> FloatArray:
        first, second = rng.standard_normal((2, n_samples))
        return np.column_stack([first, first**2 + self.noise * second])

    def _log_prob(self, X: FloatArray) -> FloatArray:
        residual = (X[:, 1] - X[:, 0] ** 2) / self.noise
        quadratic = X[:, 0] ** 2 + residual**2
        return np.asarray(-0.5 * quadratic - np.log(self.noise) - _LOG_2PI)


class StudentTDensity(AnalyticDensity):
    """Multivariate Student-t distribution, centred, with the identity as its shape matrix.

    Parameters
    ----------
    n_features : int, default=5
        Number of columns of a row.
    degrees_of_freedom : float, default=4.0
        Degrees of freedom; moments of this order and above are infinite.

    Attributes
    ----------
    n_features : int
        Number of columns of a row.
    degrees_of_freedom : float
        Degrees of freedom.

    Examples
    --------
    >>> from sk_itdiffusion.datasets import StudentTDensity
    >>> StudentTDensity(n_features=1, degrees_of_freedom=1.0).log_prob([[0.0]]).round(3)
    array([-1.145])
    """

    def __init__(self, n_features: int = 5, degrees_of_freedom: float = 4.0) -> None:
        if not degrees_of_freedom > 0.0:
            raise ValueError(f"degrees_of_freedom must be positive, got {degrees_of_freedom}.")
        super().__init__(n_features=n_features)
        self.degrees_of_freedom = degrees_of_freedom

    def _sample(self, n_samples: int, rng: np.random.RandomState) -> FloatArray:
        normal = rng.standard_normal((n_samples, self.n_features))
        mixing = rng.chisquare(self.degrees_of_freedom, size=n_samples) / self.degrees_of_freedom
        return normal / np.sqrt(mixing)[:, None]

    def _log_prob(self, X: FloatArray) -> FloatArray:
        nu, d = self.degrees_of_freedom, self.n_features
        log_normaliser = gammaln((nu + d) / 2) - gammaln(nu / 2) - d / 2 * np.log(nu * np.pi)
        quadratic = (X**2).sum(axis=1)
        return np.asarray(log_normaliser - (nu + d) / 2 * np.log1p(quadratic / nu))


class LogNormalCauchyDensity(AnalyticDensity):
    """Independent columns: a standard log-normal one and a standard Cauchy one.

    A row whose first column is not positive has log-density -inf.

    Attributes
    ----------
    n_features : int
        Number of columns of a row, 2.

    Examples
    --------
    >>> from sk_itdiffusion.datasets import LogNormalCauchyDensity
    >>> LogNormalCauchyDensity().log_prob([[1.0, 0.0]]).round(3)
    array([-2.064])
    """

    def __init__(self) -> None:
        super().__init__(n_features=2)

    def _sample(self, n_samples: int, rng: np.random.RandomState) -> FloatArray:
        return np.column_stack([rng.lognormal(size=n_samples), rng.standard_cauchy(size=n_samples)])

    def _log_prob(self, X: FloatArray) -> FloatArray:
        positive = X[:, 0] > 0.0
        log_x = np.log(np.where(positive, X[:, 0], 1.0))
        log_normal = np.where(positive, -0.5 * (log_x**2 + _LOG_2PI) - log_x, -np.inf)
        cauchy = -np.log(np.pi) - np.log1p(X[:, 1] ** 2)
        return np.asarray(log_normal + cauchy)


def load_density(name: str) -> AnalyticDensity:
    """Return one of the analytic densities by name.

    Parameters
    ----------
    name : str
        One of ``DENSITY_NAMES``:

        - ``"correlated_gaussian"``: 2-D, unit variances, correlation -0.980.
        - ``"ring"``: 8 equal isotropic Gaussians of standard deviation 0.3, evenly spaced on
          a circle of radius 4.
        - ``"banana"``: x1 ~ N(0, 1), x2 = x1 ** 2 + 0.3 N(0, 1).
        - ``"spiral"``: 40 equal Gaussians along 0.5 (t cos t, t sin t), t evenly spaced from
          0.5 to 3.5 pi, of standard deviation 0.25 along the curve and 0.08 across it.
        - ``"mixture_10d"``: 5 Gaussians in 10 dimensions with random means, covariances and
          weights.
        - ``"twonorm"``: 0.5 N(m, I) + 0.5 N(-m, I) in 20 dimensions, every entry of m equal
          to 2 / sqrt(20) [1]_.
        - ``"student_t"``: 5-D Student-t with 4 degrees of freedom.
        - ``"lognormal_cauchy"``: a standard log-normal column and an independent standard
          Cauchy column.

    Returns
    -------
    AnalyticDensity
        The density, with methods ``sample`` and ``log_prob``.

    References
    ----------
    .. [1] L. Breiman, "Bias, variance, and arcing classifiers", technical report 460,
       Statistics Department, University of California, Berkeley, 1996.

    Examples
    --------
    >>> from sk_itdiffusion.datasets import load_density
    >>> ring = load_density("ring")
    >>> X = ring.sample(2000, random_state=0)
    >>> X.shape
    (2000, 2)
    >>> print(f"entropy: {-ring.log_prob(X).mean():.1f} nats")
    entropy: 2.5 nats
    """
    if name not in _DENSITIES:
        raise ValueError(f"Unknown density {name!r}; choose one of {', '.join(DENSITY_NAMES)}.")
    return _DENSITIES[name]()


def _correlated_gaussian() -> GaussianMixtureDensity:
    covariance = [[1.0, _CORRELATION], [_CORRELATION, 1.0]]
    return GaussianMixtureDensity([1.0], [[0.0, 0.0]], [covariance])


def _ring() -> GaussianMixtureDensity:
    angle = 2.0 * np.pi * np.arange(8) / 8
    means = 4.0 * np.column_stack([np.cos(angle), np.sin(angle)])
    return _equal_mixture(means, np.broadcast_to(0.3**2 * np.eye(2), (8, 2, 2)))


def _spiral() -> GaussianMixtureDensity:
    t = np.linspace(0.5, 3.5 * np.pi, 40)
    means = 0.5 * np.column_stack([t * np.cos(t), t * np.sin(t)])
    tangent = np.column_stack([np.cos(t) - t * np.sin(t), np.sin(t) + t * np.cos(t)])
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    normal = np.column_stack([-tangent[:, 1], tangent[:, 0]])
    along = 0.25**2 * np.einsum("ki,kj->kij", tangent, tangent)
    across = 0.08**2 * np.einsum("ki,kj->kij", normal, normal)
    return _equal_mixture(means, along + across)


def _mixture_10d() -> GaussianMixtureDensity:
    rng = np.random.default_rng(3)
    means = 2.0 * rng.standard_normal((5, 10))
    factors = rng.standard_normal((5, 10, 10)) / np.sqrt(10.0)
    covariances = factors @ factors.transpose(0, 2, 1) + 0.05 * np.eye(10)
    return GaussianMixtureDensity(rng.dirichlet(np.full(5, 3.0)), means, covariances)


def _twonorm() -> GaussianMixtureDensity:
    mean = np.full(20, 2.0 / np.sqrt(20.0))
    return _equal_mixture(np.stack([mean, -mean]), np.broadcast_to(np.eye(20), (2, 20, 20)))


def _equal_mixture(means: FloatArray, covariances: FloatArray) -> GaussianMixtureDensity:
    """Mixture whose components have equal weights."""
    return GaussianMixtureDensity(np.full(len(means), 1.0 / len(means)), means, covariances)


def _gaussian_log_prob(deviation: FloatArray, cholesky: FloatArray) -> FloatArray:
    """Log-density of deviations (n, d) from the mean, given the covariance's Cholesky factor."""
    whitened = solve_triangular(cholesky, deviation.T, lower=True)
    log_determinant = np.log(np.diag(cholesky)).sum()
    quadratic = -0.5 * (whitened**2).sum(axis=0)
    return np.asarray(quadratic - log_determinant - 0.5 * len(cholesky) * _LOG_2PI)


def _check_mixture(weights: FloatArray, means: FloatArray, covariances: FloatArray) -> None:
    """Raise ValueError unless the arrays are the parameters of a Gaussian mixture."""
    if means.ndim != 2:
        raise ValueError(
            f"means must have shape (n_components, n_features), got shape {means.shape}."
        )
    k, d = means.shape
    if weights.shape != (k,) or covariances.shape != (k, d, d):
        raise ValueError(
            f"means of shape {means.shape} need weights of shape {(k,)} and covariances of "
            f"shape {(k, d, d)}, got {weights.shape} and {covariances.shape}."
        )
    if not (weights > 0.0).all() or not np.isclose(weights.sum(), 1.0):
        raise ValueError("weights must be positive and have sum 1.")
    if not np.allclose(covariances, covariances.transpose(0, 2, 1)):
        raise ValueError("covariances must be symmetric.")
    if not (np.linalg.eigvalsh(covariances) > 0.0).all():
        raise ValueError("covariances must be positive definite.")


_DENSITIES: dict[str, Callable[[], AnalyticDensity]] = {
    "correlated_gaussian": _correlated_gaussian,
    "ring": _ring,
    "banana": BananaDensity,
    "spiral": _spiral,
    "mixture_10d": _mixture_10d,
    "twonorm": _twonorm,
    "student_t": StudentTDensity,
    "lognormal_cauchy": LogNormalCauchyDensity,
}

DENSITY_NAMES: tuple[str, ...] = tuple(_DENSITIES)
"""Names accepted by :func:`load_density`."""
