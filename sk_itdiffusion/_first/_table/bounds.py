"""Bounds of columns: those that are given, and those that rows show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._table.rows import observed

__all__ = [
    "around_cells",
    "check_inside",
    "outside",
    "resolve_bounds",
    "rounded_inside",
    "shown_bounds",
    "unbounded",
]

Array = NDArray[np.float64]

#: Share of the values that are near an end of a column, and in how many times their width a bound
#: is near them.
_SHARE_NEAR_END = 0.2
_REACH = 2.0
#: Width in steps from a lattice value to the bound of its cell, short of half of one for rounding.
_HALF_STEP = 0.5 - 1e-9


def unbounded(n_columns: int) -> Array:
    """Return the bounds (n_columns, 2) of columns without any: infinite ones."""
    return np.tile([-np.inf, np.inf], (n_columns, 1))


def resolve_bounds(bounds: Any, n_columns: int, names: Sequence[str] | None) -> Array:
    """Return the bounds of all columns that a parameter value gives.

    Parameters
    ----------
    bounds : mapping or sequence
        Pairs of a lower and an upper bound, each a number or None, by names or numbers of columns,
        or a pair (or None) for each column.
    n_columns : int
        Number of columns.
    names : sequence of str or None
        Names of the columns.

    Returns
    -------
    ndarray of shape (n_columns, 2)
        The bounds; infinite where there are none.

    Raises
    ------
    ValueError
        If there is no such column, or a pair is not one of increasing numbers.
    """
    if not isinstance(bounds, Mapping):
        given = list(bounds)
        if len(given) != n_columns:
            raise ValueError(
                f"bounds must have a pair (or None) for each of the {n_columns} columns, got "
                f"{len(given)}. Use a dict from names to set bounds of some columns only."
            )
        bounds = dict(enumerate(given))
    known = {} if names is None else {str(name): j for j, name in enumerate(names)}
    resolved = unbounded(n_columns)
    for key, pair in bounds.items():
        resolved[_position(key, n_columns, known)] = _checked_pair(key, pair)
    return resolved


def _position(key: Any, n_columns: int, known: Mapping[str, int]) -> int:
    """Return the number of a column from its name or number."""
    if isinstance(key, str) and key in known:
        return known[key]
    if isinstance(key, int | np.integer) and not isinstance(key, bool) and 0 <= key < n_columns:
        return int(key)
    raise ValueError(
        f"bounds names the column {key!r}, which X does not have; use names if all names are "
        f"strings, and otherwise numbers from 0 to {n_columns - 1}."
    )


def _checked_pair(key: Any, pair: Any) -> tuple[float, float]:
    """Return the bounds of a column as numbers."""
    if pair is None:
        return -np.inf, np.inf
    try:
        low, high = pair
        low = -np.inf if low is None else float(low)
        high = np.inf if high is None else float(high)
    except (TypeError, ValueError):
        low = high = np.nan
    if not low < high or low == np.inf or high == -np.inf:
        raise ValueError(
            f"bounds of the column {key!r} must be a pair (low, high) of numbers with low < high, "
            f"each of which may be None, got {pair!r}."
        )
    return low, high


def around_cells(bounds: Array, step: Array) -> Array:
    """Return bounds that leave room for the cells of lattice values, of the width ``step``."""
    return np.asarray(bounds + _HALF_STEP * step[:, None] * np.array([-1.0, 1.0]))


def outside(X: Array, bounds: Array) -> NDArray[np.bool_]:
    """Return which values are not between the bounds of their columns, the bounds excluded.

    Missing values, NaN, are not outside.
    """
    low, high = bounds.T
    return np.asarray(np.less_equal(X, low) | np.greater_equal(X, high))


def rounded_inside(values: Array, dtype: np.dtype[Any], low: float, high: float) -> NDArray[Any]:
    """Return the nearest numbers that a dtype holds between bounds, the bounds excluded.

    Parameters
    ----------
    values : ndarray of shape (n,)
        Values of a column.
    dtype : dtype
        Dtype of integers or floats.
    low, high : float
        Bounds, infinite where there are none, with a number of the dtype between them.

    Returns
    -------
    ndarray of shape (n,)
        Integers as 64-bit floats, floats in their dtype.
    """
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        # 64-bit floats round the largest 64-bit integer up to one that the dtype does not hold.
        end = float(limits.max) if limits.max < 2**53 else np.nextafter(float(limits.max), 0.0)
        least = max(float(limits.min), np.ceil(np.nextafter(low, np.inf)))
        greatest = min(end, np.floor(np.nextafter(high, -np.inf)))
        return np.asarray(np.clip(np.rint(values), least, greatest))
    with np.errstate(over="ignore"):  # numbers beyond the dtype's range are infinite
        held, first, last = values.astype(dtype), dtype.type(low), dtype.type(high)
    if np.isfinite(low) and float(first) <= low:
        first = np.nextafter(first, dtype.type(np.inf))
    if np.isfinite(high) and float(last) >= high:
        last = np.nextafter(last, dtype.type(-np.inf))
    return np.asarray(np.clip(held, first, last))


def check_inside(X: Array, bounds: Array, labels: Sequence[str], advice: str) -> None:
    """Raise an error that names a column and a value which is not between its bounds."""
    rows, columns = np.nonzero(outside(X, bounds))
    if not len(rows):
        return
    j = int(columns.min())
    value = float(X[rows[columns == j][0], j])
    low, high = map(float, bounds[j])
    raise ValueError(
        f"Column {labels[j]} has the value {value:g}, which is not between its bounds {low:g} and "
        f"{high:g} (themselves excluded). {advice}"
    )


def shown_bounds(X: Array, weight: Array, least: Array, greatest: Array) -> Array:
    """Return bounds that the values of columns show.

    A bound is 0 for values of one sign, or 0 and 1 for values between them, and it is shown if the
    values come near: within twice the range of the outer fifth of them.

    Parameters
    ----------
    X : ndarray of shape (n_samples, d)
        Rows.
    weight : ndarray of shape (n_samples,)
        Positive weights.
    least, greatest : ndarray of shape (d,)
        Smallest and largest value of each column, of these and maybe further rows.

    Returns
    -------
    ndarray of shape (d, 2)
        The bounds; infinite where there are none.
    """
    found = unbounded(X.shape[1])
    for j, (x, low, high) in enumerate(zip(X.T, least, greatest, strict=True)):
        near_low, near_high = _outer_quantiles(*observed(x, weight))
        if low > 0.0 and high < 1.0 and 1.0 - high < _REACH * (high - near_high):
            found[j] = 0.0, 1.0
        elif 0.0 < low < _REACH * (near_low - low):
            found[j, 0] = 0.0
        elif high < 0.0 and -high < _REACH * (high - near_high):
            found[j, 1] = 0.0
    return found


def _outer_quantiles(x: Array, weight: Array) -> tuple[float, float]:
    """Return the quantiles beyond which a fifth of the weighted values lies."""
    order = np.argsort(x, kind="stable")
    total = np.cumsum(weight[order])
    marks = np.array([_SHARE_NEAR_END, 1.0 - _SHARE_NEAR_END]) * total[-1]
    low, high = x[order][np.minimum(np.searchsorted(total, marks), len(x) - 1)]
    return float(low), float(high)
