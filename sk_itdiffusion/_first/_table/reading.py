"""Tables of any container as pandas data frames, and what their columns hold."""

from __future__ import annotations

import contextlib
import datetime
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pandas.api import types
from sklearn.utils.validation import check_array

from sk_itdiffusion._first._table.frames import polars_dtypes
from sk_itdiffusion._first._table.rows import column_labels

__all__ = [
    "N_SHOWN",
    "Labels",
    "Table",
    "as_floats",
    "by_column",
    "check_complete",
    "check_observed",
    "factorize",
    "first_few",
    "naming_columns",
    "read_table",
    "reason_of_columns",
    "with_one_nan",
    "without_missing_objects",
    "without_tensors",
]

Array = NDArray[np.float64]
Labels = NDArray[np.object_]
Storage = Literal["boolean", "integer", "float", "unordered", "ordered", "text", "other"]
N_SHOWN = 5
_NUMBERS: tuple[Storage, ...] = ("boolean", "integer", "float")
_INFERRED_NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal")


@dataclass(frozen=True)
class Table:
    """A table of any container as a pandas data frame.

    Attributes
    ----------
    frame : DataFrame of shape (n_rows, n_columns)
        The table, with at least one row and one column.
    dtype : dtype or None
        The dtype of an array; None where the table came with column names.
    polars : tuple of str or None, default=None
        Names of the columns' dtypes in a polars data frame; None for any other table.
    """

    frame: pd.DataFrame
    dtype: np.dtype[Any] | None
    polars: tuple[str, ...] | None = None

    @property
    def n_columns(self) -> int:
        """Number of columns."""
        return self.frame.shape[1]

    @cached_property
    def labels(self) -> list[str]:
        """Names of the columns, or their numbers, as text."""
        return [str(name) for name in self.frame.columns]

    @property
    def names(self) -> list[str] | None:
        """Names of the columns; None for those of an array."""
        return self.labels if self.dtype is None else None

    @cached_property
    def storages(self) -> list[Storage]:
        """How the columns are stored."""
        return [_storage(self.column(j), self.labels[j]) for j in range(self.n_columns)]

    @cached_property
    def holds_numbers(self) -> NDArray[np.bool_]:
        """Which columns hold numbers, of shape (n_columns,)."""
        return np.array([storage in _NUMBERS for storage in self.storages])

    def column(self, j: int) -> pd.Series[Any]:
        """Return one column."""
        return self.frame.iloc[:, j]

    def position(self, name: object, parameter: str) -> int:
        """Return the number of the column of some name, for a parameter that names it."""
        found = [j for j, known in enumerate(self.frame.columns) if known == name]
        if not found:
            raise ValueError(
                f"{parameter} names the column {name!r}, which X does not have. The columns of X "
                f"are {first_few(list(self.frame.columns))}."
            )
        return found[0]

    def check_finite(
        self,
        chosen: NDArray[np.bool_],
        continuous: NDArray[np.bool_],
        allow_missing: bool = False,
    ) -> None:
        """Raise a ValueError if a chosen column has infinite values, or missing ones."""
        missing = self._which(chosen, lambda column: bool(column.isna().any()))
        if missing.any() and not allow_missing:
            advice = ""
            if (missing & continuous).any():
                advice += (
                    " Drop these rows, or impute values that vary from row to row, "
                    "for example with IMMSEImputer(strategy='sample'); many copies of a constant "
                    "have no density."
                )
            if (missing & ~continuous).any():
                advice += (
                    " A missing value is a category of its own in categories: convert codes and "
                    "discrete numbers with missing values to a categorical dtype before fit, "
                    "for "
                    "example with X[column].astype('category')."
                )
            raise ValueError(
                f"Input X contains NaN in column(s) {column_labels(missing, self.names)}.{advice}"
            )
        infinite = self._which(chosen, _has_infinity)
        if infinite.any():
            raise ValueError(
                "Input X contains infinity or a value too large for dtype('float64') in column(s) "
                f"{column_labels(infinite, self.names)}."
            )

    def check_observed(self, chosen: NDArray[np.bool_]) -> None:
        """Raise a ValueError if a chosen column has no values but missing ones."""
        check_observed(self._which(chosen, lambda column: bool(column.isna().all())), self.names)

    def _which(self, chosen: NDArray[np.bool_], test: Any) -> NDArray[np.bool_]:
        return np.array([chosen[j] and test(self.column(j)) for j in range(self.n_columns)])


