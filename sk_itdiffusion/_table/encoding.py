"""Tables with continuous, ordinal and nominal columns as matrices of numbers, and back.

A continuous column keeps its numbers.  A discrete column becomes the codes 0, ..., K - 1 of its K
levels: in the order of the levels where it is ordinal, and from the most to the least frequent one
where it is nominal, so that the codes do not depend on how the levels are called.  A value that is
no level becomes its log-probability (see `sk_itdiffusion._table.unseen`), which is negative.
"""

from __future__ import annotations

import contextlib
import datetime
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from pandas.api import types
from pandas.api.extensions import ExtensionDtype
from scipy import stats
from sklearn.utils.validation import _check_sample_weight, check_array

from sk_itdiffusion._runtime.warning import warn
from sk_itdiffusion._table.bounds import rounded_inside, unbounded
from sk_itdiffusion._table.frames import as_polars, polars_dtypes
from sk_itdiffusion._table.rows import LARGEST_EXACT, column_labels, in_common_units
from sk_itdiffusion._table.unseen import UnseenValues, is_whole_number, whole_numbers
from sk_itdiffusion.persistence import stored
from sk_itdiffusion.persistence.checks import check_same

__all__ = [
    "Column",
    "Table",
    "TableEncoder",
    "columns_of_learned_levels",
    "discrete_kinds",
    "mixed_kinds",
    "naming_columns",
    "read_table",
    "warn_of_identifiers",
    "warn_of_merged_integers",
    "without_tensors",
]

Array = NDArray[np.float64]
Labels = NDArray[np.object_]
Kind = Literal["continuous", "ordinal", "nominal"]
# pandas' classes take type arguments in the eyes of type checkers only.
if TYPE_CHECKING:
    Names = pd.Index[Any]
else:
    Names = pd.Index
Storage = Literal["boolean", "integer", "float", "unordered", "ordered", "text", "other"]

_MOST_FILLED_LEVELS = 256
_LEAST_ROWS_WITH_SINGLE_TEXTS = 20
# Integers of which at least so large a share is distinct may be identifiers, ...
_LEAST_DISTINCT_IDENTIFIERS = 0.9
# ... and are if draws from their range would repeat so seldom with less than this chance.
_CHANCE_OF_FEW_REPETITIONS = 1e-4
_MOST_AUTOMATIC_LEVELS = 256
_MOST_LEVELS = 4096
_SHOWN_LEVELS = 5
#: Effective number of rows up to which a value counts as that of a single row.
_MOST_ROWS_OF_NEW_VALUES = 1.5
_NUMBERS: tuple[Storage, ...] = ("boolean", "integer", "float")
_INFERRED_NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal")


@stored()
@dataclass(frozen=True)
class Column:
    """One column of a fitted encoder.

    Attributes
    ----------
    label : str
        Name of the column, or its number.
    kind : {"continuous", "ordinal", "nominal"}
        Kind of the column.
    levels : ndarray of shape (K,), dtype object, or None
        Known levels in the order of their codes, where None stands for a missing value.  None for
        a continuous column.
    unseen : UnseenValues or None, default=None
        Probabilities of other values; None if there cannot be any, or they are an error.
    """

    label: str
    kind: Kind
    levels: Labels | None
    unseen: UnseenValues | None = None

    @property
    def n_levels(self) -> int:
        """Number of levels; 0 for a continuous column."""
        return 0 if self.levels is None else len(self.levels)

    @property
    def log_seen(self) -> float:
        """Log-probability that a value is one of the levels."""
        return 0.0 if self.unseen is None else self.unseen.log_seen

    def _finish_loading(self) -> None:
        """Raise an error if parts do not fit together, or numbers are out of range."""
        if (self.kind == "continuous") != (self.levels is None):
            raise ValueError("a column is neither of numbers nor of levels")
        if self.levels is not None and (
            self.levels.ndim != 1 or len(pd.unique(self.levels)) != len(self.levels)
        ):
            raise ValueError("the levels of a column are not distinct")


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
        Names of the columns' dtypes in a data frame of polars; None for any other table.
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
                f"are {_listed(list(self.frame.columns))}."
            )
        return found[0]

    def check_finite(self, chosen: NDArray[np.bool_], continuous: NDArray[np.bool_]) -> None:
        """Raise a ValueError if a chosen column has missing or infinite values."""
        missing = self._which(chosen, lambda column: bool(column.isna().any()))
        if missing.any():
            advice = ""
            if (missing & continuous).any():
                advice += (
                    " Drop the rows that have them, or impute values that vary from row to row, "
                    "for example with sklearn.impute.KNNImputer; many copies of a constant have no "
                    "density."
                )
            if (missing & ~continuous).any():
                advice += (
                    " A missing value is a level of its own in categories: convert codes and "
                    "discrete numbers that may be missing to a categorical dtype before fit, for "
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

    def _which(self, chosen: NDArray[np.bool_], test: Any) -> NDArray[np.bool_]:
        return np.array([chosen[j] and test(self.column(j)) for j in range(self.n_columns)])


@contextlib.contextmanager
def naming_columns(X: Any) -> Iterator[None]:
    """Let errors about numbers in X tell which columns they are in.

    Parameters
    ----------
    X : array-like or data frame of shape (n_rows, n_columns)
        What is being validated as numbers.

    Raises
    ------
    ValueError
        Instead of an error that tells of X as a whole.
    """
    try:
        yield
    except (OverflowError, TypeError, ValueError) as error:
        reason = None if "feature names" in str(error) else reason_of_columns(X)
        if reason is None:
            raise
        raise ValueError(reason) from None


def reason_of_columns(X: Any) -> str | None:
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
            f"Input X contains texts or dates in column(s) {column_labels(wrong, table.names)}, "
            f"such as {next(iter(texts.values()))}, which are no numbers. Convert them, leave them "
            "out, or use IMMSEMixedDensity, which takes texts as categories."
        )
    # Missing values make others of truths, and of what is no text in objects.
    chosen[list(others)] = [not _no_numbers(table.column(j)).any() for j in others]
    try:
        table.check_finite(chosen, chosen)
    except ValueError as error:
        return str(error)
    return None


