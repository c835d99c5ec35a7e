"""Models of discrete and mixed tables to compare with, behind one interface.

``fit`` takes all training rows; a peer that selects among fits holds out a tenth of them by the
seed. ``log_prob`` returns log P of each row in nats, jointly over all columns, a probability for
discrete columns and a density, in the units of the data, for continuous ones.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from discrete_data import DiscreteData, Rows
from numpy.typing import NDArray
from peers import GaussianMixturePeer, PublishedRecipe, sample_clipped_logistic, to_float32
from scipy.linalg import solve_triangular
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from scipy.special import erfc, logsumexp
from torch import Tensor

Array = NDArray[Any]


class DiscretePeer(ABC):
    """A model of discrete and continuous columns.

    Parameters
    ----------
    data : DiscreteData
        The data set, of which only the levels of the columns are used.

    Attributes
    ----------
    name : str
        Name in tables and result files.
    details_ : dict
        What the fit has chosen, for the record.
    """

    name: str

    def __init__(self, data: DiscreteData) -> None:
        self.levels = data.discrete_levels
        self.n_categories = np.array([len(levels) for levels in self.levels], dtype=np.int64)
        self.details_: dict[str, Any] = {}

    @staticmethod
    def applies(data: DiscreteData) -> bool:
        """Whether the peer can model this data set in reasonable time."""
        return True

    @abstractmethod
    def fit(self, rows: Rows, seed: int) -> DiscretePeer:
        """Fit to training rows."""

    @abstractmethod
    def log_prob(self, rows: Rows) -> Array:
        """Return log P of each row, shape (n,), in nats."""

    def score(self, rows: Rows) -> tuple[Array, Array]:
        """Return log P of each row and its numerical standard error, both of shape (n,)."""
        log_prob = self.log_prob(rows)
        return log_prob, np.zeros_like(log_prob)


def hold_out(rows: Rows, seed: int, share: float = 0.1) -> tuple[Rows, Rows]:
    """Return training and held-out rows."""
    order = np.random.RandomState(seed).permutation(len(rows))
    n_held = max(1, round(share * len(rows)))
    return rows[order[n_held:]], rows[order[:n_held]]


# --- Independent columns and the Gaussian block ---------------------------------------------


def smoothed_marginals(codes: Array, n_categories: Array, pseudo_count: float = 0.5) -> list[Array]:
    """Return the probabilities of the levels of each column, ``pseudo_count`` added to each."""
    marginals = []
    for column, size in zip(codes.T, n_categories, strict=True):
        counts = np.bincount(column, minlength=size) + pseudo_count
        marginals.append(counts / counts.sum())
    return marginals


class GaussianBlock:
    """Gaussian with full covariance; without columns its log-density is zero."""

    def fit(self, numbers: Array) -> GaussianBlock:
        """Fit mean and covariance; a small ridge allows for collinear columns."""
        self.mean_ = numbers.mean(axis=0)
        covariance = np.atleast_2d(np.cov(numbers.T, bias=True)) if numbers.shape[1] else np.eye(0)
        self.factor_ = np.linalg.cholesky(covariance + 1e-9 * np.diag(np.diag(covariance)))
        return self

    def log_prob(self, numbers: Array) -> Array:
        """Return the log-density of rows (n, n_continuous), shape (n,)."""
        return gaussian_log_density(numbers, self.mean_, self.factor_)


def gaussian_log_density(numbers: Array, mean: Array, factor: Array) -> Array:
    """Return log N(numbers; mean, factor factor') of rows (n, d), shape (n,)."""
    n, d = numbers.shape
    if d == 0:
        return np.zeros(n)
    scaled = solve_triangular(factor, (numbers - mean).T, lower=True)
    log_normalizer = 0.5 * d * math.log(2.0 * math.pi) + np.log(np.diag(factor)).sum()
    return -0.5 * np.square(scaled).sum(axis=0) - log_normalizer


class IndependentPeer(DiscretePeer):
    """Product of smoothed marginals and, for continuous columns, of one Gaussian."""

    name = "independent"

    def fit(self, rows: Rows, seed: int) -> IndependentPeer:
        """Count the levels, with one half added to each count."""
        self.log_marginals_ = [
            np.log(marginal) for marginal in smoothed_marginals(rows.codes, self.n_categories)
        ]
        self.gaussian_ = GaussianBlock().fit(rows.numbers)
        return self

    def log_prob(self, rows: Rows) -> Array:
        """Return log P of each row."""
        total = self.gaussian_.log_prob(rows.numbers)
        for log_marginal, column in zip(self.log_marginals_, rows.codes.T, strict=True):
            total = total + log_marginal[column]
        return total


# --- Indicators of levels -------------------------------------------------------------------


class Indicators:
    """The levels of all columns side by side, with 0/1 rows except for one level of each column.

    The level left out, the column's most frequent one, makes the rows short; they are stored as a
    sparse matrix where fewer than a tenth of the entries are ones.

    Parameters
    ----------
    codes : array of shape (n, n_discrete)
        Rows that tell which levels are frequent.
    n_categories : array of shape (n_discrete,)
        Number of levels of each column.
    """

    def __init__(self, codes: Array, n_categories: Array) -> None:
        self.offsets = np.concatenate([[0], np.cumsum(n_categories)[:-1]]).astype(np.int64)
        self.n_total = int(n_categories.sum())
        self.counts = np.bincount((codes + self.offsets).ravel(), minlength=self.n_total)
        ends = self.offsets + n_categories
        self.left_out = np.array(
            [
                start + self.counts[start:end].argmax()
                for start, end in zip(self.offsets, ends, strict=True)
            ],
            dtype=np.int64,
        )
        self.kept = np.setdiff1d(np.arange(self.n_total), self.left_out)
        self.column = np.repeat(np.arange(len(n_categories)), n_categories)

    def matrix(self, codes: Array, dtype: Any = np.float32) -> Any:
        """Return 0/1 rows of shape (n, n_total - n_discrete)."""
        position = np.full(self.n_total, -1)
        position[self.kept] = np.arange(len(self.kept))
        row, column = np.nonzero(position[codes + self.offsets] >= 0)
        place = position[(codes + self.offsets)[row, column]]
        shape = (len(codes), len(self.kept))
        sparse = csr_array((np.ones(len(row), dtype=dtype), (row, place)), shape=shape)
        return sparse if sparse.nnz < 0.1 * shape[0] * shape[1] else sparse.toarray()

    def total_log_prob(self, matrix: Any, log_theta: Array) -> Array:
        """Sum the logs (n_total, C) of the levels of each row, shape (n, C)."""
        relative = log_theta[self.kept] - log_theta[self.left_out][self.column[self.kept]]
        return matrix @ relative.astype(matrix.dtype) + log_theta[self.left_out].sum(axis=0)

    def weighted_counts(self, matrix: Any, weights: Array) -> Array:
        """Return the weights (n, C) summed over the rows with each level, shape (n_total, C)."""
        counts = np.zeros((self.n_total, weights.shape[1]))
        counts[self.kept] = matrix.T @ weights
        if len(self.offsets):
            rest = weights.sum(axis=0, dtype=np.float64) - np.add.reduceat(counts, self.offsets)
            counts[self.left_out] = np.maximum(rest, 0.0)
        return counts


# --- Chow-Liu tree --------------------------------------------------------------------------


class ChowLiuPeer(DiscretePeer):
    """Tree of greatest mutual information, times a Gaussian for continuous columns.

    The conditional probabilities are (count of both + a p(child)) / (count of parent + a); the
    pseudo-count a is the one with the maximum likelihood of the held-out rows.
    """

    name = "chow_liu"

    def __init__(
        self, data: DiscreteData, pseudo_counts: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)
    ) -> None:
        super().__init__(data)
        self.pseudo_counts = pseudo_counts

    def fit(self, rows: Rows, seed: int) -> ChowLiuPeer:
        """Choose the pseudo-count, then fit to all rows."""
        train, held = hold_out(rows, seed)
        pair_counts = self._count_pairs(train.codes)
        scores = []
        for pseudo_count in self.pseudo_counts:
            self._fit_tree(train.codes, pair_counts, pseudo_count)
            scores.append(self._tree_log_prob(held.codes).mean())
        pseudo_count = self.pseudo_counts[int(np.argmax(scores))]
        self._fit_tree(rows.codes, self._count_pairs(rows.codes), pseudo_count)
        self.gaussian_ = GaussianBlock().fit(rows.numbers)
        self.details_ = {"pseudo_count": pseudo_count}
        return self

    def log_prob(self, rows: Rows) -> Array:
        """Return log P of each row."""
        return self._tree_log_prob(rows.codes) + self.gaussian_.log_prob(rows.numbers)

    def _count_pairs(self, codes: Array, chunk_size: int = 5000) -> Array:
        """Return how often each two levels occur together, shape (n_total, n_total)."""
        self.offsets_ = np.concatenate([[0], np.cumsum(self.n_categories)]).astype(np.int64)
        counts = np.zeros((self.offsets_[-1], self.offsets_[-1]))
        for start in range(0, len(codes), chunk_size):
            flat = codes[start : start + chunk_size] + self.offsets_[:-1]
            ones = np.zeros((len(flat), len(counts)), dtype=np.float32)
            np.put_along_axis(ones, flat, 1.0, axis=1)
            counts += ones.T @ ones
        return counts

    def _fit_tree(self, codes: Array, pair_counts: Array, pseudo_count: float) -> None:
        marginals = smoothed_marginals(codes, self.n_categories)
        information = self._mutual_information(pair_counts, np.concatenate(marginals), pseudo_count)
        self.order_, self.parent_ = maximum_tree(information)
        self.log_root_ = np.log(marginals[self.order_[0]])
        self.log_conditional_ = {}
        for child in self.order_[1:]:
            counts = pair_counts[self._span(self.parent_[child]), self._span(child)]
            joint = counts + pseudo_count * marginals[child]
            self.log_conditional_[child] = np.log(joint / joint.sum(axis=1, keepdims=True))

    def _span(self, column: int) -> slice:
        return slice(self.offsets_[column], self.offsets_[column + 1])

    def _mutual_information(
        self, pair_counts: Array, marginals: Array, pseudo_count: float
    ) -> Array:
        """Return the mutual information of each two columns, in nats."""
        n = np.diag(pair_counts)[self._span(0)].sum()
        independent = marginals[:, None] * marginals
        joint = (pair_counts + pseudo_count * independent) / (n + pseudo_count)
        terms = joint * np.log(joint / independent)
        by_column = np.add.reduceat(terms, self.offsets_[:-1], axis=0)
        return np.add.reduceat(by_column, self.offsets_[:-1], axis=1)

    def _tree_log_prob(self, codes: Array) -> Array:
        total = self.log_root_[codes[:, self.order_[0]]]
        for child in self.order_[1:]:
            total = (
                total + self.log_conditional_[child][codes[:, self.parent_[child]], codes[:, child]]
            )
        return total


