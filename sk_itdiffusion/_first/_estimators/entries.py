"""Entries of tables that are replaced by others, in the tables' containers and codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from sk_itdiffusion._first._table.reading import read_table, without_tensors

__all__ = ["recoded", "with_entries"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def recoded(values: Array, source: Any, target: Any) -> Array:
    """Return numbers and codes of one density as those of another one of the same columns.

    Densities number the categories of unordered columns by the rows of their fit.

    Parameters
    ----------
    values : ndarray of shape (..., n_columns)
        Numbers and codes of the first density; NaN where entries are missing.
    source, target : estimator
        The densities.

    Returns
    -------
    ndarray of shape (..., n_columns)
        Numbers and codes of the second density.
    """
    if source is target or getattr(source, "_encoder", None) is None:
        return values
    found = values.copy()
    columns = zip(source._encoder.columns, target._encoder.columns, strict=True)
    for j, (ours, theirs) in enumerate(columns):
        if ours.categories is None:
            continue
        known = values[..., j] >= 0.0
        labels, others = (pd.Index(each.categories, dtype=object) for each in (ours, theirs))
        place = others.get_indexer(labels)
        found[known, j] = place[values[known, j].astype(np.intp)]
    return found


def with_entries(X: Any, missing: Mask, entries: Any) -> Any:
    """Return a table with its missing entries taken from another table.

    Parameters
    ----------
    X : array-like or data frame of shape (n_samples, n_features)
        Table.
    missing : ndarray of shape (n_samples, n_features), bool
        Which entries to take.
    entries : ndarray or data frame of shape (n_samples, n_features)
        The other table.

    Returns
    -------
    ndarray or data frame of shape (n_samples, n_features)
        The table.
    """
    if isinstance(X, pd.DataFrame):
        return _in_pandas(X, missing, entries)
    if hasattr(X, "columns"):
        return _in_polars(X, missing, entries)
    array = np.asarray(without_tensors(X))
    if array.dtype.kind not in "fO":
        array = read_table(X).frame.to_numpy()
    found = np.asarray(entries.to_numpy() if hasattr(entries, "to_numpy") else entries)
    if array.dtype.kind == "f":
        return np.where(missing, found, array).astype(array.dtype)
    if not missing.any():
        return array
    return np.where(missing, found.astype(object), array)


def _holds(dtype: Any, other: Any) -> bool:
    """Return whether columns of a dtype hold the entries of another one."""
    are_numbers = all(is_numeric_dtype(each) and not is_bool_dtype(each) for each in (dtype, other))
    return dtype == other or are_numbers


def _in_pandas(X: pd.DataFrame, missing: Mask, entries: Any) -> pd.DataFrame:
    columns = []
    for j in range(X.shape[1]):
        column = X.iloc[:, j]
        if missing[:, j].any():
            found = _pandas_column(entries, j)
            if isinstance(column.dtype, pd.CategoricalDtype):
                column = column.cat.add_categories(
                    [each for each in found.unique() if each not in column.cat.categories]
                )
                found = found.astype(column.dtype)
            elif column.isna().all() and not _holds(column.dtype, found.dtype):
                column = column.astype(object)
            if isinstance(column.dtype, np.dtype) and column.dtype.kind == "f":
                found = found.astype(column.dtype)
            column = column.where(~missing[:, j], found.set_axis(X.index))
        columns.append(column)
    frame = pd.concat(columns, axis=1)
    frame.columns = X.columns
    return frame


def _pandas_column(entries: Any, j: int) -> pd.Series:
    """Return a column of a table that a density has returned."""
    if isinstance(entries, pd.DataFrame):
        return entries.iloc[:, j]
    values = entries[:, j]
    return pd.Series(values.to_list() if hasattr(values, "to_list") else values)


def _in_polars(X: Any, missing: Mask, entries: Any) -> Any:
    import polars

    columns = []
    for j, name in enumerate(X.columns):
        column = X[name]
        if missing[:, j].any():
            mask = polars.Series(missing[:, j])
            found = entries[:, j] if hasattr(entries, "schema") else None
            if found is None:
                found = polars.Series(name, _pandas_column(entries, j).tolist())
            if column.dtype == polars.Null:
                column = column.cast(found.dtype)
            elif isinstance(column.dtype, polars.Enum):
                known = column.dtype.categories.to_list()
                new = [each for each in found.unique().to_list() if each not in known]
                column = column.cast(polars.Enum([*known, *new]))
            column = found.cast(column.dtype).zip_with(mask, column).alias(name)
        columns.append(column)
    return polars.DataFrame(columns)
