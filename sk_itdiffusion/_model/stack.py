r"""Weights of the experts at each log-SNR, and the rule that scores integrate with.

For a fixed log-SNR any mixture of denoisers is a denoiser.  The weights on the simplex minimise
:math:`w' G(a) w`, with G the products of the experts' residuals on rows that no expert has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor

from sk_itdiffusion._immse.channel import as_tensor, noised
from sk_itdiffusion._immse.integral import Pair, spread_over_targets
from sk_itdiffusion._immse.noise import NoiseRule
from sk_itdiffusion._immse.roles import Roles

__all__ = ["Denoiser", "Profile", "Stack", "residual_profile"]

Array = NDArray[np.float64]
Keys = NDArray[np.uint64]
Denoiser = Callable[[Tensor, Tensor, Roles], Tensor]


@dataclass(frozen=True)
class Profile:
    """Products of the experts' residuals at nodes of the log-SNR.

    Attributes
    ----------
    names : tuple of str
        Names of the experts.
    nodes : ndarray of shape (n_nodes,)
        Log-SNRs.
    gram : ndarray of shape (n_nodes, n_rows, n_experts, n_experts)
        Products for each row, means over its noise.
    weight : ndarray of shape (n_rows,)
        Weights of the rows, which sum to 1.
    """

    names: tuple[str, ...]
    nodes: Array
    gram: Array
    weight: Array

    def of(self, names: tuple[str, ...]) -> Profile:
        """Return the profile of some of the experts."""
        index = [self.names.index(name) for name in names]
        return Profile(names, self.nodes, self.gram[:, :, index][..., index], self.weight)

    def best_weights(self, rows: Array | None = None) -> Array:
        """Return the weights of least error at each node, (n_nodes, n_experts)."""
        weight = self.weight if rows is None else self.weight * rows
        mean = np.einsum("r,nref->nef", weight / weight.sum(), self.gram)
        return np.array([least_on_simplex(each) for each in mean])

    def row_errors(self, weights: Array) -> Array:
        """Return the errors of rows under weights at each node, (n_nodes, n_rows)."""
        return np.asarray(np.einsum("ne,nref,nf->nr", weights, self.gram, weights))

    def gain_over(self, name: str, weights: Array, rows: Array | None = None) -> Array:
        """Return half the integral by which each row's error is less than that of an expert."""
        number = self.names.index(name)
        difference = self.gram[..., number, number] - self.row_errors(weights)
        return np.asarray(0.5 * np.trapezoid(difference, self.nodes, axis=0))

    def cross_fitted_gain(self, name: str) -> Array:
        """Return the gain of rows under the weights of the other half of the rows."""
        half = np.arange(len(self.weight)) % 2
        gains = [self.gain_over(name, self.best_weights(half != part)) for part in (0, 1)]
        return np.where(half == 0, gains[0], gains[1])


def least_on_simplex(gram: Array) -> Array:
    """Return the weights of least ``w' gram w`` among those that sum to one."""
    scale = np.trace(gram) / len(gram)
    if not scale > 0.0:
        return np.full(len(gram), 1.0 / len(gram))
    values, vectors = np.linalg.eigh(gram / scale)
    root = np.sqrt(np.maximum(values, 1e-12))[:, None] * vectors.T
    # A heavy row enforces the sum; what rounding leaves is scaled away.
    found, _ = nnls(
        np.vstack([root, 1e4 * np.ones(len(gram))]), np.append(np.zeros(len(gram)), 1e4)
    )
    return np.asarray(found / found.sum())