def maximum_tree(weights: Array) -> tuple[Array, Array]:
    """Return the nodes of the spanning tree of greatest weight, root first, and the parents."""
    distances = weights.max() - weights + 1.0  # a distance of zero would be no edge
    tree = minimum_spanning_tree(np.triu(distances, k=1))
    return breadth_first_order(tree, 0, directed=False)


# --- Latent classes -------------------------------------------------------------------------


class LatentClassPeer(DiscretePeer):
    """Mixture of products by expectation maximisation, with a Gaussian per class if mixed.

    The numbers of classes are tried in ascending order until two in a row score worse than the
    best on held-out rows, each with the strength of the prior and the number of iterations that
    are best there, all with at most 20000 rows. Then the mixture is fitted to all rows. Tables of
    more than 500 columns get at most 100 classes.
    """

    name = "latent_class"
    n_classes = (5, 10, 20, 50, 100, 200, 500)
    strengths = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)

    def __init__(
        self,
        data: DiscreteData,
        max_classes: int | None = None,
        max_iterations: int = 300,
        max_rows_for_choice: int = 20_000,
    ) -> None:
        super().__init__(data)
        limit = max_classes or (100 if len(self.levels) > 500 else math.inf)
        self.n_classes = tuple(n for n in type(self).n_classes if n <= limit)
        self.max_iterations = max_iterations
        self.max_rows_for_choice = max_rows_for_choice

    def fit(self, rows: Rows, seed: int) -> LatentClassPeer:
        """Choose, then fit to all rows."""
        self.mean_ = rows.numbers.mean(axis=0)
        self.scale_ = rows.numbers.std(axis=0)
        rows = self._standardize(rows)
        order = np.random.RandomState(seed).permutation(len(rows))
        train, held = hold_out(rows[order[: self.max_rows_for_choice]], seed)
        settings = self._choose(train, held, seed)
        n_iterations = settings.pop("n_iterations")
        self.mixture_ = ClassMixture(rows, self.n_categories, **settings)
        for _ in self.mixture_.iterate(rows, n_iterations, seed):
            pass
        self.details_ = {**settings, "n_iterations": n_iterations}
        return self

    def log_prob(self, rows: Rows) -> Array:
        """Return log P of each row."""
        return self.mixture_.log_prob(self._standardize(rows)) - np.log(self.scale_).sum()

    def _standardize(self, rows: Rows) -> Rows:
        return Rows(rows.codes, (rows.numbers - self.mean_) / self.scale_)

    def _choose(self, train: Rows, held: Rows, seed: int) -> dict[str, Any]:
        """Return number of classes, prior strength and iterations with the best held-out score."""
        best, best_score, n_worse = {}, -math.inf, 0
        position = self.strengths.index(1.0)
        for n_classes in self.n_classes:
            position, score, settings = self._climb(train, held, seed, n_classes, position)
            n_worse += 1
            if score > best_score:
                best, best_score, n_worse = settings, score, 0
            if n_worse == 2:
                break
        return best

    def _climb(
        self, train: Rows, held: Rows, seed: int, n_classes: int, position: int
    ) -> tuple[int, float, dict[str, Any]]:
        """Move to the better neighbour in ``strengths`` until there is none."""
        tried: dict[int, tuple[float, dict[str, Any]]] = {}
        while True:
            near = [
                p for p in (position, position - 1, position + 1) if 0 <= p < len(self.strengths)
            ]
            for p in near:
                if p not in tried:
                    tried[p] = self._try(train, held, seed, n_classes, self.strengths[p])
            best = max(near, key=lambda p: tried[p][0])
            if best == position:
                return position, *tried[position]
            position = best

    def _try(
        self, train: Rows, held: Rows, seed: int, n_classes: int, strength: float
    ) -> tuple[float, dict[str, Any]]:
        """Return the best held-out score over the iterations, and the settings that gave it."""
        settings: dict[str, Any] = {"n_classes": n_classes, "strength": strength}
        mixture = ClassMixture(train, self.n_categories, **settings)
        best_score, best_iteration = -math.inf, 0
        for iteration in mixture.iterate(train, self.max_iterations, seed):
            if iteration % 2 and iteration != self.max_iterations:
                continue
            score = mixture.log_prob(held).mean()
            if score > best_score + 1e-4:
                best_score, best_iteration = score, iteration
            elif iteration >= best_iteration + 20:
                break
        return best_score, {**settings, "n_iterations": best_iteration}


