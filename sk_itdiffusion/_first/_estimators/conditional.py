"""Estimators of the distribution of a target given features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from sk_itdiffusion._first._conditional.features import FeatureEncoder, Features
from sk_itdiffusion._first._conditional.model import ConditionalModel, fit_conditional_model
from sk_itdiffusion._first._conditional.splitting import distinct_rows, divide_rows, folds_of_rows
from sk_itdiffusion._first._conditional.targets import (
    encoded_targets,
    fit_targets,
    kinds_of_targets,
    log_shares_of_seen,
    target_table,
)
from sk_itdiffusion._first._estimators.parameters import check_number_of_rows, checked_weight
from sk_itdiffusion._first._immse.likelihood import MSECurve
from sk_itdiffusion._first._runtime.documentation import DocumentationLinkMixin
from sk_itdiffusion._first._runtime.progress import progress_bar
from sk_itdiffusion._first._table.encoding import TableEncoder
from sk_itdiffusion._first._table.groups import checked_groups
from sk_itdiffusion._first._table.reading import Table, read_table, without_tensors
from sk_itdiffusion._first._table.rows import in_common_units
from sk_itdiffusion._first.persistence import SaveMixin, stored
from sk_itdiffusion._first.persistence.checks import check_same

__all__ = ["IMMSEConditionalDensity"]

Array = NDArray[np.float64]
#: Declares what of a fitted estimator is stored.
stored_conditional = stored(
    attributes=("n_features_in_", "feature_names_in_", "_features", "_targets", "_model")
)


class ConditionalEstimator(SaveMixin, DocumentationLinkMixin, BaseEstimator):
    """Base class of the estimators of conditional distributions."""

    _features: FeatureEncoder
    _targets: TableEncoder
    _model: ConditionalModel
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "base": [StrOptions({"auto"}), HasMethods(["fit", "predict"]), list, tuple],
        "cv": [Interval(Integral, 2, None, closed="left"), HasMethods(["split"]), list, tuple],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "conformal_fraction": [None, Interval(Real, 0, 1, closed="neither")],
        "max_epochs": [StrOptions({"auto"}), Interval(Integral, 0, None, closed="left")],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }

    # Declared for the type checker; subclasses set them.
    base: Any
    cv: Any
    validation_fraction: float
    conformal_fraction: float | None
    max_epochs: int | str
    verbose: int
    random_state: int | np.random.RandomState | None
    n_features_in_: int

    @abstractmethod
    def _asked_kinds(self) -> Any:
        """Return what is asked of the kinds of targets."""

    def _asked_unknown(self) -> str:
        """Return what is asked of unseen categories of targets."""
        return "error"

    def __sklearn_tags__(self) -> Any:
        """Return the tags: any table is accepted, with missing values, and a target is needed."""
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_model")

    def set_params(self, **params: Any) -> Self:
        """Set parameters, those of a given base model as ``base__<name>``.

        Parameters
        ----------
        **params : dict
            Names and values.

        Returns
        -------
        object
            The estimator itself.

        Raises
        ------
        ValueError
            If a parameter is unknown, or one of the base model is given while there is none.
        """
        base = params.get("base", self.base)
        nested = [name for name in params if name.startswith("base__")]
        if nested and not hasattr(base, "set_params"):
            raise ValueError(
                f"{nested[0]} needs base to be an estimator, such as "
                f"HistGradientBoostingRegressor(), got {base!r}."
            )
        super().set_params(**params)
        return self

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Fit the distribution of targets given features.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Features: numbers, which may be missing if the base model takes that, and categories.
        y : array-like or data frame of shape (n_samples,) or (n_samples, n_targets)
            Targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights; an integer is the same as having the row so often.
        groups : array-like of shape (n_samples,), default=None
            Hashable labels of the groups that rows belong to, such as the person measured: all
            rows of a group are on one side of each division of the rows.  Rows with equal features
            are on one side too, up to three different ones; more are divided like others.

        Returns
        -------
        object
            The fitted estimator.

        Raises
        ------
        ValueError
            If X or y hold what cannot be learned from, such as infinite numbers, missing targets
            or a continuous target that does not vary; if there are too few rows, or a parameter is
            out of its range.
        """
        for name in [name for name in vars(self) if name.endswith("_") or name in _PRIVATE]:
            delattr(self, name)
        table = self._table(X, reset=True)
        check_number_of_rows(table.frame.shape, type(self).__name__)
        weight = checked_weight(sample_weight, np.empty((len(table.frame), 1)))
        weight[weight > 0] = in_common_units(weight[weight > 0])
        group = None if groups is None else checked_groups(groups, table.frame)
        answers = target_table(y, type(self).__name__)
        kinds = kinds_of_targets(answers, self._asked_kinds())
        targets = fit_targets(answers, kinds, self._asked_unknown(), weight)
        codes = encoded_targets(targets, answers, len(table.frame))
        # Only rows without weight have unseen categories, and nothing sees these rows.
        codes = np.where(targets.unseen(codes), 0.0, codes)
        encoder = FeatureEncoder.fit(table)
        features = encoder.encode(table)
        if self.conformal_fraction is not None and kinds != ["continuous"]:
            raise ValueError(
                "conformal_fraction calibrates intervals, which there are of one continuous target "
                f"only; the targets are {', '.join(kinds)}."
            )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        fold = folds_of_rows(self.cv, table.frame, codes[:, 0], group)
        rows = distinct_rows(features.encoded, codes, weight, group, seed)
        roles = divide_rows(rows, self.validation_fraction, self.conformal_fraction)
        with progress_bar(type(self).__name__, self.verbose):
            model = fit_conditional_model(
                features.take(rows.index),
                codes[rows.index],
                kinds,
                [column.n_categories for column in targets.columns],
                rows,
                roles,
                self.base,
                2 if fold is not None else int(self.cv),
                None if fold is None else fold[rows.index],
                self.max_epochs,
                seed,
            )
        self._features, self._targets, self._model = encoder, targets, model
        self._publish()
        return self

    def _publish(self) -> None:
        """Set the public fitted attributes."""
        columns = self._targets.columns
        self.n_targets_ = len(columns)
        self.kinds_ = [column.kind for column in columns]
        self.categories_ = [column.categories for column in columns]
        models: list[list[Any]] = [[] for _ in columns]
        weights = [np.ones(0) for _ in columns]
        for j, category in zip(self._model.discrete, self._model.categories, strict=True):
            if category.model is not None:
                models[j], weights[j] = [category.model.estimator], np.ones(1)
        for j, number in zip(self._model.continuous, self._model.numbers, strict=True):
            models[j], weights[j] = [each.estimator for each in number.locations], number.share
        self.base_models_, self.base_weights_ = models, weights
        if len(columns) == 1 and columns[0].categories is not None:
            codes = np.arange(columns[0].n_categories, dtype=np.float64)
            self.classes_ = np.asarray(self._targets.decode(codes[:, None]))[:, 0]

    def _finish_loading(self) -> None:
        """Set the attributes that follow from those stored, once these fit together."""
        check_is_fitted(self)
        self._validate_params()
        found = [len(self._features.labels), len(self._targets.columns)]
        check_same(found, [self.n_features_in_, self._model.n_targets], "there are other columns")
        sizes = [self._targets.columns[j].n_categories for j in self._model.discrete]
        known = [len(model.marginal) for model in self._model.categories]
        check_same(sizes, known, "the categories are not those of the model")
        self._publish()

    def _table(self, X: Any, reset: bool) -> Table:
        """Return the features as a table, noted or compared with those of the fit."""
        table = read_table(without_tensors(X))
        validate_data(self, X, reset=reset, skip_check_array=True)
        return table

    def _read(self, X: Any) -> Features:
        """Return features like those of the fit."""
        check_is_fitted(self)
        return self._features.encode(self._table(X, reset=False))

    def _is_one_number(self) -> bool:
        return self._model.continuous == (0,) and not self._model.discrete

    def _read_with_number(self, X: ArrayLike, y: ArrayLike, what: str) -> tuple[Features, Array]:
        """Return what is read of features and of the one continuous target that is needed."""
        features = self._read(X)
        self._check_one_number(what)
        return features, encoded_targets(
            self._targets, target_table(y, type(self).__name__), len(features)
        )

    def _check_one_number(self, what: str) -> None:
        """Raise a ValueError unless there is one continuous target."""
        if not self._is_one_number():
            raise ValueError(
                f"{what} there are of one continuous target only; the targets are "
                f"{', '.join(self.kinds_)}."
            )

    def score_samples(
        self, X: ArrayLike, y: ArrayLike | None = None, return_std: bool = False
    ) -> Array | tuple[Array, Array]:
        """Return the log-density, or log-probability, of the targets of each row.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Features.
        y : array-like or data frame of shape (n_samples,) or (n_samples, n_targets), default=None
            Targets.  None gives the mean log-density of random targets of each row, minus the
            entropy of its distribution: what ``score`` would be if the model were the truth.
            Random targets are those of `sample`, which have no unseen category.
        return_std : bool, default=False
            Whether to return standard errors too.

        Returns
        -------
        log_density : ndarray of shape (n_samples,)
            Log-densities in nats, in the units of continuous targets; log-probabilities of
            categories.  An unseen category has its own probability, whatever X is, times the
            density of the other targets given X alone.  The total over seen and unseen ones is 1.
            A row's value does not depend on the other rows.
        std : ndarray of shape (n_samples,)
            Standard errors of the numerical integration, in nats; 0 where the density is a closed
            form.  Only if ``return_std``.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If X or y have other columns than those of `fit`, a target is missing or infinite, or
            has a category that `fit` has not seen and that has no probability.
        """
        features = self._read(X)
        if y is None:
            log_density = self._model.expected_log_density(features)
            log_density += sum(column.log_seen for column in self._targets.columns)
        else:
            table = target_table(y, type(self).__name__)
            values = encoded_targets(self._targets, table, len(features))
            log_density = self._model.log_density(features, values)
            log_density += log_shares_of_seen(self._targets, values)
        return (log_density, np.zeros(len(features))) if return_std else log_density

    def predict(
        self,
        X: ArrayLike,
        *,
        return_std: bool = False,
        quantiles: ArrayLike | None = None,
    ) -> Any:
        """Return the mean of continuous targets, and the most probable category of others.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Features.
        return_std : bool, default=False
            Whether to return standard deviations too, of continuous targets.
        quantiles : array-like of shape (n_quantiles,), default=None
            Probabilities from 0 to 1 whose quantiles are returned instead, of one continuous
            target.

        Returns
        -------
        prediction : ndarray of shape (n_samples,), (n_samples, n_targets) or \
                (n_samples, n_quantiles)
            Predictions.  If there are categories among several targets, a table like y.
        std : ndarray of shape (n_samples,) or (n_samples, n_targets)
            Standard deviations.  Only if ``return_std``.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If X has other columns than that of `fit`, or what is asked for does not exist for the
            kinds of the targets.
        """
        features = self._read(X)
        if quantiles is not None:
            if return_std:
                raise ValueError("Of return_std and quantiles only one can be given.")
            self._check_one_number("Quantiles")
            return self._model.quantiles(features, checked_probabilities(quantiles))
        if return_std:
            if self._model.discrete:
                raise ValueError("Categories have no standard deviation.")
            mean, std = self._model.moments(features)
            return (mean[:, 0], std[:, 0]) if self.n_targets_ == 1 else (mean, std)
        values = np.empty((len(features), self.n_targets_))
        if self._model.continuous:
            values[:, list(self._model.continuous)] = self._model.moments(features)[0]
        if self._model.discrete:
            found = self._model.marginal_probabilities(features)
            values[:, list(self._model.discrete)] = np.column_stack(
                [table.argmax(axis=1) for table in found]
            )
        return self._written(values)

    def _written(self, values: Array) -> Any:
        """Return encoded targets as y has them; as an array if there is one, or numbers only."""
        if not self._model.discrete:
            return values[:, 0] if self.n_targets_ == 1 else values
        table = self._targets.decode(values)
        return np.asarray(table)[:, 0] if self.n_targets_ == 1 else table

    def predict_interval(self, X: ArrayLike, coverage: float = 0.9) -> Array:
        """Return central intervals of one continuous target.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Features.
        coverage : float, default=0.9
            Probability in (0, 1) that the interval has, with ``conformal_fraction`` at least, for
            new rows, or those of new groups, that are exchangeable with those of `fit`.  Intervals
            are infinite if fewer than coverage / (1 - coverage) rows, or groups, calibrate them.

        Returns
        -------
        ndarray of shape (n_samples, 2)
            Ends of the intervals.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If the coverage is out of its range, or there is not one continuous target.
        """
        features = self._read(X)
        self._check_one_number("Intervals")
        if not (isinstance(coverage, Real) and 0.0 < coverage < 1.0):
            raise ValueError(f"coverage must be a number in (0, 1), got {coverage!r}.")
        central = float(coverage)
        if self._model.conformal is not None:
            central = self._model.conformal.central_probability(central)
        tail = 0.5 * (1.0 - central)
        return self._model.quantiles(features, np.array([tail, 1.0 - tail]))

    def cdf(self, X: ArrayLike, y: ArrayLike) -> Array:
        """Return the probability that one continuous target is at most y.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Features.
        y : array-like of shape (n_samples,)
            Targets.

        Returns
        -------
        ndarray of shape (n_samples,)
            Probabilities; of targets that follow the distribution they are uniform.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If there is not one continuous target.
        """
        features, values = self._read_with_number(X, y, "Cumulative probabilities")
        return self._model.probabilities_below(features, values)[0]

    def mse_curve(self, X: ArrayLike, y: ArrayLike) -> MSECurve:
        """Return mean squared errors of the noise prediction against the log-SNR.

        The noise is that of the standardised residual of one continuous target.  Half the area
        between the curve of the mixture, which does not see X, and that of the model is what the
        network gains before the density is normalised, in nats per row.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Features.
        y : array-like of shape (n_samples,)
            Targets.

        Returns
        -------
        MSECurve
            Errors with standard errors at each node of the log-SNR.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If there is not one continuous target.
        """
        features, values = self._read_with_number(X, y, "Error curves")
        return self._model.mse_curve(features, values)

    def sample(
        self,
        X: ArrayLike,
        n_samples: int = 1,
        random_state: int | np.random.RandomState | None = None,
    ) -> NDArray[Any]:
        """Draw random targets of each row.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Features.
        n_samples : int, default=1
            Draws for each row, at least 1.
        random_state : int, RandomState or None, default=None
            Seed; None uses the ``random_state`` of the estimator.

        Returns
        -------
        ndarray of shape (n_rows, n_samples) or (n_rows, n_samples, n_targets)
            Random targets; an array of objects if there are categories among several.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If ``n_samples`` is not a positive integer.
        """
        features = self._read(X)
        if not isinstance(n_samples, Integral) or n_samples < 1:
            raise ValueError(f"n_samples must be an integer of at least 1, got {n_samples!r}.")
        seed = self.random_state if random_state is None else random_state
        values = self._model.sample(features, int(n_samples), check_random_state(seed))
        drawn = np.asarray(self._written(values))
        return drawn.reshape(len(features), int(n_samples), *drawn.shape[1:])


