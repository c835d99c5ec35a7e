r"""Expectation-maximisation for mixtures of normal distributions, with or without missing entries.

Rows have one of few patterns of observed entries, complete rows one and the same.  With O the
observed entries of a pattern and :math:`\Omega_k` the inverse of :math:`\Sigma_{k,OO}`, zero
elsewhere, a row's expectation under component k is
:math:`\mu_k + \Sigma_k \Omega_k (x - \mu_k)`, and its covariance
:math:`\Sigma_k - \Sigma_k \Omega_k \Sigma_k`, which vanishes where all entries are observed.

Several mixtures are fitted at the same time, each to rows with weights of its own: those of the
folds of a cross-validation, in which rows that are held out have weight zero, and that of all rows.

Covariances have an inverse Wishart prior around the covariance within the components of the start,
which counts for some rows, and weights a Dirichlet prior; no step lowers the penalised likelihood.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from torch import Tensor

from sk_itdiffusion.references.mixture import LOG_2PI, MixtureReference

__all__ = ["Mixtures", "Rows", "clustered", "fit_mixtures", "gaussians"]

Array = NDArray[np.float64]
_CHUNK = 2**21
_MAX_ROWS_OF_KMEANS = 5_000


@dataclass(frozen=True)
class Rows:
    """Rows with weights, grouped by the entries that are observed.

    Attributes
    ----------
    x : Tensor of shape (n, d)
        Rows, zero where an entry is missing.
    weight : Tensor of shape (n, G)
        Weight of each row in each of the mixtures.
    patterns : Tensor of shape (P, d)
        Distinct patterns, 1 where an entry is observed.
    which : Tensor of shape (n,)
        Pattern of each row.
    """

    x: Tensor
    weight: Tensor
    patterns: Tensor
    which: Tensor

    @classmethod
    def of(cls, X: Array, weight: Array) -> Rows:
        """Return rows in which NaN is missing, with weights of shape (n, G)."""
        observed = ~np.isnan(X)
        if observed.all():
            patterns, which = observed[:1], np.zeros(len(X), dtype=np.intp)
        else:
            patterns, which = np.unique(observed, axis=0, return_inverse=True)
        return cls(
            torch.from_numpy(np.nan_to_num(X)),
            torch.from_numpy(np.ascontiguousarray(weight, dtype=np.float64)),
            torch.from_numpy(patterns.astype(np.float64)),
            torch.from_numpy(which.ravel()),
        )

    @property
    def is_complete(self) -> bool:
        """Whether no entry is missing."""
        return bool((self.patterns == 1.0).all())

    def chunks(self, n_components: int) -> list[slice]:
        """Return parts of the rows whose intermediate arrays fit into memory."""
        d = self.x.shape[1]
        numbers = n_components + d * d if self.is_complete else n_components * d * d
        size = max(64, _CHUNK // numbers)
        return [slice(i, i + size) for i in range(0, len(self.x), size)]


@dataclass(frozen=True)
class Mixtures:
    """G mixtures of K components each.

    Attributes
    ----------
    log_weights : Tensor of shape (G, K)
        Logarithms of the weights of the components.
    means : Tensor of shape (G, K, d)
        Means.
    covariances : Tensor of shape (G, K, d, d)
        Covariances.
    """

    log_weights: Tensor
    means: Tensor
    covariances: Tensor

    @property
    def n_components(self) -> int:
        """Number of components of each."""
        return self.means.shape[1]

    def __getitem__(self, group: int) -> MixtureReference:
        """Return one of the mixtures."""
        weights = self.log_weights[group].exp().numpy()
        return MixtureReference(weights, self.means[group].numpy(), self.covariances[group].numpy())

    def only(self, group: int) -> Mixtures:
        """Return one of the mixtures, as one."""
        part = slice(group, group + 1) if group != -1 else slice(-1, None)
        return Mixtures(self.log_weights[part], self.means[part], self.covariances[part])


@dataclass
class Moments:
    """Sums over rows that an M-step needs, around the means, and the rows' log-densities (n, G)."""

    mass: Tensor
    first: Tensor
    second: Tensor
    log_prob: Tensor


class _Patterns:
    """Inverse factors, regressions and conditional covariances for each pattern and component."""

    def __init__(self, covariances: Tensor, patterns: Tensor) -> None:
        both = patterns[:, None, :, None] * patterns[:, None, None, :]
        kept = covariances * both + torch.diag_embed(1.0 - patterns)[:, None]
        factor = torch.linalg.cholesky(kept)
        eye = torch.eye(kept.shape[-1], dtype=kept.dtype).expand_as(factor)
        inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
        self.whiten = inverse * patterns[:, None, None, :]
        self.log_det = inverse.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        self.regress = covariances @ (self.whiten.mT @ self.whiten)
        self.rest = covariances - self.regress @ covariances
        self.constant = -0.5 * LOG_2PI * patterns.sum(1)


