"""Expectation-maximisation for latent class models of discrete and mixed columns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import logsumexp

from sk_itdiffusion._first._table.rows import WeightedRows, are_counts, effective_number
from sk_itdiffusion._first.layout import Layout
from sk_itdiffusion._first.references.classes import LatentClassReference
from sk_itdiffusion._first.references.gaussian import GaussianReference, floor_eigenvalues
from sk_itdiffusion._first.references.mixture import GaussianMixtureReference
from sk_itdiffusion._first.references.normal_parts import NormalParts, blocks_of_rows
from sk_itdiffusion._first.references.parts import Block, affordable_rows

__all__ = [
    "Indicators",
    "category_counts",
    "fit_latent_class",
    "smoothed_frequencies",
    "smoothed_marginals",
]

Array = NDArray[np.float64]

#: Rows that each class is given in advance, with the marginals of all rows.
PRIOR_ROWS = 1.0
#: Entries up to which the indicators of the categories are a dense matrix.
MAX_DENSE_ENTRIES = 10**8
#: Sum of the weights up to which products with the indicators are in single precision.
MAX_ROWS_IN_SINGLE = 1e30
TOLERANCE = 2e-4


def category_counts(rows: WeightedRows, layout: Layout) -> list[Array]:
    """Return how many rows have each category, for each discrete variable.

    Rows that lack an entry (NaN) count for none.
    """
    entries = rows.X[:, layout.n_continuous :]
    observed = ~np.isnan(entries)
    if not observed.all():
        return [
            np.bincount(
                entries[known, j].astype(np.intp), rows.weight[known], variable.n_categories
            ).astype(np.float64)
            for j, (variable, known) in enumerate(zip(layout.variables, observed.T, strict=True))
        ]
    codes = entries.astype(np.intp)
    return [
        np.bincount(codes[:, j], rows.weight, variable.n_categories).astype(np.float64)
        for j, variable in enumerate(layout.variables)
    ]


def in_observations(rows: WeightedRows, layout: Layout) -> WeightedRows:
    """Return rows whose weights are numbers of observations, to which priors can be added.

    Integers are, and so are all weights where no column is continuous, as rows stand for many
    equal ones.  Others are scaled to sum to Kish's effective sample size.
    """
    if not layout.n_continuous or are_counts(rows.weight):
        return rows
    return replace(rows, weight=rows.share * effective_number(rows.weight))


def smoothed_marginals(rows: WeightedRows, layout: Layout) -> list[Array]:
    """Return the smoothed frequencies of the categories of each discrete variable."""
    counts = category_counts(in_observations(rows, layout), layout)
    return [smoothed_frequencies(of_variable) for of_variable in counts]


def smoothed_frequencies(counts: Array) -> Array:
    """Return the relative frequencies of categories, with half an observation added to each."""
    return np.asarray((counts + 0.5) / (counts.sum() + 0.5 * len(counts)))


@dataclass(frozen=True)
class Indicators:
    """Which categories rows have, of which some may be missing.

    Attributes
    ----------
    matrix : csr_array of shape (n, L)
        1 for each category that a row has, of those of all variables one after the other.
    first, sizes : ndarray of shape (m,)
        Where the variables begin, and their numbers of categories.
    """

    matrix: sparse.csr_array
    first: NDArray[np.intp]
    sizes: NDArray[np.intp]

    @classmethod
    def of(cls, codes: Array, layout: Layout) -> Indicators:
        """Return those of codes, (n, m); NaN where they are missing."""
        sizes = np.array([variable.n_categories for variable in layout.variables])
        first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        row, variable = np.nonzero(~np.isnan(codes))
        hits = codes[row, variable].astype(np.intp) + first[variable]
        entries = (np.ones(len(hits)), (row, hits))
        matrix = sparse.csr_array(entries, shape=(len(codes), int(sizes.sum())))
        return cls(matrix, first, sizes)

    def log_terms(self, log_category: Array) -> Array:
        """Return the log-probabilities of rows in classes, (n, n_classes), from (n_classes, L)."""
        return np.asarray(self.matrix @ log_category.T)

    def smoothed(self, member: Array, marginal: Array, prior: float = PRIOR_ROWS) -> Array:
        """Return the log-probabilities of categories in classes, (n_classes, L), smoothed.

        Parameters
        ----------
        member : ndarray of shape (n, n_classes)
            Weights of the rows in the classes.
        marginal : ndarray of shape (L,)
            Probabilities of the categories in all rows.
        prior : float, default=1.0
            Rows with these probabilities that each class is given in advance.
        """
        counts = (self.matrix.T @ member).T
        of_variable = np.add.reduceat(counts, self.first, axis=1).repeat(self.sizes, axis=1)
        return np.asarray(np.log((counts + prior * marginal) / (of_variable + prior)))


@dataclass
class _Classes:
    """Parameters: probabilities of all categories one after the other, and normal distributions."""

    log_weight: Array
    log_category: Array
    mean: Array
    covariance: Array


@dataclass(frozen=True)
class _Evidence:
    """The rows: indicators of categories (n, L), continuous columns, their products, shares."""

    indicators: NDArray[Any] | sparse.csr_array
    continuous: Array
    products: Array
    share: Array
    n_rows: float
    marginal: Array
    pooled: Array
    regularization: float

    @classmethod
    def of(
        cls, rows: WeightedRows, layout: Layout, marginals: list[Array], regularization: float
    ) -> _Evidence:
        """Return the rows in the form that the steps need."""
        sizes = np.array([variable.n_categories for variable in layout.variables])
        first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        hits = rows.X[:, layout.n_continuous :].astype(np.intp) + first
        n_rows = float(rows.weight.sum())
        # Weights are at least 1: in single precision their sums are not to leave its range.
        dtype = np.float32 if n_rows < MAX_ROWS_IN_SINGLE else np.float64
        entries = np.ones(hits.size, dtype=dtype)
        bounds = np.arange(len(hits) + 1) * hits.shape[1]
        shape = (len(hits), int(sizes.sum()))
        indicators = sparse.csr_array((entries, hits.ravel(), bounds), shape=shape)
        continuous = rows.X[:, : layout.n_continuous]
        pairs = np.triu_indices(layout.n_continuous)
        deviation = continuous - rows.share @ continuous
        pooled = (rows.share[:, None] * deviation).T @ deviation
        return cls(
            indicators.toarray() if math.prod(shape) <= MAX_DENSE_ENTRIES else indicators,
            continuous,
            continuous[:, pairs[0]] * continuous[:, pairs[1]],
            rows.share,
            n_rows,
            np.concatenate(marginals),
            pooled + regularization * np.eye(len(pooled)),
            regularization,
        )


def fit_latent_class(
    rows: WeightedRows,
    layout: Layout,
    n_classes: int,
    random_state: np.random.RandomState,
    *,
    regularization: float = 1e-6,
    max_iter: int = 100,
    stopped: Callable[[], bool] = lambda: False,
) -> LatentClassReference:
    """Return a latent class model fitted to rows by expectation-maximisation.

    Each class begins at a random row.  A class counts one row more than it has, spread over the
    categories as in all rows, so that no probability is 0; covariances are shrunk towards the
    common one likewise.

    Rows may have missing entries (NaN): the likelihood is then that of the observed entries, and
    the classes are consistent if entries are missing at random.

    Parameters
    ----------
    rows : WeightedRows
        Rows of the layout.
    layout : Layout
        Where the columns are.
    n_classes : int
        Classes, at least 1.
    random_state : RandomState
        Source of the starting rows.
    regularization : float, default=1e-6
        Added to variances of the continuous columns.
    max_iter : int, default=100
        Most iterations.
    stopped : callable
        Asked in each iteration; True raises KeyboardInterrupt.

    Returns
    -------
    LatentClassReference
        The fitted model.
    """
    rows = in_observations(rows, layout)
    if np.isnan(rows.X).any():
        return _fit_incomplete(
            rows, layout, n_classes, random_state, regularization, max_iter, stopped
        )
    marginals = smoothed_marginals(rows, layout)
    evidence = _Evidence.of(rows, layout, marginals, regularization)
    classes = _starting_classes(evidence, n_classes, random_state)
    before = -math.inf
    for _ in range(max_iter):
        if stopped():
            raise KeyboardInterrupt
        log_joint = _log_joint(evidence, classes)
        log_row = logsumexp(log_joint, axis=1)
        classes = _maximize(evidence, np.exp(log_joint - log_row[:, None]))
        now = float(evidence.share @ log_row)
        if now - before < TOLERANCE:
            break
        before = now
    return _reference(layout, classes)


def _starting_classes(
    evidence: _Evidence, n_classes: int, random_state: np.random.RandomState
) -> _Classes:
    """Return classes around random rows, half their own categories and half the marginals."""
    n_possible = min(n_classes, len(evidence.share))
    chosen = random_state.choice(
        len(evidence.share), size=n_possible, replace=False, p=evidence.share
    )
    own = evidence.indicators[chosen]
    own = own if isinstance(own, np.ndarray) else own.toarray()
    mean = evidence.continuous[chosen]
    return _Classes(
        np.full(n_possible, -math.log(n_possible)),
        np.log(0.5 * own.astype(np.float64) + 0.5 * evidence.marginal),
        mean,
        np.broadcast_to(evidence.pooled, (n_possible, *evidence.pooled.shape)),
    )


def _log_joint(evidence: _Evidence, classes: _Classes) -> Array:
    """Return log of weight times probability of each row in each class, (n, n_classes)."""
    by_category = evidence.indicators @ classes.log_category.T.astype(evidence.indicators.dtype)
    joint: Array = by_category.astype(np.float64) + classes.log_weight
    n_continuous = evidence.continuous.shape[1]
    if n_continuous:
        # The quadratic forms of all classes at once, as products of matrices.
        precision = np.linalg.inv(classes.covariance)
        linear = np.einsum("cij,cj->ci", precision, classes.mean)
        pairs = np.triu_indices(n_continuous)
        quadratic = np.where(pairs[0] == pairs[1], -0.5, -1.0) * precision[:, pairs[0], pairs[1]]
        constant = 0.5 * (linear * classes.mean).sum(axis=1)
        constant += 0.5 * np.linalg.slogdet(classes.covariance)[1]
        joint += evidence.continuous @ linear.T + evidence.products @ quadratic.T - constant
    return joint


def _maximize(evidence: _Evidence, posterior: Array) -> _Classes:
    """Return the classes of maximum likelihood given the posterior, smoothed."""
    weighted = evidence.n_rows * evidence.share[:, None] * posterior
    size = weighted.sum(axis=0)
    entries = without_denormals(weighted, evidence.indicators.dtype)
    counts = (evidence.indicators.T @ entries).T.astype(np.float64)
    category = (counts + PRIOR_ROWS * evidence.marginal) / (size + PRIOR_ROWS)[:, None]
    mean, covariance = _normal_parameters(evidence, weighted, size)
    log_weight = np.log(size + 1e-3) - math.log(size.sum() + 1e-3 * len(size))
    return _Classes(log_weight, np.log(category), mean, covariance)


def without_denormals(values: Array, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return non-negative numbers in a precision, those below its normal range as 0.

    Products with numbers below the normal range, which far classes have, take many times longer.
    """
    normal = values.astype(dtype)
    normal[normal < np.finfo(dtype).tiny] = 0.0
    return normal


