r"""Location and scale of a target by scikit-learn's models.

The target is standardised conditionally, :math:`u = (y - f(x)) / s(x)`.  The location f is a mean
of regressors with the non-negative weights that have the least squared error out of fold (stacking,
Breiman 1996), or the best regressor if the mean is no better by a standard error of the
log-likelihood; the scale s comes from another one, which is fitted to
:math:`\log(r^2 + 0.01\,\overline{r^2})` of the *out-of-fold* residuals r: residuals of rows that a
model was fitted to are several times too small.  Without the floor, copies of rows, whose residuals
are nothing, would decide.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.validation import has_fit_parameter

from sk_itdiffusion._first._conditional.features import Features
from sk_itdiffusion._first._conditional.sklearn_state import fitted_state, model_of_state
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import check_same
from sk_itdiffusion._first.references.judging import log_likelihoods, mean_and_error
from sk_itdiffusion._first.references.mixture_fit import fit_gaussian_mixture

__all__ = [
    "BaseModel",
    "Candidate",
    "LocationScale",
    "OutOfFold",
    "fit_location_scale",
    "predicted_out_of_fold",
]

Array = NDArray[np.float64]
Index = NDArray[np.intp]
Folds = Sequence[tuple[Index, Index]]

#: Share of the mean squared residual that is added to each before the logarithm.
FLOOR = 0.01
#: Powers of predicted scales that are tried.
STRENGTHS = np.arange(9) / 8.0
#: Gradient boosting for tables of many columns, of which each split sees a half, and of few.
_BOOSTING = {"learning_rate": 0.05, "min_samples_leaf": 5, "early_stopping": False}
_MANY_COLUMNS = {"max_iter": 300, "max_leaf_nodes": 31, "max_features": 0.5}
_FEW_COLUMNS = {"max_iter": 500, "max_leaf_nodes": 15}
#: Rows from which there is a linear model.
_ROWS_FOR_LINEAR = 6
#: Landmarks of the kernel, and rows from which there is one.
_N_LANDMARKS, _ROWS_FOR_KERNEL = 400, 60
#: Small neural networks, for targets with kinks and for smooth ones, and rows from which there are
#: some.
_NEURAL = {
    "hidden_layer_sizes": (64, 64),
    "alpha": 1e-3,
    "learning_rate_init": 3e-3,
    "early_stopping": True,
    "n_iter_no_change": 20,
    "max_iter": 1000,
}
_ACTIVATIONS = ("relu", "tanh")
_ROWS_FOR_NEURAL = 500
#: Rows of a fold from which models that are not chosen in it, or have less than a weight, are not
#: fitted again.
_ROWS_TO_LEAVE_OUT, _LEAST_WEIGHT = 500, 0.05
#: Components of the mixture by which residuals of several models are compared, at most, and rows
#: for each.
_COMPONENTS_TO_JUDGE, _ROWS_OF_A_COMPONENT = 4, 25
#: Factor of the equation by which weights sum to 1.
_FIRM = 1e3
#: Rows in the leaves of the trees that predict scales: single squares say next to nothing.
_ROWS_FOR_SCALE = (5, 20, 80)
_N_TREES = 100
#: Decimals of standardised targets that models are fitted to.
_DECIMALS = 9


@stored()
@dataclass(frozen=True)
class BaseModel:
    """A fitted model of scikit-learn, and which view of the features it was fitted to.

    Attributes
    ----------
    estimator : estimator
        The model.
    sees_raw : bool
        Whether it is given the features as they are, not as numbers and codes.
    """

    estimator: Any
    sees_raw: bool

    def predict(self, features: Features) -> Array:
        """Return predictions of a regressor, shape (n,)."""
        return np.asarray(self.estimator.predict(self._view(features)), dtype=np.float64).ravel()

    def probabilities(self, features: Features, n_categories: int) -> Array:
        """Return probabilities of all categories, 0 of those that the model has not seen."""
        found = np.zeros((len(features), n_categories))
        codes = np.asarray(self.estimator.classes_, dtype=np.intp)
        found[:, codes] = self.estimator.predict_proba(self._view(features))
        return found

    def _view(self, features: Features) -> Any:
        return features.raw if self.sees_raw else features.encoded

    def config(self) -> dict[str, Any]:
        """Return what the model is made from.

        Returns
        -------
        dict
            Plain values.
        """
        return {"state": fitted_state(self.estimator), "sees_raw": self.sees_raw}

    @classmethod
    def from_config(cls, state: dict[str, Any], sees_raw: bool) -> BaseModel:
        """Return the model that `config` tells of.

        Parameters
        ----------
        state : dict
            Plain values.
        sees_raw : bool
            Whether it is given the features as they are.

        Returns
        -------
        BaseModel
            The model.
        """
        return cls(model_of_state(state), sees_raw)


@dataclass(frozen=True)
class Candidate:
    """A model to fit, which is cloned, and whether it sees the features as they are."""

    estimator: Any
    sees_raw: bool = False

    def fit(self, features: Features, target: Array, weight: Array) -> BaseModel:
        """Return the model fitted to rows."""
        if self.sees_raw:
            return self._fitted(features, target, weight)
        with warnings.catch_warnings():  # of models that the user has not chosen
            warnings.simplefilter("ignore", ConvergenceWarning)
            return self._fitted(features, target, weight)

    def _fitted(self, features: Features, target: Array, weight: Array) -> BaseModel:
        model = clone(self.estimator)
        view = features.raw if self.sees_raw else features.encoded
        if np.ptp(weight) == 0.0:
            model.fit(view, target)
        elif has_fit_parameter(last_step(model), "sample_weight"):
            model.fit(view, target, **{weight_name(model): weight})
        else:
            times = numbers_of_rows(weight, type(last_step(model)).__name__)
            repeated = features.take(np.repeat(np.arange(len(times)), times))
            view = repeated.raw if self.sees_raw else repeated.encoded
            model.fit(view, np.repeat(target, times))
        return BaseModel(model, self.sees_raw)


def numbers_of_rows(weight: Array, model: str) -> Index:
    """Return weights as numbers of equal rows, for a model that takes no weights."""
    times = np.rint(weight).astype(np.intp)
    if not np.allclose(times, weight, rtol=1e-9, atol=0.0):
        raise ValueError(f"{model} takes no sample_weight, and the weights are no integers.")
    return times


def last_step(model: Any) -> Any:
    """Return the last step of a pipeline, or the model itself."""
    return model.steps[-1][1] if hasattr(model, "steps") else model


def weight_name(model: Any) -> str:
    """Return by what name a model takes weights of rows."""
    return f"{model.steps[-1][0]}__sample_weight" if hasattr(model, "steps") else "sample_weight"


def regressors(nominal: NDArray[np.bool_], seed: int, n_rows: int) -> list[Candidate]:
    """Return the regressors that out-of-fold errors give weights to."""
    numbers = as_numbers(nominal)
    boosting = [
        HistGradientBoostingRegressor(
            **_BOOSTING, **how, categorical_features=as_categories(nominal), random_state=seed
        )
        for how in (_MANY_COLUMNS, _FEW_COLUMNS)
    ]
    found = [*boosting, ExtraTreesRegressor(_N_TREES, random_state=seed)]
    if n_rows >= _ROWS_FOR_LINEAR:
        found.append(make_pipeline(numbers, RidgeCV(np.logspace(-3.0, 3.0, 13))))
    if n_rows >= _ROWS_FOR_KERNEL:
        n_landmarks = min(n_rows // 3, _N_LANDMARKS)
        kernel = Nystroem(gamma=0.3 / len(nominal), n_components=n_landmarks, random_state=seed)
        found.append(make_pipeline(numbers, kernel, RidgeCV(np.logspace(-6.0, 2.0, 9))))
    if n_rows >= _ROWS_FOR_NEURAL:
        found += [
            make_pipeline(numbers, MLPRegressor(**_NEURAL, activation=each, random_state=seed))
            for each in _ACTIVATIONS
        ]
    return [Candidate(each) for each in found]


def classifiers(nominal: NDArray[np.bool_], seed: int) -> list[Candidate]:
    """Return the classifiers among which out-of-fold errors choose."""
    return [
        Candidate(
            HistGradientBoostingClassifier(
                **_BOOSTING | {"max_iter": 100, "max_features": 0.5},
                categorical_features=as_categories(nominal),
                random_state=seed,
            )
        ),
        Candidate(ExtraTreesClassifier(_N_TREES, min_samples_leaf=2, random_state=seed)),
        Candidate(make_pipeline(as_numbers(nominal), LogisticRegression(max_iter=5000, tol=1e-3))),
    ]


def scale_models(seed: int, n_rows: int) -> list[Candidate]:
    """Return the regressors of the logarithm of squared residuals; none for very few rows."""
    return [
        Candidate(ExtraTreesRegressor(_N_TREES, min_samples_leaf=n, random_state=seed))
        for n in _ROWS_FOR_SCALE
        if n_rows >= 4 * n
    ]


def as_categories(nominal: NDArray[np.bool_]) -> Any:
    """Return which columns gradient boosting takes as categories; None if there are none."""
    return nominal if nominal.any() else None


def as_numbers(nominal: NDArray[np.bool_]) -> Any:
    """Return what makes columns without holes, of indicators for categories."""
    steps = []
    if not nominal.all():
        numbers = make_pipeline(
            SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True),
            StandardScaler(),
        )
        steps.append((numbers, np.flatnonzero(~nominal)))
    if nominal.any():
        indicators = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
        steps.append((indicators, np.flatnonzero(nominal)))
    return make_column_transformer(*steps)


# -- out of fold -------------------------------------------------------------------------------


def predicted_out_of_fold(
    candidates: Sequence[Candidate],
    features: Features,
    target: Array,
    weight: Array,
    folds: Folds,
    predict: Callable[[BaseModel, Features], Array],
) -> list[Array]:
    """Return each candidate's predictions of all rows, by models that have not seen them."""
    found: list[Array] = []
    for candidate in candidates:
        # One after the other: scikit-learn's models change the warning filters of the process for
        # a while, which threads would leave as another one had them.
        parts = []
        for train, test in folds:
            model = candidate.fit(features.take(train), target[train], weight[train])
            parts.append(predict(model, features.take(test)))
        values = np.empty((len(features), *parts[0].shape[1:]))
        for (_, test), part in zip(folds, parts, strict=True):
            values[test] = part
        found.append(values)
    return found


