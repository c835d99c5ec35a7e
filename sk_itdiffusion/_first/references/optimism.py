r"""Optimism of a choice among candidates on the rows that it was made by.

Each row is evaluated by what the rows of the other folds choose, as in cross-validation, but of the
choice alone: all candidates stay as they are fitted, so it costs almost nothing [1]_.

References
----------
.. [1] R. J. Tibshirani, R. Tibshirani. "A bias correction for the minimum error rate in
   cross-validation". Annals of Applied Statistics 3, 2009.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._immse.cubature import Keys
from sk_itdiffusion._first._table.rows import WeightedRows

__all__ = ["choice_optimism", "fold_weights"]

Array = NDArray[np.float64]

N_FOLDS = 10


def fold_weights(rows: WeightedRows, in_counts: bool) -> Array:
    """Return the weights of rows in each of ten folds, which sum to the weights of the rows.

    Parameters
    ----------
    rows : WeightedRows
        Validation rows, in random order.
    in_counts : bool
        Whether weights are numbers of observations, which are divided among the folds if they are
        independent; else a row is in one fold.  Those of a group, and noisy copies of one
        observation, are in one fold.

    Returns
    -------
    ndarray of shape (n_folds, n_samples)
        The weights.
    """
    if rows.group_shares is not None:
        n_groups = rows.group_shares.shape[1]
        fold_of_group = np.arange(n_groups)[:, None] % N_FOLDS == np.arange(N_FOLDS)
        weights = (rows.group_shares @ fold_of_group.astype(np.float64)).T * rows.weight
        return np.asarray(weights[weights.any(axis=1)])
    if in_counts and rows.are_independent and np.array_equal(rows.weight, np.rint(rows.weight)):
        return shared_counts(rows.weight.astype(np.int64))
    unit = np.arange(len(rows))
    if rows.unit is not None:
        _, first, inverse = np.unique(rows.unit, return_index=True, return_inverse=True)
        unit = np.argsort(np.argsort(first))[inverse]  # numbered as they come
    fold = unit % N_FOLDS
    weights = np.zeros((N_FOLDS, len(rows)))
    weights[fold, np.arange(len(rows))] = rows.weight
    return weights[weights.any(axis=1)]


def shared_counts(counts: NDArray[np.int64]) -> Array:
    """Return counts divided among the folds, as observations in turn would be."""
    end = np.cumsum(counts)
    folds = np.arange(N_FOLDS)[:, None]

    def before(position: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many of the first observations are in each fold."""
        return np.asarray((position - folds + N_FOLDS - 1) // N_FOLDS)

    weights = (before(end) - before(end - counts)).astype(np.float64)
    return weights[weights.any(axis=1)]


def choice_optimism(
    scores: Array,
    rows: WeightedRows,
    choose: Callable[[Array, Array, Keys | None], int],
    judged: Array | None = None,
    in_counts: bool = False,
) -> Array:
    """Return the optimism of a choice on each of the rows that it was made by.

    Parameters
    ----------
    scores : ndarray of shape (n_candidates, n_samples)
        Log-likelihoods of the rows under the candidates.
    rows : WeightedRows
        The rows.
    choose : callable
        Returns the number of the candidate chosen by scores (n_candidates, n_rows), shares of these
        rows, and keys of those that are not independent, or None.
    judged : ndarray of shape (n_candidates, n_samples) or None, default=None
        Log-likelihoods that are reported, if they differ from those that choose.
    in_counts : bool, default=False
        Whether weights of rows are numbers of observations; see `fold_weights`.

    Returns
    -------
    ndarray of shape (n_samples,)
        Score under the candidate chosen by all rows less that under the one chosen by the rows of
        other folds.
    """
    judged = scores if judged is None else judged
    folds = fold_weights(rows, in_counts)
    total = folds.sum(axis=0)
    optimism = np.zeros(scores.shape[1])
    if len(folds) < 2 or len(scores) < 2:
        return optimism
    unit = rows.unit
    chosen = judged[choose(scores, total / total.sum(), unit)]
    for fold in folds:
        others = total - fold
        kept = others > 0
        of_others = None if unit is None else unit[kept]
        other = judged[choose(scores[:, kept], others[kept] / others.sum(), of_others)]
        optimism += fold / total * (chosen - other)
    return optimism
