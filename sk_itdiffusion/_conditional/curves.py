"""Distributions of single rows as increasing maps of a standard normal number.

The maps are those of the probability flow.  Its density is that of the integral over the log-SNR
for the optimal denoiser only; of a trained one they differ a little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from sk_itdiffusion._conditional.network import ContextNetwork

__all__ = ["FlowCurves", "RowResiduals"]

Array = NDArray[np.float64]

#: Normal numbers whose residuals are known; between them the map is linear.
NORMAL = np.linspace(-5.0, 5.0, 33)
#: Every so many of them are enough for an entropy.
STEP = 4


class RowResiduals(Protocol):
    """Distributions of the residuals of rows, or one of all of them."""

    def cdf(self, u: Array) -> Array:
        """Return probabilities of at most u, (n_rows, 1)."""

    def sf(self, u: Array) -> Array:
        """Return probabilities of more than u, (n_rows, 1)."""

    def quantile(self, probability: Array) -> Array:
        """Return quantiles, that broadcast to (n_rows, n_probabilities)."""

    @property
    def moments(self) -> tuple[Any, Any]:
        """Means and standard deviations, that broadcast to (n_rows, 1)."""


@dataclass(frozen=True)
class FlowCurves:
    """Residuals of rows as piecewise linear maps of a normal number.

    Attributes
    ----------
    u : ndarray of shape (n_rows, n_nodes)
        Increasing residuals at the nodes.
    """

    u: Array

    @classmethod
    def of(cls, network: ContextNetwork, given: Array) -> FlowCurves:
        """Return the maps of the probability flow of a network."""
        return cls(network.flow(np.tile(NORMAL, (len(given), 1)), given))

    def cdf(self, u: Array) -> Array:
        """Return probabilities of at most u, (n_rows, 1)."""
        return np.asarray(ndtr(self.normal(u)))

    def sf(self, u: Array) -> Array:
        """Return probabilities of more than u, (n_rows, 1)."""
        return np.asarray(ndtr(-self.normal(u)))

    def quantile(self, probability: Array) -> Array:
        """Return quantiles, (n_rows, n_probabilities)."""
        normal = ndtri(np.asarray(probability, dtype=np.float64))
        inner = np.clip(normal, NORMAL[0], NORMAL[-1])
        step = NORMAL[1] - NORMAL[0]
        place = np.minimum((inner - NORMAL[0]) / step, len(NORMAL) - 2).astype(np.intp)
        slope = (self.u[:, place + 1] - self.u[:, place]) / step
        with np.errstate(invalid="ignore"):
            found = self.u[:, place] + slope * (normal - NORMAL[place])
        return np.asarray(np.where(np.isinf(normal), normal, found))

    def normal(self, u: Array) -> Array:
        """Return the normal numbers of residuals, (n_rows, 1)."""
        place = np.clip((self.u <= u).sum(axis=1) - 1, 0, len(NORMAL) - 2)
        rows = np.arange(len(u))
        low, high = self.u[rows, place], self.u[rows, place + 1]
        width = np.maximum(high - low, np.finfo(np.float64).tiny)
        step = NORMAL[1] - NORMAL[0]
        with np.errstate(over="ignore"):
            return np.asarray((NORMAL[place] + step * (u[:, 0] - low) / width)[:, None])

    def thinned(self) -> tuple[Array, Array]:
        """Return residuals at fewer nodes, and the probabilities that these stand for."""
        weight = np.exp(-0.5 * NORMAL[::STEP] ** 2)
        return self.u[:, ::STEP], weight / weight.sum()

    @property
    def moments(self) -> tuple[Array, Array]:
        """Means and standard deviations, (n_rows, 1)."""
        weight = np.exp(-0.5 * NORMAL**2)
        weight = weight / weight.sum()
        mean = np.sum(self.u * weight, axis=1, keepdims=True)
        return mean, np.sqrt(np.sum((self.u - mean) ** 2 * weight, axis=1, keepdims=True))
