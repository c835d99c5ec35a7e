"""Functions of tables that return information in nats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.utils import check_random_state

from sk_itdiffusion._estimators.information import (
    IMMSEMutualInformation,
    Side,
    check_complete_rows,
    density_of,
    folds_by_content,
    varying_columns,
)
from sk_itdiffusion._estimators.mixed import IMMSEMixedDensity
from sk_itdiffusion._information.crossfit import FoldModel, crossfit, fit_folds
from sk_itdiffusion._information.permutation import permutation_p_value
from sk_itdiffusion._information.roles import Roles
from sk_itdiffusion._table.reading import read_table

__all__ = [
    "DependenceMatrix",
    "dependence_matrix",
    "entropy",
    "mutual_info_immse",
    "mutual_information",
    "total_correlation",
]

Array = NDArray[np.float64]
Index = NDArray[np.intp]


def mutual_information(
    X: ArrayLike,
    y: ArrayLike,
    given: ArrayLike | None = None,
    *,
    estimator: Any = None,
    cv: Any = 5,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[float, float]:
    """Return the mutual information between two groups of columns, and its standard error.

    Parameters
    ----------
    X : array-like or data frame of shape (n_samples, n_features)
        One side; columns of any kinds.
    y : array-like or data frame of shape (n_samples,) or (n_samples, n_targets)
        The other side.
    given : array-like or data frame of shape (n_samples,) or (n_samples, n_given), default=None
        Columns z for the conditional information I(X; y | z).
    estimator : IMMSEMixedDensity or None, default=None
        Density; see `sk_itdiffusion.IMMSEMutualInformation`.
    cv : int, cross-validation generator or iterable, default=5
        Folds, at least 2.
    random_state : int, RandomState or None, default=None
        Seed.

    Returns
    -------
    information : float
        Nats.
    standard_error : float
        Standard error over rows.

    See Also
    --------
    sk_itdiffusion.IMMSEMutualInformation : Also scores new rows.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion.information import mutual_information
    >>> x = np.random.default_rng(0).integers(0, 2, size=600)
    >>> information, _ = mutual_information(x[:, None], x == 1, cv=2, random_state=0)
    >>> bool(abs(information - np.log(2.0)) < 0.02)
    True
    """
    found = IMMSEMutualInformation(estimator, cv=cv, random_state=random_state).fit(X, y, given)
    return found.mutual_information_, found.standard_error_


def entropy(
    X: ArrayLike,
    *,
    estimator: Any = None,
    cv: int = 5,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[float, float]:
    """Return the entropy of a table, and its standard error.

    It is the mean negative log-density of rows that the density has not seen, so that, except for
    the error over rows, it is an upper bound.

    Parameters
    ----------
    X : array-like or data frame of shape (n_samples, n_features) or (n_samples,)
        Rows; columns of any kinds.  The density learns from rows with missing entries too, but the
        mean is over complete rows.
    estimator : density estimator or None, default=None
        Density of the table; None for the references of `sk_itdiffusion.IMMSEMixedDensity`, without
        networks.
    cv : int, default=5
        Folds, at least 2.
    random_state : int, RandomState or None, default=None
        Seed.

    Returns
    -------
    entropy : float
        Nats, with respect to the units of continuous columns, so that it may be negative.
    standard_error : float
        Standard error over rows.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion.information import entropy
    >>> x = np.random.default_rng(0).normal(size=500)
    >>> found, error = entropy(x, cv=2, random_state=0)
    >>> bool(abs(found - 0.5 * np.log(2.0 * np.pi * np.e)) < 3.0 * error)
    True
    """
    side, values, fold, seed = read_whole(X, cv, random_state)
    template = IMMSEMixedDensity(max_epochs=0) if estimator is None else clone(estimator)
    every = np.arange(values.shape[1])
    make, _ = density_of(template, side.kinds, side.n_categories, every, seed)
    complete = ~np.isnan(values).any(axis=1)
    check_complete_rows(int(complete.sum()), cv, "entropy")
    found = []
    for number in np.unique(fold[complete]):
        density = make(every).fit(values[fold != number])
        scores = density.score_samples(values[complete & (fold == number)])
        found.append(-np.asarray(scores))
    losses = np.concatenate(found)
    return float(losses.mean()), float(losses.std(ddof=1) / np.sqrt(len(losses)))


def total_correlation(
    X: ArrayLike,
    *,
    estimator: Any = None,
    cv: int = 5,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[float, float]:
    r"""Return the total correlation of the columns of a table, and its standard error.

    It measures all dependence among the columns, by the chain rule
    :math:`\sum_j I(X_j; X_1, \ldots, X_{j-1})`.

    Parameters
    ----------
    X : array-like or data frame of shape (n_samples, n_features)
        Rows; columns of any kinds.  Those with missing entries are left out.
    estimator : IMMSEMixedDensity or None, default=None
        Density; see `sk_itdiffusion.IMMSEMutualInformation`.
    cv : int, default=5
        Folds, at least 2.
    random_state : int, RandomState or None, default=None
        Seed.

    Returns
    -------
    total_correlation : float
        Nats.
    standard_error : float
        Standard error over rows.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion.information import total_correlation
    >>> x = np.random.default_rng(0).normal(size=(200, 2))
    >>> found, error = total_correlation(x, cv=2, random_state=0)
    >>> bool(found <= 2.0 * error)
    True
    """
    table = FittedTable(X, estimator, cv, random_state)
    complete = ~np.isnan(table.values).any(axis=1)
    # Of columns that lack entries the same rows are asked about at each step.
    values, fold = table.values[complete], table.fold[complete]
    check_complete_rows(len(values), cv, "total_correlation")
    total, dependent = np.zeros(len(values)), np.zeros(len(values))
    for j in range(1, values.shape[1]):
        roles = Roles(np.arange(j), np.array([j]), np.arange(0))
        _, found = crossfit(table.folds, values, roles, fold)
        total += found.information
        dependent += found.dependent
    return float(total.mean()), float(dependent.std(ddof=1) / np.sqrt(len(total)))


@dataclass(frozen=True)
class DependenceMatrix:
    """Pairwise dependence of the columns of a table.

    It is what `dependence_matrix` returns, and has its parameters as attributes.

    Parameters
    ----------
    names : list
        Names of the columns, or their numbers.
    information : ndarray of shape (n_columns, n_columns)
        Mutual information of pairs in nats; infinite on the diagonal, and NaN there if a column is
        constant.
    standard_error : ndarray of shape (n_columns, n_columns)
        Standard errors over rows; 0 on the diagonal.
    coefficient : ndarray of shape (n_columns, n_columns)
        ``sqrt(1 - exp(-2 * information))``, from 0 to 1: for normal columns the size of their
        correlation.
    p_value : ndarray of shape (n_columns, n_columns)
        P-values of independence; 1 on the diagonal.

    See Also
    --------
    dependence_matrix : Makes it.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion.information import DependenceMatrix
    >>> zero = np.zeros((1, 1))
    >>> DependenceMatrix(["a"], zero + np.inf, zero, zero + 1.0, zero + 1.0).names
    ['a']
    """

    names: list[Any]
    information: Array
    standard_error: Array
    coefficient: Array
    p_value: Array

    def to_frame(self) -> pd.DataFrame:
        """Return the coefficients as a data frame with the names of the columns.

        Returns
        -------
        DataFrame of shape (n_columns, n_columns)
            The coefficients.
        """
        return pd.DataFrame(self.coefficient, index=self.names, columns=self.names)


def dependence_matrix(
    X: ArrayLike,
    *,
    n_permutations: int = 199,
    estimator: Any = None,
    cv: int = 5,
    random_state: int | np.random.RandomState | None = None,
) -> DependenceMatrix:
    """Return the pairwise dependence of the columns of a table.

    All pairs are asked of one joint fit for each fold, never of a fit for each pair.

    Parameters
    ----------
    X : array-like or data frame of shape (n_samples, n_features)
        Rows; columns of any kinds.  Entries may be missing: of each pair the rows that have both
        count.
    n_permutations : int, default=199
        Permutations of rows that models have not seen, for the p-values, at least 1.
    estimator : IMMSEMixedDensity or None, default=None
        Density without networks; see `sk_itdiffusion.IMMSEMutualInformation`.
    cv : int, default=5
        Folds, at least 2.
    random_state : int, RandomState or None, default=None
        Seed.

    Returns
    -------
    DependenceMatrix
        Information, coefficients from 0 to 1 and p-values.

    Raises
    ------
    ValueError
        If the estimator has networks, a parameter is out of its range, or there are too few rows.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion.information import dependence_matrix
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=300)
    >>> X = np.column_stack([x, x**2 + 0.3 * rng.normal(size=300)])
    >>> found = dependence_matrix(X, n_permutations=19, cv=2, random_state=0)
    >>> bool(found.coefficient[0, 1] > 0.7), bool(found.p_value[0, 1] < 0.06)
    (True, True)
    """
    if n_permutations < 1:
        raise ValueError(f"n_permutations must be at least 1, got {n_permutations!r}.")
    table = FittedTable(X, estimator, cv, random_state)
    if table.folds and table.folds[0].joint.has_networks:
        raise ValueError(
            "dependence_matrix asks one fit about all pairs of columns, which networks do not "
            "know; set max_epochs=0 in estimator."
        )
    n = len(table.names)
    information, error, p_value = np.zeros((n, n)), np.zeros((n, n)), np.ones((n, n))
    chance = np.random.RandomState(table.seed)
    for b in range(len(table.columns)):
        for a in range(b):
            place = table.columns[a], table.columns[b]
            roles = Roles(np.array([a]), np.array([b]), np.arange(0))
            seen = ~np.isnan(table.values[:, [a, b]]).any(axis=1)
            check_complete_rows(int(seen.sum()), cv, "dependence_matrix")
            model, found = crossfit(table.folds, table.values, roles, table.fold)
            rows, fold = table.values[seen], table.fold[seen]
            tested = permutation_p_value(model, rows, fold, n_permutations, chance)
            for matrix, value in (
                (information, found.mean),
                (error, found.standard_error),
                (p_value, tested),
            ):
                matrix[place] = matrix[place[::-1]] = value
    constant = ~np.isin(np.arange(n), table.columns)
    np.fill_diagonal(information, np.where(constant, np.nan, np.inf))
    coefficient = np.sqrt(-np.expm1(-2.0 * information))
    return DependenceMatrix(table.names, information, error, coefficient, p_value)


def mutual_info_immse(
    X: ArrayLike,
    y: ArrayLike,
    *,
    discrete_features: Any = "auto",
    copy: bool = True,
    random_state: int | np.random.RandomState | None = None,
    n_jobs: int | None = None,
) -> Array:
    """Return the mutual information between each feature and the target.

    It can take the place of `sklearn.feature_selection.mutual_info_regression` and
    `sklearn.feature_selection.mutual_info_classif`.

    Parameters
    ----------
    X : array-like or data frame of shape (n_samples, n_features)
        Features.
    y : array-like of shape (n_samples,)
        Target, continuous or a class: floats are continuous, strings and booleans are classes, and
        integers of at most 256 values have an order.
    discrete_features : "auto", bool or array-like, default="auto"
        Features that are categories: all, none, a mask, or numbers of columns.  ``"auto"`` goes by
        their dtypes.
    copy : bool, default=True
        Not used; X is never changed.
    random_state : int, RandomState or None, default=None
        Seed.
    n_jobs : int or None, default=None
        Not used; features are done one after the other.

    Returns
    -------
    ndarray of shape (n_features,)
        Information in nats.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.feature_selection import SelectKBest
    >>> from sk_itdiffusion.information import mutual_info_immse
    >>> X = np.random.default_rng(0).normal(size=(150, 2))
    >>> selected = SelectKBest(mutual_info_immse, k=1).fit(X, X[:, 1] ** 2)
    >>> selected.get_support().tolist()
    [False, True]
    """
    seed = int(check_random_state(random_state).randint(2**31 - 1))
    frame = read_table(X).frame
    chosen = np.zeros(frame.shape[1], dtype=bool)
    if not (isinstance(discrete_features, str) and discrete_features == "auto"):
        chosen[np.asarray(discrete_features)] = True
    found = np.empty(frame.shape[1])
    for j in range(frame.shape[1]):
        column = frame.iloc[:, [j]]
        column = column.astype("category") if chosen[j] else column
        found[j] = IMMSEMutualInformation(random_state=seed).fit(column, y).mutual_information_
    return found


class FittedTable:
    """A table, and models of its folds.

    Parameters
    ----------
    X, estimator, cv, random_state
        What the functions are passed.
    """

    folds: list[FoldModel]

    def __init__(
        self, X: Any, estimator: Any, cv: int, random_state: int | np.random.RandomState | None
    ) -> None:
        side, values, self.fold, self.seed = read_whole(X, cv, random_state)
        self.names = list(read_table(X).frame.columns)
        self.columns = varying_columns(values)
        self.values = values[:, self.columns]
        self.folds = []
        if len(self.columns) < 2:
            return
        make, seen = density_of(estimator, side.kinds, side.n_categories, self.columns, self.seed)
        every = [np.arange(j) for j in range(1, len(self.columns))]
        single = [np.array([j]) for j in range(1, len(self.columns))]
        self.folds = fit_folds(make, self.values, seen, [*every, *single], self.fold)


def read_whole(
    X: Any, cv: int, random_state: int | np.random.RandomState | None
) -> tuple[Side, Array, Index, int]:
    """Return the reader of a table, its numbers and codes, the rows' folds, and a seed."""
    table = X if np.ndim(X) != 1 else np.asarray(X)[:, None]
    side = Side(table, "X")
    values = side.read(table)
    check_complete_rows(int((~np.isnan(values).all(axis=1)).sum()), cv, "it")
    seed = int(check_random_state(random_state).randint(2**31 - 1))
    has_categories = any(kind != "continuous" for kind in side.kinds)
    return side, values, folds_by_content([values], has_categories, cv, seed), seed