class ClassMixture:
    """Mixture of products of categorical distributions and a Gaussian, fitted to weighted rows.

    Parameters
    ----------
    rows : Rows
        Rows that tell the marginals; continuous columns standardised.
    n_categories : array of shape (n_discrete,)
        Number of levels of each column.
    n_classes : int
        Number of classes.
    strength : float
        Pseudo-count of each class and column, spread over its levels like the marginal.
    """

    def __init__(self, rows: Rows, n_categories: Array, n_classes: int, strength: float) -> None:
        self.n_classes = n_classes
        self.strength = strength
        self.indicators = Indicators(rows.codes, n_categories)
        marginals = smoothed_marginals(rows.codes, n_categories)
        self.marginals = np.concatenate([*marginals, np.empty(0)])[:, None]

    def iterate(self, rows: Rows, n_iterations: int, seed: int) -> Iterator[int]:
        """Fit by expectation maximisation; yield the number of each finished iteration."""
        rows, weights = merge_equal_rows(rows)
        matrix, features = self.indicators.matrix(rows.codes), quadratic_features(rows.numbers)
        self._start(rows, weights, np.random.RandomState(seed))
        for iteration in range(1, n_iterations + 1):
            log_joint = self._log_joint(matrix, features)
            log_joint -= log_joint.max(axis=1, keepdims=True)
            responsibility = np.exp(log_joint, out=log_joint)
            responsibility *= (weights / responsibility.sum(axis=1))[:, None]
            self._maximize(matrix, features, responsibility)
            yield iteration

    def log_prob(self, rows: Rows) -> Array:
        """Return log P of each row, float64."""
        matrix = self.indicators.matrix(rows.codes, np.float64)
        return logsumexp(self._log_joint(matrix, quadratic_features(rows.numbers)), axis=1)

    def _start(self, rows: Rows, weights: Array, generator: np.random.RandomState) -> None:
        """Set each class a tenth of the way from the marginals to a random row."""
        chance = weights / weights.sum()
        chosen = generator.choice(len(rows), self.n_classes, replace=True, p=chance)
        theta = np.repeat(0.9 * self.marginals, self.n_classes, axis=1)
        flat = rows.codes[chosen] + self.indicators.offsets
        np.add.at(theta, (flat, np.arange(self.n_classes)[:, None]), 0.1)
        self.log_theta = np.log(theta)
        self.log_weights = np.full(self.n_classes, -math.log(self.n_classes))
        d = rows.numbers.shape[1]
        covariances = np.repeat(np.eye(d)[None], self.n_classes, axis=0)
        self.quadratic = gaussian_coefficients(rows.numbers[chosen], covariances)

    def _log_joint(self, matrix: Any, features: Array) -> Array:
        """Return log P of row and class, shape (n, n_classes), in the precision of the matrix."""
        log_joint = self.indicators.total_log_prob(matrix, self.log_theta) + self.log_weights
        return (log_joint + features @ self.quadratic).astype(matrix.dtype)

    def _maximize(self, matrix: Any, features: Array, responsibility: Array) -> None:
        """Update all parameters from responsibilities times row weights, shape (n, n_classes)."""
        totals = responsibility.sum(axis=0, dtype=np.float64)
        counts = self.indicators.weighted_counts(matrix, responsibility)
        theta = (counts + self.strength * self.marginals) / (totals + self.strength)
        self.log_theta = np.log(theta)
        self.log_weights = np.log((totals + 0.1) / (totals + 0.1).sum())
        if features.shape[1] > 1:
            self._maximize_gaussians(responsibility.T.astype(np.float64) @ features)

    def _maximize_gaussians(self, moments: Array) -> None:
        """Update means and covariances, the latter shrunk to the common one (here the identity).

        The prior is that of Fraley and Raftery (2007): d + 2 rows, a volume of 1 / n_classes. More
        than ten columns are modelled as independent.
        """
        second = unpack_symmetric(moments)
        totals, sums, squares = second[:, 0, 0], second[:, 0, 1:], second[:, 1:, 1:]
        means = sums / (totals + 0.01)[:, None]
        cross = means[:, :, None] * sums[:, None, :]
        outer = totals[:, None, None] * means[:, :, None] * means[:, None, :]
        scatter = squares - cross - cross.transpose(0, 2, 1) + outer
        d = means.shape[1]
        prior = self.n_classes ** (-2.0 / d) * np.eye(d)
        covariances = (scatter + prior) / (totals + d + 2)[:, None, None]
        self.quadratic = gaussian_coefficients(
            means, covariances if d <= 10 else covariances * np.eye(d)
        )


