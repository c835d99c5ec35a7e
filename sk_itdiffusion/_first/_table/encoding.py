"""Tables with continuous, ordinal and nominal columns as matrices of numbers, and back.

A continuous column keeps its numbers.  A discrete column becomes the codes 0, ..., K - 1 of its K
categories: in the order of the categories where it is ordinal, and from the most to the least
frequent one where it is nominal, so that the codes do not depend on how the categories are called.
A value that is not a category becomes its log-probability (see `sk_itdiffusion._first._table.unseen`),
which is negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pandas.api import types
from pandas.api.extensions import ExtensionDtype
from sklearn.utils.validation import _check_sample_weight

from sk_itdiffusion._first._runtime.warning import warn
from sk_itdiffusion._first._table.bounds import rounded_inside, unbounded
from sk_itdiffusion._first._table.categories import (
    check_order,
    check_type_of_values,
    codes_of,
    given_categories,
    learn_categories,
)
from sk_itdiffusion._first._table.frames import as_polars
from sk_itdiffusion._first._table.kinds import (
    Kind,
    check_continuous,
    is_continuous,
    reason_of_merged_integers,
)
from sk_itdiffusion._first._table.reading import (
    Labels,
    Table,
    as_floats,
    factorize,
    first_few,
    read_table,
    with_one_nan,
)
from sk_itdiffusion._first._table.rows import in_common_units
from sk_itdiffusion._first._table.unseen import UnseenValues
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import check_same

__all__ = ["Column", "TableEncoder"]

Array = NDArray[np.float64]
# pandas' classes take type arguments in the eyes of type checkers only.
if TYPE_CHECKING:
    Names = pd.Index[Any]
else:
    Names = pd.Index


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
    categories : ndarray of shape (K,), dtype object, or None
        Known categories in the order of their codes, where None stands for a missing value.  None
        for a continuous column.
    unseen : UnseenValues or None, default=None
        Probabilities of other values; None if there cannot be any, or they are an error.
    """

    label: str
    kind: Kind
    categories: Labels | None
    unseen: UnseenValues | None = None

    @property
    def n_categories(self) -> int:
        """Number of categories; 0 for a continuous column."""
        return 0 if self.categories is None else len(self.categories)

    @property
    def log_seen(self) -> float:
        """Log-probability that a value is one of the categories."""
        return 0.0 if self.unseen is None else self.unseen.log_seen

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        if (self.kind == "continuous") != (self.categories is None):
            raise ValueError("a column is neither of numbers nor of categories")
        if self.categories is not None and (
            self.categories.ndim != 1 or len(pd.unique(self.categories)) != len(self.categories)
        ):
            raise ValueError("the categories of a column are not distinct")


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
        Names of the dtypes of the columns if decoded tables are polars data frames.
    handle_missing : {"category", "missing"}, default="category"
        What missing values were in the discrete columns of `fit` that held no numbers.  Where none
        was missing, and None is not among the given categories, later ones are not known.

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
    handle_missing: str = "category"

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
        # Numbers may have come as strings or categories, which hold no others.
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
        shared_categories: bool = False,
        sample_weight: ArrayLike | None = None,
        squared_weight: Array | None = None,
        allow_missing: bool = False,
        handle_missing: str = "category",
    ) -> TableEncoder:
        """Learn the categories of the discrete columns.

        Parameters
        ----------
        X : array-like or data frame of shape (n_rows, n_columns), or Table
            Table.
        kinds : sequence of {"continuous", "ordinal", "nominal"}
            Kind of each column.
        categories : "auto", sequence or dict, default="auto"
            Categories of each column, or of the columns that a dict names, as array-likes; "auto"
            or None where they are learned: the categories of a categorical, both values of a
            boolean dtype, all integers from the smallest to the largest if these are at most 256,
            and else the distinct values.  A missing value (other than among numbers) is a category
            of its own, the last one, if it occurs or is given.
        handle_unknown : {"good_turing", "error"}, default="good_turing"
            Whether other values get the mass of Good and Turing, or are an error.  In columns of
            numpy's boolean dtype, and in those of given categories, they are an error in any case.
        shared_categories : bool, default=False
            Whether all discrete columns have the same categories, learned from all of them
            together.
        sample_weight : array-like of shape (n_rows,), default=None
            Non-negative weights.  Categories are learned from rows of positive weight.
        squared_weight : ndarray of shape (n_rows,), default=None
            Sums of the squared weights of the observations that a row stands for, if its weight is
            the sum of theirs.
        allow_missing : bool, default=False
            Whether entries may be missing that are no category.
        handle_missing : {"category", "missing"}, default="category"
            Whether a missing value, other than among numbers, is a category of its own where it
            occurs or is given, or only where it is given.

        Returns
        -------
        TableEncoder
            The encoder.

        Raises
        ------
        ValueError
            If numbers are infinite, or missing though they must not be, a continuous column holds
            no numbers, an ordinal one no order, a column more than 4096 categories, or nothing but
            missing values, categories are not among those given, or a parameter is out of its
            range.
        TypeError
            If entries are neither strings nor numbers, such as dicts.
        """
        table = read_table(X)
        _check_settings(table, kinds, handle_unknown)
        check_continuous(table, kinds)
        table.check_finite(table.holds_numbers, is_continuous(kinds), allow_missing)
        merged = reason_of_merged_integers(table, np.flatnonzero(is_continuous(kinds)))
        if merged is not None:
            warn(merged)
        given = given_categories(table, kinds, categories)
        check_order(table, kinds, given)
        may_lack = table.holds_numbers | (handle_missing == "missing")
        may_lack[[j for j, each in given.items() if None in each.tolist()]] = False
        table.check_finite(may_lack, is_continuous(kinds), allow_missing)
        table.check_observed(may_lack)
        weight = _read_weight(sample_weight, table.frame.shape, squared_weight is None)
        learned, unseen = learn_categories(
            table, kinds, given, weight, shared_categories, squared_weight, handle_missing
        )
        _check_known(table, {j: learned[j] for j in given}, weight)
        if handle_unknown == "error":
            unseen = {}
        columns = tuple(
            Column(label, kind, learned.get(j), unseen.get(j))
            for j, (label, kind) in enumerate(zip(table.labels, kinds, strict=True))
        )
        dtypes = [_dtype_for(table.column(j).dtype, learned.get(j)) for j in range(table.n_columns)]
        names = table.frame.columns if table.dtype is None else None
        # Booleans may be missing in other tables, except for those of numpy.
        is_truth = np.array([storage == "boolean" for storage in table.storages])
        is_open = is_truth & np.array([dtype != np.dtype(bool) for dtype in table.frame.dtypes])
        holds_numbers = table.holds_numbers & ~(is_open & ~is_continuous(kinds))
        dtype, polars = table.dtype, table.polars
        return cls(columns, names, tuple(dtypes), dtype, holds_numbers, polars, handle_missing)

    def encode(self, X: Any, allow_missing: bool = False) -> Array:
        """Return the numbers of continuous columns and the codes of discrete ones.

        Values that are not categories become their log-probabilities, which are negative.

        Parameters
        ----------
        X : array-like or data frame of shape (n_rows, n_columns), or Table
            Table with the fitted columns, in their order; containers and dtypes may differ.
        allow_missing : bool, default=False
            Whether missing entries may be NaN: those of columns of which None is no category.  If
            not they are an error among numbers, and everywhere if ``handle_missing`` is "missing",
            and else are values like any others that are not categories.

        Returns
        -------
        ndarray of shape (n_rows, n_columns)
            Numbers, codes and log-probabilities; NaN where entries are missing.

        Raises
        ------
        ValueError
            If the number of columns differs, numbers are missing, infinite or something
            else, values are not categories and have no probability, or a column whose categories
            are numbers holds texts only, or vice versa.
        TypeError
            If entries are neither strings nor numbers, such as dicts.
        """
        table = read_table(X)
        if table.n_columns != len(self.columns):
            raise ValueError(
                f"X has {table.n_columns} features, but {type(self).__name__} is expecting "
                f"{len(self.columns)} features as input."
            )
        continuous = is_continuous([column.kind for column in self.columns])
        is_no_value = self.may_lack & (self.holds_numbers | (self.handle_missing == "missing"))
        table.check_finite(is_no_value, continuous, allow_missing)
        may_lack = self.may_lack if allow_missing else is_no_value
        values = np.empty(table.frame.shape)
        for j, column in enumerate(self.columns):
            if column.categories is None:
                values[:, j] = as_floats(table.column(j), column.label)
            else:
                values[:, j] = _encode_discrete(
                    table.column(j),
                    column.label,
                    column.categories,
                    column.unseen,
                    bool(may_lack[j]),
                )
        return with_one_nan(values)

    @property
    def may_lack(self) -> NDArray[np.bool_]:
        """Columns in which a missing value is no category, (n_columns,)."""
        known = [column.categories for column in self.columns]
        return np.array([each is None or None not in each for each in known], dtype=bool)

    def unseen(self, values: Array) -> NDArray[np.bool_]:
        """Return which entries, (n_rows, n_columns), are not categories of discrete columns."""
        is_discrete = np.array([column.categories is not None for column in self.columns])
        return is_discrete & (values < 0.0)

    def decode(self, values: ArrayLike, bounds: Array | None = None) -> Any:
        """Return the table that encodes as given numbers and codes.

        Parameters
        ----------
        values : array-like of shape (n_rows, n_columns)
            Numbers and codes of known categories.
        bounds : ndarray of shape (n_columns, 2) or None, default=None
            Bounds of continuous columns, themselves excluded, which hold for the rounded numbers
            too; infinite where there are none.  None stands for no bounds.

        Returns
        -------
        ndarray or DataFrame of shape (n_rows, n_columns)
            An array of the fitted dtype, or a data frame of the fitted names and dtypes if the
            encoder was fitted on any data frame: of polars if that one was, else of pandas.
            Numbers of continuous columns are rounded to what their dtype holds.  Where given or
            shared categories do not fit into a dtype, it is replaced by one that holds them.

        Raises
        ------
        ValueError
            If there are codes that stand for no category, or the number of columns differs.
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
        texts = array.astype(
            dtype.type
        )  # as long as the longest one, which may be a given category
        return texts.astype(np.promote_types(texts.dtype, dtype))

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        sizes = [len(self.dtypes), len(self.holds_numbers), np.ndim(self.holds_numbers)]
        n_columns = len(self.columns)
        check_same(sizes, [n_columns, n_columns, 1], "there are other columns")
        if self.handle_missing not in ("category", "missing"):
            raise ValueError("it is not known what missing values are")
        for names in (self.names, self.polars):
            check_same(len(self.columns if names is None else names), n_columns, "other names")
        # Pandas would look up strings.
        if not all(isinstance(dtype, np.dtype | ExtensionDtype) for dtype in self.dtypes):
            raise ValueError("the dtype of a column is none")


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


def _read_weight(
    sample_weight: ArrayLike | None, shape: tuple[int, int], are_single: bool
) -> Array:
    """Return non-negative weights, those of single observations in their common unit or at most 1.

    Sums of weights, which come with sums of their squares, stay as they are.
    """
    weight = _check_sample_weight(
        sample_weight,
        np.broadcast_to(0.0, shape),
        dtype=np.float64,
        ensure_non_negative=True,
        copy=True,
    )
    if are_single:
        weight[weight > 0] = in_common_units(weight[weight > 0])
    return np.asarray(weight)


def _check_known(table: Table, categories: Mapping[int, Labels], weight: Array) -> None:
    """Raise a ValueError if labels of positive weight are not categories."""
    for j, known in categories.items():
        seen = table.column(j)[weight > 0].dropna()
        _encode_discrete(seen, table.labels[j], known, None, False)


def _encode_discrete(
    column: pd.Series[Any],
    label: str,
    categories: Labels,
    unseen: UnseenValues | None,
    may_lack: bool,
) -> Array:
    """Return the codes of the entries of a column, of other values the log-probabilities.

    Missing values that are no category are NaN if entries may lack, else other values too.  That
    all entries are numbers, and the categories texts, or vice versa, is an error.
    """
    numbers, labels = factorize(column, label)
    code_of_label = codes_of(labels, categories)
    codes = code_of_label[numbers].astype(np.float64)
    if may_lack:
        codes[(numbers < 0) & (codes < 0.0)] = np.nan
    is_other = codes < 0.0
    if not is_other.any():
        return codes
    if is_other[numbers >= 0].all():
        check_type_of_values(labels[np.unique(numbers[numbers >= 0])], categories, label)
    others = pd.unique(numbers[is_other])
    found = np.append(labels, np.array([None], dtype=object))[others]
    if unseen is None:
        raise ValueError(
            f"Column {label!r} has values that are not among its categories: "
            f"{first_few(list(found))}. List all of them in categories; or list none for this "
            "column and pass handle_unknown='good_turing', so that other values have a "
            "probability."
        )
    log_probability = np.zeros(len(code_of_label))
    log_probability[others] = unseen.log_probabilities(found, categories)
    codes[is_other] = log_probability[numbers[is_other]]
    return codes


def _dtype_for(dtype: Any, categories: Labels | None) -> Any:
    """Return a dtype if it holds all the categories, or else one that does."""
    if categories is None:
        return dtype
    if isinstance(dtype, pd.CategoricalDtype):
        labels = pd.Index(
            [x for x in categories if x is not None], dtype=object, tupleize_cols=False
        )
        extra = labels.difference(dtype.categories, sort=False)
        if not len(extra):
            return dtype
        return pd.CategoricalDtype(labels, ordered=dtype.ordered)
    try:
        typed = pd.Series(categories, dtype=dtype).astype(object)
    except (TypeError, ValueError, OverflowError):
        return np.dtype(object)
    same = [a == b or (b is None and pd.isna(a)) for a, b in zip(typed, categories, strict=True)]
    return dtype if all(same) else np.dtype(object)


def _decode(values: Array, column: Column, dtype: Any, low: float, high: float) -> pd.Series[Any]:
    """Return a column of a dtype from its numbers, between bounds, or codes."""
    if column.categories is None:
        return _decode_continuous(values, dtype, low, high)
    codes = np.rint(values)
    if not ((codes >= 0) & (codes < len(column.categories))).all():
        raise ValueError(
            f"values must hold codes from 0 to {len(column.categories) - 1} for column "
            f"{column.label!r}."
        )
    categories = pd.Series(column.categories, dtype=dtype)
    decoded: pd.Series[Any] = categories.take(codes.astype(np.intp)).reset_index(drop=True)
    return decoded


def _decode_continuous(values: Array, dtype: Any, low: float, high: float) -> pd.Series[Any]:
    if types.is_bool_dtype(dtype):
        return pd.Series(values > 0.5).astype(dtype)
    if types.is_integer_dtype(dtype) or types.is_float_dtype(dtype):
        held = np.dtype(getattr(dtype, "numpy_dtype", getattr(dtype, "subtype", dtype)))
        return pd.Series(rounded_inside(values, held, low, high)).astype(dtype)
    return pd.Series(values).astype(dtype)