@contextlib.contextmanager
def naming_columns(X: Any, allow_missing: bool = False) -> Iterator[None]:
    """Let errors about numbers in X tell which columns they are in.

    Parameters
    ----------
    X : array-like or data frame of shape (n_rows, n_columns)
        What is being validated as numbers.
    allow_missing : bool, default=False
        Whether numbers may be missing.

    Raises
    ------
    ValueError
        Instead of an error that tells of X as a whole.
    """
    try:
        if has_times(X):
            # NumPy makes numbers of them, also of those that are missing.
            raise TypeError("dates and durations are not numbers")
        yield
    except (OverflowError, TypeError, ValueError) as error:
        is_of_names = "feature names" in str(error)
        reason = None if is_of_names else reason_of_columns(X, allow_missing)
        if reason is None:
            raise
        raise ValueError(reason) from None


def has_times(X: Any) -> bool:
    """Return whether an array, or columns of a data frame, hold dates or durations."""
    dtypes = list(X.dtypes) if isinstance(X, pd.DataFrame) else [getattr(X, "dtype", None)]
    return any(is_time(dtype) for dtype in dtypes)


def is_time(dtype: Any) -> bool:
    """Return whether entries of a dtype are dates or durations."""
    return getattr(dtype, "kind", None) in ("m", "M")


def check_observed(lacking: NDArray[np.bool_], names: Sequence[str] | None) -> None:
    """Raise a ValueError if columns, those of shape (n_columns,), have no observed value."""
    if lacking.any():
        raise ValueError(
            f"Input X has no observed values in column(s) {column_labels(lacking, names)}, so "
            "nothing can be learned about them. Remove them."
        )


def check_complete(values: Array, names: Sequence[str] | None, what: str) -> None:
    """Raise a ValueError if numbers or codes are missing where they have to be there.

    Parameters
    ----------
    values : ndarray of shape (n_rows, n_columns)
        Numbers and codes; NaN where they are missing.
    names : sequence of str or None
        Names of the columns.
    what : str
        What cannot be done with them.
    """
    missing = np.asarray(np.isnan(values).any(axis=0))
    if missing.any():
        raise ValueError(
            f"Input X contains NaN in column(s) {column_labels(missing, names)}. Missing entries "
            f"are not supported by {what}. Drop these rows, or impute values that vary from row "
            "to row, for example with IMMSEImputer(strategy='sample')."
        )


def with_one_nan(values: Array) -> Array:
    """Return numbers with one and the same NaN for all missing ones, as hashes need it."""
    missing = np.isnan(values)
    return np.where(missing, np.nan, values) if missing.any() else values


def without_missing_objects(X: Any) -> Any:
    """Return a table with NaN for missing objects, such as None and pandas' NA; others as it is."""
    if isinstance(X, pd.DataFrame):
        of_objects = [j for j, dtype in enumerate(X.dtypes) if types.is_object_dtype(dtype)]
        if not of_objects:
            return X
        columns = {j: X.iloc[:, j].where(X.iloc[:, j].notna(), np.nan) for j in of_objects}
        parts = [columns.get(j, X.iloc[:, j]) for j in range(X.shape[1])]
        return pd.concat(parts, axis=1).set_axis(X.columns, axis=1)
    array = X
    if isinstance(X, list | tuple):
        try:
            array = np.asarray(X)
        except ValueError:  # rows of different lengths, which are an error elsewhere
            return X
    if not isinstance(array, np.ndarray) or array.dtype != object or array.ndim != 2:
        return X
    missing = pd.isna(array)
    return np.where(missing, np.nan, array) if missing.any() else X


