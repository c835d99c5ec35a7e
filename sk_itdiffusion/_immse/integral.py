"""The integral over the log-SNR, with one draw in each stratum of a placement.

Effort follows the row: how many draws a row needs for a tolerance is predicted from the fitted
model and from the reference's log-density, never from the draws that are averaged, which would bias
the mean.  The variance of a row is the mean of what is expected and of what its own draws tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from sk_itdiffusion._immse.channel import as_tensor, noised
from sk_itdiffusion._immse.noise import NoiseRule, child_keys, uniform
from sk_itdiffusion._immse.placement import Placement
from sk_itdiffusion._immse.roles import Roles

__all__ = ["Calibration", "Pair", "Rule", "Tolerance"]

Array = NDArray[np.float64]
Keys = NDArray[np.uint64]
#: Returns the noise that the reference predicts, and the model's prediction minus it.
Pair = Callable[[Tensor, Tensor, Roles], tuple[Tensor, Tensor]]

#: Numbers of draws of a row, and those at which errors are measured.
LADDER = 2 ** np.arange(3, 12)
LEVELS = np.array([8, 32])
#: Degrees of freedom that the expected variance counts for.
PRIOR_FREEDOM = 4.0
MIN_VARIANCE = 1e-12


@dataclass(frozen=True)
class Tolerance:
    """The standard error that the integral of a row should have.

    Attributes
    ----------
    nats : float
        Root mean square over rows that are about as likely, or, if it is usual, that of the median
        row among them.
    is_usual : bool
        Whether nobody asked for it: then no row takes more than 256 draws.
    """

    nats: float
    is_usual: bool = False

    @classmethod
    def usual(cls, n_columns: int) -> Tolerance:
        """Return a tolerance that is small next to differences between rows."""
        return cls(max(0.1, 0.01 * n_columns), True)

    @property
    def max_draws(self) -> int:
        """The largest number of draws of a row."""
        return 256 if self.is_usual else int(LADDER[-1])


@dataclass(frozen=True)
class Calibration:
    """How exact the integral is, measured on validation rows that are integrated twice.

    Attributes
    ----------
    log_density : ndarray of shape (n_knots,)
        Increasing log-densities of the reference.
    variance : ndarray of shape (n_knots,)
        Variance of the integral with the first of `LEVELS` draws, larger for unlikely rows.
    relative : ndarray of shape (n_levels,)
        Variances with the numbers of draws in `LEVELS`, relative to the first.
    factor : ndarray of shape (n_levels,)
        Ratios of the variance to the sum of squared differences of consecutive draws.
    typical : float
        Median variance of rows, relative to the mean of those that are as likely.
    """

    log_density: Array
    variance: Array
    relative: Array
    factor: Array
    typical: float

    @classmethod
    def measured(
        cls, integrate: Callable[[int, int], tuple[Array, Array]], log_density: Array
    ) -> Calibration:
        """Return the calibration from integrals and spreads of rows for (draws, repetition)."""
        variances, spreads = [], []
        for n_draws in LEVELS:
            (first, spread), (second, other) = (integrate(int(n_draws), part) for part in (0, 1))
            variances.append(0.5 * (first - second) ** 2)
            spreads.append(0.5 * (spread + other))
        curve = IsotonicRegression(increasing=False).fit(log_density, spreads[1])
        floor = max(1e-3 * spreads[1].mean(), MIN_VARIANCE)
        knots, height = curve.X_thresholds_, np.maximum(curve.y_thresholds_, floor)
        own = np.interp(log_density, knots, height)
        variance, spread = (
            np.maximum((each / own).mean(axis=1), 1e-3)
            for each in (np.array(variances), np.array(spreads))
        )
        factor, variance = variance / spread, np.minimum.accumulate(variance)
        typical = float(np.clip(np.median(spreads[1] / own), 0.25, 1.0))
        return cls(knots, height * variance[0], variance / variance[0], factor, typical)

    def expected(self, log_density: Array, n_draws: int) -> Array:
        """Return the variance that a number of draws is expected to have."""
        known = np.interp(log_density, self.log_density, self.variance)
        # Far from all rows both densities fall with the square of the distance, and so do errors.
        return np.asarray(
            known * self._farther(log_density) ** 2 * self._at(self.relative, n_draws)
        )

    def estimated(self, log_density: Array, spread: Array, n_draws: int) -> Array:
        """Return the variance of rows from its expectation and the spread of their draws."""
        known = 1.0 / self._farther(log_density)
        prior, freedom = PRIOR_FREEDOM * known, 0.5 * n_draws
        own = self._at(self.factor, n_draws) ** known * spread
        return (prior * self.expected(log_density, n_draws) + freedom * own) / (prior + freedom)

    def rungs(self, log_density: Array, tol: Tolerance) -> Iterator[tuple[int, NDArray[np.intp]]]:
        """Yield numbers of draws, and the rows that need as many."""
        target = tol.nats**2 / (self.typical if tol.is_usual else 1.0)
        needed = np.full(len(log_density), tol.max_draws)
        for n_draws in LADDER[tol.max_draws >= LADDER][::-1]:
            needed[self.expected(log_density, int(n_draws)) <= target] = n_draws
        for n_draws in np.unique(needed):
            yield int(n_draws), np.flatnonzero(needed == n_draws)

    def _farther(self, log_density: Array) -> Array:
        """Return 1, and more for rows less likely than all those of the calibration."""
        width = max(float(self.log_density[-1] - self.log_density[0]), 1.0)
        return 1.0 + np.maximum(float(self.log_density[0]) - log_density, 0.0) / width

    @staticmethod
    def _at(values: Array, n_draws: int) -> float:
        """Return values at `LEVELS` between them on a log-log scale, beyond them by 1 / n."""
        inside = np.exp(np.interp(np.log(n_draws), np.log(LEVELS), np.log(values)))
        return float(inside * min(1.0, LEVELS[-1] / n_draws))


@dataclass(frozen=True)
class Rule:
    """Where and with which noise the integral is evaluated.

    Attributes
    ----------
    placement : Placement
        Density over which the log-SNR is stratified.
    seed : int
        Seed of the directions of the noise.
    chunk : int
        Evaluations in one forward pass.
    """

    placement: Placement
    seed: int
    chunk: int

    def integrate(
        self, x: Array, keys: Keys, pair: Pair, roles: Roles, n_draws: int
    ) -> tuple[Array, Array]:
        """Return log p(x_T | x_G) - log q(x_T | x_G), and the spread between draws.

        Parameters
        ----------
        x : ndarray of shape (n, d)
            Points; missing coordinates are ignored.
        keys : ndarray of shape (n,), uint64
            Keys of the rows' noise.
        pair : callable
            Reference and model.
        roles : Roles
            Common roles.
        n_draws : int
            Number of strata, even.

        Returns
        -------
        gap : ndarray of shape (n,)
            The integral, in nats.
        spread : ndarray of shape (n,)
            Sum of the squared differences of consecutive draws.
        """
        noise = NoiseRule(int(roles.target.sum()), self.seed)
        n_rows = max(1, self.chunk // (n_draws * noise.n_evaluations))
        parts = [
            self._contributions(
                x[i : i + n_rows], keys[i : i + n_rows], pair, roles, noise, n_draws
            )
            for i in range(0, len(x), n_rows)
        ]
        drawn = np.concatenate(parts) if parts else np.empty((0, n_draws))
        return drawn.sum(axis=1), np.square(drawn[:, ::2] - drawn[:, 1::2]).sum(axis=1)

    def _contributions(
        self, x: Array, keys: Keys, pair: Pair, roles: Roles, noise: NoiseRule, n_draws: int
    ) -> Array:
        """Return what each draw adds to the integral, (n, n_draws)."""
        within = uniform(child_keys(keys, np.arange(n_draws)), 3)
        logsnr = self.placement.quantile((np.arange(n_draws) + within) / n_draws)
        eps, coefficient = noise.draws(keys, n_draws)
        shape = coefficient.shape
        points = np.broadcast_to(x[:, None, None], (*shape, x.shape[1]))
        found = gained(
            points.reshape(-1, x.shape[1]),
            spread_over_targets(eps.reshape(-1, noise.n_features), roles),
            np.broadcast_to(logsnr[..., None], shape).reshape(-1),
            pair,
            roles,
        )
        weight = 0.5 / (n_draws * self.placement.density(logsnr))
        return np.asarray((found.reshape(shape) * coefficient).sum(axis=2) * weight)


def spread_over_targets(eps: Array, roles: Roles) -> Array:
    """Return noise of targets as noise of all coordinates, zero elsewhere."""
    if roles.is_joint:
        return eps
    found = np.zeros((len(eps), len(roles.target)))
    found[:, roles.target] = eps
    return found


@torch.no_grad()
def gained(x: Array, eps: Array, logsnr: Array, pair: Pair, roles: Roles) -> Array:
    """Return the reference's squared error minus the model's, without cancellation."""
    x_, eps_, level = as_tensor(np.nan_to_num(x)), as_tensor(eps), as_tensor(logsnr)
    baseline, correction = pair(noised(x_, eps_, level, roles), level, roles)
    return np.asarray((correction * (2.0 * (eps_ - baseline) - correction)).sum(1).numpy())
