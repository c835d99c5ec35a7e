"""Conditional and marginal densities of a fitted density."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sk_itdiffusion._estimators.base import DensityEstimator
from sk_itdiffusion._estimators.reading import column_positions

__all__ = ["ConditionalView", "MarginalView"]

Array = NDArray[np.float64]


class ConditionalView:
    """The conditional density of columns given others.

    Parameters
    ----------
    density : DensityEstimator
        A fitted density.
    given : str, int or list
        The given columns.
    """

    def __init__(self, density: DensityEstimator, given: Any) -> None:
        self.density = density
        self.given = given

    def score_samples(self, X: ArrayLike, return_std: bool = False) -> Any:
        """Return log p(other columns | given columns) of rows of the whole table, in nats."""
        return self.density.score_samples(X, given=self.given, return_std=return_std)

    def score(self, X: ArrayLike, y: object = None) -> float:
        """Return the mean conditional log-density per row, in nats."""
        return float(np.mean(self.score_samples(X)))

    def sample(self, X: ArrayLike, n_samples: int = 1, random_state: Any = None) -> Array:
        """Draw the other columns for each row.

        Parameters
        ----------
        X : array-like of shape (n_rows, n_features)
            Rows of the whole table; only the given columns are used.
        n_samples : int, default=1
            Draws for each row.
        random_state : int, RandomState or None, default=None
            Seed of the draws.

        Returns
        -------
        ndarray of shape (n_rows, n_samples, n_features)
            Complete rows.
        """
        rows = np.repeat(self.density._read(X), n_samples, axis=0)
        drawn = self.density._draw(rows, self.density._given(self.given), random_state)
        return drawn.reshape(-1, n_samples, drawn.shape[1])


class MarginalView:
    """The marginal density of some columns.

    Parameters
    ----------
    density : DensityEstimator
        A fitted density.
    columns : str, int or list
        The columns.
    """

    def __init__(self, density: DensityEstimator, columns: Any) -> None:
        self.density = density
        self.columns = columns

    @property
    def _positions(self) -> NDArray[np.intp]:
        return column_positions(self.columns, self.density._names)

    def score_samples(self, X: ArrayLike, return_std: bool = False) -> Any:
        """Return log-densities of rows of these columns alone, (n_rows, n_columns), in nats."""
        columns = np.asarray(X, dtype=np.float64)
        whole = np.full((len(columns), self.density.n_features_in_), np.nan)
        whole[:, self._positions] = columns
        return self.density.score_samples(self.density._framed(whole), return_std=return_std)

    def score(self, X: ArrayLike, y: object = None) -> float:
        """Return the mean log-density per row, in nats."""
        return float(np.mean(self.score_samples(X)))

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Array:
        """Draw rows of these columns, (n_samples, n_columns)."""
        drawn = self.density.sample(n_samples, random_state)
        return np.asarray(drawn, dtype=np.float64)[:, self._positions]
