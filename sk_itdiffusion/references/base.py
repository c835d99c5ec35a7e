"""The interface of the analytic references."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

__all__ = ["Reference"]


class Reference(nn.Module, ABC):
    """A distribution with exact log-density and exact optimal denoiser.

    A reference plays three roles in the estimators: it preconditions the network, which then
    learns only what the reference lacks; it is the control variate of the likelihood integral;
    and it is an expert among which the estimator chooses at each log-SNR.

    Attributes
    ----------
    n_features : int
        Dimension d of the points.

    See Also
    --------
    GaussianReference : Normal distribution.
    GaussianMixtureReference : Mixture of normal distributions.
    KernelDensityReference : Normal kernels around points.

    Examples
    --------
    >>> import torch
    >>> from sk_itdiffusion.references import GaussianReference, Reference
    >>> reference = GaussianReference([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]])
    >>> isinstance(reference, Reference)
    True
    >>> z = torch.ones(1, 2, dtype=torch.float64)
    >>> reference.denoise(z, torch.zeros(1, dtype=torch.float64)).tolist()
    [[0.7071, 0.7071]]
    """

    n_features: int

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of points.

        Parameters
        ----------
        x : Tensor of shape (B, d)
            Points; with discrete columns rows, whose entries there are codes of levels.

        Returns
        -------
        Tensor of shape (B,)
            Log-densities in nats; log-probabilities where all columns are discrete.
        """

    @abstractmethod
    def denoise(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the noise that the optimal denoiser predicts.

        Parameters
        ----------
        z : Tensor of shape (B, d)
            Noisy observations.
        logsnr : Tensor of shape (B,)
            Their log signal-to-noise ratios.

        Returns
        -------
        Tensor of shape (B, d)
            The conditional mean of the noise given ``z``.
        """

    @abstractmethod
    def sample(self, n_samples: int, random_state: np.random.RandomState) -> NDArray[np.float64]:
        """Return random points.

        Parameters
        ----------
        n_samples : int
            How many, at least 1.
        random_state : RandomState
            Source of the randomness.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Independent points; with discrete columns rows with codes.
        """

    @abstractmethod
    def standardized(self, center: ArrayLike, scale: ArrayLike) -> Reference:
        """Return the distribution of ``(x - center) / scale`` for x of this distribution.

        Parameters
        ----------
        center : array-like of shape (n_features,)
            What is subtracted.
        scale : array-like of shape (n_features,)
            Positive numbers to divide by.

        Returns
        -------
        Reference
            The distribution on the other scale.
        """

    def without_wide_components(self) -> Reference:
        """Return the distribution without components for rows unlike all those seen.

        A density needs such components, so that no row is impossible; a score of how unlike a row
        is from those seen does not.

        Returns
        -------
        Reference
            The other components, with weights that sum to 1; the same object if it has no such
            components.
        """
        return self

    @property
    def n_intermediate(self) -> int:
        """Numbers that the widest step of one evaluation makes, which sets the size of batches."""
        return self.n_features

    @property
    def n_fused(self) -> int:
        """The same where a CPU's fused operations hold fewer numbers at a time."""
        return self.n_intermediate

    @abstractmethod
    def variance_range(self) -> tuple[float, float]:
        """Return the least and greatest variance along any principal direction.

        Returns
        -------
        tuple of (float, float)
            The two variances.
        """

    def forward(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the predicted noise; a reference is a denoiser like any other.

        Parameters
        ----------
        z : Tensor of shape (B, d)
            Noisy observations.
        logsnr : Tensor of shape (B,)
            Their log signal-to-noise ratios.

        Returns
        -------
        Tensor of shape (B, d)
            What `denoise` returns.
        """
        return self.denoise(z, logsnr)


def as_float_tensor(values: ArrayLike | Tensor, ndim: int, name: str) -> Tensor:
    """Return finite values as a float64 tensor, or raise an error that names the parameter."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    array: NDArray[np.float64] = np.array(values, dtype=np.float64)
    if array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension(s), got shape {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite.")
    return torch.from_numpy(array)


def eigenbasis(covariances: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (..., d) and eigenvectors (..., d, d), or raise if not positive."""
    if covariances.shape[-1] != covariances.shape[-2]:
        raise ValueError(f"{name} must be square, got shape {tuple(covariances.shape)}.")
    variances, basis = torch.linalg.eigh(covariances)
    if bool((variances <= 0).any()):
        raise ValueError(
            f"{name} must be positive definite; its least eigenvalue is {variances.min():.3g}. "
            "Add a small multiple of the identity, or shrink it."
        )
    return variances, basis
