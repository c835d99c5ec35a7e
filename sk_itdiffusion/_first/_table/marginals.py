r"""Invertible maps of single columns, with their log-derivatives.

The relation between information and estimation is applied to :math:`u = T(x)`, with :math:`T` a
smooth, strictly increasing map of each column, and the density follows from

.. math:: \log p(x) = \log p_U(T(x)) + \sum_j \log T_j'(x_j).

Columns are standardised first.  ``"standard"`` stops there.  ``"yeo_johnson"`` applies the power
transformation of that name ([1]_), with its exponent kept in [0, 2], where it maps the real line
onto itself; well beyond the rows of the fit it is straight.
``"quantile"`` maps quantiles onto those of a normal distribution: a monotone cubic
(PCHIP) in the body of the data, and in each tail either a straight line (a normal tail) or the
map that turns a generalised Pareto tail ([2]_) into a normal one, whichever is more likely; the
derivative is continuous where they meet.

A column with bounds is mapped onto the real line first: like a logarithm near a bound, and straight
far from it.

References
----------
.. [1] I.-K. Yeo, R. A. Johnson. "A new family of power transformations to improve normality or
   symmetry". Biometrika 87, 2000.
.. [2] J. Pickands. "Statistical inference using extreme order statistics". Annals of Statistics
   3, 1975.
.. [3] S. D. Grimshaw. "Computing maximum likelihood estimates for the generalized Pareto
   distribution". Technometrics 35, 1993.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.interpolate import CubicHermiteSpline
from scipy.special import expit, ndtr, ndtri

from sk_itdiffusion._first._table.rows import has_missing, observed
from sk_itdiffusion._first._table.tails import (
    Tail,
    fit_tail,
    has_heavy_tail,
    positive_slopes,
)
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import (
    check_finite,
    check_in_range,
    check_increasing,
    check_positive,
    check_shapes,
)

__all__ = [
    "MARGINAL_KINDS",
    "MarginalMap",
    "Standardizer",
    "first_map",
    "fit_marginal_map",
    "heavy_columns",
]

Array = NDArray[np.float64]
MARGINAL_KINDS = ("standard", "yeo_johnson", "quantile")

#: Standard deviations of mapped values beyond all rows from which a power map is straight: rows
#: that are to come are seldom further out, so that they are mapped by the power.
_CURVED_BEYOND = 0.5
#: Softness of a bound, in standard deviations, and relative to the distance of two.
_SOFTNESSES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
_MAX_SOFTNESSES = 500.0
_MIN_ROWS_FOR_QUANTILES = 60
#: Bits of means and deviations, relative to the latter, and its least power of two.
_BITS_OF_MOMENTS, _MIN_SIZE = 26, -60


class ColumnMap(Protocol):
    """A strictly increasing map of the real line, or an interval, onto the real line."""

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Return the mapped values and the logarithm of the derivative."""
        ...

    def inverse(self, u: Array) -> Array:
        """Return the values that map to ``u``."""
        ...


@stored()
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

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        check_finite(self.center, "centers of maps")
        check_positive(self.scale, "scales of maps")


