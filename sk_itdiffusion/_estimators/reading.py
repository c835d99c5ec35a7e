"""Rows, weights, groups and bounds as a fit takes them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.utils.validation import _check_sample_weight

from sk_itdiffusion._model.table import Table

__all__ = ["column_positions", "read_bounds", "read_table", "warn_of_ties"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
MAX_NUMBER, MAX_RATIO_OF_WEIGHTS = 1e100, 1e12
#: Share of a column that one value may have, and step in standard deviations, without a warning.
SHARE_OF_A_VALUE, STEP_OF_A_LATTICE = 0.05, 0.02


def read_table(
    X: Array, names: Sequence[str], sample_weight: ArrayLike | None, groups: ArrayLike | None
) -> Table:
    """Return distinct rows with weights, in an order that does not depend on the one given.

    Raises
    ------
    ValueError
        If numbers or weights are out of range, or a column has no values.
    """
    if (np.abs(np.nan_to_num(X)) > MAX_NUMBER).any():
        column = names[int(np.argmax((np.abs(np.nan_to_num(X)) > MAX_NUMBER).any(axis=0)))]
        raise ValueError(
            f"Column {column!r} has numbers beyond {MAX_NUMBER:g} in absolute value. Rescale it."
        )
    empty = np.isnan(X).all(axis=0)
    if empty.any():
        raise ValueError(f"Column {names[int(np.argmax(empty))]!r} has no values. Leave it out.")
    weight = checked_weight(X, sample_weight)
    labels = np.arange(len(X)) if groups is None else checked_groups(X, groups)
    kept = (weight > 0) & ~np.isnan(X).all(axis=1)
    X, weight, labels = X[kept], weight[kept], labels[kept]
    if len(X) < 2:
        raise ValueError(
            f"There must be at least 2 rows with a positive weight, got {len(X)} sample."
        )
    # NaN are not equal to each other, infinities are, and X has none.
    distinct, which = np.unique(np.where(np.isnan(X), np.inf, X + 0.0), axis=0, return_inverse=True)
    which = which.ravel()
    unit = np.arange(len(distinct))
    if groups is not None:
        edges = coo_array(
            (np.ones(len(X)), (which, labels + len(distinct))),
            shape=[len(distinct) + int(labels.max()) + 1] * 2,
        )
        unit = connected_components(edges, directed=False)[1][: len(distinct)]
    distinct = np.where(np.isinf(distinct), np.nan, distinct)
    total = np.bincount(which, weight).astype(np.float64)
    return Table(distinct, total, unit, names, lattice_steps(X))


def checked_weight(X: Array, sample_weight: ArrayLike | None) -> Array:
    """Return weights: counts if they are integers, else scaled to the mean 1."""
    weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    positive = weight[weight > 0]
    if not len(positive):
        raise ValueError("sample_weight must have a positive entry, got zeros only.")
    if positive.max() > MAX_RATIO_OF_WEIGHTS * positive.min():
        raise ValueError(
            f"The largest sample_weight is more than {MAX_RATIO_OF_WEIGHTS:g} times the least "
            "positive one. Set the small ones to zero."
        )
    is_count = bool((weight == np.rint(weight)).all())
    return np.asarray(weight if is_count else weight / positive.mean())


def checked_groups(X: Array, groups: ArrayLike) -> NDArray[np.intp]:
    """Return numbers of groups."""
    labels = np.asarray(groups)
    if labels.shape != (len(X),):
        raise ValueError(f"groups must have shape ({len(X)},), got {labels.shape}.")
    return np.unique(labels, return_inverse=True)[1].ravel()


def lattice_steps(X: Array) -> Array:
    """Return the least difference of two values of columns in which values come again, else 0."""
    steps = np.zeros(X.shape[1])
    for j, column in enumerate(X.T):
        seen = column[~np.isnan(column)]
        values = np.unique(seen)
        if 1 < len(values) < 0.95 * len(seen):
            steps[j] = np.diff(values).min()
    return steps


def warn_of_ties(X: Array, names: Sequence[str], steps: Array) -> None:
    """Warn of columns that are so discrete that they have no density."""
    told = []
    for j, column in enumerate(X.T):
        seen = column[~np.isnan(column)]
        values, counts = np.unique(seen, return_counts=True)
        if len(values) == 1 or steps[j] == 0.0:
            continue
        if counts.max() > SHARE_OF_A_VALUE * len(seen) or steps[j] > STEP_OF_A_LATTICE * seen.std():
            told.append(str(names[j]))
    if told:
        warnings.warn(
            f"Values of the columns {', '.join(told)} are repeated or lie on a lattice, so that "
            "they have probabilities rather than a density; the density is that of values blurred "
            "to about the step of the lattice. IMMSEMixedDensity models such columns as ordered "
            "categories.",
            UserWarning,
            stacklevel=4,
        )


def column_positions(columns: Any, names: Sequence[Any]) -> NDArray[np.intp]:
    """Return the positions of columns given by a name or a number, or by several.

    Raises
    ------
    ValueError
        If there is no such column.
    """
    items = [columns] if isinstance(columns, str | int | np.integer) else list(columns)
    known = {name: j for j, name in enumerate(names)}
    found = []
    for item in items:
        if isinstance(item, int | np.integer) and -len(names) <= item < len(names):
            found.append(int(item) % len(names))
        elif item in known:
            found.append(known[item])
        else:
            raise ValueError(f"There is no column {item!r}; columns are {list(names)[:20]}.")
    return np.array(sorted(set(found)), dtype=np.intp)


def read_bounds(bounds: Any, names: Sequence[Any], X: Array) -> tuple[Array, Mask]:
    """Return lower and upper bounds of columns, (n_columns, 2), and which are the user's.

    Raises
    ------
    ValueError
        If bounds are wrong, or a value is beyond them.
    """
    n_columns = X.shape[1]
    found = np.tile([-np.inf, np.inf], (n_columns, 1))
    is_given = np.zeros(n_columns, dtype=bool)
    if bounds is None:
        return found, is_given
    if isinstance(bounds, str):
        if bounds != "auto":
            raise ValueError(f"bounds must be 'auto', None, a dict or a sequence, got {bounds!r}.")
        return suggested_bounds(X), is_given
    if isinstance(bounds, Mapping):
        pairs = [(int(column_positions(key, names)[0]), pair) for key, pair in bounds.items()]
    else:
        pairs = list(enumerate(bounds))
        if len(pairs) != n_columns:
            raise ValueError(f"bounds must have {n_columns} entries, one for each column.")
    for j, pair in pairs:
        if pair is None:
            continue
        low, high = (
            infinite if end is None else float(end)
            for end, infinite in zip(pair, (-np.inf, np.inf), strict=True)
        )
        least, largest = np.nanmin(X[:, j]), np.nanmax(X[:, j])
        if not low < least <= largest < high:
            raise ValueError(
                f"Values of column {names[j]!r} must lie between its bounds {low:g} and {high:g}, "
                f"but range from {least:g} to {largest:g}."
            )
        found[j], is_given[j] = (low, high), True
    return found, is_given


def suggested_bounds(X: Array) -> Array:
    """Return the bounds that columns suggest: zero for one sign, if values come close."""
    found = np.tile([-np.inf, np.inf], (X.shape[1], 1))
    low, high = np.nanmin(X, axis=0), np.nanmax(X, axis=0)
    spread = np.nanstd(X, axis=0)
    found[(low > 0) & (low < spread), 0] = 0.0
    found[(high < 0) & (-high < spread), 1] = 0.0
    return found
