r"""Increasing maps of single columns, with their log-derivatives.

``"standard"`` is the standardisation, ``"yeo_johnson"`` a power transformation (Yeo, Johnson,
Biometrika 87, 2000), straight beyond the rows, and ``"quantile"`` maps quantiles onto those of a
normal distribution: a monotone cubic (PCHIP) in the body, and normal or Pareto tails.  A column
with bounds is mapped onto the real line first, like a logarithm near a bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.interpolate import CubicHermiteSpline, PchipInterpolator
from scipy.optimize import minimize_scalar
from scipy.special import expit, ndtr, ndtri

from sk_itdiffusion._table.tails import Tail

__all__ = ["Affine", "Bounded", "Chain", "ColumnMap", "Power", "Quantile", "fit_map"]

Array = NDArray[np.float64]
_MIN_ROWS_OF_QUANTILES = 60
#: Standard deviations beyond all rows from which a power is straight.
_CURVED_BEYOND = 0.5
#: Softnesses of a bound that are tried, in standard deviations; the last one is the logarithm.
_SOFTNESSES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, math.inf)


class ColumnMap(Protocol):
    """A strictly increasing map of the real line, or an interval, onto the real line."""

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Return mapped values and the logarithm of the derivative."""
        ...

    def inverse(self, u: Array) -> Array:
        """Return the values that map to ``u``."""
        ...


@dataclass(frozen=True)
class Affine:
    """``(x - center) / scale``."""

    center: float = 0.0
    scale: float = 1.0

    @classmethod
    def of(cls, x: Array, weight: Array) -> Affine:
        """Return the standardisation of weighted values."""
        center = float(np.average(x, weights=weight))
        scale = math.sqrt(float(np.average(np.square(x - center), weights=weight)))
        return cls(center, scale if scale > 0.0 else 1.0)

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Return mapped values and the logarithm of the derivative."""
        return (x - self.center) / self.scale, np.full_like(x, -math.log(self.scale))

    def inverse(self, u: Array) -> Array:
        """Return the values that map to ``u``."""
        return u * self.scale + self.center


@dataclass(frozen=True)
class Power:
    """Yeo-Johnson transformation with exponent in [0, 2], straight beyond ``low`` and ``high``."""

    exponent: float
    low: float
    high: float

    @classmethod
    def of(cls, x: Array, weight: Array) -> Power:
        """Return the power of maximum likelihood of normality, for standardised values."""

        def map_of(exponent: float) -> Power:
            return cls(exponent, -math.inf, math.inf)

        found = minimize_scalar(
            lambda exponent: _normal_loss(map_of(exponent), x, weight),
            bounds=(0.0, 2.0),
            method="bounded",
            options={"xatol": 0.01},
        )
        curved = map_of(float(found.x))
        u, _ = curved.forward(x)
        margin = _CURVED_BEYOND * float(u.std())
        low, high = curved.inverse(np.array([u.min() - margin, u.max() + margin]))
        return cls(curved.exponent, float(low), float(high))

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Return mapped values and the logarithm of the derivative."""
        inside = np.clip(x, self.low, self.high)
        log_slope = (self.exponent - 1.0) * np.sign(inside) * np.log1p(np.abs(inside))
        beyond = np.where(x == inside, 0.0, x - inside)
        return stats.yeojohnson(inside, self.exponent) + beyond * np.exp(log_slope), log_slope

    def inverse(self, u: Array) -> Array:
        """Return the values that map to ``u``."""
        ends = np.array([self.low, self.high])
        with np.errstate(over="ignore", invalid="ignore"):
            inside = np.clip(u, *stats.yeojohnson(ends, self.exponent))
        power = np.where(inside >= 0, self.exponent, 2.0 - self.exponent)
        size, safe = np.abs(inside), np.where(power == 0.0, 1.0, power)
        x = np.sign(inside) * np.expm1(np.where(power == 0.0, size, np.log1p(safe * size) / safe))
        slope = np.exp((self.exponent - 1.0) * np.sign(x) * np.log1p(np.abs(x)))
        return np.asarray(x + np.where(u == inside, 0.0, u - inside) / slope)


