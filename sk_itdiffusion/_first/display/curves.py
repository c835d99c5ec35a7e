"""Errors against the log-SNR, and the information between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from sk_itdiffusion._first.display.style import (
    BESIDE_THE_AXES,
    BLACK,
    BLUE,
    LOGSNR_LABEL,
    MODEL,
    Array,
    Style,
    axes_or_new,
    check_drawable,
    expert_styles,
    increasing_logsnr,
    merged,
    readable,
    same_length,
    without_box,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sk_itdiffusion._first._immse.likelihood import MSECurve

__all__ = ["MSECurveDisplay"]

STRIP = 0.06  # height of the strip of the chosen experts, as a share of that of the curves
MAX_INSIDE = 5  # curves up to which the legend is inside of the axes
LETTER = 0.011  # width of a letter in the strip, as a share of that of the axes
QUANTITIES = ("error", "gain")


class MSECurveDisplay:
    r"""Squared errors of a model and its references against the log-SNR.

    Half the area between the curve of a reference q and that of the model is the information gap:
    the mean of log p(x) - log q(x) over the rows, in nats (Kong et al. 2023, figure 1, where the
    reference is the Gaussian of smallest error).  A strip below the curves shows which expert has
    the most weight at each log-SNR.

    It is recommended to use `from_estimator`.  All parameters are stored as attributes.

    Parameters
    ----------
    logsnr : array-like of shape (n_nodes,)
        Increasing log signal-to-noise ratios.
    model : array-like of shape (n_nodes,)
        Mean over the rows of the model's ``|eps - eps_hat|**2``, summed over columns.
    references : dict of str to array-like of shape (n_nodes,)
        Errors of the references.
    networks : dict of str to array-like of shape (n_nodes,) or None, default=None
        Errors of the networks alone.
    weights : dict of str to array-like of shape (n_nodes,) or None, default=None
        Weights of the experts in the model; None leaves the strip out.
    model_stderr : array-like of shape (n_nodes,) or None, default=None
        Standard error of the model's curve over the rows.
    stderr : dict of str to array-like of shape (n_nodes,) or None, default=None
        Standard errors of the other curves by their names.
    reference : str or None, default=None
        The reference up to which the gap is shaded; None takes ``"gaussian"`` if it is there, else
        the first.
    name : str or None, default=None
        Name of the model in the legend; None is ``"model"``.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curves.
    figure_ : matplotlib Figure
        Figure with the curves.
    model_line_ : matplotlib Line2D
        The curve of the model.
    lines_ : dict of str to matplotlib Line2D
        The curves of references and networks by name.
    gap_ : matplotlib FillBetweenPolyCollection
        The shaded area between the reference and the model.
    bands_ : list of matplotlib FillBetweenPolyCollection
        Bands of two standard errors around the curves, that of the model first; empty unless
        asked for.
    strip_ : list of matplotlib Rectangle
        Stretches of the strip from left to right, whose gid is the expert's name; empty without
        weights.
    legend_ : matplotlib Legend
        The legend.

    See Also
    --------
    EnsembleWeightsDisplay : All weights, not only the largest.
    BoundHistoryDisplay : How the bound fell while the network was trained.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion import IMMSEDensity
    >>> from sk_itdiffusion.display import MSECurveDisplay
    >>> X = np.random.default_rng(0).exponential(size=(300, 2))
    >>> density = IMMSEDensity(max_epochs=1, random_state=0).fit(X)
    >>> display = MSECurveDisplay.from_estimator(density)
    >>> sorted(display.lines_)
    ['gaussian', 'network', 'network_2']
    >>> display.information_gap > 0.0
    True
    """

    def __init__(
        self,
        *,
        logsnr: ArrayLike,
        model: ArrayLike,
        references: Mapping[str, ArrayLike],
        networks: Mapping[str, ArrayLike] | None = None,
        weights: Mapping[str, ArrayLike] | None = None,
        model_stderr: ArrayLike | None = None,
        stderr: Mapping[str, ArrayLike] | None = None,
        reference: str | None = None,
        name: str | None = None,
    ) -> None:
        self.logsnr = increasing_logsnr(logsnr)
        self.model = self._checked({"model": model})["model"]
        self.references = self._checked(references)
        self.networks = self._checked(networks or {})
        self.weights = self._checked(weights or {})
        self.model_stderr = None
        if model_stderr is not None:
            self.model_stderr = self._checked({"model_stderr": model_stderr})["model_stderr"]
        self.stderr = self._checked(stderr or {})
        if not self.references:
            raise ValueError("references must have at least one curve.")
        usual = "gaussian" if "gaussian" in self.references else next(iter(self.references))
        self.reference = usual if reference is None else reference
        if self.reference not in self.references:
            raise ValueError(
                f"reference must be one of {list(self.references)}, got {reference!r}."
            )
        self.name = "model" if name is None else name

    def _checked(self, curves: Mapping[str, ArrayLike]) -> dict[str, Array]:
        arrays = same_length("nodes", self.logsnr.size, curves)
        return dict(zip(curves, arrays, strict=True))

    @property
    def information_gap(self) -> float:
        """Half the area between the reference's curve and the model's, in nats per row."""
        difference = self._baseline - self.model
        return float(0.5 * np.trapezoid(difference, self.logsnr))

    @property
    def _baseline(self) -> Array:
        """The errors of the reference up to which the gap is shaded."""
        return self.references[self.reference]

    def plot(
        self,
        ax: Axes | None = None,
        *,
        quantity: str = "error",
        show_stderr: bool = False,
        line_kw: Mapping[str, Any] | None = None,
        fill_kw: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to draw on; None makes a new figure.
        quantity : {"error", "gain"}, default="error"
            The errors themselves, or half the error of the reference minus half of each: nats per
            unit of the log-SNR that a curve adds to the reference's log-likelihood.  Among many
            columns the errors are close together, and the gains show their difference.
        show_stderr : bool, default=False
            Whether to shade two standard errors around the curves of errors.  They count the
            spread of the rows, which all curves share, and so exceed those of differences.
        line_kw : dict or None, default=None
            Additional settings of all curves, for `matplotlib.axes.Axes.plot`.
        fill_kw : dict or None, default=None
            Settings of the shaded area, for `matplotlib.axes.Axes.fill_between`.

        Returns
        -------
        MSECurveDisplay
            The display itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If the quantity is an unknown one.
        """
        if quantity not in QUANTITIES:
            raise ValueError(f"quantity must be one of {QUANTITIES}, got {quantity!r}.")
        ax = axes_or_new(ax, f"{type(self).__name__}.plot")
        self._shade(ax, quantity, fill_kw)
        self.bands_: list[Any] = []
        band = self.model_stderr if show_stderr and quantity == "error" else None
        looks = merged({"label": self.name, "linewidth": 2.4, "zorder": 2.0}, line_kw)
        self.model_line_ = self._draw_curve(ax, self.model, quantity, band, MODEL, looks)
        curves = {**self.references, **self.networks}
        styles = expert_styles({**curves, **self.weights})
        self.lines_: dict[str, Any] = {}
        for name, errors in curves.items():
            band = self.stderr.get(name) if show_stderr and quantity == "error" else None
            looks = merged({"label": readable(name), "linewidth": 1.4, "zorder": 2.1}, line_kw)
            self.lines_[name] = self._draw_curve(ax, errors, quantity, band, styles[name], looks)
        self._draw_strip(ax)
        self._finish(ax, quantity)
        return self

    def _drawn(self, errors: Array, quantity: str) -> Array:
        """Return the heights of a curve."""
        if quantity == "error":
            return errors
        return np.asarray(0.5 * (self._baseline - errors))

    def _shade(self, ax: Axes, quantity: str, fill_kw: Mapping[str, Any] | None) -> None:
        """Shade the gap between the reference and the model."""
        label = f"gap to {readable(self.reference)}: {self.information_gap:.3g} nats\n"
        label += "(half the area)" if quantity == "error" else "(the area)"
        looks = {"color": BLUE, "alpha": 0.2, "linewidth": 0, "label": label}
        model, reference = (self._drawn(e, quantity) for e in (self.model, self._baseline))
        self.gap_ = ax.fill_between(self.logsnr, model, reference, **merged(looks, fill_kw))

    def _draw_curve(
        self,
        ax: Axes,
        errors: Array,
        quantity: str,
        stderr: Array | None,
        style: Style,
        looks: Mapping[str, Any],
    ) -> Any:
        """Draw a curve, and a band of two standard errors if these are given."""
        usual = {
            "color": style.color,
            "linestyle": style.linestyle,
            "marker": style.marker,
            "markersize": 3.5,
            "markevery": 4,
        }
        (line,) = ax.plot(self.logsnr, self._drawn(errors, quantity), **merged(usual, looks))
        if stderr is not None:
            low, high = errors - 2.0 * stderr, errors + 2.0 * stderr
            looks = {"color": style.color, "alpha": 0.15, "linewidth": 0}
            self.bands_.append(ax.fill_between(self.logsnr, low, high, **looks))
        return line

    def _draw_strip(self, ax: Axes) -> None:
        """Draw which expert has the most weight, as a strip below the curves."""
        self.strip_: list[Any] = []
        if not self.weights:
            return
        from matplotlib.patches import Rectangle

        low, high = ax.get_ylim()
        height = STRIP * (high - low)
        bottom = low - 2.2 * height
        styles = expert_styles({**self.references, **self.networks, **self.weights})
        for start, stop, name in self.chosen_experts():
            style = styles[name]
            stretch = Rectangle(
                (start, bottom),
                stop - start,
                height,
                facecolor=style.color,
                edgecolor=BLACK,
                linewidth=0.6,
                hatch=style.hatch,
                alpha=0.75,
            )
            stretch.set_gid(name)
            self.strip_.append(ax.add_patch(stretch))
            letter = LETTER if len(self.lines_) < MAX_INSIDE else 2.2 * LETTER
            if stop - start > letter * (len(readable(name)) + 2) * np.ptp(self.logsnr):
                self._write_in(ax, 0.5 * (start + stop), bottom + 0.5 * height, readable(name))
        left, top = self.logsnr[0], bottom + 1.15 * height
        ax.text(left, top, "expert of most weight:", va="bottom", fontsize="x-small")
        ticks = [tick for tick in ax.get_yticks() if low <= tick <= high]
        ax.set_yticks(ticks)  # none alongside the strip
        ax.set_ylim(bottom - 0.3 * height, high)

    @staticmethod
    def _write_in(ax: Axes, x: float, y: float, text: str) -> None:
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
        ax.text(x, y, text, ha="center", va="center", fontsize="x-small", bbox=box)

    def chosen_experts(self) -> list[tuple[float, float, str]]:
        """Return the stretches of the log-SNR in which one expert has the most weight.

        Weights between the nodes are taken from the nearest node.

        Returns
        -------
        list of (float, float, str)
            Ends of each stretch and the expert, from left to right; empty without weights.
        """
        if not self.weights:
            return []
        names = list(self.weights)
        best = np.argmax(np.stack(list(self.weights.values())), axis=0)
        changes = np.flatnonzero(np.diff(best)) + 1
        middle = 0.5 * (self.logsnr[changes - 1] + self.logsnr[changes])
        edges = [float(self.logsnr[0]), *map(float, middle), float(self.logsnr[-1])]
        first = [0, *changes]
        return [(edges[i], edges[i + 1], names[best[node]]) for i, node in enumerate(first)]

    def _finish(self, ax: Axes, quantity: str) -> None:
        """Label the axes and draw the legend."""
        ax.set_xlabel(LOGSNR_LABEL)
        if quantity == "error":
            ax.set_ylabel(r"mean of $\|\epsilon - \hat\epsilon\|^2$ (sum over columns)")
        else:
            ax.set_ylabel(f"gain over {readable(self.reference)} (nats per unit log-SNR)")
            ax.axhline(0.0, color=BLACK, linewidth=0.6, zorder=0)
        without_box(ax)
        self.legend_ = self._draw_legend(ax, self._legend_place(quantity))
        self.ax_, self.figure_ = ax, ax.figure

    def _legend_place(self, quantity: str) -> dict[str, Any]:
        """Return where the legend covers neither curves nor the strip."""
        if len(self.lines_) >= MAX_INSIDE:
            return BESIDE_THE_AXES
        drawn = self._drawn(self.model, quantity)
        if quantity == "gain":
            peaks_early = int(np.argmax(drawn)) < drawn.size / 2
            return {"loc": "upper right" if peaks_early else "upper left"}
        if drawn[-1] > 0.5 * drawn.max():
            return {"loc": "upper left"}
        return {"loc": "lower center", "bbox_to_anchor": (0.5, 0.18)}  # under an arch

    def _draw_legend(self, ax: Axes, place: Mapping[str, Any]) -> Any:
        """Draw the legend: experts with their lines and, if they are chosen, their areas."""
        from matplotlib.legend_handler import HandlerTuple

        stretches = {stretch.get_gid(): stretch for stretch in self.strip_}
        others = [*self.references, *self.networks]
        handles = [self.model_line_]
        handles += [
            (stretches[name], self.lines_[name]) if name in stretches else self.lines_[name]
            for name in others
        ]
        return ax.legend(
            handles=[*handles, self.gap_],
            labels=[self.name, *map(readable, others), self.gap_.get_label()],
            handler_map={tuple: HandlerTuple(ndivide=None)},
            handlelength=3.4,
            frameon=False,
            fontsize="small",
            **place,
        )

    @classmethod
    def from_curve(
        cls, curve: MSECurve, *, reference: str | None = None, name: str | None = None
    ) -> Self:
        """Return the display of an error curve, not drawn yet.

        Parameters
        ----------
        curve : MSECurve
            What `mse_curve` of an estimator returns.
        reference : str or None, default=None
            The reference up to which the gap is shaded.
        name : str or None, default=None
            Name of the model in the legend.

        Returns
        -------
        MSECurveDisplay
            The display.
        """
        return cls(
            logsnr=curve.logsnr,
            model=curve.model,
            references=curve.references,
            networks=curve.networks,
            weights=curve.weights,
            model_stderr=curve.model_stderr,
            stderr={**curve.references_stderr, **curve.networks_stderr},
            reference=reference,
            name=name,
        )

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any = None,
        *,
        reference: str | None = None,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the error curve of a fitted density estimator or ensemble.

        Parameters
        ----------
        estimator : estimator
            A fitted density estimator of this library.
        X : array-like or data frame of shape (n_samples, n_features), default=None
            Rows; None takes the validation rows of the fit.  On rows that the network was trained
            on its error is too low.
        reference : str or None, default=None
            The reference up to which the gap is shaded; None takes ``"gaussian"`` if it is there,
            else the first.
        name : str or None, default=None
            Name of the model in the legend; None is the name of the class.
        ax : matplotlib Axes or None, default=None
            Axes to draw on; None makes a new figure.
        **kwargs : dict
            Additional arguments of `plot`.

        Returns
        -------
        MSECurveDisplay
            The drawn display.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If it is not a density estimator of this library.
        ValueError
            If there is no error curve, X does not fit, or the reference is unknown.
        """
        check_drawable(cls, estimator, "mse_curve", "a density estimator of sk_itdiffusion")
        name = type(estimator).__name__ if name is None else name
        display = cls.from_curve(estimator.mse_curve(X), reference=reference, name=name)
        return display.plot(ax, **kwargs)
