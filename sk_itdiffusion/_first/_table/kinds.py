"""Which columns are continuous, ordinal or nominal, and which look like something else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from sk_itdiffusion._first._runtime.warning import warn
from sk_itdiffusion._first._table.reading import (
    Table,
    as_floats,
    by_column,
    factorize,
    first_few,
    read_table,
)
from sk_itdiffusion._first._table.rows import MAX_EXACT_INTEGER, column_labels, observed

__all__ = [
    "Kind",
    "check_continuous",
    "discrete_kinds",
    "is_continuous",
    "mixed_kinds",
    "reason_of_merged_integers",
    "warn_of_identifiers",
    "warn_of_merged_integers",
]

Array = NDArray[np.float64]
Kind = Literal["continuous", "ordinal", "nominal"]
_MIN_ROWS_WITH_SINGLE_TEXTS = 20
# Integers of which at least so large a share is distinct may be identifiers, ...
_MIN_DISTINCT_IDENTIFIERS = 0.9
# ... and are if draws from their range would repeat so seldom with less than this chance.
_CHANCE_OF_FEW_REPETITIONS = 1e-4
_MAX_AUTOMATIC_CATEGORIES = 256


def discrete_kinds(X: Any, kind: Any = "auto", allow_missing: bool = False) -> list[Kind]:
    """Return the kinds of the columns of a table without continuous columns.

    Parameters
    ----------
    X : array-like or data frame of shape (n_rows, n_columns), or Table
        Table.
    kind : {"auto", "nominal", "ordinal"}, sequence or dict, default="auto"
        Kind of all columns, of each column, or of the columns that a dict names ("auto" for the
        others; the columns of an array are named by their numbers).  "auto" takes numbers and
        ordered categoricals as ordinal, and booleans, unordered categoricals, strings and other
        objects as nominal.
    allow_missing : bool, default=False
        Whether numbers may be missing.

    Returns
    -------
    list of str
        "ordinal" or "nominal" for each column.

    Raises
    ------
    ValueError
        If `kind` is something else, a column of numbers has missing or infinite values, or "auto"
        meets a column of more than 256 distinct numbers that are not all integers.

    Examples
    --------
    >>> discrete_kinds([[1, "red"], [2, "blue"]])
    ['ordinal', 'nominal']
    """
    table = read_table(X)
    if isinstance(kind, str):
        asked = dict.fromkeys(range(table.n_columns), kind)
    else:
        asked = by_column(table, kind, "kind")
    table.check_finite(table.holds_numbers, np.zeros(table.n_columns, dtype=bool), allow_missing)
    return [_discrete_kind(table, j, asked.get(j, "auto")) for j in range(table.n_columns)]


def _discrete_kind(table: Table, j: int, asked: Any) -> Kind:
    if not isinstance(asked, str) or asked not in ("auto", "nominal", "ordinal"):
        raise ValueError(
            f"kind must be 'auto', 'nominal' or 'ordinal', got {asked!r} for column "
            f"{table.labels[j]!r}."
        )
    if asked != "auto":
        return cast(Kind, asked)
    storage = table.storages[j]
    if storage == "float":
        _check_discrete_numbers(table, j)
    return "ordinal" if storage in ("integer", "float", "ordered") else "nominal"


def _check_discrete_numbers(table: Table, j: int) -> None:
    """Raise a ValueError for numbers that look continuous."""
    numbers = observed(as_floats(table.column(j), table.labels[j]))[0]
    n_distinct = len(pd.unique(numbers))
    if n_distinct > _MAX_AUTOMATIC_CATEGORIES and not np.array_equal(numbers, np.rint(numbers)):
        raise ValueError(
            f"Column {table.labels[j]!r} has {n_distinct} distinct values that are not integers, "
            "and looks continuous. Use IMMSEMixedDensity for tables with continuous columns, or "
            "name its kind."
        )


def mixed_kinds(
    X: Any, categorical_features: Any = "from_dtype", ordinal_features: Any = "from_dtype"
) -> list[Kind]:
    """Return the kinds of the columns of a table that may have continuous columns.

    Parameters
    ----------
    X : array-like or data frame of shape (n_rows, n_columns), or Table
        Table.
    categorical_features : "from_dtype", None or array-like, default="from_dtype"
        Nominal columns: their names, their numbers or a mask of shape (n_columns,).  "from_dtype"
        takes booleans, unordered categoricals, strings and other objects.
    ordinal_features : "from_dtype", None or array-like, default="from_dtype"
        Ordinal columns, likewise.  "from_dtype" takes ordered categoricals and integers of at
        most 256 distinct values.

    Returns
    -------
    list of str
        "continuous", "ordinal" or "nominal" for each column.  Columns that are listed are what
        the list says, whatever their dtype.

    Raises
    ------
    ValueError
        If a list names columns that X does not have, a column is in both lists, or a column that
        is in neither cannot be continuous.

    Examples
    --------
    >>> mixed_kinds([[1.5, "red"], [2.5, "blue"]])
    ['continuous', 'nominal']
    """
    table = read_table(X)
    nominal = _listed_columns(table, categorical_features, "categorical_features")
    ordinal = _listed_columns(table, ordinal_features, "ordinal_features")
    both = nominal & ordinal
    if both.any():
        raise ValueError(
            f"Column(s) {column_labels(both, table.labels)} are in both categorical_features and "
            "ordinal_features."
        )
    from_dtype = {
        "nominal": _is_from_dtype(categorical_features),
        "ordinal": _is_from_dtype(ordinal_features),
    }
    kinds: list[Kind] = []
    for j in range(table.n_columns):
        if nominal[j] or ordinal[j]:
            kinds.append("nominal" if nominal[j] else "ordinal")
            continue
        kind = _kind_of_dtype(table, j)
        kinds.append(kind if from_dtype.get(kind, False) else "continuous")
    check_continuous(table, kinds)
    listed = nominal | ordinal
    unlisted = [j for j in range(table.n_columns) if not listed[j]]
    _warn_of_single_texts(table, unlisted)
    _warn_of_identifiers(
        table, unlisted, " List categories in categorical_features or ordinal_features."
    )
    return kinds


def _warn_of_single_texts(table: Table, candidates: Sequence[int]) -> None:
    """Warn of columns of strings that seldom repeat, of which nobody said that they are nominal."""
    texts = [j for j in candidates if table.storages[j] == "text"]
    if len(table.frame) < _MIN_ROWS_WITH_SINGLE_TEXTS:
        return
    most = len(table.frame) / 2
    single = [j for j in texts if len(factorize(table.column(j), table.labels[j])[1]) > most]
    if single:
        chosen = np.isin(np.arange(table.n_columns), single)
        warn(
            f"Column(s) {column_labels(chosen, table.names)} hold strings that seldom repeat; "
            "they are taken as categories, most of which occur once. Remove identifiers, and "
            "convert numbers and dates that were read as strings (pandas.read_csv has "
            "thousands=',', decimal=',' and parse_dates); list true categories in "
            "categorical_features.",
        )


def warn_of_identifiers(X: Any) -> None:
    """Warn of columns of integers that look like identifiers.

    Parameters
    ----------
    X : array-like or data frame of shape (n_rows, n_columns)
        Table.
    """
    kind = getattr(getattr(X, "dtype", None), "kind", "")
    if hasattr(X, "columns") or (kind in ("i", "u") and X.ndim == 2):
        table = read_table(X)
        _warn_of_identifiers(table, range(table.n_columns))


def _warn_of_identifiers(table: Table, candidates: Iterable[int], how_to_keep: str = "") -> None:
    """Warn of columns of integers that repeat so seldom that they are no measurements."""
    found = [
        j
        for j in candidates
        if table.storages[j] == "integer"
        and _are_identifiers(table.column(j).dropna().to_numpy(dtype=np.float64))
    ]
    if found:
        chosen = np.isin(np.arange(table.n_columns), found)
        warn(
            f"Column(s) {column_labels(chosen, table.names)} look like identifiers or row numbers: "
            "so many measured integers in so small a range would have repetitions. Remove "
            f"identifiers.{how_to_keep}"
        )


def warn_of_merged_integers(X: Any, have_probabilities: bool = False) -> None:
    """Warn of columns of different integers that are equal as floats.

    Parameters
    ----------
    X : array-like or data frame of shape (n_rows, n_columns)
        Table whose columns are all taken as floats.
    have_probabilities : bool, default=False
        Whether each integer is to have a probability of its own.

    Raises
    ------
    ValueError
        Instead of the warning, if each integer is to have a probability.
    """
    is_plain = isinstance(X, np.ndarray | list | tuple) and np.ndim(X) == 2
    holds_others = getattr(getattr(X, "dtype", None), "kind", "O") in ("i", "u", "O")
    if hasattr(X, "columns") or (is_plain and holds_others):
        table = read_table(X)
        message = reason_of_merged_integers(table, range(table.n_columns))
        if message is not None and have_probabilities:
            raise ValueError(message)
        if message is not None:
            warn(message)


def reason_of_merged_integers(table: Table, candidates: Iterable[int]) -> str | None:
    """Return which columns of integers floats do not distinguish; None if there are none."""
    found = [
        j
        for j in candidates
        if table.storages[j] == "integer" and _are_merged_as_floats(table.column(j))
    ]
    if not found:
        return None
    chosen = np.isin(np.arange(table.n_columns), found)
    return (
        f"Column(s) {column_labels(chosen, table.names)} hold different integers that are equal as "
        "64-bit floats, which cannot represent all integers beyond 2**53. Subtract a nearby "
        "number, such as the minimum, or treat them as categories."
    )


def _are_merged_as_floats(column: pd.Series[Any]) -> bool:
    numbers = column.dropna().to_numpy(dtype=np.float64)
    if np.abs(numbers).max(initial=0.0) < MAX_EXACT_INTEGER:
        return False
    return len(np.unique(numbers)) < column.nunique()


def _are_identifiers(values: Array) -> bool:
    """Return whether integers repeat too seldom for independent draws from their range.

    Of n draws from m values all but m (1 - (1 - 1/m)^n) of them, at least, are expected to be
    repetitions: that many if the values are equally likely, and more otherwise.
    """
    n = len(values)
    if n < _MIN_ROWS_WITH_SINGLE_TEXTS:
        return False
    m = float(np.ptp(values)) + 1.0
    if m < _MIN_DISTINCT_IDENTIFIERS * n:
        return False
    n_distinct = len(np.unique(values))
    expected = n + m * np.expm1(n * np.log1p(-1.0 / m))
    is_rare = stats.poisson.cdf(n - n_distinct, expected) < _CHANCE_OF_FEW_REPETITIONS
    return bool(n_distinct >= _MIN_DISTINCT_IDENTIFIERS * n and is_rare)


def _is_from_dtype(features: Any) -> bool:
    return isinstance(features, str) and features == "from_dtype"


def _kind_of_dtype(table: Table, j: int) -> Kind:
    storage = table.storages[j]
    if storage == "integer":
        few = table.column(j).nunique() <= _MAX_AUTOMATIC_CATEGORIES
        return "ordinal" if few else "continuous"
    if storage == "ordered":
        return "ordinal"
    return "nominal" if storage in ("boolean", "unordered", "text") else "continuous"


def _listed_columns(table: Table, features: Any, parameter: str) -> NDArray[np.bool_]:
    """Return which columns a list of names or numbers, or a mask, names explicitly."""
    chosen = np.zeros(table.n_columns, dtype=bool)
    if features is None or _is_from_dtype(features):
        return chosen
    entries = np.asarray(features)
    if entries.ndim != 1 or (entries.size and entries.dtype.kind not in "biuUO"):
        raise ValueError(
            f"{parameter} must be 'from_dtype', None or a one-dimensional array-like of column "
            f"names, column numbers or booleans, got {features!r}."
        )
    if entries.dtype.kind == "b":
        return _read_mask(entries, table.n_columns, parameter)
    if entries.dtype.kind in "UO" and table.dtype is not None and entries.size:
        raise ValueError(
            f"{parameter} must hold column numbers or a mask, since the columns of X have no names."
        )
    if entries.dtype.kind in "iu" and not np.isin(entries, range(table.n_columns)).all():
        raise ValueError(
            f"{parameter} must hold column numbers from 0 to {table.n_columns - 1}, got "
            f"{first_few(entries.tolist())}."
        )
    for entry in entries.tolist():
        chosen[entry if isinstance(entry, int) else table.position(entry, parameter)] = True
    return chosen


def _read_mask(mask: NDArray[np.bool_], n_columns: int, parameter: str) -> NDArray[np.bool_]:
    if len(mask) != n_columns:
        raise ValueError(
            f"{parameter} is a mask of {len(mask)} entries, but X has {n_columns} columns."
        )
    return mask


def check_continuous(table: Table, kinds: Sequence[Kind]) -> None:
    """Raise a ValueError if a continuous column holds no numbers."""
    wrong = is_continuous(kinds) & ~table.holds_numbers
    if wrong.any():
        raise ValueError(
            f"Column(s) {column_labels(wrong, table.labels)} are not numeric and cannot be "
            "continuous. Name them in categorical_features or ordinal_features, or convert them."
        )


def is_continuous(kinds: Sequence[Kind]) -> NDArray[np.bool_]:
    return np.array([kind == "continuous" for kind in kinds])
