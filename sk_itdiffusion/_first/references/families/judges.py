"""Rows that judge how many classes a model has, also where few rows validate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first.references.base import Reference
from sk_itdiffusion._first.references.discrete import IndependentReference
from sk_itdiffusion._first.references.judging import joined_rows, log_likelihoods
from sk_itdiffusion._first.references.latent_class import smoothed_marginals

__all__ = ["Judges"]

Array = NDArray[np.float64]
#: Rows that judge, if there are so many: those that validate, and folds of those that train.
_ROWS_TO_JUDGE, _MAX_FOLDS = 200, 8
#: Parts that training rows are divided into, at least: a fit to half of them would say little of
#: one to all.
_MIN_PARTS = 5


@dataclass(frozen=True)
class Judges:
    """Validation rows and, where these are few, folds of the training rows.

    Each fold is judged by a fit of its own, to the other training rows: a few dozen rows would
    choose by chance.

    Attributes
    ----------
    rows : WeightedRows
        The rows that judge: the validation rows first.
    valid : WeightedRows
        The validation rows.
    folds : list of tuple of WeightedRows
        The other training rows, and the rows, of each fold.
    n_observations : float or None
        Number of observations that judge, if weights are such numbers.
    """

    rows: WeightedRows
    valid: WeightedRows
    folds: list[tuple[WeightedRows, WeightedRows]]
    n_observations: float | None

    @classmethod
    def of(
        cls,
        train: WeightedRows,
        valid: WeightedRows,
        in_counts: bool,
        random_state: np.random.RandomState,
    ) -> Judges:
        """Return the rows that judge.

        Parameters
        ----------
        train, valid : WeightedRows
            Training and validation rows, in random order.
        in_counts : bool
            Whether weights are numbers of observations, which are then divided among the folds.
        random_state : RandomState
            Source of such a division.
        """
        n_valid = float(valid.weight.sum()) if in_counts else len(valid)
        n_folds = min(_MAX_FOLDS, math.ceil(_ROWS_TO_JUDGE / n_valid) - 1)
        folds: list[tuple[WeightedRows, WeightedRows]] = []
        if in_counts and train.are_independent:
            folds = folds_of_observations(train, n_folds, random_state)
        elif train.group_shares is None:
            folds = folds_of_units(train, n_folds)
        rows = joined_rows([valid, *(judge for _, judge in folds)])
        total = float(rows.weight.sum()) if in_counts and rows.are_independent else None
        return cls(rows, valid, folds, total)

    def scores(self, found: Reference, fit: Callable[[WeightedRows], Reference]) -> Array:
        """Return the log-likelihoods of the rows, (n_rows,).

        Parameters
        ----------
        found : Reference
            The fit to all training rows.
        fit : callable
            Returns a fit to other rows.
        """
        parts = [log_likelihoods(found, self.valid.X)]
        parts += [log_likelihoods(fit(train), judge.X) for train, judge in self.folds]
        return np.concatenate(parts)

    def scores_of_independent(self, independent: IndependentReference) -> Array:
        """Return the log-likelihoods of the rows under independent categories.

        Their frequencies have not seen the rows either.
        """

        def fit(train: WeightedRows) -> IndependentReference:
            marginals = smoothed_marginals(train, independent.layout)
            return IndependentReference(independent.layout, marginals, independent.continuous)

        return self.scores(independent, fit)


def n_parts(n_folds: int) -> int:
    """Return how many parts there are of which so many are folds."""
    return max(n_folds + 1, _MIN_PARTS)


def folds_of_units(rows: WeightedRows, n_folds: int) -> list[tuple[WeightedRows, WeightedRows]]:
    """Return all rows but those of a fold, and these; dependent ones stay together."""
    unit = np.arange(len(rows))
    if rows.unit is not None:
        unit = np.unique(rows.unit, return_inverse=True)[1].ravel()
    # Rows are in random order; a part at least is in no fold.
    fold = unit % n_parts(n_folds)
    masks = [fold == number for number in range(n_folds)]
    return [(rows.take(np.flatnonzero(~mask)), rows.take(np.flatnonzero(mask))) for mask in masks]


def folds_of_observations(
    rows: WeightedRows, n_folds: int, random_state: np.random.RandomState
) -> list[tuple[WeightedRows, WeightedRows]]:
    """Return rows that are numbers of observations without those of a fold, and these."""
    if n_folds < 1:
        return []
    counts = np.maximum(np.rint(rows.weight), 1.0).astype(np.intp)
    observation = random_state.permutation(np.repeat(np.arange(len(rows)), counts))
    folds = []
    for number in range(n_folds):
        own = np.bincount(observation[number :: n_parts(n_folds)], minlength=len(rows))
        parts = (replace(rows, weight=rows.weight / counts * n) for n in (counts - own, own))
        train, judge = (part.take(np.flatnonzero(part.weight)) for part in parts)
        folds.append((train, judge))
    return folds
