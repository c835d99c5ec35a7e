r"""Invertible maps of single columns, with their log-derivatives.

The relation between information and estimation is applied to :math:`u = T(x)`, with :math:`T` a
smooth, strictly increasing map of each column, and the density follows from

.. math:: \log p(x) = \log p_U(T(x)) + \sum_j \log T_j'(x_j).

Columns are standardised first.  ``"standard"`` stops there.  ``"yeo_johnson"`` applies the power
transformation of that name ([1]_), with its exponent kept in [0, 2], where it maps the real line
onto itself.  ``"quantile"`` maps quantiles onto those of a normal distribution: a monotone cubic
(PCHIP) in the body of the data, and in each tail either a straight line (a normal tail) or the
map that turns a generalised Pareto tail ([2]_) into a normal one, whichever is likelier; the
derivative is continuous where they meet.

References
----------
.. [1] I.-K. Yeo, R. A. Johnson. "A new family of power transformations to improve normality or
   symmetry". Biometrika 87, 2000.
.. [2] J. Pickands. "Statistical inference using extreme order statistics". Annals of Statistics
   3, 1975.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.interpolate import CubicHermiteSpline, PchipInterpolator
from scipy.special import log_ndtr, ndtr, ndtri, ndtri_exp

__all__ = ["MARGINAL_KINDS", "MarginalMap", "Standardizer", "fit_marginal_map"]

Array = NDArray[np.float64]

MARGINAL_KINDS = ("standard", "yeo_johnson", "quantile")

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_PARETO_SHAPES = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5)
_TAIL_EVIDENCE = 3.0  # nats by which a Pareto tail must beat the normal one
_LEAST_ROWS_FOR_QUANTILES = 60


class ColumnMap(Protocol):
    """A strictly increasing map of the real line onto itself."""

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Return the mapped values and the logarithm of the derivative."""
        ...

    def inverse(self, u: Array) -> Array:
        """Return the values that map to ``u``."""
        ...


@dataclass(frozen=True)
class AffineMap:
    """``(x - center) / scale``."""

    center: float = 0.0
    scale: float = 1.0

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Return the mapped values and the logarithm of the derivative."""
        return (x - self.center) / self.scale, np.full_like(x, -math.log(self.scale))

    def inverse(self, u: Array) -> Array:
        """Return the values that map to ``u``."""
        return u * self.scale + self.center


@dataclass(frozen=True)
class YeoJohnsonMap:
    """Yeo-Johnson transformation with exponent in [0, 2], then standardisation."""

    exponent: float
    after: AffineMap

    @classmethod
    def fit(cls, x: Array, weight: Array) -> YeoJohnsonMap:
        """Return the map of greatest likelihood of normality."""

        def loss(exponent: float) -> float:
            u, log_slope = cls(exponent, AffineMap()).forward(x)
            variance = np.average((u - np.average(u, weights=weight)) ** 2, weights=weight)
            return float(0.5 * math.log(variance) - np.average(log_slope, weights=weight))

        grid = np.linspace(0.0, 2.0, 41)
        exponent = float(grid[np.argmin([loss(value) for value in grid])])
        u = cls(exponent, AffineMap()).forward(x)[0]
        center = float(np.average(u, weights=weight))
        scale = math.sqrt(np.average((u - center) ** 2, weights=weight))
        return cls(exponent, AffineMap(center, scale))

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Return the mapped values and the logarithm of the derivative."""
        u = np.asarray(stats.yeojohnson(x, self.exponent), dtype=np.float64)
        log_slope = (self.exponent - 1.0) * np.sign(x) * np.log1p(np.abs(x))
        return self.after.forward(u)[0], log_slope - math.log(self.after.scale)

    def inverse(self, u: Array) -> Array:
        """Return the values that map to ``u``."""
        y = self.after.inverse(u)
        # By symmetry the negative branch is the positive one with exponent 2 - exponent.
        power = np.where(y >= 0, self.exponent, 2.0 - self.exponent)
        size = np.abs(y)
        exponential = power == 0.0
        safe = np.where(exponential, 1.0, power)
        rise = np.where(exponential, size, np.log1p(safe * size) / safe)
        return np.asarray(np.sign(y) * np.expm1(rise), dtype=np.float64)