def quadratic_features(numbers: Array) -> Array:
    """Return all products of two among 1 and the columns, shape (n, (d + 1) (d + 2) / 2)."""
    extended = np.column_stack([np.ones(len(numbers)), numbers])
    first, second = np.triu_indices(extended.shape[1])
    return extended[:, first] * extended[:, second]


def unpack_symmetric(packed: Array) -> Array:
    """Return the symmetric matrices (C, m, m) of upper triangles (C, m (m + 1) / 2)."""
    m = math.isqrt(2 * packed.shape[1])
    matrices = np.empty((len(packed), m, m))
    first, second = np.triu_indices(m)
    matrices[:, first, second] = matrices[:, second, first] = packed
    return matrices


def gaussian_coefficients(means: Array, covariances: Array) -> Array:
    """Return what to multiply the quadratic features by for log-densities, shape (n_features, C).

    Without columns the only feature is 1 and the log-density 0.
    """
    n_classes, d = means.shape
    precisions = np.linalg.inv(covariances)
    shifts = (precisions @ means[:, :, None])[:, :, 0]
    form = np.empty((n_classes, d + 1, d + 1))
    form[:, 0, 0] = (shifts * means).sum(axis=1) + d * math.log(2.0 * math.pi)
    form[:, 0, 0] += np.linalg.slogdet(covariances)[1]
    form[:, 0, 1:] = form[:, 1:, 0] = -shifts
    form[:, 1:, 1:] = precisions
    first, second = np.triu_indices(d + 1)
    return (np.where(first == second, -0.5, -1.0) * form[:, first, second]).T