@stored()
@dataclass(frozen=True)
class YeoJohnsonMap:
    """Yeo-Johnson transformation with exponent in [0, 2], then standardisation.

    Below ``low`` and above ``high``, well beyond the rows of the fit, it is straight, with the
    slope that it has there.  A logarithm or a root would turn what is a few standard deviations
    away from all rows into values thousands of times as large as any.
    """

    exponent: float
    after: AffineMap
    low: float = -math.inf
    high: float = math.inf

    @classmethod
    def fit(cls, x: Array, weight: Array) -> YeoJohnsonMap:
        """Return the map of maximum likelihood of normality."""

        def loss(exponent: float) -> float:
            u, log_slope = cls(exponent, AffineMap()).forward(x)
            variance = np.average((u - np.average(u, weights=weight)) ** 2, weights=weight)
            return float(0.5 * math.log(variance) - np.average(log_slope, weights=weight))

        grid = np.linspace(0.0, 2.0, 41)
        exponent = float(grid[np.argmin([loss(value) for value in grid])])
        u = cls(exponent, AffineMap()).forward(x)[0]
        center = float(np.average(u, weights=weight))
        scale = math.sqrt(np.average((u - center) ** 2, weights=weight))
        curved = cls(exponent, AffineMap(center, scale))
        mapped = curved.forward(x)[0]
        ends = np.array([mapped.min() - _CURVED_BEYOND, mapped.max() + _CURVED_BEYOND])
        low, high = curved.inverse(ends).tolist()
        return cls(exponent, curved.after, low, high)

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Return the mapped values and the logarithm of the derivative."""
        inside = np.clip(x, self.low, self.high)
        u = np.asarray(stats.yeojohnson(inside, self.exponent), dtype=np.float64)
        log_slope = self._log_slope(inside)
        u = u + _excess(x, inside) * np.exp(log_slope)
        return self.after.forward(u)[0], log_slope - math.log(self.after.scale)

    def _log_slope(self, x: Array) -> Array:
        """Return the logarithm of the derivative of the transformation before standardisation."""
        return np.asarray((self.exponent - 1.0) * np.sign(x) * np.log1p(np.abs(x)))

    def inverse(self, u: Array) -> Array:
        """Return the values that map to ``u``."""
        y = self.after.inverse(u)
        ends = np.array([self.low, self.high])
        inside = np.clip(y, *stats.yeojohnson(ends, self.exponent))
        x = self._inverse(inside)
        return x + _excess(y, inside) * np.exp(-self._log_slope(x))

    def _inverse(self, y: Array) -> Array:
        """Return the values whose transformation is ``y``."""
        # By symmetry the negative branch is the positive one with exponent 2 - exponent.
        power = np.where(y >= 0, self.exponent, 2.0 - self.exponent)
        size = np.abs(y)
        exponential = power == 0.0
        safe = np.where(exponential, 1.0, power)
        rise = np.where(exponential, size, np.log1p(safe * size) / safe)
        return np.asarray(np.sign(y) * np.expm1(rise), dtype=np.float64)

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        check_in_range(self.exponent, 0.0, 2.0, "exponents of maps")


def _excess(x: Array, inside: Array) -> Array:
    """Return by how much values are beyond those inside; 0 where they are equal."""
    return np.subtract(x, inside, out=np.zeros_like(x), where=x != inside)


@stored()
@dataclass(frozen=True)
class BoundMap:
    """An interval onto the real line: like a logarithm near a bound, straight far from it.

    With ``y`` the distance from the only bound and s the softness it is
    ``y + s * log(1 - exp(-y / s))``, and for an infinite softness ``log(y)``, straight beyond the
    farthest distance, well beyond the rows of the fit; with two bounds, it
    is the difference of both.  Values outside are seen just inside.
    """

    low: float
    high: float
    softness: float
    farthest: float = math.inf

    @classmethod
    def fit(cls, low: float, high: float, x: Array, weight: Array) -> BoundMap:
        """Return the map of maximum likelihood of normality, for values of unit variance."""
        least = (high - low) / _MAX_SOFTNESSES

        def loss(softness: float) -> float:
            u, log_slope = cls(low, high, softness).forward(x)
            variance = np.average((u - np.average(u, weights=weight)) ** 2, weights=weight)
            return float(0.5 * math.log(variance) - np.average(log_slope, weights=weight))

        grid = [max(s, least) if math.isfinite(least) else s for s in _SOFTNESSES]
        found = cls(low, high, min([*grid, math.inf], key=loss))
        if math.isfinite(found.softness) or (math.isfinite(low) and math.isfinite(high)):
            return found
        u = found._from_bound(x - low if math.isfinite(low) else high - x)[0]
        deviation = math.sqrt(np.average((u - np.average(u, weights=weight)) ** 2, weights=weight))
        return replace(found, farthest=math.exp(u.max() + _CURVED_BEYOND * deviation))

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Return the mapped values and the logarithm of the derivative."""
        if math.isinf(self.high):
            return self._from_bound(x - self.low)
        u, log_slope = self._from_bound(self.high - x)
        if math.isinf(self.low):
            return -u, log_slope
        above, log_slope_above = self._from_bound(x - self.low)
        return above - u, np.logaddexp(log_slope_above, log_slope)

    def _from_bound(self, y: Array) -> tuple[Array, Array]:
        """Return what the map makes of distances from a bound, and its log-derivative."""
        y = np.maximum(y, np.finfo(np.float64).tiny)
        if math.isinf(self.softness):
            near = np.minimum(y, self.farthest)
            return np.log(near) + _excess(y, near) / near, -np.log(near)
        log_share = np.log(-np.expm1(-y / self.softness))
        return y + self.softness * log_share, -log_share

    def inverse(self, u: Array) -> Array:
        """Return the values that map to ``u``."""
        if math.isinf(self.high):
            return self.low + self._to_distance(u, math.inf)
        if math.isinf(self.low):
            return self.high - self._to_distance(-u, math.inf)
        # From the nearer bound, as differences of large numbers are not exact.
        distance = self._to_distance(-np.abs(u), self.high - self.low)
        return np.where(u < 0.0, self.low + distance, self.high - distance)

    def _to_distance(self, u: Array, width: float) -> Array:
        """Return the distances from a bound; another one may be ``width`` away, for ``u <= 0``."""
        with np.errstate(over="ignore"):
            if math.isinf(self.softness):
                if math.isfinite(width):
                    return np.asarray(width * expit(u))
                near = np.minimum(u, np.log(self.farthest))
                return np.asarray(np.exp(near) * (1.0 + _excess(u, near)))
            scaled = u / self.softness
            if math.isinf(width):
                return np.asarray(self.softness * np.logaddexp(0.0, scaled))
        # With r = exp(u / s), k = exp(width / s) - 1 and t = exp(y / s) - 1,
        # r = t (t + 1) / (k - t).
        r, k = np.exp(scaled), math.expm1(width / self.softness)
        t = 2.0 * r * k / ((1.0 + r) + np.sqrt((1.0 + r) ** 2 + 4.0 * r * k))
        return np.asarray(self.softness * np.log1p(t))

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        check_in_range(self.softness, np.nextafter(0.0, 1.0), np.inf, "softnesses of bounds")
        check_in_range(self.farthest, np.nextafter(0.0, 1.0), np.inf, "ends of curved maps")
        if not self.low < self.high or (math.isinf(self.low) and math.isinf(self.high)):
            raise ValueError("there is no interval between the bounds of a map")


