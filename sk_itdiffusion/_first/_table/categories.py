"""The categories of discrete columns: given, fixed by a dtype, or learned from the rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number, Real
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api import types

from sk_itdiffusion._first._table.kinds import Kind
from sk_itdiffusion._first._table.reading import (
    N_SHOWN,
    Labels,
    Table,
    by_column,
    factorize,
    first_few,
)
from sk_itdiffusion._first._table.rows import column_labels
from sk_itdiffusion._first._table.unseen import UnseenValues, is_whole_number, whole_numbers

__all__ = [
    "check_order",
    "check_type_of_values",
    "codes_of",
    "columns_of_learned_categories",
    "given_categories",
    "learn_categories",
]

Array = NDArray[np.float64]
_MAX_FILLED_CATEGORIES = 256
_MAX_CATEGORIES = 4096
#: Effective number of rows up to which a value counts as that of a single row.
_MAX_ROWS_OF_NEW_VALUES = 1.5


def codes_of(labels: Labels, categories: Labels) -> NDArray[np.intp]:
    """Return the codes of labels, -1 for unknown ones, and then that of a missing value."""
    index = pd.Index(categories, dtype=object, tupleize_cols=False)
    known = index.get_indexer(pd.Index(labels, dtype=object, tupleize_cols=False))
    missing = np.flatnonzero([category is None for category in categories])
    return np.append(known, missing if len(missing) else -1)


def check_type_of_values(values: Labels, categories: Labels, label: str) -> None:
    """Raise an error if values of a column are numbers and its categories texts, or vice versa.

    Parameters
    ----------
    values : ndarray of shape (n_values,), dtype object
        Values of which none is a category; missing ones do not count.
    categories : ndarray of shape (n_categories,), dtype object
        The categories.
    label : str
        Name of the column.

    Raises
    ------
    ValueError
        If all values are of the other type than all categories.
    """
    found, known = _type_of_values(values), _type_of_values(categories)
    if {found, known} == {"numbers", "texts"}:
        raise ValueError(
            f"Column {label!r} holds {found}, but its categories are {known}: "
            f"{first_few(list(values))} and {first_few(list(categories))}. Convert the column to "
            "the type of its categories, which is that of fit."
        )


def _type_of_values(values: Labels) -> str:
    """Return "numbers" or "texts" if the values that are not missing are all so, else ""."""
    present = [value for value in values if value is not None]
    for name, type_ in (("numbers", Number), ("texts", str)):
        if present and all(isinstance(value, type_) for value in present):
            return name
    return ""


@dataclass(frozen=True)
class Observations:
    """How often categories were observed.

    Attributes
    ----------
    count : ndarray of shape (n_categories,)
        Numbers of rows; of weighted ones, weights that sum to the effective number of rows.
    n_rows_of_category : ndarray of shape (n_categories,)
        Effective number of the rows of each category, whatever their weights are.
    n_rows : float
        Effective number of all rows.
    """

    count: Array
    n_rows_of_category: Array
    n_rows: float


@dataclass(frozen=True)
class Tally:
    """Labels that occur with positive weight, with their total weights.

    Attributes
    ----------
    labels : ndarray of shape (n_labels,), dtype object
        Labels; in a pooled tally they may repeat.
    weight : ndarray of shape (n_labels,)
        Their weights, in any unit if they are no integers.
    squared : ndarray of shape (n_labels,)
        Sums of the squared weights of their rows, where a row of integer weight is so many rows.
    missing, missing_squared : float
        The same of missing values.
    """

    labels: Labels
    weight: Array
    squared: Array
    missing: float
    missing_squared: float

    @classmethod
    def count(
        cls, column: pd.Series[Any], weight: Array, label: str, squared: Array | None = None
    ) -> Tally:
        """Return the tally of a column with one weight for each row.

        Rows that stand for several have the sums of their weights, and of their squares.
        """
        codes, labels = factorize(column, label)
        are_counts = np.array_equal(weight, np.rint(weight))
        if squared is not None:
            squares = squared
        elif are_counts:
            squares = weight
        else:
            weight = weight / weight.max()  # so that no square overflows
            squares = weight**2
        total, squared = (
            np.bincount(codes + 1, values, len(labels) + 1).astype(np.float64)
            for values in (weight, squares)
        )
        seen = total[1:] > 0
        return cls(
            labels[seen], total[1:][seen], squared[1:][seen], float(total[0]), float(squared[0])
        )

    @classmethod
    def pool(cls, tallies: Sequence[Tally]) -> Tally:
        """Return the tally of several columns together."""
        return cls(
            np.concatenate([tally.labels for tally in tallies]),
            np.concatenate([tally.weight for tally in tallies]),
            np.concatenate([tally.squared for tally in tallies]),
            sum(tally.missing for tally in tallies),
            sum(tally.missing_squared for tally in tallies),
        )

    def observations(self, categories: Labels) -> Observations:
        """Return how often each category was observed; categories include all labels that occur."""
        codes = codes_of(self.labels, categories)
        weight = np.append(self.weight, self.missing)
        squared = np.append(self.squared, self.missing_squared)
        known = codes >= 0
        total, squares = (
            np.bincount(codes[known], values[known], len(categories))
            for values in (weight, squared)
        )
        # So many rows of equal weight carry as much information (Kish's effective sample size).
        n_rows = float(total.sum() * (total.sum() / squares.sum()))
        rows_of_category = total * (total / np.where(squares > 0.0, squares, 1.0))
        return Observations(n_rows * (total / total.sum()), rows_of_category, n_rows)

    def by_weight(self, categories: Labels) -> Labels:
        """Return categories from the heaviest to the lightest; ties stay as they are."""
        codes = codes_of(self.labels, categories)
        weight = np.append(self.weight, self.missing)
        total = np.bincount(codes[codes >= 0], weight[codes >= 0], minlength=len(categories))
        # Equal totals of weights that are no integers differ by rounding only.
        share = np.round(total / max(total.sum(), 1.0), 12)
        return categories[np.argsort(-share, kind="stable")]


def _natural_categories(labels: Labels, is_number: bool) -> Labels:
    """Return distinct labels in order, with the integers between them if those are few."""
    ordered = _sorted(labels)
    if is_number and ordered and all(is_whole_number(label) for label in ordered):
        low, high = int(ordered[0]), int(ordered[-1])
        if len(ordered) <= high - low < _MAX_FILLED_CATEGORIES:
            return _object_array(range(low, high + 1))
    return _object_array(ordered)


def _sorted(labels: Iterable[Any]) -> list[Any]:
    """Return labels of any types, sorted by type and value; numbers come first."""
    items = [("" if isinstance(x, Real) else type(x).__name__, x) for x in labels]
    try:
        return [x for _, x in sorted(items)]
    except TypeError:  # values without an order
        return [x for _, x in sorted(items, key=lambda item: (item[0], str(item[1])))]


def _object_array(items: Iterable[Any]) -> Labels:
    return np.asarray(pd.Series(list(items), dtype=object).to_numpy(dtype=object))


def _check_number_of_categories(n_categories: int, label: str) -> None:
    if n_categories > _MAX_CATEGORIES:
        raise ValueError(
            f"Column {label!r} has {n_categories} categories; at most {_MAX_CATEGORIES} are "
            "possible. Group rare categories, or treat the column as continuous if it holds "
            "numbers."
        )


def _read_categories(given: Any, label: str) -> Labels:
    """Return the categories that `categories` gives for a column."""
    if not types.is_list_like(given, allow_sets=False):
        raise ValueError(
            f"categories must hold an array-like, None or 'auto' for each column, got {given!r} "
            f"for column {label!r}."
        )
    series = pd.Series(given, dtype=object).reset_index(drop=True)
    categories = series.to_numpy(dtype=object, copy=True)
    categories[series.isna().to_numpy()] = None
    repeated = pd.Series(categories, dtype=object).duplicated().to_numpy()
    if repeated.any():
        raise ValueError(
            f"categories has duplicates for column {label!r}: "
            f"{first_few(list(categories[repeated]))}."
        )
    if not len(categories):
        raise ValueError(f"categories has no categories for column {label!r}.")
    return np.asarray(categories)


def given_categories(table: Table, kinds: Sequence[Kind], categories: Any) -> dict[int, Labels]:
    """Return the categories that `categories` gives, by the columns' numbers."""
    if isinstance(categories, str) and categories == "auto":
        return {}
    given = {}
    for j, entry in by_column(table, categories, "categories").items():
        if entry is None or (isinstance(entry, str) and entry == "auto"):
            continue
        if kinds[j] == "continuous":
            raise ValueError(
                f"categories has categories for the continuous column {table.labels[j]!r}."
            )
        given[j] = _read_categories(entry, table.labels[j])
    return given


