r"""A Gaussian of many columns whose covariance is of low rank except for equal variances.

With :math:`\Sigma = U\, \mathrm{diag}(\lambda - \lambda_0)\, U^T + \lambda_0 I` and orthonormal
columns of U (probabilistic principal components, Tipping and Bishop 1999) the optimal denoiser
needs only products with U.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from sk_itdiffusion._first.channel import noise_scale, signal_scale
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.references.buffers import as_float_tensor, check_buffers
from sk_itdiffusion._first.references.continuous import ContinuousReference, PlainReference
from sk_itdiffusion._first.references.gaussian import (
    VARIANCE_FLOOR,
    GaussianReference,
    add_white_noise,
    normal_columns,
)
from sk_itdiffusion._first.references.parts import rows_by_pattern

__all__ = ["LowRankGaussianReference"]

Array = NDArray[np.float64]


@stored()
class LowRankGaussianReference(ContinuousReference, PlainReference):
    """Normal distribution with k principal directions and one variance in all others.

    Parameters
    ----------
    mean : array-like of shape (n_features,)
        Mean.
    basis : array-like of shape (n_features, k)
        Orthonormal columns.
    variances : array-like of shape (k,)
        Positive variances along them.
    residual : float
        Positive variance along all other directions.

    Raises
    ------
    ValueError
        If shapes disagree, a value is not finite, or a variance is not positive.

    Examples
    --------
    >>> import torch
    >>> from sk_itdiffusion.references import LowRankGaussianReference
    >>> reference = LowRankGaussianReference([0.0, 0.0], [[1.0], [0.0]], [4.0], 1.0)
    >>> round(reference.log_prob(torch.zeros(1, 2, dtype=torch.float64)).item(), 4)
    -2.531
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor
    residual: Tensor

    def __init__(
        self, mean: ArrayLike, basis: ArrayLike, variances: ArrayLike, residual: float
    ) -> None:
        super().__init__()
        center = as_float_tensor(mean, 1, "mean")
        directions = as_float_tensor(basis, 2, "basis")
        along = as_float_tensor(variances, 1, "variances")
        if directions.shape != (len(center), len(along)):
            raise ValueError(
                f"basis must have shape {(len(center), len(along))} to match mean and variances, "
                f"got {tuple(directions.shape)}."
            )
        if not residual > 0 or bool((along <= 0).any()):
            raise ValueError("variances and residual must be positive.")
        self.n_features = len(center)
        self.register_buffer("mean", center)
        self.register_buffer("basis", directions)
        self.register_buffer("variances", along)
        self.register_buffer("residual", torch.tensor(float(residual), dtype=torch.float64))

    @classmethod
    def fit(
        cls,
        X: NDArray[np.float64],
        rank: int,
        random_state: np.random.RandomState,
        sample_weight: NDArray[np.float64] | None = None,
    ) -> LowRankGaussianReference:
        """Return the probabilistic principal components of rows.

        Parameters
        ----------
        X : ndarray of shape (n_samples, n_features)
            Complete rows.
        rank : int
            Number of directions, less than rows and columns.
        random_state : RandomState
            Source of the randomised decomposition.
        sample_weight : ndarray of shape (n_samples,), default=None
            Positive weights, of which only the ratios matter; None for equal ones.

        Returns
        -------
        LowRankGaussianReference
            The fitted distribution.

        Raises
        ------
        ValueError
            If entries are missing, of which the decomposition knows nothing.
        """
        if np.isnan(X).any():
            raise ValueError(
                "A normal distribution of low rank, which tables of thousands of columns need, can "
                "only be fitted to complete rows."
            )
        weight = np.ones(len(X)) if sample_weight is None else sample_weight
        share = weight / weight.sum()
        mean = share @ X
        # The variances are those of an unbiased covariance.
        scaled = np.sqrt(share / (1.0 - float(share @ share)))[:, None] * (X - mean)
        _, singular, directions = randomized_svd(scaled, rank, random_state=random_state)
        # Over all other directions, also those that the rows do not span.
        left = float(np.square(scaled).sum()) - float(np.square(singular).sum())
        residual = max(left / (X.shape[1] - rank), VARIANCE_FLOOR)
        return cls(mean, directions.T, np.maximum(np.square(singular), residual), residual)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density in nats; see `Reference.log_prob`."""
        deviation = x - self.mean
        projected = deviation @ self.basis
        squared = (projected.square() * (1.0 / self.variances - 1.0 / self.residual)).sum(1)
        squared = squared + deviation.square().sum(1) / self.residual
        n_others = self.n_features - len(self.variances)
        log_determinant = self.variances.log().sum() + n_others * self.residual.log()
        return -0.5 * (squared + log_determinant + self.n_features * math.log(2 * math.pi))

    def marginal(self, columns: Sequence[int]) -> LowRankGaussianReference:
        """Return the normal distribution of some columns; see `Reference.marginal`."""
        kept = self._checked_parts(columns)
        if len(kept) == self.n_features:
            return self
        mean, basis, along, _ = self._numbers()
        return self._of_factor(mean[kept], basis[kept], np.diag(along))

    def given(self, columns: Sequence[int], values: ArrayLike) -> LowRankGaussianReference:
        """Return the normal distribution of the other columns; see `Reference.given`."""
        known, others, numbers = self._checked_given(columns, values)
        if not known:
            return self
        mean, basis, _, residual = self._numbers()
        inner, _ = self._inner(known, self._prior())
        pull = inner @ (basis[known].T @ (numbers - mean[known])) / residual
        return self._of_factor(mean[others] + basis[others] @ pull, basis[others], inner)

    def _numbers(self) -> tuple[Array, Array, Array, float]:
        """Return mean, basis, variances less the residual one, and this."""
        mean, basis, variances = (
            part.detach().cpu().double().numpy() for part in (self.mean, self.basis, self.variances)
        )
        residual = float(self.residual)
        return mean, basis, variances - residual, residual

    def _prior(self) -> Array:
        """Return the covariance along the basis, less the residual one."""
        return np.diag(self._numbers()[2])

    def _inner(self, columns: Sequence[int], prior: Array) -> tuple[Array, float]:
        """Return what is left of a covariance along the basis, given columns.

        Also returned is the logarithm of the determinant of these columns' covariance.
        """
        _, basis, _, residual = self._numbers()
        known = basis[columns]
        ratio = np.eye(len(prior)) + known.T @ known @ prior / residual
        inner = prior @ np.linalg.inv(ratio)
        volume = float(np.linalg.slogdet(ratio)[1]) + len(columns) * math.log(residual)
        return np.asarray(0.5 * (inner + inner.T)), volume

    def _of_factor(self, mean: Array, rows: Array, inner: Array) -> LowRankGaussianReference:
        """Return the distribution of covariance ``rows @ inner @ rows.T`` and the residual one."""
        basis, variances = factorised(rows, inner)
        residual = float(self.residual)
        least = min(residual, float(self.variances.min()))
        return LowRankGaussianReference(
            mean, basis, np.maximum(variances + residual, least), residual
        )

    def _log_prob_of_parts(self, rows: Array) -> Array:
        """Return the log-densities of the observed entries of rows."""
        mean, _, _, _ = self._numbers()
        found = np.empty(len(rows))
        patterns, place = rows_by_pattern(np.isnan(rows))
        for number, pattern in enumerate(patterns):
            kept, here = np.flatnonzero(~pattern), np.flatnonzero(place == number)
            deviations = rows[np.ix_(here, kept)] - mean[kept]
            found[here] = self._log_densities(kept, deviations, self._prior())[0]
        return found

    def _log_prob_given(self, rows: Array, given: NDArray[np.bool_]) -> tuple[Array, Array]:
        """Return log-densities of given entries of rows, and of the others given these."""
        mean, basis, _, _ = self._numbers()
        of_given, of_others = np.empty((2, len(rows)))
        patterns, place = rows_by_pattern(np.hstack([np.isnan(rows), given]))
        for number, pattern in enumerate(patterns):
            missing, mask = np.split(pattern, 2)
            known, others = np.flatnonzero(mask), np.flatnonzero(~missing & ~mask)
            here = np.flatnonzero(place == number)
            inner, _ = self._inner(known.tolist(), self._prior())
            deviations = rows[np.ix_(here, known)] - mean[known]
            of_given[here], means = self._log_densities(known, deviations, self._prior())
            far = basis[others] @ means[:, :, None]
            deviations = rows[np.ix_(here, others)] - mean[others] - far[:, :, 0]
            of_others[here] = self._log_densities(others, deviations, inner)[0]
        return of_given, of_others

    def _log_densities(
        self, columns: NDArray[np.intp], deviations: Array, prior: Array
    ) -> tuple[Array, Array]:
        """Return log-densities of deviations of columns, and what they tell along the basis.

        Parameters
        ----------
        columns : ndarray of shape (n_kept,), int
            Numbers of the columns.
        deviations : ndarray of shape (n_rows, n_kept)
            Their values less their means.
        prior : ndarray of shape (rank, rank)
            Covariance along the basis, less the residual one.

        Returns
        -------
        log_density : ndarray of shape (n_rows,)
            Log-densities.
        means : ndarray of shape (n_rows, rank)
            Conditional means along the basis.
        """
        _, basis, _, residual = self._numbers()
        inner, volume = self._inner(columns.tolist(), prior)
        known = np.ascontiguousarray(basis[columns].T)
        constant = volume + len(columns) * math.log(2.0 * math.pi)
        log_density, means = np.empty(len(deviations)), np.empty((len(deviations), len(prior)))
        for row, deviation in enumerate(deviations):
            projected = known @ deviation
            means[row] = inner @ projected / residual
            squared = (deviation @ deviation - projected @ means[row]) / residual
            log_density[row] = -0.5 * (squared + constant)
        return log_density, means

    def _completed(self, rows: Array, uniform: Array) -> Array:
        """Return rows with draws instead of missing entries."""
        mean, basis, _, residual = self._numbers()
        found = rows.copy()
        patterns, place = rows_by_pattern(np.isnan(rows))
        for number, pattern in enumerate(patterns):
            kept, others = np.flatnonzero(~pattern), np.flatnonzero(pattern)
            inner, _ = self._inner(kept.tolist(), self._prior())
            axes, variances = factorised(basis[others], inner)
            longer = np.sqrt(np.maximum(variances + residual, 0.0)) - math.sqrt(residual)
            for row in np.flatnonzero(place == number):
                pull = inner @ (basis[kept].T @ (rows[row, kept] - mean[kept])) / residual
                white = ndtri(uniform[row, 2 + others])
                spread = math.sqrt(residual) * white + axes @ (longer * (axes.T @ white))
                found[row, others] = mean[others] + basis[others] @ pull + spread
        return found

    def denoise(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the predicted noise; see `Reference.denoise`."""
        signal, noise = signal_scale(logsnr)[:, None], noise_scale(logsnr)[:, None]
        deviation = z - signal * self.mean
        plain = 1.0 / (signal.square() * self.residual + noise.square())
        along = 1.0 / (signal.square() * self.variances + noise.square())
        change = ((along - plain) * (deviation @ self.basis)) @ self.basis.T
        return noise * (plain * deviation + change)

    def smoothed_log_prob(self, rows: Tensor, eps: Tensor, logsnr: float) -> Tensor:
        """Return the log-density of noisy rows; see `Reference.smoothed_log_prob`."""
        if math.isinf(logsnr):
            return self.log_prob(rows)
        noisy, variance = add_white_noise(rows, eps, logsnr)
        smoothed = LowRankGaussianReference(
            self.mean, self.basis, self.variances + variance, float(self.residual) + variance
        )
        return smoothed.log_prob(noisy)

    def noise_moments(self, rows: Tensor, eps: Tensor, logsnr: float) -> tuple[Tensor, Tensor]:
        """Return moments of the noise, given noisy rows; see `Reference.noise_moments`."""
        noisy, variance = add_white_noise(rows, eps, logsnr)
        spread, outside = self.variances + variance, self.residual + variance
        residual = noisy - self.mean
        along = residual @ self.basis * (1.0 / spread - 1.0 / outside)
        mean = math.sqrt(variance) * (residual / outside + along @ self.basis.T)
        kept = self.residual / outside
        own = kept + self.basis.square() @ (self.variances / spread - kept)
        return mean, mean.square() + own

    def independent(self) -> GaussianReference:
        """Return the normal distribution of the variances; see `PlainReference.independent`."""
        return GaussianReference(self.mean, np.diag(self.column_variances.numpy()))

    def column_log_prob(self, rows: Tensor, eps: Tensor, logsnr: float) -> Tensor:
        """Return each column's own log-density; see `PlainReference.column_log_prob`."""
        return normal_columns(self.mean, self.column_variances, rows, eps, logsnr)

    @property
    def column_variances(self) -> Tensor:
        """Variance of each column, shape (n_features,)."""
        along = self.variances - self.residual
        return self.residual + self.basis.square() @ along

    def sample(self, n_samples: int, random_state: np.random.RandomState) -> NDArray[np.float64]:
        """Return random points; see `Reference.sample`."""
        basis, along = self.basis.cpu().numpy(), self.variances.cpu().numpy()
        residual = float(self.residual)
        white = random_state.standard_normal((n_samples, self.n_features))
        directions = random_state.standard_normal((n_samples, len(along)))
        spread = directions * np.sqrt(along - residual)
        points = self.mean.cpu().numpy() + math.sqrt(residual) * white + spread @ basis.T
        return np.asarray(points)

    def standardized(self, center: ArrayLike, scale: ArrayLike) -> LowRankGaussianReference:
        """Return the distribution of ``(x - center) / scale``, for one scale of all columns.

        See `ContinuousReference.standardized`.

        Raises
        ------
        ValueError
            If the columns have different scales.
        """
        width = np.unique(np.asarray(scale, dtype=np.float64))
        if len(width) != 1:
            raise ValueError("A low-rank reference needs one scale for all columns.")
        return LowRankGaussianReference(
            (self.mean.cpu().numpy() - np.asarray(center, dtype=np.float64)) / width[0],
            self.basis,
            self.variances.cpu().numpy() / width[0] ** 2,
            float(self.residual) / width[0] ** 2,
        )

    @property
    def n_intermediate(self) -> int:
        """Numbers that the widest step of one evaluation makes."""
        return self.n_features + len(self.variances)

    def variance_range(self) -> tuple[float, float]:
        """Return the extreme variances; see `ContinuousReference.variance_range`."""
        residual = float(self.residual)
        return residual, max(residual, float(self.variances.max()))

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        shapes = {"mean": "d", "basis": "dr", "variances": "r", "residual": ""}
        check_buffers(self, shapes)


def factorised(rows: Array, inner: Array) -> tuple[Array, Array]:
    """Return orthonormal eigenvectors and eigenvalues of ``rows @ inner @ rows.T``."""
    directions, triangle = np.linalg.qr(rows)
    values, vectors = np.linalg.eigh(triangle @ inner @ triangle.T)
    return np.asarray(directions @ vectors), np.asarray(values)
