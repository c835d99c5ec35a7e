"""Views of a fitted density: what they have in common, and marginal densities."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from sk_itdiffusion._first._estimators.base import long_call
from sk_itdiffusion._first._estimators.columns import ColumnNames, positions_of_columns
from sk_itdiffusion._first._runtime.documentation import DocumentationLinkMixin
from sk_itdiffusion._first._runtime.warning import warn
from sk_itdiffusion._first._table.encoding import TableEncoder
from sk_itdiffusion._first._table.reading import first_few, read_table

if TYPE_CHECKING:
    from sk_itdiffusion._first._estimators.table import TableEstimator

__all__ = [
    "DensityView",
    "MarginalDensity",
    "check_number_of_samples",
    "columns_of",
    "warn_of_networks",
]

Array = NDArray[np.float64]


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
        is_asked = np.isin(np.arange(len(names)), positions)
        return np.where(is_asked, values, np.nan)

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


def check_number_of_samples(n_samples: object, parameter: str = "n_samples") -> None:
    """Raise an error if a number of draws is not a positive integer."""
    if not isinstance(n_samples, Integral) or n_samples < 1:
        raise ValueError(f"{parameter} must be an integer of at least 1, got {n_samples!r}.")


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


def columns_of(table: Any, positions: NDArray[np.intp]) -> Any:
    """Return some columns of an array or a data frame."""
    if isinstance(table, np.ndarray):
        return table[:, positions]
    if isinstance(table, pd.DataFrame):
        return table.iloc[:, positions]
    return table[:, positions.tolist()]
