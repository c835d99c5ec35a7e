"""Mixtures of normal distributions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from sk_itdiffusion._immse.channel import noise_scale, signal_scale
from sk_itdiffusion._immse.roles import Roles
from sk_itdiffusion.references.base import Reference

__all__ = ["MixtureReference", "Question"]

Array = NDArray[np.float64]
LOG_2PI = math.log(2.0 * math.pi)
_MAX_QUESTIONS = 512


@dataclass(frozen=True)
class Question:
    """What a mixture knows of targets given other columns, for one pattern of roles.

    Attributes
    ----------
    target, given : Tensor of int
        Columns.
    mean : Tensor of shape (K, t)
        Means of the targets.
    basis, variances : Tensor of shape (K, t, t) and (K, t)
        Eigenvectors, in columns, and eigenvalues of the conditional covariances.
    given_mean, whiten, gain : Tensor of shape (K, g), (K, g, g) and (K, t, g)
        Means of the given columns, inverse Cholesky factors of their covariances, and regression
        coefficients of the targets on the whitened given columns.
    """

    target: Tensor
    given: Tensor
    mean: Tensor
    basis: Tensor
    variances: Tensor
    given_mean: Tensor
    whiten: Tensor
    gain: Tensor

    @classmethod
    def of(cls, means: Tensor, covariances: Tensor, roles: Roles) -> Question:
        """Return what components with these moments know."""
        target, given = (
            torch.from_numpy(np.flatnonzero(mask)) for mask in (roles.target, roles.given)
        )
        own = covariances[:, target[:, None], target]
        cross = covariances[:, target[:, None], given]
        factor = torch.linalg.cholesky(covariances[:, given[:, None], given])
        eye = torch.eye(len(given), dtype=own.dtype).expand_as(factor)
        whiten = torch.linalg.solve_triangular(factor, eye, upper=False)
        gain = cross @ whiten.mT
        variances, basis = torch.linalg.eigh(own - gain @ gain.mT)
        least = 1e-13 * own.diagonal(dim1=1, dim2=2).amax(1, keepdim=True)
        return cls(
            target,
            given,
            means[:, target],
            basis,
            torch.maximum(variances, least),
            means[:, given],
            whiten,
            gain,
        )

    def conditioned(self, x: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights given the given columns, (n, K), and rotated means (n, K, t).

        Without given columns both have n = 1.
        """
        if not len(self.given):
            mean = self.mean.to(x)
            return log_weights.to(x)[None], (mean[:, None] @ self.basis.to(x)).mT[None, ..., 0]
        rest = x[:, None, self.given] - self.given_mean.to(x)
        white = torch.einsum("kij,nkj->nki", self.whiten.to(x), rest)
        log_given = self.whiten.diagonal(dim1=1, dim2=2).log().sum(1) + log_weights
        weights = (log_given.to(x) - 0.5 * white.square().sum(2)).log_softmax(1)
        mean = self.mean.to(x) + torch.einsum("ktg,nkg->nkt", self.gain.to(x), white)
        return weights, torch.einsum("nkt,kts->nks", mean, self.basis.to(x))

    def rotated(self, x: Tensor) -> Tensor:
        """Return the targets in each component's basis, (n, K, t)."""
        n_components, n_targets, _ = self.basis.shape
        stacked = self.basis.to(x).permute(1, 0, 2).reshape(n_targets, -1)
        return (x[:, self.target] @ stacked).reshape(len(x), n_components, n_targets)

    def rotated_back(self, y: Tensor) -> Tensor:
        """Return the sum over components of rotated targets (n, K, t), shape (n, t)."""
        return y.flatten(1) @ self.basis.to(y).mT.flatten(0, 1)