def _normal_parameters(evidence: _Evidence, weighted: Array, size: Array) -> tuple[Array, Array]:
    """Return means and covariances of the classes, the latter shrunk towards the common one."""
    n_continuous = evidence.continuous.shape[1]
    pairs = np.triu_indices(n_continuous)
    mean = (weighted.T @ evidence.continuous) / np.maximum(size, 1e-12)[:, None]
    scatter = np.empty((len(size), n_continuous, n_continuous))
    scatter[:, pairs[0], pairs[1]] = weighted.T @ evidence.products
    scatter[:, pairs[1], pairs[0]] = scatter[:, pairs[0], pairs[1]]
    scatter -= size[:, None, None] * mean[:, :, None] * mean[:, None, :]
    prior = PRIOR_ROWS + n_continuous
    covariance = (scatter + prior * evidence.pooled) / (size + prior)[:, None, None]
    return mean, covariance + evidence.regularization * np.eye(n_continuous)


@dataclass(frozen=True)
class _IncompleteEvidence:
    """Rows with missing entries."""

    indicators: Indicators
    continuous: Array
    blocks: list[Block]
    weight: Array
    marginal: Array
    pooled: Array
    regularization: float

    @classmethod
    def of(
        cls, rows: WeightedRows, layout: Layout, n_classes: int, regularization: float
    ) -> _IncompleteEvidence:
        """Return the rows in the form that the steps need; a missing category is no indicator."""
        continuous = np.ascontiguousarray(rows.X[:, : layout.n_continuous])
        pooled, blocks = np.zeros((0, 0)), []
        if layout.n_continuous:
            pooled = GaussianReference.fit(continuous, rows.weight).covariance.numpy()
            blocks = blocks_of_rows(continuous, n_classes)
        return cls(
            Indicators.of(rows.X[:, layout.n_continuous :], layout),
            continuous,
            blocks,
            rows.weight,
            np.concatenate(smoothed_marginals(rows, layout)),
            pooled + regularization * np.eye(len(pooled)),
            regularization,
        )