def _first_text(column: pd.Series[Any]) -> str | None:
    """Return the first text or time in a column that is no number, for messages."""
    is_time = types.is_datetime64_any_dtype(column.dtype)
    wrong = column.notna() if is_time else _no_numbers(column)
    first = column[wrong].iloc[:1].astype(object).tolist()
    return repr(str(first[0])) if first and isinstance(first[0], str | datetime.date) else None


def _no_numbers(column: pd.Series[Any]) -> Any:
    """Return which entries of a column are there, but are no numbers."""
    entries = column.astype(object)
    return entries.notna() & pd.to_numeric(entries, errors="coerce").isna()


def without_tensors(X: Any) -> Any:
    """Return a tensor of torch as an array, whatever scikit-learn is set to; all else as it is."""
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
    # An enumeration lists its levels; other categories are no property of the column.
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
        return "text" if column.isna().any() else "boolean"  # a missing value is a level
    if inferred == "integer" or types.is_integer_dtype(dtype):
        return "integer"
    if inferred in _INFERRED_NUMBERS or types.is_numeric_dtype(dtype):
        return "float"
    return "text" if types.is_object_dtype(dtype) or types.is_string_dtype(dtype) else "other"


def _has_infinity(column: pd.Series[Any]) -> bool:
    if types.is_float_dtype(column.dtype):
        return bool(np.isinf(column.to_numpy(dtype=np.float64)).any())
    if types.is_object_dtype(column.dtype):
        return any(map(_is_too_large, _factorize(column)[1]))
    return False


def _is_too_large(value: Any) -> bool:
    """Return whether a number is infinite, or an integer of Python beyond all of 64 bits."""
    is_number = isinstance(value, int | float | np.number)
    return is_number and not -sys.float_info.max <= value <= sys.float_info.max


def _listed(items: Sequence[object]) -> str:
    """Return the first few items, for messages."""
    shown = ", ".join("a missing value" if x is None else repr(x) for x in items[:_SHOWN_LEVELS])
    more = len(items) - _SHOWN_LEVELS
    return shown + (f" and {more} more" if more > 0 else "")


def _per_column(table: Table, setting: Any, parameter: str) -> dict[int, Any]:
    """Return the entries of a mapping from names, or of a sequence, by the columns' numbers."""
    if isinstance(setting, Mapping):
        return {table.position(name, parameter): value for name, value in setting.items()}
    if not types.is_list_like(setting, allow_sets=False):
        raise ValueError(
            f"{parameter} must be a text that it knows, a sequence with one entry for each column "
            f"or a dict from column names, got {setting!r}."
        )
    entries = list(setting)
    if len(entries) != table.n_columns:
        raise ValueError(
            f"{parameter} has {len(entries)} entries, but X has {table.n_columns} columns."
        )
    return dict(enumerate(entries))


