r"""The validation bound of a model that was chosen by the same rows, and its standard error.

Rows that are used for a choice make it look better than it is.  So each row is evaluated by what
the rows of the other folds choose: here the weights of the experts at each log-SNR, and in
`choice_optimism` of `sk_itdiffusion.references.optimism` a candidate among several.  This is
cross-validation of the choices alone, with all fits as they are, and costs almost nothing [1]_.

References
----------
.. [1] R. J. Tibshirani, R. Tibshirani. "A bias correction for the minimum error rate in
   cross-validation". Annals of Applied Statistics 3, 2009.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._immse.error_profiles import ErrorProfile, stacking_weights
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first._table.space import TableSpace
from sk_itdiffusion._first.references import Reference
from sk_itdiffusion._first.references.judging import log_likelihoods

__all__ = [
    "Optimism",
    "codes_of",
    "crossfitted_errors",
    "mean_and_std",
    "variance_of_units",
    "with_unseen_values",
]

#: By how much the number of a single unit may exceed one by rounding.
ROUNDING_OF_ONE = 1e-9
Array = NDArray[np.float64]


def crossfitted_errors(profile: ErrorProfile, folds: Array) -> Array:
    """Return the squared errors of stacks of which the weights come from the other folds.

    Parameters
    ----------
    profile : ErrorProfile
        Products of the residuals of the experts.
    folds : ndarray of shape (n_folds, n_samples)
        Weights of the rows in each fold.

    Returns
    -------
    ndarray of shape (n_nodes, n_samples)
        The errors.
    """
    if len(folds) < 2:
        return profile.row_errors(stacking_weights(profile))
    total = folds.sum(axis=0)
    errors = np.zeros(profile.gram.shape[:2])
    for fold in folds:
        others = total - fold
        kept = others > 0
        n, source = profile.n_observations, profile.source
        weights = stacking_weights(
            replace(
                profile,
                gram=profile.gram[:, kept],
                row_weight=others[kept] / others.sum(),
                n_observations=None if n is None else n * float(others.sum() / total.sum()),
                source=None if source is None else source[kept],
            )
        )
        here = fold > 0
        part = replace(profile, gram=profile.gram[:, here])
        errors[:, here] += fold[here] / total[here] * part.row_errors(weights)
    return errors


@dataclass(frozen=True)
class Optimism:
    """Optimism of choices on the validation rows that they were made on, in nats.

    A choice counts as far as the stack relies on what was chosen: that of a map changes all
    experts, the plain reference less than others, and that of a mixture only the mixture.

    Attributes
    ----------
    plain : ndarray of shape (n_valid,) or float, default=0
        For the plain reference.
    others : ndarray of shape (n_valid,) or float, default=0
        For all other experts.
    families : mapping of str to ndarray of shape (n_valid,) or float
        For references of families in addition, by name.
    """

    plain: Array | float = 0.0
    others: Array | float = 0.0
    families: Mapping[str, Array | float] = field(default_factory=dict)

    def of_stack(self, weights: Mapping[str, float], plain: str, n_rows: int) -> Array:
        """Return the optimism of the choices for a stack, for each row.

        Parameters
        ----------
        weights : mapping of str to float
            Weights of the experts, averaged over the log-SNR.
        plain : str
            Name of the plain reference.
        n_rows : int
            Number of validation rows.

        Returns
        -------
        ndarray of shape (n_valid,)
            The optimism.
        """
        of_plain = weights.get(plain, 0.0)
        total = of_plain * self.plain + (1.0 - of_plain) * self.others
        for name, optimism in self.families.items():
            total = total + weights.get(name, 0.0) * optimism
        return np.broadcast_to(total, n_rows)


def codes_of(rows: Array) -> list[Array]:
    """Return the sorted codes in each column of discrete rows, of which entries may be missing."""
    return [np.unique(column[~np.isnan(column)]) for column in rows.T]


def with_unseen_values(
    log_density: Array,
    valid: WeightedRows,
    trained: Sequence[Array],
    space: TableSpace,
    reference: Reference,
) -> Array:
    """Return log-densities of validation rows in which values that training lacks are unseen.

    The categories of a column are those of all rows.  So no validation row has a value that is not
    a category, as some new rows do; values that no training row has stand for them, in columns with
    an order those beyond the values of the training rows.  Names are one event, as they are in new
    rows; where there are several values in order, they share the probability of all of them.

    Parameters
    ----------
    log_density : ndarray of shape (n_valid,)
        Log-densities in nats, without what all rows have in common.
    valid : WeightedRows
        Validation rows, after the maps of the columns.
    trained : sequence of ndarray
        Of each discrete column the sorted codes of training rows.
    space : TableSpace
        Their space.
    reference : Reference
        The control variate, which scores rows with unseen values.

    Returns
    -------
    ndarray of shape (n_valid,)
        The log-densities.
    """
    n_continuous = len(space.continuous)
    codes = valid.X[:, n_continuous:]
    unseen, n_unseen = np.zeros(codes.shape, dtype=bool), np.ones(codes.shape[1])
    for j in np.flatnonzero(np.isin(space.discrete, space.open)).tolist():
        known = trained[j]
        if not len(known):
            continue
        if space.layout.variables[j].values is None:
            unseen[:, j] = ~np.isin(codes[:, j], known) & ~np.isnan(codes[:, j])
        else:
            unseen[:, j] = (codes[:, j] < known[0]) | (codes[:, j] > known[-1])
            n_unseen[j] = max(1, len(np.unique(codes[unseen[:, j], j])))
    rows = np.flatnonzero(unseen.any(axis=1))
    if not len(rows):
        return log_density
    others = valid.X[rows].copy()
    others[:, n_continuous:][unseen[rows]] = np.nan
    log_seen = space.log_seen[space.discrete]
    with np.errstate(divide="ignore"):  # of columns that cannot have unseen values
        log_odds = np.log(-np.expm1(log_seen) / n_unseen) - log_seen
    found = log_density.copy()
    found[rows] += log_likelihoods(reference, others) - log_likelihoods(reference, valid.X[rows])
    found[rows] += np.where(unseen[rows], log_odds, 0.0).sum(axis=1)
    return found


def mean_and_std(
    values: Array,
    rows: WeightedRows,
    n_observations: float | None = None,
    least_variance: float = 0.0,
) -> tuple[float, float]:
    """Return the weighted mean over rows and its standard error, for few rows too.

    Parameters
    ----------
    values : ndarray of shape (n_samples,)
        A value for each row.
    rows : WeightedRows
        The rows; observations of one group, or noisy copies of one, count as one.
    n_observations : float or None, default=None
        Number of observations, if weights are counts of them.
    least_variance : float, default=0.0
        What `variance_of_units` returns for other rows.  Validation rows choose what suits them,
        which makes few of them more alike than new rows are.

    Returns
    -------
    mean, std : float
        The mean and its standard error.
    """
    mean = float(rows.share @ values)
    n, variance = variance_of_units(values, rows, n_observations)
    if math.isnan(variance):
        return mean, math.nan
    return mean, math.sqrt(max(variance, least_variance) / n)


def variance_of_units(
    values: Array, rows: WeightedRows, n_observations: float | None = None
) -> tuple[float, float]:
    """Return the number of independent units among rows, and the variance of the value of one.

    Parameters
    ----------
    values : ndarray of shape (n_samples,)
        A value for each row.
    rows : WeightedRows
        The rows; observations of one group, or noisy copies of one, are one unit.
    n_observations : float or None, default=None
        Number of observations, if weights are counts of them.

    Returns
    -------
    n, variance : float
        The number of units, and the variance, whose ratio is that of the weighted mean; the
        variance is NaN for a single unit.
    """
    share = rows.share
    centered = values - share @ values
    if n_observations is not None and rows.are_independent:
        n, variance = n_observations, float(share @ centered**2)
    else:
        n = 1.0 / float((rows.sums_over_units(share) ** 2).sum())
        variance = n * float((rows.sums_over_units(share * centered) ** 2).sum())
    return n, variance * n / (n - 1.0) if n > 1.0 + ROUNDING_OF_ONE else math.nan
