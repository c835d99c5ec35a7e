"""Normal distributions as experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first.references.base import Reference
from sk_itdiffusion._first.references.continuous import ContinuousReference
from sk_itdiffusion._first.references.families.base import (
    FamilyContext,
    ReferenceFamily,
)
from sk_itdiffusion._first.references.gaussian import (
    GaussianReference,
    fitted_moments,
    floor_eigenvalues,
)
from sk_itdiffusion._first.references.judging import log_likelihoods
from sk_itdiffusion._first.references.low_rank import LowRankGaussianReference

if TYPE_CHECKING:
    from sk_itdiffusion._first._fit.schema import Schema
    from sk_itdiffusion._first._fit.splitting import MappedSplit

__all__ = ["GaussianFamily", "GivenReferenceFamily", "fit_gaussian_by_validation"]

#: Columns up to which a Gaussian has a full covariance, and its rank otherwise.
MAX_COLUMNS_FOR_COVARIANCE = 4_096
MAX_DIRECTIONS = 256
#: Weights of the diagonal matrix in the covariances to choose from.
_SHRINKAGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def fit_gaussian_by_validation(
    train: WeightedRows, valid: WeightedRows | None, random_state: np.random.RandomState
) -> Reference:
    """Return a Gaussian of images: the covariance shrunk to its diagonal as validation rows ask.

    Pixels that hardly vary stay narrow so, other than in a covariance shrunk to one variance of
    all columns.  Images of more than 4096 columns get a covariance of low rank.

    Parameters
    ----------
    train : WeightedRows
        Training rows.
    valid : WeightedRows or None
        Validation rows; without them the columns are taken as independent.
    random_state : RandomState
        Source of the decomposition of large images.

    Returns
    -------
    Reference
        The fitted Gaussian.
    """
    n_rows, n_columns = train.X.shape
    if n_columns > MAX_COLUMNS_FOR_COVARIANCE:
        rank = max(1, min(MAX_DIRECTIONS, n_rows // 4, n_columns - 1))
        return LowRankGaussianReference.fit(train.X, rank, random_state, train.weight)
    if np.isnan(train.X).any():
        mean, covariance = fitted_moments(train.X, train.weight)
    else:
        mean = train.share @ train.X
        covariance = np.atleast_2d(np.cov(train.X.T, ddof=0, aweights=train.weight))
    diagonal = np.diag(np.diag(covariance))

    def shrunk(shrinkage: float) -> Reference:
        mixed = (1.0 - shrinkage) * covariance + shrinkage * diagonal
        return GaussianReference(mean, floor_eigenvalues(mixed))

    if valid is None:
        return shrunk(1.0)

    def scored(shrinkage: float) -> tuple[float, Reference]:
        reference = shrunk(shrinkage)
        return float(valid.share @ log_likelihoods(reference, valid.X)), reference

    best = scored(_SHRINKAGES[0])
    for shrinkage in _SHRINKAGES[1:]:
        candidate = scored(shrinkage)
        if candidate[0] <= best[0]:
            break
        best = candidate
    return best[1]


class GaussianFamily(ReferenceFamily):
    """One normal distribution: the plain family of tables without discrete columns."""

    name: ClassVar[str] = "gaussian"
    made_for: ClassVar[str] = "tables without discrete columns"
    is_plain: ClassVar[bool] = True
    is_judged: ClassVar[bool] = False

    def applies(self, schema: Schema) -> bool:
        """Return whether all columns that vary are continuous; see `ReferenceFamily.applies`."""
        return not schema.has_categories

    def fit(self, split: MappedSplit, context: FamilyContext) -> Reference:
        """Return the normal distribution; see `ReferenceFamily.fit`."""
        train = split.continuous_train
        if context.schema.has_images:
            valid = split.continuous_valid if split.judged else None
            return fit_gaussian_by_validation(train, valid, context.random_state)
        return GaussianReference.fit(train.X, train.weight)


class GivenReferenceFamily(ReferenceFamily):
    """A distribution that is known, in the units of the table.

    Parameters
    ----------
    reference : ContinuousReference
        The distribution.
    """

    name: ClassVar[str] = "reference"
    made_for: ClassVar[str] = "tables without discrete columns"
    is_judged: ClassVar[bool] = False

    def __init__(self, reference: ContinuousReference) -> None:
        self.reference = reference

    def applies(self, schema: Schema) -> bool:
        """Return whether all columns that vary are continuous; see `ReferenceFamily.applies`."""
        return not schema.has_categories

    def fit(self, split: MappedSplit, context: FamilyContext) -> Reference:
        """Return the distribution of standardised rows; see `ReferenceFamily.fit`."""
        standardizer = split.space.standardizer
        return self.reference.standardized(standardizer.center, standardizer.scale)
