"""Tables of counts of categories, drawn towards independence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._information.roles import Roles

__all__ = ["CountTables"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]

#: Observations that independence counts for, at each value of x.
_PRIORS = np.array([1.0, 3.0, 10.0, 30.0, 100.0, 300.0])


@dataclass(frozen=True)
class CountTables:
    """Rows of categories, which are counted for each question.

    Attributes
    ----------
    codes : ndarray of shape (n_train, n_columns)
        Codes of the rows of the fit; NaN where they are missing, and in columns of numbers.
    n_categories : ndarray of shape (n_columns,), int
        Numbers of categories.
    """

    codes: Array
    n_categories: Index

    def log_densities(self, codes: Array, roles: Roles) -> tuple[Array, Array]:
        """Return log-probabilities of y with and without x, for each strength of the prior.

        Parameters
        ----------
        codes : ndarray of shape (n, n_columns)
            Rows, without missing entries in the columns asked about.
        roles : Roles
            Which columns are x, y, and given in any case.

        Returns
        -------
        conditional : ndarray of shape (n_priors, n)
            log P(y | x, given): counts with as many observations more as independence counts for.
        marginal : ndarray of shape (n,)
            log P(y | given), with one observation of equal probabilities more.
        """
        asked, x, y = (roles.without(side) for side in ("", "y", "x"))
        # Rows without y would count for x alone, and probabilities of y would not sum to 1.
        known = self.codes[~np.isnan(self.codes[:, asked]).any(axis=1)]
        of_all, of_x, of_y, of_given = (
            counts_of_rows(codes[:, part], known[:, part]) for part in (asked, x, y, roles.given)
        )
        equal = np.exp(-np.log(self.n_categories[roles.y]).sum())
        marginal = (of_y + equal) / (of_given + 1.0)
        prior = _PRIORS[:, None]
        return np.log((of_all + prior * marginal) / (of_x + prior)), np.log(marginal)


def counts_of_rows(codes: Array, known: Array) -> Array:
    """Return how many known rows equal each row."""
    if not codes.shape[1]:
        return np.full(len(codes), float(len(known)))
    together = np.concatenate([codes, known])
    number = np.unique(together, axis=0, return_inverse=True)[1].ravel()
    counts = np.bincount(number[len(codes) :], minlength=int(number.max()) + 1)
    return np.asarray(counts[number[: len(codes)]], dtype=np.float64)
