"""Expectation-maximisation for latent classes that are crossed with normal components."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first.layout import Layout
from sk_itdiffusion._first.references.classes import LatentClassReference
from sk_itdiffusion._first.references.crossed import CrossedMixtureReference
from sk_itdiffusion._first.references.latent_class import (
    TOLERANCE,
    Indicators,
    fit_latent_class,
    in_observations,
    smoothed_marginals,
)
from sk_itdiffusion._first.references.mixture import GaussianMixtureReference, normal_parts

__all__ = ["fit_crossed_mixture"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Pairs:
    """Parameters: the categories' log-probabilities in the classes, and weights of the pairs."""

    log_category: Array
    weight: Array


@dataclass(frozen=True)
class _Evidence:
    """Rows: their categories, densities of their numbers in the components, and their weights.

    Densities (n, n_components) are relative to the largest of the row, and ``log_highest`` are the
    logarithms of these.
    """

    indicators: Indicators
    density: Array
    log_highest: Array
    weight: Array
    marginal: Array
    share_of_components: Array

    @classmethod
    def of(cls, rows: WeightedRows, layout: Layout, mixture: GaussianMixtureReference) -> _Evidence:
        """Return the rows in the form that the steps need."""
        m = layout.n_continuous
        numbers = np.ascontiguousarray(rows.X[:, :m])
        log_density = normal_parts(mixture).log_densities(numbers).T
        log_highest = log_density.max(axis=1)
        return cls(
            Indicators.of(rows.X[:, m:], layout),
            np.exp(log_density - log_highest[:, None]),
            log_highest,
            rows.weight,
            np.concatenate(smoothed_marginals(rows, layout)),
            mixture.log_weights.exp().numpy(),
        )


def fit_crossed_mixture(
    rows: WeightedRows,
    layout: Layout,
    mixture: GaussianMixtureReference,
    n_classes: int,
    random_state: np.random.RandomState,
    *,
    prior: float = 1.0,
    max_iter: int = 100,
    stopped: Callable[[], bool] = lambda: False,
) -> CrossedMixtureReference:
    """Return classes that are crossed with components, fitted by expectation-maximisation.

    The components stay as they are.  Classes begin as those of the discrete columns alone,
    independent of the components; then both the probabilities of categories and the weights of
    pairs are fitted.  A class counts some rows more than it has, spread over the categories and
    over the components as in all rows, so that no pair is impossible.  Wide components are
    independent of the classes.

    Parameters
    ----------
    rows : WeightedRows
        Rows of the layout; NaN for what is missing.
    layout : Layout
        Where the columns are, of which some are continuous and some are discrete.
    mixture : GaussianMixtureReference
        Components of the continuous columns.
    n_classes : int
        Classes, at least 1.
    random_state : RandomState
        Source of the start.
    prior : float, default=1.0
        How many rows each class is given in advance.
    max_iter : int, default=100
        Most iterations.
    stopped : callable
        Asked in each iteration; True raises KeyboardInterrupt.

    Returns
    -------
    CrossedMixtureReference
        The fitted model.
    """
    rows = in_observations(rows, layout)
    evidence = _Evidence.of(rows, layout, mixture)
    alone = Layout(0, layout.variables)
    start = fit_latent_class(
        WeightedRows(rows.X[:, layout.n_continuous :], rows.weight),
        alone,
        n_classes,
        random_state,
        max_iter=max_iter,
        stopped=stopped,
    )
    pairs = _Pairs(
        np.log(np.concatenate(start._tables_of_variables(), axis=1)),
        start.log_weights.exp().numpy()[:, None] * evidence.share_of_components,
    )
    n_narrow = mixture.n_components - mixture.n_wide
    before = -math.inf
    for _ in range(max_iter):
        if stopped():
            raise KeyboardInterrupt
        now, pairs = _step(evidence, pairs, n_narrow, prior)
        if now - before < TOLERANCE:
            break
        before = now
    return _reference(alone, mixture, pairs)


def _step(evidence: _Evidence, pairs: _Pairs, n_narrow: int, prior: float) -> tuple[float, _Pairs]:
    """Return the mean log-likelihood of the observed entries, and pairs of a higher one."""
    by_class = evidence.indicators.log_terms(pairs.log_category)
    highest = by_class.max(axis=1)
    by_class = np.exp(by_class - highest[:, None])
    # Of terms (n, n_classes, n_components) only sums are needed: products of matrices.
    by_component = by_class @ pairs.weight
    likelihood = (by_component * evidence.density).sum(axis=1)
    log_row = np.log(likelihood) + highest + evidence.log_highest
    share = (evidence.weight / likelihood)[:, None]
    member = share * by_class * (evidence.density @ pairs.weight.T)
    of_pairs = pairs.weight * (by_class.T @ (share * evidence.density))
    base = evidence.share_of_components
    weight = of_pairs + prior * base
    odds = base[n_narrow:] / base[:n_narrow].sum()
    weight[:, n_narrow:] = weight[:, :n_narrow].sum(axis=1, keepdims=True) * odds
    log_category = evidence.indicators.smoothed(member, evidence.marginal, prior)
    mean = float(evidence.weight @ log_row / evidence.weight.sum())
    return mean, _Pairs(log_category, weight / weight.sum())


def _reference(
    layout: Layout, mixture: GaussianMixtureReference, pairs: _Pairs
) -> CrossedMixtureReference:
    """Return the pairs as a reference, whose components have the weights that they have there."""
    of_classes, of_components = pairs.weight.sum(axis=1), pairs.weight.sum(axis=0)
    sizes = [variable.n_categories for variable in layout.variables]
    parts = np.split(np.exp(pairs.log_category), np.cumsum(sizes)[:-1], axis=1)
    classes = LatentClassReference(layout, of_classes, parts)
    components = mixture.with_weights(of_components)
    return CrossedMixtureReference(
        classes, components, pairs.weight / np.outer(of_classes, of_components)
    )
