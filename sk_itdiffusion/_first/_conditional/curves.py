r"""Distributions of the residuals of single rows, normalised, as curves over a normal score.

The reference q, a mixture with the distribution function Q, is the same for all rows.  In the
score :math:`t = \Phi^{-1}(Q(u))` it is the standard normal distribution, and that of a row has the
density :math:`\phi(t)\, e^{g(t)} / Z` with the gain g of the row over the reference.  Its logarithm
is linear between nodes, and the gain is constant beyond the outermost, so that Z, the distribution
function and its inverse are closed forms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtri_exp

from sk_itdiffusion._first._conditional.residual import NormalMixture

__all__ = ["NODES", "ResidualCurves", "RowResiduals", "at_nodes"]

Array = NDArray[np.float64]

#: Normal scores between which the logarithms of densities are linear.
NODES = np.linspace(-5.0, 5.0, 161)
STEP = float(NODES[1] - NODES[0])
#: Normal scores over which means are sums: the nodes, and the middles between them.
POINTS = np.linspace(NODES[0], NODES[-1], 2 * len(NODES) - 1)
_LOG_SQRT_2PI = 0.5 * float(np.log(2.0 * np.pi))


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


def at_nodes(values: Array, score: Array) -> Array:
    """Return curves (n_rows, n_nodes) at a score of each row, constant beyond the outermost nodes.

    Parameters
    ----------
    values : ndarray of shape (n_rows, n_nodes)
        Values at the nodes, between which they are linear.
    score : ndarray of shape (n_rows,)
        Normal scores.

    Returns
    -------
    ndarray of shape (n_rows,)
        Values at the scores.
    """
    at = np.clip(score, NODES[0], NODES[-1])
    node, rows = nodes_below(at), np.arange(len(at))
    low, high = values[rows, node], values[rows, node + 1]
    return np.asarray(low + (at - NODES[node]) / STEP * (high - low))


@dataclass(frozen=True)
class ResidualCurves:
    """Distributions of the residual, one of each row.

    Attributes
    ----------
    mixture : NormalMixture
        The reference.
    gain : ndarray of shape (n_rows, n_nodes)
        Log-densities at the nodes less those of the reference, up to a constant of each row.
    """

    mixture: NormalMixture
    gain: Array

    def take(self, index: NDArray[np.intp]) -> ResidualCurves:
        """Return the distributions of some of the rows."""
        return ResidualCurves(self.mixture, self.gain[index])

    @cached_property
    def logs(self) -> Array:
        """Logarithms of the densities of the score at the nodes, not normalised."""
        return np.asarray(self.gain - 0.5 * NODES**2 - _LOG_SQRT_2PI)

    @cached_property
    def log_total(self) -> Array:
        """Logarithms of what the densities have to be divided by, (n_rows,)."""
        cells = np.logaddexp.reduce(log_integral(self.logs[:, :-1], self.logs[:, 1:], STEP), axis=1)
        ends = np.logaddexp(self.gain[:, 0], self.gain[:, -1]) + log_ndtr(NODES[0])
        return np.asarray(np.logaddexp(cells, ends))

    @cached_property
    def below(self) -> Array:
        """Probabilities of less than each node, (n_rows, n_nodes)."""
        cells = log_integral(self.logs[:, :-1], self.logs[:, 1:], STEP)
        parts = np.column_stack([self.gain[:, 0] + log_ndtr(NODES[0]), cells])
        return np.asarray(np.cumsum(np.exp(parts - self.log_total[:, None]), axis=1))

    def log_density(self, u: Array) -> Array:
        """Return log-densities of residuals (n_rows,), (n_rows,)."""
        score = self.mixture.score(u)
        at = np.clip(score, NODES[0], NODES[-1])
        gain = at_nodes(self.logs, at) + 0.5 * at**2 + _LOG_SQRT_2PI
        return np.asarray(self.mixture.log_density(u) + gain - self.log_total)

    def cdf(self, u: Array) -> Array:
        """Return probabilities of at most u, (n_rows, 1)."""
        score = self.mixture.score(u[:, 0])
        at = np.clip(score, NODES[0], NODES[-1])
        node = nodes_below(at)
        rows = np.arange(len(at))
        inner = log_integral(self.logs[rows, node], at_nodes(self.logs, at), at - NODES[node])
        found = self.below[rows, node] + np.exp(inner - self.log_total)
        lower, upper = (self.gain[:, end] - self.log_total for end in (0, -1))
        found = np.where(score < NODES[0], np.exp(lower + log_ndtr(score)), found)
        found = np.where(score > NODES[-1], 1.0 - np.exp(upper + log_ndtr(-score)), found)
        return np.asarray(np.clip(found, 0.0, 1.0)[:, None])

    def sf(self, u: Array) -> Array:
        """Return probabilities of more than u, (n_rows, 1)."""
        return ResidualCurves(self.mixture.mirrored(), self.gain[:, ::-1]).cdf(-u)

    def quantile(self, probability: Array) -> Array:
        """Return quantiles, (n_rows, n_probabilities), of the same or of other ones of each row."""
        p = np.broadcast_to(probability, (len(self.gain), np.shape(probability)[-1]))
        number = [np.searchsorted(*each, side="right") for each in zip(self.below, p, strict=True)]
        node = np.clip(np.asarray(number) - 1, 0, len(NODES) - 2)
        low, high, below = (
            np.take_along_axis(values, node + shift, axis=1)
            for values, shift in ((self.logs, 0), (self.logs, 1), (self.below, 0))
        )
        # The distance from the node where the integral of the exponential function is the rest.
        with np.errstate(divide="ignore"):
            rest = np.exp(np.log(np.maximum(p - below, 0.0)) + self.log_total[:, None] - low)
        slope = (high - low) / STEP
        inner = NODES[node] + np.clip(rest * log1p_ratio(slope * rest), 0.0, STEP)
        with np.errstate(divide="ignore"):
            lower, upper = (
                np.minimum(np.log(mass) + (self.log_total - self.gain[:, end])[:, None], 0.0)
                for mass, end in ((p, 0), (1.0 - p, -1))
            )
        score = np.where(p < self.below[:, :1], ndtri_exp(lower), inner)
        score = np.where(p > self.below[:, -1:], -ndtri_exp(upper), score)
        return self.mixture.of_score(score)

    @cached_property
    def weights(self) -> Array:
        """Probabilities that stand for the points in sums, (n_rows, n_points): Simpson's rule."""
        mass = np.diff(self.below, axis=1)
        found = np.zeros((len(mass), len(POINTS)))
        found[:, 1::2] = mass * (4.0 / 6.0)
        found[:, :-2:2] += mass / 6.0
        found[:, 2::2] += mass / 6.0
        found[:, 0] += self.below[:, 0]
        found[:, -1] += 1.0 - self.below[:, -1]
        return found

    @cached_property
    def residuals(self) -> Array:
        """Residuals at the points, (n_points,)."""
        return self.mixture.of_score(POINTS)

    @property
    def moments(self) -> tuple[Array, Array]:
        """Means and standard deviations, (n_rows, 1)."""
        mean = np.sum(self.weights * self.residuals, axis=1, keepdims=True)
        square = np.sum(self.weights * (self.residuals - mean) ** 2, axis=1, keepdims=True)
        return mean, np.sqrt(square)

    @property
    def entropy(self) -> Array:
        """Entropies in nats, (n_rows,)."""
        # Of the score, by cells, then the slope of the residual; the tails count by their ends.
        low, gap = self.logs[:, :-1], np.diff(self.logs, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            excess = np.where(np.abs(gap) > 1e-6, gap / -np.expm1(-gap) - 1.0, 0.5 * gap)
        inner = np.diff(self.below, axis=1)
        of_score = np.sum(inner * (low + excess), axis=1)
        of_score += self.below[:, 0] * self.logs[:, 0]
        of_score += (1.0 - self.below[:, -1]) * self.logs[:, -1]
        slope = self.mixture.log_density(self.residuals) + 0.5 * POINTS**2 + _LOG_SQRT_2PI
        return np.asarray(self.log_total - of_score - np.sum(self.weights * slope, axis=1))


def nodes_below(score: Array) -> NDArray[np.intp]:
    """Return the numbers of the nodes at the lower ends of the cells that scores are in."""
    place = (score - NODES[0]) / STEP
    return np.asarray(np.clip(place.astype(np.intp), 0, len(NODES) - 2))


def log_integral(low: Array, high: Array, width: Array | float) -> Array:
    """Return the logarithm of the integral of a function whose logarithm is linear.

    Parameters
    ----------
    low, high : ndarray
        Logarithms at the two ends.
    width : ndarray or float
        Distance of the ends.
    """
    gap = np.abs(high - low)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(gap > 1e-12, -np.expm1(-gap) / gap, 1.0)
        return np.asarray(np.maximum(low, high) + np.log(mean) + np.log(width))


def log1p_ratio(x: Array) -> Array:
    """Return log(1 + x) / x, which is 1 at 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(np.abs(x) > 1e-12, np.log1p(np.maximum(x, -1.0)) / x, 1.0))