# -- numbers -----------------------------------------------------------------------------------


@stored()
@dataclass(frozen=True)
class LocationScale:
    """Location and scale of a number, given features.

    Attributes
    ----------
    locations : tuple of BaseModel
        Models of the standardised number.
    share : ndarray of shape (n_models,)
        Their weights, which sum to 1.
    scale : BaseModel or None
        Model of the logarithm of squared residuals; None if they are alike everywhere.
    strength : float
        From 0 to 1/2; what ``scale`` predicts is multiplied by it.
    log_scale : float
        What is added to that.
    center, width : float
        Mean and standard deviation by which the number is standardised.
    """

    locations: tuple[BaseModel, ...]
    share: Array
    scale: BaseModel | None
    strength: float
    log_scale: float
    center: float
    width: float

    def of_rows(self, features: Features) -> tuple[Array, Array]:
        """Return locations and logarithms of scales, in the units of the number."""
        location = self.standardized_location(features)
        log_scale = np.full(len(features), self.log_scale)
        if self.scale is not None:
            log_scale = log_scale + self.strength * self.scale.predict(
                with_location(features, location)
            )
        return self.center + self.width * location, np.log(self.width) + log_scale

    def standardized_location(self, features: Features) -> Array:
        """Return locations of the standardised number, (n,)."""
        total = np.zeros(len(features))
        for share, model in zip(self.share, self.locations, strict=True):
            total += share * model.predict(features)
        return total

    def _finish_loading(self) -> None:
        """Raise an error if numbers are out of range."""
        if not (self.width > 0.0 and np.isfinite([self.center, self.width]).all()):
            raise ValueError("the scale of a target is not positive")
        check_same(len(self.share), len(self.locations), "there are other base models")
        if not ((self.share > 0.0).all() and abs(self.share.sum() - 1.0) < 1e-6):
            raise ValueError("weights of base models are not positive, or do not sum to 1")


