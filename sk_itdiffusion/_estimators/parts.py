"""Density estimators that answer questions about parts of rows."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from sk_itdiffusion._estimators.base import DensityEstimator, long_call, tolerance_of_mean
from sk_itdiffusion._estimators.views import (
    ColumnNames,
    ConditionalDensity,
    MarginalDensity,
    mask_of_columns,
    warn_of_networks,
)
from sk_itdiffusion._immse.errors import Tolerance
from sk_itdiffusion._table.partitions import parts_of
from sk_itdiffusion._table.rows import has_missing

__all__ = ["DensityOfParts"]

Array = NDArray[np.float64]


class DensityOfParts(DensityEstimator):
    """Base class of density estimators whose references know the parts of rows."""

    @abstractmethod
    def _read(self, X: Any, allow_missing: bool = False) -> Array:
        """Return numbers and codes of a table like the one fitted, NaN for missing entries."""

    @property
    def _may_lack_entries(self) -> bool:
        """Whether entries may be missing: not those of images, whose pixels have neighbours."""
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
        """Return the log-density, or log-probability, of each row, of a part of it, or given one.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows.  Arrays on disk, torch datasets and Dask collections are read in parts.  Entries
            may be missing (NaN, None, pandas' NA, or null): the log-density is then that of the
            observed part of the row, and 0 if there is none.
        return_std : bool, default=False
            Whether to return standard errors too.
        score_tol : float, "auto" or None, default=None
            Standard error in nats that each row should have; None takes the parameter of the
            estimator.  Rows for which the greatest number of evaluations is too few have more, and
            with ``"auto"`` so have rows far less likely than all validation rows of the fit, some
            percent of their log-density.  Ignored with ``likelihood="path"``.
        given : str, int, sequence of str or int, or None, default=None
            Names or numbers of columns that are given: the log-density is that of the other
            columns given these, ``log p(others | given)``.  Names need a fit to a data frame.
            None for no columns.

        Returns
        -------
        log_density : ndarray of shape (n_samples,)
            Log-densities in nats, with respect to the units of continuous columns, and to counts
            for discrete ones.  A row's value does not depend on the other rows.  It is minus
            infinity for rows so far from all others that the square of their distance is no number.
        std : ndarray of shape (n_samples,)
            Standard errors of the numerical integration, in nats (NaN where there is a single
            noise path).  Questions about parts of rows need no integration; their standard errors
            are 0, and with ``dequantize`` those of the mean over its noise.  Only if
            ``return_std``.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If X is infinite, its columns are not those of `fit`, ``given`` names none of them or
            all, or a value of a discrete column has no probability: with
            ``handle_unknown="error"``, in columns whose categories ``categories`` gives, and in
            those of numpy's boolean dtype, all values but the categories.
        MemoryError
            If there is too little memory, even at an eighth of the usual number of evaluations at
            a time, which is tried once and warns.

        Warns
        -----
        UserWarning
            If the fit has networks, which were trained on complete rows, and parts of rows are
            asked about, which the references alone answer.
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
        """Return the mean log-density of rows, of their observed parts, or given some columns.

        With ``score_tol="auto"`` each row of many is integrated less exactly than by
        `score_samples`, since errors of many rows average out: with a standard error of 0.005 nats
        times the root of the number of distinct rows, if that is more, but at most 0.3 nats.  Few
        distinct rows, whose errors do not average out, are integrated more exactly.  The result
        differs from the mean of `score_samples` by no more than the standard errors of both
        explain.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows, which may lack entries.
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
