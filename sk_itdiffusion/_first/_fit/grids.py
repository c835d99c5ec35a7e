"""In which range of the log-SNR a model can differ from what is known, and its nodes there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first.layout import Layout
from sk_itdiffusion._first.references import Reference

__all__ = [
    "N_NODES",
    "category_logsnr_range",
    "logsnr_range",
    "lowest_with_given",
    "model_range",
    "with_more_nodes",
]

Array = NDArray[np.float64]
#: Rows from which covariances of categories are taken.
MAX_ROWS_FOR_SPECTRUM = 2_000
#: In nats; information below the least log-SNR that may be left to the control variate.
_MIN_INFORMATION = 0.005
#: Nodes between which networks are trained.
N_NODES = 41


def logsnr_range(references: Sequence[Reference], resolution: float) -> tuple[float, float]:
    """Return the range of the log-SNR in which a model can differ from its references.

    It holds those of all references, see `ContinuousReference.logsnr_range`, and is not short.

    Parameters
    ----------
    references : sequence of Reference
        Fitted references, at least one of them with continuous columns.
    resolution : float
        Largest lattice step of a column, in standard deviations; 0 if there is none.

    Returns
    -------
    low, high : float
        The range.
    """
    ranges = [reference.logsnr_range(resolution) for reference in references]
    known = [each for each in ranges if each is not None]
    low = min(low for low, _ in known)
    return low, max(low + 4.0, *(high for _, high in known))


def model_range(
    references: Iterable[Reference], layout: Layout, train: WeightedRows, resolution: float
) -> tuple[float, float]:
    """Return the range of the log-SNR in which a model can differ from its references.

    Parameters
    ----------
    references : iterable of Reference
        Fitted references.
    layout : Layout
        Where the columns are.
    train : WeightedRows
        Training rows of the layout.
    resolution : float
        Largest lattice step of a column, in standard deviations; 0 if there is none.

    Returns
    -------
    low, high : float
        The range.
    """
    ranges = []
    if layout.n_continuous:
        ranges.append(logsnr_range(list(references), resolution))
    if layout.variables:
        ranges.append(category_logsnr_range(layout, train))
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def highest_logsnr(references: Iterable[Reference], resolution: float) -> float:
    """Return up to which log-SNR references differ; minus infinity if none has a range."""
    known = (each for each in references if each.logsnr_range(resolution) is not None)
    return max((logsnr_range([each], resolution)[1] for each in known), default=-math.inf)


def with_more_nodes(grid: Array, references: Iterable[Reference], resolution: float) -> Array:
    """Return a grid with equidistant nodes beyond it, as far as references differ from others."""
    high = highest_logsnr(references, resolution)
    if not high > grid[-1]:
        return grid
    n_more = math.ceil((high - grid[-1]) / (grid[1] - grid[0]))
    return np.append(grid, np.linspace(grid[-1], high, n_more + 1)[1:])


def n_nodes_needed(
    logsnr: Array, grid: Array, references: Iterable[Reference], resolution: float
) -> int:
    """Return how many nodes, from the lowest on, a grid and references that go beyond it need."""
    high = highest_logsnr(references, resolution)
    return max(len(grid), int(np.searchsorted(logsnr, high)) + 1) if high > grid[-1] else len(grid)


def category_logsnr_range(layout: Layout, rows: WeightedRows) -> tuple[float, float]:
    """Return the range of the log-SNR in which a model can differ from independent columns.

    At a low log-SNR a, two columns of covariance c tell ``exp(2 a) / 4 c**2`` nats more than
    independent ones do; above the upper end no category is taken for another.

    Parameters
    ----------
    layout : Layout
        Where the columns are, with at least one discrete variable.
    rows : WeightedRows
        Rows of the layout.

    Returns
    -------
    low, high : float
        The range.
    """
    sample = rows.take(np.arange(min(len(rows), MAX_ROWS_FOR_SPECTRUM)))
    points = layout.embed_array(sample.X)
    deviation = np.sqrt(sample.share)[:, None] * (points - sample.share @ points)
    squared = squared_norm(deviation)
    # Columns of one variable belong together.
    owner = layout.owners()
    order = np.argsort(owner, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(owner[order])) + 1):
        squared -= squared_norm(deviation[:, group])
    low = 0.5 * math.log(4.0 * _MIN_INFORMATION / max(squared, 1e-3))
    high = math.log(60.0) - 2.0 * math.log(min(v.spacing for v in layout.variables))
    return low, max(high, low + 4.0)


def lowest_with_given(low: float) -> float:
    """Return the log-SNR that has the place of a least one where columns are given without noise.

    A noisy column tells ``exp(a) c**2 / 2`` nats of one of covariance c that is given, instead of
    ``exp(2 a) c**2 / 4`` of one that is as noisy.
    """
    return 2.0 * low - math.log(2.0)


def squared_norm(deviation: Array) -> float:
    """Return the sum of the squared entries of A'A, by the smaller of A'A and AA'."""
    tall = deviation.shape[0] >= deviation.shape[1]
    gram = deviation.T @ deviation if tall else deviation @ deviation.T
    return float((gram**2).sum())
