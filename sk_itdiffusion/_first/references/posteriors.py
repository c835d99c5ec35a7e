r"""Posteriors of the categories of a group of variables, given noisy points.

A `DensePosterior` holds the log-probability of each level.  For long lattices, such as pixels of
256 categories, that is a few hundred numbers for each number of a batch; a `StreamedPosterior`
passes over the categories in slices and keeps sums only.  With the log-posterior a polynomial
:math:`\sum_j c_j t^j` of the category :math:`t` alongside fixed terms, the derivatives of the
logarithm of the normaliser and of the mean are moments,

.. math:: \frac{\partial \log Z}{\partial c_j} = E[t^j], \qquad
    \frac{\partial E[t]}{\partial c_j} = E[t^{j+1}] - E[t]\, E[t^j],

so that the backward pass needs no second pass over the categories.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sk_itdiffusion._first.layout import LatticeGroup, OneHotGroup

__all__ = ["DensePosterior", "LevelPosterior", "StreamedPosterior", "is_long", "scaled_categories"]

#: Categories of a lattice up to which posteriors are held category by category.
MAX_DENSE_CATEGORIES = 32
#: Categories in one slice.
SLICE = 16
#: Degree of the polynomials.
DEGREE = 3


def is_long(group: LatticeGroup | OneHotGroup) -> bool:
    """Return whether the group's posteriors are streamed where they can be."""
    return isinstance(group, LatticeGroup) and group.n_categories > MAX_DENSE_CATEGORIES


def scaled_categories(group: LatticeGroup) -> Tensor:
    """Return the categories scaled to [-1, 1], shape (m, K); padded ones are at 1."""
    top = group.allowed.sum(1, keepdim=True) - 1
    categories = torch.arange(group.n_categories, device=top.device)
    return categories.clamp(max=top).to(group.values.dtype) / top * 2.0 - 1.0


@dataclass(frozen=True)
class DensePosterior:
    """Log-probabilities of all categories.

    Attributes
    ----------
    group : LatticeGroup or OneHotGroup
        The variables.
    log_p : Tensor of shape (B, m, K)
        Log-probabilities; minus infinity (or a very negative number) for padded categories.
    """

    group: LatticeGroup | OneHotGroup
    log_p: Tensor

    def mean(self) -> Tensor:
        """Return the mean point, (B, n_points)."""
        return self.group.mean(self.log_p.exp())

    def mean_less(self, other: LevelPosterior) -> Tensor:
        """Return the difference of two mean points, (B, n_points), without cancellation."""
        return self.group.mean(self.log_p.exp() - other.dense().exp())

    def log_probability(self, codes: Tensor) -> Tensor:
        """Return the log-probabilities of codes (B, m), up to a constant in the categories."""
        return self.log_p.gather(2, codes[:, :, None])[:, :, 0]

    def dense(self) -> Tensor:
        """Return the log-probabilities of all categories, (B, m, K)."""
        return self.log_p


@dataclass(frozen=True)
class StreamedPosterior:
    """Posterior of a long lattice under independent priors, changed by a polynomial.

    Attributes
    ----------
    group : LatticeGroup
        The variables.
    log_prior : Tensor of shape (m, K)
        Log-probabilities before anything is seen.
    z : Tensor of shape (B, m)
        Noisy points.
    logsnr : Tensor of shape (B,)
        Their log-SNRs.
    coefficients : Tensor of shape (B, m, 3)
        Coefficients of the polynomial in the category scaled to [-1, 1].
    """

    group: LatticeGroup
    log_prior: Tensor
    z: Tensor
    logsnr: Tensor
    coefficients: Tensor

    @classmethod
    def unchanged(
        cls, group: LatticeGroup, log_prior: Tensor, z: Tensor, logsnr: Tensor
    ) -> StreamedPosterior:
        """Return the posterior without a polynomial."""
        return cls(group, log_prior, z, logsnr, z.new_zeros(*z.shape, DEGREE))

    def changed(self, coefficients: Tensor) -> StreamedPosterior:
        """Return the posterior with another polynomial, (B, m, 3)."""
        return StreamedPosterior(self.group, self.log_prior, self.z, self.logsnr, coefficients)

    def logits(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Return unnormalised log-probabilities and scaled categories of a slice of them."""
        t = scaled_categories(self.group).to(self.z)[:, first:last]
        values = self.group.values[:, first:last]
        noise = self.group.standardized(self.z, self.logsnr, values)
        c1, c2, c3 = self.coefficients[:, :, None, :].unbind(3)
        return self.log_prior[:, first:last] - 0.5 * noise.square() + t * (
            c1 + t * (c2 + t * c3)
        ), t

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Return log of the normaliser and the mean of the scaled category, both (B, m)."""
        log_z, mean = _StreamedMoments.apply(self.coefficients, self)  # type: ignore[no-untyped-call]
        return log_z, mean

    def mean(self) -> Tensor:
        """Return the mean point, (B, m)."""
        bottom, top = self.ends()
        return 0.5 * (bottom + top) + 0.5 * (top - bottom) * self.moments[1]

    def ends(self) -> tuple[Tensor, Tensor]:
        """Return the points of the first and the last category of each variable."""
        # Padded categories are at the last point.
        return self.group.values[:, 0], self.group.values[:, -1]

    def mean_less(self, other: LevelPosterior) -> Tensor:
        """Return the difference of two mean points, (B, m)."""
        return self.mean() - other.mean()

    def log_probability(self, codes: Tensor) -> Tensor:
        """Return the log-probabilities of codes (B, m), up to a constant in the categories.

        The constant is what the prior and the channel contribute at the code.
        """
        t = scaled_categories(self.group).to(self.z).gather(1, codes.T).T
        c1, c2, c3 = self.coefficients.unbind(2)
        return t * (c1 + t * (c2 + t * c3)) - self.moments[0]

    def dense(self) -> Tensor:
        """Return the log-probabilities of all categories, (B, m, K)."""
        return self.logits(0, self.group.n_categories)[0].log_softmax(2)


LevelPosterior = DensePosterior | StreamedPosterior


class _StreamedMoments(torch.autograd.Function):
    """Logarithm of the normaliser and mean of the scaled category, by one pass over slices."""

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, posterior: StreamedPosterior) -> tuple[Tensor, ...]:
        """Return log Z and E[t], both (B, m)."""
        highest = torch.full_like(posterior.z, -torch.inf)
        sums = [torch.zeros_like(posterior.z) for _ in range(DEGREE + 2)]
        for first in range(0, posterior.group.n_categories, SLICE):
            logits, t = posterior.logits(first, first + SLICE)
            above = torch.maximum(highest, logits.amax(2))
            rescale = (highest - above).exp()
            weight = (logits - above[:, :, None]).exp()
            for power in range(DEGREE + 2):
                sums[power] = sums[power] * rescale + weight.sum(2)
                weight = weight * t
            highest = above
        moments = [total / sums[0] for total in sums[1:]]
        ctx.save_for_backward(*moments)
        return highest + sums[0].log(), moments[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient with respect to the coefficients."""
        for_log_z, for_mean = gradients
        moments = ctx.saved_tensors
        parts = [
            for_log_z * moments[j] + for_mean * (moments[j + 1] - moments[0] * moments[j])
            for j in range(DEGREE)
        ]
        return torch.stack(parts, dim=2), None