def discrete_kinds(X: Any, kind: Any = "auto") -> list[Kind]:
    """Return the kinds of the columns of a table without continuous columns.

    Parameters
    ----------
    X : array-like or data frame of shape (n_rows, n_columns), or Table
        Table.
    kind : {"auto", "nominal", "ordinal"}, sequence or dict, default="auto"
        Kind of all columns, of each column, or of the columns that a dict names ("auto" for the
        others; the columns of an array are named by their numbers).  "auto" takes numbers and
        ordered categoricals as ordinal, and booleans, unordered categoricals, texts and other
        objects as nominal.

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
        asked = _per_column(table, kind, "kind")
    table.check_finite(table.holds_numbers, np.zeros(table.n_columns, dtype=bool))
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
    numbers = _as_floats(table.column(j), table.labels[j])
    n_distinct = len(pd.unique(numbers))
    if n_distinct > _MOST_AUTOMATIC_LEVELS and not np.array_equal(numbers, np.rint(numbers)):
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
        takes booleans, unordered categoricals, texts and other objects.
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
    _check_continuous(table, kinds)
    listed = nominal | ordinal
    unlisted = [j for j in range(table.n_columns) if not listed[j]]
    _warn_of_single_texts(table, unlisted)
    _warn_of_identifiers(
        table, unlisted, " Levels are to be listed in categorical_features or ordinal_features."
    )
    return kinds


def _warn_of_single_texts(table: Table, candidates: Sequence[int]) -> None:
    """Warn of columns of texts that seldom repeat, of which nobody said that they are nominal."""
    texts = [j for j in candidates if table.storages[j] == "text"]
    if len(table.frame) < _LEAST_ROWS_WITH_SINGLE_TEXTS:
        return
    most = len(table.frame) / 2
    single = [j for j in texts if len(_factorize(table.column(j), table.labels[j])[1]) > most]
    if single:
        chosen = np.isin(np.arange(table.n_columns), single)
        warn(
            f"Column(s) {column_labels(chosen, table.names)} hold texts that seldom repeat, and "
            "are taken as categories, of which most are seen once. Leave out identifiers, and turn "
            "numbers and dates that were read as texts into numbers (pandas.read_csv has "
            "thousands=',', decimal=',' and parse_dates); categorical_features says which are "
            "meant.",
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
        and _are_identifiers(table.column(j).to_numpy(dtype=np.float64))
    ]
    if found:
        chosen = np.isin(np.arange(table.n_columns), found)
        warn(
            f"Column(s) {column_labels(chosen, table.names)} look like identifiers or row numbers: "
            "so many measured integers in so small a range would repeat, and these do not. Leave "
            f"out identifiers.{how_to_keep}"
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
        message = _reason_of_merged_integers(table, range(table.n_columns))
        if message is not None and have_probabilities:
            raise ValueError(message)
        if message is not None:
            warn(message)


def _reason_of_merged_integers(table: Table, candidates: Iterable[int]) -> str | None:
    """Return which columns of integers floats do not tell apart; None if there are none."""
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
        "64-bit floats, which do not tell all integers beyond 2**53 apart. Subtract a number near "
        "them, such as the least, or take them as levels."
    )


def _are_merged_as_floats(column: pd.Series[Any]) -> bool:
    numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
    if np.abs(numbers).max(initial=0.0) < LARGEST_EXACT:
        return False
    return len(np.unique(numbers)) < column.nunique()


def _are_identifiers(values: Array) -> bool:
    """Return whether integers repeat too seldom for independent draws from their range.

    Of n draws from m values all but m (1 - (1 - 1/m)^n) of them, at least, are expected to be
    repetitions: that many if the values are equally likely, and more otherwise.
    """
    n = len(values)
    m = float(np.ptp(values)) + 1.0
    if n < _LEAST_ROWS_WITH_SINGLE_TEXTS or m < _LEAST_DISTINCT_IDENTIFIERS * n:
        return False
    n_distinct = len(np.unique(values))
    expected = n + m * np.expm1(n * np.log1p(-1.0 / m))
    is_rare = stats.poisson.cdf(n - n_distinct, expected) < _CHANCE_OF_FEW_REPETITIONS
    return bool(n_distinct >= _LEAST_DISTINCT_IDENTIFIERS * n and is_rare)


def _is_from_dtype(features: Any) -> bool:
    return isinstance(features, str) and features == "from_dtype"


def _kind_of_dtype(table: Table, j: int) -> Kind:
    storage = table.storages[j]
    if storage == "integer":
        few = table.column(j).nunique() <= _MOST_AUTOMATIC_LEVELS
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
            f"{_listed(entries.tolist())}."
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


def _check_continuous(table: Table, kinds: Sequence[Kind]) -> None:
    """Raise a ValueError if a continuous column holds no numbers."""
    wrong = _is_continuous(kinds) & ~table.holds_numbers
    if wrong.any():
        raise ValueError(
            f"Column(s) {column_labels(wrong, table.labels)} hold no numbers and cannot be "
            "continuous. Name them in categorical_features or ordinal_features, or convert them."
        )


def _as_floats(column: pd.Series[Any], label: str) -> Array:
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
        _factorize(column, label)  # for the error of entries that are no values at all
        raise ValueError(f"Column {label!r} is continuous, but X has something else than numbers.")
    return np.asarray(pd.to_numeric(column).to_numpy(dtype=np.float64, na_value=np.nan))


def _factorize(column: pd.Series[Any], label: str = "") -> tuple[NDArray[np.intp], Labels]:
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


def _lookup(labels: Labels, levels: Labels) -> NDArray[np.intp]:
    """Return the codes of labels, -1 for unknown ones, and then that of a missing value."""
    index = pd.Index(levels, dtype=object, tupleize_cols=False)
    known = index.get_indexer(pd.Index(labels, dtype=object, tupleize_cols=False))
    missing = np.flatnonzero([level is None for level in levels])
    return np.append(known, missing if len(missing) else -1)


@dataclass(frozen=True)
class Observations:
    """How often levels were observed.

    Attributes
    ----------
    count : ndarray of shape (n_levels,)
        Numbers of rows; of weighted ones, weights that sum to the effective number of rows.
    n_rows_of_level : ndarray of shape (n_levels,)
        Effective number of the rows of each level, whatever their weights are.
    n_rows : float
        Effective number of all rows.
    """

    count: Array
    n_rows_of_level: Array
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
    def count(cls, column: pd.Series[Any], weight: Array, label: str) -> Tally:
        """Return the tally of a column with one weight for each row."""
        codes, labels = _factorize(column, label)
        are_counts = np.array_equal(weight, np.rint(weight))
        if not are_counts:
            weight = weight / weight.max()  # so that no square overflows
        squares = weight if are_counts else weight**2
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

    def observations(self, levels: Labels) -> Observations:
        """Return how often each level was observed; levels include all labels that occur."""
        codes = _lookup(self.labels, levels)
        weight = np.append(self.weight, self.missing)
        squared = np.append(self.squared, self.missing_squared)
        known = codes >= 0
        total, squares = (
            np.bincount(codes[known], values[known], len(levels)) for values in (weight, squared)
        )
        # As many rows of equal weight tell as much (Kish's effective sample size).
        n_rows = float(total.sum() * (total.sum() / squares.sum()))
        rows_of_level = total * (total / np.where(squares > 0.0, squares, 1.0))
        return Observations(n_rows * (total / total.sum()), rows_of_level, n_rows)

    def by_weight(self, levels: Labels) -> Labels:
        """Return levels from the heaviest to the lightest; ties stay as they are."""
        codes = _lookup(self.labels, levels)
        weight = np.append(self.weight, self.missing)
        total = np.bincount(codes[codes >= 0], weight[codes >= 0], minlength=len(levels))
        # Equal totals of weights that are no integers differ by rounding only.
        share = np.round(total / max(total.sum(), 1.0), 12)
        return levels[np.argsort(-share, kind="stable")]


def _natural_levels(labels: Labels, is_number: bool) -> Labels:
    """Return distinct labels in order, with the integers between them if those are few."""
    ordered = _sorted(labels)
    if is_number and ordered and all(is_whole_number(label) for label in ordered):
        low, high = int(ordered[0]), int(ordered[-1])
        if len(ordered) <= high - low < _MOST_FILLED_LEVELS:
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


def _check_number_of_levels(n_levels: int, label: str) -> None:
    if n_levels > _MOST_LEVELS:
        raise ValueError(
            f"Column {label!r} has {n_levels} levels; at most {_MOST_LEVELS} are possible. Group "
            "rare levels, or treat the column as continuous if it holds numbers."
        )


def _read_levels(given: Any, label: str) -> Labels:
    """Return the levels that `categories` gives for a column."""
    if not types.is_list_like(given, allow_sets=False):
        raise ValueError(
            f"categories must hold an array-like, None or 'auto' for each column, got {given!r} "
            f"for column {label!r}."
        )
    series = pd.Series(given, dtype=object).reset_index(drop=True)
    levels = series.to_numpy(dtype=object, copy=True)
    levels[series.isna().to_numpy()] = None
    repeated = pd.Series(levels, dtype=object).duplicated().to_numpy()
    if repeated.any():
        raise ValueError(
            f"categories has duplicates for column {label!r}: {_listed(list(levels[repeated]))}."
        )
    if not len(levels):
        raise ValueError(f"categories has no levels for column {label!r}.")
    return np.asarray(levels)


def _given_levels(table: Table, kinds: Sequence[Kind], categories: Any) -> dict[int, Labels]:
    """Return the levels that `categories` gives, by the columns' numbers."""
    if isinstance(categories, str) and categories == "auto":
        return {}
    given = {}
    for j, entry in _per_column(table, categories, "categories").items():
        if entry is None or (isinstance(entry, str) and entry == "auto"):
            continue
        if kinds[j] == "continuous":
            raise ValueError(
                f"categories has levels for the continuous column {table.labels[j]!r}."
            )
        given[j] = _read_levels(entry, table.labels[j])
    return given


