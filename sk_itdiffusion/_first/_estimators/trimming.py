"""Which rows a detector leaves out of its fit: unlikely ones, but no whole values or modes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._estimators.distinct_rows import DistinctRows, Index

__all__ = ["copies_left"]

Array = NDArray[np.float64]
#: Share of a value or of a mode below which it is as good as lost in trimming, the share of it that
#: stays then, and how many rows are a value that comes again, or a mode.
MIN_LEFT_OF_A_GROUP = 0.25
SHARE_KEPT_OF_A_GROUP = 0.5
MIN_COPIES_OF_A_VALUE = 2
MIN_ROWS_OF_A_MODE = 10
#: Share of all rows below which a mode may as well be anomalies that are alike.
MIN_SHARE_OF_A_MODE = 0.025
#: In standard deviations of a column: numbers as near as this stand for each other.
NEARBY_VALUES = 0.1


def copies_left(
    scores: Array,
    values: Array,
    given: DistinctRows,
    n_trimmed: int,
    discrete: Index,
    modes: Index | None,
) -> Index:
    """Return how many copies of distinct rows are left without the least likely ones.

    Parameters
    ----------
    scores : ndarray of shape (n,)
        Scores of the rows.
    values : ndarray of shape (n, n_columns)
        Their numbers and codes; NaN where they are missing.
    given : DistinctRows
        The rows.
    n_trimmed : int
        How many observations to leave out.
    discrete : ndarray of int
        Discrete columns that vary.
    modes : ndarray of shape (n,), int, or None
        Modes of the rows; None for one mode.

    Returns
    -------
    ndarray of shape (n,)
        Numbers of copies.
    """
    weight, order = given.weight, np.argsort(scores, kind="stable")
    most = n_trimmed / given.n_rows * weight.sum() * (1 + 1e-12)
    below = np.cumsum(weight[order]) <= most
    # Rows as bad as the last trimmed one stay: no order among equal ones.
    cutoff = scores[order[min(int(below.sum()), len(order) - 1)]]
    kept_before = scores >= cutoff
    kept = kept_before.copy()
    groups = list(separate_values(values, given, discrete))
    for group in groups:
        kept |= needed_of_groups(group, given, scores, kept_before, MIN_COPIES_OF_A_VALUE)
    if modes is not None:
        least = max(MIN_ROWS_OF_A_MODE, math.ceil(MIN_SHARE_OF_A_MODE * given.n_rows))
        kept |= needed_of_groups(modes, given, scores, kept_before, least)
    kept[varying_again(values, scores, kept)] = True
    left = np.where(kept, given.n_copies, 0)
    if len(groups) == values.shape[1]:
        left = np.maximum(left, needed_of_states(groups, given))
    return np.asarray(left)


def varying_again(values: Array, scores: Array, kept: NDArray[np.bool_]) -> Index:
    """Return, for each column that is constant among the rows kept, the most likely other row.

    Without it a rare value would be as unlikely as the arbitrary width of constant columns says.
    Of a column that is missing in all rows kept it is the most likely one in which it is not.
    """
    seen = ~np.isnan(values)
    columns = np.arange(values.shape[1])
    usual = values[np.flatnonzero(kept)[seen[kept].argmax(axis=0)], columns]
    is_constant = ((values == usual) | ~seen)[kept].all(axis=0)
    differs = (seen & (values != usual))[:, is_constant]
    differs = differs[:, differs.any(axis=0)]
    return np.asarray(np.where(differs, scores[:, None], -np.inf).argmax(axis=0))


def separate_values(values: Array, given: DistinctRows, discrete: Index) -> Iterator[Index]:
    """Return groups of rows with one value, for each column of separate values; -1 for no group.

    Categories are separate, and numbers that are farther than a tenth of a standard deviation from
    all others: no other number stands for them.  In a column of other numbers equal ones are
    chance.  Rows in which an entry is missing have no group.
    """
    for j, entries in enumerate(values.T):
        seen = ~np.isnan(entries)
        column = entries[seen]
        categories, found = np.unique(column, return_inverse=True)
        # The mean of squares of far values would overflow.
        scale = np.abs(column).max() + np.finfo(np.float64).tiny
        width = 0.0 if j in discrete else NEARBY_VALUES * scale * float((column / scale).std())
        with np.errstate(over="ignore"):
            is_apart = np.diff(categories) > width
        copies = np.bincount(found, weights=given.n_copies[seen])
        is_separate = np.append(True, is_apart) & np.append(is_apart, True)
        is_separate &= copies >= MIN_COPIES_OF_A_VALUE
        if 2.0 * copies[is_separate].sum() >= copies.sum():
            group = np.full(len(entries), -1)
            group[seen] = np.where(is_separate[found], found, -1)
            yield group


def needed_of_states(groups: Sequence[Index], given: DistinctRows) -> Index:
    """Return how many units of each row to keep, since it comes again: half of them.

    Parameters
    ----------
    groups : sequence of ndarray of shape (n,), int
        What `separate_values` returns of each column.
    given : DistinctRows
        The rows.

    Returns
    -------
    ndarray of shape (n,), int
        The least numbers of units.  Without any of its rows a state would be as unlikely as the
        others that have been left out, and the less likely the more rows there are: scores of fits
        to more and to fewer rows could not be compared.
    """
    comes_again = given.n_copies >= MIN_COPIES_OF_A_VALUE
    for group in groups:
        comes_again &= group >= 0
    least = np.ceil(SHARE_KEPT_OF_A_GROUP * given.n_copies).astype(np.intp)
    return np.where(comes_again, least, 0)


def needed_of_groups(
    group: Index, given: DistinctRows, scores: Array, kept: NDArray[np.bool_], least: int
) -> NDArray[np.bool_]:
    """Return rows to keep of groups of at least so many rows that would nearly all be left out.

    They are the most likely ones, half of the group's weight.
    """
    group = group + 1
    total = np.bincount(group, weights=given.weight)
    left = np.bincount(group, weights=given.weight * kept)
    is_lost = np.bincount(group, weights=given.n_copies) >= least
    is_lost &= left < MIN_LEFT_OF_A_GROUP * total
    is_lost[0] = False
    order = np.lexsort([-scores, group])
    weight, group = given.weight[order], group[order]
    before = np.cumsum(weight) - weight - (np.cumsum(total) - total)[group]
    found = np.empty(len(order), dtype=bool)
    # Rounding of sums must not add a row.
    wanted = SHARE_KEPT_OF_A_GROUP * total[group] - 1e-9 * total.sum()
    found[order] = is_lost[group] & (before < wanted)
    return found
