"""Values that are imputed, from draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import gaussian_kde

from sk_itdiffusion._first._runtime.progress import stretch_of_progress

__all__ = ["NUMBERS_IN_A_PASS", "completed_by_summaries", "places_of_nearest"]

Array = NDArray[np.float64]
#: Numbers in the draws that are kept in memory at a time.
NUMBERS_IN_A_PASS = 2**22


def places_of_nearest(known: Array, values: Array) -> NDArray[np.intp]:
    """Return the places of the nearest of some increasing numbers, the lower one of two."""
    centers = known[:-1] + 0.5 * np.diff(known)
    return np.asarray(np.searchsorted(centers, values))


def completed_by_summaries(
    values: Array,
    kinds: Sequence[str | None],
    strategy: str,
    n_draws: int,
    complete: Callable[[Array], Array],
) -> Array:
    """Return rows whose missing entries are summaries of draws.

    Parameters
    ----------
    values : ndarray of shape (n, n_columns)
        Numbers and codes; NaN where they are missing.
    kinds : sequence of {"continuous", "ordinal", "nominal"} or None
        Kinds of the columns; entries of columns of kind None are left as they are.
    strategy : {"mean", "median", "mode"}
        Which summary.
    n_draws : int
        Draws of each row that ``complete`` makes.
    complete : callable
        Returns draws of completed rows, of shape (n_draws, n, n_columns).

    Returns
    -------
    ndarray of shape (n, n_columns)
        The rows.
    """
    filled = values.copy()
    n_rows = max(1, NUMBERS_IN_A_PASS // (n_draws * values.shape[1]))
    for start in range(0, len(values), n_rows):
        part = values[start : start + n_rows]
        with stretch_of_progress(start / len(values), (start + len(part)) / len(values)):
            draws = complete(part)
        for j, kind in enumerate(kinds):
            here = np.isnan(part[:, j])
            if kind is not None and here.any():
                found = summarized(draws[:, here, j], kind, strategy)
                filled[start : start + n_rows][here, j] = found
    return filled


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