def _check_order(table: Table, kinds: Sequence[Kind], given: Mapping[int, Labels]) -> None:
    """Raise a ValueError if ordinal levels have no order."""
    lacks_order = np.array([storage == "text" for storage in table.storages])
    lacks_order &= np.array([kind == "ordinal" for kind in kinds])
    lacks_order[list(given)] = False
    if lacks_order.any():
        raise ValueError(
            f"Column(s) {column_labels(lacks_order, table.labels)} are ordinal, but their values "
            "have no order. Give the levels in their order by categories, or convert to an "
            "ordered categorical."
        )


def _fixed_levels(table: Table, j: int, given: Mapping[int, Labels]) -> Labels | None:
    """Return the levels that a column has whatever its values are."""
    if j in given:
        return given[j]
    dtype = table.column(j).dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return np.asarray(dtype.categories, object)
    return _object_array([False, True]) if types.is_bool_dtype(dtype) else None


def _is_closed(table: Table, j: int, given: Mapping[int, Labels]) -> bool:
    """Return whether a column can have no other values than its levels."""
    # Categoricals and pandas' own truths may lack a value in another table.
    return j in given or table.column(j).dtype == np.dtype(bool)


def columns_of_learned_levels(
    table: Table, kinds: Sequence[Kind], categories: Any
) -> NDArray[np.bool_]:
    """Return which discrete columns have the levels that occur, since none are given.

    Parameters
    ----------
    table : Table
        Table.
    kinds : sequence of {"continuous", "ordinal", "nominal"}
        Kind of each column.
    categories : "auto", sequence or dict
        Levels of columns; see `TableEncoder.fit`.

    Returns
    -------
    ndarray of shape (n_columns,), bool
        The columns.
    """
    given = _given_levels(table, kinds, categories)
    return np.array(
        [
            kind != "continuous" and _fixed_levels(table, j, given) is None
            for j, kind in enumerate(kinds)
        ]
    )


