"""Distinct rows of features and targets, and which of them train, validate or calibrate.

Rows with equal features are one unit, since they may be copies of each other, and so are rows of
one group: a unit is never divided.  Features of several different rows, as those with few levels or
many zeros, are a level that new rows have too: of these only rows with equal targets are one unit.
What a row is used for follows from a hash of its content and the seed, not from the order of rows,
and a weight of 2 is the same as having the row twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import check_cv

from sk_itdiffusion._first._immse.cubature import keys_apart, row_keys, spawn_keys
from sk_itdiffusion._first._runtime.warning import warn

__all__ = [
    "DistinctRows",
    "RowRoles",
    "distinct_rows",
    "divide_rows",
    "folds_of_rows",
    "folds_of_units",
]

Array = NDArray[np.float64]
Index = NDArray[np.intp]
#: What stands for a missing value in the keys of rows.
_MISSING = 1.0e300
#: Different rows with equal features up to which these may be copies.
MAX_ROWS_OF_FEATURES = 3
#: Units from which some are spared for validation, and the least number of those.
MIN_UNITS_TO_VALIDATE, MIN_UNITS = 40, 10


@dataclass(frozen=True)
class DistinctRows:
    """Distinct rows of a table in an order that follows from their content.

    Attributes
    ----------
    index : ndarray of shape (n,), int
        The first row of the table that is equal to each.
    weight : ndarray of shape (n,)
        Sums of the weights of equal rows.
    unit : ndarray of shape (n,), int
        Number of the unit that each row belongs to, from 0 on, in the order of the units' keys.
    group_share : ndarray of shape (n,) or None, default=None
        Share that each row has of the weight of its group; of rows that are in several groups the
        sum of their shares.  None if there are no groups.
    """

    index: Index
    weight: Array
    unit: Index
    group_share: Array | None = None


@dataclass(frozen=True)
class RowRoles:
    """Which of the distinct rows train, validate and calibrate intervals."""

    train: Index
    valid: Index
    conformal: Index


def distinct_rows(
    X: Array, Y: Array, weight: Array, groups: Index | None, seed: int
) -> DistinctRows:
    """Return the distinct rows of positive weight.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Encoded features; NaN where they are missing.
    Y : ndarray of shape (n_samples, n_targets)
        Encoded targets.
    weight : ndarray of shape (n_samples,)
        Non-negative weights.
    groups : ndarray of shape (n_samples,), int, or None
        Numbers of the groups.
    seed : int
        Seed of the order of the units.

    Returns
    -------
    DistinctRows
        The rows.
    """
    features = row_keys(np.where(np.isnan(X), _MISSING, X), seed)
    keys = row_keys(np.column_stack([np.where(np.isnan(X), _MISSING, X), Y]), seed)
    kept = np.flatnonzero(weight > 0.0)
    _, first, number = np.unique(keys[kept], return_index=True, return_inverse=True)
    number = number.ravel()
    total = np.bincount(number, weights=weight[kept]).astype(np.float64)
    of_features = np.unique(features[kept], return_inverse=True)[1].ravel()
    n_levels = int(of_features.max()) + 1
    n_different = np.bincount(of_features[first], minlength=n_levels)
    is_level = (n_different > MAX_ROWS_OF_FEATURES) & (n_levels > 1)
    of_level = is_level[of_features]
    of_row = np.unique(np.where(of_level, n_levels + number, of_features), return_inverse=True)[1]
    unit, share = of_row.ravel(), None
    if groups is not None:
        group = np.unique(groups[kept], return_inverse=True)[1].ravel()
        unit = joined(unit, group)
        of_group = weight[kept] / np.bincount(group, weights=weight[kept])[group]
        share = np.bincount(number, weights=of_group).astype(np.float64)
    warn_of_few_units(int(unit.max()) + 1, len(kept), groups is not None)
    # In the order of sums of keys, modulo 2**64, which is random whatever the sizes of units are.
    own = kept[first]
    once, own_key = np.unique(features[own], return_index=True)[1], features[own]
    # Rows of a level are numbered in the order of their targets, whatever their units.
    in_order = np.lexsort((*Y[own].T[::-1], features[own]))
    of_level = of_level[first]
    several = in_order[of_level[in_order]]
    own_key[several] = keys_apart(own_key[several])
    once = np.concatenate([once[~of_level[once]], several])
    key = np.zeros(int(unit.max()) + 1, dtype=np.uint64)
    np.add.at(key, unit[first][once], spawn_keys(own_key[once], 1)[:, 0])
    rank = np.empty(len(key), dtype=np.intp)
    rank[np.argsort(key, kind="stable")] = np.arange(len(key))
    # Not in the order of keys that see the targets: their units would change what is drawn.
    place = rank[unit][first]
    order = np.lexsort((*Y[own].T[::-1], features[own], place))
    return DistinctRows(
        own[order], total[order], place[order], None if share is None else share[order]
    )


def warn_of_few_units(n_units: int, n_rows: int, has_groups: bool) -> None:
    """Warn if many rows are so few units that each held-out one is unlike all others."""
    if not has_groups and 1 < n_units < MIN_UNITS_TO_VALIDATE <= n_rows:
        warn(
            f"The {n_rows} rows have only {n_units} different features, so that nothing validates, "
            "and models are judged by predictions for features that they have not seen: "
            "distributions are then hardly narrower than that of the targets by themselves. "
            "IMMSEMixedDensity or IMMSEDiscreteDensity of features and targets together, and its "
            "conditional(...), are better for such tables."
        )


def joined(first: Index, second: Index) -> Index:
    """Return numbers of the classes of rows that are linked by either of two numbers."""
    n = int(first.max()) + 1
    size = n + int(second.max()) + 1
    graph = coo_array((np.ones(len(first)), (first, n + second)), shape=(size, size))
    component = connected_components(graph, directed=False)[1][first]
    return np.unique(component, return_inverse=True)[1].ravel().astype(np.intp)


def divide_rows(
    rows: DistinctRows, validation_fraction: float, conformal_fraction: float | None
) -> RowRoles:
    """Return which rows train, validate and calibrate.

    Of fewer than 40 units none validates.

    Parameters
    ----------
    rows : DistinctRows
        All rows.
    validation_fraction : float
        Share in (0, 1) that validates.
    conformal_fraction : float or None
        Share in (0, 1) that calibrates intervals.

    Returns
    -------
    RowRoles
        Numbers of the rows.

    Raises
    ------
    ValueError
        If too few units are left to train.
    """
    n_units = int(rows.unit.max()) + 1
    if n_units < 2:
        raise ValueError(
            "All rows have the same features, or belong to one group, and nothing can be learned "
            "of how the target depends on them. IMMSEDensity fits the target by itself."
        )
    n_conformal = 0
    if conformal_fraction is not None:
        n_conformal = max(1, round(conformal_fraction * n_units))
    n_valid = 0
    if n_units >= MIN_UNITS_TO_VALIDATE:
        n_valid = max(MIN_UNITS, round(validation_fraction * n_units))
    n_left = n_units - n_conformal - n_valid
    if n_left < (MIN_UNITS if n_conformal or n_valid else 2):
        raise ValueError(
            f"{n_left} of {n_units} rows of different features, or groups, are left for training, "
            "which is too few. Lower validation_fraction or conformal_fraction."
        )
    is_conformal = rows.unit < n_conformal
    is_valid = ~is_conformal & (rows.unit < n_conformal + n_valid)
    return RowRoles(*map(np.flatnonzero, (~is_conformal & ~is_valid, is_valid, is_conformal)))


def folds_of_rows(cv: Any, X: Any, y: Any, groups: Any) -> Index | None:
    """Return the fold in which a table's rows are predicted; None if ``cv`` is a number.

    Parameters
    ----------
    cv : int, cross-validation generator or iterable
        Number of folds, or what divides the rows into folds.
    X, y, groups : array-like of shape (n_samples, ...)
        What a generator may ask for.

    Returns
    -------
    ndarray of shape (n_samples,), int, or None
        Numbers of the folds.

    Raises
    ------
    ValueError
        If rows are not predicted once each.
    """
    if isinstance(cv, Integral):
        return None
    fold = np.full(len(X), -1)
    times = np.zeros(len(X), dtype=int)
    for k, (_, test) in enumerate(check_cv(cv).split(X, y, groups)):
        fold[test] = k
        times[test] += 1
    if (times != 1).any() or fold.max() < 1:
        raise ValueError(
            "cv must predict each row once: at least 2 folds that divide the rows, such as those "
            "of sklearn.model_selection.KFold."
        )
    return fold


def folds_of_units(
    unit: Index, weight: Array, n_folds: int, fold: Index | None = None
) -> list[tuple[Index, Index]]:
    """Return (training rows, rows to predict) of each fold; units are not divided.

    Parameters
    ----------
    unit : ndarray of shape (n,), int
        Units of the rows.
    weight : ndarray of shape (n,)
        Weights.
    n_folds : int
        Folds at most.
    fold : ndarray of shape (n,), int, or None, default=None
        Folds that were asked for; of a unit with rows in several the first one is taken.

    Returns
    -------
    list of (ndarray, ndarray)
        Numbers of rows.

    Raises
    ------
    ValueError
        If there would be fewer than 2 folds.
    """
    number = np.unique(unit, return_inverse=True)[1].ravel()
    n_units = int(number.max()) + 1
    of_unit = np.zeros(n_units, dtype=np.intp)
    if fold is not None:
        of_unit[:] = fold.max()
        np.minimum.at(of_unit, number, fold)
    else:
        # Units come in the order of a hash, and go where there is least so far.
        sizes = np.bincount(number, weights=weight)
        filled = np.zeros(min(n_folds, n_units))
        for each in range(n_units):
            of_unit[each] = int(np.argmin(filled))
            filled[of_unit[each]] += sizes[each]
    found = np.unique(of_unit)
    if len(found) < 2:
        raise ValueError(
            "There are fewer than 2 folds of rows to train on that differ in their features, and "
            "in their groups."
        )
    of_row = of_unit[number]
    return [(np.flatnonzero(of_row != k), np.flatnonzero(of_row == k)) for k in found]
