"""Gaussian mixtures fitted to weighted rows, with components for rows unlike all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.mixture import GaussianMixture

from sk_itdiffusion._first._runtime.parallel import single_blas_thread
from sk_itdiffusion._first._table.rows import effective_number
from sk_itdiffusion._first.references.gaussian import (
    VARIANCE_FLOOR,
    GaussianReference,
    floor_eigenvalues,
)
from sk_itdiffusion._first.references.mixture import GaussianMixtureReference
from sk_itdiffusion._first.references.normal_parts import NormalParts, blocks_of_rows
from sk_itdiffusion._first.references.parts import affordable_rows

__all__ = ["fit_gaussian_mixture", "widened", "with_wide_components"]

#: Variance, relative to the largest square, that double precision still resolves.
MIN_RELATIVE_VARIANCE = 1e-13
#: Distinct rows for each component above which k-means cannot run out of clusters.
_PLENTY = 4
#: Rows by which the common covariance counts for that of each component.
_PSEUDO_ROWS = 2.0
#: Standard deviations of the wide components relative to those of all rows, and their proportions.
_WIDTHS = np.array([2.0, 4.0, 8.0])
_SHARES_OF_WIDTHS = np.array([4.0, 2.0, 1.0])
#: Rows with missing entries, for each component, that are fitted whatever work it is.
_ROWS_FOR_A_COMPONENT = 50
#: Change of their mean log-likelihood that ends expectation-maximisation.
_TOLERANCE = 1e-4


class _WeightedMixture(GaussianMixture):
    """Mixture of weighted rows, which does not warn when it ends before convergence.

    With equal weights its numbers are those of scikit-learn's, except for the covariances of
    components of few rows, which are shrunk towards the common one.

    A mixture that has not converged is a good reference; only its likelihood counts.  A warnings
    filter would not do: filters belong to the process, and mixtures are fitted in threads.
    """

    covariances_: NDArray[np.float64]

    @property
    def converged_(self) -> bool:
        return True

    @converged_.setter
    def converged_(self, value: bool) -> None:
        pass

    def fit_weighted(
        self,
        X: NDArray[np.float64],
        weight: NDArray[np.float64],
        largest_variances: NDArray[np.float64],
    ) -> None:
        """Fit to rows with positive weights, of which only the ratios matter."""
        self._weight = weight / weight.mean()
        self._largest_variances = largest_variances
        self.fit(X)

    def _initialize_parameters(
        self, X: NDArray[np.float64], random_state: np.random.RandomState, **options: Any
    ) -> None:
        """Let k-means see the weights."""
        membership = np.zeros((len(X), self.n_components))
        if self.init_params == "kmeans":
            means = KMeans(self.n_components, n_init=1, random_state=random_state)
            label = means.fit(X, sample_weight=self._weight).labels_
            membership[np.arange(len(X)), label] = self._weight
        else:
            chosen = kmeans_plusplus(
                X, self.n_components, sample_weight=self._weight, random_state=random_state
            )[1]
            membership[chosen, np.arange(self.n_components)] = 1.0
        self._initialize(X, membership, **options)

    def _e_step(self, X: NDArray[np.float64], **options: Any) -> tuple[float, NDArray[np.float64]]:
        log_density, log_membership = self._estimate_log_prob_resp(X, **options)
        return float(np.average(log_density, weights=self._weight)), log_membership

    def _m_step(
        self, X: NDArray[np.float64], log_membership: NDArray[np.float64], **options: Any
    ) -> None:
        super()._m_step(X, log_membership + np.log(self._weight)[:, None], **options)
        membership = np.exp(log_membership)
        squares = np.maximum(self._weight**2 @ membership, np.finfo(np.float64).tiny)
        n_rows = (self._weight @ membership) ** 2 / squares
        shrunk = shrunk_to_common(self.covariances_, n_rows, self.reg_covar)
        self.covariances_ = within_variances(shrunk, self._largest_variances)
        roots = np.linalg.cholesky(self.covariances_)
        self.precisions_cholesky_ = np.swapaxes(np.linalg.inv(roots), 1, 2)


def number_of_distinct_rows(X: NDArray[np.float64]) -> int:
    """Return how many rows differ by more than the rounding of their squared distances."""
    X = np.where(np.isnan(X), np.inf, X)  # in place of what is missing
    finite = np.abs(X[np.isfinite(X)])
    resolution = np.sqrt(np.finfo(np.float64).eps) * finite.max(initial=0.0)
    rounded = np.rint(X / resolution) if resolution > 0.0 else X
    return len(np.unique(rounded, axis=0))


def shrunk_to_common(
    covariances: NDArray[np.float64], n_rows: NDArray[np.float64], floor: float
) -> NDArray[np.float64]:
    """Return covariances shrunk towards their common mean, the more so the fewer rows they have.

    A component of hardly more rows than columns is flat in some direction whatever the rows are
    drawn from, and the density a little away from it would be almost nothing.  Logarithms of
    matrices are averaged, so that structure is kept at any scale: a direction in which many rows
    hardly vary keeps its variance.

    Parameters
    ----------
    covariances : ndarray of shape (n_components, n_features, n_features)
        Covariances.
    n_rows : ndarray of shape (n_components,)
        Rows of each component.
    floor : float
        Smallest eigenvalue, positive.

    Returns
    -------
    ndarray of shape (n_components, n_features, n_features)
        Positive definite covariances.
    """
    values, vectors = np.linalg.eigh(covariances)
    logarithms = (vectors * np.log(np.maximum(values, floor))[:, None, :]) @ np.swapaxes(
        vectors, 1, 2
    )
    common = np.average(logarithms, axis=0, weights=n_rows)
    free = np.maximum(n_rows - covariances.shape[1], 0.0)
    share = (_PSEUDO_ROWS / (_PSEUDO_ROWS + free))[:, None, None]
    values, vectors = np.linalg.eigh((1.0 - share) * logarithms + share * common)
    return np.asarray((vectors * np.exp(values)[:, None, :]) @ np.swapaxes(vectors, 1, 2))


def within_variances(
    covariances: NDArray[np.float64], largest: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return covariances (..., d, d) of the same correlations, no variance above the largest."""
    variances = np.diagonal(covariances, axis1=-2, axis2=-1)
    factor = np.sqrt(np.minimum(1.0, largest / variances))
    return np.asarray(factor[..., :, None] * covariances * factor[..., None, :])


