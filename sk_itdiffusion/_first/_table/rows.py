"""Rows before any model: grouping, splitting, ties and constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from sk_itdiffusion._first._immse.cubature import Keys, row_keys, spawn_keys

__all__ = [
    "ColumnReport",
    "WeightedRows",
    "copied_columns",
    "extent",
    "group_rows",
    "has_missing",
    "inspect_columns",
    "observed",
    "resample_rows",
]

Array = NDArray[np.float64]

_ROWS_IN_A_PART = 2**16
_TIED_SHARE = 0.05
_COARSE_STEP = 0.02
_MIN_ROWS_FOR_TIES = 20
#: Columns of fewer rows may be copies by chance; more rows and columns are not compared at first.
_MIN_ROWS_FOR_COPIES, _ROWS_TO_COMPARE, _COLUMNS_TO_COMPARE = 20, 1000, 500
#: What a correlation of copies in other units may be less than 1, and in a first look.
_ROUNDING_OF_COPIES, _ROUNDING_OF_LINES = 1e-12, 1e-8
#: Integers up to which floats tell all of them apart.
MAX_EXACT_INTEGER = 2.0**53
MIN_TRAINING_ROWS = 10
#: Share and number of observations from which on equal values are a frequent value, the number also
#: relative to that of most other values, and the share of these.
SHARE_OF_A_VALUE, MIN_TIMES_OF_A_VALUE, USUAL_VALUES = 0.05, 20, 0.9
MIN_VALIDATION_ROWS = 10
#: Units below which the largest weight has to be if weights that are no integers are multiples.
#: More would make thousands of observations of rows alongside one of tiny weight.
_MAX_UNITS = 1_000
#: Rows that make a table which weights, of several units each, may list the numbers of.
_MAX_ROWS_OF_A_LIST = 40
#: Relative error that multiples of a unit may have by rounding.
_ROUNDING_OF_WEIGHTS = 16 * np.finfo(np.float64).eps
#: Bits of weights that have no common unit; the last ones depend on the factor of all weights.
#: The fewer there are, the seldomer a weight is so near to a boundary of rounding that a factor
#: moves it to the other side: with 24 bits about once in 10**9 weights.
_BITS_OF_WEIGHTS = 24
#: Relative errors of a ratio of integers, and of weights with so few bits.
_ERROR_OF_RATIOS, _ERROR_OF_ROUNDED_RATIOS = 1e-9, 2.0 ** (1 - _BITS_OF_WEIGHTS)


def has_missing(X: Array) -> bool:
    """Return whether entries of rows are missing."""
    return bool(np.isnan(X).any())


def observed(x: Array, *others: Array) -> tuple[Array, ...]:
    """Return the entries of a column (n,) that are not missing, and of other arrays the same."""
    seen = ~np.isnan(x)
    if seen.all():
        return x, *others
    return tuple(each[seen] for each in (x, *others))


def extent(X: Array) -> tuple[Array, Array]:
    """Return the smallest and the largest observed value of each column, each of shape (d,)."""
    if not has_missing(X):
        return X.min(axis=0), X.max(axis=0)
    return np.fmin.reduce(X, axis=0), np.fmax.reduce(X, axis=0)


def first_observed(X: Array) -> Array:
    """Return the first observed value of each column, of shape (d,)."""
    seen = ~np.isnan(X)
    return np.asarray(X[seen.argmax(axis=0), np.arange(X.shape[1])])


@dataclass(frozen=True)
class WeightedRows:
    """Distinct rows in canonical order, with positive weights.

    Attributes
    ----------
    X : ndarray of shape (n_rows, n_columns)
        Rows; NaN where an entry is missing.
    weight : ndarray of shape (n_rows,)
        Weights.
    source : ndarray of shape (n_rows,), uint64, or None
        Keys that rows share which are copies, with different noise, of one observation; weights
        are then numbers of observations.  None if each row is one.
    group : ndarray of shape (n_rows,), int, or None
        Groups of rows that are not independent of each other, if each row is in one; else None.
    group_shares : csr_array of shape (n_rows, n_groups) or None
        Share of each row's weight that is in each group, if observations of a row are in several;
        else None.
    number : ndarray of shape (n_rows,) or None
        How many rows of the table are equal to each; None if that is its weight.
    content : ndarray of shape (n_rows,), uint64, or None
        Keys of the rows of a table, before standardisation and maps, which depend on all bits of
        the weights; None if the weights are integers, of which a common factor changes no bits.
    """

    X: Array
    weight: Array
    source: Keys | None = None
    group: NDArray[np.intp] | None = None
    content: Keys | None = None
    group_shares: csr_array | None = None
    number: Array | None = None

    def __len__(self) -> int:
        return len(self.X)

    @property
    def share(self) -> Array:
        """The weights scaled to sum to 1."""
        return np.asarray(self.weight / self.weight.sum())

    @property
    def n_observations(self) -> float | None:
        """Number of observations of which rows are copies; None if each row is one."""
        return None if self.source is None else float(self.weight.sum())

    @property
    def unit(self) -> Keys | None:
        """Keys that rows share which are not independent of each other; None if all rows are."""
        return self.source if self.group is None else self.group.astype(np.uint64)

    @property
    def are_independent(self) -> bool:
        """Whether all observations are independent of each other."""
        return self.unit is None and self.group_shares is None

    def sums_over_units(self, values: Array) -> Array:
        """Return the sums of a value of each row over what is independent of all else: groups."""
        if self.group_shares is not None:
            return np.asarray(values @ self.group_shares)
        if self.unit is None:
            return values
        number = np.unique(self.unit, return_inverse=True)[1]
        return np.bincount(number, weights=values).astype(np.float64)

    def keys(self, seed: int) -> Keys:
        """Return a key of each row, from which noise for it follows."""
        if self.content is None:
            return row_keys(self.X, seed)
        return spawn_keys(self.content, 1, first=seed)[:, 0]

    def with_values(self, X: Array) -> WeightedRows:
        """Return rows with other values and the same weights."""
        return replace(self, X=X)

    @property
    def has_missing(self) -> bool:
        """Whether entries of rows are missing."""
        return has_missing(self.X)

    @property
    def complete(self) -> WeightedRows:
        """The rows without missing entries; the same object if these are all."""
        if not self.has_missing:
            return self
        return self.take(np.flatnonzero(~np.isnan(self.X).any(axis=1)))

    def without_copies(self) -> WeightedRows:
        """Return the first row of each source, with the weights of all."""
        if self.source is None:
            return self
        _, first, group = np.unique(self.source, return_index=True, return_inverse=True)
        kept = np.sort(first)
        total = np.bincount(group.ravel(), self.weight).astype(np.float64)
        return replace(self.take(kept), weight=total[group.ravel()[kept]])

    def columns(self, n: int) -> WeightedRows:
        """Return the rows' first columns, which need not be distinct."""
        if n == self.X.shape[1]:
            return self
        return self.with_values(np.ascontiguousarray(self.X[:, :n]))

    def take(self, index: NDArray[np.intp]) -> WeightedRows:
        """Return some of the rows."""
        source = None if self.source is None else self.source[index]
        group = None if self.group is None else self.group[index]
        content = None if self.content is None else self.content[index]
        shares = None if self.group_shares is None else without_empty(self.group_shares[index])
        number = None if self.number is None else self.number[index]
        X, weight = self.X[index], self.weight[index]
        return WeightedRows(X, weight, source, group, content, shares, number)

    def split(self, fraction: float, most: int, seed: int) -> tuple[WeightedRows, WeightedRows]:
        """Return rows for training and for validation.

        Membership follows from a hash of the row and the seed, so that a row stays on its side
        when others come or go.  Rows of one source stay on one side.

        Raises
        ------
        ValueError
            If fewer than 10 rows would be left for training.
        """
        keys = self.keys(seed)
        if self.source is not None:
            keys = spawn_keys(self.source, 1, first=seed)[:, 0]
        _, group, size = np.unique(keys, return_inverse=True, return_counts=True)
        n_groups, copies = len(size), len(self) / len(size)
        n_valid = int(np.clip(round(fraction * n_groups), MIN_VALIDATION_ROWS, most / copies))
        if n_groups - n_valid < MIN_TRAINING_ROWS:
            left = n_groups - n_valid
            raise ValueError(too_few_rows(fraction, left, n_groups, "distinct rows"))
        is_valid = group.ravel() < n_valid
        return self.take(np.flatnonzero(~is_valid)), self.take(np.flatnonzero(is_valid))

    @property
    def are_equal_by_chance(self) -> NDArray[np.bool_]:
        """Whether a row has only missing entries and frequent values of their columns, (n,).

        Equal ones are then different observations, as they are in discrete tables.
        """
        found = np.ones(len(self), dtype=bool)
        for x in self.X.T:
            found &= np.isnan(x) | self.is_frequent(x)
        return found

    def is_frequent(self, x: Array) -> NDArray[np.bool_]:
        """Return whether each entry of a column is a frequent value of it, (n,).

        It makes up a large share of the column, and not by a row of great weight alone: many of
        the distinct rows have it, or it comes many times as often as nearly all other values.
        """
        seen = np.flatnonzero(~np.isnan(x))
        place = np.unique(x[seen], return_inverse=True)[1].ravel()
        if not len(place):
            return np.zeros(len(x), dtype=bool)
        number = self.weight if self.number is None else self.number
        share, times = (np.bincount(place, weights=each[seen]) for each in (self.weight, number))
        n_rows = np.bincount(place)
        has_many_rows = n_rows > max(1.0, SHARE_OF_A_VALUE * len(seen))
        stands_out = times >= MIN_TIMES_OF_A_VALUE * np.quantile(times, USUAL_VALUES)
        found = (share > SHARE_OF_A_VALUE * share.sum()) & (times >= MIN_TIMES_OF_A_VALUE)
        found &= has_many_rows | stands_out
        is_frequent = np.zeros(len(x), dtype=bool)
        is_frequent[seen] = found[place]
        return is_frequent

    def split_copies(
        self, fraction: float, most: int, seed: int
    ) -> tuple[WeightedRows, WeightedRows]:
        """Return rows for training and for validation; weights are numbers of equal rows.

        Equal rows of discrete columns are different observations; if all of them were on one side
        the validation rows would be states that training has never seen.  A weight that is no
        integer stands for as many observations as the nearest one, and at least for one.

        Raises
        ------
        ValueError
            If fewer than 10 rows would be left for training.
        """
        counts = np.maximum(np.rint(self.weight), 1.0).astype(np.int64)
        unit = self.weight / counts
        n_rows = int(counts.sum())
        n_valid = int(np.clip(round(fraction * n_rows), MIN_VALIDATION_ROWS, most))
        if n_rows - n_valid < MIN_TRAINING_ROWS:
            raise ValueError(too_few_rows(fraction, n_rows - n_valid, n_rows, "rows"))
        drawn = np.random.default_rng(seed).multivariate_hypergeometric(counts, n_valid)
        train, valid = (replace(self, weight=unit * n) for n in (counts - drawn, drawn))
        return train.take(np.flatnonzero(train.weight)), valid.take(np.flatnonzero(drawn))


