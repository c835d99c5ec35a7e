"""Columns and rows of the tables that displays are given."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np

from sk_itdiffusion._first._table.reading import Table

__all__ = [
    "check_number_of_columns",
    "column_names",
    "column_number",
    "name_and_value",
    "spread_rows",
]


def column_names(table: Table) -> list[str]:
    """Return the names of the columns, x0, x1, ... for arrays."""
    return [f"x{label}" for label in table.labels] if table.dtype is not None else table.labels


def check_number_of_columns(estimator: Any, table: Table) -> None:
    """Raise an error if the table does not have the columns of the fit."""
    expected = getattr(estimator, "n_features_in_", table.n_columns)
    if table.n_columns != expected:
        raise ValueError(
            f"X has {table.n_columns} columns, but {type(estimator).__name__} was fitted to "
            f"{expected}."
        )


def column_number(table: Table, column: Any, parameter: str) -> int:
    """Return the number of a column that a parameter gives by number or name."""
    if not isinstance(column, str) and isinstance(column, Integral):
        if not 0 <= int(column) < table.n_columns:
            raise ValueError(
                f"{parameter} contains the column number {column}, which is out of range: X has "
                f"{table.n_columns} column{'' if table.n_columns == 1 else 's'}, numbered from 0."
            )
        return int(column)
    return table.position(column, parameter)


def spread_rows(n_rows: int, n_shown: int) -> Any:
    """Return the numbers of some rows, evenly spread over the table."""
    if not isinstance(n_shown, Integral) or n_shown < 0:
        raise ValueError(f"The number of rows to show must be at least 0, got {n_shown!r}.")
    return np.linspace(0, n_rows - 1, min(int(n_shown), n_rows)).round().astype(np.intp)


def name_and_value(name: str, value: Any) -> str:
    """Return a column's name and an entry as a string."""
    is_float = isinstance(value, float | np.floating)
    return f"{name} = {value:.4g}" if is_float else f"{name} = {value}"
