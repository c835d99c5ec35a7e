"""The columns of a table, and the maps that can be fitted to them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._model.table import Table
from sk_itdiffusion._table.columns import Columns
from sk_itdiffusion._table.maps import ColumnMap, fit_map

__all__ = ["KINDS", "fit_one", "read_columns"]

Array = NDArray[np.float64]
KINDS = ("standard", "yeo_johnson", "quantile")


def read_columns(table: Table, bounds: Array, is_given: NDArray[np.bool_]) -> Columns:
    """Return the columns of a table, standardised.

    Parameters
    ----------
    table : Table
        Rows.
    bounds : ndarray of shape (n_columns, 2)
        Bounds, infinite where there are none.
    is_given : ndarray of bool, shape (n_columns,)
        Whether the user gave the bounds.

    Returns
    -------
    Columns
        The columns.
    """
    low, high = np.nanmin(table.X, axis=0), np.nanmax(table.X, axis=0)
    varies = low < high
    columns = Columns(table.names, (), varies, low, bounds, is_given, float(table.weight.sum()))
    maps = [fit_one(table, int(j), "standard", tuple(bounds[j])) for j in np.flatnonzero(varies)]
    return columns.with_maps(maps)


def fit_one(
    table: Table,
    j: int,
    kind: str,
    bounds: tuple[float, float],
    rows: NDArray[np.bool_] | None = None,
) -> ColumnMap:
    """Return the map of one kind fitted to a column, or to some of its rows."""
    x, weight = table.X[:, j], table.weight
    seen = ~np.isnan(x) if rows is None else ~np.isnan(x) & rows
    if not seen.any() or x[seen].min() == x[seen].max():
        seen = ~np.isnan(x)
    return fit_map(kind, x[seen], weight[seen], bounds)
