r"""The kernel-density reference.

Normal kernels of one covariance around given points, and a Gaussian mixture for what lies far from
all of them:

.. math:: p(x) = (1 - \pi) \sum_i w_i\, N(x; x_i, \Sigma) + \pi\, q(x).

After the noise channel it is again of this kind, so the optimal denoiser is known; the posterior of
the kernels, :math:`r_i \propto w_i N(z; \sqrt{\sigma(a)} x_i, \sigma(a)\Sigma + \sigma(-a) I)`, is
what a layer of attention computes, with the noisy point as query and the points as keys and values.
The density of :math:`q` enters as one more key, whose weight is the posterior of the mixture.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sk_itdiffusion._first._immse.places import EVALUATIONS_IN_A_TILE
from sk_itdiffusion._first.channel import noise_scale, signal_scale
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import check_same
from sk_itdiffusion._first.references.base import Reference
from sk_itdiffusion._first.references.buffers import as_float_tensor, check_buffers, eigenbasis
from sk_itdiffusion._first.references.continuous import ContinuousReference
from sk_itdiffusion._first.references.gaussian import add_white_noise, floor_eigenvalues
from sk_itdiffusion._first.references.mixture import NUMBERS_IN_A_CACHE, GaussianMixtureReference
from sk_itdiffusion._first.references.normal_parts import NormalParts, one_by_one
from sk_itdiffusion._first.references.parts import (
    chosen_by,
    chosen_with_rest,
    log_sum,
    log_sum_given,
    log_sum_of_rows,
    rows_by_pattern,
)
from sk_itdiffusion._first.references.reference_mixture import ReferenceMixture

__all__ = ["KernelDensityReference"]

Array = NDArray[np.float64]

#: Largest posterior of all kernels together that are left out of an average.
_LEFT_OUT = 1e-6
#: So many kernels are averaged in single precision, unless points are as many standard deviations
#: from the middle of their tile.
_NEIGHBOURS_IN_SINGLE = 256
_REACH_IN_SINGLE = 30.0
_MIN_EXPONENT = -100.0
#: Logarithms of the odds of the background between which its weight, and one less it, are accurate
#: to eight digits; and a weight of a background that does not count.
_LEAST_LOG_ODDS, _MOST_LOG_ODDS = -600.0, 16.0
_NO_BACKGROUND = 1e-300
#: Pairs of a row and a kernel that are done together.
_NUMBERS_OF_PAIRS = 2**21


@stored()
class KernelDensityReference(ContinuousReference):
    """Normal kernels of one covariance around points, mixed with a Gaussian mixture.

    Parameters
    ----------
    points : array-like of shape (n_points, n_features)
        Centers of the kernels.
    covariance : array-like of shape (n_features, n_features)
        Covariance of each kernel; symmetric and positive definite.
    background : GaussianMixtureReference
        Mixture for what lies far from all points.
    background_weight : float
        Probability of the background, above 0 and below 1.
    weights : array-like of shape (n_points,) or None, default=None
        Positive weights of the points, scaled to sum to 1; None for equal ones.

    Raises
    ------
    ValueError
        If the shapes disagree, a value is not finite, a weight is not in its range, or the
        covariance is not positive definite.

    Examples
    --------
    >>> import torch
    >>> from sk_itdiffusion.references import GaussianMixtureReference, KernelDensityReference
    >>> normal = GaussianMixtureReference([1.0], [[0.0]], [[[1.0]]])
    >>> density = KernelDensityReference([[-1.0], [1.0]], [[1.0]], normal, 0.5)
    >>> round(density.log_prob(torch.zeros(1, 1, dtype=torch.float64)).item(), 4)
    -1.1380
    """

    points: Tensor
    log_weights: Tensor
    variances: Tensor
    basis: Tensor
    background_weight: Tensor

    def __init__(
        self,
        points: ArrayLike | Tensor,
        covariance: ArrayLike | Tensor,
        background: GaussianMixtureReference,
        background_weight: float | Tensor,
        weights: ArrayLike | Tensor | None = None,
    ) -> None:
        super().__init__()
        centers = as_float_tensor(points, 2, "points")
        matrix = as_float_tensor(covariance, 2, "covariance")
        n_points, n_features = centers.shape
        proportions = as_float_tensor(
            np.ones(n_points) if weights is None else weights, 1, "weights"
        )
        if len(proportions) != n_points or bool((proportions <= 0).any()):
            raise ValueError("weights must be positive, one for each row of points.")
        if matrix.shape != (n_features, n_features) or background.n_features != n_features:
            raise ValueError(
                f"covariance and background must have {n_features} features to match points, got "
                f"shape {tuple(matrix.shape)} and {background.n_features} features."
            )
        share = float(background_weight)
        if not 0.0 < share < 1.0:
            raise ValueError(f"background_weight must be above 0 and below 1, got {share}.")
        variances, basis = eigenbasis(matrix, "covariance")
        self.n_features = n_features
        self.background = copy.deepcopy(background)
        self.register_buffer("points", centers)
        self.register_buffer("log_weights", (proportions / proportions.sum()).log())
        self.register_buffer("variances", variances)
        self.register_buffer("basis", basis)
        self.register_buffer("background_weight", torch.tensor(share, dtype=torch.float64))

    @property
    def n_points(self) -> int:
        """Number of kernels."""
        return len(self.points)

    @property
    def covariance(self) -> Tensor:
        """Covariance of each kernel, shape (n_features, n_features)."""
        return (self.basis * self.variances) @ self.basis.T

    @property
    def n_intermediate(self) -> int:
        """Numbers that one evaluation makes; see `Reference.n_intermediate`."""
        return max(self.n_points, self.n_fused)

    @property
    def n_fused(self) -> int:
        """Numbers besides attention that holds none of all points; see `Reference.n_fused`."""
        return max(2 * self.n_features, self.background.n_intermediate)

    @property
    def looks_at_tiles(self) -> bool:
        """True, since kernels far from a tile are left out; see `Reference.looks_at_tiles`."""
        return True

    @property
    def shared_background(self) -> GaussianMixtureReference:
        """The mixture between the kernels; see `Reference.shared_background`."""
        return self.background

    def log_prob(self, x: Tensor, added_variance: float = 0.0) -> Tensor:
        """Return the log-density of points, also after independent normal noise.

        Parameters
        ----------
        x : Tensor of shape (B, d)
            Points.
        added_variance : float, default=0.0
            Variance of the noise, at least 0.

        Returns
        -------
        Tensor of shape (B,)
            Log-densities in nats.
        """
        size = 2 * max(1, NUMBERS_IN_A_CACHE // (4 * self.n_points))
        kernels = torch.cat(
            [self.kernel_log_prob(part, added_variance).logsumexp(1) for part in x.split(size)]
        )
        elsewhere = self.background.component_log_prob(x, added_variance).logsumexp(1)
        share = self.background_weight
        return torch.logaddexp((-share).log1p() + kernels, share.log() + elsewhere)

    def kernel_log_prob(self, x: Tensor, added_variance: float = 0.0) -> Tensor:
        """Return the logarithms of the weighted densities of the kernels.

        Parameters
        ----------
        x : Tensor of shape (B, d)
            Points.
        added_variance : float, default=0.0
            Variance of independent normal noise by which the kernels are smoothed, at least 0.

        Returns
        -------
        Tensor of shape (B, n_points)
            Logarithm of weight times density, in nats; the weights sum to 1.
        """
        spread = self.variances + added_variance
        axes = self.basis / spread.sqrt()
        # Differences are taken before squares: kernels may be narrow, and points far away.
        distance = torch.cdist(
            x @ axes, self.points @ axes, compute_mode="donot_use_mm_for_euclid_dist"
        )
        constant = spread.log().sum() + self.n_features * math.log(2 * math.pi)
        log_joint: Tensor = self.log_weights - 0.5 * (distance.square() + constant)
        return log_joint

    def marginal(self, columns: Sequence[int]) -> KernelDensityReference:
        """Return the kernels of some columns; see `Reference.marginal`."""
        kept = self._checked_parts(columns)
        if len(kept) == self.n_features:
            return self
        points = self.points.detach().cpu().double().numpy()
        covariance = self._double_covariance()[np.ix_(kept, kept)]
        background, share = self.background.marginal(kept), float(self.background_weight)
        return self._of_parts(self.log_weights, points[:, kept], covariance, background, share)

    def given(self, columns: Sequence[int], values: ArrayLike) -> Reference:
        """Return shifted kernels of the other columns; see `Reference.given`.

        They have the weights of how near they are to what is given.  Where kernels are so much less
        likely than the background, or it than they, that the background's weight is not a number
        that tells, it is a mixture of both.
        """
        known, others, numbers = self._checked_given(columns, values)
        if not known:
            return self
        of_given = self.marginal(known)
        row = torch.from_numpy(numbers)[None]
        log_weights = of_given.kernel_log_prob(row)[0]
        background = self.background.given(known, numbers)
        share = self.background_weight.detach().cpu().double()
        odds = of_given.background.log_prob(row)[0] - log_weights.logsumexp(0) + share.logit()
        precision = np.linalg.inv(self._double_covariance())
        covariance = np.linalg.inv(precision[np.ix_(others, others)])
        slope = covariance @ precision[np.ix_(others, known)]
        points = self.points.detach().cpu().double().numpy()
        centers = points[:, others] - (numbers - points[:, known]) @ slope.T
        is_number = _LEAST_LOG_ODDS < odds < _MOST_LOG_ODDS
        weight = float(odds.sigmoid()) if is_number else _NO_BACKGROUND
        kernels = self._of_parts(log_weights, centers, covariance, background, weight)
        if is_number:
            return kernels
        sides = torch.stack([-odds, odds]).numpy()
        return ReferenceMixture.of_log_weights(-np.logaddexp(0.0, -sides), [kernels, background])

    def _of_parts(
        self,
        log_weights: Tensor,
        points: Array,
        covariance: Array,
        background: GaussianMixtureReference,
        share: float,
    ) -> KernelDensityReference:
        """Return as many kernels, no narrower, with weights that may be tiny."""
        symmetric = 0.5 * (covariance + covariance.T)
        raised = floor_eigenvalues(symmetric, float(self.variances.min()))
        found = KernelDensityReference(points, raised, background, share)
        found.log_weights = log_weights.detach().cpu().double().log_softmax(0)
        return found

    def _double_covariance(self) -> Array:
        """Return the covariance of each kernel in double precision."""
        basis, variances = (
            part.detach().cpu().double().numpy() for part in (self.basis, self.variances)
        )
        return np.asarray((basis * variances) @ basis.T)

    def _log_joint_of_parts(
        self, rows: Array, given: NDArray[np.bool_]
    ) -> Iterator[tuple[NDArray[np.intp], Array, Array]]:
        """Return numbers of rows, and what the kernels tell of them, twice (n, n_points).

        It is the logarithm of weight times density of what is given, and the log-density of the
        other observed entries given this.
        """
        log_weights = self.log_weights.detach().cpu().double().numpy()
        patterns, place = rows_by_pattern(np.hstack([np.isnan(rows), given]))
        size = max(1, _NUMBERS_OF_PAIRS // self.n_points)
        for number, pattern in enumerate(patterns):
            missing, mask = np.split(pattern, 2)
            known, others = np.flatnonzero(mask), np.flatnonzero(~missing & ~mask)
            here = np.flatnonzero(place == number)
            for part in (here[i : i + size] for i in range(0, len(here), size)):
                of_given = self._log_densities_of_kernels(rows[part], known, known[:0])
                of_others = self._log_densities_of_kernels(rows[part], others, known)
                yield part, log_weights + of_given, of_others

    def _log_densities_of_kernels(
        self, rows: Array, columns: NDArray[np.intp], known: NDArray[np.intp]
    ) -> Array:
        """Return log-densities of columns under the kernels, given other columns, (n, n_points)."""
        if not len(columns):
            return np.zeros((len(rows), self.n_points))
        points = self.points.detach().cpu().double().numpy()
        covariance = self._double_covariance()
        across = covariance[np.ix_(columns, known)]
        slope = np.linalg.solve(covariance[np.ix_(known, known)], across.T).T
        root = np.linalg.cholesky(covariance[np.ix_(columns, columns)] - slope @ across.T)
        axes = np.linalg.inv(root)
        axes = np.hstack([axes, -axes @ slope])
        both = np.concatenate([columns, known])
        own = one_by_one(axes[None], rows[:, both].T[None])[0].T
        squares = cdist(own, points[:, both] @ axes.T, "sqeuclidean")
        constant = 2.0 * np.log(np.diag(root)).sum() + len(columns) * math.log(2.0 * math.pi)
        return np.asarray(-0.5 * (squares + constant))

    def _log_odds_of_parts(self, rows: Array, log_kernels: Array) -> Array:
        """Return logarithms of shares of kernels and background times their densities, (2, n)."""
        share = float(self.background_weight)
        elsewhere = self.background.observed_log_prob(torch.from_numpy(rows)).numpy()
        return np.stack([math.log1p(-share) + log_kernels, math.log(share) + elsewhere])

    def _log_prob_of_parts(self, rows: Array) -> Array:
        """Return the log-densities of the observed entries of rows."""
        log_kernels = np.empty(len(rows))
        for part, log_joint, _ in self._log_joint_of_parts(rows, ~np.isnan(rows)):
            log_kernels[part] = log_sum_of_rows(log_joint)
        return log_sum(self._log_odds_of_parts(rows, log_kernels))

    def _log_prob_given(self, rows: Array, given: NDArray[np.bool_]) -> tuple[Array, Array]:
        """Return log-densities of given entries of rows, and of the others given these."""
        of_given, of_others = (np.empty((2, len(rows))) for _ in range(2))
        of_given[1], of_others[1] = self.background._log_prob_given(rows, given)
        for part, log_joint, log_others in self._log_joint_of_parts(rows, given):
            # As in `log_sum_given`.
            log_share = log_joint - log_joint.max(axis=1, keepdims=True)
            log_sum_of_shares = log_sum_of_rows(log_share)
            of_given[0, part] = log_sum_of_rows(log_joint)
            of_others[0, part] = log_sum_of_rows(log_share + log_others) - log_sum_of_shares
        share = float(self.background_weight)
        log_shares = np.array([[math.log1p(-share)], [math.log(share)]])
        return log_sum_given(of_given + log_shares, of_others)

    def _completed(self, rows: Array, uniform: Array) -> Array:
        """Return rows with draws instead of missing entries."""
        found = rows.copy()
        points = self.points.detach().cpu().double().numpy()
        zero = torch.zeros(1, self.n_features)
        kernel = NormalParts.of_tensors(zero, self.variances[None], self.basis[None])
        for part, log_joint, _ in self._log_joint_of_parts(rows, ~np.isnan(rows)):
            own, numbers = rows[part], uniform[part].copy()
            log_kernels = log_sum(log_joint.T)
            odds = self._log_odds_of_parts(own, log_kernels)
            is_elsewhere, numbers[:, 1] = chosen_with_rest(numbers[:, 1], odds)
            chosen = points[chosen_by(numbers[:, 1], log_joint.T)]
            zeros = np.zeros(len(part), dtype=np.intp)
            drawn = kernel.drawn(own - chosen, zeros, numbers[:, 2:]) + chosen
            other = self.background.complete(torch.from_numpy(own), torch.from_numpy(numbers))
            drawn = np.where(is_elsewhere[:, None] == 1, other.numpy(), drawn)
            found[part] = np.where(np.isnan(own), drawn, own)
        return found

    def denoise(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the predicted noise; see `Reference.denoise`.

        See `denoise_with_background`.
        """
        return self.denoise_with_background(z, logsnr)[0]

    def denoise_with_background(self, z: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """Return the predicted noise, and what the background alone predicts.

        On a CPU it is calculated from the kernels near the noisy points of a tile of a batch, of
        which those of one row are near each other.  The others' posterior is less than 1e-6.

        Parameters
        ----------
        z : Tensor of shape (B, d)
            Noisy observations.
        logsnr : Tensor of shape (B,)
            Their log signal-to-noise ratios.

        Returns
        -------
        noise, of_background : Tensor of shape (B, d)
            Conditional means of the noise given ``z``.
        """
        signal, noise = signal_scale(logsnr)[:, None], noise_scale(logsnr)[:, None]
        elsewhere, from_background = self.background.density_and_noise(z, logsnr)
        rotated = z @ self.basis
        spread = signal.square() * self.variances + noise.square()
        # Densities relative to a kernel's height.
        height = -0.5 * (spread.log() + math.log(2 * math.pi)).sum(1)
        other = self.background_weight.logit() + elsewhere - height
        if z.device.type == "cpu" and not (torch.is_grad_enabled() and z.requires_grad):
            average = self._average_of_neighbours
        else:
            average = self._average_of_all
        mean, posterior = average(rotated, signal, spread, other)
        from_kernels = noise * mean / spread
        predicted: Tensor = from_kernels @ self.basis.T + posterior * from_background
        return predicted, from_background

    def _average_of_all(
        self, rotated: Tensor, signal: Tensor, spread: Tensor, other: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return residuals averaged over the kernels, in the eigenbasis, and what is left.

        Parameters
        ----------
        rotated : Tensor of shape (B, d)
            Noisy points.
        signal : Tensor of shape (B, 1)
            Factors of the centers.
        spread : Tensor of shape (B, d)
            Variances of the kernels.
        other : Tensor of shape (B,)
            Logit of the background, to which a kernel's is the log-density relative to its height.

        Returns
        -------
        residual : Tensor of shape (B, d)
            Sums of posterior times noisy point less signal times center.
        posterior : Tensor of shape (B, 1)
            Posterior of the background.
        """
        # The kernels' log-densities without what they have in common for a noisy point.
        other = other + 0.5 * (rotated.square() / spread).sum(1)
        query = [signal * rotated / spread, -0.5 * signal.square() / spread, other[:, None]]
        found = self._attend(torch.cat(query, dim=1))
        mean, posterior = found.split([self.n_features, 1], dim=1)
        return (1.0 - posterior) * rotated - signal * mean, posterior

    def _average_of_neighbours(
        self, rotated: Tensor, signal: Tensor, spread: Tensor, other: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what `_average_of_all` does, from the kernels near each tile of the batch."""
        size = len(rotated)
        if size == 0:
            return rotated, other[:, None]
        missing = -size % EVALUATIONS_IN_A_TILE
        parts = (rotated, signal, spread, other[:, None])
        tiled = [
            torch.cat([part, part[-1:].expand(missing, -1)]).unflatten(
                0, (-1, EVALUATIONS_IN_A_TILE)
            )
            for part in parts
        ]
        centers = self.points @ self.basis
        # The rows of a table are the means of their noisy points, near enough.
        middle = (tiled[0] / tiled[1]).mean(1)
        n_tiles = max(1, NUMBERS_IN_A_CACHE // self.n_points)
        pieces = zip(*(part.split(n_tiles) for part in (middle, *tiled)), strict=True)
        known = [self._neighbours(centers, *piece) for piece in pieces]
        is_near, is_precise = (torch.cat(parts) for parts in zip(*known, strict=True))
        n_near, of_all = is_near.sum(1), centers.mean(0)
        is_every = n_near == self.n_points
        middle = torch.where(is_every[:, None], of_all, middle)
        # Relative to the middle differences of near points hardly cancel.
        shifted = tiled[0] - tiled[1] * middle[:, None]
        of_squares, of_offsets = -0.5 * tiled[1].square() / tiled[2], tiled[1] * shifted / tiled[2]
        queries = torch.cat([of_squares, torch.ones_like(tiled[1]), of_offsets], dim=2)
        queries /= math.log(2.0)

        @functools.cache
        def table_of_all(precision: torch.dtype) -> Tensor:
            return _quadratic_table((centers - of_all).to(precision), self.log_weights)

        # Used again and again, since new memory may take as long as what is done in it.
        memory = torch.empty(
            EVALUATIONS_IN_A_TILE * (0 if bool(is_precise.all()) else self.n_points),
            dtype=torch.float32,
        )
        near = is_near.nonzero()[:, 1].split(n_near.tolist())
        found = []
        for query, center, chosen, every, precise in zip(
            queries, middle, near, is_every.tolist(), is_precise.tolist(), strict=True
        ):
            precision = rotated.dtype if precise else torch.float32
            if every:
                table = table_of_all(precision)
            else:
                offsets = (centers[chosen] - center).to(precision)
                table = _quadratic_table(offsets, self.log_weights[chosen])
            found.append(_average(table, query.to(precision), memory))
        mean, log_mass = (torch.stack(parts).to(rotated) for parts in zip(*found, strict=True))
        own = (shifted.square() / tiled[2]).sum(2, keepdim=True)
        odds = log_mass - 0.5 * own - tiled[3]
        residual = odds.sigmoid() * (shifted - tiled[1] * mean)
        return residual.flatten(0, 1)[:size], (-odds).sigmoid().flatten(0, 1)[:size]

    def _neighbours(
        self,
        centers: Tensor,
        middle: Tensor,
        rotated: Tensor,
        signal: Tensor,
        spread: Tensor,
        other: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return which kernels are near each tile, (n_tiles, n_points), and where rounding counts.

        A kernel is left out if it is so far from the middle of a tile that all kernels that far
        would have a posterior of less than `_LEFT_OUT` at every point of the tile, even if there
        were nothing but the background and the kernel next to the middle.
        """
        # Distances in the widest metric of a tile are the least.
        scale = (spread / signal.square()).amax(1).reciprocal()
        keys = torch.cat([centers.square(), centers], dim=1)
        constant = (scale * middle.square()).sum(1, keepdim=True)
        distance = torch.cat([scale, -2.0 * scale * middle], dim=1) @ keys.T + constant
        nearest = distance.argmin(1)
        away = (rotated - signal * centers[nearest][:, None]).square() / spread
        known = torch.logaddexp(
            other[:, :, 0], self.log_weights[nearest][:, None] - 0.5 * away.sum(2)
        )
        from_middle = (rotated / signal - middle[:, None]).square() * scale[:, None]
        reach = from_middle.sum(2).sqrt()
        beyond = (2.0 * (-math.log(_LEFT_OUT) - known).clamp_min(0.0)).sqrt()
        # The rounding error of a distance.
        slack = 1e4 * torch.finfo(distance.dtype).eps * constant
        is_far = distance > (reach + beyond).amax(1, keepdim=True).square() + slack
        is_far[torch.arange(len(middle)), nearest] = False
        # So written that all are near where numbers overflow.
        is_near = ~is_far
        is_single = (is_near.sum(1) >= _NEIGHBOURS_IN_SINGLE) & (reach.amax(1) <= _REACH_IN_SINGLE)
        return is_near, ~is_single

    def _attend(self, query: Tensor) -> Tensor:
        """Return the posterior mean of points, in the eigenbasis, and the background's posterior.

        The background's logit is the last entry of a query; its value is zero with a flag.
        """
        centers = self.points @ self.basis
        n_features, width = self.n_features, 2 * self.n_features + 2
        keys = query.new_zeros(self.n_points + 1, width)
        keys[:-1, :n_features] = centers
        keys[:-1, n_features:-2] = centers.square()
        keys[-1, -2] = 1.0
        keys[:-1, -1] = self.log_weights
        values = query.new_zeros(self.n_points + 1, width)
        values[:-1, :n_features] = centers
        values[-1, n_features] = 1.0
        query = torch.cat([query, query.new_ones(len(query), 1)], dim=1)
        attended = scaled_dot_product_attention(
            query[None, None], keys[None, None], values[None, None], scale=1.0
        )
        found: Tensor = attended[0, 0, :, : n_features + 1]
        return found

    def smoothed_log_prob(self, rows: Tensor, eps: Tensor, logsnr: float) -> Tensor:
        """Return the log-density of noisy rows; see `Reference.smoothed_log_prob`."""
        if math.isinf(logsnr):
            return self.log_prob(rows)
        return self.log_prob(*add_white_noise(rows, eps, logsnr))

    def noise_moments(self, rows: Tensor, eps: Tensor, logsnr: float) -> tuple[Tensor, Tensor]:
        """Return moments of the noise, given noisy rows; see `Reference.noise_moments`."""
        noisy, variance = add_white_noise(rows, eps, logsnr)
        spread = self.variances + variance
        shrink = math.sqrt(variance) * (self.basis / spread) @ self.basis.T
        kernels = self.kernel_log_prob(noisy, variance)
        behind = self.background.component_log_prob(noisy, variance)
        odds = behind.logsumexp(1) - kernels.logsumexp(1) + self.background_weight.logit()
        share, posterior = odds.sigmoid()[:, None], kernels.softmax(1)
        # Relative to a point in their middle, so that far ones do not cancel.
        middle = self.points.mean(0)
        centers = (self.points - middle) @ shrink
        first, second = posterior @ centers, posterior @ centers.square()
        mean = (noisy - middle) @ shrink - first
        own = self.basis.square() @ (self.variances / spread)
        square = mean.square() + (second - first.square()) + own
        other = self.background.component_moments(noisy, variance, behind.softmax(1))
        return torch.lerp(mean, other[0], share), torch.lerp(square, other[1], share)

    def sample(self, n_samples: int, random_state: np.random.RandomState) -> NDArray[np.float64]:
        """Return random points; see `Reference.sample`."""
        is_background = random_state.uniform(size=n_samples) < float(self.background_weight)
        weights = self.log_weights.exp().cpu().numpy()
        chosen = random_state.choice(len(weights), size=n_samples, p=weights / weights.sum())
        white = random_state.standard_normal((n_samples, self.n_features))
        root = (self.basis * self.variances.sqrt()).cpu().numpy()
        near = self.points.cpu().numpy()[chosen] + white @ root.T
        elsewhere = self.background.sample(n_samples, random_state)
        return np.where(is_background[:, None], elsewhere, near)

    def standardized(self, center: ArrayLike, scale: ArrayLike) -> KernelDensityReference:
        """Return the distribution of ``(x - center) / scale``.

        See `ContinuousReference.standardized`.
        """
        shift, width = np.asarray(center, dtype=np.float64), np.asarray(scale, dtype=np.float64)
        return KernelDensityReference(
            (self.points.cpu().numpy() - shift) / width,
            self.covariance.cpu().numpy() / np.outer(width, width),
            self.background.standardized(center, scale),
            self.background_weight,
            self.log_weights.exp(),
        )

    def without_wide_components(self) -> KernelDensityReference:
        """Return the density without them in the background.

        See `Reference.without_wide_components`.
        """
        background = self.background.without_wide_components()
        if background is self.background:
            return self
        kept = copy.deepcopy(self)
        kept.background = background
        share, left = self.background_weight, 1.0 - self.background.share_of_wide
        kept.background_weight = share * left / (1.0 - share + share * left)
        return kept

    def variance_range(self) -> tuple[float, float]:
        """Return the kernels' or a component's smallest variance, and the largest one of all.

        See `ContinuousReference.variance_range`.
        """
        least, _ = self.background.variance_range()
        weights, share = self.log_weights.exp(), self.background_weight
        mean, elsewhere = weights @ self.points, self.background.mean
        offset, apart = self.points - mean, (elsewhere - mean)[:, None]
        kernels = self.covariance + (weights[:, None] * offset).T @ offset
        total = (1.0 - share) * kernels + share * self.background.covariance
        total = total + share * (1.0 - share) * apart @ apart.T
        return min(least, float(self.variances.min())), float(torch.linalg.eigvalsh(total).max())

    def extra_repr(self) -> str:
        """Return what `repr` shows.

        Returns
        -------
        str
            The sizes.
        """
        return (
            f"n_points={self.n_points}, n_features={self.n_features}, "
            f"background_weight={float(self.background_weight):.3g}"
        )

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        shapes = {"points": "nd", "log_weights": "n", "variances": "d", "basis": "dd"}
        check_buffers(self, shapes | {"background_weight": ""})
        check_same(self.background.n_features, self.n_features, "the features differ")
        if not self.background_weight < 1.0:
            raise ValueError("the weight of the background is 1 or more")


def _quadratic_table(offsets: Tensor, log_weights: Tensor) -> Tensor:
    """Return squares of offsets (n, d), logarithms of weights, offsets and ones, side by side."""
    weights = log_weights[:, None].to(offsets.dtype)
    return torch.cat([offsets.square(), weights, offsets, torch.ones_like(weights)], dim=1)


def _average(table: Tensor, query: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Return averages of offsets, weighted by the exponentials of quadratic functions of them.

    Parameters
    ----------
    table : Tensor of shape (n, 2 * d + 2)
        What `_quadratic_table` returns.
    query : Tensor of shape (m, 2 * d + 1)
        Factors of all columns of the table but the last in the binary logarithms of what offsets
        are weighted by.
    memory : Tensor
        Numbers that are overwritten, if they are n * m or more, of the table's precision.

    Returns
    -------
    mean : Tensor of shape (m, d), float64
        The averages.
    log_mass : Tensor of shape (m, 1), float64
        Logarithms of the sums of the weights.
    """
    n_numbers, place = len(query) * len(table), None
    if memory.dtype == table.dtype and len(memory) >= n_numbers:
        place = memory[:n_numbers].view(len(query), len(table))
    relative = torch.mm(query, table[:, :-1].T, out=place)
    top = relative.amax(1, keepdim=True)
    # Powers of two are faster than exponentials, unless they are too small to be normal numbers.
    relative.sub_(top).clamp_min_(_MIN_EXPONENT).exp2_()
    first = table.shape[1] // 2
    sums = (table[:, first:].T @ relative.T).T.double()
    mean, mass = sums[:, :-1], sums[:, -1:]
    return mean / mass, mass.log() + math.log(2.0) * top.double()