def _fit_incomplete(
    rows: WeightedRows,
    layout: Layout,
    n_classes: int,
    random_state: np.random.RandomState,
    regularization: float,
    max_iter: int,
    stopped: Callable[[], bool],
) -> LatentClassReference:
    """Return classes fitted to the observed entries of rows."""
    rows = rows.take(affordable_rows(rows.X, n_classes, n_classes, layout.n_continuous))
    n_classes = min(n_classes, len(rows))
    evidence = _IncompleteEvidence.of(rows, layout, n_classes, regularization)
    classes = _starting_incomplete(evidence, n_classes, random_state)
    before = -math.inf
    for _ in range(max_iter):
        if stopped():
            raise KeyboardInterrupt
        log_likelihood, classes = _incomplete_step(evidence, classes)
        now = log_likelihood / float(rows.weight.sum())
        if now - before < TOLERANCE:
            break
        before = now
    return _reference(layout, classes)


def _starting_incomplete(
    evidence: _IncompleteEvidence, n_classes: int, random_state: np.random.RandomState
) -> _Classes:
    """Return classes around random rows; what these lack is that of all rows."""
    share = evidence.weight / evidence.weight.sum()
    chosen = random_state.choice(len(share), size=n_classes, replace=False, p=share)
    known = evidence.indicators
    own = known.matrix[chosen].toarray()
    is_known = np.add.reduceat(own, known.first, axis=1).repeat(known.sizes, axis=1) > 0.0
    own = np.where(is_known, own, evidence.marginal)
    mean = evidence.continuous[chosen]
    if len(evidence.pooled):
        overall = GaussianReference.fit(evidence.continuous, evidence.weight)
        uniform = torch.from_numpy(random_state.uniform(size=(n_classes, mean.shape[1] + 2)))
        mean = overall.complete(torch.from_numpy(mean), uniform.clamp(1e-12, 1.0 - 1e-12)).numpy()
    return _Classes(
        np.full(n_classes, -math.log(n_classes)),
        np.log(0.5 * own + 0.5 * evidence.marginal),
        mean,
        np.broadcast_to(evidence.pooled, (n_classes, *evidence.pooled.shape)),
    )


