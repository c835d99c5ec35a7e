"""What the displays have in common: axes, colours, lines, and checks of estimators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from sk_itdiffusion._first._fit.experts import kind_of_expert

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "BLACK",
    "BLUE",
    "GREY",
    "ORANGE",
    "VERMILION",
    "Style",
    "axes_or_new",
    "check_drawable",
    "check_entries",
    "check_matplotlib",
    "expert_styles",
    "increasing_logsnr",
    "merged",
    "readable",
    "same_length",
    "without_box",
]

Array = NDArray[np.float64]

# The palette of Okabe and Ito, which colour-blind eyes distinguish, and a grey.
BLACK, GREY = "#000000", "#777777"
BLUE, VERMILION, ORANGE = "#0072B2", "#D55E00", "#E69F00"
SKY, GREEN, PURPLE, YELLOW = "#56B4E9", "#009E73", "#CC79A7", "#F0E442"

#: Where a legend is next to the axes.
BESIDE_THE_AXES: dict[str, Any] = {
    "loc": "upper left",
    "bbox_to_anchor": (1.01, 1.0),
    "borderaxespad": 0.0,
}
LOGSNR_LABEL = "log-SNR (natural logarithm)"


@dataclass(frozen=True)
class Style:
    """How an expert is drawn, as a line and as an area.

    Attributes
    ----------
    color : str
        Colour of line and area.
    linestyle : str or tuple
        Dashes of the line.
    marker : str
        Marker on the line.
    hatch : str
        Pattern of the area.
    """

    color: str
    linestyle: Any
    marker: str
    hatch: str


MODEL = Style(BLUE, "-", "", "")
_SECOND_NETWORK = Style(SKY, (0, (3, 1, 1, 1)), "v", "\\\\")
_KNOWN = {
    "network": Style(VERMILION, (0, (1, 1)), "o", ""),
    "crossed_mixture": Style(PURPLE, "-.", "D", "oo"),
    "gaussian": Style(GREY, "--", "", "//"),
    "gaussian_mixture": Style(ORANGE, "-.", "s", ".."),
    "independent": Style(GREY, "--", "", "//"),
    "kernel_density": Style(GREEN, (0, (3, 1, 1, 1, 1, 1)), "X", "++"),
    "latent_class": Style(GREEN, "-.", "^", "xx"),
    "reference": Style(PURPLE, (0, (5, 1)), "D", "oo"),
    "dense_network": _SECOND_NETWORK,
    "network_2": _SECOND_NETWORK,
}
_OTHERS = (
    _SECOND_NETWORK,
    Style(PURPLE, (0, (3, 1, 1, 1, 1, 1)), "D", "oo"),
    Style(GREEN, (0, (5, 1)), "^", "xx"),
    Style(YELLOW, (0, (1, 2)), "P", "++"),
    Style(VERMILION, (0, (1, 1)), "o", ""),
    Style(ORANGE, "-.", "s", ".."),
    Style(GREY, "--", "X", "//"),
)
_TITLES = {
    "crossed_mixture": "classes and components",
    "gaussian": "Gaussian",
    "gaussian_mixture": "Gaussian mixture",
    "independent": "independent columns",
    "kernel_density": "kernel density",
    "latent_class": "latent classes",
    "dense_network": "dense network",
}


def expert_styles(names: Iterable[str]) -> dict[str, Style]:
    """Return a style for each expert: a fixed one for the library's names, else a free one."""
    names = list(names)
    styles = {name: _KNOWN[name] for name in names if name in _KNOWN}
    taken = {style.color for style in styles.values()}
    free = [style for style in _OTHERS if style.color not in taken] or list(_OTHERS)
    # In alphabetical order, so that an expert looks the same in all displays of a model.
    others = sorted(name for name in names if name not in styles)
    n = len(free)
    for i, name in enumerate(others):
        form = free[(i + i // n) % n]  # once the colours are used up, with other forms
        styles[name] = replace(form, color=free[i % n].color)
    return styles


def readable(name: str) -> str:
    """Return an expert's name for a legend; that of a member's reference is in two parts."""
    member, separator, own = name.partition("__")
    if separator:
        return f"{member}: {readable(own)}"
    numbered = kind_of_expert(name) != name
    return _TITLES.get(name, name.replace("_", " ") if numbered else name)


def check_matplotlib(caller: str) -> None:
    """Raise an ImportError that says how to install matplotlib, if it is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{caller} requires matplotlib. You can install it with "
            '`pip install "sk_itdiffusion[plot]"`.'
        ) from error


def axes_or_new(ax: Axes | None, caller: str, **figure: Any) -> Axes:
    """Return the given axes, or those of a new figure."""
    check_matplotlib(caller)
    import matplotlib.pyplot as plt

    if ax is not None:
        return ax
    return plt.subplots(**({"layout": "constrained"} | figure))[1]


def check_drawable(display: type, estimator: Any, attribute: str, what: str) -> None:
    """Raise an error if matplotlib is missing, or the estimator lacks what a display draws.

    Parameters
    ----------
    display : type
        The display, whose ``from_estimator`` is called.
    estimator : object
        An estimator.
    attribute : str
        Name of a method or a fitted attribute.
    what : str
        What has it, for the message.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    NotFittedError
        If the estimator is not fitted.
    TypeError
        If it lacks the attribute, or is no estimator.
    """
    check_matplotlib(f"{display.__name__}.from_estimator")
    check_is_fitted(estimator)
    if not hasattr(estimator, attribute):
        raise TypeError(
            f"The display needs {what}, which has {attribute!r}; {type(estimator).__name__} does "
            "not have it."
        )


def check_entries(parameter: str, entries: Sized, n_columns: int) -> None:
    """Raise an error that names a parameter if it has not one entry for each column."""
    if len(entries) != n_columns:
        raise ValueError(
            f"{parameter} must have one entry for each of the {n_columns} columns, got "
            f"{len(entries)}."
        )


def merged(defaults: Mapping[str, Any], given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return keyword arguments, those given instead of the defaults."""
    return {**defaults, **(given or {})}


def same_length(what: str, n: int, arrays: Mapping[str, ArrayLike]) -> list[Array]:
    """Return one-dimensional arrays of n numbers, or raise an error that names the wrong one."""
    checked = []
    for name, values in arrays.items():
        array = np.asarray(values, dtype=np.float64)
        if array.shape != (n,):
            raise ValueError(
                f"{name} must have one entry for each of the {n} {what}, got the shape "
                f"{array.shape}."
            )
        checked.append(array)
    return checked


def increasing_logsnr(logsnr: ArrayLike) -> Array:
    """Return increasing log-SNRs, or raise an error."""
    nodes = np.asarray(logsnr, dtype=np.float64)
    if nodes.ndim != 1 or nodes.size < 2 or not (np.diff(nodes) > 0.0).all():
        raise ValueError(f"logsnr must be at least two increasing numbers, got {logsnr!r}.")
    return nodes


def without_box(ax: Axes) -> None:
    """Remove the upper and the right edge of axes."""
    ax.spines[["top", "right"]].set_visible(False)
