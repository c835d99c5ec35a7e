"""References on continuous columns, and references that know their columns one by one."""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from sk_itdiffusion._first.references.base import Reference

__all__ = ["ContinuousReference", "PlainReference"]


class ContinuousReference(Reference):
    """A reference on continuous columns; custom ones derive from it.

    Besides `log_prob`, `denoise`, `sample` and `smoothed_log_prob` it can be standardised, and its
    variances are known.

    See Also
    --------
    Reference : What all references have.

    Examples
    --------
    >>> from sk_itdiffusion.references import ContinuousReference, GaussianReference
    >>> reference = GaussianReference([1.0, 0.0], [[4.0, 0.0], [0.0, 1.0]])
    >>> isinstance(reference, ContinuousReference)
    True
    >>> reference.standardized([1.0, 0.0], [2.0, 2.0]).variance_range()
    (0.25, 1.0)
    """

    @abstractmethod
    def standardized(self, center: ArrayLike, scale: ArrayLike) -> ContinuousReference:
        """Return the distribution of ``(x - center) / scale`` for x of this distribution.

        Parameters
        ----------
        center : array-like of shape (n_features,)
            Number to subtract from each column.
        scale : array-like of shape (n_features,)
            Positive numbers to divide by.

        Returns
        -------
        ContinuousReference
            The distribution on the other scale.
        """

    @abstractmethod
    def variance_range(self) -> tuple[float, float]:
        """Return the smallest and the largest variance along any principal direction.

        Returns
        -------
        tuple of (float, float)
            The two variances.
        """

    def logsnr_range(self, resolution: float) -> tuple[float, float]:
        """Return the range in which a model can differ from it; see `Reference.logsnr_range`.

        Below it nothing but mean and covariance matters; above it the noise is much finer than the
        narrowest direction (at most exp(-5) standard deviations, since a network can find what is
        finer than a single Gaussian), or as fine as the resolution of the columns.
        """
        least, greatest = self.variance_range()
        high = float(np.clip(-math.log(least) + 6.9, 10.0, 18.0))
        if resolution > 0.0:
            high = min(high, -2.0 * math.log(0.5 * resolution))
        return -math.log(greatest) - 4.0, high


class PlainReference(Reference):
    """A reference so smooth that it is known what each column tells by itself.

    Explanations of scores begin at independent columns, which come from such a reference.

    See Also
    --------
    GaussianReference : Normal distribution.
    IndependentReference : Independent discrete columns, alongside continuous ones.

    Examples
    --------
    >>> from sk_itdiffusion.references import GaussianReference, PlainReference
    >>> reference = GaussianReference([0.0, 0.0], [[1.0, 0.5], [0.5, 1.0]])
    >>> isinstance(reference, PlainReference)
    True
    >>> reference.independent().covariance.tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    @property
    def is_plain(self) -> bool:
        """Whether it is; references with parts are if these are."""
        return True

    @abstractmethod
    def independent(self) -> PlainReference:
        """Return the distribution of independent columns, each with its own distribution here.

        Returns
        -------
        PlainReference
            The product of the columns' distributions.
        """

    @abstractmethod
    def column_log_prob(self, rows: Tensor, eps: Tensor, logsnr: float) -> Tensor:
        """Return the log-density of each noisy column by itself.

        Parameters
        ----------
        rows : Tensor of shape (B, n_columns)
            Rows; codes in discrete columns.
        eps : Tensor of shape (B, d)
            Noise of the points of the rows.
        logsnr : float
            Log-SNR of the noise; infinite for none.

        Returns
        -------
        Tensor of shape (B, n_columns)
            Log-densities in nats; see `Reference.smoothed_log_prob`.
        """

    def independence_logsnr(self) -> float | None:
        """Return the log-SNR below which columns tell nearly nothing about each other.

        Returns
        -------
        float or None
            The log-SNR; None, the default, if it is not known.
        """
        return None