def reason_of_columns(X: Any, allow_missing: bool = False) -> str | None:
    """Return which columns of a table are no finite numbers; None if that is not what is wrong."""
    try:
        table = read_table(X)
        chosen = table.holds_numbers.copy()
    except (TypeError, ValueError):
        return None
    others = {j: _first_text(table.column(j)) for j in range(table.n_columns) if not chosen[j]}
    texts = {j: entry for j, entry in others.items() if entry is not None}
    if texts:
        wrong = np.isin(np.arange(table.n_columns), list(texts))
        return (
            f"Input X contains strings or dates in column(s) {column_labels(wrong, table.names)}, "
            f"such as {next(iter(texts.values()))}, which are not numbers. Convert them, remove "
            "them, or use IMMSEMixedDensity, which treats strings as categories."
        )
    # Missing values make others of booleans, and of what is no text in objects.
    chosen[list(others)] = [not _no_numbers(table.column(j)).any() for j in others]
    try:
        table.check_finite(chosen, chosen, allow_missing)
    except ValueError as error:
        return str(error)
    return None


def _first_text(column: pd.Series[Any]) -> str | None:
    """Return the first text or time in a column that is not a number, for messages."""
    wrong = column.notna() if is_time(column.dtype) else _no_numbers(column)
    first = column[wrong].iloc[:1].astype(object).tolist()
    texts = (str, datetime.date, datetime.timedelta, pd.Period)
    return repr(str(first[0])) if first and isinstance(first[0], texts) else None


def _no_numbers(column: pd.Series[Any]) -> Any:
    """Return which entries of a column are there, but are not numbers."""
    entries = column.astype(object)
    return entries.notna() & pd.to_numeric(entries, errors="coerce").isna()


def without_tensors(X: Any) -> Any:
    """Return a torch tensor as an array, whatever scikit-learn is set to; all else as it is."""
    return X.detach().cpu().numpy() if isinstance(X, torch.Tensor) else X


def read_table(X: Any) -> Table:
    """Return a table whatever its container is.

    Parameters
    ----------
    X : array-like or data frame of shape (n_rows, n_columns), or Table
        A pandas data frame, one that has `columns` with `to_numpy` (such as those of polars), or
        anything that numpy makes an array of.

    Returns
    -------
    Table
        The table.  A `Table` is returned as it is.

    Raises
    ------
    ValueError
        If there are no rows or no columns, X is not two-dimensional, or it is complex.
    TypeError
        If X is sparse.
    """
    if isinstance(X, Table):
        return X
    if hasattr(X, "columns"):
        frame = X if isinstance(X, pd.DataFrame) else _foreign_frame(X)
        # Only the shape is checked: a frame of several dtypes has no array without copying it.
        check_array(np.broadcast_to(0.0, frame.shape))
        return Table(frame, None, polars_dtypes(X))
    X = without_tensors(X)
    array = check_array(X, dtype=None, ensure_all_finite=False)
    if array.dtype.kind in "US" and not hasattr(X, "dtype"):
        # numpy made text of the numbers in a list that has both.
        array = check_array(X, dtype=object, ensure_all_finite=False)
    if array.dtype.kind in "biufmM":
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        return Table(pd.DataFrame(native, copy=False), array.dtype)
    return Table(pd.DataFrame(array.astype(object), dtype=object), array.dtype)


def _foreign_frame(X: Any) -> pd.DataFrame:
    """Return a data frame of another library as one of pandas, column by column."""
    columns = {str(name): _foreign_column(X[name]) for name in X.columns}
    return pd.DataFrame(columns, index=pd.RangeIndex(len(X)))


def _foreign_column(column: Any) -> Any:
    values = column.to_numpy()
    categories = getattr(column.dtype, "categories", None)
    if values.dtype.kind == "f" and getattr(column.dtype, "is_integer", bool)():
        return pd.array(column.to_list(), dtype="Int64")  # integers, some of them missing
    # An enumeration lists its categories; other categories are no property of the column.
    if categories is not None and hasattr(categories, "to_list"):
        return pd.Categorical(values, categories=categories.to_list())
    return values


