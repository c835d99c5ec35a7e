"""How references are evaluated: by their log-likelihoods of validation rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sk_itdiffusion._first._immse.cubature import Keys, sums_over_sources
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first.references.base import Reference
from sk_itdiffusion._first.references.parts import evaluated_at_places

__all__ = [
    "best_beyond_an_error",
    "conditional_log_likelihoods",
    "first_rows",
    "joined_rows",
    "log_likelihoods",
    "mean_and_error",
    "rows_to_fit",
    "search_numbers",
]

Array = NDArray[np.float64]
Fitted = TypeVar("Fitted", bound=Reference)


def log_likelihoods(reference: Reference, X: Array) -> Array:
    """Return a reference's log-density of rows, in nats.

    Rows may have missing entries (NaN): that of a row is then the log-density of its observed
    entries, and 0 if there are none.  Rows are done in chunks of one fixed shape, at places that
    are alike, so that a row's value does not depend on the other rows to the last bit.
    """
    dtype = next((b.dtype for b in reference.buffers() if b.is_floating_point()), torch.float64)

    def log_prob(x: Tensor) -> Tensor:
        """Return the log-density, for which a reference may be in single precision."""
        return reference.log_prob(x.to(dtype))

    is_complete = ~np.isnan(X).any(axis=1)
    if is_complete.all():
        return evaluated_at_places(log_prob, X)
    found = np.empty(len(X))
    found[is_complete] = evaluated_at_places(log_prob, X[is_complete])
    with torch.no_grad():
        parts = reference.observed_log_prob(torch.from_numpy(X[~is_complete]))
    found[~is_complete] = parts.numpy()
    return found


def conditional_log_likelihoods(reference: Reference, X: Array, given: NDArray[np.bool_]) -> Array:
    """Return a reference's log-density of the observed entries that are not given, given others.

    Where nothing is given it is that of `log_likelihoods`, also to the last bit.

    Parameters
    ----------
    reference : Reference
        The reference.
    X : ndarray of shape (n, n_columns)
        Rows; NaN for what is missing.
    given : ndarray of shape (n, n_columns), bool
        Observed entries that are given.

    Returns
    -------
    ndarray of shape (n,)
        Log-densities in nats.
    """
    has_given = given.any(axis=1)
    found = np.empty(len(X))
    if not has_given.all():
        found[~has_given] = log_likelihoods(reference, X[~has_given])
    if has_given.any():
        rows, known = torch.from_numpy(X[has_given]), torch.from_numpy(given[has_given])
        with torch.no_grad():
            found[has_given] = reference.conditional_log_prob(rows, known).numpy()
    return found


def rows_to_fit(rows: WeightedRows, most: int, columns_of_one: int) -> WeightedRows:
    """Return the first rows to fit candidates to, fewer if entries of many columns are missing.

    Each pattern of missing entries takes a decomposition of its own in each step.

    Parameters
    ----------
    rows : WeightedRows
        The rows, in random order.
    most : int
        How many of them at most.
    columns_of_one : int
        Number of columns up to which that is so; of twice as many columns half as many rows are
        taken.

    Returns
    -------
    WeightedRows
        The first of them.
    """
    n_columns = rows.X.shape[1] if np.isnan(rows.X).any() else 0
    return first_rows(rows, most * columns_of_one // max(n_columns, columns_of_one))


def first_rows(rows: WeightedRows, most: int) -> WeightedRows:
    """Return the first rows, which are a fair sample: canonical order is random in all but name."""
    return rows.take(np.arange(min(len(rows), most)))


def joined_rows(parts: Sequence[WeightedRows]) -> WeightedRows:
    """Return the rows of several parts of a table, one part after the other."""

    def joined(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else np.concatenate(values)

    return WeightedRows(joined("X"), joined("weight"), joined("source"), joined("group"))


def best_beyond_an_error(scores: Array, share: Array, source: Keys | None) -> int:
    """Return the best candidate if it is better than the first by a standard error, or 0."""
    best = int(np.argmax(scores @ share))
    mean, error = mean_and_error(scores[best] - scores[0], share, source=source)
    return best if mean > error else 0


def search_numbers(
    numbers: Sequence[int],
    fit_all: Callable[[Sequence[int]], list[tuple[float, Fitted]]],
    least_score: float,
) -> tuple[float, Fitted, int] | None:
    """Return score, reference and number of the best, ending after two in a row that are worse.

    Parameters
    ----------
    numbers : sequence of int
        Increasing numbers of components or classes.
    fit_all : callable
        Returns scores and references of some numbers.
    least_score : float
        Score that has to be exceeded.

    Returns
    -------
    tuple or None
        The best, or None if none exceeds the least score.
    """
    best: tuple[float, Fitted, int] | None = None
    failures = 0
    # Two at a time, whatever the number of workers, so that their number changes no result.
    for pair in (numbers[i : i + 2] for i in range(0, len(numbers), 2)):
        for number, (score, reference) in zip(pair, fit_all(pair), strict=True):
            failures += 1
            if score > (least_score if best is None else best[0]):
                best, failures = (score, reference, number), 0
        if failures >= 2:
            break
    return best


def mean_and_error(
    values: Array,
    share: Array,
    n_observations: float | None = None,
    source: Keys | None = None,
) -> tuple[float, float]:
    """Return the weighted mean over rows and its standard error; the shares sum to 1.

    Each row is one observation, or rows of one source are, or with ``n_observations`` the shares
    are those of so many.
    """
    mean = float(share @ values)
    if n_observations is not None:
        return mean, math.sqrt(float(share @ (values - mean) ** 2) / n_observations)
    return mean, math.sqrt(
        float(np.square(sums_over_sources(share * (values - mean), source)).sum())
    )
