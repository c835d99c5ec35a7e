"""Kernel densities fitted by expectation-maximisation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sk_itdiffusion._first._runtime.parallel import map_in_workers
from sk_itdiffusion._first.references.gaussian import floor_eigenvalues
from sk_itdiffusion._first.references.kernel_density import KernelDensityReference
from sk_itdiffusion._first.references.mixture import GaussianMixtureReference
from sk_itdiffusion._first.references.mixture_fit import MIN_RELATIVE_VARIANCE

__all__ = ["fit_kernel_density"]

Array = NDArray[np.float64]

#: Rows, at least, that the covariance is fitted to, and for each of its entries.
_ROWS_TO_FIT = 500
_ROWS_FOR_AN_ENTRY = 3
_ROWS_IN_A_CHUNK = 256
_MAX_STEPS = 30
#: Gain in nats by which another step justifies its cost.
_MIN_GAIN_OF_A_STEP = 0.005
#: Bandwidths, relative to Scott's rule, to begin with: steps change the width little at a time.
_FINENESS_OF_STARTS = (1.0, 0.3, 0.1, 0.03, 0.01)


def fit_kernel_density(
    X: NDArray[np.float64],
    share: NDArray[np.float64],
    background: GaussianMixtureReference,
    floor: float,
    stopped: Callable[[], bool] = lambda: False,
) -> KernelDensityReference:
    """Return kernels around rows, of the maximum likelihood of rows without their own kernel.

    Covariance and weight of the background are found by expectation-maximisation.  With fewer than
    three rows for each entry the covariance is diagonal.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Distinct rows in random order.
    share : ndarray of shape (n_samples,)
        Positive weights that sum to 1.
    background : GaussianMixtureReference
        Mixture for what lies far from all rows.
    floor : float
        Added to the variances, or what double precision resolves of the largest square if that
        is more.
    stopped : callable, default=lambda: False
        Returns whether to end by a KeyboardInterrupt.

    Returns
    -------
    KernelDensityReference
        The fitted distribution.
    """
    n_features = X.shape[1]
    n_wanted = _ROWS_FOR_AN_ENTRY * n_features * (n_features + 1) // 2
    n_left_out = min(len(X), max(_ROWS_TO_FIT, n_wanted))
    # The rounding error of a covariance along a direction without variance must stay below.
    floor = max(floor, MIN_RELATIVE_VARIANCE * float(np.square(X).max()))

    def density(covariance: NDArray[np.float64], weight: float) -> KernelDensityReference:
        kept = covariance if n_wanted <= len(X) else np.diag(np.diag(covariance))
        # Rounding may make the variance negative along a direction without variance.
        raised = floor_eigenvalues(kept, 0.0) + floor * np.eye(n_features)
        return KernelDensityReference(X, raised, background, weight, share)

    def step(current: KernelDensityReference) -> tuple[float, NDArray[np.float64], float]:
        if stopped():
            raise KeyboardInterrupt
        return _expectation_maximization(current, share, n_left_out)

    scott = len(X) ** (-2.0 / (n_features + 4)) * np.atleast_2d(np.cov(X.T, aweights=share, ddof=0))
    starts = [density(fineness**2 * scott, 0.5) for fineness in _FINENESS_OF_STARTS]
    best, (log_likelihood, covariance, weight) = max(
        ((start, step(start)) for start in starts), key=lambda pair: pair[1][0]
    )
    for _ in range(_MAX_STEPS):
        following = density(covariance, weight)
        reached, covariance, weight = step(following)
        if reached < log_likelihood + _MIN_GAIN_OF_A_STEP:
            break
        best, log_likelihood = following, reached
    return best


def _expectation_maximization(
    density: KernelDensityReference, share: NDArray[np.float64], n_left_out: int
) -> tuple[float, NDArray[np.float64], float]:
    """Return a step on the centers of the first kernels, each without its own kernel.

    Returns their mean log-density in nats before the step, and the covariance and the background's
    weight after it.
    """
    centers, weight = density.points, torch.from_numpy(share)

    @torch.no_grad()
    def chunk(start: int) -> tuple[Tensor, Tensor, Tensor]:
        left_out = torch.arange(start, min(start + _ROWS_IN_A_CHUNK, n_left_out))
        x, own = centers[left_out], weight[left_out]
        others = (1.0 - own).clamp_min(torch.finfo(own.dtype).eps)
        log_joint = density.kernel_log_prob(x) - others.log()[:, None]
        log_joint[torch.arange(len(x)), left_out] = -math.inf
        log_joint += (-density.background_weight).log1p()
        elsewhere = density.background_weight.log() + density.background.log_prob(x)
        total = torch.logaddexp(log_joint.logsumexp(1), elsewhere)
        posterior = (log_joint - total[:, None]).exp() * own[:, None]
        cross = x.T @ posterior @ centers
        of_rows, of_centers = posterior.sum(1), posterior.sum(0)
        scatter = (x.T * of_rows) @ x + (centers.T * of_centers) @ centers - cross - cross.T
        return own @ total, scatter, of_rows.sum()

    chunks = map_in_workers(chunk, range(0, n_left_out, _ROWS_IN_A_CHUNK), "cpu")
    log_likelihood, scatter, mass = (
        torch.stack(parts).sum(0) for parts in zip(*chunks, strict=True)
    )
    all_mass = float(share[:n_left_out].sum())
    covariance = scatter / mass.clamp_min(1e-12 * all_mass)
    return (
        float(log_likelihood) / all_mass,
        covariance.numpy(),
        float(np.clip(1.0 - float(mass) / all_mass, 1e-4, 1.0 - 1e-4)),
    )
