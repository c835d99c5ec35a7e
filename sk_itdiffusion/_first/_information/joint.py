"""Log-densities of parts of rows from density estimators of all columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["JointDensity"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]


@dataclass(frozen=True)
class JointDensity:
    """A density of all columns, and if it has networks, one of each part that is asked for.

    Attributes
    ----------
    densities : list
        Fitted density estimators.  One without networks is the only one: it is asked about parts,
        so that all answers are those of one distribution.
    columns : list of ndarray of int
        Increasing numbers of the columns of each; the first has all.
    """

    densities: list[Any]
    columns: list[Index]

    @classmethod
    def fit(
        cls,
        make: Callable[[Index], Any],
        rows: Array,
        parts: Sequence[Index],
        groups: Index | None = None,
    ) -> JointDensity:
        """Return densities fitted to rows.

        Parameters
        ----------
        make : callable
            Returns an unfitted density estimator for some columns.
        rows : ndarray of shape (n, n_columns)
            Rows; NaN where entries are missing.
        parts : sequence of ndarray of int
            Increasing numbers of columns that networks, if there are any, have to know.
        groups : ndarray of shape (n,), int, or None, default=None
            Groups of rows that are not independent of each other.

        Returns
        -------
        JointDensity
            The densities.
        """
        every = np.arange(rows.shape[1])
        found = cls([make(every).fit(rows, groups=groups)], [every])
        if found.has_networks:
            for part in parts:
                if 0 < len(part) < len(every):
                    found.densities.append(make(part).fit(rows[:, part], groups=groups))
                    found.columns.append(part)
        return found

    @property
    def has_networks(self) -> bool:
        """Whether networks take part, which know only the columns that they were trained on."""
        return getattr(self.densities[0], "net_", None) is not None

    def log_density(self, rows: Array, columns: Sequence[int] | Index) -> Array:
        """Return the log-densities of some columns of rows, 0 if there are none.

        Parameters
        ----------
        rows : ndarray of shape (n, n_columns)
            Rows; NaN where entries are missing.
        columns : sequence of int
            Increasing numbers of columns.

        Returns
        -------
        ndarray of shape (n,)
            Log-densities in nats of what is observed.
        """
        wanted = np.asarray(columns, dtype=np.intp)
        if not len(wanted):
            return np.zeros(len(rows))
        if self.has_networks:
            for density, known in zip(self.densities, self.columns, strict=True):
                if np.array_equal(known, wanted):
                    return np.asarray(density.score_samples(rows[:, known]))
        view = self.densities[0].marginal(wanted.tolist())
        return np.asarray(view.score_samples(rows[:, wanted]))
