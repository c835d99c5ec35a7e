"""Views of a fitted density: marginal and conditional densities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from sk_itdiffusion._estimators.base import long_call
from sk_itdiffusion._runtime.documentation import DocumentationLinkMixin
from sk_itdiffusion._runtime.progress import stretch_of_progress
from sk_itdiffusion._runtime.warning import warn
from sk_itdiffusion._table.encoding import TableEncoder
from sk_itdiffusion._table.reading import first_few, read_table

if TYPE_CHECKING:
    from sk_itdiffusion._estimators.table import TableEstimator

__all__ = [
    "ColumnNames",
    "ConditionalDensity",
    "MarginalDensity",
    "mask_of_columns",
    "warn_of_networks",
]

Array = NDArray[np.float64]
#: One column or several, by their names or numbers.
ColumnNames = str | int | Sequence[str] | Sequence[int] | NDArray[Any]


def warn_of_networks(density: TableEstimator) -> None:
    """Warn that the networks of a fit are not used for marginal and conditional densities."""
    if not density._model.networks_have_roles:
        warn(
            "Marginal and conditional densities use the references only, since the networks of "
            "this fit were trained on complete rows. They are not those of the density of "
            "complete rows, which is better. Networks that are trained with patterns='any' answer "
            "for parts of rows too. With max_epochs=0 the same references are used for "
            "both, though with other weights for complete rows."
        )


def positions_of_columns(
    density: TableEstimator, columns: ColumnNames, parameter: str, may_be_all: bool = True
) -> NDArray[np.intp]:
    """Return the numbers of columns, in their order.

    Parameters
    ----------
    density : TableEstimator
        A fitted estimator.
    columns : str, int, or sequence of str or int
        Names or numbers.
    parameter : str
        Name of the parameter, for messages.
    may_be_all : bool, default=True
        Whether they may be all columns.

    Returns
    -------
    ndarray of shape (n_chosen,), int
        The numbers.

    Raises
    ------
    ValueError
        If a column is unknown or named twice, or none or (where not allowed) all are named.
    """
    n_columns = density.n_features_in_
    names = getattr(density, "feature_names_in_", None)
    known = {} if names is None else {str(name): j for j, name in enumerate(names)}
    if not isinstance(columns, str | Integral | Iterable):
        raise ValueError(
            f"{parameter} must be the name or the number of a column, or a sequence of these, got "
            f"{columns!r}."
        )
    entries: list[Any] = [columns] if isinstance(columns, str | Integral) else list(columns)
    found, unknown = [], []
    for entry in entries:
        is_number = isinstance(entry, Integral) and not isinstance(entry, bool | np.bool_)
        if isinstance(entry, str) and entry in known:
            found.append(known[entry])
        elif is_number and 0 <= int(entry) < n_columns:
            found.append(int(entry))
        else:
            unknown.append(entry)
    if unknown:
        there = f"the numbers from 0 to {n_columns - 1}"
        if names is not None:
            there = f"{first_few(list(map(str, names)))}, or {there}"
        raise ValueError(
            f"{parameter} names columns that the fitted table does not have: {first_few(unknown)}. "
            f"Its columns are {there}."
        )
    if len(set(found)) < len(found):
        raise ValueError(f"{parameter} names a column twice: {first_few(entries)}.")
    if not found:
        raise ValueError(f"{parameter} must name at least one column.")
    if len(found) == n_columns and not may_be_all:
        raise ValueError(f"{parameter} names all columns, so no other column is left.")
    return np.array(found, dtype=np.intp)


def mask_of_columns(
    density: TableEstimator, columns: ColumnNames, parameter: str, may_be_all: bool = True
) -> NDArray[np.bool_]:
    """Return which columns are named, (n_columns,); see `positions_of_columns`."""
    mask = np.zeros(density.n_features_in_, dtype=bool)
    mask[positions_of_columns(density, columns, parameter, may_be_all)] = True
    return mask


class DensityView(DocumentationLinkMixin, DensityMixin, BaseEstimator):
    """Base class of the views of a fitted density, which they refer to.

    A view is fitted as its density is, and `fit` does nothing.  Its clones are views of the same
    density.
    """

    density: TableEstimator

    def fit(self, X: Any = None, y: object = None) -> Self:
        """Do nothing: the density is already fitted.

        Parameters
        ----------
        X : Ignored
            Not used, present for API consistency by convention.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        object
            The view itself.
        """
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return self.density.__sklearn_is_fitted__()

    def __sklearn_clone__(self) -> Self:
        return type(self)(**self.get_params(deep=False))

    def __sklearn_tags__(self) -> Any:
        """Return the tags: those of the density."""
        return self.density.__sklearn_tags__()

    def _names(self, positions: NDArray[np.intp]) -> list[Any]:
        """Return the names of columns in data frames; their numbers if they have none."""
        names = getattr(self.density, "feature_names_in_", None)
        return [int(j) if names is None else names[j] for j in positions]

    def _read_columns(self, X: Any, positions: NDArray[np.intp], only: bool) -> Array:
        """Return numbers and codes of a table that has some of the columns; NaN for the others.

        Parameters
        ----------
        X : array-like or data frame of shape (n_rows, n_columns)
            A table with these columns, or with all columns of the density.
        positions : ndarray of shape (n_chosen,), int
            Numbers of the columns.
        only : bool
            Whether the table must have no others.

        Returns
        -------
        ndarray of shape (n_rows, n_features)
            Numbers and codes.
        """
        frame = read_table(X).frame.reset_index(drop=True)
        names = self._names(np.arange(self.density.n_features_in_))
        wanted = [names[j] for j in positions]
        by_name = hasattr(X, "columns") and hasattr(self.density, "feature_names_in_")
        if by_name:
            lacking = [name for name in wanted if name not in frame.columns]
            extra = [name for name in frame.columns if name not in wanted] if only else []
            if lacking or extra:
                what = f"lacks {first_few(lacking)}" if lacking else f"has {first_few(extra)} too"
                raise ValueError(f"X must have the columns {first_few(wanted)}, but it {what}.")
            columns = {name: frame[name] for name in wanted}
        else:
            is_whole = frame.shape[1] == len(names) and not only
            if not is_whole and frame.shape[1] != len(wanted):
                more = "" if only else f", or all {len(names)}"
                raise ValueError(
                    f"X must have the {len(wanted)} columns {first_few(wanted)}{more}, got "
                    f"{frame.shape[1]} columns."
                )
            places = positions if is_whole else range(len(wanted))
            pairs = zip(wanted, places, strict=True)
            columns = {name: frame.iloc[:, place] for name, place in pairs}
        others = enumerate(self._usual_values())
        parts = [
            columns[names[j]] if names[j] in columns else pd.Series([value] * len(frame))
            for j, value in others
        ]
        table = pd.concat(parts, axis=1).set_axis(names, axis=1)
        values = self.density._read(table, allow_missing=True)
        values[:, np.setdiff1d(np.arange(len(names)), positions)] = np.nan
        return values

    def _usual_values(self) -> list[Any]:
        """Return a value of each column that the density takes."""
        encoder: TableEncoder | None = getattr(self.density, "_encoder", None)
        if encoder is None:
            return [np.nan] * self.density.n_features_in_
        categories = [column.categories for column in encoder.columns]
        return [np.nan if each is None else each[0] for each in categories]

    def _seed(self, random_state: int | np.random.RandomState | None) -> int:
        """Return the seed of draws."""
        chosen = self.density.random_state if random_state is None else random_state
        return int(check_random_state(chosen).randint(2**31 - 1))


def check_number_of_samples(n_samples: object) -> None:
    """Raise an error if a number of draws is not a positive integer."""
    if not isinstance(n_samples, Integral) or n_samples < 1:
        raise ValueError(f"n_samples must be an integer of at least 1, got {n_samples!r}.")


class MarginalDensity(DensityView):
    """Marginal density of some columns of a table.

    A view of a fitted density, returned by its method ``marginal``.  It uses the mixture of the
    density's references, whose marginals are known in closed form, and networks that were
    trained on parts of rows (``patterns="any"``) where they are better.

    Parameters
    ----------
    density : IMMSEDensity, IMMSEMixedDensity or IMMSEDiscreteDensity
        Fitted density of all columns.
    columns : str, int, or sequence of str or int
        Names or numbers of the columns.

    See Also
    --------
    ConditionalDensity : Density of the other columns given some.

    Notes
    -----
    `sklearn.base.clone` makes another view of the same fitted density.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion import IMMSEDensity
    >>> X = np.random.default_rng(0).normal(size=(500, 3)) * [1.0, 2.0, 3.0]
    >>> density = IMMSEDensity(max_epochs=0, random_state=0).fit(X)
    >>> density.marginal([0, 1]).score_samples([[0.0, 0.0]]).round(0)
    array([-3.])
    """

    def __init__(self, density: TableEstimator, columns: ColumnNames) -> None:
        self.density = density
        self.columns = columns

    @property
    def n_features_in_(self) -> int:
        """Number of the columns."""
        return len(self._positions)

    @property
    def feature_names_in_(self) -> NDArray[np.object_]:
        """Names of the columns, of shape (`n_features_in_`,), if those of the density have any."""
        if not hasattr(self.density, "feature_names_in_"):
            raise AttributeError("The columns have no names.")
        return np.array(self._names(self._positions), dtype=object)

    @property
    def _positions(self) -> NDArray[np.intp]:
        return positions_of_columns(self.density, self.columns, "columns")

    def score_samples(
        self, X: ArrayLike, return_std: bool = False, score_tol: float | str | None = None
    ) -> Array | tuple[Array, Array]:
        """Return the log-density, or log-probability, of the columns of each row.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, `n_features_in_`)
            Rows of these columns, in any order if they have names; entries may be missing.
        return_std : bool, default=False
            Whether to return standard errors too.
        score_tol : float, "auto" or None, default=None
            Target standard error of each row, in nats; None uses the parameter of the density.

        Returns
        -------
        log_density : ndarray of shape (n_samples,)
            Log-densities in nats.
        std : ndarray of shape (n_samples,)
            Standard errors in nats: those of the integral if networks with roles answer, and of
            the noise of dequantisation; else 0.  Only if ``return_std``.

        Raises
        ------
        ValueError
            If X has other columns, or values that the density does not accept.
        """
        check_is_fitted(self)
        values = self._read_columns(X, self._positions, only=True)
        warn_of_networks(self.density)
        nothing = np.zeros(values.shape[1], dtype=bool)
        tolerance = self.density._tolerance(score_tol)
        model = self.density._model
        with long_call(self, "score_samples", self.density.verbose):
            log_density, variance = model.log_density_of_parts(values, tolerance, nothing)
        return (log_density, np.sqrt(variance)) if return_std else log_density

    def score(self, X: ArrayLike, y: object = None) -> float:
        """Return the mean log-density of the columns of rows.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, `n_features_in_`)
            Rows of these columns.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        float
            Mean log-density in nats per row; higher is better.
        """
        return float(np.mean(self.score_samples(X)))

    def sample(
        self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None
    ) -> Any:
        """Draw random rows of these columns.

        Parameters
        ----------
        n_samples : int, default=1
            Rows to draw, at least 1.
        random_state : int, RandomState or None, default=None
            Seed; None uses that of the density.

        Returns
        -------
        ndarray or DataFrame of shape (n_samples, `n_features_in_`)
            Random rows, in the same container as the table that was fitted.

        Raises
        ------
        ValueError
            If ``n_samples`` is not a positive integer.
        """
        check_is_fitted(self)
        check_number_of_samples(n_samples)
        warn_of_networks(self.density)
        unknown = np.full((int(n_samples), self.density.n_features_in_), np.nan)
        with long_call(self, "sample", self.density.verbose):
            values = self.density._model.complete(unknown, 1, self._seed(random_state))[0]
        return columns_of(self.density._write(values), self._positions)


class ConditionalDensity(DensityView):
    """Conditional density of columns of a table given the others.

    A view of a fitted density, returned by its method ``conditional``.  It uses the mixture of the
    density's references, whose conditionals are known in closed form, and networks that were
    trained on parts of rows (``patterns="any"``) where they are better.

    Parameters
    ----------
    density : IMMSEDensity, IMMSEMixedDensity or IMMSEDiscreteDensity
        Fitted density of all columns.
    given : str, int, or sequence of str or int
        Names or numbers of the columns that are given; all others are targets.

    See Also
    --------
    MarginalDensity : Density of some columns alone.

    Notes
    -----
    `sklearn.base.clone` makes another view of the same fitted density.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion import IMMSEDensity
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=1000)
    >>> X = np.column_stack([x, 2.0 * x + rng.normal(size=1000)])
    >>> density = IMMSEDensity(max_epochs=0, random_state=0).fit(X)
    >>> draws = density.conditional(0).sample([[1.0], [-1.0]], n_samples=500, random_state=0)
    >>> draws.shape, draws.mean(axis=1).round(0).ravel().tolist()
    ((2, 500, 1), [2.0, -2.0])
    """

    #: The column is no metadata that a meta-estimator would pass on.
    __metadata_request__predict_proba: ClassVar[dict[str, str]] = {"column": UNUSED}

    def __init__(self, density: TableEstimator, given: ColumnNames) -> None:
        self.density = density
        self.given = given

    @property
    def n_features_in_(self) -> int:
        """Number of columns of the whole table."""
        return self.density.n_features_in_

    @property
    def feature_names_in_(self) -> NDArray[np.object_]:
        """Names of the columns of the whole table, if they have any."""
        names: NDArray[np.object_] = self.density.feature_names_in_
        return names

    @property
    def _positions(self) -> NDArray[np.intp]:
        return positions_of_columns(self.density, self.given, "given", may_be_all=False)

    @property
    def _targets(self) -> NDArray[np.intp]:
        return np.setdiff1d(np.arange(self.n_features_in_), self._positions)

    def score_samples(
        self, X: ArrayLike, return_std: bool = False, score_tol: float | str | None = None
    ) -> Array | tuple[Array, Array]:
        """Return the log-density, or log-probability, of the targets given the others.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, `n_features_in_`)
            Rows of the whole table; entries may be missing.
        return_std : bool, default=False
            Whether to return standard errors too.
        score_tol : float, "auto" or None, default=None
            Target standard error of each row, in nats; None uses the parameter of the density.

        Returns
        -------
        log_density : ndarray of shape (n_samples,)
            Log-densities in nats.
        std : ndarray of shape (n_samples,)
            Standard errors in nats: those of the integral if networks with roles answer, and of
            the noise of dequantisation; else 0.  Only if ``return_std``.
        """
        return self.density.score_samples(X, return_std, score_tol, given=self.given)

    def score(self, X: ArrayLike, y: object = None) -> float:
        """Return the mean log-density of the targets of rows given the others.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, `n_features_in_`)
            Rows of the whole table.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        float
            Mean log-density in nats per row; higher is better.
        """
        return self.density.score(X, given=self.given)

    def sample(
        self,
        X: ArrayLike,
        n_samples: int = 1,
        random_state: int | np.random.RandomState | None = None,
        output: str | None = None,
    ) -> Any:
        """Draw the targets of rows, given the other columns.

        Parameters
        ----------
        X : array-like or data frame of shape (n_rows, n_columns)
            A table that has at least the given columns; arrays have these, in the order of
            ``given``, or all.  Values of the targets are ignored.  Given entries may be missing.
        n_samples : int, default=1
            Draws for each row, at least 1.
        random_state : int, RandomState or None, default=None
            Seed; None uses that of the density.  The draws of a row are determined by it and by
            the given entries; equal rows have different draws.
        output : {"array", "frame"} or None, default=None
            Container of the draws; None for that of the table that was fitted.

        Returns
        -------
        ndarray of shape (n_rows, n_samples, n_targets), or DataFrame
            The draws, in the units and categories of the table.  A data frame has one row for each
            row of X and draw: of pandas with the levels ``row``, the index of X, and ``draw`` in
            its index, and of polars with these two as columns, where rows are numbered.

        Raises
        ------
        ValueError
            If given columns are missing from X, it has values that the density does not accept, or
            a parameter is out of range.
        """
        check_is_fitted(self)
        check_number_of_samples(n_samples)
        if output not in (None, "array", "frame"):
            raise ValueError(f"output must be 'array', 'frame' or None, got {output!r}.")
        values = self._read_columns(X, self._positions, only=False)
        warn_of_networks(self.density)
        model = self.density._model
        with long_call(self, "sample", self.density.verbose):
            draws = model.complete(values, int(n_samples), self._seed(random_state)).swapaxes(0, 1)
        rows = draws.reshape(-1, draws.shape[2])
        # Unknown values cannot be written; those of the given columns are not needed.
        rows[:, self._positions] = model.space.constant_values[self._positions]
        table = columns_of(self.density._write(rows), self._targets)
        if output == "array" or (output is None and isinstance(table, np.ndarray)):
            array = table if isinstance(table, np.ndarray) else table.to_numpy()
            return array.reshape(*draws.shape[:2], -1)
        return self._as_frame(table, X, int(n_samples))

    def predict_proba(self, X: ArrayLike, column: str | int | None = None) -> Array:
        """Return the probabilities of the categories of a target, given the given columns.

        Other targets count as missing.  The probabilities are those that `score_samples` has the
        logarithms of, divided by their sum over the categories of the fit.

        Parameters
        ----------
        X : array-like or data frame of shape (n_rows, n_columns)
            A table that has at least the given columns; see `sample`.
        column : str, int or None, default=None
            Name or number of the target; None if there is one only.

        Returns
        -------
        ndarray of shape (n_rows, n_categories)
            Probabilities of the categories, in the order of ``density.categories_``.

        Raises
        ------
        ValueError
            If the column is no target, has no categories, or is not named though there are several
            targets, or if X lacks given columns or has values that the density does not accept.

        Examples
        --------
        >>> import numpy as np
        >>> import pandas as pd
        >>> from sk_itdiffusion import IMMSEMixedDensity
        >>> rng = np.random.default_rng(0)
        >>> kind = rng.choice(["a", "b"], size=600)
        >>> table = pd.DataFrame({"kind": kind, "size": rng.normal(size=600) + 2 * (kind == "b")})
        >>> density = IMMSEMixedDensity(max_epochs=0, random_state=0).fit(table)
        >>> new = pd.DataFrame({"size": [-1.0, 3.0]})
        >>> probability = density.conditional("size").predict_proba(new)
        >>> density.categories_[0][probability.argmax(axis=1)].tolist()
        ['a', 'b']
        """
        check_is_fitted(self)
        target, n_categories = self._target_with_categories(column)
        values = self._read_columns(X, self._positions, only=False)
        warn_of_networks(self.density)
        given = mask_of_columns(self.density, self.given, "given", may_be_all=False)
        tolerance = self.density._tolerance(None)
        logs = np.empty((len(values), n_categories))
        with long_call(self, "predict_proba", self.density.verbose):
            for code in range(n_categories):
                values[:, target] = code
                with stretch_of_progress(code / n_categories, (code + 1) / n_categories):
                    found = self.density._model.log_density_of_parts(values, tolerance, given)
                logs[:, code] = found[0]
        return np.asarray(softmax(logs, axis=1))

    def _target_with_categories(self, column: str | int | None) -> tuple[int, int]:
        """Return the number of a target, and how many categories it has."""
        targets = self._targets
        if column is None and len(targets) > 1:
            names = first_few(self._names(targets))
            raise ValueError(f"column must name one of the {len(targets)} targets {names}.")
        if column is None:
            target = int(targets[0])
        elif isinstance(column, str | Integral):
            target = int(positions_of_columns(self.density, column, "column")[0])
        else:
            raise ValueError(f"column must be the name or the number of one, got {column!r}.")
        (name,) = self._names(np.array([target]))
        if target not in targets:
            raise ValueError(f"column {name!r} is given, so it is no target.")
        categories = getattr(self.density, "categories_", None)
        known = None if categories is None else categories[target]
        if known is None:
            raise ValueError(
                f"column {name!r} has no categories, so its values have densities: use "
                "score_samples, or sample."
            )
        return target, len(known)

    def _as_frame(self, table: Any, X: Any, n_samples: int) -> Any:
        """Return draws, one below the other, as a data frame that says of which row they are."""
        index = X.index if isinstance(X, pd.DataFrame) else range(len(table) // n_samples)
        if isinstance(table, np.ndarray):
            table = pd.DataFrame(table, columns=self._names(self._targets))
        if isinstance(table, pd.DataFrame):
            levels = pd.MultiIndex.from_product([index, range(n_samples)], names=["row", "draw"])
            return table.set_axis(levels, axis=0)
        import polars  # the density was fitted to a polars data frame

        number = np.arange(len(table))
        places = polars.DataFrame({"row": number // n_samples, "draw": number % n_samples})
        return polars.concat([places, table], how="horizontal")


def columns_of(table: Any, positions: NDArray[np.intp]) -> Any:
    """Return some columns of an array or a data frame."""
    if isinstance(table, np.ndarray):
        return table[:, positions]
    if isinstance(table, pd.DataFrame):
        return table.iloc[:, positions]
    return table[:, positions.tolist()]
