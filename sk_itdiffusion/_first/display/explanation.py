"""Why a row is an outlier, column by column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from sk_itdiffusion._first._table.reading import Table, read_table
from sk_itdiffusion._first.display.columns import column_names, name_and_value
from sk_itdiffusion._first.display.style import (
    BLACK,
    BLUE,
    VERMILION,
    Array,
    axes_or_new,
    check_drawable,
    check_entries,
    merged,
    same_length,
    without_box,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["OutlierExplanationDisplay"]


class OutlierExplanationDisplay:
    """Contributions of the columns to the score of one row.

    The contributions, in nats, add up to the score, so the lowest ones make the row an outlier.
    Which contributions are low depends on the unit and the noise of a column; relative to typical
    contributions it does not, so bars show differences from these if they are given.

    It is recommended to use `from_estimator`.  All parameters are stored as attributes.

    Parameters
    ----------
    contributions : DataFrame of shape (1, n_features) or array-like of shape (n_features,)
        Contributions of the columns of one row, in nats, such as a row returned by
        `IMMSEOutlierDetector.explain`.
    labels : sequence of str or None, default=None
        Names of the columns; None uses those of the data frame, or x0, x1, ...
    values : sequence or None, default=None
        The row's entries, written next to the names.
    typical : array-like of shape (n_features,) or None, default=None
        Contributions of a typical row, such as medians over rows.
    name : str or None, default=None
        Name of the row in the title; None for no title.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the bars.
    figure_ : matplotlib Figure
        Figure with the bars.
    bars_ : matplotlib BarContainer
        The bars, from the lowest one at the top.
    texts_ : list of matplotlib Text
        The numbers next to the bars.
    order_ : ndarray of shape (n_shown,)
        Numbers of the columns of the bars; a last bar for all other columns is not among them.

    See Also
    --------
    DensityContourDisplay : Log-densities over two columns, such as two that explain an outlier.

    Examples
    --------
    >>> from sk_itdiffusion.display import OutlierExplanationDisplay
    >>> display = OutlierExplanationDisplay(
    ...     contributions=[-1.5, -9.0, -2.0],
    ...     labels=["age", "income", "children"],
    ...     values=[35, 1e6, 2],
    ... ).plot()
    >>> [text.get_text() for text in display.ax_.get_yticklabels()]
    ['income = 1e+06', 'children = 2', 'age = 35']
    """

    def __init__(
        self,
        *,
        contributions: pd.DataFrame | ArrayLike,
        labels: Sequence[str] | None = None,
        values: Sequence[Any] | None = None,
        typical: ArrayLike | None = None,
        name: str | None = None,
    ) -> None:
        self.contributions = one_row(contributions)
        n = self.contributions.size
        if labels is None:
            is_frame = isinstance(contributions, pd.DataFrame)
            labels = list(contributions.columns) if is_frame else [f"x{j}" for j in range(n)]  # type: ignore[union-attr]
        self.labels = [str(label) for label in labels]
        self.values = None if values is None else list(values)
        for parameter, given in (("labels", self.labels), ("values", self.values)):
            if given is not None:
                check_entries(parameter, given, n)
        self.typical = None
        if typical is not None:
            (self.typical,) = same_length("columns", n, {"typical": typical})
        self.name = name

    def plot(
        self,
        ax: Axes | None = None,
        *,
        max_columns: int = 12,
        relative: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the bars.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to draw on; None makes a new figure.
        max_columns : int, default=12
            Maximum number of bars, at least 1; the columns that differ least are summed in one
            more.
        relative : bool or None, default=None
            Whether bars are differences from the typical contributions; None is True if these are
            given.
        **kwargs : dict
            Additional settings of the bars, for `matplotlib.axes.Axes.barh`.

        Returns
        -------
        OutlierExplanationDisplay
            The display itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If there are no typical contributions to be relative to, or ``max_columns`` is invalid.
        """
        if not isinstance(max_columns, Integral) or max_columns < 1:
            raise ValueError(f"max_columns must be at least 1, got {max_columns!r}.")
        relative = self.typical is not None if relative is None else relative
        if relative and self.typical is None:
            raise ValueError("relative=True needs typical contributions.")
        lengths = self.contributions - self.typical if relative else self.contributions
        lengths = np.asarray(lengths)
        self.order_, rest = lowest_first(lengths, int(max_columns))
        names = [self._tick(j) for j in self.order_]
        shown = list(lengths[self.order_])
        if len(rest):
            names.append(f"{len(rest)} other columns")
            shown.append(float(lengths[rest].sum()))
        figsize = (6.8, 1.3 + 0.32 * len(shown))
        ax = axes_or_new(ax, f"{type(self).__name__}.plot", figsize=figsize)
        self._draw(ax, names, np.array(shown), kwargs)
        against = ",\nrelative to a typical row" if relative else ""
        ax.set_xlabel(f"contribution to the score (nats){against}")
        if self.name is not None:
            ax.set_title(f"{self.name}: {describe(lengths.sum(), relative)}")
        without_box(ax)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _tick(self, j: int) -> str:
        """Return the name of a column with the row's entry."""
        label = self.labels[j]
        return label if self.values is None else name_and_value(label, self.values[j])

    def _draw(
        self, ax: Axes, names: Sequence[str], lengths: Array, kwargs: Mapping[str, Any]
    ) -> None:
        """Draw the bars from above, with numbers next to them."""
        low = lengths < 0
        looks = {
            "color": np.where(low, VERMILION, BLUE),
            "hatch": ["//" if each else "" for each in low],
            "edgecolor": BLACK,
            "linewidth": 0.6,
            "height": 0.7,
        }
        places = np.arange(len(lengths))
        self.bars_ = ax.barh(places, lengths, **merged(looks, kwargs))
        ax.set_yticks(places, names)
        ax.invert_yaxis()
        ax.axvline(0.0, color=BLACK, linewidth=0.8)
        texts = [f"{length:+.1f}" if abs(length) >= 0.05 else "0.0" for length in lengths]
        self.texts_ = ax.bar_label(self.bars_, texts, padding=3, fontsize="small")
        left, right = min(lengths.min(), 0.0), max(lengths.max(), 0.0)
        room = 0.13 * ((right - left) or 1.0)
        ax.set_xlim(left - room * (left < 0.0), right + room * (right > 0.0 or left == 0.0))

    @classmethod
    def from_estimator(
        cls,
        detector: Any,
        X: Any,
        row: int = 0,
        *,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the explanation of one row by a fitted outlier detector.

        Parameters
        ----------
        detector : estimator
            A fitted `IMMSEOutlierDetector`.
        X : array-like or data frame of shape (n_samples, n_features)
            Rows.  With two or more, the medians of their contributions are the typical ones.
        row : int, default=0
            Position of the row in X; negative ones count from the end.
        name : str or None, default=None
            Name of the row; None stands for ``"row"`` and its position or its label in the index.
        ax : matplotlib Axes or None, default=None
            Axes to draw on; None makes a new figure.
        **kwargs : dict
            Additional arguments of `plot`.

        Returns
        -------
        OutlierExplanationDisplay
            The drawn display.

        Raises
        ------
        NotFittedError
            If the detector is not fitted.
        TypeError
            If it has no `explain`.
        ValueError
            If X does not have this row or the columns of the fit.
        """
        check_drawable(cls, detector, "explain", "a detector with explanations")
        table = read_table(X)
        n = len(table.frame)
        if not isinstance(row, Integral) or not -n <= row < n:
            raise ValueError(f"row must be a position among the {n} rows of X, got {row!r}.")
        parts = detector.explain(X)
        display = cls(
            contributions=parts.iloc[[row]],
            labels=shown_names(parts, table),
            values=[table.column(j).iloc[row] for j in range(table.n_columns)],
            typical=parts.median().to_numpy() if n > 1 else None,
            name=f"row {parts.index[row]}" if name is None else name,
        )
        return display.plot(ax, **kwargs)


def describe(total: float, relative: bool) -> str:
    """Return the sum of all bars in words."""
    if not relative:
        return f"score {total:.1f} nats"
    return f"{abs(total):.1f} nats {'below' if total < 0 else 'above'} a typical row"


def shown_names(parts: pd.DataFrame, table: Table) -> list[str]:
    """Return the names of the columns of the explanation, or of the table if it is no array."""
    return column_names(table) if table.dtype is None else [str(name) for name in parts.columns]


def one_row(contributions: pd.DataFrame | ArrayLike) -> Array:
    """Return the contributions of one row, or raise an error."""
    array = np.asarray(contributions, dtype=np.float64)
    if array.ndim == 2 and len(array) == 1:
        array = array[0]
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            f"contributions must be those of one row, of at least one column, got the shape "
            f"{array.shape}."
        )
    return array


def lowest_first(lengths: Array, most: int) -> tuple[Any, Any]:
    """Return the numbers of the greatest differences from 0, the lowest first, and the others."""
    by_size = np.argsort(-np.abs(lengths), kind="stable")
    # A single column left over needs no more place than the sum of several.
    n_shown = len(by_size) if len(by_size) == most + 1 else most
    shown = by_size[:n_shown]
    return shown[np.argsort(lengths[shown], kind="stable")], np.sort(by_size[n_shown:])
