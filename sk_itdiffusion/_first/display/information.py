"""Information against the log-SNR, between pairs of columns, and of single rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from sk_itdiffusion._first.display.style import (
    LOGSNR_LABEL,
    axes_or_new,
    check_drawable,
    increasing_logsnr,
    merged,
    same_length,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["DependenceDisplay", "InformationCurveDisplay", "PointwiseInformationDisplay"]

_ESTIMATOR = "an IMMSEMutualInformation of sk_itdiffusion"


class InformationCurveDisplay:
    """Information between columns seen through noise, against its log-SNR.

    It is recommended to use `from_estimator`.  All parameters are stored as attributes.

    Parameters
    ----------
    logsnr : array-like of shape (n_nodes,)
        Increasing log signal-to-noise ratios.
    information : array-like of shape (n_nodes,)
        Information in nats.
    standard_error : array-like of shape (n_nodes,)
        Standard errors.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curve.
    figure_ : matplotlib Figure
        Figure with the curve.
    line_ : matplotlib Line2D
        The curve.
    band_ : matplotlib PolyCollection
        Two standard errors on both sides.

    See Also
    --------
    DependenceDisplay : All pairs of columns.

    Examples
    --------
    >>> from sk_itdiffusion.display import InformationCurveDisplay
    >>> curve = {"information": [0.0, 0.2, 0.4], "standard_error": [0.0, 0.01, 0.02]}
    >>> display = InformationCurveDisplay(logsnr=[-5.0, 0.0, 5.0], **curve).plot()
    >>> display.ax_.get_ylabel()
    'information (nats)'
    """

    def __init__(
        self, *, logsnr: ArrayLike, information: ArrayLike, standard_error: ArrayLike
    ) -> None:
        self.logsnr = increasing_logsnr(logsnr)
        given = {"information": information, "standard_error": standard_error}
        self.information, self.standard_error = same_length("nodes", self.logsnr.size, given)

    def plot(self, ax: Axes | None = None, **kwargs: Any) -> Self:
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to draw on; None makes a new figure.
        **kwargs : dict
            Further settings of the curve, for `matplotlib.axes.Axes.plot`.

        Returns
        -------
        InformationCurveDisplay
            The display itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        ax = axes_or_new(ax, f"{type(self).__name__}.plot", figsize=(6.4, 4.0))
        (self.line_,) = ax.plot(self.logsnr, self.information, **kwargs)
        low = self.information - 2.0 * self.standard_error
        high = self.information + 2.0 * self.standard_error
        self.band_ = ax.fill_between(
            self.logsnr, low, high, color=self.line_.get_color(), alpha=0.25, linewidth=0.0
        )
        ax.set(xlabel=LOGSNR_LABEL, ylabel="information (nats)")
        self.ax_, self.figure_ = ax, ax.figure
        return self

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Axes | None = None, **kwargs: Any) -> Self:
        """Draw the curve of a fitted estimator.

        Parameters
        ----------
        estimator : IMMSEMutualInformation
            A fitted estimator.
        ax : matplotlib Axes or None, default=None
            Axes to draw on; None makes a new figure.
        **kwargs : dict
            Further arguments of `plot`.

        Returns
        -------
        InformationCurveDisplay
            The drawn display.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If it has no such curve.
        ValueError
            If the curve is None, since a side is constant or there are networks.
        """
        check_drawable(cls, estimator, "information_curve_", _ESTIMATOR)
        curve = estimator.information_curve_
        if curve is None:
            raise ValueError("There is no curve: a side is constant, or the fit has networks.")
        return cls(**vars(curve)).plot(ax, **kwargs)


class DependenceDisplay:
    """Pairwise dependence of the columns of a table, as a heat map.

    Parameters
    ----------
    names : sequence of str or int
        Names of the columns.
    coefficient : array-like of shape (n_columns, n_columns)
        Coefficients from 0 to 1.
    p_value : array-like of shape (n_columns, n_columns) or None, default=None
        P-values of independence.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the matrix.
    figure_ : matplotlib Figure
        Figure with the matrix.
    image_ : matplotlib AxesImage
        The matrix.
    texts_ : list of matplotlib Text
        The coefficients off the diagonal, in brackets where the p-value is above the level.

    See Also
    --------
    sk_itdiffusion.information.dependence_matrix : Finds the coefficients.

    Examples
    --------
    >>> from sk_itdiffusion.display import DependenceDisplay
    >>> display = DependenceDisplay(names=["a", "b"], coefficient=[[1.0, 0.3], [0.3, 1.0]]).plot()
    >>> [text.get_text() for text in display.texts_]
    ['0.30', '0.30']
    """

    def __init__(
        self, *, names: Any, coefficient: ArrayLike, p_value: ArrayLike | None = None
    ) -> None:
        self.names = list(names)
        self.coefficient = np.asarray(coefficient, dtype=np.float64)
        self.p_value = None if p_value is None else np.asarray(p_value, dtype=np.float64)
        shape = (len(self.names),) * 2
        for matrix in (self.coefficient, self.p_value):
            if matrix is not None and matrix.shape != shape:
                raise ValueError(f"There are {len(self.names)} names, but got {matrix.shape}.")

    def plot(self, ax: Axes | None = None, *, level: float = 0.05, **kwargs: Any) -> Self:
        """Draw the matrix.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to draw on; None makes a new figure.
        level : float, default=0.05
            P-value above which coefficients are in brackets.
        **kwargs : dict
            Further settings of the matrix, for `matplotlib.axes.Axes.imshow`.

        Returns
        -------
        DependenceDisplay
            The display itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        n = len(self.names)
        size = 1.6 + 0.6 * n
        ax = axes_or_new(ax, f"{type(self).__name__}.plot", figsize=(size + 0.8, size))
        looks = merged({"vmin": 0.0, "vmax": 1.0, "cmap": "cividis"}, kwargs)
        self.image_ = ax.imshow(self.coefficient, **looks)
        ax.figure.colorbar(self.image_, ax=ax, label="dependence (0 to 1)")
        self.texts_ = []
        for a, b in zip(*np.nonzero(~np.eye(n, dtype=bool)), strict=True):
            value = self.coefficient[a, b]
            is_weak = self.p_value is not None and self.p_value[a, b] > level
            text = f"({value:.2f})" if is_weak else f"{value:.2f}"
            colour = "black" if value > 0.6 else "white"
            self.texts_.append(ax.text(b, a, text, ha="center", va="center", color=colour))
        ax.set_xticks(range(n), [str(name) for name in self.names], rotation=90)
        ax.set_yticks(range(n), [str(name) for name in self.names])
        self.ax_, self.figure_ = ax, ax.figure
        return self

    @classmethod
    def from_matrix(cls, matrix: Any, *, ax: Axes | None = None, **kwargs: Any) -> Self:
        """Draw what `sk_itdiffusion.information.dependence_matrix` returns.

        Parameters
        ----------
        matrix : DependenceMatrix
            The matrix.
        ax : matplotlib Axes or None, default=None
            Axes to draw on; None makes a new figure.
        **kwargs : dict
            Further arguments of `plot`.

        Returns
        -------
        DependenceDisplay
            The drawn display.
        """
        made = cls(names=matrix.names, coefficient=matrix.coefficient, p_value=matrix.p_value)
        return made.plot(ax, **kwargs)