@dataclass(frozen=True)
class OutOfFold:
    """What models that have not seen them say of the training rows.

    Attributes
    ----------
    location : ndarray of shape (n,)
        Locations, in the units of the target.
    log_scale : ndarray of shape (n,)
        Logarithms of scales.
    """

    location: Array
    log_scale: Array


def with_location(features: Features, location: Array) -> Features:
    """Return numbers and codes with the location as another column, which scales depend on."""
    encoded = np.column_stack([features.encoded, location])
    return Features(encoded, features.raw, np.append(features.nominal, False))


def fit_location_scale(
    candidates: Sequence[Candidate],
    features: Features,
    target: Array,
    rows: WeightedRows,
    folds: Folds,
    seed: int,
) -> tuple[LocationScale, OutOfFold]:
    """Return location and scale of a target, and those of the training rows out of fold.

    Parameters
    ----------
    candidates : sequence of Candidate
        Regressors, whose weights have the least squared error out of fold.
    features : Features
        Training rows.
    target : ndarray of shape (n,)
        Target, which varies.
    rows : WeightedRows
        Weights of the rows, and their units as groups.
    folds : sequence of (ndarray, ndarray)
        Rows to fit to and rows to predict.
    seed : int
        Seed of the model of the scale.

    Returns
    -------
    model : LocationScale
        Fitted to all rows.
    out_of_fold : OutOfFold
        Of the training rows.
    """
    weight, share = rows.weight, rows.share
    center = float(share @ target)
    width = float(np.sqrt(share @ (target - center) ** 2))
    # Rounded, so that other units, which change last bits, do not change where trees divide rows.
    z = np.round((target - center) / width, _DECIMALS)
    chosen, weights, predicted = stacked(candidates, features, z, rows, folds, seed)
    locations = tuple(candidate.fit(features, z, weight) for candidate in chosen)
    residual = z - predicted
    floor, log_square = log_squares(residual, share)
    half_log, strength = np.zeros(len(z)), 0.0
    scale = None
    seen = with_location(features, predicted)
    choices = scale_models(seed, len(z))
    if choices:
        choice, log_square_found = likeliest_scale(choices, seen, log_square, residual, rows, folds)
        strength = likeliest_strength(0.5 * log_square_found, residual, rows)
        if strength > 0.0:
            half_log = 0.5 * strength * log_square_found
            scale = choice.fit(seen, log_square, weight)
    level = 0.5 * float(np.log(share @ (residual**2 / np.exp(2.0 * half_log)) + floor * 1e-6))
    model = LocationScale(locations, weights, scale, 0.5 * strength, level, center, width)
    found = OutOfFold(center + width * predicted, np.log(width) + half_log + level)
    return model, found


