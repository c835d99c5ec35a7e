"""Functions of tables that return information in nats."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.utils import check_random_state

from sk_itdiffusion._first._estimators.information import (
    IMMSEMutualInformation,
    Side,
    check_complete_rows,
    density_of,
    folds_of_table,
    units_of_table,
    varying_columns,
)
from sk_itdiffusion._first._estimators.mixed import IMMSEMixedDensity
from sk_itdiffusion._first._information.crossfit import FoldModel, crossfit, fit_folds
from sk_itdiffusion._first._information.permutation import permutation_p_value
from sk_itdiffusion._first._information.roles import Roles
from sk_itdiffusion._first._information.units import first_of_units, mean_over_rows, units_of
from sk_itdiffusion._first._table.groups import checked_groups
from sk_itdiffusion._first._table.reading import read_table

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
    groups: ArrayLike | None = None,
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
    groups : array-like of shape (n_samples,), default=None
        Labels of groups of rows that are not independent of each other; each is in one fold.

    Returns
    -------
    information : float
        Nats.
    standard_error : float
        Standard error over rows, or over groups; copies of a row are one observation.

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
    found = IMMSEMutualInformation(estimator, cv=cv, random_state=random_state).fit(
        X, y, given, groups
    )
    return found.mutual_information_, found.standard_error_


def entropy(
    X: ArrayLike,
    *,
    estimator: Any = None,
    cv: int = 5,
    random_state: int | np.random.RandomState | None = None,
    groups: ArrayLike | None = None,
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
    groups : array-like of shape (n_samples,), default=None
        Labels of groups of rows that are not independent of each other; each is in one fold.

    Returns
    -------
    entropy : float
        Nats, with respect to the units of continuous columns, so that it may be negative.
    standard_error : float
        Standard error over rows, or over groups; copies of a row are one observation.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion.information import entropy
    >>> x = np.random.default_rng(0).normal(size=500)
    >>> found, error = entropy(x, cv=2, random_state=0)
    >>> bool(abs(found - 0.5 * np.log(2.0 * np.pi * np.e)) < 3.0 * error)
    True
    """
    side, rows, seed = read_whole(X, cv, random_state, groups)
    template = IMMSEMixedDensity(max_epochs=0) if estimator is None else clone(estimator)
    values, fold = rows.values, rows.fold
    every = np.arange(values.shape[1])
    make, _ = density_of(template, side.kinds, side.n_categories, every, seed)
    complete = ~np.isnan(values).any(axis=1)
    check_complete_rows(int(complete.sum()), cv, "entropy")
    losses = np.empty(len(values))
    for number in np.unique(fold[complete]):
        others, held = fold != number, complete & (fold == number)
        density = make(every).fit(values[others], groups=units_of(rows.groups, others))
        losses[held] = -np.asarray(density.score_samples(values[held]))
    return mean_over_rows(losses[complete], units_of(rows.unit, complete))


