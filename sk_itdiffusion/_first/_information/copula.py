r"""Normal and Student t copulas in which few directions of two groups of columns are dependent.

Behind the map from normal scores to those of a t distribution with :math:`\nu` degrees of freedom,
rows have a joint t distribution with matrix :math:`\Sigma`; without end :math:`\nu` they are
normal.  Its parts and conditionals are known, and heavy tails that come together are dependence
too, also without any correlation.

Of columns x and y, whitened given the others, the singular values :math:`s_i` of their covariance
are the canonical correlations.  With only the first r of them

.. math:: I(X; Y) = -\tfrac12 \sum_{i \le r} \log (1 - s_i^2)

for normal rows, and the estimate of the matrix is wrong by :math:`r (d_x + d_y - r)` numbers
instead of :math:`d_x d_y`, which in 50 + 50 columns is 99 instead of 2500.  Each number costs about
half a nat, divided by the number of rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.linalg import solve_triangular
from scipy.special import gammaln, log_ndtr

from sk_itdiffusion._first._information.roles import Roles
from sk_itdiffusion._first.references.gaussian import floor_eigenvalues

__all__ = ["EllipticalCopula", "ranks_of"]

Array = NDArray[np.float64]

#: Degrees of freedom that are tried, beginning with none (a normal copula).
_DEGREES = (math.inf, 30.0, 10.0, 5.0, 3.0, 2.0, 1.0)
_MAX_STEPS, _TOLERANCE = 50, 1e-3
#: Least variance along any direction, and greatest canonical correlation.
_FLOOR = 1e-6
#: Numbers of canonical correlations that are kept.
_RANKS = (0, 1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48)


def ranks_of(roles: Roles) -> list[int]:
    """Return how many canonical correlations may be kept, the last one being all."""
    most = min(len(roles.x), len(roles.y))
    return [rank for rank in _RANKS if rank < most] + [most]


def t_scores(z: Array, degrees: float) -> Array:
    """Return what normal scores are among quantiles of a t distribution."""
    if math.isinf(degrees):
        return z
    # By the lower tail of what is negative, where probabilities keep their digits.
    return np.asarray(np.sign(z) * -stats.t.ppf(np.exp(log_ndtr(-np.abs(z))), degrees))


def log_slopes(z: Array, t: Array, degrees: float) -> Array:
    """Return the log-derivatives of the t scores, one for each entry."""
    if math.isinf(degrees):
        return np.zeros_like(z)
    return np.asarray(stats.norm.logpdf(z) - stats.t.logpdf(t, degrees))


def log_elliptical(square: Array, n_columns: int, log_det: Array | float, degrees: float) -> Array:
    """Return t log-densities from squared distances and the logarithm of the determinant."""
    if math.isinf(degrees):
        return np.asarray(-0.5 * (square + log_det + n_columns * math.log(2.0 * math.pi)))
    half = 0.5 * (degrees + n_columns)
    constant = (
        gammaln(half) - gammaln(0.5 * degrees) - 0.5 * n_columns * math.log(degrees * math.pi)
    )
    return np.asarray(constant - 0.5 * log_det - half * np.log1p(square / degrees))


@dataclass(frozen=True)
class EllipticalCopula:
    """Normal or t copula of all columns.

    Attributes
    ----------
    degrees : float
        Degrees of freedom, infinite for a normal copula.
    scatter : ndarray of shape (n_columns, n_columns)
        Matrix of the distribution of t scores.
    """

    degrees: float
    scatter: Array

    @classmethod
    def fit(cls, z: Array) -> EllipticalCopula:
        """Return the copula of greatest likelihood of normal scores, (n, n_columns).

        Degrees of freedom decrease as long as that makes the rows likelier.
        """
        best: tuple[float, EllipticalCopula] | None = None
        for degrees in _DEGREES:
            t = t_scores(z, degrees)
            scatter = fitted_scatter(t, degrees, None if best is None else best[1].scatter)
            copula = cls(degrees, scatter)
            score = float(copula.log_prob(z, t).mean())
            if best is not None and score <= best[0]:
                break
            best = score, copula
        assert best is not None
        return best[1]

    def log_prob(self, z: Array, t: Array) -> Array:
        """Return the log-densities of rows of normal scores, whose t scores are known."""
        root = np.asarray(np.linalg.cholesky(self.scatter), dtype=np.float64)
        square, log_det = squares(root, t)
        slope: Array = log_slopes(z, t, self.degrees).sum(axis=1)
        return log_elliptical(square, t.shape[1], log_det, self.degrees) + slope

    def log_densities(self, z: Array, roles: Roles) -> tuple[Array, Array]:
        """Return log-densities of y with and without x, for each number of correlations kept.

        Parameters
        ----------
        z : ndarray of shape (n, n_columns)
            Normal scores.
        roles : Roles
            Which columns are x, y, and given in any case.

        Returns
        -------
        conditional : ndarray of shape (n_ranks, n)
            log p(y | x, given), for the ranks of `ranks_of`.
        marginal : ndarray of shape (n,)
            log p(y | given).
        """
        t = t_scores(z, self.degrees)
        given = Whitened.of(self.scatter, t, roles.given)
        x, y = (given.then(self.scatter, t, columns) for columns in (roles.x, roles.y))
        of_x, s, of_y = np.linalg.svd(x.covariance_with(y, self.scatter), full_matrices=False)
        s = np.minimum(s, 1.0 - _FLOOR)
        v, w = x.numbers @ of_x, y.numbers @ of_y.T
        # What each canonical correlation adds to the squared distance and to the log-determinant.
        added = (v**2 + w**2 - 2.0 * s * v * w) / (1.0 - s**2) - v**2 - w**2
        ranks = ranks_of(roles)
        square = np.column_stack([np.zeros(len(z)), np.cumsum(added, axis=1)])[:, ranks].T
        log_det = np.concatenate([[0.0], np.cumsum(np.log1p(-(s**2)))])[ranks][:, None]

        def log_density(*parts: Whitened, square: Any = 0.0, log_det: Any = 0.0) -> Array:
            """Return the log-density of parts, with what their correlations add."""
            return log_elliptical(
                sum(part.square for part in parts) + square,
                sum(len(part.columns) for part in parts),
                sum(part.log_det for part in parts) + log_det,
                self.degrees,
            )

        slope = log_slopes(z[:, roles.y], t[:, roles.y], self.degrees).sum(axis=1)
        of_all = log_density(given, x, y, square=square, log_det=log_det)
        conditional = of_all - log_density(given, x) + slope
        return conditional, log_density(given, y) - log_density(given) + slope


@dataclass(frozen=True)
class Whitened:
    """Columns less what others tell of them, whitened.

    Attributes
    ----------
    columns : ndarray of int
        The columns.
    numbers : ndarray of shape (n, n_own)
        Rows, uncorrelated and of unit variance.
    root : ndarray of shape (n_own, n_own)
        Cholesky factor of the matrix that they had.
    slopes : ndarray of shape (n_before, n_own) or None
        Coefficients of the whitened columns that were taken out of them.
    """

    columns: NDArray[np.intp]
    numbers: Array
    root: Array
    slopes: Array | None = None

    @classmethod
    def of(cls, scatter: Array, t: Array, columns: NDArray[np.intp]) -> Whitened:
        """Return columns whitened."""
        root = np.asarray(np.linalg.cholesky(scatter[np.ix_(columns, columns)]), dtype=np.float64)
        return cls(columns, solve_triangular(root, t[:, columns].T, lower=True).T, root)

    def then(self, scatter: Array, t: Array, columns: NDArray[np.intp]) -> Whitened:
        """Return other columns whitened, less what these tell of them."""
        slopes = solve_triangular(self.root, scatter[np.ix_(self.columns, columns)], lower=True)
        rest = scatter[np.ix_(columns, columns)] - slopes.T @ slopes
        root = np.asarray(np.linalg.cholesky(floor_eigenvalues(rest, _FLOOR)), dtype=np.float64)
        left = t[:, columns] - self.numbers @ slopes
        return Whitened(columns, solve_triangular(root, left.T, lower=True).T, root, slopes)

    def covariance_with(self, other: Whitened, scatter: Array) -> Array:
        """Return the covariance of these numbers with others, from both of which one was taken."""
        assert self.slopes is not None
        assert other.slopes is not None
        cross = scatter[np.ix_(self.columns, other.columns)] - self.slopes.T @ other.slopes
        half = solve_triangular(self.root, cross, lower=True)
        return np.asarray(solve_triangular(other.root, half.T, lower=True).T)

    @property
    def square(self) -> Array:
        """Squared length of the numbers of each row."""
        return np.asarray(np.square(self.numbers).sum(axis=1))

    @property
    def log_det(self) -> float:
        """Logarithm of the determinant of the matrix."""
        return 2.0 * float(np.log(np.diag(self.root)).sum())


def squares(root: Array, t: Array) -> tuple[Array, float]:
    """Return squared distances of rows, and the log-determinant, from a Cholesky factor."""
    whitened = solve_triangular(root, t.T, lower=True)
    return np.square(whitened).sum(axis=0), 2.0 * float(np.log(np.diag(root)).sum())


def fitted_scatter(t: Array, degrees: float, start: Array | None) -> Array:
    """Return the matrix of greatest likelihood of centred t scores, by reweighting their rows."""
    n_columns = t.shape[1]
    scatter = t.T @ t / len(t) if start is None or math.isinf(degrees) else start
    scatter = floor_eigenvalues(scatter, _FLOOR)
    for _ in range(0 if math.isinf(degrees) else _MAX_STEPS):
        root = np.asarray(np.linalg.cholesky(scatter), dtype=np.float64)
        square, _ = squares(root, t)
        weight = (degrees + n_columns) / (degrees + square)
        before, scatter = scatter, floor_eigenvalues((t * weight[:, None]).T @ t / len(t), _FLOOR)
        if np.abs(scatter - before).max() < _TOLERANCE:
            break
    return scatter