class MixtureReference(Reference):
    """Mixture of normal distributions.

    Parameters
    ----------
    weights : array-like of shape (K,)
        Positive weights, scaled to sum to 1.
    means : array-like of shape (K, n_columns)
        Means.
    covariances : array-like of shape (K, n_columns, n_columns)
        Symmetric, positive definite covariances.
    """

    def __init__(self, weights: ArrayLike, means: ArrayLike, covariances: ArrayLike) -> None:
        self.weights, self.means, self.covariances = (
            torch.as_tensor(np.asarray(values, dtype=np.float64))
            for values in (weights, means, covariances)
        )
        self.n_columns = self.means.shape[1]
        self.log_weights = (self.weights / self.weights.sum()).log()
        self._questions: dict[tuple[bytes, bytes], Question] = {}

    @property
    def n_components(self) -> int:
        """Number of components."""
        return len(self.weights)

    @property
    def n_numbers(self) -> int:
        """Numbers that the evaluation of a point takes."""
        return self.means.numel()

    def question(self, roles: Roles) -> Question:
        """Return what is known of common roles, computed once."""
        if roles.key not in self._questions:
            if len(self._questions) >= _MAX_QUESTIONS:
                self._questions.clear()
            self._questions[roles.key] = Question.of(self.means, self.covariances, roles)
        return self._questions[roles.key]

    def log_prob(self, x: Tensor, roles: Roles) -> Tensor:
        """Return log q(x_T | x_G) of each row."""
        return by_pattern(self._log_prob, x, roles, x.new_zeros(len(x)))

    def denoise(self, z: Tensor, logsnr: Tensor, roles: Roles) -> Tensor:
        """Return E[eps | z] of the targets, zero elsewhere."""
        return by_pattern(self._denoise, z, roles, torch.zeros_like(z), logsnr)

    def _log_prob(self, x: Tensor, roles: Roles) -> Tensor:
        known = self.question(roles)
        weights, mean = known.conditioned(x, self.log_weights)
        variances = known.variances.to(x)
        squares = (known.rotated(x) - mean).square() / variances
        constants = variances.log().sum(1) + len(known.target) * LOG_2PI
        return (weights - 0.5 * (squares.sum(2) + constants)).logsumexp(1)

    def _denoise(self, z: Tensor, roles: Roles, logsnr: Tensor) -> Tensor:
        return self.noisy(z, roles, logsnr)[1]

    def noisy(self, z: Tensor, roles: Roles, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(z_T | x_G) of noisy points with common roles, and E[eps | z]."""
        known = self.question(roles)
        weights, mean = known.conditioned(z, self.log_weights)
        alpha, beta = (scale(logsnr)[:, None, None] for scale in (signal_scale, noise_scale))
        variances = alpha.square() * known.variances.to(z) + beta.square()
        rest = known.rotated(z) - alpha * mean
        white = rest / variances
        log_joint = weights - 0.5 * (rest * white + variances.log() + LOG_2PI).sum(2)
        log_prob = log_joint.logsumexp(1)
        posterior = (log_joint - log_prob[:, None]).exp()[..., None]
        found = torch.zeros_like(z)
        found[:, known.target] = beta[:, 0] * known.rotated_back(posterior * white)
        return log_prob, found

    def sample(self, x: Tensor, roles: Roles, rng: np.random.Generator) -> Tensor:
        """Return rows with targets drawn given the given columns."""

        def draw(rows: Tensor, common: Roles) -> Tensor:
            known = self.question(common)
            weights, mean = known.conditioned(rows, self.log_weights)
            shape = (len(rows), self.n_components)
            gumbel = torch.from_numpy(rng.gumbel(size=shape))
            chosen = (weights + gumbel).argmax(1)
            mean = mean.expand(len(rows), -1, -1)[torch.arange(len(rows)), chosen]
            noise = torch.from_numpy(rng.standard_normal(mean.shape))
            rotated = mean + known.variances[chosen].sqrt() * noise
            drawn = rows.clone()
            drawn[:, known.target] = torch.einsum("nts,ns->nt", known.basis[chosen], rotated)
            return drawn

        return by_pattern(draw, x, roles, x.clone())

    def variance_range(self) -> tuple[float, float]:
        """Return the least and the largest variance of a component along any direction."""
        variances = self.question(Roles.all_targets(self.n_columns)).variances
        return float(variances.min()), float(variances.max())

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and covariance of the whole mixture."""
        share = self.log_weights.exp()
        mean = share @ self.means
        apart = self.means - mean
        scatter = self.covariances + apart[:, :, None] * apart[:, None]
        return mean, torch.einsum("k,kij->ij", share, scatter)

    def state(self) -> dict[str, Any]:
        """Return the parameters."""
        names = ("weights", "means", "covariances")
        return {name: getattr(self, name).numpy() for name in names}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Return the mixture of these parameters."""
        return cls(**state)


def by_pattern(
    function: Callable[..., Tensor], points: Tensor, roles: Roles, out: Tensor, *others: Tensor
) -> Tensor:
    """Return what a function of common roles returns, for each pattern of roles."""
    for common, index in roles.patterns():
        if not common.target.any():
            continue
        if isinstance(index, slice):
            return function(points, common, *others)
        rows = torch.from_numpy(index)
        out[rows] = function(points[rows], common, *(other[rows] for other in others))
    return out
