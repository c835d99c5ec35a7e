r"""Moments of the noise, given noisy points, under the analytic references.

They tell how a smoothed log-density changes with the log-SNR along a path of fixed noise,
:math:`z_a = x + e^{-a/2} \epsilon`: with the heat equation, and with
:math:`\nabla \log p_a(z) = -e^{a/2} E[\epsilon \mid z]`,

.. math:: \frac{d}{da} \log p_a(z_a) = \frac12 \sum_j \left( 1
    + \epsilon_j E[\epsilon_j \mid z_a] - E[\epsilon_j^2 \mid z_a] \right).

Averaged over the noise, the term of a coordinate is :math:`\frac12 E[1 - (\epsilon_j -
E[\epsilon_j \mid z_a])^2]`, the relation of Kong et al. (2023); without the average it is exact for
each path.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sk_itdiffusion.channel import noise_scale, signal_scale
from sk_itdiffusion.layout import ONE_HOT_LENGTH, LatticeBlock, OneHotBlock
from sk_itdiffusion.references import (
    GaussianMixtureReference,
    GaussianReference,
    IndependentReference,
    KernelDensityReference,
    LatentClassReference,
    LowRankGaussianReference,
    Reference,
)

__all__ = ["noise_moments"]


def noise_moments(
    reference: Reference, rows: Tensor, eps: Tensor, logsnr: float
) -> tuple[Tensor, Tensor]:
    """Return the mean of the noise and that of its square, given rows plus noise.

    Parameters
    ----------
    reference : Reference
        Normal distribution, mixture of them, kernels, independent columns or latent classes.
    rows : Tensor of shape (B, n_columns)
        Rows; codes in discrete columns.
    eps : Tensor of shape (B, d)
        Noise of the points of the rows.
    logsnr : float
        Finite log-SNR of the noise.

    Returns
    -------
    mean, square : Tensor of shape (B, d)
        The two moments of each coordinate.

    Raises
    ------
    TypeError
        If the moments under the reference are not known in closed form.
    """
    if isinstance(reference, IndependentReference | LatentClassReference):
        return _with_levels(reference, rows, eps, logsnr)
    variance = math.exp(-logsnr)
    noisy = rows + math.sqrt(variance) * eps
    if isinstance(reference, GaussianReference):
        return _of_normal(reference, noisy, variance)
    if isinstance(reference, LowRankGaussianReference):
        return _of_low_rank(reference, noisy, variance)
    if isinstance(reference, GaussianMixtureReference):
        posterior = reference.component_log_prob(noisy, variance).softmax(1)
        return _of_components(reference, noisy, variance, posterior)
    if isinstance(reference, KernelDensityReference):
        return _of_kernels(reference, noisy, variance)
    raise TypeError(f"Moments of the noise under {type(reference).__name__} are not known.")


def _of_normal(
    reference: GaussianReference, noisy: Tensor, variance: float
) -> tuple[Tensor, Tensor]:
    spread = reference.variances + variance
    whitened = (noisy - reference.mean) @ reference.basis / spread
    mean = math.sqrt(variance) * whitened @ reference.basis.T
    return mean, mean.square() + reference.basis.square() @ (reference.variances / spread)


def _of_low_rank(
    reference: LowRankGaussianReference, noisy: Tensor, variance: float
) -> tuple[Tensor, Tensor]:
    spread, outside = reference.variances + variance, reference.residual + variance
    residual = noisy - reference.mean
    along = residual @ reference.basis * (1.0 / spread - 1.0 / outside)
    mean = math.sqrt(variance) * (residual / outside + along @ reference.basis.T)
    kept = reference.residual / outside
    own = kept + reference.basis.square() @ (reference.variances / spread - kept)
    return mean, mean.square() + own


def _of_components(
    mixture: GaussianMixtureReference, noisy: Tensor, variance: float, posterior: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the moments under components of given probabilities (B, K)."""
    predicted = mixture.component_noise(noisy, variance)
    kept = mixture.variances / (mixture.variances + variance)
    own = torch.einsum("kde,ke->kd", mixture.basis.square(), kept)
    weight = posterior[:, None, :]
    mean = torch.bmm(weight, predicted)[:, 0]
    return mean, torch.bmm(weight, predicted.square() + own)[:, 0]


def _of_kernels(
    density: KernelDensityReference, noisy: Tensor, variance: float
) -> tuple[Tensor, Tensor]:
    spread = density.variances + variance
    shrink = math.sqrt(variance) * (density.basis / spread) @ density.basis.T
    kernels = density.kernel_log_prob(noisy, variance)
    behind = density.background.component_log_prob(noisy, variance)
    odds = behind.logsumexp(1) - kernels.logsumexp(1) + density.background_weight.logit()
    share, posterior = odds.sigmoid()[:, None], kernels.softmax(1)
    # Relative to a point in their middle, so that far ones do not cancel.
    middle = density.points.mean(0)
    centers = (density.points - middle) @ shrink
    first, second = posterior @ centers, posterior @ centers.square()
    mean = (noisy - middle) @ shrink - first
    own = density.basis.square() @ (density.variances / spread)
    square = mean.square() + (second - first.square()) + own
    other = _of_components(density.background, noisy, variance, behind.softmax(1))
    return torch.lerp(mean, other[0], share), torch.lerp(square, other[1], share)


def _with_levels(
    reference: IndependentReference | LatentClassReference,
    rows: Tensor,
    eps: Tensor,
    logsnr: float,
) -> tuple[Tensor, Tensor]:
    layout, n_continuous = reference.layout, reference.n_continuous
    level = torch.full((len(rows),), logsnr, dtype=rows.dtype, device=rows.device)
    points = layout.embed(rows)
    z = signal_scale(level)[:, None] * points + noise_scale(level)[:, None] * eps
    found = []
    if isinstance(reference, LatentClassReference) and reference.continuous is not None:
        variance = math.exp(-logsnr)
        noisy = rows[:, :n_continuous] + math.sqrt(variance) * eps[:, :n_continuous]
        posterior = reference.class_log_joint(z, level).softmax(1)
        found.append(_of_components(reference.continuous, noisy, variance, posterior))
    elif reference.continuous is not None:
        part, noise = rows[:, :n_continuous], eps[:, :n_continuous]
        found.append(noise_moments(reference.continuous, part, noise, logsnr))
    for block, log_p in zip(layout.blocks, reference.log_posterior(z, level), strict=True):
        part, noise = points[:, block.coordinates], eps[:, block.coordinates]
        found.append(_of_levels(block, log_p.exp(), part, noise, math.exp(0.5 * logsnr)))
    means, squares = zip(*found, strict=True)
    return torch.cat(means, dim=1), torch.cat(squares, dim=1)


def _of_levels(
    block: LatticeBlock | OneHotBlock, probability: Tensor, points: Tensor, eps: Tensor, root: float
) -> tuple[Tensor, Tensor]:
    """Return the moments under levels of given probabilities (B, m, K); root is that of the SNR."""
    if isinstance(block, LatticeBlock):
        leading = eps[:, :, None] + root * (points[:, :, None] - block.values)
        return (probability * leading).sum(2), (probability * leading.square()).sum(2)
    here = block.flat(probability)
    there, elsewhere = eps + root * (points - ONE_HOT_LENGTH), eps + root * points
    mean = torch.lerp(elsewhere, there, here)
    return mean, torch.lerp(elsewhere.square(), there.square(), here)
