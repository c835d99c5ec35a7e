r"""Kernels around training rows, for values and rows that nearly come again.

Normal kernels of one covariance around points :math:`x_i`, and a mixture q for what lies far from
all of them: :math:`p(x) = (1 - \pi) \sum_i w_i N(x; x_i, \Sigma) + \pi q(x)`.  Behind the noise
channel, and given some of the columns, it is again of this kind.  All distances are matrix products
in the eigenbasis of the conditional covariance.

The covariance and :math:`\pi` are those of maximum likelihood of rows that are left out, with all
rows of their unit, by expectation-maximisation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from sk_itdiffusion._immse.channel import noise_scale, signal_scale
from sk_itdiffusion._immse.roles import Roles
from sk_itdiffusion.references.base import Reference
from sk_itdiffusion.references.mixture import LOG_2PI, MixtureReference, Question, by_pattern

__all__ = ["KernelReference", "fit_kernels"]

Array = NDArray[np.float64]
#: Pairs of a point and a kernel in one pass, and kernels at most.
_PAIRS, MAX_KERNELS = 2**21, 10_000
#: Rows that are left out in the fit, and bandwidths relative to Scott's rule to begin with.
_ROWS_TO_FIT, _STARTS = 500, (1.0, 0.3, 0.1, 0.03, 0.01)
_MAX_STEPS, _LEAST_GAIN = 20, 0.005


@dataclass(frozen=True)
class _Centers:
    """The kernels for one pattern of roles: rotated centers, (n, t), and whitened given columns."""

    question: Question
    centers: Tensor
    given: Tensor


class KernelReference(Reference):
    """Normal kernels of one covariance around points, mixed with a mixture.

    Parameters
    ----------
    points : array-like of shape (n, n_columns)
        Centers of the kernels.
    weights : array-like of shape (n,)
        Positive weights of the kernels, scaled to sum to 1.
    covariance : array-like of shape (n_columns, n_columns)
        Covariance of each kernel.
    background : MixtureReference
        Mixture for what lies far from all points.
    share : float
        Probability of the background, between 0 and 1.
    """

    def __init__(
        self,
        points: ArrayLike,
        weights: ArrayLike,
        covariance: ArrayLike,
        background: MixtureReference,
        share: float,
    ) -> None:
        self.points, self.weights, self.covariance = (
            torch.as_tensor(np.asarray(values, dtype=np.float64))
            for values in (points, weights, covariance)
        )
        self.background, self.share = background, share
        self.n_columns = self.points.shape[1]
        self._log_weights = (self.weights / self.weights.sum()).log() + math.log1p(-share)
        self._known: dict[tuple[bytes, bytes], _Centers] = {}

    @property
    def n_numbers(self) -> int:
        """Numbers that the evaluation of a point takes."""
        return 3 * len(self.points) + self.background.n_numbers

    def _centers(self, roles: Roles) -> _Centers:
        if roles.key not in self._known:
            zero = torch.zeros(1, self.n_columns, dtype=torch.float64)
            question = Question.of(zero, self.covariance[None], roles)
            white = self.points[:, question.given] @ question.whiten[0].mT
            rest = self.points[:, question.target] - white @ question.gain[0].mT
            self._known[roles.key] = _Centers(question, rest @ question.basis[0], white)
        return self._known[roles.key]

    def log_prob(self, x: Tensor, roles: Roles) -> Tensor:
        """Return log q(x_T | x_G) of each row."""
        infinite = torch.full((len(x),), math.inf, dtype=x.dtype)
        return by_pattern(self._log_prob, x, roles, x.new_zeros(len(x)), infinite)

    def denoise(self, z: Tensor, logsnr: Tensor, roles: Roles) -> Tensor:
        """Return E[eps | z] of the targets, zero elsewhere."""
        return by_pattern(self._denoise, z, roles, torch.zeros_like(z), logsnr)

    def _log_prob(self, x: Tensor, roles: Roles, logsnr: Tensor) -> Tensor:
        return self._noisy(x, roles, logsnr)[0]

    def _denoise(self, z: Tensor, roles: Roles, logsnr: Tensor) -> Tensor:
        return self._noisy(z, roles, logsnr)[1]

    def _noisy(self, z: Tensor, roles: Roles, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        size = max(1, _PAIRS // len(self.points))
        parts = [
            self._noisy_part(z[i : i + size], roles, logsnr[i : i + size])
            for i in range(0, max(len(z), 1), size)
        ]
        log_prob, eps = zip(*parts, strict=True)
        return torch.cat(log_prob), torch.cat(eps)

    def _given(self, z: Tensor, known: _Centers, roles: Roles) -> tuple[Tensor, Tensor, Tensor]:
        """Return what given columns make of the kernels.

        That is the logarithms of the weights of kernels (n, m), what is added to their centers
        (n, t), and the logarithm of the weight of the background (n,), not normalised.
        """
        question = known.question
        log_given = math.log(self.share) + z.new_zeros(len(z))
        if not len(question.given):
            log_weights = self._log_weights.expand(len(z), -1)
            return log_weights, z.new_zeros(len(z), len(question.target)), log_given
        white = z[:, question.given] @ question.whiten[0].mT
        squares = white.square().sum(1)[:, None] + known.given.square().sum(1)
        squares = (squares - 2.0 * white @ known.given.T).clamp_min(0.0)
        constant = question.whiten[0].diagonal().log().sum() - 0.5 * LOG_2PI * white.shape[1]
        log_weights = self._log_weights + constant - 0.5 * squares
        marginal = Roles(roles.given, np.zeros_like(roles.given))
        log_given = log_given + self.background.log_prob(z, marginal)
        return log_weights, white @ question.gain[0].mT, log_given

    def _noisy_part(self, z: Tensor, roles: Roles, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        known = self._centers(roles)
        question, centers = known.question, known.centers
        alpha, beta = (scale(logsnr)[:, None] for scale in (signal_scale, noise_scale))
        log_weights, base, log_given = self._given(z, known, roles)
        own = z[:, question.target] - alpha * base
        rest = own @ question.basis[0]
        variances = alpha.square() * question.variances + beta.square()
        scaled = alpha * rest / variances
        log_joint = log_weights + scaled @ centers.T
        log_joint -= 0.5 * (alpha.square() / variances) @ centers.square().T
        constant = rest.square() / variances + variances.log() + LOG_2PI
        log_joint -= 0.5 * constant.sum(1, keepdim=True)
        of_background, eps = self.background.noisy(z, roles, logsnr)
        log_joint = torch.cat([log_joint, (log_given + of_background)[:, None]], 1)
        log_prob = log_joint.logsumexp(1)
        posterior = log_joint.sub_(log_prob[:, None]).exp_()
        of_kernels, of_background = posterior[:, :-1], posterior[:, -1:]
        white = (
            of_kernels.sum(1, keepdim=True) * rest - alpha * (of_kernels @ centers)
        ) / variances
        found = of_background * eps
        found[:, question.target] += beta * (white @ question.basis[0].mT)
        if len(question.given):
            everything = [log_weights.logsumexp(1), log_given]
            log_prob = log_prob - torch.stack(everything).logsumexp(0)
        return log_prob, found

    def sample(self, x: Tensor, roles: Roles, rng: np.random.Generator) -> Tensor:
        """Return rows with targets drawn given the given columns."""

        def draw(rows: Tensor, common: Roles) -> Tensor:
            known = self._centers(common)
            question = known.question
            log_weights, base, log_given = self._given(rows, known, common)
            joint = torch.cat([log_weights, log_given[:, None]], 1)
            chosen = (joint + torch.from_numpy(rng.gumbel(size=joint.shape))).argmax(1)
            drawn = self.background.sample(rows, common, rng)
            own = torch.nonzero(chosen < len(self.points))[:, 0]
            noise = torch.from_numpy(rng.standard_normal((len(own), len(question.target))))
            rotated = known.centers[chosen[own]] + question.variances.sqrt() * noise
            drawn[own[:, None], question.target] = base[own] + rotated @ question.basis[0].mT
            return drawn

        return by_pattern(draw, x, roles, x.clone())

    def variance_range(self) -> tuple[float, float]:
        """Return the least and the largest variance of a component along any direction."""
        low, high = self.background.variance_range()
        return min(low, float(torch.linalg.eigvalsh(self.covariance).min())), high

    def state(self) -> dict[str, Any]:
        """Return the parameters."""
        arrays = {name: getattr(self, name).numpy() for name in ("points", "weights", "covariance")}
        return {**arrays, "background": self.background.state(), "share": self.share}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Return the kernels of a state."""
        background = MixtureReference.from_state(state["background"])
        return cls(**{**state, "background": background})


