"""Latent classes crossed with normal components as experts."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._runtime.parallel import map_in_workers, single_blas_thread
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first.references.base import Reference
from sk_itdiffusion._first.references.crossed import CrossedMixtureReference
from sk_itdiffusion._first.references.crossed_fit import fit_crossed_mixture
from sk_itdiffusion._first.references.discrete import IndependentReference
from sk_itdiffusion._first.references.families.base import (
    Demand,
    FamilyContext,
    JudgedReference,
    ReferenceFamily,
)
from sk_itdiffusion._first.references.families.judges import Judges
from sk_itdiffusion._first.references.families.mixture import (
    _EM_STEPS_FOR_SEARCH,
    _MAX_EM_STEPS,
    MAX_ROWS_FOR_MIXTURES,
)
from sk_itdiffusion._first.references.judging import (
    best_beyond_an_error,
    first_rows,
    log_likelihoods,
    search_numbers,
)
from sk_itdiffusion._first.references.mixture import GaussianMixtureReference
from sk_itdiffusion._first.references.optimism import choice_optimism

if TYPE_CHECKING:
    from sk_itdiffusion._first._fit.schema import Schema
    from sk_itdiffusion._first._fit.splitting import MappedSplit

__all__ = ["CrossedMixtureFamily", "fit_crossed_mixture_by_validation"]

Array = NDArray[np.float64]
#: Number of classes, prior and seed of a fit.
Job = tuple[int, float, int]
_CLASSES = (2, 4, 8, 16, 32, 64)
#: Rows that each class is given in advance: many where categories depend weakly on each other,
#: few where they nearly determine each other.
_PRIORS = (5.0, 1.0)
#: Rows that the classes see at most.
_MAX_ROWS = 50_000


def fit_crossed_mixture_by_validation(
    split: MappedSplit,
    independent: IndependentReference,
    random_state: np.random.RandomState,
    stop: threading.Event | None = None,
) -> tuple[CrossedMixtureReference | None, Array]:
    """Return the crossed mixture whose number of classes is best on held-out rows, or None.

    It must be better than independent categories by more than one standard error; see `Judges`.

    Parameters
    ----------
    split : MappedSplit
        Training and validation rows.
    independent : IndependentReference
        Independent discrete columns alongside the mixture whose components are crossed.
    random_state : RandomState
        Source of the starts.
    stop : threading.Event or None, default=None
        Ends the search by a KeyboardInterrupt once it is set.

    Returns
    -------
    model : CrossedMixtureReference or None
        The model.
    optimism : ndarray of shape (n_valid,)
        Optimism of the choice for each validation row; see `choice_optimism`.
    """
    mixture, valid = independent.continuous, split.valid
    assert isinstance(mixture, GaussianMixtureReference)
    rows = first_rows(split.train, _MAX_ROWS)
    few = first_rows(rows, MAX_ROWS_FOR_MIXTURES)
    layout = independent.layout
    judges = Judges.of(few, valid, False, random_state)
    baseline = judges.scores_of_independent(independent)
    tried = [baseline]

    def fit(
        job: Job, rows: WeightedRows = few, n_steps: int = _EM_STEPS_FOR_SEARCH
    ) -> CrossedMixtureReference:
        n_classes, prior, seed = job
        return fit_crossed_mixture(
            rows,
            layout,
            mixture,
            n_classes,
            np.random.RandomState(seed),
            prior=prior,
            max_iter=n_steps,
            stopped=lambda: stop is not None and stop.is_set(),
        )

    def judged(job: Job) -> tuple[Array, CrossedMixtureReference]:
        found = fit(job)
        return judges.scores(found, partial(fit, job)), found

    def fit_all(
        prior: float, numbers: Sequence[int]
    ) -> list[tuple[float, CrossedMixtureReference]]:
        seeds = random_state.randint(2**31 - 1, size=len(numbers))
        jobs = [(number, prior, seed) for number, seed in zip(numbers, seeds, strict=True)]
        with single_blas_thread():
            fitted = map_in_workers(judged, jobs, "cpu")
        tried.extend(scores for scores, _ in fitted)
        return [(float(judges.rows.share @ scores), found) for scores, found in fitted]

    possible = [c for c in _CLASSES if c < len(rows)]
    best, best_prior = None, _PRIORS[0]
    for prior in _PRIORS:
        least = float(judges.rows.share @ baseline) if best is None else best[0]
        found = search_numbers(possible, partial(fit_all, prior), least)
        if found is not None:
            best, best_prior = found, prior
        # With a weaker prior fewer classes are no better.
        possible = [c for c in possible if best is None or c >= best[2]]
    scores = np.stack(tried)
    optimism = choice_optimism(scores, judges.rows, best_beyond_an_error)[: len(valid)]
    if best is None or best_beyond_an_error(scores, judges.rows.share, judges.rows.unit) == 0:
        return None, optimism
    # The search is brief; its winner is fitted once more, to all rows and to the end.
    seed = int(random_state.randint(2**31 - 1))
    with single_blas_thread():
        last = fit((best[2], best_prior, seed), rows, _MAX_EM_STEPS)
    candidates = [best[1], last]
    return max(candidates, key=lambda c: float(valid.share @ log_likelihoods(c, valid.X))), optimism


class CrossedMixtureFamily(ReferenceFamily):
    """Latent classes of discrete columns, crossed with components of continuous ones."""

    name: ClassVar[str] = "crossed_mixture"
    needs: ClassVar[tuple[str, ...]] = ("gaussian_mixture",)  # whose components it takes
    made_for: ClassVar[str] = "tables with discrete columns and continuous ones that are not pixels"
    has_to_be: ClassVar[str] = (
        "better than independent discrete columns alongside a mixture of normal distributions"
    )

    def applies(self, schema: Schema) -> bool:
        """Return whether there are columns of both kinds; see `ReferenceFamily.applies`."""
        return schema.has_categories and schema.n_continuous > 0 and not schema.has_images

    def by_default(self, demand: Demand) -> bool:
        """Return whether any control variate will do; see `ReferenceFamily.by_default`."""
        return demand.is_open

    def fit(self, split: MappedSplit, context: FamilyContext) -> Reference | None:
        """Return the pairs if they are better than none; see `ReferenceFamily.fit`."""
        return self.fit_judged(split, context).reference

    def fit_judged(self, split: MappedSplit, context: FamilyContext) -> JudgedReference:
        """Return the pairs and the optimism of their choice; see `ReferenceFamily.fit_judged`."""
        independent = context.references.get("gaussian_mixture")
        if not isinstance(independent, IndependentReference):
            return JudgedReference(None)
        found = fit_crossed_mixture_by_validation(
            split, independent, context.random_state, context.stop
        )
        return JudgedReference(*found)
