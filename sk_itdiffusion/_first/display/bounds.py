"""The bound while a network is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from sk_itdiffusion._first.display.style import (
    BLACK,
    BLUE,
    VERMILION,
    axes_or_new,
    check_drawable,
    merged,
    same_length,
    without_box,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BoundHistoryDisplay"]

MAX_MARKED = 40  # epochs up to which each has a marker


class BoundHistoryDisplay:
    """Training and validation bound of a network in each epoch.

    The bound is the mean of -log p(x) of one network, the first, as it is after the epoch, in nats
    per row.  The finished model combines all networks and references at each log-SNR, and is
    evaluated on the validation rows with other noise; so its bound is different, mostly lower, and
    is drawn as a separate line.

    It is recommended to use `from_estimator`.  All parameters are stored as attributes.

    Parameters
    ----------
    epoch : array-like of shape (n_epochs,)
        Numbers of the epochs.
    train_bound : array-like of shape (n_epochs,)
        Mean bound of the training steps of each epoch, in nats per row.
    valid_bound : array-like of shape (n_epochs,)
        Bound on validation rows after each epoch, in nats per row.
    entropy : float or None, default=None
        Validation bound of the finished model, drawn as a line; None draws none.
    train_loss : {"bound", "cross_entropy"}, default="bound"
        What the training values are; a cross-entropy is on another scale and has an axis of its
        own.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the validation bound.
    train_ax_ : matplotlib Axes
        Axes with the training values: the same, or those on the right for a cross-entropy.
    figure_ : matplotlib Figure
        Figure with the lines.
    train_line_ : matplotlib Line2D
        The training values.
    valid_line_ : matplotlib Line2D
        The validation bound.
    best_ : matplotlib Line2D
        The mark on the best epoch.
    entropy_line_ : matplotlib Line2D or None
        The bound of the finished model.
    legend_ : matplotlib Legend
        The legend.

    See Also
    --------
    MSECurveDisplay : What the network gains at each log-SNR.
    sklearn.model_selection.LearningCurveDisplay : Scores against the number of rows.

    Examples
    --------
    >>> from sk_itdiffusion.display import BoundHistoryDisplay
    >>> display = BoundHistoryDisplay(
    ...     epoch=[1, 2, 3], train_bound=[2.9, 2.7, 2.6], valid_bound=[2.8, 2.72, 2.75]
    ... )
    >>> display.best_epoch
    2
    >>> display.plot().ax_.get_xlabel()
    'epoch'
    """

    def __init__(
        self,
        *,
        epoch: ArrayLike,
        train_bound: ArrayLike,
        valid_bound: ArrayLike,
        entropy: float | None = None,
        train_loss: str = "bound",
    ) -> None:
        self.epoch = np.asarray(epoch)
        self.train_bound, self.valid_bound = same_length(
            "epochs",
            self.epoch.size,
            {"train_bound": train_bound, "valid_bound": valid_bound},
        )
        if self.epoch.size == 0:
            raise ValueError("There are no epochs to draw.")
        if train_loss not in ("bound", "cross_entropy"):
            raise ValueError(f"train_loss must be 'bound' or 'cross_entropy', got {train_loss!r}.")
        self.entropy = entropy
        self.train_loss = train_loss

    @property
    def best_epoch(self) -> int:
        """Number of the epoch of the least validation bound."""
        return int(self.epoch[np.argmin(self.valid_bound)])

    def plot(
        self,
        ax: Axes | None = None,
        *,
        train_kw: Mapping[str, Any] | None = None,
        valid_kw: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the lines.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to draw on; None makes a new figure.
        train_kw : dict or None, default=None
            Settings of the training line, for `matplotlib.axes.Axes.plot`.
        valid_kw : dict or None, default=None
            Settings of the validation line.

        Returns
        -------
        BoundHistoryDisplay
            The display itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        ax = axes_or_new(ax, f"{type(self).__name__}.plot")
        is_bound = self.train_loss == "bound"
        self.train_ax_ = ax if is_bound else ax.twinx()
        marked = len(self.epoch) <= MAX_MARKED
        train = {
            "color": VERMILION,
            "linestyle": "--",
            "marker": "s" if marked else "",
            "markersize": 3.5,
            "label": "training rows" if is_bound else "training cross-entropy (right)",
        }
        valid = {
            "color": BLUE,
            "marker": "o" if marked else "",
            "markersize": 4,
            "label": "validation rows",
        }
        (self.train_line_,) = self.train_ax_.plot(
            self.epoch, self.train_bound, **merged(train, train_kw)
        )
        (self.valid_line_,) = ax.plot(self.epoch, self.valid_bound, **merged(valid, valid_kw))
        self._mark(ax)
        self._finish(ax)
        return self

    def _mark(self, ax: Axes) -> None:
        """Mark the best epoch and the bound of the finished model."""
        least = float(self.valid_bound.min())
        (self.best_,) = ax.plot(
            [self.best_epoch],
            [least],
            linestyle="",
            marker="o",
            markersize=11,
            markerfacecolor="none",
            markeredgecolor=BLACK,
            label=f"best of this network: epoch {self.best_epoch}, {least:.4g} nats",
        )
        self.entropy_line_ = None
        if self.entropy is not None and np.isfinite(self.entropy):
            label = f"finished model, all experts: {self.entropy:.4g} nats"
            self.entropy_line_ = ax.axhline(
                self.entropy, color=BLACK, linestyle=":", linewidth=1.5, label=label
            )

    def _finish(self, ax: Axes) -> None:
        """Label the axes and draw the legend."""
        from matplotlib.ticker import MaxNLocator

        ax.set(xlabel="epoch", ylabel="bound on -log p(x), mean (nats per row)")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles = [self.valid_line_, self.train_line_, self.best_]
        handles += [] if self.entropy_line_ is None else [self.entropy_line_]
        if self.train_ax_ is ax:
            without_box(ax)
        else:
            color = self.train_line_.get_color()
            self.train_ax_.set_ylabel("training cross-entropy (nats per row)", color=color)
            self.train_ax_.tick_params(axis="y", labelcolor=color)
            ax.spines["top"].set_visible(False)
            self.train_ax_.spines["top"].set_visible(False)
        self.legend_ = ax.legend(handles=handles, frameon=False, fontsize="small")
        self.ax_, self.figure_ = ax, ax.figure

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Axes | None = None, **kwargs: Any) -> Self:
        """Draw the history of a fitted density estimator.

        Parameters
        ----------
        estimator : estimator
            A fitted `IMMSEDensity`, `IMMSEDiscreteDensity` or `IMMSEMixedDensity`.
        ax : matplotlib Axes or None, default=None
            Axes to draw on; None makes a new figure.
        **kwargs : dict
            Additional arguments of `plot`.

        Returns
        -------
        BoundHistoryDisplay
            The drawn display.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If it has no history, such as an ensemble, whose members have one each.
        ValueError
            If no network was trained.
        """
        check_drawable(
            cls, estimator, "history_", "a single density estimator (or one member of an ensemble)"
        )
        if not estimator.history_:
            raise ValueError(
                f"This {type(estimator).__name__} has no trained network and so no history: "
                "max_epochs is 0, experts does not include a network, or there are too few rows."
            )
        columns = {
            name: [row[name] for row in estimator.history_]
            for name in ("epoch", "train_bound", "valid_bound")
        }
        display = cls(**columns, entropy=estimator.entropy_, train_loss=training_loss(estimator))
        return display.plot(ax, **kwargs)


def training_loss(estimator: Any) -> str:
    """Return what the training values of an estimator are."""
    has_categories = any(kind != "continuous" for kind in getattr(estimator, "kinds_", []))
    is_cross_entropy = getattr(estimator, "loss", None) == "cross_entropy"
    return "cross_entropy" if has_categories and is_cross_entropy else "bound"
