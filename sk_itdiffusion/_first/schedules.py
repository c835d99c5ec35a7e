r"""Importance densities of the log-SNR in training.

The objective is an integral over the log-SNR; training draws log-SNRs from a density and divides
by it, so that every schedule has the same optimum and only the noise of the gradient differs
(Kong et al. 2023).  Scoring has a rule of its own, so that
scores of estimators trained with different schedules compare.

A schedule is a scikit-learn style parameter object: it can be cloned, and its parameters searched
with ``GridSearchCV(est, {"schedule__loc": [...]})``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.base import BaseEstimator

from sk_itdiffusion._first._immse.cubature import PiecewiseDensity
from sk_itdiffusion._first._runtime.documentation import DocumentationLinkMixin
from sk_itdiffusion._first.persistence import stored

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

_N_CELLS = 256


def check_number(name: str, value: object, positive: bool = False) -> None:
    """Raise an error that names a schedule's parameter if its value is out of range."""
    if not isinstance(value, Real) or not math.isfinite(value) or (positive and value <= 0):
        wanted = "a positive, finite number" if positive else "a finite number"
        raise ValueError(f"The schedule's {name} must be {wanted}, got {value!r}.")


class Schedule(DocumentationLinkMixin, BaseEstimator):
    """Base class of the schedules: a distribution of the log-SNR on a given range.

    Examples
    --------
    >>> from sk_itdiffusion.schedules import Schedule, UniformSchedule
    >>> isinstance(UniformSchedule(), Schedule)
    True
    >>> UniformSchedule().density(-4.0, 4.0, spectrum=[1.0]).edges[[0, -1]]
    array([-4.,  4.])
    """

    #: Whether the density is fitted again, during training, to the measured gap.
    adaptive = False

    @abstractmethod
    def _cdf(self, logsnr: Array, spectrum: Array) -> Array:
        """Return the cumulative distribution function, before truncation to the range."""

    def density(self, low: float, high: float, spectrum: Array) -> PiecewiseDensity:
        """Return the schedule as a density on a range.

        Parameters
        ----------
        low, high : float
            Range of the log-SNR; low is less than high.
        spectrum : ndarray of shape (n_features,)
            Eigenvalues of the covariance of the data.

        Returns
        -------
        PiecewiseDensity
            The density, constant on 256 cells, with a share of 5% that is uniform over the range,
            so that importance weights are bounded.
        """
        if not low < high:
            raise ValueError(f"The log-SNR range must be increasing, got [{low}, {high}].")
        edges = np.linspace(low, high, _N_CELLS + 1)
        profile = np.diff(self._cdf(edges, spectrum))
        return PiecewiseDensity.from_profile(edges, np.maximum(profile, 0.0), floor=0.05)


@stored()
class LogisticSchedule(Schedule):
    """Logistic distribution of the log-SNR.

    Parameters
    ----------
    loc : float or None, default=None
        Location, any finite number.  None takes it from the data: minus the mean logarithm of the
        covariance's eigenvalues, where a Gaussian's information is gained (Kong et al. 2023),
        plus 1.
    scale : float or None, default=None
        Scale, positive.  None takes it from the data by matching moments,
        ``sqrt(1 + 3 / pi**2 * var(log(eigenvalues)))``, times 1.7.

    Examples
    --------
    >>> from sk_itdiffusion.schedules import LogisticSchedule
    >>> LogisticSchedule(loc=1.0).get_params()
    {'loc': 1.0, 'scale': None}
    """

    def __init__(self, loc: float | None = None, scale: float | None = None) -> None:
        self.loc = loc
        self.scale = scale

    def _cdf(self, logsnr: Array, spectrum: Array) -> Array:
        if self.loc is not None:
            check_number("loc", self.loc)
        if self.scale is not None:
            check_number("scale", self.scale, positive=True)
        log_eigenvalues = np.log(spectrum)
        # Structure beyond the covariance shows at higher SNR than the covariance itself.
        loc = 1.0 - log_eigenvalues.mean() if self.loc is None else self.loc
        spread = 1.7 * math.sqrt(1.0 + 3.0 / math.pi**2 * log_eigenvalues.var())
        scale = spread if self.scale is None else self.scale
        return np.asarray(stats.logistic.cdf(logsnr, loc, scale))