def log_squares(residual: Array, share: Array) -> tuple[float, Array]:
    """Return what is added to squared residuals, and the logarithms of the sums."""
    floor = max(FLOOR * float(share @ residual**2), np.finfo(np.float64).eps)
    return floor, np.log(residual**2 + floor)


def likeliest_scale(
    choices: Sequence[Candidate],
    seen: Features,
    log_square: Array,
    residual: Array,
    rows: WeightedRows,
    folds: Folds,
) -> tuple[Candidate, Array]:
    """Return the model of scales by which residuals are likeliest, and its predictions out of fold.

    A first fold of many rows is enough to choose it.
    """

    def predict(chosen: Sequence[Candidate], parts: Folds) -> list[Array]:
        return predicted_out_of_fold(
            chosen, seen, log_square, rows.weight, parts, BaseModel.predict
        )

    first = folds[0][1]
    has_many = len(first) >= _ROWS_TO_LEAVE_OUT
    judges = first if has_many else np.arange(len(residual))
    share = rows.weight[judges] / rows.weight[judges].sum()
    tried = predict(choices, folds[:1] if has_many else folds)
    gains = [
        share @ log_likelihoods_of_scale(0.5 * each[judges], residual[judges], share)
        for each in tried
    ]
    best = int(np.argmax(gains))
    found = tried[best]
    if has_many:
        (rest,) = predict([choices[best]], folds[1:])
        rest[first] = found[first]
        found = rest
    return choices[best], found


