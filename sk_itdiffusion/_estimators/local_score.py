r"""How near rows are to the training rows, beside how near these are to each other.

Where clusters of different scale meet, few rows are in each, and many columns are correlated, a
mixture is too coarse to say how unlike a row is.  The *local* score compares its distances to the
nearest training rows, on a logarithmic scale, with those that the neighbours have to their own:

.. math:: L(x) = -\frac1k \sum_{i \in N(x)} \left( \log r_i^2(x) - \frac12 \log h_i^2 \right),
    \qquad r_i^2(x) = \|x - x_i\|^2 + d\, e^{-a_1}, \qquad
    \log h_i^2 = \frac1k \sum_{l \in N(x_i)} \log r_l^2(x_i).

:math:`r_i^2` is the mean squared distance of the row plus the noise of the floor :math:`a_1`; with
several floors their logarithms are averaged.  The half is the square root of Abramson (1982), the
rule for kernels whose width follows the density: between distances alone, by which all of a wide
cluster is odd, and their ratios, by which nothing is far from rows that are far themselves.  A
training row is no neighbour of its own: of the training rows equal to a row one is left out.

References
----------
I. S. Abramson. "On Bandwidth Variation in Kernel Estimates: A Square Root Law". The Annals of
Statistics, 1982.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import KDTree

from sk_itdiffusion.layout import Layout
from sk_itdiffusion.persistence import stored
from sk_itdiffusion.persistence.checks import check_in_range, check_shapes

__all__ = ["LocalScore"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]

#: Neighbours that a row is compared with, and how many rows there have to be for each.
MAX_NEIGHBORS = 20
ROWS_FOR_A_NEIGHBOR = 5
#: Distinct training rows that are kept.
MAX_ROWS = 5_000
#: Share of the neighbours' own log-distances that is subtracted: the square root of their spread.
SHARE_OF_SPREAD = 0.5
#: Training rows from which a typical squared distance in each column is taken.
ROWS_FOR_TYPICAL = 200
#: Squares of numbers farther out overflow.
FARTHEST = 1e100
#: Differences of rows and neighbours that are held at a time.
NUMBERS_IN_A_PASS = 10**7


@stored()
@dataclass(frozen=True)
class LocalScore:
    """Local scores of rows in the space of a model.

    Attributes
    ----------
    layout : Layout
        Where the columns are in points.
    rows : ndarray of shape (n, n_columns)
        Distinct training rows: mapped numbers, and codes in discrete columns.
    n_copies : ndarray of shape (n,), int
        How often each of them counts.
    floors : ndarray of shape (n_floors,)
        Finite log-SNRs of the noise floors.
    """

    layout: Layout
    rows: Array
    n_copies: Index
    floors: Array

    @classmethod
    def of(cls, layout: Layout, rows: Array, n_copies: Index, floors: Array) -> LocalScore | None:
        """Return the local score of training rows in random order; None of a single one."""
        rows, n_copies = rows[:MAX_ROWS], n_copies[:MAX_ROWS]
        if n_copies.sum() < 2:
            return None
        return cls(layout, rows, n_copies, floors)

    # -- neighbours --------------------------------------------------------------------------

    @cached_property
    def n_neighbors(self) -> int:
        """Number of neighbours that a row is compared with."""
        n_rows = int(self.n_copies.sum())
        return min(MAX_NEIGHBORS, max(1, n_rows // ROWS_FOR_A_NEIGHBOR), n_rows - 1)

    @cached_property
    def _row_of_point(self) -> Index:
        # More copies than neighbours make no difference.
        return np.repeat(np.arange(len(self.rows)), np.minimum(self.n_copies, self.n_neighbors + 1))

    @cached_property
    def _points(self) -> Array:
        return self._points_of(self.rows)[self._row_of_point]

    @cached_property
    def _tree(self) -> KDTree:
        return KDTree(self._points)

    @cached_property
    def _log_spread(self) -> Array:
        """Mean logarithm of the squared distances of each point to its own neighbours."""
        distance, _ = self._neighbors(self._points_of(self.rows))
        return np.asarray(self._logs(distance**2).mean(axis=1)[self._row_of_point])

    def _points_of(self, rows: Array) -> Array:
        """Return the points of rows; values that are no categories are in the middle of these."""
        n_continuous = self.layout.n_continuous
        numbers = np.clip(rows[:, :n_continuous], -FARTHEST, FARTHEST)
        codes = rows[:, n_continuous:]
        points = self.layout.embed_array(np.hstack([numbers, np.maximum(codes, 0.0)]))
        if not codes.size:
            return np.ascontiguousarray(points)
        unseen = np.hstack([np.zeros(numbers.shape, dtype=bool), codes < 0.0])
        return np.where(unseen[:, self._columns], 0.0, points)

    @cached_property
    def _columns(self) -> Index:
        """The column of each coordinate of a point; continuous columns come first."""
        columns = self.layout.owners() + self.layout.n_continuous
        columns[: self.layout.n_continuous] = np.arange(self.layout.n_continuous)
        return np.asarray(columns, dtype=np.intp)

    def _neighbors(self, points: Array) -> tuple[Array, Index]:
        """Return distances to the nearest points, and their numbers, (n, n_neighbors)."""
        distance, index = self._tree.query(points, k=self.n_neighbors + 1)
        is_own = distance[:, :1] == 0.0
        return (
            np.where(is_own, distance[:, 1:], distance[:, :-1]),
            np.where(is_own, index[:, 1:], index[:, :-1]),
        )

    @property
    def _variances(self) -> Array:
        """Variances of the noise at the floors."""
        return np.exp(-self.floors)

    def _logs(self, squares: Array) -> Array:
        """Return the logarithms of mean squared distances of rows plus noise."""
        width = self._points.shape[1]
        logs = [np.log(squares + width * variance) for variance in self._variances]
        return np.asarray(np.mean(logs, axis=0))

    # -- scores ------------------------------------------------------------------------------

    def scores(self, rows: Array) -> Array:
        """Return the local scores of mapped rows, (n,)."""
        distance, index = self._neighbors(self._points_of(rows))
        spread = self._log_spread[index]
        return -np.asarray((self._logs(distance**2) - SHARE_OF_SPREAD * spread).mean(axis=1))

    @cached_property
    def _typical(self) -> Array:
        """Mean squared difference of training rows and their neighbours in each column."""
        points = self._points_of(self.rows[:ROWS_FOR_TYPICAL])
        return np.asarray(self._squares(points, self._neighbors(points)[1]).mean(axis=(0, 1)))

    def _squares(self, points: Array, index: Index) -> Array:
        """Return squared differences by columns, (n, n_neighbors, n_columns)."""
        squares = (points[:, None, :] - self._points[index]) ** 2
        return np.asarray(squares @ np.eye(self.layout.n_columns)[self._columns])

    def contributions(self, rows: Array) -> Array:
        """Return what each column contributes to the scores of mapped rows, (n, n_columns).

        Parameters
        ----------
        rows : ndarray of shape (n, n_columns)
            Mapped rows.

        Returns
        -------
        ndarray of shape (n, n_columns)
            Shares of the change of the score from squared distances that are typical in each
            column, along the straight line to those of the row.  A row sums to its score less that
            at the typical distances, up to the spread of neighbours, which is no column's own.
        """
        n_rows = max(1, NUMBERS_IN_A_PASS // (self.n_neighbors * self._points.shape[1]))
        parts = np.empty((len(rows), self.layout.n_columns))
        for start in range(0, len(rows), n_rows):
            points = self._points_of(rows[start : start + n_rows])
            squares = self._squares(points, self._neighbors(points)[1])
            parts[start : start + n_rows] = -self._shares(squares).mean(axis=1)
        return parts

    def _shares(self, squares: Array) -> Array:
        """Return shares of the columns in the logarithms of their sums, (..., n_columns)."""
        change = squares - self._typical
        total, typical = squares.sum(axis=-1), float(self._typical.sum())
        rise = self._logs(total) - self._logs(np.asarray(typical))
        difference = total - typical
        slope = np.divide(rise, difference, out=np.zeros_like(total), where=difference != 0.0)
        return np.asarray(change * slope[..., None])

    def _finish_loading(self) -> None:
        """Raise an error if parts do not fit together, or numbers are out of range."""
        check_shapes(self, {"rows": "nc", "n_copies": "n", "floors": "f"}, c=self.layout.n_columns)
        check_in_range(self.rows, -math.inf, math.inf, "training rows")
        check_in_range(self.n_copies, 1, math.inf, "copies of rows")
        check_in_range(self.floors, -100.0, 100.0, "noise floors")
        if self.n_copies.sum() < 2:
            raise ValueError("a local score needs two rows")