def without_empty(shares: csr_array) -> csr_array:
    """Return shares of groups without the groups of which there are no rows."""
    return shares[:, np.unique(shares.indices)]


def too_few_rows(fraction: float, n_left: int, n_rows: int, what: str) -> str:
    """Return the message that validation leaves too few rows for training."""
    return (
        f"validation_fraction={fraction:g} leaves {n_left} of {n_rows} {what} for training; at "
        f"least {MIN_TRAINING_ROWS} are needed."
    )


def group_rows(X: Array, weight: Array, are_sums: bool = False) -> WeightedRows:
    """Return the distinct rows of positive weight, in an order that depends on nothing else.

    Rows are identical if they lack the same entries and the others are equal.  The weights of
    identical rows add, so that a weight is the same as repetition, the order of the
    rows does not matter, and copies of a row never are on both sides of a split.  The order is
    that of a hash of the rows scaled to their range, which is exact under changes of the units
    by powers of two.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Finite rows; NaN where an entry is missing.
    weight : ndarray of shape (n_samples,)
        Non-negative weights.
    are_sums : bool, default=False
        Whether the weights are sums already, of those of several observations.

    Returns
    -------
    WeightedRows
        Distinct rows; the least weight is 1.
    """
    kept = weight > 0
    X, weight = (X if kept.all() else X[kept]) + 0.0, weight[kept]
    low, high = extent(X)
    exponent = np.frexp(np.maximum(np.abs(low), np.abs(high)))[1]
    low, high = np.ldexp(low, -exponent), np.ldexp(high, -exponent)
    varies = high > low  # columns without variation must not change the order
    # A part after the other, so that the rows are copied no more than they have to be.
    parts = [slice(i, i + _ROWS_IN_A_PART) for i in range(0, len(X), _ROWS_IN_A_PART)]
    scaled = (np.ldexp(X[part][:, varies], -exponent[varies]) for part in parts)
    keys = np.concatenate([row_keys((s - low[varies]) / (high - low)[varies]) for s in scaled])
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    distinct = X[first]
    if not all(np.array_equal(distinct[group[part]], X[part], equal_nan=True) for part in parts):
        # Two rows have one hash.
        distinct, first, group = np.unique(X, axis=0, return_index=True, return_inverse=True)
    # Repetitions are integers before they are summed, so that their sums are exact.
    units = weight if are_sums else in_common_units(weight)
    total = np.bincount(group.ravel(), weights=units).astype(np.float64)
    weight = in_units_of_the_least(total)
    if are_counts(units):
        return WeightedRows(distinct, weight)
    # Rows that stand for several are as many as their weights say.
    number = None if are_sums else np.bincount(group.ravel()).astype(np.float64)
    return WeightedRows(distinct, weight, content=keys[first], number=number)


