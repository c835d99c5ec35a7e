"""Parts of rows: columns by their numbers, patterns of missing entries, choices by chance.

What is calculated for a row here depends on no other row, to the last bit: products are sums of
elementwise products in a fixed order, never products of matrices of as many rows as there happen
to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from sk_itdiffusion._first._immse.places import DOUBLE_APART, Places
from sk_itdiffusion._first._runtime.parallel import map_in_workers

__all__ = [
    "Block",
    "affordable_rows",
    "blocks_of_patterns",
    "checked_columns",
    "checked_values",
    "chosen_by",
    "chosen_with_rest",
    "evaluated_at_places",
    "log_sum",
    "log_sum_given",
    "log_sum_of_rows",
    "other_columns",
    "rows_by_pattern",
]

Array = NDArray[np.float64]
Index = NDArray[np.intp]

_CHUNK_PLACES = 256
#: Numbers in the largest array that a block of rows needs.
_NUMBERS_IN_A_BLOCK = 2**19
#: Sum of the third powers of the numbers of missing columns, over patterns and components.
_MAX_WORK = 2e9


def checked_columns(columns: Sequence[int], n_columns: int) -> list[int]:
    """Return increasing numbers of columns, or raise an error if they are none."""
    found = list(columns)
    is_whole = all(isinstance(j, Integral) and not isinstance(j, bool) for j in found)
    if not is_whole or any(b <= a for a, b in zip([-1, *found], [*found, n_columns], strict=True)):
        raise ValueError(
            f"columns must be increasing integers from 0 to {n_columns - 1}, got {columns!r}."
        )
    return [int(j) for j in found]


def other_columns(columns: Sequence[int], n_columns: int) -> list[int]:
    """Return the numbers of all other columns, of which there has to be one."""
    others = [j for j in range(n_columns) if j not in set(columns)]
    if not others:
        raise ValueError("columns must leave at least one other column, whose distribution it is.")
    return others


def checked_values(values: ArrayLike, columns: Sequence[int]) -> Array:
    """Return one finite value for each of the columns, or raise an error."""
    found = np.asarray(values, dtype=np.float64)
    if found.shape != (len(columns),) or not np.isfinite(found).all():
        raise ValueError(
            f"values must be {len(columns)} finite numbers, one for each of the columns, got an "
            f"array of shape {found.shape}."
        )
    return found


# -- patterns ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """Rows that lack the same number m of entries.

    Attributes
    ----------
    rows : ndarray of shape (n_rows,), int
        Numbers of the rows; those of one pattern are one after the other.
    pattern : ndarray of shape (n_rows,), int
        Numbers of their patterns.
    columns : ndarray of shape (n_patterns, m), int
        Columns that the patterns lack.
    """

    rows: Index
    pattern: Index
    columns: Index

    @property
    def holes(self) -> tuple[Index, Index]:
        """Columns that the rows lack, (m, n_rows), and the places of the rows, (n_rows,)."""
        return self.columns[self.pattern].T, np.arange(len(self.rows))


def rows_by_pattern(missing: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], Index]:
    """Return the distinct patterns (P, d), those with fewer holes first, and that of each row."""
    packed = np.packbits(missing, axis=1)
    _, first, place = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    patterns = missing[first]
    order = np.argsort(patterns.sum(axis=1), kind="stable")
    return patterns[order], np.argsort(order)[place.ravel()]


def blocks_of_patterns(
    missing: NDArray[np.bool_], n_numbers: Callable[[int], int]
) -> Iterator[Block]:
    """Return rows in blocks that bound the memory; a row has ``n_numbers`` of its missing ones."""
    patterns, place = rows_by_pattern(missing)
    counts = patterns.sum(axis=1)
    order = np.argsort(place, kind="stable")
    count_of_row = counts[place[order]]
    for count in np.unique(counts):
        alike = order[count_of_row == count]
        size = max(1, _NUMBERS_IN_A_BLOCK // n_numbers(int(count)))
        for rows in (alike[i : i + size] for i in range(0, len(alike), size)):
            first, last = place[rows[0]], place[rows[-1]]
            columns = np.nonzero(patterns[first : last + 1])[1]
            yield Block(rows, place[rows] - first, columns.reshape(last + 1 - first, count))


def affordable_rows(
    X: Array, n_components: int, least: int, n_continuous: int | None = None
) -> Index:
    """Return numbers of rows whose patterns are few enough for expectation-maximisation.

    Rows without any entry are left out, since they tell nothing.  Of the others these are all,
    unless matrices of the missing columns of all patterns and components are too expensive; then
    they are a random sample, which keeps what is consistent under missing at random so.

    Parameters
    ----------
    X : ndarray of shape (n_rows, d)
        Rows; NaN for what is missing.
    n_components : int
        Number of components.
    least : int
        Rows that are kept at least.
    n_continuous : int or None, default=None
        Columns, the first ones, whose patterns are work; None for all.

    Returns
    -------
    ndarray of shape (n_kept,)
        Increasing numbers.
    """
    missing = np.isnan(X)
    seen = np.flatnonzero(~missing.all(axis=1))
    patterns, place = rows_by_pattern(missing[seen, :n_continuous])
    work = n_components * patterns.sum(axis=1).astype(np.float64) ** 3
    if work.sum() <= _MAX_WORK:
        return seen
    order = np.random.default_rng(0).permutation(len(seen))
    first = np.unique(place[order], return_index=True)[1]
    own = np.zeros(len(seen))
    own[first] = work
    n_kept = max(least, int(np.searchsorted(np.cumsum(own), _MAX_WORK)))
    return seen[np.sort(order[:n_kept])]


# -- numbers -----------------------------------------------------------------------------------


def evaluated_at_places(function: Callable[[Tensor], Tensor], X: Array) -> Array:
    """Return a number of each row, in chunks of one fixed shape at places that are alike.

    So a row's value does not depend on the other rows to the last bit.
    """
    places = Places.within(_CHUNK_PLACES, 1, DOUBLE_APART)

    @torch.no_grad()
    def chunk(start: int) -> Array:
        rows = X[start : start + places.n_rows]
        padded = np.pad(rows, ((0, places.n_rows - len(rows)), (0, 0)))
        values = places.gathered(function(torch.from_numpy(places.spread(padded))))
        return np.asarray(values.numpy()[: len(rows)])

    chunks = map_in_workers(chunk, range(0, len(X), places.n_rows), "cpu")
    return np.concatenate([np.empty(0), *chunks])


def log_sum(log_terms: Array) -> Array:
    """Return the logarithms of the sums of exponentials over the first axis."""
    top = log_terms.max(axis=0)
    total = np.zeros_like(top)
    for term in log_terms:
        total += np.exp(term - top)
    return np.asarray(top + np.log(total))


def log_sum_of_rows(log_terms: Array) -> Array:
    """Return the logarithms of the sums of exponentials over the second axis."""
    top = log_terms.max(axis=1)
    return np.asarray(top + np.log(np.exp(log_terms - top[:, None]).sum(axis=1)))


def log_sum_given(log_joint: Array, log_conditional: Array) -> tuple[Array, Array]:
    """Return a mixture's log-density of what is given, and of other entries given this.

    Parameters
    ----------
    log_joint : ndarray of shape (n_components, n_rows)
        Logarithms of weights times densities of what is given.
    log_conditional : ndarray of shape (n_components, n_rows)
        Log-densities of the other entries given this.

    Returns
    -------
    of_given, of_others : ndarray of shape (n_rows,)
        Log-densities.  The second ones are means over probabilities of the components that sum to
        1, however small the first ones are.
    """
    log_share = log_joint - log_joint.max(axis=0)
    of_others = log_sum(log_share + log_conditional) - log_sum(log_share)
    return log_sum(log_joint), of_others


def chosen_by(uniform: Array, log_terms: Array) -> Index:
    """Return which of n terms each row chooses by a number in (0, 1), from (n, n_rows or 1)."""
    return chosen_with_rest(uniform, log_terms)[0]


def chosen_with_rest(uniform: Array, log_terms: Array) -> tuple[Index, Array]:
    """Return which terms rows choose, and numbers in (0, 1) that are independent of the choice."""
    log_terms = np.broadcast_to(log_terms, (len(log_terms), len(uniform)))
    share = np.exp(log_terms - log_terms.max(axis=0))
    cumulative = np.cumsum(share, axis=0)
    target = uniform * cumulative[-1]
    chosen = (cumulative[:-1] < target).sum(axis=0)
    rows = np.arange(len(uniform))
    rest = 1.0 - (cumulative[chosen, rows] - target) / share[chosen, rows]
    # Rounding may lead to the ends.
    return chosen, np.clip(rest, np.finfo(np.float64).tiny, 1.0 - np.finfo(np.float64).epsneg)
