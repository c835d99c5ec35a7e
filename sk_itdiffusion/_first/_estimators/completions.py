r"""Scores of rows with missing entries: means over their completions.

Log-densities of rows with different missing entries are densities of different columns, and cannot
be compared.  The score of a complete row, :math:`S(x)`, can; of a row of which :math:`x_o` was
observed the best prediction of it, with the least mean squared error, is

.. math:: S(x_o) = E\left[S(x_o, X_m) \mid X_o = x_o\right],

the mean over what the missing entries may be.  It is taken over draws of these from the references
of the fitted model, given the observed ones, which follow from the row's content.  The less is
observed of a row, the nearer is its score to the mean one: what is not known makes no row odd.

As in the score itself, references have no components for rows unlike all training rows: alongside
an odd entry, these would draw others that are as odd.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import clone

from sk_itdiffusion._first._estimators.base import DensityEstimator
from sk_itdiffusion._first._estimators.distinct_rows import DistinctRows, Rows
from sk_itdiffusion._first._estimators.table import TableEstimator
from sk_itdiffusion._first._fit.model import TableModel
from sk_itdiffusion._first._immse.cubature import row_keys
from sk_itdiffusion._first._runtime.progress import stretch_of_progress

__all__ = [
    "completed_once",
    "completed_units",
    "mean_over_completions",
    "on_observed_columns",
    "read_rows",
    "takes_missing",
    "with_missing_entries",
]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: Completions of a row over which its score is averaged, and of the copies of a training row.
N_COMPLETIONS = 12
#: Numbers in the completions that are held at a time.
NUMBERS_IN_A_PASS = 2**22


def read_rows(estimator: DensityEstimator, rows: Rows) -> Array:
    """Return numbers and codes of rows, NaN for missing entries where these are allowed."""
    if isinstance(estimator, TableEstimator):
        return estimator._read(rows, allow_missing=True)
    return estimator._read_to_score(rows)


def with_missing_entries(template: DensityEstimator, given: DistinctRows) -> DistinctRows:
    """Return distinct rows that know which of their entries are missing.

    Parameters
    ----------
    template : DensityEstimator
        The estimator that will be fitted, which says what is a missing entry.
    given : DistinctRows
        The rows.

    Returns
    -------
    DistinctRows
        The rows.  The same object if no entry is missing, or the estimator takes none that are.
    """
    if not pd.isna(given.rows).any(axis=None) or not isinstance(template, TableEstimator):
        return given
    reader: TableEstimator = clone(template)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there is to say the fit says
        values = reader._read_first(
            given.rows, given.weight, given.squared_weight, allow_missing=True
        )[0]
    missing = np.isnan(values)
    return replace(given, missing=missing) if missing.any() else given


def takes_missing(estimator: DensityEstimator | None) -> bool:
    """Return whether entries may be missing; None stands for the estimator of the columns."""
    return estimator is None or isinstance(estimator, TableEstimator)


def draws(model: TableModel, values: Array, n_draws: int) -> Array:
    """Return rows completed by draws, (n_draws, n, n_columns); equal rows have equal draws."""
    if model.parts is None and not model.space.is_empty:
        raise ValueError(
            "X has missing entries, for which this density has no distribution. Drop these "
            "rows, impute the entries, or refit."
        )
    if model.parts is not None:
        model = replace(model, parts=model.parts.without_wide_components())
    return model.complete(values, n_draws, model.seeds.scoring, equal_rows_differ=False)


def mean_over_completions(
    model: TableModel, values: Array, function: Callable[[Array], Array]
) -> Array:
    """Return a function of rows, and of those with missing entries its mean over completions.

    Parameters
    ----------
    model : TableModel
        The model that missing entries are drawn from.
    values : ndarray of shape (n, n_columns)
        Numbers and codes; NaN where they are missing.
    function : callable
        Maps complete rows to an array of as many numbers or rows, each of which follows from the
        row alone.

    Returns
    -------
    ndarray of shape (n,) or (n, ...)
        The means.
    """
    lacking = np.isnan(values).any(axis=1)
    if not lacking.any():
        return function(values)
    chosen = np.flatnonzero(lacking)
    # Equal rows have equal completions, and are done once.
    keys = row_keys(values[chosen])
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    distinct = values[chosen[first]]
    n_rows = max(1, NUMBERS_IN_A_PASS // (N_COMPLETIONS * values.shape[1]))
    n_complete = len(values) - len(chosen)
    begin = n_complete / (n_complete + N_COMPLETIONS * len(distinct))
    means = []
    for start in range(0, len(distinct), n_rows):
        part = distinct[start : start + n_rows]
        ends = begin + (1.0 - begin) * np.array([start, start + len(part)]) / len(distinct)
        with stretch_of_progress(float(ends[0]), float(ends[1])):
            found = function(np.concatenate(draws(model, part, N_COMPLETIONS)))
        found = found.reshape(N_COMPLETIONS, len(part), *found.shape[1:])
        # Each row's are contiguous, so that they are summed in one order.
        means.append(np.ascontiguousarray(np.moveaxis(found, 0, -1)).mean(axis=-1))
    of_lacking = np.concatenate(means)[group]
    result = np.empty((len(values), *of_lacking.shape[1:]))
    result[chosen] = of_lacking
    if n_complete:
        with stretch_of_progress(0.0, begin):
            result[~lacking] = function(values[~lacking])
    return result


def on_observed_columns(parts: Array, values: Array) -> Array:
    """Return contributions in which what missing entries have falls to the observed ones.

    What is expected of a missing entry follows from the observed ones together, which share its
    contribution equally; their order is then what it was.

    Parameters
    ----------
    parts : ndarray of shape (n, n_columns)
        Mean contributions of the columns of completed rows.
    values : ndarray of shape (n, n_columns)
        Numbers and codes; NaN where they are missing.

    Returns
    -------
    ndarray of shape (n, n_columns)
        Contributions, 0 for missing entries.  The sum of a row is the same, unless it lacks all.
    """
    missing = np.isnan(values)
    if not missing.any():
        return parts
    of_missing = np.where(missing, parts, 0.0).sum(axis=1)
    share = of_missing / (~missing).sum(axis=1).clip(min=1)
    return np.where(missing, 0.0, parts + share[:, None])


def completed_once(model: TableModel, values: Array) -> Array:
    """Return rows completed by one draw, which is the same for equal rows."""
    lacking = np.isnan(values).any(axis=1)
    if not lacking.any():
        return values
    completed = values.copy()
    completed[lacking] = draws(model, values[lacking], 1)[0]
    return completed


def completed_units(
    model: TableModel, values: Array, given: DistinctRows, most: int
) -> DistinctRows:
    """Return numbers and codes of training rows, each with missing entries completed.

    The units of a row are completed by different draws, up to `N_COMPLETIONS` of them, so that many
    equal rows are not taken for many equal complete ones.  Rows without any entry are left out.

    Parameters
    ----------
    model : TableModel
        The model that missing entries are drawn from.
    values : ndarray of shape (n, n_columns)
        Numbers and codes of the rows; NaN where they are missing.
    given : DistinctRows
        The rows.
    most : int
        How many of the rows are needed at most, the first ones.

    Returns
    -------
    DistinctRows
        The rows, in the same order; all of them if none lacks an entry.
    """
    missing = np.isnan(values)
    if not missing.any():
        return replace(given, rows=values, missing=None)
    values, missing = values[:most], missing[:most]
    n_draws = np.where(
        missing.any(axis=1), np.minimum(given.n_copies[: len(values)], N_COMPLETIONS), 1
    )
    n_draws[missing.all(axis=1)] = 0
    shares = given.weight / given.n_copies, given.squared_weight / given.n_copies
    row = np.repeat(np.arange(len(values)), n_draws)
    number = np.arange(len(row)) - np.repeat(np.cumsum(n_draws) - n_draws, n_draws)
    completed = values[row]
    lacking = missing.any(axis=1)
    for n in np.unique(n_draws[lacking & (n_draws > 0)]):
        # Those of each row follow one another.
        drawn = draws(model, values[lacking & (n_draws == n)], int(n))
        completed[(lacking & (n_draws == n))[row]] = drawn.swapaxes(0, 1).reshape(-1, len(values.T))
    n_copies = given.n_copies[row] // n_draws[row] + (number < given.n_copies[row] % n_draws[row])
    weight, squared = (each[row] * n_copies for each in shares)
    return DistinctRows(completed, weight, n_copies, squared)
