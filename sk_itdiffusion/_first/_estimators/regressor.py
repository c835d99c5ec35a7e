"""A regressor that knows the whole distribution of its target."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import RegressorMixin

from sk_itdiffusion._first._estimators.conditional import ConditionalEstimator, stored_conditional

__all__ = ["IMMSERegressor"]


@stored_conditional
class IMMSERegressor(RegressorMixin, ConditionalEstimator):
    """Regressor with the distribution of `IMMSEConditionalDensity`.

    Targets are continuous whatever their dtype, and ``score`` is the coefficient of determination
    of the means, as everywhere in scikit-learn.

    Parameters
    ----------
    base : "auto", regressor or list of regressor, default="auto"
        Base model; see `IMMSEConditionalDensity`.
    cv : int, cross-validation generator or iterable, default=5
        Folds, at least 2; see `IMMSEConditionalDensity`.
    validation_fraction : float, default=0.1
        Share in (0, 1) of the rows that base models never see.
    conformal_fraction : float or None, default=None
        Share in (0, 1) of the rows that calibrate intervals; None for none.
    max_epochs : "auto" or int, default="auto"
        Epochs of a network at most, at least 0; see `IMMSEConditionalDensity`.
    verbose : int, default=0
        At least 0, which is silent.  With 1 or more `fit` shows a progress bar.
    random_state : int, RandomState or None, default=None
        Seed; see `IMMSEConditionalDensity`.

    Attributes
    ----------
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if X had string names.
    n_targets_ : int
        Number of targets.
    kinds_ : list of str
        ``"continuous"`` for each target.
    categories_ : list of None
        None for each target.
    base_models_ : list of list of estimator
        The base models of each target that have a weight, fitted to all training rows.
    base_weights_ : list of ndarray
        Their weights, of sum 1.

    See Also
    --------
    IMMSEConditionalDensity : Targets of any kind, scored by their log-density.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sk_itdiffusion import IMMSERegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> regressor = IMMSERegressor(random_state=0).fit(X[:300], y[:300])
    >>> bool(regressor.score(X[300:], y[300:]) > 0.3)
    True
    >>> regressor.predict_interval(X[300:302]).shape
    (2, 2)
    """

    def __init__(
        self,
        base: Any = "auto",
        *,
        cv: Any = 5,
        validation_fraction: float = 0.1,
        conformal_fraction: float | None = None,
        max_epochs: int | str = "auto",
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.base = base
        self.cv = cv
        self.validation_fraction = validation_fraction
        self.conformal_fraction = conformal_fraction
        self.max_epochs = max_epochs
        self.verbose = verbose
        self.random_state = random_state

    def _asked_kinds(self) -> Any:
        return "continuous"
