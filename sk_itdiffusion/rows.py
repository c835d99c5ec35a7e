"""Rows before any model: grouping, splitting, ties and constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion.cubature import row_keys

__all__ = ["ColumnReport", "WeightedRows", "group_rows", "inspect_columns", "resample_rows"]

Array = NDArray[np.float64]

_ROWS_IN_A_PART = 2**16
_TIED_SHARE = 0.05
_COARSE_STEP = 0.02
_LEAST_ROWS_FOR_TIES = 20
LEAST_TRAINING_ROWS = 10
LEAST_VALIDATION_ROWS = 10


@dataclass(frozen=True)
class WeightedRows:
    """Distinct rows in canonical order, with positive weights.

    Attributes
    ----------
    X : ndarray of shape (n_samples, n_features)
        The rows.
    weight : ndarray of shape (n_samples,)
        Their weights.
    group : ndarray of shape (n_samples,), int, or None, default=None
        Groups of rows that are not independent of each other; None if all rows are.
    """

    X: Array
    weight: Array
    group: NDArray[np.intp] | None = None

    def __len__(self) -> int:
        return len(self.X)

    @property
    def share(self) -> Array:
        """The weights scaled to sum to 1."""
        return np.asarray(self.weight / self.weight.sum())

    def columns(self, n: int) -> WeightedRows:
        """Return the rows' first columns, which need not be distinct."""
        if n == self.X.shape[1]:
            return self
        return WeightedRows(np.ascontiguousarray(self.X[:, :n]), self.weight, self.group)

    def take(self, index: NDArray[np.intp]) -> WeightedRows:
        """Return some of the rows."""
        group = None if self.group is None else self.group[index]
        return WeightedRows(self.X[index], self.weight[index], group)

    def split(self, fraction: float, most: int, seed: int) -> tuple[WeightedRows, WeightedRows]:
        """Return rows for training and for validation.

        Membership follows from a hash of the row and the seed, so that a row stays on its side
        when others come or go.

        Raises
        ------
        ValueError
            If fewer than 10 rows would be left for training.
        """
        n_valid = int(np.clip(round(fraction * len(self)), LEAST_VALIDATION_ROWS, most))
        if len(self) - n_valid < LEAST_TRAINING_ROWS:
            left = len(self) - n_valid
            raise ValueError(too_few_rows(fraction, left, len(self), "distinct rows"))
        order = np.argsort(row_keys(self.X, seed))
        return self.take(np.sort(order[n_valid:])), self.take(np.sort(order[:n_valid]))

    def split_copies(
        self, fraction: float, most: int, seed: int
    ) -> tuple[WeightedRows, WeightedRows]:
        """Return rows for training and for validation; weights are counts of equal rows.

        Equal rows of discrete columns are different observations; if all of them were on one side
        the validation rows would be states that training has never seen.

        Raises
        ------
        ValueError
            If fewer than 10 rows would be left for training.
        """
        counts = self.weight.astype(np.int64)
        n_rows = int(counts.sum())
        n_valid = int(np.clip(round(fraction * n_rows), LEAST_VALIDATION_ROWS, most))
        if n_rows - n_valid < LEAST_TRAINING_ROWS:
            raise ValueError(too_few_rows(fraction, n_rows - n_valid, n_rows, "rows"))
        drawn = np.random.default_rng(seed).multivariate_hypergeometric(counts, n_valid)
        train = WeightedRows(self.X, (counts - drawn).astype(np.float64))
        valid = WeightedRows(self.X, drawn.astype(np.float64))
        return train.take(np.flatnonzero(train.weight)), valid.take(np.flatnonzero(drawn))


def too_few_rows(fraction: float, n_left: int, n_rows: int, what: str) -> str:
    """Return the message that validation leaves too few rows for training."""
    return (
        f"validation_fraction={fraction:g} leaves {n_left} of {n_rows} {what} for training; at "
        f"least {LEAST_TRAINING_ROWS} are needed."
    )


