r"""The Gaussian-mixture reference.

After the noise channel a Gaussian mixture is again one, with the same weights, means
:math:`\sqrt{\sigma(a)}\mu_k` and covariances :math:`C_k = \sigma(a)\Sigma_k + \sigma(-a)I`, so the
optimal denoiser is the average of the components' linear ones under the posterior
:math:`r_k(z, a)` of the components:

.. math:: \hat\epsilon(z, a) = \sqrt{\sigma(-a)} \sum_k r_k(z, a)\, C_k^{-1}
    \left(z - \sqrt{\sigma(a)}\,\mu_k\right).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from numbers import Integral

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from sk_itdiffusion._first.channel import noise_scale, signal_scale
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.references.buffers import as_float_tensor, check_buffers, eigenbasis
from sk_itdiffusion._first.references.continuous import ContinuousReference
from sk_itdiffusion._first.references.gaussian import (
    VARIANCE_FLOOR,
    GaussianReference,
    add_white_noise,
    floor_eigenvalues,
)
from sk_itdiffusion._first.references.normal_parts import NormalParts
from sk_itdiffusion._first.references.parts import (
    checked_columns,
    chosen_by,
    log_sum,
    log_sum_given,
)

__all__ = ["GaussianMixtureReference"]

Array = NDArray[np.float64]

#: Numbers of one kind that a processor's core holds close by; passing through more is slower.  The
#: memory of more than a megabyte is given back to the system after each use, and asked for again,
#: which takes longer than to calculate what is in it.
NUMBERS_IN_A_CACHE = 2**17
#: Parts are multiples of this, so that no row falls into the rest of a product of matrices.
ROWS_IN_A_TILE = 32
#: Factor by which the density between two modes is lower than in the lesser one, and the number of
#: points at which it is looked at.
VALLEY = math.e
POINTS_BETWEEN_MODES = 9
ROWS_IN_A_PASS = 4096


@stored()
class GaussianMixtureReference(ContinuousReference):
    """Mixture of normal distributions with full covariances.

    Parameters
    ----------
    weights : array-like of shape (n_components,)
        Positive weights; scaled to sum to 1.
    means : array-like of shape (n_components, n_features)
        Means.
    covariances : array-like of shape (n_components, n_features, n_features)
        Covariances; symmetric and positive definite.
    n_wide : int, default=0
        How many of the last components stand for rows unlike all that the mixture was fitted to;
        `without_wide_components` leaves them out.  At least 0 and less than ``n_components``.

    Raises
    ------
    ValueError
        If the shapes disagree, a value is not finite, a weight is not positive, a covariance is
        not positive definite, or `n_wide` is out of its range.

    Examples
    --------
    >>> import torch
    >>> from sk_itdiffusion.references import GaussianMixtureReference
    >>> mixture = GaussianMixtureReference([0.5, 0.5], [[-1.0], [1.0]], [[[1.0]], [[1.0]]])
    >>> round(mixture.log_prob(torch.zeros(1, 1, dtype=torch.float64)).item(), 4)
    -1.4189
    """

    log_weights: Tensor
    means: Tensor
    variances: Tensor
    basis: Tensor

    def __init__(
        self,
        weights: ArrayLike | Tensor,
        means: ArrayLike | Tensor,
        covariances: ArrayLike | Tensor,
        n_wide: int = 0,
    ) -> None:
        super().__init__()
        proportions = as_float_tensor(weights, 1, "weights")
        centers = as_float_tensor(means, 2, "means")
        matrices = as_float_tensor(covariances, 3, "covariances")
        n_components, n_features = centers.shape
        if len(proportions) != n_components or bool((proportions <= 0).any()):
            raise ValueError("weights must be positive, one for each row of means.")
        if matrices.shape != (n_components, n_features, n_features):
            raise ValueError(
                f"covariances must have shape {(n_components, n_features, n_features)} to match "
                f"means, got {tuple(matrices.shape)}."
            )
        variances, basis = eigenbasis(matrices, "covariances")
        self.n_features = n_features
        self.n_wide = checked_number_of_wide(n_wide, n_components)
        self.register_buffer("log_weights", (proportions / proportions.sum()).log())
        self.register_buffer("means", centers)
        self.register_buffer("variances", variances)
        self.register_buffer("basis", basis)

    @classmethod
    def from_sklearn(
        cls, mixture: GaussianMixture, variance_floor: float = VARIANCE_FLOOR
    ) -> GaussianMixtureReference:
        """Return the reference of a fitted `sklearn.mixture.GaussianMixture`.

        Parameters
        ----------
        mixture : GaussianMixture
            A fitted mixture of any ``covariance_type``.
        variance_floor : float, default=1e-6
            Smallest eigenvalue of a covariance; smaller ones are raised to it.

        Returns
        -------
        GaussianMixtureReference
            The same distribution.
        """
        n_components, n_features = mixture.means_.shape
        eye = np.eye(n_features)
        in_full: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
            "full": lambda c: c,
            "tied": lambda c: np.broadcast_to(c, (n_components, n_features, n_features)),
            "diag": lambda c: c[:, None, :] * eye,
            "spherical": lambda c: c[:, None, None] * eye,
        }
        covariances = in_full[mixture.covariance_type](mixture.covariances_)
        used = mixture.weights_ > 0
        return cls(
            mixture.weights_[used],
            mixture.means_[used],
            floor_eigenvalues(covariances[used], variance_floor),
        )

    @property
    def n_components(self) -> int:
        """Number of components."""
        return len(self.log_weights)

    @property
    def n_intermediate(self) -> int:
        """Numbers that one evaluation makes; see `Reference.n_intermediate`."""
        return self.n_components * self.n_features

    def _log_volume(self, spread: Tensor) -> Tensor:
        """Return the logarithms of the determinants of 2 pi times covariances (..., d, K)."""
        return spread.log().sum(-2) + self.n_features * math.log(2 * math.pi)

    def _axes(self) -> Tensor:
        """Return the matrix that maps points and a factor of the means to `_project`'s numbers."""
        n_features = self.n_features
        axes = self.basis.permute(1, 2, 0).reshape(n_features, -1)
        centers = (self.means[:, None, :] @ self.basis)[:, 0].T.reshape(1, -1)
        return torch.cat([axes, -centers])

    def _project(
        self, points: Tensor, signal: Tensor | None = None, axes: Tensor | None = None
    ) -> Tensor:
        """Return points - signal * mean_k in each component's eigenbasis, (B, d, K)."""
        n_components, n_features = self.means.shape
        factor = points.new_ones(len(points), 1) if signal is None else signal[:, None]
        # One product of matrices: arrays of this size are slow to pass through once more.
        projected = torch.cat([points, factor], dim=1) @ (self._axes() if axes is None else axes)
        return projected.reshape(len(points), n_features, n_components)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density in nats; see `Reference.log_prob`."""
        return self.component_log_prob(x).logsumexp(1)

    def marginal(self, columns: Sequence[int]) -> GaussianMixtureReference:
        """Return the mixture of the components' marginals; see `Reference.marginal`."""
        kept = self._checked_parts(columns)
        if len(kept) == self.n_features:
            return self
        means, variances, basis = (
            part.detach().cpu().double().numpy()
            for part in (self.means, self.variances, self.basis)
        )
        rows = basis[:, kept]
        covariances = rows * variances[:, None, :] @ np.swapaxes(rows, 1, 2)
        return mixture_of_parts(self, self.log_weights, means[:, kept], covariances)

    def given(self, columns: Sequence[int], values: ArrayLike) -> GaussianMixtureReference:
        """Return the mixture of the components' conditionals; see `Reference.given`."""
        known, others, numbers = self._checked_given(columns, values)
        if not known:
            return self
        row = np.full((1, self.n_features), np.nan)
        row[0, known] = numbers
        log_density = torch.from_numpy(normal_parts(self).log_densities(row)[:, 0])
        log_weights = self.log_weights.detach().cpu().double() + log_density
        return mixture_given(self, known, others, numbers, log_weights)

    def given_each(self, columns: Sequence[int], values: Array) -> nn.Module:
        """Return the mixture of the components' conditionals of each point.

        See `Reference.given_each`.
        """
        known = checked_columns(columns, self.n_features)
        if not known:
            return self
        rows = np.full((len(values), self.n_features), np.nan)
        rows[:, known] = values
        log_densities = torch.from_numpy(normal_parts(self).log_densities(rows))
        log_weights = self.log_weights.detach().cpu().double() + log_densities.T
        return MixtureOfEachPoint.of_rows(self, rows, log_weights)

    def _log_prob_of_parts(self, rows: Array) -> Array:
        """Return the log-densities of the observed entries of rows."""
        log_weights = self.log_weights.detach().cpu().double().numpy()
        return log_sum(normal_parts(self).log_densities(rows) + log_weights[:, None])

    def _log_prob_given(self, rows: Array, given: NDArray[np.bool_]) -> tuple[Array, Array]:
        """Return log-densities of given entries of rows, and of the others given these."""
        log_weights = self.log_weights.detach().cpu().double().numpy()
        of_given, of_others = normal_parts(self).log_densities_given(rows, given)
        return log_sum_given(of_given + log_weights[:, None], of_others)

    def _completed(self, rows: Array, uniform: Array) -> Array:
        """Return rows with draws instead of missing entries."""
        parts = normal_parts(self)
        log_weights = self.log_weights.detach().cpu().double().numpy()
        chosen = chosen_by(uniform[:, 1], parts.log_densities(rows) + log_weights[:, None])
        return parts.drawn(rows, chosen, uniform[:, 2:])

    def denoise(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the predicted noise; see `Reference.denoise`."""
        return self.density_and_noise(z, logsnr)[1]

    def density_and_noise(self, z: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-density of noisy points and the predicted noise.

        Parameters
        ----------
        z : Tensor of shape (B, d)
            Noisy observations.
        logsnr : Tensor of shape (B,)
            Their log signal-to-noise ratios.

        Returns
        -------
        log_density : Tensor of shape (B,)
            Log-densities in nats.
        noise : Tensor of shape (B, d)
            What `denoise` returns.
        """
        size = len(z)
        if z.device.type == "cpu":
            n_tiles = NUMBERS_IN_A_CACHE // (ROWS_IN_A_TILE * self.n_intermediate)
            size = ROWS_IN_A_TILE * max(1, n_tiles)
        axes, back = self._axes(), self._back()
        found = [
            self._density_and_noise(*part, axes, back)
            for part in zip(z.split(size), logsnr.split(size), strict=True)
        ]
        log_density, noise = (torch.cat(parts) for parts in zip(*found, strict=True))
        return log_density, noise

    def _density_and_noise(
        self, z: Tensor, logsnr: Tensor, axes: Tensor, back: Tensor
    ) -> tuple[Tensor, Tensor]:
        log_joint, whitened = self._noisy_components(z, logsnr, axes)
        top = log_joint.amax(1, keepdim=True)
        # Powers of two are faster than exponentials.
        weight = ((log_joint - top) / math.log(2.0)).exp2()
        mass = weight.sum(1, keepdim=True)
        weighted = product(whitened, weight[:, None, :])
        noise = self._sum_of_noise(weighted, noise_scale(logsnr)[:, None] / mass, back)
        return (top + mass.log())[:, 0], noise

    def noisy_components(self, z: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """Return the components' log-densities of noisy points, and their whitened residuals.

        Parameters
        ----------
        z : Tensor of shape (B, d)
            Noisy observations.
        logsnr : Tensor of shape (B,)
            Their log signal-to-noise ratios.

        Returns
        -------
        log_joint : Tensor of shape (B, K)
            Logarithm of weight times density, in nats.
        whitened : Tensor of shape (B, d, K)
            Residuals divided by their variances, in the eigenbasis of each component.
        """
        return self._noisy_components(z, logsnr, self._axes())

    def _noisy_components(self, z: Tensor, logsnr: Tensor, axes: Tensor) -> tuple[Tensor, Tensor]:
        # Scoring asks for many points at each log-SNR in succession: what does not depend on the
        # points, logarithms above all, is computed once for them.
        levels, of_level = torch.unique_consecutive(logsnr, return_inverse=True)
        if len(levels) > 1:
            # How many there are depends on the place in a batch: none may be left over from tiles.
            levels = torch.cat([levels, levels.new_zeros(-len(levels) % ROWS_IN_A_TILE)])
        signal, noise = signal_scale(levels), noise_scale(levels)
        variances = signal.square()[:, None, None] * self.variances.T
        spread = variances + noise.square()[:, None, None]
        constant = self.log_weights - 0.5 * self._log_volume(spread)
        projected = self._project(z, signal[of_level], axes)
        whitened = product(spread.reciprocal().index_select(0, of_level), projected)
        squares = product(projected, whitened).sum(1)
        log_joint = constant.index_select(0, of_level) - 0.5 * squares
        return log_joint, whitened

    def average_noise(self, posterior: Tensor, whitened: Tensor, logsnr: Tensor) -> Tensor:
        """Return the components' predictions of the noise, averaged.

        Parameters
        ----------
        posterior : Tensor of shape (B, K)
            Probabilities of the components.
        whitened : Tensor of shape (B, d, K)
            What `noisy_components` returns.
        logsnr : Tensor of shape (B,)
            Log signal-to-noise ratios.

        Returns
        -------
        Tensor of shape (B, d)
            The predicted noise.
        """
        weighted = posterior[:, None, :] * whitened
        return self._sum_of_noise(weighted, noise_scale(logsnr)[:, None], self._back())

    def _back(self) -> Tensor:
        """Return the matrix that maps numbers in the eigenbases to points, (d, d * K)."""
        return self.basis.permute(1, 2, 0).reshape(self.n_features, -1)

    @staticmethod
    def _sum_of_noise(weighted: Tensor, factor: Tensor, back: Tensor) -> Tensor:
        # In the other order the last bits would depend on the place in the batch.
        return factor * (weighted.flatten(1) @ back.T)

    def component_log_prob(self, x: Tensor, added_variance: float = 0.0) -> Tensor:
        """Return the components' log-densities of points.

        Parameters
        ----------
        x : Tensor of shape (B, d)
            Points.
        added_variance : float, default=0.0
            Variance of independent normal noise by which the density is smoothed, at least 0.

        Returns
        -------
        Tensor of shape (B, K)
            Logarithm of weight times density, in nats.
        """
        spread = self.variances.T + added_variance
        quadratic = (self._project(x).square() / spread).sum(1)
        return self.log_weights - 0.5 * (quadratic + self._log_volume(spread))

    def component_noise(self, noisy: Tensor, variance: float) -> Tensor:
        """Return the noise that each component predicts, in standard deviations of the noise.

        Parameters
        ----------
        noisy : Tensor of shape (B, d)
            Points plus noise.
        variance : float
            Positive variance of the noise.

        Returns
        -------
        Tensor of shape (B, K, d)
            The predictions.
        """
        whitened = self._project(noisy) * (math.sqrt(variance) / (self.variances.T + variance))
        return torch.matmul(self.basis, whitened.permute(2, 1, 0)).permute(2, 0, 1)

    def component_moments(
        self, noisy: Tensor, variance: float, posterior: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return moments of the noise under components of given probabilities.

        Parameters
        ----------
        noisy : Tensor of shape (B, d)
            Points plus noise.
        variance : float
            Positive variance of the noise.
        posterior : Tensor of shape (B, K)
            Probabilities of the components.

        Returns
        -------
        mean, square : Tensor of shape (B, d)
            Means of the noise and of its square, in standard deviations of the noise.
        """
        predicted = self.component_noise(noisy, variance)
        kept = self.variances / (self.variances + variance)
        own = torch.einsum("kde,ke->kd", self.basis.square(), kept)
        weight = posterior[:, None, :]
        mean = torch.bmm(weight, predicted)[:, 0]
        return mean, torch.bmm(weight, predicted.square())[:, 0] + posterior @ own

    def smoothed_log_prob(self, rows: Tensor, eps: Tensor, logsnr: float) -> Tensor:
        """Return the log-density of noisy rows; see `Reference.smoothed_log_prob`."""
        if math.isinf(logsnr):
            return self.log_prob(rows)
        return self.component_log_prob(*add_white_noise(rows, eps, logsnr)).logsumexp(1)

    def noise_moments(self, rows: Tensor, eps: Tensor, logsnr: float) -> tuple[Tensor, Tensor]:
        """Return moments of the noise, given noisy rows; see `Reference.noise_moments`."""
        noisy, variance = add_white_noise(rows, eps, logsnr)
        posterior = self.component_log_prob(noisy, variance).softmax(1)
        return self.component_moments(noisy, variance, posterior)

    def modes(self, rows: Tensor, variance: float) -> NDArray[np.intp]:
        """Return the mode of the most likely component of each row; see `Reference.modes`.

        Components are of one mode if the density between their means is nowhere lower than at the
        lower of the two by a factor of e.
        """
        own = self.component_log_prob(rows, variance).argmax(1)
        return np.asarray(joined_components(self, variance)[own.numpy()])

    def sample(self, n_samples: int, random_state: np.random.RandomState) -> NDArray[np.float64]:
        """Return random points; see `Reference.sample`."""
        weights = self.log_weights.exp().cpu().numpy()
        chosen = random_state.choice(len(weights), size=n_samples, p=weights / weights.sum())
        return self.sample_components(chosen, random_state)

    def sample_components(
        self, chosen: NDArray[np.intp], random_state: np.random.RandomState
    ) -> NDArray[np.float64]:
        """Return one random point of each of the chosen components.

        Parameters
        ----------
        chosen : ndarray of shape (n_samples,)
            Numbers of components, from 0 on.
        random_state : RandomState
            Source of the randomness.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            The points.
        """
        roots = (self.basis * self.variances.sqrt()[:, None, :]).cpu().numpy()
        white = random_state.standard_normal((len(chosen), self.n_features))
        spread = np.einsum("nde,ne->nd", roots[chosen], white)
        return np.asarray(self.means.cpu().numpy()[chosen] + spread)

    def standardized(self, center: ArrayLike, scale: ArrayLike) -> GaussianMixtureReference:
        """Return the distribution of ``(x - center) / scale``.

        See `ContinuousReference.standardized`.
        """
        shift, width = np.asarray(center, dtype=np.float64), np.asarray(scale, dtype=np.float64)
        covariances = torch.einsum("kde,ke,kfe->kdf", self.basis, self.variances, self.basis)
        weights = self.log_weights.exp().cpu().numpy()
        is_tiny = not weights.all()  # only the logarithms are numbers
        moved = GaussianMixtureReference(
            np.ones(len(weights)) if is_tiny else weights,
            (self.means.cpu().numpy() - shift) / width,
            covariances.cpu().numpy() / np.outer(width, width),
            self.n_wide,
        )
        if is_tiny:
            moved.log_weights = self.log_weights.cpu().double()
        return moved

    def without_wide_components(self) -> GaussianMixtureReference:
        """Return the mixture of the other components; see `Reference.without_wide_components`."""
        n_kept = self.n_components - checked_number_of_wide(self.n_wide, self.n_components)
        if n_kept == self.n_components:
            return self
        # The constructor would factorise the covariances, which does not give back the same bits.
        kept = copy.deepcopy(self)
        kept.n_wide = 0
        kept.log_weights = self.log_weights[:n_kept].log_softmax(0)
        for name in ("means", "variances", "basis"):
            setattr(kept, name, getattr(self, name)[:n_kept].clone())
        return kept

    def with_weights(self, weights: ArrayLike) -> GaussianMixtureReference:
        """Return the components with other weights.

        Parameters
        ----------
        weights : array-like of shape (n_components,)
            Positive numbers.

        Returns
        -------
        GaussianMixtureReference
            The other mixture, with the same components to the last bit.
        """
        proportions = as_float_tensor(weights, 1, "weights")
        found = copy.deepcopy(self)
        found.log_weights = (proportions / proportions.sum()).log()
        return found

    @property
    def share_of_wide(self) -> float:
        """Probability of the wide components."""
        n_kept = self.n_components - self.n_wide
        return float(self.log_weights[n_kept:].exp().sum())

    @property
    def mean(self) -> Tensor:
        """Mean, shape (n_features,)."""
        return self.log_weights.exp() @ self.means

    @property
    def covariance(self) -> Tensor:
        """Covariance of the whole, shape (n_features, n_features)."""
        weights = self.log_weights.exp()
        spread = torch.einsum("k,kde,ke,kfe->df", weights, self.basis, self.variances, self.basis)
        offset = self.means - self.mean
        return spread + torch.einsum("k,kd,ke->de", weights, offset, offset)

    def variance_range(self) -> tuple[float, float]:
        """Return a component's smallest variance and the largest one of the whole covariance.

        See `ContinuousReference.variance_range`.
        """
        return float(self.variances.min()), float(torch.linalg.eigvalsh(self.covariance).max())

    def extra_repr(self) -> str:
        """Return what `repr` shows.

        Returns
        -------
        str
            The sizes.
        """
        sizes = f"n_components={self.n_components}, n_features={self.n_features}"
        return f"{sizes}, n_wide={self.n_wide}" if self.n_wide else sizes

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        shapes = {"log_weights": "k", "means": "kd", "variances": "kd", "basis": "kdd"}
        check_buffers(self, shapes)
        checked_number_of_wide(self.n_wide, self.n_components)


class MixtureOfEachPoint(GaussianMixtureReference):
    """Denoiser of points with mixtures of their own, which have the covariances in common.

    Of what a reference has, only the denoiser and what it is made of are those of the points.
    """

    centers: Tensor
    log_weights_of_points: Tensor

    @classmethod
    def of_rows(
        cls, mixture: GaussianMixtureReference, rows: Array, log_weights: Tensor
    ) -> MixtureOfEachPoint:
        """Return the denoiser of columns of a mixture, given others.

        Parameters
        ----------
        mixture : GaussianMixtureReference
            The mixture.
        rows : ndarray of shape (n_points, n_columns)
            Values of the same given columns for each point, NaN in the others.
        log_weights : Tensor of shape (n_points, n_components)
            Logarithms of the components' weights, up to a number for each point.

        Returns
        -------
        MixtureOfEachPoint
            The denoiser.
        """
        others = np.flatnonzero(np.isnan(rows[0])).tolist()
        known = np.flatnonzero(~np.isnan(rows[0])).tolist()
        parts = normal_parts(mixture)
        means = torch.from_numpy(parts.conditional_means(rows)[:, :, others])
        covariances = parts.given(known, others, rows[0, known])[1]
        equal = torch.zeros(len(means), dtype=torch.float64)
        centered = mixture_of_parts(mixture, equal, np.zeros_like(means[:, 0]), covariances)
        made = cls.from_config(**centered.config())
        for name, buffer in centered.named_buffers():
            setattr(made, name, buffer)
        made.register_buffer("centers", (means @ centered.basis).permute(1, 2, 0))
        made.register_buffer("log_weights_of_points", log_weights.log_softmax(1))
        return made

    def _project(
        self, points: Tensor, signal: Tensor | None = None, axes: Tensor | None = None
    ) -> Tensor:
        factor = 1.0 if signal is None else signal[:, None, None]
        return super()._project(points, signal, axes) - factor * self.centers

    def _noisy_components(self, z: Tensor, logsnr: Tensor, axes: Tensor) -> tuple[Tensor, Tensor]:
        log_joint, whitened = super()._noisy_components(z, logsnr, axes)
        return log_joint + self.log_weights_of_points, whitened

    def density_and_noise(self, z: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-densities of noisy points and the predicted noise."""
        return self._density_and_noise(z, logsnr, self._axes(), self._back())


def product(first: Tensor, second: Tensor) -> Tensor:
    """Return a product, in the memory of the first factor unless gradients are asked for.

    To ask for memory takes longer than to multiply.
    """
    return first * second if first.requires_grad or second.requires_grad else first.mul_(second)


def normal_parts(mixture: GaussianMixtureReference) -> NormalParts:
    """Return the helper for marginals and conditionals of the components."""
    return NormalParts.of_tensors(mixture.means, mixture.variances, mixture.basis)


def mixture_given(
    mixture: GaussianMixtureReference,
    columns: Sequence[int],
    others: Sequence[int],
    values: Array,
    log_weights: Tensor,
) -> GaussianMixtureReference:
    """Return the components' distributions of other columns, given some, with other weights."""
    means, covariances = normal_parts(mixture).given(columns, others, values)
    return mixture_of_parts(mixture, log_weights, means, covariances)


def mixture_of_parts(
    mixture: GaussianMixtureReference, log_weights: Tensor, means: Array, covariances: Array
) -> GaussianMixtureReference:
    """Return a mixture of marginals or conditionals of components, no narrower than these.

    Weights, up to a factor, may be so small that only their logarithms are numbers.
    """
    floors = mixture.variances.detach().cpu().double().amin(1).tolist()
    symmetric = 0.5 * (covariances + np.swapaxes(covariances, 1, 2))
    raised = [floor_eigenvalues(c, floor) for c, floor in zip(symmetric, floors, strict=True)]
    found = GaussianMixtureReference(np.ones(len(means)), means, np.stack(raised), mixture.n_wide)
    found.log_weights = log_weights.detach().cpu().double().log_softmax(0)
    return found


def checked_number_of_wide(n_wide: int, n_components: int) -> int:
    """Return the number of wide components, or raise an error if there are not so many."""
    is_whole = isinstance(n_wide, Integral) and not isinstance(n_wide, bool)
    if not is_whole or not 0 <= n_wide < n_components:
        raise ValueError(
            f"n_wide must be an integer from 0 to {n_components - 1}, less than the number of "
            f"components, got {n_wide!r}."
        )
    return int(n_wide)


def joined_components(mixture: GaussianMixtureReference, variance: float) -> NDArray[np.intp]:
    """Return the mode of each component of a mixture that is smoothed by a variance."""

    def log_density(points: Tensor) -> Tensor:
        parts = points.split(ROWS_IN_A_PASS)
        return torch.cat(
            [mixture.component_log_prob(part, variance).logsumexp(1) for part in parts]
        )

    means = mixture.means
    first, second = np.triu_indices(len(means), 1)
    peaks = log_density(means)
    share = torch.linspace(0.0, 1.0, POINTS_BETWEEN_MODES + 2, dtype=means.dtype)[1:-1]
    between = torch.lerp(means[first, None], means[second, None], share[:, None])
    lowest = log_density(between.flatten(0, 1)).reshape(len(first), -1).amin(1)
    is_joined = (lowest > torch.minimum(peaks[first], peaks[second]) - math.log(VALLEY)).numpy()
    edges = (np.ones(is_joined.sum()), (first[is_joined], second[is_joined]))
    graph = coo_array(edges, shape=(len(means), len(means)))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.intp)


def as_mixture(reference: GaussianReference | GaussianMixtureReference) -> GaussianMixtureReference:
    """Return a normal distribution as a mixture, and a mixture as it is."""
    if isinstance(reference, GaussianMixtureReference):
        return reference
    return GaussianMixtureReference([1.0], reference.mean[None], reference.covariance[None])
