"""Log-densities over two columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from sk_itdiffusion._first._table.reading import Table, read_table
from sk_itdiffusion._first.display.columns import (
    check_number_of_columns,
    column_names,
    column_number,
    name_and_value,
    spread_rows,
)
from sk_itdiffusion._first.display.marginal import averaged_conditionals
from sk_itdiffusion._first.display.style import (
    BLACK,
    Array,
    axes_or_new,
    check_drawable,
    merged,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["DensityContourDisplay"]

PLOT_METHODS = ("contourf", "contour", "pcolormesh")
N_LEVELS, N_LINES = 20, 10  # filled and empty contours over the depth
MAX_NAMED = 4  # columns of which the title tells where they are fixed
USUAL_POINTS = 300
USUAL_RESOLUTION, USUAL_RESOLUTION_OF_MARGINALS = 60, 30
ROWS_IN_A_CALL = 2**17


class DensityContourDisplay:
    r"""Contours of the log-density over two columns, the others being fixed or averaged out.

    With other columns fixed this is a slice of the density of all columns: up to a constant the
    conditional log-density of the two given the others.  With other columns averaged out it is the
    marginal log-density of the two, with an error that is estimated.

    It is recommended to use `from_estimator`.  All parameters are stored as attributes.

    Parameters
    ----------
    xx0, xx1 : array-like of shape (n_rows, n_columns)
        Values of the first and the second column on the grid, as from `numpy.meshgrid`.
    log_density : array-like of shape (n_rows, n_columns)
        Log-densities there, in nats.
    points : array-like of shape (n_points, 2) or None, default=None
        Rows to be drawn as points; None draws none.
    xlabel, ylabel : str, default=""
        Names of the two columns.
    fixed : dict of str to object or None, default=None
        Values of the other columns.
    log_density_std : array-like of shape (n_rows, n_columns) or None, default=None
        Standard errors of marginal log-densities, in nats.
    n_averaged : int or None, default=None
        Number of rows over whose other columns was averaged, at least 2; None if they are fixed.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the contours.
    figure_ : matplotlib Figure
        Figure with the contours.
    surface_ : matplotlib QuadContourSet or QuadMesh
        The contours, or the mesh of ``plot_method="pcolormesh"``.
    points_ : matplotlib PathCollection or None
        The points.
    colorbar_ : matplotlib Colorbar or None
        The colour bar.

    See Also
    --------
    SamplePairDisplay : Samples of the density alongside the rows, for more columns.
    sklearn.inspection.DecisionBoundaryDisplay : Decision functions over two columns.

    Notes
    -----
    The marginal density of two columns a is the mean of their conditional densities given the
    other columns b, :math:`p(a) = E_b[p(a \mid b)]`.  The mean is over b of rows of X, evenly
    spread over it, and each conditional density is the density of all columns divided by its
    integral over the grid.  Its errors are

    - that of a finite number of rows, whose estimate is ``log_density_std``; it falls with the root
      of their number, is small if the two columns depend little on the others, and large where only
      few of the rows have density;
    - that of the integrals over the grid, of which a warning is given from 5% on; what is beyond
      the grid counts as 0;
    - and where the other columns of X are not distributed as in the model, the display shows the
      model's two columns given those of X.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion import IMMSEDensity
    >>> from sk_itdiffusion.display import DensityContourDisplay
    >>> X = np.random.default_rng(0).normal(size=(200, 3))
    >>> density = IMMSEDensity(max_epochs=0, random_state=0).fit(X)
    >>> display = DensityContourDisplay.from_estimator(
    ...     density, X, columns=[0, 2], fixed={1: 0.5}, grid_resolution=8
    ... )
    >>> display.log_density.shape, display.fixed
    ((8, 8), {'x1': 0.5})
    >>> marginal = DensityContourDisplay.from_estimator(
    ...     density, X, columns=[0, 2], marginal=True, n_averaged=50, grid_resolution=20
    ... )
    >>> bool(marginal.log_density_std.max() < 1.0)
    True
    """

    def __init__(
        self,
        *,
        xx0: ArrayLike,
        xx1: ArrayLike,
        log_density: ArrayLike,
        points: ArrayLike | None = None,
        xlabel: str = "",
        ylabel: str = "",
        fixed: Mapping[str, Any] | None = None,
        log_density_std: ArrayLike | None = None,
        n_averaged: int | None = None,
    ) -> None:
        self.xx0, self.xx1, self.log_density = (
            np.asarray(values, dtype=np.float64) for values in (xx0, xx1, log_density)
        )
        shapes = {self.xx0.shape, self.xx1.shape, self.log_density.shape}
        if len(shapes) > 1 or self.xx0.ndim != 2 or min(self.xx0.shape) < 2:
            raise ValueError(
                "xx0, xx1 and log_density must have one two-dimensional shape of at least (2, 2), "
                f"got {self.xx0.shape}, {self.xx1.shape} and {self.log_density.shape}."
            )
        self.points = None if points is None else np.asarray(points, dtype=np.float64)
        if self.points is not None and (self.points.ndim != 2 or self.points.shape[1] != 2):
            raise ValueError(f"points must have two columns, got the shape {self.points.shape}.")
        self.xlabel, self.ylabel = xlabel, ylabel
        self.fixed = dict(fixed or {})
        self.log_density_std = (
            None if log_density_std is None else np.asarray(log_density_std, dtype=np.float64)
        )
        if self.log_density_std is not None and self.log_density_std.shape != self.xx0.shape:
            raise ValueError(
                f"log_density_std must have the shape of log_density, got "
                f"{self.log_density_std.shape}."
            )
        self.n_averaged = n_averaged

    def plot(
        self,
        ax: Axes | None = None,
        *,
        plot_method: str = "contourf",
        depth: float = 10.0,
        colorbar: bool = True,
        points_kw: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the contours.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to draw on; None makes a new figure.
        plot_method : {"contourf", "contour", "pcolormesh"}, default="contourf"
            Filled contours, lines, or a mesh.
        depth : float, default=10.0
            Range of the colours below the largest log-density, in nats, positive.
        colorbar : bool, default=True
            Whether to draw a colour bar.
        points_kw : dict or None, default=None
            Settings of the points, for `matplotlib.axes.Axes.scatter`.
        **kwargs : dict
            Settings for the method of `matplotlib.axes.Axes` that draws, such as ``levels`` or
            ``cmap``.

        Returns
        -------
        DensityContourDisplay
            The display itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If the method is unknown or the depth is not positive.
        """
        if plot_method not in PLOT_METHODS:
            raise ValueError(f"plot_method must be one of {PLOT_METHODS}, got {plot_method!r}.")
        if not isinstance(depth, Real) or not 0 < depth < np.inf:
            raise ValueError(f"depth must be a positive number, got {depth!r}.")
        ax = axes_or_new(ax, f"{type(self).__name__}.plot")
        levels = self._levels(float(depth), N_LINES if plot_method == "contour" else N_LEVELS)
        looks: dict[str, Any] = {"cmap": "viridis"}
        if plot_method == "pcolormesh":
            looks |= {"vmin": levels[0], "vmax": levels[-1]}
        else:
            looks |= {"levels": levels, "extend": "both"}
        draw = getattr(ax, plot_method)
        self.surface_: Any = draw(self.xx0, self.xx1, self.log_density, **(looks | kwargs))
        self._draw_points(ax, points_kw)
        self.colorbar_ = self._draw_colorbar(ax) if colorbar else None
        ax.set(xlabel=self.xlabel, ylabel=self.ylabel)
        if self.fixed or self.n_averaged:
            ax.set_title(self._title(), fontsize="small")
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _levels(self, depth: float, n: int) -> Array:
        """Return levels at multiples of the nth part of the depth, down from the maximum."""
        step = depth / n
        top = np.max(self.log_density, where=np.isfinite(self.log_density), initial=-np.inf)
        return np.asarray(step * (np.ceil(top / step) + np.arange(-n, 1)))

    def _draw_colorbar(self, ax: Axes) -> Any:
        from matplotlib.ticker import MaxNLocator

        return ax.figure.colorbar(
            self.surface_,
            ax=ax,
            label="log-density (nats, in the units of the columns)",
            ticks=MaxNLocator(8, steps=[1, 2, 5, 10]),
        )

    def _draw_points(self, ax: Axes, points_kw: Mapping[str, Any] | None) -> None:
        self.points_ = None
        if self.points is None:
            return
        looks = {
            "s": 9,
            "c": "white",
            "edgecolors": BLACK,
            "linewidths": 0.5,
            "alpha": 0.8,
            "label": "rows of X",
        }
        self.points_ = ax.scatter(*self.points.T, **merged(looks, points_kw))
        ax.legend(loc="upper right", fontsize="small")

    def _title(self) -> str:
        """Return where the other columns are fixed, or over what they are averaged."""
        if self.n_averaged:
            return f"averaged over the other columns of {self.n_averaged} rows"
        named = [name_and_value(*each) for each in list(self.fixed.items())[:MAX_NAMED]]
        n_more = len(self.fixed) - len(named)
        more = f" and {n_more} more columns fixed" if n_more else ""
        # Lines end between columns only.
        kept = [item.replace(" ", "\N{NO-BREAK SPACE}") for item in named]
        return textwrap.fill("at " + ", ".join(kept) + more, 60, break_on_hyphens=False)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        columns: Sequence[int | str] = (0, 1),
        fixed: Mapping[int | str, Any] | None = None,
        marginal: bool = False,
        n_averaged: int = 100,
        grid_resolution: int | None = None,
        margin: float = 0.1,
        n_points: int | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the log-density of a fitted estimator over two columns.

        Parameters
        ----------
        estimator : estimator
            A fitted estimator with `score_samples`, such as the density estimators of this
            library, a detector, or a pipeline.
        X : array-like or data frame of shape (n_samples, n_features)
            Rows, of the columns that the estimator was fitted to.  They give the range of the
            grid, and the values of other columns.
        columns : sequence of int or str, default=(0, 1)
            Numbers or names of two columns, continuous ones.
        fixed : dict of int or str to object or None, default=None
            Values of other columns by number or name.  The rest is fixed at the median of X (the
            lower one, which occurs), or at the most frequent value if it is not a number.
        marginal : bool, default=False
            Whether the other columns are averaged out instead of fixed.  Then
            ``n_averaged * grid_resolution**2`` rows are scored.
        n_averaged : int, default=100
            Number of rows of X, at least 2, over whose other columns a marginal is averaged; fewer
            if X has fewer.
        grid_resolution : int or None, default=None
            Points of the grid along each axis, at least 2.  None is 60, and 30 for marginals of
            more than two columns.
        margin : float, default=0.1
            How far the grid reaches beyond the rows, as a share of their range; at least 0.
        n_points : int or None, default=None
            Number of rows to draw as points, at least 0.  None draws 300, and none if other columns
            are fixed, since rows lie off the cut.
        ax : matplotlib Axes or None, default=None
            Axes to draw on; None makes a new figure.
        **kwargs : dict
            Additional arguments of `plot`.

        Returns
        -------
        DensityContourDisplay
            The drawn display.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If it has no `score_samples`.
        ValueError
            If X has other columns than those of the fit, fewer than two of them or no numbers in
            the two, or an argument is invalid.
        """
        check_drawable(cls, estimator, "score_samples", "an estimator")
        table = read_table(X)
        check_number_of_columns(estimator, table)
        pair = two_continuous(estimator, table, columns)
        averages = check_marginal(marginal, n_averaged, fixed, table)
        if grid_resolution is None:
            grid_resolution = USUAL_RESOLUTION_OF_MARGINALS if averages else USUAL_RESOLUTION
        check_grid(grid_resolution, margin)
        values = [table.column(j).to_numpy(dtype=np.float64) for j in pair]
        xx0, xx1 = np.meshgrid(*(grid_axis(v, grid_resolution, margin) for v in values))
        names = column_names(table)
        if averages:
            rows = spread_rows(len(values[0]), n_averaged)
            shown = marginal_on_grid(estimator, table, pair, (xx0, xx1), rows)
        else:
            at = fixed_values(table, pair, fixed or {})
            scores = estimator.score_samples(cut_table(table, pair, (xx0, xx1), at))
            fixed_by_name = {names[j]: value for j, value in at.items()}
            shown = {"log_density": np.reshape(scores, xx0.shape), "fixed": fixed_by_name}
        if n_points is None:
            n_points = USUAL_POINTS if averages or table.n_columns == 2 else 0
        drawn = spread_rows(len(values[0]), n_points)
        points = np.column_stack(values)[drawn] if n_points else None
        shown |= {"points": points, "xlabel": names[pair[0]], "ylabel": names[pair[1]]}
        return cls(xx0=xx0, xx1=xx1, **shown).plot(ax, **kwargs)


# -- columns and grid ------------------------------------------------------------------------


def two_continuous(estimator: Any, table: Table, columns: Sequence[Any]) -> list[int]:
    """Return the numbers of two different columns of numbers, none of categories."""
    if isinstance(columns, str) or len(columns) != 2:
        raise ValueError(f"columns must be two columns, got {columns!r}.")
    pair = [column_number(table, column, "columns") for column in columns]
    if pair[0] == pair[1]:
        raise ValueError(f"columns must be two different columns, got {columns!r} twice.")
    kinds = getattr(estimator, "kinds_", None)
    for j in pair:
        kind = kinds[j] if kinds is not None else "continuous"
        if kind != "continuous" or not table.holds_numbers[j]:
            what = "no numbers" if kind == "continuous" else f"{kind} categories"
            raise ValueError(
                f"The column {column_names(table)[j]!r} has {what}; contours need two continuous "
                "columns. SamplePairDisplay shows categories too."
            )
    return pair


def check_grid(grid_resolution: Any, margin: Any) -> None:
    """Raise an error if the grid cannot be made."""
    if not isinstance(grid_resolution, Integral) or grid_resolution < 2:
        raise ValueError(
            f"grid_resolution must be an integer of at least 2, got {grid_resolution!r}."
        )
    if not isinstance(margin, Real) or not 0 <= float(margin) < np.inf:
        raise ValueError(f"margin must be a number of at least 0, got {margin!r}.")


def check_marginal(marginal: Any, n_averaged: Any, fixed: Any, table: Table) -> bool:
    """Return whether other columns are averaged out, or raise an error if they cannot be."""
    if not marginal:
        return False
    if fixed:
        raise ValueError("fixed and marginal are mutually exclusive.")
    if not isinstance(n_averaged, Integral) or min(int(n_averaged), len(table.frame)) < 2:
        raise ValueError(
            f"n_averaged must be an integer of at least 2, and X have as many rows, got "
            f"{n_averaged!r} and {len(table.frame)} rows."
        )
    return table.n_columns > 2


def grid_axis(values: Array, n: int, margin: float) -> Array:
    """Return n equidistant numbers over the range of the values and a margin."""
    low, high = float(np.min(values)), float(np.max(values))
    width = margin * (high - low) or (0.0 if high > low else 1.0)
    return np.linspace(low - width, high + width, n)


def fixed_values(table: Table, pair: Sequence[int], given: Mapping[Any, Any]) -> dict[int, Any]:
    """Return the values of the columns besides the pair: given ones, else typical ones."""
    values = {column_number(table, column, "fixed"): value for column, value in given.items()}
    clash = [column_names(table)[j] for j in pair if j in values]
    if clash:
        raise ValueError(f"fixed names the column {clash[0]!r}, which is one of the two drawn.")
    others = [j for j in range(table.n_columns) if j not in pair and j not in values]
    return values | {j: typical(table, j) for j in others}


def typical(table: Table, j: int) -> Any:
    """Return the lower median of a column of numbers, the most frequent value of others."""
    column = table.column(j)
    if not table.holds_numbers[j]:
        return column.value_counts(sort=True).index[0]
    ordered = np.sort(column.dropna().to_numpy())
    return ordered[(len(ordered) - 1) // 2].item()


def cut_table(
    table: Table, pair: Sequence[int], grid: tuple[Array, Array], at: Mapping[int, Any]
) -> Any:
    """Return the rows of a grid as a table like the given one."""
    n = grid[0].size
    others = {j: fixed_column(table.column(j), value, n) for j, value in at.items()}
    return grid_table(table, pair, grid, others)


def grid_table(
    table: Table,
    pair: Sequence[int],
    grid: tuple[Array, Array],
    others: Mapping[int, pd.Series[Any]],
) -> Any:
    """Return a table like the given one: the grid in two columns, repeated, and other columns."""
    n_rows = len(next(iter(others.values()))) if others else grid[0].size
    times = n_rows // grid[0].size
    drawn = {j: pd.Series(np.tile(part.ravel(), times)) for j, part in zip(pair, grid, strict=True)}
    columns = [drawn[j] if j in drawn else others[j] for j in range(table.n_columns)]
    frame = pd.concat(columns, axis=1)
    frame.columns = table.frame.columns
    if table.dtype is None:
        return frame
    return frame.to_numpy(dtype=object if table.dtype.kind in "OUS" else np.float64)


def marginal_on_grid(
    estimator: Any,
    table: Table,
    pair: Sequence[int],
    grid: tuple[Array, Array],
    rows: NDArray[np.intp],
) -> dict[str, Any]:
    """Return what a display tells of the marginal, averaged over the other columns of rows."""
    n = grid[0].size
    rows_in_a_call = max(1, ROWS_IN_A_CALL // n)
    parts = []
    for start in range(0, len(rows), rows_in_a_call):
        chosen = rows[start : start + rows_in_a_call]
        others = {
            j: table.column(j).iloc[np.repeat(chosen, n)].reset_index(drop=True)
            for j in range(table.n_columns)
            if j not in pair
        }
        scores = np.asarray(estimator.score_samples(grid_table(table, pair, grid, others)))
        parts.append(scores.reshape(len(chosen), *grid[0].shape))
    found = averaged_conditionals(np.concatenate(parts), *grid)
    found.warn_if_coarse()
    std = found.std
    return {"log_density": found.log_density, "log_density_std": std, "n_averaged": len(rows)}


def fixed_column(column: pd.Series[Any], value: Any, n: int) -> pd.Series[Any]:
    """Return a column of one value, with the categories of the given one if it has some."""
    dtype = column.dtype if isinstance(column.dtype, pd.CategoricalDtype) else None
    repeated: pd.Series[Any] = pd.Series([value] * n, dtype=dtype)
    return repeated