@stored()
@dataclass(frozen=True)
class ChainedMap:
    """Maps one after the other."""

    maps: Sequence[ColumnMap]

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Return the mapped values and the logarithm of the derivative."""
        log_slope = np.zeros_like(x)
        for column in self.maps:
            x, contribution = column.forward(x)
            log_slope = log_slope + contribution
        return x, log_slope

    def inverse(self, u: Array) -> Array:
        """Return the values that map to ``u``."""
        for column in reversed(self.maps):
            u = column.inverse(u)
        return u


@stored()
@dataclass(frozen=True)
class QuantileMap:
    """Quantiles onto normal quantiles: monotone cubic body, normal or Pareto tails."""

    knots: Array
    values: Array
    slopes: Array
    lower: Tail
    upper: Tail

    @classmethod
    def fit(cls, x: Array, weight: Array, heavy: bool | None = None) -> QuantileMap:
        """Return the map through about two dozen quantiles of the weighted values.

        ``heavy`` tells whether either tail is known to be heavy; None looks.
        """
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
        slopes = positive_slopes(knots, values)
        counts = mass * n_effective
        low, high = x < knots[0], x > knots[-1]
        secants = np.diff(values) / np.diff(knots)
        heavy = has_heavy_tail(x, mass) if heavy is None else heavy
        plain = Tail(-values[0], slopes[0]), Tail(values[-1], slopes[-1])
        lower = fit_tail(plain[0], knots[0] - x[low], counts[low], secants[0], heavy)
        upper = fit_tail(plain[1], x[high] - knots[-1], counts[high], secants[-1], heavy)
        slopes[0], slopes[-1] = lower.slope, upper.slope
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

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        check_shapes(self, {"knots": "n", "values": "n", "slopes": "n"})
        check_increasing(self.knots, "knots of a map")
        check_increasing(self.values, "values of a map")
        check_positive(self.slopes, "slopes of a map")


def without_last_bits(center: Array, deviation: Array) -> tuple[Array, Array]:
    """Return moments without the bits that depend on a common factor of the weights.

    The noise of a row and its side of the split follow from all bits of the standardised row.
    """
    mantissa, size = np.frexp(deviation)
    rounded = np.ldexp(np.rint(np.ldexp(mantissa, _BITS_OF_MOMENTS)), size - _BITS_OF_MOMENTS)
    unit = np.maximum(size, _MIN_SIZE) - _BITS_OF_MOMENTS
    return np.ldexp(np.rint(np.ldexp(center, -unit)), unit), rounded


@stored()
@dataclass(frozen=True)
class Standardizer:
    """Weighted mean and standard deviation of each column.

    Columns that do not vary get the scale 1.
    """

    center: Array
    scale: Array

    @classmethod
    def fit(cls, X: Array, weight: Array) -> Standardizer:
        """Return the standardisation of weighted rows, of observed entries column by column."""
        if has_missing(X):
            columns = [cls._of_observed(x, weight) for x in X.T]
            return cls(
                np.concatenate([column.center for column in columns]),
                np.concatenate([column.scale for column in columns]),
            )
        # Powers of two keep the sums exact under rescaling and free of overflow.
        exponent = np.frexp(np.abs(X).max(axis=0))[1]
        scaled = np.ldexp(X, -exponent)
        share = weight / weight.sum()
        center = share @ scaled
        deviation = np.sqrt(share @ (scaled - center) ** 2)
        if not np.array_equal(weight, np.rint(weight)):
            center, deviation = without_last_bits(center, deviation)
        varies = X.min(axis=0) < X.max(axis=0)
        # The deviation of the least numbers that there are may be less than any number.
        scale = np.maximum(np.ldexp(deviation, exponent), np.nextafter(0.0, 1.0))
        center = np.where(varies, np.ldexp(center, exponent), X[0])
        return cls(center, np.where(varies, scale, 1.0))

    @classmethod
    def _of_observed(cls, x: Array, weight: Array) -> Standardizer:
        """Return the standardisation of a column (n,), with missing entries, maybe all."""
        x, weight = observed(x, weight)
        return cls.fit(x[:, None], weight) if len(x) else cls(np.zeros(1), np.ones(1))

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

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        check_shapes(self, {"center": "c", "scale": "c"})
        check_finite(self.center, "centers of columns")
        # Maps of columns with such scales do not increase.
        check_positive(self.scale, "scales of columns")


@stored()
@dataclass(frozen=True)
class MarginalMap:
    """One increasing map for each standardised column."""

    kind: str
    columns: Sequence[ColumnMap]

    @property
    def is_identity(self) -> bool:
        """Whether all columns are left as they are."""
        return all(column == AffineMap() for column in self.columns)

    @property
    def largest_variances(self) -> Array:
        """The variance of each mapped column up to which a normal law keeps its tails.

        It is 1 where a Pareto tail becomes that of a standard normal law: behind a normal law of
        variance v the shape is v times as large.  Elsewhere it is infinite.
        """
        return np.array([1.0 if _has_pareto_tail(column) else math.inf for column in self.columns])

    def kinds(self) -> list[str]:
        """Return the kind of map of each column, those with heavy tails by their own."""
        return [_kind_of(column) for column in self.columns]

    def transform(self, X: Array) -> tuple[Array, Array]:
        """Return mapped rows (n, d) and the log-derivatives summed over columns (n,).

        Missing entries stay missing, and have no derivatives.
        """
        mapped, log_slope = np.full_like(X, np.nan), np.zeros(len(X))
        for j, column in enumerate(self.columns):
            seen = ~np.isnan(X[:, j])
            if seen.all():
                mapped[:, j], contribution = column.forward(np.ascontiguousarray(X[:, j]))
                log_slope += contribution
            else:
                mapped[seen, j], contribution = column.forward(X[seen, j])
                log_slope[seen] += contribution
        return mapped, log_slope

    def inverse(self, U: Array) -> Array:
        """Return the rows that map to ``U``."""
        return np.column_stack(
            [column.inverse(np.ascontiguousarray(U[:, j])) for j, column in enumerate(self.columns)]
        )


def _last_map(column: ColumnMap) -> ColumnMap:
    """Return a column's map, whatever comes before it."""
    return column.maps[-1] if isinstance(column, ChainedMap) else column