def group_rows(X: Array, weight: Array) -> WeightedRows:
    """Return the distinct rows of positive weight, in an order that depends on nothing else.

    The weights of identical rows add, so that a weight is the same as repetition, the order of the
    rows does not matter, and copies of a row never are on both sides of a split.  The order is
    that of a hash of the rows scaled to their range, which is exact under changes of the units
    by powers of two.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Finite rows.
    weight : ndarray of shape (n_samples,)
        Non-negative weights.

    Returns
    -------
    WeightedRows
        Distinct rows; the least weight is 1.
    """
    kept = weight > 0
    X, weight = (X if kept.all() else X[kept]) + 0.0, weight[kept]
    low, high = X.min(axis=0), X.max(axis=0)
    exponent = np.frexp(np.maximum(np.abs(low), np.abs(high)))[1]
    low, high = np.ldexp(low, -exponent), np.ldexp(high, -exponent)
    varies = high > low  # columns without variation must not change the order
    # A part after the other, so that the rows are copied no more than they have to be.
    parts = [slice(i, i + _ROWS_IN_A_PART) for i in range(0, len(X), _ROWS_IN_A_PART)]
    scaled = (np.ldexp(X[part][:, varies], -exponent[varies]) for part in parts)
    keys = np.concatenate([row_keys((s - low[varies]) / (high - low)[varies]) for s in scaled])
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    distinct = X[first]
    if not all(np.array_equal(distinct[group[part]], X[part]) for part in parts):
        distinct, group = np.unique(X, axis=0, return_inverse=True)  # two rows with one hash
    # Repetitions are integers before they are summed, so that their sums are exact.
    total = np.bincount(group.ravel(), weights=in_units_of_the_least(weight)).astype(np.float64)
    return WeightedRows(distinct, in_units_of_the_least(total))


def in_units_of_the_least(weight: Array) -> Array:
    """Return weights divided by the least, so that a common factor of the weights is nothing.

    Repetitions are integers again, whatever that factor was.
    """
    relative = weight / weight.min()
    counts = np.rint(relative)
    is_close = np.allclose(relative, counts, rtol=1e-9, atol=0.0)
    return np.asarray(counts if is_close else relative)


def resample_rows(rows: WeightedRows, most: int, random_state: np.random.RandomState) -> Array:
    """Return rows of equal weight that stand for weighted ones, for methods without weights.

    Integer weights are expanded; others, or too many rows, are drawn systematically in proportion
    to the weights.
    """
    counts = np.rint(rows.weight)
    if np.array_equal(counts, rows.weight) and counts.sum() <= most:
        return np.repeat(rows.X, counts.astype(np.intp), axis=0)
    cumulative = np.cumsum(rows.weight) / rows.weight.sum()
    n = min(most, max(len(rows), 2))
    marks = (np.arange(n) + random_state.uniform()) / n
    return rows.X[np.minimum(np.searchsorted(cumulative, marks), len(rows) - 1)]


@dataclass(frozen=True)
class ColumnReport:
    """What the columns are like, before any model.

    Attributes
    ----------
    varies : ndarray of shape (n_features,), bool
        Columns with at least two distinct values.
    tied : ndarray of shape (n_features,), bool
        Columns in which ties matter: no density exists.
    step : ndarray of shape (n_features,)
        Lattice step in standard deviations; 0 where the column is on no lattice.
    """

    varies: NDArray[np.bool_]
    tied: NDArray[np.bool_]
    step: Array


def inspect_columns(rows: WeightedRows, scale: Array) -> ColumnReport:
    """Return which columns vary, are tied, and their lattice steps.

    Parameters
    ----------
    rows : WeightedRows
        Distinct rows.
    scale : ndarray of shape (n_features,)
        Standard deviations.

    Returns
    -------
    ColumnReport
        The findings.
    """
    n_features = rows.X.shape[1]
    varies = rows.X.min(axis=0) < rows.X.max(axis=0)
    tied, step = np.zeros(n_features, dtype=bool), np.zeros(n_features)
    if rows.weight.sum() < _LEAST_ROWS_FOR_TIES or len(rows) < 2:
        return ColumnReport(varies, tied, step)
    for j in np.flatnonzero(varies):
        values, group = np.unique(rows.X[:, j], return_inverse=True)
        share = np.bincount(group.ravel(), weights=rows.weight).max() / rows.weight.sum()
        exponent = -np.frexp(scale[j])[1]  # of units in which no difference overflows
        step[j] = lattice_step(np.ldexp(values, exponent)) / np.ldexp(scale[j], exponent)
        tied[j] = share > _TIED_SHARE or step[j] > _COARSE_STEP
    return ColumnReport(varies, tied, step)


def lattice_step(values: Array) -> float:
    """Return the step of the lattice on which sorted, distinct values lie, or 0."""
    gaps = np.diff(values)
    step = float(gaps.min())
    if step <= 0.0 or len(gaps) < 2:
        return step if len(gaps) == 1 else 0.0
    with np.errstate(over="ignore"):
        multiples = gaps / step
    if not multiples.max() < 1e6:
        return 0.0
    return step if np.abs(multiples - np.rint(multiples)).max() < 0.01 else 0.0


def column_labels(chosen: NDArray[np.bool_], names: Sequence[str] | None) -> str:
    """Return the chosen columns' names or numbers, for messages."""
    index = np.flatnonzero(chosen)
    labels = [repr(str(names[j])) if names is not None else str(j) for j in index[:10]]
    return ", ".join(labels) + (f" and {len(index) - 10} more" if len(index) > 10 else "")