@torch.no_grad()
def residual_profile(
    x: Array,
    keys: Keys,
    experts: Mapping[str, Denoiser],
    nodes: Array,
    roles: Roles,
    weight: Array,
    seed: int,
    n_draws: int = 1,
    chunk: int = 4096,
) -> Profile:
    """Return the profile of experts on points with common roles.

    Parameters
    ----------
    x : ndarray of shape (n, d)
        Points.
    keys : ndarray of shape (n,), uint64
        Keys of the noise.
    experts : mapping of str to callable
        Denoisers.
    nodes : ndarray of shape (n_nodes,)
        Log-SNRs.
    roles : Roles
        Common roles.
    weight : ndarray of shape (n,)
        Weights of the rows.
    seed : int
        Seed of the directions of the noise.
    n_draws : int, default=1
        Draws for each row and node.
    chunk : int, default=4096
        Evaluations in one pass.

    Returns
    -------
    Profile
        The profile.
    """
    rule = NoiseRule(int(roles.target.sum()), seed)
    n_draws = n_draws * len(nodes)
    size = max(1, chunk // (n_draws * rule.n_evaluations))
    parts = []
    for begin in range(0, len(x), size):
        part = slice(begin, begin + size)
        eps, coefficient = rule.draws(keys[part], n_draws)
        noise = as_tensor(spread_over_targets(eps.reshape(-1, rule.n_features), roles))
        repeated = np.repeat(np.nan_to_num(x[part]), n_draws * rule.n_evaluations, axis=0)
        # Consecutive draws are those of consecutive nodes, so that each node has all directions.
        order = np.repeat(np.tile(np.arange(len(nodes)), n_draws // len(nodes)), rule.n_evaluations)
        level = as_tensor(np.tile(nodes[order], len(eps)))
        z = noised(as_tensor(repeated), noise, level, roles)
        residuals = torch.stack([noise - each(z, level, roles) for each in experts.values()], 1)
        products = (residuals @ residuals.mT).numpy() * coefficient.reshape(-1, 1, 1)
        shape = (len(eps), -1, len(nodes), rule.n_evaluations, len(experts), len(experts))
        parts.append(products.reshape(shape).sum(axis=3).mean(axis=1))
    gram = np.concatenate(parts).swapaxes(0, 1)
    return Profile(tuple(experts), nodes, gram, weight / weight.sum())


@dataclass(frozen=True)
class Stack:
    """Weights of experts that are piecewise linear in the log-SNR, and the control variate.

    Attributes
    ----------
    names : tuple of str
        Experts.
    control : str
        The expert whose log-density is known, from which the integral starts.
    nodes : ndarray of shape (n_nodes,)
        Log-SNRs.
    weights : ndarray of shape (n_nodes, n_experts)
        Weights, which sum to 1.
    """

    names: tuple[str, ...]
    control: str
    nodes: Array
    weights: Array

    @classmethod
    def alone(cls, name: str) -> Stack:
        """Return the stack of one expert."""
        return cls((name,), name, np.array([-1.0, 1.0]), np.ones((2, 1)))

    @property
    def is_exact(self) -> bool:
        """Whether the control variate has all the weight, so that there is nothing to integrate."""
        others = [number for number, name in enumerate(self.names) if name != self.control]
        return not self.weights[:, others].any()

    def pair(self, experts: Mapping[str, Denoiser]) -> Pair:
        """Return a function that predicts with the control variate, and the stack minus it."""
        nodes, weights = as_tensor(self.nodes), as_tensor(self.weights)

        def predict(z: Tensor, logsnr: Tensor, roles: Roles) -> tuple[Tensor, Tensor]:
            upper = torch.searchsorted(nodes, logsnr).clamp(1, len(nodes) - 1)
            share = ((logsnr - nodes[upper - 1]) / (nodes[upper] - nodes[upper - 1])).clamp(
                0.0, 1.0
            )
            own = torch.lerp(weights[upper - 1], weights[upper], share[:, None])
            baseline = experts[self.control](z, logsnr, roles)
            correction = torch.zeros_like(baseline)
            for number, name in enumerate(self.names):
                used = torch.nonzero(own[:, number])[:, 0]
                if name == self.control or not len(used):
                    continue
                found = experts[name](z[used], logsnr[used], roles.take(used.numpy()))
                correction[used] += own[used, number, None] * (found - baseline[used])
            return baseline, correction

        return predict