def fit_mixtures(
    rows: Rows,
    start: Mixtures,
    prior_rows: float,
    floor: float,
    max_steps: int = 100,
    tol: float = 1e-3,
) -> tuple[Mixtures, Tensor]:
    """Return the mixtures of greatest penalised likelihood near a start.

    Parameters
    ----------
    rows : Rows
        Rows, with weights for each of the mixtures.
    start : Mixtures
        Where to begin.
    prior_rows : float
        Rows that the prior of a covariance counts for.
    floor : float
        Added to the variances.
    max_steps : int, default=100
        Steps at most.
    tol : float, default=1e-3
        Gain of a step, in nats per row, below which it is the last one.

    Returns
    -------
    mixtures : Mixtures
        The mixtures.
    log_prob : Tensor of shape (n, G)
        Log-density of the observed entries of each row, also of those that are held out.
    """
    prior = torch.einsum("gk,gkij->gij", start.log_weights.exp(), start.covariances)
    total, last, mixtures = rows.weight.sum(0), -math.inf, start
    for step in range(max_steps + 1):
        moments = expectations(rows, mixtures)
        reached = float(((rows.weight * moments.log_prob).sum(0) / total).mean())
        if step == max_steps or reached - last < tol:
            break
        mixtures, last = maximized(mixtures, moments, prior, prior_rows, floor), reached
    return mixtures, moments.log_prob


def expectations(rows: Rows, mixtures: Mixtures) -> Moments:
    """Return the sums of an E-step."""
    n_groups, n_components, _ = mixtures.means.shape
    means, covariances = mixtures.means.flatten(0, 1), mixtures.covariances.flatten(0, 1)
    known = _Patterns(covariances, rows.patterns)
    mass, first = means.new_zeros(len(means)), torch.zeros_like(means)
    second, log_prob = torch.zeros_like(covariances), rows.x.new_empty(len(rows.x), n_groups)
    of_patterns = means.new_zeros(len(rows.patterns), len(means))
    kind = _Complete if rows.is_complete else _Incomplete
    for part in rows.chunks(len(means)):
        points = kind(rows, known, means, part)
        which = rows.which[part]
        log_joint = known.log_det[which] - 0.5 * points.squares()
        log_joint = log_joint.unflatten(1, (n_groups, -1)) + mixtures.log_weights
        log_prob[part] = log_joint.logsumexp(2)
        posterior = (log_joint - log_prob[part][..., None]).exp() * rows.weight[part][..., None]
        posterior = posterior.flatten(1)
        mass += posterior.sum(0)
        points.add_moments(posterior, first, second)
        of_patterns.index_add_(0, which, posterior)
    if not rows.is_complete:
        second += torch.einsum("pk,pkij->kij", of_patterns, known.rest)
    log_prob += known.constant[rows.which][:, None]
    mass, first, second = (
        part.unflatten(0, (n_groups, n_components)) for part in (mass, first, second)
    )
    return Moments(mass, first, second, log_prob)


class _Complete:
    """Complete rows: squares and moments are products with the products of columns."""

    def __init__(self, rows: Rows, known: _Patterns, means: Tensor, part: slice) -> None:
        self.means, self.whiten = means, known.whiten[0]
        self.x = rows.x[part]
        self.outer = (self.x[:, :, None] * self.x[:, None]).flatten(1)

    def squares(self) -> Tensor:
        """Return squared distances from the means, (n, K)."""
        precision = self.whiten.mT @ self.whiten
        slope = (precision @ self.means[..., None])[..., 0]
        constant = (slope * self.means).sum(1)
        found: Tensor = self.outer @ precision.flatten(1).T - 2.0 * self.x @ slope.T + constant
        return found.clamp_min_(0.0)

    def add_moments(self, posterior: Tensor, first: Tensor, second: Tensor) -> None:
        """Add moments around the means."""
        mass, total = posterior.sum(0)[:, None], posterior.T @ self.x
        around = total - mass * self.means
        first += around
        second += (posterior.T @ self.outer).view_as(second)
        second -= total[:, :, None] * self.means[:, None] + self.means[:, :, None] * around[:, None]


