"""Samples next to data, for each pair of columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sk_itdiffusion._first._table.reading import Table, read_table
from sk_itdiffusion._first.display.columns import (
    check_number_of_columns,
    column_names,
    column_number,
    spread_rows,
)
from sk_itdiffusion._first.display.style import (
    BLUE,
    VERMILION,
    Array,
    check_drawable,
    check_entries,
    check_matplotlib,
    merged,
    without_box,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SamplePairDisplay"]

MAX_COLUMNS = 12
USUAL_COLUMNS = 5
USUAL_ROWS = 300
N_BINS = 24
MAX_INTEGERS = 30  # range up to which integers have a bin each
MAX_NAME = 12  # characters of a category that are written at a tick
MAX_CATEGORIES_NAMED = 6
SIDE = 0.22  # by how much points of data and samples at one category are moved apart, and spread
DATA_LOOKS = {
    "marker": "o",
    "color": BLUE,
    "markersize": 3.5,
    "markeredgewidth": 0.0,
    "alpha": 0.6,
    "label": "data",
}
SAMPLE_LOOKS = {
    "marker": "x",
    "color": VERMILION,
    "markersize": 3.0,
    "markeredgewidth": 0.7,
    "alpha": 0.6,
    "label": "samples",
}


@dataclass(frozen=True)
class Axis:
    """How one column is drawn.

    Attributes
    ----------
    data, samples : ndarray
        Positions of the entries, next to their values if these are categories or few integers.
    edges : ndarray
        Edges of the histogram's bins.
    categories : list of str or None
        Names of the categories, at 0, 1, ...; None if the entries are numbers.
    is_whole : bool, default=False
        Whether the numbers of the data are few integers.
    """

    data: Array
    samples: Array
    edges: Array
    categories: list[str] | None
    is_whole: bool = False


class SamplePairDisplay:
    """Samples of a model next to data: a scatter plot for each pair of columns, and histograms.

    Columns may be numbers or categories; missing numbers are not drawn.  At a category, or at one
    of few integers, points of the data are to the left and samples to the right, so that they do
    not cover each other.  If a model is good, the two clouds look alike in each panel, and so do
    the two histograms on the diagonal.

    It is recommended to use `from_estimator`.  All parameters are stored as attributes.

    Parameters
    ----------
    data, samples : array-like or data frame of shape (n_rows, n_columns)
        Rows, and rows of the same columns drawn from a model; at least 2 columns and 12 at most.
    labels : sequence of str or None, default=None
        Names of the columns; None uses those of the data frame, or x0, x1, ...
    n_left_out : int, default=0
        Number of further columns that are not drawn; unless it is 0, the legend says so.

    Attributes
    ----------
    ax_ : matplotlib Axes or None
        The axes whose place the panels take; None if an array of axes was given.
    axes_ : ndarray of shape (n_columns, n_columns)
        Axes of the panels; None above the diagonal.
    figure_ : matplotlib Figure
        Figure with the panels.
    data_points_, sample_points_ : ndarray of shape (n_columns, n_columns)
        Line2D of the points of each panel below the diagonal; None elsewhere.
    histograms_ : list of (StepPatch, StepPatch)
        Proportions of data and samples in the bins, for each column.
    legend_ : matplotlib Legend
        The legend.

    See Also
    --------
    DensityContourDisplay : The density itself, over two columns.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion.display import SamplePairDisplay
    >>> rng = np.random.default_rng(0)
    >>> display = SamplePairDisplay(
    ...     data=rng.normal(size=(50, 2)), samples=rng.normal(size=(60, 2)), labels=["a", "b"]
    ... )
    >>> display.plot().axes_.shape
    (2, 2)
    """

    def __init__(
        self,
        *,
        data: Any,
        samples: Any,
        labels: Sequence[str] | None = None,
        n_left_out: int = 0,
    ) -> None:
        ours, theirs = read_table(data), read_table(samples)
        if ours.n_columns != theirs.n_columns:
            raise ValueError(f"data has {ours.n_columns} columns, samples have {theirs.n_columns}.")
        if not 2 <= ours.n_columns <= MAX_COLUMNS:
            raise ValueError(
                f"A pair plot needs 2 to {MAX_COLUMNS} columns, got {ours.n_columns}. Choose "
                "some by the parameter columns of from_estimator."
            )
        self.data, self.samples = ours.frame, theirs.frame
        self.labels = [str(x) for x in (column_names(ours) if labels is None else labels)]
        check_entries("labels", self.labels, ours.n_columns)
        self.n_left_out = n_left_out
        numbers = (
            ours.holds_numbers & theirs.holds_numbers & ~(is_boolean(ours) & is_boolean(theirs))
        )
        self._axes = [
            axis_of(ours, theirs, j, is_number=bool(numbers[j])) for j in range(ours.n_columns)
        ]

    def plot(
        self,
        ax: Any = None,
        *,
        data_kw: Mapping[str, Any] | None = None,
        samples_kw: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the panels.

        Parameters
        ----------
        ax : matplotlib Axes, array-like of Axes or None, default=None
            Axes that the panels take the place of, or an array of axes of shape (n_columns,
            n_columns) to draw on; None makes a new figure.
        data_kw : dict or None, default=None
            Settings of the points of the data, for `matplotlib.axes.Axes.plot`.
        samples_kw : dict or None, default=None
            Settings of the points of the samples.

        Returns
        -------
        SamplePairDisplay
            The display itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If an array of axes has another shape.
        """
        check_matplotlib(f"{type(self).__name__}.plot")
        n = len(self._axes)
        self._place(ax, n)
        data, samples = merged(DATA_LOOKS, data_kw), merged(SAMPLE_LOOKS, samples_kw)
        self.histograms_: list[tuple[Any, Any]] = []
        self.data_points_ = np.full((n, n), None, dtype=object)
        self.sample_points_ = np.full((n, n), None, dtype=object)
        for i in range(n):
            self._draw_histogram(self.axes_[i, i], self._axes[i])
            for j in range(i):
                panel, points = self.axes_[i, j], (self._axes[j], self._axes[i])
                (self.data_points_[i, j],) = panel.plot(
                    *(axis.data for axis in points), linestyle="", **data
                )
                (self.sample_points_[i, j],) = panel.plot(
                    *(axis.samples for axis in points), linestyle="", **samples
                )
        self._label(n)
        self._draw_legend(n)
        return self

    def _place(self, ax: Any, n: int) -> None:
        """Set the axes of the panels."""
        import matplotlib.pyplot as plt

        self.axes_ = np.full((n, n), None, dtype=object)
        self.ax_: Axes | None = None
        if ax is not None and not hasattr(ax, "get_subplotspec"):
            given = np.asarray(ax, dtype=object)
            if given.shape != (n, n):
                raise ValueError(f"ax must be an array of shape {(n, n)}, got {given.shape}.")
            for i, j in zip(*np.triu_indices(n, 1), strict=True):
                given[i, j].set_axis_off()
            lower = np.tril_indices(n)
            self.axes_[lower] = given[lower]
            self.figure_ = given[0, 0].figure
            return
        if ax is None:
            side = min(1.6 + 1.5 * n, 14.0)
            _, ax = plt.subplots(figsize=(side, side), layout="constrained")
        ax.set_axis_off()
        self.ax_, self.figure_ = ax, ax.figure
        grid = grid_within(ax, n)
        for i, j in zip(*np.tril_indices(n), strict=True):
            self.axes_[i, j] = self.figure_.add_subplot(grid[i, j])

    def _draw_histogram(self, panel: Axes, axis: Axis) -> None:
        """Draw the proportions of data and samples in bins."""
        both = (axis.data, BLUE, "-", True), (axis.samples, VERMILION, "--", False)
        drawn = []
        for values, color, linestyle, fill in both:
            values = observed(values)
            counts = np.histogram(values, bins=axis.edges)[0]
            looks: dict[str, Any] = {"linewidth": 1.4, "linestyle": linestyle, "edgecolor": color}
            looks |= {"facecolor": color, "alpha": 0.35} if fill else {"facecolor": "none"}
            drawn.append(panel.stairs(counts / max(len(values), 1), axis.edges, fill=fill, **looks))
        self.histograms_.append((drawn[0], drawn[1]))
        panel.set_yticks([])
        panel.set_ylim(bottom=0.0)

    def _label(self, n: int) -> None:
        """Label the outer axes, and give the panels of a column one range."""
        for i, j in zip(*np.tril_indices(n), strict=True):
            panel = self.axes_[i, j]
            without_box(panel)
            set_ticks(panel.xaxis, self._axes[j])
            panel.set_xlim(*limits(self._axes[j]))
            if i != j:
                set_ticks(panel.yaxis, self._axes[i])
                panel.set_ylim(*limits(self._axes[i]))
            if i == n - 1:
                panel.set_xlabel(self.labels[j])
                if self._axes[j].categories is not None:
                    panel.tick_params(axis="x", rotation=45)
            else:
                panel.tick_params(labelbottom=False)
            if j == 0:
                panel.set_ylabel(self.labels[i] if i > 0 else "share of rows")
            elif j > 0:
                panel.tick_params(labelleft=False)
            if i == j:
                panel.set_title(self.labels[i], fontsize="small")

    def _draw_legend(self, n: int) -> None:
        handles = [self.data_points_[n - 1, 0], self.sample_points_[n - 1, 0]]
        title = f"the first {n} of {n + self.n_left_out} columns" if self.n_left_out else None
        self.legend_ = self.axes_[0, 0].legend(
            handles=handles,
            title=title,
            loc="upper left",
            bbox_to_anchor=(1.05, 1.0),
            borderaxespad=0.0,
            frameon=False,
            markerscale=2.0,
        )
        self.legend_.set_in_layout(False)  # it is where there are no panels

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        columns: Sequence[int | str] | None = None,
        n_rows: int = USUAL_ROWS,
        random_state: int | np.random.RandomState | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Draw samples of a fitted density estimator alongside rows.

        Parameters
        ----------
        estimator : estimator
            A fitted estimator with `sample`.
        X : array-like or data frame of shape (n_samples, n_features)
            Rows, of the columns that the estimator was fitted to.
        columns : sequence of int or str or None, default=None
            Numbers or names of the columns to draw, 2 to 12; None uses the first five, and the
            legend says so if there are more.
        n_rows : int, default=300
            Maximum number of rows to draw, evenly spread over X, and of samples; at least 1.
        random_state : int, RandomState or None, default=None
            Seed of the samples; None uses that of the estimator.
        ax : matplotlib Axes, array-like of Axes or None, default=None
            Axes to draw on; None makes a new figure.
        **kwargs : dict
            Additional arguments of `plot`.

        Returns
        -------
        SamplePairDisplay
            The drawn display.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If it has no `sample`.
        ValueError
            If X has other columns than those of the fit, or an argument is invalid.
        """
        check_drawable(cls, estimator, "sample", "a density estimator")
        table = read_table(X)
        check_number_of_columns(estimator, table)
        if not isinstance(n_rows, Integral) or n_rows < 1:
            raise ValueError(f"n_rows must be at least 1, got {n_rows!r}.")
        n_left_out = 0
        if columns is None:
            columns = range(min(table.n_columns, USUAL_COLUMNS))
            n_left_out = table.n_columns - len(columns)
        chosen = [column_number(table, column, "columns") for column in columns]
        shown = spread_rows(len(table.frame), n_rows)
        drawn = estimator.sample(len(shown), random_state=random_state)
        samples = read_table(drawn[0] if isinstance(drawn, tuple) else drawn)
        names = column_names(table)
        return cls(
            data=table.frame.iloc[shown, chosen],
            samples=samples.frame.iloc[:, chosen],
            labels=[names[j] for j in chosen],
            n_left_out=n_left_out,
        ).plot(ax, **kwargs)


def grid_within(ax: Axes, n: int) -> Any:
    """Return a grid of n times n panels that takes the place of axes."""
    from matplotlib.gridspec import GridSpec

    place = ax.get_subplotspec()
    if place is not None:
        return place.subgridspec(n, n)
    box = ax.get_position()
    return GridSpec(n, n, ax.figure, left=box.x0, right=box.x1, bottom=box.y0, top=box.y1)  # type: ignore[arg-type]


# -- columns ---------------------------------------------------------------------------------


def axis_of(ours: Table, theirs: Table, j: int, *, is_number: bool) -> Axis:
    """Return how a column of data and samples is drawn."""
    columns = ours.column(j), theirs.column(j)
    if is_number:
        data, samples = (column.to_numpy(dtype=np.float64, na_value=np.nan) for column in columns)
        edges = bin_edges(data, samples)
        are_few = bool(np.ptp(edges[:2]) == 1.0 and is_whole(data))
        if are_few and is_whole(samples):
            data, samples = positions_beside(data, -SIDE, j), positions_beside(samples, SIDE, j)
        return Axis(data, samples, edges, None, are_few)
    categories = categories_of(*columns)
    codes = [pd.Index(categories).get_indexer(pd.Index(text_of(column))) for column in columns]
    edges = np.arange(len(categories) + 1, dtype=np.float64) - 0.5
    return Axis(
        positions_beside(codes[0], -SIDE, j), positions_beside(codes[1], SIDE, j), edges, categories
    )


def is_boolean(table: Table) -> NDArray[np.bool_]:
    """Return which columns hold booleans, of shape (n_columns,)."""
    return np.array([storage == "boolean" for storage in table.storages])


def bin_edges(data: Array, samples: Array) -> Array:
    """Return edges of bins: one for each integer if these are few, else equal ones."""
    data, samples = observed(data), observed(samples)
    both = np.concatenate([data, samples])
    if not (len(data) and len(samples) and np.isfinite(both).all()):
        raise ValueError(
            "Numbers in data and samples must be finite, or missing in some rows only."
        )
    low, high = float(both.min()), float(both.max())
    if high - low < MAX_INTEGERS and is_whole(data):
        return np.arange(np.floor(low), np.ceil(high) + 2.0, dtype=np.float64) - 0.5
    return np.linspace(low, high if high > low else low + 1.0, N_BINS + 1)


def is_whole(values: Array) -> bool:
    """Return whether all numbers that are not missing are integers."""
    return bool(np.array_equal(values, values.round(), equal_nan=True))


def observed(values: Array) -> Array:
    """Return the numbers that are not missing."""
    return values[~np.isnan(values)]


def categories_of(data: pd.Series[Any], samples: pd.Series[Any]) -> list[str]:
    """Return all categories of two columns as strings: in their order if any, else sorted."""
    found = {*text_of(data), *text_of(samples)}
    if isinstance(data.dtype, pd.CategoricalDtype):
        ordered = [str(category) for category in data.dtype.categories]
        return [category for category in ordered if category in found] + sorted(
            found - set(ordered)
        )
    return sorted(found)


def text_of(column: pd.Series[Any]) -> list[str]:
    """Return the entries of a column as strings."""
    return [
        "missing" if missing else str(x) for x, missing in zip(column, column.isna(), strict=True)
    ]


def positions_beside(codes: Array | NDArray[np.intp], side: float, j: int) -> Array:
    """Return positions next to the codes of column j, spread so that points do not overlap.

    Those of two columns are independent, so that the points at two categories fill a square.
    """
    shift = np.random.default_rng([j, int(side > 0)]).uniform(-1.0, 1.0, len(codes))
    return np.asarray(codes + side + 0.8 * abs(side) * shift)


def limits(axis: Axis) -> tuple[float, float]:
    """Return the range of a column with a margin."""
    low, high = axis.edges[[0, -1]]
    margin = 0.0 if axis.categories is not None else 0.04 * (high - low)
    return float(low - margin), float(high + margin)


def set_ticks(axis: Any, drawn: Axis) -> None:
    """Set the ticks of a matplotlib axis: the categories if they are few, else a few numbers."""
    from matplotlib.ticker import MaxNLocator

    categories = drawn.categories
    if categories is None:
        axis.set_major_locator(MaxNLocator(3, integer=drawn.is_whole))
    elif len(categories) <= MAX_CATEGORIES_NAMED:
        names = [x if len(x) <= MAX_NAME else x[: MAX_NAME - 1] + "…" for x in categories]
        axis.set_ticks(np.arange(len(categories)), names)
    else:
        axis.set_ticks([])