def _storage(column: pd.Series[Any], label: str) -> Storage:
    """Return how a column is stored; numbers among objects count as numbers."""
    dtype = column.dtype
    inferred = types.infer_dtype(column, skipna=True) if types.is_object_dtype(dtype) else ""
    if inferred == "complex" or types.is_complex_dtype(dtype):
        raise ValueError(f"Complex data not supported: column {label!r} holds complex numbers.")
    if isinstance(dtype, pd.CategoricalDtype):
        return "ordered" if dtype.ordered else "unordered"
    if inferred == "boolean" or types.is_bool_dtype(dtype):
        return "text" if column.isna().any() else "boolean"  # a missing value is a category
    if inferred == "integer" or types.is_integer_dtype(dtype):
        return "integer"
    if inferred in _INFERRED_NUMBERS or types.is_numeric_dtype(dtype):
        return "float"
    return "text" if types.is_object_dtype(dtype) or types.is_string_dtype(dtype) else "other"


def _has_infinity(column: pd.Series[Any]) -> bool:
    if types.is_float_dtype(column.dtype):
        return bool(np.isinf(column.to_numpy(dtype=np.float64)).any())
    if types.is_object_dtype(column.dtype):
        return any(map(_is_too_large, factorize(column)[1]))
    return False


def _is_too_large(value: Any) -> bool:
    """Return whether a number is infinite, or a Python integer beyond all of 64 bits."""
    is_number = isinstance(value, int | float | np.number)
    return is_number and not -sys.float_info.max <= value <= sys.float_info.max


def first_few(items: Sequence[object]) -> str:
    """Return the first few items, for messages."""
    shown = ", ".join("a missing value" if x is None else repr(x) for x in items[:N_SHOWN])
    more = len(items) - N_SHOWN
    return shown + (f" and {more} more" if more > 0 else "")


def by_column(table: Table, setting: Any, parameter: str) -> dict[int, Any]:
    """Return the entries of a mapping from names, or of a sequence, by the columns' numbers."""
    if isinstance(setting, Mapping):
        return {table.position(name, parameter): value for name, value in setting.items()}
    if not types.is_list_like(setting, allow_sets=False):
        raise ValueError(
            f"{parameter} must be a valid string, a sequence with one entry per column, or a "
            f"dict from column names, got {setting!r}."
        )
    entries = list(setting)
    if len(entries) != table.n_columns:
        raise ValueError(
            f"{parameter} has {len(entries)} entries, but X has {table.n_columns} columns."
        )
    return dict(enumerate(entries))


def as_floats(column: pd.Series[Any], label: str) -> Array:
    """Return numbers as floats, missing ones as NaN.

    Raises
    ------
    ValueError
        If the column holds something else.
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object)
    if types.is_object_dtype(column.dtype) and types.infer_dtype(column, skipna=True) == "empty":
        return np.full(len(column), np.nan)
    if _storage(column, label) not in _NUMBERS:
        factorize(column, label)  # for the error of entries that are no values at all
        raise ValueError(f"Column {label!r} is continuous, but X has values that are not numbers.")
    return np.asarray(pd.to_numeric(column).to_numpy(dtype=np.float64, na_value=np.nan))


def factorize(column: pd.Series[Any], label: str = "") -> tuple[NDArray[np.intp], Labels]:
    """Return the number of each entry's label, -1 where it is missing, and the labels."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes = np.asarray(column.cat.codes, dtype=np.intp)
        return codes, np.asarray(column.cat.categories, dtype=object)
    try:
        codes, labels = pd.factorize(column)
    except TypeError as error:
        raise TypeError(
            f"In column {label!r} an argument must be a string or a number: {error}."
        ) from error
    return np.asarray(codes, dtype=np.intp), np.asarray(labels, dtype=object)