def merge_equal_rows(rows: Rows) -> tuple[Rows, Array]:
    """Return distinct rows and their counts; rows with continuous columns stay as they are."""
    if rows.numbers.shape[1]:
        return rows, np.ones(len(rows), dtype=np.float32)
    codes, counts = np.unique(rows.codes, axis=0, return_counts=True)
    return Rows(codes, np.empty((len(codes), 0))), counts.astype(np.float32)


# --- Dequantised Gaussian mixture -----------------------------------------------------------


class DequantisedMixturePeer(DiscretePeer):
    """Gaussian mixture of the codes of the levels plus uniform noise of width 1.

    P of a row is the integral of the density over its cell, estimated as the mean over noise
    draws; the log of this mean is a lower bound of log P in expectation.
    """

    name = "dequantised_gaussian_mixture"

    def __init__(self, data: DiscreteData, n_draws: int = 8, n_init: int = 1) -> None:
        super().__init__(data)
        self.n_draws = n_draws
        self.mixture = GaussianMixturePeer("validation", n_init=n_init)

    @staticmethod
    def applies(data: DiscreteData) -> bool:
        """Whether all columns are ordered and not too many."""
        return not data.nominal and not data.n_continuous and len(data.levels) <= 200

    def fit(self, rows: Rows, seed: int) -> DequantisedMixturePeer:
        """Fit to the rows with noise; held-out rows choose the number of components."""
        self.seed_ = seed
        generator = np.random.RandomState(seed)
        train, held = (dequantise(part, generator) for part in hold_out(rows, seed))
        self.mixture.fit(train, held, seed)
        self.details_ = {"n_components": self.mixture.model_.n_components}
        return self

    def log_prob(self, rows: Rows) -> Array:
        """Return log P of each row."""
        return self.score(rows)[0]

    def score(self, rows: Rows) -> tuple[Array, Array]:
        """Return log P of each row and its standard error over the noise."""
        generator = np.random.RandomState(self.seed_ + 1)
        draws = np.stack(
            [self.mixture.score_samples(dequantise(rows, generator)) for _ in range(self.n_draws)]
        )
        log_prob = logsumexp(draws, axis=0) - math.log(self.n_draws)
        spread = np.exp(draws - log_prob).std(axis=0, ddof=1)
        return log_prob, spread / math.sqrt(self.n_draws)


