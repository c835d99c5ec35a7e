r"""Normal distributions of rows with missing entries.

With :math:`P` the inverse of a covariance, :math:`m` the missing columns of a row and :math:`r`
its deviation from the mean, with zeros where entries are missing,

.. math:: x_m \mid x_o \sim N\left(\mu_m - P_{mm}^{-1} (P r)_m,\; P_{mm}^{-1}\right), \qquad
    \log\det\Sigma_{oo} = \log\det\Sigma + \log\det P_{mm},

and the quadratic form of the observed part is that of the row whose missing entries have their
conditional means.  So the work for a pattern of missing entries is that of a matrix of as many
columns as are missing, and there may be thousands of patterns.  The density of some entries given
others is that of their deviation from the conditional mean, with zeros where entries are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from sk_itdiffusion._first.references.parts import Block, blocks_of_patterns

__all__ = ["ExpectedMoments", "NormalParts", "blocks_of_rows", "one_by_one"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ExpectedMoments:
    """Sums over rows, with their memberships in components, given their observed entries.

    Attributes
    ----------
    mass : ndarray of shape (n_components,)
        Sums of the memberships.
    squared_mass : ndarray of shape (n_components,)
        Sums of the squared weights, with the memberships.
    observed : ndarray of shape (n_components,)
        Shares of the entries that were observed.
    mean : ndarray of shape (n_components, d)
        Means.
    covariance : ndarray of shape (n_components, d, d)
        Covariances, around these means; 0 for a component without rows.
    fourth : ndarray of shape (n_components,)
        Means of the fourth powers of the rows' distances to the means before.
    log_likelihood : float
        Sum of weight times log-density of the rows.
    membership : ndarray of shape (n_components, n_rows)
        Probabilities of the components, times the weights of the rows.
    """

    mass: Array
    squared_mass: Array
    observed: Array
    mean: Array
    covariance: Array
    fourth: Array
    log_likelihood: float
    membership: Array


class NormalParts:
    """Normal distributions whose parts are asked for.

    Parameters
    ----------
    means : ndarray of shape (n_components, d)
        Means.
    variances : ndarray of shape (n_components, d)
        Eigenvalues of the covariances.
    basis : ndarray of shape (n_components, d, d)
        Their eigenvectors, in columns.
    """

    def __init__(self, means: Array, variances: Array, basis: Array) -> None:
        self.means = means
        self.whitening = basis / np.sqrt(variances)[:, None, :]
        self.precisions = self.whitening @ np.swapaxes(self.whitening, 1, 2)
        self.log_determinants = np.log(variances).sum(axis=1)

    @classmethod
    def of_covariances(cls, means: Array, covariances: Array) -> NormalParts:
        """Return those of positive definite covariances."""
        return cls(means, *np.linalg.eigh(covariances))

    @classmethod
    def of_tensors(cls, means: Tensor, variances: Tensor, basis: Tensor) -> NormalParts:
        """Return those of tensors of any precision."""
        return cls(*(part.detach().cpu().double().numpy() for part in (means, variances, basis)))

    @property
    def n_components(self) -> int:
        """Number of distributions."""
        return len(self.means)

    def log_densities(self, X: Array) -> Array:
        """Return the log-densities of the observed entries of rows, (n_components, n_rows).

        Those of a row do not depend on the other rows to the last bit.
        """
        found = np.empty((self.n_components, len(X)))
        for block in blocks_of_rows(X, self.n_components):
            deviation, _, volume = self._expected(self._deviations(X, block), block, one_by_one)
            found[:, block.rows] = self._log_densities(deviation, volume, one_by_one)
        return found

    def log_densities_given(self, X: Array, given: NDArray[np.bool_]) -> tuple[Array, Array]:
        """Return the log-densities of given entries of rows, and of the others given these.

        Parameters
        ----------
        X : ndarray of shape (n_rows, d)
            Rows; NaN for what is missing.
        given : ndarray of shape (n_rows, d), bool
            Observed entries that are given.

        Returns
        -------
        of_given, of_others : ndarray of shape (n_components, n_rows)
            Log-densities, of which those of a row do not depend on the other rows to the last bit.
            What is given, however far out, does not make the second ones less exact, since these
            are no differences of log-densities.
        """
        of_given, of_others = np.empty((2, self.n_components, len(X)))
        known = np.where(given, X, np.nan)
        for block in blocks_of_rows(known, self.n_components):
            rows = X[block.rows]
            deviation, _, volume = self._expected(self._deviations(known, block), block, one_by_one)
            of_given[:, block.rows] = self._log_densities(deviation, volume, one_by_one)
            residual = np.nan_to_num(rows.T - self.means[:, :, None] - deviation)
            for part in blocks_of_rows(rows, self.n_components):
                both, _, of_both = self._expected(residual[:, :, part.rows], part, one_by_one)
                found = self._log_densities(both, of_both - volume[:, part.rows], one_by_one)
                of_others[:, block.rows[part.rows]] = found
        return of_given, of_others

    def conditional_means(self, X: Array) -> Array:
        """Return rows whose missing entries have their conditional means, (n_components, n, d)."""
        found = np.empty((self.n_components, *X.shape))
        for block in blocks_of_rows(X, self.n_components):
            deviation, _, _ = self._expected(self._deviations(X, block), block, one_by_one)
            found[:, block.rows] = np.swapaxes(deviation + self.means[:, :, None], 1, 2)
        return found

    def given(
        self, columns: Sequence[int], others: Sequence[int], values: Array
    ) -> tuple[Array, Array]:
        """Return means and covariances of the other columns, given values of some.

        Returns
        -------
        means : ndarray of shape (n_components, n_others)
            Conditional means.
        covariances : ndarray of shape (n_components, n_others, n_others)
            Conditional covariances.
        """
        rows = np.ix_(range(self.n_components), others, others)
        covariances = np.linalg.inv(self.precisions[rows])
        across = self.precisions[np.ix_(range(self.n_components), others, columns)]
        pull = across @ (values - self.means[:, columns])[:, :, None]
        means = self.means[:, others] - (covariances @ pull)[:, :, 0]
        return means, np.asarray(0.5 * (covariances + np.swapaxes(covariances, 1, 2)), np.float64)

    def drawn(self, X: Array, chosen: NDArray[np.intp], uniform: Array) -> Array:
        """Return rows whose missing entries are drawn, each from the component that it chooses.

        Parameters
        ----------
        X : ndarray of shape (n_rows, d)
            Rows; NaN for what is missing.
        chosen : ndarray of shape (n_rows,)
            Numbers of components.
        uniform : ndarray of shape (n_rows, d)
            Numbers in (0, 1) for the columns.

        Returns
        -------
        ndarray of shape (n_rows, d)
            The rows.
        """
        found = X.copy()
        d = X.shape[1]
        for block in blocks_of_patterns(np.isnan(X), lambda n_missing: d * d):
            rows, component = block.rows, chosen[block.rows]
            precisions = self.precisions[component]
            holes = block.columns[block.pattern]  # (n_rows, m)
            own = np.arange(len(rows))[:, None]
            deviation = np.nan_to_num(X[rows] - self.means[component])
            pull = np.zeros_like(deviation)
            for j in range(d):
                pull += precisions[:, :, j] * deviation[:, j, None]
            inner = precisions[own[:, :, None], holes[:, :, None], holes[:, None, :]]
            root = np.linalg.cholesky(inner)
            white = ndtri(uniform[rows[:, None], holes])[:, :, None]
            towards = np.linalg.solve(inner, pull[own, holes][:, :, None])
            spread = np.linalg.solve(np.swapaxes(root, 1, 2), white)
            means = self.means[component[:, None], holes]
            found[rows[:, None], holes] = means + (spread - towards)[:, :, 0]
        return found

    def moments(
        self,
        X: Array,
        weight: Array,
        log_terms: Array,
        blocks: Sequence[Block],
        is_fourth: bool = False,
    ) -> ExpectedMoments:
        """Return the moments of rows given the observed entries: one step of the algorithm (EM).

        Parameters
        ----------
        X : ndarray of shape (n_rows, d)
            Rows; NaN for what is missing.
        weight : ndarray of shape (n_rows,)
            Weights.
        log_terms : ndarray of shape (n_components, n_rows) or (n_components, 1)
            What is added to the components' log-densities of the rows: logarithms of weights, and
            of what else is known of the rows.
        blocks : sequence of Block
            What `blocks_of_rows` returns.
        is_fourth : bool, default=False
            Whether the fourth powers are asked for; they are 0 otherwise.

        Returns
        -------
        ExpectedMoments
            The moments.
        """
        n_components, d = self.means.shape
        mass, squared, observed, fourth = np.zeros((4, n_components))
        first = np.zeros((n_components, d))
        second = np.zeros((n_components, d, d))
        membership = np.empty((n_components, len(X)))
        total = 0.0
        log_terms = np.broadcast_to(log_terms, (n_components, len(X)))
        for block in blocks:
            deviation, spread, volume = self._expected(self._deviations(X, block), block, np.matmul)
            log_density = self._log_densities(deviation, volume, np.matmul)
            log_joint = log_density + log_terms[:, block.rows]
            top = log_joint.max(axis=0)
            log_row = top + np.log(np.exp(log_joint - top).sum(axis=0))
            total += float(weight[block.rows] @ log_row)
            member = weight[block.rows] * np.exp(log_joint - log_row)
            sums = member.sum(axis=1)
            n_missing = block.columns.shape[1]
            mass += sums
            squared += member @ weight[block.rows]
            membership[:, block.rows] = member
            observed += sums * (d - n_missing)
            first += np.matmul(deviation, member[:, :, None])[:, :, 0]
            second += np.matmul(deviation * member[:, None], np.swapaxes(deviation, 1, 2))
            if n_missing:
                self._add_spread(second, block, member, spread)
            if is_fourth:
                fourth += (member * self._fourth_powers(block, deviation, spread)).sum(axis=1)
        present = np.maximum(mass, np.finfo(np.float64).tiny)
        shift = first / present[:, None]
        covariance = second / present[:, None, None] - shift[:, :, None] * shift[:, None, :]
        return ExpectedMoments(
            mass,
            squared,
            observed / (d * present),
            self.means + shift,
            0.5 * (covariance + np.swapaxes(covariance, 1, 2)),
            fourth / present,
            total,
            membership,
        )

    @staticmethod
    def _add_spread(second: Array, block: Block, member: Array, spread: Array) -> None:
        """Add the conditional covariances of what is missing to sums of products."""
        d = second.shape[1]
        start = np.flatnonzero(np.diff(block.pattern, prepend=-1))
        weight = np.add.reduceat(member, start, axis=1)  # (n_components, n_patterns)
        place = (block.columns[:, :, None] * d + block.columns[:, None, :]).ravel()
        for total, scale, part in zip(second, weight, spread, strict=True):
            values = (scale[:, None, None] * part).ravel()
            total += np.bincount(place, values, d * d).reshape(d, d)

    @staticmethod
    def _fourth_powers(block: Block, deviation: Array, spread: Array) -> Array:
        """Return expected fourth powers of the rows' distances to means, (n_components, n_rows)."""
        squares = np.square(deviation).sum(axis=1)
        if not block.columns.shape[1]:
            return np.asarray(np.square(squares))
        trace = np.trace(spread, axis1=2, axis2=3)[:, block.pattern]
        of_products = np.square(spread).sum(axis=(2, 3))[:, block.pattern]
        columns, place = block.holes
        pull = deviation[:, columns, place]  # (n_components, m, n_rows)
        along = np.einsum("kmr,krmn,knr->kr", pull, spread[:, block.pattern], pull, optimize=True)
        return np.asarray(np.square(squares + trace) + 2.0 * of_products + 4.0 * along)

    def _deviations(self, X: Array, block: Block) -> Array:
        """Return a block's rows less the means, 0 where entries are missing, (K, d, n_rows)."""
        return np.asarray(np.nan_to_num(X[block.rows].T - self.means[:, :, None]), np.float64)

    def _expected(
        self, deviation: Array, block: Block, product: Callable[[Array, Array], Array]
    ) -> tuple[Array, Array, Array]:
        """Return what is known of a block's rows under each component.

        Parameters
        ----------
        deviation : ndarray of shape (n_components, d, n_rows)
            The rows less the means, 0 where entries are missing; it is overwritten.
        block : Block
            The rows.
        product : callable
            Product of matrices and vectors.

        Returns
        -------
        deviation : ndarray of shape (n_components, d, n_rows)
            Conditional means of the rows less the means.
        spread : ndarray of shape (n_components, n_patterns, m, m)
            Conditional covariances of what is missing.
        volume : ndarray of shape (n_components, n_rows)
            Logarithms of the determinants of 2 pi times the covariances of what is observed.
        """
        columns, place = block.holes
        holes = block.columns
        inner = self.precisions[:, holes[:, :, None], holes[:, None, :]]
        spread: Array = inner
        n_observed = deviation.shape[1] - holes.shape[1]
        volume = self.log_determinants[:, None] + n_observed * math.log(2.0 * math.pi)
        volume = volume + np.zeros((1, deviation.shape[2]))
        if holes.shape[1]:
            spread = np.asarray(np.linalg.inv(inner), np.float64)
            volume += np.asarray(np.linalg.slogdet(inner)[1], np.float64)[:, block.pattern]
            pull = product(self.precisions, deviation)[:, columns, place]
            towards = np.zeros_like(pull)
            for j in range(holes.shape[1]):
                of_row = np.swapaxes(spread[:, :, :, j][:, block.pattern], 1, 2)
                towards += of_row * pull[:, j, None]
            deviation[:, columns, place] = -towards
        return deviation, spread, volume

    def _log_densities(
        self, deviation: Array, volume: Array, product: Callable[[Array, Array], Array]
    ) -> Array:
        """Return log-densities of rows less the means, of logarithms of volumes, (K, n_rows)."""
        squares = np.square(product(np.swapaxes(self.whitening, 1, 2), deviation))
        total = np.zeros_like(squares[:, 0])
        for j in range(squares.shape[1]):
            total += squares[:, j]
        return np.asarray(-0.5 * (total + volume))


def blocks_of_rows(X: Array, n_components: int) -> list[Block]:
    """Return rows with and without holes in blocks for so many components."""
    width = int(X.shape[1])

    def n_numbers(n_missing: int) -> int:
        return n_components * max(width, n_missing * n_missing)

    return list(blocks_of_patterns(np.isnan(X), n_numbers))


def one_by_one(matrices: Array, vectors: Array) -> Array:
    """Return matrices (K, e, d) times vectors (K, d, n), each of which is multiplied by itself."""
    found = np.zeros((len(matrices), matrices.shape[1], vectors.shape[2]))
    for j in range(vectors.shape[1]):
        if vectors[:, j].any():
            found += matrices[:, :, j, None] * vectors[:, None, j]
    return found