def _learn_levels(
    table: Table,
    kinds: Sequence[Kind],
    given: Mapping[int, Labels],
    weight: Array,
    shared_levels: bool,
) -> tuple[dict[int, Labels], dict[int, UnseenValues]]:
    """Return the levels of the discrete columns, in the order of their codes, and other values.

    Columns that share their levels share the probabilities of other values too.
    """
    discrete = [j for j, kind in enumerate(kinds) if kind != "continuous"]
    tallies = {j: Tally.count(table.column(j), weight, table.labels[j]) for j in discrete}
    fixed = {j: _fixed_levels(table, j, given) for j in discrete}
    groups = [discrete] if shared_levels and discrete else [[j] for j in discrete]
    learned, unseen = {}, {}
    for group in groups:
        tally = Tally.pool([tallies[j] for j in group])
        free = [tallies[j] for j in group if fixed[j] is None]
        parts = [levels for j in group if (levels := fixed[j]) is not None]
        is_number = bool(table.holds_numbers[group].all())
        label = ", ".join(table.labels[j] for j in group[:_SHOWN_LEVELS])
        levels = _ordered_levels(parts, free, is_number, label)
        if tally.missing > 0 and not any(level is None for level in levels):
            levels = np.append(levels, np.array([None], dtype=object))
        _check_number_of_levels(len(levels), label)
        by_weight = tally.by_weight(levels)
        learned.update({j: by_weight if kinds[j] == "nominal" else levels for j in group})
        others = [j for j in group if not _is_closed(table, j, given)]
        if others:
            in_order = all(kinds[j] == "ordinal" for j in group)
            found = _unseen_values(tally, levels, parts, is_number, in_order)
            unseen.update(dict.fromkeys(others, found))
    return learned, unseen


def _unseen_values(
    tally: Tally, levels: Labels, fixed: Sequence[Labels], is_number: bool, in_order: bool
) -> UnseenValues:
    """Return the probabilities of other values than the levels.

    Parameters
    ----------
    tally : Tally
        What occurs.
    levels : ndarray of shape (n_levels,)
        The levels.
    fixed : sequence of ndarray
        Those of them that are levels whether they occur or not.
    is_number, in_order : bool
        Whether they are numbers, and whether these have an order.
    """
    are_whole = is_number and all(is_whole_number(level) for level in levels)
    if are_whole:
        levels = _object_array(sorted(levels))
    seen = tally.observations(levels)
    is_new = (seen.count > 0.0) & (seen.n_rows_of_level < _MOST_ROWS_OF_NEW_VALUES)
    is_new &= _lookup(levels, np.concatenate([*fixed, _object_array([])]))[:-1] < 0
    if are_whole and int(levels[-1]) - int(levels[0]) < _MOST_FILLED_LEVELS:
        is_new[1:-1] = False  # between others they would be levels in any case
    n_new = np.where(is_new, seen.count, 0.0)
    if not (are_whole and in_order):
        return UnseenValues.of_names(float(n_new.sum()), seen.n_rows)
    numbers, occurs = whole_numbers(levels), seen.count > 0.0
    return UnseenValues.of_whole_numbers(
        numbers, numbers[occurs], seen.count[occurs], n_new[occurs], seen.n_rows
    )


