"""Latent class models as experts, with the number of classes chosen by validation."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._immse.cubature import Keys
from sk_itdiffusion._first._runtime.parallel import map_in_workers, single_blas_thread
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first.references.base import Reference
from sk_itdiffusion._first.references.classes import LatentClassReference
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
    mixture_regularization,
)
from sk_itdiffusion._first.references.judging import (
    best_beyond_an_error,
    log_likelihoods,
    mean_and_error,
    search_numbers,
)
from sk_itdiffusion._first.references.latent_class import fit_latent_class
from sk_itdiffusion._first.references.optimism import choice_optimism

if TYPE_CHECKING:
    from sk_itdiffusion._first._fit.schema import Schema
    from sk_itdiffusion._first._fit.splitting import MappedSplit

__all__ = ["LatentClassFamily", "fit_latent_class_by_validation"]

Array = NDArray[np.float64]
#: Number of classes and seed of a fit.
Job = tuple[int, int]
_CLASSES = (2, 4, 8, 16, 32, 64, 128, 256, 512)
MAX_ROWS_FOR_CLASSES = 50_000
#: Entries of the matrix of rows and categories that latent class models are fitted to.
_MAX_INDICATORS = 4 * 10**7
#: Probabilities in a latent class model.
_MAX_CLASS_CATEGORIES = 10**6
#: Products of rows, categories and classes in one step of expectation-maximisation.
_MAX_CLASS_WORK = 5 * 10**9


def fit_latent_class_by_validation(
    split: MappedSplit,
    independent: IndependentReference,
    regularization: float,
    random_state: np.random.RandomState,
    stop: threading.Event | None = None,
) -> tuple[LatentClassReference | None, Array]:
    """Return the latent class model whose number of classes validates best, or None.

    It must be better than the independent reference by more than one standard error; see `Judges`.

    Parameters
    ----------
    split : MappedSplit
        Training and validation rows.
    independent : IndependentReference
        Reference without classes.
    regularization : float
        Added to the variances of continuous columns.
    random_state : RandomState
        Source of the starts.
    stop : threading.Event or None, default=None
        Ends the search by a KeyboardInterrupt once it is set.

    Returns
    -------
    model : LatentClassReference or None
        The model.
    optimism : ndarray of shape (n_valid,)
        Optimism of the choice for each validation row; see `choice_optimism`.
    """
    layout, valid = independent.layout, split.valid
    width = layout.n_category_points + layout.n_continuous * (layout.n_continuous + 1) // 2
    most = int(np.clip(_MAX_INDICATORS // width, 1000, MAX_ROWS_FOR_CLASSES))
    rows = split.train.take(np.arange(min(len(split.train), most)))
    few = rows.take(np.arange(min(len(rows), MAX_ROWS_FOR_MIXTURES)))
    in_counts = not layout.n_continuous
    judges = Judges.of(few, valid, in_counts, random_state)
    baseline = judges.scores_of_independent(independent)
    scores: dict[Job, Array] = {}

    def fit(
        job: Job, rows: WeightedRows = few, n_steps: int = _EM_STEPS_FOR_SEARCH
    ) -> LatentClassReference:
        return fit_latent_class(
            rows,
            layout,
            job[0],
            np.random.RandomState(job[1]),
            regularization=regularization,
            max_iter=n_steps,
            stopped=lambda: stop is not None and stop.is_set(),
        )

    def judged(job: Job) -> tuple[float, LatentClassReference]:
        found = fit(job)
        scores[job] = judges.scores(found, partial(fit, job))
        return float(judges.rows.share @ scores[job]), found

    def fit_all(numbers: Sequence[int]) -> list[tuple[float, LatentClassReference]]:
        seeds = random_state.randint(2**31 - 1, size=len(numbers))
        with single_blas_thread():
            return map_in_workers(judged, zip(numbers, seeds, strict=True), "cpu")

    n_categories = layout.n_category_points
    n_possible = min(
        len(rows),
        _MAX_CLASS_CATEGORIES // n_categories,
        _MAX_CLASS_WORK // (len(rows) * n_categories),
    )
    possible = [c for c in _CLASSES if c < 2 * n_possible]
    best = search_numbers(possible, fit_all, float(judges.rows.share @ baseline))
    if best is None:
        return None, np.zeros(len(valid))
    tried = np.stack([baseline, *(scores[job] for job in sorted(scores))])

    def choose(given: Array, share: Array, source: Keys | None) -> int:
        """Return the best model, or 0 if it is not better than none by a standard error."""
        if judges.n_observations is None:
            return best_beyond_an_error(given, share, source)
        number = int(np.argmax(given @ share))
        mean, error = mean_and_error(given[number] - given[0], share, judges.n_observations)
        return number if mean > error else 0

    optimism = choice_optimism(tried, judges.rows, choose, in_counts=in_counts)[: len(valid)]
    if not choose(tried, judges.rows.share, judges.rows.unit):
        return None, optimism
    # The search is brief; its winner is fitted once more, to all rows and to the end.
    job = best[2], int(random_state.randint(2**31 - 1))
    with single_blas_thread():
        candidates = [best[1], fit(job, rows, _MAX_EM_STEPS)]
    return max(candidates, key=lambda c: float(valid.share @ log_likelihoods(c, valid.X))), optimism


class LatentClassFamily(ReferenceFamily):
    """Mixtures of independent columns, for tables with discrete ones."""

    name: ClassVar[str] = "latent_class"
    made_for: ClassVar[str] = "tables with discrete columns"
    has_to_be: ClassVar[str] = "better than independent columns"

    def applies(self, schema: Schema) -> bool:
        """Return whether there are discrete columns; see `ReferenceFamily.applies`."""
        return schema.has_categories

    def by_default(self, demand: Demand) -> bool:
        """Return whether any control variate will do; see `ReferenceFamily.by_default`."""
        return demand.is_open

    def fit(self, split: MappedSplit, context: FamilyContext) -> Reference | None:
        """Return the classes if they are better than none; see `ReferenceFamily.fit`."""
        return self.fit_judged(split, context).reference

    def fit_judged(self, split: MappedSplit, context: FamilyContext) -> JudgedReference:
        """Return the classes and the optimism of their choice; see `ReferenceFamily.fit_judged`."""
        independent = context.references["independent"]
        assert isinstance(independent, IndependentReference)
        regularization = mixture_regularization(context.schema.resolution)
        found = fit_latent_class_by_validation(
            split, independent, regularization, context.random_state, context.stop
        )
        return JudgedReference(*found)