def check_order(table: Table, kinds: Sequence[Kind], given: Mapping[int, Labels]) -> None:
    """Raise a ValueError if ordinal categories have no order."""
    lacks_order = np.array([storage == "text" for storage in table.storages])
    lacks_order &= np.array([kind == "ordinal" for kind in kinds])
    lacks_order[list(given)] = False
    if lacks_order.any():
        raise ValueError(
            f"Column(s) {column_labels(lacks_order, table.labels)} are ordinal, but their values "
            "have no order. List the categories in order in categories, or convert to an "
            "ordered categorical."
        )


def _fixed_categories(table: Table, j: int, given: Mapping[int, Labels]) -> Labels | None:
    """Return the categories that a column has whatever its values are."""
    if j in given:
        return given[j]
    dtype = table.column(j).dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return np.asarray(dtype.categories, object)
    return _object_array([False, True]) if types.is_bool_dtype(dtype) else None


def _is_closed(table: Table, j: int, given: Mapping[int, Labels]) -> bool:
    """Return whether a column can have no other values than its categories."""
    # Categoricals and pandas' own booleans may lack a value in another table.
    return j in given or table.column(j).dtype == np.dtype(bool)


def columns_of_learned_categories(
    table: Table, kinds: Sequence[Kind], categories: Any
) -> NDArray[np.bool_]:
    """Return which discrete columns have the categories that occur, since none are given.

    Parameters
    ----------
    table : Table
        Table.
    kinds : sequence of {"continuous", "ordinal", "nominal"}
        Kind of each column.
    categories : "auto", sequence or dict
        Categories of columns; see `TableEncoder.fit`.

    Returns
    -------
    ndarray of shape (n_columns,), bool
        The columns.
    """
    given = given_categories(table, kinds, categories)
    return np.array(
        [
            kind != "continuous" and _fixed_categories(table, j, given) is None
            for j, kind in enumerate(kinds)
        ]
    )