_PRIVATE = ("_features", "_targets", "_model")


def checked_probabilities(quantiles: ArrayLike) -> Array:
    """Return probabilities of quantiles, or raise a ValueError."""
    found = np.atleast_1d(np.asarray(quantiles, dtype=np.float64))
    if found.ndim != 1 or not ((found >= 0.0) & (found <= 1.0)).all():
        raise ValueError(f"quantiles must be probabilities from 0 to 1, got {quantiles!r}.")
    return found


def has_one_discrete_target(estimator: ConditionalEstimator) -> bool:
    """Return whether there is one target of categories, or may be once there is a fit."""
    return not hasattr(estimator, "_model") or hasattr(estimator, "classes_")


@stored_conditional
class IMMSEConditionalDensity(ConditionalEstimator):
    """Distribution of targets given features, starting from any scikit-learn model.

    A regressor f, the *base model*, and the size s of its out-of-fold errors standardise a
    continuous target, u = (y - f(x)) / s(x), and u has a Gaussian mixture.  Several targets have a
    joint one.  Of a single one a network learns, where there are enough rows, how the distribution
    of u depends on the features.  Categories have the out-of-fold probabilities of a classifier, at
    a temperature and mixed with the marginal ones.  Of targets of both kinds the categories come
    first, and are features of the others.

    Parameters
    ----------
    base : "auto", estimator or list of estimator, default="auto"
        Base model: any regressor for continuous targets, any classifier with ``predict_proba`` for
        others, or a list for targets of both kinds.  Several regressors are combined by the
        non-negative weights, of sum 1, that have the least out-of-fold error, and of several
        classifiers the best one is taken.  ``"auto"`` has histogram-based gradient boosting,
        extremely randomised trees, a linear model and, from 60 and 500 training rows on, a kernel
        ridge regression and two small neural networks.  A given model sees X as it is, with targets
        that are conditioned on as further columns.
    cv : int, cross-validation generator or iterable, default=5
        Folds, at least 2, from which out-of-fold predictions of the training rows come.  What
        divides the rows has to predict each of them once; each fold is predicted by models of all
        other training rows, and rows of equal features are in one, see ``groups`` of `fit`.
    target_kinds : "from_dtype", str, sequence or dict, default="from_dtype"
        Kind of all targets, of each, or of those that a dict names: ``"continuous"``, ``"ordinal"``
        or ``"nominal"``.  ``"from_dtype"`` takes booleans, texts and unordered categoricals as
        nominal, ordered categoricals and integers of at most 256 distinct values as ordinal, and
        other numbers as continuous.
    handle_unknown : {"good_turing", "error"}, default="good_turing"
        What categories of targets that `fit` has not seen are: with ``"good_turing"`` they have
        the share (N + 1) / (n + 2) of the probability, whatever X is, where N of the n rows have a
        category of their own, and ordered integers a geometric tail; or an error, as for booleans.
    validation_fraction : float, default=0.1
        Share in (0, 1) of the rows, at least 10, that base models never see: they judge the
        distribution of the residuals, and calibrate it.  Of fewer than 40 rows none is spared.
    conformal_fraction : float or None, default=None
        Share in (0, 1) of the rows that nothing else sees, by which `predict_interval` covers at
        its nominal rate; None for none.
    max_epochs : "auto" or int, default="auto"
        Maximum number of epochs of the network, at least 0; with 0 there is none.  It needs a
        single continuous target, and gets weight only if validation rows are more likely with it
        by more than a standard error.  ``"auto"`` is 40 if at least 100 validation rows have
        different features, which is about 1000 rows in all, and 0 otherwise, since fewer rows
        hardly show its worth.  A number needs at least 40 such rows.
    verbose : int, default=0
        At least 0, which is silent.  With 1 or more `fit` shows a progress bar.
    random_state : int, RandomState or None, default=None
        Seed of the division of the rows, of the automatic base models and of the mixture.  A given
        base model has its own.

    Attributes
    ----------
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if X had string names.
    n_targets_ : int
        Number of targets.
    kinds_ : list of str
        Kind of each target: ``"continuous"``, ``"ordinal"`` or ``"nominal"``.
    categories_ : list of ndarray or None
        Categories of each target; None for a continuous one.
    classes_ : ndarray of shape (n_classes,)
        Categories of the target, if there is one, which is not continuous.
    base_models_ : list of list of estimator
        The base models of each target that have a weight, fitted to all training rows; none for a
        target of one category.
    base_weights_ : list of ndarray
        Their weights, of sum 1.

    See Also
    --------
    IMMSERegressor : The same for places that want a regressor.
    IMMSEMixedDensity : Joint densities.

    Notes
    -----
    Of regressors and classifiers the methods are those that need the distribution.  ``score`` is
    the mean log-density, so that searches maximise it.

    With a network, log p(u | x) is an integral of denoising errors over the log-SNR [1]_, by nodes
    instead of random numbers.  It is known along a whole curve of u and normalised, and quantiles,
    intervals, means, samples and `cdf` are those of the same curve.

    References
    ----------
    .. [1] X. Kong, R. Brekelmans, G. Ver Steeg. "Information-Theoretic Diffusion". ICLR 2023.
       https://arxiv.org/abs/2302.03792

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion import IMMSEConditionalDensity
    >>> rng = np.random.default_rng(0)
    >>> X = rng.uniform(size=(400, 1))
    >>> y = X[:, 0] + (0.1 + X[:, 0]) * rng.normal(size=400)
    >>> density = IMMSEConditionalDensity(random_state=0).fit(X, y)
    >>> narrow, wide = density.predict_interval([[0.1], [0.9]], coverage=0.8)
    >>> bool(np.ptp(wide) > 2.0 * np.ptp(narrow))
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ConditionalEstimator._parameter_constraints,
        "target_kinds": [
            StrOptions({"from_dtype", "continuous", "ordinal", "nominal"}),
            list,
            tuple,
            dict,
            np.ndarray,
        ],
        "handle_unknown": [StrOptions({"good_turing", "error"})],
    }

    def __init__(
        self,
        base: Any = "auto",
        *,
        cv: Any = 5,
        target_kinds: str | Sequence[str] | dict[Any, str] = "from_dtype",
        handle_unknown: str = "good_turing",
        validation_fraction: float = 0.1,
        conformal_fraction: float | None = None,
        max_epochs: int | str = "auto",
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.base = base
        self.cv = cv
        self.target_kinds = target_kinds
        self.handle_unknown = handle_unknown
        self.validation_fraction = validation_fraction
        self.conformal_fraction = conformal_fraction
        self.max_epochs = max_epochs
        self.verbose = verbose
        self.random_state = random_state

    def _asked_kinds(self) -> Any:
        return self.target_kinds

    def _asked_unknown(self) -> str:
        return self.handle_unknown

    def score(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Return the mean log-density of targets.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Features.
        y : array-like or data frame of shape (n_samples,) or (n_samples, n_targets)
            Targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights of the rows.

        Returns
        -------
        float
            Mean log-density in nats per row; higher is better.
        """
        log_density = np.asarray(self.score_samples(X, y))
        weight = checked_weight(sample_weight, log_density[:, None])
        return float(np.average(log_density, weights=weight))

    @available_if(has_one_discrete_target)
    def predict_proba(self, X: ArrayLike) -> Array:
        """Return the probabilities of the categories of one target, given that it is one of these.

        They sum to 1; `score_samples` also has a share for categories that `fit` has not seen.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Features.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Probabilities, in the order of ``classes_``.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        """
        features = self._read(X)
        return np.exp(self._model.categories[0].log_probabilities(features))
