"""Pointwise information of rows that the models have not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from sk_itdiffusion._information.blend import Blend
from sk_itdiffusion._information.copula import EllipticalCopula, ranks_of
from sk_itdiffusion._information.joint import JointDensity
from sk_itdiffusion._information.normal_scores import NormalScores
from sk_itdiffusion._information.roles import Roles

__all__ = ["CrossFit", "FoldModel", "InformationModel", "fit_information"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]
#: Rows for each column from which a covariance of all columns is worth something.
_ROWS_FOR_A_COLUMN = 2


@dataclass(frozen=True)
class FoldModel:
    """What was learned from the rows outside a fold.

    Attributes
    ----------
    scores : NormalScores
        Map of the continuous columns.
    joint : JointDensity
        Density of the mapped rows.
    copula : EllipticalCopula or None
        Copula of all columns, if all are continuous, without missing entries and fewer than half as
        many as the rows.
    """

    scores: NormalScores
    joint: JointDensity
    copula: EllipticalCopula | None

    @classmethod
    def fit(
        cls,
        make: Callable[[Index], Any],
        values: Array,
        continuous: NDArray[np.bool_],
        parts: Sequence[Index],
    ) -> FoldModel:
        """Return the model of rows; see `fit_information`."""
        scores = NormalScores.fit(values, continuous)
        z = scores.transform(values)
        is_plain = bool(continuous.all()) and not np.isnan(z).any()
        has_copula = is_plain and len(z) >= _ROWS_FOR_A_COLUMN * z.shape[1]
        copula = EllipticalCopula.fit(z) if has_copula else None
        return cls(scores, JointDensity.fit(make, z, parts), copula)

    def log_densities(self, values: Array, roles: Roles) -> tuple[Array, Array]:
        """Return log-densities of y with and without x under each expert, (n_experts, n).

        The first is the joint density, the others are the copula with more and more correlations,
        which says nothing of rows with missing entries.
        """
        z = self.scores.transform(values)
        joint = self.joint
        conditional = joint.log_density(z, roles.without("")) - joint.log_density(
            z, roles.without("y")
        )
        marginal = joint.log_density(z, roles.without("x")) - joint.log_density(z, roles.given)
        if self.copula is None:
            return conditional[None], marginal[None]
        n_ranks = len(ranks_of(roles))
        of_ranks = np.full((2, n_ranks, len(z)), -np.inf)
        is_complete = ~np.isnan(z).any(axis=1)
        if is_complete.any():
            found = self.copula.log_densities(z[is_complete], roles)
            of_ranks[0][:, is_complete], of_ranks[1][:, is_complete] = found
        return np.vstack([conditional, of_ranks[0]]), np.vstack([marginal, of_ranks[1]])


@dataclass(frozen=True)
class InformationModel:
    """Models of all folds, and how their experts are weighted.

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
    """

    roles: Roles
    folds: list[FoldModel]
    chosen: Index
    blend: Blend

    def information(self, values: Array) -> tuple[Array, Array]:
        """Return the pointwise information of rows in nats, and its standard error, (n,) each.

        The densities of an expert are means over the folds, whose differences are the error.
        """
        found = [fold.log_densities(values, self.roles) for fold in self.folds]
        conditional, marginal = (
            np.stack([part[self.chosen] for part in each]) for each in zip(*found, strict=True)
        )
        of_folds = [self.blend.information(*each) for each in zip(conditional, marginal, strict=True)]
        mean = self.blend.information(*(logsumexp(part, axis=0) for part in (conditional, marginal)))
        return mean, np.std(of_folds, axis=0, ddof=1) / np.sqrt(len(of_folds))


def fit_information(
    make: Callable[[Index], Any],
    values: Array,
    continuous: NDArray[np.bool_],
    roles: Roles,
    fold: Index,
) -> tuple[InformationModel, CrossFit]:
    """Return the model of the information between two sides, and the rows' pointwise information.

    Parameters
    ----------
    make : callable
        Returns an unfitted density estimator for some columns.
    values : ndarray of shape (n, n_columns)
        Numbers and codes; NaN where entries are missing.
    continuous : ndarray of shape (n_columns,), bool
        Columns of numbers.
    roles : Roles
        Which columns are on which side.
    fold : ndarray of shape (n,), int
        Fold of each row, from 0 on; models of the other folds score it.

    Returns
    -------
    model : InformationModel
        The model.
    found : CrossFit
        The pointwise information of rows, each by a model that has not seen it.
    """
    parts = [roles.without("y"), roles.without("x"), roles.given]
    folds: list[FoldModel] = []
    scored = []
    for number in range(int(fold.max()) + 1):
        folds.append(FoldModel.fit(make, values[fold != number], continuous, parts))
        scored.append(folds[-1].log_densities(values[fold == number], roles))
    folds = with_equal_experts(folds)
    n_experts = min(len(conditional) for conditional, _ in scored)
    order = np.argsort(np.concatenate([np.flatnonzero(fold == k) for k in range(len(folds))]))
    conditional, marginal = (
        np.concatenate([part[:n_experts] for part in each], axis=1)[:, order]
        for each in zip(*scored, strict=True)
    )
    used = np.flatnonzero(~np.isnan(values[:, roles.without("")]).any(axis=1))
    conditional, marginal = conditional[:, used], marginal[:, used]
    chosen = chosen_experts(conditional)
    blend = Blend.fit(conditional[chosen], marginal[chosen])
    model = InformationModel(roles, folds, chosen, blend)
    information = blend.information(conditional[chosen], marginal[chosen])
    best = chosen[int(np.argmax(conditional[chosen].mean(axis=1)))]
    dependent = information if not blend.is_independent else conditional[best] - marginal[best]
    return model, CrossFit(information, dependent, fold[used], used)


def with_equal_experts(folds: list[FoldModel]) -> list[FoldModel]:
    """Return the models without copulas, if not all have one."""
    if all(each.copula is not None for each in folds):
        return folds
    return [replace(each, copula=None) for each in folds]


def chosen_experts(conditional: Array) -> Index:
    """Return the numbers of the joint density and of the copula that is best, if there is one."""
    if len(conditional) == 1:
        return np.array([0])
    return np.array([0, 1 + int(np.argmax(conditional[1:].mean(axis=1)))])


@dataclass(frozen=True)
class CrossFit:
    """Pointwise information of the rows of a fit.

    Attributes
    ----------
    information : ndarray of shape (n_used,)
        Of the rows without missing entries, each by a model that has not seen it, in nats.
    dependent : ndarray of shape (n_used,)
        The same if y is not taken as independent, by the best expert if it is.
    fold : ndarray of shape (n_used,), int
        Folds of the rows.
    used : ndarray of shape (n_used,), int
        Numbers of the rows.
    """

    information: Array
    dependent: Array
    fold: Index
    used: Index

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over rows."""
        return float(self.dependent.std(ddof=1) / np.sqrt(len(self.dependent)))

    @property
    def fold_spread(self) -> float:
        """Standard deviation of the means of the folds."""
        means = [self.information[self.fold == k].mean() for k in np.unique(self.fold)]
        return float(np.std(means, ddof=1))