def total_correlation(
    X: ArrayLike,
    *,
    estimator: Any = None,
    cv: int = 5,
    random_state: int | np.random.RandomState | None = None,
    groups: ArrayLike | None = None,
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
    groups : array-like of shape (n_samples,), default=None
        Labels of groups of rows that are not independent of each other; each is in one fold.

    Returns
    -------
    total_correlation : float
        Nats.
    standard_error : float
        Standard error over rows, or over groups; copies of a row are one observation.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion.information import total_correlation
    >>> x = np.random.default_rng(0).normal(size=(200, 2))
    >>> found, error = total_correlation(x, cv=2, random_state=0)
    >>> bool(found <= 2.0 * error)
    True
    """
    table = FittedTable(X, estimator, cv, random_state, groups)
    complete = ~np.isnan(table.rows.values).any(axis=1)
    # Of columns that lack entries the same rows are asked about at each step.
    rows = table.rows.take(complete)
    check_complete_rows(len(rows.values), cv, "total_correlation")
    total, dependent = np.zeros(len(rows.values)), np.zeros(len(rows.values))
    for j in range(1, rows.values.shape[1]):
        roles = Roles(np.arange(j), np.array([j]), np.arange(0))
        _, found = crossfit(table.folds, rows.values, roles, rows.fold, rows.unit)
        total += found.information
        dependent += found.dependent
    return float(total.mean()), mean_over_rows(dependent, rows.unit)[1]


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
        Standard errors over rows, or over groups of rows; 0 on the diagonal.
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
    groups: ArrayLike | None = None,
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
    groups : array-like of shape (n_samples,), default=None
        Labels of groups of rows that are not independent of each other; each is in one fold, and
        the p-values see one row of it.

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
    table = FittedTable(X, estimator, cv, random_state, groups)
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
            rows = table.rows.take(~np.isnan(table.rows.values[:, [a, b]]).any(axis=1))
            check_complete_rows(len(rows.values), cv, "dependence_matrix")
            model, found = crossfit(table.folds, rows.values, roles, rows.fold, rows.unit)
            # Rows of a unit cannot be exchanged for those of others one by one.
            single = rows.take(first_of_units(rows.unit, len(rows.values)))
            tested = permutation_p_value(model, single.values, single.fold, n_permutations, chance)
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
        Features that are categories: all, none, a mask, or numbers of columns; the others are
        continuous.  ``"auto"`` goes by their dtypes.
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
    dtypes = feature_dtypes(discrete_features, frame.shape[1])
    found = np.empty(frame.shape[1])
    for j, dtype in enumerate(dtypes):
        column = frame.iloc[:, [j]]
        try:
            column = column if dtype is None else column.astype(dtype)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Column {frame.columns[j]!r} of X has values that are no numbers. Name it in "
                'discrete_features, or pass discrete_features="auto".'
            ) from error
        found[j] = IMMSEMutualInformation(random_state=seed).fit(column, y).mutual_information_
    return found


def feature_dtypes(discrete_features: Any, n_features: int) -> list[Any]:
    """Return the dtype that each feature is converted to; None if its own tells what it is."""
    if isinstance(discrete_features, str):
        if discrete_features != "auto":
            raise ValueError(
                'discrete_features must be "auto", a bool, a mask or numbers of columns, got '
                f"{discrete_features!r}."
            )
        return [None] * n_features
    is_discrete = np.zeros(n_features, dtype=bool)
    is_discrete[np.asarray(discrete_features)] = True
    return ["category" if each else "float64" for each in is_discrete]


@dataclass(frozen=True)
class Rows:
    """Rows of a table, and what is known of each.

    Attributes
    ----------
    values : ndarray of shape (n, n_columns)
        Numbers and codes; NaN where entries are missing.
    fold : ndarray of shape (n,), int
        Folds.
    groups : ndarray of shape (n,), int, or None
        Groups that the user knows.
    unit : ndarray of shape (n,), int, or None
        Units of rows that are not independent of each other: groups, and copies of rows.
    """

    values: Array
    fold: Index
    groups: Index | None
    unit: Index | None

    def take(self, rows: Any) -> Rows:
        """Return some of the rows, by their numbers or a mask."""
        groups, unit = units_of(self.groups, rows), units_of(self.unit, rows)
        return Rows(self.values[rows], self.fold[rows], groups, unit)


class FittedTable:
    """A table, and models of its folds.

    Parameters
    ----------
    X, estimator, cv, random_state, groups
        What the functions are passed.
    """

    folds: list[FoldModel]

    def __init__(
        self,
        X: Any,
        estimator: Any,
        cv: int,
        random_state: int | np.random.RandomState | None,
        groups: ArrayLike | None,
    ) -> None:
        side, rows, self.seed = read_whole(X, cv, random_state, groups)
        self.names = list(read_table(X).frame.columns)
        self.columns = varying_columns(rows.values)
        self.rows = replace(rows, values=rows.values[:, self.columns])
        self.folds = []
        if len(self.columns) < 2:
            return
        make, seen = density_of(estimator, side.kinds, side.n_categories, self.columns, self.seed)
        every = [np.arange(j) for j in range(1, len(self.columns))]
        single = [np.array([j]) for j in range(1, len(self.columns))]
        self.folds = fit_folds(
            make, self.rows.values, seen, [*every, *single], self.rows.fold, self.rows.groups
        )


def read_whole(
    X: Any,
    cv: int,
    random_state: int | np.random.RandomState | None,
    groups: ArrayLike | None,
) -> tuple[Side, Rows, int]:
    """Return the reader of a table, its rows, and a seed."""
    table = X if np.ndim(X) != 1 else np.asarray(X)[:, None]
    side = Side(table, "X")
    values = side.read(table)
    check_complete_rows(int((~np.isnan(values).all(axis=1)).sum()), cv, "it")
    seed = int(check_random_state(random_state).randint(2**31 - 1))
    numbers = None if groups is None else checked_groups(groups, values)
    unit = units_of_table(values, np.array(side.kinds) == "continuous", numbers)
    fold = folds_of_table(cv, [values], unit, numbers, seed)
    return side, Rows(values, fold, numbers, unit), seed
