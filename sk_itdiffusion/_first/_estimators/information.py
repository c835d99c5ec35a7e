"""Mutual information between two tables of the same rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, _fit_context, clone
from sklearn.model_selection import GroupKFold
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.validation import check_is_fitted, validate_data

from sk_itdiffusion._first._conditional.splitting import folds_of_rows, joined
from sk_itdiffusion._first._estimators.distinct_rows import copies_at_once
from sk_itdiffusion._first._estimators.mixed import IMMSEMixedDensity
from sk_itdiffusion._first._immse.cubature import keys_apart, row_keys
from sk_itdiffusion._first._information.crossfit import (
    Columns,
    InformationModel,
    crossfit,
    fit_folds,
)
from sk_itdiffusion._first._information.curve import (
    InformationCurve,
    curve_of_rows,
    noisy_information,
)
from sk_itdiffusion._first._information.orthogonal import squared_differences
from sk_itdiffusion._first._information.roles import Roles
from sk_itdiffusion._first._information.units import random_order, units_of
from sk_itdiffusion._first._runtime.documentation import DocumentationLinkMixin
from sk_itdiffusion._first._table.encoding import TableEncoder
from sk_itdiffusion._first._table.groups import checked_groups
from sk_itdiffusion._first._table.kinds import mixed_kinds
from sk_itdiffusion._first._table.reading import read_table, without_tensors

__all__ = [
    "IMMSEMutualInformation",
    "Side",
    "check_complete_rows",
    "density_of",
    "folds_of_table",
    "units_of_table",
    "varying_columns",
]

Array = NDArray[np.float64]
Index = NDArray[np.intp]
#: Rows in a fold, at least.
_MIN_ROWS_IN_FOLD = 2
#: Rows of a fold, and log-SNRs, of the curve.
_ROWS_OF_CURVE, _LOGSNR = 400, np.linspace(-8.0, 12.0, 41)
#: Rows whose y stand for all, in what an x is expected to tell.
_ROWS_OF_GAIN = 200


class Side:
    """Reader of one of the tables.

    Parameters
    ----------
    table : array-like or data frame of shape (n_samples, n_columns) or (n_samples,)
        The table that it is fitted to.
    name : str
        Name of the parameter, for messages.
    """

    def __init__(self, table: Any, name: str) -> None:
        self.name = name
        frame = read_table(as_table(table, name))
        self.encoder = TableEncoder.fit(
            frame,
            kinds=mixed_kinds(frame),
            allow_missing=True,
            handle_missing="missing",
            handle_unknown="error",
        )

    def read(self, table: Any) -> Array:
        """Return numbers and codes, (n_samples, n_columns); NaN where entries are missing."""
        frame = read_table(as_table(table, self.name))
        if frame.n_columns != len(self.encoder.columns):
            raise ValueError(
                f"{self.name} has {frame.n_columns} columns, but the estimator was fitted to "
                f"{len(self.encoder.columns)}."
            )
        return self.encoder.encode(frame, allow_missing=True)

    @property
    def kinds(self) -> list[str]:
        """Kind of each column."""
        return [column.kind for column in self.encoder.columns]

    @property
    def n_categories(self) -> list[int]:
        """Number of categories of each column, 0 for a continuous one."""
        return [column.n_categories for column in self.encoder.columns]


def as_table(table: Any, name: str) -> Any:
    """Return a table of one or more columns."""
    if table is None:
        raise ValueError(
            f"The estimator requires {name} to be passed, but the target {name} is None."
        )
    table = without_tensors(table)
    if hasattr(table, "to_frame") and not hasattr(table, "columns"):
        return table.to_frame()
    if hasattr(table, "columns"):
        return table
    array = table if hasattr(table, "dtype") else np.asarray(table)
    return array[:, None] if array.ndim == 1 and name != "X" else array


def density_of(
    template: Any, kinds: Sequence[str], n_categories: Sequence[int], columns: Index, seed: int
) -> tuple[Callable[[Index], Any], Columns]:
    """Return what makes unfitted densities, and what the columns are.

    Parameters
    ----------
    template : density estimator or None
        Estimator of continuous and discrete columns; None for the references of
        `IMMSEMixedDensity`, without networks.
    kinds : sequence of str
        Kinds of all columns.
    n_categories : sequence of int
        Numbers of their categories, 0 for continuous ones.
    columns : ndarray of int
        Numbers of the columns that vary, which alone are seen.
    seed : int
        Seed of a density that has none of its own.

    Returns
    -------
    make : callable
        Maps numbers of columns, among those that vary, to an estimator.
    columns : Columns
        What those that vary are.
    """
    if template is None:
        # Normal scores need no other maps, and have no bounds.
        template = IMMSEMixedDensity(max_epochs=0, marginals="standard", bounds=None)
    kinds = [kinds[j] for j in columns]
    counts = np.array([n_categories[j] for j in columns], dtype=np.intp)
    seen = Columns(np.array([kind == "continuous" for kind in kinds]), counts)

    def make(chosen: Index) -> Any:
        own = [kinds[j] for j in chosen]
        density = clone(template)
        if density.random_state is None:
            density.set_params(random_state=seed)
        return density.set_params(
            categorical_features=np.array([kind == "nominal" for kind in own]),
            ordinal_features=np.array([kind == "ordinal" for kind in own]),
            categories={
                n: np.arange(counts[j], dtype=np.float64)
                for n, j in enumerate(chosen)
                if not seen.continuous[j]
            },
        )

    return make, seen


def units_of_table(
    values: Array, is_continuous: NDArray[np.bool_], groups: Index | None
) -> Index | None:
    """Return the units of rows that are not independent of each other: groups, and copies of rows.

    Which equal rows are copies is told by `copies_at_once`.

    Parameters
    ----------
    values : ndarray of shape (n, n_columns)
        Numbers and codes; NaN where entries are missing.
    is_continuous : ndarray of shape (n_columns,), bool
        Columns of numbers.
    groups : ndarray of shape (n,), int, or None
        Groups.

    Returns
    -------
    ndarray of shape (n,), int, or None
        Numbers of the units; None if all rows are independent.
    """
    keys = row_keys(np.where(np.isnan(values), np.inf, values))
    first, number, counts = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True
    )[1:]
    at_once = copies_at_once(values[first], is_continuous, counts)
    if at_once is None:
        return groups
    is_copy = (at_once > 1)[number.ravel()]
    unit = np.where(is_copy, number.ravel(), len(first) + np.arange(len(values)))
    unit = np.unique(unit, return_inverse=True)[1].ravel()
    return unit if groups is None else joined(unit, groups)


def folds_of_table(
    cv: Any, sides: Sequence[Array], unit: Index | None, groups: Index | None, seed: int
) -> Index:
    """Return the folds of rows, of about equal size; units are in one fold if cv is a number.

    Without groups the folds follow from the rows' content, not from their order, and are the same
    if sides change places.
    """
    values = np.concatenate(sides, axis=1)
    if groups is None and isinstance(cv, Integral):
        keys = np.zeros(len(values), dtype=np.uint64)
        for part in sides:
            keys += row_keys(np.where(np.isnan(part), np.inf, part), seed)
        number = np.arange(len(keys)) if unit is None else unit
        first = np.unique(number, return_index=True)[1]
        of_unit = np.empty(len(first), dtype=np.intp)
        # Equal rows are no neighbours: dealt to the folds in turn, they would be alike in all.
        of_unit[np.argsort(keys_apart(keys[first]), kind="stable")] = np.arange(len(first)) % int(
            cv
        )
        return of_unit[number]
    splitter = GroupKFold(int(cv)) if isinstance(cv, Integral) else cv
    fold = folds_of_rows(splitter, values, None, None if groups is None else unit)
    assert fold is not None
    if groups is not None and min(len(np.unique(groups[fold != k])) for k in np.unique(fold)) < 2:
        raise ValueError(
            f"groups has {len(np.unique(groups))} different labels, and the rows outside a fold "
            "have one only, while 2 or more are required to learn from; pass finer groups, or "
            "raise cv."
        )
    return fold


def varying_columns(values: Array) -> Index:
    """Return the numbers of the columns that vary."""
    return np.flatnonzero([len(np.unique(c[~np.isnan(c)])) > 1 for c in values.T])


def check_complete_rows(n_rows: int, n_folds: int, name: str) -> None:
    """Raise a ValueError if there are too few rows for the folds."""
    least = n_folds * _MIN_ROWS_IN_FOLD
    if n_rows < least:
        raise ValueError(
            f"Found {n_rows} sample(s) without missing entries, while a minimum of {least} is "
            f"required by {name}, {_MIN_ROWS_IN_FOLD} for each fold; lower cv if there are no more."
        )


class IMMSEMutualInformation(DocumentationLinkMixin, BaseEstimator):
    r"""Mutual information between two groups of columns of any kinds.

    The pointwise information of a row, :math:`\log p(y \mid x) - \log p(y)`, is averaged over rows
    that the densities have not seen.  Continuous columns are seen through their normal scores,
    which changes no information.  The densities are those of a joint fit, a mixture of references
    of which all parts and conditionals are known in closed form, and for complete tables of
    continuous columns also a normal or Student t copula in which only a few canonical correlations
    are not zero.  They and independence are weighted by the likelihood of y given x.

    Parameters
    ----------
    estimator : IMMSEMixedDensity or None, default=None
        Density of all columns, behind the normal scores of continuous ones.  None for references
        without networks.  With networks (``max_epochs``) the parts of rows that are asked for have
        fits of their own, which takes three to four times as long.
    cv : int, cross-validation generator or iterable, default=5
        Folds, at least 2; each is scored by models of the others.
    random_state : int, RandomState or None, default=None
        Seed of the folds and of the density.

    Attributes
    ----------
    mutual_information_ : float
        Mean pointwise information in nats, at least 0.  It is 0 where the gain over independence is
        less than a standard error.
    standard_error_ : float
        Its standard error, from the spread over rows, or over groups of rows; copies of a row are
        one observation.
    fold_spread_ : float
        Standard deviation of the means of the folds, which differ in rows and in fits.
    pointwise_information_ : ndarray of shape (n_samples,)
        Pointwise information of the rows of `fit`, each by models that have not seen it; NaN for
        rows with missing entries, over which the mean does not go.
    information_curve_ : InformationCurve or None
        Information of columns seen through noise against its log-SNR, under the joint densities;
        None if these have networks, or one of the sides is constant.
    n_features_in_ : int
        Number of columns of X.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns of X, if they are strings.

    See Also
    --------
    sk_itdiffusion.information.mutual_information : The same as a function.
    sk_itdiffusion.information.dependence_matrix : All pairs of columns.
    IMMSEConditionalDensity : Densities of targets given features.

    Notes
    -----
    Two errors are left.  What the conditional density misses of the dependence lowers the estimate,
    and what the marginal density misses of y raises it; both come from the same experts, so that
    most of the second cancels against the first.  The target is the side with fewer columns that
    vary: its density is regular also where the other side lies on a curve.

    Models learn from all rows, also those with missing entries, but the mean is over complete ones.

    References
    ----------
    .. [1] X. Kong, R. Brekelmans, G. Ver Steeg. "Information-Theoretic Diffusion". ICLR 2023.
       https://arxiv.org/abs/2302.03792
    .. [2] P. Czyż, F. Grabowski, J. E. Vogt, N. Beerenwinkel, A. Marx. "Beyond Normal: On the
       Evaluation of Mutual Information Estimators". NeurIPS 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion import IMMSEMutualInformation
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(500, 2))
    >>> y = np.exp(x[:, 0] + rng.normal(size=500))
    >>> information = IMMSEMutualInformation(random_state=0).fit(x, y)
    >>> exact = 0.5 * np.log(2.0)
    >>> bool(abs(information.mutual_information_ - exact) < 0.1)
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "estimator": [HasMethods(["fit", "score_samples"]), None],
        "cv": [Interval(Integral, 2, None, closed="left"), HasMethods(["split"]), list, tuple],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        cv: Any = 5,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.cv = cv
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        given: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Estimate the information between X and y.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            One side; numbers, categories, or both.  Entries may be missing.
        y : array-like or data frame of shape (n_samples,) or (n_samples, n_targets)
            The other side, likewise.
        given : array-like or data frame of shape (n_samples,) or (n_samples, n_given), default=None
            Columns z whose values are known: the information is then I(X; y | z).
        groups : array-like of shape (n_samples,), default=None
            Labels of groups of rows that are not independent of each other.  Each group is in one
            fold, and standard errors are robust to the dependence within groups.  Copies of a row
            are a group too.

        Returns
        -------
        IMMSEMutualInformation
            The fitted estimator.

        Raises
        ------
        ValueError
            If there are too few rows, complete or not, or too few groups, the tables have different
            numbers of rows, values are infinite, or a parameter is out of its range.
        """
        validate_data(self, without_tensors(X), skip_check_array=True)
        self._sides = [Side(X, "X"), Side(y, "y")]
        self._sides += [] if given is None else [Side(given, "given")]
        values = self._read(X, y, given)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        kinds = [kind for side in self._sides for kind in side.kinds]
        n_categories = [n for side in self._sides for n in side.n_categories]
        self._columns, roles = self._varying(values)
        numbers = None if groups is None else checked_groups(groups, values)
        unit = units_of_table(values, np.array(kinds) == "continuous", numbers)
        own = self._parts(values)[1]
        own = own[~np.isnan(own).any(axis=1)]
        self._sample = own[random_order(own, seed)[:_ROWS_OF_GAIN]]
        self._model: InformationModel | None = None
        self.information_curve_: InformationCurve | None = None
        self.pointwise_information_ = np.where(np.isnan(values).any(axis=1), np.nan, 0.0)
        self.mutual_information_ = self.standard_error_ = self.fold_spread_ = 0.0
        fold = self._folds(values, unit, numbers, seed)
        if not (len(roles.x) and len(roles.y)):
            return self
        make, columns = density_of(self.estimator, kinds, n_categories, self._columns, seed)
        varying = values[:, self._columns]
        parts = [roles.without("y"), roles.without("x"), roles.given]
        folds = fit_folds(make, varying, columns, parts, fold, numbers)
        self._model, found = crossfit(folds, varying, roles, fold, unit)
        self.pointwise_information_[:] = np.nan
        self.pointwise_information_[found.used] = found.information
        self.mutual_information_ = found.mean
        self.standard_error_ = found.standard_error
        self.fold_spread_ = found.fold_spread
        self.information_curve_ = self._curve(self._model, varying, fold, unit, seed)
        return self

    def _read(self, X: Any, y: Any, given: Any) -> Array:
        """Return numbers and codes of all columns, those of X first."""
        if (given is None) != (len(self._sides) == 2):
            known = "without" if given is not None else "with"
            raise ValueError(f"The estimator was fitted {known} given; pass the same tables.")
        tables = [X, y] if given is None else [X, y, given]
        values = [side.read(table) for side, table in zip(self._sides, tables, strict=True)]
        sizes = [len(part) for part in values]
        if len(set(sizes)) > 1:
            raise ValueError(f"Found input variables with inconsistent numbers of samples: {sizes}")
        return np.concatenate(values, axis=1)

    def _parts(self, values: Array) -> list[Array]:
        """Return the columns of each side."""
        ends = np.cumsum([len(side.kinds) for side in self._sides])[:-1]
        return np.split(values, ends, axis=1)

    def _varying(self, values: Array) -> tuple[Index, Roles]:
        """Return the columns that vary, and the sides that they are on."""
        side = np.repeat(np.arange(len(self._sides)), [len(each.kinds) for each in self._sides])
        columns = varying_columns(values)
        x, y, given = (np.flatnonzero(side[columns] == k) for k in range(3))
        if len(x) < len(y):
            x, y = y, x
        return columns, Roles(x, y, given)

    def _folds(self, values: Array, unit: Index | None, groups: Index | None, seed: int) -> Index:
        """Return the folds of rows."""
        n_folds = int(self.cv) if isinstance(self.cv, Integral) else 2
        n_complete = int((~np.isnan(values).any(axis=1)).sum())
        check_complete_rows(n_complete, n_folds, type(self).__name__)
        return folds_of_table(self.cv, self._parts(values), unit, groups, seed)

    def _curve(
        self, model: InformationModel, values: Array, fold: Index, unit: Index | None, seed: int
    ) -> InformationCurve | None:
        """Return the information of noisy rows."""
        if model.folds[0].joint.has_networks:
            return None
        is_complete = ~np.isnan(values).any(axis=1)
        order = random_order(values, seed)
        found, rows = [], []
        for number, each in enumerate(model.folds):
            rows.append(order[((fold == number) & is_complete)[order]][:_ROWS_OF_CURVE])
            held = each.scores.transform(values[rows[-1]])
            density = each.joint.densities[0]
            found.append(noisy_information(density, held, model.roles, _LOGSNR, unit is None))
        unit = units_of(unit, np.concatenate(rows))
        return curve_of_rows(_LOGSNR, np.concatenate(found, axis=1), unit)

    def score_samples(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        given: ArrayLike | None = None,
        return_std: bool = False,
    ) -> Array | tuple[Array, Array]:
        """Return the pointwise information of new rows.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            One side.
        y : array-like or data frame of shape (n_samples,) or (n_samples, n_targets), default=None
            The other side.  None gives what X is expected to tell of y: the divergence of
            p(y | x) from p(y), a weighted mean over the y of 200 rows of `fit`, which is at most
            5.3 nats.
        given : array-like or data frame of shape (n_samples,) or (n_samples, n_given), default=None
            Columns whose values are known, if `fit` had such; then y is needed too.
        return_std : bool, default=False
            Whether to return how much the folds disagree, or without y the error of the mean.

        Returns
        -------
        information : ndarray of shape (n_samples,)
            Pointwise information in nats, of either sign.  A row's value does not depend on the
            other rows.  Rows of `fit` have been seen by the models; theirs are in
            ``pointwise_information_``.
        std : ndarray of shape (n_samples,)
            Standard errors of the mean over the models of the folds, or without y of that over y.
            Only if ``return_std``.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If the tables are not like those of `fit`.
        """
        check_is_fitted(self)
        validate_data(self, without_tensors(X), skip_check_array=True, reset=False)
        if y is None:
            gain, error = self._expected_information(X, given)
            return (gain, error) if return_std else gain
        values = self._read(X, y, given)[:, self._columns]
        if self._model is None:
            information, std = np.zeros(len(values)), np.zeros(len(values))
        else:
            information, std = self._model.information(values)
        return (information, std) if return_std else information

    def _expected_information(self, X: Any, given: Any) -> tuple[Array, Array]:
        """Return what rows of X are expected to tell of y, (n,), and standard errors."""
        if given is not None or len(self._sides) > 2:
            raise ValueError("With given columns y is needed.")
        x = self._sides[0].read(X)
        if self._model is None:
            return np.zeros(len(x)), np.zeros(len(x))
        n_y = len(self._sample)
        pairs = np.column_stack([np.repeat(x, n_y, axis=0), np.tile(self._sample, (len(x), 1))])
        ratio = self._model.information(pairs[:, self._columns])[0].reshape(len(x), n_y)
        weight = np.exp(ratio - ratio.max(axis=1, keepdims=True))
        share = n_y * weight / weight.sum(axis=1, keepdims=True)
        log_share = np.log(np.maximum(share, 1e-300))
        gain = (share * log_share).mean(axis=1)
        # What each row of y contributes, to first order, to a mean with weights that sum to 1.
        influence = share * (log_share - gain[:, None]) - (share - 1.0)
        return gain, np.sqrt(np.square(influence).mean(axis=1) / n_y)

    def squared_differences(
        self, X: ArrayLike, y: ArrayLike, given: ArrayLike | None = None
    ) -> Array:
        r"""Return the orthogonal form of the information of rows: squared differences of denoisers.

        It is :math:`\tfrac12 \int \mathrm{d}a\, E_\epsilon \|\hat\epsilon(z_y, a) -
        \hat\epsilon(z_y, a; x)\|^2`, under the joint densities of the fit.  Its mean over rows is
        the information if the densities are right, and has less variance than that of
        `score_samples`.  It is never negative, and so too large where there is little information,
        and too small where densities miss a part of much.  Use it to check the estimate: if both
        differ by more than their errors, the densities miss a part of the dependence, which matters
        less for the estimate itself.  With few rows this is the rule for strong dependence, since
        covariances are shrunk, and the integral ends at a log-SNR of 12, so that 5 nats are the
        most that a pair of columns has.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            One side; some hundred rows are enough.
        y : array-like or data frame of shape (n_samples,) or (n_samples, n_targets)
            The other side.
        given : array-like or data frame of shape (n_samples,) or (n_samples, n_given), default=None
            Columns whose values are known, if `fit` had such.

        Returns
        -------
        ndarray of shape (n_samples,)
            Nats, at least 0, means over the models of the folds; NaN for rows with missing entries.
            A row's value does not depend on the other rows.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If the tables are not like those of `fit`, or the densities have networks.
        """
        check_is_fitted(self)
        validate_data(self, without_tensors(X), skip_check_array=True, reset=False)
        values = self._read(X, y, given)[:, self._columns]
        is_complete = ~np.isnan(values).any(axis=1)
        found = np.where(is_complete, 0.0, np.nan)
        if self._model is None:
            return found
        if self._model.folds[0].joint.has_networks:
            raise ValueError(
                "squared_differences is for densities without networks; set max_epochs=0 in "
                "estimator."
            )
        roles = self._model.roles
        found[is_complete] = np.mean(
            [
                squared_differences(
                    each.joint.densities[0],
                    each.scores.transform(values[is_complete]),
                    roles,
                    _LOGSNR,
                )
                for each in self._model.folds
            ],
            axis=0,
        )
        return found

    def score(self, X: ArrayLike, y: ArrayLike, given: ArrayLike | None = None) -> float:
        """Return the mean pointwise information of new rows, an estimate of the information.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            One side.
        y : array-like or data frame of shape (n_samples,) or (n_samples, n_targets)
            The other side.
        given : array-like or data frame of shape (n_samples,) or (n_samples, n_given), default=None
            Columns whose values are known, if `fit` had such.

        Returns
        -------
        float
            Nats.
        """
        return float(np.mean(self.score_samples(X, y, given)))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "mutual_information_")

    def __sklearn_tags__(self) -> Any:
        """Return the tags: any table is accepted, with missing values, and y is needed."""
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        return tags