def stacked(
    candidates: Sequence[Candidate],
    features: Features,
    target: Array,
    rows: WeightedRows,
    folds: Folds,
    seed: int,
) -> tuple[list[Candidate], Array, Array]:
    """Return the regressors that have a weight, their weights, and the mean out of fold.

    Those that have none in a first fold of many rows, nor the likeliest residuals in it, are not
    fitted to the others.
    """

    def predict(chosen: Sequence[Candidate], parts: Folds) -> list[Array]:
        return predicted_out_of_fold(
            chosen, features, target, rows.weight, parts, BaseModel.predict
        )

    first = folds[0][1]
    left = list(candidates)
    if len(first) < _ROWS_TO_LEAVE_OUT or len(candidates) == 1:
        table = np.column_stack(predict(candidates, folds))
    else:
        begun = np.column_stack(predict(candidates, folds[:1]))
        share = stacking_shares(begun[first], target[first], rows.weight[first])
        own = rows.weight[first] / rows.weight[first].sum()
        tried = log_likelihoods_of_residuals(0.0, target[first, None] - begun[first], own)
        is_left = (share > 0.0) | (np.arange(len(share)) == np.argmax(tried @ own))
        left = [each for each, stays in zip(candidates, is_left, strict=True) if stays]
        table = np.column_stack(predict(left, folds[1:]))
        table[first] = begun[first][:, is_left]
    precision = expected_precision(table, features, target, rows, folds, seed)
    share = stacking_shares(table, target, rows.weight * precision)
    share = single_if_as_good(share, table, target, rows, -0.5 * np.log(precision))
    chosen = [each for each, own in zip(left, share, strict=True) if own > 0.0]
    return chosen, share[share > 0.0], table @ share


def expected_precision(
    table: Array,
    features: Features,
    target: Array,
    rows: WeightedRows,
    folds: Folds,
    seed: int,
) -> Array:
    """Return one over the squared error that the best model of each row is expected to have.

    Where errors differ much, those of a few rows would decide else, and models that are exact for
    the others have no weight.
    """
    choices = scale_models(seed, len(target))
    if table.shape[1] == 1 or not choices:
        return np.ones(len(target))
    least = np.abs(target[:, None] - table).min(axis=1)
    log_square = log_squares(least, rows.share)[1]
    seen = with_location(features, table.mean(axis=1))
    (found,) = predicted_out_of_fold(
        choices[:1], seen, log_square, rows.weight, folds, BaseModel.predict
    )
    return np.asarray(np.exp(found.min() - found))


def stacking_shares(table: Array, target: Array, weight: Array) -> Array:
    """Return the non-negative weights of predictions with the least squared error; they sum to 1.

    Weights below 0.05 are 0, and the time of such models is saved.
    """
    factor = np.sqrt(weight / weight.sum())
    is_in = np.ones(table.shape[1], dtype=bool)
    for _ in range(2):
        # The last equation stands for the sum.
        system = np.vstack([factor[:, None] * table[:, is_in], np.full(is_in.sum(), _FIRM)])
        share = np.zeros(table.shape[1])
        share[is_in] = nnls(system, np.append(factor * target, _FIRM))[0]
        share /= share.sum()
        is_in = share >= min(_LEAST_WEIGHT, float(share.max()))
    return share


