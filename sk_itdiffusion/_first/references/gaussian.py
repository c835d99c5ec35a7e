r"""The Gaussian reference.

For :math:`x \sim N(\mu, \Sigma)` the optimal denoiser is linear,

.. math:: \hat\epsilon(z, a) = \sqrt{\sigma(-a)}\,
    \left(\sigma(a)\Sigma + \sigma(-a) I\right)^{-1} \left(z - \sqrt{\sigma(a)}\,\mu\right),

and its error has a closed form (Kong et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from sk_itdiffusion._first._table.rows import effective_number
from sk_itdiffusion._first.channel import noise_scale, signal_scale
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.references.buffers import as_float_tensor, check_buffers, eigenbasis
from sk_itdiffusion._first.references.continuous import ContinuousReference, PlainReference
from sk_itdiffusion._first.references.normal_parts import (
    ExpectedMoments,
    NormalParts,
    blocks_of_rows,
)
from sk_itdiffusion._first.references.parts import affordable_rows, other_columns

__all__ = ["GaussianReference"]

#: Smallest variance, in standardised units, along any direction of a fitted reference.
VARIANCE_FLOOR = 1e-6
#: In nats; information about other columns below the log-SNR of independence.
MIN_INFORMATION = 0.001
#: Pairs of steps of expectation-maximisation, and the gain in nats, of all that are left, that ends
#: them; and how far a mean or a logarithm of a variance is extrapolated at most.
_MAX_STEPS = 200
_TOLERANCE = 1e-5
_MOST_AHEAD = 10.0
#: Logarithm of the largest ratio of eigenvalues, beyond which inverses of parts are none.
_MOST_APART = 23.0


@stored()
class GaussianReference(ContinuousReference, PlainReference):
    """Multivariate normal distribution with a full covariance.

    Parameters
    ----------
    mean : array-like of shape (n_features,)
        Mean.
    covariance : array-like of shape (n_features, n_features)
        Covariance; symmetric and positive definite.

    Raises
    ------
    ValueError
        If the shapes disagree, a value is not finite, or the covariance is not positive definite.

    Examples
    --------
    >>> import torch
    >>> from sk_itdiffusion.references import GaussianReference
    >>> reference = GaussianReference([0.0], [[1.0]])
    >>> round(reference.log_prob(torch.zeros(1, 1, dtype=torch.float64)).item(), 4)
    -0.9189
    """

    mean: Tensor
    variances: Tensor
    basis: Tensor

    def __init__(self, mean: ArrayLike | Tensor, covariance: ArrayLike | Tensor) -> None:
        super().__init__()
        center = as_float_tensor(mean, 1, "mean")
        matrix = as_float_tensor(covariance, 2, "covariance")
        if matrix.shape != (len(center), len(center)):
            raise ValueError(
                f"covariance must have shape {(len(center), len(center))} to match mean, "
                f"got {tuple(matrix.shape)}."
            )
        variances, basis = eigenbasis(matrix, "covariance")
        self.n_features = len(center)
        self.register_buffer("mean", center)
        self.register_buffer("variances", variances)
        self.register_buffer("basis", basis)

    @classmethod
    def fit(
        cls, X: NDArray[np.float64], sample_weight: NDArray[np.float64] | None = None
    ) -> GaussianReference:
        """Return the normal distribution with the mean and (shrunk) covariance of the rows.

        The covariance is shrunk as Ledoit and Wolf propose, which is negligible for many rows and
        gives a usable matrix for fewer rows than columns; eigenvalues below 1e-6 are raised to it.
        Very few rows tell nothing about how much to shrink (two rows always ask for no shrinkage),
        so the logarithms of the eigenvalues are shrunk towards that of their mean with the weight
        of one row.

        Where entries are missing, mean and covariance before shrinkage are those of maximum
        likelihood of the observed entries, by expectation-maximisation over patterns of missing
        entries: consistent if entries are missing at random.  If that is too expensive for all rows
        it is done for a random sample of them, and where this has fewer than twice as many rows as
        columns, the columns are taken as independent.

        Parameters
        ----------
        X : ndarray of shape (n_samples, n_features)
            Rows, on a scale where the columns' variances are near 1; NaN for what is missing.
        sample_weight : ndarray of shape (n_samples,), default=None
            Positive weights, of which only the ratios matter; None for equal ones.

        Returns
        -------
        GaussianReference
            The fitted distribution.
        """
        weight = np.ones(len(X)) if sample_weight is None else sample_weight
        if np.isnan(X).any():
            mean, shrunk, n_rows = incomplete_moments(X, weight)
        else:
            share = weight / weight.sum()
            mean = share @ X
            shrunk, n_rows = shrunk_covariance(X - mean, share), effective_number(weight)
        values, vectors = np.linalg.eigh(shrunk)
        values = np.maximum(values, VARIANCE_FLOOR)
        values *= (values.mean() / values) ** (1.0 / max(n_rows - 1.0, 1.0))
        covariance = (vectors * values) @ vectors.T
        return cls(mean, 0.5 * (covariance + covariance.T))

    @property
    def covariance(self) -> Tensor:
        """Covariance matrix, shape (n_features, n_features)."""
        return (self.basis * self.variances) @ self.basis.T

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density in nats; see `Reference.log_prob`."""
        whitened = ((x - self.mean) @ self.basis) / self.variances.sqrt()
        constant = self.n_features * math.log(2 * math.pi) + self.variances.log().sum()
        return -0.5 * (whitened.square().sum(1) + constant)

    def marginal(self, columns: Sequence[int]) -> GaussianReference:
        """Return the normal distribution of some columns; see `Reference.marginal`."""
        kept = self._checked_parts(columns)
        if len(kept) == self.n_features:
            return self
        covariance = self.covariance[kept][:, kept].double().cpu().numpy()
        floor = float(self.variances.min())
        return GaussianReference(self.mean[kept], floor_eigenvalues(covariance, floor))

    def given(self, columns: Sequence[int], values: ArrayLike) -> GaussianReference:
        """Return the normal distribution of the other columns; see `Reference.given`."""
        known, others, numbers = self._checked_given(columns, values)
        if not known:
            return self
        means, covariances = self._parts().given(known, others, numbers)
        floor = float(self.variances.min())
        return GaussianReference(means[0], floor_eigenvalues(covariances[0], floor))

    def given_each(self, columns: Sequence[int], values: NDArray[np.float64]) -> nn.Module:
        """Return the normal distributions of the other columns; see `Reference.given_each`."""
        conditional = self.given(columns, values[0])
        if conditional is self:
            return self
        rows = np.full((len(values), self.n_features), np.nan)
        rows[:, columns] = values
        others = other_columns(columns, self.n_features)
        conditional.mean = torch.from_numpy(self._parts().conditional_means(rows)[0][:, others])
        return conditional

    def _parts(self) -> NormalParts:
        """Return the helper for marginals and conditionals."""
        return NormalParts.of_tensors(self.mean[None], self.variances[None], self.basis[None])

    def _log_prob_of_parts(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the log-densities of the observed entries of rows."""
        return np.asarray(self._parts().log_densities(rows)[0])

    def _log_prob_given(
        self, rows: NDArray[np.float64], given: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return log-densities of given entries of rows, and of the others given these."""
        of_given, of_others = self._parts().log_densities_given(rows, given)
        return of_given[0], of_others[0]

    def _completed(
        self, rows: NDArray[np.float64], uniform: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return rows with draws instead of missing entries."""
        return self._parts().drawn(rows, np.zeros(len(rows), dtype=np.intp), uniform[:, 2:])

    def denoise(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the predicted noise; see `Reference.denoise`."""
        signal, noise = signal_scale(logsnr)[:, None], noise_scale(logsnr)[:, None]
        projected = (z - signal * self.mean) @ self.basis
        shrunk = noise * projected / (signal.square() * self.variances + noise.square())
        return shrunk @ self.basis.T

    def smoothed_log_prob(self, rows: Tensor, eps: Tensor, logsnr: float) -> Tensor:
        """Return the log-density of noisy rows; see `Reference.smoothed_log_prob`."""
        if math.isinf(logsnr):
            return self.log_prob(rows)
        noisy, variance = add_white_noise(rows, eps, logsnr)
        spread = self.variances + variance
        whitened = ((noisy - self.mean) @ self.basis) / spread.sqrt()
        constant = self.n_features * math.log(2 * math.pi) + spread.log().sum()
        return -0.5 * (whitened.square().sum(1) + constant)

    def noise_moments(self, rows: Tensor, eps: Tensor, logsnr: float) -> tuple[Tensor, Tensor]:
        """Return moments of the noise, given noisy rows; see `Reference.noise_moments`."""
        noisy, variance = add_white_noise(rows, eps, logsnr)
        spread = self.variances + variance
        whitened = (noisy - self.mean) @ self.basis / spread
        mean = math.sqrt(variance) * whitened @ self.basis.T
        return mean, mean.square() + self.basis.square() @ (self.variances / spread)

    def independent(self) -> GaussianReference:
        """Return the normal distribution of the variances; see `PlainReference.independent`."""
        return GaussianReference(self.mean, np.diag(np.diag(self.covariance.numpy())))

    def column_log_prob(self, rows: Tensor, eps: Tensor, logsnr: float) -> Tensor:
        """Return each column's own log-density; see `PlainReference.column_log_prob`."""
        return normal_columns(self.mean, self.covariance.diagonal(), rows, eps, logsnr)

    def independence_logsnr(self) -> float:
        """Return the log-SNR of a thousandth of a nat; see `PlainReference.independence_logsnr`.

        At a low log-SNR a, two columns of covariance c tell ``exp(2 a) / 4 c**2`` nats.
        """
        covariance = self.covariance.numpy()
        squares = float((covariance**2).sum() - (np.diag(covariance) ** 2).sum())
        return 0.5 * math.log(4.0 * MIN_INFORMATION / max(squares, 1e-12))

    def sample(self, n_samples: int, random_state: np.random.RandomState) -> NDArray[np.float64]:
        """Return random points; see `Reference.sample`."""
        white = random_state.standard_normal((n_samples, self.n_features))
        root = (self.basis * self.variances.sqrt()).cpu().numpy()
        return np.asarray(self.mean.cpu().numpy() + white @ root.T)

    def standardized(self, center: ArrayLike, scale: ArrayLike) -> GaussianReference:
        """Return the distribution of ``(x - center) / scale``.

        See `ContinuousReference.standardized`.
        """
        shift, width = np.asarray(center, dtype=np.float64), np.asarray(scale, dtype=np.float64)
        covariance = self.covariance.cpu().numpy() / np.outer(width, width)
        return GaussianReference((self.mean.cpu().numpy() - shift) / width, covariance)

    def variance_range(self) -> tuple[float, float]:
        """Return the covariance's smallest and largest eigenvalue.

        See `ContinuousReference.variance_range`.
        """
        return float(self.variances.min()), float(self.variances.max())

    def extra_repr(self) -> str:
        """Return what `repr` shows.

        Returns
        -------
        str
            The sizes.
        """
        return f"n_features={self.n_features}"

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        check_buffers(self, {"mean": "d", "variances": "d", "basis": "dd"})


def add_white_noise(rows: Tensor, eps: Tensor, logsnr: float) -> tuple[Tensor, float]:
    """Return rows plus noise of a log-SNR, and the variance of the noise."""
    variance = math.exp(-logsnr)
    return rows + math.sqrt(variance) * eps, variance


def normal_columns(
    mean: Tensor, variances: Tensor, rows: Tensor, eps: Tensor, logsnr: float
) -> Tensor:
    """Return the log-density of each noisy column under normal distributions of the columns."""
    noisy, variance = add_white_noise(rows, eps, logsnr)
    # The eigenvectors of a diagonal matrix are unit vectors, but in another order.
    spread = variances + variance
    deviation = (noisy - mean).square() / spread
    return -0.5 * (deviation + spread.log() + math.log(2 * math.pi))


def shrunk_covariance(
    deviation: NDArray[np.float64], share: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the covariance of weighted rows, shrunk as Ledoit and Wolf propose.

    With equal shares it is that of `sklearn.covariance.ledoit_wolf`; otherwise the number of rows
    in its formula is that of equal rows that tell as much (Kish's effective sample size).

    Parameters
    ----------
    deviation : ndarray of shape (n_samples, n_features)
        Rows less their weighted mean.
    share : ndarray of shape (n_samples,)
        Weights that sum to 1.

    Returns
    -------
    ndarray of shape (n_features, n_features)
        The shrunk covariance.
    """
    n_features = deviation.shape[1]
    scaled = np.sqrt(share)[:, None] * deviation
    covariance = np.asarray(scaled.T @ scaled)
    if n_features == 1:
        return covariance
    fourth = float(share @ np.square(np.square(deviation).sum(axis=1)))
    return shrunk_by_moments(covariance, fourth, float(share @ share))


def shrunk_by_moments(
    covariance: NDArray[np.float64], fourth: float, squared_shares: float
) -> NDArray[np.float64]:
    """Return a covariance shrunk by the mean fourth power of the rows' distances to their mean.

    The reciprocal of the sum of squared shares is the number of equal rows that tell as much.
    """
    n_features = len(covariance)
    variance = float(np.trace(covariance)) / n_features
    squared = float((covariance**2).sum())
    # Mean squared error of an entry of the covariance, and its distance to equal variances.
    error = squared_shares * (fourth - squared) / n_features
    distance = squared / n_features - variance**2
    shrinkage = 0.0 if distance <= 0.0 else min(max(error, 0.0) / distance, 1.0)
    return np.asarray((1.0 - shrinkage) * covariance + shrinkage * variance * np.eye(n_features))


def incomplete_moments(
    X: NDArray[np.float64], weight: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return mean and shrunk covariance of rows with missing entries, and how many rows they tell.

    Rows count by the share of their entries that is observed, and in the shrinkage, which rests on
    the errors of covariances, by that of the pairs.
    """
    X, weight, moments = moments_of_affordable(X, weight)
    share = weight / weight.sum()
    observed = (~np.isnan(X)).astype(np.float64)
    n_rows = effective_number(weight) * float((share @ observed).mean())
    if moments is None:
        return *observed_moments(X, share), n_rows
    covariance = moments.covariance[0]
    if len(covariance) > 1:
        of_pairs = float(((share[:, None] * observed).T @ observed).mean())
        squared_shares = float(share @ share) / of_pairs
        covariance = shrunk_by_moments(covariance, float(moments.fourth[0]), squared_shares)
    return moments.mean[0], covariance, n_rows


def fitted_moments(
    X: NDArray[np.float64], weight: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and covariance of maximum likelihood of rows with missing entries.

    The covariance is diagonal where more would be too expensive.
    """
    X, weight, moments = moments_of_affordable(X, weight)
    if moments is None:
        return observed_moments(X, weight / weight.sum())
    return moments.mean[0], moments.covariance[0]


def moments_of_affordable(
    X: NDArray[np.float64], weight: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], ExpectedMoments | None]:
    """Return rows that have entries, their weights, and moments of maximum likelihood of them.

    These are a random sample if all are too expensive; if fewer rows than twice the columns would
    be left, they are all, and there are no moments.
    """
    seen = np.flatnonzero(~np.isnan(X).all(axis=1))
    kept = affordable_rows(X, 1, 1)
    if len(kept) < min(2 * X.shape[1], len(seen)):
        return X[seen], weight[seen], None
    X, weight = X[kept], weight[kept]
    return X, weight, likeliest_moments(X, weight / weight.sum())


def observed_moments(
    X: NDArray[np.float64], share: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return means and diagonal covariance of the observed entries of each column by itself.

    A column without any value has the mean 0 and the variance 1.
    """
    observed = ~np.isnan(X)
    mass = share @ observed
    is_known = mass > 0.0
    mass = np.where(is_known, mass, 1.0)
    mean = share @ np.where(observed, X, 0.0) / mass
    variance = share @ np.square(np.where(observed, X - mean, 0.0)) / mass
    return np.where(is_known, mean, 0.0), np.diag(np.where(is_known, variance, 1.0))


def likeliest_moments(X: NDArray[np.float64], share: NDArray[np.float64]) -> ExpectedMoments:
    """Return the moments of maximum likelihood of rows with missing entries, one at least each.

    Expectation-maximisation takes ever smaller steps where much is missing.  Two of them tell how
    far to go on in their direction, in the logarithm of the covariance; where this leads to no
    greater likelihood it is not done (squared extrapolation, Varadhan and Roland 2008).
    """
    blocks, nothing = blocks_of_rows(X, 1), np.zeros((1, 1))
    n_features = X.shape[1]

    def moments(place: NDArray[np.float64], is_fourth: bool = False) -> ExpectedMoments:
        covariance = of_eigenvalues(place[n_features:].reshape(n_features, -1), np.exp)
        parts = NormalParts.of_covariances(place[None, :n_features], covariance[None])
        return parts.moments(X, share, nothing, blocks, is_fourth)

    def moments_ahead(place: NDArray[np.float64]) -> ExpectedMoments | None:
        """Return the moments, None where the covariance is no longer one for floats."""
        logarithm = place[n_features:].reshape(n_features, -1)
        values = np.linalg.eigvalsh(logarithm)
        is_one = values[0] >= math.log(VARIANCE_FLOOR) and values[-1] - values[0] < _MOST_APART
        return moments(place) if is_one else None

    def place_of(mean: NDArray[np.float64], covariance: NDArray[np.float64]) -> NDArray[np.float64]:
        logarithm = of_eigenvalues(covariance, lambda v: np.log(np.maximum(v, VARIANCE_FLOOR)))
        return np.concatenate([mean, logarithm.ravel()])

    place = place_of(*observed_moments(X, share))
    for _ in range(_MAX_STEPS):
        first = moments(place)
        second_place = place_of(first.mean[0], first.covariance[0])
        second = moments(second_place)
        third_place = place_of(second.mean[0], second.covariance[0])
        change, following = second_place - place, third_place - second_place
        size, rate = float(np.linalg.norm(change)), float(np.linalg.norm(following))
        gain, bend = second.log_likelihood - first.log_likelihood, following - change
        # What is left to gain falls with the square of the distance.
        if gain * size**2 <= _TOLERANCE * max(size**2 - rate**2, 1e-4 * size**2):
            place = third_place
            break
        length = size / max(float(np.linalg.norm(bend)), 1e-12 * size)
        ahead = place + 2.0 * length * change + length**2 * bend
        place = third_place
        if length > 1.0 and np.abs(ahead - third_place).max() < _MOST_AHEAD:
            found = moments_ahead(ahead)
            if found is not None and found.log_likelihood >= second.log_likelihood:
                place = place_of(found.mean[0], found.covariance[0])
    return moments(place, is_fourth=True)


def of_eigenvalues(
    matrix: NDArray[np.float64], function: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Return the symmetric matrix whose eigenvalues are a function of those of another."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * function(values)) @ vectors.T)


def floor_eigenvalues(matrix: NDArray[Any], floor: float = VARIANCE_FLOOR) -> NDArray[np.float64]:
    """Return the symmetric matrix (or stack) with eigenvalues below the floor raised to it."""
    values, vectors = np.linalg.eigh(matrix)
    if values.min() >= floor:
        return np.asarray(matrix, dtype=np.float64)
    raised = (vectors * np.maximum(values, floor)[..., None, :]) @ np.swapaxes(vectors, -1, -2)
    return np.asarray((raised + np.swapaxes(raised, -1, -2)) / 2, dtype=np.float64)
