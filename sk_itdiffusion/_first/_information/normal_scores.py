"""Normal scores: ranks of numbers as quantiles of a normal distribution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import rankdata

__all__ = ["NormalScores"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class NormalScores:
    """Increasing map of each column that makes its distribution normal.

    Information is the same behind increasing maps of columns, so that any shape of their
    distributions, such as heavy tails, is taken away before something is fitted.

    Attributes
    ----------
    knots : tuple of ndarray of shape (n_knots,)
        Increasing values of each column; empty for one that is left as it is.
    scores : tuple of ndarray of shape (n_knots,)
        Their scores.  Between knots the map is linear, and beyond them constant, so that no new
        row is further out than the rows of the fit.
    """

    knots: tuple[Array, ...]
    scores: tuple[Array, ...]

    @classmethod
    def fit(cls, values: Array, continuous: NDArray[np.bool_]) -> NormalScores:
        """Return the scores of rows.

        Parameters
        ----------
        values : ndarray of shape (n, n_columns)
            Rows; NaN where entries are missing.
        continuous : ndarray of shape (n_columns,), bool
            Columns with scores; others are left as they are.

        Returns
        -------
        NormalScores
            The map.  Equal values have the score of their mean rank.
        """
        knots, scores = [], []
        for column, is_continuous in zip(values.T, continuous, strict=True):
            seen = column[~np.isnan(column)] if is_continuous else column[:0]
            distinct, first = np.unique(seen, return_index=True)
            knots.append(distinct)
            scores.append(ndtri((rankdata(seen)[first] - 0.5) / max(len(seen), 1)))
        return cls(tuple(knots), tuple(scores))

    def transform(self, values: Array) -> Array:
        """Return the scores of rows, shape (n, n_columns); NaN where entries are missing."""
        found = values.copy()
        for j, (knots, scores) in enumerate(zip(self.knots, self.scores, strict=True)):
            if len(knots):
                found[:, j] = np.interp(values[:, j], knots, scores)
        return found