@dataclass(frozen=True)
class Bounded:
    """An interval onto the real line: like a logarithm near a bound, straight far from it.

    With y the distance from the only bound and s the softness it is ``y + s log(1 - exp(-y / s))``,
    and ``log(y)`` for an infinite softness, straight beyond ``farthest``; with two bounds it is the
    difference of both.  Values outside are seen just inside.
    """

    low: float
    high: float
    softness: float
    farthest: float = math.inf

    @classmethod
    def of(cls, low: float, high: float, x: Array, weight: Array) -> Bounded:
        """Return the map of maximum likelihood of normality, for values of unit variance."""
        width = high - low
        softnesses = [
            s for s in _SOFTNESSES if math.isinf(s) or math.isinf(width) or width < 500 * s
        ]
        found = min(
            (cls(low, high, s) for s in softnesses), key=lambda m: _normal_loss(m, x, weight)
        )
        if math.isfinite(found.softness) or math.isfinite(width):
            return found
        y = x - low if math.isfinite(low) else high - x
        margin = _CURVED_BEYOND * float(np.log(np.maximum(y, 1e-300)).std())
        return cls(low, high, math.inf, float(y.max()) * math.exp(margin))

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Return mapped values and the logarithm of the derivative."""
        if math.isinf(self.high):
            return self._from_bound(x - self.low)
        above, log_slope_above = self._from_bound(self.high - x)
        if math.isinf(self.low):
            return -above, log_slope_above
        below, log_slope_below = self._from_bound(x - self.low)
        return below - above, np.logaddexp(log_slope_below, log_slope_above)

    def _from_bound(self, y: Array) -> tuple[Array, Array]:
        y = np.maximum(y, 1e-300)
        if math.isinf(self.softness):
            near = np.minimum(y, self.farthest)
            return np.log(near) + np.where(y > near, y - near, 0.0) / near, -np.log(near)
        log_share = np.log(-np.expm1(-y / self.softness))
        return y + self.softness * log_share, -log_share

    def inverse(self, u: Array) -> Array:
        """Return the values that map to ``u``."""
        if math.isinf(self.high):
            return self.low + self._to_distance(u)
        if math.isinf(self.low):
            return self.high - self._to_distance(-u)
        # From the nearer bound, as differences of large numbers are not exact.
        distance = self._to_distance(-np.abs(u))
        return np.where(u < 0.0, self.low + distance, self.high - distance)

    def _to_distance(self, u: Array) -> Array:
        """Return the distance from a bound, the nearer one of two."""
        width = self.high - self.low
        with np.errstate(over="ignore"):
            if math.isinf(self.softness):
                if math.isfinite(width):
                    return np.asarray(width * expit(u))
                near = np.minimum(u, math.log(self.farthest))
                return np.asarray(np.exp(near) * (1.0 + np.where(u > near, u - near, 0.0)))
            if math.isinf(width):
                return np.asarray(self.softness * np.logaddexp(0.0, u / self.softness))
        # With r = exp(u / s), k = exp(width / s) - 1, t = exp(y / s) - 1: r = t (t + 1) / (k - t).
        r, k = np.exp(u / self.softness), math.expm1(width / self.softness)
        t = 2.0 * r * k / ((1.0 + r) + np.sqrt((1.0 + r) ** 2 + 4.0 * r * k))
        return np.asarray(self.softness * np.log1p(t))


@dataclass(frozen=True)
class Quantile:
    """Quantiles onto normal scores, with a tail on either side."""

    knots: Array
    scores: Array
    slopes: Array
    lower: Tail
    upper: Tail

    @classmethod
    def of(cls, x: Array, weight: Array) -> Quantile:
        """Return the map through about two dozen quantiles."""
        order = np.argsort(x, kind="stable")
        x, mass = x[order], weight[order] / weight.sum()
        n = 1.0 / float(np.square(mass).sum())
        edge = float(-ndtri(np.clip(20.0 / n, 0.02, 0.1)))
        scores = np.linspace(-edge, edge, int(np.clip(n // 20, 5, 24)))
        knots = np.interp(ndtr(scores), np.cumsum(mass) - 0.5 * mass, x)
        # Tied quantiles are one knot, in the middle of their scores.
        knots, group = np.unique(knots, return_inverse=True)
        scores = np.bincount(group, scores) / np.bincount(group)
        if len(knots) < 4:
            raise ValueError("too few distinct quantiles")
        secants = np.diff(scores) / np.diff(knots)
        least = 0.2 * np.minimum(np.append(secants, np.inf), np.insert(secants, 0, np.inf))
        slopes = np.maximum(PchipInterpolator(knots, scores)(knots, nu=1), least)
        below, above, counts = x < knots[0], x > knots[-1], mass * n
        lower = Tail.fitted(-scores[0], slopes[0], knots[0] - x[below], counts[below])
        upper = Tail.fitted(scores[-1], slopes[-1], x[above] - knots[-1], counts[above])
        return cls(knots, scores, slopes, lower, upper)

    @cached_property
    def _body(self) -> CubicHermiteSpline:
        return CubicHermiteSpline(self.knots, self.scores, self.slopes)

    @property
    def is_heavy(self) -> bool:
        """Whether a tail is so heavy that no mean of squares tells of new values."""
        return self.lower.is_heavy or self.upper.is_heavy

    @property
    def has_pareto_tail(self) -> bool:
        """Whether one of the tails is heavy."""
        return self.lower.shape is not None or self.upper.shape is not None

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Return mapped values and the logarithm of the derivative."""
        u, log_slope = np.empty_like(x), np.empty_like(x)
        low, high = x < self.knots[0], x > self.knots[-1]
        inside = ~(low | high)
        u[inside] = self._body(x[inside])
        log_slope[inside] = np.log(self._body(x[inside], nu=1))
        mirrored, log_slope[low] = self.lower.forward(self.knots[0] - x[low])
        u[low] = -mirrored
        u[high], log_slope[high] = self.upper.forward(x[high] - self.knots[-1])
        return u, log_slope

    def inverse(self, u: Array) -> Array:
        """Return the values that map to ``u``."""
        x = np.empty_like(u)
        low, high = u < self.scores[0], u > self.scores[-1]
        inside = ~(low | high)
        x[low] = self.knots[0] - self.lower.inverse(-u[low])
        x[high] = self.knots[-1] + self.upper.inverse(u[high])
        x[inside] = self._inverse_of_body(u[inside])
        return x

    def _inverse_of_body(self, u: Array) -> Array:
        """Return the solutions of the cubics, by bisection and two Newton steps."""
        cell = np.clip(np.searchsorted(self.scores, u, side="right") - 1, 0, len(self.knots) - 2)
        low, high = self.knots[cell], self.knots[cell + 1]
        for _ in range(30):
            middle = 0.5 * (low + high)
            is_below = self._body(middle) < u
            low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
        x = 0.5 * (low + high)
        for _ in range(2):
            x = np.clip(x + (u - self._body(x)) / self._body(x, nu=1), low, high)
        return np.asarray(x)


