r"""Importance densities of the log-SNR in training.

The objective is an integral over the log-SNR; training draws log-SNRs from a density and divides by
it, so that every schedule has the same optimum and only the noise of the gradient differs (Kong et
al. 2023).  Scoring has a rule of its own, so that scores of different schedules compare.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.base import BaseEstimator

from sk_itdiffusion._immse.placement import Placement

__all__ = [
    "SCHEDULES",
    "AdaptiveSchedule",
    "CosineSchedule",
    "DDPMLinearSchedule",
    "LogisticSchedule",
    "Schedule",
    "TruncatedNormalSchedule",
    "UniformSchedule",
    "resolve_schedule",
]

Array = NDArray[np.float64]
N_CELLS = 128


class Schedule(BaseEstimator, ABC):
    """A distribution of the log-SNR on a given range, whose parameters can be searched."""

    #: Whether the density is fitted again, during training, to the measured gap.
    adaptive = False

    @abstractmethod
    def cdf(self, logsnr: Array, spectrum: Array) -> Array:
        """Return the cumulative distribution function, before truncation to the range.

        Parameters
        ----------
        logsnr : ndarray
            Increasing log-SNRs.
        spectrum : ndarray of shape (n_features,)
            Eigenvalues of the covariance of the points.

        Returns
        -------
        ndarray
            Probabilities, or numbers proportional to them up to a constant.
        """

    def density(self, low: float, high: float, spectrum: Array) -> Placement:
        """Return the schedule on a range, with a share of 5% that is uniform."""
        edges = np.linspace(low, high, N_CELLS + 1)
        mass = np.maximum(np.diff(self.cdf(edges, spectrum)), 0.0)
        return Placement.from_profile(edges, mass / np.diff(edges), floor=0.05)


def _number(name: str, value: object, *, positive: bool = False) -> float:
    """Return a parameter of a schedule, or raise an error that names it."""
    if not isinstance(value, Real) or not math.isfinite(value) or (positive and value <= 0):
        wanted = "a positive, finite number" if positive else "a finite number"
        raise ValueError(f"The schedule's {name} must be {wanted}, got {value!r}.")
    return float(value)


class LogisticSchedule(Schedule):
    """Logistic distribution of the log-SNR.

    Parameters
    ----------
    loc : float or None, default=None
        Location; None takes it from the data: minus the mean logarithm of the covariance's
        eigenvalues, where a Gaussian's information is gained (Kong et al. 2023), plus 1.
    scale : float or None, default=None
        Positive scale; None takes it from the data by matching moments,
        ``sqrt(1 + 3 / pi**2 * var(log(eigenvalues)))``, times 1.7.
    """

    def __init__(self, loc: float | None = None, scale: float | None = None) -> None:
        self.loc = loc
        self.scale = scale

    def cdf(self, logsnr: Array, spectrum: Array) -> Array:
        """Return the distribution function; see `Schedule.cdf`."""
        logs = np.log(spectrum)
        spread = 1.7 * math.sqrt(1.0 + 3.0 / math.pi**2 * logs.var())
        loc = 1.0 - logs.mean() if self.loc is None else _number("loc", self.loc)
        scale = spread if self.scale is None else _number("scale", self.scale, positive=True)
        return np.asarray(stats.logistic.cdf(logsnr, loc, scale))


class AdaptiveSchedule(LogisticSchedule):
    """Logistic distribution that becomes, during training, a mixture with the measured gap.

    Parameters
    ----------
    loc, scale : float or None, default=None
        See `LogisticSchedule`.
    """

    adaptive = True


class UniformSchedule(Schedule):
    """Uniform distribution of the log-SNR over the whole range."""

    def cdf(self, logsnr: Array, spectrum: Array) -> Array:
        """Return the distribution function; see `Schedule.cdf`."""
        return np.asarray(logsnr - logsnr[0])


class TruncatedNormalSchedule(Schedule):
    """Normal distribution of the log-SNR, truncated to the range.

    Parameters
    ----------
    loc : float, default=2.0
        Mean before truncation.
    scale : float, default=4.0
        Positive standard deviation before truncation.
    """

    def __init__(self, loc: float = 2.0, scale: float = 4.0) -> None:
        self.loc = loc
        self.scale = scale

    def cdf(self, logsnr: Array, spectrum: Array) -> Array:
        """Return the distribution function; see `Schedule.cdf`."""
        loc, scale = _number("loc", self.loc), _number("scale", self.scale, positive=True)
        return np.asarray(stats.norm.cdf(logsnr, loc, scale))


class DDPMLinearSchedule(Schedule):
    """Log-SNR of a uniformly drawn step of the linear variance schedule of DDPM.

    The variances of the steps rise linearly from 1e-4 to 0.02 over 1000 steps (Ho, Jain, Abbeel,
    NeurIPS 2020).
    """

    def cdf(self, logsnr: Array, spectrum: Array) -> Array:
        """Return the distribution function; see `Schedule.cdf`."""
        log_signal = np.cumsum(np.log1p(-np.linspace(1e-4, 0.02, 1000)))
        steps = log_signal - np.log(-np.expm1(log_signal))
        return np.interp(logsnr, steps[::-1], np.linspace(0.0, 1.0, len(steps)))


class CosineSchedule(Schedule):
    """Log-SNR of a uniformly drawn time of the cosine schedule.

    The SNR at time t in (0, 1) is ``cot(pi t / 2)**2`` (Nichol, Dhariwal, ICML 2021).
    """

    def cdf(self, logsnr: Array, spectrum: Array) -> Array:
        """Return the distribution function; see `Schedule.cdf`."""
        return np.asarray(1.0 - 2.0 / math.pi * np.arctan(np.exp(-0.5 * logsnr)))


#: Classes of the schedules by the names that the parameter ``schedule`` takes.
SCHEDULES: dict[str, type[Schedule]] = {
    "adaptive": AdaptiveSchedule,
    "logistic": LogisticSchedule,
    "truncated_normal": TruncatedNormalSchedule,
    "uniform": UniformSchedule,
    "ddpm_linear": DDPMLinearSchedule,
    "cosine": CosineSchedule,
}


def resolve_schedule(schedule: Any) -> Schedule:
    """Return the schedule of a name, or the schedule itself.

    Raises
    ------
    ValueError
        If there is no such schedule.
    """
    if isinstance(schedule, Schedule):
        return schedule
    if isinstance(schedule, str) and schedule in SCHEDULES:
        return SCHEDULES[schedule]()
    raise ValueError(
        f"schedule must be one of {sorted(SCHEDULES)} or a Schedule object, got {schedule!r}."
    )
