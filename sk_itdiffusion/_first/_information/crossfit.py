"""Pointwise information of rows that the models have not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from sk_itdiffusion._first._information.blend import Blend
from sk_itdiffusion._first._information.copula import EllipticalCopula
from sk_itdiffusion._first._information.counts import CountTables
from sk_itdiffusion._first._information.joint import JointDensity
from sk_itdiffusion._first._information.normal_scores import NormalScores
from sk_itdiffusion._first._information.roles import Roles
from sk_itdiffusion._first._information.units import mean_over_rows, units_of

__all__ = ["Columns", "CrossFit", "FoldModel", "InformationModel", "crossfit", "fit_folds"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]
#: Rows for each column from which a covariance of all columns is worth something.
_ROWS_FOR_A_COLUMN = 2
_ROWS_IN_A_PART = 256
#: Log-ratio that is no rounding error.
_LEAST_RATIO = 1e-9


@dataclass(frozen=True)
class Columns:
    """What the columns are.

    Attributes
    ----------
    continuous : ndarray of shape (n_columns,), bool
        Columns of numbers; the others hold codes.
    n_categories : ndarray of shape (n_columns,), int
        Numbers of categories; 0 for continuous columns.
    """

    continuous: NDArray[np.bool_]
    n_categories: Index


@dataclass(frozen=True)
class FoldModel:
    """What was learned from the rows outside a fold.

    Attributes
    ----------
    columns : Columns
        What the columns are.
    scores : NormalScores
        Map of the continuous columns.
    joint : JointDensity
        Density of the mapped rows.
    copula : EllipticalCopula or None
        Copula of the continuous columns, if half as many rows or more have all of them.
    counts : CountTables
        Rows of the discrete columns.
    """

    columns: Columns
    scores: NormalScores
    joint: JointDensity
    copula: EllipticalCopula | None
    counts: CountTables

    @classmethod
    def fit(
        cls,
        make: Callable[[Index], Any],
        values: Array,
        columns: Columns,
        parts: Sequence[Index],
        groups: Index | None = None,
    ) -> FoldModel:
        """Return the model of rows; see `fit_folds`."""
        scores = NormalScores.fit(values, columns.continuous)
        z = scores.transform(values)
        numbers = z[:, columns.continuous]
        numbers = numbers[~np.isnan(numbers).any(axis=1)]
        n_columns = numbers.shape[1]
        has_copula = n_columns > 1 and len(numbers) >= _ROWS_FOR_A_COLUMN * n_columns
        return cls(
            columns,
            scores,
            JointDensity.fit(make, z, parts, groups),
            EllipticalCopula.fit(numbers) if has_copula else None,
            CountTables(np.where(columns.continuous, np.nan, z), columns.n_categories),
        )

    def log_densities(self, values: Array, roles: Roles) -> tuple[Array, Array]:
        """Return log-densities of y with and without x under each expert, (n_experts, n).

        The first is the joint density.  Of numbers alone the others are the copula, with more and
        more correlations; of categories alone counts, more and more drawn towards independence.
        They say nothing of rows with missing entries.
        """
        z = self.scores.transform(values)
        joint, asked = self.joint, roles.without("")
        conditional = joint.log_density(z, asked) - joint.log_density(z, roles.without("y"))
        marginal = joint.log_density(z, roles.without("x")) - joint.log_density(z, roles.given)
        is_complete = ~np.isnan(z[:, asked]).any(axis=1)
        is_number = self.columns.continuous[asked]
        if is_number.all() and self.copula is not None:
            place = np.cumsum(self.columns.continuous) - 1
            own = Roles(*(place[part] for part in (roles.x, roles.y, roles.given)))
            rows = z[is_complete][:, self.columns.continuous]
            found = in_equal_parts(partial(self.copula.log_densities, roles=own), rows)
        elif not is_number.any():
            found = self.counts.log_densities(z[is_complete], roles)
        else:
            return conditional[None], marginal[None]
        others = np.full((2, len(found[0]), len(z)), -np.inf)
        others[0][:, is_complete], others[1][:, is_complete] = found
        return np.vstack([conditional, others[0]]), np.vstack([marginal, others[1]])


def in_equal_parts(
    function: Callable[[Array], tuple[Array, Array]], rows: Array
) -> tuple[Array, Array]:
    """Return what a function says of rows, along the last axes, from parts of one fixed shape.

    So a row's values do not depend on the other rows to the last bit.
    """
    found = []
    for start in range(0, max(len(rows), 1), _ROWS_IN_A_PART):
        part = rows[start : start + _ROWS_IN_A_PART]
        padded = np.pad(part, ((0, _ROWS_IN_A_PART - len(part)), (0, 0)))
        found.append([each[..., : len(part)] for each in function(padded)])
    first, second = (np.concatenate(parts, axis=-1) for parts in zip(*found, strict=True))
    return first, second


def fit_folds(
    make: Callable[[Index], Any],
    values: Array,
    columns: Columns,
    parts: Sequence[Index],
    fold: Index,
    groups: Index | None = None,
) -> list[FoldModel]:
    """Return a model for each fold, fitted to the rows of the others.

    Parameters
    ----------
    make : callable
        Returns an unfitted density estimator for some columns.
    values : ndarray of shape (n, n_columns)
        Numbers and codes; NaN where entries are missing.
    columns : Columns
        What the columns are.
    parts : sequence of ndarray of int
        Columns that will be asked for together.
    fold : ndarray of shape (n,), int
        Fold of each row, from 0 on.
    groups : ndarray of shape (n,), int, or None, default=None
        Groups of rows that are not independent of each other.

    Returns
    -------
    list of FoldModel
        The models; all have copulas or none has.
    """
    folds = [
        FoldModel.fit(make, values[others], columns, parts, units_of(groups, others))
        for others in (fold != number for number in range(int(fold.max()) + 1))
    ]
    if all(each.copula is not None for each in folds):
        return folds
    return [replace(each, copula=None) for each in folds]


@dataclass(frozen=True)
class InformationModel:
    """Models of all folds, and how their experts are weighted for one question.

    Attributes
    ----------
    roles : Roles
        Which columns are on which side.
    folds : list of FoldModel
        The models.
    chosen : ndarray of int
        Numbers of the experts that have weights.
    blend : Blend
        Their weights.
    best : int
        Number of the expert under which y given x is likeliest.
    """

    roles: Roles
    folds: list[FoldModel]
    chosen: Index
    blend: Blend
    best: int

    def information(self, values: Array) -> tuple[Array, Array]:
        """Return the pointwise information of rows in nats, and its standard error, (n,) each.

        The densities of an expert are means over the folds, whose differences are the error.
        """
        found = [fold.log_densities(values, self.roles) for fold in self.folds]
        conditional, marginal = (
            np.stack([part[self.chosen] for part in each]) for each in zip(*found, strict=True)
        )
        pairs = zip(conditional, marginal, strict=True)
        of_folds = [self.blend.information(*pair) for pair in pairs]
        mean = self.blend.information(logsumexp(conditional, axis=0), logsumexp(marginal, axis=0))
        return mean, np.std(of_folds, axis=0, ddof=1) / np.sqrt(len(of_folds))


@dataclass(frozen=True)
class CrossFit:
    """Pointwise information of the rows of a fit, each by a model that has not seen it.

    Attributes
    ----------
    information : ndarray of shape (n_used,)
        Of the rows without missing entries, in nats.
    dependent : ndarray of shape (n_used,)
        The same if y is not taken as independent, by the best expert if it is.
    fold : ndarray of shape (n_used,), int
        Folds of the rows.
    used : ndarray of shape (n_used,), int
        Numbers of the rows.
    unit : ndarray of shape (n_used,), int, or None
        Units of rows that are not independent of each other; None if all are.
    """

    information: Array
    dependent: Array
    fold: Index
    used: Index
    unit: Index | None

    @property
    def mean(self) -> float:
        """Mean over rows, which is the information."""
        return float(self.information.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over rows."""
        return mean_over_rows(self.dependent, self.unit)[1]

    @property
    def fold_spread(self) -> float:
        """Standard deviation of the means of the folds."""
        means = [self.information[self.fold == k].mean() for k in np.unique(self.fold)]
        return float(np.std(means, ddof=1))