class PointwiseInformationDisplay:
    """Pointwise information of rows on a scatter of two columns.

    It is recommended to use `from_estimator`.  All parameters are stored as attributes.

    Parameters
    ----------
    x, y : array-like of shape (n_samples,)
        Numbers to draw at.
    information : array-like of shape (n_samples,)
        Pointwise information in nats, of either sign.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the points.
    figure_ : matplotlib Figure
        Figure with the points.
    points_ : matplotlib PathCollection
        The points.

    See Also
    --------
    InformationCurveDisplay : The mean against the log-SNR.

    Examples
    --------
    >>> from sk_itdiffusion.display import PointwiseInformationDisplay
    >>> display = PointwiseInformationDisplay(x=[0, 1], y=[0, 1], information=[0.2, -0.1]).plot()
    >>> display.points_.get_clim()
    (-0.2, 0.2)
    """

    def __init__(self, *, x: ArrayLike, y: ArrayLike, information: ArrayLike) -> None:
        self.information = np.asarray(information, dtype=np.float64)
        given = {"x": x, "y": y}
        self.x, self.y = same_length("rows", self.information.size, given)

    def plot(self, ax: Axes | None = None, **kwargs: Any) -> Self:
        """Draw the points.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to draw on; None makes a new figure.
        **kwargs : dict
            Further settings of the points, for `matplotlib.axes.Axes.scatter`.

        Returns
        -------
        PointwiseInformationDisplay
            The display itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        ax = axes_or_new(ax, f"{type(self).__name__}.plot", figsize=(6.0, 4.6))
        most = float(np.nanmax(np.abs(self.information), initial=1e-12))
        looks = {"cmap": "PuOr_r", "vmin": -most, "vmax": most, "s": 12.0}
        self.points_ = ax.scatter(self.x, self.y, c=self.information, **merged(looks, kwargs))
        ax.figure.colorbar(self.points_, ax=ax, label="pointwise information (nats)")
        self.ax_, self.figure_ = ax, ax.figure
        return self

    @classmethod
    def from_estimator(
        cls, estimator: Any, x: ArrayLike, y: ArrayLike, *, ax: Axes | None = None, **kwargs: Any
    ) -> Self:
        """Draw the rows of a fit, each scored by models that have not seen it.

        Parameters
        ----------
        estimator : IMMSEMutualInformation
            A fitted estimator.
        x, y : array-like of shape (n_samples,)
            Numbers to draw the rows of the fit at, such as a column of each side.
        ax : matplotlib Axes or None, default=None
            Axes to draw on; None makes a new figure.
        **kwargs : dict
            Further arguments of `plot`.

        Returns
        -------
        PointwiseInformationDisplay
            The drawn display.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If it has no pointwise information.
        ValueError
            If there are not as many numbers as rows.
        """
        check_drawable(cls, estimator, "pointwise_information_", _ESTIMATOR)
        return cls(x=x, y=y, information=estimator.pointwise_information_).plot(ax, **kwargs)
