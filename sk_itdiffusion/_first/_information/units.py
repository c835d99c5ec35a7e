"""Means over rows that are not all independent: those of a group, and copies of one row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._immse.cubature import keys_apart, row_keys, sums_over_sources
from sk_itdiffusion._first.references.judging import mean_and_error

__all__ = ["first_of_units", "mean_over_rows", "random_order", "units_of"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]


def mean_over_rows(values: Array, unit: Index | None = None) -> tuple[float, float]:
    """Return the mean over rows and its standard error, which is robust to dependence in units.

    Parameters
    ----------
    values : ndarray of shape (n,)
        A value for each row.
    unit : ndarray of shape (n,), int, or None, default=None
        Numbers that rows share which are not independent of each other; None if all rows are.

    Returns
    -------
    mean, standard_error : float
        The mean and its error, which is NaN for a single unit.
    """
    share = np.full(len(values), 1.0 / len(values))
    source = None if unit is None else unit.astype(np.uint64)
    mean, error = mean_and_error(values, share, source=source)
    lost = float(np.square(sums_over_sources(share, source)).sum())  # one over the number of units
    return mean, error / math.sqrt(1.0 - lost) if lost < 1.0 - 1e-9 else math.nan


def units_of(unit: Index | None, rows: Any) -> Index | None:
    """Return the units of some rows, by their numbers or a mask."""
    return None if unit is None else unit[rows]


def first_of_units(unit: Index | None, n_rows: int) -> Index:
    """Return the number of the first row of each unit, in the order of the rows."""
    return np.arange(n_rows) if unit is None else np.sort(np.unique(unit, return_index=True)[1])


def random_order(rows: Array, seed: int) -> Index:
    """Return numbers of rows in the order of a hash of their entries, which is as good as random.

    It does not depend on the order of the rows, and equal rows are not next to each other.
    """
    keys = row_keys(np.where(np.isnan(rows), np.inf, rows), seed)
    return np.argsort(keys_apart(keys), kind="stable")
