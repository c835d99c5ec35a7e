"""Features as a matrix of numbers: categories as codes, holes as NaN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sk_itdiffusion._first._table.categories import check_type_of_values
from sk_itdiffusion._first._table.reading import Labels, Table, as_floats, factorize
from sk_itdiffusion._first._table.rows import column_labels
from sk_itdiffusion._first.persistence import stored

__all__ = ["FeatureEncoder", "Features"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Features:
    """Rows of features, as base models see them.

    Attributes
    ----------
    encoded : ndarray of shape (n_rows, n_columns)
        Numbers and codes of categories; NaN where a value is missing, or is a category that the
        fit has not seen.
    raw : DataFrame or ndarray of shape (n_rows, n_raw_columns)
        The rows as they were given, for models of the user's own.
    nominal : ndarray of shape (n_columns,), bool
        Which columns of ``encoded`` hold codes without an order.
    """

    encoded: Array
    raw: Any
    nominal: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.encoded)

    def take(self, index: NDArray[np.intp]) -> Features:
        """Return some of the rows."""
        raw = self.raw.iloc[index] if isinstance(self.raw, pd.DataFrame) else self.raw[index]
        return Features(self.encoded[index], raw, self.nominal)

    def with_column(self, values: Array, name: str, is_nominal: bool) -> Features:
        """Return rows with one more column, such as another target that is known."""
        if isinstance(self.raw, pd.DataFrame):
            while name in self.raw.columns:
                name = f"{name}_"
            raw: Any = self.raw.assign(**{name: values})
        else:
            raw = np.column_stack([self.raw, values])
        encoded = np.column_stack([self.encoded, values])
        return Features(encoded, raw, np.append(self.nominal, is_nominal))


@stored()
@dataclass(frozen=True)
class FeatureEncoder:
    """Fitted map from tables to matrices of numbers.

    Attributes
    ----------
    labels : tuple of str
        Names of the columns, or their numbers.
    categories : tuple of ndarray or None
        Categories of each column in the order of their codes; None for one of numbers.
    nominal : ndarray of shape (n_columns,), bool
        Which columns have categories without an order.
    """

    labels: tuple[str, ...]
    categories: tuple[Labels | None, ...]
    nominal: NDArray[np.bool_]

    @classmethod
    def fit(cls, table: Table) -> FeatureEncoder:
        """Learn the categories of the columns that hold no numbers.

        Parameters
        ----------
        table : Table
            Rows.

        Returns
        -------
        FeatureEncoder
            The encoder.

        Raises
        ------
        ValueError
            If a column holds dates, or something else that is neither a number nor a category.
        """
        others = np.array([storage == "other" for storage in table.storages])
        if others.any():
            raise ValueError(
                f"Column(s) {column_labels(others, table.labels)} of X hold neither numbers nor "
                "categories. Convert them, such as dates to days."
            )
        columns = range(table.n_columns)
        categories = tuple(
            None if table.holds_numbers[j] else known_categories(table.column(j), table.labels[j])
            for j in columns
        )
        nominal = np.array(
            [categories[j] is not None and table.storages[j] != "ordered" for j in columns]
        )
        return cls(tuple(table.labels), categories, nominal)

    def encode(self, table: Table) -> Features:
        """Return the features of rows.

        Parameters
        ----------
        table : Table
            Rows with the fitted columns.

        Returns
        -------
        Features
            The features.

        Raises
        ------
        ValueError
            If numbers are infinite, a column of numbers holds something else, or one whose
            categories are numbers holds texts only, or vice versa.
        """
        columns = []
        for j, (label, known) in enumerate(zip(self.labels, self.categories, strict=True)):
            column = table.column(j)
            if known is None:
                columns.append(as_floats(column, label))
            else:
                columns.append(codes_of_column(column, label, known))
        encoded = np.column_stack(columns).astype(np.float64) + 0.0
        infinite = np.asarray(np.isinf(encoded).any(axis=0))
        if infinite.any():
            raise ValueError(
                "Input X contains infinity or a value too large for dtype('float64') in column(s) "
                f"{column_labels(infinite, table.names)}."
            )
        raw = table.frame if table.dtype is None else table.frame.to_numpy()
        return Features(encoded, raw, self.nominal)

    def check_complete(self, features: Features, names: list[str] | None) -> None:
        """Raise a ValueError if a value is missing."""
        missing = np.asarray(np.isnan(features.encoded).any(axis=0))
        if missing.any():
            raise ValueError(
                f"Input X contains NaN in column(s) {column_labels(missing, names)}, and the base "
                "model takes no missing values. Choose one that does, or impute them."
            )

    def _finish_loading(self) -> None:
        """Raise an error if parts do not fit together."""
        if not len(self.labels) == len(self.categories) == len(self.nominal):
            raise ValueError("the features have other columns")


def known_categories(column: pd.Series[Any], label: str) -> Labels:
    """Return the categories of a column, in an order that the rows' order does not change."""
    labels = factorize(column, label)[1]
    if isinstance(column.dtype, pd.CategoricalDtype):
        return labels
    in_order = sorted(labels.tolist(), key=lambda each: (type(each).__name__, str(each)))
    found = np.empty(len(in_order), dtype=object)
    found[:] = in_order
    return found


def codes_of_column(column: pd.Series[Any], label: str, known: Labels) -> Array:
    """Return the codes of the entries of a column, NaN for missing and for other ones."""
    numbers, labels = factorize(column, label)
    index = pd.Index(known, dtype=object, tupleize_cols=False)
    found = pd.Index(labels, dtype=object, tupleize_cols=False)
    code = np.append(index.get_indexer(found).astype(np.float64), -1.0)[numbers]
    if (code < 0.0).all():
        check_type_of_values(labels[np.unique(numbers[numbers >= 0])], known, label)
    return np.where(code < 0.0, np.nan, code)
