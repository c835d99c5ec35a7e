"""Gaussian mixtures as experts, with the number of components chosen by validation."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._runtime.parallel import map_in_workers
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first.references.base import Reference
from sk_itdiffusion._first.references.discrete import IndependentReference
from sk_itdiffusion._first.references.families.base import (
    Demand,
    FamilyContext,
    JudgedReference,
    ReferenceFamily,
)
from sk_itdiffusion._first.references.gaussian import VARIANCE_FLOOR, GaussianReference
from sk_itdiffusion._first.references.judging import (
    best_beyond_an_error,
    log_likelihoods,
    mean_and_error,
    rows_to_fit,
    search_numbers,
)
from sk_itdiffusion._first.references.latent_class import smoothed_marginals
from sk_itdiffusion._first.references.mixture import GaussianMixtureReference
from sk_itdiffusion._first.references.mixture_fit import fit_gaussian_mixture
from sk_itdiffusion._first.references.optimism import choice_optimism

if TYPE_CHECKING:
    from sk_itdiffusion._first._fit.schema import Schema
    from sk_itdiffusion._first._fit.splitting import MappedSplit

__all__ = [
    "GaussianMixtureFamily",
    "fit_mixture_by_validation",
    "is_affordable",
    "mixture_regularization",
]

Array = NDArray[np.float64]
#: Rows that the mixtures see at most; more hardly change them.
MAX_ROWS_FOR_MIXTURES = 20_000
#: Rows on which the number of components is searched.
_ROWS_FOR_SEARCH = 10_000
#: Columns up to which rows with missing entries are no fewer.
_COLUMNS_WITH_ALL_ROWS = 10
_COMPONENTS = (2, 3, 5, 8, 12, 20, 32, 50)
_MAX_EM_STEPS = 100
_EM_STEPS_FOR_SEARCH = 40
_ROWS_FOR_A_PARAMETER = 3
#: Numbers in all covariances of a mixture; thousands of columns would take hours and gigabytes.
_MAX_COVARIANCE_ENTRIES = 4 * 10**6


def is_affordable(n_components: int, n_columns: int) -> bool:
    """Return whether the covariances of a mixture are few enough numbers."""
    return n_components * n_columns**2 <= _MAX_COVARIANCE_ENTRIES


def fit_mixture_by_validation(
    train: WeightedRows,
    valid: WeightedRows,
    regularization: float,
    random_state: np.random.RandomState,
    stop: threading.Event | None = None,
    largest_variances: Array | None = None,
) -> tuple[GaussianMixtureReference | None, Array]:
    """Return the mixture whose number of components validates best, and the optimism of the choice.

    Numbers are tried in increasing order, with few steps each and at most 10,000 rows, until two in
    a row are no better; then the best is tried once more from another start, since
    expectation-maximisation ends in local optima, and a quarter more than it.  The best must beat
    a single Gaussian by more than one standard error, which guards against choosing among
    over-fitted mixtures by a handful of rows; else there is none.

    Parameters
    ----------
    train, valid : WeightedRows
        Mapped rows.
    regularization : float
        Added to the variances.
    random_state : RandomState
        Source of the starts.
    stop : threading.Event or None, default=None
        Ends the search by a KeyboardInterrupt once it is set.
    largest_variances : ndarray of shape (n_columns,) or None, default=None
        Variances that components may have in the columns at most; see `fit_gaussian_mixture`.

    Returns
    -------
    mixture : GaussianMixtureReference or None
        The mixture.
    optimism : ndarray of shape (n_valid,)
        Optimism of the choice for each validation row; see `choice_optimism`.
    """
    train = rows_to_fit(train, MAX_ROWS_FOR_MIXTURES, _COLUMNS_WITH_ALL_ROWS)
    few = rows_to_fit(train, _ROWS_FOR_SEARCH, _COLUMNS_WITH_ALL_ROWS)
    share = valid.share
    gaussian = log_likelihoods(GaussianReference.fit(train.X, train.weight), valid.X)
    scores: dict[tuple[int, int, int], Array] = {}

    def fit(
        rows: WeightedRows, n_steps: int, job: tuple[int, int]
    ) -> tuple[float, GaussianMixtureReference]:
        if stop is not None and stop.is_set():
            raise KeyboardInterrupt
        n_components, seed = job
        mixture = fit_gaussian_mixture(
            rows.X,
            n_components,
            np.random.RandomState(seed),
            regularization,
            n_steps,
            rows.weight,
            largest_variances,
        )
        likelihoods = log_likelihoods(mixture, valid.X)
        scores[*job, n_steps] = likelihoods
        return float(share @ likelihoods), mixture

    def fit_all(
        numbers: Sequence[int],
        rows: WeightedRows = few,
        n_steps: int = _EM_STEPS_FOR_SEARCH,
    ) -> list[tuple[float, GaussianMixtureReference]]:
        seeds = random_state.randint(2**31 - 1, size=len(numbers))
        jobs = zip(numbers, seeds, strict=True)
        return map_in_workers(partial(fit, rows, n_steps), jobs, "cpu")

    n_rows, n_columns = train.n_observations or len(train), train.X.shape[1]
    possible = [
        k
        for k in _COMPONENTS
        if _ROWS_FOR_A_PARAMETER * k * (n_columns + 1) <= n_rows and is_affordable(k, n_columns)
    ]
    best = search_numbers(possible, fit_all, float(share @ gaussian))
    if best is not None:
        score, mixture, n_best = best
        beside = fit_all([round(1.25 * n_best), n_best], train, _MAX_EM_STEPS)
        mixture = max([(score, mixture), *beside], key=lambda scored: scored[0])[1]
        gain = log_likelihoods(mixture, valid.X) - gaussian
        mean, error = mean_and_error(gain, share, source=valid.unit)
    tried = np.stack([gaussian, *(scores[job] for job in sorted(scores))])
    optimism = choice_optimism(tried, valid, best_beyond_an_error)
    return (mixture if best is not None and mean > error else None), optimism


def mixture_regularization(resolution: float) -> float:
    """Return the variance that keeps a mixture from resolving the columns' lattices."""
    return float(np.clip(resolution**2 / 12.0, VARIANCE_FLOOR, 1e-2))


