"""Weights of experts against the log-SNR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from sk_itdiffusion._first.display.style import (
    BESIDE_THE_AXES,
    BLACK,
    LOGSNR_LABEL,
    axes_or_new,
    check_drawable,
    expert_styles,
    increasing_logsnr,
    readable,
    same_length,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["EnsembleWeightsDisplay"]


class EnsembleWeightsDisplay:
    """Weights of the experts of a model, or of the members of an ensemble, at each log-SNR.

    It is recommended to use `from_estimator`.  All parameters are stored as attributes.

    Parameters
    ----------
    logsnr : array-like of shape (n_nodes,)
        Increasing log signal-to-noise ratios.
    weights : dict of str to array-like of shape (n_nodes,)
        Non-negative weights by expert; they sum to 1 at each node.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the areas.
    figure_ : matplotlib Figure
        Figure with the areas.
    areas_ : dict of str to matplotlib PolyCollection
        Areas by expert, from below; those without any weight are left out.
    legend_ : matplotlib Legend
        The legend, in the order of the areas.

    See Also
    --------
    MSECurveDisplay : The errors that the weights minimise.

    Examples
    --------
    >>> from sk_itdiffusion.display import EnsembleWeightsDisplay
    >>> weights = {"network": [0.0, 0.7, 0.2], "gaussian": [1.0, 0.3, 0.8]}
    >>> display = EnsembleWeightsDisplay(logsnr=[-3.0, 0.0, 3.0], weights=weights).plot()
    >>> list(display.areas_)
    ['network', 'gaussian']
    """

    def __init__(self, *, logsnr: ArrayLike, weights: Mapping[str, ArrayLike]) -> None:
        self.logsnr = increasing_logsnr(logsnr)
        arrays = same_length("nodes", self.logsnr.size, weights)
        self.weights = dict(zip(weights, arrays, strict=True))
        if not self.weights:
            raise ValueError("weights must have at least one expert.")
        total = np.sum(arrays, axis=0)
        if min(array.min(initial=0.0) for array in arrays) < 0.0 or not np.allclose(total, 1.0):
            raise ValueError("weights must not be negative, and must sum to 1 at each node.")

    def plot(self, ax: Axes | None = None, **kwargs: Any) -> Self:
        """Draw the areas.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to draw on; None makes a new figure.
        **kwargs : dict
            Additional settings of the areas, for `matplotlib.axes.Axes.stackplot`.

        Returns
        -------
        EnsembleWeightsDisplay
            The display itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        ax = axes_or_new(ax, f"{type(self).__name__}.plot", figsize=(6.4, 4.0))
        used = {name: values for name, values in self.weights.items() if values.any()}
        styles = expert_styles(self.weights)
        looks: dict[str, Any] = {
            "colors": [styles[name].color for name in used],
            "hatch": [styles[name].hatch for name in used],
            "labels": [readable(name) for name in used],
            "edgecolor": BLACK,
            "linewidth": 0.6,
            "alpha": 0.75,
        }
        areas = ax.stackplot(self.logsnr, *used.values(), **(looks | kwargs))
        self.areas_ = dict(zip(used, areas, strict=True))
        ax.set(
            xlabel=LOGSNR_LABEL,
            ylabel="weight (all sum to 1)",
            xlim=(self.logsnr[0], self.logsnr[-1]),
            ylim=(0.0, 1.0),
        )
        handles, labels = ax.get_legend_handles_labels()
        self.legend_ = ax.legend(
            handles[::-1],
            labels[::-1],
            frameon=False,
            handleheight=1.4,
            **BESIDE_THE_AXES,
        )
        self.ax_, self.figure_ = ax, ax.figure
        return self

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Axes | None = None, **kwargs: Any) -> Self:
        """Draw the weights of a fitted density estimator or ensemble.

        Parameters
        ----------
        estimator : estimator
            A fitted density estimator, whose ``expert_weights_`` are drawn, or a fitted
            `IMMSEEnsemble`, whose ``member_weights_`` are.
        ax : matplotlib Axes or None, default=None
            Axes to draw on; None makes a new figure.
        **kwargs : dict
            Additional arguments of `plot`.

        Returns
        -------
        EnsembleWeightsDisplay
            The drawn display.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If it is not a density estimator of this library.
        ValueError
            If there are no weights, since rows of the fit have missing entries, or all were equal.
        """
        check_drawable(cls, estimator, "logsnr_", "a density estimator of sk_itdiffusion")
        name = "member_weights_" if hasattr(estimator, "member_weights_") else "expert_weights_"
        weights = getattr(estimator, name)
        if not weights or not len(estimator.logsnr_):
            raise ValueError(
                "There are no weights: rows of fit have missing entries, or all of them were equal."
            )
        return cls(logsnr=estimator.logsnr_, weights=weights).plot(ax, **kwargs)
