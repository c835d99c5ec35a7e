r"""The density of two columns alone, from one of all columns.

With a the two columns and b the others,

.. math:: p(a) = E_b\left[p(a \mid b)\right], \qquad
    p(a \mid b) = \frac{p(a, b)}{\int p(a', b)\, da'} ,

so the conditional densities, found on a grid of a, are averaged over the b of rows.  For the b of
random rows the mean is unbiased, and consistent in their number.  A density that integrates to less
than 1, as those of this library, is scaled to 1 given each b.  (The mean of the *joint* densities
over rows would be no marginal: rows are not spread evenly over b.)  There is no bandwidth, so
nothing is smoothed; and far from the rows the mean falls as the conditional densities do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from sk_itdiffusion._first._runtime.warning import warn

__all__ = ["GridMarginal", "averaged_conditionals"]

Array = NDArray[np.float64]

#: Relative error of integrals over the grid from which on a warning is given.
MAX_GRID_ERROR = 0.05


@dataclass(frozen=True)
class GridMarginal:
    """The marginal log-density on a grid.

    Attributes
    ----------
    log_density : ndarray of shape (n_rows, n_columns)
        Log-densities in nats.
    std : ndarray of shape (n_rows, n_columns)
        Standard errors in nats, from the differences between the rows that are averaged over.
    grid_error : float
        Relative error of the integrals over the grid, estimated from its halves.
    """

    log_density: Array
    std: Array
    grid_error: float

    def warn_if_coarse(self) -> None:
        """Warn if the grid is too coarse for the conditional densities."""
        if self.grid_error > MAX_GRID_ERROR:
            warn(
                f"The grid is too coarse for the densities given the other columns: their "
                f"integrals are wrong by about {self.grid_error:.0%}. Raise grid_resolution.",
            )


def averaged_conditionals(log_joint: Array, xx0: Array, xx1: Array) -> GridMarginal:
    """Return the mean of the conditional densities of two columns.

    Parameters
    ----------
    log_joint : ndarray of shape (n, n_rows, n_columns)
        Log-densities on the grid for the other columns of n rows, n at least 2, up to a constant
        for each row.
    xx0, xx1 : ndarray of shape (n_rows, n_columns)
        The grid, as from `numpy.meshgrid`, equidistant along each axis.

    Returns
    -------
    GridMarginal
        The marginal; its integral over the grid by the trapezoidal rule is 1.

    Raises
    ------
    ValueError
        If a row has no density anywhere on the grid.
    """
    log_mass = log_joint + np.log(trapezoid_weights(xx0, xx1))
    log_total = logsumexp(log_mass, axis=(1, 2), keepdims=True)
    if not np.isfinite(log_total).all():
        raise ValueError(
            "The density is 0 on the whole grid for the other columns of some rows of X."
        )
    log_conditional = log_joint - log_total
    log_density = logsumexp(log_conditional, axis=0) - np.log(len(log_joint))
    finite = np.where(np.isfinite(log_density), log_density, 0.0)
    relative = np.exp(log_conditional - finite)
    std = relative.std(axis=0, ddof=1) / np.sqrt(len(log_joint))
    return GridMarginal(log_density, std, grid_error(np.exp(log_mass - log_total)))


def grid_error(share: Array) -> float:
    """Return the relative error of integrals over a grid, from every other point of an axis alone.

    Parameters
    ----------
    share : ndarray of shape (n, n_rows, n_columns)
        Contributions of the points to n integrals, divided by these.

    Returns
    -------
    float
        The mean over the integrals, of the axis where it is larger.
    """
    halves = share[:, ::2].sum(axis=(1, 2)), share[:, :, ::2].sum(axis=(1, 2))
    return max(float(np.abs(2.0 * half - 1.0).mean()) for half in halves)


def trapezoid_weights(xx0: Array, xx1: Array) -> Array:
    """Return the area that each point of a grid stands for, by the trapezoidal rule."""
    steps = abs(xx0[0, 1] - xx0[0, 0]), abs(xx1[1, 0] - xx1[0, 0])
    ends = [np.ones(n) for n in xx0.shape]
    for weight in ends:
        weight[[0, -1]] = 0.5
    return np.asarray(np.outer(*ends) * steps[0] * steps[1])