def _has_pareto_tail(column: ColumnMap) -> bool:
    """Return whether a column is mapped by its quantiles, with a Pareto tail."""
    last = _last_map(column)
    if not isinstance(last, QuantileMap):
        return False
    return last.lower.shape is not None or last.upper.shape is not None


def _kind_of(column: ColumnMap) -> str:
    """Return the kind of a column's map, whatever comes before it."""
    last = _last_map(column)
    if isinstance(last, QuantileMap):
        return "quantile"
    return "yeo_johnson" if isinstance(last, YeoJohnsonMap) else "standard"


def fit_marginal_map(
    kind: str,
    X: Array,
    weight: Array,
    heavy: Sequence[bool] | None = None,
    before: Sequence[ColumnMap | None] | None = None,
) -> MarginalMap:
    """Return the map of one kind fitted to standardised, weighted rows.

    Parameters
    ----------
    kind : {"standard", "yeo_johnson", "quantile"}
        Kind of map.
    X : ndarray of shape (n_samples, n_features)
        Standardised rows, which may have missing entries.
    weight : ndarray of shape (n_samples,)
        Positive weights.
    heavy : sequence of bool or None, default=None
        Columns with heavy tails, which are mapped by their quantiles whatever the kind is.
    before : sequence of ColumnMap or None, default=None
        For each column the map that comes first, if there is one; see `first_map`.

    Returns
    -------
    MarginalMap
        The fitted map.  A column with too few rows or distinct values for quantiles is left as
        it is.
    """
    maps: list[ColumnMap] = []
    for j, x in enumerate(X.T):
        first = None if before is None else before[j]
        is_heavy = None if heavy is None else heavy[j]
        x, seen_weight = observed(np.ascontiguousarray(x), weight)
        if len(x) < len(X) and not _varies(x):
            maps.append(AffineMap() if first is None else first)
            continue
        if first is None:
            maps.append(_fit_column(kind, x, seen_weight, is_heavy))
            continue
        column = _fit_column(kind, first.forward(x)[0], seen_weight, is_heavy)
        maps.append(first if column == AffineMap() else ChainedMap((first, column)))
    return MarginalMap(kind, tuple(maps))