def learn_categories(
    table: Table,
    kinds: Sequence[Kind],
    given: Mapping[int, Labels],
    weight: Array,
    shared_categories: bool,
    squared_weight: Array | None = None,
    handle_missing: str = "category",
) -> tuple[dict[int, Labels], dict[int, UnseenValues]]:
    """Return the categories of the discrete columns, in the order of their codes, and other values.

    Columns that share their categories share the probabilities of other values too.  Missing values
    of columns that hold no numbers are a category if they are handled as such.
    """
    discrete = [j for j, kind in enumerate(kinds) if kind != "continuous"]
    tallies = {
        j: Tally.count(table.column(j), weight, table.labels[j], squared_weight) for j in discrete
    }
    fixed = {j: _fixed_categories(table, j, given) for j in discrete}
    groups = [discrete] if shared_categories and discrete else [[j] for j in discrete]
    learned, unseen = {}, {}
    for group in groups:
        tally = Tally.pool([tallies[j] for j in group])
        free = [tallies[j] for j in group if fixed[j] is None]
        parts = [categories for j in group if (categories := fixed[j]) is not None]
        is_number = bool(table.holds_numbers[group].all())
        label = ", ".join(table.labels[j] for j in group[:N_SHOWN])
        categories = _ordered_categories(parts, free, is_number, label)
        is_category = handle_missing == "category" and not is_number
        if is_category and tally.missing > 0 and not any(each is None for each in categories):
            categories = np.append(categories, np.array([None], dtype=object))
        _check_number_of_categories(len(categories), label)
        by_weight = tally.by_weight(categories)
        learned.update({j: by_weight if kinds[j] == "nominal" else categories for j in group})
        others = [j for j in group if not _is_closed(table, j, given)]
        if others:
            in_order = all(kinds[j] == "ordinal" for j in group)
            found = _unseen_values(tally, categories, parts, is_number, in_order)
            unseen.update(dict.fromkeys(others, found))
    return learned, unseen


def _unseen_values(
    tally: Tally, categories: Labels, fixed: Sequence[Labels], is_number: bool, in_order: bool
) -> UnseenValues:
    """Return the probabilities of other values than the categories.

    Parameters
    ----------
    tally : Tally
        What occurs.
    categories : ndarray of shape (n_categories,)
        The categories.
    fixed : sequence of ndarray
        Those of them that are categories whether they occur or not.
    is_number, in_order : bool
        Whether they are numbers, and whether these have an order.
    """
    are_whole = is_number and all(is_whole_number(category) for category in categories)
    if are_whole:
        categories = _object_array(sorted(categories))
    seen = tally.observations(categories)
    is_new = (seen.count > 0.0) & (seen.n_rows_of_category < _MAX_ROWS_OF_NEW_VALUES)
    is_new &= codes_of(categories, np.concatenate([*fixed, _object_array([])]))[:-1] < 0
    if are_whole and int(categories[-1]) - int(categories[0]) < _MAX_FILLED_CATEGORIES:
        is_new[1:-1] = False  # between others they would be categories in any case
    n_new = np.where(is_new, seen.count, 0.0)
    if not (are_whole and in_order):
        return UnseenValues.of_names(float(n_new.sum()), seen.n_rows)
    numbers, occurs = whole_numbers(categories), seen.count > 0.0
    return UnseenValues.of_whole_numbers(
        numbers, numbers[occurs], seen.count[occurs], n_new[occurs], seen.n_rows
    )


def _ordered_categories(
    fixed: list[Labels], free: Sequence[Tally], is_number: bool, label: str
) -> Labels:
    """Return fixed categories, and those that tallies hold, in their natural order."""
    labels = [pd.unique(Tally.pool(free).labels)] if free else []
    _check_number_of_categories(max(map(len, fixed + labels)), label)
    natural = [_natural_categories(distinct, is_number) for distinct in labels]
    return np.asarray(pd.unique(np.concatenate(fixed + natural)), dtype=object)