def in_units_of_the_least(weight: Array) -> Array:
    """Return weights divided by the least, rounded where all are multiples of it."""
    relative = weight / weight.min()
    counts = np.rint(relative)
    error = _ERROR_OF_RATIOS if are_counts(weight) else _ERROR_OF_ROUNDED_RATIOS
    is_close = np.allclose(relative, counts, rtol=error, atol=0.0)
    return np.asarray(counts if is_close else relative)


def are_counts(weight: Array) -> bool:
    """Return whether all weights are integers."""
    return np.array_equal(weight, np.rint(weight))


def in_common_units(weight: Array) -> Array:
    """Return positive weights as numbers of observations, if they can be inferred from them.

    Integers are.  Others are where all are multiples of the smallest one, fewer than 1000 times as
    large: ``[0.37, 1.11]`` are one and three observations.  Multiples of a finer unit are
    if they are those of a short list, as of the states of a discrete table: of fewer than 40 rows,
    of which at least half differ in their weights.  Of a longer list some rows would have been seen
    once; weights of classes and of surveys are commensurable too, but each row is one observation.
    All other weights are divided by the largest one, and their last bits, which depend on a common
    factor, are rounded.

    Parameters
    ----------
    weight : ndarray of shape (n_samples,)
        Positive weights.

    Returns
    -------
    ndarray of shape (n_samples,)
        Integers, or numbers of which the largest is 1.
    """
    if are_counts(weight):
        return weight
    distinct, place = np.unique(weight, return_inverse=True)
    relative = distinct / distinct[0]
    is_list = len(weight) < _MAX_ROWS_OF_A_LIST and 2 * len(distinct) >= len(weight)
    n_units = 1  # in the least weight
    for ratio in relative.tolist():
        closest = Fraction(ratio).limit_denominator(_MAX_UNITS)
        n_units = math.lcm(n_units, closest.denominator)
        is_close = abs(float(closest) - ratio) <= _ROUNDING_OF_WEIGHTS * ratio
        are_few = n_units * relative[-1] <= _MAX_UNITS - 0.5
        if not (is_close and are_few and (n_units == 1 or is_list)):
            mantissa, exponent = np.frexp(distinct / distinct[-1])
            rounded = np.rint(np.ldexp(mantissa, _BITS_OF_WEIGHTS))
            return np.asarray(np.ldexp(rounded, exponent - _BITS_OF_WEIGHTS)[place.ravel()])
    return np.asarray(np.rint(relative * n_units)[place.ravel()])


