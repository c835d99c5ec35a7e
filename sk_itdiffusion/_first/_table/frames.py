"""Polars data frames, which are read as those of pandas and written as their own kind again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from sk_itdiffusion._first._runtime.warning import warn

__all__ = ["as_polars", "polars_dtypes"]

#: Dtypes of polars that are no more than their names.
PLAIN_DTYPES = (
    *(f"{sign}Int{size}" for sign in ("", "U") for size in (8, 16, 32, 64)),
    *("Float32", "Float64", "Boolean", "String", "Categorical", "Date", "Datetime"),
)


def polars_dtypes(X: Any) -> tuple[str, ...] | None:
    """Return the names of the dtypes of a polars data frame; None for anything else.

    Parameters
    ----------
    X : object
        A table.

    Returns
    -------
    tuple of str or None
        Names such as "Int64".
    """
    if type(X).__module__.partition(".")[0] != "polars":
        return None
    return tuple(dtype.base_type().__name__ for dtype in X.dtypes)


def as_polars(frame: pd.DataFrame, dtypes: Sequence[str]) -> Any:
    """Return a pandas data frame as one of polars.

    Parameters
    ----------
    frame : DataFrame of shape (n_rows, n_columns)
        Table.
    dtypes : sequence of str
        Names of the columns' dtypes, as from `polars_dtypes`.  A column that its dtype does not
        hold, such as one with further categories, gets another one.

    Returns
    -------
    polars.DataFrame of shape (n_rows, n_columns)
        The table; without polars, which the fit may have had elsewhere, the table of pandas, with
        a warning.
    """
    try:
        import polars
    except ImportError:
        warn(
            "The estimator was fitted to a polars data frame, but polars is not installed; the "
            "rows are returned as a pandas data frame."
        )
        return frame
    columns = [
        _column(polars, str(frame.columns[j]), frame.iloc[:, j], dtype)
        for j, dtype in enumerate(dtypes)
    ]
    return polars.DataFrame(columns)


def _column(polars: Any, name: str, column: pd.Series[Any], dtype: str) -> Any:
    """Return a column of polars."""
    if dtype == "Enum" and isinstance(column.dtype, pd.CategoricalDtype):
        kind = polars.Enum(list(column.dtype.categories))
        return polars.Series(name, _items(column), dtype=kind)
    is_plain = getattr(column.dtype, "kind", "O") in "biuf"
    found = polars.Series(name, column.to_numpy() if is_plain else _items(column))
    if dtype not in PLAIN_DTYPES or found.dtype.base_type().__name__ == dtype:
        return found
    try:
        return found.cast(getattr(polars, dtype))
    except polars.exceptions.PolarsError:
        return found


def _items(column: pd.Series[Any]) -> list[Any]:
    """Return the entries of a column, None for missing ones."""
    entries = column.astype(object)
    return entries.where(entries.notna(), None).tolist()