def single_if_as_good(
    share: Array, table: Array, target: Array, rows: WeightedRows, log_scale: Array
) -> Array:
    """Return all weight on the best single model, unless the mean is better by a standard error.

    A squared error counts rows with large residuals most, and a density those with small ones, or
    in narrow modes, for which a mean of a good model and others is worse than the good one.
    """
    residuals = target[:, None] - np.column_stack([table, table @ share])
    with_scale, without = (
        log_likelihoods_of_residuals(each, residuals, rows.share) for each in (log_scale, 0.0)
    )
    # Scales that say nothing are not used later either.
    is_better = with_scale @ rows.share > without @ rows.share
    tried = np.where(is_better[:, None], with_scale, without)
    best = int(np.argmax(tried[:-1] @ rows.share))
    mean, error = mean_and_error(tried[-1] - tried[best], rows.share, source=rows.unit)
    return share if mean > error else np.eye(len(share))[best]


def likeliest_strength(log_scale: Array, residual: Array, rows: WeightedRows) -> float:
    """Return the power of predicted scales that makes residuals likeliest, from 0 to 1.

    It is the least one that is within a standard error of the best: predictions from squares of
    single residuals are noisy, and a scale that only varies by noise is worse than a constant one.

    Parameters
    ----------
    log_scale : ndarray of shape (n,)
        Logarithms of predicted scales, out of fold.
    residual : ndarray of shape (n,)
        Residuals, out of fold.
    rows : WeightedRows
        Weights of the rows, and their units as groups.

    Returns
    -------
    float
        One of 0, 1/8, ..., 1.
    """
    share = rows.share
    tried = np.stack([log_likelihoods_of_scale(k * log_scale, residual, share) for k in STRENGTHS])
    best = int(np.argmax(tried @ share))
    for strength, each in zip(STRENGTHS, tried, strict=True):
        mean, error = mean_and_error(tried[best] - each, share, source=rows.unit)
        if mean <= error:
            return float(strength)
    return float(STRENGTHS[best])


def log_likelihoods_of_residuals(log_scale: Array | float, residuals: Array, share: Array) -> Array:
    """Return log-likelihoods of residuals under mixtures of normal distributions.

    Parameters
    ----------
    log_scale : ndarray of shape (n,) or float
        Logarithms of the scales of the rows.
    residuals : ndarray of shape (n, n_models)
        Residuals of each model.
    share : ndarray of shape (n,)
        Weights of the rows, which sum to 1.

    Returns
    -------
    ndarray of shape (n_models, n)
        Log-likelihoods, in nats, each under a mixture of its own residuals.
    """
    n_components = min(_COMPONENTS_TO_JUDGE, max(1, len(share) // _ROWS_OF_A_COMPONENT))
    found = np.empty((residuals.shape[1], len(share)))
    for of_model, residual in zip(found, residuals.T, strict=True):
        ratio = residual * np.exp(-np.asarray(log_scale))
        width = max(float(np.sqrt(share @ ratio**2)), float(np.finfo(np.float64).tiny))
        rows = ratio[:, None] / width
        mixture = fit_gaussian_mixture(
            rows, n_components, np.random.RandomState(0), sample_weight=share * len(share)
        )
        of_model[:] = log_likelihoods(mixture, rows) - math.log(width) - log_scale
    return found


def log_likelihoods_of_scale(log_scale: Array, residual: Array, share: Array) -> Array:
    """Return log-likelihoods of residuals under a Laplace distribution of these scales.

    Its own width is that of greatest likelihood; long tails count less than for a normal one.
    """
    ratio = np.abs(residual) * np.exp(-log_scale)
    width = max(float(share @ ratio), float(np.finfo(np.float64).tiny))
    return -log_scale - math.log(width) - ratio / width
