"""What a score of rows is, whatever it is made of, and the log-density as such a score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._estimators.base import DensityEstimator
from sk_itdiffusion._first._estimators.contributions import Contributions, finite_parts
from sk_itdiffusion._first._estimators.outlier_score import MIN_SCORE, FlooredModel
from sk_itdiffusion._first._fit.model import TableModel
from sk_itdiffusion._first.persistence import stored

__all__ = ["LogDensityScore", "RowScore"]

Array = NDArray[np.float64]


class RowScore(ABC):
    """A score of complete rows, which is divided among the columns as well."""

    @property
    @abstractmethod
    def model(self) -> TableModel:
        """The model of the rows."""

    @property
    @abstractmethod
    def members(self) -> tuple[str, ...]:
        """Names of what the score is made of."""

    @property
    def scale(self) -> tuple[float, float]:
        """Score of a usual row, and the unit of differences from it, in nats.

        Both may differ between fits to parts of the rows, and are the same for all of them then.
        """
        return 0.0, 1.0

    @abstractmethod
    def scores(self, density: DensityEstimator, values: Array) -> Array:
        """Return the scores of rows.

        Parameters
        ----------
        density : DensityEstimator
            The fitted density whose model this is, and whose parameters say how exact scores are.
        values : ndarray of shape (n_samples, n_columns)
            Numbers and codes, none missing.

        Returns
        -------
        ndarray of shape (n_samples,)
            Finite scores in nats; each follows from its row alone.
        """

    @abstractmethod
    def contributions(self, density: DensityEstimator, values: Array) -> Array:
        """Return what each column contributes to the scores of rows.

        Parameters
        ----------
        density : DensityEstimator
            See `scores`.
        values : ndarray of shape (n_samples, n_columns)
            See `scores`.

        Returns
        -------
        ndarray of shape (n_samples, n_columns)
            Finite contributions in nats, which sum to the scores.
        """


@stored()
@dataclass(frozen=True)
class LogDensityScore(RowScore):
    """The log-density with noise floors; without any that of the density as it is.

    Attributes
    ----------
    floored : FlooredModel
        The model with its noise floors.
    """

    floored: FlooredModel

    @property
    def model(self) -> TableModel:
        """The model of the rows."""
        return self.floored.model

    @property
    def members(self) -> tuple[str, ...]:
        """Names of what the score is made of."""
        return self.floored.members

    def scores(self, density: DensityEstimator, values: Array) -> Array:
        """Return the scores of rows; see `RowScore.scores`."""
        if self.floored.is_plain:
            found = density._log_density(values, density._tolerance())[0]
        else:
            found = self.floored.log_density(values, density._tolerance())
        return np.maximum(found, MIN_SCORE)

    def contributions(self, density: DensityEstimator, values: Array) -> Array:
        """Return what each column contributes; see `RowScore.contributions`."""
        return finite_parts(Contributions(self.floored).of(values, density._tolerance()))
