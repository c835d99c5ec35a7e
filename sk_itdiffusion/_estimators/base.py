"""What a fitted density does with rows."""

from __future__ import annotations

from dataclasses import replace
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from sk_itdiffusion._estimators.reading import column_positions
from sk_itdiffusion._immse.integral import Tolerance
from sk_itdiffusion._model.model import Model

__all__ = ["DensityEstimator"]

Array = NDArray[np.float64]


class DensityEstimator(DensityMixin, BaseEstimator):
    """Base class of density estimators, whose fitted attribute ``_model`` is a `Model`."""

    _model: Model
    score_tol: float | str

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_model")

    @property
    def _names(self) -> list[Any]:
        """Names of the columns, or their numbers."""
        return list(getattr(self, "feature_names_in_", range(self.n_features_in_)))

    def _read(self, X: ArrayLike) -> Array:
        """Return rows as numbers, NaN where missing."""
        check_is_fitted(self)
        return np.asarray(
            validate_data(
                self,
                X,
                reset=False,
                dtype=np.float64,
                ensure_all_finite="allow-nan",
                ensure_min_samples=0,
            )
        )

    def _tolerance(self) -> Tolerance:
        tol = self.score_tol
        if isinstance(tol, str) and tol == "auto":
            return Tolerance.usual(self.n_features_in_)
        if not isinstance(tol, Real) or not tol > 0:
            raise ValueError(f"score_tol must be 'auto' or a positive number, got {tol!r}.")
        return Tolerance(float(tol))

    def _given(self, given: Any) -> NDArray[np.bool_]:
        """Return which columns are given."""
        mask = np.zeros(self.n_features_in_, dtype=bool)
        if given is not None:
            mask[column_positions(given, self._names)] = True
        return mask

    def score_samples(
        self, X: ArrayLike, given: Any = None, return_std: bool = False
    ) -> Array | tuple[Array, Array]:
        """Compute the log-density of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows. Missing entries (NaN) are integrated out: the score is the log-density of the
            observed entries, 0 if there are none.
        given : str, int or list, default=None
            Names or numbers of columns: the score is then the log-density of the other columns
            given these.
        return_std : bool, default=False
            Whether to return the standard error of the numerical integration as well.

        Returns
        -------
        log_density : ndarray of shape (n_samples,)
            Log-densities in nats, in the units of ``X``.
        std : ndarray of shape (n_samples,)
            Standard errors in nats; only if ``return_std`` is True.

        Raises
        ------
        ValueError
            If a column in ``given`` does not exist.
        """
        rows = self._read(X)
        log_density, std = self._model.log_prob(rows, self._given(given), self._tolerance())
        return (log_density, std) if return_std else log_density

    def score(self, X: ArrayLike, y: object = None) -> float:
        """Compute the mean log-density per row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : None
            Ignored.

        Returns
        -------
        float
            Mean log-density, in nats per row.
        """
        return float(np.mean(self.score_samples(X)))

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Any:
        """Draw random rows from the density.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows, at least 1.
        random_state : int, RandomState or None, default=None
            Seed of the draws; None uses the estimator's ``random_state``.

        Returns
        -------
        ndarray or DataFrame of shape (n_samples, n_features)
            Rows; a data frame if the estimator was fitted to one.
        """
        check_is_fitted(self)
        if not isinstance(n_samples, Integral) or n_samples < 1:
            raise ValueError(f"n_samples must be an integer of at least 1, got {n_samples!r}.")
        nothing = np.full((int(n_samples), self.n_features_in_), np.nan)
        return self._framed(self._draw(nothing, self._given(None), random_state))

    def _draw(self, X: Array, given: NDArray[np.bool_], random_state: Any) -> Array:
        source = self.random_state if random_state is None else random_state
        seed = check_random_state(source).randint(2**31 - 1)
        return self._model.sample(X, given, np.random.default_rng(seed))

    def _framed(self, rows: Array) -> Any:
        if hasattr(self, "feature_names_in_"):
            return pd.DataFrame(rows, columns=self.feature_names_in_)
        return rows

    def conditional(self, given: Any) -> Any:
        """Return the conditional density of the other columns given some.

        Parameters
        ----------
        given : str, int or list
            Names or numbers of the given columns.

        Returns
        -------
        ConditionalView
            The density, with methods ``score_samples``, ``score`` and ``sample``.
        """
        from sk_itdiffusion._estimators.views import ConditionalView

        check_is_fitted(self)
        self._given(given)
        return ConditionalView(self, given)

    def marginal(self, columns: Any) -> Any:
        """Return the marginal density of some columns.

        Parameters
        ----------
        columns : str, int or list
            Names or numbers of the columns.

        Returns
        -------
        MarginalView
            The density, with methods ``score_samples``, ``score`` and ``sample``.
        """
        from sk_itdiffusion._estimators.views import MarginalView

        check_is_fitted(self)
        column_positions(columns, self._names)
        return MarginalView(self, columns)

    def _with_tolerance(self, tol: float) -> Tolerance:
        return replace(self._tolerance(), nats=tol)