def effective_number(weight: Array) -> float:
    """Return Kish's effective sample size: rows of equal weight with as much information."""
    relative = weight / weight.max()
    return float(relative.sum() ** 2 / (relative**2).sum())


def observations_per_weight(weight: Array, squared_weight: Array) -> float:
    """Return how many observations a weight of 1 stands for.

    Parameters
    ----------
    weight : ndarray of shape (n_rows,)
        Sums of the positive weights of the observations that a row stands for.
    squared_weight : ndarray of shape (n_rows,)
        Sums of their squares.

    Returns
    -------
    float
        The number that makes the sum of the weights Kish's effective sample size; 1 for counts,
        the weights of which are sums of ones.
    """
    return float(np.sum(weight) / np.sum(squared_weight))


def resample_rows(rows: WeightedRows, most: int, random_state: np.random.RandomState) -> Array:
    """Return rows of equal weight that stand for weighted ones, for methods without weights.

    Integer weights are expanded; others, or too many rows, are drawn systematically in proportion
    to the weights.
    """
    counts = np.rint(rows.weight)
    if np.array_equal(counts, rows.weight) and counts.sum() <= most:
        return np.repeat(rows.X, counts.astype(np.intp), axis=0)
    cumulative = np.cumsum(rows.weight) / rows.weight.sum()
    n = min(most, max(len(rows), 2))
    marks = (np.arange(n) + random_state.uniform()) / n
    return rows.X[np.minimum(np.searchsorted(cumulative, marks), len(rows) - 1)]


