"""Tests of independence: rows of one side of which are permuted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._information.crossfit import InformationModel
from sk_itdiffusion._first._information.units import random_order

__all__ = ["permutation_p_value"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]
#: Rows of a fold that are permuted, all pairs of which are evaluated.
_ROWS_OF_FOLD = 100
#: Standard deviation of the statistic, in that of permuted rows.
_SPREAD_OF_PAIRS = 2**0.5


def permutation_p_value(
    model: InformationModel,
    values: Array,
    fold: Index,
    n_permutations: int,
    random_state: np.random.RandomState,
) -> float:
    r"""Return the p-value of independence between two sides.

    The statistic is the mean pointwise information of rows by the best expert that has not seen
    them.  If the sides are independent, rows of each fold are as likely with one side permuted,
    whatever the experts are worth.  But what two folds have in common by chance counts in the
    statistic of either, and in those of permuted rows, whose experts are not fitted anew, in
    neither.  With scores :math:`S_k` of folds and experts that follow them to first order the
    statistic is :math:`\sum_k \sum_{j \ne k} S_j S_k`: each pair comes twice, which makes the
    variance twice that of permuted rows.  So deviations of the latter from their mean are
    multiplied by :math:`\sqrt 2`; for experts that are shrunk towards independence this is more
    than enough.

    Parameters
    ----------
    model : InformationModel
        Model of the question.
    values : ndarray of shape (n, n_columns)
        Rows without missing entries in these columns.
    fold : ndarray of shape (n,), int
        Fold of each row.
    n_permutations : int
        How many permutations.
    random_state : RandomState
        Source of the permutations.

    Returns
    -------
    float
        The p-value, at least 1 / (n_permutations + 1).
    """
    total, center = np.zeros(n_permutations + 1), 0.0
    order = random_order(values, int(random_state.randint(2**31 - 1)))
    for number, each in enumerate(model.folds):
        rows = values[order[fold[order] == number][:_ROWS_OF_FOLD]]
        n_rows = len(rows)
        left, right = np.divmod(np.arange(n_rows**2), n_rows)
        pairs = rows[left]
        pairs[:, model.roles.y] = rows[right][:, model.roles.y]
        conditional, marginal = each.log_densities(pairs, model.roles)
        ratio = (conditional[model.best] - marginal[model.best]).reshape(n_rows, n_rows)
        own = np.arange(n_rows)
        total[0] += ratio[own, own].sum()
        center += ratio.mean() * n_rows
        for k in range(1, n_permutations + 1):
            total[k] += ratio[own, random_state.permutation(n_rows)].sum()
    permuted = center + _SPREAD_OF_PAIRS * (total[1:] - center)
    return float((permuted >= total[0]).sum() + 1) / (n_permutations + 1)
