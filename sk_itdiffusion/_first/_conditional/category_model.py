"""Probabilities of categories by scikit-learn's classifiers, calibrated out of fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from sk_itdiffusion._first._conditional.base_model import (
    BaseModel,
    Candidate,
    Folds,
    predicted_out_of_fold,
)
from sk_itdiffusion._first._conditional.features import Features
from sk_itdiffusion._first.persistence import stored

__all__ = ["CategoryModel", "fit_calibration", "fit_categories", "mixed_log_probabilities"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]


@stored()
@dataclass(frozen=True)
class CategoryModel:
    """Probabilities of categories, given features.

    They are ``(1 - share_of_marginal) * p**(1 / temperature) / total + share_of_marginal * q`` with
    the probabilities p of the model and the marginal ones q.

    Attributes
    ----------
    model : BaseModel or None
        Classifier of the codes; None if there is one category only.
    marginal : ndarray of shape (n_categories,)
        Marginal probabilities, all positive.
    temperature : float
        Positive.
    share_of_marginal : float
        In [0, 1].
    """

    model: BaseModel | None
    marginal: Array
    temperature: float
    share_of_marginal: float

    def log_probabilities(self, features: Features) -> Array:
        """Return log-probabilities of all categories, shape (n, n_categories)."""
        if self.model is None:
            return np.tile(np.log(self.marginal), (len(features), 1))
        found = self.model.probabilities(features, len(self.marginal))
        return mixed_log_probabilities(
            found, self.marginal, self.temperature, self.share_of_marginal
        )

    def _finish_loading(self) -> None:
        """Raise an error if numbers are out of range."""
        if not (self.marginal > 0.0).all() or abs(self.marginal.sum() - 1.0) > 1e-6:
            raise ValueError("marginal probabilities are not positive, or do not sum to 1")
        if not (self.temperature > 0.0 and 0.0 <= self.share_of_marginal <= 1.0):
            raise ValueError("the temperature or a share is out of its range")


def mixed_log_probabilities(
    found: Array, marginal: Array, temperature: float, share: float
) -> Array:
    """Return log-probabilities at a temperature, mixed with the marginal ones."""
    with np.errstate(divide="ignore"):
        logs = np.log(found) / temperature
    logs = logs - logs.max(axis=1, keepdims=True)
    tempered = np.exp(logs)
    tempered /= tempered.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log((1.0 - share) * tempered + share * marginal))


def fit_categories(
    candidates: Sequence[Candidate],
    features: Features,
    codes: Array,
    weight: Array,
    folds: Folds,
    n_categories: int,
) -> tuple[BaseModel | None, Array, Array]:
    """Return the classifier of least log-loss, the marginal, and probabilities out of fold.

    Parameters
    ----------
    candidates : sequence of Candidate
        Classifiers.
    features : Features
        Training rows.
    codes, weight : ndarray of shape (n,)
        Codes of the categories, and weights.
    folds : sequence of (ndarray, ndarray)
        Rows to fit to and rows to predict.
    n_categories : int
        Number of categories, some of which may have no rows.

    Returns
    -------
    model : BaseModel or None
        Fitted to all rows; None if they have one category.
    marginal : ndarray of shape (n_categories,)
        Marginal probabilities, of half a row more of each category.
    out_of_fold : ndarray of shape (n, n_categories)
        Probabilities of the training rows.
    """
    number = codes.astype(np.intp)
    counts = np.bincount(number, weights=weight, minlength=n_categories) + 0.5
    marginal = counts / counts.sum()
    if len(np.unique(number)) < 2:
        return None, marginal, np.tile(marginal, (len(number), 1))
    # A fold of one category cannot be fitted by all classifiers.
    whole = [fold for fold in folds if len(np.unique(number[fold[0]])) > 1]
    predict = partial(BaseModel.probabilities, n_categories=n_categories)
    tables = [np.tile(marginal, (len(number), 1)) for _ in candidates]
    if whole:
        predicted = predicted_out_of_fold(candidates, features, codes, weight, whole, predict)
        for table, values in zip(tables, predicted, strict=True):
            for _, test in whole:
                table[test] = values[test]
    share = weight / weight.sum()
    rows = np.arange(len(number))
    losses = []
    for table in tables:
        temperature, mixed = fit_calibration(table, marginal, number, weight)
        logs = mixed_log_probabilities(table, marginal, temperature, mixed)
        losses.append(-float(share @ logs[rows, number]))
    best = int(np.argmin(losses))
    return candidates[best].fit(features, codes, weight), marginal, tables[best]


def fit_calibration(
    found: Array, marginal: Array, codes: Index, weight: Array
) -> tuple[float, float]:
    """Return the temperature and the share of the marginal that make categories likeliest.

    Few rows draw them to no change: a share of 0.01 and a temperature of 1 have the weight of some
    rows of their own.

    Parameters
    ----------
    found : ndarray of shape (n, n_categories)
        Probabilities of a model.
    marginal : ndarray of shape (n_categories,)
        Marginal probabilities.
    codes : ndarray of shape (n,), int
        Codes of the categories.
    weight : ndarray of shape (n,)
        Weights.

    Returns
    -------
    temperature, share_of_marginal : float
        Positive, and in (0, 1).
    """
    rows = np.arange(len(codes))

    def loss(parameters: Array) -> float:
        temperature, share = float(np.exp(parameters[0])), float(expit(parameters[1]))
        logs = mixed_log_probabilities(found, marginal, temperature, share)[rows, codes]
        prior = 2.0 * parameters[0] ** 2 + 0.5 * ((parameters[1] - logit(0.01)) / 2.0) ** 2
        return float(prior - weight @ logs)

    start = np.array([0.0, logit(0.01)])
    best = minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-4})
    return float(np.exp(best.x[0])), float(expit(best.x[1]))