@dataclass(frozen=True)
class ColumnReport:
    """What the columns are like, before any model.

    Attributes
    ----------
    varies : ndarray of shape (n_features,), bool
        Columns with at least two distinct values.
    tied : ndarray of shape (n_features,), bool
        Columns in which ties matter: no density exists.
    step : ndarray of shape (n_features,)
        Lattice step in standard deviations; 0 where the column is on no lattice.
    """

    varies: NDArray[np.bool_]
    tied: NDArray[np.bool_]
    step: Array


def inspect_columns(rows: WeightedRows, scale: Array, n_weighted: float) -> ColumnReport:
    """Return which columns vary, are tied, and their lattice steps.

    Entries that are missing do not count.
    What ties a column is the number of its rows that are equal: a single row of great weight is no
    tie, unless its weight is such a number.

    Parameters
    ----------
    rows : WeightedRows
        Distinct rows.
    scale : ndarray of shape (n_features,)
        Standard deviations.
    n_weighted : float
        Number of observations that the rows stand for, at least 1; of very few, ties say nothing.

    Returns
    -------
    ColumnReport
        The findings.
    """
    n_features = rows.X.shape[1]
    least, greatest = extent(rows.X)
    varies = least < greatest
    all_numbers = rows.weight if rows.number is None else rows.number
    tied, step = np.zeros(n_features, dtype=bool), np.zeros(n_features)
    for j in np.flatnonzero(varies):
        x, number, weight = observed(rows.X[:, j], all_numbers, rows.weight)
        n_seen = n_weighted * (1.0 if len(x) == len(rows) else weight.sum() / rows.weight.sum())
        if n_seen < _MIN_ROWS_FOR_TIES or len(x) < 2:
            continue
        values, group = np.unique(x, return_inverse=True)
        share = np.bincount(group.ravel(), weights=number).max() / number.sum()
        exponent = -np.frexp(scale[j])[1]  # of units in which no difference overflows
        step[j] = lattice_step(np.ldexp(values, exponent)) / np.ldexp(scale[j], exponent)
        tied[j] = share > _TIED_SHARE or step[j] > _COARSE_STEP
    return ColumnReport(varies, tied, step)