def crossfit(
    folds: list[FoldModel],
    values: Array,
    roles: Roles,
    fold: Index,
    unit: Index | None = None,
) -> tuple[InformationModel, CrossFit]:
    """Return the model of one question, and the pointwise information of the rows of the fit.

    Parameters
    ----------
    folds : list of FoldModel
        Models of the folds.
    values : ndarray of shape (n, n_columns)
        The rows that they were fitted to.
    roles : Roles
        Which columns are on which side.
    fold : ndarray of shape (n,), int
        Fold of each row.
    unit : ndarray of shape (n,), int, or None, default=None
        Units of rows that are not independent of each other; None if all are.

    Returns
    -------
    model : InformationModel
        The model.
    found : CrossFit
        Pointwise information of the rows without missing entries in these columns.
    """
    is_used = ~np.isnan(values[:, roles.without("")]).any(axis=1)
    numbers = [np.flatnonzero(is_used & (fold == number)) for number in range(len(folds))]
    scored = [
        each.log_densities(values[here], roles) for each, here in zip(folds, numbers, strict=True)
    ]
    order = np.argsort(np.concatenate(numbers))
    used = np.concatenate(numbers)[order]
    conditional, marginal = (
        np.concatenate(part, axis=1)[:, order] for part in zip(*scored, strict=True)
    )
    ratio = conditional - marginal
    chosen = chosen_experts(conditional, ratio)
    conditional, marginal, ratio = conditional[chosen], marginal[chosen], ratio[chosen]
    best = int(np.argmax(np.where(tells_something(ratio), conditional.mean(axis=1), -np.inf)))
    blend = Blend.fit(conditional, marginal, units_of(unit, used))
    information = dependent = blend.information(conditional, marginal)
    if blend.is_independent:
        dependent = ratio[best]
    found = CrossFit(information, dependent, fold[used], used, units_of(unit, used))
    return InformationModel(roles, folds, chosen, blend, int(chosen[best])), found


def tells_something(ratio: Array) -> NDArray[np.bool_]:
    """Return which experts, (n_experts, n), do not take y as independent from the start."""
    return np.asarray(np.ptp(ratio, axis=1) > _LEAST_RATIO)


def chosen_experts(conditional: Array, ratio: Array) -> Index:
    """Return the number of the joint density, and that of the best of the others if there are any.

    Independence needs no expert.
    """
    if len(conditional) == 1:
        return np.array([0])
    score = np.where(tells_something(ratio[1:]), conditional[1:].mean(axis=1), -np.inf)
    return np.array([0, 1 + int(np.argmax(score))])
