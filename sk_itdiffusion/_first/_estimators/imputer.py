"""Imputation from the conditional distribution of a density."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin, clone
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils._param_validation import Interval, InvalidParameterError, StrOptions
from sklearn.utils.validation import _check_sample_weight, _num_samples, check_is_fitted

from sk_itdiffusion._first._estimators.base import check_columns, long_call
from sk_itdiffusion._first._estimators.columns import kinds_of_columns
from sk_itdiffusion._first._estimators.entries import recoded, with_entries
from sk_itdiffusion._first._estimators.imputed_values import (
    NUMBERS_IN_A_PASS,
    completed_by_summaries,
    places_of_nearest,
)
from sk_itdiffusion._first._estimators.mixed import IMMSEMixedDensity
from sk_itdiffusion._first._estimators.parts import DensityOfParts
from sk_itdiffusion._first._runtime.documentation import DocumentationLinkMixin
from sk_itdiffusion._first._runtime.progress import Progress, progress_bar, stretch_of_progress
from sk_itdiffusion._first._runtime.warning import warn
from sk_itdiffusion._first._table.reading import read_table
from sk_itdiffusion._first._table.rows import column_labels
from sk_itdiffusion._first.persistence import SaveMixin, stored
from sk_itdiffusion._first.persistence.checks import check_in_range, check_increasing, check_same

__all__ = ["IMMSEImputer", "PooledEstimate"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
#: Observations up to which rows that count several are repeated for a bootstrap.
MAX_OBSERVATIONS = 10**6


@dataclass(frozen=True)
class PooledEstimate:
    """Estimates from multiple imputation, pooled by Rubin's rules.

    Returned by `sk_itdiffusion.IMMSEImputer.pooled_estimate`; the parameters are attributes.

    Parameters
    ----------
    estimate : ndarray
        Means of the estimates.
    standard_error : ndarray
        Standard errors, which include the uncertainty due to missing entries.
    degrees_of_freedom : ndarray
        Degrees of freedom of the t distribution of ``(estimate - truth) / standard_error``;
        infinite where all imputations give the same estimate.
    missing_information : ndarray
        Share of the variance that is due to the missing entries, from 0 to 1.

    See Also
    --------
    sk_itdiffusion.IMMSEImputer : Imputes missing entries.

    Examples
    --------
    >>> from sk_itdiffusion.imputation import PooledEstimate
    >>> pooled = PooledEstimate.of([1.0, 2.0, 3.0], [0.5, 0.5, 0.5])
    >>> round(float(pooled.missing_information), 3)
    0.727
    """

    estimate: Array
    standard_error: Array
    degrees_of_freedom: Array
    missing_information: Array

    @classmethod
    def of(cls, estimates: ArrayLike, variances: ArrayLike) -> PooledEstimate:
        """Pool estimates by Rubin's rules [1]_.

        Parameters
        ----------
        estimates : array-like of shape (n_imputations, ...)
            Estimates from each completed table.
        variances : array-like of shape (n_imputations, ...)
            Their squared standard errors, computed as for a complete table.

        Returns
        -------
        PooledEstimate
            The pooled estimate.

        Raises
        ------
        ValueError
            If there are fewer than two imputations, or the shapes differ.

        References
        ----------
        .. [1] D. B. Rubin. "Multiple Imputation for Nonresponse in Surveys". Wiley, 1987.

        Examples
        --------
        >>> from sk_itdiffusion.imputation import PooledEstimate
        >>> pooled = PooledEstimate.of([1.0, 2.0, 3.0], [0.5, 0.5, 0.5])
        >>> float(pooled.estimate), round(float(pooled.standard_error) ** 2, 4)
        (2.0, 1.8333)
        """
        each = np.asarray(estimates, dtype=np.float64)
        within = np.asarray(variances, dtype=np.float64)
        if each.ndim == 0 or len(each) < 2 or each.shape != within.shape:
            raise ValueError(
                "estimates and variances must have the same shape, with two imputations or more, "
                f"got {each.shape} and {within.shape}."
            )
        n = len(each)
        between = (1.0 + 1.0 / n) * each.var(axis=0, ddof=1)
        total = within.mean(axis=0) + between
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(total > 0.0, between / total, 0.0)
            freedom = np.where(share > 0.0, (n - 1) / share**2, math.inf)
        return cls(each.mean(axis=0), np.sqrt(total), freedom, share)


@stored(
    attributes=(
        "n_features_in_",
        "feature_names_in_",
        "densities_",
        "_observed",
        "_is_repeated",
        "_seed",
        "_sklearn_output_config",
    ),
    arguments=("_sklearn_output_config",),
)
class IMMSEImputer(
    DocumentationLinkMixin, SaveMixin, OneToOneFeatureMixin, TransformerMixin, BaseEstimator
):
    """Impute missing entries from their conditional distribution given the observed ones.

    Densities are fitted to the table with its missing entries, and missing entries of each row are
    drawn from their conditional distribution given the observed ones.  An imputed value is a single
    draw, or the mean, the median or the mode of many.

    Parameters
    ----------
    estimator : IMMSEDensity, IMMSEMixedDensity, IMMSEDiscreteDensity or None, default=None
        The density, which is cloned.  None stands for ``IMMSEMixedDensity(max_epochs=0,
        handle_missing="missing")``, which accepts numbers and categories, and imputes missing
        entries of both; with ``handle_missing="category"`` missing categories are not imputed in
        columns that had some in `fit`.
    strategy : {"median", "mean", "mode", "sample"}, default="median"
        Summary of the conditional distribution that is imputed: the median, which minimises the
        mean absolute error; the mean, which minimises the mean squared error; the mode; or a random
        draw, which alone preserves the distribution of the columns and their dependence.  With
        ``"median"`` and ``"mean"``, unordered categories get the most probable category, and
        ordered ones the median category.
    n_draws : int, default=100
        Number of draws per row from which mean, median and mode are computed, at least 1.
    n_fits : int, default=3
        Number of densities that are fitted, at least 1; with more than one each has the weights of
        a Bayesian bootstrap, which rows get in their order.  The draws of a row come from all of
        them in turn, the first draw from the first density, as predictions of a random forest do
        from its trees: what a single fit to few rows is wrong about averages out, and the spread of
        the draws includes it.  The time to fit is proportional to it.
    observed_values : bool or "auto", default="auto"
        Whether drawn numbers are replaced by the nearest observed value of their column.  "auto"
        does so where that value has been observed several times, as 0 of many amounts, and for all
        numbers of columns in which most entries share their value with another one: counts, grades,
        settings of an experiment.  A density has no values in common with them.
    verbose : int, default=0
        At least 0, which is silent.  With 1 or more, `fit` and `pooled_estimate` show a progress
        bar, and `transform` and `multiple_imputations` if they take more than a few seconds, as
        they do if the density is verbose.
    random_state : int, RandomState or None, default=None
        Seed of the draws, and of the densities.  The first one has its own ``random_state`` if that
        is not None.

    Attributes
    ----------
    densities_ : list of estimators
        The fitted densities.
    density_ : estimator
        The first of them.
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns, if the table has string names.

    See Also
    --------
    IMMSEMixedDensity : Densities of tables with numbers and categories.
    sklearn.impute.IterativeImputer : Imputes by regression.

    Notes
    -----
    The imputed values of a row do not depend on the other rows of a call, and are the same in each
    call, except that with ``strategy="sample"`` each of several equal rows has its own draw.
    Observed entries are not changed.

    Imputation is valid if entries are missing completely at random, or at random, that is, if
    whether an entry is missing depends on observed entries only.

    Networks of the density are used where they answer for parts of rows, see the parameter
    ``patterns`` of `IMMSEDensity`, which is so if a fit to rows with missing entries has networks;
    draws then follow the probability flow of the missing entries with the observed ones fixed.
    This takes tens of milliseconds for each row.  All other entries are drawn from the analytic
    experts.

    References
    ----------
    .. [1] D. B. Rubin. "Multiple Imputation for Nonresponse in Surveys". Wiley, 1987.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion import IMMSEImputer
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=500)
    >>> X = np.column_stack([x, 2.0 * x + 0.1 * rng.normal(size=500)])
    >>> X[::3, 1] = np.nan
    >>> imputer = IMMSEImputer(random_state=0).fit(X)
    >>> bool(abs(imputer.transform([[1.0, np.nan]])[0, 1] - 2.0) < 0.1)
    True
    """

    densities_: list[DensityOfParts]
    n_features_in_: int
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "estimator": [DensityOfParts, None],
        "strategy": [StrOptions({"mean", "median", "mode", "sample"})],
        "n_draws": [Interval(Integral, 1, None, closed="left")],
        "n_fits": [Interval(Integral, 1, None, closed="left")],
        "observed_values": ["boolean", StrOptions({"auto"})],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator: DensityOfParts | None = None,
        *,
        strategy: str = "median",
        n_draws: int = 100,
        n_fits: int = 3,
        observed_values: bool | Literal["auto"] = "auto",
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.strategy = strategy
        self.n_draws = n_draws
        self.n_fits = n_fits
        self.observed_values = observed_values
        self.verbose = verbose
        self.random_state = random_state

    def _validate_params(self) -> None:
        """Check the parameters; the message about the density says what may be passed."""
        if not isinstance(self.estimator, DensityOfParts | None):
            raise InvalidParameterError(
                "estimator must be None or a density such as IMMSEMixedDensity(max_epochs=0, "
                "handle_missing='missing'), IMMSEDensity() or IMMSEDiscreteDensity(), got "
                f"{self.estimator!r}."
            )
        super()._validate_params()

    def fit(
        self,
        X: ArrayLike,
        y: object = None,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Fit the densities to a table with missing entries.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows.
        y : Ignored
            Not used, present for API consistency by convention.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights.
        groups : array-like of shape (n_samples,), default=None
            Groups of rows that are not independent of each other, see the density.

        Returns
        -------
        IMMSEImputer
            The fitted imputer.

        Raises
        ------
        ValueError
            If a parameter is out of range, a column has no observed value, or X is not valid for
            the density.
        """
        self._validate_params()
        random_state = check_random_state(self.random_state)
        density = self._density(random_state.randint(2**31 - 1))
        self._seed = int(random_state.randint(2**31 - 1))
        densities = [density]
        for seed in random_state.randint(2**31 - 1, size=self.n_fits - 1):
            densities.append(clone(density).set_params(random_state=int(seed)))
        resampled = self._resampled(X, sample_weight, groups)
        with progress_bar(type(self).__name__, self.verbose):
            for i, (rows, weight, own) in enumerate(resampled):
                label = f"{type(self).__name__}, fit {i + 1}/{self.n_fits}"
                with stretch_of_progress(i / self.n_fits, (i + 1) / self.n_fits, label):
                    densities[i].fit(rows, sample_weight=weight, groups=own)
        self.densities_ = densities
        self.n_features_in_ = density.n_features_in_
        self._observed, self._is_repeated = self._values_to_choose_from(X, sample_weight)
        if hasattr(density, "feature_names_in_"):
            self.feature_names_in_ = density.feature_names_in_
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        return self

    def _resampled(self, X: Any, sample_weight: Any, groups: Any) -> Iterator[tuple[Any, Any, Any]]:
        """Yield the rows, weights and groups of each fit."""
        if self.n_fits == 1:
            yield X, sample_weight, groups
            return
        seeds = np.random.SeedSequence([self._seed, 2**33]).generate_state(self.n_fits)
        for seed in seeds.tolist():
            yield bootstrapped(X, sample_weight, groups, seed)

    def _values_to_choose_from(self, X: Any, sample_weight: Any) -> tuple[list[Array], list[Mask]]:
        """Return the observed values of each column, and which of them draws are replaced by.

        There are none of columns in which draws are left as they are.
        """
        kinds = kinds_of_columns(self.density_)
        if self.observed_values is False:
            return [np.empty(0)] * len(kinds), [np.empty(0, dtype=bool)] * len(kinds)
        values = self.density_._read_to_score(X)
        weight = np.ones(len(values)) if sample_weight is None else np.asarray(sample_weight)
        observed, is_repeated = [], []
        for column, kind in zip(values[weight > 0].T, kinds, strict=True):
            known, count = np.unique(column[~np.isnan(column)], return_counts=True)
            all_of_them = self.observed_values is True or 2 * count[count > 1].sum() > count.sum()
            chosen = (count > 1) | all_of_them
            n_values = len(known) if kind == "continuous" and chosen.any() else 0
            observed.append(known[:n_values])
            is_repeated.append(chosen[:n_values])
        return observed, is_repeated

    def _finish_loading(self) -> None:
        """Raise an error if parts do not fit together, or are out of range."""
        self._validate_params()
        check_same(len(self._observed), self.n_features_in_, "there are values of other columns")
        for observed, is_repeated in zip(self._observed, self._is_repeated, strict=True):
            check_increasing(observed, "observed values")
            check_same(
                is_repeated.shape, observed.shape, "it is not known which values are repeated"
            )
        known = [isinstance(density, DensityOfParts) for density in self.densities_]
        if not known or not all(known):
            raise ValueError("an imputer has no density")
        for density in self.densities_:
            check_is_fitted(density)
            check_columns(self, density._model.space)
        check_in_range(self._seed, 0, 2**31, "seed of the draws")
        for container in getattr(self, "_sklearn_output_config", {}).values():
            self.set_output(transform=container)

    @property
    def density_(self) -> DensityOfParts:
        """The first of the fitted densities."""
        if not hasattr(self, "densities_"):
            raise AttributeError("The imputer is not fitted.")
        return self.densities_[0]

    def _density(self, seed: int) -> Any:
        """Return the first density to be fitted."""
        if self.estimator is None:
            return IMMSEMixedDensity(max_epochs=0, handle_missing="missing", random_state=seed)
        density = clone(self.estimator)
        return density.set_params(random_state=seed) if density.random_state is None else density

    def transform(self, X: ArrayLike) -> Any:
        """Return the table with imputed entries.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray or DataFrame of shape (n_samples, n_features)
            The table, in the container of X, or in that of ``set_output``.

        Raises
        ------
        NotFittedError
            If the imputer is not fitted.
        ValueError
            If the columns are not those of `fit`.
        """
        check_is_fitted(self)
        self._validate_params()
        if self.strategy == "sample":
            return next(self._filled(X, lambda values: self._draws(values, 1, "transform")))
        with self._long_call("transform"):
            return next(self._filled(X, lambda values: [self._summary(values)]))

    def multiple_imputations(self, X: ArrayLike, n_imputations: int = 20) -> Iterator[Any]:
        """Yield tables whose missing entries are imputed by independent draws.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows.
        n_imputations : int, default=20
            Number of tables, at least 1.

        Returns
        -------
        iterator of ndarray or DataFrame of shape (n_samples, n_features)
            The tables, one after the other.

        Raises
        ------
        ValueError
            If ``n_imputations`` is not a positive integer, or the columns are not those of `fit`.

        Notes
        -----
        The tables are drawn from the fitted densities in turn, of which there are few, so the draws
        reflect only a part of what a sample of rows leaves open, and nothing of it with
        ``n_fits=1``.  This matters however many rows there are: if a fraction f of the entries is
        missing and the observed entries are uninformative, standard errors by Rubin's rules are
        then too small by the factor ``sqrt(1 - f**2)``. `pooled_estimate` fits a density for each
        imputation.
        """
        check_is_fitted(self)
        if not isinstance(n_imputations, Integral) or n_imputations < 1:
            raise ValueError(
                f"n_imputations must be an integer of at least 1, got {n_imputations!r}."
            )
        return self._filled(
            X, lambda values: self._draws(values, int(n_imputations), "multiple_imputations")
        )

    def pooled_estimate(
        self,
        X: ArrayLike,
        analyze: Callable[[Any], tuple[ArrayLike, ArrayLike]],
        n_imputations: int = 20,
        groups: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> PooledEstimate:
        """Return an estimate from a table with missing entries by multiple imputation.

        For each imputation the density is refitted with the weights of a Bayesian bootstrap [2]_,
        the table is imputed by draws, and then analysed like a complete one.  The estimates are
        pooled by Rubin's rules [1]_.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows.
        analyze : callable
            Function from a complete table to estimates and their squared standard errors, numbers
            or arrays of the same shape.
        n_imputations : int, default=20
            Number of imputations, and of fits, at least 2.
        groups : array-like of shape (n_samples,), default=None
            Groups of rows that are not independent of each other: they have a weight together.
            Entries of different rows are drawn independently all the same: where rows of a group
            lack the same entries, and have an effect of the group in common, standard errors are
            too small.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights of the rows in the fits, as in `fit`, whose own are not used here.
            It is up to ``analyze`` to weight its estimates.  A row has one draw in each imputation
            whatever its weight: repeat rows that stand for several observations, or standard errors
            are too large.

        Returns
        -------
        PooledEstimate
            Estimates with standard errors.

        Raises
        ------
        ValueError
            If ``n_imputations`` is less than 2, or ``analyze`` does not return two arrays of the
            same shape.

        References
        ----------
        .. [1] D. B. Rubin. "Multiple Imputation for Nonresponse in Surveys". Wiley, 1987.
        .. [2] D. B. Rubin. "The Bayesian Bootstrap". The Annals of Statistics 9(1), 1981.

        Examples
        --------
        >>> import numpy as np
        >>> from sk_itdiffusion import IMMSEImputer
        >>> X = np.random.default_rng(0).normal(size=(200, 2))
        >>> X[:50, 1] = np.nan
        >>> imputer = IMMSEImputer(random_state=0).fit(X)
        >>> mean_of_column = lambda table: (table[:, 1].mean(), table[:, 1].var() / len(table))
        >>> pooled = imputer.pooled_estimate(X, mean_of_column)
        >>> bool(pooled.standard_error > X[:, 0].std() / np.sqrt(200))
        True
        """
        if not isinstance(n_imputations, Integral) or n_imputations < 2:
            raise ValueError(
                f"n_imputations must be an integer of at least 2, got {n_imputations!r}."
            )
        check_is_fitted(self)
        seeds = np.random.SeedSequence([self._seed, 2**32]).generate_state(2 * n_imputations)
        estimates, variances = [], []
        with progress_bar(f"{type(self).__name__}.pooled_estimate", self.verbose):
            for i, (sample_seed, seed) in enumerate(seeds.reshape(-1, 2).tolist()):
                rows, weight, own = bootstrapped(X, sample_weight, groups, sample_seed)
                imputer = clone(self).set_params(strategy="sample", n_fits=1, random_state=seed)
                with stretch_of_progress(i / n_imputations, (i + 1) / n_imputations):
                    imputer.fit(rows, sample_weight=weight, groups=own)
                    completed = imputer.transform(X)
                found = analyze(completed)
                if not isinstance(found, Sequence) or len(found) != 2:
                    raise ValueError(
                        "analyze must return estimates and their squared standard errors, got "
                        f"{type(found).__name__}."
                    )
                estimates.append(found[0])
                variances.append(found[1])
        return PooledEstimate.of(estimates, variances)

    # -- imputed numbers and codes ---------------------------------------------------------------

    def _completed(
        self, values: Array, first: int, stop: int, equal_rows_differ: bool = True
    ) -> Array:
        """Return draws of completed rows by their numbers, which the densities make in turn.

        Parameters
        ----------
        values : ndarray of shape (n, n_columns)
            Rows.
        first, stop : int
            Number of the first draw, and of the one after the last.
        equal_rows_differ : bool, default=True
            Whether rows that are equal have different draws.

        Returns
        -------
        ndarray of shape (stop - first, n, n_columns)
            The draws.
        """
        numbers, n_fits = np.arange(first, stop), len(self.densities_)
        drawn = np.empty((len(numbers), *values.shape))
        for member, density in enumerate(self.densities_):
            own = np.flatnonzero(numbers % n_fits == member)
            if not (len(own) and len(values)):
                continue
            seed = int(np.random.SeedSequence([self._seed, member]).generate_state(1)[0])
            with stretch_of_progress(member / n_fits, (member + 1) / n_fits):
                found = density._model.complete(
                    recoded(values, self.density_, density),
                    len(own),
                    seed,
                    equal_rows_differ,
                    int(numbers[own[0]]) // n_fits,
                )
            drawn[own] = recoded(found, density, self.density_)
        for j, observed in enumerate(self._observed):
            here = np.isnan(values[:, j])
            if len(observed) and here.any():
                free = drawn[:, here, j]
                place = places_of_nearest(observed, free)
                drawn[:, here, j] = np.where(self._is_repeated[j][place], observed[place], free)
        return drawn

    def _draws(self, values: Array, n_draws: int, name: str) -> Iterator[Array]:
        """Yield completions of rows by draws, as many as fit into memory at a time."""
        at_once = max(1, NUMBERS_IN_A_PASS // max(1, values.size))
        for first in range(0, n_draws, at_once):
            with self._long_call(name):
                drawn = self._completed(values, first, min(first + at_once, n_draws))
            yield from drawn

    def _summary(self, values: Array) -> Array:
        """Return rows completed by the mean, the median or the mode of draws."""
        kinds = kinds_of_columns(self.density_)
        for j, (observed, is_repeated) in enumerate(
            zip(self._observed, self._is_repeated, strict=True)
        ):
            # The median of an even number of values need not be one of them.
            if self.strategy == "median" and len(observed) and is_repeated.all():
                kinds[j] = "ordinal"
        return completed_by_summaries(
            values,
            kinds,
            self.strategy,
            self.n_draws,
            lambda part: self._completed(part, 0, self.n_draws, equal_rows_differ=False),
        )

    # -- tables ----------------------------------------------------------------------------------

    def _filled(self, X: Any, imputed: Callable[[Array], Iterable[Array]]) -> Iterator[Any]:
        """Yield tables whose missing entries are replaced by imputed numbers and codes.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows.
        imputed : callable
            Returns completions of the rows with missing entries.

        Yields
        ------
        ndarray or DataFrame of shape (n_samples, n_features)
            The tables.
        """
        values = self.density_._read_to_score(X)
        missing = np.isnan(values)
        table = read_table(X)
        kept = np.asarray((table.frame.isna().to_numpy() & ~missing).any(axis=0))
        if kept.any():
            warn(
                f"Missing entries of column(s) {column_labels(kept, table.names)} are a category "
                "of the density and are not imputed; handle_missing='missing' in the density "
                "imputes them."
            )
        incomplete = np.flatnonzero(missing.any(axis=1))
        # Observed values need not be known categories; any code takes their place.
        numbers = np.where(missing, 0.0, np.maximum(values, 0.0))
        continuous = [kind == "continuous" for kind in kinds_of_columns(self.density_)]
        numbers[:, continuous] = values[:, continuous]
        for completed in imputed(values[incomplete]):
            filled = numbers.copy()
            filled[incomplete] = np.where(missing[incomplete], completed, numbers[incomplete])
            yield with_entries(X, missing, self.density_._write(filled))

    def _long_call(self, name: str) -> AbstractContextManager[Progress]:
        """Show a progress bar if the imputer or the density is verbose, and it takes long."""
        return long_call(self, name, max(self.verbose, self.density_.verbose))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        return tags


def bootstrapped(
    X: Any, sample_weight: ArrayLike | None, groups: ArrayLike | None, seed: int
) -> tuple[Any, Array, Any]:
    """Return rows, weights and groups of a Bayesian bootstrap.

    Rows, or groups of rows, have random weights.  Unlike counts of a sample they make no value of a
    continuous column look repeated.  Rows whose weights are numbers of observations come as often.

    Parameters
    ----------
    X : array-like or data frame of shape (n_samples, n_features)
        Rows.
    sample_weight : array-like of shape (n_samples,) or None
        Weights.
    groups : array-like of shape (n_samples,) or None
        Groups.
    seed : int
        Seed of the random weights.

    Returns
    -------
    X, sample_weight, groups
        The same for each fit; groups are None if there are none.
    """
    weight = np.ones(_num_samples(X))
    if sample_weight is not None:
        weight = _check_sample_weight(sample_weight, X, ensure_non_negative=True)
    is_counted = (np.rint(weight) == weight).all() and (weight > 1.0).any()
    if is_counted and weight.sum() <= MAX_OBSERVATIONS:
        index = np.repeat(np.arange(len(weight)), weight.astype(np.intp))
        X, weight = _safe_indexing(X, index), np.ones(len(index))
        groups = None if groups is None else np.asarray(groups)[index]
    units = np.arange(len(weight)) if groups is None else pd.factorize(np.asarray(groups))[0]
    chance = np.random.default_rng(seed).exponential(size=int(units.max(initial=0)) + 1)
    return X, weight * chance[units], groups