def _ordered_levels(
    fixed: list[Labels], free: Sequence[Tally], is_number: bool, label: str
) -> Labels:
    """Return fixed levels, and those that tallies hold, in their natural order."""
    labels = [pd.unique(Tally.pool(free).labels)] if free else []
    _check_number_of_levels(max(map(len, fixed + labels)), label)
    natural = [_natural_levels(distinct, is_number) for distinct in labels]
    return np.asarray(pd.unique(np.concatenate(fixed + natural)), dtype=object)


@stored()
@dataclass(frozen=True)
class TableEncoder:
    """Fitted maps between a table and a matrix of numbers.

    Made by `fit`.

    Attributes
    ----------
    columns : tuple of Column
        The columns.
    names : Index or None
        Names of the columns of a data frame.
    dtypes : tuple of dtypes
        Dtypes of the columns of decoded tables.
    array_dtype : dtype or None
        Dtype of decoded arrays; None for data frames.
    holds_numbers : ndarray of shape (n_columns,), bool
        Which columns held numbers.
    polars : tuple of str or None, default=None
        Names of the dtypes of the columns if decoded tables are data frames of polars.

    Examples
    --------
    >>> X = [["red", 1.5], ["blue", 2.5], ["blue", 0.5]]
    >>> encoder = TableEncoder.fit(X, kinds=["nominal", "continuous"])
    >>> encoder.encode(X)
    array([[1. , 1.5],
           [0. , 2.5],
           [0. , 0.5]])
    >>> encoder.decode([[0.0, 2.0]])
    array([['blue', 2.0]], dtype=object)
    """

    columns: tuple[Column, ...]
    names: Names | None
    dtypes: tuple[Any, ...]
    array_dtype: np.dtype[Any] | None
    holds_numbers: NDArray[np.bool_]
    polars: tuple[str, ...] | None = None

    @classmethod
    def of_numbers(cls, X: Any) -> TableEncoder:
        """Return the encoder of a data frame that was read as numbers.

        Parameters
        ----------
        X : data frame of shape (n_rows, n_columns)
            Table.

        Returns
        -------
        TableEncoder
            The encoder, with continuous columns only.
        """
        table = read_table(X)
        columns = tuple(Column(label, "continuous", None) for label in table.labels)
        # Numbers may have come as texts or categories, which hold no others.
        dtypes = tuple(
            dtype if holds_numbers else np.dtype(np.float64)
            for dtype, holds_numbers in zip(table.frame.dtypes, table.holds_numbers, strict=True)
        )
        names = table.frame.columns
        return cls(columns, names, dtypes, None, table.holds_numbers, table.polars)

    @classmethod
    def fit(
        cls,
        X: Any,
        *,
        kinds: Sequence[Kind],
        categories: Any = "auto",
        handle_unknown: str = "good_turing",
        shared_levels: bool = False,
        sample_weight: ArrayLike | None = None,
    ) -> TableEncoder:
        """Learn the levels of the discrete columns.

        Parameters
        ----------
        X : array-like or data frame of shape (n_rows, n_columns), or Table
            Table.
        kinds : sequence of {"continuous", "ordinal", "nominal"}
            Kind of each column.
        categories : "auto", sequence or dict, default="auto"
            Levels of each column, or of the columns that a dict names, as array-likes; "auto" or
            None where they are learned: the categories of a categorical, both values of a boolean
            dtype, all integers from the least to the greatest one if these are at most 256, and
            else the distinct values.  A missing value (other than among numbers) is a level of its
            own, the last one, if it occurs or is given.
        handle_unknown : {"good_turing", "error"}, default="good_turing"
            Whether other values get the mass of Good and Turing, or are an error.  In columns of
            numpy's boolean dtype, and in those of given levels, they are an error in any case.
        shared_levels : bool, default=False
            Whether all discrete columns have the same levels, learned from all of them together.
        sample_weight : array-like of shape (n_rows,), default=None
            Non-negative weights.  Levels are learned from rows of positive weight.

        Returns
        -------
        TableEncoder
            The encoder.

        Raises
        ------
        ValueError
            If numbers are missing or infinite, a continuous column holds no numbers, an ordinal
            one no order, a column more than 4096 levels, levels are not among those given, or a
            parameter is out of its range.
        TypeError
            If entries are neither texts nor numbers, such as dicts.
        """
        table = read_table(X)
        _check_settings(table, kinds, handle_unknown)
        _check_continuous(table, kinds)
        table.check_finite(table.holds_numbers, _is_continuous(kinds))
        merged = _reason_of_merged_integers(table, np.flatnonzero(_is_continuous(kinds)))
        if merged is not None:
            warn(merged)
        given = _given_levels(table, kinds, categories)
        _check_order(table, kinds, given)
        weight = _read_weight(sample_weight, table.frame.shape)
        levels, unseen = _learn_levels(table, kinds, given, weight, shared_levels)
        _check_known(table, {j: levels[j] for j in given}, weight)
        if handle_unknown == "error":
            unseen = {}
        columns = tuple(
            Column(label, kind, levels.get(j), unseen.get(j))
            for j, (label, kind) in enumerate(zip(table.labels, kinds, strict=True))
        )
        dtypes = [_dtype_for(table.column(j).dtype, levels.get(j)) for j in range(table.n_columns)]
        names = table.frame.columns if table.dtype is None else None
        # Truths may be missing in other tables, but for those of numpy.
        is_truth = np.array([storage == "boolean" for storage in table.storages])
        may_lack = is_truth & np.array([dtype != np.dtype(bool) for dtype in table.frame.dtypes])
        holds_numbers = table.holds_numbers & ~(may_lack & ~_is_continuous(kinds))
        dtype, polars = table.dtype, table.polars
        return cls(columns, names, tuple(dtypes), dtype, holds_numbers, polars)

    def encode(self, X: Any) -> Array:
        """Return the numbers of continuous columns and the codes of discrete ones.

        Values that are no levels become their log-probabilities, which are negative.

        Parameters
        ----------
        X : array-like or data frame of shape (n_rows, n_columns), or Table
            Table with the fitted columns, in their order; containers and dtypes may differ.

        Returns
        -------
        ndarray of shape (n_rows, n_columns)
            Numbers, codes and log-probabilities.

        Raises
        ------
        ValueError
            If the number of columns is another one, numbers are missing, infinite or something
            else, or values are no levels and have no probability.
        TypeError
            If entries are neither texts nor numbers, such as dicts.
        """
        table = read_table(X)
        if table.n_columns != len(self.columns):
            raise ValueError(
                f"X has {table.n_columns} features, but {type(self).__name__} is expecting "
                f"{len(self.columns)} features as input."
            )
        table.check_finite(
            self.holds_numbers, _is_continuous([column.kind for column in self.columns])
        )
        values = np.empty(table.frame.shape)
        for j, column in enumerate(self.columns):
            if column.levels is None:
                values[:, j] = _as_floats(table.column(j), column.label)
            else:
                values[:, j] = _encode_discrete(
                    table.column(j), column.label, column.levels, column.unseen
                )
        return values

    def unseen(self, values: Array) -> NDArray[np.bool_]:
        """Return which encoded entries are no levels of discrete columns, (n_rows, n_columns)."""
        is_discrete = np.array([column.levels is not None for column in self.columns])
        return is_discrete & (values < 0.0)

    def decode(self, values: ArrayLike, bounds: Array | None = None) -> Any:
        """Return the table that encodes as given numbers and codes.

        Parameters
        ----------
        values : array-like of shape (n_rows, n_columns)
            Numbers and codes of known levels.
        bounds : ndarray of shape (n_columns, 2) or None, default=None
            Bounds of continuous columns, themselves excluded, which hold for the rounded numbers
            too; infinite where there are none.  None stands for no bounds.

        Returns
        -------
        ndarray or DataFrame of shape (n_rows, n_columns)
            An array of the fitted dtype, or a data frame of the fitted names and dtypes if the
            encoder was fitted on any data frame: of polars if that one was, else of pandas.
            Numbers of continuous columns are rounded to what their dtype holds.  Where given or
            shared levels do not fit into a dtype, it gives way to one that holds them.

        Raises
        ------
        ValueError
            If there are codes that stand for no level, or the number of columns is another one.
        """
        values = np.asarray(values, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.columns):
            raise ValueError(
                f"values must have the shape (n_rows, {len(self.columns)}), got {values.shape}."
            )
        limits = unbounded(len(self.columns)) if bounds is None else bounds
        decoded = [
            _decode(np.ascontiguousarray(values[:, j]), column, self.dtypes[j], *limits[j])
            for j, column in enumerate(self.columns)
        ]
        if self.names is not None:
            frame = pd.concat(decoded, axis=1)
            frame.columns = self.names
            return frame if self.polars is None else as_polars(frame, self.polars)
        return self._as_array(decoded, len(values))

    def _as_array(self, columns: Sequence[pd.Series[Any]], n_rows: int) -> NDArray[Any]:
        """Return columns as an array of the fitted dtype, if it holds all of them."""
        dtype = cast("np.dtype[Any]", self.array_dtype)
        of_objects = any(types.is_object_dtype(column.dtype) for column in columns)
        array = np.empty((n_rows, len(columns)), dtype=object if of_objects else dtype)
        for j, column in enumerate(columns):
            array[:, j] = column.to_numpy()
        if dtype.kind not in "US":
            return array
        texts = array.astype(dtype.type)  # as long as the longest one, which may be a given level
        return texts.astype(np.promote_types(texts.dtype, dtype))

    def _finish_loading(self) -> None:
        """Raise an error if parts do not fit together, or numbers are out of range."""
        sizes = [len(self.dtypes), len(self.holds_numbers), np.ndim(self.holds_numbers)]
        n_columns = len(self.columns)
        check_same(sizes, [n_columns, n_columns, 1], "there are other columns")
        for names in (self.names, self.polars):
            check_same(len(self.columns if names is None else names), n_columns, "other names")
        # Pandas would look up texts.
        if not all(isinstance(dtype, np.dtype | ExtensionDtype) for dtype in self.dtypes):
            raise ValueError("the dtype of a column is none")


