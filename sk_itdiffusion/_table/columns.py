"""The columns of a table as coordinates of points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._immse.roles import Roles
from sk_itdiffusion._table.maps import Affine, Chain, ColumnMap, Quantile

__all__ = ["Columns"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Columns:
    """Columns of numbers, each with an increasing map; constant ones are no coordinates.

    Attributes
    ----------
    names : sequence of str
        Names of the columns, or their numbers.
    maps : sequence of ColumnMap
        Map of each column that varies.
    varies : ndarray of bool, shape (n_columns,)
        Columns that vary.
    constants : ndarray of shape (n_columns,)
        Values of the others.
    bounds : ndarray of shape (n_columns, 2)
        Bounds, infinite where there are none.
    is_given : ndarray of bool, shape (n_columns,)
        Whether the user gave the bounds; those that the rows suggest have a little mass beyond.
    n_rows : float
        Number of rows of the fit.
    """

    names: Sequence[str]
    maps: Sequence[ColumnMap]
    varies: Mask
    constants: Array
    bounds: Array
    is_given: Mask
    n_rows: float

    @property
    def n_points(self) -> int:
        """Number of coordinates of a point."""
        return len(self.maps)

    def with_maps(self, maps: Sequence[ColumnMap]) -> Columns:
        """Return the same columns with other maps."""
        return replace(self, maps=tuple(maps))

    def roles(self, roles: Roles) -> Roles:
        """Return the roles of the coordinates from those of the columns."""
        return Roles(roles.target[..., self.varies], roles.given[..., self.varies])

    def points(self, X: Array) -> tuple[Array, Array]:
        """Return points of rows, and the log-derivatives of their maps, 0 where missing."""
        X = np.clip(X, self.bounds[:, 0], self.bounds[:, 1])[:, self.varies]
        points, log_slope = np.full(X.shape, np.nan), np.zeros(X.shape)
        for j, each in enumerate(self.maps):
            seen = ~np.isnan(X[:, j])
            points[seen, j], log_slope[seen, j] = each.forward(X[seen, j])
        return points, log_slope

    def table(self, points: Array) -> Array:
        """Return the rows of points."""
        X = np.tile(self.constants, (len(points), 1))
        columns = [each.inverse(points[:, j]) for j, each in enumerate(self.maps)]
        if columns:
            X[:, self.varies] = np.column_stack(columns)
        return np.clip(X, self.bounds[:, 0], self.bounds[:, 1])

    def log_prob_beyond(self, X: Array, target: Mask) -> Array:
        """Return what targets add that have values which the fit has not seen possible.

        Constant columns are certain but for a probability of 1 / (n + 2) of another value, which
        falls exponentially with the distance, and so do values beyond bounds that rows suggested.
        Beyond bounds that the user gave the density is zero.
        """
        low, high = self.bounds.T
        outside = np.maximum(low - X, 0.0) + np.maximum(X - high, 0.0)
        outside = np.where(self.varies, outside, np.abs(X - self.constants))
        outside = np.where(np.isnan(X) | ~target, 0.0, outside)
        scale = np.maximum(np.abs(self.constants), 1e-300)
        rare = -np.log(self.n_rows + 2.0) - outside / scale
        allowed = np.where(outside > 0.0, np.where(self.is_given, -np.inf, rare), 0.0)
        return np.asarray(allowed.sum(axis=1))

    def kinds(self) -> list[str]:
        """Return the kind of map of each column that varies."""
        return [kind_of(each) for each in self.maps]

    def has_pareto_tail(self) -> Mask:
        """Return which coordinates have a tail that only a standard normal variance preserves."""
        lasts = [last_of(each) for each in self.maps]
        return np.array([isinstance(m, Quantile) and m.has_pareto_tail for m in lasts], dtype=bool)


def last_of(column: ColumnMap) -> ColumnMap:
    """Return the last map of a chain that is no standardisation."""
    if not isinstance(column, Chain):
        return column
    curved = [each for each in column.maps if not isinstance(each, Affine)]
    return curved[-1] if curved else column.maps[0]


def kind_of(column: ColumnMap) -> str:
    """Return the kind of a map, as the parameter ``marginals`` names it."""
    name = type(last_of(column)).__name__
    return {"Quantile": "quantile", "Power": "yeo_johnson"}.get(name, "standard")