class _Incomplete:
    """Rows with missing entries, filled by their expectations."""

    def __init__(self, rows: Rows, known: _Patterns, means: Tensor, part: slice) -> None:
        which = rows.which[part]
        apart = (rows.x[part][:, None] - means) * rows.patterns[which][:, None]
        self.white = (known.whiten[which] @ apart[..., None])[..., 0]
        self.filled = (known.regress[which] @ apart[..., None])[..., 0]

    def squares(self) -> Tensor:
        """Return squared distances from the means, (n, K)."""
        found: Tensor = self.white.square().sum(2)
        return found

    def add_moments(self, posterior: Tensor, first: Tensor, second: Tensor) -> None:
        """Add moments around the means."""
        first += torch.einsum("nk,nki->ki", posterior, self.filled)
        weighted = (self.filled * posterior.sqrt()[..., None]).transpose(0, 1)
        second += weighted.mT @ weighted


def maximized(
    mixtures: Mixtures, moments: Moments, prior: Tensor, prior_rows: float, floor: float
) -> Mixtures:
    """Return the mixtures of an M-step."""
    shift = moments.first / moments.mass.clamp_min(1e-12)[..., None]
    outer = shift[..., :, None] * shift[..., None, :]
    scatter = moments.second - moments.mass[..., None, None] * outer
    total = (moments.mass + prior_rows)[..., None, None]
    covariances = (scatter + prior_rows * prior[:, None]) / total
    covariances = 0.5 * (covariances + covariances.mT)
    covariances = covariances + floor * torch.eye(covariances.shape[-1], dtype=covariances.dtype)
    weights = (moments.mass + 1.0) / (moments.mass + 1.0).sum(1, keepdim=True)
    return Mixtures(weights.log(), mixtures.means + shift, covariances)


def gaussians(rows: Rows, floor: float, shrink_rows: float = 2.0) -> tuple[Mixtures, Tensor]:
    """Return normal distributions whose covariance is drawn to its diagonal, and log-densities.

    Parameters
    ----------
    rows : Rows
        Rows, with weights for each of the distributions.
    floor : float
        Added to the variances.
    shrink_rows : float, default=2.0
        Rows that the diagonal counts for.

    Returns
    -------
    mixtures : Mixtures
        Mixtures of one component.
    log_prob : Tensor of shape (n, G)
        Log-densities of the rows.
    """
    seen = rows.patterns[rows.which]
    count = (rows.weight.T @ seen).clamp_min(1.0)
    mean = rows.weight.T @ rows.x / count
    variance = rows.weight.T @ rows.x.square() / count - mean.square()
    variance = torch.where(variance > 1e-12, variance, torch.ones_like(variance))
    zero = torch.zeros(len(mean), 1, dtype=mean.dtype)
    start = Mixtures(zero, mean[:, None], torch.diag_embed(variance)[:, None])
    steps = 1 if rows.is_complete else 50
    return fit_mixtures(rows, start, shrink_rows, floor, max_steps=steps, tol=1e-4)


def clustered(
    rows: Rows, gaussian: Mixtures, n_components: int, floor: float, seed: int
) -> Mixtures:
    """Return mixtures to begin with, from clusters of the rows of the last group.

    Missing entries are replaced by their expectations under the normal distribution of these.
    """
    common = gaussian.only(-1)
    known = _Patterns(common.covariances[0], rows.patterns)
    filled = _Incomplete(rows, known, common.means[0], slice(None)).filled[:, 0]
    weight = rows.weight[:, -1]
    few = torch.from_numpy(np.random.default_rng(seed).permutation(len(filled)))
    few = few[:_MAX_ROWS_OF_KMEANS]
    few = few[weight[few] > 0]
    filled, weight = filled[few], weight[few]
    scaled = (filled / common.covariances[0, 0].diagonal().sqrt()).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of clusters that become empty
        _, found = kmeans2(scaled, n_components, 20, minit="++", rng=seed)
    labels = torch.from_numpy(found).long()
    chosen = torch.nn.functional.one_hot(labels, n_components)
    # Each group begins with its own rows: a center near a row that is held out would flatter it.
    mass = rows.weight[few].T @ chosen.double()
    sums = torch.einsum("ng,nk,ni->gki", rows.weight[few], chosen.double(), filled)
    means = sums / mass.clamp_min(1e-12)[..., None]
    within = filled - means[-1][labels]
    pooled = (within * weight[:, None]).T @ within / weight.sum()
    pooled = pooled + floor * torch.eye(len(pooled), dtype=pooled.dtype)
    weights = (mass + 1.0) / (mass + 1.0).sum(1, keepdim=True)
    n_groups = rows.weight.shape[1]
    return Mixtures(
        weights.log(), common.means + means, pooled.expand(n_groups, n_components, -1, -1)
    )
