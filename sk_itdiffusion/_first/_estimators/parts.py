"""Density estimators with marginal and conditional densities."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from sk_itdiffusion._first._estimators.base import DensityEstimator, long_call, tolerance_of_mean
from sk_itdiffusion._first._estimators.columns import ColumnNames, mask_of_columns
from sk_itdiffusion._first._estimators.conditional_view import ConditionalDensity
from sk_itdiffusion._first._estimators.views import MarginalDensity, warn_of_networks
from sk_itdiffusion._first._immse.errors import Tolerance
from sk_itdiffusion._first._table.partitions import parts_of
from sk_itdiffusion._first._table.rows import has_missing

__all__ = ["DensityOfParts"]

Array = NDArray[np.float64]


class DensityOfParts(DensityEstimator):
    """Base class of density estimators whose references have marginals and conditionals."""

    @abstractmethod
    def _read(self, X: Any, allow_missing: bool = False) -> Array:
        """Return numbers and codes of a table like the one fitted, NaN for missing entries."""

    @property
    def _may_lack_entries(self) -> bool:
        """Whether entries may be missing, which is not supported for images."""
        return getattr(self, "image_shape", None) is None

    def _read_to_score(self, X: Any) -> Array:
        """Return numbers and codes of a table to be scored, NaN for missing entries."""
        values = self._read(X, allow_missing=self._may_lack_entries)
        if has_missing(values):
            warn_of_networks(self)
        return values

    def score_samples(
        self,
        X: ArrayLike,
        return_std: bool = False,
        score_tol: float | str | None = None,
        *,
        given: ColumnNames | None = None,
    ) -> Array | tuple[Array, Array]:
        """Return the log-density, or log-probability, of each row, possibly given some columns.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows.  Arrays on disk, torch datasets and Dask collections are read in parts.  Entries
            may be missing (NaN, None, pandas' NA, or null): the log-density is then that of the
            observed entries of the row, and 0 if there are none.
        return_std : bool, default=False
            Whether to return standard errors too.
        score_tol : float, "auto" or None, default=None
            Target standard error of each row, in nats; None uses the parameter of the estimator.
            It is exceeded by rows that would need more than the maximum number of evaluations, and
            with ``"auto"`` by rows far less likely than all validation rows, which have an error of
            some percent of their log-density.  Ignored with ``likelihood="path"``.
        given : str, int, sequence of str or int, or None, default=None
            Names or numbers of columns that are given: the log-density is that of the other
            columns given these, ``log p(others | given)``.  Names need a fit to a data frame.
            None for no columns.

        Returns
        -------
        log_density : ndarray of shape (n_samples,)
            Log-densities in nats, with respect to the units of continuous columns, and to counts
            for discrete ones.  A row's value does not depend on the other rows.  It is minus
            infinity for rows so far from all others that the squared distance overflows.
        std : ndarray of shape (n_samples,)
            Standard errors of the numerical integration, in nats (NaN where there is a single noise
            path).  Marginal and conditional densities of the references need no integration; their
            standard errors are 0, and with ``dequantize`` those of the mean over its noise.  Only
            if ``return_std``.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If X is infinite, its columns are not those of `fit`, ``given`` names none of them or
            all, or a discrete column has a value that is not allowed: any unseen one with
            ``handle_unknown="error"``, in columns listed in ``categories``, and in those of numpy's
            boolean dtype.
        MemoryError
            If there is too little memory, even after a retry with an eighth of the evaluations at a
            time, of which a warning informs.

        Warns
        -----
        UserWarning
            If the fit has networks, which were trained on complete rows, and a marginal or
            conditional density is requested, for which only the references are used.
        """
        if given is None:
            return super().score_samples(X, return_std, score_tol)
        check_is_fitted(self)
        with long_call(self, "score_samples"):
            log_density, variance = self._given(X, given, self._tolerance(score_tol))
        return (log_density, np.sqrt(variance)) if return_std else log_density

    def _given(
        self, X: Any, given: ColumnNames, tolerance: Tolerance, in_mean: bool = False
    ) -> tuple[Array, Array]:
        """Return log-densities of rows given some of their columns, and their variances."""
        mask = mask_of_columns(self, given, "given", may_be_all=False)
        warn_of_networks(self)
        scored = []
        for part in parts_of(X):
            values = self._read(part, allow_missing=True)
            enough = tolerance_of_mean(values, tolerance) if in_mean else tolerance
            scored.append(self._model.log_density_of_parts(values, enough, mask))
        log_density, variance = map(np.concatenate, zip(*scored, strict=True))
        return log_density, variance

    def score(self, X: ArrayLike, y: object = None, *, given: ColumnNames | None = None) -> float:
        """Return the mean log-density of rows, of their observed entries, or given some columns.

        With ``score_tol="auto"`` rows are integrated less accurately than by `score_samples` if
        there are many, since their errors average out: the target standard error is 0.005 nats
        times the square root of the number of distinct rows, if that is more, but at most 0.5 nats.
        If there are few distinct rows, they are integrated more accurately.  The result agrees with
        the mean of `score_samples` within the standard errors of both.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows, which may have missing entries.
        y : Ignored
            Not used, present for API consistency by convention.
        given : str, int, sequence of str or int, or None, default=None
            Names or numbers of columns that are given; see `score_samples`.

        Returns
        -------
        float
            Mean log-density in nats per row; higher is better.

        Warns
        -----
        UserWarning
            If the standard error of the mean that comes from the numerical integration exceeds
            0.05 nats, and if parts of rows are asked about that networks do not know.
        """
        if given is None:
            return super().score(X)
        check_is_fitted(self)
        with long_call(self, "score"):
            return float(self._given(X, given, self._tolerance(), in_mean=True)[0].mean())

    def marginal(self, columns: ColumnNames) -> MarginalDensity:
        """Return the density of some of the columns, whatever the others are.

        Parameters
        ----------
        columns : str, int, or sequence of str or int
            Names or numbers of at least one column.  Names need a fit to a data frame.

        Returns
        -------
        MarginalDensity
            A view of this density, which scores and samples tables of these columns.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If a column is unknown or named twice, or there are none.
        """
        check_is_fitted(self)
        mask_of_columns(self, columns, "columns")
        return MarginalDensity(self, columns)

    def conditional(self, given: ColumnNames) -> ConditionalDensity:
        """Return the density of the other columns given some of them.

        Parameters
        ----------
        given : str, int, or sequence of str or int
            Names or numbers of the columns that are given, at least one and not all.  Names need a
            fit to a data frame.

        Returns
        -------
        ConditionalDensity
            A view of this density, which scores rows, and draws the other columns of rows.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If a column is unknown or named twice, or there are none, or all.
        """
        check_is_fitted(self)
        mask_of_columns(self, given, "given", may_be_all=False)
        return ConditionalDensity(self, given)
