"""Methods of all fitted density estimators: scores, samples, error curves."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions, validate_parameter_constraints
from sklearn.utils.validation import check_is_fitted

from sk_itdiffusion._first._fit.model import TableModel
from sk_itdiffusion._first._immse.cubature import row_keys
from sk_itdiffusion._first._immse.errors import Tolerance
from sk_itdiffusion._first._immse.likelihood import MSECurve
from sk_itdiffusion._first._immse.sampling import N_STEPS
from sk_itdiffusion._first._runtime.callbacks import CallbackSupportMixin
from sk_itdiffusion._first._runtime.documentation import DocumentationLinkMixin
from sk_itdiffusion._first._runtime.progress import SECONDS_UNTIL_A_BAR, Progress, progress_bar
from sk_itdiffusion._first._runtime.warning import warn
from sk_itdiffusion._first._table.encoding import TableEncoder
from sk_itdiffusion._first._table.partitions import parts_of
from sk_itdiffusion._first._table.reading import read_table, without_tensors
from sk_itdiffusion._first._table.rows import column_labels
from sk_itdiffusion._first._table.space import TableSpace
from sk_itdiffusion._first.persistence import SaveMixin
from sk_itdiffusion._first.persistence.checks import check_same

__all__ = [
    "DensityEstimator",
    "has_categories_only",
    "long_call",
]

Array = NDArray[np.float64]
#: Standard error of a score, in nats, beyond which there is a warning.
MAX_INTEGRATION_ERROR = 0.05
#: Standard errors, in nats, of a mean over rows: one that is small enough, and the largest one; and
#: the largest of a row in such a mean.
ERROR_OF_MEAN, MAX_ERROR_OF_MEAN, MAX_ERROR_OF_A_ROW = 0.005, 0.02, 0.5
_PRIVATE_STATE = ("_model", "_kinds", "_encoder", "_frame_format", "_increments")


class DensityEstimator(
    SaveMixin, CallbackSupportMixin, DocumentationLinkMixin, DensityMixin, BaseEstimator
):
    """Base class of all density estimators: what a fitted estimator does with rows."""

    _model: TableModel
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "score_tol": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }

    # Declared for the type checker; subclasses set them.
    score_tol: float | str
    verbose: int
    random_state: int | np.random.RandomState | None
    n_features_in_: int

    @abstractmethod
    def _read(self, X: Any) -> Array:
        """Return numbers and codes of a table like the one fitted."""

    @abstractmethod
    def _fit_to_rank(
        self,
        X: ArrayLike,
        sample_weight: ArrayLike | None = None,
        may_hold_out: bool = True,
        squared_weight: Array | None = None,
    ) -> Self:
        """Fit to rows that will be ranked among themselves, as by a detector.

        By default no expert is used that is built from some of the rows, since these would be too
        likely.  Unless rows may be held out for validation, the fit is that for very few rows.  The
        weight of a row that stands for several is the sum of their weights, and ``squared_weight``
        that of the squares.
        """

    def _read_to_score(self, X: Any) -> Array:
        """Return numbers and codes of a table to be scored, NaN for missing entries if they may be.

        By default missing entries raise an error, except for missing categories: those that `fit`
        had not are unseen values, of which a warning tells.
        """
        values = self._read(X)
        warn_of_missing_categories(self, X, values)
        return values

    def _read_categories(self, X: Any, what: str = "learned from") -> Array:
        """Return numbers and codes of the rows whose discrete values are all known categories.

        A warning names the columns if other rows are omitted, and says what they are not used for.
        """
        values = self._read(X)
        return values[has_categories_only(self, values, what)]

    def _write(self, values: Array) -> Any:
        """Return the table of numbers and codes."""
        return values

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_model")

    def _forget_fit(self) -> None:
        """Remove the fitted state, so that an interrupted fit leaves none."""
        for name in [name for name in vars(self) if name.endswith("_") or name in _PRIVATE_STATE]:
            delattr(self, name)

    def _check_loaded(self) -> None:
        """Raise an error if what was loaded has other columns or categories than its model."""
        check_is_fitted(self)
        self._validate_params()
        space = self._model.space
        check_columns(self, space)
        encoder: TableEncoder | None = getattr(self, "_encoder", None)
        for each in (encoder, getattr(self, "_frame_format", None)):
            if each is not None:
                check_same(len(each.columns), space.n_columns, "there are other columns")
        columns = [] if encoder is None else encoder.columns
        found = [columns[j].n_categories for j in space.discrete]
        known = [variable.n_categories for variable in space.layout.variables]
        check_same(found, known, "the categories are not those of the model")
        log_seen = np.array([column.log_seen for column in columns] or np.zeros(space.n_columns))
        if not np.allclose(log_seen, space.log_seen, rtol=1e-9, atol=0.0):
            raise ValueError("the probabilities of values that were not seen do not fit together")

    def _check_again(self, **values: Any) -> None:
        """Check values of parameters that may be changed after the fit."""
        constraints = {name: self._parameter_constraints[name] for name in values}
        validate_parameter_constraints(constraints, values, type(self).__name__)

    def _tolerance(self, score_tol: float | str | None = None) -> Tolerance:
        """Return the target standard error of scores, by default that of the parameter.

        The parameter may be changed after the fit.
        """
        asked = self.score_tol if score_tol is None else score_tol
        self._check_again(score_tol=asked)
        if isinstance(asked, str):
            return Tolerance.usual(self._model.space.n_columns, self._model.has_images)
        return Tolerance(float(asked))

    def score_samples(
        self, X: ArrayLike, return_std: bool = False, score_tol: float | str | None = None
    ) -> Array | tuple[Array, Array]:
        """Return the log-density, or log-probability, of each row.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows.  Arrays on disk, torch datasets and Dask collections are read in parts.
        return_std : bool, default=False
            Whether to return standard errors too.
        score_tol : float, "auto" or None, default=None
            Target standard error of each row, in nats; None uses the parameter of the estimator.
            It is exceeded by rows that would need more than the maximum number of evaluations, and
            with ``"auto"`` by rows far less likely than all validation rows, which have an error of
            some percent of their log-density.  Ignored with ``likelihood="path"``.

        Returns
        -------
        log_density : ndarray of shape (n_samples,)
            Log-densities in nats, with respect to the units of continuous columns, and to counts
            for discrete ones.  A row's value does not depend on the other rows.  It is minus
            infinity for rows so far from all others that the squared distance overflows.
        std : ndarray of shape (n_samples,)
            Standard errors of the numerical integration, in nats (NaN where there is a single
            noise path).  Only if ``return_std``.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If X is not finite, its columns are not those of `fit`, or a discrete column has a value
            that is not allowed: any unseen one with ``handle_unknown="error"``, in columns listed
            in ``categories``, and in those of numpy's boolean dtype.
        MemoryError
            If there is too little memory, even after a retry with an eighth of the evaluations at a
            time, of which a warning informs.

        Warns
        -----
        UserWarning
            If a category is missing in a column that had none missing in `fit`: it is scored as an
            unseen value, since no entry of a row may be unknown.
        """
        check_is_fitted(self)
        with long_call(self, "score_samples"):
            tolerance = self._tolerance(score_tol)
            scored = [
                self._log_density(self._read_to_score(part), tolerance) for part in parts_of(X)
            ]
        log_density, variance = map(np.concatenate, zip(*scored, strict=True))
        return (log_density, np.sqrt(variance)) if return_std else log_density

    def _log_density(self, values: Array, tolerance: Tolerance) -> tuple[Array, Array]:
        """Return log-densities of numbers and codes, and their variances."""
        return self._model.log_density(values, tolerance)

    def score(self, X: ArrayLike, y: object = None) -> float:
        """Return the mean log-density of rows.

        With ``score_tol="auto"`` rows are integrated less accurately than by `score_samples` if
        there are many, since their errors average out: the target standard error is 0.005 nats
        times the square root of the number of distinct rows, if that is more, but at most 0.5 nats.
        If there are few distinct rows, they are integrated more accurately.  The result agrees with
        the mean of `score_samples` within the standard errors of both.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        float
            Mean log-density in nats per row; higher is better.

        Warns
        -----
        UserWarning
            If the standard error of the mean that comes from the numerical integration exceeds
            0.05 nats.
        """
        mean, error = self._mean_log_density(X)
        if error > MAX_INTEGRATION_ERROR:
            warn(
                f"The score has a standard error of more than {MAX_INTEGRATION_ERROR:g} nats "
                "from the numerical integration: lower score_tol (to 0.02, say), no refit is "
                "needed; score_samples(X, return_std=True) shows which rows cause it."
            )
        return mean

    def _mean_log_density(self, X: ArrayLike) -> tuple[float, float]:
        """Return the mean log-density of rows, and its standard error of integration."""
        check_is_fitted(self)
        with long_call(self, "score"):
            tolerance, scored = self._tolerance(), []
            for part in parts_of(X):
                values = self._read_to_score(part)
                scored.append(self._log_density(values, tolerance_of_mean(values, tolerance)))
        log_density, variance = map(np.concatenate, zip(*scored, strict=True))
        return float(np.mean(log_density)), integration_error(log_density, np.sqrt(variance))

    def bits_per_dim(self, X: ArrayLike) -> float:
        """Return the mean negative log-density of rows in bits per column.

        It is ``-score(X) / (n_features_in_ * log(2))``.  For probabilities (discrete columns, or
        ``dequantize``) this is the code length per column, such as a pixel.  For densities it
        depends on the units: divided by 127.5, 8-bit pixels have log2(127.5) = 6.99 bits less than
        as integers.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        float
            Bits per column; lower is better.
        """
        return -self._mean_log_density(X)[0] / (self.n_features_in_ * math.log(2.0))

    def sample(
        self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None
    ) -> Any:
        """Draw random rows from the model.

        Noise is drawn at the lowest log-SNR and transformed up to the highest by the deterministic
        probability flow of the stacked denoiser, with one evaluation per step.

        Parameters
        ----------
        n_samples : int, default=1
            Rows to draw, at least 1.
        random_state : int, RandomState or None, default=None
            Seed; None uses the ``random_state`` of the estimator.

        Returns
        -------
        ndarray or DataFrame of shape (n_samples, n_features)
            Random rows, in the units and categories of X and in the same container: a pandas or
            polars data frame with the same columns and dtypes, with integer columns rounded, or an
            array, which for `IMMSEDensity` has 64-bit floats.  Entries beyond the largest 64-bit
            float are infinite.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If ``n_samples`` is not a positive integer.
        MemoryError
            If there is too little memory, even after a retry with an eighth of the rows at a time,
            of which a warning informs.

        Notes
        -----
        The distribution of samples differs slightly from the density of `score_samples`: the flow
        and the integral use the same denoiser in different ways, which agree exactly only if it is
        optimal.  On two known densities, 1000 rows each, the mean score of samples was 0.03 and
        0.10 nats below that under the density of `score_samples` (standard errors 0.04;
        ``benchmarks/sampling.py``).
        """
        check_is_fitted(self)
        if not isinstance(n_samples, Integral) or n_samples < 1:
            raise ValueError(f"n_samples must be an integer of at least 1, got {n_samples!r}.")
        seed = self.random_state if random_state is None else random_state
        with long_call(self, "sample"):
            values = self._model.sample(int(n_samples), check_random_state(seed), N_STEPS)
        return self._write(values)

    def mse_curve(self, X: ArrayLike | None = None) -> MSECurve:
        """Return mean squared errors of the model and its references against the log-SNR.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features), default=None
            Rows.  None stands for the validation rows of `fit`.  Rows with unseen values of
            discrete columns, or beyond bounds of continuous ones, are omitted, with a warning.

        Returns
        -------
        MSECurve
            Errors with standard errors at each node of the log-SNR.

        Raises
        ------
        ValueError
            If rows of `fit` have missing entries, or all were equal, or no row of X is left.
        """
        check_is_fitted(self)
        if self._model.curve is None:
            raise ValueError(
                "There is no error curve: rows of fit have missing entries, or all of them were "
                "equal."
            )
        if X is None:
            return copy.deepcopy(self._model.curve)
        curves, counts = [], []
        with long_call(self, "mse_curve"):
            for part in parts_of(X):
                values = self._read_categories(part, "in the curve")
                values = values[is_between_bounds(self, values, "in the curve")]
                if len(values):
                    curves.append(self._model.mse_curve(values))
                    counts.append(len(values))
        if not curves:
            raise ValueError(
                "There is no error curve: all rows have values that did not occur in fit, or are "
                "beyond bounds."
            )
        return curves[0] if len(curves) == 1 else MSECurve.pooled(curves, counts)


def tolerance_of_mean(values: Array, usual: Tolerance) -> Tolerance:
    """Return the target standard error of each row if only the mean is needed."""
    if not usual.is_automatic:
        return usual
    return replace(usual, nats=error_in_a_mean(values, usual.nats), of_median=False)


def error_in_a_mean(values: Array, usual: float) -> float:
    """Return the target standard error of each row if only the mean is needed.

    Errors of many rows average out; duplicates share theirs.
    """
    _, count = np.unique(row_keys(values), return_counts=True)
    root = len(values) / float(np.linalg.norm(count))
    enough = max(usual, min(ERROR_OF_MEAN * root, MAX_ERROR_OF_A_ROW))
    return min(enough, MAX_ERROR_OF_MEAN * root)


def is_between_bounds(estimator: DensityEstimator, values: Array, what: str) -> NDArray[np.bool_]:
    """Return which rows are between the bounds of all columns, and warn about the others."""
    beyond = estimator._model.space.entries_outside(values)
    if beyond.any():
        names = getattr(estimator, "feature_names_in_", None)
        columns = np.asarray(beyond.any(axis=0))
        warn(
            f"Rows beyond the bounds of column(s) {column_labels(columns, names)} are "
            f"not {what}. Set wider bounds, or none, in the parameter bounds."
        )
    return np.asarray(~beyond.any(axis=1))


def has_categories_only(estimator: DensityEstimator, values: Array, what: str) -> NDArray[np.bool_]:
    """Return which rows have only known categories, and warn about the others."""
    encoder: TableEncoder | None = getattr(estimator, "_encoder", None)
    if encoder is None:
        return np.ones(len(values), dtype=bool)
    unseen = encoder.unseen(values)
    if unseen.any():
        labels = [column.label for column in encoder.columns]
        columns = np.asarray(unseen.any(axis=0))
        warn(
            "Rows with values that did not occur in fit, in column(s) "
            f"{column_labels(columns, labels)}"
            f", are not {what}. List them in the parameter categories (None for missing ones), or "
            "use a categorical dtype.",
        )
    return np.asarray(~unseen.any(axis=1))


def warn_of_missing_categories(estimator: DensityEstimator, X: Any, values: Array) -> None:
    """Warn about missing entries of a table that its numbers and codes count as unseen values."""
    encoder: TableEncoder | None = getattr(estimator, "_encoder", None)
    if encoder is None:
        return
    unseen = encoder.unseen(values) & ~encoder.holds_numbers
    if not unseen.any():
        return
    missing = unseen & read_table(without_tensors(X)).frame.isna().to_numpy()
    if missing.any():
        labels = [column.label for column in encoder.columns]
        warn(
            "Missing entries of column(s) "
            f"{column_labels(np.asarray(missing.any(axis=0)), labels)} are scored as values that "
            f"did not occur in fit: {type(estimator).__name__} takes no missing entries. Single "
            "densities take them as unknown."
        )


def check_columns(estimator: Any, space: TableSpace) -> None:
    """Raise an error if an estimator does not have the columns of a space."""
    names = getattr(estimator, "feature_names_in_", np.empty(estimator.n_features_in_))
    found = [estimator.n_features_in_, len(names)]
    check_same(found, 2 * [space.n_columns], "there are other columns")


def integration_error(log_density: Array, std: Array) -> float:
    """Return the standard error of the mean over rows that comes from the integration, in nats.

    Duplicates share their error.
    """
    _, first, count = np.unique(log_density, return_index=True, return_counts=True)
    return float(np.linalg.norm(count * std[first])) / len(log_density)


def long_call(
    estimator: Any, name: str, verbose: int | None = None
) -> AbstractContextManager[Progress]:
    """Show a progress bar during a method of a verbose estimator, if it takes long.

    None stands for the verbosity of the estimator.
    """
    title = f"{type(estimator).__name__}.{name}"
    shown = estimator.verbose if verbose is None else verbose
    return progress_bar(title, shown, delay=SECONDS_UNTIL_A_BAR)
