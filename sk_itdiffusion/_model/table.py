"""What a fit is given: rows, weights, and which rows are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold

__all__ = ["Split", "Table", "split_rows"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
#: Rows up to which choices are cross-validated, and the number of folds.
MAX_ROWS_TO_CROSS_VALIDATE, N_FOLDS = 2_000, 4
#: Units below which nothing is held out, and rows of a validation set at least and at most.
MIN_UNITS, MIN_VALIDATION_ROWS, MAX_VALIDATION_ROWS = 40, 10, 10_000


@dataclass(frozen=True)
class Table:
    """Rows of numbers.

    Attributes
    ----------
    X : ndarray of shape (n, n_columns)
        Rows; NaN is missing.
    weight : ndarray of shape (n,)
        Positive weights.
    unit : ndarray of shape (n,), int
        Rows of one unit, those that are equal or of one group, are held out together.
    names : sequence of str
        Names of the columns.
    resolution : ndarray of shape (n_columns,)
        Least difference of two values where values come again, 0 elsewhere.
    """

    X: Array
    weight: Array
    unit: NDArray[np.intp]
    names: Sequence[str]
    resolution: Array


@dataclass(frozen=True)
class Split:
    """Which rows are held out in each of several fits; a last fit sees all rows.

    Attributes
    ----------
    weight : ndarray of shape (n, n_fits)
        Weights of the rows, zero where a row is held out.
    held : ndarray of bool, shape (n, n_fits - 1)
        Rows that are held out. Networks do not see those of the first column.
    n_choices : int
        The last so many columns are the folds that references are chosen by.
    """

    weight: Array
    held: Mask
    n_choices: int

    @property
    def has_validation(self) -> bool:
        """Whether any rows are held out."""
        return bool(self.held.any())

    @property
    def judged(self) -> Mask:
        """Rows that are held out in the folds that references are chosen by."""
        folds = np.arange(self.held.shape[1]) >= self.held.shape[1] - self.n_choices
        return np.asarray(self.held & folds)

    def take(self, index: NDArray[np.intp]) -> Split:
        """Return the split of some of the rows."""
        return Split(self.weight[index], self.held[index], self.n_choices)


def split_rows(table: Table, fraction: float, *, has_networks: bool, seed: int) -> Split:
    """Return the rows of each fit.

    Parameters
    ----------
    table : Table
        Rows.
    fraction : float
        Share of the rows that networks do not see.
    has_networks : bool
        Whether there are networks.
    seed : int
        Seed of the division.

    Returns
    -------
    Split
        The rows.  Small tables have folds, in which each row is held out once; with fewer than 40
        units nothing is held out.
    """
    n, n_units = len(table.X), len(np.unique(table.unit))
    if n_units < MIN_UNITS:
        return Split(table.weight[:, None], np.zeros((n, 0), dtype=bool), 0)
    has_folds = n_units <= MAX_ROWS_TO_CROSS_VALIDATE
    share = min(max(fraction, MIN_VALIDATION_ROWS / n_units), MAX_VALIDATION_ROWS / n, 0.5)
    columns = []
    if has_networks or not has_folds:
        columns += folds_of(table, max(2, round(1.0 / share)), seed)[:1]
    if has_folds:
        columns += folds_of(table, N_FOLDS, seed + 1)
    held = np.column_stack(columns)
    weight = np.where(held, 0.0, table.weight[:, None])
    n_choices = N_FOLDS if has_folds else 1
    return Split(np.column_stack([weight, table.weight]), held, n_choices)


def folds_of(table: Table, n_folds: int, seed: int) -> list[Mask]:
    """Return the rows that are held out in each fold."""
    folds = GroupKFold(n_folds, shuffle=True, random_state=seed).split(table.X, groups=table.unit)
    return [np.isin(np.arange(len(table.X)), valid) for _, valid in folds]