def _is_continuous(kinds: Sequence[Kind]) -> NDArray[np.bool_]:
    return np.array([kind == "continuous" for kind in kinds])


def _check_settings(table: Table, kinds: Sequence[Kind], handle_unknown: str) -> None:
    if handle_unknown not in ("good_turing", "error"):
        raise ValueError(
            f"handle_unknown must be 'good_turing' or 'error', got {handle_unknown!r}."
        )
    if len(kinds) != table.n_columns or not set(kinds) <= {"continuous", "ordinal", "nominal"}:
        raise ValueError(
            "kinds must hold 'continuous', 'ordinal' or 'nominal' for each of the "
            f"{table.n_columns} columns of X, got {list(kinds)!r}."
        )


def _read_weight(sample_weight: ArrayLike | None, shape: tuple[int, int]) -> Array:
    """Return non-negative weights in their common unit, or at most 1."""
    weight = _check_sample_weight(
        sample_weight,
        np.broadcast_to(0.0, shape),
        dtype=np.float64,
        ensure_non_negative=True,
        copy=True,
    )
    weight[weight > 0] = in_common_units(weight[weight > 0])
    return np.asarray(weight)


def _check_known(table: Table, levels: Mapping[int, Labels], weight: Array) -> None:
    """Raise a ValueError if labels of positive weight are no levels."""
    for j, known in levels.items():
        _encode_discrete(table.column(j)[weight > 0], table.labels[j], known, None)


