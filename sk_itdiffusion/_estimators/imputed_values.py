"""Values that are imputed, from draws."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import gaussian_kde

__all__ = ["densest", "places_of_nearest", "summarized"]

Array = NDArray[np.float64]


def places_of_nearest(known: Array, values: Array) -> NDArray[np.intp]:
    """Return the places of the nearest of some increasing numbers, the lower one of two."""
    centers = known[:-1] + 0.5 * np.diff(known)
    return np.asarray(np.searchsorted(centers, values))


def summarized(draws: Array, kind: str, strategy: str) -> Array:
    """Return one value for each of some entries from their draws.

    Parameters
    ----------
    draws : ndarray of shape (n_draws, n_entries)
        Draws of numbers, or of codes of categories.
    kind : {"continuous", "ordinal", "nominal"}
        Kind of the column.
    strategy : {"mean", "median", "mode"}
        What to return.

    Returns
    -------
    ndarray of shape (n_entries,)
        The values.
    """
    if kind == "continuous":
        if strategy == "mean":
            return np.asarray(draws.mean(axis=0))
        if strategy == "median":
            return np.asarray(np.median(draws, axis=0))
        return np.array([densest(column) for column in draws.T])
    if kind == "ordinal" and strategy != "mode":
        return np.asarray(np.quantile(draws, 0.5, axis=0, method="inverted_cdf"))
    return np.array([np.bincount(column.astype(np.intp)).argmax() for column in draws.T], float)


def densest(values: Array) -> float:
    """Return the one of some numbers where their density, by kernels, is highest."""
    if len(values) < 3 or np.ptp(values) <= 1e-12 * np.abs(values).max():
        return float(np.median(values))
    return float(values[gaussian_kde(values)(values).argmax()])
