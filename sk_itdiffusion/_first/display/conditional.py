"""Pictures of predictive distributions: along a feature, against targets, and their calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import binom

from sk_itdiffusion._first._table.reading import Table, read_table
from sk_itdiffusion._first.display.columns import (
    check_number_of_columns,
    column_names,
    column_number,
)
from sk_itdiffusion._first.display.style import (
    BLACK,
    BLUE,
    GREY,
    VERMILION,
    Array,
    axes_or_new,
    check_drawable,
    merged,
    same_length,
    without_box,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PredictionIntervalDisplay", "PredictiveFanDisplay", "ProbabilityIntegralDisplay"]

WHAT = "an estimator of the distribution of a target"
#: Share of the rows that is below, and above, the range of a fan.
TAIL = 0.02
#: Probability of the band in which the bars of uniform numbers are.
BAND = 0.95


class PredictiveFanDisplay:
    """Quantiles of a target along one feature, as a fan of central intervals.

    The other features are held: at their medians, and categories at the most frequent one, or at
    the values of a row of your own.

    It is recommended to use `from_estimator`.  All parameters are stored as attributes.

    Parameters
    ----------
    feature : array-like of shape (n_points,)
        Increasing values of the feature.
    median : array-like of shape (n_points,)
        Medians of the target.
    intervals : dict of float to array-like of shape (n_points, 2)
        Ends of the central intervals by their probability.
    points : tuple of (array-like, array-like) or None, default=None
        Values of the feature and the target to show as points.
    feature_name : str, default="feature"
        Label of the horizontal axis.
    target_name : str, default="target"
        Label of the vertical axis.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the fan.
    figure_ : matplotlib Figure
        Figure with the fan.
    bands_ : list of matplotlib FillBetweenPolyCollection
        The intervals, the widest first.
    line_ : matplotlib Line2D
        The medians.
    points_ : matplotlib PathCollection or None
        The points.
    legend_ : matplotlib Legend
        The legend.

    See Also
    --------
    PredictionIntervalDisplay : Targets against what is predicted of them.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sk_itdiffusion import IMMSERegressor
    >>> from sk_itdiffusion.display import PredictiveFanDisplay
    >>> X, y = load_diabetes(return_X_y=True, as_frame=True)
    >>> regressor = IMMSERegressor(random_state=0).fit(X[:200], y[:200])
    >>> display = PredictiveFanDisplay.from_estimator(regressor, X, "bmi", y=y)
    >>> display.ax_.get_xlabel()
    'bmi'
    """

    def __init__(
        self,
        *,
        feature: ArrayLike,
        median: ArrayLike,
        intervals: Mapping[float, ArrayLike],
        points: tuple[ArrayLike, ArrayLike] | None = None,
        feature_name: str = "feature",
        target_name: str = "target",
    ) -> None:
        self.feature = np.asarray(feature, dtype=np.float64)
        (self.median,) = same_length("points", self.feature.size, {"median": median})
        self.intervals = {
            float(coverage): np.column_stack(
                same_length(
                    "points",
                    self.feature.size,
                    dict(zip(("low", "high"), np.asarray(ends).T, strict=True)),
                )
            )
            for coverage, ends in intervals.items()
        }
        self.points = None if points is None else tuple(np.asarray(part) for part in points)
        self.feature_name, self.target_name = feature_name, target_name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        feature: int | str,
        *,
        y: ArrayLike | None = None,
        row: ArrayLike | None = None,
        coverages: Sequence[float] = (0.5, 0.8, 0.95),
        grid_resolution: int = 50,
        target_name: str | None = None,
        ax: Axes | None = None,
        fan_kw: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the quantiles that an estimator predicts along a feature.

        Parameters
        ----------
        estimator : estimator
            Fitted, with ``predict(X, quantiles=...)``, such as
            `sk_itdiffusion.IMMSEConditionalDensity`.
        X : array-like or data frame of shape (n_samples, n_features)
            Rows, which give the range of the feature and the values of the others.
        feature : int or str
            Number or name of a column of numbers.
        y : array-like of shape (n_samples,), default=None
            Targets, which are shown as points.
        row : array-like or data frame of shape (1, n_features), default=None
            The values of the other features; None takes medians and most frequent categories.
        coverages : sequence of float, default=(0.5, 0.8, 0.95)
            Probabilities of the intervals, in (0, 1).
        grid_resolution : int, default=50
            Values of the feature, at least 2.
        target_name : str or None, default=None
            Label of the vertical axis; None takes the name of y, or ``"target"``.
        ax : matplotlib Axes or None, default=None
            Axes to draw on; None makes a new figure.
        fan_kw : dict or None, default=None
            Settings of the intervals, for `matplotlib.axes.Axes.fill_between`.

        Returns
        -------
        PredictiveFanDisplay
            The display.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If the estimator has no intervals.
        ValueError
            If the feature does not exist or has no range, or a parameter is out of range.
        """
        check_drawable(cls, estimator, "predict_interval", WHAT)
        if not isinstance(grid_resolution, Integral) or grid_resolution < 2:
            raise ValueError(f"grid_resolution must be at least 2, got {grid_resolution!r}.")
        table = read_table(X)
        check_number_of_columns(estimator, table)
        number = column_number(table, feature, "feature")
        values = numbers_of(table, number)
        low, high = np.nanquantile(values, [TAIL, 1.0 - TAIL])
        if not low < high:
            raise ValueError(f"feature {feature!r} has no range: it hardly varies in X.")
        grid = np.linspace(low, high, int(grid_resolution))
        held = typical_row(table) if row is None else read_table(row).frame
        if held.shape != (1, table.n_columns):
            raise ValueError(f"row must have the shape (1, {table.n_columns}), got {held.shape}.")
        rows = held.iloc[np.zeros(len(grid), dtype=np.intp)].reset_index(drop=True)
        rows[rows.columns[number]] = grid
        found = fan(estimator, rows if table.dtype is None else rows.to_numpy(), coverages)
        inside = (values >= low) & (values <= high)
        display = cls(
            feature=grid,
            median=found[0.0][:, 0],
            intervals={each: found[each] for each in sorted(coverages, reverse=True)},
            points=None if y is None else (values[inside], np.asarray(y).ravel()[inside]),
            feature_name=column_names(table)[number],
            target_name=target_name or str(getattr(y, "name", None) or "target"),
        )
        return display.plot(ax, fan_kw=fan_kw)

    def plot(self, ax: Axes | None = None, *, fan_kw: Mapping[str, Any] | None = None) -> Self:
        """Draw the fan.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to draw on; None makes a new figure.
        fan_kw : dict or None, default=None
            Settings of the intervals, for `matplotlib.axes.Axes.fill_between`.

        Returns
        -------
        PredictiveFanDisplay
            The display itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        ax = axes_or_new(ax, f"{type(self).__name__}.plot")
        self.points_ = None
        if self.points is not None:
            feature, target = self.points
            self.points_ = ax.scatter(feature, target, s=8, color=GREY, alpha=0.5, linewidths=0)
        self.bands_ = []
        for coverage, ends in self.intervals.items():
            usual = {"color": BLUE, "alpha": 0.22, "linewidth": 0, "label": f"{coverage:.0%}"}
            band = ax.fill_between(self.feature, *ends.T, **merged(usual, fan_kw))
            self.bands_.append(band)
        (self.line_,) = ax.plot(self.feature, self.median, color=BLACK, label="median")
        ax.set(xlabel=self.feature_name, ylabel=self.target_name)
        self.legend_ = ax.legend(title="central intervals", frameon=False)
        without_box(ax)
        self.ax_, self.figure_ = ax, ax.figure
        return self


def numbers_of(table: Table, number: int) -> Array:
    """Return a column as numbers, or raise a ValueError if it holds none."""
    if not table.holds_numbers[number]:
        raise ValueError(f"feature must be a column of numbers, got {table.labels[number]!r}.")
    return table.column(number).to_numpy(np.float64, na_value=np.nan)


def typical_row(table: Table) -> pd.DataFrame:
    """Return one row of medians, and of the most frequent categories."""
    entries = {}
    for j, name in enumerate(table.frame.columns):
        column = table.frame[name]
        value = column.median() if table.holds_numbers[j] else column.mode().iloc[0]
        entries[name] = pd.Series([value], dtype=None if table.holds_numbers[j] else column.dtype)
    return pd.DataFrame(entries)


def fan(estimator: Any, X: Any, coverages: Sequence[float]) -> dict[float, Array]:
    """Return the ends of central intervals by their probability; those of 0 are medians."""
    wanted = np.unique(np.append(np.asarray(coverages, dtype=np.float64), 0.0))
    if not ((wanted >= 0.0) & (wanted < 1.0)).all():
        raise ValueError(f"coverages must be probabilities in (0, 1), got {coverages!r}.")
    tails = 0.5 * (1.0 - wanted)
    found = np.asarray(estimator.predict(X, quantiles=np.append(tails, 1.0 - tails)))
    return {float(coverage): found[:, [j, j + len(wanted)]] for j, coverage in enumerate(wanted)}


class ProbabilityIntegralDisplay:
    """Histogram of the probability integral transform, which shows calibration.

    The transform of a target is the probability that its predicted distribution has below it.  For
    the right distribution these numbers are uniform.  Bars that are high at both ends tell of
    distributions that are too narrow, high in the middle of too wide ones, a slope of a bias.

    It is recommended to use `from_estimator`.  All parameters are stored as attributes.

    Parameters
    ----------
    probability : array-like of shape (n_samples,)
        Transforms, from 0 to 1.
    n_bins : int, default=10
        Number of bars.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the histogram.
    figure_ : matplotlib Figure
        Figure with the histogram.
    bars_ : matplotlib BarContainer
        The bars, whose heights have the mean 1.
    band_ : matplotlib Rectangle
        Where each bar is with 95% probability, if the distribution is right.

    See Also
    --------
    PredictionIntervalDisplay : The intervals themselves.
    sklearn.calibration.CalibrationDisplay : The same question for classifiers.

    Examples
    --------
    >>> from sk_itdiffusion.display import ProbabilityIntegralDisplay
    >>> display = ProbabilityIntegralDisplay(probability=[0.05, 0.3, 0.6, 0.9], n_bins=2).plot()
    >>> [float(bar.get_height()) for bar in display.bars_]
    [1.0, 1.0]
    """

    def __init__(self, *, probability: ArrayLike, n_bins: int = 10) -> None:
        self.probability = np.asarray(probability, dtype=np.float64).ravel()
        if not ((self.probability >= 0.0) & (self.probability <= 1.0)).all():
            raise ValueError("probability must hold numbers from 0 to 1.")
        if not isinstance(n_bins, Integral) or n_bins < 2:
            raise ValueError(f"n_bins must be an integer of at least 2, got {n_bins!r}.")
        self.n_bins: int = int(n_bins)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        y: ArrayLike,
        *,
        n_bins: int = 10,
        ax: Axes | None = None,
        bar_kw: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the histogram for new rows.

        Parameters
        ----------
        estimator : estimator
            Fitted, with ``cdf(X, y)``, such as `sk_itdiffusion.IMMSEConditionalDensity`.
        X : array-like or data frame of shape (n_samples, n_features)
            Rows that the estimator has not been fitted to.
        y : array-like of shape (n_samples,)
            Their targets.
        n_bins : int, default=10
            Number of bars.
        ax : matplotlib Axes or None, default=None
            Axes to draw on; None makes a new figure.
        bar_kw : dict or None, default=None
            Settings of the bars, for `matplotlib.axes.Axes.bar`.

        Returns
        -------
        ProbabilityIntegralDisplay
            The display.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If the estimator has no ``cdf``.
        ValueError
            If ``n_bins`` is less than 2.
        """
        check_drawable(cls, estimator, "cdf", WHAT)
        display = cls(probability=estimator.cdf(X, y), n_bins=n_bins)
        return display.plot(ax, bar_kw=bar_kw)

    def plot(self, ax: Axes | None = None, *, bar_kw: Mapping[str, Any] | None = None) -> Self:
        """Draw the histogram.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to draw on; None makes a new figure.
        bar_kw : dict or None, default=None
            Settings of the bars, for `matplotlib.axes.Axes.bar`.

        Returns
        -------
        ProbabilityIntegralDisplay
            The display itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        ax = axes_or_new(ax, f"{type(self).__name__}.plot")
        counts, edges = np.histogram(self.probability, self.n_bins, (0.0, 1.0))
        n_rows = max(1, counts.sum())
        usual = {"color": BLUE, "edgecolor": "white", "align": "edge"}
        heights = self.n_bins * counts / n_rows
        settings = merged(usual, bar_kw)
        self.bars_ = ax.bar(edges[:-1], heights, np.diff(edges), **settings)
        low, high = binom.interval(BAND, n_rows, 1.0 / self.n_bins)
        self.band_ = ax.axhspan(
            self.n_bins * low / n_rows, self.n_bins * high / n_rows, color=GREY, alpha=0.3
        )
        ax.axhline(1.0, color=BLACK, linestyle="--", linewidth=1.0)
        ax.set(xlabel="predicted probability below the target", ylabel="density", xlim=(0.0, 1.0))
        without_box(ax)
        self.ax_, self.figure_ = ax, ax.figure
        return self


class PredictionIntervalDisplay:
    """Targets against predicted medians, with their intervals.

    It is recommended to use `from_estimator`.  All parameters are stored as attributes.

    Parameters
    ----------
    target : array-like of shape (n_samples,)
        Targets.
    median : array-like of shape (n_samples,)
        Predicted medians.
    low, high : array-like of shape (n_samples,)
        Ends of the intervals.
    coverage : float, default=0.9
        Probability that the intervals should have.
    target_name : str, default="target"
        What the axes are labelled with.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the intervals.
    figure_ : matplotlib Figure
        Figure with the intervals.
    covered_, missed_ : matplotlib LineCollection
        Intervals that have their target in them, and the others.
    points_ : matplotlib PathCollection
        Medians and targets.
    legend_ : matplotlib Legend
        The legend, which has the share of targets in their intervals.

    See Also
    --------
    ProbabilityIntegralDisplay : Calibration of the whole distribution.
    sklearn.metrics.PredictionErrorDisplay : Targets against predictions, without intervals.

    Examples
    --------
    >>> from sk_itdiffusion.display import PredictionIntervalDisplay
    >>> display = PredictionIntervalDisplay(
    ...     target=[1.0, 2.0], median=[1.1, 3.0], low=[0.5, 2.5], high=[1.5, 3.5]
    ... )
    >>> display.share_covered
    0.5
    """

    def __init__(
        self,
        *,
        target: ArrayLike,
        median: ArrayLike,
        low: ArrayLike,
        high: ArrayLike,
        coverage: float = 0.9,
        target_name: str = "target",
    ) -> None:
        self.target = np.asarray(target, dtype=np.float64).ravel()
        self.median, self.low, self.high = same_length(
            "targets", self.target.size, {"median": median, "low": low, "high": high}
        )
        self.coverage, self.target_name = coverage, target_name

    @property
    def is_covered(self) -> Any:
        """Whether each target is in its interval, shape (n_samples,)."""
        return (self.low <= self.target) & (self.target <= self.high)

    @property
    def share_covered(self) -> float:
        """Share of the targets that are in their intervals."""
        return float(np.mean(self.is_covered))

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        y: ArrayLike,
        *,
        coverage: float = 0.9,
        target_name: str | None = None,
        ax: Axes | None = None,
        interval_kw: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw targets, medians and intervals of new rows.

        Parameters
        ----------
        estimator : estimator
            Fitted, with ``predict_interval``, such as `sk_itdiffusion.IMMSEConditionalDensity`.
        X : array-like or data frame of shape (n_samples, n_features)
            Rows that the estimator has not been fitted to.
        y : array-like of shape (n_samples,)
            Their targets.
        coverage : float, default=0.9
            Probability in (0, 1) that the intervals should have.
        target_name : str or None, default=None
            What the axes are labelled with; None takes the name of y, or ``"target"``.
        ax : matplotlib Axes or None, default=None
            Axes to draw on; None makes a new figure.
        interval_kw : dict or None, default=None
            Settings of the intervals, for `matplotlib.axes.Axes.vlines`.

        Returns
        -------
        PredictionIntervalDisplay
            The display.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If the estimator has no intervals.
        ValueError
            If the coverage is out of its range.
        """
        check_drawable(cls, estimator, "predict_interval", WHAT)
        low, high = estimator.predict_interval(X, coverage=coverage).T
        display = cls(
            target=y,
            median=estimator.predict(X, quantiles=[0.5])[:, 0],
            low=low,
            high=high,
            coverage=coverage,
            target_name=target_name or str(getattr(y, "name", None) or "target"),
        )
        return display.plot(ax, interval_kw=interval_kw)

    def plot(self, ax: Axes | None = None, *, interval_kw: Mapping[str, Any] | None = None) -> Self:
        """Draw targets, medians and intervals.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to draw on; None makes a new figure.
        interval_kw : dict or None, default=None
            Settings of the intervals, for `matplotlib.axes.Axes.vlines`.

        Returns
        -------
        PredictionIntervalDisplay
            The display itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        ax = axes_or_new(ax, f"{type(self).__name__}.plot")
        inside = self.is_covered
        lines = []
        for chosen, color, style, what in (
            (inside, BLUE, "-", "in"),
            (~inside, VERMILION, "--", "outside"),
        ):
            label = f"{what} the {self.coverage:.0%} interval: {chosen.mean():.1%}"
            usual = {"color": color, "alpha": 0.5, "linewidth": 1.0, "linestyle": style}
            settings = merged(usual | {"label": label}, interval_kw)
            at = self.target[chosen]
            lines.append(ax.vlines(at, self.low[chosen], self.high[chosen], **settings))
        self.covered_, self.missed_ = lines
        self.points_ = ax.scatter(self.target, self.median, s=9, color=BLACK, zorder=3)
        ends = [self.target.min(), self.target.max()]
        ax.plot(ends, ends, color=GREY, linestyle=":", linewidth=1.5)
        ax.set(xlabel=self.target_name, ylabel=f"predicted {self.target_name}")
        self.legend_ = ax.legend(frameon=False, loc="upper left")
        without_box(ax)
        self.ax_, self.figure_ = ax, ax.figure
        return self