@dataclass(frozen=True)
class Chain:
    """Maps one after the other."""

    maps: Sequence[ColumnMap]

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Return mapped values and the logarithm of the derivative."""
        log_slope = np.zeros_like(x)
        for each in self.maps:
            x, part = each.forward(x)
            log_slope = log_slope + part
        return x, log_slope

    def inverse(self, u: Array) -> Array:
        """Return the values that map to ``u``."""
        for each in reversed(self.maps):
            u = each.inverse(u)
        return u


def _normal_loss(column: ColumnMap, x: Array, weight: Array) -> float:
    """Return the negative log-likelihood of the normal distribution of mapped values."""
    u, log_slope = column.forward(x)
    variance = np.average(np.square(u - np.average(u, weights=weight)), weights=weight)
    return float(0.5 * np.log(variance + 1e-300) - np.average(log_slope, weights=weight))


def fit_map(
    kind: str, x: Array, weight: Array, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> ColumnMap:
    """Return the map of one column, to about zero mean and unit variance.

    Parameters
    ----------
    kind : {"standard", "yeo_johnson", "quantile"}
        Kind of the map.
    x, weight : ndarray of shape (n,)
        Observed values and their weights.
    bounds : tuple of float, default=(-inf, inf)
        Lower and upper bound.

    Returns
    -------
    ColumnMap
        The map; with too few rows or distinct values for quantiles it is the standard one.
    """
    maps: list[ColumnMap] = [Affine.of(x, weight)]
    u = maps[0].forward(x)[0]
    if np.isfinite(bounds).any():
        low, high = ((end - maps[0].center) / maps[0].scale for end in bounds)  # type: ignore[attr-defined]
        maps.append(Bounded.of(low, high, u, weight))
        u = maps[-1].forward(u)[0]
        maps.append(Affine.of(u, weight))
        u = maps[-1].forward(u)[0]
    if kind == "quantile" and len(x) >= _MIN_ROWS_OF_QUANTILES:
        try:
            return Chain([*maps, Quantile.of(u, weight)])
        except ValueError:
            return Chain(maps)
    if kind == "yeo_johnson":
        maps.append(Power.of(u, weight))
        maps.append(Affine.of(maps[-1].forward(u)[0], weight))
    return Chain(maps)
