"""Distinct rows of a table in an order that follows from their content."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from sk_itdiffusion._first._estimators.parameters import checked_weight
from sk_itdiffusion._first._immse.cubature import Keys, row_keys
from sk_itdiffusion._first._table.reading import read_table
from sk_itdiffusion._first._table.rows import (
    MAX_EXACT_INTEGER,
    MIN_TIMES_OF_A_VALUE,
    SHARE_OF_A_VALUE,
    WeightedRows,
    are_counts,
    in_common_units,
)

__all__ = ["DistinctRows", "chosen_rows_of", "copies_at_once"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]
Rows = Array | NDArray[Any] | pd.DataFrame
#: Sum of weights above which they are not numbers of copies.
MAX_COPIES = 1_000_000_000
#: Distinct rows up to which equal ones are states, combinations of values for each row up to which
#: equal rows are chance, and the number of equal pairs relative to that by chance up to which they
#: are, if columns are dependent.
MAX_STATES, MAX_CELLS_OF_A_ROW, MAX_RATIO_TO_CHANCE = 50, 10.0, 5.0
#: Steps between values of a column that tell whether it is continuous, and the least ratio of their
#: median to their quantile at 0.05 if it is.
MIN_STEPS, LEAST_RATIO_OF_STEPS = 20, 5.0


def chosen_rows_of(rows: Rows, index: Index) -> Rows:
    """Return some of the rows."""
    return rows.iloc[index] if isinstance(rows, pd.DataFrame) else rows[index]


@dataclass(frozen=True)
class DistinctRows:
    """Distinct rows in an order that follows from their content, with positive weights.

    Attributes
    ----------
    rows : ndarray or data frame of shape (n, n_columns)
        The rows.
    weight : ndarray of shape (n,)
        Their weights.
    n_copies : ndarray of shape (n,), int
        How many rows each stands for: the weight if all weights are integers, else the number of
        equal rows.
    squared_weight : ndarray of shape (n,)
        Sums of the squared weights of equal rows, where an integer weight is so many ones: with
        them sums of weights still tell of how many observations they are.
    missing : ndarray of shape (n, n_columns), bool, or None, default=None
        Which entries are missing; None if none is in the table that the rows are of.
    at_once : ndarray of shape (n,), int, or None, default=None
        How many of the equal rows are held out together: all if they are copies of one observation,
        see `copies_at_once`, and one if they are equal by chance; None for one of each.
    """

    rows: Rows
    weight: Array
    n_copies: Index
    squared_weight: Array
    missing: NDArray[np.bool_] | None = None
    at_once: Index | None = None

    @classmethod
    def of(cls, rows: Rows, sample_weight: ArrayLike | None) -> DistinctRows:
        """Return the distinct rows of positive weight; the weights of equal rows are added."""
        weight = np.ones(len(rows))
        if sample_weight is not None:
            weight = checked_weight(sample_weight, np.empty((len(rows), 0)))
            rows, weight = chosen_rows_of(rows, np.flatnonzero(weight)), weight[weight > 0.0]
            weight = in_common_units(weight)
        content, is_number = content_of(rows)
        _, first, group = np.unique(row_keys(content), return_index=True, return_inverse=True)
        total = np.bincount(group, weights=weight).astype(np.float64)
        squares = weight if are_counts(weight) else weight**2
        squared = np.bincount(group, weights=squares).astype(np.float64)
        is_count = are_counts(weight) and total.sum() < MAX_COPIES
        # Rows that are equal without their weights being counts are observations all the same.
        n_copies = total if is_count else np.bincount(group)
        n_copies = n_copies.astype(np.intp)
        at_once = copies_at_once(content[first], is_number, n_copies)
        return cls(chosen_rows_of(rows, first), total, n_copies, squared, at_once=at_once)

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def n_rows(self) -> int:
        """Number of rows that all stand for."""
        return int(self.n_copies.sum())

    @property
    def n_units(self) -> int:
        """Number of units that can be held out."""
        return int(self.units.sum())

    @property
    def units(self) -> Index:
        """Number of units of each row that can be held out."""
        return self.n_copies if self.at_once is None else self.n_copies // self.at_once

    @property
    def unit_weight(self) -> Array:
        """Weight of one unit of each row."""
        return self.weight / self.units

    def part(self, n_copies: Index) -> DistinctRows:
        """Return the rows with so many of their units."""
        kept = np.flatnonzero(n_copies)
        weight, squared = (
            (values / self.n_copies)[kept] * n_copies[kept]
            for values in (self.weight, self.squared_weight)
        )
        missing = None if self.missing is None else self.missing[kept]
        rows = chosen_rows_of(self.rows, kept)
        n_copies = n_copies[kept]
        at_once = None if self.at_once is None else np.minimum(self.at_once[kept], n_copies)
        return DistinctRows(rows, weight, n_copies, squared, missing, at_once)

    def with_entries(self) -> DistinctRows:
        """Return the rows of which an entry is observed; all if there are none."""
        if self.missing is None:
            return self
        is_empty = self.missing.all(axis=1)
        if not is_empty.any() or is_empty.all():
            return self
        return self.part(np.where(is_empty, 0, self.n_copies))

    def with_all_columns(self, n_copies: Index) -> Index:
        """Return so many units of each row, and one more for each column that they lack.

        It is of the first row in which the column is observed: nothing could be learned of it from
        the others.
        """
        if self.missing is None:
            return n_copies
        seen, kept = ~self.missing, n_copies.copy()
        for j in np.flatnonzero(seen.any(axis=0)):
            if not seen[kept > 0, j].any():
                kept[seen[:, j].argmax()] = 1
        return kept

    def draw(self, n_units: int, generator: np.random.Generator) -> Index:
        """Return how many units of each row are among randomly drawn ones."""
        drawn = generator.multivariate_hypergeometric(self.units, n_units, method="marginals")
        return np.asarray(drawn, dtype=np.intp) * (1 if self.at_once is None else self.at_once)

    def folds(self, n_folds: int, generator: np.random.Generator) -> list[Index]:
        """Return how many units of each row are in random folds of nearly equal size."""
        left, found = self.n_copies, []
        for number in range(n_folds):
            others = self.part(left)
            fold = np.zeros_like(left)
            size = -(-others.n_units // (n_folds - number))
            fold[np.flatnonzero(left)] = others.draw(size, generator)
            found.append(fold)
            left = left - fold
        return found

    def repeated(self, values: Array) -> Array:
        """Return a value of each row once for each of its units."""
        return np.repeat(values, self.units)


def copies_at_once(content: Array, is_number: NDArray[np.bool_], n_copies: Index) -> Index | None:
    """Return how many of equal rows are held out together, (n,); None for one.

    Beside a continuous column equal rows are copies of one observation, unless all of their numbers
    are missing or frequent values of their columns, as zeros of amounts are: then they are equal by
    chance.  On lattices they are copies if there are more than chance makes, except for rows, which
    copies may have too, that lack all numbers or make up a large share of the table.

    Parameters
    ----------
    content : ndarray of shape (n, n_columns)
        Numbers that tell distinct rows apart.
    is_number : ndarray of shape (n_columns,), bool
        Which columns are of numbers; the others are of their hashes.
    n_copies : ndarray of shape (n,), int
        How many rows each stands for.
    """
    if (n_copies == 1).all():
        return None
    numbers = WeightedRows(content[:, is_number], n_copies.astype(np.float64))
    if any(is_continuous(np.unique(column)) for column in numbers.X.T):
        by_chance = numbers.are_equal_by_chance
    elif has_more_pairs_than_chance(content, n_copies):
        is_value = n_copies > max(SHARE_OF_A_VALUE * n_copies.sum(), MIN_TIMES_OF_A_VALUE)
        by_chance = is_value | np.isnan(numbers.X).all(axis=1)
    else:
        return None
    return np.where(by_chance, 1, n_copies)


def has_more_pairs_than_chance(content: Array, n_copies: Index) -> bool:
    """Return whether there are more pairs of equal rows than chance makes, on lattices.

    Of independent rows that agree in all columns but one, a share agrees in this one too, about
    that of all rows that do: so pairs that differ in one column tell how many are equal by chance.
    Where there are few states, or few combinations of values for the rows, all are by chance.  See
    `copies_at_once` for the parameters.
    """
    if len(content) <= MAX_STATES:
        return False
    columns = [np.unique(column, return_inverse=True) for column in content.T]
    columns = [(values, code.ravel()) for values, code in columns if len(values) > 1]
    cells = sum(math.log(len(values)) for values, _ in columns)
    n_rows = float(n_copies.sum())
    if cells <= math.log(MAX_CELLS_OF_A_ROW * n_rows):
        return False
    keys = np.stack([hash_of_codes(code, j) for j, (_, code) in enumerate(columns)])
    total, expected = keys.sum(axis=0, dtype=np.uint64), []
    for own, (_, code) in zip(keys, columns, strict=True):
        others = np.unique(total - own, return_inverse=True)[1].ravel()
        n_alike = (np.bincount(others, weights=n_copies) ** 2).sum() - (n_copies**2).sum()
        tie = float(((np.bincount(code, weights=n_copies) / n_rows) ** 2).sum())
        expected.append(n_alike * tie / (1.0 - tie))
    n_equal = float((n_copies * (n_copies - 1.0)).sum())
    return n_equal > MAX_RATIO_TO_CHANCE * float(np.mean(expected))


def hash_of_codes(code: Index, column: int) -> Keys:
    """Return hashes of the codes of a column."""
    return row_keys(code[:, None].astype(np.float64), column)


def is_continuous(values: Array) -> bool:
    """Return whether the increasing values of a column are on no lattice.

    Steps between neighbouring values of a continuous column are of all sizes: of exponential ones
    the median is 14 times the quantile at 0.05.  On a lattice most of them are one step or a few.
    """
    steps = np.diff(values[np.isfinite(values)])
    if len(steps) < MIN_STEPS:
        return False
    small, median = np.quantile(steps, [0.05, 0.5])
    return bool(median > LEAST_RATIO_OF_STEPS * small)


def content_of(rows: Rows) -> tuple[Array, NDArray[np.bool_]]:
    """Return numbers that tell rows apart, (n, n_columns), and in which columns they are values.

    Changes of the units by powers of two leave them as they are; the others are hashes.
    """
    table = read_table(rows)
    columns, is_number = [], np.zeros(table.n_columns, dtype=bool)
    for j, holds_numbers in enumerate(table.holds_numbers):
        column = table.frame.iloc[:, j]
        numbers = exact_numbers(column) if holds_numbers else None
        if numbers is not None:
            columns.append(in_units_of_the_largest(numbers))
            is_number[j] = True
        else:
            texts = column.astype(str).to_numpy(dtype=object)
            hashed = pd.util.hash_array(texts, categorize=False)
            columns.append((hashed >> np.uint64(11)).astype(np.float64))
    return np.column_stack(columns), is_number


def exact_numbers(column: pd.Series) -> Array | None:
    """Return finite numbers, NaN for missing ones; None if floats may not tell them apart."""
    missing = column.isna().to_numpy()
    known = column.where(~missing, 0) if missing.any() else column
    try:
        numbers = np.where(missing, np.nan, known.to_numpy(dtype=np.float64))
    except OverflowError:
        return None
    largest = np.abs(numbers).max(initial=0.0, where=~missing)
    is_exact = column.dtype.kind == "f" or largest < MAX_EXACT_INTEGER
    return numbers if is_exact and np.isfinite(largest) else None


def in_units_of_the_largest(numbers: Array) -> Array:
    """Return numbers divided by the power of two above the largest."""
    largest = np.abs(numbers).max(initial=0.0, where=~np.isnan(numbers))
    return np.asarray(np.ldexp(numbers, -int(np.frexp(largest)[1])))
