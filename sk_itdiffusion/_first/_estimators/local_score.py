r"""How near rows are to the training rows, compared with how near these are to each other.

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
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import KDTree

from sk_itdiffusion._first._estimators.contributions import columns_of_coordinates
from sk_itdiffusion._first._fit.model_of_parts import FARTHEST
from sk_itdiffusion._first.layout import Layout
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import (
    check_finite,
    check_in_range,
    check_not_negative,
    check_shapes,
)

__all__ = ["LocalScore"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]

#: Neighbours that a row is compared with, and how many rows there have to be for each.
MAX_NEIGHBORS = 10
ROWS_FOR_A_NEIGHBOR = 5
#: Distinct training rows that are kept.
MAX_ROWS = 5_000
#: Share of the neighbours' own log-distances that is subtracted: the square root of their spread.
SHARE_OF_SPREAD = 0.5
#: Training rows from which a typical squared distance in each column is taken.
ROWS_FOR_TYPICAL = 200
#: Differences of rows and neighbours that are held at a time.
NUMBERS_IN_A_PASS = 10**7


class Neighborhood:
    """Points, and which of them are nearest to others.

    Parameters
    ----------
    points : ndarray of shape (n, d)
        The points.
    """

    def __init__(self, points: Array) -> None:
        self.points = points
        self._tree = KDTree(points)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Neighborhood) and np.array_equal(self.points, other.points)

    __hash__ = None  # type: ignore[assignment]

    def of(self, points: Array, n_neighbors: int) -> tuple[Array, Index]:
        """Return distances to the nearest points, and their numbers, (n, n_neighbors).

        One that is equal to a point is left out.
        """
        distance, index = self._tree.query(points, k=n_neighbors + 1)
        is_own = distance[:, :1] == 0.0
        return (
            np.where(is_own, distance[:, 1:], distance[:, :-1]),
            np.where(is_own, index[:, 1:], index[:, :-1]),
        )


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
    log_spread : ndarray of shape (n,)
        Mean logarithm of the squared distances of each training row to its own neighbours, of the
        most isolated ones that of the others.
    typical : ndarray of shape (n_columns,)
        Mean squared difference of training rows and their neighbours in each column.
    """

    layout: Layout
    rows: Array
    n_copies: Index
    floors: Array
    log_spread: Array
    typical: Array
    _neighborhood: Neighborhood = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._check()
        object.__setattr__(self, "_neighborhood", Neighborhood(self._points_of(self._repeated)))

    @classmethod
    def of(
        cls, layout: Layout, rows: Array, n_copies: Index, floors: Array, trim: float = 0.0
    ) -> LocalScore | None:
        """Return the local score of training rows in random order; None of a single one.

        The share of them that is to be trimmed counts as no more isolated than the others.
        """
        rows, n_copies = rows[:MAX_ROWS], n_copies[:MAX_ROWS]
        if n_copies.sum() < 2:
            return None
        nothing = np.zeros(len(rows)), np.zeros(layout.n_columns)
        empty = cls(layout, rows, n_copies, floors, *nothing)
        points = empty._points_of(rows)
        spread = empty._logs(empty._neighbors(points)[0] ** 2).mean(axis=1)
        order = np.argsort(spread, kind="stable")
        share = np.cumsum(n_copies[order]) / n_copies.sum()
        last = int(np.searchsorted(share, (1.0 - trim) * (1.0 - 1e-12)))
        spread = np.minimum(spread, spread[order[min(last, len(order) - 1)]])
        few = points[:ROWS_FOR_TYPICAL]
        typical = empty._squares(few, empty._neighbors(few)[1]).mean(axis=(0, 1))
        return replace(empty, log_spread=spread, typical=typical)

    # -- neighbours --------------------------------------------------------------------------

    @property
    def n_neighbors(self) -> int:
        """Number of neighbours that a row is compared with."""
        n_rows = int(self.n_copies.sum())
        return min(MAX_NEIGHBORS, max(1, n_rows // ROWS_FOR_A_NEIGHBOR), n_rows - 1)

    @property
    def _row_of_point(self) -> Index:
        # More copies than neighbours make no difference.
        return np.repeat(np.arange(len(self.rows)), np.minimum(self.n_copies, self.n_neighbors + 1))

    @property
    def _repeated(self) -> Array:
        return self.rows[self._row_of_point]

    def _points_of(self, rows: Array) -> Array:
        """Return the points of rows; values that are not categories are in the middle of these."""
        n_continuous = self.layout.n_continuous
        numbers = np.clip(rows[:, :n_continuous], -FARTHEST, FARTHEST)
        codes = rows[:, n_continuous:]
        points = self.layout.embed_array(np.hstack([numbers, np.maximum(codes, 0.0)]))
        if not codes.size:
            return np.ascontiguousarray(points)
        unseen = np.hstack([np.zeros(numbers.shape, dtype=bool), codes < 0.0])
        return np.where(unseen[:, columns_of_coordinates(self.layout)], 0.0, points)

    def _neighbors(self, points: Array) -> tuple[Array, Index]:
        """Return distances to the nearest points, and their numbers, (n, n_neighbors)."""
        return self._neighborhood.of(points, self.n_neighbors)

    @property
    def _variances(self) -> Array:
        """Variances of the noise at the floors."""
        return np.exp(-self.floors)

    def _logs(self, squares: Array) -> Array:
        """Return the logarithms of mean squared distances of rows plus noise."""
        width = self._neighborhood.points.shape[1]
        logs = [np.log(squares + width * variance) for variance in self._variances]
        return np.asarray(np.mean(logs, axis=0))

    # -- scores ------------------------------------------------------------------------------

    def scores(self, rows: Array) -> Array:
        """Return the local scores of mapped rows, (n,)."""
        distance, index = self._neighbors(self._points_of(rows))
        spread = self.log_spread[self._row_of_point][index]
        return -np.asarray((self._logs(distance**2) - SHARE_OF_SPREAD * spread).mean(axis=1))

    def _squares(self, points: Array, index: Index) -> Array:
        """Return squared differences by columns, (n, n_neighbors, n_columns)."""
        squares = (points[:, None, :] - self._neighborhood.points[index]) ** 2
        return np.asarray(
            squares @ np.eye(self.layout.n_columns)[columns_of_coordinates(self.layout)]
        )

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
        n_rows = max(
            1, NUMBERS_IN_A_PASS // (self.n_neighbors * self._neighborhood.points.shape[1])
        )
        parts = np.empty((len(rows), self.layout.n_columns))
        for start in range(0, len(rows), n_rows):
            points = self._points_of(rows[start : start + n_rows])
            squares = self._squares(points, self._neighbors(points)[1])
            parts[start : start + n_rows] = -self._shares(squares).mean(axis=1)
        return parts

    def _shares(self, squares: Array) -> Array:
        """Return shares of the columns in the logarithms of their sums, (..., n_columns)."""
        change = squares - self.typical
        total, typical = squares.sum(axis=-1), float(self.typical.sum())
        rise = self._logs(total) - self._logs(np.asarray(typical))
        difference = total - typical
        slope = np.divide(rise, difference, out=np.zeros_like(total), where=difference != 0.0)
        return np.asarray(change * slope[..., None])

    def _check(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        shapes = {"rows": "nc", "n_copies": "n", "floors": "f", "log_spread": "n", "typical": "c"}
        check_shapes(self, shapes, c=self.layout.n_columns)
        check_in_range(self.rows, -math.inf, math.inf, "training rows")
        for j, variable in enumerate(self.layout.variables, start=self.layout.n_continuous):
            check_in_range(self.rows[:, j], -math.inf, variable.n_categories - 1, "codes")
        check_in_range(self.n_copies, 1, math.inf, "copies of rows")
        check_finite(self.log_spread, "spreads of neighbours")
        check_not_negative(self.typical, "typical squared differences")
        check_in_range(self.floors, -100.0, 100.0, "noise floors")
        if self.n_copies.sum() < 2:
            raise ValueError("a local score needs two rows")
