r"""Log-probabilities of discrete rows from noise paths of increasing signal-to-noise ratio.

Along a path :math:`y_\gamma = \gamma v_x + W_\gamma`, with W a Brownian motion, the increments
between given signal-to-noise ratios are scored under the model's current posterior of the
categories,

.. math:: \log \hat P(x) = \log E_{y \sim q(\cdot \mid x)} \prod_t \prod_i
    \frac{\sum_k p(x_i = k \mid y_t)\, N(\Delta_i;\, \Delta\gamma\, v_k, \Delta\gamma I)}
    {N(\Delta_i;\, \Delta\gamma\, v_{x_i}, \Delta\gamma I)} \; P(x \mid y_T).

The product is a probability of x and of the path, so that its mean over paths is an unbiased
estimate of a probability that sums to 1 over all rows, and the mean of its logarithm a variational
bound.  For independent columns each path gives the exact value.  This is not the variational bound
of Kong et al. 2023, whose transitions are normal.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor

from sk_itdiffusion._first._immse.cubature import Keys, NoiseRule, spawn_keys
from sk_itdiffusion._first._immse.places import SINGLE_APART, Places
from sk_itdiffusion._first._runtime.memory import retry_with_less_memory
from sk_itdiffusion._first._runtime.parallel import map_in_workers
from sk_itdiffusion._first._runtime.progress import current_progress
from sk_itdiffusion._first.channel import signal_scale
from sk_itdiffusion._first.layout import Layout

__all__ = ["PathRule", "path_log_probability"]

Array = NDArray[np.float64]
#: Returns log-posteriors of the categories for each group, (B, m, K).
Posterior = Callable[[Tensor, Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class PathRule:
    """Where paths are looked at, and how many there are for each row.

    Parameters
    ----------
    logsnr : ndarray of shape (n_steps,)
        Increasing log-SNRs.
    noise : NoiseRule
        Source of one noise vector for each step.
    n_paths : int
        Paths for each row, at least 1.
    """

    logsnr: Array
    noise: NoiseRule
    n_paths: int


@retry_with_less_memory
@torch.no_grad()
def path_log_probability(
    rows: Array,
    keys: Keys,
    layout: Layout,
    prior: Sequence[Tensor],
    posterior: Posterior,
    rule: PathRule,
    *,
    budget: int,
    device: torch.device | str,
    dtype: torch.dtype,
) -> tuple[Array, Array]:
    """Return log of the mean over paths, in nats, and its variance, for each row.

    Parameters
    ----------
    rows : ndarray of shape (n_samples, m)
        Codes of the categories.
    keys : ndarray of shape (n_samples,), uint64
        Keys of the rows' noise.
    layout : Layout
        Where the columns are.
    prior : sequence of Tensor of shape (m, K)
        Log-probabilities of the categories before anything is seen, for each group.
    posterior : callable
        Maps points ``z`` (B, d) and ``logsnr`` (B,) to log-posteriors for each group.
    rule : PathRule
        Log-SNRs and number of paths.
    budget : int
        Paths in one forward pass; every pass has one shape, with rows at places that are alike.
    device, dtype
        Where, and in which precision, to evaluate.

    Returns
    -------
    log_probability : ndarray of shape (n_samples,)
        Logarithm of the mean over the paths.
    variance : ndarray of shape (n_samples,)
        Its estimated variance; NaN with one path.
    """
    places = Places.within(budget, rule.n_paths, SINGLE_APART)
    n_rows = places.n_rows
    local = copy.deepcopy(layout).to(device=device, dtype=dtype)
    total, variance = np.empty(len(rows)), np.empty(len(rows))

    def score_chunk(start: int) -> None:
        stop = min(start + n_rows, len(rows))
        padding = n_rows - (stop - start)
        chunk_keys = np.pad(keys[start:stop], (0, padding))
        codes = np.pad(rows[start:stop], ((0, padding), (0, 0)))
        repeated = places.spread(np.repeat(codes, rule.n_paths, axis=0))
        paths = places.spread(spawn_keys(chunk_keys, rule.n_paths).ravel())
        x = torch.from_numpy(repeated).to(device, dtype)
        drawn = places.gathered(path_terms(x, paths, local, prior, posterior, rule))
        kept = drawn.numpy().reshape(n_rows, rule.n_paths)[: stop - start]
        total[start:stop] = logsumexp(kept, axis=1) - math.log(rule.n_paths)
        variance[start:stop] = variance_of_log_mean(kept)

    map_in_workers(score_chunk, range(0, len(rows), n_rows), device, current_progress())
    return total, variance


def variance_of_log_mean(log_values: Array) -> Array:
    """Return the variance of the logarithm of the mean of exp, by the delta method."""
    n_paths = log_values.shape[1]
    if n_paths == 1:
        return np.full(len(log_values), np.nan)
    relative = np.exp(log_values - logsumexp(log_values, axis=1, keepdims=True)) * n_paths
    return np.asarray(relative.var(axis=1, ddof=1) / n_paths)


def path_terms(
    x: Tensor,
    keys: Keys,
    layout: Layout,
    prior: Sequence[Tensor],
    posterior: Posterior,
    rule: PathRule,
) -> Tensor:
    """Return the logarithm of the product for one path of each row, (B,)."""
    points = layout.embed(x)
    codes = [group.codes(x, 0) for group in layout.groups]
    belief = [p.to(points).expand(len(x), -1, -1) for p in prior]
    y = torch.zeros_like(points)
    snr, total = 0.0, torch.zeros(len(x), dtype=torch.float64)
    for step, level in enumerate(rule.logsnr):
        rise = math.exp(level) - snr
        snr = math.exp(level)
        eps, _ = rule.noise.draw(spawn_keys(keys, 1, first=step + 1).ravel())
        noise = torch.from_numpy(eps[:, 0]).to(points)
        increment = rise * points + math.sqrt(rise) * noise
        for group, log_belief, code in zip(layout.groups, belief, codes, strict=True):
            fit = group.increment_log_likelihood(increment[:, group.coordinates], rise)
            own = fit.gather(2, code[:, :, None])
            total += (log_belief + fit - own).logsumexp(2).sum(1).cpu().double()
        y = y + increment
        logsnr = torch.full((len(x),), float(level), dtype=points.dtype, device=x.device)
        belief = list(posterior(y * signal_scale(logsnr)[:, None] / snr, logsnr))
    for log_belief, code in zip(belief, codes, strict=True):
        total += log_belief.gather(2, code[:, :, None]).sum((1, 2)).cpu().double()
    return total
