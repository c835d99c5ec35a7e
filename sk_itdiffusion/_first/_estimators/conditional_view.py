"""Conditional densities of columns of a fitted density."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from sk_itdiffusion._first._estimators.base import long_call
from sk_itdiffusion._first._estimators.columns import (
    ColumnNames,
    kinds_of_columns,
    mask_of_columns,
    positions_of_columns,
)
from sk_itdiffusion._first._estimators.imputed_values import completed_by_summaries
from sk_itdiffusion._first._estimators.views import (
    DensityView,
    check_number_of_samples,
    columns_of,
    warn_of_networks,
)
from sk_itdiffusion._first._runtime.progress import stretch_of_progress
from sk_itdiffusion._first._table.reading import first_few

if TYPE_CHECKING:
    from sk_itdiffusion._first._estimators.table import TableEstimator

__all__ = ["ConditionalDensity"]

Array = NDArray[np.float64]


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
            Probabilities of the categories, in the order of ``density.categories_[j]``, where j is
            the number of the target in the table: of nominal columns, also boolean ones, from the
            most to the least frequent in `fit`, and not sorted.

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
        target = self._target_with_categories(column)
        values = self._read_columns(X, self._positions, only=False)
        warn_of_networks(self.density)
        with long_call(self, "predict_proba", self.density.verbose):
            return self._probabilities(values, target)

    def _probabilities(self, values: Array, target: int) -> Array:
        """Return the probabilities of the categories of a target, (n_rows, n_categories)."""
        categories = self.density.categories_[target]
        given = mask_of_columns(self.density, self.given, "given", may_be_all=False)
        tolerance = self.density._tolerance(None)
        asked, logs = values.copy(), np.empty((len(values), len(categories)))
        for code in range(len(categories)):
            asked[:, target] = code
            with stretch_of_progress(code / len(categories), (code + 1) / len(categories)):
                found = self.density._model.log_density_of_parts(asked, tolerance, given)
            logs[:, code] = found[0]
        return np.asarray(softmax(logs, axis=1))

    def mean(self, X: ArrayLike, columns: ColumnNames | None = None, n_draws: int = 1000) -> Any:
        """Return the means of the targets, given the given columns.

        Parameters
        ----------
        X : array-like or data frame of shape (n_rows, n_columns)
            A table that has at least the given columns; see `sample`.
        columns : str, int, sequence of str or int, or None, default=None
            Names or numbers of targets; None for all.
        n_draws : int, default=1000
            Draws of each row whose mean that of a continuous target is, at least 1.  Its standard
            error is the conditional standard deviation divided by the root of ``n_draws``.

        Returns
        -------
        ndarray or DataFrame of shape (n_rows, n_targets)
            Means in the units of the columns, in the container of the table that was fitted; data
            frames of pandas have the index of X.  Of ordinal columns they are the means of the
            numbers that are the categories, with the probabilities of `predict_proba`.  Those of a
            row are the same in each call, whatever the other rows are.

        Raises
        ------
        ValueError
            If a column is no target, or has categories that are no ordered numbers, if ``n_draws``
            is not a positive integer, or if X lacks given columns or has values that the density
            does not accept.

        Examples
        --------
        >>> import numpy as np
        >>> from sk_itdiffusion import IMMSEDensity
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=1000)
        >>> X = np.column_stack([x, 2.0 * x + rng.normal(size=1000)])
        >>> density = IMMSEDensity(max_epochs=0, random_state=0).fit(X)
        >>> density.conditional(0).mean([[1.0], [-1.0]]).round(0).ravel().tolist()
        [2.0, -2.0]
        """
        check_is_fitted(self)
        chosen = self._chosen_targets(columns)
        kinds = kinds_of_columns(self.density)
        wrong = [j for j in chosen if kinds[j] != "continuous" and not self._has_numbers(j, kinds)]
        if wrong:
            raise ValueError(
                f"Target(s) {first_few(self._names(np.array(wrong)))} have categories that are no "
                "ordered numbers, so they have no mean: name other targets in columns, or use mode "
                "or predict_proba."
            )
        found = self._summaries(X, chosen, n_draws, "mean")
        rows = np.tile(self.density._model.space.constant_values, (len(found), 1))
        table = self._in_container(rows, chosen, X)
        if isinstance(table, np.ndarray):
            return found
        # Means of columns of integers are none.
        if isinstance(table, pd.DataFrame):
            return pd.DataFrame(found, columns=table.columns, index=table.index)
        return type(table)(found, schema=list(table.columns))

    def mode(self, X: ArrayLike, columns: ColumnNames | None = None, n_draws: int = 200) -> Any:
        """Return the most probable categories, and densest values, of targets.

        Each target has the mode of its own distribution given the given columns, in which the other
        targets count as missing.

        Parameters
        ----------
        X : array-like or data frame of shape (n_rows, n_columns)
            A table that has at least the given columns; see `sample`.
        columns : str, int, sequence of str or int, or None, default=None
            Names or numbers of targets; None for all.
        n_draws : int, default=200
            Draws of each row among which the mode of a continuous target is, at least 1: the one
            where their kernel density is highest.

        Returns
        -------
        ndarray or DataFrame of shape (n_rows, n_targets)
            Categories, those of the highest probability in `predict_proba`, and numbers, in the
            container of the table that was fitted; data frames of pandas have the index of X.
            Those of a row are the same in each call, whatever the other rows are.

        Raises
        ------
        ValueError
            If a column is no target, ``n_draws`` is not a positive integer, or X lacks given
            columns or has values that the density does not accept.

        Examples
        --------
        >>> import numpy as np
        >>> import pandas as pd
        >>> from sk_itdiffusion import IMMSEMixedDensity
        >>> rng = np.random.default_rng(0)
        >>> kind = rng.choice(["a", "b"], size=600)
        >>> table = pd.DataFrame({"kind": kind, "size": rng.normal(size=600) + 2 * (kind == "b")})
        >>> density = IMMSEMixedDensity(max_epochs=0, random_state=0).fit(table)
        >>> density.conditional("size").mode(pd.DataFrame({"size": [-1.0, 3.0]}))
          kind
        0    a
        1    b
        """
        check_is_fitted(self)
        chosen = self._chosen_targets(columns)
        found = self._summaries(X, chosen, n_draws, "mode")
        rows = np.tile(self.density._model.space.constant_values, (len(found), 1))
        rows[:, chosen] = found
        return self._in_container(rows, chosen, X)

    def _summaries(
        self, X: Any, chosen: NDArray[np.intp], n_draws: int, strategy: str
    ) -> NDArray[np.float64]:
        """Return means or modes of targets, (n_rows, n_chosen); modes of categories are codes.

        Those of categories come from their probabilities, others from draws.
        """
        check_number_of_samples(n_draws, "n_draws")
        values = self._read_columns(X, self._positions, only=False)
        warn_of_networks(self.density)
        model, kinds = self.density._model, kinds_of_columns(self.density)
        found = np.empty((len(values), len(chosen)))
        discrete = [i for i, j in enumerate(chosen) if kinds[j] != "continuous"]
        numbers = [i for i, j in enumerate(chosen) if kinds[j] == "continuous"]
        n_parts = len(discrete) + bool(numbers)
        with long_call(self, strategy, self.density.verbose):
            for part, i in enumerate(discrete):
                with stretch_of_progress(part / n_parts, (part + 1) / n_parts):
                    probability = self._probabilities(values, int(chosen[i]))
                if strategy == "mode":
                    found[:, i] = probability.argmax(axis=1)
                else:
                    levels = self.density.categories_[chosen[i]]
                    found[:, i] = probability @ np.asarray(levels, dtype=np.float64)
            if numbers:
                asked = [
                    "continuous" if j in chosen[numbers] else None for j in range(values.shape[1])
                ]
                with stretch_of_progress(len(discrete) / n_parts, 1.0):
                    filled = completed_by_summaries(
                        values,
                        asked,
                        strategy,
                        int(n_draws),
                        lambda part: model.complete(
                            part, int(n_draws), model.seeds.scoring, equal_rows_differ=False
                        ),
                    )
                found[:, numbers] = filled[:, chosen[numbers]]
        return found

    def _has_numbers(self, j: int, kinds: Sequence[str]) -> bool:
        """Return whether the categories of a discrete column are ordered numbers."""
        categories = self.density.categories_[j]
        return kinds[j] == "ordinal" and all(
            isinstance(each, Real) and not isinstance(each, bool | np.bool_) for each in categories
        )

    def _in_container(self, rows: Array, chosen: NDArray[np.intp], X: Any) -> Any:
        """Return columns of rows as the fitted table has them, with the index of X."""
        table = columns_of(self.density._write(rows), chosen)
        if isinstance(table, pd.DataFrame) and isinstance(X, pd.DataFrame):
            return table.set_axis(X.index, axis=0)
        return table

    def _chosen_targets(self, columns: ColumnNames | None) -> NDArray[np.intp]:
        """Return the numbers of some targets, of all with None."""
        if columns is None:
            return self._targets
        chosen = positions_of_columns(self.density, columns, "columns")
        given = chosen[~np.isin(chosen, self._targets)]
        if len(given):
            raise ValueError(
                f"columns names {first_few(self._names(given))}, which are given, so they are no "
                "targets."
            )
        return chosen

    def _target_with_categories(self, column: str | int | None) -> int:
        """Return the number of a target, which must have categories."""
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
                "score_samples, mean, mode or sample."
            )
        return target

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