def first_map(x: Array, weight: Array, low: float, high: float) -> ColumnMap:
    """Return the map of values between two bounds, maybe infinite, to mean 0 and variance 1.

    Parameters
    ----------
    x : ndarray of shape (n_samples,)
        Values of unit variance, some of which may be missing.
    weight : ndarray of shape (n_samples,)
        Positive weights.
    low, high : float
        The bounds.

    Returns
    -------
    ColumnMap
        The map.
    """
    is_bounded = math.isfinite(low) or math.isfinite(high)
    if has_missing(x):
        x, weight = observed(x, weight)
        if not _varies(x):
            softness = max(1.0, (high - low) / _MAX_SOFTNESSES) if high - low < math.inf else 1.0
            return BoundMap(low, high, softness) if is_bounded else AffineMap()
    bound = BoundMap.fit(low, high, x, weight) if is_bounded else AffineMap()
    u = bound.forward(x)[0]
    standardizer = Standardizer.fit(u[:, None], weight)
    after = AffineMap(float(standardizer.center[0]), float(standardizer.scale[0]))
    return ChainedMap((bound, after)) if is_bounded else after


def heavy_columns(marginal_map: MarginalMap, X: Array, weight: Array) -> list[bool]:
    """Return which columns have heavy tails behind a map of standardised, weighted rows."""
    mapped, _ = marginal_map.transform(X)
    columns = [observed(u, weight) for u in mapped.T]
    return [len(u) > 0 and has_heavy_tail(u, seen_weight) for u, seen_weight in columns]


def _varies(x: Array) -> bool:
    """Return whether there are two different values."""
    return len(x) > 0 and bool(x.min() < x.max())


def _fit_column(kind: str, x: Array, weight: Array, heavy: bool | None) -> ColumnMap:
    if kind == "yeo_johnson" and not heavy:
        return YeoJohnsonMap.fit(x, weight)
    if (kind == "quantile" or heavy) and len(x) >= _MIN_ROWS_FOR_QUANTILES:
        try:
            return QuantileMap.fit(x, weight, heavy)
        except ValueError:
            return AffineMap()
    return AffineMap()
