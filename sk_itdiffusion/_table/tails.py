r"""Tails of columns: normal ones, or Pareto tails where the rows speak for them.

The survival probability of a generalised Pareto tail at the distance y from where it begins is
:math:`S_0 (1 + \xi y / \sigma)^{-1/\xi}` (Pickands, Annals of Statistics 3, 1975); its normal score
is a map that turns it into a normal tail.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_ndtr, ndtri_exp

__all__ = ["Tail"]

Array = NDArray[np.float64]
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
#: Nats by which a Pareto tail must be more likely than another one, and shape of heavy ones.
_EVIDENCE, _HEAVY_SHAPE = 3.0, 0.25
#: Exceedances that the prior of a shape counts for, and its mean.
_PRIOR_ROWS, _PRIOR_SHAPE = 10.0, 0.5


@dataclass(frozen=True)
class Tail:
    """Upper tail of a map onto normal scores, in the distance ``y >= 0`` from its start.

    Attributes
    ----------
    start, slope : float
        Normal score where it begins, and the derivative there.
    shape : float or None, default=None
        Shape of a Pareto tail, positive; None is a straight line.
    is_heavy : bool, default=False
        Whether rows speak for a shape beyond 1/4, from which on fourth moments are infinite.
    """

    start: float
    slope: float
    shape: float | None = None
    is_heavy: bool = False

    @classmethod
    def fitted(cls, start: float, slope: float, y: Array, weight: Array) -> Tail:
        """Return the tail of exceedances: a normal one, or a Pareto tail that is more likely."""
        normal = cls(start, slope)
        if len(y) < 8:
            return normal
        shape, gain = pareto_shape(y, weight)
        n = float(weight.sum())
        shrunk = (n * shape + _PRIOR_ROWS * _PRIOR_SHAPE) / (n + _PRIOR_ROWS)
        tail = cls(start, slope, shrunk, shape > _HEAVY_SHAPE and gain > _EVIDENCE)
        lead = tail.log_likelihood(y, weight) - normal.log_likelihood(y, weight)
        return tail if lead > _EVIDENCE else normal

    @property
    def _scale(self) -> float:
        """Scale of the Pareto tail that makes the derivative continuous."""
        log_density = -0.5 * self.start**2 - _LOG_SQRT_2PI + math.log(self.slope)
        return math.exp(float(log_ndtr(-self.start)) - log_density)

    def log_likelihood(self, y: Array, weight: Array) -> float:
        """Return the log-likelihood of exceedances, except for a constant."""
        u, log_slope = self.forward(y)
        return float(weight @ (log_slope - 0.5 * u**2))

    def forward(self, y: Array) -> tuple[Array, Array]:
        """Return normal scores and the logarithm of the derivative."""
        if self.shape is None:
            return self.start + self.slope * y, np.full_like(y, math.log(self.slope))
        growth = np.log1p(self.shape * y / self._scale)
        log_survival = log_ndtr(-self.start) - growth / self.shape
        u = -ndtri_exp(log_survival)
        return u, log_survival - math.log(self._scale) - growth + 0.5 * u**2 + _LOG_SQRT_2PI

    def inverse(self, u: Array) -> Array:
        """Return the distances of normal scores."""
        if self.shape is None:
            return (u - self.start) / self.slope
        decay = log_ndtr(-self.start) - log_ndtr(-u)
        return np.asarray(self._scale * np.expm1(self.shape * decay) / self.shape)


def pareto_shape(y: Array, weight: Array) -> tuple[float, float]:
    """Return the most likely shape of exceedances, and its gain over the exponential law in nats.

    For each ratio of shape and scale the most likely shape is known in closed form (Grimshaw,
    Technometrics 35, 1993).
    """
    total = float(weight.sum())
    mean = float(weight @ y) / total

    def shape(log_ratio: float) -> float:
        return float(weight @ np.log1p(math.exp(log_ratio) * y / mean)) / total

    def loss(log_ratio: float) -> float:
        return math.log(shape(log_ratio)) - log_ratio + shape(log_ratio)

    found = minimize_scalar(loss, bounds=(-7.0, 25.0), method="bounded")
    return shape(float(found.x)), -total * float(found.fun)
