"""Latent class models as experts: as many classes as validation rows ask for."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sk_itdiffusion._runtime.parallel import map_in_workers, single_blas_thread
from sk_itdiffusion.references.base import Reference
from sk_itdiffusion.references.classes import LatentClassReference
from sk_itdiffusion.references.discrete import IndependentReference
from sk_itdiffusion.references.families.base import (
    Demand,
    FamilyContext,
    ReferenceFamily,
)
from sk_itdiffusion.references.families.mixture import (
    _EM_STEPS_FOR_SEARCH,
    _MAX_EM_STEPS,
    MAX_ROWS_FOR_MIXTURES,
    mixture_regularization,
)
from sk_itdiffusion.references.judging import log_likelihoods, mean_and_error, search_numbers
from sk_itdiffusion.references.latent_class import fit_latent_class

if TYPE_CHECKING:
    from sk_itdiffusion._fit.schema import Schema
    from sk_itdiffusion._fit.splitting import MappedSplit

__all__ = ["LatentClassFamily", "fit_latent_class_by_validation"]

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
) -> LatentClassReference | None:
    """Return the latent class model whose number of classes validates best, or None.

    It must be better than the independent reference by more than one standard error.

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
    LatentClassReference or None
        The model.
    """
    layout, valid = independent.layout, split.valid
    width = layout.n_category_points + layout.n_continuous * (layout.n_continuous + 1) // 2
    most = int(np.clip(_MAX_INDICATORS // width, 1000, MAX_ROWS_FOR_CLASSES))
    rows = split.train.take(np.arange(min(len(split.train), most)))
    few = rows.take(np.arange(min(len(rows), MAX_ROWS_FOR_MIXTURES)))
    baseline = log_likelihoods(independent, valid.X)

    def fit(job: tuple[int, int], last: bool = False) -> tuple[float, LatentClassReference]:
        reference = fit_latent_class(
            rows if last else few,
            layout,
            job[0],
            np.random.RandomState(job[1]),
            regularization=regularization,
            max_iter=_MAX_EM_STEPS if last else _EM_STEPS_FOR_SEARCH,
            stopped=lambda: stop is not None and stop.is_set(),
        )
        return float(valid.share @ log_likelihoods(reference, valid.X)), reference

    def fit_all(numbers: Sequence[int]) -> list[tuple[float, LatentClassReference]]:
        seeds = random_state.randint(2**31 - 1, size=len(numbers))
        with single_blas_thread():
            return map_in_workers(fit, zip(numbers, seeds, strict=True), "cpu")

    n_categories = layout.n_category_points
    n_possible = min(
        len(rows),
        _MAX_CLASS_CATEGORIES // n_categories,
        _MAX_CLASS_WORK // (len(rows) * n_categories),
    )
    possible = [c for c in _CLASSES if c < 2 * n_possible]
    best = search_numbers(possible, fit_all, float(valid.share @ baseline))
    if best is None:
        return None
    # The search is brief; its winner is fitted once more, to all rows and to the end.
    with single_blas_thread():
        final = fit((best[2], int(random_state.randint(2**31 - 1))), last=True)
    chosen = final[1] if final[0] > best[0] else best[1]
    gain = log_likelihoods(chosen, valid.X) - baseline
    n_valid = None if layout.n_continuous else float(valid.weight.sum())
    mean, error = mean_and_error(gain, valid.share, n_valid)
    return chosen if mean > error else None


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
        independent = context.references["independent"]
        assert isinstance(independent, IndependentReference)
        regularization = mixture_regularization(context.schema.resolution)
        return fit_latent_class_by_validation(
            split, independent, regularization, context.random_state, context.stop
        )