def dequantise(rows: Rows, generator: np.random.RandomState) -> Array:
    """Return the codes plus uniform noise in [0, 1)."""
    return rows.codes + generator.uniform(size=rows.codes.shape)


# --- The published discrete estimator -------------------------------------------------------

ROUNDINGS = ("clamped", "soft", "hard")


class PublishedDiscretePeer(DiscretePeer):
    """Own implementation of the published discrete estimator with the published 2-D recipe.

    Kong, Brekelmans and Ver Steeg, "Information-Theoretic Diffusion", ICLR 2023:
    -log P(x) = 1/2 int |x - x_hat|^2 dSNR. The denoiser is trained as if the values were
    continuous (:class:`peers.PublishedRecipe`), and its output is clamped to the range of the
    levels, or rounded to levels: "hard" to the nearest one, "soft" to the mean of the levels
    weighted by exp(-(x_hat - level)^2 (1 + SNR) / 2). The published evaluation takes, at each
    log-SNR, the lesser of the clamped and the rounded mean error; here held-out rows choose among
    the three in each unit of log-SNR. ``details_`` has the held-out mean with each of the three
    throughout and with this choice. Small tables get more epochs, so that the number of steps is at
    least that of the demonstration with its 8000 rows. Beyond the ends of log-SNR, -12 and 12,
    stand the error of a standard normal variable and a bound for rounding the noisy values
    themselves.
    """

    name = "published_recipe"

    def __init__(
        self,
        data: DiscreteData,
        n_epochs: int = 160,
        min_steps: int = 9000,
        n_points: int = 200,
        max_rows_for_choice: int = 500,
    ) -> None:
        super().__init__(data)
        self.recipe = PublishedRecipe(n_epochs=n_epochs)
        self.min_steps = min_steps
        self.n_points = n_points
        self.max_rows_for_choice = max_rows_for_choice

    @staticmethod
    def applies(data: DiscreteData) -> bool:
        """Whether all columns are ordered and not too many."""
        return not data.nominal and not data.n_continuous and len(data.levels) <= 200

    def fit(self, rows: Rows, seed: int) -> PublishedDiscretePeer:
        """Train the denoiser; held-out rows choose how to round."""
        self.seed_ = seed
        train, held = hold_out(rows, seed)
        n_batches = max(1, len(train) // 128)
        self.recipe.n_epochs = max(self.recipe.n_epochs, math.ceil(self.min_steps / n_batches))
        self.recipe.fit(self._values(train), self._values(held), seed)
        self.grid_ = self._standardize_levels()
        self.tails_ = tail_terms(self.grid_, -12.0, 12.0)
        terms, interval = self._integrate(held[: self.max_rows_for_choice], seed + 2)
        self.choice_ = best_rounding(terms, interval)
        chosen = np.take_along_axis(terms, self.choice_[interval][None], axis=0)
        means = np.concatenate([terms, chosen]).mean(axis=(1, 2)) + self.tails_
        names = (*ROUNDINGS, "chosen")
        self.details_ = {
            "validation": {name: -float(mean) for name, mean in zip(names, means, strict=True)}
        }
        return self

    def log_prob(self, rows: Rows) -> Array:
        """Return log P of each row."""
        return self.score(rows)[0]

    def score(self, rows: Rows) -> tuple[Array, Array]:
        """Return log P of each row and its standard error over the random log-SNR and noise."""
        parts = []
        for start in range(0, len(rows), 500):
            terms, interval = self._integrate(rows[start : start + 500], self.seed_ + 10 + start)
            chosen = np.take_along_axis(terms, self.choice_[interval][None], axis=0)[0]
            parts.append((-chosen.mean(axis=1) - self.tails_, chosen.std(axis=1, ddof=1)))
        log_prob, spread = (np.concatenate(part) for part in zip(*parts, strict=True))
        return log_prob, spread / math.sqrt(self.n_points)

    def _values(self, rows: Rows) -> Array:
        """Return the rows as values of their levels, shape (n, d)."""
        columns = zip(self.levels, rows.codes.T, strict=True)
        return np.stack([levels[codes].astype(np.float64) for levels, codes in columns], axis=1)

    def _standardize_levels(self) -> Array:
        """Return the standardised levels, shape (largest number, d), NaN where there are fewer."""
        grid = np.full((self.n_categories.max(), len(self.levels)), np.nan)
        for j, levels in enumerate(self.levels):
            grid[: len(levels), j] = (levels - self.recipe.mean_[j]) / self.recipe.scale_[j]
        return grid

    def _integrate(self, rows: Rows, seed: int) -> tuple[Array, Array]:
        """Return terms of the integral (3, n, n_points), and their units of log-SNR."""
        generator = torch.Generator().manual_seed(seed)
        x = to_float32(self.recipe._standardize(self._values(rows)))
        chunk_size = max(1, 4000 // self.n_points)
        parts = [
            self._integrand(chunk.repeat_interleave(self.n_points, 0), generator)
            for chunk in x.split(chunk_size)
        ]
        terms, logsnr = (torch.cat(part, dim=-1).numpy() for part in zip(*parts, strict=True))
        interval = np.clip(np.floor(logsnr) + 12, 0, 23).astype(np.int64)
        shape = (len(rows), self.n_points)
        return terms.reshape(3, *shape), interval.reshape(shape)

    @torch.no_grad()
    def _integrand(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return one-point estimates (3, n) of -log P, one for each rounding, and the log-SNR."""
        n, d = x.shape
        logsnr, weight = sample_clipped_logistic(n, generator)
        a = logsnr.float()
        noise = torch.randn(n, d, generator=generator)
        signal_scale, noise_scale = (s.sigmoid().sqrt()[:, None] for s in (a, -a))
        z = signal_scale * x + noise_scale * noise
        x_hat = (z - noise_scale * self.recipe.denoiser_(z, a)) / signal_scale
        guesses = round_to_levels(x_hat, to_float32(self.grid_), a.exp()[:, None])
        errors = torch.stack([(x - guess).square().sum(dim=1) for guess in guesses]).double()
        return 0.5 * weight * logsnr.exp() * errors, logsnr


def round_to_levels(x_hat: Tensor, grid: Tensor, snr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_hat (n, d) clamped, softly and firmly rounded to the levels in ``grid`` (K, d)."""
    lowest = grid.nan_to_num(math.inf).amin(dim=0)
    highest = grid.nan_to_num(-math.inf).amax(dim=0)
    clamped = x_hat.maximum(lowest).minimum(highest)
    distance = (clamped - grid[:, None]).square().nan_to_num(math.inf)
    values = grid[:, None].nan_to_num(0.0)
    soft = ((-0.5 * (1.0 + snr) * distance).softmax(dim=0) * values).sum(dim=0)
    hard = values.expand_as(distance).gather(0, distance.argmin(dim=0, keepdim=True))[0]
    return clamped, soft, hard


def best_rounding(terms: Array, interval: Array) -> Array:
    """Return, for each unit of log-SNR, the index of the rounding with the least mean term."""
    sums = [np.bincount(interval.ravel(), part.ravel(), minlength=24) for part in terms]
    return np.argmin(sums, axis=0)


def tail_terms(grid: Array, lowest: float, highest: float) -> float:
    """Return bounds of 1/2 int error dSNR below and above the ends of log-SNR.

    Below stands the error of standard normal columns. Above, the noisy values are rounded to the
    nearest level: with at least a step h between levels, an error of j steps or more needs noise
    beyond (j - 1/2) h, of probability erfc((j - 1/2) h sqrt(SNR / 2)), and adds at most
    (2 j - 1) h^2 to the square.
    """
    tail = 0.5 * grid.shape[1] * math.log1p(math.exp(lowest))
    for column in grid.T:
        levels = column[~np.isnan(column)]
        if len(levels) > 1:
            step = np.diff(levels).min()
            j = np.arange(1, round((levels[-1] - levels[0]) / step) + 1)
            cut = (j - 0.5) * step / math.sqrt(2.0)
            tail += 0.5 * np.sum((2 * j - 1) * step**2 * erfc_integral(cut, math.exp(highest)))
    return float(tail)


def erfc_integral(cut: Array, start: float) -> Array:
    """Return the integral of erfc(cut sqrt(g)) over g from ``start`` to infinity."""
    rest = math.sqrt(start / math.pi) / cut * np.exp(-(cut**2) * start)
    return rest + (0.5 / cut**2 - start) * erfc(cut * math.sqrt(start))


PEERS: dict[str, Callable[..., DiscretePeer]] = {
    peer.name: peer
    for peer in (
        IndependentPeer,
        ChowLiuPeer,
        LatentClassPeer,
        DequantisedMixturePeer,
        PublishedDiscretePeer,
    )
}

QUICK_SETTINGS: dict[str, dict[str, Any]] = {
    "latent_class": {"max_classes": 10, "max_iterations": 20},
    "published_recipe": {"n_epochs": 2, "min_steps": 50, "n_points": 50},
}


def make_peer(name: str, data: DiscreteData, *, quick: bool = False) -> DiscretePeer:
    """Return an unfitted peer by name, with small settings if ``quick``."""
    if name not in PEERS:
        raise ValueError(f"Unknown peer {name!r}; choose one of {', '.join(PEERS)}.")
    return PEERS[name](data, **(QUICK_SETTINGS.get(name, {}) if quick else {}))