def _incomplete_step(evidence: _IncompleteEvidence, classes: _Classes) -> tuple[float, _Classes]:
    """Return the log-likelihood of the observed entries, and classes of a higher one, smoothed."""
    log_terms = (evidence.indicators.log_terms(classes.log_category) + classes.log_weight).T
    mean, covariance = classes.mean, classes.covariance
    if len(evidence.pooled):
        parts = NormalParts.of_covariances(mean, covariance)
        moments = parts.moments(evidence.continuous, evidence.weight, log_terms, evidence.blocks)
        log_likelihood, membership = moments.log_likelihood, moments.membership
        size = membership.sum(axis=1)
        n_continuous = len(evidence.pooled)
        prior = PRIOR_ROWS + n_continuous
        scatter = size[:, None, None] * moments.covariance
        mean = moments.mean
        covariance = (scatter + prior * evidence.pooled) / (size + prior)[:, None, None]
        covariance = covariance + evidence.regularization * np.eye(n_continuous)
    else:
        log_row = logsumexp(log_terms, axis=0)
        log_likelihood = float(evidence.weight @ log_row)
        membership = evidence.weight * np.exp(log_terms - log_row)
        size = membership.sum(axis=1)
    log_category = evidence.indicators.smoothed(membership.T, evidence.marginal)
    log_weight = np.log(size + 1e-3) - math.log(size.sum() + 1e-3 * len(size))
    return log_likelihood, _Classes(log_weight, log_category, mean, covariance)


def _reference(layout: Layout, classes: _Classes) -> LatentClassReference:
    """Return the classes as a reference."""
    weights = np.exp(classes.log_weight)
    sizes = [variable.n_categories for variable in layout.variables]
    parts = np.split(np.exp(classes.log_category), np.cumsum(sizes)[:-1], axis=1)
    continuous = None
    if layout.n_continuous:
        covariances = floor_eigenvalues(classes.covariance)
        continuous = GaussianMixtureReference(weights, classes.mean, covariances)
    return LatentClassReference(layout, weights, parts, continuous)