def _encode_discrete(
    column: pd.Series[Any], label: str, levels: Labels, unseen: UnseenValues | None
) -> Array:
    """Return the codes of the entries of a column, of other values the log-probabilities."""
    numbers, labels = _factorize(column, label)
    code_of_label = _lookup(labels, levels)
    codes = code_of_label[numbers].astype(np.float64)
    is_other = codes < 0.0
    if not is_other.any():
        return codes
    others = pd.unique(numbers[is_other])
    found = np.append(labels, np.array([None], dtype=object))[others]
    if unseen is None:
        raise ValueError(
            f"Column {label!r} has values that are not among its levels: {_listed(list(found))}. "
            "Give all levels by categories; or give none for this column and pass "
            "handle_unknown='good_turing', so that other values have a probability."
        )
    log_probability = np.zeros(len(code_of_label))
    log_probability[others] = unseen.log_probabilities(found, levels)
    codes[is_other] = log_probability[numbers[is_other]]
    return codes


def _dtype_for(dtype: Any, levels: Labels | None) -> Any:
    """Return a dtype if it holds all the levels, or else one that does."""
    if levels is None:
        return dtype
    if isinstance(dtype, pd.CategoricalDtype):
        labels = pd.Index([x for x in levels if x is not None], dtype=object, tupleize_cols=False)
        extra = labels.difference(dtype.categories, sort=False)
        if not len(extra):
            return dtype
        return pd.CategoricalDtype(labels, ordered=dtype.ordered)
    try:
        typed = pd.Series(levels, dtype=dtype).astype(object)
    except (TypeError, ValueError, OverflowError):
        return np.dtype(object)
    same = [a == b or (b is None and pd.isna(a)) for a, b in zip(typed, levels, strict=True)]
    return dtype if all(same) else np.dtype(object)


def _decode(values: Array, column: Column, dtype: Any, low: float, high: float) -> pd.Series[Any]:
    """Return a column of a dtype from its numbers, between bounds, or codes."""
    if column.levels is None:
        return _decode_continuous(values, dtype, low, high)
    codes = np.rint(values)
    if not ((codes >= 0) & (codes < len(column.levels))).all():
        raise ValueError(
            f"values must hold codes from 0 to {len(column.levels) - 1} for column "
            f"{column.label!r}."
        )
    levels = pd.Series(column.levels, dtype=dtype)
    decoded: pd.Series[Any] = levels.take(codes.astype(np.intp)).reset_index(drop=True)
    return decoded


def _decode_continuous(values: Array, dtype: Any, low: float, high: float) -> pd.Series[Any]:
    if types.is_bool_dtype(dtype):
        return pd.Series(values > 0.5).astype(dtype)
    if types.is_integer_dtype(dtype) or types.is_float_dtype(dtype):
        held = np.dtype(getattr(dtype, "numpy_dtype", getattr(dtype, "subtype", dtype)))
        return pd.Series(rounded_inside(values, held, low, high)).astype(dtype)
    return pd.Series(values).astype(dtype)
