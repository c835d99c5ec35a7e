"""Tails of columns beyond their rows: whether they are heavy, and Pareto laws for them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from scipy.interpolate import PchipInterpolator
from scipy.special import log_ndtr, ndtri_exp

from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import check_finite, check_positive

__all__ = ["ParetoLaw", "Tail", "fit_tail", "has_heavy_tail"]

Array = NDArray[np.float64]
LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_TAIL_EVIDENCE = 3.0  # nats by which a Pareto tail must beat another one
#: Exceedances that the prior of a tail's shape counts for, and its mean.
_PRIOR_ROWS, _PRIOR_SHAPE = 10.0, 0.5
#: Shape from which fourth moments are infinite, and with them the variance of a normal
#: log-density: its mean over validation rows then says nothing.
_HEAVY_SHAPE = 0.25
_MIN_EXCEEDANCES = 8
#: Logarithms of ratios of shape and scale, in units of the mean, that are searched.
_LOG_RATIOS = (-7.0, 25.0)


@stored()
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
        log_density = -0.5 * self.start**2 - LOG_SQRT_2PI + math.log(self.slope)
        return math.exp(float(log_ndtr(-self.start)) - log_density)

    def forward(self, y: Array) -> tuple[Array, Array]:
        """Return the mapped values and the logarithm of the derivative."""
        if self.shape is None:
            return self.start + self.slope * y, np.full_like(y, math.log(self.slope))
        growth = np.log1p(self.shape * y / self.scale)
        decay = growth / self.shape
        u = -ndtri_exp(log_ndtr(-self.start) - decay)
        log_density = log_ndtr(-self.start) - math.log(self.scale) - decay - growth
        return u, log_density + 0.5 * u**2 + LOG_SQRT_2PI

    def inverse(self, u: Array) -> Array:
        """Return the distances that map to ``u``."""
        if self.shape is None:
            return (u - self.start) / self.slope
        decay = log_ndtr(-self.start) - log_ndtr(-u)
        return np.asarray(self.scale * np.expm1(self.shape * decay) / self.shape)

    def log_likelihood(self, y: Array, weight: Array) -> float:
        """Return the log-likelihood of exceedances ``y``, except for a constant."""
        u, log_slope = self.forward(y)
        return float(weight @ (log_slope - 0.5 * u**2))

    def pareto(self, law: ParetoLaw, slopes: tuple[float, float]) -> Tail:
        """Return the tail of a Pareto law that begins here, its slope within bounds."""
        log_hazard = -0.5 * self.start**2 - LOG_SQRT_2PI - float(log_ndtr(-self.start))
        slope = float(np.clip(math.exp(-log_hazard) / law.scale, *slopes))
        return Tail(self.start, slope, law.shape)

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        check_finite(self.start, "starts of tails")
        check_positive(self.slope, "slopes of tails")
        if self.shape is not None:
            check_positive(self.shape, "shapes of tails")


@dataclass(frozen=True)
class ParetoLaw:
    """Generalised Pareto distribution of positive shape."""

    shape: float
    scale: float

    @classmethod
    def fit(cls, y: Array, weight: Array) -> tuple[ParetoLaw, float]:
        """Return the most likely law of exceedances, and its gain over the exponential law in nats.

        For each ratio of shape and scale the most likely shape
        is known in closed form ([3]_).
        """
        total = float(weight.sum())
        mean = float(weight @ y) / total

        def shape(log_ratio: float) -> float:
            return float(weight @ np.log1p(math.exp(log_ratio) * y / mean)) / total

        def loss(log_ratio: float) -> float:
            return math.log(shape(log_ratio)) - log_ratio + shape(log_ratio)

        found = optimize.minimize_scalar(loss, bounds=_LOG_RATIOS, method="bounded")
        best = shape(float(found.x))
        return cls(best, best * mean * math.exp(-float(found.x))), -total * float(found.fun)

    def shrunk(self, n: float) -> ParetoLaw:
        """Return the law with its shape shrunk towards 1/2, as that of ``n`` exceedances.

        The scale follows, so that the most likely ratio of shape and scale stays.
        """
        shape = (n * self.shape + _PRIOR_ROWS * _PRIOR_SHAPE) / (n + _PRIOR_ROWS)
        return ParetoLaw(shape, self.scale)


def has_heavy_tail(u: Array, weight: Array) -> bool:
    """Return whether values lie so far out that no mean of squares tells of new ones.

    Beyond each of two thresholds a tail is to be a Pareto tail of shape above 1/4, and both tails
    together are to be more likely so than as exponential ones beyond doubt.
    """
    order = np.argsort(u, kind="stable")
    u, mass = u[order], weight[order]
    mass = mass * (mass.sum() / (mass**2).sum())
    n = float(mass.sum())
    gain = 0.0
    for values, counts in ((u[::-1], mass[::-1]), (-u, mass)):
        most = np.searchsorted(np.cumsum(counts), min(0.2 * n, 3.0 * math.sqrt(n)))
        laws = [_law_beyond(values, counts, int(k)) for k in (most, most // 2)]
        if all(law is not None and law[0].shape > _HEAVY_SHAPE for law in laws):
            assert laws[0] is not None
            gain += laws[0][1]
    return gain > _TAIL_EVIDENCE


def _law_beyond(values: Array, counts: Array, k: int) -> tuple[ParetoLaw, float] | None:
    """Return what `ParetoLaw.fit` does, of the first ``k`` of decreasing values.

    Of these, only those beyond the threshold count: equal values may be on both sides of it.
    """
    if k < len(values):
        k = int(np.searchsorted(-values, -values[k]))
    if not _MIN_EXCEEDANCES <= k < len(values):
        return None
    return ParetoLaw.fit(*_centers_of_cells(values[:k] - values[k], counts[:k]))


def _centers_of_cells(y: Array, weight: Array) -> tuple[Array, Array]:
    """Return the centres of the intervals that distinct exceedances stand for, and weights.

    The intervals meet halfway between the values, and the first one begins at the threshold.  Equal
    values, or a single one of great weight, may be next to it: without any width they would be the
    more likely the heavier the tail is.
    """
    distinct, which = np.unique(y, return_inverse=True)
    between = 0.5 * (distinct[1:] + distinct[:-1])
    last = 2.0 * distinct[-1] - (between[-1] if len(between) else 0.0)
    edges = np.concatenate([[0.0], between, [last]])
    return 0.5 * (edges[1:] + edges[:-1]), np.bincount(which, weight).astype(np.float64)


def positive_slopes(knots: Array, values: Array) -> Array:
    """Return the slopes of the monotone cubic, kept away from zero.

    The plain ones can vanish at the ends, where the density would vanish with them.
    """
    secants = np.diff(values) / np.diff(knots)
    least = np.minimum(np.append(secants, np.inf), np.insert(secants, 0, np.inf))
    return np.asarray(np.maximum(PchipInterpolator(knots, values)(knots, nu=1), 0.2 * least))


def fit_tail(plain: Tail, y: Array, weight: Array, secant: float, heavy: bool) -> Tail:
    """Return a Pareto tail if the exceedances speak for it, else the normal one.

    They have to speak for it beyond doubt, unless they look heavy, and against it if the other tail
    may be the heavy one.
    """
    if not len(y):
        return plain
    n_effective = float(weight.sum() ** 2 / (weight**2).sum())
    y, weight = _centers_of_cells(y, weight)
    law, _ = ParetoLaw.fit(y, weight)
    # Within these bounds the cubic that ends here is monotone.
    tail = plain.pareto(law.shrunk(n_effective), (0.01 * secant, 3.0 * secant))
    gain = tail.log_likelihood(y, weight) - plain.log_likelihood(y, weight)
    least = 0.0 if law.shape > _HEAVY_SHAPE else _TAIL_EVIDENCE
    return tail if gain > (-_TAIL_EVIDENCE if heavy else least) else plain
