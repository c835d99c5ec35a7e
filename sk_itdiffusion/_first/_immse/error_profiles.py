"""Squared errors of denoisers over the log-SNR, and the weights that make the least of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor

from sk_itdiffusion._first._immse.cubature import Keys, NoiseRule, spawn_keys, sums_over_sources
from sk_itdiffusion._first._immse.likelihood import Denoiser, _tensor
from sk_itdiffusion._first._runtime.memory import retry_with_less_memory
from sk_itdiffusion._first._runtime.parallel import map_in_workers
from sk_itdiffusion._first._runtime.progress import current_progress
from sk_itdiffusion._first.channel import add_noise

__all__ = ["ErrorProfile", "error_profile", "products_of_residuals", "stacking_weights"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ErrorProfile:
    """Products of the experts' residuals on some rows, at each node of the log-SNR.

    Attributes
    ----------
    names : sequence of str
        The experts.
    logsnr : ndarray of shape (n_nodes,)
        Nodes.
    gram : ndarray of shape (n_nodes, n_samples, n_experts, n_experts)
        Products of residuals, averaged over the noise, for each row.
    row_weight : ndarray of shape (n_samples,)
        Weights of the rows; they sum to 1.
    n_observations : float or None
        How many independent observations the rows stand for, if weights are counts of them; None
        if each row is one observation.
    source : ndarray of shape (n_samples,) or None
        Keys that rows share which are copies of one observation.
    """

    names: Sequence[str]
    logsnr: Array
    gram: Array
    row_weight: Array
    n_observations: float | None = None
    source: Keys | None = None

    @property
    def mean_gram(self) -> Array:
        """Weighted mean over rows, shape (n_nodes, n_experts, n_experts)."""
        return np.asarray(np.einsum("n,knef->kef", self.row_weight, self.gram))

    def row_errors(self, weights: Array) -> Array:
        """Return the squared error of a stack, (n_nodes, n_samples); weights (n_nodes, E)."""
        return np.asarray(np.einsum("ke,knef,kf->kn", weights, self.gram, weights))

    def vertex(self, name: str) -> Array:
        """Return the weights that are 1 for one expert everywhere."""
        weights = np.zeros((len(self.logsnr), len(self.names)))
        weights[:, list(self.names).index(name)] = 1.0
        return weights

    def spread(self, names: Sequence[str], weights: Array) -> Array:
        """Return weights (n_nodes, m) of some experts as weights of all, 0 for the others."""
        spread = np.zeros((len(self.logsnr), len(self.names)))
        spread[:, [list(self.names).index(name) for name in names]] = weights
        return spread

    def standard_error(self, rows: Array) -> Array:
        """Return the standard error of the weighted mean over rows, along the last axis."""
        deviation = rows - (rows @ self.row_weight)[..., None]
        if self.source is not None:
            sums = sums_over_sources(deviation * self.row_weight, self.source)
            return np.asarray(np.sqrt((sums**2).sum(axis=-1)))
        if self.n_observations is not None:
            return np.asarray(np.sqrt((deviation**2) @ self.row_weight / self.n_observations))
        return np.asarray(np.sqrt((deviation**2) @ self.row_weight**2))

    def integral(self, rows: Array) -> Array:
        """Return half the trapezoidal integral over the log-SNR, for each row."""
        return np.asarray(0.5 * np.trapezoid(rows, self.logsnr, axis=0))


@retry_with_less_memory
def error_profile(
    X: Array,
    row_weight: Array,
    keys: Keys,
    experts: Mapping[str, Denoiser],
    logsnr: Array,
    noise: NoiseRule,
    *,
    budget: int = 4096,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> ErrorProfile:
    """Return the products of the experts' residuals on rows, at given nodes.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Rows, in the space of the denoisers.
    row_weight : ndarray of shape (n_samples,)
        Non-negative weights.
    keys : ndarray of shape (n_samples,), uint64
        Keys of the rows' noise.
    experts : mapping of str to callable
        Denoisers.
    logsnr : ndarray of shape (n_nodes,)
        Nodes.
    noise : NoiseRule
        Rule without the origin, whose coefficients are positive.
    budget, device, dtype
        See `information_gap`.

    Returns
    -------
    ErrorProfile
        The products.
    """
    n_samples, n_experts = len(X), len(experts)
    n_rows = max(1, budget // noise.n_evaluations)

    def gram_at(node: int) -> Array:
        gram = np.empty((n_samples, n_experts, n_experts))
        for start in range(0, n_samples, n_rows):
            rows = slice(start, min(start + n_rows, n_samples))
            drawn = noise.draw(spawn_keys(keys[rows], 1, first=node).ravel())
            level = np.full(len(drawn[0]), logsnr[node])
            gram[rows] = products_of_residuals(X[rows], level, drawn, experts, device, dtype)
        return gram

    grams = map_in_workers(gram_at, range(len(logsnr)), device, current_progress())
    return ErrorProfile(tuple(experts), logsnr, np.stack(grams), row_weight / row_weight.sum())


def products_of_residuals(
    X: Array,
    logsnr: Array,
    drawn: tuple[Array, Array],
    experts: Mapping[str, Denoiser],
    device: torch.device | str,
    dtype: torch.dtype,
) -> Array:
    """Return the products of the experts' residuals, averaged over the noise.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Points.
    logsnr : ndarray of shape (n,)
        Log-SNR of each.
    drawn : tuple of ndarray of shape (n, m, d) and (n, m)
        Noise and its coefficients.
    experts : mapping of str to callable
        Denoisers.
    device, dtype
        See `information_gap`.

    Returns
    -------
    ndarray of shape (n, n_experts, n_experts)
        The products.
    """
    eps, coefficient = drawn
    shape = eps.shape
    x = np.broadcast_to(X[:, None, :], shape)
    noisy = _tensor(eps.reshape(-1, shape[-1]), device, dtype)
    level = _tensor(np.repeat(logsnr, shape[1]), device, dtype)
    z = add_noise(_tensor(x.reshape(-1, shape[-1]), device, dtype), noisy, level)
    residuals = stacked_residuals(noisy, z, level, experts).reshape(len(experts), *shape)
    factor = _tensor(coefficient, device, dtype)
    products = torch.einsum("enmd,fnmd,nm->nef", residuals, residuals, factor)
    return np.asarray(products.cpu().numpy())


@torch.no_grad()
def stacked_residuals(
    eps: Tensor, z: Tensor, logsnr: Tensor, experts: Mapping[str, Denoiser]
) -> Tensor:
    """Return the experts' errors in the noise, shape (n_experts, B, d)."""
    return torch.stack([eps - expert(z, logsnr) for expert in experts.values()])