@stored()
class AdaptiveSchedule(LogisticSchedule):
    """Density fitted, during training, to the measured gap.

    Training begins with the logistic density; after some epochs the density becomes a mixture of
    it with one proportional to the root mean square, over the validation rows, of the integrand.

    Parameters
    ----------
    loc, scale : float or None, default=None
        Location, any finite number, and positive scale of the logistic density; see
        `LogisticSchedule`.

    Examples
    --------
    >>> from sk_itdiffusion.schedules import AdaptiveSchedule
    >>> AdaptiveSchedule(loc=1.0).adaptive
    True
    """

    adaptive = True


@stored()
class UniformSchedule(Schedule):
    """Uniform distribution of the log-SNR over the whole range.

    Examples
    --------
    >>> from sk_itdiffusion.schedules import UniformSchedule
    >>> density = UniformSchedule().density(-4.0, 4.0, spectrum=[1.0])
    >>> float(density.density([0.0])[0])
    0.125
    """

    def _cdf(self, logsnr: Array, spectrum: Array) -> Array:
        return np.asarray(logsnr - logsnr[0])


@stored()
class TruncatedNormalSchedule(Schedule):
    """Normal distribution of the log-SNR, truncated to the range.

    Parameters
    ----------
    loc : float, default=2.0
        Mean before truncation, any finite number.
    scale : float, default=4.0
        Standard deviation before truncation, positive.

    Examples
    --------
    >>> from sk_itdiffusion.schedules import TruncatedNormalSchedule
    >>> density = TruncatedNormalSchedule(loc=1.0, scale=0.5).density(-4.0, 6.0, [1.0])
    >>> bool(density.density([1.0])[0] > density.density([2.0])[0])
    True
    """

    def __init__(self, loc: float = 2.0, scale: float = 4.0) -> None:
        self.loc = loc
        self.scale = scale

    def _cdf(self, logsnr: Array, spectrum: Array) -> Array:
        check_number("loc", self.loc)
        check_number("scale", self.scale, positive=True)
        return np.asarray(stats.norm.cdf(logsnr, self.loc, self.scale))


@stored()
class DDPMLinearSchedule(Schedule):
    """Log-SNR of a uniformly drawn step of the linear variance schedule of DDPM.

    The variances of the steps rise linearly from 1e-4 to 0.02 over 1000 steps
    (Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020).

    Examples
    --------
    >>> from sk_itdiffusion.schedules import DDPMLinearSchedule
    >>> density = DDPMLinearSchedule().density(-10.0, 9.0, spectrum=[1.0])
    >>> bool(density.density([-5.0])[0] > density.density([5.0])[0])
    True
    """

    def _cdf(self, logsnr: Array, spectrum: Array) -> Array:
        log_signal = np.cumsum(np.log1p(-np.linspace(1e-4, 0.02, 1000)))
        steps = log_signal - np.log(-np.expm1(log_signal))
        return np.interp(logsnr, steps[::-1], np.linspace(0.0, 1.0, len(steps)))


@stored()
class CosineSchedule(Schedule):
    """Log-SNR of a uniformly drawn time of the cosine schedule.

    The SNR at time t in (0, 1) is ``cot(pi t / 2)**2`` (Nichol, Dhariwal, "Improved Denoising
    Diffusion Probabilistic Models", ICML 2021).

    Examples
    --------
    >>> from sk_itdiffusion.schedules import CosineSchedule
    >>> density = CosineSchedule().density(-6.0, 6.0, spectrum=[1.0])
    >>> round(float(density.density([0.0])[0] / density.density([4.0])[0]), 2)
    3.53
    """

    def _cdf(self, logsnr: Array, spectrum: Array) -> Array:
        return np.asarray(1.0 - 2.0 / math.pi * np.arctan(np.exp(-0.5 * logsnr)))


#: Classes of the schedules by the names that the parameter ``schedule`` of the estimators takes.
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

    Parameters
    ----------
    schedule : str or Schedule
        A key of `SCHEDULES`, or an object.

    Returns
    -------
    Schedule
        The object.

    Raises
    ------
    ValueError
        If there is no such schedule.

    Examples
    --------
    >>> from sk_itdiffusion.schedules import resolve_schedule
    >>> resolve_schedule("logistic")
    LogisticSchedule()
    """
    if isinstance(schedule, Schedule):
        return schedule
    if isinstance(schedule, str) and schedule in SCHEDULES:
        return SCHEDULES[schedule]()
    raise ValueError(
        f"schedule must be one of {sorted(SCHEDULES)} or a Schedule object, got {schedule!r}."
    )
