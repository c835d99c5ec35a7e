"""How many components a mixture has: doubled as long as held-out rows gain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sk_itdiffusion.references.em import Mixtures, Rows, clustered, fit_mixtures, gaussians

__all__ = ["Fitted", "choose_mixture"]

Array = NDArray[np.float64]
MAX_COMPONENTS = 64
#: Rows, weighted, that a component needs, and rows from which the number is chosen.
MIN_ROWS_OF_COMPONENT, MAX_ROWS = 4.0, 5_000
COARSE, FINE = 1e-2, 1e-3
#: Rows that a weak prior counts for, where there is fine structure.
WEAK_PRIOR = 0.5


@dataclass(frozen=True)
class Fitted:
    """Normal distributions and mixtures of the fits to the folds, and of that to all rows.

    Attributes
    ----------
    gaussian, mixture : Mixtures
        One for each fit.
    score : ndarray of shape (n_held,)
        Log-density of each held-out row under the mixture that has not seen it.
    """

    gaussian: Mixtures
    mixture: Mixtures
    score: Array


def choose_mixture(
    points: Array,
    weight: Array,
    held: NDArray[np.bool_],
    floor: float,
    seed: int,
    max_components: int = MAX_COMPONENTS,
    *,
    is_final: bool = True,
) -> Fitted:
    """Return the mixtures whose number of components makes held-out rows likeliest.

    Parameters
    ----------
    points : ndarray of shape (n, d)
        Points; NaN is missing.
    weight : ndarray of shape (n, G)
        Weights of the rows in each fit, zero where they are held out.
    held : ndarray of shape (n, G - 1), bool
        Rows that are held out in all fits but the last one.
    floor : float
        Added to the variances.
    seed : int
        Seed of the starts.
    max_components : int, default=64
        Components at most.
    is_final : bool, default=True
        Whether the mixtures are fitted to all rows in the end, and not only to some.

    Returns
    -------
    Fitted
        The distributions.
    """
    rows = Rows.of(points, weight)
    gaussian, log_prob = gaussians(rows, floor)
    row, fold = np.nonzero(held)
    best, best_score = gaussian, log_prob.numpy()[row, fold]
    if not len(row):
        return Fitted(gaussian, gaussian, best_score)
    few = np.random.default_rng(seed).permutation(len(points))[:MAX_ROWS]
    few_rows = Rows.of(points[few], weight[few])
    prior = points.shape[1] + 1.0
    n_components = 2
    while n_components <= min(max_components, weight[:, -1].sum() / MIN_ROWS_OF_COMPONENT):
        start = clustered(few_rows, gaussian, n_components, floor, seed)
        mixture, _ = fit_mixtures(few_rows, start, prior, floor, tol=COARSE)
        score = _scores(rows, mixture)[row, fold]
        gain = score - best_score
        if gain.mean() <= 0.0:
            break
        best, best_score = mixture, score
        n_components *= 2
    if best is not gaussian and is_final:
        best, log_prob = _with_less_prior(rows, best, prior, floor, best_score, row, fold)
        best_score = log_prob.numpy()[row, fold]
    return Fitted(gaussian, best, best_score)


def _with_less_prior(
    rows: Rows,
    mixture: Mixtures,
    prior: float,
    floor: float,
    score: Array,
    row: NDArray[np.intp],
    fold: NDArray[np.intp],
) -> tuple[Mixtures, Tensor]:
    """Return the mixtures fitted to all rows, with the prior that held-out rows prefer."""
    found = [fit_mixtures(rows, mixture, each, floor, tol=FINE) for each in (prior, WEAK_PRIOR)]
    gains = [log_prob.numpy()[row, fold].mean() for _, log_prob in found]
    return found[int(np.argmax(gains))]


def _scores(rows: Rows, mixture: Mixtures) -> Array:
    """Return log-densities of all rows under all mixtures."""
    return fit_mixtures(rows, mixture, 0.0, 0.0, max_steps=0)[1].numpy()