def fit_kernels(
    points: Array,
    weight: Array,
    unit: NDArray[np.intp],
    background: MixtureReference,
    floor: float,
    seed: int,
) -> tuple[Array, float]:
    """Return covariance and background share of maximum leave-one-out likelihood.

    Parameters
    ----------
    points : ndarray of shape (n, d)
        Complete points.
    weight : ndarray of shape (n,)
        Weights.
    unit : ndarray of shape (n,), int
        Rows of one unit are left out together.
    background : MixtureReference
        Mixture for what lies far from all points.
    floor : float
        Added to the variances.
    seed : int
        Seed of the choice of rows that are left out.

    Returns
    -------
    covariance : ndarray of shape (d, d)
        Covariance of a kernel; diagonal if there are few rows.
    share : float
        Probability of the background.
    """
    n, d = points.shape
    n_wanted = 3 * d * (d + 1) // 2
    few = np.random.default_rng(seed).permutation(n)[: max(_ROWS_TO_FIT, n_wanted)]
    left = _LeftOut(points, weight, unit, few, background, n_wanted <= n, floor)
    scott = n ** (-2.0 / (d + 4)) * np.atleast_2d(np.cov(points.T, aweights=weight, ddof=0))
    starts = [(left.restricted(fineness**2 * scott), 0.5) for fineness in _STARTS]
    steps = [left.step(*start) for start in starts]
    number = int(np.argmax([step[0] for step in steps]))
    best, (reached, covariance, share) = starts[number], steps[number]
    for _ in range(_MAX_STEPS):
        gained, next_covariance, next_share = left.step(covariance, share)
        if gained < reached + _LEAST_GAIN:
            break
        best, reached = (covariance, share), gained
        covariance, share = next_covariance, next_share
    return best


