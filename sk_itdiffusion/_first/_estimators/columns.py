"""Columns of fitted tables, by their names or numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._table.reading import first_few

if TYPE_CHECKING:
    from sk_itdiffusion._first._estimators.parts import DensityOfParts
    from sk_itdiffusion._first._estimators.table import TableEstimator

__all__ = ["ColumnNames", "kinds_of_columns", "mask_of_columns", "positions_of_columns"]

#: One column or several, by their names or numbers.
ColumnNames = str | int | Sequence[str] | Sequence[int] | NDArray[Any]


def kinds_of_columns(density: DensityOfParts) -> list[str]:
    """Return the kinds of the columns of a fitted density."""
    encoder = getattr(density, "_encoder", None)
    if encoder is None:
        return ["continuous"] * density.n_features_in_
    return [column.kind for column in encoder.columns]


def positions_of_columns(
    density: TableEstimator, columns: ColumnNames, parameter: str, may_be_all: bool = True
) -> NDArray[np.intp]:
    """Return the numbers of columns, in their order.

    Parameters
    ----------
    density : TableEstimator
        A fitted estimator.
    columns : str, int, or sequence of str or int
        Names or numbers.
    parameter : str
        Name of the parameter, for messages.
    may_be_all : bool, default=True
        Whether they may be all columns.

    Returns
    -------
    ndarray of shape (n_chosen,), int
        The numbers.

    Raises
    ------
    ValueError
        If a column is unknown or named twice, or none or (where not allowed) all are named.
    """
    n_columns = density.n_features_in_
    names = getattr(density, "feature_names_in_", None)
    known = {} if names is None else {str(name): j for j, name in enumerate(names)}
    if not isinstance(columns, str | Integral | Iterable):
        raise ValueError(
            f"{parameter} must be the name or the number of a column, or a sequence of these, got "
            f"{columns!r}."
        )
    entries: list[Any] = [columns] if isinstance(columns, str | Integral) else list(columns)
    found, unknown = [], []
    for entry in entries:
        is_number = isinstance(entry, Integral) and not isinstance(entry, bool | np.bool_)
        if isinstance(entry, str) and entry in known:
            found.append(known[entry])
        elif is_number and 0 <= int(entry) < n_columns:
            found.append(int(entry))
        else:
            unknown.append(entry)
    if unknown:
        there = f"the numbers from 0 to {n_columns - 1}"
        if names is not None:
            there = f"{first_few(list(map(str, names)))}, or {there}"
        raise ValueError(
            f"{parameter} names columns that the fitted table does not have: {first_few(unknown)}. "
            f"Its columns are {there}."
        )
    if len(set(found)) < len(found):
        raise ValueError(f"{parameter} names a column twice: {first_few(entries)}.")
    if not found:
        raise ValueError(f"{parameter} must name at least one column.")
    if len(found) == n_columns and not may_be_all:
        raise ValueError(f"{parameter} names all columns, so no other column is left.")
    return np.array(found, dtype=np.intp)


def mask_of_columns(
    density: TableEstimator, columns: ColumnNames, parameter: str, may_be_all: bool = True
) -> NDArray[np.bool_]:
    """Return which columns are named, (n_columns,); see `positions_of_columns`."""
    mask = np.zeros(density.n_features_in_, dtype=bool)
    mask[positions_of_columns(density, columns, parameter, may_be_all)] = True
    return mask