def widened(
    covariance: NDArray[np.float64], factor: float, largest: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return a covariance of larger variances and, where these are limited, weaker correlations.

    Variances are multiplied by a factor, but are at most the largest.  Correlations are those of
    the parallel sum with the largest, the inverse of the sum of the inverses: it is below both,
    in every direction, and nearly diagonal if the factor is large.
    """
    wide = factor * covariance
    limited = np.flatnonzero(np.isfinite(largest))
    if not len(limited):
        return wide
    across = wide[:, limited]
    inner = across[limited] + np.diag(largest[limited])
    narrowed = wide - across @ np.linalg.solve(inner, across.T)
    scale = np.sqrt(np.minimum(np.diag(wide), largest) / np.diag(narrowed))
    return np.asarray(0.5 * (narrowed + narrowed.T) * np.outer(scale, scale))


def with_wide_components(
    mixture: GaussianMixtureReference,
    X: NDArray[np.float64],
    weight: NDArray[np.float64],
    largest_variances: NDArray[np.float64],
    overall: GaussianReference | None = None,
) -> GaussianMixtureReference:
    """Return the mixture with more components, wider than all rows.

    They have the weight of one more row: as likely the next row is unlike all training rows.  Rows
    far from all other components have a small density, but not one of minus thousands of nats,
    which the integral would have to compensate for.  Scales and weights are those of a heavy tail,
    but in columns whose variances are limited, since their heavy tails are in their maps: there
    only the dependence between columns is weaker.  That is right for a density, but a detector asks
    how unlike a row is from the training rows, and uses the mixture without them.
    """
    share = _SHARES_OF_WIDTHS / _SHARES_OF_WIDTHS.sum() / (effective_number(weight) + 1.0)
    overall = GaussianReference.fit(X, weight) if overall is None else overall
    narrow = torch.einsum("kde,ke,kfe->kdf", mixture.basis, mixture.variances, mixture.basis)
    wide = np.stack(
        [widened(overall.covariance.numpy(), width**2, largest_variances) for width in _WIDTHS]
    )
    return GaussianMixtureReference(
        np.append((1.0 - share.sum()) * mixture.log_weights.exp().numpy(), share),
        np.vstack([mixture.means.numpy(), np.tile(overall.mean.numpy(), (len(share), 1))]),
        np.concatenate([narrow.numpy(), wide]),
        n_wide=len(share),
    )


def fit_gaussian_mixture(
    X: NDArray[np.float64],
    n_components: int,
    random_state: np.random.RandomState,
    regularization: float = VARIANCE_FLOOR,
    max_iter: int = 100,
    sample_weight: NDArray[np.float64] | None = None,
    largest_variances: NDArray[np.float64] | None = None,
) -> GaussianMixtureReference:
    """Return a mixture fitted to rows by expectation-maximisation (scikit-learn's, with weights).

    Covariances of components of few rows are shrunk towards those of the others, and wide
    components are added for rows unlike all training rows.  Besides these it has no
    more components than there are distinct rows, of which there are few where a few rows have
    nearly all the weight, or one value is a billion times as large as all others.

    No component has a variance in any column above ``largest_variances``, if they are given.
    After a map that makes a heavy tail normal, a component with twice the standard deviation would
    have a tail of four times the index.

    Rows may have missing entries (NaN): the likelihood is then that of the observed entries, and
    each step takes expectations over what is missing, pattern by pattern, so that the mixture is
    consistent if entries are missing at random.  Where there are so many patterns, of so many
    missing columns, that this is too expensive, a random sample of the rows is fitted.
    """
    largest = np.full(X.shape[1], np.inf) if largest_variances is None else largest_variances
    n_distinct = number_of_distinct_rows(X)
    # The rounding error of a covariance along a direction without variance must stay below.
    regularization = max(regularization, MIN_RELATIVE_VARIANCE * float(np.nanmax(np.square(X))))
    # Clusters of rows that k-means cannot distinguish would be fewer than asked for: it warns.
    is_plain = n_distinct > _PLENTY * n_components
    weight = np.ones(len(X)) if sample_weight is None else sample_weight
    if np.isnan(X).any():
        with single_blas_thread():
            return _fit_incomplete_mixture(
                X,
                weight,
                min(n_components, n_distinct),
                random_state,
                regularization,
                max_iter,
                largest,
                is_plain,
            )
    mixture = _WeightedMixture(
        min(n_components, n_distinct),
        init_params="kmeans" if is_plain else "k-means++",
        reg_covar=regularization,
        max_iter=max_iter,
        random_state=random_state,
    )
    # The matrices are far too small for several threads, which would wait for each other, up to
    # ten times longer in all; scikit-learn limits them likewise in its own estimators.
    with single_blas_thread():
        mixture.fit_weighted(X, weight, largest)
        fitted = GaussianMixtureReference.from_sklearn(mixture)
        return with_wide_components(fitted, X, weight, largest)


def _fit_incomplete_mixture(
    X: NDArray[np.float64],
    weight: NDArray[np.float64],
    n_components: int,
    random_state: np.random.RandomState,
    regularization: float,
    max_iter: int,
    largest: NDArray[np.float64],
    is_plain: bool,
) -> GaussianMixtureReference:
    """Return a mixture fitted to the observed entries of rows.

    It begins at clusters of rows that one normal distribution has completed by draws; conditional
    means would make clusters of their own.
    """
    overall = GaussianReference.fit(X, weight)
    kept = affordable_rows(X, n_components, _ROWS_FOR_A_COMPONENT * n_components)
    rows, own = X[kept], weight[kept] / weight[kept].mean()
    pooled = overall.covariance.numpy()
    uniform = np.clip(random_state.uniform(size=(len(rows), rows.shape[1] + 2)), 1e-12, 1 - 1e-12)
    drawn = overall.complete(torch.from_numpy(rows), torch.from_numpy(uniform)).numpy()
    log_weights, means, covariances = _starting_components(
        drawn, own, n_components, random_state, pooled, is_plain
    )
    eye = regularization * np.eye(rows.shape[1])
    before, blocks = -np.inf, blocks_of_rows(rows, n_components)
    for _ in range(max_iter):
        parts = NormalParts.of_covariances(means, covariances)
        found = parts.moments(rows, own, log_weights[:, None], blocks)
        mass = found.mass + 10.0 * np.finfo(np.float64).eps
        log_weights, means = np.log(mass / mass.sum()), found.mean
        squares = np.maximum(found.squared_mass, np.finfo(np.float64).tiny)
        n_rows = found.observed * found.mass**2 / squares
        shrunk = shrunk_to_common(found.covariance + eye, n_rows, regularization)
        covariances = within_variances(shrunk, largest)
        now = found.log_likelihood / len(rows)
        if abs(now - before) < _TOLERANCE:
            break
        before = now
    used = found.mass > 0.0
    fitted = GaussianMixtureReference(
        np.exp(log_weights[used]), means[used], floor_eigenvalues(covariances[used])
    )
    return with_wide_components(fitted, X, weight, largest, overall)


def _starting_components(
    X: NDArray[np.float64],
    weight: NDArray[np.float64],
    n_components: int,
    random_state: np.random.RandomState,
    pooled: NDArray[np.float64],
    is_plain: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return logarithms of weights, means and covariances of clusters of complete rows.

    Covariances are half that of the cluster and half that of all rows divided by as many as there
    are clusters along each column, so that none is flat.
    """
    n_features = X.shape[1]
    narrow = pooled / n_components ** (2.0 / n_features)
    if not is_plain:
        means, _ = kmeans_plusplus(X, n_components, sample_weight=weight, random_state=random_state)
        equal = np.full(n_components, -np.log(n_components))
        return equal, means, np.broadcast_to(narrow, (n_components, *narrow.shape))
    label = KMeans(n_components, n_init=1, random_state=random_state)
    member = weight * (
        label.fit(X, sample_weight=weight).labels_ == np.arange(n_components)[:, None]
    )
    mass = member.sum(axis=1)
    share = member / mass[:, None]
    means = share @ X
    second = np.stack([(each[:, None] * X).T @ X for each in share])
    own = second - means[:, :, None] * means[:, None, :]
    return np.log(mass / mass.sum()), means, 0.5 * (own + narrow)