@dataclass(frozen=True)
class Tail:
    """Upper tail of a quantile map, in the distance ``y >= 0`` from where it begins.

    A ``shape`` of None is a straight line; otherwise the survival probability decays as
    ``start_mass * (1 + shape * y / scale) ** (-1 / shape)``.
    """

    start: float
    slope: float
    shape: float | None = None

    @property
    def scale(self) -> float:
        """Scale of the Pareto tail that makes the derivative continuous."""
        log_density = -0.5 * self.start**2 - _LOG_SQRT_2PI + math.log(self.slope)
        return math.exp(float(log_ndtr(-self.start)) - log_density)

    def forward(self, y: Array) -> tuple[Array, Array]:
        """Return the mapped values and the logarithm of the derivative."""
        if self.shape is None:
            return self.start + self.slope * y, np.full_like(y, math.log(self.slope))
        growth = np.log1p(self.shape * y / self.scale)
        decay = y / self.scale if self.shape == 0.0 else growth / self.shape
        u = -ndtri_exp(log_ndtr(-self.start) - decay)
        log_density = log_ndtr(-self.start) - math.log(self.scale) - decay - growth
        return u, log_density + 0.5 * u**2 + _LOG_SQRT_2PI

    def inverse(self, u: Array) -> Array:
        """Return the distances that map to ``u``."""
        if self.shape is None:
            return (u - self.start) / self.slope
        decay = log_ndtr(-self.start) - log_ndtr(-u)
        if self.shape == 0.0:
            return np.asarray(self.scale * decay)
        return np.asarray(self.scale * np.expm1(self.shape * decay) / self.shape)

    def fit_shape(self, y: Array, weight: Array) -> Tail:
        """Return the tail of the likeliest shape for exceedances ``y``."""

        def log_likelihood(tail: Tail) -> float:
            u, log_slope = tail.forward(y)
            return float(weight @ (log_slope - 0.5 * u**2))

        heavy = [Tail(self.start, self.slope, shape) for shape in _PARETO_SHAPES]
        best = max(heavy, key=log_likelihood)
        gain = log_likelihood(best) - log_likelihood(self)
        return best if gain > _TAIL_EVIDENCE else self


def _positive_slopes(knots: Array, values: Array) -> Array:
    """Return the slopes of the monotone cubic, kept away from zero.

    The plain ones can vanish at the ends, where the density would vanish with them.
    """
    secants = np.diff(values) / np.diff(knots)
    least = np.minimum(np.append(secants, np.inf), np.insert(secants, 0, np.inf))
    return np.asarray(np.maximum(PchipInterpolator(knots, values)(knots, nu=1), 0.2 * least))