class GaussianMixtureFamily(ReferenceFamily):
    """Mixtures of normal distributions, of continuous columns; discrete ones are independent."""

    name: ClassVar[str] = "gaussian_mixture"
    made_for: ClassVar[str] = "tables with continuous columns that are not pixels"
    has_to_be: ClassVar[str] = "better than one normal distribution"

    def applies(self, schema: Schema) -> bool:
        """Return whether there are continuous columns, not pixels; see `ReferenceFamily`."""
        return schema.n_continuous > 0 and not schema.has_images

    def by_default(self, demand: Demand) -> bool:
        """Return whether any control variate will do; see `ReferenceFamily.by_default`."""
        return demand.is_open

    def fit(self, split: MappedSplit, context: FamilyContext) -> Reference | None:
        """Return the mixture; see `ReferenceFamily.fit`."""
        return self.fit_judged(split, context).reference

    def fit_judged(self, split: MappedSplit, context: FamilyContext) -> JudgedReference:
        """Return the mixture, and the optimism of its choice; see `ReferenceFamily.fit_judged`."""
        mixture, optimism = fit_mixture_by_validation(
            split.continuous_train,
            split.continuous_valid,
            mixture_regularization(context.schema.resolution),
            context.random_state,
            context.stop,
            split.largest_variances,
        )
        layout = split.space.layout
        if mixture is None or not layout.variables:
            return JudgedReference(mixture, optimism)
        marginals = smoothed_marginals(split.train, layout)
        return JudgedReference(IndependentReference(layout, marginals, mixture), optimism)