def copied_columns(X: Array) -> list[tuple[int, int]]:
    """Return pairs of columns of which the second is a copy of the first, in any units.

    Parameters
    ----------
    X : ndarray of shape (n_rows, n_features)
        Distinct rows; NaN where an entry is missing.

    Returns
    -------
    list of (int, int)
        Each copy with the first column that it is a copy of: in the rows where both are observed
        the correlation is 1 or -1 to 1e-12.  Of wide tables the first 500 columns are compared, and
        columns that are observed together in fewer than 20 rows are not.
    """
    if len(X) < _MIN_ROWS_FOR_COPIES:
        return []
    some = np.linspace(0, len(X) - 1, min(len(X), _ROWS_TO_COMPARE)).astype(np.intp)
    alike = np.triu(are_on_lines(X[some, :_COLUMNS_TO_COMPARE]), 1)
    found = []
    for j in np.flatnonzero(alike.any(axis=0)):
        first = next((i for i in np.flatnonzero(alike[:, j]) if is_copy(X[:, [i, j]])), None)
        if first is not None:
            found.append((int(first), int(j)))
    return found


def are_on_lines(X: Array) -> NDArray[np.bool_]:
    """Return which pairs of columns, (d, d), may be copies, where both are observed."""
    Z, seen = in_own_units(X), (~np.isnan(X)).astype(np.float64)
    number, total = seen.T @ seen, Z.T @ seen
    covariance = Z.T @ Z - total * total.T / np.maximum(number, 1.0)
    variance = np.square(Z).T @ seen - np.square(total) / np.maximum(number, 1.0)
    # Two rows are always on a line.
    least = (1.0 - _ROUNDING_OF_LINES) * np.sqrt(np.maximum(variance * variance.T, 0.0))
    return np.asarray((number > 2.0) & (np.abs(covariance) >= least) & (least > 0.0))


def is_copy(pair: Array) -> bool:
    """Return whether the second of two columns is a copy of the first one, in any units.

    Rows are on a line with one that is far from all of them, whatever they are: columns are copies
    only if they are without the farthest row too.
    """
    rows = pair[~np.isnan(pair).any(axis=1)]
    if len(rows) < _MIN_ROWS_FOR_COPIES:
        return False
    first, second = in_own_units(rows).T
    parts = (first, second), in_own_units(np.delete(rows, np.abs(first).argmax(), axis=0)).T
    return all(abs(x @ y) > 1.0 - _ROUNDING_OF_COPIES for x, y in parts)


def in_own_units(X: Array) -> Array:
    """Return columns of mean 0 and norm 1, with 0 where an entry is missing."""
    seen = ~np.isnan(X)
    Z = np.where(seen, X, 0.0)
    Z = Z / np.maximum(np.abs(Z).max(axis=0), np.finfo(np.float64).tiny)
    Z = np.where(seen, Z - Z.sum(axis=0) / np.maximum(seen.sum(axis=0), 1), 0.0)
    norm = np.sqrt(np.square(Z).sum(axis=0))
    return np.asarray(Z / np.where(norm > 0.0, norm, 1.0))


def lattice_step(values: Array) -> float:
    """Return the step of the lattice on which sorted, distinct values lie, or 0."""
    gaps = np.diff(values)
    step = float(gaps.min())
    if step <= 0.0 or len(gaps) < 2:
        return step if len(gaps) == 1 else 0.0
    with np.errstate(over="ignore"):
        multiples = gaps / step
    if not multiples.max() < 1e6:
        return 0.0
    return step if np.abs(multiples - np.rint(multiples)).max() < 0.01 else 0.0


def column_labels(chosen: NDArray[np.bool_], names: Sequence[str] | None) -> str:
    """Return the chosen columns' names or numbers, for messages."""
    index = np.flatnonzero(chosen)
    labels = [repr(str(names[j])) if names is not None else str(j) for j in index[:10]]
    return ", ".join(labels) + (f" and {len(index) - 10} more" if len(index) > 10 else "")
