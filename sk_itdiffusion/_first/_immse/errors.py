"""Standard errors of integrated log-densities, before and after a row is integrated.

How exactly a rule integrates is measured on validation rows, which are integrated twice, with
independent noise, by rules of `CALIBRATED` numbers of draws.  From these follow

- the variance that a number of draws will have for a row, as a function of the reference's
  log-density: rows in the tails are harder.  So the number of draws that a tolerance needs is
  known from the fitted model and the row alone.  Were it to depend on the draws that are averaged,
  the mean would be biased;
- the variance of a typical row relative to that: a few difficult rows, which no log-density tells
  from others, raise the mean, so that most rows are more exact than they need be;
- the factor by which the variance of the sum is less than the sum of squared differences of
  consecutive draws, which cancel out.

The variance of a row is the mean of what was expected and of what its own draws tell, weighted by
degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from sk_itdiffusion._first._immse.cubature import Keys, spawn_keys
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import (
    check_finite,
    check_in_range,
    check_increasing,
    check_not_negative,
    check_shapes,
)

__all__ = ["LADDER", "ErrorCalibration", "Tolerance", "calibrate_errors"]

Array = NDArray[np.float64]
#: Returns the integral, and the spread between the draws, of rows with keys and a number of draws.
Integrator = Callable[[Keys, int], tuple[Array, Array]]

#: Numbers of draws for a row: powers of two, and halfway between them.
LADDER = (8, *(n for power in range(3, 12) for n in (3 * 2 ** (power - 1), 2 ** (power + 1))))
#: Those at which standard errors are measured.
CALIBRATED = (8, 32, 128)
#: Stream of the rows' keys from which the noise of the calibration comes.
CALIBRATION_STREAM = 2**41
#: Ratio of variance and spread above which a calibration is none.
MAX_FACTOR = 1e6
#: Degrees of freedom that the expected variance counts for.
PRIOR_FREEDOM = 4.0
#: Standard errors in nats unless others are asked for: of few columns, and for each of many.
USUAL_TOL, USUAL_TOL_PER_COLUMN = 0.1, 0.01
#: Numbers of draws that rows do not exceed then.
MAX_USUAL_DRAWS, MAX_USUAL_DRAWS_OF_IMAGES = 256, 32
#: What is added then of rows far from all others, relative to how much less likely they are.
RELATIVE_TOL = 0.01
#: Least share of the mean variance that is asked for then: errors are at most twice as large.
MIN_TYPICAL = 0.25
#: Tolerance below which no more is done.
MIN_TOL = 1e-6
#: Smallest variances, in squared nats, and relative to their mean.
MIN_VARIANCE, MIN_RELATIVE_VARIANCE = 1e-12, 1e-3


@dataclass(frozen=True)
class Tolerance:
    """The standard error that each row's integral should have.

    Attributes
    ----------
    nats : float
        The standard error.
    max_draws : int
        Number of draws, on the `LADDER`, that no row exceeds.
    relative : float
        What is added for rows less likely than all those of the calibration, relative to the
        difference in nats.
    of_median : bool
        Whether it is the standard error of a typical row among those that are as likely, instead of
        the root of the mean square.
    """

    nats: float
    max_draws: int = LADDER[-1]
    relative: float = 0.0
    of_median: bool = False

    @property
    def is_automatic(self) -> bool:
        """Whether it is the usual one."""
        return self.relative > 0.0

    def draws_for(self, usual: int, least: int, most: int) -> int:
        """Return a number of independent draws whose error falls with the tolerance.

        With `USUAL_TOL` it is the usual one.
        """
        ratio = USUAL_TOL / max(self.nats, MIN_TOL)
        return int(np.clip(np.ceil(usual * ratio**2), least, most))

    @classmethod
    def usual(cls, n_columns: int, has_images: bool) -> Tolerance:
        """Return a tolerance that is small next to differences between rows, in bounded time."""
        max_draws = MAX_USUAL_DRAWS_OF_IMAGES if has_images else MAX_USUAL_DRAWS
        nats = max(USUAL_TOL, USUAL_TOL_PER_COLUMN * n_columns)
        return cls(nats, max_draws, RELATIVE_TOL, of_median=True)


@stored()
@dataclass(frozen=True)
class ErrorCalibration:
    """The variance of integrated log-densities by the reference's log-density.

    Attributes
    ----------
    log_density : ndarray of shape (n_knots,)
        Increasing log-densities of the reference.
    variance : ndarray of shape (n_knots,)
        Variance of the integral with the least number of draws in `CALIBRATED`.
    relative : ndarray of shape (n_calibrated,)
        Variances at the numbers of draws in `CALIBRATED`, relative to the first.
    factor : ndarray of shape (n_calibrated,)
        Ratios of the variance to the spread between the draws, at these numbers.
    typical : float
        Median variance of rows relative to the mean variance of those that are as likely.
    """

    log_density: Array
    variance: Array
    relative: Array
    factor: Array
    typical: float = 1.0

    def expected(self, log_density: Array, n_draws: int) -> Array:
        """Return the variance that a number of draws is expected to have, for each row."""
        more = min(1.0, CALIBRATED[-1] / n_draws)
        known = np.interp(log_density, self.log_density, self.variance)
        # Far from all rows both densities fall with the square of the distance, and errors do so.
        farther = self._farther(log_density) ** 2
        return np.asarray(known * farther * _interpolated(self.relative, n_draws) * more)

    def _farther(self, log_density: Array) -> Array:
        """Return one, and more for rows less likely than all those of the calibration."""
        width = max(float(self.log_density[-1] - self.log_density[0]), 1.0)
        return 1.0 + self._beyond(log_density) / width

    def are_far(self, log_density: Array) -> NDArray[np.bool_]:
        """Return which rows are less likely than all those of the calibration."""
        return np.asarray(log_density < self.log_density[0])

    def _beyond(self, log_density: Array) -> Array:
        """Return by how much rows are less likely than all rows of the calibration, in nats."""
        return np.maximum(float(self.log_density[0]) - log_density, 0.0)

    def estimated(self, log_density: Array, spread: Array, n_draws: int) -> Array:
        """Return the variance of each row from its expectation and the spread of its draws."""
        # Of rows far from those of the calibration nothing is known but their own draws.
        known = 1.0 / self._farther(log_density)
        prior, freedom = PRIOR_FREEDOM * known, n_draws / 2
        own = _interpolated(self.factor, n_draws) ** known * spread
        return np.asarray(
            (prior * self.expected(log_density, n_draws) + freedom * own) / (prior + freedom)
        )

    def rungs(
        self, log_density: Array, tolerance: Tolerance
    ) -> Iterator[tuple[int, NDArray[np.intp]]]:
        """Return numbers of draws, and which rows need as many for a standard error.

        Rows that need more than the largest number have that.
        """
        target = (tolerance.nats + tolerance.relative * self._beyond(log_density)) ** 2
        if tolerance.of_median:
            target /= self.typical
        needed = np.full(len(log_density), tolerance.max_draws)
        for n_draws in LADDER[LADDER.index(tolerance.max_draws) :: -1]:
            needed[self.expected(log_density, n_draws) <= target] = n_draws
        for n_draws in np.unique(needed):
            yield int(n_draws), np.flatnonzero(needed == n_draws)

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        shapes = {"log_density": "k", "variance": "k", "relative": "n", "factor": "n"}
        check_shapes(self, shapes, n=len(CALIBRATED))
        check_finite(self.log_density, "log-densities of the calibration")
        check_finite(self.variance, "variances of the calibration")
        if not len(self.log_density):
            raise ValueError("there are no log-densities of a calibration")
        if len(self.log_density) > 1:
            check_increasing(self.log_density, "log-densities of the calibration")
        check_not_negative(self.variance, "variances of the calibration")
        check_in_range(self.relative, np.nextafter(0.0, 1.0), 1.0, "relative variances")
        if (np.diff(self.relative) > 0.0).any():
            raise ValueError("relative variances increase with the number of draws")
        check_in_range(
            self.factor, np.nextafter(0.0, 1.0), MAX_FACTOR, "factors of the calibration"
        )
        check_in_range(self.typical, MIN_TYPICAL, 1.0, "variance of a typical row")


def _interpolated(values: Array, n_draws: int) -> float:
    """Return values at the numbers of draws in `CALIBRATED` between them, on a log-log scale."""
    return float(np.exp(np.interp(np.log(n_draws), np.log(CALIBRATED), np.log(values))))


def calibrate_errors(
    integrate: Integrator, keys: Keys, log_density: Array, weight: Array
) -> ErrorCalibration:
    """Return the calibration from rows that are integrated twice.

    Parameters
    ----------
    integrate : callable
        Maps keys and a number of draws to integrals and spreads of the rows.
    keys : ndarray of shape (n_samples,), uint64
        Keys of the rows.
    log_density : ndarray of shape (n_samples,)
        Log-densities of the reference.
    weight : ndarray of shape (n_samples,)
        Weights of the rows.

    Returns
    -------
    ErrorCalibration
        The calibration.
    """
    measured = [_measured(integrate, keys, n_draws) for n_draws in CALIBRATED]
    spread = measured[1][1]
    curve = IsotonicRegression(increasing=False).fit(log_density, spread, sample_weight=weight)
    # A variance of zero would make a row trust no draw but its own.
    floor = MIN_RELATIVE_VARIANCE * max(float(np.average(spread, weights=weight)), MIN_VARIANCE)
    knots, height = curve.X_thresholds_, np.maximum(curve.y_thresholds_, floor)
    # Relative to the height, so that a few rows in the tails do not count for all.
    heights = np.interp(log_density, knots, height)
    share = weight / heights / weight.sum()
    ratio = np.quantile(spread / heights, 0.5, weights=weight, method="inverted_cdf")
    typical = float(np.clip(ratio, MIN_TYPICAL, 1.0))
    variance, spreads = (
        np.maximum([float(share @ each[kind]) for each in measured], MIN_RELATIVE_VARIANCE)
        for kind in (0, 1)
    )
    factor = np.asarray(variance / spreads)
    # More draws are never less exact, except for the noise of the calibration.
    variance = np.minimum.accumulate(variance)
    return ErrorCalibration(knots, height * variance[0], variance / variance[0], factor, typical)


def _measured(integrate: Integrator, keys: Keys, n_draws: int) -> tuple[Array, Array]:
    """Return estimates of each row's variance, from two integrals, and the mean of its spreads."""
    first, second = spawn_keys(keys, 2, CALIBRATION_STREAM + 2 * n_draws).T
    (gap, spread), (other_gap, other_spread) = (
        integrate(each, n_draws) for each in (first, second)
    )
    return 0.5 * (gap - other_gap) ** 2, 0.5 * (spread + other_spread)