@dataclass(frozen=True)
class QuantileMap:
    """Quantiles onto normal quantiles: monotone cubic body, normal or Pareto tails."""

    knots: Array
    values: Array
    slopes: Array
    lower: Tail
    upper: Tail

    @classmethod
    def fit(cls, x: Array, weight: Array) -> QuantileMap:
        """Return the map through about two dozen quantiles of the weighted values."""
        order = np.argsort(x, kind="stable")
        x, mass = x[order], weight[order] / weight.sum()
        middle = np.cumsum(mass) - 0.5 * mass
        n_effective = 1.0 / (mass**2).sum()
        tail_mass = float(np.clip(20.0 / n_effective, 0.02, 0.1))
        edge = float(-ndtri(tail_mass))
        n_knots = int(np.clip(n_effective // 20, 5, 24))
        values = np.linspace(-edge, edge, n_knots)
        knots = np.interp(ndtr(values), middle, x)
        # Tied quantiles are one knot, at the middle of the values that they would have had.
        knots, group = np.unique(knots, return_inverse=True)
        values = np.bincount(group, values) / np.bincount(group)
        if len(knots) < 4:
            raise ValueError("too few distinct quantiles")
        slopes = _positive_slopes(knots, values)
        counts = mass * n_effective
        low, high = x < knots[0], x > knots[-1]
        lower = Tail(-values[0], slopes[0]).fit_shape(knots[0] - x[low], counts[low])
        upper = Tail(values[-1], slopes[-1]).fit_shape(x[high] - knots[-1], counts[high])
        return cls(knots, values, slopes, lower, upper)

    @property
    def _body(self) -> CubicHermiteSpline:
        return CubicHermiteSpline(self.knots, self.values, self.slopes)

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Return the mapped values and the logarithm of the derivative."""
        u, log_slope = np.empty_like(x), np.empty_like(x)
        low, high = x < self.knots[0], x > self.knots[-1]
        inside = ~(low | high)
        body = self._body
        u[inside] = body(x[inside])
        log_slope[inside] = np.log(body(x[inside], nu=1))
        mirrored, log_slope[low] = self.lower.forward(self.knots[0] - x[low])
        u[low] = -mirrored
        u[high], log_slope[high] = self.upper.forward(x[high] - self.knots[-1])
        return u, log_slope

    def inverse(self, u: Array) -> Array:
        """Return the values that map to ``u``."""
        x = np.empty_like(u)
        low, high = u < self.values[0], u > self.values[-1]
        inside = ~(low | high)
        x[low] = self.knots[0] - self.lower.inverse(-u[low])
        x[high] = self.knots[-1] + self.upper.inverse(u[high])
        x[inside] = self._invert_body(u[inside])
        return x

    def _invert_body(self, u: Array) -> Array:
        """Bisect within the bracketing knots; the body is monotone."""
        body = self._body
        cell = np.clip(np.searchsorted(self.values, u, side="right") - 1, 0, len(self.knots) - 2)
        left, right = self.knots[cell], self.knots[cell + 1]
        for _ in range(60):
            middle = 0.5 * (left + right)
            below = body(middle) < u
            left, right = np.where(below, middle, left), np.where(below, right, middle)
        return 0.5 * (left + right)


@dataclass(frozen=True)
class Standardizer:
    """Weighted mean and standard deviation of each column.

    Columns that do not vary get the scale 1.
    """

    center: Array
    scale: Array

    @classmethod
    def fit(cls, X: Array, weight: Array) -> Standardizer:
        """Return the standardisation of weighted rows."""
        # Powers of two keep the sums exact under rescaling and free of overflow.
        exponent = np.frexp(np.abs(X).max(axis=0))[1]
        scaled = np.ldexp(X, -exponent)
        share = weight / weight.sum()
        center = share @ scaled
        deviation = np.sqrt(share @ (scaled - center) ** 2)
        varies = X.min(axis=0) < X.max(axis=0)
        # The deviation of the least numbers that there are may be less than any number.
        scale = np.maximum(np.ldexp(deviation, exponent), np.nextafter(0.0, 1.0))
        center = np.where(varies, np.ldexp(center, exponent), X[0])
        return cls(center, np.where(varies, scale, 1.0))

    def transform(self, X: Array) -> Array:
        """Return standardised rows."""
        # In units of a power of two near the scale, which are exact, as neither the difference of
        # large numbers nor that of the least ones is otherwise.
        exponent = -np.frexp(self.scale)[1]
        standardized = np.ldexp(np.ascontiguousarray(X), exponent)
        standardized -= np.ldexp(self.center, exponent)
        standardized /= np.ldexp(self.scale, exponent)
        return standardized

    def inverse(self, U: Array) -> Array:
        """Return rows in the units of the data; infinite beyond the largest 64-bit number."""
        with np.errstate(over="ignore"):
            return U * self.scale + self.center


@dataclass(frozen=True)
class MarginalMap:
    """One increasing map for each standardised column."""

    kind: str
    columns: Sequence[ColumnMap]

    def transform(self, X: Array) -> tuple[Array, Array]:
        """Return mapped rows (n, d) and the log-derivatives summed over columns (n,)."""
        mapped, log_slope = np.empty_like(X), np.zeros(len(X))
        for j, column in enumerate(self.columns):
            mapped[:, j], contribution = column.forward(np.ascontiguousarray(X[:, j]))
            log_slope += contribution
        return mapped, log_slope

    def inverse(self, U: Array) -> Array:
        """Return the rows that map to ``U``."""
        return np.column_stack(
            [column.inverse(np.ascontiguousarray(U[:, j])) for j, column in enumerate(self.columns)]
        )


def fit_marginal_map(kind: str, X: Array, weight: Array) -> MarginalMap:
    """Return the map of one kind fitted to standardised, weighted rows.

    Parameters
    ----------
    kind : {"standard", "yeo_johnson", "quantile"}
        Kind of map.
    X : ndarray of shape (n_samples, n_features)
        Standardised rows.
    weight : ndarray of shape (n_samples,)
        Positive weights.

    Returns
    -------
    MarginalMap
        The fitted map.  A column with too few rows or distinct values for quantiles is left as
        it is.
    """
    return MarginalMap(kind, tuple(_fit_column(kind, np.ascontiguousarray(x), weight) for x in X.T))


def _fit_column(kind: str, x: Array, weight: Array) -> ColumnMap:
    if kind == "yeo_johnson":
        return YeoJohnsonMap.fit(x, weight)
    if kind == "quantile" and len(x) >= _LEAST_ROWS_FOR_QUANTILES:
        try:
            return QuantileMap.fit(x, weight)
        except ValueError:
            return AffineMap()
    return AffineMap()
