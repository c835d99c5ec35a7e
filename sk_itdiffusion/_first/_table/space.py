"""How the columns of a table become the rows that a model sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._table.bounds import check_inside, outside, unbounded
from sk_itdiffusion._first._table.marginals import MarginalMap, Standardizer
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first.layout import Layout, Variable, lattice_values
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import (
    check_finite,
    check_in_range,
    check_same,
    check_shapes,
)

__all__ = ["ColumnKind", "TableSpace", "make_layout"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]

#: Width, relative to its value (or 1), that a continuous column without variation is given.
CONSTANT_WIDTH = 1e-3
#: Size below which a constant counts as 0, since a share of it would be no number.
MIN_CONSTANT = 1e-300
#: How far, and at how many points, maps of columns that are loaded are checked.
FARTHEST_IN_MAPS, POINTS_IN_MAPS = 8.0, 129


@stored()
@dataclass(frozen=True)
class ColumnKind:
    """Kind of a column whose values are numbers or codes.

    Attributes
    ----------
    n_categories : int
        Number of codes of a discrete column; 0 for a continuous one.
    ordered : bool
        Whether the codes have an order.
    log_seen : float
        Log-probability that a value is one of the categories.
    """

    n_categories: int = 0
    ordered: bool = False
    log_seen: float = 0.0


def make_layout(
    kinds: Sequence[ColumnKind], rows: WeightedRows, n_continuous: int, shared: bool
) -> Layout:
    """Return the layout of discrete columns with lattices standardised on rows.

    Parameters
    ----------
    kinds : sequence of ColumnKind
        Kinds of the discrete columns, each with at least 2 categories.
    rows : WeightedRows
        Rows: continuous columns, then codes; entries may be missing.
    n_continuous : int
        Continuous columns.
    shared : bool
        Whether all lattices are one and the same, as for the pixels of an image.

    Returns
    -------
    Layout
        The layout.
    """
    codes = rows.X[:, n_continuous:]
    if rows.has_missing:
        center, variance = moments_of_observed(codes, rows.weight)
    else:
        center = rows.share @ codes
        variance = rows.share @ (codes - center) ** 2
    if shared and len(kinds):
        variance = np.full(len(kinds), variance.mean() + center.var())
        center = np.full(len(kinds), center.mean())
    return Layout(
        n_continuous,
        [
            Variable(
                kind.n_categories,
                lattice_values(kind.n_categories, center[j], math.sqrt(variance[j]))
                if kind.ordered or kind.n_categories == 2
                else None,
            )
            for j, kind in enumerate(kinds)
        ],
    )


def moments_of_observed(codes: Array, weight: Array) -> tuple[Array, Array]:
    """Return means and variances of the observed codes of columns, each of shape (m,)."""
    seen = ~np.isnan(codes)
    total = np.maximum(weight @ seen, np.finfo(np.float64).tiny)
    center = weight @ np.where(seen, codes, 0.0) / total
    return center, weight @ np.where(seen, codes - center, 0.0) ** 2 / total


@stored()
@dataclass(frozen=True)
class TableSpace:
    """Maps between a table's values and a model's rows.

    Attributes
    ----------
    n_columns : int
        Columns of the table.
    continuous, discrete : ndarray of int
        Continuous columns that vary, and discrete columns of at least 2 categories.
    constant : ndarray of int
        Continuous columns without variation.
    constant_values : ndarray of shape (n_columns,)
        Values of columns without variation.
    standardizer, marginal_map
        Maps of the continuous columns that vary.
    layout : Layout
        Where the columns are in the points of the denoisers.
    log_seen : ndarray of shape (n_columns,)
        Log-probabilities that the values of columns are categories; 0 for continuous columns.
    is_mapped : bool
        Whether the marginal map is the final one, fitted or given.
    bounds : ndarray of shape (n_continuous, 2) or None
        Bounds of the continuous columns that vary, infinite where there are none; None if there
        are none at all.
    anchored : sequence of int
        Numbers, among these columns, of those that are standardised around a bound, which maps may
        or may not respect.
    share_beyond : float
        Probability that is kept for values beyond the bounds, of all columns together; 0 if they
        are impossible.
    """

    n_columns: int
    continuous: Index
    discrete: Index
    constant: Index
    constant_values: Array
    standardizer: Standardizer
    marginal_map: MarginalMap
    layout: Layout
    log_seen: Array
    is_mapped: bool = False
    bounds: Array | None = None
    anchored: Sequence[int] = ()
    share_beyond: float = 0.0

    @property
    def in_rows(self) -> Index:
        """Columns of the table that are in the model's rows, in the order that they have there."""
        return np.concatenate([self.continuous, self.discrete])

    @property
    def is_discrete(self) -> bool:
        """Whether no continuous column varies, so that equal rows are no sign of anything."""
        return len(self.continuous) == 0 and len(self.discrete) > 0

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to model."""
        return len(self.continuous) + len(self.discrete) == 0

    def standardized(self, values: Array) -> Array:
        """Return standardised continuous columns and codes, (n, n_continuous + m)."""
        continuous = self.standardizer.transform(values[:, self.continuous])
        return np.ascontiguousarray(np.hstack([continuous, values[:, self.discrete]]))

    def rows(self, standardized: Array) -> tuple[Array, Array]:
        """Return the model's rows and the log-derivatives of their maps from the values.

        Missing entries stay missing, and have no derivatives.
        """
        n_continuous = len(self.continuous)
        mapped, log_slope = self.marginal_map.transform(standardized[:, :n_continuous])
        rows = np.ascontiguousarray(np.hstack([mapped, standardized[:, n_continuous:]]))
        return rows, log_slope - self.log_scales(standardized)

    def log_scales(self, standardized: Array) -> Array:
        """Return the sums of the log-scales of the observed continuous columns of rows, (n,)."""
        log_scale = np.log(self.standardizer.scale)
        missing = np.isnan(standardized[:, : len(self.continuous)])
        total = np.full(len(standardized), log_scale.sum())
        lacking = np.flatnonzero(missing.any(axis=1))
        total[lacking] = np.where(missing[lacking], 0.0, log_scale).sum(axis=1)
        return total

    def behind(self, marginal_map: MarginalMap) -> TableSpace:
        """Return the space with another map of the continuous columns."""
        return replace(self, marginal_map=marginal_map, is_mapped=True)

    def values(self, rows: Array) -> Array:
        """Return the table's values of rows."""
        table = np.tile(self.constant_values, (len(rows), 1))
        n_continuous = len(self.continuous)
        if n_continuous:
            standardized = self.marginal_map.inverse(rows[:, :n_continuous])
            table[:, self.continuous] = self._inside(self.standardizer.inverse(standardized))
        table[:, self.discrete] = rows[:, n_continuous:]
        return table

    @property
    def open(self) -> Index:
        """Columns that may have other values than their categories, or values beyond bounds."""
        return np.union1d(np.flatnonzero(self.log_seen), self.bounded)

    @property
    def log_known(self) -> Array:
        """Log-probabilities that values are categories, or between bounds, (n_columns,)."""
        log_known = self.log_seen.copy()
        log_known[self.bounded] = math.log1p(-self._share_beyond_a_column)
        return log_known

    @property
    def _share_beyond_a_column(self) -> float:
        """Probability of a value beyond the bounds of its column, the same for all that have any.

        Whether an entry is beyond, and where, is independent of all others.
        """
        return self.share_beyond / max(1, len(self.bounded))

    def unseen_log_odds(self, values: Array) -> Array:
        """Return by how much values that denoisers do not know change the log-densities of rows.

        These are other values than categories, and values beyond bounds.  Of each it is the
        log-density less the log-probability of all that the column may have otherwise; the shape
        is (n, n_open).  Beyond bounds it is that of an exponential distribution whose mean is the
        standard deviation of the column.
        """
        odds = np.where(values < 0.0, values - self.log_seen, 0.0)
        odds[:, self.log_seen == 0.0] = 0.0
        if self.bounds is not None:
            odds[:, self.continuous] = self._log_odds_beyond(values[:, self.continuous])
        return np.ascontiguousarray(odds[:, self.open])

    def _log_odds_beyond(self, continuous: Array) -> Array:
        """Return what `unseen_log_odds` does, of continuous columns."""
        assert self.bounds is not None
        low, high = self.bounds.T
        scale, share = self.standardizer.scale, self._share_beyond_a_column
        with np.errstate(over="ignore"):  # minus infinity so far out
            distance = np.maximum(low - continuous, continuous - high).clip(0.0) / scale
        n_sides = np.maximum(np.isfinite(self.bounds).sum(axis=1), 1)
        log_share = math.log(share) - math.log1p(-share) if share > 0.0 else -math.inf
        log_odds = log_share - np.log(n_sides) - np.log(scale) - distance
        return np.where(outside(continuous, self.bounds), log_odds, 0.0)

    def known(self, values: Array) -> Array:
        """Return values, NaN in the place of those that denoisers do not know."""
        unseen = (values < 0.0) & (self.log_seen < 0.0)
        return np.where(unseen | self.entries_outside(values), np.nan, values)

    def is_complete(self, rows: Array) -> NDArray[np.bool_]:
        """Return which rows, the model's or standardised ones, have no unknown entries."""
        n_continuous = len(self.continuous)
        lacks_number = np.isnan(rows[:, :n_continuous]).any(axis=1)
        codes = np.ascontiguousarray(rows[:, n_continuous:])
        return np.asarray((codes >= 0.0).all(axis=1) & ~lacks_number)

    def _inside(self, continuous: Array) -> Array:
        """Return values that rounding has taken to a bound, just inside of it."""
        if self.bounds is None:
            return continuous
        low, high = self.bounds.T
        least = np.where(np.isfinite(low), np.nextafter(low, np.inf), -np.inf)
        greatest = np.where(np.isfinite(high), np.nextafter(high, -np.inf), np.inf)
        return np.asarray(np.clip(continuous, least, greatest))

    @property
    def bounded(self) -> Index:
        """Columns that have a bound."""
        if self.bounds is None:
            return np.arange(0)
        return np.asarray(self.continuous[np.isfinite(self.bounds).any(axis=1)])

    def entries_outside(self, values: Array) -> NDArray[np.bool_]:
        """Return which values are not between the bounds of their columns, (n, n_columns)."""
        found = np.zeros(values.shape, dtype=bool)
        if self.bounds is not None:
            found[:, self.continuous] = outside(values[:, self.continuous], self.bounds)
        return found

    def check_inside(self, values: Array, labels: Sequence[str]) -> None:
        """Raise an error that names a column and a value which is not between its bounds."""
        if self.bounds is not None:
            check_inside(
                values[:, self.continuous],
                self.bounds,
                [labels[j] for j in self.continuous],
                "They are those of the earlier rows; refit to all rows, or with bounds=None.",
            )

    def maps_of_columns(self) -> list[str | None]:
        """Return the kinds of maps of all columns; None where there is none."""
        found: list[str | None] = [None] * self.n_columns
        for j, kind in zip(self.continuous, self.marginal_map.kinds(), strict=True):
            found[j] = kind
        return found

    def bounds_of_columns(self) -> Array:
        """Return the bounds of all columns, (n_columns, 2)."""
        found = unbounded(self.n_columns)
        if self.bounds is not None:
            found[self.continuous] = self.bounds
        return found

    def standardized_bounds(self) -> Array:
        """Return the bounds of standardised columns, (n_continuous, 2)."""
        if self.bounds is None:
            return unbounded(len(self.continuous))
        center, scale = self.standardizer.center, self.standardizer.scale
        return np.asarray((self.bounds - center[:, None]) / scale[:, None])

    def squared_constant_deviations(self, values: Array) -> Array:
        """Return squared deviations of columns without variation, in their widths."""
        # Rows so far out that a square overflows have the log-density minus infinity.
        with np.errstate(over="ignore"):
            deviation = values[:, self.constant] - self.constant_values[self.constant]
            return np.asarray((deviation / self.constant_width()) ** 2)

    def greatest_constant_log_densities(self) -> Array:
        """Return the maxima of the normal log-densities of columns without variation."""
        return np.asarray(-np.log(self.constant_width()) - 0.5 * math.log(2 * math.pi))

    def constant_width(self) -> Array:
        """Return the widths of the normal densities of columns without variation."""
        size = np.abs(self.constant_values[self.constant])
        return np.asarray(CONSTANT_WIDTH * np.where(size < MIN_CONSTANT, 1.0, size))

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        sizes = check_shapes(
            self,
            {
                "continuous": "c",
                "discrete": "m",
                "constant": "k",
                "constant_values": "n",
                "log_seen": "n",
            },
            n=self.n_columns,
        )
        columns = np.concatenate([self.continuous, self.discrete, self.constant])
        check_in_range(columns, 0, self.n_columns - 1, "numbers of columns")
        check_same(len(np.unique(columns)), len(columns), "a column is there twice")
        n_continuous = sizes["c"]
        found = [len(self.standardizer.scale), len(self.marginal_map.columns)]
        found += [self.layout.n_continuous, len(self.layout.variables)]
        check_same(found, [*3 * [n_continuous], sizes["m"]], "there are other columns")
        check_finite(self.constant_values, "values of columns without variation")
        check_in_range(self.log_seen, -np.finfo(np.float64).max, 0.0, "probabilities of categories")
        check_in_range(self.anchored, 0, n_continuous - 1, "numbers of columns")
        greatest = np.nextafter(1.0, 0.0)
        check_in_range(self.share_beyond, 0.0, greatest, "shares of values beyond bounds")
        if self.bounds is not None:
            check_shapes(self, {"bounds": "ce"}, c=n_continuous, e=2)
            check_in_range(self.bounds[:, 0], -np.inf, self.bounds[:, 1], "bounds of columns")
        self._check_maps()

    def _check_maps(self) -> None:
        """Raise an error if the map of a column does not increase, or has no slope."""
        n_continuous = len(self.continuous)
        if n_continuous == 0:
            return
        grid = np.linspace(-FARTHEST_IN_MAPS, FARTHEST_IN_MAPS, POINTS_IN_MAPS)
        rows = np.zeros((len(grid), n_continuous + len(self.discrete)))
        rows[:, :n_continuous] = grid[:, None]
        values = self.values(rows)
        # Columns of the largest numbers that there are do not go as far.
        kept = np.asarray(np.isfinite(values).all(axis=1))
        mapped, log_slope = self.rows(self.standardized(values[kept]))
        falls = (np.diff(values[kept], axis=0) < 0.0).any() or (np.diff(mapped, axis=0) < 0.0).any()
        if not kept[len(grid) // 2] or falls or not np.isfinite(mapped).all():
            raise ValueError("the map of a column does not increase")
        if np.isnan(log_slope).any() or not np.isfinite(log_slope).any():
            raise ValueError("the map of a column has no slope")