def stacking_weights(profile: ErrorProfile) -> Array:
    """Return the weights on the simplex of smallest squared error at each node.

    Parameters
    ----------
    profile : ErrorProfile
        Products of the residuals on validation rows.

    Returns
    -------
    ndarray of shape (n_nodes, n_experts)
        Non-negative weights; rows sum to 1.
    """
    return _least_errors_on_simplex(profile.mean_gram)


def _least_errors_on_simplex(grams: Array) -> Array:
    """Minimise each w' G w over the simplex, by non-negative least squares with a heavy last row.

    Parameters
    ----------
    grams : ndarray of shape (n, n_experts, n_experts)
        Products of residuals.

    Returns
    -------
    ndarray of shape (n, n_experts)
        The weights.
    """
    n_experts = grams.shape[1]
    values, vectors = np.linalg.eigh((grams + np.swapaxes(grams, 1, 2)) / 2)
    roots = np.swapaxes(vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :], 1, 2)
    heavy = 1e3 * np.maximum(np.sqrt(np.maximum(values[:, -1], 0.0)), 1e-12)
    last_rows = np.broadcast_to(heavy[:, None, None], (len(grams), 1, n_experts))
    designs = np.concatenate([roots, last_rows], axis=1)
    target = np.zeros(n_experts + 1)
    weights = np.empty((len(grams), n_experts))
    for found, design, end in zip(weights, designs, heavy, strict=True):
        target[-1] = end
        found[:] = nnls(design, target)[0]
    weights /= weights.sum(axis=1, keepdims=True)
    # Never worse than the best single expert, whatever the rounding of the solver.
    of_singles = np.diagonal(grams, axis1=1, axis2=2)
    is_worse = np.einsum("ne,nef,nf->n", weights, grams, weights) > of_singles.min(axis=1)
    weights[is_worse] = np.eye(n_experts)[of_singles.argmin(axis=1)[is_worse]]
    return weights
