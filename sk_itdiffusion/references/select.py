"""How many components a mixture has: doubled as long as held-out rows gain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion.references.em import Mixtures, Rows, clustered, fit_mixtures, gaussians

__all__ = ["Fitted", "choose_mixture", "refined"]

Array = NDArray[np.float64]
MAX_COMPONENTS = 64
#: Rows, weighted, that a component needs, and rows from which the number is chosen.
MIN_ROWS_OF_COMPONENT, MAX_ROWS = 4.0, 10_000
COARSE, FINE, MAX_FINE_STEPS = 1e-2, 3e-4, 200
#: Numbers that the steps of a fit to all rows may take.
MAX_WORK = 10**11
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
    begin: Fitted | None = None,
    *,
    has_between: bool = False,
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
    begin : Fitted or None, default=None
        What was found with fewer components, to go on from.
    has_between : bool, default=False
        Whether numbers between the doublings are tried in the end.

    Returns
    -------
    Fitted
        The distributions, fitted to some of the rows if there are many; see `refined`.
    """
    rows = Rows.of(points, weight)
    if begin is None:
        gaussian, log_prob = gaussians(rows, floor)
        begin = Fitted(gaussian, gaussian, log_prob.numpy()[np.nonzero(held)])
    if not held.any():
        return begin
    few = np.random.default_rng(seed).permutation(len(points))[:MAX_ROWS]
    few_rows = Rows.of(points[few], weight[few])
    most = min(max_components, weight[:, -1].sum() / MIN_ROWS_OF_COMPONENT)

    def tried(n_components: int, than: Fitted) -> Fitted | None:
        """Return mixtures of so many components if they are better."""
        if not 1 < n_components <= most:
            return None
        start = clustered(few_rows, than.gaussian, n_components, floor, seed)
        prior = points.shape[1] + 1.0
        mixture, _ = fit_mixtures(few_rows, start, prior, floor, tol=COARSE)
        score = _scores(rows, mixture)[np.nonzero(held)]
        better = score.mean() > than.score.mean()
        return Fitted(than.gaussian, mixture, score) if better else None

    best = begin
    while found := tried(2 * best.mixture.n_components, best):
        best = found
    if has_between:
        n_components = best.mixture.n_components
        for each in (3 * n_components // 2, 3 * n_components // 4):
            best = tried(each, best) or best
    return best


def refined(
    fitted: Fitted, points: Array, weight: Array, held: NDArray[np.bool_], floor: float
) -> Fitted:
    """Return mixtures fitted to all rows, with the prior that held-out rows prefer.

    Parameters
    ----------
    fitted : Fitted
        What `choose_mixture` has found.
    points, weight, held, floor
        See `choose_mixture`.

    Returns
    -------
    Fitted
        The distributions.
    """
    if fitted.mixture is fitted.gaussian:
        return fitted
    rows = Rows.of(points, weight)
    work = points.size * points.shape[1] * weight.shape[1] * fitted.mixture.n_components
    n_steps = int(np.clip(MAX_WORK // (4 * work), 10, MAX_FINE_STEPS))
    found = []
    for prior in (points.shape[1] + 1.0, WEAK_PRIOR):
        mixture, log_prob = fit_mixtures(rows, fitted.mixture, prior, floor, n_steps, FINE)
        found.append(Fitted(fitted.gaussian, mixture, log_prob.numpy()[np.nonzero(held)]))
    return max(found, key=lambda each: float(each.score.mean()) if held.any() else 0.0)


def _scores(rows: Rows, mixture: Mixtures) -> Array:
    """Return log-densities of all rows under all mixtures."""
    return fit_mixtures(rows, mixture, 0.0, 0.0, max_steps=0)[1].numpy()