class _LeftOut:
    """Expectation-maximisation on rows without the kernels of their own unit."""

    def __init__(
        self,
        points: Array,
        weight: Array,
        unit: NDArray[np.intp],
        few: NDArray[np.intp],
        background: MixtureReference,
        is_full: bool,
        floor: float,
    ) -> None:
        self.points, self.few = torch.from_numpy(points), torch.from_numpy(points[few])
        self.own_weight = torch.from_numpy(weight[few] / weight[few].sum())
        same = torch.from_numpy(unit[few][:, None] == unit)
        log_weight = torch.from_numpy(weight).log()
        left = torch.where(same, -math.inf, log_weight.expand(len(few), -1))
        self.log_weight = left - left.logsumexp(1, keepdim=True)
        roles = Roles.all_targets(points.shape[1])
        self.elsewhere = background.log_prob(self.few, roles)
        self.is_full, self.floor = is_full, floor

    def restricted(self, covariance: Array) -> Array:
        """Return a covariance with a floor, diagonal if rows are few."""
        kept = covariance if self.is_full else np.diag(np.diag(covariance))
        values, vectors = np.linalg.eigh(0.5 * (kept + kept.T))
        return np.asarray((vectors * (np.maximum(values, 0.0) + self.floor)) @ vectors.T)

    def step(self, covariance: Array, share: float) -> tuple[float, Array, float]:
        """Return the mean log-likelihood before a step, and covariance and share after it."""
        factor = torch.linalg.cholesky(torch.from_numpy(covariance))
        white, centers = (
            torch.linalg.solve_triangular(factor, each.T, upper=False).T
            for each in (self.few, self.points)
        )
        squares = white.square().sum(1)[:, None] + centers.square().sum(1) - 2 * white @ centers.T
        constant = factor.diagonal().log().sum() + 0.5 * LOG_2PI * factor.shape[0]
        log_joint = self.log_weight - 0.5 * squares.clamp_min(0.0) - constant + math.log1p(-share)
        total = torch.logaddexp(log_joint.logsumexp(1), self.elsewhere + math.log(share))
        posterior = (log_joint - total[:, None]).exp() * self.own_weight[:, None]
        of_rows, of_centers, mass = posterior.sum(1), posterior.sum(0), float(posterior.sum())
        cross = self.few.T @ posterior @ self.points
        scatter = (self.few.T * of_rows) @ self.few + (self.points.T * of_centers) @ self.points
        found = (scatter - cross - cross.T).numpy() / max(mass, 1e-12)
        share = float(np.clip(1.0 - mass, 1e-4, 1.0 - 1e-4))
        return float(self.own_weight @ total), self.restricted(found), share
